//! Released models, recognised by names and shapes.

use std::path::Path;

use crate::support::{message, parity};
use burn::tensor::{DType, TensorData};
use sar_weights::{
    BackboneShape, NamedTensors, Phi, PositionsShape, Recognised, Released, TensorInfo,
    TokenizerFamily, TokenizerShape, WeightsError, WeightsFile, recognise,
};

fn seen(case: &str, file: &str) -> Recognised {
    let path = parity(&format!("{case}/{file}.pth"));
    recognise(&path, WeightsFile::open(&path).unwrap().tensors()).unwrap()
}

/// The shapes that the settings of the parity cases say.
#[test]
fn the_parity_cases_have_the_shapes_of_their_settings() {
    let tokenizer = TokenizerShape {
        family: TokenizerFamily::Flexvar,
        base_channels: 32,
        channel_multipliers: vec![1, 2],
        res_blocks: 1,
        z_channels: 32,
        codebook_size: 64,
        codebook_dim: 32,
    };
    let backbone = BackboneShape {
        depth: 2,
        width: 32,
        heads: Some(2),
        mlp_ratio: 4,
        classes: 10,
        codebook_size: 64,
        codebook_dim: 32,
        shared_adaln: false,
        qk_l2_norm: true,
        positions: PositionsShape::Grid { side: 32 },
    };
    let check = |case: &str, root: &str, tokenizer: &TokenizerShape, backbone: &BackboneShape| {
        let found = seen(case, "tokenizer");
        assert_eq!(found.model, Released::Tokenizer(tokenizer.clone()), "{case}");
        assert_eq!(found.root.is_empty(), root.is_empty());
        let found = seen(case, "backbone");
        assert_eq!(found.model, Released::Backbone(backbone.clone()), "{case}");
        assert_eq!(found.root, root);
    };
    check("flexvar_tiny", "trainer.var_wo_ddp", &tokenizer, &backbone);
    let shared = BackboneShape {
        depth: 3,
        heads: None,
        codebook_size: 40,
        shared_adaln: true,
        qk_l2_norm: false,
        ..backbone.clone()
    };
    let narrow = TokenizerShape { codebook_size: 40, ..tokenizer.clone() };
    check("flexvar_shared_adaln", "trainer.var_wo_ddp", &narrow, &shared);

    let var = |phi| TokenizerShape {
        family: TokenizerFamily::Var { phi },
        res_blocks: 2,
        z_channels: 8,
        codebook_dim: 8,
        ..tokenizer.clone()
    };
    let positions = |tokens, scales| PositionsShape::PerToken { tokens, scales };
    let tiny = BackboneShape { codebook_dim: 8, positions: positions(680, 10), ..backbone.clone() };
    check("var_tiny", "", &var(Phi::Shared(4)), &tiny);
    let phi5 = BackboneShape { shared_adaln: true, positions: positions(155, 7), ..tiny.clone() };
    check("var_phi5", "", &var(Phi::Shared(5)), &phi5);
}

/// Published numbers of parameters (VAR: table 1 of the paper and the released cards), and for FlexVAR
/// those of the released files.
#[test]
fn presets_have_the_published_numbers_of_parameters() {
    let check = |name: &str, millions: f64, tolerance: f64| {
        let model = Released::preset(name).unwrap();
        let n: usize =
            model.parameters().values().map(|shape| shape.iter().product::<usize>()).sum();
        assert!((n as f64 / 1e6 - millions).abs() < tolerance, "{name}: {n}");
    };
    check("flexvar-tokenizer", 72.05, 0.005);
    check("flexvar-d16", 315.56, 0.005);
    check("sar-d16", 315.56, 0.005);
    check("var-tokenizer", 108.95, 0.005);
    check("var-d16", 310.0, 1.0);
    check("var-d20", 600.0, 5.0);
    check("var-d24", 1000.0, 35.0);
    check("var-d30", 2000.0, 15.0);
    // 2,354 M, which the card gives as 2.3 B.
    check("var-d36-s", 2300.0, 60.0);
    assert_eq!(Released::preset("var-d17"), None);
}

/// A file of a preset's shape, without numbers.
fn listing(model: &Released, root: &str) -> Vec<TensorInfo> {
    let info = |(name, shape)| TensorInfo { name, dtype: DType::F32, shape };
    let mut infos: Vec<TensorInfo> = model.parameters().into_iter().map(info).collect();
    infos.iter_mut().for_each(|info| info.name = format!("{root}{}", info.name));
    infos
}

