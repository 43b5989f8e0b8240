//! Weights come from a folder or from memory.

use std::path::Path;

use burn_flex::Flex;
use sar_pipeline::{Known, Pipeline, files_of_run};
use sar_weights::WeightsFile;

#[test]
fn weights_from_memory_sample_as_those_of_a_folder() {
    let run = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/weights/emoji"));
    let device = Default::default();
    let from_folder = Pipeline::<Flex>::open_run(run, &device).unwrap();
    let [tokenizer, backbone] = files_of_run(run)
        .unwrap()
        .map(|path| WeightsFile::from_bytes("fetched", std::fs::read(path).unwrap()).unwrap());
    let from_memory =
        Pipeline::<Flex>::load(tokenizer, backbone, &Known::default(), &device).unwrap();
    let request = from_folder.request(from_folder.label("food").unwrap(), 1, 3);
    assert_eq!(from_memory.request(from_memory.label("food").unwrap(), 1, 3), request);
    let images = [from_folder, from_memory].map(|pipeline| pipeline.sample(&request));
    assert_eq!(images[0], images[1]);
}
