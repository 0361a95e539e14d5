//! Lines of `/v1/batch`: native requests, and OpenAI's lines that name a route.
//!
//! A line of input gives a line of output, errors included.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::{Output, Request};
use crate::error::{Error, Result};
use crate::server::error::ApiError;
use crate::server::openai::{ChatBody, CompletionBody, Object, parse};

/// A line that was understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchLine {
    /// Whose line it is.
    pub sender: Sender,
    /// What it asks for.
    pub body: BatchBody,
}

/// A line that was not.
#[derive(Clone, Debug)]
pub(crate) struct BadLine {
    /// Whose line it is, as far as it says.
    pub sender: Sender,
    /// What is wrong; fields of a body are named as in a body alone.
    pub error: Error,
}

/// The form of a line, which its answer keeps, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A native request with its `id`.
    Native(Option<String>),
    /// OpenAI's line with its `custom_id`.
    OpenAi(Option<String>),
}

/// What a line asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum BatchBody {
    /// A native request, alone or for `/v1/items`.
    Native(Box<Request>),
    /// A body of `/v1/chat/completions`.
    Chat(Box<ChatBody>),
    /// A body of `/v1/completions`.
    Completion(Box<CompletionBody>),
}

/// What tells the two forms apart. Whatever else a line holds is looked at later.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Glance {
    id: Option<Value>,
    custom_id: Option<Value>,
    method: Option<Value>,
    url: Option<Value>,
}

/// OpenAI's line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<B> {
    custom_id: String,
    method: String,
    // Looked at before: it says what the body is.
    #[serde(rename = "url")]
    _url: String,
    body: Object<B>,
}

impl BatchLine {
    /// Parses a line.
    ///
    /// # Errors
    /// [`BadLine`] with [`Error::Invalid`]: the field, and what is wrong with it.
    pub(crate) fn from_json(line: &[u8]) -> Result<BatchLine, BadLine> {
        // What is no object at all is reported by the native form.
        let glance: Glance = serde_json::from_slice(line).unwrap_or_default();
        let text = |value: &Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        if glance.custom_id.is_none() && glance.method.is_none() && glance.url.is_none() {
            return match parse::<Request>(line) {
                Ok(request) => Ok(BatchLine {
                    sender: Sender::Native(request.id.clone()),
                    body: BatchBody::Native(Box::new(request)),
                }),
                Err(error) => Err(BadLine { sender: Sender::Native(text(&glance.id)), error }),
            };
        }
        let sender = Sender::OpenAi(text(&glance.custom_id));
        match BatchBody::of_route(text(&glance.url).as_deref(), line) {
            Ok(body) => Ok(BatchLine { sender, body }),
            Err(error) => Err(BadLine { sender, error: within_body(error) }),
        }
    }
}

impl BatchBody {
    fn of_route(url: Option<&str>, line: &[u8]) -> Result<BatchBody> {
        match url {
            Some("/v1/chat/completions") => {
                let line: Line<ChatBody> = parse(line)?;
                line.check(line.body.0.stream)?;
                Ok(BatchBody::Chat(Box::new(line.body.0)))
            }
            Some("/v1/completions") => {
                let line: Line<CompletionBody> = parse(line)?;
                line.check(line.body.0.stream)?;
                Ok(BatchBody::Completion(Box::new(line.body.0)))
            }
            Some("/v1/items") => {
                let mut line: Line<Request> = parse(line)?;
                line.check(None)?;
                line.body.0.output.get_or_insert(Output::Items);
                Ok(BatchBody::Native(Box::new(line.body.0)))
            }
            Some(other) => Err(Error::invalid(
                "url",
                format!("`{other}` is not one of /v1/chat/completions, /v1/completions and /v1/items"),
            )),
            None => Err(Error::invalid("url", "missing or not a string; the route is needed")),
        }
    }
}

