//! Products with weights: `y [m, n] = x [m, k] W^T`, `W [n, k]` row-major in the type it is stored in.
//!
//! Every output is one dot product: sixteen running sums over `k` in order, then one tree. The order depends on `k` alone, so a
//! row has the same bits alone, in a batch and in any chunking. Two ways lead through the same sums:
//!
//! - up to eight rows (decoding): bound by memory. `W` is streamed once, six or eight rows in flight, converted in registers,
//!   the rows after them prefetched.
//! - more rows: bound by arithmetic. Six rows of `W` at a time meet the rows of `x` four by four: 24 running sums in registers,
//!   ten loads per 24 products. The first pass converts the weights and leaves them in a panel that stays in the first cache,
//!   interleaved so that the other passes read it front to back. Long rows are cut at [`CHUNK`] steps, and the running
//!   sums wait in memory.

use std::ops::Range;

use super::buffers::{Aligned, Disjoint, Input, LINE};
use super::pool::Pool;
use super::simd::{Dot, LANES, Lanes, ProductJob, Simd, Weight, each};
use crate::device::ops::{DType, Tensor};

/// Rows of `x` that stream the weights without a panel.
const DIRECT: usize = 8;
/// Outputs of a task with panels.
const COLUMNS: usize = 48;
/// Rows of `x` up to which a task takes more outputs, because its first panel has to wait for memory.
const NARROW: usize = 64;
/// Most outputs of a task of so few rows.
const DIRECT_COLUMNS: usize = 384;
/// Most weight rows of a task: a gated task has two per output.
const TASK_ROWS: usize = 2 * DIRECT_COLUMNS;
/// Steps of `k` between two stores of the running sums: a panel's part of 24 KiB.
const CHUNK: usize = 64;
/// Most rows of `x` in a task, and the bytes they should not exceed: half of a second-level cache.
const BLOCK: usize = 256;
const BLOCK_BYTES: usize = 1 << 20;
/// Widest panel.
const PANEL: usize = 8;
/// Products below which a fork costs more than it gains.
const SMALL: usize = 1 << 16;

/// Receives results: row, first output, values. In a gated product the values are the gates of the outputs, then their ups.
pub(super) type Sink<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// Which rows of a weight matrix, that is, which columns of the result.
#[derive(Clone, Debug)]
pub enum Columns<'a> {
    /// Contiguous rows.
    Range(Range<usize>),
    /// Rows one by one.
    List(&'a [u32]),
}

/// The right side of a product.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    dtype: DType,
    k: usize,
    outputs: usize,
    pick: Pick<'a>,
}

