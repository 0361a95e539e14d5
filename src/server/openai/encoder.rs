//! Events and answers of the engine as the bytes that OpenAI's clients read.

use std::borrow::Cow;

use serde::Serialize;

use super::Route;
use super::logprobs::{ChatLogprobs, CompletionLogprobs, Offsets, Tokens};
use super::plan::Plan;
use super::response::{
    ChatBodyOf, ChatDeltaOf, Choice, Delta, Envelope, Extras, Item, Notes, ReplyMessage, TextBodyOf, Usage,
    text_and_items,
};
use crate::engine::{Answer, AnswerItem, Engine, Event, FinishReason, TokenLogprob};

/// What the server decides about an answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// Id of the answer: `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
}

/// JSON to be sent, without what the transport puts around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The bytes.
    pub json: Vec<u8>,
    /// Ids of the items that they name.
    pub items: Vec<String>,
}

/// Writes the answer to one HTTP request, streamed or whole.
pub(crate) struct Encoder {
    engine: Engine,
    reply: Reply,
    route: Route,
    listed: bool,
    grounded: bool,
    include_usage: bool,
    variants: usize,
    per_request: usize,
    /// What stands before and after the choice of every chunk.
    head: Vec<u8>,
    tail: &'static [u8],
    streams: Vec<Stream>,
    usage: Usage,
}

/// Where the stream of one request of the plan stands.
struct Stream {
    /// Whether a chunk was sent.
    begun: bool,
    /// Code points of the text so far.
    place: usize,
    /// Log-probabilities of tokens whose text has not come yet.
    pending: Vec<TokenLogprob>,
    offsets: Offsets,
}

/// A piece of a choice that is being streamed.
struct Piece<'a> {
    index: usize,
    role: Option<&'static str>,
    content: Option<&'a str>,
    item: Option<&'a [Item<'a>]>,
    logprobs: &'a [TokenLogprob],
    end: Option<(FinishReason, Extras<'a>)>,
}

impl<'a> Piece<'a> {
    fn new(index: usize, content: &'a str) -> Piece<'a> {
        Piece { index, role: None, content: Some(content), item: None, logprobs: &[], end: None }
    }
}

impl Encoder {
    /// Begins the answer to a plan.
    pub(crate) fn new(plan: &Plan, reply: Reply, engine: Engine) -> Encoder {
        let object = match plan.route {
            Route::Chat => "chat.completion.chunk",
            Route::Completion => "text_completion",
        };
        let head = format!(
            r#"{{"id":{},"object":"{object}","created":{},"model":{},"choices":["#,
            Quoted(&reply.id),
            reply.created,
            Quoted(&reply.model),
        );
        let stream = || Stream {
            begun: false,
            place: 0,
            pending: Vec::new(),
            offsets: Offsets::new(engine.tokenizer()),
        };
        let streams = (0..plan.count).map(|_| stream()).collect();
        Encoder {
            reply,
            route: plan.route,
            listed: plan.output == crate::engine::Output::Items,
            grounded: plan.output != crate::engine::Output::Text,
            include_usage: plan.include_usage,
            variants: plan.variants,
            per_request: plan.per_request,
            head: head.into_bytes(),
            // With the usage asked for, every chunk has the key.
            tail: if plan.include_usage { b",\"usage\":null}" } else { b"}" },
            streams,
            usage: Usage::default(),
            engine,
        }
    }

    /// The chunks that an event of a request of the plan becomes.
    pub(crate) fn event(&mut self, request: usize, event: &Event) -> Vec<Chunk> {
        if let Event::Logprob(entry) = event {
            self.streams[request].pending.push(entry.clone());
            return Vec::new();
        }
        let mut chunks = Vec::with_capacity(2);
        self.begin(request, &mut chunks);
        match event {
            Event::Text(text) => chunks.push(self.text(request, text)),
            Event::Item(item) => chunks.push(self.item(request, item)),
            Event::Finished(answer) => self.finish(request, answer, &mut chunks),
            Event::Logprob(_) | Event::Failed(_) => {}
        }
        chunks
    }

    /// The chunk after the last choice: the usage, if it was asked for.
    pub(crate) fn end(&mut self) -> Vec<Chunk> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut json = self.head.clone();
        json.extend_from_slice(b"],\"usage\":");
        write(&mut json, &self.usage);
        json.push(b'}');
        vec![Chunk { json, items: Vec::new() }]
    }

    /// The whole answer; `answers` in the order of the plan's requests.
    pub(crate) fn whole(&self, answers: &[Answer]) -> Chunk {
        let mut usage = Usage::default();
        for (request, answer) in answers.iter().enumerate() {
            usage.add(answer, request.is_multiple_of(self.variants));
        }
        let notes = Notes::of(answers, self.variants);
        let said = || answers.iter().enumerate().flat_map(|(request, answer)| self.said(request, answer));
        let mut json = Vec::with_capacity(512);
        match self.route {
            Route::Chat => {
                let choices = said().map(|said| self.chat_choice(said)).collect();
                write(&mut json, &self.envelope("chat.completion", choices, usage, notes));
            }
            Route::Completion => {
                let choices = said().map(|said| self.completion_choice(said)).collect();
                write(&mut json, &self.envelope("text_completion", choices, usage, notes));
            }
        }
        let items = said().flat_map(|said| said.items).map(|item| item.id.to_owned()).collect();
        Chunk { json, items }
    }

    fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        choices: Vec<C>,
        usage: Usage,
        notes: Notes<'a>,
    ) -> Envelope<'a, C> {
        let Reply { id, created, model } = &self.reply;
        Envelope { id, object, created: *created, model, choices, usage: Some(usage), notes }
    }

    fn tokens(&self) -> Tokens<'_> {
        Tokens { tokenizer: self.engine.tokenizer(), layout: self.engine.layout() }
    }
}

/// One choice of a whole answer.
struct Said<'a> {
    index: usize,
    content: Cow<'a, str>,
    items: Vec<Item<'a>>,
    answer: &'a Answer,
}

/// Whole answers.
impl Encoder {
    /// The choices of a request.
    fn said<'a>(&self, request: usize, answer: &'a Answer) -> Vec<Said<'a>> {
        let first = request * self.per_request;
        if let Some(list) = &answer.items {
            let choice = |(place, item): (usize, &'a AnswerItem)| {
                let (item, text) = Item::at(0, item);
                Said { index: first + place, content: text.into(), items: vec![item], answer }
            };
            return list.iter().enumerate().map(choice).collect();
        }
        let (content, items) = match answer.choices.as_ref().and_then(|choices| choices.first()) {
            Some(best) => (Cow::from(best.text.as_str()), Vec::new()),
            None => {
                let (content, items) = text_and_items(answer.content.as_deref().unwrap_or_default());
                (content.into(), items)
            }
        };
        vec![Said { index: first, content, items, answer }]
    }

    fn chat_choice<'a>(&'a self, said: Said<'a>) -> Choice<'a, ChatBodyOf<'a>, ChatLogprobs<'a>> {
        let logprobs = said.answer.logprobs.as_deref().map(|list| ChatLogprobs::new(self.tokens(), list));
        let items = self.grounded.then_some(said.items);
        Choice {
            index: said.index,
            body: ChatBodyOf { message: ReplyMessage { role: "assistant", content: said.content, items } },
            logprobs,
            finish_reason: Some(said.answer.finish_reason),
            extras: Extras::of(said.answer),
        }
    }

    fn completion_choice<'a>(&'a self, said: Said<'a>) -> Choice<'a, TextBodyOf<'a>, CompletionLogprobs<'a>> {
        let titles = said.items.iter().map(|item| item.end - item.start);
        let logprobs = said.answer.logprobs.as_deref().map(|list| {
            let mut offsets = Offsets::new(self.engine.tokenizer());
            CompletionLogprobs::new(self.tokens(), list, &mut offsets, titles)
        });
        let items = self.grounded.then(|| Cow::from(said.items));
        Choice {
            index: said.index,
            body: TextBodyOf { text: said.content, items },
            logprobs,
            finish_reason: Some(said.answer.finish_reason),
            extras: Extras::of(said.answer),
        }
    }
}

/// Streams.
impl Encoder {
    /// The first chunk of a choice of chat: it names the role.
    fn begin(&mut self, request: usize, chunks: &mut Vec<Chunk>) {
        let begun = std::mem::replace(&mut self.streams[request].begun, true);
        if !begun && !self.listed && self.route == Route::Chat {
            let piece = Piece { role: Some("assistant"), ..Piece::new(request, "") };
            chunks.push(self.chunk(request, piece, None, Vec::new()));
        }
    }

    fn text(&mut self, request: usize, text: &str) -> Chunk {
        let logprobs = self.take_pending(request, None);
        self.streams[request].place += text.chars().count();
        let piece = Piece { logprobs: &logprobs, ..Piece::new(request, text) };
        self.chunk(request, piece, None, Vec::new())
    }

    fn item(&mut self, request: usize, item: &AnswerItem) -> Chunk {
        let logprobs = self.take_pending(request, Some(item));
        let (placed, text) = Item::at(self.streams[request].place, item);
        self.streams[request].place = placed.end;
        let piece = Piece {
            item: Some(std::slice::from_ref(&placed)),
            logprobs: &logprobs,
            ..Piece::new(request, text)
        };
        self.chunk(request, piece, None, vec![item.id.clone()])
    }

    fn finish(&mut self, request: usize, answer: &Answer, chunks: &mut Vec<Chunk>) {
        self.usage.add(answer, request.is_multiple_of(self.variants));
        if let Some(list) = &answer.items {
            return self.finish_list(request, answer, list, chunks);
        }
        if let Some(best) = answer.choices.as_ref().and_then(|choices| choices.first()) {
            chunks.push(self.chunk(request, Piece::new(request, &best.text), None, Vec::new()));
        }
        let logprobs = self.take_rest(request);
        let end = Some((answer.finish_reason, Extras::of(answer)));
        let piece = Piece { content: None, logprobs: &logprobs, end, ..Piece::new(request, "") };
        chunks.push(self.chunk(request, piece, Some(answer), Vec::new()));
    }

