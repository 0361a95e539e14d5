//! One request's life: checked, queued, planned, run, answered.
//!
//! [`Request`] → [`ValidatedRequest`] (`validate`, `prompt`) → with a [`Submission`] a job (`job`) that waits its tenant's turn
//! (`queue`) in the schedule (`schedule`) of the wheel (`wheel`): `schedule -> plan -> run -> outcome` (`progress`) → [`Event`]s on
//! the request's own channel (`channel`), the last of them the [`Answer`] (`text_answer`, `items_answer`).
//!
//! What waits, whether the wheel turns, and why it has stopped is read from any thread (`status`): [`Load`], [`Health`], [`Death`],
//! [`Counters`].

mod answer;
mod builder;
mod channel;
mod counters;
mod gate;
mod handle;
mod items_answer;
mod job;
mod open;
mod pace;
mod progress;
mod prompt;
mod queue;
mod request;
mod schedule;
#[cfg(feature = "server")]
mod schema;
mod status;
mod submission;
mod text_answer;
mod validate;
mod wheel;

pub use answer::{
    Answer, AnswerItem, AnswerPart, Attributes, ChoiceScore, Event, FinishReason, Timing, TokenLogprob, Usage,
};
pub use builder::EngineBuilder;
pub use channel::{EventStream, MAX_UNREAD_BYTES, Waited};
pub use counters::Counters;
pub use handle::Engine;
#[doc(hidden)]
pub use handle::EngineParts;
pub use request::{
    Boost, Collisions, Content, Diversity, Message, OneOrMany, Output, Part, Quota, Request, Truncate,
    UnknownItems,
};
pub use status::{BlockCounts, Death, Health, Load, QueueLimits};
pub use submission::Submission;
pub use validate::{Limits, ValidatedRequest};
pub use wheel::{Turn, Wheel};
