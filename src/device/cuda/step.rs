//! The records of the present step that belong to no family of kernels: rows, soft tokens, and which rows the head is applied to.

use super::args::{RowGroup, RowInfo, SOURCE_BEAM, SOURCE_SOFT, SOURCE_TOKEN};
use crate::device::ops::{Plan, SegmentKind};

/// Places of the host's groups in [`super::plan::Section::Groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Group {
    /// All rows of the step.
    All,
    /// Rows of [`Plan::full_logits`].
    Full,
    /// A chunk of the rows that are normalised over the vocabulary.
    Norm(usize),
    /// A chunk of the text rows.
    Text(usize),
}

/// Which rows the head is applied to over the whole vocabulary. The list holds text rows, then rows of normalisers, then those of
/// evaluation; each of the first two is padded to whole chunks, so that the place of a chunk is known to a captured graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct HeadShape {
    /// Chunks of text rows.
    pub text_chunks: usize,
    /// Chunks of rows of normalisers.
    pub norm_chunks: usize,
    /// Bucket of the rows of the first chunk of text, which holds for all: only the last one may have fewer.
    pub text_bucket: usize,
    /// The same for chunks of normalisers.
    pub norm_bucket: usize,
    /// Bucket of evaluation rows.
    pub full_bucket: usize,
}

/// The records; their memory is reused.
#[derive(Default)]
pub(super) struct Step {
    pub rows: Vec<RowInfo>,
    pub soft: Vec<f32>,
    pub head_rows: Vec<u32>,
    pub groups: Vec<RowGroup>,
    pub head: HeadShape,
    /// Rows whose logits are read back.
    pub full: usize,
    chunk: usize,
}

/// The power of two that holds `n`, 0 for none.
pub(super) fn bucket(n: usize) -> usize {
    if n == 0 { 0 } else { n.next_power_of_two() }
}

impl Step {
    /// Records for heads applied to at most `chunk` rows at once.
    pub fn new(chunk: usize) -> Step {
        Step { chunk, ..Step::default() }
    }

    /// Takes a plan that has been checked; `norms` are the rows whose normaliser is the vocabulary.
    pub fn take(&mut self, plan: &Plan, norms: &[u32]) {
        self.take_rows(plan);
        self.take_head(plan, norms);
    }

    fn take_rows(&mut self, plan: &Plan) {
        self.rows.clear();
        let places = plan.tokens.iter().zip(&plan.positions).zip(&plan.slots);
        self.rows.extend(places.map(|((token, &position), &slot)| RowInfo {
            source: SOURCE_TOKEN,
            value: token.0,
            position,
            slot,
        }));
        for segment in &plan.segments {
            if let SegmentKind::Beam { .. } = segment.kind {
                for (beam, row) in segment.rows.clone().enumerate() {
                    let info = &mut self.rows[row as usize];
                    (info.source, info.value) = (SOURCE_BEAM, beam as u32);
                }
            }
        }
        self.soft.clear();
        for (at, soft) in plan.soft.iter().enumerate() {
            self.soft.extend_from_slice(&soft.values);
            let info = &mut self.rows[soft.row as usize];
            (info.source, info.value) = (SOURCE_SOFT, at as u32);
        }
    }

    fn take_head(&mut self, plan: &Plan, norms: &[u32]) {
        let group = |rows: usize| RowGroup { first: 0, rows: rows as u32, out: 0 };
        self.head_rows.clear();
        self.groups.clear();
        self.groups.push(group(plan.rows()));
        self.groups.push(group(plan.full_logits.len()));
        self.full = plan.full_logits.len();
        let (text, chunk) = (plan.text.len(), self.chunk);
        self.head = HeadShape {
            text_chunks: text.div_ceil(chunk),
            norm_chunks: norms.len().div_ceil(chunk),
            text_bucket: bucket(text.min(chunk)),
            norm_bucket: bucket(norms.len().min(chunk)),
            full_bucket: bucket(plan.full_logits.len()),
        };
        let chunks = |rows: usize| (0..rows.div_ceil(chunk)).map(move |c| (rows - c * chunk).min(chunk));
        self.groups.extend(chunks(norms.len()).map(group));
        self.groups.extend(chunks(text).map(group));
        self.head_rows.extend(plan.text.iter().map(|text| text.row));
        self.head_rows.resize(self.head.text_chunks * chunk, 0);
        self.head_rows.extend_from_slice(norms);
        self.head_rows.resize((self.head.text_chunks + self.head.norm_chunks) * chunk, 0);
        self.head_rows.extend_from_slice(&plan.full_logits);
    }

    /// Rows of each chunk of text.
    pub fn text_chunks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.head.text_chunks).map(|chunk| self.groups[self.group(Group::Text(chunk))].rows)
    }

    /// Place of a group in the section of groups.
    pub fn group(&self, group: Group) -> usize {
        match group {
            Group::All => 0,
            Group::Full => 1,
            Group::Norm(chunk) => 2 + chunk,
            Group::Text(chunk) => 2 + self.head.norm_chunks + chunk,
        }
    }

    /// Place of a group's rows in the list of head rows.
    pub fn list(&self, group: Group) -> usize {
        match group {
            Group::All => 0,
            Group::Text(chunk) => chunk * self.chunk,
            Group::Norm(chunk) => (self.head.text_chunks + chunk) * self.chunk,
            Group::Full => (self.head.text_chunks + self.head.norm_chunks) * self.chunk,
        }
    }

    /// Upper bound of a group's rows.
    pub fn bucket(&self, group: Group) -> usize {
        match group {
            Group::All => bucket(self.rows.len()),
            Group::Text(_) => self.head.text_bucket,
            Group::Norm(_) => self.head.norm_bucket,
            Group::Full => self.head.full_bucket,
        }
    }
}
