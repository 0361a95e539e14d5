//! What the outcome of a step means for a job: the next token of a text, a span committed, a list, a choice.

use std::sync::atomic::Ordering;

use super::answer::{Answer, AnswerItem, ChoiceScore, Event, FinishReason, Timing, Usage};
use super::channel::{EventSender, Pushed};
use super::counters::Counters;
use super::items_answer::Naming;
use super::job::{Branch, Job, Phase};
use super::text_answer::TextAnswer;
use super::validate::{ItemsTask, Task};
use crate::catalog::Layout;
use crate::device::ops::{Path, TextOutcome};
use crate::device::random::{COMMIT, Noise};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// What a job ends with; boxed, since most jobs do not end in a step.
pub(super) type End = Box<Result<Answer>>;

/// Whether and why a text ended.
enum Ended {
    Not,
    Stop,
    Length,
}

pub(super) fn fault(job: &Job) -> Error {
    Error::Numeric(format!(
        "the model gave logits that are not numbers after {} tokens of the answer",
        job.answer_len()
    ))
}

/// Takes the next token of a text; the answer, if it ended.
pub(super) fn take_token(
    job: &mut Job,
    outcome: &TextOutcome,
    opener: Option<TokenId>,
    counters: &Counters,
) -> Option<End> {
    let (Task::Text(task), Some(text)) = (&job.request.task, &mut job.text) else { return None };
    let token = outcome.token;
    job.tokens.push(token);
    text.record(outcome);
    let used = job.tokens.len() - job.prompt_len;
    let mut ended = Ended::Not;
    let opens = task.spans.is_some() && Some(token) == opener;
    if !opens {
        // An opener is told, and counted, with its span: it may yet be removed.
        counters.generation_tokens.fetch_add(1, Ordering::Relaxed);
        send_logprobs(&job.events, text);
    }
    if opens {
        if used == task.max_tokens {
            // A budget that ends inside a span removes the open span.
            job.tokens.pop();
            text.remove_opener();
            ended = Ended::Length;
        }
    } else if task.end.contains(&token) {
        ended = Ended::Stop;
    } else {
        let delta = text.show(token);
        if delta.stopped {
            ended = Ended::Stop;
        } else if used == task.max_tokens {
            ended = Ended::Length;
        }
        send_text(&job.events, delta.text);
    }
    end_text(job, ended)
}

fn send_text(events: &EventSender, text: String) {
    if !text.is_empty() && events.push(Event::Text(text)) == Pushed::Unwanted {
        tracing::debug!("the reader of an answer is gone");
    }
}

fn send_logprobs(events: &EventSender, text: &mut TextAnswer) {
    if let Some(unsent) = text.unsent_logprobs() {
        events.push_all(unsent.iter().cloned().map(Event::Logprob));
    }
}

fn end_text(job: &mut Job, ended: Ended) -> Option<End> {
    let finish_reason = match ended {
        Ended::Not => return None,
        Ended::Stop => FinishReason::Stop,
        Ended::Length => FinishReason::Length,
    };
    let mut text = job.text.take()?;
    let delta = text.flush();
    send_text(&job.events, delta.text);
    let (content, logprobs) = text.into_parts();
    let mut answer = answer(job, finish_reason);
    answer.content = Some(content);
    answer.usage.completion_tokens = job.answer_len();
    answer.token_ids = job.request.return_token_ids.then(|| job.tokens[job.prompt_len..].to_vec());
    answer.logprobs = logprobs;
    if let Task::Text(task) = &job.request.task {
        answer.score = task.spans.as_ref().map(|spans| spans.normalizer);
    }
    Some(Box::new(Ok(answer)))
}

/// Commits one of a span's finished paths; the answer, if it ended.
pub(super) fn commit_span(
    job: &mut Job,
    layout: &Layout,
    mut paths: Vec<Path>,
    counters: &Counters,
) -> Option<End> {
    let Task::Text(task) = &job.request.task else { return None };
    let (spans, view) = (task.spans.as_ref()?, job.request.view.clone()?);
    let text = job.text.as_mut()?;
    let used = job.tokens.len() - job.prompt_len;
    let naming = Naming::new(&job.request, &view, counters);
    // What was taken down meanwhile does not compete: another item goes with the text just as well.
    paths.retain(|path| {
        view.items(text.alive(), path.item_type, path.sid, &path.codes)
            .any(|item| !job.request.gate.deny.contains(item.id()))
    });
    let chosen = choose(&paths, task.sampling.temperature, task.sampling.seed, used as u64);
    let named = chosen.and_then(|path| Some((path, naming.best(text.alive(), path)?)));
    let budget = task.max_tokens - used;
    let Some((path, item)) = named.filter(|(path, _)| path.codes.len() < budget) else {
        // Either the budget ends inside the span, or a prompt that ends with an opener left nothing to name.
        let spent = chosen.is_some();
        if job.tokens.len() > job.prompt_len {
            job.tokens.pop();
            text.remove_opener();
        }
        return end_text(job, if spent { Ended::Length } else { Ended::Stop });
    };
    let mut codes: Vec<(TokenId, f32)> = Vec::with_capacity(path.codes.len() + 1);
    let levels = &layout.types[path.item_type.index()].levels;
    for ((&code, level), &logprob) in path.codes.iter().zip(levels).zip(&path.levels) {
        codes.push((level.token(code), logprob));
    }
    codes.extend(layout.close.map(|close| (close, 0.0)));
    let before = text.flush();
    send_text(&job.events, before.text);
    if before.stopped {
        // The text before the span completes a stop string: there the answer ends, without the opener.
        if job.tokens.len() > job.prompt_len {
            job.tokens.pop();
            text.remove_opener();
        }
        return end_text(job, Ended::Stop);
    }
    let opened = usize::from(job.tokens.len() > job.prompt_len);
    counters.generation_tokens.fetch_add((opened + codes.len()) as u64, Ordering::Relaxed);
    job.tokens.extend(codes.iter().map(|(token, _)| token));
    if !spans.allow_repeats {
        text.forbid(&view, path);
    }
    counters.items.fetch_add(1, Ordering::Relaxed);
    text.add_item(item.clone(), &codes);
    let unsent = text.unsent_logprobs().unwrap_or_default();
    // Together, so that none of them reaches a reader whose item is taken down meanwhile.
    job.events.push_all(unsent.iter().cloned().map(Event::Logprob).chain([Event::Item(item)]));
    let ended = if codes.len() == budget { Ended::Length } else { Ended::Not };
    end_text(job, ended)
}

