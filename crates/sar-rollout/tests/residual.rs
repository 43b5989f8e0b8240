//! The staggered rollout of a residual tokenizer against plain loops over numbers.

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use sar_core::{ScaleSchedule, SeedTree};
use sar_rollout::{StudentContext, Transitions, stagger};
use sar_tokenizer::{CodebookGrowth, Family, Phi, Tokenizer, TokenizerConfig, init};
use sar_weights::{NamedTensors, collect};

/// Code channels.
const C: usize = 3;
const CODES: usize = 7;

fn config() -> TokenizerConfig {
    TokenizerConfig {
        family: Family::Var { phi: Phi::Shared(2) },
        base_channels: 32,
        channel_multipliers: vec![1],
        res_blocks: 1,
        z_channels: C,
        codebook_size: CODES,
        codebook_dim: C,
        codebook_growth: CodebookGrowth::None {},
    }
}

/// A square map of C channels.
#[derive(Clone)]
struct Map {
    side: usize,
    values: Vec<f64>,
}

impl Map {
    fn new(side: usize, value: impl Fn(usize, usize, usize) -> f64) -> Self {
        let places = (0..C).flat_map(|c| (0..side * side).map(move |i| (c, i / side, i % side)));
        Self { side, values: places.map(|(c, y, x)| value(c, y, x)).collect() }
    }

    fn at(&self, c: usize, y: usize, x: usize) -> f64 {
        self.values[(c * self.side + y) * self.side + x]
    }

