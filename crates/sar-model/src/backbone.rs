//! The scale-wise transformer of VAR and FlexVAR.
//!
//! Shapes: b batch, l tokens of the pyramid, n tokens of one scale, d width, c code channels,
//! v codes; rows r = l b, token-major: all images of the first token, then all of
//! the second.

use std::mem::discriminant;

use burn::module::{Initializer, Module};
use burn::nn::{Embedding, EmbeddingConfig, Linear};
use burn::tensor::activation::silu;
use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};
use sar_core::{FirstScale, ScaleModel, ScaleSchedule, ScaleSize};
use sar_kernels::{KeyValueCache, layer_norm_modulated};

use crate::attention::{AttentionMode, linear_layer, project};
use crate::block::{Block, EPSILON, Modulation};
use crate::first::{First, FirstToken, row_numbers};
use crate::positions::Positions;
use crate::visibility::Sequence;
use crate::{BackboneConfig, BackboneConfigError, DropPath, Visibility};

/// One parallel pass over a schedule.
#[derive(Clone, Debug)]
pub struct Pass<'a, B: Backend> {
    /// Class of each image, `[b]`, in `0..=classes` (the last is the null class).
    pub labels_b: Tensor<B, 1, Int>,
    /// Inputs of the scales after the first, `[b, l - n, c]`; `None` for a single-scale schedule.
    pub inputs_blc: Option<Tensor<B, 3>>,
    /// The scales that the tokens belong to; the first has n of them.
    pub schedule: &'a ScaleSchedule,
    /// What the sequence begins with.
    pub first: FirstToken<B>,
    /// Dropped branches, in training only.
    pub depth_drops: Option<&'a DropPath>,
}