    /// A list: two chunks per item, one with it and one that ends its choice.
    fn finish_list(&mut self, request: usize, answer: &Answer, list: &[AnswerItem], chunks: &mut Vec<Chunk>) {
        for (place, item) in list.iter().enumerate() {
            let index = request * self.per_request + place;
            let (placed, text) = Item::at(0, item);
            let role = Some("assistant").filter(|_| self.route == Route::Chat);
            let piece = Piece { role, item: Some(std::slice::from_ref(&placed)), ..Piece::new(index, text) };
            chunks.push(self.chunk(request, piece, None, vec![item.id.clone()]));
            let end = Some((answer.finish_reason, Extras::of(answer)));
            let last = Some(answer).filter(|_| place + 1 == list.len());
            let piece = Piece { content: None, end, ..Piece::new(index, "") };
            chunks.push(self.chunk(request, piece, last, Vec::new()));
        }
        if list.is_empty() {
            // No choice is left to say why.
            let mut json = self.head.clone();
            json.push(b']');
            append_fields(&mut json, &Notes::of(std::slice::from_ref(answer), 1));
            json.extend_from_slice(self.tail);
            chunks.push(Chunk { json, items: Vec::new() });
        }
    }

    /// A chunk with one piece; `notes`: the answer whose notes it carries.
    fn chunk(
        &mut self,
        request: usize,
        piece: Piece<'_>,
        notes: Option<&Answer>,
        items: Vec<String>,
    ) -> Chunk {
        let Piece { index, role, content, item, logprobs, end } = piece;
        let tokens = Tokens { tokenizer: self.engine.tokenizer(), layout: self.engine.layout() };
        let finish_reason = end.map(|(reason, _)| reason);
        let extras = end.map(|(_, extras)| extras).unwrap_or_default();
        let mut json =
            Vec::with_capacity(self.head.len() + self.tail.len() + 96 + content.map_or(0, str::len));
        json.extend_from_slice(&self.head);
        match self.route {
            Route::Chat => {
                let body = ChatDeltaOf { delta: Delta { role, content, items: item } };
                let logprobs = (!logprobs.is_empty()).then(|| ChatLogprobs::new(tokens, logprobs));
                write(&mut json, &Choice { index, body, logprobs, finish_reason, extras });
            }
            Route::Completion => {
                let text = content.unwrap_or_default().into();
                let titles = item.into_iter().flatten().map(|item| item.end - item.start);
                let offsets = &mut self.streams[request].offsets;
                let logprobs = (!logprobs.is_empty())
                    .then(|| CompletionLogprobs::new(tokens, logprobs, offsets, titles));
                let body = TextBodyOf { text, items: item.map(Cow::from) };
                write(&mut json, &Choice { index, body, logprobs, finish_reason, extras });
            }
        }
        json.push(b']');
        if let Some(answer) = notes {
            append_fields(&mut json, &Notes::of(std::slice::from_ref(answer), 1));
        }
        json.extend_from_slice(self.tail);
        Chunk { json, items }
    }

    /// The log-probabilities that go with a text, or with an item.
    ///
    /// Tokens that spell an item leave with it or never: it may be denied while they are on their way, and a budget may end
    /// inside a span.
    fn take_pending(&mut self, request: usize, item: Option<&AnswerItem>) -> Vec<TokenLogprob> {
        if self.streams[request].pending.is_empty() {
            return Vec::new();
        }
        let mut pending = std::mem::take(&mut self.streams[request].pending);
        let tokens = self.tokens();
        let Some(item) = item else {
            let (spans, text) = pending.into_iter().partition(|entry| tokens.spells_items(entry.id));
            self.streams[request].pending = spans;
            return text;
        };
        let mut span = pending.split_off(pending.len().saturating_sub(item.sid.len() + 1));
        let opener = pending.pop_if(|entry| tokens.opens(entry.id));
        pending.retain(|entry| !tokens.spells_items(entry.id));
        pending.extend(opener);
        pending.append(&mut span);
        pending
    }

    /// The log-probabilities that no text followed.
    fn take_rest(&mut self, request: usize) -> Vec<TokenLogprob> {
        let text = self.take_pending(request, None);
        self.streams[request].pending.clear();
        text
    }
}

/// A string as JSON writes it.
struct Quoted<'a>(&'a str);

impl std::fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| std::fmt::Error)?)
    }
}

fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("memory takes every byte, and all keys are strings");
}

/// Appends the fields of a value to an object that is open and not empty.
fn append_fields(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    write(out, value);
    // `{…}` becomes `,…`.
    if out.len() == start + 2 {
        out.truncate(start);
    } else {
        out[start] = b',';
        out.pop();
    }
}
