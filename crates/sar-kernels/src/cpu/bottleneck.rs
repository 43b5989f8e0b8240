//! Inverted bottlenecks: channels are expanded, each is convolved alone, and they are projected, with
//! ReLU6 (here `relu6(x) = min(max(x, 0), 6)`) behind the first two:
//!
//! ```text
//! e = relu6(We x + be), d = relu6(depthwise(e)), y = Wp d + bp (+ x)
//! ```
//!
//! Without an expansion e = relu6(x).
//!
//! Whole images are a task, several if they are small. It takes a block of expanded channels at a time:
//! their maps never leave the second cache, where they are made a band of rows at a time, convolved,
//! and added to the sums of the outputs. The products are those of the convolutions' tiles, a tile
//! being a band of rows or several images. Nothing is kept for the gradient, which makes the maps of a
//! block again and takes the same steps backwards:
//!
//! - dd = Wp^T dy where 0 < d < 6,
//! - de = the depthwise convolution's gradient of dd where 0 < e < 6,
//! - dx += We^T de (+ dy).
//!
//! The weights are constants.

use rayon::prelude::*;

use super::conv::products::{ByRows, ROWS, Strips, WIDEST};
use super::conv::with_scratch;
use super::depthwise::{Depthwise, Padded};
use super::kernel::{Gradient, Kernel, Pass};
use super::level::arch;
use super::simd::vectorized;

/// Numbers of the maps of a block and of what they become: half of a second cache of 1 MB.
const BLOCK: usize = 1 << 17;
/// About as many pixels are in a band of rows, whose input stays in the first cache.
const BAND: usize = 320;
/// As many pixels at least are a task, if there are images enough ..
const TASK: usize = 256;
/// .. for so many tasks.
const TASKS: usize = 4;

/// An inverted bottleneck.
#[derive(Clone, Debug)]
pub(super) struct Bottleneck {
    pub(super) batch: usize,
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    /// Of the expanded channels.
    pub(super) depthwise: Depthwise,
    /// Whether the input is added to the output.
    pub(super) is_residual: bool,
}

