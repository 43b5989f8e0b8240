use burn::backend::Autodiff;
use burn_flex::Flex;

use super::*;

type A = Autodiff<Flex>;

const ALL: [Augmentation; 3] =
    [Augmentation::Color, Augmentation::Translation, Augmentation::Cutout];

fn images<B: Backend>(shape: [usize; 4]) -> Tensor<B, 4> {
    let n = shape.iter().product();
    let pixels: Vec<f32> = (1..=n).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(pixels, shape), &Default::default())
}

/// An image of one channel.
fn image<const H: usize, const W: usize>(pixels: [[f32; W]; H]) -> Tensor<Flex, 4> {
    Tensor::<Flex, 2>::from_floats(pixels, &Default::default()).reshape([1, 1, H, W])
}

fn values<B: Backend>(x: Tensor<B, 4>) -> Vec<f32> {
    x.into_data().into_vec().unwrap()
}

#[test]
fn colors_by_hand() {
    // Two pixels, (1, 0, -0.25) and (0, 0.5, -0.5): means of 0.25 and 0, of 0.125 over both.
    let x = Tensor::<Flex, 1>::from_floats([1.0, 0.0, 0.0, 0.5, -0.25, -0.5], &Default::default())
        .reshape([1, 3, 1, 2]);
    let jitter = |brightness, saturation, contrast| {
        values(color(x.clone(), &[Jitter { brightness, saturation, contrast }]))
    };
    assert_eq!(jitter(0.0, 1.0, 1.0), values(x.clone()));
    assert_eq!(jitter(0.25, 1.0, 1.0), [1.25, 0.25, 0.25, 0.75, 0.0, -0.25]);
    assert_eq!(jitter(0.0, 0.0, 1.0), [0.25, 0.0, 0.25, 0.0, 0.25, 0.0]);
    assert_eq!(jitter(0.0, 2.0, 1.0), [1.75, 0.0, -0.25, 1.0, -0.75, -1.0]);
    assert_eq!(jitter(0.0, 1.0, 0.5), [0.5625, 0.0625, 0.0625, 0.3125, -0.0625, -0.1875]);
    // After brightness, (1.25, 0.25, 0) and (0.25, 0.75, -0.25), of means 0.5 and 0.25; after
    // saturation (2, 0, -0.5) and (0.25, 1.25, -0.75), of the mean 0.375 over both, from which the
    // contrast takes half away.
    assert_eq!(jitter(0.25, 2.0, 0.5), [1.1875, 0.3125, 0.1875, 0.8125, -0.0625, -0.1875]);
}

#[test]
fn translation_by_hand() {
    let x = image([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let moved = |down, right| values(translation(x.clone(), &[[down, right]]));
    assert_eq!(moved(0, 0), values(x.clone()));
    assert_eq!(moved(1, 0), [4.0, 5.0, 6.0, 0.0, 0.0, 0.0]);
    assert_eq!(moved(0, -1), [0.0, 1.0, 2.0, 0.0, 4.0, 5.0]);
    assert_eq!(moved(-1, 1), [0.0, 0.0, 0.0, 2.0, 3.0, 0.0]);
    assert_eq!(moved(5, 0), [0.0; 6]);
}

#[test]
fn cutout_by_hand() {
    let x = image([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let cut = |rows, columns| values(cutout(x.clone(), &[[rows, columns]]));
    assert_eq!(cut([0, 1], [1, 3]), [1.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
    assert_eq!(cut([0, 2], [0, 2]), [0.0, 0.0, 3.0, 0.0, 0.0, 6.0]);
}

#[test]
fn draws_reach_their_whole_range_and_no_further() {
    let streams = || (0..500).map(|i| SeedTree::new(1).at(i));
    for (side, most) in [(1, 0), (3, 0), (4, 1), (32, 4), (64, 8), (100, 13)] {
        let shifts: Vec<_> = streams().map(|draws| shift(draws, 0, side)).collect();
        assert_eq!(shifts.iter().min(), Some(&-most), "{side}");
        assert_eq!(shifts.iter().max(), Some(&most), "{side}");
    }
    // Of 8 pixels, 4 around one of the 9 borders between pixels; of 5, 3 around one of the pixels.
    for (side, expected) in [
        (8, vec![[0, 2], [0, 3], [0, 4], [1, 5], [2, 6], [3, 7], [4, 8], [5, 8], [6, 8]]),
        (5, vec![[0, 2], [0, 3], [1, 4], [2, 5], [3, 5]]),
        (1, vec![[0, 1]]),
    ] {
        let mut holes: Vec<_> = streams().map(|draws| hole(draws, 1, side)).collect();
        holes.sort();
        holes.dedup();
        assert_eq!(holes, expected);
    }
    for Jitter { brightness, saturation, contrast } in streams().map(Jitter::draw) {
        assert!((-0.5..0.5).contains(&brightness));
        assert!((0.0..2.0).contains(&saturation));
        assert!((0.5..1.5).contains(&contrast));
    }
}

#[test]
fn an_empty_policy_changes_nothing() {
    let x = images::<Flex>([2, 3, 8, 8]);
    assert_eq!(values(augment(x.clone(), &[], &[SeedTree::new(1); 2])), values(x));
}

#[test]
fn an_image_becomes_the_same_alone_and_in_any_batch() {
    let x = images::<Flex>([3, 3, 16, 24]);
    let draws: Vec<_> = (0..3).map(|i| SeedTree::new(5).at(i)).collect();
    let together = augment(x.clone(), &ALL, &draws);
    assert!((together.clone() - x.clone()).abs().max().into_scalar() > 0.1);
    for (i, draws) in draws.iter().enumerate() {
        let alone = augment(x.clone().narrow(0, i, 1), &ALL, &[*draws]);
        assert_eq!(values(together.clone().narrow(0, i, 1)), values(alone));
    }
    let once = augment(x.clone(), &[Augmentation::Cutout], &draws);
    let twice = augment(x, &[Augmentation::Cutout; 2], &draws);
    assert_ne!(values(once), values(twice), "every operation draws for itself");
}

#[test]
fn gradients_are_the_changes_of_pixels() {
    let factors = Tensor::from_inner(images::<Flex>([2, 3, 8, 12]).flip([0, 2]));
    let draws = [4, 9].map(|i| SeedTree::new(2).at(i));
    let value = |x: Tensor<A, 4>| (augment(x, &ALL, &draws) * factors.clone()).sum();
    let x = images::<A>([2, 3, 8, 12]).require_grad();
    let gradients = value(x.clone()).backward();
    let g = x.grad(&gradients).unwrap();
    let square = g.clone().square().sum().into_scalar();
    assert!(square > 1.0);
    // All of it is linear in the image.
    let (x, g) = (x.detach(), Tensor::from_inner(g));
    let change = value(x.clone() + g.clone() * 0.5) - value(x - g * 0.5);
    let ratio = change.into_scalar() / square;
    assert!((ratio - 1.0).abs() < 1e-4, "{ratio} of the change expected");
}

#[test]
fn a_policy_is_a_list_of_names() {
    let json = r#"["color","translation","cutout"]"#;
    assert_eq!(serde_json::from_str::<Vec<Augmentation>>(json).unwrap(), ALL);
    assert_eq!(serde_json::to_string(&ALL).unwrap(), json);
}
