//! A tokenizer and a backbone of two runs are not taken together, though their shapes fit.

mod common;

use std::path::Path;

use burn_flex::Flex;
use sar_core::SeedTree;
use sar_model::{BackboneConfig, BackboneShape, PositionsConfig};
use sar_pipeline::{
    CodebookSketch, Known, Pipeline, PipelineError, Recognized, TrainedBackbone, TrainedTokenizer,
    Wanted, published_sampler,
};
use sar_tokenizer::CodebookGrowth;
use sar_weights::{NamedTensors, WeightsFile, cast_floats};

fn tokenizer(seed: u64) -> TrainedTokenizer<Flex> {
    common::tokenizer(CodebookGrowth::None {}, seed)
}

/// A backbone for such a tokenizer.
fn backbone(codebook: Option<CodebookSketch>) -> TrainedBackbone<Flex> {
    let config = BackboneConfig {
        shape: BackboneShape { width: 16, heads: 2, ..BackboneShape::published(1) },
        classes: 1,
        codebook_size: 64,
        codebook_dim: 4,
        positions: PositionsConfig::Grid { side: 8 },
    };
    let (seed, init) = (SeedTree::new(3), sar_model::Init { adaln_gamma: 1e-3 });
    TrainedBackbone {
        model: sar_model::init(&config, init, seed, &Default::default()).unwrap(),
        sampler: published_sampler(&config),
        config,
        classes: vec!["all".into()],
        scales: "1_2_4".parse().unwrap(),
        codebook,
    }
}

fn load(tokenizer: &Path, backbone: &Path) -> Result<Pipeline<Flex>, PipelineError> {
    let [tokenizer, backbone] = [tokenizer, backbone].map(|path| WeightsFile::open(path).unwrap());
    Pipeline::load(tokenizer, backbone, &Known::default(), &Default::default())
}

#[test]
fn a_backbone_is_taken_with_the_codes_that_it_was_trained_with_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let ours = tokenizer(1);
    ours.save(&file("ours")).unwrap();
    tokenizer(2).save(&file("other")).unwrap();
    let sketch = CodebookSketch::of(ours.model.codebook());
    let trained = backbone(Some(sketch.clone()));
    trained.save(&file("trained")).unwrap();

    let pipeline = load(&file("ours"), &file("trained")).unwrap();
    assert_eq!(pipeline.backbone().codebook, Some(sketch));
    let error = load(&file("other"), &file("trained")).unwrap_err();
    assert!(matches!(error, PipelineError::OtherCodes { .. }), "{error}");
    let error = error.to_string();
    for part in ["trained.safetensors: ", "other.safetensors; take the tokenizer of the run"] {
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }

    // What a conversion writes, of both files, in half precision.
    for dtype in [burn::tensor::DType::F16, burn::tensor::DType::BF16] {
        for name in ["ours", "other", "trained"] {
            let mut opened = WeightsFile::open(&file(name)).unwrap();
            let found = Recognized::of::<Flex>(&mut opened, Wanted::Any, &Known::default());
            let mut half = NamedTensors::new();
            for (tensor, data) in NamedTensors::read(&file(name)).unwrap() {
                half.insert(tensor, cast_floats(data, dtype).unwrap());
            }
            *half.metadata_mut() = found.unwrap().model.metadata();
            assert_eq!(half.metadata(), opened.metadata());
            half.write_safetensors(&file(&format!("{name}-half"))).unwrap();
        }
        for (of_tokenizer, of_backbone) in [("-half", ""), ("", "-half"), ("-half", "-half")] {
            let trained = file(&format!("trained{of_backbone}"));
            load(&file(&format!("ours{of_tokenizer}")), &trained).unwrap();
            assert!(load(&file(&format!("other{of_tokenizer}")), &trained).is_err());
        }
    }

    // Those that do not say are taken as they are.
    backbone(None).save(&file("silent")).unwrap();
    let silent = NamedTensors::read(&file("silent")).unwrap();
    assert!(!silent.metadata().contains_key("codebook"));
    for tokenizer in ["ours", "other"] {
        assert_eq!(load(&file(tokenizer), &file("silent")).unwrap().backbone().codebook, None);
    }
}
