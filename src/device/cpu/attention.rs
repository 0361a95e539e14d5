//! Attention over the paged cache: `softmax(q k^T / sqrt(head_dim)) v`, grouped query heads, ragged segments, windows, beams.
//!
//! Keys are met in chunks of 64 that start at multiples of 64 positions, in order, with a running maximum and sum per row and head.
//! What lies outside of a row's keys is replaced before it counts, so a row's bits depend on its own keys alone: not on the rows
//! beside it, nor on how its prompt was cut. A task is one key/value head of up to [`TILE`] query heads' rows of one segment; it brings a chunk
//! into float32 once for all of them. The beams of a search are rows like others over the shared context; the few keys of a beam's
//! own ancestors are gathered and form chunks of their own after it.

use std::ops::Range;

use half::{bf16, f16};

use super::buffers::{RowWriter, Rows};
use super::cache::{Arena, Cache, CacheShape};
use super::matmul::Compute;
use super::simd::{Job, LANES, Lanes, Simd, Stored, each};
use crate::device::ops::DType;
use crate::kv::BLOCK_TOKENS;

/// Rows times query heads per key/value head that share a chunk.
pub(super) const TILE: usize = 64;
/// Keys of a chunk.
const CHUNK: usize = 64;
/// Rows for which converting keys and values in registers is cheaper than bringing them into float32 first.
const FEW: usize = 8;
/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK_TOKENS;

/// Rows of one segment that share their chunks.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    /// Rows of the plan.
    pub(super) rows: Range<usize>,
    /// Blocks of the context, a range of the plan's.
    pub(super) table: Range<usize>,
    /// Position of the first row.
    pub(super) position: usize,
    pub(super) kind: TileKind,
}

#[derive(Clone, Debug)]
pub(super) enum TileKind {
    /// Row `i` stands at `position + i` and sees all positions up to its own.
    Causal,
    /// All rows stand at `position` and see the context and `own` keys of their ancestors and themselves, whose slots begin at
    /// `chain` of the step's chains, row by row.
    Beam { context: usize, own: usize, chain: usize },
}

/// One layer's attention.
pub(super) struct Attention<'a> {
    pub(super) tiles: &'a [Tile],
    /// The plan's block tables.
    pub(super) blocks: &'a [crate::ids::BlockId],
    /// Slots of the beams' own keys.
    pub(super) chains: &'a [u32],
    pub(super) cache: &'a Cache,
    pub(super) layer: usize,
    pub(super) window: Option<u32>,
    /// Query heads per key/value head.
    pub(super) group: usize,
    pub(super) kv_heads: usize,
    pub(super) query: &'a Rows,
}

/// Floats of scratch that a task needs.
pub(super) fn scratch_floats(shape: CacheShape) -> usize {
    CHUNK * (shape.head_dim + shape.padded) + TILE * shape.padded + 4 * CHUNK
}

impl Attention<'_> {
    /// Runs all tiles and heads.
    pub(super) fn run(&self, compute: &mut Compute, out: RowWriter<'_>) {
        let simd = compute.simd;
        let (pool, scratch, per_thread) = compute.parts();
        let work = |thread: usize, i: usize| {
            // SAFETY: no two calls run on one thread at once.
            let scratch = unsafe { scratch.part(thread * per_thread..(thread + 1) * per_thread) };
            let (tile, head) = (&self.tiles[i / self.kv_heads], i % self.kv_heads);
            let task = Task { all: self, tile, head, out, simd, scratch };
            match self.cache.dtype() {
                DType::F32 => simd.run(Typed::<f32>(task, std::marker::PhantomData)),
                DType::Bf16 => simd.run(Typed::<bf16>(task, std::marker::PhantomData)),
                DType::F16 => simd.run(Typed::<f16>(task, std::marker::PhantomData)),
            }
        };
        let tasks = self.tiles.len() * self.kv_heads;
        let keys: usize = self.tiles.iter().map(|t| t.rows.len() * (t.position + 1)).sum();
        if keys * self.group * self.kv_heads < 1 << 10 {
            (0..tasks).for_each(|i| work(0, i));
        } else {
            pool.run(tasks, &work);
        }
    }
}

