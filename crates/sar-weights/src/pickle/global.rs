//! The globals of a pickle that have a meaning; all others are opaque.

use burn::tensor::{BoolStore, DType};

use super::Value;

/// A global with a meaning. None of them is looked up or called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Global<'a> {
    OrderedDict,
    RebuildTensor,
    /// As [`RebuildTensor`](Self::RebuildTensor), with the element type as the seventh argument.
    RebuildTyped,
    RebuildParameter,
    RebuildQuantized,
    /// Whatever makes a tensor or an array that cannot be read.
    RebuildForeign(Foreign<'a>),
    Storage(Element<'a>),
    /// Another name of torch, such as that of an element type.
    Torch(&'a str),
}

/// The type of the elements of a storage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Element<'a> {
    Readable(DType),
    /// A type that burn does not have, by its name.
    Other(&'a str),
}

impl Element<'_> {
    /// The number of bytes of an element, where it is known.
    pub(crate) fn n_bytes(self) -> Option<usize> {
        match self {
            Self::Readable(dtype) => Some(dtype.size()),
            Self::Other("qint8" | "quint8" | "quint4x2" | "quint2x4" | UNTYPED) => Some(1),
            Self::Other("qint32") => Some(4),
            Self::Other("complex64") => Some(8),
            Self::Other("complex128") => Some(16),
            Self::Other(_) => None,
        }
    }
}

/// The elements of a storage that are bytes until something else says what they are.
const UNTYPED: &str = "untyped";

/// Why a tensor that is in the file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Foreign<'a> {
    Element(&'a str),
    Quantized(&'a str),
    Sparse,
    Nested,
    Meta,
    Subclass,
    NumPy,
    /// A function of torch that is not known here.
    Rebuilt(&'a str),
    /// Its numbers lie in something that is not a storage.
    NoStorage,
}

impl Foreign<'_> {
    /// What follows "tensor x is".
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Element(name) => name.into(),
            Self::Quantized(name) => format!("quantized ({name})"),
            Self::Sparse => "sparse".into(),
            Self::Nested => "nested".into(),
            Self::Meta => "on the device meta, without values".into(),
            Self::Subclass => "of a subclass of torch.Tensor".into(),
            Self::NumPy => "a NumPy array".into(),
            Self::Rebuilt(name) => format!("made by torch's {name}"),
            Self::NoStorage => "kept in an unknown kind of storage".into(),
        }
    }
}

pub(super) fn known_global<'a>(module: &'a str, name: &'a str) -> Value<'a> {
    let global = match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTyped,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Global::RebuildParameter
        }
        ("torch._utils", "_rebuild_qtensor") => Global::RebuildQuantized,
        ("torch._utils" | "torch._tensor", name) if name.starts_with("_rebuild_") => {
            Global::RebuildForeign(foreign(name))
        }
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
            Global::RebuildForeign(Foreign::NumPy)
        }
        ("torch" | "torch.storage", name) if name.ends_with("Storage") => {
            Global::Storage(element(name))
        }
        ("torch", name) => Global::Torch(name),
        _ => return Value::Opaque,
    };
    Value::Global(global)
}

fn foreign(function: &str) -> Foreign<'_> {
    match function {
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => Foreign::Sparse,
        "_rebuild_nested_tensor" => Foreign::Nested,
        "_rebuild_meta_tensor_no_storage" => Foreign::Meta,
        "_rebuild_from_type_v2" | "_rebuild_from_type" | "_rebuild_wrapper_subclass" => {
            Foreign::Subclass
        }
        other => Foreign::Rebuilt(other),
    }
}

/// The element type of a storage, by the name of its class.
fn element(class: &str) -> Element<'_> {
    Element::Readable(match class {
        "DoubleStorage" => DType::F64,
        "FloatStorage" => DType::F32,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ShortStorage" => DType::I16,
        "CharStorage" => DType::I8,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool(BoolStore::Native),
        "ComplexFloatStorage" => return Element::Other("complex64"),
        "ComplexDoubleStorage" => return Element::Other("complex128"),
        "QInt8Storage" => return Element::Other("qint8"),
        "QUInt8Storage" => return Element::Other("quint8"),
        "QInt32Storage" => return Element::Other("qint32"),
        "QUInt4x2Storage" => return Element::Other("quint4x2"),
        "QUInt2x4Storage" => return Element::Other("quint2x4"),
        "UntypedStorage" => return Element::Other(UNTYPED),
        other => return Element::Other(other),
    })
}