/// Weights and biases.
#[derive(Clone, Copy)]
struct Weights<'a> {
    /// `[channels, c_in]`; without one there are as many channels as inputs.
    expand: Option<[&'a [f32]; 2]>,
    /// `[channels, k, k]`
    depthwise: [&'a [f32]; 2],
    /// `[c_out, channels]`
    project: [&'a [f32]; 2],
}

/// How a task lies in memory.
struct Plan {
    padded: Padded,
    /// Pixels of an image, and of its output.
    pixels: [usize; 2],
    /// Images of a task.
    images: usize,
    /// Rows of a band.
    rows: usize,
    /// From one channel to the next: of a band, of all inputs, and of all outputs of a task.
    pitch: [usize; 3],
    /// Where as many channels as are summed up begin, a pitch apart each.
    channels: [Vec<usize>; 3],
    /// Expanded channels of a block.
    block: usize,
}

/// Memory of a task.
struct Parts<'a> {
    /// How many images it has; the last task may have fewer.
    images: usize,
    /// The bands of the input, [sorted](Depthwise::sort), `[bands, c_in, pitch[0]]`.
    bands: &'a mut [f32],
    /// Sums of a few channels of a band, `[ROWS, pitch[0]]`.
    few: &'a mut [f32],
    /// The maps of a block between their zeros, `[block, images]`.
    maps: &'a mut [f32],
    /// The sums of a map's depthwise convolution.
    sums: &'a mut [f32],
    /// What the block becomes, `[block, pitch[2]]`.
    made: &'a mut [f32],
}

#[inline(always)]
fn relu6(x: f32) -> f32 {
    x.clamp(0.0, 6.0)
}

/// `g` where ReLU6 passed its argument on.
#[inline(always)]
fn passed(g: f32, x: f32) -> f32 {
    if x > 0.0 && x < 6.0 { g } else { 0.0 }
}

/// `out[m, p] = sum over k of weight[m, k] x[channels[k] + p]`, or added to what is there, for `pixels`
/// of each row of `out` and whatever is behind them up to a whole vector. Rows of weights and outputs
/// are given with the distance from one to the next.
fn product(
    (weight, weight_row): (&[f32], usize),
    (x, channels): (&[f32], &[usize]),
    pixels: usize,
    (out, out_row): (&mut [f32], usize),
    fresh: bool,
) {
    let arch = arch();
    for (m, sums) in out.chunks_mut(ROWS * out_row).enumerate() {
        arch.dispatch(ByRows(Strips {
            weights: &weight[m * ROWS * weight_row..],
            weights_row: weight_row,
            offsets: channels,
            tile: x,
            fresh,
            sums,
            sums_row: out_row,
            pixels,
        }));
    }
}

impl Bottleneck {
    fn plan(&self) -> Plan {
        let Depthwise { channels, height, width, .. } = self.depthwise;
        let padded = self.depthwise.padded();
        let [out_height, out_width] = self.depthwise.out_size();
        let pixels = [height * width, out_height * out_width];
        let images = TASK.div_ceil(pixels[0]).next_power_of_two();
        let images = images.min(self.batch / TASKS).max(1);
        let rows = if images > 1 { height } else { (BAND / width).clamp(1, height) };
        let pitch = [images * rows * width, images * pixels[0], images * pixels[1]]
            .map(|pitch| pitch.next_multiple_of(WIDEST));
        let block = BLOCK / (images * padded.len + pitch[2]) / ROWS * ROWS;
        let block = block.max(ROWS).min(channels);
        let summed = [self.c_in, block, block.max(self.c_out)];
        let channels = [0, 1, 2].map(|i| (0..summed[i]).map(|c| c * pitch[i]).collect());
        Plan { padded, pixels, images, rows, pitch, channels, block }
    }

    /// Runs `work` with the memory of a task of so many images, and `n` numbers more.
    fn with_parts<R>(
        &self,
        plan: &Plan,
        images: usize,
        n: usize,
        work: impl FnOnce(Parts<'_>, &mut [f32]) -> R,
    ) -> R {
        let lens = [
            self.depthwise.height.div_ceil(plan.rows) * self.c_in * plan.pitch[0],
            ROWS * plan.pitch[0],
            plan.block * images * plan.padded.len,
            plan.padded.pixels,
            plan.block * plan.pitch[2],
        ];
        with_scratch(lens.iter().sum::<usize>() + n, |scratch| {
            let ([bands, few, maps, sums, made], rest) = split(lens, scratch);
            maps.fill(0.0);
            work(Parts { images, bands, few, maps, sums, made }, rest)
        })
    }

    /// The maps `e` of the channels from `first` on, between their zeros.
    fn expand(
        &self,
        plan: &Plan,
        expand: Option<[&[f32]; 2]>,
        x: &[f32],
        (first, channels): (usize, usize),
        parts: &mut Parts<'_>,
    ) {
        let (depthwise, padded) = (&self.depthwise, &plan.padded);
        let [pixels, _] = plan.pixels;
        let Parts { bands, few, maps, .. } = parts;
        let images = parts.images;
        let Some([weight, bias]) = expand else {
            let maps = maps.chunks_exact_mut(padded.len).take(channels * images);
            return vectorized(
                #[inline(always)]
                || {
                    for (at, map) in maps.enumerate() {
                        let (c, image) = (first + at / images, at % images);
                        let plane = &x[(image * self.c_in + c) * pixels..][..pixels];
                        let rows = plane.chunks(plan.rows * depthwise.width);
                        for (i, from) in rows.enumerate() {
                            let rows = &mut few[..from.len()];
                            depthwise.sort(from, rows);
                            rows.iter_mut().for_each(|x| *x = relu6(*x));
                            depthwise.put(padded, i * plan.rows, rows, map);
                        }
                    }
                },
            );
        };
        let (weight, bias) = (&weight[first * self.c_in..], &bias[first..][..channels]);
        let (pitch, channels) = (plan.pitch[0], &plan.channels[0]);
        for (i, band) in bands.chunks_exact_mut(self.c_in * pitch).enumerate() {
            let row = i * plan.rows;
            let n = plan.rows.min(depthwise.height - row) * depthwise.width;
            if first == 0 {
                vectorized(
                    #[inline(always)]
                    || {
                        for (at, plane) in x.chunks_exact(pixels).enumerate() {
                            let (image, c) = (at / self.c_in, at % self.c_in);
                            let to = &mut band[c * pitch + image * n..][..n];
                            depthwise.sort(&plane[row * depthwise.width..][..n], to);
                        }
                    },
                );
            }
            for (at, bias) in bias.chunks(ROWS).enumerate() {
                let few = &mut few[..bias.len() * pitch];
                let weight = (&weight[at * ROWS * self.c_in..], self.c_in);
                product(weight, (band, channels), images * n, (&mut *few, pitch), true);
                let maps = maps[at * ROWS * images * padded.len..].chunks_exact_mut(padded.len);
                vectorized(
                    #[inline(always)]
                    || {
                        for (few, bias) in few.chunks_exact_mut(pitch).zip(bias) {
                            few.iter_mut().for_each(|sum| *sum = relu6(*sum + bias));
                        }
                        let rows = few.chunks_exact(pitch);
                        let rows = rows.flat_map(|few| few.chunks_exact(n).take(images));
                        rows.zip(maps)
                            .for_each(|(rows, map)| depthwise.put(padded, row, rows, map));
                    },
                );
            }
        }
    }

    fn run(&self, x: &[f32], weights: Weights<'_>) -> Vec<f32> {
        let (plan, channels) = (self.plan(), self.depthwise.channels);
        let [pixels, made] = plan.pixels;
        let mut y = vec![0.0; self.batch * self.c_out * made];
        let tasks = y.par_chunks_mut(plan.images * self.c_out * made);
        tasks.zip(x.par_chunks(plan.images * self.c_in * pixels)).for_each(|(y, x)| {
            let (images, sums) = (x.len() / (self.c_in * pixels), self.c_out * plan.pitch[2]);
            self.with_parts(&plan, images, sums, |mut parts, sums| {
                for first in (0..channels).step_by(plan.block) {
                    let block = (first, plan.block.min(channels - first));
                    self.expand(&plan, weights.expand, x, block, &mut parts);
                    self.convolve(&plan, weights.depthwise, block, &mut parts);
                    let weight = (&weights.project[0][first..], channels);
                    let made = (&*parts.made, &plan.channels[2][..block.1]);
                    product(weight, made, plan.pitch[2], (&mut *sums, plan.pitch[2]), first == 0);
                }
                self.finish(&plan, weights.project[1], sums, x, y);
            });
        });
        y
    }

    /// `d` of a block whose maps are there.
    fn convolve(
        &self,
        plan: &Plan,
        [weight, bias]: [&[f32]; 2],
        (first, channels): (usize, usize),
        parts: &mut Parts<'_>,
    ) {
        let (padded, [_, width]) = (&plan.padded, self.depthwise.out_size());
        let taps = self.depthwise.kernel.pow(2);
        let Parts { images, maps, sums, made, .. } = parts;
        let made = made.chunks_exact_mut(plan.pitch[2]).take(channels);
        let maps = maps.chunks_exact(*images * padded.len);
        vectorized(
            #[inline(always)]
            || {
                for (c, (made, maps)) in (first..).zip(made.zip(maps)) {
                    let weight = (&weight[c * taps..][..taps], bias[c]);
                    let images = made.chunks_exact_mut(plan.pixels[1]);
                    for (made, map) in images.zip(maps.chunks_exact(padded.len)) {
                        self.depthwise.sums(padded, weight, map, sums, relu6);
                        let lines = made.chunks_exact_mut(width).zip(sums.chunks(padded.pitch));
                        lines.for_each(|(to, from)| to.copy_from_slice(&from[..width]));
                    }
                }
            },
        );
    }

    /// The outputs of a task from their sums.
    fn finish(&self, plan: &Plan, bias: &[f32], sums: &[f32], x: &[f32], y: &mut [f32]) {
        let made = plan.pixels[1];
        vectorized(
            #[inline(always)]
            || {
                for (at, y) in y.chunks_exact_mut(made).enumerate() {
                    let (image, o) = (at / self.c_out, at % self.c_out);
                    let sums = &sums[o * plan.pitch[2] + image * made..][..made];
                    let sums = sums.iter().map(|sum| sum + bias[o]);
                    match self.is_residual {
                        true => {
                            let x = &x[at * made..][..made];
                            y.iter_mut().zip(sums).zip(x).for_each(|((y, sum), x)| *y = sum + x);
                        }
                        false => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum),
                    }
                }
            },
        );
    }

    fn input_gradient(&self, x: &[f32], weights: Weights<'_>, gradient: &[f32]) -> Vec<f32> {
        let (plan, channels) = (self.plan(), self.depthwise.channels);
        let ([pixels, made], [_, of_inputs, of_outputs]) = (plan.pixels, plan.pitch);
        let project = transposed(weights.project[0], channels);
        let expand = weights.expand.map(|[weight, _]| transposed(weight, self.c_in));
        let lens = [
            self.c_out * of_outputs,
            self.c_in * of_inputs,
            plan.block * of_inputs,
            plan.padded.len,
            plan.padded.pixels,
        ];
        let mut of_x = vec![0.0; x.len()];
        let tasks = of_x.par_chunks_mut(plan.images * self.c_in * pixels);
        let tasks = tasks.zip(x.par_chunks(plan.images * self.c_in * pixels));
        let tasks = tasks.zip(gradient.par_chunks(plan.images * self.c_out * made));
        tasks.for_each(|((of_x, x), gradient)| {
            let images = x.len() / (self.c_in * pixels);
            self.with_parts(&plan, images, lens.iter().sum(), |mut parts, rest| {
                let [of_y, sums, of_maps, of_map, spread] = split(lens, rest).0;
                for (at, plane) in gradient.chunks_exact(made).enumerate() {
                    let (image, o) = (at / self.c_out, at % self.c_out);
                    of_y[o * of_outputs + image * made..][..made].copy_from_slice(plane);
                }
                for first in (0..channels).step_by(plan.block) {
                    let block = (first, plan.block.min(channels - first));
                    self.expand(&plan, weights.expand, x, block, &mut parts);
                    let weight = (&project[first * self.c_out..], self.c_out);
                    let of_y = (&*of_y, &plan.channels[2][..self.c_out]);
                    let made = (&mut parts.made[..block.1 * of_outputs], of_outputs);
                    product(weight, of_y, of_outputs, made, true);
                    let of_map = [&mut *of_map, &mut *spread];
                    self.of_maps(&plan, weights, block, &mut parts, of_map, of_maps);
                    match &expand {
                        Some(expand) => {
                            let of_maps = (&*of_maps, &plan.channels[1][..block.1]);
                            let to = (&mut *sums, of_inputs);
                            product(
                                (&expand[first..], channels),
                                of_maps,
                                of_inputs,
                                to,
                                first == 0,
                            );
                        }
                        None => {
                            let rows = block.1 * of_inputs;
                            sums[first * of_inputs..][..rows].copy_from_slice(&of_maps[..rows]);
                        }
                    }
                }
                for (at, of_x) in of_x.chunks_exact_mut(pixels).enumerate() {
                    let (image, c) = (at / self.c_in, at % self.c_in);
                    of_x.copy_from_slice(&sums[c * of_inputs + image * pixels..][..pixels]);
                }
                if self.is_residual {
                    of_x.iter_mut().zip(gradient).for_each(|(of_x, g)| *of_x += g);
                }
            });
        });
        of_x
    }

    /// The gradients of a block's maps, before they went through ReLU6, `[channels, plan.pitch[1]]`;
    /// those of `d` are in `parts.made`.
    fn of_maps(
        &self,
        plan: &Plan,
        weights: Weights<'_>,
        (first, channels): (usize, usize),
        parts: &mut Parts<'_>,
        [of_map, spread]: [&mut [f32]; 2],
        of_maps: &mut [f32],
    ) {
        let (padded, [_, width]) = (&plan.padded, self.depthwise.out_size());
        let ([weight, bias], taps) = (weights.depthwise, self.depthwise.kernel.pow(2));
        let Parts { images, maps, sums, made, .. } = parts;
        vectorized(
            #[inline(always)]
            || {
                for (at, map) in maps.chunks_exact(padded.len).take(channels * *images).enumerate()
                {
                    let (c, image) = (at / *images, at % *images);
                    let of_made = &made[c * plan.pitch[2] + image * plan.pixels[1]..];
                    let of_made = &of_made[..plan.pixels[1]];
                    let to = c * plan.pitch[1] + image * plan.pixels[0];
                    let c = first + c;
                    let weight = &weight[c * taps..][..taps];
                    self.depthwise.sums(padded, (weight, bias[c]), map, sums, |sum| sum);
                    spread.fill(0.0);
                    let lines = spread.chunks_mut(padded.pitch).zip(sums.chunks(padded.pitch));
                    for ((to, sums), from) in lines.zip(of_made.chunks_exact(width)) {
                        let pairs = from.iter().zip(sums);
                        to.iter_mut().zip(pairs).for_each(|(to, (&g, &d))| *to = passed(g, d));
                    }
                    self.depthwise.map_gradient(padded, weight, spread, of_map);
                    let pairs = of_map.iter_mut().zip(map);
                    pairs.for_each(|(of_e, &e)| *of_e = passed(*of_e, e));
                    self.depthwise.take(padded, of_map, &mut of_maps[to..][..plan.pixels[0]]);
                }
            },
        );
    }
}

/// The first numbers of a slice in parts, and what is behind them.
fn split<const N: usize>(lens: [usize; N], mut rest: &mut [f32]) -> ([&mut [f32]; N], &mut [f32]) {
    let parts = lens.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
        rest = behind;
        part
    });
    (parts, rest)
}

