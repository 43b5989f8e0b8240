//! What the benches measure, written once for any backend: the shapes of a recipe with random
//! weights and random pixels.

pub mod work;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Distribution, Int, Tensor};
use sar_core::{ScaleSchedule, SeedTree};
use sar_model::{Backbone, Precision};
use sar_rollout::{Sampler, generate};
use sar_tokenizer::Tokenizer;
use sar_train::Recipe;
use sar_train::backbone_loss::backbone_loss;
use sar_train::learner::Learner;
use sar_train::objective::Objective;
use sar_train::step::Terms;
use sar_train::tokenizer_loss::{TokenizerObjective, tokenizer_loss};
use sar_train::tokens::TokenBatch;

/// Classes of the embedded emoji.
const CLASSES: usize = 9;

/// Models and inputs of one backend.
#[derive(Debug)]
pub struct Subject<A: AutodiffBackend> {
    recipe: Recipe,
    classes: usize,
    tokenizer: Learner<A, Tokenizer<A>>,
    backbone: Learner<A, Backbone<A>>,
    device: A::Device,
}

impl<A: AutodiffBackend> Subject<A> {
    /// The models of `emoji-quick`, untrained.
    ///
    /// # Panics
    /// If the built-in recipe is broken.
    pub fn new(device: A::Device) -> Self {
        Self::of("emoji-quick", &[], CLASSES, device)
    }

    /// The models of a recipe with some settings, untrained.
    ///
    /// # Panics
    /// If there is no such recipe, or a setting does not fit.
    pub fn of(recipe: &str, settings: &[&str], classes: usize, device: A::Device) -> Self {
        let settings: Vec<String> = settings.iter().map(|&setting| setting.into()).collect();
        let recipe = Recipe::load(recipe, &settings).expect("a valid recipe");
        let seed = SeedTree::new(0);
        let model = &recipe.tokenizer.model;
        let tokenizer = sar_tokenizer::init(model, sar_tokenizer::Init::Torch {}, seed, &device)
            .expect("a valid recipe");
        let settings = &recipe.tokenizer.optimization;
        let tokenizer =
            Learner::new("tokenizer", tokenizer, model.layout(), settings, Precision::F32);
        let config = recipe.backbone_config(classes);
        let backbone = sar_model::init(&config, recipe.backbone.init, seed, &device);
        let settings = &recipe.sar.optimization;
        let backbone = Learner::new(
            "backbone",
            backbone.expect("a valid recipe"),
            &sar_model::LAYOUT,
            settings,
            recipe.backbone.precision,
        );
        Self { tokenizer, backbone, recipe, classes, device }
    }

    fn tokenizer(&self) -> &Tokenizer<A::InnerBackend> {
        self.tokenizer.model()
    }

    fn scales(&self) -> &ScaleSchedule {
        self.recipe.scales()
    }

    /// Random images, `[b, 3, side, side]`, pixels in [-1, 1].
    pub fn images(&self, b: usize) -> Tensor<A::InnerBackend, 4> {
        let side = self.recipe.data.side as usize;
        Tensor::random([b, 3, side, side], Distribution::Uniform(-1.0, 1.0), &self.device)
    }

    /// Images to latents, and the wait for them.
    pub fn latents(&self, images_bchw: Tensor<A::InnerBackend, 4>) {
        self.tokenizer().encode(images_bchw).into_data();
    }

    /// Images to the tokens of all scales, `[b, l]`.
    pub fn encode(
        &self,
        images_bchw: Tensor<A::InnerBackend, 4>,
    ) -> Tensor<A::InnerBackend, 2, Int> {
        self.tokenizer().tokens(self.tokenizer().encode(images_bchw), self.scales())
    }

