//! Muon for the matrices inside a model (Jordan et al., *Muon: An optimizer for hidden layers in neural
//! networks*, 2024), beside AdamW for everything else.
//!
//! ```text
//! m = b m + (1 - b) g
//! u = b m + (1 - b) g                                      (Nesterov)
//! p -= lr wd p
//! p -= lr update_rms sqrt(max(rows, columns)) O            (O: U V^T of u = U S V^T, nearly)
//! ```
//! An orthogonal `O` has a root mean square of `1 / sqrt(max(rows, columns))`: with this factor an update is as
//! large in matrices of all shapes, and with 0.2 about as large as AdamW's, whose learning rate and weight decay then
//! hold for both (Liu et al., arXiv:2502.16982).

use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::orthogonalized;
use serde::{Deserialize, Serialize};

use crate::optim::is_decayed;

/// What moves matrices and kernels inside a model; AdamW moves everything else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Matrices {
    /// AdamW, as all else.
    #[serde(rename = "adamw")]
    AdamW {},
    /// Muon.
    Muon {
        /// Decay of the mean of gradients, b (Jordan et al.: 0.95).
        momentum: f64,
        /// Root mean square of an update over the learning rate (Liu et al.: 0.2).
        update_rms: f64,
        /// Iterations of [`orthogonalized`]: 3 bring all that counts into `[0.73, 1.27]`, as near to 1 as Jordan et al.'s 5.
        iterations: usize,
    },
}

/// Parts of names of what a model begins and ends with: convolutions from and to pixels, embeddings of tokens
/// and classes, codebooks, heads; and of the projections of adaptive norms, whose inputs are embeddings of classes.
const BY_ADAMW: [&str; 9] = [
    "ada_lin",
    "encoder.conv_in",
    "decoder.conv_out",
    "embedding",
    "word_embed",
    "class_emb",
    "head.",
    "first.",
    "last.",
];

/// Whether a parameter is a matrix or a kernel inside a model, which Muon moves where the recipe asks for it. Of a
/// kernel `[out, in, k, k]` each output is a row.
///
/// What a model begins and ends with is AdamW's, as Muon's authors advise, and so are the projections of adaptive
/// norms: their gradients have no more dimensions than there are classes, and an orthogonal matrix would make noise of the others
/// as large (with them the small backbone learns less, benchmarks/LOG.md). A weight that makes several things at
/// once (queries, keys and values) is one matrix: no shape says where it would have to be cut.
pub fn is_orthogonalized(name: &str, shape: &[usize]) -> bool {
    matches!(shape.len(), 2 | 4)
        && is_decayed(name, shape)
        && !BY_ADAMW.iter().any(|part| name.contains(part))
}

/// A matrix that is to be moved.
pub(crate) struct Matrix<B: Backend> {
    /// Rows and columns,
    pub(crate) size: [usize; 2],
    /// the mean of its gradients, if it had one before,
    pub(crate) mean_n: Option<Tensor<B, 1>>,
    /// and its gradient.
    pub(crate) gradient_n: Tensor<B, 1>,
}

