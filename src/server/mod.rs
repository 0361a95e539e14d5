//! The HTTP server.

pub(crate) mod openai;
