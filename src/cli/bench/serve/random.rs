//! Random numbers that a seed and an index decide: request 17 of a run is the same, whoever sends it.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The numbers of one purpose and place: streams of other seeds, purposes and indices have nothing to do with them.
    pub fn new(seed: u64, purpose: u64, index: u64) -> Random {
        let mut random = Random(seed);
        random.0 = random.next() ^ purpose.wrapping_mul(STEP);
        random.0 = random.next() ^ index.wrapping_mul(STEP);
        random
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform over (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Uniform over 0 to `bound - 1`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Normal, mean 0 and variance 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma of mean 1 and the given shape (Marsaglia and Tsang); exponential for shape 1, constant for infinity.
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape == 1.0 {
            return -self.unit().ln();
        }
        if shape.is_infinite() {
            return 1.0;
        }
        // Below 1, the one of shape + 1 times a power.
        let lift = if shape < 1.0 { self.unit().powf(1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * lift / shape;
            }
        }
    }

    /// Puts a list into random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}
