//! What of an answer is looked at, in the native form and in OpenAI's, whole or streamed.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

/// Longest message that is kept.
const MAX_MESSAGE: usize = 300;

/// An item that an answer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenItem {
    /// Its id.
    pub id: String,
    /// Its type, where the answer says it.
    pub item_type: Option<String>,
    /// Its codes, where the answer says them.
    pub sid: Option<Vec<u16>>,
    /// The choice it belongs to.
    pub choice: u32,
}

/// Tokens, as the server counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: u64,
    /// Of these, found in the prefix cache.
    pub cached: u64,
    /// Of the answer.
    pub completion: u64,
}

/// What has been seen of an answer.
#[derive(Debug, Default)]
pub struct Seen {
    /// Items in order.
    pub items: Vec<SeenItem>,
    /// The last usage.
    pub tokens: Option<Tokens>,
    /// Name of the state of the catalog.
    pub snapshot: Option<String>,
    /// Whether the server says why there are fewer items than asked for.
    pub exhausted: bool,
    /// An error in the body or the stream.
    pub error: Option<String>,
    /// Whether a stream has said that it ends.
    pub finished: bool,
}

/// What a piece of a stream brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is not empty, or items.
    pub content: bool,
    /// Items.
    pub items: usize,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire<'a> {
    error: Option<Value>,
    #[serde(borrow)]
    snapshot: Option<Cow<'a, str>>,
    exhausted: Option<bool>,
    exhausted_types: Vec<String>,
    dropped: Option<WireDropped>,
    #[serde(borrow)]
    items: Option<Vec<WireItem<'a>>>,
    #[serde(borrow)]
    content: Option<Vec<WirePart<'a>>>,
    #[serde(borrow)]
    choices: Vec<WireChoice<'a>>,
    /// Of the native event `text`.
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    usage: Option<WireUsage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDropped {
    /// Taken down while the answer was made.
    denied_items: u64,
}

#[derive(Deserialize)]
struct WireItem<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow, default, rename = "type")]
    item_type: Option<Cow<'a, str>>,
    #[serde(default)]
    sid: Option<Vec<u16>>,
}

/// Text, or an item whose type is `item_type`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct WirePart<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    item_type: Option<Cow<'a, str>>,
    sid: Option<Vec<u16>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireChoice<'a> {
    index: u32,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    items: Option<Vec<WireItem<'a>>>,
    #[serde(borrow)]
    message: Option<WireMessage<'a>>,
    #[serde(borrow)]
    delta: Option<WireMessage<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireMessage<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    items: Option<Vec<WireItem<'a>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    prompt_tokens_details: Option<WireDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireDetails {
    cached_tokens: Option<u64>,
}

impl Seen {
    /// Forgets everything, for the next answer.
    pub fn reset(&mut self) {
        let mut items = std::mem::take(&mut self.items);
        items.clear();
        *self = Seen { items, ..Seen::default() };
    }

    /// Reads a whole body.
    ///
    /// # Errors
    /// If it is not such an answer.
    pub fn whole(&mut self, body: &[u8]) -> Result<(), String> {
        let wire = parse(body)?;
        self.take(wire, true);
        self.finished = true;
        Ok(())
    }

    /// Reads an event of a stream: a native one has a name, one of OpenAI's has none.
    ///
    /// # Errors
    /// If it is neither.
    pub fn event(&mut self, name: &[u8], data: &[u8]) -> Result<Piece, String> {
        match name {
            b"" if data == b"[DONE]" => {
                self.finished = true;
                Ok(Piece::default())
            }
            b"item" => {
                let item: WireItem<'_> =
                    serde_json::from_slice(data).map_err(|error| broken(data, &error))?;
                self.push(item, 0);
                Ok(Piece { content: true, items: 1 })
            }
            b"done" => {
                self.finished = true;
                // Items were streamed one by one; some servers may give a list in the end alone.
                let streamed = !self.items.is_empty();
                let wire = parse(data)?;
                Ok(self.take(wire, !streamed))
            }
            b"" | b"text" | b"error" => {
                let wire = parse(data)?;
                Ok(self.take(wire, true))
            }
            _ => Ok(Piece::default()),
        }
    }

