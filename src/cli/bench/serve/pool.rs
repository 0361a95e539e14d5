//! The requests of a run, as the bytes that are sent: made before the run, cycled in it.

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::kinds::{Kind, Mix};
use super::prompts::{Maker, Prompt};
use super::target::Target;
use super::verify::{Bounds, Filters};

/// Routes of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Endpoint {
    /// POST /v1/items
    Items,
    /// POST /v1/chat/completions
    Chat,
    /// POST /v1/completions
    Completions,
}

impl Endpoint {
    fn path(self) -> &'static str {
        match self {
            Endpoint::Items => "/v1/items",
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
        }
    }
}

/// Which answers are streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Streamed {
    /// Text and mixed ones
    Text,
    /// Lists too
    All,
    /// None
    None,
}

/// A request, ready to be sent.
#[derive(Debug)]
pub struct Prepared {
    /// Its kind.
    pub kind: Kind,
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Whether its answer is streamed.
    pub streamed: bool,
    /// What its items must keep to.
    pub bounds: Bounds,
}

/// How requests are written.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Route of every request; else the kind decides.
    pub endpoint: Option<Endpoint>,
    /// Which answers are streamed.
    pub streamed: Streamed,
    /// Name of the model, for OpenAI's routes.
    pub model: Option<String>,
    /// Items of a list.
    pub n: Option<u64>,
    /// Beam width of a list.
    pub beam_width: Option<u64>,
    /// Tokens of a text.
    pub max_tokens: Option<u64>,
    /// Temperature of a text.
    pub temperature: Option<f64>,
    /// Types of items instead of the prompt's.
    pub item_types: Vec<String>,
    /// Filter of items.
    pub filter: Option<Value>,
    /// Merged into every body; null takes a field out.
    pub extra: Map<String, Value>,
}

