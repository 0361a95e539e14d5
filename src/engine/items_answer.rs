//! From finished paths to named items: collisions, boosts, quotas.

use super::answer::AnswerItem;
use super::request::Collisions;
use super::validate::ItemsTask;
use crate::catalog::{Catalog, Mask};
use crate::device::ops::Path;
use crate::ids::Rank;

/// The ranked list of an `items` answer.
pub(super) struct Ranked {
    pub items: Vec<AnswerItem>,
    /// Fewer items were alive than asked for.
    pub exhausted: bool,
    /// Types whose quota was not met.
    pub exhausted_types: Vec<String>,
}

/// Names the items of a path: the most popular alive one, or all alive ones.
fn named<'a>(
    catalog: &'a Catalog,
    mask: &'a Mask,
    path: &'a Path,
    collisions: Collisions,
) -> impl Iterator<Item = AnswerItem> + 'a {
    let index = catalog.index(path.item_type);
    let alive = index.ranks(path.sid).map(Rank).filter(move |&rank| mask.item_alive(index, rank));
    let wanted = match collisions {
        Collisions::Best => 1,
        Collisions::All => usize::MAX,
    };
    alive.take(wanted).map(move |rank| {
        let item = catalog.item(path.item_type, rank);
        AnswerItem {
            id: item.id().to_owned(),
            item_type: catalog.types()[path.item_type.index()].clone(),
            sid: path.codes.clone(),
            score: path.score,
            boost: None,
            title: item.title().map(str::to_owned),
            logprobs: None,
        }
    })
}

/// The most popular alive item of a path.
pub(super) fn best(catalog: &Catalog, mask: &Mask, path: &Path) -> Option<AnswerItem> {
    named(catalog, mask, path, Collisions::Best).next()
}

/// Ranks the finished paths of all searches of a request.
pub(super) fn rank(catalog: &Catalog, task: &ItemsTask, paths: &[Vec<Path>], with_logprobs: bool) -> Ranked {
    let mut ranked = Ranked { items: Vec::new(), exhausted: false, exhausted_types: Vec::new() };
    for (search, paths) in task.searches.iter().zip(paths) {
        let mut items = Vec::new();
        for path in paths {
            let Some((_, mask)) = search.types.iter().find(|(t, _)| *t == path.item_type) else { continue };
            for mut item in named(catalog, mask, path, task.collisions) {
                item.logprobs = with_logprobs.then(|| path.levels.clone());
                if !task.boosts.is_empty() {
                    let found = catalog.find(&item.id).map(|(t, rank)| catalog.item(t, rank));
                    let apply =
                        task.boosts.iter().filter(|(p, _)| found.is_some_and(|found| p.matches(found)));
                    item.boost = Some(apply.map(|(_, weight)| weight).sum());
                }
                items.push(item);
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
                ranked.exhausted_types.push(catalog.types()[search.types[0].0.index()].clone());
            }
        }
        ranked.items.append(&mut items);
    }
    ranked
}