/// Rows of `cols` numbers as columns.
fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
    let mut columns = vec![0.0; x.len()];
    let chunks = columns.par_chunks_exact_mut(x.len() / cols).enumerate().with_min_len(16);
    chunks.for_each(|(c, to)| {
        to.iter_mut().zip(x.iter().skip(c).step_by(cols)).for_each(|(to, &x)| *to = x);
    });
    columns
}

/// `[x (b, c, h, w), depthwise (e, 1, k, k), bias (e), project (o, e, 1, 1), bias (o)]`
impl Kernel<5> for Bottleneck {
    type Saved = ();
    const READS: [bool; 5] = [true; 5];

    fn forward(&self, [x, d, of_d, p, of_p]: [&[f32]; 5]) -> (Vec<f32>, ()) {
        let weights = Weights { expand: None, depthwise: [d, of_d], project: [p, of_p] };
        (self.run(x, weights), ())
    }

    fn backward(&self, pass: Pass<'_, (), 5>) -> [Option<Gradient>; 5] {
        let [x, d, of_d, p, of_p] = pass.inputs;
        let weights = Weights { expand: None, depthwise: [d, of_d], project: [p, of_p] };
        let of_x = pass.wanted[0].then(|| self.input_gradient(x, weights, pass.gradient));
        [of_x.map(Gradient::New), None, None, None, None]
    }
}

