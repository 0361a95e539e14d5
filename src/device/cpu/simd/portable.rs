//! Sixteen lanes in plain Rust: whatever vectors the compiler's baseline has.
//!
//! Multiply and add are not fused here: without the instruction a fused one is a library call.

use half::{bf16, f16};

use super::{LANES, Lanes};

/// Sixteen floats.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

#[inline(always)]
fn zip(a: Portable, b: Portable, f: impl Fn(f32, f32) -> f32) -> Portable {
    let mut out = a;
    for (o, v) in out.0.iter_mut().zip(b.0) {
        *o = f(*o, v);
    }
    out
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Portable([v; LANES])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise; an array of floats has no further alignment.
        Portable(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let words = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Portable(words.map(|w| f32::from_bits(u32::from(w) << 16)))
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller's promise.
        let words = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Portable(words.map(|w| f16::from_bits(w).to_f32()))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let words = self.0.map(|v| bf16::from_f32(v).to_bits());
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(words) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        let words = self.0.map(|v| f16::from_f32(v).to_bits());
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(words) }
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        zip(self, b, |x, y| x + y)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        zip(self, b, |x, y| x - y)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        zip(self, b, |x, y| x * y)
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        zip(self, b, |x, y| x / y)
    }

    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        self.add(a.mul(b))
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        zip(self, b, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        zip(self, b, |x, y| if x < y { x } else { y })
    }

    #[inline(always)]
    fn nearest(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits for the fraction; lanes are far smaller than that.
        const SHIFT: f32 = 12_582_912.0;
        zip(self, self, |x, _| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn exp2_integer(self) -> Self {
        zip(self, self, |x, _| f32::from_bits((((x as i32) + 127) as u32) << 23))
    }

    #[inline(always)]
    fn select_less(self, b: Self, yes: Self, no: Self) -> Self {
        let mut out = no;
        for i in 0..LANES {
            if self.0[i] < b.0[i] {
                out.0[i] = yes.0[i];
            }
        }
        out
    }

    #[inline(always)]
    fn sums(v: [Self; 4]) -> [f32; 4] {
        v.map(|Portable(mut lanes)| {
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    lanes[i] += lanes[i + half];
                }
            }
            lanes[0]
        })
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}
}