    /// The message of an error's body, or its begin.
    pub fn error_of(body: &[u8]) -> String {
        let parsed = serde_json::from_slice::<Value>(body).ok();
        let message = parsed.as_ref().and_then(|body| body.get("error")).map(message_of);
        message.unwrap_or_else(|| short(&String::from_utf8_lossy(body)))
    }

    fn take(&mut self, wire: Wire<'_>, with_items: bool) -> Piece {
        let before = self.items.len();
        let mut content = wire.text.is_some_and(|text| !text.is_empty());
        if let Some(error) = wire.error {
            self.error = Some(message_of(&error));
        }
        if let Some(snapshot) = wire.snapshot {
            self.snapshot = Some(snapshot.into_owned());
        }
        let denied = wire.dropped.is_some_and(|dropped| dropped.denied_items > 0);
        self.exhausted |= wire.exhausted.unwrap_or(false) || !wire.exhausted_types.is_empty() || denied;
        if let Some(usage) = wire.usage {
            let details = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
            self.tokens = Some(Tokens {
                prompt: usage.prompt_tokens,
                cached: details.unwrap_or(usage.cached_tokens),
                completion: usage.completion_tokens,
            });
        }
        if with_items {
            wire.items.into_iter().flatten().for_each(|item| self.push(item, 0));
            for part in wire.content.into_iter().flatten() {
                content |= part.text.is_some_and(|text| !text.is_empty());
                if let Some(id) = part.id {
                    self.push(WireItem { id, item_type: part.item_type, sid: part.sid }, 0);
                }
            }
        }
        for choice in wire.choices {
            content |= choice.text.is_some_and(|text| !text.is_empty());
            choice.items.into_iter().flatten().for_each(|item| self.push(item, choice.index));
            for message in choice.message.into_iter().chain(choice.delta) {
                content |= message.content.is_some_and(|text| !text.is_empty());
                content |= message.reasoning_content.is_some_and(|text| !text.is_empty());
                message.items.into_iter().flatten().for_each(|item| self.push(item, choice.index));
            }
        }
        let items = self.items.len() - before;
        Piece { content: content || items > 0, items }
    }

    fn push(&mut self, item: WireItem<'_>, choice: u32) {
        self.items.push(SeenItem {
            id: item.id.into_owned(),
            item_type: item.item_type.map(Cow::into_owned),
            sid: item.sid,
            choice,
        });
    }
}

fn parse(body: &[u8]) -> Result<Wire<'_>, String> {
    serde_json::from_slice(body).map_err(|error| broken(body, &error))
}

fn broken(body: &[u8], error: &serde_json::Error) -> String {
    format!("not an answer ({error}): {}", short(&String::from_utf8_lossy(body)))
}

