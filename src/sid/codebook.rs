//! One codebook, and the nearest of its centroids.
//!
//! `|x - c|² = |x|² - 2 x·c + |c|²`, and `|x|²` is the same for all centroids: a block of rows meets all centroids in one matrix
//! product, and a row keeps the centroids whose `|c|² - 2 x·c` lies within the product's rounding of the smallest. Where there are
//! several, distances in float64 decide, of equal ones the lower code. So a code does not depend on the order in which a
//! product adds up, neither on the rows beside it nor on the processor.

use super::vectors::BLOCK;

/// Centroids that meet a block at a time: the results, 1 MiB, stay in the second-level cache.
const TILE: usize = 1024;
/// Half the distance from 1 to the next float32.
const ROUNDING: f32 = 1.0 / (1 << 24) as f32;

/// The centroids of one level.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    dim: usize,
    /// `[codes, dim]`.
    centroids: Vec<f32>,
    /// `|c|²`.
    squares: Vec<f32>,
    /// The largest `|c|`.
    longest: f32,
}

/// What a search needs beside its results; one per thread.
#[derive(Default)]
pub(super) struct Scratch {
    products: Vec<f32>,
    /// Per row, the smallest value so far.
    least: Vec<f32>,
    /// Per row, how much larger the value of the nearest may be.
    slack: Vec<f32>,
    /// Per row, codes that may be nearest, with their values.
    close: Vec<Vec<(f32, u32)>>,
}

impl Codebook {
    /// A codebook of centroids `[codes, dim]`.
    ///
    /// # Panics
    /// If `dim` is 0, or there is not at least one centroid of `dim` values.
    pub fn new(dim: usize, centroids: Vec<f32>) -> Codebook {
        assert!(
            dim > 0 && !centroids.is_empty() && centroids.len().is_multiple_of(dim),
            "centroids of {dim}"
        );
        let squares: Vec<f32> = centroids.chunks_exact(dim).map(square).collect();
        let longest = squares.iter().fold(0.0, |a: f32, &b| a.max(b)).sqrt();
        Codebook { dim, centroids, squares, longest }
    }

    /// Number of codes.
    pub fn codes(&self) -> usize {
        self.squares.len()
    }

    /// Values of a centroid.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// All centroids, `[codes, dim]`.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// The centroid of a code.
    ///
    /// # Panics
    /// If there is no such code.
    pub fn centroid(&self, code: u16) -> &[f32] {
        &self.centroids[usize::from(code) * self.dim..][..self.dim]
    }

    /// The nearest centroid of each of at most [`BLOCK`] rows; the lowest of equally near ones. `squares` are the rows' `|x|²`, in
    /// whose place come the squared distances; 0 where they are lost in rounding.
    pub(super) fn nearest(
        &self,
        rows: &[f32],
        squares: &mut [f32],
        scratch: &mut Scratch,
        codes: &mut [u16],
    ) {
        let n = codes.len();
        assert!(n <= BLOCK && squares.len() == n && rows.len() == n * self.dim, "{n} rows of {}", self.dim);
        scratch.least.clear();
        scratch.least.resize(n, f32::INFINITY);
        scratch.slack.clear();
        scratch.slack.extend(squares.iter().map(|&square| self.slack(square)));
        scratch.close.resize_with(n.max(scratch.close.len()), Vec::new);
        scratch.close.iter_mut().for_each(Vec::clear);
        for first in (0..self.codes()).step_by(TILE) {
            self.tile(rows, first, scratch);
        }
        for (row, code) in codes.iter_mut().enumerate() {
            let x = &rows[row * self.dim..][..self.dim];
            let bound = scratch.least[row] + scratch.slack[row];
            let close = scratch.close[row].iter().filter(|(value, _)| *value <= bound).map(|(_, code)| *code);
            *code = self.exact(x, close);
            let distance = squares[row] + scratch.least[row];
            squares[row] = if distance > scratch.slack[row] { distance } else { 0.0 };
        }
    }

