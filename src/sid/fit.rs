//! Residual k-means: the codes of a level say what the levels before left over.

use rayon::prelude::*;

use super::codebook::{Codebook, Scratch, square, subtract};
use super::kmeans::{self, Level, Rows};
use super::npy::Codes;
use super::unique;
use super::vectors::{BLOCK, Vectors};
use super::{Fit, FitOptions, Progress, TypeCodebooks};
use crate::catalog::{MAX_CODES, MAX_LEVELS};
use crate::error::{Error, Result};
use crate::random::Random;

/// Rows that are trained on unless the options say more, and what a code should have of them.
const SAMPLE: usize = 1 << 17;
const SAMPLE_PER_CODE: usize = 256;

impl FitOptions {
    fn check(&self, vectors: &Vectors) -> Result<()> {
        let levels = self.levels.len() + usize::from(self.unique.is_some());
        if self.levels.is_empty() || levels > MAX_LEVELS {
            let message = format!("{levels} levels, the unique one included; expected 1 to {MAX_LEVELS}");
            return Err(Error::invalid("levels", message));
        }
        let sizes = self.levels.iter().chain(&self.unique).enumerate();
        for (level, &codes) in sizes {
            if codes == 0 || codes > MAX_CODES {
                let message = format!("a codebook of {codes} codes, expected 1 to {MAX_CODES}");
                return Err(Error::invalid(format!("levels[{level}]"), message));
            }
        }
        if self.max_iterations == 0 || self.sample == Some(0) || self.batch == 0 {
            return Err(Error::invalid("options", "max_iterations, sample and batch must be at least 1"));
        }
        if vectors.rows() == 0 {
            return Err(Error::file(vectors.name(), "has no rows to fit codebooks to"));
        }
        Ok(())
    }

    /// Rows that are trained on.
    fn rows(&self, rows: usize) -> usize {
        let codes = self.levels.iter().copied().max().unwrap_or(1);
        self.sample.unwrap_or(SAMPLE.max(SAMPLE_PER_CODE * codes)).min(rows)
    }
}

/// Fits codebooks to the vectors of one type, and gives every row its codes.
///
/// Each level is trained on what the levels before left of a sample (by default all rows up to 131,072 or 256 per code,
/// whichever is more); then all rows get their codes in one pass. Besides the vectors, which stay mapped, the sample and the codes are held in memory.
/// Equal arguments give equal results whatever the number of threads.
///
/// # Errors
/// [`Error::Invalid`] names an option beyond its bounds; [`Error::File`] names the row of a value that is not a number, or says that there are no rows;
/// with `unique`, that more than 65,536 rows share their codes.
pub fn fit(name: &str, vectors: &Vectors, options: &FitOptions, progress: Progress<'_>) -> Result<Fit> {
    options.check(vectors)?;
    vectors.check()?;
    let (dim, rows) = (vectors.dim(), options.rows(vectors.rows()));
    let mut sample = gather(vectors, rows, options)?;
    let mut levels: Vec<Codebook> = Vec::with_capacity(options.levels.len());
    let steps = (options.levels.len() * options.max_iterations) as u64;
    for (level, &codes) in options.levels.iter().enumerate() {
        let done = std::sync::atomic::AtomicU64::new((level * options.max_iterations) as u64);
        let tick = || {
            let done = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            progress("training", done.min(steps), steps);
        };
        let job = Level {
            codes,
            iterations: options.max_iterations,
            batch: options.batch,
            seed: options.seed.wrapping_add(level as u64),
        };
        let (book, codes) = kmeans::train(Rows::new(&sample, dim), job, &tick);
        let residuals = sample.par_chunks_exact_mut(dim).zip(codes);
        residuals.for_each(|(x, code)| subtract(x, book.centroid(code)));
        levels.push(book);
    }
    drop(sample);
    let mut books = TypeCodebooks {
        name: name.to_owned(),
        levels,
        unique: None,
        normalize: options.normalize,
        seed: options.seed,
        rows: vectors.rows(),
        errors: Vec::new(),
    };
    let (mut codes, errors) = books.nearest(vectors, progress)?;
    books.errors = errors;
    if let Some(at_least) = options.unique {
        let (all, largest) =
            unique::separate(&codes).map_err(|message| Error::file(vectors.name(), message))?;
        books.unique = Some(largest.max(at_least));
        codes = all;
    }
    Ok(Fit { codebooks: books, codes })
}

/// Rows in random order, normalized if the options say so.
fn gather(vectors: &Vectors, rows: usize, options: &FitOptions) -> Result<Vec<f32>> {
    let dim = vectors.dim();
    let chosen = Random::new(options.seed, 0).sample(vectors.rows(), rows);
    let mut sample = vec![0.0; rows * dim];
    sample.par_chunks_exact_mut(dim).zip(&chosen).for_each(|(to, &row)| {
        vectors.read(row as usize..row as usize + 1, to);
    });
    if options.normalize {
        let zero = sample.par_chunks_exact_mut(dim).map(normalize).position_first(|done| !done);
        if let Some(at) = zero {
            return Err(no_length(vectors, chosen[at] as usize));
        }
    }
    Ok(sample)
}

fn no_length(vectors: &Vectors, row: usize) -> Error {
    Error::file(vectors.name(), format!("row {row}: all values are 0, so that it cannot be normalized"))
}

/// Scales a row to length 1, in one order of sums; `false` if it has none.
fn normalize(x: &mut [f32]) -> bool {
    let square: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        x.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    }
    square > 0.0
}