#[derive(Clone, Copy)]
enum Pick<'a> {
    Stacked([&'a [u8]; 3]),
    Gated([&'a [u8]; 2]),
    List(&'a [u8], &'a [u32]),
}

impl<'a> Matrix<'a> {
    /// Matrices of one type and width, one below the other.
    ///
    /// # Panics
    /// If types or widths differ, or there are more than three.
    pub(super) fn stacked(parts: &[&'a Tensor]) -> Matrix<'a> {
        let (dtype, k) = (parts[0].dtype(), parts[0].shape()[1]);
        let mut bytes: [&[u8]; 3] = [&[]; 3];
        for (slot, part) in bytes.iter_mut().zip(parts) {
            assert_eq!((part.dtype(), part.shape()[1]), (dtype, k), "parts of one product");
            *slot = part.bytes();
        }
        assert!(parts.len() <= 3, "{} parts of a product, at most 3", parts.len());
        let outputs = parts.iter().map(|p| p.shape()[0]).sum();
        Matrix { dtype, k, outputs, pick: Pick::Stacked(bytes) }
    }

    /// Two matrices of one type and shape whose results are wanted side by side.
    ///
    /// # Panics
    /// If types or shapes differ.
    pub(super) fn gated(gate: &'a Tensor, up: &'a Tensor) -> Matrix<'a> {
        assert_eq!((gate.dtype(), gate.shape()), (up.dtype(), up.shape()), "gate and up");
        let pick = Pick::Gated([gate.bytes(), up.bytes()]);
        Matrix { dtype: gate.dtype(), k: gate.shape()[1], outputs: gate.shape()[0], pick }
    }

    /// Some rows of a matrix.
    ///
    /// # Panics
    /// If one lies outside.
    pub(super) fn columns(w: &'a Tensor, columns: Columns<'a>) -> Matrix<'a> {
        let (dtype, rows, k) = (w.dtype(), w.shape()[0], w.shape()[1]);
        match columns {
            Columns::Range(range) => {
                let bytes = &w.bytes()[range.start * k * dtype.size()..range.end * k * dtype.size()];
                Matrix { dtype, k, outputs: range.len(), pick: Pick::Stacked([bytes, &[], &[]]) }
            }
            Columns::List(list) => {
                assert!(
                    list.iter().all(|&c| (c as usize) < rows),
                    "a column of the list is not below {rows}"
                );
                Matrix { dtype, k, outputs: list.len(), pick: Pick::List(w.bytes(), list) }
            }
        }
    }

    fn row_bytes(&self) -> usize {
        self.k * self.dtype.size()
    }

    /// Puts the rows of the outputs into `out` and returns their number.
    fn rows(&self, outputs: Range<usize>, out: &mut [*const u8; TASK_ROWS]) -> usize {
        let size = self.row_bytes();
        let row = |bytes: &[u8], i: usize| bytes[i * size..(i + 1) * size].as_ptr();
        let n = outputs.len();
        match self.pick {
            Pick::Stacked(parts) => {
                for (slot, output) in out.iter_mut().zip(outputs) {
                    let (mut part, mut i) = (0, output);
                    while i >= parts[part].len() / size {
                        i -= parts[part].len() / size;
                        part += 1;
                    }
                    *slot = row(parts[part], i);
                }
                n
            }
            Pick::Gated([gate, up]) => {
                for (at, output) in outputs.enumerate() {
                    out[at] = row(gate, output);
                    out[n + at] = row(up, output);
                }
                2 * n
            }
            Pick::List(bytes, list) => {
                for (slot, &i) in out.iter_mut().zip(&list[outputs]) {
                    *slot = row(bytes, i as usize);
                }
                n
            }
        }
    }
}

/// Threads, instructions and scratch: what products and attention run on.
pub(super) struct Compute {
    pub(super) simd: Simd,
    pub(super) pool: Pool,
    scratch: Aligned<f32>,
    per_thread: usize,
}

impl Compute {
    /// For products over rows of at most `k` elements, and tasks of others that need `extra` floats of scratch.
    pub(super) fn new(simd: Simd, pool: Pool, k: usize, extra: usize) -> Compute {
        let per_thread = Scratch::floats(k).max(extra).next_multiple_of(LANES);
        let scratch = Aligned::zeroed(per_thread * pool.threads());
        Compute { simd, pool, scratch, per_thread }
    }

    /// The parts that a job of other operations needs: pool, and scratch with its size per thread.
    pub(super) fn parts(&mut self) -> (&mut Pool, Disjoint<'_, f32>, usize) {
        (&mut self.pool, Disjoint::new(&mut self.scratch), self.per_thread)
    }

    /// `x W^T`, handed to `sink` piece by piece; no two calls of it overlap in their outputs.
    ///
    /// # Panics
    /// If the widths differ, or exceed that given to [`Compute::new`].
    pub(super) fn product(&mut self, x: Input<'_>, w: &Matrix<'_>, sink: &Sink<'_>) {
        assert_eq!(x.width, w.k, "width of rows and of weights");
        assert!(Scratch::floats(w.k) <= self.per_thread, "rows of {} are wider than the scratch", w.k);
        if x.rows == 0 || w.outputs == 0 {
            return;
        }
        let split = Split::of(x, w, self.pool.threads());
        let (simd, per_thread) = (self.simd, self.per_thread);
        let scratch = Disjoint::new(&mut self.scratch);
        let task = |thread: usize, i: usize| {
            // SAFETY: no two calls run on one thread at once.
            let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
            let (rows, outputs) = split.task(i);
            let mut weights = [std::ptr::null(); TASK_ROWS];
            let count = w.rows(outputs.clone(), &mut weights);
            let scratch = Scratch::of(scratch, w.k);
            let tile: *mut f32 = scratch.tile.as_mut_ptr();
            let len = scratch.tile.len();
            assert!(rows.len() * count <= len, "{} results of a task, room for {len}", rows.len() * count);
            let block = Block { x, rows: rows.clone(), weights: &weights[..count], k: w.k, scratch };
            simd.run_product(w.dtype, x.half.is_some(), block);
            for (at, row) in rows.enumerate() {
                // SAFETY: the block is done with the tile, whose length was checked; the pieces are taken one after the other.
                let values = unsafe { std::slice::from_raw_parts_mut(tile.add(at * count), count) };
                sink(row, outputs.start, values);
            }
        };
        if x.rows * w.outputs * w.k < SMALL {
            (0..split.tasks()).for_each(|i| task(0, i));
        } else {
            self.pool.run(split.tasks(), &task);
        }
    }

    /// `out [rows, columns] = x W^T` over some rows of `w`.
    ///
    /// # Panics
    /// As [`Compute::product`], or if `out` has another size.
    pub(super) fn matmul(&mut self, x: Input<'_>, w: &Tensor, columns: Columns<'_>, out: &mut [f32]) {
        let w = Matrix::columns(w, columns);
        assert_eq!(out.len(), x.rows * w.outputs, "results of a product");
        let (n, out) = (w.outputs, Disjoint::new(out));
        self.product(x, &w, &|row, column, values| {
            let start = row * n + column;
            // SAFETY: the calls do not overlap.
            unsafe { out.part(start..start + values.len()) }.copy_from_slice(values);
        });
    }
}

/// How a product is cut into tasks. No result depends on it.
struct Split {
    rows: usize,
    outputs: usize,
    block: usize,
    tile: usize,
}

impl Split {
    fn of(x: Input<'_>, w: &Matrix<'_>, threads: usize) -> Split {
        let (rows, outputs) = (x.rows, w.outputs);
        if rows <= DIRECT {
            let share = (outputs / (4 * threads)).next_multiple_of(24);
            return Split { rows, outputs, block: DIRECT, tile: share.clamp(24, DIRECT_COLUMNS) };
        }
        if rows <= NARROW {
            let share = (outputs / (4 * threads)).next_multiple_of(24);
            return Split { rows, outputs, block: NARROW, tile: share.clamp(24, DIRECT_COLUMNS) };
        }
        let block = (BLOCK_BYTES / (4 * w.k)).clamp(32, BLOCK) / DIRECT * DIRECT;
        // Equal blocks rather than a small last one.
        let block = rows.div_ceil(rows.div_ceil(block)).next_multiple_of(DIRECT);
        let tiles = outputs.div_ceil(COLUMNS) * rows.div_ceil(block);
        let tile = if tiles < 4 * threads { COLUMNS / 2 } else { COLUMNS };
        Split { rows, outputs, block, tile }
    }

    fn tiles(&self) -> usize {
        self.outputs.div_ceil(self.tile)
    }

    fn tasks(&self) -> usize {
        self.tiles() * self.rows.div_ceil(self.block)
    }

    fn task(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let (row, output) = (i / self.tiles() * self.block, i % self.tiles() * self.tile);
        (row..(row + self.block).min(self.rows), output..(output + self.tile).min(self.outputs))
    }
}

struct Scratch<'a> {
    panel: &'a mut [f32],
    sums: &'a mut [f32],
    tile: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    const SUMS: usize = (BLOCK + 1) * PANEL * LANES;
    const TILE: usize = BLOCK * 2 * COLUMNS;

    fn floats(k: usize) -> usize {
        PANEL * k.next_multiple_of(2 * LANES) + Self::SUMS + Self::TILE
    }

    fn of(floats: &'a mut [f32], k: usize) -> Scratch<'a> {
        let (panel, rest) = floats.split_at_mut(PANEL * k.next_multiple_of(2 * LANES));
        let (sums, tile) = rest.split_at_mut(Self::SUMS);
        Scratch { panel, sums, tile: &mut tile[..Self::TILE] }
    }
}

/// One task: some rows of `x` against some rows of the weights, results into the tile `[rows, weights]`.
struct Block<'a> {
    x: Input<'a>,
    rows: Range<usize>,
    weights: &'a [*const u8],
    k: usize,
    scratch: Scratch<'a>,
}

impl ProductJob for Block<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot, T: Weight<D>>(mut self) {
        // SAFETY: the caller's promise; `x` is that of the arithmetic: two-byte elements are the bfloat16 copy.
        unsafe {
            let x: *const D::X = match self.x.half {
                Some(half) if size_of::<D::X>() == 2 => half.as_ptr().cast(),
                _ => self.x.full.as_ptr().cast(),
            };
            let x = x.add(self.rows.start * self.x.stride);
            match (D::Acc::WIDE, self.rows.len()) {
                (true, 1) => self.panels::<D, T, 2>(x),
                (true, _) => self.panels::<D, T, 6>(x),
                (false, 1) => self.panels::<D, T, 4>(x),
                (false, _) => self.panels::<D, T, 3>(x),
            }
        }
    }
}

impl Block<'_> {
    /// The weight rows of panel `j`, the last one repeated where there are no more.
    #[inline(always)]
    fn panel<T, const N: usize>(&self, j: usize) -> [*const T; N] {
        let last = self.weights.len() - 1;
        let mut rows = [std::ptr::null(); N];
        for (at, row) in rows.iter_mut().enumerate() {
            *row = self.weights[(j + at).min(last)].cast();
        }
        rows
    }

    /// What follows panel `j` in memory, if the panel is one piece of it.
    #[inline(always)]
    fn ahead<const N: usize>(&self, j: usize, row_bytes: usize) -> Option<*const u8> {
        let rows = self.panel::<u8, N>(j);
        let whole = rows[N - 1] == rows[0].wrapping_add((N - 1) * row_bytes);
        whole.then(|| rows[0].wrapping_add(N * row_bytes))
    }

    #[inline(always)]
    unsafe fn panels<D: Dot, T: Weight<D>, const N: usize>(&mut self, x: *const D::X) {
        let at_once = if D::Acc::WIDE { 4 } else { 2 };
        let steps = self.k.div_ceil(D::STEP);
        let direct = self.rows.len() <= DIRECT;
        let panel: *mut D::X = self.scratch.panel.as_mut_ptr().cast();
        for j in (0..self.weights.len()).step_by(N) {
            let ahead = self.ahead::<N>(j, self.k * size_of::<T>());
            // SAFETY: the rows have `k` elements.
            let stored = unsafe { Stored::<D, T, N>::new(self.panel::<T, N>(j), self.k) };
            for first in (0..steps).step_by(if direct { steps } else { CHUNK }) {
                let chunk = first..(first + CHUNK).min(steps);
                let chunk = if direct { 0..steps } else { chunk };
                for r in (0..self.rows.len()).step_by(at_once) {
                    let place = Place { row: r, column: j, ahead, width: size_of::<T>() };
                    // SAFETY: `x` has the block's rows; the panel has room for `N` rows, and the first pass fills it.
                    unsafe {
                        let x = x.add(r * self.x.stride);
                        match (direct, r) {
                            (true, _) => self.pass::<D, _, N>(x, &stored, chunk.clone(), place),
                            (_, 0) => self.pass::<D, _, N>(x, &Packing(&stored, panel), chunk.clone(), place),
                            _ => self.pass::<D, _, N>(x, &Packed(panel), chunk.clone(), place),
                        }
                    }
                }
            }
        }
    }

    /// Up to four rows of `x`, two where registers are few, against a part of a panel.
    #[inline(always)]
    unsafe fn pass<D: Dot, W: Source<D, N>, const N: usize>(
        &mut self,
        x: *const D::X,
        w: &W,
        steps: Range<usize>,
        place: Place,
    ) {
        let left = self.rows.len() - place.row;
        // SAFETY: the caller's promise.
        unsafe {
            match (D::Acc::WIDE, left) {
                (_, 1) => self.sweep::<D, W, 1, N>(x, w, steps, place),
                (false, _) | (_, 2) => self.sweep::<D, W, 2, N>(x, w, steps, place),
                (_, 3) => self.sweep::<D, W, 3, N>(x, w, steps, place),
                _ => self.sweep::<D, W, 4, N>(x, w, steps, place),
            }
        }
    }

    /// `M` rows of `x` against a part of a panel.
    #[inline(always)]
    unsafe fn sweep<D: Dot, W: Source<D, N>, const M: usize, const N: usize>(
        &mut self,
        x: *const D::X,
        w: &W,
        steps: Range<usize>,
        place: Place,
    ) {
        let start = place.row * N * LANES;
        let kept = self.scratch.sums[start..start + M * N * LANES].as_mut_ptr();
        let (stride, last) = (self.x.stride, steps.end == self.k.div_ceil(D::STEP));
        // The passes over a panel share in fetching the next one, each a piece front to back: prefetchers follow a line, not six.
        let (pass, passes) = (place.row / M, self.rows.len().div_ceil(M));
        let bytes = N * D::STEP * place.width;
        let mut ahead =
            place.ahead.map(|a| a.wrapping_add((steps.start + pass * (steps.len() / passes)) * bytes));
        let mut fetch = steps.start + pass % passes;
        // SAFETY: the caller's promise; `kept` holds `M * N` registers; the rows of `x` are zero from `k` to the stride.
        unsafe {
            let mut sums = [[D::Acc::splat(0.0); N]; M];
            if steps.start > 0 {
                each!(i < M => {
                    each!(j < N => { sums[i][j] = D::Acc::load(kept.add((i * N + j) * LANES)); });
                });
            }
            for step in steps {
                if step == fetch
                    && let Some(from) = ahead
                {
                    fetch += passes;
                    ahead = Some(from.wrapping_add(bytes));
                    each!(line < N => {
                        if line * LINE < bytes {
                            D::Acc::prefetch(from.wrapping_add(line * LINE));
                        }
                    });
                }
                let w = w.operands(step);
                let x = x.add(step * D::STEP);
                each!(i < M => {
                    let x = D::load(x.add(i * stride));
                    each!(j < N => { sums[i][j] = D::multiply_add(sums[i][j], x, w[j]); });
                });
            }
            each!(i < M => {
                each!(j < N => { sums[i][j].store(kept.add((i * N + j) * LANES)); });
            });
        }
        if last {
            self.finish::<D::Acc, M, N>(start, place.row, place.column);
        }
    }

    /// Takes the trees of the running sums at `start` and writes the results of the outputs that exist.
    #[inline(always)]
    fn finish<A: Lanes, const M: usize, const N: usize>(&mut self, start: usize, row: usize, column: usize) {
        let count = self.weights.len();
        let tile = &mut self.scratch.tile[row * count..(row + M) * count];
        // Four trees at a time; the scratch has room to read a few registers further.
        let kept = &self.scratch.sums[start..start + (M * N).next_multiple_of(4) * LANES];
        for first in (0..M * N).step_by(4) {
            let at = kept[first * LANES..(first + 4) * LANES].as_ptr();
            // SAFETY: four registers; a block runs only where the instructions exist.
            let four = unsafe {
                A::sums([
                    A::load(at),
                    A::load(at.add(LANES)),
                    A::load(at.add(2 * LANES)),
                    A::load(at.add(3 * LANES)),
                ])
            };
            for (i, &value) in four.iter().enumerate().take(M * N - first) {
                let (i, j) = ((first + i) / N, column + (first + i) % N);
                if j < count {
                    tile[i * count + j] = value;
                }
            }
        }
    }
}

