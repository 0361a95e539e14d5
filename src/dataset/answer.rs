//! What a good answer says. Everything in it is true of the items that it names.

use super::wording::{append, decade, fill, list_of, plural, spoken};
use super::{Work, Works};
use crate::engine::Part;
use crate::random::Random;

/// Forms of [`super::Task::Describe`], the fullest first; a work gets the first that it can fill.
const DESCRIBED: [&str; 4] = [
    "{title} ({year}) is a {genres} {type} by {creator}. {about}",
    "{title} ({year}) is a {genres} {type} by {creator}.",
    "{title} is a {genres} {type}.",
    "{title} is of the type {type}.",
];

/// Reasons that the history gives, in words: an answer may exclude the history's items, and a request for films lets it name no book.
const SAME_CREATOR: [&str; 3] = [
    "Since you like {creator}, try {x}, another {type} by {creator}.",
    "You like {creator}: {x} is a {genre} {type} by {creator} too.",
    "More by {creator}: {x}, a {genre} {type}.",
];
const SAME_GENRE: [&str; 3] = [
    "Since you like {genre}, try {x}, a {genre} {type} by {creator}.",
    "You like {genre}: {x} is a {genre} {type} by {creator}, from {year}.",
    "More {genre}: {x}, a {type} by {creator} from the {decade}.",
];
const ALONE: [&str; 3] = [
    "Try {x}, a {genre} {type} by {creator}.",
    "You may like {x}: it is a {genre} {type} from the {decade} by {creator}.",
    "{x} is a {genre} {type} by {creator}, from {year}.",
];
const PAIRS: [&str; 2] = ["Try {first}, or {second}.", "There is {first}. Or take {second}."];
const IN_PAIR: &str = "{x}, a {genre} {type} by {creator}";

/// The facts of a work, and its sentence.
pub(super) fn describe(work: &Work, item_type: &str) -> String {
    described(&DESCRIBED, work, item_type)
}

/// The facts of a work as [`super::Task::Describe`] begins with them, without its sentence.
pub fn facts(work: &Work, item_type: &str) -> String {
    described(&DESCRIBED[1..], work, item_type)
}

fn described(forms: &[&str], work: &Work, item_type: &str) -> String {
    let filled = forms.iter().find_map(|form| fill(form, work, item_type, None));
    filled.unwrap_or_else(|| work.title.clone())
}

/// Why `x`, for somebody who took `history` (places of works, newest last); `genre`: one that was asked for.
pub(super) fn explain(
    works: &Works,
    x: usize,
    history: &[usize],
    genre: Option<&str>,
    random: &mut Random,
) -> Vec<Part> {
    let work = &works.all()[x];
    let seen = || history.iter().rev().map(|&place| &works.all()[place]);
    let same_creator = work.creator.is_some() && seen().any(|other| other.creator == work.creator);
    let shared = seen().find_map(|other| work.genres.iter().find(|genre| other.genres.contains(genre)));
    let (wordings, genre) = match shared {
        _ if same_creator => (SAME_CREATOR, None),
        Some(shared) => (SAME_GENRE, Some(shared.as_str())),
        None => (ALONE, genre),
    };
    let said = reason(works, wordings[random.below(wordings.len())], x, genre);
    // Of a work that lacks what the wording says.
    said.or_else(|| reason(works, "Try {x}.", x, None)).unwrap_or_default()
}

/// Two works at once.
pub(super) fn explain_pair(
    works: &Works,
    pair: [usize; 2],
    genre: Option<&str>,
    random: &mut Random,
) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    for segment in split(PAIRS[random.below(PAIRS.len())]) {
        match segment {
            Ok(text) => parts.push(Part::Text { text: text.to_owned() }),
            Err("first") => parts.extend(reason(works, IN_PAIR, pair[0], genre)?),
            Err(_) => parts.extend(reason(works, IN_PAIR, pair[1], genre)?),
        }
    }
    Some(parts)
}

/// A wording with `{x}` as the item and the rest filled from what is said of it.
fn reason(works: &Works, wording: &str, x: usize, genre: Option<&str>) -> Option<Vec<Part>> {
    let work = &works.all()[x];
    let genre = genre.or(work.genres.first().map(String::as_str));
    let mut parts = Vec::new();
    let mut text = String::new();
    for segment in split(wording) {
        match segment {
            Ok(literal) => text.push_str(literal),
            Err("x") => {
                if !text.is_empty() {
                    parts.push(Part::Text { text: std::mem::take(&mut text) });
                }
                parts.push(Part::Item { id: work.id.clone() });
            }
            Err(name) => {
                append(&mut text, &fill(&format!("{{{name}}}"), work, works.type_of(work), genre)?);
            }
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text { text });
    }
    Some(parts)
}

/// Text between braces is `Err`, other text `Ok`.
fn split(wording: &str) -> impl Iterator<Item = Result<&str, &str>> {
    let piece = |piece| {
        let (name, text) =
            str::split_once(piece, '}').map_or((None, piece), |(name, text)| (Some(name), text));
        name.map(Err).into_iter().chain((!text.is_empty()).then_some(Ok(text)))
    };
    wording.split('{').flat_map(piece)
}

/// The tastes that a history shows: a sentence per type, those with most works first.
pub(super) fn profile(works: &Works, history: &[usize]) -> String {
    let all = works.all();
    let mut types: Vec<(usize, Vec<&Work>)> = Vec::new();
    for t in 0..works.types().len() {
        let of_type: Vec<&Work> =
            history.iter().map(|&place| &all[place]).filter(|w| w.item_type == t).collect();
        if !of_type.is_empty() {
            types.push((t, of_type));
        }
    }
    types.sort_by_key(|(_, of_type)| std::cmp::Reverse(of_type.len()));
    let sentences: Vec<String> =
        types.iter().map(|(t, of_type)| tastes_in(&works.types()[*t], of_type)).collect();
    sentences.join(" ")
}

fn tastes_in(item_type: &str, works: &[&Work]) -> String {
    let genres = most_frequent(works.iter().flat_map(|work| work.genres.iter().map(|genre| spoken(genre))));
    let genres: Vec<&String> = genres.iter().take(2).map(|(genre, _)| genre).collect();
    let mut sentence = format!("Likes {}{}", list_of(&genres), if genres.is_empty() { "" } else { " " });
    sentence.push_str(&plural(item_type));
    let creators = most_frequent(works.iter().filter_map(|work| work.creator.clone()));
    let decades = most_frequent(works.iter().filter_map(|work| work.decade()));
    if let Some((creator, 2..)) = creators.first() {
        sentence.push_str(&format!(", most of all by {creator}"));
    } else if let Some((first_year, 2..)) = decades.first() {
        sentence.push_str(&format!(", often from the {}", decade(*first_year)));
    }
    sentence.push('.');
    sentence
}

/// Values by how often they come, most first; those that come equally often in their own order.
fn most_frequent<T: Ord>(values: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_insert(0) += 1);
    let mut counts: Vec<(T, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}