struct Task<'a> {
    all: &'a Attention<'a>,
    tile: &'a Tile,
    head: usize,
    out: RowWriter<'a>,
    simd: Simd,
    scratch: &'a mut [f32],
}

struct Typed<'a, T>(Task<'a>, std::marker::PhantomData<T>);

impl<T: Stored> Job for Typed<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: the caller's promise; the cache holds `T`.
        unsafe { self.0.run::<S, T>() }
    }
}

/// A chunk of keys and values, as pointers to its blocks.
struct Chunk<T> {
    keys: [*const T; BLOCKS],
    values: [*const T; BLOCKS],
    /// The keys that at least one row sees, counted from the chunk's first.
    seen: Range<usize>,
}

/// The rows (times query heads) of a task and how far their softmax has come.
struct State<'a> {
    query: [*const f32; TILE],
    /// Keys seen by each row.
    seen: [(usize, usize); TILE],
    greatest: [f32; TILE],
    total: [f32; TILE],
    /// `[TILE, padded]`.
    sums: &'a mut [f32],
    /// `[4, CHUNK]`.
    weights: &'a mut [f32],
    head_dim: usize,
    padded: usize,
    scale: f32,
}

impl Task<'_> {
    #[inline(always)]
    unsafe fn run<S: Lanes, T: Stored>(self) {
        let Task { all, tile, head, out, simd, scratch } = self;
        let shape = all.cache.shape;
        let (keys, rest) = scratch.split_at_mut(CHUNK * shape.head_dim);
        let (values, rest) = rest.split_at_mut(CHUNK * shape.padded);
        let (sums, rest) = rest.split_at_mut(TILE * shape.padded);
        let count = tile.rows.len() * all.group;
        assert!(count <= TILE, "{count} query rows of a tile, at most {TILE}");
        sums[..count * shape.padded].fill(0.0);
        let mut state = State {
            query: [std::ptr::null(); TILE],
            seen: [(0, 0); TILE],
            greatest: [f32::NEG_INFINITY; TILE],
            total: [0.0; TILE],
            sums,
            weights: &mut rest[..4 * CHUNK],
            head_dim: shape.head_dim,
            padded: shape.padded,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let mut bounds = (usize::MAX, 0);
        for i in 0..count {
            let (row, q) = (i / all.group, head * all.group + i % all.group);
            state.query[i] = all.query.row(tile.rows.start + row)[q * shape.head_dim..].as_ptr();
            state.seen[i] = tile.seen(row, all.window);
            bounds = (bounds.0.min(state.seen[i].0), bounds.1.max(state.seen[i].1));
        }
        let source = Source::<T> { all, tile, head, of: std::marker::PhantomData };
        for first in (bounds.0 / CHUNK * CHUNK..bounds.1).step_by(CHUNK) {
            let seen = bounds.0.max(first) - first..bounds.1.min(first + CHUNK) - first;
            let chunk = source.context(first, seen);
            // SAFETY: the caller's promises.
            unsafe {
                if size_of::<T>() == size_of::<f32>() || count <= FEW {
                    state.meet::<S, T>(0..count, first, &chunk);
                } else {
                    let chunk = source.widened::<S>(&chunk, keys, values);
                    state.meet::<S, f32>(0..count, first, &chunk);
                }
            }
        }
        if let TileKind::Beam { context, own, chain } = tile.kind {
            for row in 0..tile.rows.len() {
                let rows = row * all.group..(row + 1) * all.group;
                let from = tile.lowest(tile.position, all.window).saturating_sub(context);
                state.seen[rows.clone()].fill((from, own));
                let slots = &all.chains[chain + row * own..][..own];
                for first in (from / CHUNK * CHUNK..own).step_by(CHUNK) {
                    let seen = from.max(first) - first..own.min(first + CHUNK) - first;
                    // SAFETY: the caller's promises; the scratch holds a chunk.
                    unsafe {
                        let chunk = source.chain(&slots[first..], seen, keys, values);
                        state.meet::<S, f32>(rows.clone(), first, &chunk);
                    }
                }
            }
        }
        for i in 0..count {
            let (row, q) = (tile.rows.start + i / all.group, head * all.group + i % all.group);
            let result = &mut state.sums[i * shape.padded..][..shape.head_dim];
            result.iter_mut().for_each(|v| *v /= state.total[i]);
            // SAFETY: these columns of the row belong to this task.
            unsafe { out.put(simd, row, q * shape.head_dim, result) };
        }
    }
}

