//! Sixteen float lanes at every instruction level.
//!
//! Kernels are written once over [`Lanes`] and compiled once per level inside a `#[target_feature]` function
//! ([`Simd::run`]). All levels have sixteen lanes and the same tree for sums, so AVX2 and AVX-512 agree to the bit where
//! both fuse multiply and add; the portable level rounds in between and does not.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

/// A loop over at most eight indices, written out.
///
/// Register tiles must not be indexed by variables: the compiler would keep them in memory, and whether it unrolls a loop in
/// time depends on its mood.
macro_rules! each {
    ($i:ident < $n:expr => $body:block) => {{
        const { assert!($n <= 8) };
        if 0 < $n {
            let $i: usize = 0;
            $body
        }
        if 1 < $n {
            let $i: usize = 1;
            $body
        }
        if 2 < $n {
            let $i: usize = 2;
            $body
        }
        if 3 < $n {
            let $i: usize = 3;
            $body
        }
        if 4 < $n {
            let $i: usize = 4;
            $body
        }
        if 5 < $n {
            let $i: usize = 5;
            $body
        }
        if 6 < $n {
            let $i: usize = 6;
            $body
        }
        if 7 < $n {
            let $i: usize = 7;
            $body
        }
    }};
}
pub(super) use each;

use half::{bf16, f16};

use crate::device::ops::DType;
use crate::error::{Error, Result};

/// Lanes of every level.
pub(super) const LANES: usize = 16;

/// A set of vector instructions, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What the compiler's baseline has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bfloat16 pairs, used where activations and weights both are bf16. They flush
    /// denormals and round twice per pair, so their bits differ from those of float32 products. Never chosen by itself: on the
    /// CPU measured (Emerald Rapids) such an instruction takes as long as three float32 ones and does the work of two.
    Avx512Bf16,
}

impl SimdLevel {
    /// All levels, lowest first.
    pub const ALL: [SimdLevel; 4] =
        [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512, SimdLevel::Avx512Bf16];

    /// The fastest level that this CPU has.
    pub fn detect() -> SimdLevel {
        let levels = [SimdLevel::Avx512, SimdLevel::Avx2];
        levels.into_iter().find(|level| level.is_supported()).unwrap_or(SimdLevel::Portable)
    }

    /// Whether this CPU has the level.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                SimdLevel::Portable => true,
                SimdLevel::Avx2 => avx2,
                SimdLevel::Avx512 => avx512,
                SimdLevel::Avx512Bf16 => avx512 && has!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == SimdLevel::Portable
        }
    }
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SimdLevel::Portable => "portable",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
            SimdLevel::Avx512Bf16 => "avx512-bf16",
        })
    }
}

/// A level that this CPU was found to have; the only way to run a [`Job`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Simd(SimdLevel);

impl Simd {
    /// Checks that the CPU has `level`.
    ///
    /// # Errors
    /// [`Error::Device`] if it has not.
    pub(super) fn new(level: SimdLevel) -> Result<Simd> {
        if !level.is_supported() {
            let best = SimdLevel::detect();
            return Err(Error::Device(format!(
                "this CPU has no {level} instructions; its best level is {best}"
            )));
        }
        Ok(Simd(level))
    }

    pub(super) fn level(self) -> SimdLevel {
        self.0
    }

