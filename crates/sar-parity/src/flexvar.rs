//! Every golden tensor of a FlexVAR case, recomputed through the crates' public functions.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use sar_core::{Filter, ScaleSchedule, ScaleSize, SeedTree, resample};
use sar_loss::{Contrast, Reduction, Teacher, cross_entropy, mean_tokens, student_forcing, vq};
use sar_model::{Backbone, FirstToken, Pass};
use sar_rollout::{
    Choice, Filters, Guidance, OwnScales, Predictions, Sampler, StudentPass, Transitions, generate,
    stagger,
};
use sar_tokenizer::{FlexVarTokenizer, codebook};
use sar_train::backbone_task::{TokenBatch, argmax_tokens, backbone_loss, inputs, labels_tensor};
use sar_train::gradients::Gradients;
use sar_train::objective::{ConditionDraw, Objective, Regularisation};
use sar_train::optim::{AdamW, AdamWConfig, is_decayed};
use sar_train::step::trainable;
use sar_weights::{NamedTensors, WeightsError, bind, collect, parameters};

use crate::case::{Case, CaseError};
use crate::compare::{self, Report, Row};

const FLOAT: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

/// Recomputes a case on a backend.
///
/// # Errors
/// If the weights cannot be loaded; differences are not errors but failed rows.
pub fn check<A: AutodiffBackend>(case: &Case, device: &A::Device) -> Result<Report, CaseError> {
    let load = |file: &str| NamedTensors::read(&case.dir.join(file));
    let malformed =
        |problem: String| CaseError::Malformed { path: case.dir.join("case.json"), problem };
    let tokenizer = FlexVarTokenizer::<A::InnerBackend>::new(&case.tokenizer, device)
        .map_err(|error| malformed(format!("tokenizer.{error}")))?;
    let tokenizer = bind(tokenizer, load("tokenizer.pth")?, &sar_tokenizer::LAYOUT)?;
    let backbone = Backbone::<A::InnerBackend>::new(&case.backbone, device)
        .map_err(|error| malformed(format!("model.{error}")))?;
    let backbone = bind(backbone, load("backbone.pth")?, &sar_model::LAYOUT)?;

    let mut run = Run::<A> { case, device, report: Report::default() };
    let image_bchw = Tensor::from_data(run.input("image")?, device);
    let labels: Vec<usize> =
        compare::values(&run.input("label")?).into_iter().map(|label| label as usize).collect();

    let batch = run.tokenizer(&tokenizer, image_bchw, labels);
    run.positions(&backbone);
    run.filters();
    run.passes(&tokenizer, &backbone, &batch)?;
    run.sampling(&tokenizer, &backbone, &batch.labels);
    run.report.close(&case.golden);
    Ok(run.report)
}

struct Run<'a, A: AutodiffBackend> {
    case: &'a Case,
    device: &'a A::Device,
    report: Report,
}

type Inner<A> = <A as AutodiffBackend>::InnerBackend;

