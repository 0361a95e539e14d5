//! Semantic IDs from embeddings: residual k-means, codes for new items, and what a model needs to speak them.
//!
//! [`fit`] makes codebooks and the codes of all items of a type; [`Codebooks`] is their file; [`TypeCodebooks::assign`] gives new items codes from
//! centroids that stay as they are. [`Report`] says how good codes are. [`extend`] adds the tokens of a layout to a model folder.

mod codebook;
mod codebooks;
mod extend;
mod fit;
mod kmeans;
mod npy;
mod report;
mod unique;
mod vectors;

pub use codebook::Codebook;
pub use codebooks::{Codebooks, TypeCodebooks};
pub use extend::{Extension, Init, extend};
pub use fit::fit;
pub use npy::Codes;
pub use report::{LevelReport, Report, prefixes};
pub use vectors::{MAX_DIM, Vectors};

/// Told how far a long job is: what is done at present, steps done, steps in all. May be called from several threads.
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Sync);

/// How codebooks are fitted.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// Codes per level.
    pub levels: Vec<usize>,
    /// Adds a last level that separates items with equal codes; it has as many codes as the largest group of them, and at least this many.
    pub unique: Option<usize>,
    /// Scales every vector to length 1 first.
    pub normalize: bool,
    /// Key of all draws.
    pub seed: u64,
    /// Most iterations per level; 30 by default.
    pub max_iterations: usize,
    /// Rows of the first iterations, at least 8 per code; 8,192 by default. Later ones look at more.
    pub batch: usize,
    /// Rows that are trained on. By default all up to 131,072, or 256 per code if that is more.
    pub sample: Option<usize>,
}

impl FitOptions {
    /// Levels of so many codes, and the defaults.
    pub fn new(levels: impl Into<Vec<usize>>) -> FitOptions {
        FitOptions {
            levels: levels.into(),
            unique: None,
            normalize: false,
            seed: 0,
            max_iterations: 30,
            batch: 8192,
            sample: None,
        }
    }
}

/// What a fit gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The codebooks of the type.
    pub codebooks: TypeCodebooks,
    /// The codes of each row, the unique level's included.
    pub codes: Codes,
}
