//! What is asked of the server before the run: its model, items for prompts, how long words are.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sidereal::catalog::Catalog;
use sidereal::ids::{Rank, TypeId};

use super::answer::Seen;
use super::connection::Connection;
use super::prompts::{self, Listed};
use super::random::Random;
use super::target::{Target, encode};
use super::verify;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Items to make prompts from.
const ITEMS: usize = 512;
/// Items of one answer of the search.
const LIMIT: usize = 50;
/// Substrings of titles that are looked for.
const QUERIES: [&str; 16] =
    ["the", "a", "e", "i", "o", "u", "s", "n", "r", "t", "l", "m", "1", "2", "of", "-"];
/// Words of the text whose tokens are counted.
const SAMPLE: usize = 256;
/// Tokens of a word where the server does not say.
const TOKENS_PER_WORD: f64 = 1.3;

/// A connection that waits for each answer.
pub struct Client<'a> {
    target: &'a Target,
    runtime: tokio::runtime::Runtime,
    connection: Connection,
}

impl<'a> Client<'a> {
    /// A client of a server.
    pub fn new(target: &'a Target) -> anyhow::Result<Client<'a>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("a runtime could not be started")?;
        Ok(Client { target, runtime, connection: Connection::new() })
    }

    /// Status and body of a request.
    fn fetch(&mut self, request: &[u8]) -> anyhow::Result<(u16, Value)> {
        let exchange = self.connection.exchange(self.target, request, None, TIMEOUT);
        let exchange = self.runtime.block_on(exchange);
        if exchange.status == 0 {
            let super::connection::End::Failed(message) = exchange.end else { bail!("no answer") };
            bail!(message);
        }
        let body = self.connection.body();
        if exchange.status != 200 {
            return Ok((exchange.status, json!(Seen::error_of(body))));
        }
        Ok((200, serde_json::from_slice(body).context("not JSON")?))
    }

    /// Body of a route that must be there.
    fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        let request = self.target.get(path);
        match self.fetch(&request).with_context(|| format!("GET {path}"))? {
            (200, body) => Ok(body),
            (status, message) => bail!("GET {path}: HTTP {status}: {}", message.as_str().unwrap_or_default()),
        }
    }

    /// Name of the first model.
    pub fn model(&mut self) -> anyhow::Result<String> {
        let models = self.get("/v1/models")?;
        let id = models.pointer("/data/0/id").and_then(Value::as_str);
        Ok(id.context("GET /v1/models: no model; name one with --model")?.to_owned())
    }

    /// Items of the given types (none: of all), found by parts of their titles.
    pub fn items(&mut self, types: &[String]) -> anyhow::Result<Vec<Listed>> {
        let catalog = self.get("/v1/catalog")?;
        let known = catalog.get("types").and_then(Value::as_array).cloned().unwrap_or_default();
        let names: Vec<&str> = known.iter().filter_map(|t| t.get("name")?.as_str()).collect();
        if let Some(unknown) = types.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("--item-types: the server's catalog has no type `{unknown}`; types: {}", names.join(", "));
        }
        let wanted: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| types.is_empty() || types.iter().any(|t| t == name))
            .collect();
        let mut items: Vec<Listed> = Vec::new();
        for name in &wanted {
            let (begin, share) = (items.len(), ITEMS.div_ceil(wanted.len()));
            for query in QUERIES {
                if items.len() - begin >= share {
                    break;
                }
                let path = format!("/v1/catalog/search?q={query}&type={}&limit={LIMIT}", encode(name));
                let found = self.get(&path)?;
                for item in found.get("items").and_then(Value::as_array).into_iter().flatten() {
                    let Some(item) = listed(item) else { continue };
                    if !items[begin..].iter().any(|known| known.id == item.id) {
                        items.push(item);
                    }
                }
            }
        }
        Ok(items)
    }

    /// Words that make about so many tokens, by the server's tokenizer if it says.
    pub fn words(&mut self, tokens: usize, seed: u64) -> usize {
        let text = prompts::words(SAMPLE, &mut Random::new(seed, 5, 0));
        let request = self.target.post("/tokenize", &json!({"prompt": text}).to_string(), "application/json");
        let counted = self.fetch(&request).ok().and_then(|(_, body)| body.get("count")?.as_f64());
        let per_word = counted.map_or(TOKENS_PER_WORD, |count| (count / SAMPLE as f64).max(0.1));
        (tokens as f64 / per_word).round() as usize
    }
}

fn listed(item: &Value) -> Option<Listed> {
    let text = |name: &str| item.get(name)?.as_str().map(str::to_owned);
    let id = text("id")?;
    Some(Listed { title: text("title").unwrap_or_else(|| id.clone()), item_type: text("type")?, id })
}

/// Random items that all catalogs have, of the given types (none: of all).
pub fn items_of(catalogs: &[Catalog], types: &[String], seed: u64) -> Vec<Listed> {
    let Some((catalog, others)) = catalogs.split_first() else { return Vec::new() };
    let mut random = Random::new(seed, 6, 0);
    let wanted: Vec<(TypeId, &String)> = (0..catalog.types().len())
        .map(|at| (TypeId(at as u16), &catalog.types()[at]))
        .filter(|(t, name)| (types.is_empty() || types.contains(name)) && catalog.index(*t).items() > 0)
        .collect();
    let mut items = Vec::new();
    for &(t, name) in &wanted {
        for _ in 0..ITEMS.div_ceil(wanted.len()) {
            let item = catalog.item(t, Rank(random.below(catalog.index(t).items()) as u32));
            if others.iter().any(|other| other.find(item.id()).is_none()) {
                continue;
            }
            let title = item.title().unwrap_or(item.id()).to_owned();
            items.push(Listed { id: item.id().to_owned(), item_type: name.clone(), title });
        }
    }
    items
}

/// Opens the catalogs that answers are held against.
pub fn catalogs(paths: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Catalog>> {
    paths.iter().map(|path| verify::open(path.as_ref()).context("--verify")).collect()
}

#[cfg(test)]
mod tests {
    use sidereal::catalog::{CatalogBuilder, synthetic};

    use super::*;

    #[test]
    fn prompts_are_made_from_what_all_catalogs_have() {
        let catalog = |keep: &dyn Fn(usize) -> bool| {
            let mut builder = CatalogBuilder::new(&synthetic::tiny_layout().types);
            let records = synthetic::tiny_records().into_iter().enumerate();
            records.filter(|(at, _)| keep(*at)).try_for_each(|(_, record)| builder.push(record)).unwrap();
            builder.build().unwrap()
        };
        let catalogs = [catalog(&|at| at % 2 == 0), catalog(&|at| at % 3 == 0)];
        let both = catalog(&|at| at % 6 == 0);
        let items = items_of(&catalogs, &[], 1);
        assert!(items.len() > 20 && items.iter().all(|item| both.find(&item.id).is_some()));
        let films = items_of(&catalogs, &["film".to_owned()], 1);
        assert!(!films.is_empty() && films.iter().all(|item| item.item_type == "film"));
        assert!(items_of(&[], &[], 1).is_empty());
    }
}
