//! What happens to one row between products: norms, rotary embedding, the gated activation.
//!
//! `rms(x) = x / sqrt(mean(x^2) + eps)`: squares are summed in sixteen lanes in order, then by the lanes' tree.

use super::simd::{Job, LANES, Lanes};

/// `out = rms(x) * weight`, before rounding.
pub(super) struct Rms<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Job for Rms<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: the caller's promise.
        let factor = unsafe { rms_factor::<S>(self.x, self.eps) };
        for ((o, x), w) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *o = x * factor * w;
        }
    }
}

#[inline(always)]
unsafe fn rms_factor<S: Lanes>(x: &[f32], eps: f32) -> f32 {
    let mut chunks = x.chunks_exact(LANES);
    // SAFETY: the caller's promise for the instructions; chunks and the array hold sixteen floats.
    let sum = unsafe {
        let mut sum = S::splat(0.0);
        for chunk in &mut chunks {
            let v = S::load(chunk.as_ptr());
            sum = sum.fma(v, v);
        }
        let mut tail = [0.0f32; LANES];
        tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        let v = S::load(tail.as_ptr());
        sum.fma(v, v).sum()
    };
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// A head of `q` or `k`, in place: norm over the head if there is one, then the rotation of the pairs `(i, i + half)`.
pub(super) struct Head<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) norm: Option<&'a [f32]>,
    pub(super) eps: f32,
    /// `[half]` cosines of the row's angles.
    pub(super) cos: &'a [f32],
    /// `[half]` sines of the row's angles.
    pub(super) sin: &'a [f32],
}

impl Job for Head<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        if let Some(norm) = self.norm {
            // SAFETY: the caller's promise.
            let factor = unsafe { rms_factor::<S>(self.values, self.eps) };
            for (v, w) in self.values.iter_mut().zip(norm) {
                *v = *v * factor * w;
            }
        }
        let (low, high) = self.values.split_at_mut(self.cos.len());
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(self.cos).zip(self.sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// `gate = silu(gate) * up`, in place; `silu(g) = g / (1 + e^-g)`.
pub(super) struct Gate<'a> {
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a [f32],
}

impl Job for Gate<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let mut gates = self.gate.chunks_exact_mut(LANES);
        let mut ups = self.up.chunks_exact(LANES);
        // SAFETY: the caller's promise for the instructions; chunks and arrays hold sixteen floats.
        unsafe {
            for (gate, up) in (&mut gates).zip(&mut ups) {
                gated(S::load(gate.as_ptr()), S::load(up.as_ptr())).store(gate.as_mut_ptr());
            }
            let (gate, up) = (gates.into_remainder(), ups.remainder());
            let mut tails = [[0.0f32; LANES]; 2];
            tails[0][..gate.len()].copy_from_slice(gate);
            tails[1][..gate.len()].copy_from_slice(up);
            gated(S::load(tails[0].as_ptr()), S::load(tails[1].as_ptr())).store(tails[0].as_mut_ptr());
            gate.copy_from_slice(&tails[0][..gate.len()]);
        }
    }
}

#[inline(always)]
fn gated<S: Lanes>(gate: S, up: S) -> S {
    let one = gate.like(1.0);
    gate.div(one.add(gate.like(0.0).sub(gate).exp())).mul(up)
}

/// `x += values (+ bias)`, before rounding.
pub(super) fn residual(x: &mut [f32], values: &[f32], bias: Option<&[f32]>) {
    match bias {
        None => x.iter_mut().zip(values).for_each(|(x, v)| *x += v),
        Some(bias) => x.iter_mut().zip(values).zip(bias).for_each(|((x, v), b)| *x += v + b),
    }
}
