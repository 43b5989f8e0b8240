//! Convolutions of images: `y[b, o, i, j] = bias[o] + sum over c, u, v of
//! w[o, c, u, v] x[b, c, s i + u - top, s j + v - left]`, zero outside of `x`.
//!
//! No matrix of patches is made. Tiles of the padded image are copied into rows of a fixed pitch,
//! so that with p = i pitch + j running over the pixels of a tile, every tap k = (c, u, v) reads
//! `tile[offset(k) + p]`: one contiguous slice for all the pixels, the ends of rows included, where
//! what is computed is dropped. The convolution and its gradient are then two products,
//!
//! - y[o, p] = sum over k of w[o, k] tile[offset(k) + p] (the input's gradient has this form, too),
//! - dw[o, k] = sum over p of dy[o, p] tile[offset(k) + p], where dy is zero at the ends of rows.
//!
//! A stride of s splits the tile in s by s phases, each a tile of its own: pixel (s i + u, s j + v)
//! is pixel (i + u / s, j + v / s) of phase (u mod s, v mod s).
//!
//! With enough channels and pixels, a kernel of 3 by 3 and stride 1 makes its rows in pairs, which
//! takes two thirds of the multiplications: Winograd's F(2, 3) down the columns (Lavin and Gray,
//! arXiv:1509.09308, section 4.1). With the rows d0 to d3 of the padded image and g0 to g2 of the
//! kernel, a pair of rows is (m0 + m1 + m2, m1 - m2 - m3), where m0 to m3 are the convolutions of
//!
//! - the rows d0 - d2, d1 + d2, d2 - d1 and d1 - d3, each a phase of the tile, with
//! - the kernels of one row g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2 and g2.
//!
//! The weight's gradient is that of these steps: from the gradients e0, e0 + e1, e0 - e1 and -e1 of
//! m0 to m3 that of the kernels of one row, and from these that of the weight.

mod correlation;
pub(super) mod products;
mod tile;

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::simd::{sum_of, vectorized};
use correlation::{Correlation, PARALLEL};
use tile::TILE;

pub(super) use correlation::with_scratch;

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conv {
    pub(crate) batch: usize,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Rows and columns of the kernel.
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Rows or columns of zeros around the input: top, left, bottom, right.
    pub(crate) pad: [usize; 4],
}

/// Height and width of the output of a convolution, padded at top, left, bottom and right.
pub(super) fn out_size(
    [height, width]: [usize; 2],
    [rows, columns]: [usize; 2],
    stride: usize,
    [top, left, bottom, right]: [usize; 4],
) -> [usize; 2] {
    [(height + top + bottom - rows) / stride + 1, (width + left + right - columns) / stride + 1]
}

