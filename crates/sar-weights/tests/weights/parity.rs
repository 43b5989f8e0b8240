//! The released checkpoint layout, compared with what PyTorch reads from the same files.

use crate::support::parity;
use sar_weights::NamedTensors;

fn values(named: &NamedTensors, name: &str) -> Vec<f32> {
    let data = named.get(name).unwrap_or_else(|| panic!("no {name} in {named:?}"));
    data.to_vec().unwrap()
}

#[test]
fn the_tokenizer_has_the_values_that_torch_reads() {
    let check = |case: &str, conv_in: [f32; 3], bias: [f32; 3]| {
        let named = NamedTensors::read(&parity(&format!("{case}/tokenizer.pth"))).unwrap();
        assert_eq!(named.len(), 156);
        assert!(named.names().all(|name| name.starts_with("model.")), "steps is no tensor");
        let named = named.below("model");
        let weight = named.get("encoder.conv_in.weight").unwrap();
        assert_eq!((&weight.shape[..], weight.dtype.name()), (&[32, 3, 3, 3][..], "f32"));
        assert_eq!(values(&named, "encoder.conv_in.weight")[..3], conv_in);
        assert_eq!(values(&named, "encoder.conv_in.bias")[..3], bias);
    };
    check(
        "flexvar_tiny",
        [-0.0014408393, 0.10323862, -0.15839511],
        [0.14653398, -0.15112421, -0.018381145],
    );
    check(
        "flexvar_shared_adaln",
        [-0.19080906, -0.15181643, -0.08242927],
        [0.071317516, -0.05798404, -0.10309437],
    );
}

/// Position embedding `[1, d, y, x]`, which torch stores as a permuted view of `[1, y, x, d]`:
/// read without its strides, it is another tensor altogether.
#[test]
fn the_position_embedding_is_a_strided_view() {
    const D: usize = 32;
    const SIDE: usize = 32;
    let check = |case: &str, n_tensors: usize, spots: [(usize, usize, usize, f32); 4]| {
        let named = NamedTensors::read(&parity(&format!("{case}/backbone.pth"))).unwrap();
        assert_eq!(named.len(), n_tensors);
        let named = named.below("trainer.var_wo_ddp");
        assert_eq!(named.len(), n_tensors);
        assert_eq!(named.get("pos_1LC").unwrap().shape[..], [1, D, SIDE, SIDE]);
        let positions = values(&named, "pos_1LC");
        let at = |c: usize, y: usize, x: usize| positions[(c * SIDE + y) * SIDE + x];

        for (c, y, x, value) in spots {
            assert_eq!(at(c, y, x), value, "{case} [0, {c}, {y}, {x}]");
        }
        // Even channels sin(y * w_i), odd channels cos(x * w_i), plus noise of std 0.02.
        let mut squared = 0.0;
        for c in 0..D {
            let frequency = 10000f64.powf(-((c / 2 * 2) as f64) / D as f64);
            for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
                let law = match c % 2 {
                    0 => (y as f64 * frequency).sin(),
                    _ => (x as f64 * frequency).cos(),
                };
                let difference = f64::from(at(c, y, x)) - law;
                assert!(difference.abs() < 0.12, "{case} [0, {c}, {y}, {x}]: {difference}");
                squared += difference * difference;
            }
        }
        let std = (squared / (D * SIDE * SIDE) as f64).sqrt();
        assert!((std - 0.02).abs() < 0.001, "{case}: {std}");
    };
    check(
        "flexvar_tiny",
        36,
        [
            (0, 5, 9, -0.9573948),
            (1, 5, 9, -0.88406587),
            (31, 31, 30, 1.0025675),
            (7, 1, 2, 0.94467384),
        ],
    );
    check(
        "flexvar_shared_adaln",
        45,
        [
            (0, 5, 9, -0.96271926),
            (1, 5, 9, -0.88935083),
            (31, 31, 30, 0.9565476),
            (7, 1, 2, 0.9524866),
        ],
    );
}

/// Sums over all elements that torch computed in f64.
#[test]
fn the_backbone_has_the_sums_that_torch_computes() {
    let check = |case: &str, sums: [(&str, f64); 4]| {
        let named = NamedTensors::read(&parity(&format!("{case}/backbone.pth"))).unwrap();
        for (name, expected) in sums {
            let name = format!("trainer.var_wo_ddp.{name}");
            let sum: f64 = values(&named, &name).into_iter().map(f64::from).sum();
            assert!((sum - expected).abs() < 2e-9 * expected.abs().max(1.0), "{name}: {sum}");
        }
    };
    check(
        "flexvar_tiny",
        [
            ("pos_1LC", 13115.328810967),
            ("head_nm.ada_lin.1.bias", -0.845342429),
            ("head.weight", -1.038674902),
            ("head.bias", -0.219988216),
        ],
    );
    check(
        "flexvar_shared_adaln",
        [
            ("pos_1LC", 13118.969302876),
            ("head_nm.ada_lin.1.bias", -1.573648355),
            ("head.weight", 1.904390030),
            ("head.bias", -0.336349898),
        ],
    );
}

#[test]
fn a_mask_keeps_its_infinities() {
    let named = NamedTensors::read(&parity("flexvar_tiny/backbone.pth")).unwrap();
    let mask = values(&named, "trainer.var_wo_ddp.attn_bias_for_masking");
    assert_eq!(mask.len(), 680 * 680);
    assert_eq!(mask[..3], [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    assert!(mask[679 * 680..].iter().all(|&bias| bias == 0.0), "the last token sees all");
}
