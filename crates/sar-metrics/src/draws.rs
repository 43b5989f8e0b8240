//! Random numbers as pure functions of (seed, purpose, index): SplitMix64 (Steele, Lea, Flood, "Fast
//! splittable pseudorandom number generators", 2014).

/// 2^64 divided by the golden ratio, odd.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// What numbers are drawn for: no two purposes share a stream.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// The rows of a subset of the reference.
    ReferenceSubset = 1,
    /// The rows of a subset of the generated set.
    GeneratedSubset = 2,
    /// A direction in the space of the features.
    Direction = 3,
}

/// A stream of numbers.
pub(crate) struct Draws {
    state: u64,
}

impl Draws {
    /// The stream of a purpose and an index.
    pub(crate) fn new(seed: u64, purpose: Purpose, index: usize) -> Self {
        let key = mix(mix(seed).wrapping_add(purpose as u64));
        Self { state: mix(key.wrapping_add(index as u64)) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in (0, 1], a multiple of 2^-53.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, up to a bias of n / 2^64.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Two standard normal numbers (Box, Muller).
    fn normals(&mut self) -> [f64; 2] {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        [radius * angle.cos(), radius * angle.sin()]
    }

    /// A vector of length one, its direction uniform.
    pub(crate) fn direction(mut self, dim: usize) -> Vec<f64> {
        let normals = std::iter::repeat_with(|| self.normals()).flatten();
        let mut direction: Vec<f64> = normals.take(dim).collect();
        let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        direction.iter_mut().for_each(|x| *x /= length);
        direction
    }

    /// `count` different numbers of `0..n`, all such draws alike likely (Fisher, Yates).
    pub(crate) fn sample(mut self, n: usize, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..count {
            order.swap(i, i + self.below(n - i));
        }
        order.truncate(count);
        order
    }
}

/// The generator's output of one state.
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The reference implementation's first outputs from the seed 1234567.
        let mut draws = Draws { state: 1_234_567 };
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(expected.map(|_| draws.next()), expected);
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, purpose, index| Draws::new(seed, purpose, index).next();
        let all = [
            first(1, Purpose::Direction, 0),
            first(1, Purpose::Direction, 1),
            first(1, Purpose::ReferenceSubset, 0),
            first(1, Purpose::GeneratedSubset, 0),
            first(2, Purpose::Direction, 0),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[..i].contains(one), "{i}");
        }
        assert_eq!(all[0], first(1, Purpose::Direction, 0));
    }

    #[test]
    fn samples_have_no_index_twice_and_reach_all() {
        let mut seen = [0; 6];
        for index in 0..600 {
            let mut sample = Draws::new(3, Purpose::ReferenceSubset, index).sample(6, 2);
            assert_eq!(sample.len(), 2);
            sample.iter().for_each(|i| seen[*i] += 1);
            sample.dedup();
            assert_eq!(sample.len(), 2);
        }
        // 200 each on average, with a deviation of about 12.
        assert!(seen.iter().all(|n| (150..250).contains(n)), "{seen:?}");
        let mut all = Draws::new(3, Purpose::ReferenceSubset, 0).sample(5, 5);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn directions_have_length_one_and_no_bias() {
        let mut mean = [0.0; 3];
        for index in 0..3000 {
            let direction = Draws::new(9, Purpose::Direction, index).direction(3);
            let square: f64 = direction.iter().map(|x| x * x).sum();
            assert!((square - 1.0).abs() < 1e-12);
            for (sum, x) in mean.iter_mut().zip(direction) {
                *sum += x / 3000.0;
            }
        }
        // A deviation of 1 / sqrt(3 * 3000).
        assert!(mean.iter().all(|x| x.abs() < 0.04), "{mean:?}");
    }
}