impl<B> Line<B> {
    fn check(&self, stream: Option<bool>) -> Result<()> {
        if self.method != "POST" {
            return Err(Error::invalid("method", format!("`{}` is not POST", self.method)));
        }
        if self.custom_id.is_empty() {
            return Err(Error::invalid(
                "custom_id",
                "the string is empty; it must have at least 1 character",
            ));
        }
        if stream == Some(true) {
            return Err(Error::invalid("body.stream", "true is not allowed in a batch: a line gives a line"));
        }
        Ok(())
    }
}

/// The same error with the field named as in a body alone.
fn within_body(error: Error) -> Error {
    match &error {
        Error::Invalid { field, .. } => match field.strip_prefix("body.") {
            Some(field) => {
                let field = field.to_owned();
                error.at(field)
            }
            None => error,
        },
        _ => error,
    }
}

/// An answer to OpenAI's line.
pub(crate) struct LineAnswer<'a> {
    /// Id of this answer.
    pub id: &'a str,
    /// The line's own.
    pub custom_id: Option<&'a str>,
    /// HTTP status that the route would have answered with.
    pub status_code: u16,
    /// Id of the request.
    pub request_id: &'a str,
    /// JSON that the route would have answered with.
    pub body: &'a [u8],
}

impl LineAnswer<'_> {
    /// The line, without its end.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let head = json!({"id": self.id, "custom_id": self.custom_id, "error": null});
        let response = json!({"status_code": self.status_code, "request_id": self.request_id});
        // The body is JSON already, and may be large.
        let mut out = open_object(&head, self.body.len() + 160);
        out.extend_from_slice(b",\"response\":");
        out.extend_from_slice(&open_object(&response, 0));
        out.extend_from_slice(b",\"body\":");
        out.extend_from_slice(self.body);
        out.extend_from_slice(b"}}");
        out
    }
}

/// An object without its closing brace, with room for `more` bytes.
fn open_object(object: &Value, more: usize) -> Vec<u8> {
    let mut out = object.to_string().into_bytes();
    out.pop();
    out.reserve(more);
    out
}

