//! The searches that live on the device, and the logits that each step of theirs needs.
//!
//! The head is applied to the codebooks in question alone, not to the vocabulary: rows of all searches that stand at the same
//! type and level share one product. Only the vocabulary normaliser looks at every token, block by block in a fixed order.

use std::ops::Range;
use std::sync::Arc;

use super::buffers::Disjoint;
use super::logsum::{log_sum, log_sum_exp, max_and_sum};
use super::pool::Pool;
use super::sid::{Search, StepLogits};
use crate::catalog::{Layout, LevelTokens};
use crate::device::ops::{Normalizer, Path, Plan, SearchSpec, SidOutcome, SidStep};
use crate::error::{Error, Result};
use crate::ids::{SearchId, TokenId, TypeId};

/// Tokens of the vocabulary whose logits are held at once for a normaliser.
pub(super) const VOCAB_BLOCK: usize = 8192;

/// What the operations need to know of the beams of a search.
pub(super) trait Beams {
    /// Live beams: the rows of the search's present segment that count.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such search.
    fn live(&self, search: SearchId) -> Result<usize>;

    /// The token of a live beam's code at the search's present level.
    fn token(&self, search: SearchId, beam: usize) -> TokenId;

    /// The place in the beam of `level`, an earlier one, of the ancestor of a live beam.
    fn ancestor(&self, search: SearchId, beam: usize, level: usize) -> usize;
}

/// Rows that need the logits of one codebook.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    item_type: TypeId,
    level: u8,
    /// Rows of the plan.
    pub rows: Vec<usize>,
    /// Place of the product in the logits.
    pub at: Range<usize>,
}

/// All open searches.
#[derive(Default)]
pub(super) struct Searches {
    layout: Option<Arc<Layout>>,
    open: Vec<Option<Search>>,
    /// Codebooks of the step and the rows that need them.
    pub groups: Vec<Group>,
    /// Rows of the plan whose normaliser is the vocabulary, and per row the running maximum and sum.
    pub vocabulary_rows: Vec<usize>,
    pub sums: Vec<(f32, f32)>,
    /// The products of all groups.
    pub logits: Vec<f32>,
    /// For each search of the step: where its slices begin in `logits`.
    starts: Vec<Vec<usize>>,
    /// `[searches]` its normalisers in `norms`, if the device works them out.
    normed: Vec<Option<Range<usize>>>,
    /// Slices of `logits` that are normalised over themselves, in the order of their normalisers in `norms`.
    codebooks: Vec<Range<usize>>,
    /// Normalisers: of `codebooks`, then of `vocabulary_rows`.
    norms: Vec<f32>,
}

impl Searches {
    pub(super) fn new(layout: Option<Arc<Layout>>) -> Searches {
        Searches { layout, ..Searches::default() }
    }

    pub(super) fn open(&mut self, spec: SearchSpec) -> Result<SearchId> {
        if self.layout.is_none() {
            return Err(Error::Device(
                "a search needs a layout, and the device was made without one".to_owned(),
            ));
        }
        let search = Search::new(spec)?;
        let place = self.open.iter().position(Option::is_none).unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        self.open[place] = Some(search);
        Ok(SearchId(place as u32))
    }

    pub(super) fn close(&mut self, search: SearchId) {
        if let Some(place) = self.open.get_mut(search.index()) {
            *place = None;
        }
    }

    pub(super) fn paths(&self, search: SearchId) -> Result<Vec<Path>> {
        Ok(self.get(search)?.paths())
    }

    fn get(&self, search: SearchId) -> Result<&Search> {
        self.open.get(search.index()).and_then(Option::as_ref).ok_or_else(|| no_search(search))
    }

    /// Works out which logits the searches of a plan need.
    ///
    /// # Errors
    /// [`Error::Device`] if a search does not exist, or rows or levels are not what it expects.
    pub(super) fn gather(&mut self, plan: &Plan) -> Result<()> {
        self.groups.clear();
        self.vocabulary_rows.clear();
        let mut wanted: Vec<(TypeId, u8, usize, usize, usize)> = Vec::new();
        self.starts.clear();
        for (s, step) in plan.sids.iter().enumerate() {
            let search = self.get(step.search)?;
            check_rows(step, search, plan.rows())?;
            let columns = search.columns();
            let count = columns.len();
            wanted.extend(columns.enumerate().map(|(at, columns)| {
                (columns.item_type, columns.level, s, at, step.row as usize + columns.row as usize)
            }));
            self.starts.push(vec![0; count]);
        }
        wanted.sort_unstable();
        let mut end = 0;
        for (item_type, level, s, at, row) in wanted {
            let codes = self.level_tokens(item_type, level)?.len();
            match self.groups.last_mut() {
                Some(group) if (group.item_type, group.level) == (item_type, level) => {
                    group.rows.push(row);
                    group.at.end += codes;
                }
                _ => self.groups.push(Group { item_type, level, rows: vec![row], at: end..end + codes }),
            }
            self.starts[s][at] = end;
            end += codes;
        }
        if self.logits.len() < end {
            self.logits.resize(end, 0.0);
        }
        self.gather_norms(plan)
    }