impl Conv {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        out_size([self.height, self.width], self.kernel, self.stride, self.pad)
    }

    /// The convolution of `x` `[batch, c_in, height, width]` with `weight`
    /// `[c_out, c_in, rows, columns]`, plus `bias` `[c_out]`.
    pub(crate) fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        self.flat().correlation().run(x, weight, bias)
    }

    /// The gradient of the input from that of the output.
    ///
    /// Pixel i = s q + a of a side takes part in output pixel o through tap u = i + pad - s o. So
    /// the pixels of one phase a see the taps u = first, first + s, ... alone, with
    /// first = (a + pad) mod s, and the output pixels
    /// o = q + (a + pad - first) / s - (u - first) / s: for each phase a
    /// correlation of stride 1 with its taps in reverse.
    pub(crate) fn input_gradient(&self, weight: &[f32], grad_out: &[f32]) -> Vec<f32> {
        let conv = self.flat();
        let (s, [height, width]) = (self.stride, [conv.height, conv.width]);
        let [kernel_rows, kernel_columns] = self.kernel;
        let phase = |a: usize, side: usize, kernel: usize, pad: usize| {
            let first = (a + pad) % s;
            let taps = kernel.saturating_sub(first).div_ceil(s);
            let origin = ((a + pad - first) / s) as isize - (taps as isize - 1);
            (first, taps, origin, side.saturating_sub(a).div_ceil(s))
        };
        let mut grad = Vec::new();
        for (a, b) in (0..s).flat_map(|a| (0..s).map(move |b| (a, b))) {
            let (first_row, row_taps, top, rows) = phase(a, height, kernel_rows, self.pad[0]);
            let (first_col, col_taps, left, cols) = phase(b, width, kernel_columns, self.pad[1]);
            let part = Correlation {
                batch: self.batch,
                c_in: self.c_out,
                c_out: self.c_in,
                source: conv.out_size(),
                out: [rows, cols],
                kernel: [row_taps, col_taps],
                stride: 1,
                origin: [top, left],
            };
            // [c_in, c_out, taps], where the weight is [c_out, c_in, rows, columns].
            let (taps, square) = (row_taps * col_taps, kernel_rows * kernel_columns);
            let tap =
                |t| (first_row + t / col_taps * s) * kernel_columns + first_col + t % col_taps * s;
            let order: Vec<usize> = (0..taps).rev().map(tap).collect();
            let row = self.c_out * taps;
            let mut reverse = vec![0.0; self.c_in * row];
            let rows = 16;
            let fill = |(at, reverse): (usize, &mut [f32])| {
                for (o, kernels) in weight.chunks_exact(self.c_in * square).enumerate() {
                    let kernels = kernels[at * rows * square..].chunks_exact(square);
                    for (kernel, to) in kernels.zip(reverse.chunks_exact_mut(row)) {
                        let to = to[o * taps..][..taps].iter_mut();
                        to.zip(&order).for_each(|(to, &tap)| *to = kernel[tap]);
                    }
                }
            };
            if reverse.len() < PARALLEL {
                reverse.chunks_mut(rows * row.max(1)).enumerate().for_each(fill);
            } else {
                reverse.par_chunks_mut(rows * row).enumerate().for_each(fill);
            }
            let part = part.run(grad_out, &reverse, None);
            if s == 1 {
                return part;
            }
            grad.resize(self.batch * self.c_in * height * width, 0.0);
            if cols == 0 {
                continue;
            }
            let planes = grad.chunks_exact_mut(height * width);
            let lines = planes.flat_map(|plane| plane.chunks_exact_mut(width).skip(a).step_by(s));
            for (line, part) in lines.zip(part.chunks_exact(cols)) {
                line.iter_mut().skip(b).step_by(s).zip(part).for_each(|(to, &from)| *to = from);
            }
        }
        grad
    }

    /// The gradient of the weight from that of the output.
    pub(crate) fn weight_gradient(&self, x: &[f32], grad_out: &[f32]) -> Vec<f32> {
        self.flat().correlation().weight_gradient(x, grad_out)
    }

    /// The gradient of the bias from that of the output: its sum per channel.
    pub(crate) fn bias_gradient(&self, grad_out: &[f32]) -> Vec<f32> {
        let [height, width] = self.out_size();
        let pixels = height * width;
        let channel = |o: usize| {
            let planes = grad_out.chunks_exact(pixels).skip(o).step_by(self.c_out);
            let rows = planes.flat_map(|plane| plane.chunks(1024));
            vectorized(
                #[inline(always)]
                || rows.map(|row| f64::from(sum_of(row, |g| g))).sum::<f64>() as f32,
            )
        };
        if grad_out.len() < 1 << 16 {
            (0..self.c_out).map(channel).collect()
        } else {
            (0..self.c_out).into_par_iter().map(channel).collect()
        }
    }

    /// A small image under a kernel of one pixel is one row.
    fn flat(&self) -> Self {
        let pixels = self.height * self.width;
        match self.kernel == [1, 1] && self.stride == 1 && self.pad == [0; 4] && pixels <= TILE {
            true => Self { height: 1, width: pixels, ..*self },
            false => *self,
        }
    }

    fn correlation(&self) -> Correlation {
        Correlation {
            batch: self.batch,
            c_in: self.c_in,
            c_out: self.c_out,
            source: [self.height, self.width],
            out: self.out_size(),
            kernel: self.kernel,
            stride: self.stride,
            origin: [-(self.pad[0] as isize), -(self.pad[1] as isize)],
        }
    }
}

