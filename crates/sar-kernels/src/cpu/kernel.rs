//! Hand-written operators as operators of burn: on `Flex`, and with their gradients on
//! `Autodiff<Flex>`.
//!
//! A backend is recognized by the type of its tensors, so that callers need no bound beyond
//! `B: Backend` and every other backend, foreign ones too, runs the plain form.

use std::any::{Any, TypeId};
use std::fmt::Debug;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use burn_flex::{Flex, FlexTensor};

type Tracked = FloatTensor<Autodiff<Flex>>;

const SERVED: &str = "a backend that is served";

/// An operator of `N` tensors and its gradient. All slices are contiguous.
pub(crate) trait Kernel<const N: usize>: Clone + Debug + Send + 'static {
    /// What the forward pass leaves for the gradient beside inputs and output.
    type Saved: Clone + Debug + Send + 'static;
    /// Which inputs the gradient reads; the others are empty there.
    const READS: [bool; N];
    /// Whether the gradient reads the output; else it is empty there.
    const READS_OUTPUT: bool = false;

    /// The output's values, in the order of the shape that [`run`] is given.
    fn forward(&self, inputs: [&[f32]; N]) -> (Vec<f32>, Self::Saved);

    /// The gradients of the inputs that want one.
    fn backward(&self, pass: Pass<'_, Self::Saved, N>) -> [Option<Gradient>; N];
}

/// What a gradient is computed from.
pub(crate) struct Pass<'a, S, const N: usize> {
    pub(crate) inputs: [&'a [f32]; N],
    pub(crate) output: &'a [f32],
    pub(crate) saved: &'a S,
    pub(crate) gradient: &'a [f32],
    pub(crate) wanted: [bool; N],
}

/// The gradient of an input.
pub(crate) enum Gradient {
    /// That of the output, unchanged.
    Same,
    New(Vec<f32>),
}

/// Whether tensors of this backend and these types are served by hand-written operators: all of them
/// in f32.
pub(crate) fn serves<B: Backend>(dtypes: &[DType]) -> bool {
    let tracked = TypeId::of::<FloatTensor<B>>() == TypeId::of::<Tracked>();
    serves_untracked::<B>(dtypes) || (tracked && are_f32(dtypes))
}

/// As [`serves`], for tensors without a tape only.
pub(crate) fn serves_untracked<B: Backend>(dtypes: &[DType]) -> bool {
    TypeId::of::<FloatTensor<B>>() == TypeId::of::<FlexTensor>() && are_f32(dtypes)
}

fn are_f32(dtypes: &[DType]) -> bool {
    dtypes.iter().all(|dtype| *dtype == DType::F32)
}

/// A tensor's primitive.
pub(crate) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// Runs an operator.
///
/// # Panics
/// If the backend is not [served](serves).
pub(crate) fn run<B: Backend, K: Kernel<N>, const N: usize, const D: usize>(
    kernel: K,
    inputs: [FloatTensor<B>; N],
    shape: [usize; D],
) -> Tensor<B, D> {
    let shape = Shape::from(shape);
    match same_type::<_, [FlexTensor; N]>(inputs) {
        Ok(inputs) => {
            let inputs = inputs.map(contiguous);
            let (output, _) = kernel.forward(inputs.each_ref().map(values));
            wrap(tensor(output, shape))
        }
        Err(inputs) => wrap(tracked(kernel, same_type(inputs).expect(SERVED), shape)),
    }
}

/// Reads tensors without a tape.
///
/// # Panics
/// If the backend is not [served](serves_untracked).
pub(crate) fn read<B: Backend, R, const N: usize>(
    inputs: [FloatTensor<B>; N],
    work: impl FnOnce([&[f32]; N]) -> R,
) -> R {
    let inputs = same_type::<_, [FlexTensor; N]>(inputs).expect(SERVED).map(contiguous);
    work(inputs.each_ref().map(values))
}