/// What kind and prompt a request has.
pub enum Source<'a> {
    /// Lines of a file, in order; kinds where they do not say theirs.
    Lines(&'a [Prompt]),
    /// Made up.
    Made(&'a Maker),
}

impl Shape {
    /// Makes so many requests (at least as many as there are lines).
    pub fn pool(
        &self,
        target: &Target,
        source: &Source<'_>,
        (mix, count, seed): (Mix, usize, u64),
        filters: Filters,
    ) -> anyhow::Result<Vec<Prepared>> {
        match source {
            Source::Lines(lines) => {
                // Whole rounds, so that a cycle gives every line its turn as often as the others.
                let count = lines.len() * count.div_ceil(lines.len()).max(1);
                let kinds = mix.deal(count, seed);
                let request = |(at, &kind): (usize, &Kind)| {
                    let line = &lines[at % lines.len()];
                    let kind = line.kind()?.unwrap_or(kind);
                    self.prepare(target, kind, line, filters)
                        .with_context(|| format!("prompt {}", at % lines.len() + 1))
                };
                kinds.iter().enumerate().map(request).collect()
            }
            Source::Made(maker) => {
                let kinds = mix.deal(count, seed);
                let request = |(at, &kind): (usize, &Kind)| {
                    self.prepare(target, kind, &maker.make(kind, at as u64), filters)
                };
                kinds.iter().enumerate().map(request).collect()
            }
        }
    }

    fn endpoint_of(&self, kind: Kind, prompt: &Prompt) -> Endpoint {
        self.endpoint.unwrap_or(match kind {
            _ if prompt.tokens.is_some() => Endpoint::Items,
            Kind::Search | Kind::Recommend => Endpoint::Items,
            Kind::Mixed | Kind::Text if prompt.messages.is_some() => Endpoint::Chat,
            Kind::Mixed | Kind::Text => Endpoint::Completions,
        })
    }

    fn prepare(
        &self,
        target: &Target,
        kind: Kind,
        prompt: &Prompt,
        filters: Filters,
    ) -> anyhow::Result<Prepared> {
        let endpoint = self.endpoint_of(kind, prompt);
        let streamed = match self.streamed {
            Streamed::All => true,
            Streamed::Text => !kind.is_list(),
            Streamed::None => false,
        };
        let mut body = prompt_of(endpoint, prompt)?;
        self.defaults(&mut body, kind, endpoint, prompt);
        body.extend(prompt.fields.clone());
        let mut accept = "application/json";
        match endpoint {
            Endpoint::Items if streamed => accept = "text/event-stream",
            Endpoint::Items => {}
            Endpoint::Chat | Endpoint::Completions => {
                body.extend(self.model.clone().map(|model| ("model".to_owned(), json!(model))));
                if streamed {
                    body.insert("stream".to_owned(), json!(true));
                    body.insert("stream_options".to_owned(), json!({"include_usage": true}));
                }
            }
        }
        for (name, value) in &self.extra {
            match value {
                Value::Null => body.shift_remove(name),
                value => body.insert(name.clone(), value.clone()),
            };
        }
        // What the routes take a list to have if nothing is said.
        let default_n = if endpoint == Endpoint::Items { 10 } else { 1 };
        let bounds = Bounds::of(&body, kind, default_n, filters)?;
        let bytes = target.post(endpoint.path(), &serde_json::to_string(&body)?, accept);
        Ok(Prepared { kind, bytes, streamed, bounds })
    }

    /// What options and kinds say; lines of a file know better.
    fn defaults(&self, body: &mut Map<String, Value>, kind: Kind, endpoint: Endpoint, prompt: &Prompt) {
        let mut set = |name: &str, value: Option<Value>| {
            body.extend(value.map(|value| (name.to_owned(), value)));
        };
        match kind {
            Kind::Search | Kind::Recommend => {
                set("output", Some(json!("items")));
                set("n", Some(json!(self.n.unwrap_or(10))));
                set("beam_width", self.beam_width.map(|width| json!(width)));
            }
            Kind::Mixed => set("output", Some(json!("mixed"))),
            // Other servers know text only, and no name for it.
            Kind::Text if endpoint == Endpoint::Items => set("output", Some(json!("text"))),
            Kind::Text => {}
        }
        if kind.needs_items() {
            let types = match &prompt.item_type {
                _ if !self.item_types.is_empty() => Some(json!(self.item_types)),
                Some(item_type) => Some(json!([item_type])),
                None => None,
            };
            set("item_types", types);
            set("filter", self.filter.clone());
        }
        if kind == Kind::Recommend && !prompt.history.is_empty() {
            set("exclude", Some(json!(prompt.history)));
        }
        if !kind.is_list() {
            set("max_tokens", self.max_tokens.map(|tokens| json!(tokens)));
            set("temperature", self.temperature.map(|temperature| json!(temperature)));
        }
    }
}

/// The prompt as a route takes it.
fn prompt_of(endpoint: Endpoint, prompt: &Prompt) -> anyhow::Result<Map<String, Value>> {
    let (name, value) = match (endpoint, &prompt.messages, &prompt.plain, &prompt.tokens) {
        (Endpoint::Items | Endpoint::Chat, Some(messages), ..) => ("messages", messages.clone()),
        (Endpoint::Items | Endpoint::Completions, _, Some(text), _) => ("prompt", json!(text)),
        (Endpoint::Items, .., Some(tokens)) => ("prompt_token_ids", tokens.clone()),
        (Endpoint::Completions, .., Some(tokens)) => ("prompt", tokens.clone()),
        (Endpoint::Chat, _, Some(text), _) => ("messages", json!([{"role": "user", "content": text}])),
        (Endpoint::Completions, Some(_), ..) => bail!("messages are nothing for /v1/completions"),
        (Endpoint::Chat, .., Some(_)) => bail!("prompt_token_ids are nothing for /v1/chat/completions"),
        (_, None, None, None) => bail!("no prompt"),
    };
    Ok(Map::from_iter([(name.to_owned(), value)]))
}

#[cfg(test)]
mod tests {
    use super::super::prompts::Listed;
    use super::*;

    fn shape() -> Shape {
        Shape {
            endpoint: None,
            streamed: Streamed::Text,
            model: Some("m".to_owned()),
            n: Some(5),
            beam_width: None,
            max_tokens: Some(32),
            temperature: None,
            item_types: vec![],
            filter: None,
            extra: Map::new(),
        }
    }

    fn maker() -> Maker {
        let item =
            |id: &str| Listed { id: id.to_owned(), item_type: "book".to_owned(), title: id.to_uppercase() };
        Maker::new(vec![item("a"), item("b")], 0, 1)
    }

    /// Path and body of each kind's request.
    fn requests(shape: &Shape) -> Vec<(String, Value)> {
        let target = Target::new("http://127.0.0.1:1", None, &[]).unwrap();
        Kind::ALL
            .into_iter()
            .map(|kind| {
                let pool =
                    shape.pool(&target, &Source::Made(&maker()), (Mix::only(kind), 1, 1), Filters::Evaluate);
                let text = String::from_utf8(pool.unwrap().remove(0).bytes).unwrap();
                let (head, body) = text.split_once("\r\n\r\n").unwrap();
                let path = head.split(' ').nth(1).unwrap().to_owned();
                (path, serde_json::from_str(body).unwrap())
            })
            .collect()
    }

    #[test]
    fn kinds_go_to_their_routes() {
        let requests = requests(&shape());
        let paths: Vec<&str> = requests.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["/v1/items", "/v1/items", "/v1/chat/completions", "/v1/chat/completions"]);
        let (search, recommend, mixed, text) =
            (&requests[0].1, &requests[1].1, &requests[2].1, &requests[3].1);
        assert_eq!(
            (&search["output"], &search["n"], &search["item_types"]),
            (&json!("items"), &json!(5), &json!(["book"]))
        );
        assert!(
            search.get("model").is_none()
                && search.get("stream").is_none()
                && search.get("exclude").is_none()
        );
        assert_eq!(recommend["exclude"], recommend["messages"][0]["content"][1]["items"]);
        assert_eq!(
            (&mixed["output"], &mixed["stream"], &mixed["max_tokens"]),
            (&json!("mixed"), &json!(true), &json!(32))
        );
        assert_eq!(text["stream_options"], json!({"include_usage": true}));
        for field in ["output", "n", "item_types", "filter"] {
            assert!(text.get(field).is_none(), "{field}");
        }
    }

    #[test]
    fn one_route_for_all_and_fields_on_top() {
        let extra = json!({"n": 2, "max_tokens": null, "seed": 7});
        let extra = extra.as_object().unwrap().clone();
        let shape =
            Shape { endpoint: Some(Endpoint::Completions), streamed: Streamed::None, extra, ..shape() };
        for (path, body) in requests(&shape) {
            assert_eq!(path, "/v1/completions");
            assert!(body["prompt"].is_string() && body.get("messages").is_none());
            assert_eq!((&body["n"], &body["seed"]), (&json!(2), &json!(7)));
            assert!(body.get("max_tokens").is_none() && body.get("stream").is_none());
        }
        let shape = Shape { endpoint: Some(Endpoint::Items), streamed: Streamed::All, ..shape };
        assert!(
            requests(&shape).iter().all(|(path, body)| path == "/v1/items" && body["output"].is_string())
        );
    }

    #[test]
    fn lines_are_cycled_and_know_better_than_options() {
        let target = Target::new("http://127.0.0.1:1", None, &[]).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, "{\"prompt\": \"x\", \"output\": \"items\", \"n\": 3}\n\n\"y\"\n\"z\"\n")
            .unwrap();
        let lines = super::super::prompts::read(path.path()).unwrap();
        let mix = Mix::only(Kind::Text);
        let pool = shape().pool(&target, &Source::Lines(&lines), (mix, 4, 1), Filters::Ignore).unwrap();
        let kinds: Vec<Kind> = pool.iter().map(|prepared| prepared.kind).collect();
        assert_eq!(kinds, [Kind::Search, Kind::Text, Kind::Text].repeat(2));
        assert_eq!((pool[0].bounds.n(), pool[1].bounds.n()), (Some(3), None));
        let chat = Shape { endpoint: Some(Endpoint::Chat), ..shape() };
        assert!(chat.pool(&target, &Source::Lines(&lines), (mix, 4, 1), Filters::Ignore).is_ok());
        let tokens = Prompt { tokens: Some(json!([1])), ..Prompt::default() };
        assert!(chat.pool(&target, &Source::Lines(&[tokens]), (mix, 1, 1), Filters::Ignore).is_err());
    }
}
