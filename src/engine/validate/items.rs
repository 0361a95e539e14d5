//! Checks of a ranked list: searches, widths, quotas, diversity, boosts.

use std::collections::BTreeMap;

use super::grounding::Grounding;
use super::{Frontend, ItemsSearch, ItemsTask, Task, at_most, forbid, integer, real, seed};
use crate::catalog::{Filter, Predicate, View};
use crate::engine::prompt::Room;
use crate::engine::request::{Boost, OneOrMany, Request};
use crate::error::{Error, Result};
use crate::kv::BLOCK_TOKENS;

impl Frontend {
    pub(super) fn items(
        &self,
        request: &Request,
        view: Option<&View>,
        filter: Option<&Filter>,
        dropped: &mut BTreeMap<&'static str, usize>,
    ) -> Result<(Task, Room)> {
        let text_only = [
            ("top_k", request.top_k.is_some()),
            ("top_p", request.top_p.is_some()),
            ("min_p", request.min_p.is_some()),
            ("repetition_penalty", request.repetition_penalty.is_some()),
            ("presence_penalty", request.presence_penalty.is_some()),
            ("frequency_penalty", request.frequency_penalty.is_some()),
            ("logit_bias", request.logit_bias.is_some()),
            ("stop", request.stop.is_some()),
            ("stop_token_ids", request.stop_token_ids.is_some()),
            ("ignore_eos", request.ignore_eos.is_some()),
            ("min_tokens", request.min_tokens.is_some()),
            ("choice", request.choice.is_some()),
            ("span_beam", request.span_beam.is_some()),
            ("allow_repeats", request.allow_repeats.is_some()),
        ];
        forbid(&text_only, "output items", "it acts on text")?;
        let grounding = self.grounding(request, view, filter, dropped)?;
        let diversity = request.diversity.clone().unwrap_or_default();
        let groups = integer("diversity.groups", diversity.groups, 1, 1..=self.limits.beam_width)?;
        let group_penalty = real("diversity.penalty", diversity.penalty, 0.0, 0.0..=1e6)?;
        if diversity.penalty.is_some() && groups == 1 {
            return Err(Error::invalid("diversity.penalty", "needs diversity.groups of at least 2"));
        }
        let max_per_prefix = match diversity.max_per_prefix {
            Some(_) => Some(integer(
                "diversity.max_per_prefix",
                diversity.max_per_prefix,
                1,
                1..=self.limits.beam_width,
            )? as u32),
            None => None,
        };
        let searches = self.searches(request, &grounding, groups)?;
        let temperature = real("temperature", request.temperature, 0.0, 0.0..=100.0)?;
        if temperature > 0.0 && request.boosts.is_some() {
            return Err(Error::invalid(
                "boosts",
                format!("needs temperature 0, found {temperature}: a drawn list stays in the order drawn"),
            ));
        }
        if temperature > 0.0 && (groups > 1 || max_per_prefix.is_some()) {
            return Err(Error::invalid(
                "diversity",
                format!(
                    "needs temperature 0, found {temperature}: paths drawn without replacement are not regrouped"
                ),
            ));
        }
        let depth = grounding.depth(&searches);
        if let Some(max_tokens) = request.max_tokens {
            integer("max_tokens", Some(max_tokens), 0, depth + 2..=self.positions.max(depth + 2))?;
        }
        let private = searches.iter().map(|s| private_blocks(&s.widths, depth)).sum();
        let task = ItemsTask {
            by_quota: request.quotas.is_some(),
            normalizer: request.score.unwrap_or_default(),
            groups: groups as u32,
            group_penalty,
            max_per_prefix,
            sampling: if temperature > 0.0 { Some((temperature, seed(request))) } else { None },
            collisions: request.collisions.unwrap_or_default(),
            boosts: self.boosts(request, grounding.view)?,
            searches,
        };
        // The opener, the codes that become inputs, and one place to spare for a cache of whole blocks.
        Ok((Task::Items(task), self.room(depth + 1, private)))
    }