    /// Adds what may be nearest among the centroids from `first` on.
    fn tile(&self, rows: &[f32], first: usize, scratch: &mut Scratch) {
        let n = rows.len() / self.dim;
        let squares = &self.squares[first..self.codes().min(first + TILE)];
        let width = squares.len();
        scratch.products.resize(scratch.products.len().max(n * width), 0.0);
        products(
            rows,
            &self.centroids[first * self.dim..][..width * self.dim],
            self.dim,
            &mut scratch.products,
        );
        for row in 0..n {
            let values = &mut scratch.products[row * width..][..width];
            let least = add_and_least(values, squares).min(scratch.least[row]);
            scratch.least[row] = least;
            let bound = least + scratch.slack[row];
            let close = &mut scratch.close[row];
            close.extend(
                values.iter().zip(first as u32..).filter(|(v, _)| **v <= bound).map(|(&v, code)| (v, code)),
            );
        }
    }

    /// Twice the most by which a value `|c|² - 2 x·c` may be off: a sum of `dim` products in any order, and what underflows.
    fn slack(&self, square: f32) -> f32 {
        let length = square.sqrt();
        let terms = (self.dim + 16) as f32;
        let off = terms * ROUNDING * self.longest * (2.0 * length + self.longest);
        2.0 * (off + terms * f32::MIN_POSITIVE)
    }

    /// The nearest of a few codes, in ascending order.
    fn exact(&self, x: &[f32], mut codes: impl Iterator<Item = u32>) -> u16 {
        let first = codes.next().expect("the smallest value is within its own bound") as u16;
        let mut best = (f64::INFINITY, first);
        for (at, code) in codes.map(|code| code as u16).enumerate() {
            if at == 0 {
                best.0 = distance(x, self.centroid(first));
            }
            let d = distance(x, self.centroid(code));
            if d < best.0 {
                best = (d, code);
            }
        }
        best.1
    }
}

/// Adds the squares to the products, and the smallest of the sums.
fn add_and_least(values: &mut [f32], squares: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::INFINITY; LANES];
    let ((chunks, rest), (sq, sq_rest)) = (values.as_chunks_mut::<LANES>(), squares.as_chunks::<LANES>());
    for (chunk, sq) in chunks.iter_mut().zip(sq) {
        for lane in 0..LANES {
            chunk[lane] += sq[lane];
            lanes[lane] = if chunk[lane] < lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    let mut least = lanes.iter().fold(f32::INFINITY, |a, &b| a.min(b));
    for (value, sq) in rest.iter_mut().zip(sq_rest) {
        *value += sq;
        least = least.min(*value);
    }
    least
}

/// `out [rows, columns] = -2 a b^T` for `a [rows, dim]`, `b [columns, dim]`.
pub(super) fn products(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    let (rows, columns) = (a.len() / dim, b.len() / dim);
    assert!(rows * columns <= out.len(), "room for {rows} x {columns} products");
    let (stride, width) = (dim as isize, columns as isize);
    // SAFETY: `a` holds `rows * dim` values, `b` `columns * dim` and `out` at least `rows * columns`, as the strides say; `out` overlaps
    // neither, and nothing is read from it.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            dim,
            columns,
            -2.0,
            a.as_ptr(),
            stride,
            1,
            b.as_ptr(),
            1,
            stride,
            0.0,
            out.as_mut_ptr(),
            width,
            1,
        );
    }
}

/// `|x|²`, in sixteen parts.
pub(super) fn square(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut parts = [0.0; 16];
    for chunk in chunks {
        for (part, &v) in parts.iter_mut().zip(chunk) {
            *part += v * v;
        }
    }
    parts.iter().sum::<f32>() + rest.iter().map(|&v| v * v).sum::<f32>()
}

/// `|x - c|²`, in float64.
fn distance(x: &[f32], c: &[f32]) -> f64 {
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    x.iter().zip(c).map(square).sum()
}

/// `x -= c`.
pub(super) fn subtract(x: &mut [f32], c: &[f32]) {
    x.iter_mut().zip(c).for_each(|(x, c)| *x -= c);
}
