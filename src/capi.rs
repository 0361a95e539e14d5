//! The C interface (`include/sidereal.h`): servers in other languages hold the engine in their process.
//!
//! Requests and events are the native form as JSON, so that the interface stays as small as this: create, submit, poll, cancel, free. Nothing here
//! unwinds into the caller.

use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::device::ops::DType;
use crate::engine::{Engine, EngineBuilder, Event, EventStream, Request, Waited};
use crate::error::{Error, Result};

/// An engine as C holds it.
pub struct SiderealEngine(Engine);

/// An answer that is being made, as C holds it.
pub struct SiderealStream {
    events: Option<EventStream>,
    /// What the last event pointed to.
    json: Vec<u8>,
}

/// An event as C reads it.
#[repr(C)]
pub struct SiderealEvent {
    kind: c_int,
    json: *const c_char,
    len: usize,
}

const TIMEOUT: c_int = 0;
const TEXT: c_int = 1;
const ITEM: c_int = 2;
const DONE: c_int = 3;
const ERROR: c_int = 4;
const END: c_int = 5;

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// Folder; without one the built-in demonstration.
    model: Option<PathBuf>,
    catalog: Option<PathBuf>,
    layout: Option<PathBuf>,
    dtype: Option<DType>,
    threads: Option<usize>,
    cache_mib: Option<usize>,
    max_rows: Option<usize>,
    max_requests: Option<usize>,
}

impl Options {
    fn start(self) -> Result<Engine> {
        let mut builder = match &self.model {
            Some(folder) => EngineBuilder::open(folder)?,
            None => crate::demo::builder()?,
        };
        if let Some(layout) = &self.layout {
            builder = builder.layout_file(layout)?;
        }
        if let Some(catalog) = &self.catalog {
            builder = builder.catalog_file(catalog, &mut |_, _| {})?;
        }
        if let Some(dtype) = self.dtype {
            builder = builder.dtype(dtype);
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(mib) = self.cache_mib {
            let too_many =
                || Error::invalid("cache_mib", format!("{mib} is more than memory can be addressed"));
            builder = builder.cache_bytes(mib.checked_mul(1 << 20).ok_or_else(too_many)?);
        }
        if let Some(rows) = self.max_rows {
            builder = builder.max_rows(rows);
        }
        if let Some(requests) = self.max_requests {
            builder = builder.max_requests(requests);
        }
        builder.start()
    }
}

/// Runs `work`; if it fails or panics, writes why to `error` and gives null.
fn guarded<T>(error: *mut *mut c_char, work: impl FnOnce() -> Result<T>) -> *mut T {
    let message = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Box::into_raw(Box::new(value)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "a bug: a panic".to_owned(),
    };
    if !error.is_null() {
        let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the caller gives null or a place for one pointer.
        unsafe { *error = message.into_raw() };
    }
    ptr::null_mut()
}

/// Text that the caller holds.
///
/// # Safety
/// `text` points to `len` readable bytes.
unsafe fn text<'a>(field: &str, text: *const c_char, len: usize) -> Result<&'a str> {
    if text.is_null() {
        return Err(Error::invalid(field, "a null pointer"));
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    std::str::from_utf8(bytes).map_err(|error| Error::invalid(field, format!("not UTF-8: {error}")))
}

/// Starts an engine from options as JSON (null: the built-in demonstration).
///
/// # Safety
/// `options` is null or a string with an end; `error` is null or a place for one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_create(
    options: *const c_char,
    error: *mut *mut c_char,
) -> *mut SiderealEngine {
    guarded(error, || {
        let options = if options.is_null() {
            Options::default()
        } else {
            // SAFETY: the caller gives a string with an end.
            let json = unsafe { CStr::from_ptr(options) }.to_bytes();
            let mut deserializer = serde_json::Deserializer::from_slice(json);
            serde_path_to_error::deserialize(&mut deserializer)
                .map_err(|error| Error::invalid(error.path().to_string(), error.inner().to_string()))?
        };
        Ok(SiderealEngine(options.start()?))
    })
}

/// Gives an engine back; its streams end by themselves.
///
/// # Safety
/// `engine` is null or comes from [`sidereal_create`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_free(engine: *mut SiderealEngine) {
    if !engine.is_null() {
        // SAFETY: it was made by `guarded`, and the caller gives it up.
        let engine = unsafe { Box::from_raw(engine) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
    }
}

/// Hands a request in the native form to the engine.
///
/// # Safety
/// `engine` comes from [`sidereal_create`]; `request` points to `len` readable bytes; `error` is null or a place for one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_submit(
    engine: *const SiderealEngine,
    request: *const c_char,
    len: usize,
    error: *mut *mut c_char,
) -> *mut SiderealStream {
    guarded(error, || {
        // SAFETY: the caller gives null or an engine that lives.
        let engine = unsafe { engine.as_ref() }.ok_or_else(|| Error::invalid("engine", "a null pointer"))?;
        // SAFETY: the caller gives `len` readable bytes.
        let request = Request::from_json(unsafe { text("request", request, len) }?)?;
        Ok(SiderealStream { events: Some(engine.0.submit(&request)?), json: Vec::new() })
    })
}

