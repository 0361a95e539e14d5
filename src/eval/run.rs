//! Asks an engine and judges its answers.

use std::collections::BTreeMap;
use std::time::Instant;

use super::baselines::{Bm25, Neighbours, Popularity};
use super::metrics::{Estimate, Ranking, Scores};
use super::questions::{KINDS, Question, recommendations, searches};
use super::report::{Latency, Report, Row, TextRow};
use super::verdict::{Verdicts, written};
use crate::dataset::{History, QueryKind, Sampler, Split, Subject, Task, Works};
use crate::engine::{Answer, AnswerPart, Engine, OneOrMany, Request};
use crate::error::{Error, Result};

/// Length of the lists.
const K: usize = 30;

/// How much is asked.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Key of wordings and of sampled answers.
    pub seed: u64,
    /// Width of the beams.
    pub beam_width: usize,
    /// Most questions per task and type.
    pub questions: usize,
    /// Answers in text per task.
    pub texts: usize,
}

impl Default for EvalOptions {
    fn default() -> EvalOptions {
        EvalOptions { seed: 0, beam_width: 30, questions: 500, texts: 200 }
    }
}

/// Evaluates an engine on a catalog's works and histories; `progress` is told what is asked, questions done and questions in all.
///
/// # Errors
/// Those of the engine, and if it has no catalog.
pub fn evaluate(
    engine: &Engine,
    works: &Works,
    histories: &[History],
    options: &EvalOptions,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Report> {
    let view = engine.view().ok_or_else(|| Error::Unsupported("the engine has no catalog".to_owned()))?;
    let sampler = Sampler::new(works, histories, Split::Test, options.seed);
    let learnt: Vec<Vec<usize>> = histories
        .iter()
        .filter(|history| history.split == Split::Train)
        .map(|history| history.places(works))
        .collect();
    let mut report = Report {
        snapshot: view.name().to_owned(),
        seed: options.seed,
        beam_width: options.beam_width,
        train_histories: learnt.len(),
        test_histories: sampler.histories(),
        ..Report::default()
    };
    let judge = Judge {
        engine,
        works,
        options,
        verdicts: Verdicts::new(works),
        popularity: Popularity::new(works, &learnt),
        neighbours: Neighbours::new(works, &learnt),
        bm25: Bm25::new(works),
    };
    let mut lists = Vec::new();
    for (item_type, _) in works.types().iter().enumerate() {
        for kind in KINDS {
            lists.push((
                Some(kind),
                item_type,
                searches(works, &sampler, kind, item_type, options.questions),
            ));
        }
        lists.push((None, item_type, recommendations(works, &sampler, item_type, options.questions)));
    }
    let texts = [Task::Explain, Task::Profile, Task::Describe, Task::Type];
    let texts = texts.into_iter().filter(|task| *task != Task::Profile || sampler.histories() > 0);
    let texts: Vec<Task> = texts.collect();
    let all =
        lists.iter().map(|(_, _, questions)| questions.len()).sum::<usize>() + texts.len() * options.texts;
    let mut done = 0;
    lists.sort_by_key(|(kind, item_type, _)| (kind.is_none(), *kind, *item_type));
    for (kind, item_type, questions) in lists {
        if questions.is_empty() {
            continue;
        }
        let task = if kind.is_some() { Task::Search } else { Task::Recommend };
        let row = judge.lists(task, kind, item_type, &questions, &mut || {
            done += 1;
            progress(task.name(), done, all);
        })?;
        report.tasks.push(row);
    }
    for task in texts {
        report.texts.push(judge.texts(task, &sampler, &mut || {
            done += 1;
            progress(task.name(), done, all);
        })?);
    }
    Ok(report)
}

struct Judge<'a> {
    engine: &'a Engine,
    works: &'a Works,
    options: &'a EvalOptions,
    verdicts: Verdicts<'a>,
    popularity: Popularity,
    neighbours: Neighbours,
    bm25: Bm25,
}

