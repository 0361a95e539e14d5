//! Random numbers: counter-based, so that a draw depends on its request's seed and its own place and on nothing else.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is the seed, low word first;
//! the counter is `[index, domain, draw low, draw high]`:
//!
//! | use | domain | index | word |
//! |---|---|---|---|
//! | text token `t` ([`Noise::gumbel_block`]) | [`TEXT`] | `t / 64 * 16 + t % 16` | `t / 16 % 4` |
//! | child of a search ([`Noise::gumbels`]) | [`search_domain`]: type, level, group | first SID below the child | 0 |
//! | choice among the finished paths of a span | [`COMMIT`] | 0 | 0 |
//!
//! Sixteen counters side by side fill four vectors, whose words are sixteen neighbouring tokens each: that is why tokens are numbered so.

use super::elementary::ln;

/// Domain of text draws.
pub const TEXT: u32 = u32::MAX;
/// Domain of the draw that commits one of a span's paths.
pub const COMMIT: u32 = u32::MAX - 1;
/// No Gumbel noise is larger: `-ln(-ln(1 - 2^-33))`, rounded up.
pub const GUMBEL_MAX: f32 = 22.9;

const LANES: usize = 16;
const MULTIPLIER: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Domain of the noise of a search; `level` below 16, `group` below 1024.
pub fn search_domain(item_type: u16, level: usize, group: usize) -> u32 {
    debug_assert!(level < 16 && group < 1024, "level {level}, group {group}");
    u32::from(item_type) | (level as u32) << 16 | (group as u32) << 20
}