    /// Runs a job compiled for this level.
    #[inline]
    pub(super) fn run<J: Job>(self, job: J) -> J::Out {
        match self.0 {
            // SAFETY: the portable level asks for nothing beyond the baseline.
            SimdLevel::Portable => unsafe { job.run::<portable::Portable>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::new` found the instructions on this CPU.
            SimdLevel::Avx2 => unsafe { x86::run_avx2(job) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::new` found the instructions on this CPU.
            SimdLevel::Avx512 | SimdLevel::Avx512Bf16 => unsafe { x86::run_avx512(job) },
            #[cfg(not(target_arch = "x86_64"))]
            level => unreachable!("{level} passed Simd::new on a CPU that cannot have it"),
        }
    }

    /// Runs a product in the arithmetic that the level has for `weights`; `half` says that the rows of `x` are also at
    /// hand in bfloat16.
    #[inline]
    pub(super) fn run_product<J: ProductJob>(self, weights: DType, half: bool, job: J) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == SimdLevel::Avx512Bf16 && half && weights == DType::Bf16 {
            // SAFETY: `Simd::new` found the instructions on this CPU.
            return unsafe { x86::run_bf16_pairs(job) };
        }
        let _ = half;
        match weights {
            DType::F32 => self.run(Converted::<J, f32>(job, std::marker::PhantomData)),
            DType::Bf16 => self.run(Converted::<J, bf16>(job, std::marker::PhantomData)),
            DType::F16 => self.run(Converted::<J, f16>(job, std::marker::PhantomData)),
        }
    }
}

/// Work that is compiled once per level.
pub(super) trait Job {
    /// What it answers.
    type Out;

    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn run<S: Lanes>(self) -> Self::Out;
}

/// A product of rows, compiled once per arithmetic and weight type.
pub(super) trait ProductJob {
    /// # Safety
    /// The CPU has the instructions of `D`, and the weights are of type `T`.
    unsafe fn run<D: Dot, T: Weight<D>>(self);
}

struct Converted<J, T>(J, std::marker::PhantomData<T>);

impl<J: ProductJob, T: Stored> Job for Converted<J, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: the caller's promise, and `run_product` chose `T` by the weights' type.
        unsafe { self.0.run::<Fma<S>, T>() }
    }
}

/// How the products along `k` are summed: sixteen running sums per output, in order of `k`, then one tree.
pub(super) trait Dot {
    /// Element of the rows of `x` and of packed weights.
    type X: Copy + Default + Send + Sync;
    /// `STEP` elements in a register.
    type Operand: Copy;
    /// The running sums.
    type Acc: Lanes;
    /// Elements of `k` per step.
    const STEP: usize;

    /// # Safety
    /// The CPU has the instructions; `STEP` elements are readable at `p`.
    unsafe fn load(p: *const Self::X) -> Self::Operand;

    /// # Safety
    /// The CPU has the instructions; `STEP` elements are writable at `p`.
    unsafe fn store(v: Self::Operand, p: *mut Self::X);

    fn multiply_add(acc: Self::Acc, x: Self::Operand, w: Self::Operand) -> Self::Acc;
}

/// A stored weight that can be brought into a register for the arithmetic `D`.
pub(super) trait Weight<D: Dot>: Copy + Default + 'static {
    /// # Safety
    /// The CPU has the instructions of `D`; `D::STEP` elements are readable at `p`.
    unsafe fn operand(p: *const Self) -> D::Operand;
}

/// Products in float32 with converted weights.
pub(super) struct Fma<S>(std::marker::PhantomData<S>);

impl<S: Lanes> Dot for Fma<S> {
    type X = f32;
    type Operand = S;
    type Acc = S;
    const STEP: usize = LANES;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }

    #[inline(always)]
    unsafe fn store(v: S, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { v.store(p) }
    }

    #[inline(always)]
    fn multiply_add(acc: S, x: S, w: S) -> S {
        acc.fma(x, w)
    }
}

impl<S: Lanes, T: Stored> Weight<Fma<S>> for T {
    #[inline(always)]
    unsafe fn operand(p: *const T) -> S {
        // SAFETY: the caller's promise.
        unsafe { T::load(p) }
    }
}

/// An element type of weights and cache, converted on its way between memory and lanes.
pub(super) trait Stored: Copy + Default + Send + Sync + 'static {
    /// # Safety
    /// The CPU has the instructions of `S`; sixteen elements are readable at `p`.
    unsafe fn load<S: Lanes>(p: *const Self) -> S;

    /// The value.
    fn to_f32(self) -> f32;
}

