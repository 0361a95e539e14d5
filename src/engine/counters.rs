//! What the engine has done, in numbers.

use std::sync::atomic::AtomicU64;

/// Counters of the engine, readable from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Steps run.
    pub steps: AtomicU64,
    /// Rows computed.
    pub rows: AtomicU64,
    /// Nanoseconds that the host spent on planning and on taking outcomes apart.
    pub host_nanos: AtomicU64,
    /// Nanoseconds that the device ran.
    pub device_nanos: AtomicU64,
    /// Requests answered in full.
    pub finished: AtomicU64,
    /// Requests cancelled by their readers.
    pub cancelled: AtomicU64,
    /// Requests ended by an error of their own.
    pub failed: AtomicU64,
    /// Requests dropped at their deadline.
    pub expired: AtomicU64,
    /// Tokens of the prompts that were fed to their end, those found in the prefix cache included.
    pub prompt_tokens: AtomicU64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers; for items the codes of the listed items.
    pub generation_tokens: AtomicU64,
    /// Times that a job gave way to another.
    pub preemptions: AtomicU64,
    /// Items named.
    pub items: AtomicU64,
    /// Lists with fewer items than asked for, because no more were alive.
    pub exhausted: AtomicU64,
    /// Items that the search named and the gate refused; a bug of ours, always 0.
    pub gate_violations: AtomicU64,
    /// Items that were denied after the search had named them.
    pub denied_in_flight: AtomicU64,
    /// Requests that wait now.
    pub waiting: AtomicU64,
    /// Requests that run now.
    pub running: AtomicU64,
}
