//! One request's life: checked, queued, planned, run, answered.
//!
//! [`Request`] → [`ValidatedRequest`] (`validate`, `prompt`) → a job (`job`) in the schedule (`schedule`) that the wheel
//! (`wheel`) turns: `schedule -> plan -> run -> outcome` → [`Event`]s on the request's own channel (`channel`), the last of them the
//! [`Answer`] (`text_answer`, `items_answer`).

mod answer;
mod channel;
mod gate;
mod handle;
mod items_answer;
mod job;
mod open;
mod prompt;
mod request;
mod schedule;
mod text_answer;
mod validate;
mod wheel;

pub use answer::{Answer, AnswerItem, AnswerPart, ChoiceScore, Event, FinishReason, TokenLogprob, Usage};
pub use channel::{EventStream, MAX_UNREAD_BYTES};
#[doc(hidden)]
pub use handle::EngineParts;
pub use handle::{Engine, EngineBuilder};
pub use request::{
    Boost, Collisions, Content, Diversity, Message, OneOrMany, Output, Part, Quota, Request, Truncate,
    UnknownItems,
};
pub use validate::{Limits, ValidatedRequest};
pub use wheel::{Counters, Turn, Wheel};
