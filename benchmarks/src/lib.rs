//! What the benches measure, written once for any backend: the shapes of a recipe with random
//! weights and random pixels.

pub mod work;

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Distribution, Int, Tensor};
use sar_core::{ScaleSchedule, SeedTree};
use sar_model::{Backbone, Precision};
use sar_rollout::{Sampler, generate};
use sar_tokenizer::Tokenizer;
use sar_train::Recipe;
use sar_train::backbone_task::{TokenBatch, backbone_loss};
use sar_train::loss_scale::LossScale;
use sar_train::objective::Objective;
use sar_train::optim::AdamW;
use sar_train::step::{Optimisation, Terms, accumulate};
use sar_train::tokenizer_task::tokenizer_loss;
use sar_weights::{Layout, parameters};

/// Classes of the embedded emoji.
const CLASSES: usize = 9;

/// Models and inputs of one backend.
#[derive(Debug)]
pub struct Subject<A: AutodiffBackend> {
    recipe: Recipe,
    classes: usize,
    tokenizer: Learner<A::InnerBackend, Tokenizer<A::InnerBackend>>,
    backbone: Learner<A::InnerBackend, Backbone<A::InnerBackend>>,
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
        let tokenizer = sar_tokenizer::init(&recipe.tokenizer.model, seed, &device);
        let config = recipe.backbone_config(classes);
        let backbone = sar_model::init(&config, recipe.backbone.init, seed, &device);
        Self {
            tokenizer: Learner::new(tokenizer.expect("a valid recipe")),
            backbone: Learner::new(backbone.expect("a valid recipe")),
            recipe,
            classes,
            device,
        }
    }

    /// The same, with the backbone's matrix products in another type.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.recipe.backbone.precision = precision;
        self
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

    /// One step of tokenizer training on images.
    pub fn tokenizer_step(&mut self, images_bchw: Tensor<A::InnerBackend, 4>, workers: usize) {
        let (recipe, scales) = (&self.recipe.tokenizer, self.recipe.scales());
        let loss = |model: &Tokenizer<A>, images| {
            let draws = SeedTree::new(2);
            tokenizer_loss(model, images, scales, &recipe.loss, draws)
        };
        let inputs = images_bchw.chunk(recipe.optimisation.micro_batches, 0);
        let layout = recipe.model.layout();
        self.tokenizer.step(&recipe.optimisation, layout, inputs, workers, None, loss);
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
                images: (0..b as u64).map(|i| SeedTree::new(3).at(i)).collect(),
                schedule: self.recipe.scales().clone(),
                tokens_bl,
            };
            let terms: Terms<A> = backbone_loss(
                &self.recipe.backbone.precision.view(model),
                self.tokenizer.model(),
                &batch,
                objective,
                &sar.regularisation,
                SeedTree::new(4),
                &self.device,
            );
            (terms, ())
        };
        let inputs = tokens_bl.chunk(sar.optimisation.micro_batches, 0);
        let scale = LossScale::of(self.recipe.backbone.precision);
        self.backbone.step(&sar.optimisation, &sar_model::LAYOUT, inputs, workers, scale, loss);
        self.wait();
    }

    /// Until the device has done all that it was given.
    fn wait(&self) {
        A::sync(&self.device).expect("the device finishes its work");
    }
}

/// A model and its optimizer, as a stage of training keeps them.
#[derive(Debug)]
struct Learner<B: Backend, M> {
    /// There between two steps.
    model: Option<M>,
    /// There after the first step.
    optimizer: Option<AdamW<B>>,
}

impl<B: Backend, M: Module<B>> Learner<B, M> {
    fn new(model: M) -> Self {
        Self { model: Some(model), optimizer: None }
    }

    fn model(&self) -> &M {
        self.model.as_ref().expect("there between two steps")
    }

    /// One step.
    fn step<A, D, I: Send, O: Send>(
        &mut self,
        settings: &Optimisation,
        layout: &Layout,
        inputs: Vec<I>,
        workers: usize,
        mut loss_scale: Option<LossScale>,
        loss: impl Fn(&D, I) -> (Terms<A>, O) + Sync,
    ) where
        A: AutodiffBackend<InnerBackend = B>,
        D: AutodiffModule<A, InnerModule = M>,
        M: Send,
    {
        let model = self.model.take().expect("there between two steps");
        let optimizer = self
            .optimizer
            .get_or_insert_with(|| AdamW::new(settings.adamw, parameters(&model, layout)));
        let factor = loss_scale.map_or(1.0, |scale| scale.factor());
        let sum = accumulate(&model, inputs, workers, factor, loss);
        let (model, _) =
            settings.update(model, optimizer, sum.gradients, (0, 100), loss_scale.as_mut());
        self.model = Some(model);
    }
}