/// `[x (b, c, h, w), weight (o, c, k, l), bias (o)]`
impl Kernel<3> for Conv {
    type Saved = ();
    const READS: [bool; 3] = [true, true, false];

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        (self.forward(x, weight, Some(bias)), ())
    }

    fn backward(&self, pass: Pass<'_, (), 3>) -> [Option<Gradient>; 3] {
        let ([x, weight, _], [of_x, of_weight, of_bias]) = (pass.inputs, pass.wanted);
        [
            of_x.then(|| self.input_gradient(weight, pass.gradient)),
            of_weight.then(|| self.weight_gradient(x, pass.gradient)),
            of_bias.then(|| self.bias_gradient(pass.gradient)),
        ]
        .map(|gradient| gradient.map(Gradient::New))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    /// Calls `f` with the places in the output, input and weight of each product.
    fn for_each_product(c: &Conv, mut f: impl FnMut(usize, usize, usize)) {
        let [height, width] = c.out_size();
        for b in 0..c.batch {
            for o in 0..c.c_out {
                for i in 0..height {
                    for j in 0..width {
                        for ch in 0..c.c_in {
                            for u in 0..c.kernel[0] {
                                for v in 0..c.kernel[1] {
                                    let row = (i * c.stride + u).wrapping_sub(c.pad[0]);
                                    let col = (j * c.stride + v).wrapping_sub(c.pad[1]);
                                    if row < c.height && col < c.width {
                                        f(
                                            ((b * c.c_out + o) * height + i) * width + j,
                                            ((b * c.c_in + ch) * c.height + row) * c.width + col,
                                            ((o * c.c_in + ch) * c.kernel[0] + u) * c.kernel[1] + v,
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn assert_near(ours: &[f32], exact: &[f64], what: &str) {
        assert_close_above(what, ours, exact, 1e-5, 1e-3);
    }

    fn check(c: Conv) {
        let [height, width] = c.out_size();
        let x = random(c.batch * c.c_in * c.height * c.width, 1);
        let weight = random(c.c_out * c.c_in * c.kernel[0] * c.kernel[1], 2);
        let bias = random(c.c_out, 3);
        let grad = random(c.batch * c.c_out * height * width, 4);
        let (mut y, mut dx) = (vec![0.0f64; grad.len()], vec![0.0f64; x.len()]);
        let (mut dw, mut db) = (vec![0.0f64; weight.len()], vec![0.0f64; bias.len()]);
        for_each_product(&c, |at, from, tap| {
            y[at] += f64::from(x[from]) * f64::from(weight[tap]);
            dx[from] += f64::from(grad[at]) * f64::from(weight[tap]);
            dw[tap] += f64::from(grad[at]) * f64::from(x[from]);
        });
        for (at, &g) in grad.iter().enumerate() {
            db[at / (height * width) % c.c_out] += f64::from(g);
        }
        assert_near(&c.forward(&x, &weight, None), &y, &format!("output of {c:?}"));
        for (at, y) in y.iter_mut().enumerate() {
            *y += f64::from(bias[at / (height * width) % c.c_out]);
        }
        assert_near(&c.forward(&x, &weight, Some(&bias)), &y, &format!("output of {c:?}"));
        assert_near(&c.input_gradient(&weight, &grad), &dx, &format!("input gradient of {c:?}"));
        assert_near(&c.weight_gradient(&x, &grad), &dw, &format!("weight gradient of {c:?}"));
        assert_near(&c.bias_gradient(&grad), &db, &format!("bias gradient of {c:?}"));
    }

    #[test]
    fn like_the_definition() {
        let pads =
            [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [2, 1, 0, 2], [0, 2, 1, 0]];
        let sides = [[1, 1], [1, 6], [3, 1], [2, 2], [5, 9], [7, 4]];
        let channels = [[1, 1], [2, 3], [5, 4], [3, 5], [4, 2]];
        let mut at = 0;
        for (pad, [height, width]) in pads.iter().flat_map(|p| sides.iter().map(move |s| (*p, *s)))
        {
            let squares =
                [(1, 1), (3, 1), (1, 2), (3, 2), (5, 1), (3, 3)].map(|(k, s)| ([k, k], s));
            let others = [([1, 3], 1), ([4, 1], 1), ([2, 3], 2), ([5, 2], 3)];
            for (kernel, stride) in squares.into_iter().chain(others) {
                let [rows, columns] = kernel;
                if height + pad[0] + pad[2] >= rows && width + pad[1] + pad[3] >= columns {
                    let [c_in, c_out] = channels[at % channels.len()];
                    let batch = 1 + at % 3;
                    check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
                    at += 1;
                }
            }
        }
        assert!(at > 240, "{at}");
    }

    #[test]
    fn several_tiles_and_blocks() {
        let conv =
            |batch, [c_in, c_out]: [usize; 2], [height, width]: [usize; 2], kernel, stride, pad| {
                let kernel = [kernel; 2];
                check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
            };
        conv(1, [35, 7], [31, 131], 3, 1, [1, 1, 1, 1]);
        conv(1, [3, 2], [5, 1200], 3, 1, [1, 1, 1, 1]);
        conv(2, [5, 3], [79, 93], 3, 2, [0, 0, 1, 1]);
        conv(1, [66, 70], [7, 5], 3, 1, [1, 1, 1, 1]);
        conv(5, [33, 37], [6, 6], 1, 1, [0, 0, 0, 0]);
        conv(19, [2, 3], [8, 8], 3, 1, [1, 1, 1, 1]);
    }

    #[test]
    fn rows_in_pairs() {
        let sides = [[2, 70], [3, 40], [9, 9], [34, 4], [16, 16], [13, 300], [33, 7]];
        let pads = [[1, 1, 1, 1], [0, 0, 0, 0], [2, 1, 0, 2], [0, 2, 1, 0], [4, 3, 0, 5]];
        let channels = [[16, 16], [35, 17], [100, 22], [17, 64]];
        let mut at = 0;
        for (pad, [height, width]) in pads.iter().flat_map(|p| sides.iter().map(move |s| (*p, *s)))
        {
            let [c_in, c_out] = channels[at % channels.len()];
            let c = Conv { batch: 2, c_in, c_out, height, width, kernel: [3; 2], stride: 1, pad };
            if height + pad[0] + pad[2] > 2 && c.correlation().in_pairs() {
                check(c);
                at += 1;
            }
        }
        assert!(at > 25, "{at}");
        // The weight's gradient of one tile, of groups of images the last of which is not full, of
        // a task with fewer images.
        let conv = |batch, kernel, stride, pad| {
            let (c_in, c_out, height, width, kernel) = (16, 17, 16, 16, [kernel; 2]);
            check(Conv { batch, c_in, c_out, height, width, kernel, stride, pad });
        };
        conv(49, 3, 1, [1; 4]);
        // A phase of the input's gradient is in pairs.
        conv(2, 5, 2, [2; 4]);
    }

    #[test]
    fn threads_change_nothing() {
        for (stride, pad) in [(1, [1; 4]), (2, [0, 0, 1, 1])] {
            let (batch, c_in, c_out, height, width) = (3, 40, 70, 48, 40);
            let c = Conv { batch, c_in, c_out, height, width, kernel: [3; 2], stride, pad };
            let [rows, cols] = c.out_size();
            let x = random(batch * c_in * height * width, 1);
            let weight = random(c_out * c_in * 9, 2);
            let grad = random(batch * c_out * rows * cols, 3);
            let image = c_in * height * width;
            let alone = Conv { batch: 1, ..c };
            let each = x.chunks(image).flat_map(|x| alone.forward(x, &weight, None));
            assert!(each.eq(c.forward(&x, &weight, None)), "an image depends on its batch");
            assert_same_on_threads(|| {
                let y = c.forward(&x, &weight, None);
                let dx = c.input_gradient(&weight, &grad);
                vec![y, dx, c.weight_gradient(&x, &grad), c.bias_gradient(&grad)]
            });
        }
    }
}