macro_rules! stored {
    ($type:ty, $load:ident, $to:expr) => {
        impl Stored for $type {
            #[inline(always)]
            unsafe fn load<S: Lanes>(p: *const Self) -> S {
                // SAFETY: the caller's promise; the half types are transparent over their 16 bits.
                unsafe { S::$load(p.cast()) }
            }

            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
        }
    };
}

stored!(f32, load, |v| v);
stored!(bf16, load_bf16, bf16::to_f32);
stored!(f16, load_f16, f16::to_f32);

/// Sixteen float32 lanes.
///
/// A value of the type shows that its instructions exist, so that only the functions that make one from nothing are unsafe.
pub(super) trait Lanes: Copy {
    /// Whether there are 32 registers of 16 lanes: decides the register tiles.
    const WIDE: bool;

    /// # Safety
    /// The CPU has the instructions.
    unsafe fn splat(v: f32) -> Self;

    /// # Safety
    /// The CPU has the instructions; sixteen floats are readable at `p`.
    unsafe fn load(p: *const f32) -> Self;

    /// # Safety
    /// The CPU has the instructions; sixteen bfloat16 are readable at `p`.
    unsafe fn load_bf16(p: *const u16) -> Self;

    /// # Safety
    /// The CPU has the instructions; sixteen half floats are readable at `p`.
    unsafe fn load_f16(p: *const u16) -> Self;

    /// # Safety
    /// Sixteen floats are writable at `p`.
    unsafe fn store(self, p: *mut f32);

    /// Rounds to nearest even.
    ///
    /// # Safety
    /// Sixteen words are writable at `p`.
    unsafe fn store_bf16(self, p: *mut u16);

    /// Rounds to nearest even.
    ///
    /// # Safety
    /// Sixteen words are writable at `p`.
    unsafe fn store_f16(self, p: *mut u16);

    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;

    /// `self + a * b`.
    fn fma(self, a: Self, b: Self) -> Self;

    /// The greater of each lane; `b` where either is NaN.
    fn max(self, b: Self) -> Self;

    /// The smaller of each lane; `b` where either is NaN.
    fn min(self, b: Self) -> Self;

    /// The nearest integer, ties to even.
    fn nearest(self) -> Self;

    /// `2^self` for lanes that hold integers from -126 to 127.
    fn exp2_integer(self) -> Self;

    /// `yes` where `self < b`, else `no` (also where either is NaN).
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self;

    /// The four lane sums, each by the tree `i + (i + 8)`, `i + (i + 4)`, `i + (i + 2)`, `i + (i + 1)`.
    fn sums(v: [Self; 4]) -> [f32; 4];

    /// Asks for the cache line at `p`, which need not exist, to be brought into the second-level cache.
    fn prefetch(p: *const u8);

    /// All lanes `v`.
    #[inline(always)]
    fn like(self, v: f32) -> Self {
        // SAFETY: `self` shows that the instructions exist.
        unsafe { Self::splat(v) }
    }

    /// The lane sum, by the same tree as [`Lanes::sums`].
    #[inline(always)]
    fn sum(self) -> f32 {
        Self::sums([self; 4])[0]
    }

