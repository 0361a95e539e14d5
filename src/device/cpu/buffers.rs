//! Memory of the device: aligned, zeroed by the system when first touched, and shared between tasks by ranges.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use half::bf16;

use super::simd::{Job, LANES, Lanes, Simd};
use crate::device::ops::DType;

/// Bytes of a cache line, and of the widest register.
pub(super) const LINE: usize = 64;

/// A vector that starts on a cache line and costs no memory until it is touched.
pub(super) struct Aligned<T> {
    raw: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Aligned<T> {
        let spare = LINE / size_of::<T>();
        // A zero of a primitive type: the allocator hands out untouched pages.
        let raw = vec![T::default(); len + spare];
        let start = raw.as_ptr().align_offset(LINE).min(spare);
        Aligned { raw, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.raw[self.start..self.start + self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.raw[self.start..self.start + self.len]
    }
}

/// A slice that tasks write in disjoint ranges.
#[derive(Clone, Copy)]
pub(super) struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]` whose parts are handed out one by one; whoever asks for a part promises that no two
// overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { data: data.as_mut_ptr(), len: data.len(), of: PhantomData }
    }

    /// A part.
    ///
    /// # Panics
    /// If it lies outside.
    ///
    /// # Safety
    /// No other part that lives at the same time overlaps with it.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside of the slice, and the caller promises that nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// Rows of activations, rounded to `D`: float32, and bfloat16 beside them where products are taken in it.
///
/// The stride is a multiple of 32 elements and what lies between the width and the stride is zero, so that products
/// along a row need no tail.
pub(super) struct Rows {
    width: usize,
    stride: usize,
    full: Aligned<f32>,
    half: Option<Aligned<u16>>,
}

impl Rows {
    /// `rows` rows of zeros; with a bfloat16 copy if `half`.
    pub(super) fn new(rows: usize, width: usize, half: Half) -> Rows {
        let stride = width.next_multiple_of(2 * LANES);
        let len = rows * stride;
        let half = matches!(half, Half::Beside).then(|| Aligned::zeroed(len));
        Rows { width, stride, full: Aligned::zeroed(len), half }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.full[row * self.stride..][..self.width]
    }

    /// The first `rows` rows, without what fills the stride.
    pub(super) fn to_vec(&self, rows: usize) -> Vec<f32> {
        (0..rows).flat_map(|r| self.row(r).iter().copied()).collect()
    }

    /// The first `rows` rows as the left side of a product.
    pub(super) fn input(&self, rows: usize) -> Input<'_> {
        Input {
            full: &self.full[..rows * self.stride],
            half: self.half.as_ref().map(|h| &h[..rows * self.stride]),
            rows,
            width: self.width,
            stride: self.stride,
        }
    }

    /// The first `rows` rows, to be written by tasks.
    pub(super) fn writer(&mut self, rows: usize, dtype: DType) -> RowWriter<'_> {
        let len = rows * self.stride;
        RowWriter {
            dtype,
            width: self.width,
            stride: self.stride,
            full: Disjoint::new(&mut self.full[..len]),
            half: self.half.as_mut().map(|h| Disjoint::new(&mut h[..len])),
        }
    }
}

/// Whether [`Rows`] hold a bfloat16 copy.
#[derive(Clone, Copy)]
pub(super) enum Half {
    /// They do.
    Beside,
    /// They do not.
    Absent,
}

/// The left side of a product: rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) full: &'a [f32],
    pub(super) half: Option<&'a [u16]>,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<'a> Input<'a> {
    /// Without the rows before `row`.
    pub(super) fn skip(self, row: usize) -> Input<'a> {
        let start = row * self.stride;
        Input {
            full: &self.full[start..],
            half: self.half.map(|h| &h[start..]),
            rows: self.rows - row,
            ..self
        }
    }
}

/// Writes pieces of rows from several tasks.
#[derive(Clone, Copy)]
pub(super) struct RowWriter<'a> {
    dtype: DType,
    width: usize,
    stride: usize,
    full: Disjoint<'a, f32>,
    half: Option<Disjoint<'a, u16>>,
}

impl<'a> RowWriter<'a> {
    /// A piece of a row, as it stands.
    ///
    /// # Panics
    /// If it lies outside.
    ///
    /// # Safety
    /// No other piece that lives at the same time overlaps with it.
    pub(super) unsafe fn piece(&self, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        assert!(columns.end <= self.width, "columns {columns:?} of {}", self.width);
        let start = row * self.stride;
        // SAFETY: the caller's promise.
        unsafe { self.full.part(start + columns.start..start + columns.end) }
    }

    /// Lets `fill` write columns of a row, then rounds them to `D`.
    ///
    /// # Panics
    /// If they lie outside.
    ///
    /// # Safety
    /// Nobody else uses these columns of the row at the same time.
    pub(super) unsafe fn fill(
        &self,
        simd: Simd,
        row: usize,
        columns: Range<usize>,
        fill: impl FnOnce(&mut [f32]),
    ) {
        // SAFETY: the caller's promise.
        let full = unsafe { self.piece(row, columns.clone()) };
        fill(full);
        round(simd, self.dtype, full);
        if let Some(half) = &self.half {
            let start = row * self.stride;
            // SAFETY: the caller's promise.
            let half = unsafe { half.part(start + columns.start..start + columns.end) };
            // The values are bfloat16 already, so that cutting is exact.
            for (h, v) in half.iter_mut().zip(&*full) {
                *h = (v.to_bits() >> 16) as u16;
            }
        }
    }

    /// Writes values, rounded to `D`, into a row from `column` on.
    ///
    /// # Panics
    /// If they do not fit.
    ///
    /// # Safety
    /// Nobody else uses these columns of the row at the same time.
    pub(super) unsafe fn put(&self, simd: Simd, row: usize, column: usize, values: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.fill(simd, row, column..column + values.len(), |to| to.copy_from_slice(values)) };
    }
}

/// Rounds values to `dtype` in place.
pub(super) fn round(simd: Simd, dtype: DType, values: &mut [f32]) {
    if dtype != DType::F32 {
        simd.run(Rounding { dtype, values });
    }
}

struct Rounding<'a> {
    dtype: DType,
    values: &'a mut [f32],
}

impl Job for Rounding<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let mut chunks = self.values.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            // SAFETY: the chunk holds sixteen floats; the caller's promise for the instructions.
            unsafe { S::load(chunk.as_ptr()).rounded(self.dtype).store(chunk.as_mut_ptr()) };
        }
        for v in chunks.into_remainder() {
            *v = match self.dtype {
                DType::F32 => *v,
                DType::Bf16 => bf16::from_f32(*v).to_f32(),
                DType::F16 => half::f16::from_f32(*v).to_f32(),
            };
        }
    }
}
