//! The way of an answer to its reader: a queue bounded in bytes that never makes the engine wait.
//!
//! Pushing never blocks. Text that the reader has not taken yet is joined with what follows, so a slow reader gets larger
//! pieces; a reader that leaves more than [`MAX_UNREAD_BYTES`] lying is cut off. Dropping the receiving end cancels the
//! request; dropping the sending end before the final event means that the engine died.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::answer::Event;
use super::status::{Status, Ticket};
use crate::error::{Error, Result};

/// Bytes of unread text and items at which a reader is cut off.
pub const MAX_UNREAD_BYTES: usize = 128 * 1024;

#[derive(Default)]
struct State {
    queue: VecDeque<Event>,
    bytes: usize,
    sender_gone: bool,
    receiver_gone: bool,
    finished: bool,
    waker: Option<Waker>,
    /// A thread sleeps on `ready`; waking nobody would cost a system call per token.
    waiting: bool,
}

/// What the two ends share.
#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    /// The reader is gone or was cut off; asked of every request at every step.
    unwanted: AtomicBool,
}

impl State {
    /// Ends the answer of a reader that does not keep up.
    fn cut_off(&mut self) {
        self.queue.clear();
        self.queue.push_back(Event::Failed(Error::Overloaded(format!(
            "the reader left more than {MAX_UNREAD_BYTES} bytes of the answer unread"
        ))));
        self.bytes = 0;
        self.finished = true;
    }

    /// The item that the log-probabilities at the front of the queue lead to.
    fn item_ahead(&self) -> Option<&str> {
        match self.queue.iter().find(|event| !matches!(event, Event::Logprob(_))) {
            Some(Event::Item(item)) => Some(&item.id),
            _ => None,
        }
    }
}

impl Shared {
    /// Wakes the reader, if it sleeps.
    fn wake(&self, state: &mut State) {
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        if state.waiting {
            self.ready.notify_one();
        }
    }

    /// Wakes the reader to see that the engine is dead.
    pub fn alarm(&self) {
        self.wake(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics while holding the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end.
pub(crate) struct EventSender {
    shared: Arc<Shared>,
    status: Arc<Status>,
    /// The request's place in the counts, until the sender is dropped.
    pub ticket: Ticket,
}

/// The reader's end: the events of one answer, as an iterator for threads and a [`futures_core::Stream`] for async code.
///
/// The last event is [`Event::Finished`], or an error. Dropping the stream cancels the request.
pub struct EventStream {
    shared: Arc<Shared>,
    status: Arc<Status>,
    /// The stream's place among the readers to be woken at the engine's death.
    place: usize,
}

/// What a push found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The reader is there.
    Delivered,
    /// The reader is gone, or too slow: stop working for it.
    Unwanted,
}

pub(crate) fn channel(status: &Arc<Status>, ticket: Ticket) -> (EventSender, EventStream) {
    let shared = Arc::new(Shared::default());
    let place = status.enter(&shared);
    let sender = EventSender { shared: Arc::clone(&shared), status: Arc::clone(status), ticket };
    (sender, EventStream { shared, status: Arc::clone(status), place })
}

impl EventSender {
    /// Hands an event to the reader.
    pub fn push(&self, event: Event) -> Pushed {
        self.push_all([event])
    }

    /// Hands events to the reader that it finds together.
    pub fn push_all(&self, events: impl IntoIterator<Item = Event>) -> Pushed {
        let mut state = self.shared.lock();
        for event in events {
            if state.receiver_gone || state.finished {
                return Pushed::Unwanted;
            }
            let last = matches!(event, Event::Finished(_) | Event::Failed(_));
            let bytes = event.bytes();
            if !last && state.bytes + bytes > MAX_UNREAD_BYTES {
                state.cut_off();
                self.shared.unwanted.store(true, Ordering::Relaxed);
                self.status.departed();
            } else {
                state.bytes += bytes;
                state.finished |= last;
                match (state.queue.back_mut(), event) {
                    (Some(Event::Text(unread)), Event::Text(delta)) => unread.push_str(&delta),
                    (_, event) => state.queue.push_back(event),
                }
            }
        }
        self.shared.wake(&mut state);
        if self.is_unwanted() { Pushed::Unwanted } else { Pushed::Delivered }
    }

    /// Whether the reader is gone, or was cut off.
    pub fn is_unwanted(&self) -> bool {
        self.shared.unwanted.load(Ordering::Relaxed)
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.sender_gone = true;
        self.shared.wake(&mut state);
    }
}

impl EventStream {
    fn pop(&self, state: &mut State) -> Option<Option<Result<Event>>> {
        while let Some(event) = state.queue.pop_front() {
            state.bytes -= event.bytes().min(state.bytes);
            let item = matches!(event, Event::Logprob(_)).then(|| state.item_ahead()).flatten();
            let Some(event) = self.status.screen(event, item) else { continue };
            return Some(Some(match event {
                Event::Failed(error) => Err(error),
                event => Ok(event),
            }));
        }
        if state.finished {
            return Some(None);
        }
        // A thread that hangs keeps its senders: what it was declared counts.
        let death = self.status.death();
        if state.sender_gone || death.is_some() {
            state.finished = true;
            self.shared.unwanted.store(true, Ordering::Relaxed);
            let reason = death.cloned().unwrap_or_else(|| "it was shut down".to_owned());
            return Some(Some(Err(Error::Dead(reason))));
        }
        None
    }

    /// Waits for the rest of the answer.
    ///
    /// # Errors
    /// What ended the request instead of an answer.
    pub fn wait(self) -> Result<super::Answer> {
        for event in self {
            if let Event::Finished(answer) = event? {
                return Ok(*answer);
            }
        }
        Err(Error::Dead("the answer ended without its last event".to_owned()))
    }
}

/// What a wait of bounded length came to.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "made and taken apart at once")]
pub enum Waited {
    /// An event, or what ended the request instead of an answer.
    Event(Result<Event>),
    /// Nothing follows.
    Ended,
    /// Nothing came in time.
    TimedOut,
}

impl EventStream {
    /// Waits for the next event, but no longer than `patience`.
    pub fn wait_for(&mut self, patience: Duration) -> Waited {
        let deadline = Instant::now().checked_add(patience);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if let Some(event) = self.pop(&mut state) {
                return event.map_or(Waited::Ended, Waited::Event);
            }
            // Beyond the clock's end: a year at a time.
            let left = deadline
                .map_or(Duration::from_secs(31_536_000), |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Waited::TimedOut;
            }
            state.waiting = true;
            state = shared.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting = false;
        }
    }
}

impl Iterator for EventStream {
    type Item = Result<Event>;

