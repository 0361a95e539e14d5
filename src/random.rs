//! Draws that are the same everywhere: SplitMix64 (Steele, Lea, Flood 2014).

/// A stream of draws.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of a seed and a purpose.
    pub fn new(seed: u64, purpose: u64) -> Random {
        let mut random = Random(seed);
        let key = random.bits();
        Random(key ^ purpose.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // Off by at most 2^-32 from uniform for the bounds in use, which are below 2^32.
        ((u128::from(self.bits()) * bound as u128) >> 64) as usize
    }

    /// A draw from the standard normal distribution (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// `count` different numbers below `bound`, in random order.
    ///
    /// # Panics
    /// If `count` exceeds `bound`.
    pub fn sample(&mut self, bound: usize, count: usize) -> Vec<u32> {
        assert!(count <= bound, "{count} different numbers below {bound}");
        let mut all: Vec<u32> = (0..bound as u32).collect();
        for at in 0..count {
            all.swap(at, at + self.below(bound - at));
        }
        all.truncate(count);
        all
    }
}
