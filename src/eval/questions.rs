//! What is asked: queries and histories of the held-out side, with what answers them.

use crate::dataset::{Prompt, QueryKind, Sampler, Task, Works};

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
    /// Places of all works that the person took before, shown in the prompt or not, which no answer may name again; empty for queries.
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
        QueryKind::About => {
            range.filter(|&place| works.all()[place].about.is_some()).map(|place| (place, None)).collect()
        }
        _ => range.map(|place| (place, None)).collect(),
    };
    let wordings = if matches!(kind, QueryKind::Title | QueryKind::About) { 1 } else { GROUP_WORDINGS };
    let question = |(wording, at): (usize, usize)| {
        let (place, genre) = &asked[at];
        let key = ((kind as u64) << 40) | ((wording as u64) << 32) | (item_type as u64) << 24 | at as u64;
        let query = sampler.query(kind, *place, genre.as_deref(), key)?;
        let prompt = sampler.search_prompt(&query, *place, key);
        let relevant = query.relevant;
        Some(Question { prompt, item_type, query: Some(query.text), history: Vec::new(), relevant })
    };
    // Chosen before they are made: finding what answers a question looks at all works of the type.
    let all = (0..wordings).flat_map(|wording| (0..asked.len()).map(move |at| (wording, at))).collect();
    spread(all, most).into_iter().filter_map(question).collect()
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
        (works.all()[target].item_type == item_type).then(|| Question {
            prompt: sample.prompt.clone(),
            item_type,
            query: None,
            history: sample.taken.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{SimulationOptions, Split, simulate};

    fn works() -> Works {
        Works::of(crate::demo::builder().unwrap().catalog_ref().unwrap()).unwrap()
    }

    #[test]
    fn what_was_taken_is_all_of_it_and_never_the_answer() {
        let works = works();
        let people =
            SimulationOptions { users: 10, held_out: 200, lengths: (12, 16), ..SimulationOptions::default() };
        let histories = simulate(&works, &people);
        let sampler = Sampler::new(&works, &histories, Split::Test, 3);
        let mut asked = 0;
        for item_type in 0..works.types().len() {
            for question in recommendations(&works, &sampler, item_type, usize::MAX) {
                asked += 1;
                // More than a prompt shows, and all but the last of somebody's history.
                assert!((11..=15).contains(&question.history.len()), "{}", question.history.len());
                assert!(!question.history.contains(&question.relevant[0]));
                let whole: Vec<usize> = question.history.iter().chain(&question.relevant).copied().collect();
                assert!(histories.iter().any(|h| h.split == Split::Test && h.places(&works) == whole));
            }
        }
        assert_eq!(asked, 200);
    }

    #[test]
    fn a_search_is_asked_evenly_and_in_every_wording() {
        let works = works();
        let sampler = Sampler::new(&works, &[], Split::Test, 3);
        let all = searches(&works, &sampler, QueryKind::Creator, 0, usize::MAX);
        assert_eq!(all.len() % GROUP_WORDINGS, 0);
        assert!(all.iter().all(|question| question.relevant.len() >= SMALLEST_GROUP));
        let few = searches(&works, &sampler, QueryKind::Creator, 0, 20);
        assert_eq!(few.len(), 20);
        // Each creator in three wordings, and of twenty questions some in each.
        let mut words: std::collections::HashMap<&Vec<usize>, std::collections::HashSet<&String>> =
            Default::default();
        for question in &all {
            words.entry(&question.relevant).or_default().insert(question.query.as_ref().unwrap());
        }
        assert!(words.values().filter(|queries| queries.len() > 1).count() > words.len() / 2);
        assert!(
            all.iter().all(|a| all.iter().filter(|b| b.relevant == a.relevant).count() == GROUP_WORDINGS)
        );
        let place = |few: &Question| all.iter().position(|one| one.prompt == few.prompt).unwrap();
        let thirds: std::collections::HashSet<usize> =
            few.iter().map(|few| place(few) * GROUP_WORDINGS / all.len()).collect();
        assert_eq!(thirds.len(), GROUP_WORDINGS);
        let titles = searches(&works, &sampler, QueryKind::Title, 2, usize::MAX);
        assert_eq!(titles.len(), works.of_type(2).len());
    }
}
