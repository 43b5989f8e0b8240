//! Linear layers: products straight from the rows, the bias where the product adds.

use super::gemm::{Mat, Out, gemm};
use super::kernel::{Gradient, Kernel, Pass};
use super::rows::column_sums;

/// `[x (r, i), weight (i, o), bias (o)]`
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Kernel<3> for Linear {
    type Saved = ();
    const READS: [bool; 3] = [true, true, false];

    fn forward(&self, [x, weight, bias]: [&[f32]; 3]) -> (Vec<f32>, ()) {
        let Self { inputs: i, outputs: o } = *self;
        let rows = x.len() / i;
        let mut y = bias.repeat(rows);
        gemm(Out::Add, &mut y, Mat::new(x, rows, i), Mat::new(weight, i, o));
        (y, ())
    }

    fn backward(&self, pass: Pass<'_, (), 3>) -> [Option<Gradient>; 3] {
        let Self { inputs: i, outputs: o } = *self;
        let [x, weight, _] = pass.inputs;
        let rows = pass.gradient.len() / o;
        let [x, weight] = [Mat::new(x, rows, i), Mat::new(weight, i, o)];
        let gradient = Mat::new(pass.gradient, rows, o);
        let product = |rows: usize, cols: usize, a: Mat<'_>, b: Mat<'_>| {
            let mut out = vec![0.0; rows * cols];
            gemm(Out::Set, &mut out, a, b);
            Gradient::New(out)
        };
        let [of_x, of_weight, of_bias] = pass.wanted;
        [
            of_x.then(|| product(rows, i, gradient, weight.t())),
            of_weight.then(|| product(i, o, x.t(), gradient)),
            of_bias.then(|| Gradient::New(column_sums(pass.gradient, o))),
        ]
    }
}