/// The line of a native request that failed: `{"id": …, "error": {"type": …, "field": …, "message": …}}`.
pub(crate) fn native_error(id: Option<&str>, error: &ApiError) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        error: Body<'a>,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'a str>,
        message: &'a str,
    }
    let field = error.param.as_deref();
    // The native form has the field beside the sentence.
    let bare = field.and_then(|field| error.message.strip_prefix(field)?.strip_prefix(": "));
    let message = bare.unwrap_or(&error.message);
    let line = Line { id, error: Body { kind: error.code, field, message } };
    serde_json::to_vec(&line).expect("strings are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(line: &Value) -> (Sender, String, String) {
        let bad = BatchLine::from_json(line.to_string().as_bytes()).unwrap_err();
        match bad.error {
            Error::Invalid { field, message } => (bad.sender, field, message),
            other => panic!("{other}"),
        }
    }

    fn line(url: &str, body: Value) -> Value {
        json!({"custom_id": "c1", "method": "POST", "url": url, "body": body})
    }

    #[test]
    fn both_forms_are_understood() {
        let native = json!({"id": "r1", "prompt": "p"});
        let parsed = BatchLine::from_json(native.to_string().as_bytes()).unwrap();
        assert_eq!(parsed.sender, Sender::Native(Some("r1".to_owned())));
        let BatchBody::Native(request) = parsed.body else { panic!() };
        assert_eq!(serde_json::to_value(request).unwrap(), native);

        let chat = json!({"messages": [{"role": "user", "content": "x"}], "n": 2});
        let completion = json!({"prompt": "x"});
        for (url, body) in
            [("/v1/chat/completions", &chat), ("/v1/completions", &completion), ("/v1/items", &completion)]
        {
            let parsed = BatchLine::from_json(line(url, body.clone()).to_string().as_bytes()).unwrap();
            assert_eq!(parsed.sender, Sender::OpenAi(Some("c1".to_owned())));
            let bytes = body.to_string().into_bytes();
            match parsed.body {
                BatchBody::Chat(found) => assert_eq!(*found, ChatBody::from_json(&bytes).unwrap()),
                BatchBody::Completion(found) => {
                    assert_eq!(*found, CompletionBody::from_json(&bytes).unwrap())
                }
                BatchBody::Native(found) => {
                    assert_eq!(url, "/v1/items");
                    assert_eq!((found.output, found.prompt.as_deref()), (Some(Output::Items), Some("x")));
                }
            }
        }
        // An output that is named stays.
        let text = line("/v1/items", json!({"prompt": "x", "output": "text"}));
        let BatchBody::Native(request) = BatchLine::from_json(text.to_string().as_bytes()).unwrap().body
        else {
            panic!()
        };
        assert_eq!(request.output, Some(Output::Text));
    }

    #[test]
    fn bad_lines_say_whose_they_are_and_what_is_wrong() {
        let openai = || Sender::OpenAi(Some("c1".to_owned()));
        let messages = json!([{"role": "user", "content": "x"}]);
        for (line, sender, field, reason) in [
            (
                json!({"id": "r1", "promt": "p"}),
                Sender::Native(Some("r1".to_owned())),
                "promt",
                "unknown field",
            ),
            (json!({"id": 5, "prompt": "p"}), Sender::Native(None), "id", "integer `5`"),
            (json!([1]), Sender::Native(None), "request", "invalid type"),
            (line("/v1/embeddings", json!({})), openai(), "url", "/v1/embeddings"),
            (line("/v1/completions", json!({"prompt": 5})), openai(), "prompt", "a list of texts"),
            (line("/v1/chat/completions", json!({"messages": messages, "n": "2"})), openai(), "n", "string"),
            (
                line("/v1/completions", json!({"prompt": "x", "stream": true})),
                openai(),
                "stream",
                "not allowed in a batch",
            ),
            (
                json!({"custom_id": "c1", "method": "GET", "url": "/v1/items", "body": {}}),
                openai(),
                "method",
                "`GET`",
            ),
            (json!({"custom_id": "c1", "method": "POST", "url": "/v1/items"}), openai(), "request", "`body`"),
            (json!({"custom_id": "c1", "body": {}}), openai(), "url", "missing"),
            (line("/v1/items", json!([])), openai(), "body", "expected an object"),
            (
                json!({"custom_id": 7, "method": "POST", "url": "/v1/items", "body": {}}),
                Sender::OpenAi(None),
                "custom_id",
                "integer `7`",
            ),
            (
                json!({"custom_id": "", "method": "POST", "url": "/v1/items", "body": {}}),
                Sender::OpenAi(Some(String::new())),
                "custom_id",
                "empty",
            ),
            (
                json!({"custom_id": "c1", "method": "POST", "url": "/v1/items", "body": {}, "x": 1}),
                openai(),
                "x",
                "unknown field",
            ),
        ] {
            let (found, at, message) = bad(&line);
            assert_eq!((found, at.as_str()), (sender, field), "{line}: {message}");
            assert!(message.contains(reason), "{line}: {message}");
        }
        for bytes in [&b"{"[..], b"\xff", b"{} {}"] {
            assert_eq!(BatchLine::from_json(bytes).unwrap_err().sender, Sender::Native(None));
        }
    }

    #[test]
    fn answers_are_lines() {
        let answer = LineAnswer {
            id: "b\"1",
            custom_id: Some("c1"),
            status_code: 200,
            request_id: "r",
            body: br#"{"a":[1]}"#,
        };
        let expected = json!({"id": "b\"1", "custom_id": "c1", "error": null,
            "response": {"status_code": 200, "request_id": "r", "body": {"a": [1]}}});
        assert_eq!(serde_json::from_slice::<Value>(&answer.to_json()).unwrap(), expected);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(native_error(Some("r1"), &Error::invalid("n", "0 is too small").into())),
            r#"{"id":"r1","error":{"type":"invalid_request","field":"n","message":"0 is too small"}}"#
        );
        assert_eq!(
            text(native_error(None, &Error::Dead("gone".into()).into())),
            r#"{"error":{"type":"engine_dead","message":"the engine is dead: gone"}}"#
        );
    }
}
