//! The parameters of a module as tensors of a file, read from the device one at a time.

use std::marker::PhantomData;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use crate::bind::{Storage, parameters_stored};
use crate::file::TensorInfo;
use crate::layout::Layout;

/// The parameters of a module under the names of a file, without their values.
///
/// With [`write_weights`](crate::write_weights) this writes modules without ever holding all of
/// their values in host memory: [`read`](Self::read) takes one parameter from the device, and a
/// second copy of it only where a matrix is transposed. Several modules go into one file under
/// different prefixes.
///
/// ```
/// use std::borrow::Cow;
///
/// use burn::nn::{Linear, LinearConfig};
/// use burn_flex::Flex;
/// use sar_weights::{Layout, ModuleTensors, Target, WeightsError, write_weights};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("both.safetensors");
/// let linear = || -> Linear<Flex> { LinearConfig::new(3, 2).init(&Default::default()) };
/// let (model, average) = (linear(), linear());
/// let model = ModuleTensors::new("model.", &model, &Layout::default());
/// let average = ModuleTensors::new("average.", &average, &Layout::default());
///
/// let infos = [model.infos(), average.infos()].concat();
/// write_weights(&path, Target::Safetensors, &infos, &Default::default(), |name| {
///     let data = model.read(name).or_else(|| average.read(name));
///     Ok::<_, WeightsError>(Cow::Owned(data.expect("a name of one of them")))
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ModuleTensors<'m, B, M> {
    module: &'m M,
    /// In the order in which the module is visited.
    infos: Vec<TensorInfo>,
    storages: Vec<Storage>,
    _backend: PhantomData<B>,
}

impl<'m, B: Backend, M: Module<B>> ModuleTensors<'m, B, M> {
    /// Lists the parameters of a module; the prefix is put in front of their names as it is.
    ///
    /// # Panics
    /// If two parameters get the same name, or if the module has an int or bool parameter.
    pub fn new(prefix: &str, module: &'m M, layout: &Layout) -> Self {
        let (parameters, storages) = parameters_stored(module, layout);
        let infos = parameters
            .into_iter()
            .map(|parameter| TensorInfo {
                name: format!("{prefix}{}", parameter.name),
                dtype: DType::F32,
                shape: parameter.shape,
            })
            .collect();
        Self { module, infos, storages, _backend: PhantomData }
    }

    /// Names, element types and shapes in the file, in the order in which the module is visited.
    pub fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// Copies one parameter from the device, as f32 and in the layout of a file; `None` if no
    /// parameter has the name.
    pub fn read(&self, name: &str) -> Option<TensorData> {
        let number = self.infos.iter().position(|info| info.name == name)?;
        let mut visitor = Fetch { wanted: number, n_visited: 0, data: None };
        self.module.visit(&mut visitor);
        visitor.data.map(|data| self.storages[number].convert(data))
    }
}

/// Takes the data of one parameter, by its number in the order of visits.
struct Fetch {
    wanted: usize,
    n_visited: usize,
    data: Option<TensorData>,
}

impl<B: Backend> ModuleVisitor<B> for Fetch {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.n_visited == self.wanted {
            self.data = Some(param.transform_for_save().into_value().into_data());
        }
        self.n_visited += 1;
    }
}