impl Judge<'_> {
    fn lists(
        &self,
        task: Task,
        kind: Option<QueryKind>,
        item_type: usize,
        questions: &[Question],
        tick: &mut dyn FnMut(),
    ) -> Result<Row> {
        let (mut model, mut by_sid, mut seconds) = (Vec::new(), Vec::new(), Vec::new());
        let mut baselines: BTreeMap<&'static str, Vec<Ranking>> = BTreeMap::new();
        for question in questions {
            let start = Instant::now();
            let answer = self.engine.generate(&self.request(question))?;
            seconds.push(start.elapsed().as_secs_f64());
            model.push(self.ranking(question, &self.named(&answer)));
            by_sid.push(self.ranking_of_sids(question, &answer));
            for (name, list) in self.baselines(question) {
                baselines.entry(name).or_default().push(self.ranking(question, &list));
            }
            tick();
        }
        let lead = baselines.iter().map(|(name, theirs)| (*name, Scores::lead(&model, theirs))).collect();
        Ok(Row {
            task,
            query: kind,
            item_type: self.works.types()[item_type].clone(),
            scores: Scores::of(&model),
            by_sid: Scores::of(&by_sid),
            baselines: baselines.into_iter().map(|(name, rankings)| (name, Scores::of(&rankings))).collect(),
            lead,
            latency_ms: Latency::of(seconds),
        })
    }

    fn request(&self, question: &Question) -> Request {
        let seen = self.ids(&question.history);
        Request {
            n: Some(K.min(self.options.beam_width) as i64),
            beam_width: Some(OneOrMany::One(self.options.beam_width as i64)),
            exclude: (!seen.is_empty()).then_some(seen),
            ..question.prompt.request()
        }
    }

    fn ids(&self, places: &[usize]) -> Vec<String> {
        places.iter().map(|&place| self.works.all()[place].id.clone()).collect()
    }

    fn named(&self, answer: &Answer) -> Vec<usize> {
        answer.items.iter().flatten().filter_map(|item| self.works.find(&item.id)).collect()
    }

    fn ranking(&self, question: &Question, list: &[usize]) -> Ranking {
        let hits = list.iter().map(|place| question.relevant.binary_search(place).is_ok()).collect();
        Ranking { hits, relevant: question.relevant.len() }
    }

    /// As [`Judge::ranking`], but an item stands for all that share its SID.
    fn ranking_of_sids(&self, question: &Question, answer: &Answer) -> Ranking {
        let view = self.engine.view();
        let sid = |place: &usize| {
            let item = view.as_ref()?.find(&self.works.all()[*place].id)?;
            Some((item.item_type(), item.codes()))
        };
        let mut relevant: Vec<_> = question.relevant.iter().filter_map(sid).collect();
        relevant.sort();
        relevant.dedup();
        let named = self.named(answer);
        let hits =
            named.iter().map(|place| sid(place).is_some_and(|sid| relevant.binary_search(&sid).is_ok()));
        Ranking { hits: hits.collect(), relevant: relevant.len() }
    }

    fn baselines(&self, question: &Question) -> Vec<(&'static str, Vec<usize>)> {
        let Question { item_type, history, .. } = question;
        match &question.query {
            Some(query) => vec![("BM25", self.bm25.rank(self.works, *item_type, query, K))],
            None => {
                let newest = &history[history.len().saturating_sub(1)..];
                let near = |seen: &[usize]| self.neighbours.rank(self.works, *item_type, seen, history, K);
                vec![
                    ("popularity", self.popularity.rank(self.works, *item_type, history, K)),
                    ("neighbours of all", near(history)),
                    ("neighbours of the last", near(newest)),
                ]
            }
        }
    }

    /// Answers in text; those that may be sampled are drawn as the model's folder says.
    fn texts(&self, task: Task, sampler: &Sampler<'_>, tick: &mut dyn FnMut()) -> Result<TextRow> {
        let (mut right, mut claiming, mut fitting) = (Vec::new(), Vec::new(), Vec::new());
        let mut seconds = Vec::new();
        let (mut items, mut valid, mut wrong) = (0, 0, None);
        for number in 0..self.options.texts {
            let sample = sampler.sample(task, number);
            let seed = Some((self.options.seed.wrapping_mul(1 << 20) >> 1) as i64 + number as i64);
            // What somebody took is nothing to recommend.
            let exclude = match &sample.prompt.subject {
                Subject::History(_) if task == Task::Explain => Some(self.ids(&sample.taken)),
                _ => None,
            };
            let request = Request { seed, exclude, max_tokens: Some(200), ..sample.prompt.request() };
            let start = Instant::now();
            let answer = self.engine.generate(&request)?;
            seconds.push(start.elapsed().as_secs_f64());
            let content = answer.content.unwrap_or_default();
            let verdict = self.verdicts.true_of(&sample, &content);
            for part in &content {
                if let AnswerPart::Item { id, item_type, .. } = part {
                    items += 1;
                    let as_asked = sample.prompt.target.as_ref().is_none_or(|target| target == item_type);
                    valid += usize::from(as_asked && self.works.find(id).is_some());
                }
            }
            right.push(f64::from(verdict == Some(true)));
            claiming.push(f64::from(verdict.is_some()));
            fitting.push(f64::from(self.verdicts.fits(&sample, &content)));
            if verdict != Some(true) && wrong.is_none() {
                wrong = Some(written(&content));
            }
            tick();
        }
        Ok(TextRow {
            task,
            right: Estimate::of_share(&right),
            claiming: Estimate::of_share(&claiming),
            fitting: (task == Task::Explain).then(|| Estimate::of_share(&fitting)),
            valid_items: (task == Task::Explain).then_some((items, valid)),
            latency_ms: Latency::of(seconds),
            wrong,
        })
    }
}