/// The transformer: parameters only. Schedule, cache and randomness are handed in.
#[derive(Module, Debug)]
pub struct Backbone<B: Backend> {
    first: First<B>,
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
    #[module(skip)]
    first_scale: FirstScale,
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
            first: First::new(config.shape.first_scale, d, device),
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
            first_scale: config.shape.first_scale,
        })
    }

    /// The same weights, with a first scale that is trained or sampled otherwise.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn with_first_scale(self, first_scale: FirstScale) -> Self {
        let (ours, theirs) = (self.first_scale, first_scale);
        assert_eq!(discriminant(&ours), discriminant(&theirs), "{ours} and {theirs}");
        Self { first_scale, ..self }
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
    /// If the inputs do not have the tokens of the schedule, the sequence begins with what the weights
    /// do not know, or the positions were learned for one schedule and a scale is none of its scales.
    pub fn forward(&self, pass: Pass<'_, B>) -> Tensor<B, 3> {
        let Pass { labels_b, inputs_blc, schedule, first, depth_drops } = pass;
        let [b] = labels_b.dims();
        let device = labels_b.device();
        let (l, n) = (schedule.n_tokens(), schedule.size(0).tokens());

        let condition = self.condition(labels_b);
        let (first_rd, kind, orders) = self.begin_sequence(first, &condition, schedule.size(0));
        let mut x_rd = match inputs_blc {
            Some(inputs_blc) => {
                let [_, given, _] = inputs_blc.dims();
                assert_eq!(given, l - n, "inputs for the {l} tokens of {schedule}");
                let finer = schedule.sizes()[1..].iter().map(|&size| self.positions_at(size));
                let positions_nd = Tensor::cat(finer.collect(), 0);
                let finer_rd = self.embed(inputs_blc) + per_token(positions_nd, b);
                Tensor::cat(vec![first_rd, finer_rd], 0)
            }
            None => first_rd,
        };
        let visible = Sequence::new(schedule, kind).visible(self.visibility);
        for (i, (block, modulation)) in self.blocks.iter().zip(condition.blocks).enumerate() {
            let modulation = match depth_drops {
                Some(drops) => modulation.with_drops(drops.of_block(i, &device)),
                None => modulation,
            };
            x_rd = block.forward(x_rd, b, modulation, AttentionMode::Parallel(&visible));
        }
        let x_rd = match kind {
            FirstScale::ClassToken {} => x_rd,
            FirstScale::Masked { .. } => x_rd.slice_dim(0, b..(1 + l) * b),
            // The instructions alone, row-major, and all finer scales.
            FirstScale::RandomOrder {} => {
                let mut steps = vec![0; n * b];
                for (image, order) in orders.iter().enumerate() {
                    order.iter().enumerate().for_each(|(j, place)| steps[place * b + image] = j);
                }
                let first = steps.iter().enumerate().map(|(row, j)| (1 + 2 * j) * b + row % b);
                let finer = (1 + 2 * n) * b..(1 + n + l) * b;
                x_rd.select(0, row_numbers(first.chain(finer), &device))
            }
        };
        let (scale, shift) = (condition.head_scale, condition.head_shift);
        self.logits(layer_norm_modulated(x_rd, scale, shift, EPSILON), l, b)
    }

    /// The rows that a sequence begins with, how they belong to its first scale of a size, and the orders
    /// of its places, if any.
    fn begin_sequence(
        &self,
        first: FirstToken<B>,
        condition: &Condition<B>,
        size: ScaleSize,
    ) -> (Tensor<B, 2>, FirstScale, Vec<Vec<usize>>) {
        let class_bd = condition.embedding_bd.clone();
        let class = FirstScale::ClassToken {};
        match (first, self.first_scale) {
            (FirstToken::Start, FirstScale::ClassToken {}) => {
                (self.start(condition) + self.positions_at(size), class, Vec::new())
            }
            (FirstToken::Bare, FirstScale::ClassToken {}) => {
                (class_bd + self.positions_at(size), class, Vec::new())
            }
            (FirstToken::Bare, _) => (class_bd, class, Vec::new()),
            (FirstToken::Masked { codes_bnc, masked_bn }, kind @ FirstScale::Masked { .. }) => {
                let rows_rd = self.masked(codes_bnc, masked_bn, self.positions_at(size));
                (Tensor::cat(vec![class_bd, rows_rd], 0), kind, Vec::new())
            }
            (FirstToken::Ordered { codes_bnc, orders }, kind @ FirstScale::RandomOrder {}) => {
                let rows_rd = self.ordered(codes_bnc, &orders, self.positions_at(size));
                (Tensor::cat(vec![class_bd, rows_rd], 0), kind, orders)
            }
            (_, kind) => panic!("a sequence begins with what its first scale is: {kind}"),
        }
    }

    /// A first scale of which some tokens are masked: `[n b, d]`.
    fn masked(
        &self,
        codes_bnc: Tensor<B, 3>,
        masked_bn: Tensor<B, 2, Bool>,
        positions_nd: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let ([b, n], d) = (masked_bn.dims(), self.width);
        let masked_rd = masked_bn.swap_dims(0, 1).reshape([n * b, 1]).expand([n * b, d]);
        let mask_rd = self.first.vector().expand([n * b, d]);
        self.embed(codes_bnc).mask_where(masked_rd, mask_rd) + per_token(positions_nd, b)
    }

    /// A first scale token by token, each behind its instruction, in the order of each image:
    /// `[2 n b, d]`.
    fn ordered(
        &self,
        codes_bnc: Tensor<B, 3>,
        orders: &[Vec<usize>],
        positions_nd: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let ([b, n, _], device) = (codes_bnc.dims(), codes_bnc.device());
        let tokens_rd = self.embed(codes_bnc) + per_token(positions_nd.clone(), b);
        let instructions_rd = per_token(positions_nd + self.first.vector(), b);
        let rows = (0..2 * n).flat_map(|at| {
            let (j, part) = (at / 2, at % 2);
            (0..b).map(move |image| part * n * b + orders[image][j] * b + image)
        });
        let rows = row_numbers(rows, &device);
        Tensor::cat(vec![instructions_rd, tokens_rd], 0).select(0, rows)
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
        condition.embedding_bd.clone() + self.first.vector()
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
    schedule: ScaleSchedule,
    sequence: Sequence,
    next_scale: usize,
    condition: Condition<B>,
    positions_ld: Tensor<B, 2>,
    blocks: Vec<KeyValueCache<B>>,
    known: Known<B>,
}

