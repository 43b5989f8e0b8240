//! Every golden tensor of a case, recomputed through the crates' public functions.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use sar_core::{ScaleSchedule, ScaleSize, SeedTree};
use sar_loss::{Target, cross_entropy, mean_tokens, student_forcing};
use sar_model::{Backbone, FirstToken, Pass};
use sar_rollout::{
    Choice, Filters, Sampler, StudentContext, StudentPass, Transitions, generate, stagger,
};
use sar_tokenizer::{Family, Tokenizer};
use sar_train::tokens::{TokenBatch, argmax_tokens, inputs, labels_tensor};
use sar_weights::{Anchor, bind};

use crate::case::{Case, CaseError, SamplingCase};
use crate::compare::{self, Report, Row};

const FLOAT: f64 = 1e-4;

/// Recomputes a case on a backend.
///
/// # Errors
/// If the weights cannot be loaded; differences are not errors but failed rows.
pub fn check<A: AutodiffBackend>(case: &Case, device: &A::Device) -> Result<Report, CaseError> {
    let load = |file: &str, anchor: Anchor| anchor.read(&case.dir.join(file), None);
    let malformed =
        |problem: String| CaseError::Malformed { path: case.dir.join("case.json"), problem };
    let tokenizer = Tokenizer::<A::InnerBackend>::new(&case.tokenizer, device)
        .map_err(|error| malformed(format!("tokenizer.{error}")))?;
    let (tensors, _) = load("tokenizer.pth", sar_tokenizer::ANCHOR)?;
    let tokenizer = bind(tokenizer, tensors, case.tokenizer.layout())?;
    let backbone = Backbone::<A::InnerBackend>::new(&case.backbone, device)
        .map_err(|error| malformed(format!("model.{error}")))?;
    let (tensors, _) = load("backbone.pth", sar_model::ANCHOR)?;
    let backbone = bind(backbone, tensors, &sar_model::LAYOUT)?;

    let mut run = Run::<A> { case, device, report: Report::default() };
    let image_bchw = Tensor::from_data(run.input("image")?, device);
    let labels: Vec<usize> =
        compare::values(&run.input("label")?).into_iter().map(|label| label as usize).collect();

    let tokens_bl = match case.tokenizer.family {
        Family::Flexvar => run.direct_tokenizer(&tokenizer, image_bchw),
        Family::Var { .. } => run.residual_tokenizer(&tokenizer, image_bchw),
        family => return Err(malformed(format!("tokenizer: nothing is golden of {family:?}"))),
    };
    let streams = (0..labels.len() as u64).map(|i| SeedTree::new(0).at(i)).collect();
    let batch = TokenBatch { labels, streams, schedule: case.scales.clone(), tokens_bl };
    run.positions(&backbone);
    run.filters();
    run.passes(&tokenizer, &backbone, &batch);
    run.training(&tokenizer, &backbone, &batch);
    run.sampling(&tokenizer, &backbone, &batch.labels);
    run.report.close(&case.golden);
    Ok(run.report)
}

pub(crate) struct Run<'a, A: AutodiffBackend> {
    pub(crate) case: &'a Case,
    pub(crate) device: &'a A::Device,
    pub(crate) report: Report,
}

pub(crate) type Inner<A> = <A as AutodiffBackend>::InnerBackend;

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

    /// Whether the case has a golden tensor of such a name.
    pub(crate) fn wants(&self, prefix: &str) -> bool {
        self.case.golden.names().any(|name| name.starts_with(prefix))
    }

    /// Golden tensors named by a side: `prefix` and a number.
    pub(crate) fn sides(&self, prefix: &str) -> Vec<usize> {
        let names = self.case.golden.names();
        names.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
    }

    pub(crate) fn floats<B: Backend, const D: usize>(&mut self, name: &str, ours: Tensor<B, D>) {
        self.data(name, &ours.into_data(), FLOAT);
    }

    pub(crate) fn data(&mut self, name: &str, ours: &TensorData, tolerance: f64) {
        if let Some(golden) = self.case.golden.get(name) {
            self.report.insert(compare::floats(name, golden, ours, tolerance));
        }
    }

    /// Compares tokens; `scores_rv` gives the score of every candidate, row by row.
    pub(crate) fn tokens<B: Backend>(
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

    fn positions(&mut self, backbone: &Backbone<Inner<A>>) {
        for side in self.sides("model.position.") {
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
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        batch: &TokenBatch<Inner<A>>,
    ) {
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

        if !self.wants("rollout.") {
            return;
        }
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
                StudentContext::All,
                transitions,
                SeedTree::new(0),
            );
            let Some(StudentPass { schedule, inputs_blc, predicts, .. }) = passes.pop() else {
                continue;
            };
            self.floats(&format!("rollout.{name}.input"), inputs_blc.clone());
            let logits_blv = forward(Some(inputs_blc), &schedule, FirstToken::Bare);
            let student_blv = logits_blv.slice_dim(1, 1..schedule.n_tokens());
            self.floats(&format!("rollout.{name}.logits"), student_blv.clone());
            let against = |tokens_bl: &Tensor<Inner<A>, 2, Int>| {
                let target = Target::Tokens(tokens_bl.clone()).of_tokens(predicts.clone());
                student_forcing::<A>(Tensor::from_inner(student_blv.clone()), target).inner()
            };
            let csfl_bl = against(&predicted_bl);
            self.floats(&format!("rollout.{name}.token_loss"), csfl_bl.clone());
            let csfl = mean_tokens(csfl_bl);
            self.floats(&format!("loss.csfl_{name}"), csfl);
            let truth = mean_tokens(against(&batch.tokens_bl));
            self.floats(&format!("loss.student_gt_{name}"), truth);
        }
    }

    fn sampling(
        &mut self,
        tokenizer: &Tokenizer<Inner<A>>,
        backbone: &Backbone<Inner<A>>,
        labels: &[usize],
    ) {
        let case = self.case;
        let streams: Vec<SeedTree> = labels.iter().map(|_| SeedTree::new(0)).collect();
        for SamplingCase { name, scales: schedule, guidance } in &case.sampling {
            let sampler = Sampler { guidance: *guidance, choice: Choice::Argmax };
            let generated =
                generate(backbone, tokenizer, labels, schedule, sampler, &streams, self.device);
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
                let image_bchw = tokenizer.decode(q_bchw);
                let image_bchw = match case.tokenizer.family {
                    // Pixels in [0, 1].
                    Family::Var { .. } => (image_bchw.clamp(-1.0, 1.0) + 1.0) * 0.5,
                    _ => image_bchw,
                };
                self.floats(&format!("sample.{name}.image"), image_bchw);
            }
        }
    }
}
