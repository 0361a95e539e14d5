//! Prompts with their answers, drawn from a catalog and histories.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::wording::{self, Wordings, fill};
use super::{History, Prompt, Split, Subject, Task, Work, Works, answer};
use crate::engine::Part;
use crate::error::{Error, Result};
use crate::random::Random;

/// Items of a history that a prompt shows.
const SHOWN: usize = 8;
/// Queries in lower case.
const LOWER_CASE: f64 = 0.25;
/// Prompts that leave the type of their items open.
const ANY_TYPE: f64 = 0.06;
/// Histories of which only the target's type is shown.
const ONE_TYPE: f64 = 0.1;
/// Answers of a query that several works answer.
const ANSWERS: usize = 8;
/// Explanations of a query instead of a history, and those of them that name two works.
const EXPLAIN_QUERY: f64 = 0.4;
const EXPLAIN_PAIR: f64 = 0.3;

/// What a query names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryKind {
    /// One work by its title.
    Title,
    /// All works of a creator.
    Creator,
    /// All works of a genre in a decade.
    GenreAndDecade,
    /// All works of a genre.
    Genre,
    /// All works of a decade.
    Decade,
    /// What a creator made in a genre.
    CreatorAndGenre,
    /// One work by words of its sentence.
    About,
}

/// Kinds of queries and their shares.
const KINDS: [(QueryKind, f64); 7] = [
    (QueryKind::Title, 0.40),
    (QueryKind::Creator, 0.19),
    (QueryKind::GenreAndDecade, 0.24),
    (QueryKind::Genre, 0.04),
    (QueryKind::Decade, 0.02),
    (QueryKind::CreatorAndGenre, 0.05),
    (QueryKind::About, 0.06),
];

impl QueryKind {
    fn wordings(self) -> &'static Wordings {
        match self {
            QueryKind::Title => &wording::BY_TITLE,
            QueryKind::Creator => &wording::BY_CREATOR,
            QueryKind::GenreAndDecade => &wording::BY_GENRE_AND_DECADE,
            QueryKind::Genre => &wording::BY_GENRE,
            QueryKind::Decade => &wording::BY_DECADE,
            QueryKind::CreatorAndGenre => &wording::BY_CREATOR_AND_GENRE,
            QueryKind::About => &wording::DESCRIPTIONS,
        }
    }
}

/// A query and what answers it.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// What it names.
    pub kind: QueryKind,
    /// Its words.
    pub text: String,
    /// The genre that it names.
    pub genre: Option<String>,
    /// Places of all works that answer it, ascending.
    pub relevant: Vec<usize>,
}

/// A prompt and an answer to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What is asked.
    pub prompt: Prompt,
    /// Text and items.
    pub answer: Vec<Part>,
    /// Places of other works that a ranked list may hold as well as that of the answer: what else a query names. Learnt beside it, they make the
    /// probabilities even over all that is right.
    pub others: Vec<usize>,
    /// Of a recommendation to learn from: the items of the history after the first, each with the prompt that ends before it. These prompts begin as the
    /// sample's own does, so that learning all of them costs little more than learning one.
    pub earlier: Vec<(Prompt, usize)>,
    /// Places of all that the person took before, shown or not.
    pub taken: Vec<usize>,
    /// Place of the work that the answer is about, if it is about one.
    pub target: Option<usize>,
}

impl Sample {
    fn new(prompt: Prompt, answer: Vec<Part>) -> Sample {
        let (others, earlier, taken) = (Vec::new(), Vec::new(), Vec::new());
        Sample { prompt, answer, others, earlier, taken, target: None }
    }
}

/// Shares of the tasks: `search=4,recommend=3`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix(Vec<(Task, f64)>);

