//! What a model's answers are worth: ranked lists against what people took and what queries name, and text against the catalog.
//!
//! [`evaluate`] asks an engine in wordings, and about people, that training never saw, and judges the answers beside simple baselines on the same
//! questions. Every item of the catalog competes; nothing is sampled.

mod baselines;
mod claims;
mod metrics;
mod questions;
mod report;
mod run;
mod verdict;

pub use baselines::{Bm25, Neighbours, Popularity};
pub use claims::{Claims, claims};
pub use metrics::{Estimate, Ranking, Scores};
pub use report::{Report, Row, TextRow};
pub use run::{EvalOptions, evaluate};