/// Philox4x32-10: four random words for a counter under a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox_lanes(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox`] for `N` counters side by side.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Lanes of four arrays at once.
fn philox_lanes<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for _ in 0..10 {
        for lane in 0..N {
            let even = u64::from(MULTIPLIER[0]) * u64::from(c[0][lane]);
            let odd = u64::from(MULTIPLIER[1]) * u64::from(c[2][lane]);
            c[0][lane] = (odd >> 32) as u32 ^ c[1][lane] ^ key[0];
            c[1][lane] = odd as u32;
            c[2][lane] = (even >> 32) as u32 ^ c[3][lane] ^ key[1];
            c[3][lane] = even as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// A word as a number strictly between 0 and 1: `(word + 1/2) / 2^32`, exactly.
pub fn uniform(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

/// A word as standard Gumbel noise, `-ln(-ln(1 - w))` with `w = (word + 1/2) / 2^32`.
///
/// Large noise comes from small `w`, which float32 holds exactly: no two large values fall together.
#[inline(always)]
pub fn gumbel(word: u32) -> f32 {
    const LARGEST: f32 = 1.0 - f32::EPSILON / 2.0;
    let w = (word as f32 + 0.5) * (1.0 / 4_294_967_296.0);
    let w = if w < LARGEST { w } else { LARGEST };
    // -ln(1 - w) without the rounding of 1 - w: the slope between 1 - w and 1 hardly changes over that error.
    let rest = 1.0 - w;
    let gone = 1.0 - rest;
    let exponential = if gone == 0.0 { w } else { -ln(rest) * (w / gone) };
    -ln(exponential)
}

/// The random numbers of one draw of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    key: [u32; 2],
    domain: u32,
    draw: [u32; 2],
}

impl Noise {
    /// The numbers of `draw` under `seed` in a domain of this module's table.
    pub fn new(seed: u64, draw: u64, domain: u32) -> Noise {
        let words = |value: u64| [value as u32, (value >> 32) as u32];
        Noise { key: words(seed), domain, draw: words(draw) }
    }

    /// Four words.
    pub fn words(&self, index: u32) -> [u32; 4] {
        philox([index, self.domain, self.draw[0], self.draw[1]], self.key)
    }

    /// A number strictly between 0 and 1, from the first word at `index`.
    pub fn uniform(&self, index: u32) -> f64 {
        uniform(self.words(index)[0])
    }

    /// Gumbel noise of tokens `64 * block ..`.
    pub fn gumbel_block(&self, block: u32, noise: &mut [f32; 64]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            unsafe { self.gumbel_block_avx2(block, noise) };
            return;
        }
        self.gumbel_block_lanes(block, noise);
    }

    /// Gumbel noise from the first word at each of `indices`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gumbels(&self, indices: &[u32], noise: &mut [f32]) {
        assert_eq!(indices.len(), noise.len(), "noise");
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as was just asked.
            unsafe { self.gumbels_avx2(indices, noise) };
            return;
        }
        self.gumbels_lanes(indices, noise);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn gumbel_block_avx2(&self, block: u32, noise: &mut [f32; 64]) {
        self.gumbel_block_lanes(block, noise);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn gumbels_avx2(&self, indices: &[u32], noise: &mut [f32]) {
        self.gumbels_lanes(indices, noise);
    }

    #[inline(always)]
    fn gumbel_block_lanes(&self, block: u32, noise: &mut [f32; 64]) {
        let mut indices = [0; LANES];
        for (lane, index) in indices.iter_mut().enumerate() {
            *index = block.wrapping_mul(LANES as u32).wrapping_add(lane as u32);
        }
        let words = self.lanes(indices);
        for (noise, words) in noise.chunks_exact_mut(LANES).zip(&words) {
            for lane in 0..LANES {
                noise[lane] = gumbel(words[lane]);
            }
        }
    }

    #[inline(always)]
    fn gumbels_lanes(&self, indices: &[u32], noise: &mut [f32]) {
        for (indices, noise) in indices.chunks(LANES).zip(noise.chunks_mut(LANES)) {
            let mut padded = [0; LANES];
            padded[..indices.len()].copy_from_slice(indices);
            let words = self.lanes(padded);
            let mut values = [0.0; LANES];
            for lane in 0..LANES {
                values[lane] = gumbel(words[0][lane]);
            }
            noise.copy_from_slice(&values[..noise.len()]);
        }
    }

    #[inline(always)]
    fn lanes(&self, indices: [u32; LANES]) -> [[u32; LANES]; 4] {
        let counter = [indices, [self.domain; LANES], [self.draw[0]; LANES], [self.draw[1]; LANES]];
        philox_lanes(counter, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // The known answers of the authors' own library.
        let all = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([all; 4], [all; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn lanes_equal_single_draws() {
        let noise = Noise::new(0x0123_4567_89ab_cdef, 7 << 32 | 3, search_domain(2, 5, 1));
        let indices: Vec<u32> = (0..37).map(|i| i * 7919 + 11).collect();
        let mut values = vec![0.0; indices.len()];
        noise.gumbels(&indices, &mut values);
        for (&index, value) in indices.iter().zip(values) {
            assert_eq!(gumbel(noise.words(index)[0]).to_bits(), value.to_bits(), "index {index}");
        }
        let mut block = [0.0; 64];
        noise.gumbel_block(9, &mut block);
        for token in 9 * 64..10 * 64u32 {
            let word = noise.words(token / 64 * 16 + token % 16)[(token / 16 % 4) as usize];
            assert_eq!(gumbel(word).to_bits(), block[token as usize % 64].to_bits(), "token {token}");
        }
    }

    #[test]
    fn gumbel_noise_follows_its_formula_to_the_ends() {
        for word in (0..u32::MAX).step_by(40_009).chain(0..2000).chain([u32::MAX, u32::MAX - 1]) {
            let w = uniform(word);
            assert!(w > 0.0 && w < 1.0);
            let expected = -(-(-w).ln_1p()).ln();
            let found = gumbel(word);
            assert!(found.is_finite() && found < GUMBEL_MAX);
            // Low noise comes from `w` near 1, whose spacing in float32 is all that is lost; the lowest is cut off.
            let slope = 1.0 / ((1.0 - w) * -(-w).ln_1p());
            let bound = if w > 0.999_999 { 1.0 } else { 2e-6 * expected.abs().max(1.0) + 1e-7 * slope };
            assert!((found as f64 - expected).abs() < bound, "word {word}: {found}, expected {expected}");
        }
    }

    #[test]
    fn seeds_draws_and_domains_differ() {
        let one = Noise::new(1, 2, TEXT).words(3);
        assert_ne!(one, Noise::new(1 << 32, 2, TEXT).words(3));
        assert_ne!(one, Noise::new(1, 2 << 32, TEXT).words(3));
        assert_ne!(one, Noise::new(1, 2, COMMIT).words(3));
        assert_ne!(one, Noise::new(1, 2, TEXT).words(4));
    }
}