    fn searches(
        &self,
        request: &Request,
        grounding: &Grounding<'_>,
        groups: usize,
    ) -> Result<Vec<ItemsSearch>> {
        let widest = self.limits.beam_width.min(self.max_rows);
        let Some(quotas) = &request.quotas else {
            let depth = grounding.levels(&grounding.alive);
            let (n, widths) = widths(request, depth, widest, groups)?;
            return Ok(vec![ItemsSearch { n, widths, alive: grounding.alive.clone() }]);
        };
        forbid(&[("n", request.n.is_some())], "quotas", "each quota has its own n")?;
        if quotas.is_empty() {
            return Err(Error::invalid("quotas", "the list is empty; at least 1 quota is needed"));
        }
        at_most("quotas", quotas.len(), grounding.alive.types.len())?;
        let mut searches: Vec<ItemsSearch> = Vec::with_capacity(quotas.len());
        let mut rows = 0;
        for (i, quota) in quotas.iter().enumerate() {
            let field = format!("quotas[{i}].type");
            let wanted = grounding.view.type_id(&quota.item_type);
            let Some(alive) = wanted.and_then(|t| grounding.alive.only(t)) else {
                return Err(Error::invalid(
                    field,
                    format!("`{}` is not among the requested types", quota.item_type),
                ));
            };
            if searches.iter().any(|s| s.alive.types[0].0 == alive.types[0].0) {
                return Err(Error::invalid(field, format!("`{}` has two quotas", quota.item_type)));
            }
            let n = integer(&format!("quotas[{i}].n"), Some(quota.n), 1, 1..=widest)?;
            let of_quota = Request { n: Some(n as i64), ..request.clone() };
            let depth = grounding.levels(&alive);
            let (n, widths) = widths(&of_quota, depth, widest, groups)?;
            rows += widths.iter().copied().max().unwrap_or(0) as usize;
            searches.push(ItemsSearch { n, widths, alive });
        }
        if rows > widest {
            return Err(Error::invalid(
                "beam_width",
                format!("the quotas' beams have {rows} rows together, more than the {widest} allowed"),
            ));
        }
        Ok(searches)
    }

    fn boosts(&self, request: &Request, view: &View) -> Result<Vec<(Predicate, f32)>> {
        let boosts = request.boosts.as_deref().unwrap_or_default();
        at_most("boosts", boosts.len(), self.limits.list)?;
        let parse = |(i, boost): (usize, &Boost)| {
            let weight = real(&format!("boosts[{i}].weight"), Some(boost.weight), 0.0, -1e6..=1e6)?;
            let predicate = Predicate::parse(&boost.condition)
                .and_then(|predicate| view.check_predicate(&predicate).map(|()| predicate))
                .map_err(|message| Error::invalid(format!("boosts[{i}]"), message))?;
            Ok((predicate, weight))
        };
        boosts.iter().enumerate().map(parse).collect()
    }
}

/// Cache blocks that the beams of a search occupy: one place per beam at every level whose codes become inputs.
pub(super) fn private_blocks(widths: &[u32], depth: usize) -> usize {
    let stride = widths.iter().copied().max().unwrap_or(0) as usize;
    (depth.saturating_sub(1) * stride).div_ceil(BLOCK_TOKENS)
}

/// `n` and one width per level.
fn widths(request: &Request, depth: usize, widest: usize, groups: usize) -> Result<(usize, Vec<u32>)> {
    let widths: Vec<u32> = match &request.beam_width {
        None => {
            let n = integer("n", request.n, 10, 1..=widest)?;
            let width = n.max(30).next_multiple_of(groups).min(widest / groups * groups);
            vec![width as u32; depth]
        }
        Some(OneOrMany::One(width)) => {
            vec![integer("beam_width", Some(*width), 1, 1..=widest)? as u32; depth]
        }
        Some(OneOrMany::Many(widths)) => {
            if widths.len() != depth {
                return Err(Error::invalid(
                    "beam_width",
                    format!(
                        "{} widths are given, and the deepest requested type has {depth} levels",
                        widths.len()
                    ),
                ));
            }
            let check =
                |(l, width): (usize, &i64)| integer(&format!("beam_width[{l}]"), Some(*width), 1, 1..=widest);
            widths.iter().enumerate().map(check).map(|width| Ok(width? as u32)).collect::<Result<_>>()?
        }
    };
    if let Some(width) = widths.iter().find(|&&width| !(width as usize).is_multiple_of(groups)) {
        return Err(Error::invalid(
            "diversity.groups",
            format!("{groups} groups do not divide a beam width of {width}"),
        ));
    }
    let last = widths.last().copied().unwrap_or(1) as usize;
    let n = integer("n", request.n, last.min(10), 1..=widest)?;
    if n > last {
        return Err(Error::invalid(
            "n",
            format!("{n} items are more than the {last} beams of the last level can give"),
        ));
    }
    Ok((n, widths))
}
