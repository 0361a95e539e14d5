//! Prompts and training data of a grounded model: what is asked in which words, and what a good answer is.
//!
//! Training, serving and evaluation share one prompt format, and it is defined here. A [`Prompt`] is a task, its subject and its target
//! as typed parts, ready for [`crate::engine::Request`]; a [`Sample`] is a prompt with its answer, drawn by a [`Sampler`] from a catalog's
//! [`Works`] and from histories, which [`simulate`] makes where none were recorded; a [`Renderer`] turns samples into the very tokens that
//! the engine would see and write.
//!
//! Draws depend on the seed and on the sample's place only. Wordings come in two sets, one of which training never sees.

mod answer;
mod history;
mod prompt;
mod render;
mod sample;
mod simulate;
mod wording;
mod works;

pub use answer::facts;
pub use history::{History, read_histories};
pub use prompt::{Prompt, Subject, Task};
pub use render::{Rendered, RenderedOther, Renderer, titles};
pub use sample::{Mix, Query, QueryKind, Sample, Sampler};
pub use simulate::{SimulationOptions, simulate};
pub use works::{Work, Works};

use serde::{Deserialize, Serialize};

/// Which side of a split something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What models learn from and baselines count.
    Train,
    /// What they are judged by: other users, other wordings.
    Test,
}

#[cfg(test)]
mod tests;
