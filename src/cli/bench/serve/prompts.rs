//! What is asked: lines of a file, or prompts made up from items of the catalog.

use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::kinds::Kind;
use super::random::Random;

/// Most lines of a file of prompts.
const MAX_LINES: usize = 1_000_000;
/// Longest history.
const MAX_HISTORY: usize = 8;

/// An item to make prompts from.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its type.
    pub item_type: String,
    /// Its title, or its id.
    pub title: String,
}

/// One thing to ask.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// A conversation.
    pub messages: Option<Value>,
    /// Text as it is.
    pub plain: Option<String>,
    /// Tokens as they are.
    pub tokens: Option<Value>,
    /// Type of the items wanted.
    pub item_type: Option<String>,
    /// Items that the prompt names, and that a list should not repeat.
    pub history: Vec<String>,
    /// Whatever else a line of a file says: fields of the native form.
    pub fields: Map<String, Value>,
}

impl Prompt {
    /// Plain text.
    pub fn text(text: String) -> Prompt {
        Prompt { plain: Some(text), ..Prompt::default() }
    }

    /// A line of a file: a string, or an object with `prompt`, `messages` or `prompt_token_ids`.
    fn parse(line: &str) -> anyhow::Result<Prompt> {
        let mut fields = match serde_json::from_str(line)? {
            Value::String(text) => return Ok(Prompt::text(text)),
            Value::Object(fields) => fields,
            _ => bail!("a string or an object is expected"),
        };
        // It would tell requests apart that are to be equal, and OpenAI's routes do not know it.
        fields.remove("id");
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let (messages, plain, tokens) = (take("messages"), take("prompt"), take("prompt_token_ids"));
        let plain = match plain {
            Some(Value::String(text)) => Some(text),
            Some(_) => bail!("prompt: a string is expected"),
            None => None,
        };
        let given = [messages.is_some(), plain.is_some(), tokens.is_some()];
        if given.iter().filter(|&&given| given).count() != 1 {
            bail!("exactly one of prompt, messages, prompt_token_ids is expected");
        }
        Ok(Prompt { messages, plain, tokens, fields, ..Prompt::default() })
    }

    /// The kind that the line asks for, if it says so.
    pub fn kind(&self) -> anyhow::Result<Option<Kind>> {
        let has_history =
            || self.messages.as_ref().is_some_and(|messages| messages.to_string().contains("\"history\""));
        Ok(match self.fields.get("output").and_then(Value::as_str) {
            Some("items") if has_history() => Some(Kind::Recommend),
            Some("items") => Some(Kind::Search),
            Some("mixed") => Some(Kind::Mixed),
            Some("text") => Some(Kind::Text),
            Some(other) => bail!("output: `{other}` is none of text, items, mixed"),
            None => None,
        })
    }
}

