//! From finished paths to named items: collisions, boosts, quotas.

use std::sync::atomic::Ordering;

use serde_json::Value;

use super::answer::AnswerItem;
use super::counters::Counters;
use super::gate::Gate;
use super::request::Collisions;
use super::validate::{ItemsTask, ValidatedRequest};
use crate::catalog::{Alive, Item, View};
use crate::device::ops::Path;

/// The ranked list of an `items` answer.
pub(super) struct Ranked {
    pub items: Vec<AnswerItem>,
    /// Fewer items were alive than asked for.
    pub exhausted: bool,
    /// Types whose quota was not met.
    pub exhausted_types: Vec<String>,
}

/// What items are named from.
#[derive(Clone, Copy)]
pub(super) struct Naming<'a> {
    pub view: &'a View,
    pub gate: &'a Gate,
    /// Attributes to return.
    pub attributes: Option<&'a [String]>,
    pub counters: &'a Counters,
}

impl<'a> Naming<'a> {
    pub fn new(request: &'a ValidatedRequest, view: &'a View, counters: &'a Counters) -> Naming<'a> {
        Naming { view, gate: &request.gate, attributes: request.attributes.as_deref(), counters }
    }

    /// The items of a path that may be named, most popular first.
    fn items(self, alive: &'a Alive, path: &'a Path) -> impl Iterator<Item = Item<'a>> {
        let items = self.view.items(alive, path.item_type, path.sid, &path.codes);
        items.filter(move |item| self.gate.passes(self.view, path, item, self.counters))
    }

    /// The most popular item of a path.
    pub fn best(self, alive: &Alive, path: &Path) -> Option<AnswerItem> {
        self.items(alive, path).next().map(|item| self.answer(path, item))
    }

    fn answer(self, path: &Path, item: Item<'_>) -> AnswerItem {
        let value = |name: &String| (name.clone(), item.attribute(name).unwrap_or(Value::Null));
        AnswerItem {
            id: item.id().to_owned(),
            item_type: self.view.types()[path.item_type.index()].clone(),
            sid: path.codes.clone(),
            score: path.score,
            boost: None,
            title: item.title().map(str::to_owned),
            logprobs: None,
            attributes: self.attributes.map(|names| names.iter().map(value).collect()),
        }
    }

    /// Ranks the finished paths of all searches of a request.
    pub fn rank(self, task: &ItemsTask, paths: &[Vec<Path>], with_logprobs: bool) -> Ranked {
        let mut ranked = Ranked { items: Vec::new(), exhausted: false, exhausted_types: Vec::new() };
        let wanted = match task.collisions {
            Collisions::Best => 1,
            Collisions::All => usize::MAX,
        };
        for (search, paths) in task.searches.iter().zip(paths) {
            let mut items = Vec::new();
            // Boosts may lift any path; without them the list is full when it has enough.
            let most = if task.boosts.is_empty() { search.n } else { usize::MAX };
            for path in paths {
                if items.len() >= most {
                    break;
                }
                for item in self.items(&search.alive, path).take(wanted) {
                    let boosts = task.boosts.iter().filter(|(predicate, _)| predicate.matches(item));
                    let boost = (!task.boosts.is_empty()).then(|| boosts.map(|(_, weight)| weight).sum());
                    let logprobs = with_logprobs.then(|| path.levels.clone());
                    items.push(AnswerItem { boost, logprobs, ..self.answer(path, item) });
                }
            }
            if !task.boosts.is_empty() {
                let total = |item: &AnswerItem| item.score + item.boost.unwrap_or(0.0);
                items.sort_by(|a, b| total(b).total_cmp(&total(a)));
            }
            items.truncate(search.n);
            if items.len() < search.n {
                ranked.exhausted = true;
                if task.by_quota {
                    let types = &search.alive.types;
                    ranked.exhausted_types.push(self.view.types()[types[0].0.index()].clone());
                }
            }
            self.counters.items.fetch_add(items.len() as u64, Ordering::Relaxed);
            ranked.items.append(&mut items);
        }
        ranked
    }
}