/// `[x (b, c, h, w), expand (e, c, 1, 1), bias (e), ..]`, as without expansion.
impl Kernel<7> for Bottleneck {
    type Saved = ();
    const READS: [bool; 7] = [true; 7];

    fn forward(&self, [x, e, of_e, d, of_d, p, of_p]: [&[f32]; 7]) -> (Vec<f32>, ()) {
        let expand = Some([e, of_e]);
        (self.run(x, Weights { expand, depthwise: [d, of_d], project: [p, of_p] }), ())
    }

    fn backward(&self, pass: Pass<'_, (), 7>) -> [Option<Gradient>; 7] {
        let [x, e, of_e, d, of_d, p, of_p] = pass.inputs;
        let weights = Weights { expand: Some([e, of_e]), depthwise: [d, of_d], project: [p, of_p] };
        let of_x = pass.wanted[0].then(|| self.input_gradient(x, weights, pass.gradient));
        [of_x.map(Gradient::New), None, None, None, None, None, None]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Numbers of about the size that keeps sums of `n` of them times 3 apart from ReLU6's ends.
    fn scaled(n: usize, of: usize, seed: u64) -> Vec<f32> {
        random(n, seed).into_iter().map(|x| 6.0 * x / (of as f32).sqrt()).collect()
    }

    struct Case {
        bottleneck: Bottleneck,
        expands: bool,
        x: Vec<f32>,
        weights: [Vec<f32>; 6],
        gradient: Vec<f32>,
    }

    impl Case {
        /// With zeros around the maps that halve them at a stride of 2.
        fn new(
            batch: usize,
            [c_in, channels, c_out]: [usize; 3],
            [height, width]: [usize; 2],
            kernel: usize,
            stride: usize,
        ) -> Self {
            let both = kernel - stride;
            let pad = [both / 2, both / 2, both - both / 2, both - both / 2];
            let depthwise = Depthwise { channels, height, width, kernel, stride, pad };
            let is_residual = stride == 1 && c_in == c_out;
            let bottleneck = Bottleneck { batch, c_in, c_out, depthwise, is_residual };
            let [rows, columns] = depthwise.out_size();
            let taps = kernel * kernel;
            Self {
                bottleneck,
                expands: channels != c_in,
                x: scaled(batch * c_in * height * width, 1, 1),
                weights: [
                    scaled(channels * c_in, 16 * c_in, 2),
                    scaled(channels, 4, 3),
                    scaled(channels * taps, taps, 4),
                    scaled(channels, 4, 5),
                    scaled(c_out * channels, channels, 6),
                    scaled(c_out, 1, 7),
                ],
                gradient: scaled(batch * c_out * rows * columns, 1, 8),
            }
        }

        fn weights(&self) -> Weights<'_> {
            let [e, of_e, d, of_d, p, of_p] = self.weights.each_ref().map(Vec::as_slice);
            let expand = self.expands.then_some([e, of_e]);
            Weights { expand, depthwise: [d, of_d], project: [p, of_p] }
        }

        fn run(&self) -> [Vec<f32>; 2] {
            let of_x = self.bottleneck.input_gradient(&self.x, self.weights(), &self.gradient);
            [self.bottleneck.run(&self.x, self.weights()), of_x]
        }

        /// As [`run`](Self::run), each image alone.
        fn run_each(&self) -> [Vec<f32>; 2] {
            let (n, alone) = (self.bottleneck.batch, self.alone());
            let images = self.x.chunks(self.x.len() / n);
            let y = images.clone().flat_map(|x| alone.run(x, self.weights())).collect();
            let pairs = images.zip(self.gradient.chunks(self.gradient.len() / n));
            let of_x = pairs.flat_map(|(x, g)| alone.input_gradient(x, self.weights(), g));
            [y, of_x.collect()]
        }

        fn alone(&self) -> Bottleneck {
            Bottleneck { batch: 1, ..self.bottleneck.clone() }
        }

        /// By the definition, one number after the other.
        fn exact(&self) -> [Vec<f64>; 2] {
            let Bottleneck { c_in, c_out, depthwise, is_residual, .. } = self.bottleneck;
            let Depthwise { channels, height, width, kernel, stride, pad } = depthwise;
            let ([rows, columns], taps) = (depthwise.out_size(), kernel * kernel);
            let (pixels, made) = (height * width, rows * columns);
            let [we, be, wd, bd, wp, bp] = self.weights.each_ref().map(|x| wide(x));
            let relu6 = |x: &f64| x.clamp(0.0, 6.0);
            let slope = |x: f64| if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 };
            // What every pixel of the output sees of the input through each tap.
            let seen: Vec<(usize, usize, usize)> = (0..made * taps)
                .filter_map(|at| {
                    let (to, tap) = (at / taps, at % taps);
                    let row = (to / columns * stride + tap / kernel).wrapping_sub(pad[0]);
                    let column = (to % columns * stride + tap % kernel).wrapping_sub(pad[1]);
                    (row < height && column < width).then_some((to, tap, row * width + column))
                })
                .collect();
            let (mut y, mut of_x) = (Vec::new(), Vec::new());
            let images = self.x.chunks(c_in * pixels).zip(self.gradient.chunks(c_out * made));
            for (x, gradient) in images.map(|(x, gradient)| (wide(x), wide(gradient))) {
                let sums = |weight: &[f64], rows: usize, x: &[f64], n: usize| -> Vec<f64> {
                    let inner = x.len() / n;
                    let sum = |(m, p): (usize, usize)| -> f64 {
                        (0..inner).map(|k| weight[m * inner + k] * x[k * n + p]).sum()
                    };
                    (0..rows * n).map(|at| sum((at / n, at % n))).collect()
                };
                let add = |mut sums: Vec<f64>, bias: &[f64]| {
                    let n = sums.len() / bias.len();
                    sums.iter_mut().enumerate().for_each(|(at, sum)| *sum += bias[at / n]);
                    sums
                };
                let e = match self.expands {
                    true => add(sums(&we, channels, &x, pixels), &be),
                    false => x.clone(),
                };
                let after: Vec<f64> = e.iter().map(relu6).collect();
                let mut d = add(vec![0.0; channels * made], &bd);
                for c in 0..channels {
                    for &(to, tap, from) in &seen {
                        d[c * made + to] += wd[c * taps + tap] * after[c * pixels + from];
                    }
                }
                let after: Vec<f64> = d.iter().map(relu6).collect();
                let mut out = add(sums(&wp, c_out, &after, made), &bp);
                let transposed = |weight: &[f64], cols: usize| -> Vec<f64> {
                    (0..cols).flat_map(|c| weight.iter().skip(c).step_by(cols).copied()).collect()
                };
                let mut of_d = sums(&transposed(&wp, channels), channels, &gradient, made);
                of_d.iter_mut().zip(&d).for_each(|(g, &d)| *g *= slope(d));
                let mut of_e = vec![0.0; channels * pixels];
                for c in 0..channels {
                    for &(to, tap, from) in &seen {
                        of_e[c * pixels + from] += wd[c * taps + tap] * of_d[c * made + to];
                    }
                }
                of_e.iter_mut().zip(&e).for_each(|(g, &e)| *g *= slope(e));
                let mut of_image = match self.expands {
                    true => sums(&transposed(&we, c_in), c_in, &of_e, pixels),
                    false => of_e,
                };
                if is_residual {
                    out.iter_mut().zip(&x).for_each(|(y, x)| *y += x);
                    of_image.iter_mut().zip(&gradient).for_each(|(of_x, g)| *of_x += g);
                }
                y.extend(out);
                of_x.extend(of_image);
            }
            [y, of_x]
        }

