//! The scale-wise transformer of VAR and FlexVAR.
//!
//! Shapes: b batch, l tokens of the pyramid, n tokens of one scale, d width, c code channels,
//! v codes; rows r = l b, token-major: all images of the first token, then all of
//! the second.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear};
use burn::tensor::activation::silu;
use burn::tensor::{Int, Tensor, backend::Backend};
use sar_core::{ScaleModel, ScaleSchedule, ScaleSize};
use sar_kernels::{KeyValueCache, layer_norm_modulated};

use crate::attention::{AttentionMode, linear_layer, project};
use crate::block::{Block, EPSILON, Modulation};
use crate::positions::Positions;
use crate::visibility::Sequence;
use crate::{BackboneConfig, BackboneConfigError, DropPath, Visibility};

/// What the first token is made of (the student's has no start position).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstToken {
    /// Class embedding + `pos_start`: teacher forcing and sampling.
    Start,
    /// The bare class embedding: the student pass.
    Bare,
}

/// One parallel pass over a schedule.
#[derive(Clone, Debug)]
pub struct Pass<'a, B: Backend> {
    /// Class of each image, `[b]`, in `0..=classes` (the last is the null class).
    pub labels_b: Tensor<B, 1, Int>,
    /// Inputs of the scales after the first, `[b, l - 1, c]`; `None` for a single-scale schedule.
    pub inputs_blc: Option<Tensor<B, 3>>,
    /// The scales that the tokens belong to.
    pub schedule: &'a ScaleSchedule,
    /// What the first token is made of.
    pub first: FirstToken,
    /// Dropped branches, in training only.
    pub depth_drops: Option<&'a DropPath>,
}

/// The transformer: parameters only. Schedule, cache and randomness are handed in.
#[derive(Module, Debug)]
pub struct Backbone<B: Backend> {
    pos_start: Param<Tensor<B, 3>>,
    positions: Positions<B>,
    word_embed: Linear<B>,
    class_emb: Embedding<B>,
    shared_ada_lin: Option<Linear<B>>,
    blocks: Vec<Block<B>>,
    head_nm: HeadNorm<B>,
    head: Linear<B>,
    width: usize,
    #[module(skip)]
    visibility: Visibility,
}

/// The adaptive layer norm before the head.
#[derive(Module, Debug)]
struct HeadNorm<B: Backend> {
    ada_lin: Linear<B>,
}

/// Conditions of a batch, projected once for all blocks and the head.
#[derive(Clone, Debug)]
struct Condition<B: Backend> {
    embedding_bd: Tensor<B, 2>,
    blocks: Vec<Modulation<B>>,
    head_scale: Tensor<B, 2>,
    head_shift: Tensor<B, 2>,
}

impl<B: Backend> Backbone<B> {
    /// A backbone whose parameters wait to be filled, by [`init`](crate::init) or a checkpoint.
    ///
    /// # Errors
    /// If the configuration cannot be built.
    pub fn new(config: &BackboneConfig, device: &B::Device) -> Result<Self, BackboneConfigError> {
        config.validate()?;
        let d = config.shape.width;
        let zeros = Initializer::Zeros;
        Ok(Self {
            pos_start: zeros.init([1, 1, d], device),
            positions: Positions::new(&config.positions, d, device),
            word_embed: linear_layer(config.codebook_dim, d, true, device),
            class_emb: EmbeddingConfig::new(config.classes + 1, d)
                .with_initializer(zeros)
                .init(device),
            shared_ada_lin: config.shape.shared_adaln.then(|| linear_layer(d, 6 * d, true, device)),
            blocks: (0..config.shape.depth).map(|_| Block::new(config, device)).collect(),
            head_nm: HeadNorm { ada_lin: linear_layer(d, 2 * d, true, device) },
            head: linear_layer(d, config.codebook_size, true, device),
            width: d,
            visibility: config.shape.visibility,
        })
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Number of classes, the null class not counted.
    pub fn classes(&self) -> usize {
        self.class_emb.weight.shape()[0] - 1
    }

    /// Predicts every scale from the inputs of all; a token sees what the weights' [`Visibility`] says.
    ///
    /// # Shapes
    /// - output: `[b, l, v]`, unnormalized log-probabilities
    ///
    /// # Panics
    /// If the inputs do not have the tokens of the schedule, or the positions were learned for one
    /// schedule and a scale is none of its scales.
    pub fn forward(&self, pass: Pass<'_, B>) -> Tensor<B, 3> {
        let Pass { labels_b, inputs_blc, schedule, first, depth_drops } = pass;
        let [b] = labels_b.dims();
        let device = labels_b.device();
        let l = schedule.n_tokens();

        let condition = self.condition(labels_b);
        let first_1bd = match first {
            FirstToken::Start => self.start(&condition),
            FirstToken::Bare => condition.embedding_bd.clone(),
        };
        let x_rd = match inputs_blc {
            Some(inputs_blc) => {
                let [_, n, _] = inputs_blc.dims();
                assert_eq!(n, l - 1, "inputs for the {l} tokens of {schedule}");
                Tensor::cat(vec![first_1bd, self.embed(inputs_blc)], 0)
            }
            None => first_1bd,
        };
        let mut x_rd = x_rd + per_token(self.positions(schedule), b);

        let visible = Sequence::new(schedule).visible(self.visibility);
        for (i, (block, modulation)) in self.blocks.iter().zip(condition.blocks).enumerate() {
            let modulation = match depth_drops {
                Some(drops) => modulation.with_drops(drops.of_block(i, &device)),
                None => modulation,
            };
            x_rd = block.forward(x_rd, b, modulation, AttentionMode::Parallel(&visible));
        }
        let (scale, shift) = (condition.head_scale, condition.head_shift);
        self.logits(layer_norm_modulated(x_rd, scale, shift, EPSILON), l, b)
    }

    /// The learned positions of a schedule.
    ///
    /// Those learned for one schedule belong to its sizes: a sequence of some of its scales, as a
    /// student pass may be, has the positions and levels that they have in the whole.
    ///
    /// # Shapes
    /// - output: `[l, d]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn positions(&self, schedule: &ScaleSchedule) -> Tensor<B, 2> {
        let scales = schedule.sizes().iter().map(|&size| self.positions_at(size));
        Tensor::cat(scales.collect(), 0)
    }