impl Tile {
    /// The lowest position that a row at `position` sees.
    fn lowest(&self, position: usize, window: Option<u32>) -> usize {
        window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
    }

    /// The keys of the context that a row sees.
    fn seen(&self, row: usize, window: Option<u32>) -> (usize, usize) {
        match self.kind {
            TileKind::Causal => (self.lowest(self.position + row, window), self.position + row + 1),
            TileKind::Beam { context, .. } => (self.lowest(self.position, window).min(context), context),
        }
    }
}

/// Where a task's keys come from.
struct Source<'a, T> {
    all: &'a Attention<'a>,
    tile: &'a Tile,
    head: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Stored> Source<'_, T> {
    /// The arenas of the layer, as elements of `T`.
    #[inline(always)]
    fn arenas(&self) -> [&[T]; 2] {
        let view = |arena: &Arena| -> (*const T, usize) {
            match arena {
                Arena::Full(v) => (v.as_ptr().cast(), v.len()),
                Arena::Half(v) => (v.as_ptr().cast(), v.len()),
            }
        };
        let [keys, values] = self.all.cache.layer(self.all.layer);
        let ((k, k_len), (v, v_len)) = (view(keys), view(values));
        // SAFETY: `T` was chosen by the cache's type: float32 over floats, half types over their bits.
        unsafe { [std::slice::from_raw_parts(k, k_len), std::slice::from_raw_parts(v, v_len)] }
    }

    /// The chunk of the context that begins at position `first`, where it lies.
    #[inline(always)]
    fn context(&self, first: usize, seen: Range<usize>) -> Chunk<T> {
        let shape = self.all.cache.shape;
        let table = &self.all.blocks[self.tile.table.clone()];
        let [k, v] = self.arenas();
        // Blocks that nobody sees keep null, and are not looked at.
        let mut chunk = Chunk {
            keys: [std::ptr::null(); BLOCKS],
            values: [std::ptr::null(); BLOCKS],
            seen: seen.clone(),
        };
        for b in seen.start / BLOCK_TOKENS..seen.end.div_ceil(BLOCK_TOKENS) {
            let block = table[first / BLOCK_TOKENS + b].index();
            chunk.keys[b] = k[shape.keys(block, self.head)..][..shape.head_dim * BLOCK_TOKENS].as_ptr();
            chunk.values[b] = v[shape.values(block, self.head)..][..shape.padded * BLOCK_TOKENS].as_ptr();
        }
        chunk
    }

    /// The chunk in float32, in the scratch.
    #[inline(always)]
    unsafe fn widened<S: Lanes>(&self, chunk: &Chunk<T>, keys: &mut [f32], values: &mut [f32]) -> Chunk<f32> {
        let shape = self.all.cache.shape;
        let (key_len, value_len) = (shape.head_dim * BLOCK_TOKENS, shape.padded * BLOCK_TOKENS);
        for b in chunk.seen.start / BLOCK_TOKENS..chunk.seen.end.div_ceil(BLOCK_TOKENS) {
            // SAFETY: the caller's promise; the chunk's blocks have these lengths.
            unsafe {
                widen::<S, T>(chunk.keys[b], &mut keys[b * key_len..][..key_len]);
                widen::<S, T>(chunk.values[b], &mut values[b * value_len..][..value_len]);
            }
        }
        self.scratch(chunk.seen.clone(), keys, values)
    }

    /// The scratch as a chunk.
    #[inline(always)]
    fn scratch(&self, seen: Range<usize>, keys: &[f32], values: &[f32]) -> Chunk<f32> {
        let shape = self.all.cache.shape;
        Chunk {
            keys: std::array::from_fn(|b| keys[b * shape.head_dim * BLOCK_TOKENS..].as_ptr()),
            values: std::array::from_fn(|b| values[b * shape.padded * BLOCK_TOKENS..].as_ptr()),
            seen,
        }
    }

    /// The keys of a beam's own, gathered from their slots.
    #[inline(always)]
    fn chain(&self, slots: &[u32], seen: Range<usize>, keys: &mut [f32], values: &mut [f32]) -> Chunk<f32> {
        let shape = self.all.cache.shape;
        let (key_len, value_len) = (shape.head_dim * BLOCK_TOKENS, shape.padded * BLOCK_TOKENS);
        let [k, v] = self.arenas();
        for at in seen.clone() {
            let (block, place) = (slots[at] as usize / BLOCK_TOKENS, slots[at] as usize % BLOCK_TOKENS);
            let from = &k[shape.keys(block, self.head) + place..];
            let to = &mut keys[at / BLOCK_TOKENS * key_len + at % BLOCK_TOKENS..];
            let pairs = to.iter_mut().step_by(BLOCK_TOKENS).zip(from.iter().step_by(BLOCK_TOKENS));
            pairs.take(shape.head_dim).for_each(|(to, from)| *to = from.to_f32());
            let from = &v[shape.values(block, self.head) + place * shape.padded..][..shape.padded];
            let to = &mut values[at / BLOCK_TOKENS * value_len + at % BLOCK_TOKENS * shape.padded..];
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
        }
        self.scratch(seen, keys, values)
    }
}

