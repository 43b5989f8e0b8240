//! The networks against PyTorch: `golden.py` made `golden.safetensors`.

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use sar_features::{
    EfficientNetLite0, Inception, InceptionInput, Lpips, MAP_CHANNELS, PerceptualDistance, Vgg16,
    WEIGHTS,
};
use sar_weights::NamedTensors;

mod files;

use files::{bytes, inception_graph, inception_weights, lpips_weights, noise, vgg_weights};

type A = Autodiff<Flex>;

/// `sin((i + 1) frequency) scale` over the elements.
fn formula(n: usize, frequency: f64, scale: f64) -> Vec<f32> {
    (1..=n).map(|i| ((i as f64 * frequency).sin() * scale) as f32).collect()
}

fn images<B: Backend>(shape: [usize; 4], frequency: f64) -> Tensor<B, 4> {
    let n = shape.iter().product();
    let (long, short) = (formula(n, frequency, 0.6), formula(n, 0.37 * frequency, 0.4));
    let pixels = long.iter().zip(&short).map(|(a, b)| (a + b).clamp(-1.0, 1.0)).collect();
    Tensor::from_data(TensorData::new(pixels, shape), &Default::default())
}

struct Golden(NamedTensors);

impl Golden {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        Self(NamedTensors::read(&folder.join("golden.safetensors")).unwrap())
    }

    /// That a tensor is within 1e-4 of the golden one's largest magnitude.
    #[track_caller]
    fn check<B: Backend, const D: usize>(&self, name: &str, ours: Tensor<B, D>) {
        self.check_within(1e-4, name, ours);
    }

    #[track_caller]
    fn check_within<B: Backend, const D: usize>(
        &self,
        tolerance: f32,
        name: &str,
        ours: Tensor<B, D>,
    ) {
        let golden = self.0.get(name).unwrap();
        assert_eq!(ours.dims()[..], golden.shape[..], "{name}");
        let ours = ours.into_data().into_vec::<f32>().unwrap();
        let golden = golden.to_vec::<f32>().unwrap();
        let largest = golden.iter().fold(0f32, |a, x| a.max(x.abs()));
        // Not a maximum, which a NaN would not change.
        let near = |(x, y): (&f32, &f32)| (x - y).abs() <= tolerance * largest;
        let off = ours.iter().zip(&golden).position(|pair| !near(pair));
        assert!(largest > 0.0, "{name} is zero");
        if let Some(at) = off {
            panic!("{name} [{at}]: {} for {}, of {largest} at most", ours[at], golden[at]);
        }
    }
}

fn efficientnet<B: Backend>() -> EfficientNetLite0<B> {
    EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &Default::default()).unwrap()
}

#[test]
fn efficientnet_computes_what_the_package_computes() {
    let (net, golden) = (efficientnet::<Flex>(), Golden::read());
    let x = images([2, 3, 64, 96], 0.0123);
    golden.check("features", net.features(x.clone()));
    golden.check("features_odd", net.features(images([1, 3, 77, 45], 0.021)));
    for (i, map) in net.maps(x).into_iter().enumerate() {
        assert_eq!(map.dims()[1], MAP_CHANNELS[i]);
        let map = if i < 3 {
            let [b, c, h, w] = map.dims();
            let every_7th = (0..h * w).step_by(7).map(|at| at as i32).collect::<Vec<_>>();
            let every_7th = Tensor::from_ints(every_7th.as_slice(), &map.device());
            let n = every_7th.dims()[0];
            map.reshape([b, c, h * w]).select(2, every_7th).reshape([b, c, 1, n])
        } else {
            map
        };
        let name = format!("map{i}");
        if i < 3 { golden.check(&name, map.squeeze_dim::<3>(2)) } else { golden.check(&name, map) }
    }
}

#[test]
fn pooled_features_are_those_of_images_brought_to_160_px() {
    let (net, golden) = (efficientnet::<Flex>(), Golden::read());
    // More than are taken at a time.
    golden.check("pooled_small", net.pooled(images([5, 3, 32, 32], 0.0123)));
    golden.check("pooled_large", net.pooled(images([1, 3, 200, 200], 0.0123)));
}

#[test]
fn the_perceptual_distance_and_its_gradient() {
    let golden = Golden::read();
    let distance = PerceptualDistance::new(efficientnet::<A>());
    let [x, y] = [0.0123, 0.0131].map(|frequency| images([2, 3, 64, 96], frequency));
    golden.check("perceptual", distance.distance(x, y));
    let [x, y] = [0.0123, 0.0131].map(|frequency| images([2, 3, 32, 33], frequency));
    let gradient = gradient(x, |x| distance.distance(x, y.clone()));
    golden.check_within(1e-3, "perceptual_gradient", gradient);
}