    /// The positions of one scale: `[n, d]`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn positions_at(&self, size: ScaleSize) -> Tensor<B, 2> {
        self.positions.at(size)
    }

    fn condition(&self, labels_b: Tensor<B, 1, Int>) -> Condition<B> {
        let [b] = labels_b.dims();
        let d = self.width;
        let embedding_bd = self.class_emb.weight.val().select(0, labels_b);
        let activated_bd = silu(embedding_bd.clone());
        let shared_b6d = self
            .shared_ada_lin
            .as_ref()
            .map(|shared| project(shared, activated_bd.clone()).reshape([b, 6, d]));
        let head_b2d = project(&self.head_nm.ada_lin, activated_bd.clone()).reshape([b, 2, d]);
        let head = |i: usize| head_b2d.clone().slice_dim(1, i..i + 1).reshape([b, d]);
        Condition {
            blocks: self
                .blocks
                .iter()
                .map(|block| block.modulation(&activated_bd, shared_b6d.as_ref()))
                .collect(),
            head_scale: head(0),
            head_shift: head(1),
            embedding_bd,
        }
    }

    /// The first token of teacher forcing and sampling, `[b, d]`.
    fn start(&self, condition: &Condition<B>) -> Tensor<B, 2> {
        condition.embedding_bd.clone() + self.pos_start.val().reshape([1, self.width])
    }

    /// Code maps to rows: `[b, n, c]` to `[n b, d]`.
    fn embed(&self, inputs_bnc: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, n, c] = inputs_bnc.dims();
        project(&self.word_embed, inputs_bnc.swap_dims(0, 1).reshape([n * b, c]))
    }

    /// Rows to logits in image-major order: `[n b, d]` to `[b, n, v]`.
    fn logits(&self, y_rd: Tensor<B, 2>, n: usize, b: usize) -> Tensor<B, 3> {
        let d = self.width;
        let y_rd = y_rd.reshape([n, b, d]).swap_dims(0, 1).reshape([b * n, d]);
        let logits_rv = project(&self.head, y_rd);
        let [_, v] = logits_rv.dims();
        logits_rv.reshape([b, n, v])
    }
}

/// One row per token to one per token and image: `[n, d]` to `[n b, d]`.
fn per_token<B: Backend>(x_nd: Tensor<B, 2>, b: usize) -> Tensor<B, 2> {
    let [n, d] = x_nd.dims();
    x_nd.reshape([n, 1, d]).repeat_dim(1, b).reshape([n * b, d])
}

/// A pass that runs scale by scale.
#[derive(Clone, Debug)]
pub struct PartialPass<B: Backend> {
    sequence: Sequence,
    next_scale: usize,
    condition: Condition<B>,
    positions_ld: Tensor<B, 2>,
    blocks: Vec<KeyValueCache<B>>,
}

impl<B: Backend> PartialPass<B> {
    /// How many tokens each block keeps the keys and values of.
    pub fn kept_tokens(&self) -> usize {
        self.blocks.first().map_or(0, KeyValueCache::tokens)
    }
}

impl<B: Backend> ScaleModel<B> for Backbone<B> {
    type Cache = PartialPass<B>;

    fn null_class(&self) -> usize {
        self.classes()
    }

    fn begin(&self, labels_b: Tensor<B, 1, Int>, schedule: &ScaleSchedule) -> PartialPass<B> {
        let [b] = labels_b.dims();
        let sequence = Sequence::new(schedule);
        let capacity = sequence.most_kept(self.visibility);
        PartialPass {
            sequence,
            next_scale: 0,
            condition: self.condition(labels_b),
            positions_ld: self.positions(schedule),
            blocks: self.blocks.iter().map(|block| block.cache(b, capacity)).collect(),
        }
    }

    fn step(&self, pass: &mut PartialPass<B>, input_bnc: Option<Tensor<B, 3>>) -> Tensor<B, 3> {
        let k = pass.next_scale;
        assert_eq!(input_bnc.is_none(), k == 0, "the first scale alone has no input");
        pass.next_scale += 1;
        let range = pass.sequence.range(k);
        let window = pass.sequence.kept_after(k, self.visibility);
        let n = range.len();
        let x_rd = match input_bnc {
            Some(input_bnc) => self.embed(input_bnc),
            None => self.start(&pass.condition),
        };
        let b = x_rd.dims()[0] / n;
        let mut x_rd = x_rd + per_token(pass.positions_ld.clone().slice_dim(0, range), b);
        for (i, block) in self.blocks.iter().enumerate() {
            let modulation = pass.condition.blocks[i].clone();
            let mode = AttentionMode::Cached(&mut pass.blocks[i], window);
            x_rd = block.forward(x_rd, b, modulation, mode);
        }
        let (scale, shift) = (&pass.condition.head_scale, &pass.condition.head_shift);
        let y_rd = layer_norm_modulated(x_rd, scale.clone(), shift.clone(), EPSILON);
        self.logits(y_rd, n, b)
    }
}