    /// The greatest lane; unspecified if a lane is NaN.
    #[inline(always)]
    fn greatest(self) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the array holds sixteen floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }

    /// Rounded to `dtype` and widened again.
    #[inline(always)]
    fn rounded(self, dtype: DType) -> Self {
        let mut words = [0u16; LANES];
        // SAFETY: the array holds sixteen words, and `self` shows that the instructions exist.
        unsafe {
            match dtype {
                DType::F32 => self,
                DType::Bf16 => {
                    self.store_bf16(words.as_mut_ptr());
                    Self::load_bf16(words.as_ptr())
                }
                DType::F16 => {
                    self.store_f16(words.as_mut_ptr());
                    Self::load_f16(words.as_ptr())
                }
            }
        }
    }

    /// `self` in lanes `lo..hi`, `other` elsewhere.
    #[inline(always)]
    fn within(self, lo: usize, hi: usize, other: Self) -> Self {
        const PLACES: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
        // SAFETY: the array holds sixteen floats, and `self` shows that the instructions exist.
        let place = unsafe { Self::load(PLACES.as_ptr()) };
        let below = place.select_less(self.like(hi as f32), self, other);
        place.select_less(self.like(lo as f32), other, below)
    }

    /// `e^self` with a relative error below 2e-7; 0 below -87.3, the value at 88.37 above that, NaN stays NaN.
    ///
    /// `e^x = 2^n e^r` with `n` the integer nearest to `x / ln 2`, `ln 2` in two pieces so that `r` is exact, and the
    /// series of `e^r` to the seventh power.
    #[inline(always)]
    fn exp(self) -> Self {
        const LOW: f32 = -87.3;
        let x = self.like(LOW).max(self.like(88.37).min(self));
        let n = x.mul(self.like(std::f32::consts::LOG2_E)).nearest();
        let r = x.fma(n, self.like(-0.693_359_4)).fma(n, self.like(2.121_944_4e-4));
        let mut p = self.like(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.like(c).fma(p, r);
        }
        self.select_less(self.like(LOW), self.like(0.0), p.mul(n.exp2_integer()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl Job for Exp<'_> {
        type Out = ();

        #[inline(always)]
        unsafe fn run<S: Lanes>(self) {
            for chunk in self.0.chunks_exact_mut(LANES) {
                // SAFETY: the chunk holds sixteen floats.
                unsafe { S::load(chunk.as_ptr()).exp().store(chunk.as_mut_ptr()) }
            }
        }
    }

    fn levels() -> impl Iterator<Item = Simd> {
        SimdLevel::ALL.into_iter().filter_map(|level| Simd::new(level).ok())
    }

    #[test]
    fn exp_is_accurate_to_two_ten_millionths_everywhere() {
        for simd in levels() {
            let inputs: Vec<f32> = (0..1 << 16).map(|i| -87.2 + i as f32 * (175.5 / 65536.0)).collect();
            let mut out = inputs.clone();
            simd.run(Exp(&mut out));
            for (x, y) in inputs.iter().zip(&out) {
                let exact = f64::from(*x).exp();
                let error = (f64::from(*y) - exact).abs() / exact;
                assert!(error < 2e-7, "{:?}: exp({x}) = {y}, {exact}, {error:e}", simd.level());
            }
        }
    }

    #[test]
    fn exp_of_the_extremes() {
        for simd in levels() {
            let mut v = [0.0f32; LANES];
            v[..4].copy_from_slice(&[f32::NEG_INFINITY, f32::NAN, f32::INFINITY, -200.0]);
            simd.run(Exp(&mut v));
            assert_eq!(v[0], 0.0);
            assert!(v[1].is_nan());
            assert!(v[2] > 1e38);
            assert_eq!(v[3], 0.0);
            assert_eq!(v[4], 1.0);
        }
    }

    struct Round<'a>(DType, &'a mut [f32]);

    impl Job for Round<'_> {
        type Out = ();

        #[inline(always)]
        unsafe fn run<S: Lanes>(self) {
            for chunk in self.1.chunks_exact_mut(LANES) {
                // SAFETY: the chunk holds sixteen floats.
                unsafe { S::load(chunk.as_ptr()).rounded(self.0).store(chunk.as_mut_ptr()) }
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let inputs: Vec<f32> = (0..1u32 << 18)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b1)))
            .chain([f32::INFINITY; LANES])
            .collect();
        for simd in levels() {
            let mut brain = inputs.clone();
            simd.run(Round(DType::Bf16, &mut brain));
            let mut ieee = inputs.clone();
            simd.run(Round(DType::F16, &mut ieee));
            for (i, &x) in inputs.iter().enumerate() {
                let (b, h) = (bf16::from_f32(x).to_f32(), f16::from_f32(x).to_f32());
                assert!(brain[i] == b || b.is_nan() && brain[i].is_nan(), "{x:e} {} {b}", brain[i]);
                assert!(ieee[i] == h || h.is_nan() && ieee[i].is_nan(), "{x:e} {} {h}", ieee[i]);
            }
        }
    }
}