/// What a thread needs to assign a block.
#[derive(Default)]
struct Worker {
    values: Vec<f32>,
    codes: Vec<u16>,
    squares: Vec<f32>,
    scratch: Scratch,
}

impl TypeCodebooks {
    /// Codes of the k-means levels for all rows, and the mean squared length of what is left before the first level and after each.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the vectors have another width, [`Error::File`] with the row that cannot be normalized. Values are not
    /// checked; see [`Vectors::check`].
    pub(super) fn nearest(&self, vectors: &Vectors, progress: Progress<'_>) -> Result<(Codes, Vec<f64>)> {
        self.check_dim(vectors)?;
        let (rows, levels) = (vectors.rows(), self.levels.len());
        let mut codes = vec![0u16; rows * levels];
        let done = std::sync::atomic::AtomicU64::new(0);
        let blocks = codes.par_chunks_mut(BLOCK * levels).enumerate();
        let sums = blocks.map_init(Worker::default, |worker, (block, out)| {
            let first = block * BLOCK;
            let sums = self.block(vectors, first..(first + BLOCK).min(rows), worker, out);
            if block % 64 == 63 {
                let done = done.fetch_add((64 * BLOCK) as u64, std::sync::atomic::Ordering::Relaxed);
                progress("assigning", done, rows as u64);
            }
            sums
        });
        let sums: Vec<Vec<f64>> = sums.collect::<Result<_>>()?;
        Ok((Codes::new(levels, codes), self.means(&sums, rows)))
    }

    /// Mean squared length of vectors and of what given codes leave of them, level by level; a unique level leaves what was there.
    pub(super) fn errors_of(&self, vectors: &Vectors, codes: &Codes) -> Result<Vec<f64>> {
        self.check_dim(vectors)?;
        let rows = vectors.rows();
        let block = |worker: &mut Worker, block: usize| {
            let range = block * BLOCK..((block + 1) * BLOCK).min(rows);
            let mut sums = Vec::new();
            self.load(vectors, range.clone(), worker)?;
            measure(&worker.values, self.dim(), &mut worker.squares, &mut sums);
            for (level, book) in self.levels.iter().enumerate() {
                for (x, row) in worker.values.chunks_exact_mut(self.dim()).zip(range.clone()) {
                    subtract(x, book.centroid(codes.row(row)[level]));
                }
                measure(&worker.values, self.dim(), &mut worker.squares, &mut sums);
            }
            Ok(sums)
        };
        let blocks = (0..rows.div_ceil(BLOCK)).into_par_iter();
        let sums: Vec<Vec<f64>> = blocks.map_init(Worker::default, block).collect::<Result<_>>()?;
        Ok(self.means(&sums, rows))
    }

    /// Means over all rows of what blocks summed, in the order of the blocks: the same for any number of threads.
    fn means(&self, sums: &[Vec<f64>], rows: usize) -> Vec<f64> {
        let mut means = vec![0.0; self.levels.len() + 1];
        for block in sums {
            means.iter_mut().zip(block).for_each(|(mean, sum)| *mean += sum);
        }
        means.iter_mut().for_each(|mean| *mean /= (rows as f64).max(1.0));
        means
    }

    fn check_dim(&self, vectors: &Vectors) -> Result<()> {
        if vectors.dim() != self.dim() {
            let (found, name, dim) = (vectors.dim(), &self.name, self.dim());
            let message = format!("{found} values per row; the codebooks of `{name}` are for {dim}");
            return Err(Error::file(vectors.name(), message));
        }
        Ok(())
    }

    /// Reads rows, normalized if these codebooks are for such.
    fn load(&self, vectors: &Vectors, rows: std::ops::Range<usize>, worker: &mut Worker) -> Result<()> {
        worker.values.resize(rows.len() * self.dim(), 0.0);
        worker.codes.resize(rows.len(), 0);
        worker.squares.resize(rows.len(), 0.0);
        vectors.read(rows.clone(), &mut worker.values);
        if self.normalize
            && let Some(at) = worker.values.chunks_exact_mut(self.dim()).position(|x| !normalize(x))
        {
            return Err(no_length(vectors, rows.start + at));
        }
        Ok(())
    }

    /// The codes of a block of rows; returns the sums of squares before the first level and after each.
    fn block(
        &self,
        vectors: &Vectors,
        rows: std::ops::Range<usize>,
        worker: &mut Worker,
        out: &mut [u16],
    ) -> Result<Vec<f64>> {
        let (dim, levels) = (self.dim(), self.levels.len());
        self.load(vectors, rows, worker)?;
        let mut sums = Vec::with_capacity(levels + 1);
        measure(&worker.values, dim, &mut worker.squares, &mut sums);
        for (level, book) in self.levels.iter().enumerate() {
            book.nearest(&worker.values, &mut worker.squares, &mut worker.scratch, &mut worker.codes);
            for (row, (x, &code)) in worker.values.chunks_exact_mut(dim).zip(&worker.codes).enumerate() {
                subtract(x, book.centroid(code));
                out[row * levels + level] = code;
            }
            measure(&worker.values, dim, &mut worker.squares, &mut sums);
        }
        Ok(sums)
    }
}

/// The rows' squared lengths, and their sum.
fn measure(values: &[f32], dim: usize, squares: &mut [f32], sums: &mut Vec<f64>) {
    squares.iter_mut().zip(values.chunks_exact(dim)).for_each(|(to, x)| *to = square(x));
    sums.push(squares.iter().map(|&v| f64::from(v)).sum());
}