/// Reads a file of prompts.
pub fn read(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut prompts = Vec::new();
    for (before, line) in std::io::BufReader::new(file).lines().enumerate() {
        let place = || format!("{}: line {}", path.display(), before + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        if prompts.len() == MAX_LINES {
            bail!("{}: at most {MAX_LINES} prompts are read", path.display());
        }
        let prompt = Prompt::parse(&line).with_context(place)?;
        prompt.kind().with_context(place)?;
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        bail!("{}: no prompts", path.display());
    }
    Ok(prompts)
}

/// Makes prompts up.
pub struct Maker {
    /// By type.
    items: Vec<Vec<Listed>>,
    /// Words of text that stand before each prompt.
    words: usize,
    seed: u64,
}

impl Maker {
    /// A maker of prompts about these items, each behind so many random words.
    pub fn new(items: Vec<Listed>, words: usize, seed: u64) -> Maker {
        let mut by_type: Vec<Vec<Listed>> = Vec::new();
        for item in items {
            match by_type.iter_mut().find(|of_type| of_type[0].item_type == item.item_type) {
                Some(of_type) => of_type.push(item),
                None => by_type.push(vec![item]),
            }
        }
        Maker { items: by_type, words, seed }
    }

    /// Prompt number `index` of a kind; all but text need items.
    pub fn make(&self, kind: Kind, index: u64) -> Prompt {
        let mut random = Random::new(self.seed, 3, index);
        let mut filler = words(self.words, &mut random);
        let Some(items) = self.items.get(random.below(self.items.len())) else {
            return Prompt::text(filler);
        };
        if !filler.is_empty() {
            filler.push('\n');
        }
        let item = &items[random.below(items.len())];
        let end = |output: &str| format!("\nTarget item type: {}\nOutput: {output}", item.item_type);
        let text = |text: String| json!({"type": "text", "text": text});
        let mut history: Vec<String> = Vec::new();
        let (parts, plain) = match kind {
            Kind::Search => {
                let prompt = format!("{filler}Find an item.\nQuery: {}{}", item.title, end("items"));
                (vec![text(prompt.clone())], prompt)
            }
            Kind::Text => {
                let begin = format!("{filler}Describe the item.\n");
                let plain = format!("{begin}{}{}", item.title, end("text"));
                (vec![text(begin), json!({"type": "item", "id": item.id}), text(end("text"))], plain)
            }
            Kind::Recommend | Kind::Mixed => {
                let (task, output) = match kind {
                    Kind::Mixed => ("Recommend an item and explain why.", "mixed"),
                    _ => ("Recommend the next item.", "items"),
                };
                let titles = pick(items, 1 + random.below(MAX_HISTORY), &mut random, &mut history);
                let begin = format!("{filler}{task}\nHistory: ");
                let plain = format!("{begin}{titles}{}", end(output));
                (vec![text(begin), json!({"type": "history", "items": history}), text(end(output))], plain)
            }
        };
        let content = match parts.as_slice() {
            [_] => json!(plain),
            _ => Value::Array(parts),
        };
        Prompt {
            messages: Some(json!([{"role": "user", "content": content}])),
            plain: Some(plain),
            item_type: Some(item.item_type.clone()),
            history,
            ..Prompt::default()
        }
    }
}

/// Puts ids of different items into a history; returns their titles.
fn pick(items: &[Listed], count: usize, random: &mut Random, history: &mut Vec<String>) -> String {
    let mut titles = Vec::new();
    for _ in 0..count {
        let item = &items[random.below(items.len())];
        if !history.contains(&item.id) {
            history.push(item.id.clone());
            titles.push(item.title.as_str());
        }
    }
    titles.join(", ")
}

/// Random words that most tokenizers know.
pub fn words(count: usize, random: &mut Random) -> String {
    const WORDS: [&str; 48] = [
        "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on",
        "not", "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an", "they", "which",
        "one", "you", "were", "her", "all", "she", "there", "would", "their", "we", "him", "been", "has",
        "when", "who", "will", "more", "no", "if",
    ];
    let words: Vec<&str> = (0..count).map(|_| WORDS[random.below(WORDS.len())]).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<Listed> {
        let item = |id: &str, item_type: &str| Listed {
            id: id.to_owned(),
            item_type: item_type.to_owned(),
            title: format!("Title of {id}"),
        };
        vec![item("b1", "book"), item("f1", "film"), item("b2", "book"), item("b3", "book")]
    }

    #[test]
    fn prompts_depend_on_seed_and_index_alone() {
        let maker = Maker::new(items(), 3, 9);
        for kind in Kind::ALL {
            let (one, again) = (maker.make(kind, 5), Maker::new(items(), 3, 9).make(kind, 5));
            assert_eq!((&one.messages, &one.plain), (&again.messages, &again.plain));
            let other = maker.make(kind, 6);
            assert_ne!(one.plain, other.plain);
        }
    }

    #[test]
    fn histories_are_of_one_type_and_without_repetition() {
        let maker = Maker::new(items(), 0, 1);
        for index in 0..200 {
            let prompt = maker.make(Kind::Recommend, index);
            let item_type = prompt.item_type.unwrap();
            assert!(!prompt.history.is_empty() && prompt.history.len() <= 3);
            assert!(prompt.history.iter().all(|id| id.starts_with(&item_type[..1])), "{:?}", prompt.history);
            let mut ids = prompt.history.clone();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), prompt.history.len());
            let messages = prompt.messages.unwrap();
            assert_eq!(messages[0]["content"][1]["items"], json!(prompt.history));
        }
    }

    #[test]
    fn without_items_there_is_text() {
        let prompt = Maker::new(vec![], 12, 1).make(Kind::Text, 0);
        assert_eq!(prompt.plain.unwrap().split(' ').count(), 12);
        assert!(prompt.messages.is_none());
    }

    #[test]
    fn lines_of_a_file() {
        let parse = |line: &str| Prompt::parse(line);
        assert_eq!(parse("\"hi\"").unwrap().plain.as_deref(), Some("hi"));
        let line = r#"{"id": "r", "prompt": "x", "output": "items", "n": 3, "messages": null}"#;
        let prompt = parse(line).unwrap();
        assert_eq!((prompt.kind().unwrap(), prompt.fields.len()), (Some(Kind::Search), 2));
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "history", "items": []}]}], "output": "items"}"#;
        assert_eq!(parse(line).unwrap().kind().unwrap(), Some(Kind::Recommend));
        assert_eq!(parse(r#"{"prompt_token_ids": [1]}"#).unwrap().kind().unwrap(), None);
        for line in ["[]", "{}", "{", r#"{"prompt": 1}"#, r#"{"prompt": "a", "messages": []}"#] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse(r#"{"prompt": "a", "output": "images"}"#).unwrap().kind().is_err());
    }
}