/// The message of an error object, or the object.
fn message_of(error: &Value) -> String {
    short(&error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned))
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, item_type: &str, sid: &[u16], choice: u32) -> SeenItem {
        SeenItem { id: id.to_owned(), item_type: Some(item_type.to_owned()), sid: Some(sid.to_vec()), choice }
    }

    #[test]
    fn native_answers() {
        let mut seen = Seen::default();
        let body = r#"{"id":"r","snapshot":"s+1","finish_reason":"stop","exhausted":true,"items":[{"id":"a\"1","type":"book","sid":[1,2],"score":-1.5,"title":"x"}],"usage":{"prompt_tokens":5,"cached_tokens":3,"completion_tokens":4,"beam_rows":9},"timings":{}}"#;
        seen.whole(body.as_bytes()).unwrap();
        assert_eq!(seen.items, [item("a\"1", "book", &[1, 2], 0)]);
        assert_eq!(seen.tokens, Some(Tokens { prompt: 5, cached: 3, completion: 4 }));
        assert_eq!((seen.snapshot.as_deref(), seen.exhausted, seen.finished), (Some("s+1"), true, true));
        seen.reset();
        let body = r#"{"content":[{"type":"text","text":"Try "},{"type":"item","id":"b","item_type":"film","sid":[7],"score":0}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        seen.whole(body.as_bytes()).unwrap();
        assert_eq!(seen.items, [item("b", "film", &[7], 0)]);
        assert!(!seen.exhausted);
        for notes in
            [r#"{"exhausted_types":["book"]}"#, r#"{"dropped":{"denied_items":1,"unknown_items":2}}"#]
        {
            seen.reset();
            seen.whole(notes.as_bytes()).unwrap();
            assert!(seen.exhausted, "{notes}");
        }
        assert!(seen.whole(b"<html>").unwrap_err().contains("<html>"));
    }

    #[test]
    fn native_streams() {
        let mut seen = Seen::default();
        let mut event = |name: &str, data: &str| seen.event(name.as_bytes(), data.as_bytes()).unwrap();
        assert_eq!(event("text", r#"{"text":"Try "}"#), Piece { content: true, items: 0 });
        assert_eq!(event("text", r#"{"text":""}"#), Piece::default());
        assert_eq!(
            event("item", r#"{"id":"b","type":"film","sid":[7],"score":0}"#),
            Piece { content: true, items: 1 }
        );
        assert_eq!(event("future", "?"), Piece::default());
        let done = r#"{"snapshot":"s","content":[{"type":"item","id":"b","item_type":"film","sid":[7]}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
        assert_eq!(event("done", done), Piece::default());
        assert_eq!(seen.items.len(), 1);
        assert!(seen.finished && seen.error.is_none());
        seen.event(b"error", br#"{"error":{"message":"device: gone","type":"server_error"}}"#).unwrap();
        assert_eq!(seen.error.as_deref(), Some("device: gone"));
    }

    #[test]
    fn a_list_that_comes_with_the_end_counts_once() {
        let mut seen = Seen::default();
        let piece = seen.event(b"done", br#"{"items":[{"id":"a"},{"id":"b"}]}"#).unwrap();
        assert_eq!((piece.items, seen.items.len(), seen.finished), (2, 2, true));
    }

    #[test]
    fn answers_of_openai() {
        let mut seen = Seen::default();
        let body = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"A","items":[{"start":0,"end":1,"id":"a","type":"book","sid":[1],"score":-1}]},"finish_reason":"stop"},{"index":1,"message":{"role":"assistant","content":null,"items":[{"id":"b","type":"book","sid":[2]}]}}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"prompt_tokens_details":{"cached_tokens":8}}}"#;
        seen.whole(body.as_bytes()).unwrap();
        assert_eq!(seen.items, [item("a", "book", &[1], 0), item("b", "book", &[2], 1)]);
        assert_eq!(seen.tokens, Some(Tokens { prompt: 9, cached: 8, completion: 2 }));
    }

    #[test]
    fn streams_of_openai() {
        let mut seen = Seen::default();
        let mut event = |data: &str| seen.event(b"", data.as_bytes()).unwrap();
        assert_eq!(
            event(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#),
            Piece::default()
        );
        assert_eq!(
            event(r#"{"choices":[{"index":0,"delta":{"content":"Try "},"logprobs":null}],"usage":null}"#),
            Piece { content: true, items: 0 }
        );
        assert_eq!(event(r#"{"choices":[{"index":0,"text":"x"}]}"#), Piece { content: true, items: 0 });
        assert_eq!(
            event(r#"{"choices":[{"index":0,"delta":{"content":"T","items":[{"id":"b"}]}}]}"#),
            Piece { content: true, items: 1 }
        );
        assert_eq!(event(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#), Piece::default());
        assert_eq!(
            event(
                r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7,"prompt_tokens_details":null}}"#
            ),
            Piece::default()
        );
        assert_eq!(event("[DONE]"), Piece::default());
        assert!(seen.finished);
        assert_eq!(seen.tokens, Some(Tokens { prompt: 3, cached: 0, completion: 7 }));
        assert!(seen.event(b"", b"{\"choices\":").is_err());
    }

    #[test]
    fn messages_of_errors() {
        for (body, message) in [
            (r#"{"error":{"message":"beam_width: 0","type":"invalid_request_error"}}"#, "beam_width: 0"),
            (r#"{"error":"plain"}"#, "\"plain\""),
            ("Bad Gateway", "Bad Gateway"),
        ] {
            assert_eq!(Seen::error_of(body.as_bytes()), message);
        }
        assert_eq!(Seen::error_of("é".repeat(1000).as_bytes()).chars().count(), MAX_MESSAGE + 1);
    }
}
