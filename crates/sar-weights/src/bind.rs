//! Joining named tensors and the parameters of a burn module.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use crate::error::{Misfit, WeightsError};
use crate::layout::Layout;
use crate::named::NamedTensors;
use crate::strided::{View, zeros};

/// A parameter of a module, by the name that it has in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterInfo {
    /// The name in the file.
    pub name: String,
    /// The identity by which optimizer state is kept.
    pub id: ParamId,
    /// The shape in the file: `[out, in]` for the weight of a `Linear`.
    pub shape: Vec<usize>,
}

/// Lists the parameters of a module in the order in which it is visited.
///
/// No lazy parameter is initialised by this.
///
/// # Panics
/// If two parameters get the same name, or if the module has an int or bool parameter.
pub fn parameters<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> Vec<ParameterInfo> {
    let mut visitor = List { position: Position::new(layout), found: Vec::new() };
    module.visit(&mut visitor);
    let mut names = BTreeSet::new();
    for ParameterInfo { name, .. } in &visitor.found {
        assert!(names.insert(name), "two parameters of the module have the name {name}");
    }
    visitor.found
}

/// Copies the parameters of a module, as f32 and in the layout of a file.
///
/// # Panics
/// If two parameters get the same name, or if the module has an int or bool parameter.
pub fn collect<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> NamedTensors {
    let mut visitor = Collect { position: Position::new(layout), named: NamedTensors::new() };
    module.visit(&mut visitor);
    visitor.named
}

/// Puts tensors in the place of the parameters of a module, all of them and nothing else.
///
/// The tensors may lie under one of the roots of the layout. Floats of any width become the
/// backend's default float. [`ParamId`]s, devices and gradient settings stay, and a lazy
/// parameter never runs its initialiser.
///
/// # Errors
/// [`WeightsError::Mismatch`] with everything that is missing, unused or of another shape or type.
/// Nothing has been assigned then: clone the module first to go on with it.
///
/// # Panics
/// If two parameters get the same name, or if the module has an int or bool parameter.
pub fn bind<B: Backend, M: Module<B>>(
    module: M,
    tensors: NamedTensors,
    layout: &Layout,
) -> Result<M, WeightsError> {
    let tensors = tensors.unwrap_root(layout.roots);
    check(&parameters(&module, layout), &tensors, layout)?;
    Ok(module.map(&mut Assign { position: Position::new(layout), tensors }))
}

fn check(
    parameters: &[ParameterInfo],
    tensors: &NamedTensors,
    layout: &Layout,
) -> Result<(), WeightsError> {
    let parameters: BTreeMap<&str, &[usize]> =
        parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
    let mut missing = Vec::new();
    let mut misfits = Vec::new();
    for (&name, &expected) in &parameters {
        match tensors.get(name) {
            None => missing.push(name.to_owned()),
            Some(data) if data.shape[..] != *expected || !data.dtype.is_float() => {
                misfits.push(Misfit {
                    name: name.to_owned(),
                    expected: expected.to_vec(),
                    found: data.shape.to_vec(),
                    dtype: data.dtype.name(),
                });
            }
            Some(_) => {}
        }
    }
    let is_unused = |name: &&str| !parameters.contains_key(name) && !layout.is_ignored(name);
    let unused: Vec<String> = tensors.names().filter(is_unused).map(ToOwned::to_owned).collect();

    if missing.is_empty() && unused.is_empty() && misfits.is_empty() {
        return Ok(());
    }
    let origin = tensors.origin().map(ToOwned::to_owned);
    Err(WeightsError::Mismatch { origin, missing, unused, misfits })
}

/// Where in the module a visitor or mapper is.
struct Position<'l> {
    layout: &'l Layout,
    /// For each open field: its name, and the type that it is a field of.
    open: Vec<(String, String)>,
}

impl<'l> Position<'l> {
    fn new(layout: &'l Layout) -> Self {
        Self { layout, open: Vec::new() }
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.open.push((name.to_owned(), container.to_owned()));
    }

    fn exit(&mut self) {
        self.open.pop();
    }