    /// Works out which normalisers are needed: a beam's codebook, or the vocabulary. At the first level the codebooks of several types
    /// are one sum, which the search takes itself.
    fn gather_norms(&mut self, plan: &Plan) -> Result<()> {
        self.codebooks.clear();
        self.normed.clear();
        let mut vocabulary = std::mem::take(&mut self.vocabulary_rows);
        for (s, step) in plan.sids.iter().enumerate() {
            let search = self.get(step.search)?;
            let rows = if step.level == 0 { 1 } else { search.rows() };
            let normed = match search.spec().normalizer {
                Normalizer::Vocabulary => {
                    let first = vocabulary.len();
                    vocabulary.extend((0..rows).map(|row| step.row as usize + row));
                    Some(first..vocabulary.len())
                }
                Normalizer::Codebook if step.level > 0 => {
                    let slices = search.columns().zip(&self.starts[s]);
                    let slices: Vec<_> = slices.map(|(c, &start)| start..start + c.codes as usize).collect();
                    let first = self.codebooks.len();
                    self.codebooks.extend(slices);
                    Some(first..self.codebooks.len())
                }
                _ => None,
            };
            self.normed.push(normed);
        }
        self.vocabulary_rows = vocabulary;
        // The vocabulary's follow the codebooks'.
        let codebooks = self.codebooks.len();
        for (step, normed) in plan.sids.iter().zip(&mut self.normed) {
            let over_all = self.open[step.search.index()]
                .as_ref()
                .is_some_and(|search| search.spec().normalizer == Normalizer::Vocabulary);
            if let (true, Some(range)) = (over_all, normed) {
                *range = range.start + codebooks..range.end + codebooks;
            }
        }
        Ok(())
    }

    /// Takes the normalisers of all codebooks, on all threads.
    pub(super) fn norm_codebooks(&mut self, pool: &mut Pool) {
        self.norms.clear();
        self.norms.resize(self.codebooks.len(), 0.0);
        let norms = Disjoint::new(&mut self.norms);
        let (codebooks, logits) = (&self.codebooks, &self.logits);
        pool.run(codebooks.len(), &|_, i| {
            let norm = log_sum_exp(&logits[codebooks[i].clone()]).unwrap_or(f32::NAN);
            // SAFETY: every slice is visited once.
            let part = unsafe { norms.part(i..i + 1) };
            part[0] = norm;
        });
    }

    /// The tokens of a group's codebook.
    pub(super) fn tokens(&self, group: &Group) -> Result<LevelTokens> {
        self.level_tokens(group.item_type, group.level).cloned()
    }

    fn level_tokens(&self, item_type: TypeId, level: u8) -> Result<&LevelTokens> {
        let types = self.layout.as_ref().map(|layout| &layout.types[..]).unwrap_or_default();
        let tokens = types.get(item_type.index()).and_then(|t| t.levels.get(level as usize));
        tokens.ok_or_else(|| Error::Device(format!("the layout has no level {level} of type {item_type}")))
    }

    /// Adds a block of the vocabulary to the running sums of the rows that are normalised over it; `logits` is `[rows, columns]`.
    pub(super) fn add_block(sums: &mut [(f32, f32)], logits: &[f32], columns: usize) {
        for (sum, logits) in sums.iter_mut().zip(logits.chunks_exact(columns)) {
            // NaN stays NaN: a fault of the row.
            *sum = join(*sum, max_and_sum(logits).unwrap_or((f32::NAN, f32::NAN)));
        }
    }

    /// Advances the searches of a plan by one level each.
    pub(super) fn advance(&mut self, plan: &Plan, outcomes: &mut Vec<SidOutcome>) -> Result<()> {
        self.norms.extend(self.sums.iter().map(|&(max, sum)| log_sum(max, sum)));
        for ((step, starts), normed) in plan.sids.iter().zip(&self.starts).zip(&self.normed) {
            let search = self
                .open
                .get_mut(step.search.index())
                .and_then(Option::as_mut)
                .ok_or_else(|| no_search(step.search))?;
            let norms = normed.clone().map(|range| &self.norms[range]);
            let logits = StepLogits { values: &self.logits, starts, norms };
            outcomes.push(search.advance(step.level, &logits)?);
        }
        Ok(())
    }
}

/// Joins two (maximum, sum of exponentials relative to it).
fn join(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    if a.0.is_nan() || b.0.is_nan() {
        return (f32::NAN, f32::NAN);
    }
    let max = a.0.max(b.0);
    if max.is_infinite() {
        return (max, if max > 0.0 { 1.0 } else { 0.0 });
    }
    (max, a.1 * (a.0 - max).exp() + b.1 * (b.0 - max).exp())
}

fn check_rows(step: &SidStep, search: &Search, rows: usize) -> Result<()> {
    let needed = if step.level == 0 { 1 } else { search.rows() };
    if step.row as usize + needed <= rows {
        return Ok(());
    }
    Err(Error::Device(format!(
        "search {} needs {needed} rows from row {} on, the plan has {rows}",
        step.search, step.row
    )))
}

impl Beams for Searches {
    fn live(&self, search: SearchId) -> Result<usize> {
        Ok(self.get(search)?.rows())
    }

    fn token(&self, search: SearchId, beam: usize) -> TokenId {
        match (self.get(search), &self.layout) {
            (Ok(search), Some(layout)) => search.row_token(layout, beam),
            _ => TokenId::default(),
        }
    }

    fn ancestor(&self, search: SearchId, beam: usize, level: usize) -> usize {
        self.get(search).map_or(0, |search| search.ancestor_row(beam, level))
    }
}

fn no_search(search: SearchId) -> Error {
    Error::Device(format!("there is no search {search}"))
}
