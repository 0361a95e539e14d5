//! Checks of generated text, of items inside it, and of choices.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::items::private_blocks;
use super::{ChoiceTask, Frontend, SpanTask, Task, TextTask, at_most, forbid, integer, real, seed};
use crate::catalog::{Filter, View};
use crate::device::ops::Sampling;
use crate::engine::prompt::Room;
use crate::engine::request::{OneOrMany, Output, Request};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::kv::BLOCK_TOKENS;

/// The options that shape a list of items, and whether they are given.
fn list_options(request: &Request) -> [(&'static str, bool); 6] {
    [
        ("n", request.n.is_some()),
        ("beam_width", request.beam_width.is_some()),
        ("quotas", request.quotas.is_some()),
        ("boosts", request.boosts.is_some()),
        ("diversity", request.diversity.is_some()),
        ("collisions", request.collisions.is_some()),
    ]
}

impl Frontend {
    pub(super) fn text(
        &self,
        request: &Request,
        view: Option<&View>,
        filter: Option<&Filter>,
        dropped: &mut BTreeMap<&'static str, usize>,
    ) -> Result<(Task, Room)> {
        let output = request.output.unwrap_or_default();
        forbid(&list_options(request), "output text or mixed", "it shapes a list of items")?;
        let widest = self.limits.beam_width.min(self.max_rows);
        let width = integer("span_beam", request.span_beam, 8.min(widest), 1..=widest)? as u32;
        let mut private = 0;
        let spans = if output == Output::Mixed {
            let grounding = self.grounding(request, view, filter, dropped)?;
            if self.layout.as_ref().is_none_or(|layout| layout.open.is_none() || layout.close.is_none()) {
                return Err(Error::invalid(
                    "output",
                    "mixed needs a layout with opener and closer, and this one has none",
                ));
            }
            let depth = grounding.levels(&grounding.alive);
            private = private_blocks(&[width], depth);
            // Codes and closer of a finished span are fed in one step, with the token before them.
            if depth + 2 > self.max_rows {
                let rows = self.max_rows;
                let message =
                    format!("mixed needs steps of {} rows, more than the engine's {rows}", depth + 2);
                return Err(Error::invalid("output", message));
            }
            Some(SpanTask {
                alive: grounding.alive,
                normalizer: request.score.unwrap_or_default(),
                width,
                allow_repeats: request.allow_repeats.unwrap_or(false),
            })
        } else {
            let given = [("return_attributes", request.return_attributes.is_some())];
            forbid(&given, "output text", "it names no items")?;
            // Text alone names no item, but a misspelt type is one all the same.
            let given = [
                request.item_types.is_some(),
                request.filter.is_some(),
                request.allow.is_some(),
                request.exclude.is_some(),
            ];
            if view.is_some() && given.contains(&true) {
                self.grounding(request, view, filter, &mut BTreeMap::new())?;
            }
            None
        };
        let fallback = if request.messages.is_some() { self.positions } else { 16 };
        let max_tokens = integer("max_tokens", request.max_tokens, fallback, 1..=self.positions)?;
        let min_tokens = integer("min_tokens", request.min_tokens, 0, 0..=max_tokens)?;
        let stop = request.stop.as_ref().map(OneOrMany::to_vec).unwrap_or_default();
        at_most("stop", stop.len(), self.limits.list)?;
        if let Some(i) = stop.iter().position(String::is_empty) {
            return Err(Error::invalid(
                format!("stop[{i}]"),
                "the string is empty; it must have at least 1 character",
            ));
        }
        let stop_tokens = request.stop_token_ids.as_deref().unwrap_or_default();
        at_most("stop_token_ids", stop_tokens.len(), self.limits.list)?;
        let mut end = self.check_tokens("stop_token_ids", stop_tokens)?;
        if !request.ignore_eos.unwrap_or(false) {
            end.extend(&self.eos);
        }
        let sampling = Arc::new(self.sampling(request)?);
        let room = self.room(if request.max_tokens.is_some() { max_tokens } else { 1 }, private);
        Ok((Task::Text(TextTask { sampling, max_tokens, min_tokens, stop, end, spans }), room))
    }

    fn sampling(&self, request: &Request) -> Result<Sampling> {
        let defaults = &self.defaults;
        let top_k = match request.top_k {
            None => defaults.top_k as usize,
            Some(-1) => 0,
            Some(_) => integer("top_k", request.top_k, 0, 0..=self.vocab)?,
        };
        let bias = request.logit_bias.iter().flatten();
        at_most("logit_bias", bias.clone().count(), self.limits.logit_bias)?;
        let mut bias = bias
            .map(|(token, value)| {
                let field = format!("logit_bias.{token}");
                let Some(id) = token.parse::<i64>().ok().filter(|id| (0..self.vocab as i64).contains(id))
                else {
                    let message =
                        format!("`{token}` is not a token id of the vocabulary of {} tokens", self.vocab);
                    return Err(Error::invalid(field, message));
                };
                let token = TokenId(id as u32);
                let Some(value) = value.as_f64() else {
                    return Err(Error::invalid(field, format!("{value} is not a number")));
                };
                Ok((token, real(&field, Some(value), 0.0, -100.0..=100.0)?))
            })
            .collect::<Result<Vec<_>>>()?;
        bias.sort_by_key(|(token, _)| *token);
        let top_p = real("top_p", request.top_p, defaults.top_p, 0.0..=1.0)?;
        if top_p == 0.0 {
            return Err(Error::invalid("top_p", "0 is outside of the allowed range: above 0, at most 1"));
        }
        let repetition_penalty =
            real("repetition_penalty", request.repetition_penalty, defaults.repetition_penalty, 0.0..=1e3)?;
        if repetition_penalty == 0.0 {
            return Err(Error::invalid(
                "repetition_penalty",
                "0 is outside of the allowed range: above 0, at most 1000",
            ));
        }
        Ok(Sampling {
            temperature: real("temperature", request.temperature, defaults.temperature, 0.0..=100.0)?,
            top_k: top_k as u32,
            top_p,
            min_p: real("min_p", request.min_p, defaults.min_p, 0.0..=1.0)?,
            repetition_penalty,
            presence_penalty: real("presence_penalty", request.presence_penalty, 0.0, -2.0..=2.0)?,
            frequency_penalty: real("frequency_penalty", request.frequency_penalty, 0.0, -2.0..=2.0)?,
            bias,
            seed: seed(request),
        })
    }

    pub(super) fn choice(&self, request: &Request, choice: &[String]) -> Result<(Task, Room)> {
        let generated = [
            ("max_tokens", request.max_tokens.is_some()),
            ("min_tokens", request.min_tokens.is_some()),
            ("stop", request.stop.is_some()),
            ("stop_token_ids", request.stop_token_ids.is_some()),
            ("top_k", request.top_k.is_some()),
            ("top_p", request.top_p.is_some()),
            ("min_p", request.min_p.is_some()),
            ("logit_bias", request.logit_bias.is_some()),
            ("repetition_penalty", request.repetition_penalty.is_some()),
            ("presence_penalty", request.presence_penalty.is_some()),
            ("frequency_penalty", request.frequency_penalty.is_some()),
            ("return_attributes", request.return_attributes.is_some()),
        ];
        let why = "nothing is generated, the strings are scored";
        forbid(&generated, "choice", why)?;
        forbid(&list_options(request), "choice", why)?;
        if choice.is_empty() {
            return Err(Error::invalid("choice", "the list is empty; at least 1 string is needed"));
        }
        at_most("choice", choice.len(), self.limits.choices)?;
        // Of several end tokens the tokenizer's own is the one that ends an ordinary answer.
        let own = self.tokenizer.eos().filter(|end| self.eos.contains(end));
        let Some(end) = own.or_else(|| self.eos.first().copied()) else {
            return Err(Error::invalid(
                "choice",
                "the model names no end-of-sequence token, which choices are scored with",
            ));
        };
        let mut tokens = Vec::with_capacity(choice.len());
        for (i, text) in choice.iter().enumerate() {
            let field = || format!("choice[{i}]");
            if text.is_empty() {
                return Err(Error::invalid(
                    field(),
                    "the string is empty; it must have at least 1 character",
                ));
            }
            if choice[..i].contains(text) {
                return Err(Error::invalid(field(), format!("`{text}` is given twice")));
            }
            let mut ids = self.tokenizer.encode(text).map_err(|error| error.at(field()))?;
            ids.push(end);
            // A branch repeats at most one unfinished block of the prompt and runs in one step.
            let most = self.max_rows.saturating_sub(BLOCK_TOKENS);
            if ids.len() > most {
                return Err(Error::invalid(
                    field(),
                    format!("{} tokens are more than the {most} allowed", ids.len()),
                ));
            }
            tokens.push(ids);
        }
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(1);
        let room = self.room(longest, (longest + BLOCK_TOKENS).div_ceil(BLOCK_TOKENS) + 1);
        Ok((Task::Choice(ChoiceTask { texts: choice.to_vec(), tokens }), room))
    }
}