    /// Tokens of all scales, `[b, l]`, to images at the finest.
    pub fn decode(&self, tokens_bl: Tensor<A::InnerBackend, 2, Int>) -> Tensor<A::InnerBackend, 4> {
        let mut canvases = self.tokenizer().canvases(tokens_bl, self.scales());
        self.tokenizer().decode(canvases.pop().expect("a schedule has at least one scale"))
    }

    /// Guided sampling with the recipe's filters, tokens `[b, l]`.
    pub fn sample(&self, b: usize) -> Tensor<A::InnerBackend, 2, Int> {
        self.sample_with(b, self.recipe.evaluation.sampler)
    }

    /// Sampling, tokens `[b, l]`.
    pub fn sample_with(&self, b: usize, sampler: Sampler) -> Tensor<A::InnerBackend, 2, Int> {
        let labels: Vec<usize> = (0..b).map(|i| i % self.classes).collect();
        let streams: Vec<SeedTree> = (0..b as u64).map(|i| SeedTree::new(1).at(i)).collect();
        let model = self.recipe.backbone.precision.view(self.backbone.model());
        let tokenizer = self.tokenizer();
        generate(&model, tokenizer, &labels, self.scales(), sampler, &streams, &self.device)
            .tokens_bl()
    }

    /// One step of tokenizer training on images, without a perceptual term or an adversary.
    pub fn tokenizer_step(&mut self, images_bchw: Tensor<A::InnerBackend, 4>, workers: usize) {
        let recipe = &self.recipe.tokenizer;
        let objective = TokenizerObjective {
            schedule: self.recipe.scales(),
            loss: &recipe.loss,
            regularization: &recipe.regularization,
            perception: None,
        };
        let loss = |model: &Tokenizer<A>, images: Tensor<A::InnerBackend, 4>| {
            let draws = SeedTree::new(2);
            let streams = vec![draws; images.dims()[0]];
            tokenizer_loss(model, images, &streams, &objective, draws)
        };
        let inputs = images_bchw.chunk(recipe.optimization.grad_accum_steps, 0);
        let sum = self.tokenizer.accumulate(inputs, workers, loss).expect("alone");
        self.tokenizer.update(sum.gradients, (0, 100)).expect("alone");
        self.wait();
    }

    /// One step of backbone training on tokens: the recipe's SAR, or teacher forcing.
    pub fn backbone_step(
        &mut self,
        tokens_bl: Tensor<A::InnerBackend, 2, Int>,
        is_sar: bool,
        workers: usize,
    ) {
        let sar = self.recipe.sar.objective.clone();
        let objective = if is_sar { sar } else { Objective::TeacherForcing };
        self.step_of(tokens_bl, &objective, workers);
    }

    /// One step of backbone training on tokens.
    pub fn step_of(
        &mut self,
        tokens_bl: Tensor<A::InnerBackend, 2, Int>,
        objective: &Objective,
        workers: usize,
    ) {
        let sar = &self.recipe.sar;
        let loss = |model: &Backbone<A>, tokens_bl: Tensor<A::InnerBackend, 2, Int>| {
            let b = tokens_bl.dims()[0];
            let batch = TokenBatch {
                labels: (0..b).map(|i| i % self.classes).collect(),
                streams: (0..b as u64).map(|i| SeedTree::new(3).at(i)).collect(),
                schedule: self.recipe.scales().clone(),
                tokens_bl,
            };
            let terms: Terms<A> = backbone_loss(
                &self.recipe.backbone.precision.view(model),
                self.tokenizer.model(),
                &batch,
                objective,
                &sar.regularization,
                SeedTree::new(4),
                &self.device,
            );
            (terms, ())
        };
        let inputs = tokens_bl.chunk(sar.optimization.grad_accum_steps, 0);
        let sum = self.backbone.accumulate(inputs, workers, loss).expect("alone");
        self.backbone.update(sum.gradients, (0, 100)).expect("alone");
        self.wait();
    }

    /// Until the device has done all that it was given.
    fn wait(&self) {
        A::sync(&self.device).expect("the device finishes its work");
    }
}
