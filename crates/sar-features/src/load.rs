//! Weights of a frozen network out of a file: all of them and nothing else.

use burn::module::Module;
use burn::tensor::backend::Backend;
use sar_weights::{Anchor, Layout, NamedTensors, WeightsError, WeightsFile, bind, parameters};

/// Puts the tensors of a file in the place of the parameters of a module, wherever in the file a
/// training program has put them.
///
/// # Errors
/// As [`Anchor::locate`] and [`bind`].
pub(crate) fn load<B: Backend, M: Module<B>>(
    module: M,
    mut file: WeightsFile,
    anchor: &Anchor,
    layout: &Layout,
) -> Result<M, WeightsError> {
    let Some(located) = anchor.locate(&file, None)? else {
        // The anchor is missing, and named among what is.
        return bind(module, file.read_all()?, layout);
    };
    let parameters = parameters(&module, layout);
    located.check(file.path(), &parameters, layout)?;
    file.verify()?;
    // What the layout ignores can be most of a file: a classifier.
    let mut tensors = NamedTensors::new();
    for parameter in parameters {
        let info = located.get(&parameter.name).expect("checked to be there");
        tensors.insert(parameter.name, file.read(&info.name)?);
    }
    bind(module, tensors, layout)
}