impl FromStr for Mix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mix> {
        let mut mix = BTreeMap::new();
        for share in text.split(',') {
            let (name, weight) = share.split_once('=').unwrap_or((share, "1"));
            let weight = match weight.trim().parse::<f64>() {
                Ok(weight) if weight.is_finite() && weight > 0.0 => weight,
                _ => return Err(Error::invalid("mix", format!("`{share}`: expected TASK=SHARE, above 0"))),
            };
            if mix.insert(Task::named(name.trim())?, weight).is_some() {
                return Err(Error::invalid("mix", format!("`{name}` stands there twice")));
            }
        }
        if !mix.values().sum::<f64>().is_finite() {
            return Err(Error::invalid("mix", format!("`{text}`: the shares are too large")));
        }
        Ok(Mix(mix.into_iter().collect()))
    }
}

impl Mix {
    /// The tasks of it that need no histories.
    pub fn without_histories(mut self) -> Mix {
        self.0.retain(|(task, _)| !task.needs_histories());
        self
    }

    /// How many of `samples` each task gets; they sum up to `samples`.
    fn counts(&self, samples: usize) -> Vec<(Task, usize)> {
        let all: f64 = self.0.iter().map(|(_, weight)| weight).sum();
        let (mut sum, mut given) = (0.0, 0);
        let count = |(task, weight): &(Task, f64)| {
            sum += weight;
            let end = (samples as f64 * (sum / all)).round() as usize;
            let count = end.saturating_sub(given);
            given = end;
            (*task, count)
        };
        self.0.iter().map(count).collect()
    }
}

/// A history before one of its items.
struct Cut {
    /// What the prompt shows of it.
    shown: Vec<usize>,
    /// All of it.
    taken: Vec<usize>,
    /// That item.
    next: usize,
}

/// Draws samples of one side of a split.
pub struct Sampler<'a> {
    works: &'a Works,
    /// Places of the works of each history that has two at least.
    histories: Vec<Vec<usize>>,
    split: Split,
    seed: u64,
}