/// Where a pass stands, and what to fetch meanwhile.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    column: usize,
    ahead: Option<*const u8>,
    /// Bytes of a weight.
    width: usize,
}

/// Where the weights of a panel come from.
trait Source<D: Dot, const N: usize> {
    /// One step of `k` of all rows.
    ///
    /// # Safety
    /// The CPU has the instructions of `D`, the rows are alive, and `step` is one of the panel's.
    unsafe fn operands(&self, step: usize) -> [D::Operand; N];
}

/// From the matrix itself, converted on the way.
struct Stored<D, T, const N: usize> {
    rows: [*const T; N],
    /// Steps that lie within a row, and the elements after them, filled up with zeros.
    whole: usize,
    tail: [[T; 2 * LANES]; N],
    of: std::marker::PhantomData<D>,
}

impl<D: Dot, T: Weight<D>, const N: usize> Stored<D, T, N> {
    /// # Safety
    /// The rows have `k` elements and outlive this.
    #[inline(always)]
    unsafe fn new(rows: [*const T; N], k: usize) -> Self {
        let (whole, left) = (k / D::STEP, k % D::STEP);
        let mut tail = [[T::default(); 2 * LANES]; N];
        for (to, row) in tail.iter_mut().zip(rows) {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(row.add(whole * D::STEP), to.as_mut_ptr(), left) };
        }
        Stored { rows, whole, tail, of: std::marker::PhantomData }
    }
}