impl<A: AutodiffBackend> Run<'_, A> {
    /// A golden tensor that the others are computed from.
    fn input(&mut self, name: &'static str) -> Result<TensorData, CaseError> {
        let Some(data) = self.case.golden.get(name) else {
            return Err(CaseError::NoInput {
                path: self.case.dir.join("golden.safetensors"),
                name,
            });
        };
        self.report.insert(Row {
            name: name.into(),
            absolute: 0.0,
            relative: 0.0,
            passed: true,
            note: "input",
        });
        Ok(data.clone())
    }

    fn floats<B: Backend, const D: usize>(&mut self, name: &str, ours: Tensor<B, D>) {
        self.data(name, &ours.into_data(), FLOAT);
    }

    fn data(&mut self, name: &str, ours: &TensorData, tolerance: f64) {
        if let Some(golden) = self.case.golden.get(name) {
            self.report.insert(compare::floats(name, golden, ours, tolerance));
        }
    }

    /// Compares tokens; `scores_rv` gives the score of every candidate, row by row.
    fn tokens<B: Backend>(
        &mut self,
        name: &str,
        ours_bn: Tensor<B, 2, Int>,
        scores_rv: impl Fn() -> Tensor<B, 2>,
    ) {
        let Some(golden) = self.case.golden.get(name) else { return };
        let scores = std::cell::OnceCell::new();
        let score = |row: usize, candidate: usize| {
            let (values, v) = scores.get_or_init(|| {
                let scores_rv = scores_rv();
                let v = scores_rv.dims()[1];
                (compare::values(&scores_rv.into_data()), v)
            });
            values.get(row * v + candidate).copied().unwrap_or(f64::NAN)
        };
        let row = compare::integers(name, golden, &ours_bn.into_data(), score);
        self.report.insert(row);
    }

    fn tokenizer(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        image_bchw: Tensor<Inner<A>, 4>,
        labels: Vec<usize>,
    ) -> TokenBatch<Inner<A>> {
        let schedule = &self.case.scales;
        let [b, ..] = image_bchw.dims();
        let features_bchw = tokenizer.features(image_bchw);
        let h_bchw = tokenizer.project(features_bchw.clone());
        self.floats("tokenizer.latent", h_bchw.clone());

        // Scores are minus the squared distance of unit vectors.
        let scores = |h_bchw: Tensor<Inner<A>, 4>| {
            let z_nc = codebook::normalise(codebook::rows(h_bchw));
            z_nc.matmul(tokenizer.codebook().codes().transpose()) * 2.0
        };
        let mut all = Vec::new();
        for &size in schedule.sizes() {
            let tokens_bn = tokenizer.tokens_at(h_bchw.clone(), size);
            let name = format!("tokenizer.indices.{}", size.height);
            let at = || scores(resample(h_bchw.clone(), size, Filter::Area));
            self.tokens(&name, tokens_bn.clone(), at);
            all.push(tokens_bn);
        }
        let tokens_bl = Tensor::cat(all, 1);
        let pyramid_scores = || {
            let scales = schedule.sizes().iter().map(|&size| {
                let rows = scores(resample(h_bchw.clone(), size, Filter::Area));
                let v = rows.dims()[1];
                rows.reshape([b, size.tokens(), v])
            });
            let all = Tensor::cat(scales.collect(), 1);
            let [b, l, v] = all.dims();
            all.reshape([b * l, v])
        };
        self.tokens("teacher.target", tokens_bl.clone(), pyramid_scores);

        let quantised = tokenizer.quantise(h_bchw.clone());
        let [_, _, height, width] = h_bchw.dims();
        let full_bn = quantised.indices_n.clone().reshape([b, height * width]);
        self.tokens("tokenizer.indices_full", full_bn.clone(), || scores(h_bchw.clone()));
        let recon = tokenizer.decode_tokens(full_bn, ScaleSize { height, width });
        self.floats("tokenizer.recon_full", recon);
        let (z_nc, q_nc) = (quantised.z_nc, quantised.q_nc);
        self.floats("tokenizer.vq_loss", vq::codebook(z_nc.clone(), q_nc.clone()));
        let commitment = vq::commitment(z_nc.clone(), q_nc) * self.case.commit_beta;
        self.floats("tokenizer.commit_loss", commitment);
        self.floats("tokenizer.entropy_loss", vq::entropy(z_nc, tokenizer.codebook().codes()));
        self.floats("tokenizer.straight_through", quantised.straight_through_bchw);

        let golden = self.case.golden.names();
        let sides: Vec<usize> = golden
            .filter_map(|name| name.strip_prefix("tokenizer.multi_scale_recon.")?.parse().ok())
            .collect();
        for side in sides {
            let size = ScaleSize::square(side);
            let h = tokenizer.project(resample(features_bchw.clone(), size, Filter::Area));
            let recon = tokenizer.decode(tokenizer.quantise(h).straight_through_bchw);
            self.floats(&format!("tokenizer.multi_scale_recon.{side}"), recon);
        }

        let images = (0..b as u64).map(|i| SeedTree::new(0).at(i)).collect();
        TokenBatch { labels, images, schedule: schedule.clone(), tokens_bl }
    }

    fn positions(&mut self, backbone: &Backbone<Inner<A>>) {
        let golden = self.case.golden.names();
        let sides: Vec<usize> =
            golden.filter_map(|name| name.strip_prefix("model.position.")?.parse().ok()).collect();
        for side in sides {
            let positions = backbone.positions_at(ScaleSize::square(side));
            self.floats(&format!("model.position.{side}"), positions);
        }
    }

    fn filters(&mut self) {
        let Some(logits) = self.case.golden.get("filter.logits").cloned() else { return };
        let v = logits.shape[logits.shape.num_dims() - 1];
        let rows = logits.num_elements() / v;
        let logits_rv = Tensor::<Inner<A>, 1>::from_data(
            TensorData::new(logits.convert::<f32>().into_vec::<f32>().expect("f32"), [rows * v]),
            self.device,
        )
        .reshape([rows, v]);
        self.floats("filter.logits", logits_rv.clone());
        let names: Vec<String> = self.case.golden.names().map(ToOwned::to_owned).collect();
        for name in names {
            let Some((top_k, top_p)) =
                name.strip_prefix("filter.k").and_then(|r| r.split_once("_p"))
            else {
                continue;
            };
            let (Ok(top_k), Ok(top_p)) = (top_k.parse(), top_p.parse()) else { continue };
            let filtered = Filters { top_k, top_p }.apply(logits_rv.clone());
            let kept: Tensor<Inner<A>, 2, Bool> = filtered.equal(logits_rv.clone());
            // A code that is kept or not has no score to be near in: any difference fails.
            let device = self.device;
            self.tokens(&name, kept.int(), || Tensor::ones([rows * v, 2], device) * f32::NAN);
        }
    }

    fn passes(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        batch: &TokenBatch<Inner<A>>,
    ) -> Result<(), WeightsError> {
        let schedule = &batch.schedule;
        let labels_b = labels_tensor::<Inner<A>>(batch.labels.iter().copied(), self.device);
        let forward = |inputs_blc, schedule: &ScaleSchedule, first| {
            let labels_b = labels_b.clone();
            backbone.forward(Pass { labels_b, inputs_blc, schedule, first, depth_drops: None })
        };
        let input_blc = inputs(tokenizer, schedule, batch.tokens_bl.clone());
        if let Some(input_blc) = &input_blc {
            self.floats("teacher.input", input_blc.clone());
        }
        let teacher_blv = forward(input_blc, schedule, FirstToken::Start);
        self.floats("teacher.logits", teacher_blv.clone());
        let token_loss =
            |smoothing| cross_entropy(teacher_blv.clone(), batch.tokens_bl.clone(), smoothing);
        self.floats("teacher.token_loss", token_loss(0.0));
        let teacher_loss = mean_tokens(token_loss(0.0));
        self.floats("teacher.loss", teacher_loss.clone());
        self.floats("teacher.loss_label_smoothing_0.1", mean_tokens(token_loss(0.1)));

        let predicted_bl = argmax_tokens(teacher_blv.clone());
        let [b, l, v] = teacher_blv.dims();
        let scores = || teacher_blv.clone().reshape([b * l, v]);
        self.tokens("rollout.prediction_argmax", predicted_bl.clone(), scores);

        for (name, transitions) in [("last", Transitions::Last), ("all", Transitions::All)] {
            let mut passes = stagger(
                tokenizer,
                schedule,
                predicted_bl.clone(),
                batch.tokens_bl.clone(),
                OwnScales::All,
                transitions,
                SeedTree::new(0),
            );
            let Some(StudentPass { schedule, inputs_blc, predicts }) = passes.pop() else {
                continue;
            };
            self.floats(&format!("rollout.{name}.input"), inputs_blc.clone());
            let logits_blv = forward(Some(inputs_blc), &schedule, FirstToken::Bare);
            let student_blv = logits_blv.slice_dim(1, 1..schedule.n_tokens());
            self.floats(&format!("rollout.{name}.logits"), student_blv.clone());
            let teacher = Teacher {
                tokens_bl: predicted_bl.clone().slice_dim(1, predicts.clone()),
                logits_blv: teacher_blv.clone().slice_dim(1, predicts.clone()),
                truth_bl: batch.tokens_bl.clone().slice_dim(1, predicts),
            };
            let against =
                |contrast| student_forcing(student_blv.clone(), teacher.clone(), contrast);
            let csfl_bl = against(Contrast::TeacherTokens);
            self.floats(&format!("rollout.{name}.token_loss"), csfl_bl.clone());
            let csfl = mean_tokens(csfl_bl);
            self.floats(&format!("loss.csfl_{name}"), csfl);
            let truth = mean_tokens(against(Contrast::GroundTruth));
            self.floats(&format!("loss.student_gt_{name}"), truth);
        }
        self.training(tokenizer, backbone, batch)
    }

    /// Total losses, gradients and the AdamW step, through the one train step's own functions.
    fn training(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        batch: &TokenBatch<Inner<A>>,
    ) -> Result<(), WeightsError> {
        let sigma = self.case.adamw.as_ref().map_or(0.01, |adamw| adamw.sigma);
        for (name, transitions, weight) in
            [("last", Transitions::Last, sigma), ("all", Transitions::All, 1.0)]
        {
            let objective = Objective::Sar {
                weight,
                predictions: Predictions::TeacherArgmax,
                own: OwnScales::All,
                transitions,
                contrast: Contrast::TeacherTokens,
                condition: ConditionDraw::Once,
            };
            let regularisation = Regularisation {
                condition_dropout: 0.0,
                stochastic_depth: 0.0,
                label_smoothing: 0.0,
                reduction: Reduction::MeanTokens,
            };
            let model = trainable::<A, Backbone<A>>(backbone.clone());
            let terms = backbone_loss::<A, _>(
                &model,
                tokenizer,
                batch,
                &objective,
                &regularisation,
                SeedTree::new(0),
                self.device,
            );
            self.floats(&format!("loss.total_{name}"), terms.loss.clone());
            let gradients = Gradients::of(terms.loss, &model);
            self.floats(&format!("grad_norm.{name}"), gradients.norm());
            let named = self.name_gradients(backbone, &gradients);
            for (parameter, data) in named.iter() {
                self.data(&format!("grad.{name}.{parameter}"), data, GRADIENT);
            }
            if name == "last" {
                self.adamw(backbone, gradients, &named);
            }
        }
        Ok(())
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
        let mut optimizer = AdamW::new(config, infos);
        let norm = gradients.norm();
        let clipped = gradients.clip(norm, settings.clip_norm);
        let after = optimizer.step(backbone.clone(), &clipped, settings.lr, settings.weight_decay);
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

    fn sampling(
        &mut self,
        tokenizer: &FlexVarTokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        labels: &[usize],
    ) {
        let case = self.case;
        let images: Vec<SeedTree> = labels.iter().map(|_| SeedTree::new(0)).collect();
        for (name, schedule, guidance) in [
            ("cfg_2.5", &case.scales, Guidance::flexvar(2.5)),
            ("alt_steps", &case.alt_scales, Guidance::flexvar(1.5)),
            ("llamagen_cfg_3", &case.scales, Guidance::Constant { scale: 3.0 }),
            ("zero_shot_24", &case.zero_shot_scales, Guidance::flexvar(2.5)),
        ] {
            let sampler = Sampler { guidance, choice: Choice::Argmax };
            let generated =
                generate(backbone, tokenizer, labels, schedule, sampler, &images, self.device);
            let n_scales = schedule.len();
            for (k, tokens_bn) in generated.tokens.iter().enumerate() {
                let name = format!("sample.{name}.indices.{}", schedule.size(k).height);
                // Only the last scale's logits are kept to weigh a tie with.
                let scores = || {
                    let [b, n, v] = generated.last_logits_bnv.dims();
                    let rows = generated.last_logits_bnv.clone().reshape([b * n, v]);
                    if k + 1 == n_scales { rows } else { rows + f32::NAN }
                };
                self.tokens(&name, tokens_bn.clone(), scores);
            }
            let logits = generated.last_logits_bnv.clone();
            self.floats(&format!("sample.{name}.logits_last"), logits);
            if let Some(q_bchw) = generated.canvas {
                self.floats(&format!("sample.{name}.image"), tokenizer.decode(q_bchw));
            }
        }
    }
}