/// Runs work on tensors without a tape that reads some and writes others in place; those are copied
/// first if they are shared.
///
/// # Panics
/// If the backend is not [served](serves_untracked).
pub(crate) fn run_in_place<B: Backend, R, const N: usize, const W: usize, const D: usize>(
    read: [FloatTensor<B>; N],
    written: [Tensor<B, D>; W],
    work: impl FnOnce([&[f32]; N], [&mut [f32]; W]) -> R,
) -> (R, [Tensor<B, D>; W]) {
    let read = same_type::<_, [FlexTensor; N]>(read).expect(SERVED).map(contiguous);
    let written = same_type::<_, [FlexTensor; W]>(written.map(primitive)).expect(SERVED);
    // Whole tensors pass unchanged; a view becomes one.
    let mut written = written.map(|tensor| tensor.to_contiguous());
    let slices = written.each_mut().map(|tensor| tensor.storage_mut());
    let result = work(read.each_ref().map(values), slices);
    (result, written.map(wrap))
}

/// A tensor of values in row-major order.
pub(crate) fn from_values<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
) -> Tensor<B, D> {
    wrap(tensor(values, Shape::from(shape)))
}

fn wrap<B: Backend, T: Debug + 'static, const D: usize>(x: T) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(same_type(x).expect(SERVED)))
}

fn tracked<K: Kernel<N>, const N: usize>(kernel: K, inputs: [Tracked; N], shape: Shape) -> Tracked {
    let nodes = inputs.each_ref().map(|input| input.node.clone());
    let inputs = inputs.map(|input| contiguous(input.primitive));
    let (output, saved) = kernel.forward(inputs.each_ref().map(values));
    let output = tensor(output, shape);
    let prepared = Differentiated(kernel).prepare::<NoCheckpointing>(nodes).compute_bound();
    match prepared.stateful() {
        OpsKind::Tracked(operation) => {
            let mut reads = K::READS.into_iter();
            let state = State {
                shapes: inputs.each_ref().map(|input| input.shape()),
                inputs: inputs
                    .map(|input| reads.next().expect("as many as inputs").then_some(input)),
                output: K::READS_OUTPUT.then(|| output.clone()),
                saved,
            };
            operation.finish(state, output)
        }
        OpsKind::UnTracked(operation) => operation.finish(output),
    }
}

/// A kernel on the tape.
#[derive(Debug)]
struct Differentiated<K>(K);

#[derive(Clone, Debug)]
struct State<S, const N: usize> {
    inputs: [Option<FlexTensor>; N],
    shapes: [Shape; N],
    output: Option<FlexTensor>,
    saved: S,
}

impl<K: Kernel<N>, const N: usize> Backward<Flex, N> for Differentiated<K> {
    type State = State<K::Saved, N>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = contiguous(gradients.consume::<Flex>(&ops.node));
        let State { inputs, shapes, output, saved } = ops.state;
        let pass = Pass {
            inputs: inputs.each_ref().map(|input| input.as_ref().map_or(&[][..], values)),
            output: output.as_ref().map_or(&[][..], values),
            saved: &saved,
            gradient: values(&gradient),
            wanted: ops.parents.each_ref().map(Option::is_some),
        };
        let found = self.0.backward(pass);
        for ((parent, found), shape) in ops.parents.into_iter().zip(found).zip(shapes) {
            let Some((parent, found)) = parent.zip(found) else { continue };
            let found = match found {
                Gradient::Same => gradient.clone(),
                Gradient::New(values) => tensor(values, shape),
            };
            gradients.register::<Flex>(parent.id, found);
        }
    }
}

fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

