//! Randomness as a value: Philox 4x32-10, a counter-based generator (Salmon et al., "Parallel random
//! numbers: as easy as 1, 2, 3", 2011).
//!
//! A [`SeedTree`] is a key. Every draw is a pure function of (seed, purpose, step, index), so a run
//! that resumes, splits its batch otherwise or changes its backend draws the same numbers.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One Philox 4x32-10 block: four words from a 128-bit counter and a 64-bit key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A node of the tree of random streams; copy it freely, it holds no state.
///
/// ```
/// use sar_core::SeedTree;
/// let step = SeedTree::new(7).child("rollout").at(120);
/// assert_eq!(step.uniform(3), step.uniform(3));
/// assert_ne!(step.uniform(3), SeedTree::new(7).child("flip").at(120).uniform(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedTree {
    key: [u32; 2],
}

// What the fourth counter word says of a block, so that streams and keys never share one.
const DRAW: u32 = 0;
const CHILD: u32 = 1;
const INDEX: u32 = 2;

impl SeedTree {
    /// The root of a run's randomness.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32] }
    }

    /// The stream of one purpose, e.g. `"rollout"`.
    pub fn child(self, purpose: &str) -> Self {
        // FNV-1a: the names are few and ours; Philox does the mixing.
        let hash = purpose.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, byte| {
            (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        self.derive(hash, CHILD)
    }

    /// The stream of one step, image or epoch.
    pub fn at(self, index: u64) -> Self {
        self.derive(index, INDEX)
    }

    fn derive(self, word: u64, kind: u32) -> Self {
        let c = philox4x32([word as u32, (word >> 32) as u32, 0, kind], self.key);
        Self { key: [c[0], c[1]] }
    }

    fn word(self, index: u64) -> u32 {
        let block = index / 4;
        philox4x32([block as u32, (block >> 32) as u32, 0, DRAW], self.key)[(index % 4) as usize]
    }

    /// The `index`-th uniform number of this stream, in `[0, 1)`, a multiple of 2^-24.
    pub fn uniform(self, index: u64) -> f32 {
        (self.word(index) >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// The first `n` uniform numbers of this stream, each in `[0, 1)`.
    pub fn uniforms(self, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| self.uniform(i)).collect()
    }

    /// The first `n` standard normal numbers of this stream (Box-Muller, computed in f64).
    pub fn normals(self, n: usize) -> Vec<f32> {
        (0..n as u64)
            .map(|i| {
                let pair = i / 2 * 2;
                // 1 - u lies in (0, 1], so that the logarithm is finite.
                let radius = (-2.0 * (1.0 - f64::from(self.uniform(pair))).ln()).sqrt();
                let angle = std::f64::consts::TAU * f64::from(self.uniform(pair + 1));
                (radius * if i % 2 == 0 { angle.cos() } else { angle.sin() }) as f32
            })
            .collect()
    }

    /// The `index`-th draw of this stream from `0..n`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(self, index: u64, n: usize) -> usize {
        assert!(n > 0, "a draw from an empty range");
        // The high half of word * n: a bias below n / 2^32.
        ((u64::from(self.word(index)) * n as u64) >> 32) as usize
    }

    /// A permutation of `0..n` (Fisher-Yates on this stream).
    pub fn permutation(self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64, i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_equals_the_published_vectors() {
        // Random123, kat_vectors, philox 4x32 10.
        let all = u32::MAX;
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]
        );
        assert_eq!(
            philox4x32([all; 4], [all; 2]),
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]
        );
        assert_eq!(
            philox4x32(
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0]
            ),
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
        );
    }

    #[test]
    fn streams_have_the_moments_they_should() {
        let tree = SeedTree::new(1).child("moments");
        let n = 20_000;
        let mean = tree.uniforms(n).iter().sum::<f32>() / n as f32;
        assert!((mean - 0.5).abs() < 0.01, "uniform mean {mean}");
        let normals = tree.normals(n);
        let variance = normals.iter().map(|x| x * x).sum::<f32>() / n as f32;
        assert!((variance - 1.0).abs() < 0.03, "normal variance {variance}");
        let cross = normals.chunks_exact(2).map(|p| p[0] * p[1]).sum::<f32>() / (n / 2) as f32;
        assert!(cross.abs() < 0.03, "pairs correlate: {cross}");
    }

    #[test]
    fn siblings_and_steps_differ_and_permutations_are_complete() {
        let root = SeedTree::new(3);
        assert_ne!(root.child("a").uniforms(8), root.child("b").uniforms(8));
        assert_ne!(root.at(0).uniforms(8), root.at(1).uniforms(8));
        assert_ne!(root.uniforms(8), root.at(0).uniforms(8));
        let mut order = root.permutation(100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
