//! No result depends on the number of threads, not in its last bit.

use sar_metrics::{
    Features, Moments, Neighbors, Probe, Ridge, Subsets, frechet, inception_score, kernel_distance,
    kernel_distance_by_subsets, mind, nearest, prdc,
};

/// `n` rows of `dim` values.
fn wave(n: usize, dim: usize, phase: f32) -> Features {
    let values = (0..n * dim).map(|i| (i as f32 * 0.37 + (i * i) as f32 * 1e-3 + phase).sin());
    Features::from_rows(dim, values.collect()).unwrap()
}

/// All that is measured, on so many threads.
fn on(threads: usize) -> Vec<(&'static str, Vec<f64>)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        // More than one block of rows, and more than one part of a product.
        let (x, y) = (wave(1100, 140, 0.0), wave(700, 140, 1.0));
        let [a, b] = [&x, &y].map(|features| Moments::of(features).unwrap());
        let [of_x, of_y] = [&x, &y].map(|features| Neighbors::new(features, 4).unwrap());
        let radii = (0..x.len()).map(|row| of_x.squared_radius(row, 4)).collect();
        let [prdc] = prdc(&of_x, &of_y, [4]).unwrap();
        let subsets = Subsets { size: 520, count: 3 };
        let subsets = kernel_distance_by_subsets(&x, &y, subsets, 1).unwrap();
        let labels: Vec<usize> = (0..x.len()).map(|i| i * i % 5).collect();
        let probe = Probe::fit(&x, &labels, 5, Ridge::default()).unwrap();
        let classes = probe.predict(&y).unwrap();
        let mind = mind(&x, &y, 200, 1).unwrap();
        let nearest = nearest(&y, &x).unwrap();
        vec![
            ("mean", a.mean().to_vec()),
            ("covariance", a.covariance().to_vec()),
            ("frechet", vec![frechet(&a, &b).unwrap().distance]),
            ("kernel_distance", vec![kernel_distance(&x, &y).unwrap()]),
            ("subsets", vec![subsets.mean, subsets.deviation]),
            ("radii", radii),
            ("prdc", vec![prdc.precision, prdc.recall, prdc.density, prdc.coverage]),
            ("mind", vec![mind.mean, mind.deviation]),
            ("nearest", nearest.iter().map(|nearest| nearest.distance).collect()),
            ("inception_score", vec![inception_score(&x, 600).unwrap().mean]),
            ("probe", classes.into_iter().map(|class| class as f64).collect()),
        ]
    })
}

#[test]
fn one_thread_gives_the_bits_of_several() {
    let alone = on(1);
    for threads in [2, 5] {
        for ((name, found), (_, expected)) in on(threads).iter().zip(&alone) {
            let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(found), bits(expected), "{name} on {threads} threads");
        }
    }
}
