//! The result, for programs and for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Estimate, Scores};
use crate::dataset::{QueryKind, Task};

/// Times of requests asked one after the other, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the requests took no longer.
    pub p50: f64,
    /// 99 in 100 took no longer.
    pub p99: f64,
}

impl Latency {
    /// Of seconds, in any order.
    pub fn of(mut seconds: Vec<f64>) -> Latency {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| match seconds.len() {
            0 => 0.0,
            n => seconds[((n as f64 * share).ceil() as usize).clamp(1, n) - 1] * 1e3,
        };
        Latency { p50: at(0.5), p99: at(0.99) }
    }
}

/// Ranked lists for one task and type.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `search` or `recommend`.
    pub task: Task,
    /// What the queries name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query: Option<QueryKind>,
    /// Type of the items.
    #[serde(rename = "type")]
    pub item_type: String,
    /// The model's, an item being right if it is the item.
    #[serde(flatten)]
    pub scores: Scores,
    /// The model's, an item being right if it has the SID of a right one.
    pub by_sid: Scores,
    /// Those of baselines on the same questions, by name.
    pub baselines: BTreeMap<&'static str, Scores>,
    /// How much higher the model's `hr@10` is than a baseline's, question by question.
    #[serde(rename = "lead_hr@10")]
    pub lead: BTreeMap<&'static str, Estimate>,
    /// Times of the model's answers.
    pub latency_ms: Latency,
}

/// Texts of one task.
#[derive(Clone, Debug, Serialize)]
pub struct TextRow {
    /// `explain`, `profile`, `describe` or `type`.
    pub task: Task,
    /// Share of answers that claim something (a genre, a creator, a type), and of which all claims are true.
    pub right: Estimate,
    /// Share of answers that claim something.
    pub claiming: Estimate,
    /// Of explanations the share whose items answer the query, or whose reason is true of the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fitting: Option<Estimate>,
    /// Items named, and those of them that are in the catalog and of the type asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_items: Option<(usize, usize)>,
    /// Times of the answers.
    pub latency_ms: Latency,
    /// One answer that was wrong, for a look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The catalog's snapshot.
    pub snapshot: String,
    /// Key of histories and wordings.
    pub seed: u64,
    /// Width of the beams.
    pub beam_width: usize,
    /// Histories that baselines counted.
    pub train_histories: usize,
    /// Histories that were asked about.
    pub test_histories: usize,
    /// Ranked lists.
    pub tasks: Vec<Row>,
    /// Texts.
    pub texts: Vec<TextRow>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| task | type | method | n | HR@1 | HR@10 (95 %) | NDCG@10 | MRR | first 10 all right | ms p50 / p99 |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.tasks {
            let task = match row.query {
                Some(kind) => format!("search, {}", spoken(kind)),
                None => row.task.name().to_owned(),
            };
            let latency = format!("{:.1} / {:.1}", row.latency_ms.p50, row.latency_ms.p99);
            line(f, &task, &row.item_type, "**model**", &row.scores, &latency)?;
            for (name, scores) in &row.baselines {
                let lead = row
                    .lead
                    .get(name)
                    .map(|lead| format!("model {:+.3} [{:+.3}, {:+.3}]", lead.mean, lead.low, lead.high));
                line(f, "", "", name, scores, &lead.unwrap_or_default())?;
            }
        }
        writeln!(f)?;
        writeln!(
            f,
            "| text | n | claims something | all claims true (95 %) | fits what was asked | valid items | ms p50 / p99 |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        for row in &self.texts {
            let valid = row.valid_items.map(|(all, valid)| format!("{valid} of {all}")).unwrap_or_default();
            let fitting = row.fitting.map(|share| format!("{:.3}", share.mean)).unwrap_or_default();
            writeln!(
                f,
                "| {} | {} | {:.3} | {:.3} ({:.3}-{:.3}) | {fitting} | {valid} | {:.1} / {:.1} |",
                row.task.name(),
                row.right.n,
                row.claiming.mean,
                row.right.mean,
                row.right.low,
                row.right.high,
                row.latency_ms.p50,
                row.latency_ms.p99
            )?;
        }
        Ok(())
    }
}

fn line(
    f: &mut fmt::Formatter<'_>,
    task: &str,
    item_type: &str,
    method: &str,
    scores: &Scores,
    last: &str,
) -> fmt::Result {
    let [low, high] = scores.hr_10_interval;
    let all_right =
        scores.all_right_10.map(|share| format!("{:.3} of {}", share.mean, share.n)).unwrap_or_default();
    writeln!(
        f,
        "| {task} | {item_type} | {method} | {} | {:.3} | {:.3} ({low:.3}-{high:.3}) | {:.3} | {:.3} | {all_right} | {last} |",
        scores.n, scores.hr_1, scores.hr_10, scores.ndcg_10, scores.mrr
    )
}

fn spoken(kind: QueryKind) -> &'static str {
    match kind {
        QueryKind::Title => "title",
        QueryKind::Creator => "creator",
        QueryKind::GenreAndDecade => "genre + decade",
        QueryKind::Genre => "genre",
        QueryKind::Decade => "decade",
        QueryKind::CreatorAndGenre => "creator + genre",
        QueryKind::About => "description",
    }
}
