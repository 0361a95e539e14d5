//! The integration tests, one binary.

// A helper of a test may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod beams;
mod catalog;
mod catalog_of_works;
mod cli;
mod dataset;
mod devices;
mod engine;
mod filters;
mod golden;
mod grounded_small;
#[cfg(feature = "server")]
mod http;
#[cfg(any(feature = "cuda", feature = "emulated"))]
mod kernels;
mod kv;
mod live;
#[cfg(any(feature = "cuda", feature = "emulated"))]
mod on_cuda;
mod ops;
mod requests;
mod sids;
mod snapshot;
mod sources;
mod text;
