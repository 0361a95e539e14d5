//! What a search is given: its specification, checked once, and the logits of each step.

use super::beside::BESIDE;
use crate::catalog::TypeIndex;
#[cfg(doc)]
use crate::device::ops::Normalizer;
use crate::device::ops::SearchSpec;
use crate::error::{Error, Result};
use crate::ids::TypeId;

/// Most beams of a search.
pub const MAX_WIDTH: u32 = 1024;

/// Logits that a step of a search needs: one slice of [`StepLogits::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeColumns {
    /// Row of the search: 0 at the first level, later the live row.
    pub row: u32,
    /// Type whose codes are scored.
    pub item_type: TypeId,
    /// Level of those codes.
    pub level: u8,
    /// How many there are: the slice's length. Code `c` is its element `c`.
    pub codes: u32,
}

/// The logits of a step.
#[derive(Clone, Copy, Debug)]
pub struct StepLogits<'a> {
    /// All slices.
    pub values: &'a [f32],
    /// Where each slice begins, in the order of [`Search::columns`](super::Search::columns).
    pub starts: &'a [usize],
    /// `[rows]` (one at the first level): the logarithm of the sum of exponentials over what the normaliser covers. Needed for
    /// [`Normalizer::Vocabulary`]; for [`Normalizer::Codebook`] only where the head has it already (at the
    /// first level over the codes of all requested types); [`Normalizer::Valid`] does not look at it.
    pub norms: Option<&'a [f32]>,
}

impl<'a> StepLogits<'a> {
    pub(super) fn slice(&self, at: usize, codes: usize) -> &'a [f32] {
        &self.values[self.starts[at]..self.starts[at] + codes]
    }
}

/// Checks a specification and returns the levels of its deepest type.
pub(crate) fn check(spec: &SearchSpec) -> Result<usize> {
    if spec.types.is_empty() || !spec.types.windows(2).all(|pair| pair[0].0 < pair[1].0) {
        let types: Vec<_> = spec.types.iter().map(|t| t.0.0).collect();
        return Err(Error::invalid(
            "item_types",
            format!("{types:?} are not one or more types in type order"),
        ));
    }
    let known = spec.catalog.types().len();
    if let Some((item_type, _)) = spec.types.iter().find(|t| t.0.index() >= known) {
        return Err(Error::invalid("item_types", format!("type {item_type}, but the catalog has {known}")));
    }
    check_delta(spec)?;
    let depth = spec.types.iter().map(|t| spec.catalog.index(t.0).levels()).max().unwrap_or(0);
    if spec.widths.len() != depth {
        let message = format!("{} widths for {depth} levels", spec.widths.len());
        return Err(Error::invalid("beam_width", message));
    }
    if let Some(width) = spec.widths.iter().find(|width| !(1..=MAX_WIDTH).contains(width)) {
        return Err(Error::invalid("beam_width", format!("{width} is not from 1 to {MAX_WIDTH}")));
    }
    if spec.groups == 0 || spec.widths.iter().any(|width| width % spec.groups != 0) {
        let message = format!("{} groups do not divide the widths {:?}", spec.groups, spec.widths);
        return Err(Error::invalid("groups", message));
    }
    if !(spec.group_penalty >= 0.0 && spec.group_penalty.is_finite()) {
        return Err(Error::invalid("penalty", format!("{} is not a number from 0 up", spec.group_penalty)));
    }
    if spec.max_per_prefix == Some(0) {
        return Err(Error::invalid("max_per_prefix", "0 keeps no path, expected 1 or more"));
    }
    if let Some(sampling) = spec.sampling
        && !(sampling.temperature > 0.0 && sampling.temperature.is_finite())
    {
        let message = format!("{} is not a number above 0", sampling.temperature);
        return Err(Error::invalid("temperature", message));
    }
    Ok(depth)
}

/// Checks that a delta has a mask per requested type, the snapshot's codebooks, and SIDs that can be numbered behind the snapshot's.
fn check_delta(spec: &SearchSpec) -> Result<()> {
    let Some(delta) = &spec.delta else { return Ok(()) };
    if delta.masks.len() != spec.types.len() {
        let message = format!("{} masks for {} item types", delta.masks.len(), spec.types.len());
        return Err(Error::invalid("delta", message));
    }
    let types = delta.catalog.types().len();
    for (item_type, _) in &spec.types {
        if item_type.index() >= types {
            return Err(Error::invalid("delta", format!("type {item_type}, but the delta has {types}")));
        }
        let (base, beside) = (spec.catalog.index(*item_type), delta.catalog.index(*item_type));
        let codebooks =
            |index: &TypeIndex| (0..index.levels()).map(|l| index.codebook(l)).collect::<Vec<_>>();
        let (expected, found) = (codebooks(base), codebooks(beside));
        if found != expected {
            let message =
                format!("type {item_type} has codebooks {found:?}, but {expected:?} in the catalog");
            return Err(Error::invalid("delta", message));
        }
        let sids = base.sids() as u64 + beside.sids() as u64;
        if sids >= u64::from(BESIDE) {
            let message =
                format!("type {item_type} has {sids} SIDs with the catalog's, at most {}", BESIDE - 1);
            return Err(Error::invalid("delta", message));
        }
    }
    Ok(())
}