/// The means of gradients `[n]` after a step, and what each matrix moves along, `[n]`, for a learning rate of 1.
/// The factor `[1]` is that of [`sar_kernels::adamw`].
pub(crate) fn directions<B: Backend>(
    matrices: Vec<Matrix<B>>,
    factor_1: &Tensor<B, 1>,
    [momentum, update_rms]: [f64; 2],
    iterations: usize,
) -> Vec<(Tensor<B, 1>, Tensor<B, 1>)> {
    let (means, ahead): (Vec<_>, Vec<_>) = matrices
        .into_iter()
        .map(|Matrix { size, mean_n, gradient_n }| {
            let n = gradient_n.dims();
            let zero = factor_1.clone().equal_elem(0.0).expand(n);
            let new_n = (gradient_n * factor_1.clone()).mask_fill(zero, 0.0) * (1.0 - momentum);
            let mean_n = match mean_n {
                Some(mean_n) => mean_n * momentum + new_n.clone(),
                None => new_n.clone(),
            };
            let ahead_n = mean_n.clone() * momentum + new_n;
            (mean_n, ahead_n.reshape(size))
        })
        .unzip();
    let along = orthogonalized(ahead, iterations).into_iter().map(|o_rc| {
        let [rows, columns] = o_rc.dims();
        o_rc.reshape([rows * columns]) * (update_rms * (rows.max(columns) as f64).sqrt())
    });
    means.into_iter().zip(along).collect()
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_discriminator::DiscriminatorConfig;
    use sar_model::Backbone;
    use sar_tokenizer::Tokenizer;
    use sar_weights::{Layout, parameters};

    use super::*;
    use crate::Recipe;

    fn recipe(settings: &[&str]) -> Recipe {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Recipe::load("emoji-quick", &settings).unwrap()
    }

    /// The names of all tensors of more than one dimension: those inside a model, and the others.
    fn chosen<M: Module<Flex>>(model: &M, layout: &Layout) -> [Vec<String>; 2] {
        let (inside, others): (Vec<_>, Vec<_>) = parameters(model, layout)
            .into_iter()
            .filter(|info| info.shape.len() > 1)
            .partition(|info| is_orthogonalized(&info.name, &info.shape));
        [inside, others].map(|infos| infos.into_iter().map(|info| info.name).collect())
    }

    fn of_backbone(settings: &[&str]) -> [Vec<String>; 2] {
        let config = recipe(&[&["backbone.depth=1"][..], settings].concat()).backbone_config(4);
        let model = Backbone::<Flex>::new(&config, &Default::default()).unwrap();
        let [mut inside, mut others] = chosen(&model, &sar_model::LAYOUT);
        inside.sort();
        others.sort();
        [inside, others]
    }

    #[test]
    fn of_a_backbone_the_matrices_of_blocks_are_chosen() {
        let block = [
            "blocks.0.attn.mat_qkv.weight",
            "blocks.0.attn.proj.weight",
            "blocks.0.ffn.fc1.weight",
            "blocks.0.ffn.fc2.weight",
        ];
        let [inside, others] = of_backbone(&[]);
        assert_eq!(inside, block);
        let outside = [
            "blocks.0.ada_lin.1.weight",
            "blocks.0.attn.scale_mul_1H11",
            "class_emb.weight",
            "head.weight",
            "head_nm.ada_lin.1.weight",
            "pos_1LC",
            "pos_start",
            "word_embed.weight",
        ];
        assert_eq!(others, outside);
        // VAR's positions, and one projection for all blocks.
        let var = ["backbone.positions={ kind = \"per-token\" }", "backbone.shared_adaln=true"];
        let [inside, others] = of_backbone(&var);
        assert_eq!(inside, block);
        for name in ["shared_ada_lin.1.weight", "lvl_embed.weight", "pos_1LC", "blocks.0.ada_gss"] {
            assert!(others.iter().any(|other| other == name), "{name}: {others:?}");
        }
    }

    #[test]
    fn of_a_tokenizer_all_kernels_but_the_outermost_are_chosen() {
        let var = [
            "tokenizer.model.family={ kind = \"var\", phi = { shared = 4 } }",
            "tokenizer.loss.coarse=0",
        ];
        for (settings, some) in [
            (&[][..], ["decoder.mid.1.q.weight", "encoder.conv_blocks.0.res.0.conv1.weight"]),
            (&var[..], ["decoder.mid.attn_1.qkv.weight", "quantize.quant_resi.qresi_ls.3.weight"]),
        ] {
            let model = recipe(settings).tokenizer.model;
            let tokenizer = Tokenizer::<Flex>::new(&model, &Default::default()).unwrap();
            let [inside, mut others] = chosen(&tokenizer, model.layout());
            others.sort();
            let outside =
                ["decoder.conv_out.weight", "encoder.conv_in.weight", "quantize.embedding.weight"];
            assert_eq!(others, outside);
            let both = ["quant_conv.weight", "post_quant_conv.weight", "decoder.conv_in.weight"];
            for name in both.iter().chain(&some) {
                assert!(inside.iter().any(|other| other == name), "{name}: {inside:?}");
            }
        }
    }

    #[test]
    fn of_a_discriminator_the_kernels_between_are_chosen() {
        let config = DiscriminatorConfig::PatchGan { channels: 8, layers: 2 };
        let (seed, device) = (SeedTree::new(1), Default::default());
        let model =
            sar_discriminator::init::<Flex>(&config, || unreachable!(), seed, &device).unwrap();
        let [inside, others] = chosen(&model, &sar_discriminator::LAYOUT);
        assert_eq!(others, ["first.weight", "last.weight"]);
        assert_eq!(inside, ["blocks.0.conv.weight", "blocks.1.conv.weight"]);
    }
}