/// What was revealed of a first scale behind the class token.
#[derive(Clone, Debug)]
struct Known<B: Backend> {
    /// For each row of the batch which places are known.
    places: Vec<Vec<bool>>,
    /// The codes at them, `[b n, c]`; none before the first is.
    codes_rc: Option<Tensor<B, 2>>,
}

impl<B: Backend> PartialPass<B> {
    /// How many tokens each block keeps the keys and values of.
    pub fn kept_tokens(&self) -> usize {
        self.blocks.first().map_or(0, KeyValueCache::tokens)
    }

    /// The positions of scale `k`, `[n, d]`.
    fn positions(&self, k: usize) -> Tensor<B, 2> {
        self.positions_ld.clone().slice_dim(0, self.schedule.range(k))
    }
}

impl<B: Backend> Known<B> {
    fn add(&mut self, places: &[Vec<usize>], codes_bpc: Tensor<B, 3>) {
        let [b, p, c] = codes_bpc.dims();
        let n = self.places[0].len();
        let device = codes_bpc.device();
        // The rows of before, then the new ones.
        let mut rows: Vec<usize> = (0..b * n).collect();
        for (row, (known, places)) in self.places.iter_mut().zip(places).enumerate() {
            for (i, &place) in places.iter().enumerate() {
                known[place] = true;
                rows[row * n + place] = b * n + row * p + i;
            }
        }
        let before_rc = self.codes_rc.take().unwrap_or_else(|| Tensor::zeros([b * n, c], &device));
        let all_rc = Tensor::cat(vec![before_rc, codes_bpc.reshape([b * p, c])], 0);
        self.codes_rc = Some(all_rc.select(0, row_numbers(rows.into_iter(), &device)));
    }
}

impl<B: Backend> Backbone<B> {
    /// Runs new tokens, after which so many of the latest are kept beside the class token.
    fn run(&self, pass: &mut PartialPass<B>, x_rd: Tensor<B, 2>, window: usize) -> Tensor<B, 2> {
        let [b, _] = pass.condition.embedding_bd.dims();
        let mut x_rd = x_rd;
        for (i, block) in self.blocks.iter().enumerate() {
            let modulation = pass.condition.blocks[i].clone();
            let mode = AttentionMode::Cached(&mut pass.blocks[i], window);
            x_rd = block.forward(x_rd, b, modulation, mode);
        }
        let (scale, shift) = (&pass.condition.head_scale, &pass.condition.head_shift);
        layer_norm_modulated(x_rd, scale.clone(), shift.clone(), EPSILON)
    }

    /// Class token and masked first scale, as they are known; the logits of some places.
    fn predict_masked(&self, pass: &mut PartialPass<B>, places: &[Vec<usize>]) -> Tensor<B, 3> {
        let class_bd = pass.condition.embedding_bd.clone();
        let ([b, _], n, p) = (class_bd.dims(), pass.schedule.size(0).tokens(), places[0].len());
        let device = class_bd.device();
        let masked: Vec<bool> = pass.known.places.iter().flatten().map(|known| !known).collect();
        let masked_bn = Tensor::from_data(TensorData::new(masked, [b, n]), &device);
        let [c, _] = self.word_embed.weight.dims();
        let codes_bnc = match &pass.known.codes_rc {
            Some(codes_rc) => codes_rc.clone().reshape([b, n, c]),
            None => Tensor::zeros([b, n, c], &device),
        };
        let first_rd = self.masked(codes_bnc, masked_bn, pass.positions(0));
        // The class token has seen the scale as it was before.
        pass.blocks.iter_mut().for_each(KeyValueCache::clear);
        let window = pass.sequence.kept_after(0, self.visibility);
        let y_rd = self.run(pass, Tensor::cat(vec![class_bd, first_rd], 0), window);
        let rows = places
            .iter()
            .enumerate()
            .flat_map(|(row, places)| places.iter().map(move |place| (1 + place) * b + row));
        let logits_rv = project(&self.head, y_rd.select(0, row_numbers(rows, &device)));
        let [_, v] = logits_rv.dims();
        logits_rv.reshape([b, p, v])
    }