fn values(x: &FlexTensor) -> &[f32] {
    let start = x.layout().start_offset();
    &x.storage()[start..start + x.layout().num_elements()]
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The same value, if the two types are one.
fn same_type<T: 'static, U: 'static>(value: T) -> Result<U, T> {
    let mut value = Some(value);
    match (&mut value as &mut dyn Any).downcast_mut::<Option<U>>() {
        Some(found) => Ok(found.take().expect("put in above")),
        None => Err(value.expect("put in above")),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::{AdamWStep, AttentionConfig, Visible, adamw, attention, gelu_tanh, linear};

    type A = Autodiff<Flex>;

    fn floats<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
        x.into_data().into_vec().unwrap()
    }

    #[test]
    fn views_are_what_they_show() {
        let device = Default::default();
        let x = Tensor::<Flex, 2>::random([6, 4], Distribution::Default, &device);
        let whole = |x: &Tensor<Flex, 2>| {
            let shape = x.dims();
            Tensor::<Flex, 1>::from_floats(floats(x.clone()).as_slice(), &device).reshape(shape)
        };
        let row = x.clone().slice([2..3, 0..4]);
        for view in [
            x.clone().slice([1..3, 0..4]),
            x.clone().slice([0..2, 1..3]),
            x.transpose(),
            row.expand([5, 4]),
        ] {
            assert_eq!(floats(gelu_tanh(view.clone())), floats(gelu_tanh(whole(&view))));
        }
    }

    #[test]
    fn gradients_reach_what_is_tracked_and_add_up() {
        let device = Default::default();
        let square = Tensor::<A, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device).require_grad();
        let bias = Tensor::<A, 1>::zeros([2], &device);
        // x x: the gradient of its sum is 1 x^T + x^T 1.
        let y = linear(square.clone(), square.clone(), bias.clone());
        assert_eq!(floats(y.clone()), [7.0, 10.0, 15.0, 22.0]);
        // An upstream gradient that is a broadcast.
        let gradients = y.sum().backward();
        assert_eq!(floats(square.grad(&gradients).unwrap()), [7.0, 11.0, 9.0, 13.0]);
        assert!(bias.grad(&gradients).is_none());
        // Nothing tracked.
        assert_eq!(floats(linear(square.clone().detach(), square.detach(), bias)).len(), 4);
    }

    #[test]
    fn one_tensor_of_another_type_is_not_served() {
        let (single, half) = (DType::F32, DType::F16);
        assert!(serves::<Flex>(&[single, single]) && serves::<A>(&[single, single]));
        assert!(!serves::<Flex>(&[single, half]) && !serves::<A>(&[half, single]));
        assert!(serves_untracked::<Flex>(&[single]) && !serves_untracked::<A>(&[single]));
        assert!(!serves_untracked::<Flex>(&[single, half]));
        // Rows in f32 and a temperature in f16 run in the plain form.
        let device = Default::default();
        let rows = Tensor::<Flex, 2>::random([6, 12], Distribution::Default, &device);
        let temperature = Tensor::<Flex, 1>::from_floats([1.0, 0.5], &device);
        let config = AttentionConfig { batch: 2, heads: 2, normalize: true };
        let run =
            |temperature| floats(attention(rows.clone(), temperature, &Visible::all(3), config));
        let (whole, mixed) = (run(temperature.clone()), run(temperature.cast(DType::F16)));
        assert!(whole.iter().zip(&mixed).all(|(x, y)| (x - y).abs() < 1e-6));
    }

    #[test]
    fn what_is_written_in_place_is_copied_if_it_is_shared_or_a_view() {
        let device = Default::default();
        let base = Tensor::<Flex, 1>::from_floats([1.0, 2.0, 3.0], &device);
        let step =
            AdamWStep { beta1: 0.0, beta2: 0.0, eps: 0.0, decay: 0.0, rate: 0.5, correction: 1.0 };
        let zeros = || Tensor::<Flex, 1>::zeros([2], &device);
        let prefix = base.clone().slice(0..2);
        let (p, _) =
            adamw(prefix, [zeros(), zeros()], zeros() + 3.0, zeros().slice(0..1) + 1.0, step);
        assert_eq!(floats(p), [0.5, 1.5]);
        assert_eq!(floats(base), [1.0, 2.0, 3.0]);
    }
}
