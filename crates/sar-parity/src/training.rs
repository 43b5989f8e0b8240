//! Losses, gradients and the AdamW step, through the one train step's own functions.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_core::SeedTree;
use sar_loss::{Reduction, StudentTarget};
use sar_model::Backbone;
use sar_rollout::{Predictions, StudentContext, Transitions};
use sar_tokenizer::Tokenizer;
use sar_train::backbone_loss::backbone_loss;
use sar_train::context_noise::ContextNoise;
use sar_train::gradients::{Gradients, clip_factor};
use sar_train::graphs;
use sar_train::muon::Matrices;
use sar_train::objective::{ConditionDraw, Objective, Regularization, StudentFirstToken};
use sar_train::optim::{AdamWConfig, Optimizer, is_decayed};
use sar_train::step::trainable;
use sar_train::tokens::TokenBatch;
use sar_weights::{NamedTensors, collect, parameters};

use crate::check::{Inner, Run};
use crate::compare;

const GRADIENT: f64 = 1e-3;

impl<A: AutodiffBackend> Run<'_, A> {
    /// Total losses, gradients and the AdamW step of every objective that the case has.
    pub(crate) fn training(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        batch: &TokenBatch<Inner<A>>,
    ) {
        let sigma = self.case.adamw.as_ref().map_or(0.01, |adamw| adamw.sigma);
        let sar = |weight, transitions| Objective::Sar {
            weight,
            predictions: Predictions::TeacherArgmax,
            student_context: StudentContext::All,
            transitions,
            student_target: StudentTarget::TeacherTokens,
            condition: ConditionDraw::Once,
            student_first_token: StudentFirstToken::Bare,
        };
        for (name, objective) in [
            ("teacher", Objective::TeacherForcing),
            ("last", sar(sigma, Transitions::Last)),
            ("all", sar(1.0, Transitions::All)),
        ] {
            let total = format!("loss.total_{name}");
            if !self.wants(&total) && !self.wants(&format!("grad.{name}.")) {
                continue;
            }
            let regularization = Regularization {
                class_dropout_prob: 0.0,
                drop_path_rate: 0.0,
                label_smoothing: 0.0,
                reduction: Reduction::MeanTokens,
                context_noise: ContextNoise::NONE,
            };
            let (model, loss) = {
                let _building = graphs::building();
                let model = trainable::<A, Backbone<A>>(backbone.clone());
                let terms = backbone_loss::<A, _>(
                    &model,
                    tokenizer,
                    batch,
                    &objective,
                    &regularization,
                    SeedTree::new(0),
                    self.device,
                );
                (model, terms.loss)
            };
            self.floats(&total, loss.clone());
            let gradients = {
                let _differentiating = graphs::differentiating();
                Gradients::of(loss, &model)
            };
            self.floats(&format!("grad_norm.{name}"), gradients.norm());
            let named = self.name_gradients(backbone, &gradients);
            for (parameter, data) in named.iter() {
                self.data(&format!("grad.{name}.{parameter}"), data, GRADIENT);
            }
            if name == "last" {
                self.adamw(backbone, gradients, &named);
            }
        }
    }

    /// Gradients under the names and in the layout of a released checkpoint.
    fn name_gradients(
        &self,
        backbone: &Backbone<Inner<A>>,
        gradients: &Gradients<Inner<A>>,
    ) -> NamedTensors {
        struct Replace<'a, B: Backend, I: Iterator<Item = Option<&'a Tensor<B, 1>>>>(I);

        impl<'a, B: Backend, I: Iterator<Item = Option<&'a Tensor<B, 1>>>> ModuleMapper<B>
            for Replace<'a, B, I>
        {
            fn map_float<const D: usize>(
                &mut self,
                param: Param<Tensor<B, D>>,
            ) -> Param<Tensor<B, D>> {
                let gradient = self.0.next().expect("a slot per parameter");
                param.map(|p| match gradient {
                    Some(gradient) => gradient.clone().reshape(p.dims()),
                    None => p.zeros_like(),
                })
            }
        }

        let module = backbone.clone().map(&mut Replace(gradients.iter()));
        collect(&module, &sar_model::LAYOUT)
    }

    fn adamw(
        &mut self,
        backbone: &Backbone<Inner<A>>,
        gradients: Gradients<Inner<A>>,
        named: &NamedTensors,
    ) {
        let Some(settings) = &self.case.adamw else { return };
        let config =
            AdamWConfig { beta1: settings.beta1, beta2: settings.beta2, eps: settings.eps };
        let infos = parameters(backbone, &sar_model::LAYOUT);
        let group_differs = infos
            .iter()
            .any(|p| is_decayed(&p.name, &p.shape) == settings.no_decay.contains(&p.name));
        let mut optimizer = Optimizer::new(config, Matrices::AdamW {}, infos);
        let norm = gradients.norm();
        let factor = clip_factor(norm, settings.clip_norm);
        let (lr, weight_decay) = (settings.lr, settings.weight_decay);
        let after = optimizer.step(backbone.clone(), &gradients, factor, lr, weight_decay);
        let before = collect(backbone, &sar_model::LAYOUT);
        let after = collect(&after, &sar_model::LAYOUT);
        for (parameter, ours) in after.iter() {
            let name = format!("adamw.{parameter}");
            let Some(golden) = self.case.golden.get(&name) else { continue };
            let (before, gradient) = (before.get(parameter), named.get(parameter));
            let (Some(before), Some(gradient)) = (before, gradient) else { continue };
            let mut row =
                compare::optimizer_step(&name, before, golden, ours, gradient, settings.lr);
            if group_differs {
                row.passed = false;
                row.note = "the decayed parameters are others than the case's";
            }
            self.report.insert(row);
        }
    }
}