    /// One place of each row: its position, `[b, d]`.
    fn positions_of(&self, pass: &PartialPass<B>, places: &[Vec<usize>]) -> Tensor<B, 2> {
        let places = places.iter().map(|places| match places[..] {
            [place] => place,
            _ => panic!("{} places at once, in a scale that comes token by token", places.len()),
        });
        let device = pass.positions_ld.device();
        pass.positions(0).select(0, row_numbers(places, &device))
    }

    /// The instruction of one place of each row, behind the class token and what is known.
    fn predict_next(&self, pass: &mut PartialPass<B>, places: &[Vec<usize>]) -> Tensor<B, 3> {
        let all = pass.sequence.range(0).end;
        if pass.kept_tokens() == 0 {
            let class_bd = pass.condition.embedding_bd.clone();
            self.run(pass, class_bd, all);
        }
        let x_bd = self.positions_of(pass, places) + self.first.vector();
        let [b, _] = x_bd.dims();
        let y_bd = self.run(pass, x_bd, all);
        self.logits(y_bd, 1, b)
    }
}

impl<B: Backend> ScaleModel<B> for Backbone<B> {
    type Cache = PartialPass<B>;

    fn null_class(&self) -> usize {
        self.classes()
    }

    fn first_scale(&self) -> FirstScale {
        self.first_scale
    }

    fn begin(&self, labels_b: Tensor<B, 1, Int>, schedule: &ScaleSchedule) -> PartialPass<B> {
        let [b] = labels_b.dims();
        let sequence = Sequence::new(schedule, self.first_scale);
        let capacity = sequence.most_kept(self.visibility);
        let places = vec![vec![false; schedule.size(0).tokens()]; b];
        PartialPass {
            sequence,
            next_scale: usize::from(self.first_scale.is_behind_the_class_token()),
            condition: self.condition(labels_b),
            positions_ld: self.positions(schedule),
            blocks: self.blocks.iter().map(|block| block.cache(b, capacity)).collect(),
            known: Known { places, codes_rc: None },
            schedule: schedule.clone(),
        }
    }

    fn predict(&self, pass: &mut PartialPass<B>, places: &[Vec<usize>]) -> Tensor<B, 3> {
        match self.first_scale {
            FirstScale::ClassToken {} => panic!("the class token's scale is predicted in one step"),
            FirstScale::Masked { .. } => self.predict_masked(pass, places),
            FirstScale::RandomOrder {} => self.predict_next(pass, places),
        }
    }

    fn reveal(&self, pass: &mut PartialPass<B>, places: &[Vec<usize>], codes_bpc: Tensor<B, 3>) {
        match self.first_scale {
            FirstScale::ClassToken {} => panic!("the class token's scale has nothing to reveal"),
            FirstScale::Masked { .. } => pass.known.add(places, codes_bpc),
            FirstScale::RandomOrder {} => {
                let x_bd = self.embed(codes_bpc) + self.positions_of(pass, places);
                let all = pass.sequence.range(0).end;
                let window = match pass.kept_tokens() + 1 == all {
                    true => pass.sequence.kept_after(0, self.visibility),
                    false => all,
                };
                self.run(pass, x_bd, window);
            }
        }
    }

    fn step(&self, pass: &mut PartialPass<B>, input_bnc: Option<Tensor<B, 3>>) -> Tensor<B, 3> {
        let k = pass.next_scale;
        assert_eq!(input_bnc.is_none(), k == 0, "the class token's scale alone has no input");
        pass.next_scale += 1;
        let n = pass.schedule.size(k).tokens();
        let x_rd = match input_bnc {
            Some(input_bnc) => self.embed(input_bnc),
            None => self.start(&pass.condition),
        };
        let b = x_rd.dims()[0] / n;
        let x_rd = x_rd + per_token(pass.positions(k), b);
        let window = pass.sequence.kept_after(k, self.visibility);
        let y_rd = self.run(pass, x_rd, window);
        self.logits(y_rd, n, b)
    }
}
