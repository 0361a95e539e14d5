//! In whose name a request is submitted, and until when its answer is wanted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::channel::{EventSender, EventStream, channel};
use super::status::Status;
use super::validate::ValidatedRequest;
use crate::error::{Error, Result};

/// What a request is submitted with, beside what it says itself: things that its author does not decide.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// Whose request it is. Tenants wait in turns, a share of the work each, and share no prefix in the cache, so that none
    /// can time what others have asked. Default 0.
    pub tenant: u64,
    /// When the answer is of no use any more: the request is then dropped, waiting or running. Default: never.
    pub deadline: Option<Instant>,
}

/// A request on its way to the wheel.
pub(crate) struct Arrival {
    pub request: ValidatedRequest,
    pub submission: Submission,
    /// When it was submitted.
    pub at: Instant,
    pub events: EventSender,
}

impl Arrival {
    /// Counts a request in; the stream is its reader's.
    pub fn new(
        status: &Arc<Status>,
        request: ValidatedRequest,
        submission: Submission,
    ) -> Result<(Arrival, EventStream)> {
        let at = Instant::now();
        if let Some(deadline) = submission.deadline.filter(|deadline| *deadline <= at) {
            status.counters().expired.fetch_add(1, Ordering::Relaxed);
            let late = (at - deadline).as_millis();
            return Err(Error::Deadline(format!("it had passed {late} ms before the request was submitted")));
        }
        let ticket = status.ticket(request.weight())?;
        let (events, stream) = channel(status, ticket);
        Ok((Arrival { request, submission, at, events }, stream))
    }
}