        fn check(&self) {
            let what = format!("{:?}", self.bottleneck);
            for (part, (ours, exact)) in self.run().iter().zip(&self.exact()).enumerate() {
                assert_close(&format!("{part} of {what}"), ours, exact, 1e-5);
            }
        }
    }

    #[test]
    fn like_the_definition() {
        let channels = [[3, 7, 5], [4, 24, 4], [8, 8, 3], [5, 5, 5]];
        let sides = [[1, 1], [2, 3], [7, 4], [6, 6], [13, 21]];
        let mut n = 0;
        for (channels, side) in channels.iter().flat_map(|c| sides.iter().map(move |s| (*c, *s))) {
            for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2), (4, 3)] {
                if side.iter().all(|side| side + kernel - stride >= kernel) {
                    Case::new(1 + n % 3, channels, side, kernel, stride).check();
                    n += 1;
                }
            }
        }
        assert!(n > 80, "{n}");
    }

    #[test]
    fn several_blocks_bands_and_images_of_a_task() {
        Case::new(1, [4, 150, 4], [40, 38], 3, 1).check();
        Case::new(1, [30, 30, 4], [80, 66], 3, 2).check();
        Case::new(9, [6, 80, 6], [5, 5], 5, 1).check();
        Case::new(10, [6, 70, 9], [9, 10], 5, 2).check();
        let plans =
            [Case::new(1, [4, 150, 4], [40, 38], 3, 1), Case::new(9, [6, 80, 6], [5, 5], 5, 1)]
                .map(|case| case.bottleneck.plan());
        assert!(plans[0].block < 150 && plans[0].rows < 40);
        assert_eq!(plans[1].images, 2, "the last task has one");
    }

    #[test]
    fn neither_threads_nor_the_batch_change_an_image() {
        for (channels, side, kernel, stride) in
            [([4, 150, 4], 20, 5, 1), ([16, 48, 20], 7, 3, 2), ([16, 16, 20], 12, 3, 2)]
        {
            let case = Case::new(11, channels, [side; 2], kernel, stride);
            assert_same_on_threads(|| case.run().into());
            assert!(case.run() == case.run_each(), "an image depends on its batch");
        }
    }

    #[test]
    fn more_blocks_do_not_change_an_image() {
        for channels in [[6, 150, 6], [150, 150, 6]] {
            let case = Case::new(33, channels, [7; 2], 3, 1);
            let blocks = |bottleneck: &Bottleneck| 150usize.div_ceil(bottleneck.plan().block);
            assert_eq!([blocks(&case.alone()), blocks(&case.bottleneck)], [1, 2]);
            assert!(case.run() == case.run_each(), "an image depends on its batch");
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for channels in [[4, 24, 3], [4, 4, 3]] {
            let mut case = Case::new(1, channels, [6, 6], 3, 1);
            case.x[0] = f32::NAN;
            // The pixels that a kernel in the corner of the first channel's map reaches.
            for (at, y) in case.run()[0].iter().enumerate() {
                assert_eq!(y.is_nan(), [0, 1, 6, 7].contains(&(at % 36)), "{at} of {channels:?}");
            }
        }
    }
}
