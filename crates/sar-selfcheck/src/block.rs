//! One transformer block, forward and backward, against the same code on a host backend.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use sar_core::{FirstScale, ScaleSchedule, SeedTree};
use sar_kernels::cross_entropy;
use sar_model::{
    Backbone, BackboneConfig, BackboneShape, FirstToken, Init, Pass, PositionsConfig, Visibility,
};

use crate::host::{apart, floats, indices, int_tensor, tensor, values};
use crate::probe::{Outcome, Precision, Probe};

const BATCH: usize = 2;
/// The published scales at 256 px: 680 tokens.
const SCALES: &str = "1_2_3_4_5_6_8_10_13_16";

/// Logits of a backbone of one block, and the gradients of its cross-entropy for every parameter by
/// its name.
///
/// Both backends run the same code with the same weights; `H` is trusted.
pub fn backbone<A: AutodiffBackend, H: AutodiffBackend>(
    device: &A::Device,
    host: &H::Device,
    precision: Precision,
) -> Vec<Probe> {
    // Rounding of products goes through softmax, norms and two sums over 1360 rows.
    let (logits_allowed, gradients_allowed) = match precision {
        Precision::Full => (1e-4, 1e-3),
        Precision::Reduced => (5e-3, 1e-2),
    };
    let expected = run::<H>(host);
    let mut ours = None;
    let values = |ours: &[f64], expected: &[f64], allowed: f64| {
        let error = apart(ours, expected);
        Outcome::Values { error, allowed }
    };
    let logits = Probe::run("logits of a block over 2 x 680 tokens", || {
        let ours = ours.insert(run::<A>(device));
        values(&ours.logits, &expected.logits, logits_allowed)
    });
    // A device that panicked has said so.
    let Some(ours) = ours else { return vec![logits] };
    let gradients = expected.gradients.iter().zip(&ours.gradients);
    let gradients = gradients.map(|((name, expected), (_, ours))| {
        Probe::run(format!("gradient of {name}"), || match (ours, expected) {
            (Some(ours), Some(expected)) => values(ours, expected, gradients_allowed),
            (None, None) => values(&[], &[], gradients_allowed),
            (None, Some(_)) => Outcome::Missing { reason: "the backward pass left none".into() },
            (Some(_), None) => Outcome::Missing { reason: "the host has none".into() },
        })
    });
    std::iter::once(logits).chain(gradients).collect()
}

/// What is compared: values on the host.
struct Computed {
    logits: Vec<f64>,
    gradients: Vec<(String, Option<Vec<f64>>)>,
}

fn run<A: AutodiffBackend>(device: &A::Device) -> Computed {
    let schedule: ScaleSchedule = SCALES.parse().expect("a valid schedule");
    let config = BackboneConfig {
        shape: BackboneShape {
            depth: 1,
            width: 128,
            heads: 2,
            mlp_ratio: 4,
            shared_adaln: false,
            qk_l2_norm: true,
            visibility: Visibility::AllCoarser,
            first_scale: FirstScale::ClassToken {},
        },
        classes: 10,
        codebook_size: 256,
        codebook_dim: 8,
        positions: PositionsConfig::Grid { side: 16 },
    };
    // The published initialization closes the residual branches; this one leaves them open.
    let seed = SeedTree::new(0).child("self-check").child("backbone");
    let model: Backbone<A> = sar_model::init(&config, Init { adaln_gamma: 1.0 }, seed, device)
        .expect("a valid configuration");

    let (b, l, c, v) = (BATCH, schedule.n_tokens(), config.codebook_dim, config.codebook_size);
    let inputs = values("inputs", b * (l - 1) * c);
    let logits_blv = model.forward(Pass {
        labels_b: int_tensor(&[3, config.classes], [b], device),
        inputs_blc: Some(tensor(&inputs, [b, l - 1, c], device)),
        schedule: &schedule,
        first: FirstToken::Start,
        depth_drops: None,
    });
    let targets_r = int_tensor(&indices("targets", b * l, v), [b * l], device);
    let loss = cross_entropy(logits_blv.clone().reshape([b * l, v]), targets_r, 0.0).mean();
    let mut collector = Collector { gradients: loss.backward(), path: vec![], found: vec![] };
    model.visit(&mut collector);
    Computed { logits: floats(logits_blv.inner()), gradients: collector.found }
}

/// Gradients by the path of their parameter, in the order in which a module is visited.
struct Collector<A: AutodiffBackend> {
    gradients: A::Gradients,
    path: Vec<String>,
    found: Vec<(String, Option<Vec<f64>>)>,
}

impl<A: AutodiffBackend> ModuleVisitor<A> for Collector<A> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
        let gradient = param.val().grad(&self.gradients);
        self.found.push((self.path.join("."), gradient.map(floats)));
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        if !is_variant(container) {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if !is_variant(container) {
            self.path.pop();
        }
    }
}

/// The variants of an enum have no name in a checkpoint.
fn is_variant(container: &str) -> bool {
    container.starts_with("Enum:")
}
