//! What is asked: queries and histories of the held-out side, with what answers them.

use crate::dataset::{Prompt, QueryKind, Sampler, Subject, Task, Works};

/// Kinds of queries that are asked.
pub(super) const KINDS: [QueryKind; 5] =
    [QueryKind::Title, QueryKind::Creator, QueryKind::GenreAndDecade, QueryKind::Genre, QueryKind::About];
/// A creator or a genre of a decade is asked for if at least so many works answer.
const SMALLEST_GROUP: usize = 3;
/// So often, each time in other words.
const GROUP_WORDINGS: usize = 3;

/// A question with a ranked list as answer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub prompt: Prompt,
    pub item_type: usize,
    /// The words, for baselines.
    pub query: Option<String>,
    /// Places of the works of the history, which no answer may name again; empty for queries.
    pub history: Vec<usize>,
    /// Places of the right answers, ascending.
    pub relevant: Vec<usize>,
}

/// Queries of a kind for a type, `most` at most.
pub(super) fn searches(
    works: &Works,
    sampler: &Sampler<'_>,
    kind: QueryKind,
    item_type: usize,
    most: usize,
) -> Vec<Question> {
    let range = works.of_type(item_type);
    let places = |group: &[usize]| group.first().copied();
    let asked: Vec<(usize, Option<String>)> = match kind {
        QueryKind::Creator => works
            .by_creator()
            .iter()
            .filter(|((t, _), group)| *t == item_type && group.len() >= SMALLEST_GROUP)
            .filter_map(|(_, group)| Some((places(group)?, None)))
            .collect(),
        QueryKind::GenreAndDecade => works
            .by_genre_and_decade()
            .iter()
            .filter(|((t, _), group)| *t == item_type && group.len() >= SMALLEST_GROUP)
            .filter_map(|((_, (genre, _)), group)| Some((places(group)?, Some((*genre).to_owned()))))
            .collect(),
        QueryKind::Genre => {
            let mut genres: Vec<(&str, usize)> = range
                .clone()
                .flat_map(|place| works.all()[place].genres.iter().map(move |genre| (genre.as_str(), place)))
                .collect();
            genres.sort_unstable();
            genres.dedup_by_key(|(genre, _)| *genre);
            genres.into_iter().map(|(genre, place)| (place, Some(genre.to_owned()))).collect()
        }
        _ => range.map(|place| (place, None)).collect(),
    };
    let wordings = if matches!(kind, QueryKind::Title | QueryKind::About) { 1 } else { GROUP_WORDINGS };
    let question = |(at, (place, genre)): (usize, &(usize, Option<String>)), wording: usize| {
        let key = ((kind as u64) << 40) | ((wording as u64) << 32) | (item_type as u64) << 24 | at as u64;
        let query = sampler.query(kind, *place, genre.as_deref(), key)?;
        let prompt = sampler.search_prompt(&query, *place, key);
        let relevant = query.relevant;
        Some(Question { prompt, item_type, query: Some(query.text), history: Vec::new(), relevant })
    };
    let all = (0..wordings)
        .flat_map(|wording| asked.iter().enumerate().filter_map(move |entry| question(entry, wording)));
    spread(all.collect(), most)
}

/// The last items of the held-out histories, for a type.
pub(super) fn recommendations(
    works: &Works,
    sampler: &Sampler<'_>,
    item_type: usize,
    most: usize,
) -> Vec<Question> {
    let question = |number: usize| {
        let sample = sampler.sample(Task::Recommend, number);
        let target = sample.target?;
        let Subject::History(ids) = &sample.prompt.subject else { return None };
        let history = ids.iter().filter_map(|id| works.find(id)).collect();
        (works.all()[target].item_type == item_type).then(|| Question {
            prompt: sample.prompt.clone(),
            item_type,
            query: None,
            history,
            relevant: vec![target],
        })
    };
    spread((0..sampler.histories()).filter_map(question).collect(), most)
}

/// At most so many, evenly from all.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let count = all.len();
    if count <= most {
        return all;
    }
    let kept = |place: usize| place * most / count != (place + 1) * most / count;
    all.into_iter().enumerate().filter(|(place, _)| kept(*place)).map(|(_, question)| question).collect()
}
