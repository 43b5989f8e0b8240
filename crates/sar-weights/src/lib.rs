//! Weights as named tensors: PyTorch checkpoints and safetensors files in and out, bound strictly to
//! any burn module.
//!
//! A file becomes [`NamedTensors`], or a [`WeightsFile`] that is read tensor by tensor, in which an
//! [`Anchor`] finds a model wherever a training program has put it; a [`Layout`] says how the
//! parameter paths of a burn module map to the names of a released checkpoint; [`bind`] joins the two,
//! accepts no difference and no value that is not finite. [`collect`] is its inverse, and
//! [`ModuleTensors`] with [`write_weights`] its inverse one tensor at a time.
//!
//! ```
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::TensorData;
//! use burn_flex::Flex;
//! use sar_weights::{Layout, NamedTensors, bind};
//!
//! const RELEASED: Layout = Layout { renames: &[], ignored: &["steps_seen"] };
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("head.safetensors");
//! let mut weights = NamedTensors::new();
//! // torch's [out, in]
//! weights.insert("weight", TensorData::from([[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]]));
//! weights.insert("bias", TensorData::from([0.5f32, -0.5]));
//! weights.insert("steps_seen", TensorData::from([7i64]));
//! weights.write_safetensors(&path)?;
//!
//! let head: Linear<Flex> = LinearConfig::new(3, 2).init(&Default::default());
//! let head = bind(head, NamedTensors::read(&path)?, &RELEASED)?;
//! // burn's [in, out]
//! let expected = TensorData::from([[1f32, 4.0], [2.0, 5.0], [3.0, 6.0]]);
//! head.weight.val().into_data().assert_eq(&expected, true);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A `.pth` file is data and never code: its pickle runs in a restricted interpreter of this
//! crate, in which tensors, dictionaries, lists, numbers and strings have a meaning, and every
//! other global is an opaque value that is never called. Strides, offsets, element types, bounds
//! and checksums are checked; no size found in a file is allocated before it is checked against
//! the size of that file.

mod error;
mod file;
mod named;

mod atomic;
mod safetensors;
mod shards;
mod unreadable;

mod flatten;
mod pickle;
mod pth;
mod source;
mod strided;

mod cast;
mod finite;

mod bind;
mod fill;
mod layout;
mod module_tensors;

mod checksum;
mod locate;

pub use cast::cast_floats;
pub use checksum::checksum;
pub use finite::{FiniteCheck, count_not_finite};

pub use atomic::{remove_stale, remove_stale_of, write_bytes, write_whole};
pub use bind::{ParameterInfo, bind, collect, parameters};
pub use error::{Misfit, WeightsError};
pub use file::{Checksum, Format, Target, TensorInfo, WeightsFile, write_weights};
pub use fill::fill;
pub use layout::Layout;
pub use locate::{Anchor, Located, Shapes};
pub use module_tensors::ModuleTensors;
pub use named::NamedTensors;
pub use unreadable::Unreadable;

// Tensors are little-endian in every file read or written here, and are not swapped.
const _: () = assert!(cfg!(target_endian = "little"));
