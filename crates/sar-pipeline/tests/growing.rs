//! A tokenizer's file knows how its codebook grows, which its shapes do not show.

mod common;

use burn_flex::Flex;
use sar_core::{CodePyramid, ScaleSize};
use sar_pipeline::{Known, TrainedTokenizer};
use sar_tokenizer::CodebookGrowth;
use sar_weights::{NamedTensors, WeightsFile};

#[test]
fn growth_comes_back_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.safetensors");
    let device = Default::default();
    let load = || {
        let file = WeightsFile::open(&path).unwrap();
        TrainedTokenizer::<Flex>::load(file, &Known::default(), &device)
    };
    for codebook_growth in
        [CodebookGrowth::None {}, CodebookGrowth::Geometric { first: 4, full_side: 4 }]
    {
        let saved = common::tokenizer(codebook_growth, 1);
        saved.save(&path).unwrap();
        let loaded = load().unwrap().value;
        assert_eq!(loaded.config, saved.config);
        let one = ScaleSize::square(1);
        assert_eq!(loaded.model.n_codes(one), codebook_growth.n_codes(one, 64));
    }
    // A growth that cannot be is refused.
    let mut named = NamedTensors::read(&path).unwrap();
    let config = named.metadata_mut().get_mut("config").unwrap();
    *config = config.replace("\"first\":4", "\"first\":65");
    named.write_safetensors(&path).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("codebook_growth.first"), "{error}");
    // Files from before the field know of none.
    named.metadata_mut().remove("config");
    named.write_safetensors(&path).unwrap();
    assert_eq!(load().unwrap().value.config.codebook_growth, CodebookGrowth::None {});
}
