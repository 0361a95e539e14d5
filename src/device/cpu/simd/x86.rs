//! The x86-64 levels.

use std::arch::x86_64::*;

use half::bf16;

use super::{Dot, Job, LANES, Lanes, ProductJob, Weight};

/// Calls an intrinsic.
macro_rules! hw {
    ($call:expr) => {
        // SAFETY: a value of the level's type, or where none exists yet the caller's promise, shows that the CPU has the
        // instruction; pointers are the caller's promise.
        unsafe { $call }
    };
}

/// # Safety
/// The CPU has the features named.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<J: Job>(job: J) -> J::Out {
    // SAFETY: the caller's promise.
    unsafe { job.run::<Avx2>() }
}

/// # Safety
/// The CPU has the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<J: Job>(job: J) -> J::Out {
    // SAFETY: the caller's promise.
    unsafe { job.run::<Avx512>() }
}

/// # Safety
/// The CPU has the features named.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_bf16_pairs<J: ProductJob>(job: J) {
    // SAFETY: the caller's promise.
    unsafe { job.run::<Bf16Pairs, bf16>() }
}

/// Thirty-two bfloat16 to a step: each lane adds the products of two neighbours.
pub(super) struct Bf16Pairs;

impl Dot for Bf16Pairs {
    type X = u16;
    type Operand = __m512i;
    type Acc = Avx512;
    const STEP: usize = 2 * LANES;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> __m512i {
        hw!(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    unsafe fn store(v: __m512i, p: *mut u16) {
        hw!(_mm512_storeu_si512(p.cast(), v))
    }

    #[inline(always)]
    fn multiply_add(acc: Avx512, x: __m512i, w: __m512i) -> Avx512 {
        // SAFETY: both types are 64 bytes of any bits; `acc` exists only beside the instructions of `run_bf16_pairs`.
        Avx512(unsafe {
            let (x, w) =
                (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w));
            _mm512_dpbf16_ps(acc.0, x, w)
        })
    }
}

impl Weight<Bf16Pairs> for bf16 {
    #[inline(always)]
    unsafe fn operand(p: *const bf16) -> __m512i {
        hw!(_mm512_loadu_si512(p.cast()))
    }
}

/// One register of sixteen.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Avx512(hw!(_mm512_set1_ps(v)))
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Avx512(hw!(_mm512_loadu_ps(p)))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Avx512(hw!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            p.cast()
        ))))))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Avx512(hw!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        hw!(_mm512_storeu_ps(p, self.0))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // Integer rounding, not vcvtneps2bf16: that one flushes denormals.
        hw!({
            let bits = _mm512_castps_si512(self.0);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let words = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(up), nan, quiet);
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(words))
        })
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        hw!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)))
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Avx512(hw!(_mm512_add_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Avx512(hw!(_mm512_sub_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Avx512(hw!(_mm512_mul_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Avx512(hw!(_mm512_div_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Avx512(hw!(_mm512_fmadd_ps(a.0, b.0, self.0)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Avx512(hw!(_mm512_max_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        Avx512(hw!(_mm512_min_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        Avx512(hw!(_mm512_roundscale_ps::<0>(self.0)))
    }

    #[inline(always)]
    fn exp2_integer(self) -> Self {
        Avx512(hw!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            _mm512_cvtps_epi32(self.0),
            _mm512_set1_epi32(127)
        )))))
    }

    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        Avx512(hw!(_mm512_mask_mov_ps(no.0, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0), yes.0)))
    }

    #[inline(always)]
    fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        // Four trees at once: each step adds halves of two or four registers and leaves one.
        hw!({
            let ab =
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a.0, b.0), _mm512_shuffle_f32x4::<0xee>(a.0, b.0));
            let cd =
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c.0, d.0), _mm512_shuffle_f32x4::<0xee>(c.0, d.0));
            let q = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let q = _mm512_add_ps(q, _mm512_permute_ps::<0x4e>(q));
            let q = _mm512_add_ps(q, _mm512_permute_ps::<0xb1>(q));
            let mut out = [0.0f32; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, q)));
            out
        })
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        hw!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
}

/// Two registers of eight.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        let v = hw!(_mm256_set1_ps(v));
        Avx2(v, v)
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        hw!(Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))))
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        hw!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        hw!(Avx2(
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))
        ))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        hw!({
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1)
        })
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        for (v, at) in [(self.0, 0), (self.1, 8)] {
            hw!({
                let bits = _mm256_castps_si256(v);
                let high = _mm256_srli_epi32::<16>(bits);
                let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
                let words = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(up), quiet, nan);
                let packed = _mm256_permute4x64_epi64::<0x08>(_mm256_packus_epi32(words, words));
                _mm_storeu_si128(p.add(at).cast(), _mm256_castsi256_si128(packed))
            })
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        hw!({
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1))
        })
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        hw!(Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        hw!(Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        hw!(Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        hw!(Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        hw!(Avx2(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        hw!(Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        hw!(Avx2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)))
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        hw!(Avx2(
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.1)
        ))
    }

    #[inline(always)]
    fn exp2_integer(self) -> Self {
        hw!({
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.0), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(self.1), bias));
            Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        })
    }

    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        hw!(Avx2(
            _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, b.0)),
            _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, b.1))
        ))
    }

    #[inline(always)]
    fn sums(v: [Self; 4]) -> [f32; 4] {
        // No closure: it would not have the level's features.
        let mut out = [0.0f32; 4];
        for (o, Avx2(low, high)) in out.iter_mut().zip(v) {
            *o = hw!({
                let eight = _mm256_add_ps(low, high);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            });
        }
        out
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        hw!(_mm_prefetch::<_MM_HINT_T1>(p.cast()))
    }
}