/// The path that a span commits: the best, or one drawn from softmax(score / temperature).
fn choose(paths: &[Path], temperature: f32, seed: u64, draw: u64) -> Option<&Path> {
    let best = paths.first()?;
    if temperature == 0.0 {
        return Some(best);
    }
    let weight = |path: &Path| (f64::from(path.score - best.score) / f64::from(temperature)).exp();
    let total: f64 = paths.iter().map(weight).sum();
    let mut left = Noise::new(seed, draw, COMMIT).uniform(0) * total;
    paths
        .iter()
        .find(|path| {
            left -= weight(path);
            left <= 0.0
        })
        .or(Some(best))
}

/// The ranked list of an `items` request.
pub(super) fn items(job: &Job, task: &ItemsTask, paths: &[Vec<Path>], counters: &Counters) -> Answer {
    let mut answer = answer(job, FinishReason::Stop);
    answer.score = Some(task.normalizer);
    let Some(view) = &job.request.view else { return answer };
    let naming = Naming::new(&job.request, view, counters);
    let ranked = naming.rank(task, paths, job.request.logprobs.is_some());
    counters.exhausted.fetch_add(u64::from(ranked.exhausted), Ordering::Relaxed);
    answer.exhausted = Some(ranked.exhausted);
    answer.exhausted_types = ranked.exhausted_types;
    answer.usage.completion_tokens = ranked.items.iter().map(|item: &AnswerItem| item.sid.len()).sum();
    answer.items = Some(ranked.items);
    answer
}

pub(super) fn take_choice_token(job: &mut Job, branch: usize, logprob: f32) {
    let Task::Choice(task) = &job.request.task else { return };
    if let Phase::Context = job.phase {
        let branch = |tokens: &Vec<TokenId>| Branch { table: None, score: 0.0, done: tokens.len() == 1 };
        job.phase = Phase::Choice(task.tokens.iter().map(branch).collect());
    }
    if let Phase::Choice(branches) = &mut job.phase {
        branches[branch].score += logprob;
        // The step that used the branch's blocks is over.
        branches[branch].table = None;
    }
}

/// The answer of a `choice` request whose strings are all scored.
pub(super) fn finish_choice(job: &mut Job) -> Option<Answer> {
    let (Task::Choice(task), Phase::Choice(branches)) = (&job.request.task, &job.phase) else { return None };
    if !branches.iter().all(|branch| branch.done) {
        return None;
    }
    let best = branches.iter().map(|branch| branch.score).fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = branches.iter().map(|branch| f64::from(branch.score - best).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut choices: Vec<ChoiceScore> = task
        .texts
        .iter()
        .zip(branches)
        .zip(&weights)
        .map(|((text, branch), weight)| ChoiceScore {
            text: text.clone(),
            score: branch.score,
            probability: (weight / total) as f32,
        })
        .collect();
    // Stable: equal scores stay in the request's order.
    choices.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut answer = answer(job, FinishReason::Stop);
    answer.usage.completion_tokens = task.tokens.iter().map(Vec::len).sum();
    answer.choices = Some(choices);
    Some(answer)
}

/// The frame that all answers share.
fn answer(job: &Job, finish_reason: FinishReason) -> Answer {
    Answer {
        id: job.request.id.clone(),
        snapshot: job.request.view.as_ref().map(|view| view.name().to_owned()),
        output: job.request.output,
        finish_reason,
        score: None,
        exhausted: None,
        exhausted_types: Vec::new(),
        items: None,
        content: None,
        choices: None,
        token_ids: None,
        logprobs: None,
        dropped: job.request.dropped.clone(),
        usage: Usage {
            prompt_tokens: job.prompt_len,
            cached_tokens: job.cached_tokens.unwrap_or(0),
            completion_tokens: 0,
            beam_rows: job.beam_rows,
        },
        timing: Timing::default(),
    }
}