    /// Blocks until the next event; `None` after the last one.
    fn next(&mut self) -> Option<Result<Event>> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        loop {
            if let Some(event) = self.pop(&mut state) {
                return event;
            }
            state.waiting = true;
            state = shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting = false;
        }
    }
}

impl futures_core::Stream for EventStream {
    type Item = Result<Event>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        let mut state = self.shared.lock();
        match self.pop(&mut state) {
            Some(event) => Poll::Ready(event),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.receiver_gone = true;
        self.shared.unwanted.store(true, Ordering::Relaxed);
        let early = !state.finished;
        state.queue.clear();
        drop(state);
        self.status.leave(self.place, early);
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::status::Weight;

    fn pair(status: &Arc<Status>) -> (EventSender, EventStream) {
        channel(status, status.ticket(Weight::default()).expect("room"))
    }

    #[test]
    fn unread_text_is_joined() {
        let (sender, mut stream) = pair(&Arc::default());
        sender.push(Event::Text("a".into()));
        sender.push(Event::Text("b".into()));
        assert!(matches!(stream.next(), Some(Ok(Event::Text(text))) if text == "ab"));
    }

    #[test]
    fn a_stalled_reader_is_cut_off() {
        let (sender, mut stream) = pair(&Arc::default());
        let piece = "x".repeat(1024);
        let pushes =
            (0..).take_while(|_| sender.push(Event::Text(piece.clone())) == Pushed::Delivered).count();
        assert_eq!(pushes, MAX_UNREAD_BYTES / 1024);
        assert!(matches!(stream.next(), Some(Err(Error::Overloaded(_)))));
        assert!(stream.next().is_none());
    }

    #[test]
    fn a_dead_engine_is_told_once() {
        let status = Arc::new(Status::default());
        let (sender, mut stream) = pair(&status);
        status.die("a bug".to_owned());
        drop(sender);
        assert!(matches!(stream.next(), Some(Err(Error::Dead(reason))) if reason == "a bug"));
        assert!(stream.next().is_none());
    }

    #[test]
    fn dropping_the_reader_cancels() {
        let (sender, stream) = pair(&Arc::default());
        assert!(!sender.is_unwanted());
        drop(stream);
        assert!(sender.is_unwanted());
        assert_eq!(sender.push(Event::Text("late".into())), Pushed::Unwanted);
    }
}