#[inline(always)]
unsafe fn widen<S: Lanes, T: Stored>(from: *const T, to: &mut [f32]) {
    for (i, to) in to.chunks_exact_mut(LANES).enumerate() {
        // SAFETY: chunks of sixteen; the caller's promise for the instructions and for `from`.
        unsafe { T::load::<S>(from.add(i * LANES)).store(to.as_mut_ptr()) };
    }
}

impl State<'_> {
    /// Lets rows meet a chunk whose first key is `first`.
    #[inline(always)]
    unsafe fn meet<S: Lanes, T: Stored>(&mut self, rows: Range<usize>, first: usize, chunk: &Chunk<T>) {
        let mut r = rows.start;
        while r < rows.end {
            // SAFETY: the caller's promise; rows and chunk are those of the task.
            r += unsafe {
                match rows.end - r {
                    1 => self.meet_rows::<S, T, 1>(r, first, chunk),
                    2 | 3 => self.meet_rows::<S, T, 2>(r, first, chunk),
                    _ => self.meet_rows::<S, T, 4>(r, first, chunk),
                }
            };
        }
    }

    #[inline(always)]
    unsafe fn meet_rows<S: Lanes, T: Stored, const R: usize>(
        &mut self,
        r: usize,
        first: usize,
        chunk: &Chunk<T>,
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            self.scores::<S, T, R>(r, chunk);
            let mut factors = [1.0; R];
            for (i, factor) in factors.iter_mut().enumerate() {
                *factor = self.soften::<S>(r + i, i, first, &chunk.seen);
            }
            let whole = self.padded / LANES / 4 * 4;
            if S::WIDE {
                for d in (0..whole).step_by(4) {
                    self.add_values::<S, T, R, 4>(r, d * LANES, &factors, chunk);
                }
            }
            for d in if S::WIDE { whole } else { 0 }..self.padded / LANES {
                self.add_values::<S, T, R, 1>(r, d * LANES, &factors, chunk);
            }
        }
        R
    }

    /// `q k` of `R` rows and the chunk's blocks; each a sum over the head in order.
    #[inline(always)]
    unsafe fn scores<S: Lanes, T: Stored, const R: usize>(&mut self, r: usize, chunk: &Chunk<T>) {
        let blocks = chunk.seen.start / BLOCK_TOKENS..chunk.seen.end.div_ceil(BLOCK_TOKENS);
        // SAFETY: the caller's promise.
        unsafe {
            if S::WIDE && blocks.len() == BLOCKS {
                return self.score_blocks::<S, T, R, BLOCKS>(r, 0, chunk);
            }
            for b in blocks {
                self.score_blocks::<S, T, R, 1>(r, b, chunk);
            }
        }
    }

    #[inline(always)]
    unsafe fn score_blocks<S: Lanes, T: Stored, const R: usize, const B: usize>(
        &mut self,
        r: usize,
        b: usize,
        chunk: &Chunk<T>,
    ) {
        // SAFETY: queries and keys have `head_dim` dimensions, keys sixteen lanes each.
        unsafe {
            let mut sums = [[S::splat(0.0); B]; R];
            for d in 0..self.head_dim {
                let mut keys = [S::splat(0.0); B];
                each!(at < B => { keys[at] = T::load::<S>(chunk.keys[b + at].add(d * LANES)); });
                each!(i < R => {
                    let q = S::splat(*self.query[r + i].add(d));
                    each!(at < B => { sums[i][at] = sums[i][at].fma(q, keys[at]); });
                });
            }
            let to = self.weights.as_mut_ptr();
            each!(i < R => {
                each!(at < B => { sums[i][at].store(to.add(i * CHUNK + (b + at) * LANES)); });
            });
        }
    }

    /// Turns the scores at `place` into weights of row `r`, moves its maximum and total on, and answers the factor by which what was
    /// summed before shrinks.
    #[inline(always)]
    unsafe fn soften<S: Lanes>(&mut self, r: usize, place: usize, first: usize, seen: &Range<usize>) -> f32 {
        let weights = &mut self.weights[place * CHUNK..][..CHUNK];
        let from = self.seen[r].0.max(first) - first;
        let to = self.seen[r].1.min(first + CHUNK).saturating_sub(first);
        if from >= to {
            weights[seen.clone()].fill(0.0);
            return 1.0;
        }
        // SAFETY: the caller's promise; the chunk has four registers of weights.
        unsafe {
            let scale = S::splat(self.scale);
            let none = S::splat(f32::NEG_INFINITY);
            let mut v = [none; BLOCKS];
            for (b, v) in v.iter_mut().enumerate() {
                let (lo, hi) = (b * LANES, (b + 1) * LANES);
                if from < hi && to > lo {
                    *v = S::load(weights[lo..].as_ptr()).mul(scale);
                    if from > lo || to < hi {
                        *v = v.within(from.saturating_sub(lo), to.min(hi) - lo, none);
                    }
                }
            }
            let greatest = v[0].max(v[1]).max(v[2].max(v[3])).greatest().max(self.greatest[r]);
            let now = S::splat(greatest);
            let factor = S::splat(self.greatest[r]).sub(now).exp();
            for (b, v) in v.iter_mut().enumerate() {
                *v = v.sub(now).exp();
                v.store(weights[b * LANES..].as_mut_ptr());
            }
            let mut shrunk = [0.0; LANES];
            factor.store(shrunk.as_mut_ptr());
            self.greatest[r] = greatest;
            self.total[r] = self.total[r] * shrunk[0] + v[0].add(v[1]).add(v[2].add(v[3])).sum();
            shrunk[0]
        }
    }

    /// Adds the chunk's values by weight to dimensions `d..` of `R` rows, key by key.
    #[inline(always)]
    unsafe fn add_values<S: Lanes, T: Stored, const R: usize, const D: usize>(
        &mut self,
        r: usize,
        d: usize,
        factors: &[f32; R],
        chunk: &Chunk<T>,
    ) {
        // SAFETY: the caller's promise; rows and values have `padded` dimensions.
        unsafe {
            let base = self.sums[r * self.padded + d..].as_mut_ptr();
            let mut sums = [[S::splat(0.0); D]; R];
            each!(i < R => {
                let factor = S::splat(factors[i]);
                each!(at < D => { sums[i][at] = S::load(base.add(i * self.padded + at * LANES)).mul(factor); });
            });
            let weights = self.weights.as_ptr();
            for key in chunk.seen.clone() {
                let values = chunk.values[key / BLOCK_TOKENS].add(key % BLOCK_TOKENS * self.padded + d);
                let mut v = [S::splat(0.0); D];
                each!(at < D => { v[at] = T::load::<S>(values.add(at * LANES)); });
                each!(i < R => {
                    let weight = S::splat(*weights.add(i * CHUNK + key));
                    each!(at < D => { sums[i][at] = sums[i][at].fma(weight, v[at]); });
                });
            }
            each!(i < R => {
                each!(at < D => { sums[i][at].store(base.add(i * self.padded + at * LANES)); });
            });
        }
    }
}
