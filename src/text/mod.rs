//! Text in and out: tokenizer, chat template, streaming detokenizer, stop strings.
//!
//! The room's one promise: **what a user wrote never becomes a control token or a layout token**, whatever the
//! tokenizer file says of them. Two mechanisms keep it, one above the other:
//!
//! 1. Text is encoded by the model of `tokenizer.json` alone; added tokens are looked for only in text that the chat
//!    template wrote, found by marks that user text cannot contain (`prompt.rs`).
//! 2. Where the model itself would yield a protected id (control tokens inside the vocabulary, a merge that builds a
//!    layout token), the text of that token is cut and encoded again in pieces (`pipeline.rs`).
//!
//! Everything here is plain data behind `&self` and shared between threads; [`Detokenizer`] and [`StopMatcher`] belong to
//! one sequence each.

mod added;
mod decoding;
mod detokenizer;
mod dialect;
mod idset;
mod pipeline;
mod prompt;
mod stop;
mod template;
pub mod tiny;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use stop::{Emit, StopMatcher};
pub use tokenizer::Tokenizer;

use crate::ids::TokenId;

/// A part of a prompt, already resolved by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text of the user; it never yields a protected token. Neighbouring texts are joined before they are encoded.
    Text(String),
    /// Tokens as they are: the spans of items.
    Tokens(Vec<TokenId>),
    /// One soft token, whose embedding the caller supplies.
    Soft,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said, in order.
    pub content: Vec<Piece>,
}

/// A prompt as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens; the place of a soft token holds the filler 0.
    pub tokens: Vec<TokenId>,
    /// The index in `tokens` of the i-th [`Piece::Soft`].
    pub soft: Vec<usize>,
}
