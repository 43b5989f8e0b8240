//! Joining named tensors and the parameters of a burn module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};

use crate::error::{Misfit, WeightsError};
use crate::finite::FiniteCheck;
use crate::layout::Layout;
use crate::named::NamedTensors;
use crate::strided::{View, zeros};

/// A parameter of a module, by the name that it has in a file.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
/// No lazy parameter is initialized by this.
///
/// # Panics
/// If two parameters get the same name, or if the module has an int or bool parameter.
pub fn parameters<B: Backend, M: Module<B>>(module: &M, layout: &Layout) -> Vec<ParameterInfo> {
    parameters_stored(module, layout).0
}

/// Lists the parameters of a module, and how each of them lies in a file.
pub(crate) fn parameters_stored<B: Backend, M: Module<B>>(
    module: &M,
    layout: &Layout,
) -> (Vec<ParameterInfo>, Vec<Storage>) {
    let mut visitor =
        List { position: Position::new(layout), found: Vec::new(), storages: Vec::new() };
    module.visit(&mut visitor);
    let mut names = BTreeSet::new();
    for ParameterInfo { name, .. } in &visitor.found {
        assert!(names.insert(name), "two parameters of the module have the name {name}");
    }
    (visitor.found, visitor.storages)
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
/// Floats of any width become the backend's default float. [`ParamId`]s, devices and gradient
/// settings stay, and a lazy parameter never runs its initializer.
///
/// # Errors
/// [`WeightsError::Mismatch`] with everything that is missing, unused or of another shape or type,
/// [`WeightsError::Unreadable`] if what is missing is in the file but could not be read,
/// [`WeightsError::NotFinite`] if a parameter is to hold a NaN or an infinity. Nothing has been
/// assigned then: clone the module first to go on with it.
///
/// # Panics
/// If two parameters get the same name, or if the module has an int or bool parameter.
pub fn bind<B: Backend, M: Module<B>>(
    module: M,
    tensors: NamedTensors,
    layout: &Layout,
) -> Result<M, WeightsError> {
    let parameters = parameters(&module, layout);
    check(&parameters, &tensors, layout)?;
    check_finite(&parameters, &tensors)?;
    Ok(module.map(&mut Assign { position: Position::new(layout), tensors }))
}

fn check(
    parameters: &[ParameterInfo],
    tensors: &NamedTensors,
    layout: &Layout,
) -> Result<(), WeightsError> {
    // A tensor that could not be read is not missing.
    tensors.check_readable(|unreadable| parameters.iter().any(|p| p.name == unreadable))?;
    let found = tensors.iter().map(|(name, data)| (name, &data.shape[..], data.dtype));
    compare(tensors.origin(), parameters, found, layout)
}

/// Compares names, shapes and types of tensors with the parameters of a module.
pub(crate) fn compare<'t>(
    origin: Option<&Path>,
    parameters: &[ParameterInfo],
    tensors: impl Iterator<Item = (&'t str, &'t [usize], DType)>,
    layout: &Layout,
) -> Result<(), WeightsError> {
    let mut missing: BTreeMap<&str, &[usize]> =
        parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
    let (mut unused, mut misfits) = (Vec::new(), Vec::new());
    for (name, shape, dtype) in tensors {
        match missing.remove(name) {
            None if layout.is_ignored(name) => {}
            None => unused.push(name.to_owned()),
            Some(expected) if shape != expected || !dtype.is_float() => misfits.push(Misfit {
                name: name.to_owned(),
                expected: expected.to_vec(),
                found: shape.to_vec(),
                dtype: dtype.name(),
            }),
            Some(_) => {}
        }
    }
    if missing.is_empty() && unused.is_empty() && misfits.is_empty() {
        return Ok(());
    }
    let origin = origin.map(ToOwned::to_owned);
    let missing = missing.into_keys().map(ToOwned::to_owned).collect();
    Err(WeightsError::Mismatch { origin, missing, unused, misfits })
}

/// Buffers are not looked at: masks hold infinities.
fn check_finite(parameters: &[ParameterInfo], tensors: &NamedTensors) -> Result<(), WeightsError> {
    let mut check = FiniteCheck::default();
    for ParameterInfo { name, .. } in parameters {
        check.add(name, tensors.get(name).expect("every parameter was checked"));
    }
    check.finish(tensors.origin())
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
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
    pub(crate) fn convert(self, data: TensorData) -> TensorData {
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
    storages: Vec<Storage>,
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
        self.storages.push(storage);
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