    fn bicubic(&self, side: usize) -> Self {
        let kernel = |d: f64| {
            let (a, d) = (-0.75, d.abs());
            match d {
                _ if d <= 1.0 => (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0,
                _ if d < 2.0 => a * (d.powi(3) - 5.0 * d.powi(2) + 8.0 * d - 4.0),
                _ => 0.0,
            }
        };
        let ratio = self.side as f64 / side as f64;
        let clamp = |i: i64| i.clamp(0, self.side as i64 - 1) as usize;
        Self::new(side, |c, y, x| {
            let (cy, cx) = ((y as f64 + 0.5) * ratio - 0.5, (x as f64 + 0.5) * ratio - 0.5);
            let mut sum = 0.0;
            for j in cy.floor() as i64 - 1..=cy.floor() as i64 + 2 {
                for i in cx.floor() as i64 - 1..=cx.floor() as i64 + 2 {
                    let weight = kernel(cy - j as f64) * kernel(cx - i as f64);
                    sum += weight * self.at(c, clamp(j), clamp(i));
                }
            }
            sum
        })
    }

    fn area(&self, side: usize) -> Self {
        let window = |i: usize| i * self.side / side..((i + 1) * self.side).div_ceil(side);
        Self::new(side, |c, y, x| {
            let cells = window(y).flat_map(|j| window(x).map(move |i| (j, i)));
            let (sum, n) = cells.fold((0.0, 0.0), |(s, n), (j, i)| (s + self.at(c, j, i), n + 1.0));
            sum / n
        })
    }

    /// `x/2 + conv3x3(x)/2`, zeros outside.
    fn phi(&self, weight: &[f32], bias: &[f32]) -> Self {
        Self::new(self.side, |out, y, x| {
            let mut sum = f64::from(bias[out]);
            for c in 0..C {
                for (dy, dx) in (0..9).map(|i| (i / 3, i % 3)) {
                    let (j, i) = (y + dy, x + dx);
                    if (1..=self.side).contains(&j) && (1..=self.side).contains(&i) {
                        let w = weight[((out * C + c) * 3 + dy) * 3 + dx];
                        sum += f64::from(w) * self.at(c, j - 1, i - 1);
                    }
                }
            }
            0.5 * self.at(out, y, x) + 0.5 * sum
        })
    }

    /// The tokens' channels, token by token.
    fn rows(&self) -> Vec<f64> {
        let places = (0..self.side * self.side).map(|i| (i / self.side, i % self.side));
        places.flat_map(|(y, x)| (0..C).map(move |c| self.at(c, y, x))).collect()
    }
}

/// The inputs of scales 1.. for the tokens of one image.
fn naive(weights: &NamedTensors, sides: &[usize], tokens: &[usize]) -> Vec<Vec<f64>> {
    let values = |name: &str| weights.get(name).unwrap().to_vec::<f32>().unwrap();
    let codes = values("quantize.embedding.weight");
    let last = sides[sides.len() - 1];
    let mut f_hat = Map::new(last, |_, _, _| 0.0);
    let mut inputs = Vec::new();
    let mut start = 0;
    // Two convolutions have the ticks 1/4 and 3/4; four scales lie at 0, 1/3, 2/3 and 1.
    for ((k, &side), phi) in sides.iter().enumerate().zip([0, 0, 1, 1]) {
        let q = Map::new(side, |c, y, x| f64::from(codes[tokens[start + y * side + x] * C + c]));
        start += side * side;
        let name = |part: &str| format!("quantize.quant_resi.qresi_ls.{phi}.{part}");
        let added = q.bicubic(last).phi(&values(&name("weight")), &values(&name("bias")));
        f_hat = Map::new(last, |c, y, x| f_hat.at(c, y, x) + added.at(c, y, x));
        if let Some(next) = sides.get(k + 1) {
            inputs.push(f_hat.area(*next).rows());
        }
    }
    inputs
}

#[test]
fn the_map_accumulates_from_the_models_own_tokens() {
    let config = config();
    let device = Default::default();
    let tokenizer: Tokenizer<Flex> =
        init(&config, sar_tokenizer::Init::Torch {}, SeedTree::new(1), &device).unwrap();
    let weights = collect(&tokenizer, config.layout());
    let sides = [1, 2, 3, 5];
    let schedule = ScaleSchedule::squares(&sides).unwrap();
    let l = schedule.n_tokens();

    let draw = |purpose: &str, image: u64| -> Vec<usize> {
        let draws = SeedTree::new(2).child(purpose).at(image);
        (0..l as u64).map(|i| draws.below(i, CODES)).collect()
    };
    let both = |purpose: &str| -> Tensor<Flex, 2, Int> {
        let tokens: Vec<i64> =
            (0..2).flat_map(|image| draw(purpose, image)).map(|token| token as i64).collect();
        Tensor::from_data(TensorData::new(tokens, [2, l]), &device)
    };
    let run = |context, transitions| {
        let (predicted, truth) = (both("predicted"), both("truth"));
        stagger(&tokenizer, &schedule, predicted, truth, context, transitions, SeedTree::new(0))
    };
    let check = |found: Tensor<Flex, 3>, own: &[bool], scales: std::ops::Range<usize>| {
        let expected = (0..2).flat_map(|image| {
            let (predicted, truth) = (draw("predicted", image), draw("truth", image));
            let of_scale = |(range, own): (std::ops::Range<usize>, &bool)| {
                if *own { predicted[range].to_vec() } else { truth[range].to_vec() }
            };
            let tokens: Vec<usize> = schedule.ranges().zip(own).flat_map(of_scale).collect();
            naive(&weights, &sides, &tokens)[scales.start - 1..scales.end - 1].concat()
        });
        let expected: Vec<f64> = expected.collect();
        let found = found.into_data().into_vec::<f32>().unwrap();
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 2e-6 * largest, "{found} {expected}");
        }
    };

    let all = run(StudentContext::All, Transitions::All).remove(0);
    assert_eq!((&all.schedule, all.predicts), (&schedule, 1..l));
    check(all.inputs_blc, &[true; 4], 1..4);
    // Behind the class token alone stands the map of the whole pyramid before.
    let last = run(StudentContext::All, Transitions::Last).remove(0);
    assert_eq!((last.schedule.to_string(), last.predicts), ("1_5".into(), 14..39));
    check(last.inputs_blc, &[true; 4], 3..4);
    for (k, pass) in run(StudentContext::All, Transitions::Separate).into_iter().enumerate() {
        check(pass.inputs_blc, &[true; 4], k + 1..k + 2);
    }
    // True scales add their own codes to the same map.
    let odd = run(StudentContext::Odd, Transitions::All).remove(0);
    check(odd.inputs_blc, &[false, true, false, true], 1..4);
    let later = run(StudentContext::From(2), Transitions::Last).remove(0);
    check(later.inputs_blc, &[false, false, true, true], 3..4);
}