#[test]
fn vgg_and_lpips_compute_what_the_packages_compute() {
    let (golden, device) = (Golden::read(), Default::default());
    let [vgg, heads] = vgg_and_heads();
    let maps = Vgg16::<Flex>::from_bytes(vgg.clone(), &device).unwrap();
    for (i, map) in maps.maps(images([2, 3, 32, 33], 0.0123)).into_iter().enumerate() {
        golden.check(&format!("vgg{i}"), every_61st(map));
    }
    let lpips = Lpips::<A>::from_bytes(vgg, heads, &device).unwrap();
    let [x, y] = [0.0123, 0.0131].map(|frequency| images([2, 3, 32, 33], frequency));
    golden.check("lpips", lpips.distance(x.clone(), y.clone()));
    let gradient = gradient(x, |x| lpips.distance(x, y.clone()));
    golden.check_within(1e-3, "lpips_gradient", gradient);
}

/// The files of LPIPS.
fn vgg_and_heads() -> [Vec<u8>; 2] {
    let heads =
        lpips_weights(|shape, seed| noise(shape, seed, 1.0).into_iter().map(f32::abs).collect());
    [bytes(&vgg_weights(noise)), bytes(&heads)]
}

fn every_61st(x: Tensor<Flex, 4>) -> Tensor<Flex, 1> {
    let values = x.into_data().into_vec::<f32>().unwrap();
    let some: Vec<f32> = values.into_iter().step_by(61).collect();
    Tensor::from_floats(&some[..], &Default::default())
}

#[test]
fn inception_computes_what_the_package_computes() {
    let (golden, device) = (Golden::read(), Default::default());
    let weights = inception_weights(noise);
    let files = [("inception.pth", bytes(&weights)), ("graph.pb", inception_graph(&weights))];
    for (name, bytes) in files {
        let net = Inception::<Flex>::from_bytes(name.as_ref(), bytes, &device).unwrap();
        let features = net.features(images([2, 3, 299, 299], 0.0123));
        golden.check("inception_pool", features.pool_bf);
        golden.check("inception_spatial", features.spatial_bs);
        golden.check("inception_logits", features.logits_bk);
    }
}

/// Higher and narrower than the image was.
#[test]
fn inception_is_given_what_the_programs_of_evaluation_give_it() {
    let golden = Golden::read();
    let bytes = ((images::<Flex>([1, 3, 40, 411], 0.21) + 1.0) * 127.5).round();
    let x = bytes / 127.5 - 1.0;
    golden.check("inception_input_adm", every_61st(InceptionInput::Adm.prepare(x.clone())));
    let theirs = InceptionInput::PytorchFid.prepare(x);
    golden.check("inception_input_pytorch_fid", every_61st(theirs));
}

fn gradient(x: Tensor<A, 4>, f: impl Fn(Tensor<A, 4>) -> Tensor<A, 1>) -> Tensor<Flex, 4> {
    let x = x.require_grad();
    let gradients = f(x.clone()).sum().backward();
    x.grad(&gradients).unwrap()
}

/// A step along the gradient g changes the value by |g|^2 times the step.
#[track_caller]
fn follow(what: &str, x: Tensor<A, 4>, f: impl Fn(Tensor<A, 4>) -> Tensor<A, 1>) {
    let g = gradient(x.clone(), &f);
    let square = g.clone().square().sum().into_scalar();
    let at = |step: f32| {
        let values = f(x.clone() + Tensor::from_inner(g.clone() * step));
        values.into_data().iter::<f64>().sum::<f64>()
    };
    // Small enough for what is curved and has kinks, large enough for single precision.
    let step = 7e-5 / g.clone().abs().max().into_scalar();
    let difference = (at(step) - at(-step)) / f64::from(2.0 * step * square);
    assert!((difference - 1.0).abs() < 0.02, "{what}: {difference} of the change expected");
}

#[test]
fn gradients_are_the_changes_of_values() {
    let net = efficientnet::<A>();
    let [x, y] = [0.0123, 0.0131].map(|frequency| images([1, 3, 40, 37], frequency));
    let weights_f = Tensor::<A, 1>::from_floats(&formula(1280, 1.7, 1.0)[..], &Default::default());
    follow("pooled", x.clone(), |x| (net.pooled(x) * weights_f.clone().unsqueeze()).sum());
    let distance = PerceptualDistance::new(net);
    follow("perceptual", x, |x| distance.distance(x, y.clone()));
    let [vgg, heads] = vgg_and_heads();
    let lpips = Lpips::<A>::from_bytes(vgg, heads, &Default::default()).unwrap();
    let [x, y] = [0.0123, 0.0131].map(|frequency| images([1, 3, 16, 17], frequency));
    follow("lpips", x, |x| lpips.distance(x, y.clone()));
}

#[test]
fn equal_images_are_no_distance_apart() {
    let distance = PerceptualDistance::new(efficientnet::<A>());
    let x = images::<A>([1, 3, 32, 32], 0.02);
    assert_eq!(distance.distance(x.clone(), x.clone()).into_scalar(), 0.0);
    let gradient = gradient(x.clone(), |y| distance.distance(y, x.clone()));
    assert!(gradient.into_data().iter::<f32>().all(|g| g == 0.0));
}