impl<D: Dot, T: Weight<D>, const N: usize> Source<D, N> for Stored<D, T, N> {
    #[inline(always)]
    unsafe fn operands(&self, step: usize) -> [D::Operand; N] {
        // SAFETY: the caller's promise; the tail holds a whole step.
        unsafe {
            if step == self.whole {
                let mut w = [T::operand(self.tail[0].as_ptr()); N];
                each!(j < N => { w[j] = T::operand(self.tail[j].as_ptr()); });
                return w;
            }
            let at = step * D::STEP;
            let mut w = [T::operand(self.rows[0].add(at)); N];
            each!(j < N => { w[j] = T::operand(self.rows[j].add(at)); });
            w
        }
    }
}

/// From the matrix, and into the panel `[step, N, STEP]` for the passes that follow.
struct Packing<'a, D: Dot, T, const N: usize>(&'a Stored<D, T, N>, *mut D::X);

impl<D: Dot, T: Weight<D>, const N: usize> Source<D, N> for Packing<'_, D, T, N> {
    #[inline(always)]
    unsafe fn operands(&self, step: usize) -> [D::Operand; N] {
        // SAFETY: the caller's promise; the panel has room for all steps.
        unsafe {
            let w = self.0.operands(step);
            let to = self.1.add(step * N * D::STEP);
            each!(j < N => { D::store(w[j], to.add(j * D::STEP)); });
            w
        }
    }
}

/// From the panel.
struct Packed<X>(*const X);

impl<D: Dot, const N: usize> Source<D, N> for Packed<D::X> {
    #[inline(always)]
    unsafe fn operands(&self, step: usize) -> [D::Operand; N] {
        // SAFETY: the caller's promise; the first pass filled the panel.
        unsafe {
            let from = self.0.add(step * N * D::STEP);
            let mut w = [D::load(from); N];
            each!(j < N => { w[j] = D::load(from.add(j * D::STEP)); });
            w
        }
    }
}