#[test]
fn every_preset_is_recognised_by_its_own_tensors() {
    let path = Path::new("weights");
    for (name, model) in Released::presets() {
        for root in ["", "model.", "trainer.var_wo_ddp.", "state_dict."] {
            let found = recognise(path, &listing(&model, root)).unwrap();
            assert_eq!(found.model.preset_name(), Some(name));
            assert_eq!(found.root, root.trim_end_matches('.'));
        }
    }
    for phi in [Phi::PerScale(0), Phi::PerScale(7), Phi::Shared(1), Phi::Shared(3)] {
        let shape =
            TokenizerShape { family: TokenizerFamily::Var { phi }, ..TokenizerShape::var() };
        let model = Released::Tokenizer(shape);
        assert_eq!(recognise(path, &listing(&model, "")).unwrap().model, model);
    }
}

#[test]
fn the_model_of_a_training_checkpoint_is_found_beside_other_state() {
    let path = Path::new("weights");
    let backbone = Released::preset("var-d16").unwrap();
    let tokenizer = Released::preset("var-tokenizer").unwrap();
    let mut infos = listing(&backbone, "trainer.var_wo_ddp.");
    infos.extend(listing(&tokenizer, "trainer.vae_local."));
    infos.extend(listing(&backbone, "trainer.var_opt."));
    assert_eq!(recognise(path, &infos).unwrap().model, backbone);

    let mut infos = listing(&backbone, "a.");
    infos.extend(listing(&backbone, "b."));
    let error = message(recognise(path, &infos));
    assert!(error.contains("there are 2 models, under a, b and so on"), "{error}");
}

#[test]
fn what_differs_is_named() {
    let path = Path::new("weights");
    let tiny = NamedTensors::read(&parity("flexvar_tiny/backbone.pth"))
        .unwrap()
        .unwrap_root(&["trainer.var_wo_ddp"]);
    let check = |change: &dyn Fn(&mut NamedTensors), expected: &str| {
        let mut named = tiny.clone();
        change(&mut named);
        let error = recognise(path, &named.infos()).unwrap_err();
        assert!(matches!(error, WeightsError::Unrecognised { .. }));
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    let two = || TensorData::from([1f32, 2.0]);
    check(
        &|named| _ = named.remove("blocks.1.attn.proj.bias"),
        "looks like a flexvar-backbone, but 1 missing: blocks.1.attn.proj.bias",
    );
    check(&|named| _ = named.insert("extra.weight", two()), "1 unused: extra.weight");
    check(
        &|named| _ = named.insert("head.bias", two()),
        "1 of another shape or type: head.bias (expected float [64], found f32 [2])",
    );
    check(
        &|named| _ = named.insert("head.bias", TensorData::from([1i32; 64])),
        "head.bias (expected float [64], found i32 [64])",
    );
    check(&|named| _ = named.remove("word_embed.weight"), "there is neither word_embed.weight nor");
    check(&|named| _ = named.remove("pos_1LC"), "there is no pos_1LC");
    check(&|named| _ = named.insert("pos_1LC", two()), "pos_1LC is [2], neither a grid nor a list");
    check(&|named| _ = named.insert("word_embed.weight", two()), "word_embed.weight is [2], which");
    check(
        &|named| {
            let heads = TensorData::new(vec![0f32; 5], [1, 5, 1, 1]);
            named.insert("blocks.0.attn.scale_mul_1H11", heads);
        },
        "channels over heads: 32 is not a multiple of 5",
    );
    let error = message(recognise(path, &[]));
    assert!(error.contains("there is neither"), "{error}");
}

/// Shapes that overflow any product of them.
#[test]
fn absurd_shapes_are_errors() {
    let path = Path::new("weights");
    let huge = usize::MAX;
    for tensor in ["word_embed.weight", "head.weight", "class_emb.weight", "pos_1LC"] {
        for shape in [vec![huge, huge], vec![0, 0], vec![1, huge, huge, huge], vec![]] {
            let mut infos = listing(&Released::preset("var-d16").unwrap(), "");
            let info = infos.iter_mut().find(|info| info.name == tensor).unwrap();
            info.shape = shape;
            message(recognise(path, &infos));
        }
    }
    let mut infos = listing(&Released::preset("flexvar-tokenizer").unwrap(), "");
    infos.iter_mut().for_each(|info| info.shape.iter_mut().for_each(|side| *side = huge));
    message(recognise(path, &infos));
}