/// Waits for the next event, at most so many milliseconds (less than 0: without end); returns its kind.
///
/// # Safety
/// `stream` comes from [`sidereal_submit`] and is used by one thread at a time; `event` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_poll(
    stream: *mut SiderealStream,
    timeout_ms: c_int,
    event: *mut SiderealEvent,
) -> c_int {
    // SAFETY: the caller gives null or a stream that lives and that nobody else uses now.
    let Some(stream) = (unsafe { stream.as_mut() }) else { return END };
    let kind = catch_unwind(AssertUnwindSafe(|| stream.next(timeout_ms))).unwrap_or(ERROR);
    if !event.is_null() {
        let json = stream.json.as_ptr().cast();
        // SAFETY: the caller gives a place for one event.
        unsafe { event.write(SiderealEvent { kind, json, len: stream.json.len() }) };
    }
    kind
}

/// Cancels what is left of an answer: polls give the end from now on.
///
/// # Safety
/// As [`sidereal_poll`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_cancel(stream: *mut SiderealStream) {
    // SAFETY: the caller gives null or a stream that lives and that nobody else uses now.
    if let Some(stream) = unsafe { stream.as_mut() } {
        let events = stream.events.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(events)));
    }
}

/// Gives a stream back; cancels what is left of its answer.
///
/// # Safety
/// `stream` is null or comes from [`sidereal_submit`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_free_stream(stream: *mut SiderealStream) {
    if !stream.is_null() {
        // SAFETY: it was made by `guarded`, and the caller gives it up.
        let stream = unsafe { Box::from_raw(stream) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
    }
}

/// Gives the text of an error back.
///
/// # Safety
/// `error` is null or was written by one of these functions and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sidereal_free_error(error: *mut c_char) {
    if !error.is_null() {
        // SAFETY: it was made by `CString::into_raw`, and the caller gives it up.
        drop(unsafe { CString::from_raw(error) });
    }
}