    /// The name in the file of the parameter here, and how its matrix lies there.
    fn parameter(&self, rank: usize) -> (String, Storage) {
        let field = self.open.last().map(|(name, container)| (container.as_str(), name.as_str()));
        let (last, storage) = match field {
            Some(("Struct:Linear", "weight")) if rank == 2 => (None, Storage::Transposed),
            Some((container, name)) if is_norm(container) => (norm_name(name), Storage::AsIs),
            _ => (None, Storage::AsIs),
        };
        let mut path: Vec<&str> = self
            .open
            .iter()
            .filter(|(_, container)| !container.starts_with("Enum:"))
            .map(|(name, _)| name.as_str())
            .collect();
        if let (Some(renamed), Some(name)) = (last, path.last_mut()) {
            *name = renamed;
        }
        (self.layout.rename(&path.join(".")), storage)
    }
}

fn is_norm(container: &str) -> bool {
    matches!(container, "Struct:GroupNorm" | "Struct:LayerNorm" | "Struct:BatchNorm")
}

fn norm_name(name: &str) -> Option<&'static str> {
    match name {
        "gamma" => Some("weight"),
        "beta" => Some("bias"),
        _ => None,
    }
}

/// How a parameter of the module lies in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    AsIs,
    Transposed,
}

impl Storage {
    fn shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Self::Transposed, &[rows, cols]) => vec![cols, rows],
            _ => shape.to_vec(),
        }
    }

    /// Converts between module and file, in either direction.
    fn convert(self, data: TensorData) -> TensorData {
        let data = data.convert_dtype(DType::F32);
        match (self, &data.shape[..]) {
            (Self::Transposed, &[rows, cols]) => {
                let view = View::transposed(rows, cols);
                let mut transposed = zeros(data.dtype, &view.shape);
                view.gather(data.as_bytes(), data.dtype.size(), &mut transposed.bytes);
                transposed
            }
            _ => data,
        }
    }
}

struct List<'l> {
    position: Position<'l>,
    found: Vec<ParameterInfo>,
}

impl<B: Backend> ModuleVisitor<B> for List<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.position.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.position.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let (name, storage) = self.position.parameter(D);
        let shape = storage.shape(&param.lazy_shape()[..]);
        self.found.push(ParameterInfo { name, id: param.id, shape });
    }

    fn visit_int<const D: usize>(&mut self, _: &Param<Tensor<B, D, Int>>) {
        panic!("{} is an int parameter", self.position.parameter(D).0);
    }

    fn visit_bool<const D: usize>(&mut self, _: &Param<Tensor<B, D, Bool>>) {
        panic!("{} is a bool parameter", self.position.parameter(D).0);
    }
}

struct Collect<'l> {
    position: Position<'l>,
    named: NamedTensors,
}

impl<B: Backend> ModuleVisitor<B> for Collect<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.position.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.position.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let (name, storage) = self.position.parameter(D);
        let data = storage.convert(param.transform_for_save().into_value().into_data());
        let replaced = self.named.insert(name.as_str(), data);
        assert!(replaced.is_none(), "two parameters of the module have the name {name}");
    }

    fn visit_int<const D: usize>(&mut self, _: &Param<Tensor<B, D, Int>>) {
        panic!("{} is an int parameter", self.position.parameter(D).0);
    }

    fn visit_bool<const D: usize>(&mut self, _: &Param<Tensor<B, D, Bool>>) {
        panic!("{} is a bool parameter", self.position.parameter(D).0);
    }
}

/// Expects tensors that [`check`] has passed.
struct Assign<'l> {
    position: Position<'l>,
    tensors: NamedTensors,
}

impl<B: Backend> ModuleMapper<B> for Assign<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.position.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.position.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (name, storage) = self.position.parameter(D);
        let data = self.tensors.remove(&name).expect("every parameter was checked");
        let (id, device) = (param.id, param.lazy_device());
        let tensor = B::memory_persistent_allocations(&device, storage.convert(data), |data| {
            Tensor::from_data(data, &device)
        });
        param.transform_for_load(tensor, id)
    }
}