impl<'a> Sampler<'a> {
    /// Of works, and of those histories that are on the side.
    pub fn new(works: &'a Works, histories: &[History], split: Split, seed: u64) -> Sampler<'a> {
        let histories = histories
            .iter()
            .filter(|history| history.split == split)
            .map(|history| history.places(works))
            .filter(|places| places.len() >= 2)
            .collect();
        Sampler { works, histories, split, seed }
    }

    /// Histories that can be asked about.
    pub fn histories(&self) -> usize {
        self.histories.len()
    }

    /// The tasks and numbers of a set of samples, in random order; [`Sampler::sample`] draws each.
    ///
    /// # Errors
    /// If a task needs histories and there are none.
    pub fn plan(&self, mix: &Mix, samples: usize) -> Result<Vec<(Task, usize)>> {
        let counts = mix.counts(samples);
        if let Some((task, _)) = counts.iter().find(|(task, count)| *count > 0 && task.needs_histories())
            && self.histories.is_empty()
        {
            let message =
                format!("`{}` needs histories of two items at least, and there are none", task.name());
            return Err(Error::invalid("histories", message));
        }
        let mut plan: Vec<(Task, usize)> = counts
            .into_iter()
            .flat_map(|(task, count)| (0..count).map(move |number| (task, number)))
            .collect();
        let mut random = Random::new(self.seed, u64::MAX - 1);
        for at in 0..plan.len() {
            let other = at + random.below(plan.len() - at);
            plan.swap(at, other);
        }
        Ok(plan)
    }

    /// Sample `number` of a task. Every stretch of as many numbers as there are works (or histories) goes through all of them;
    /// a search that names a genre then asks for any work of it.
    ///
    /// # Panics
    /// If the task needs histories ([`Sampler::plan`] says so) and there are none.
    pub fn sample(&self, task: Task, number: usize) -> Sample {
        let random = &mut Random::new(self.seed, (task as u64 + 1) << 48 | number as u64);
        match task {
            Task::Search => self.search(self.work(task, number), random),
            Task::Recommend => self.recommend(number, random),
            Task::Explain => self.explain(number, random),
            Task::Profile => {
                let history = self.shown(self.history(task, number), random);
                let answer = vec![Part::Text { text: answer::profile(self.works, &history) }];
                let prompt = Prompt::draw(task, self.ids(&history), None, self.split, random);
                Sample { taken: history, target: None, ..Sample::new(prompt, answer) }
            }
            Task::Describe | Task::Type => {
                let place = self.work(task, number);
                let work = &self.works.all()[place];
                let kind = self.works.type_of(work);
                let text = if task == Task::Type { kind.to_owned() } else { answer::describe(work, kind) };
                let prompt = Prompt::draw(task, Subject::Item(work.id.clone()), None, self.split, random);
                Sample { target: Some(place), ..Sample::new(prompt, vec![Part::Text { text }]) }
            }
            Task::Find => {
                let place = self.work(task, number);
                let text = self.query_text(QueryKind::About, place, random).0;
                let subject = Subject::Description(text);
                let target = self.target(place, random);
                let prompt = Prompt::draw(task, subject, target, self.split, random);
                self.one(prompt, place)
            }
        }
    }

    /// A query of a kind that a work answers, with all works that answer it; `None` if the work does not say what the kind names.
    /// Kinds that name a genre take `genre`, or one of the work's.
    pub fn query(
        &self,
        kind: QueryKind,
        place: usize,
        genre: Option<&str>,
        random_key: u64,
    ) -> Option<Query> {
        let random = &mut Random::new(self.seed, random_key ^ 0x5158_0000_0000_0000);
        let (text, genre) = self.query_text_of(kind, place, genre, random)?;
        Some(Query { kind, text, relevant: self.relevant(kind, place, genre.as_deref()), genre })
    }

    /// The prompt of a search, in a wording of this side.
    pub fn search_prompt(&self, query: &Query, place: usize, random_key: u64) -> Prompt {
        let random = &mut Random::new(self.seed, random_key ^ 0x5159_0000_0000_0000);
        let target = self.works.type_of(&self.works.all()[place]);
        Prompt::draw(Task::Search, Subject::Query(query.text.clone()), Some(target), self.split, random)
    }

    fn relevant(&self, kind: QueryKind, place: usize, genre: Option<&str>) -> Vec<usize> {
        let all = self.works.all();
        let work = &all[place];
        let has_genre = |other: &Work| genre.is_some_and(|genre| other.genres.iter().any(|g| g == genre));
        let fits = |other: &Work| match kind {
            QueryKind::Title => other.title == work.title && other.creator == work.creator,
            QueryKind::About => other.id == work.id,
            QueryKind::Creator => other.creator == work.creator,
            QueryKind::GenreAndDecade => has_genre(other) && other.decade() == work.decade(),
            QueryKind::Genre => has_genre(other),
            QueryKind::Decade => other.decade() == work.decade(),
            QueryKind::CreatorAndGenre => has_genre(other) && other.creator == work.creator,
        };
        self.works.of_type(work.item_type).filter(|&other| fits(&all[other])).collect()
    }

    fn search(&self, place: usize, random: &mut Random) -> Sample {
        let drawn = draw_kind(random);
        let (kind, (text, genre)) = match self.query_text_of(drawn, place, None, random) {
            Some(query) => (drawn, query),
            None => (QueryKind::Title, self.query_text(QueryKind::Title, place, random)),
        };
        let mut right = self.relevant(kind, place, genre.as_deref());
        // The work was drawn for its turn, and one of its genres after it: works of few genres would stand for theirs more often than others.
        let place = if genre.is_some() { right[random.below(right.len())] } else { place };
        right.retain(|&other| other != place);
        let kept = random.sample(right.len(), right.len().min(ANSWERS - 1));
        let others = kept.into_iter().map(|at| right[at as usize]).collect();
        let target = self.target(place, random);
        let prompt = Prompt::draw(Task::Search, Subject::Query(text), target, self.split, random);
        Sample { others, ..self.one(prompt, place) }
    }

    /// A sample that one item answers.
    fn one(&self, prompt: Prompt, place: usize) -> Sample {
        let answer = vec![self.item(place)];
        Sample { target: Some(place), ..Sample::new(prompt, answer) }
    }

    fn recommend(&self, number: usize, random: &mut Random) -> Sample {
        let Cut { shown, taken, next } = self.cut(Task::Recommend, number, random);
        let target = self.target(next, random);
        let prompt = Prompt::draw(Task::Recommend, self.ids(&shown), target, self.split, random);
        let mut before = |at: usize| {
            let (subject, target) = (self.ids(&shown[..at]), self.target(shown[at], random));
            (Prompt { subject, target: target.map(str::to_owned), ..prompt.clone() }, shown[at])
        };
        let earlier = match self.split {
            Split::Train => (1..shown.len()).map(&mut before).collect(),
            Split::Test => Vec::new(),
        };
        Sample { taken, earlier, ..self.one(prompt, next) }
    }

    fn explain(&self, number: usize, random: &mut Random) -> Sample {
        if self.histories.is_empty() || random.unit() < EXPLAIN_QUERY {
            return self.explain_query(self.work(Task::Explain, number), random);
        }
        let Cut { shown, taken, next } = self.cut(Task::Explain, number, random);
        let target = Some(self.works.type_of(&self.works.all()[next]));
        let prompt = Prompt::draw(Task::Explain, self.ids(&shown), target, self.split, random);
        let answer = answer::explain(self.works, next, &shown, None, random);
        Sample { answer, taken, ..self.one(prompt, next) }
    }

    fn explain_query(&self, place: usize, random: &mut Random) -> Sample {
        let drawn = [QueryKind::GenreAndDecade, QueryKind::Genre, QueryKind::Creator, QueryKind::Decade]
            [random.below(4)];
        let (kind, (text, genre)) = match self.query_text_of(drawn, place, None, random) {
            Some(query) => (drawn, query),
            None => (QueryKind::Title, self.query_text(QueryKind::Title, place, random)),
        };
        let mut others = self.relevant(kind, place, genre.as_deref());
        others.retain(|&other| other != place);
        let pair = match !others.is_empty() && random.unit() < EXPLAIN_PAIR {
            true => {
                let second = others[random.below(others.len())];
                answer::explain_pair(self.works, [place, second], genre.as_deref(), random)
            }
            false => None,
        };
        let answer =
            pair.unwrap_or_else(|| answer::explain(self.works, place, &[], genre.as_deref(), random));
        let target = Some(self.works.type_of(&self.works.all()[place]));
        let prompt = Prompt::draw(Task::Explain, Subject::Query(text), target, self.split, random);
        Sample { answer, others, ..self.one(prompt, place) }
    }

    /// The words of a query, and the genre in them; of kinds that the work cannot answer, its title.
    fn query_text(&self, kind: QueryKind, place: usize, random: &mut Random) -> (String, Option<String>) {
        self.query_text_of(kind, place, None, random).unwrap_or_else(|| {
            let found = self.query_text_of(QueryKind::Title, place, None, random);
            found.unwrap_or_else(|| (self.works.all()[place].title.clone(), None))
        })
    }

    fn query_text_of(
        &self,
        kind: QueryKind,
        place: usize,
        genre: Option<&str>,
        random: &mut Random,
    ) -> Option<(String, Option<String>)> {
        let work = &self.works.all()[place];
        let names_genre =
            matches!(kind, QueryKind::GenreAndDecade | QueryKind::Genre | QueryKind::CreatorAndGenre);
        let genre = match genre {
            _ if !names_genre => None,
            Some(genre) => Some(genre.to_owned()),
            None if work.genres.is_empty() => return None,
            None => Some(work.genres[random.below(work.genres.len())].clone()),
        };
        let mut filled = None;
        // Another wording may leave out what this work does not say.
        for _ in 0..8 {
            let wording = kind.wordings().draw(self.split, random);
            filled = fill(wording, work, self.works.type_of(work), genre.as_deref());
            if filled.is_some() {
                break;
            }
        }
        let mut text = filled?;
        // Of a held-out description nothing is left out: its pieces would be those that training saw.
        if kind == QueryKind::About && self.split == Split::Train && random.unit() < 0.5 {
            text = some_words(&text, random);
        }
        if random.unit() < LOWER_CASE {
            text = text.to_lowercase();
        }
        Some((text, genre))
    }

    /// A history cut before one of its items. Evaluation asks for the last; to learn from, as many are shown as there are, up to those that a prompt
    /// shows: samples that are mostly short teach little of what lies far back. Recommendations after fewer items lie within them
    /// ([`Sample::earlier`]); explanations and profiles of fewer are not learnt.
    fn cut(&self, task: Task, number: usize, random: &mut Random) -> Cut {
        let history = self.history(task, number);
        let at = match self.split {
            Split::Train => {
                let last = history.len() - 1;
                let first = last.min(SHOWN);
                first + random.below(last - first + 1)
            }
            Split::Test => history.len() - 1,
        };
        let (taken, next) = (history[..at].to_vec(), history[at]);
        let item_type = self.works.all()[next].item_type;
        let mut shown = taken.clone();
        if self.split == Split::Train && random.unit() < ONE_TYPE {
            shown.retain(|&place| self.works.all()[place].item_type == item_type);
        }
        if shown.is_empty() {
            shown.push(taken[at - 1]);
        }
        shown.drain(..shown.len().saturating_sub(SHOWN));
        Cut { shown, taken, next }
    }

    /// What of a history a profile is made from: its newest items, or some before them.
    fn shown(&self, history: &[usize], random: &mut Random) -> Vec<usize> {
        let end = match self.split {
            Split::Train => 2 + random.below(history.len() - 1),
            Split::Test => history.len(),
        };
        history[end.saturating_sub(SHOWN)..end].to_vec()
    }

    fn work(&self, task: Task, number: usize) -> usize {
        self.through(self.works.all().len(), task, number)
    }

    fn history(&self, task: Task, number: usize) -> &[usize] {
        &self.histories[self.through(self.histories.len(), task, number)]
    }

    /// Goes through all of `count` in an order of its own per round.
    fn through(&self, count: usize, task: Task, number: usize) -> usize {
        let round = Random::new(self.seed, (task as u64) << 32 | (number / count) as u64).bits();
        permuted(number % count, count, round)
    }

    fn ids(&self, places: &[usize]) -> Subject {
        Subject::History(places.iter().map(|&place| self.works.all()[place].id.clone()).collect())
    }

    fn item(&self, place: usize) -> Part {
        Part::Item { id: self.works.all()[place].id.clone() }
    }

    fn target(&self, place: usize, random: &mut Random) -> Option<&'a str> {
        let any = self.split == Split::Train && random.unit() < ANY_TYPE;
        (!any).then(|| self.works.type_of(&self.works.all()[place]))
    }
}

fn draw_kind(random: &mut Random) -> QueryKind {
    let mut left = random.unit();
    for (kind, share) in KINDS {
        left -= share;
        if left < 0.0 {
            return kind;
        }
    }
    QueryKind::Title
}

/// Four to eight neighbouring words.
fn some_words(text: &str, random: &mut Random) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let count = (4 + random.below(5)).min(words.len());
    let start = random.below(words.len() - count + 1);
    words[start..start + count].join(" ")
}

/// A permutation of the numbers below `count`: a Feistel network of four rounds over the next power of four, walked until it is below.
fn permuted(number: usize, count: usize, key: u64) -> usize {
    let half = (usize::BITS - (count.max(2) - 1).leading_zeros()).div_ceil(2);
    let mask = (1usize << half) - 1;
    let mut at = number;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4u64 {
            let mixed = Random::new(key, round << 32 | right as u64).bits() as usize & mask;
            (left, right) = (right, left ^ mixed);
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}