impl SiderealStream {
    fn next(&mut self, timeout_ms: c_int) -> c_int {
        let patience = u64::try_from(timeout_ms).map_or(Duration::MAX, Duration::from_millis);
        self.json.clear();
        loop {
            let Some(events) = &mut self.events else { return END };
            let (kind, json) = match events.wait_for(patience) {
                Waited::TimedOut => return TIMEOUT,
                Waited::Ended => {
                    self.events = None;
                    return END;
                }
                Waited::Event(Ok(Event::Text(text))) => (TEXT, serde_json::to_vec(&json!({ "text": text }))),
                Waited::Event(Ok(Event::Item(item))) => (ITEM, serde_json::to_vec(&item)),
                Waited::Event(Ok(Event::Finished(answer))) => (DONE, serde_json::to_vec(&answer)),
                Waited::Event(Ok(_)) => continue,
                Waited::Event(Err(error)) => {
                    let kind = error.kind();
                    (
                        ERROR,
                        serde_json::to_vec(&json!({"error": {"type": kind, "message": error.to_string()}})),
                    )
                }
            };
            // Strings, numbers and lists of them cannot fail to be written.
            self.json = json.unwrap_or_default();
            return kind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create() -> *mut SiderealEngine {
        // SAFETY: null stands for the demonstration, and for no interest in errors.
        let engine = unsafe { sidereal_create(ptr::null(), ptr::null_mut()) };
        assert!(!engine.is_null());
        engine
    }

    fn submit(engine: *mut SiderealEngine, request: &str) -> Result<*mut SiderealStream, String> {
        let mut error = ptr::null_mut();
        // SAFETY: all pointers are to live values.
        let stream = unsafe { sidereal_submit(engine, request.as_ptr().cast(), request.len(), &mut error) };
        if !stream.is_null() {
            return Ok(stream);
        }
        // SAFETY: null was returned, so the error is set.
        let message = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        // SAFETY: it is not used again.
        unsafe { sidereal_free_error(error) };
        Err(message)
    }

    fn poll(stream: *mut SiderealStream, timeout_ms: c_int) -> (c_int, String) {
        let mut event = SiderealEvent { kind: -1, json: ptr::null(), len: 0 };
        // SAFETY: the stream is live, the event writable.
        let kind = unsafe { sidereal_poll(stream, timeout_ms, &mut event) };
        assert_eq!(kind, event.kind);
        // SAFETY: an event points to `len` bytes until the next poll.
        let json = unsafe { std::slice::from_raw_parts(event.json.cast::<u8>(), event.len) };
        (kind, String::from_utf8(json.to_vec()).expect("JSON"))
    }

    #[test]
    fn an_answer_is_polled_to_its_end() {
        let engine = create();
        let stream = submit(engine, r#"{"prompt": "hello", "output": "items", "n": 3}"#).expect("valid");
        let (kind, json) = poll(stream, -1);
        let answer: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((kind, answer["items"].as_array().expect("a list").len()), (DONE, 3));
        assert_eq!(poll(stream, 1000), (END, String::new()));
        // SAFETY: both are live and not used again.
        unsafe {
            sidereal_free_stream(stream);
            sidereal_free(engine);
        }
    }

    #[test]
    fn a_cancelled_answer_ends() {
        let engine = create();
        let request = r#"{"prompt": "hello", "max_tokens": 900, "ignore_eos": true}"#;
        let stream = submit(engine, request).expect("valid");
        let (kind, json) = poll(stream, -1);
        assert!(kind == TEXT && json.starts_with("{\"text\":"), "{kind}: {json}");
        // SAFETY: the stream is live.
        unsafe { sidereal_cancel(stream) };
        assert_eq!(poll(stream, -1).0, END);
        // SAFETY: both are live and not used again.
        unsafe {
            sidereal_free_stream(stream);
            sidereal_free(engine);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let engine = create();
        let error = submit(engine, r#"{"prompt": "x", "n": 0, "output": "items"}"#).expect_err("n is 0");
        assert!(error.starts_with("n: 0"), "{error}");
        let options = c"{\"modle\": \"x\"}";
        let mut error = ptr::null_mut();
        // SAFETY: both pointers are to live values.
        assert!(unsafe { sidereal_create(options.as_ptr(), &mut error) }.is_null());
        // SAFETY: null was returned, so the error is set.
        let message = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
        assert!(message.contains("modle"), "{message}");
        // SAFETY: each is given up once; null is allowed everywhere.
        unsafe {
            sidereal_free_error(error);
            sidereal_free(engine);
            sidereal_free(ptr::null_mut());
            sidereal_free_stream(ptr::null_mut());
            sidereal_cancel(ptr::null_mut());
            assert_eq!(sidereal_poll(ptr::null_mut(), 0, ptr::null_mut()), END);
            assert!(sidereal_submit(ptr::null(), ptr::null(), 0, ptr::null_mut()).is_null());
        }
    }
}
