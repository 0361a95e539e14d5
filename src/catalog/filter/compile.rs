//! A filter on all items of a type at once.
//!
//! The expression is bound to the columns of the type, made smaller (what can hold for no value, ranges of one column, labels of one
//! column), and evaluated block by block of ranks: 4,096 bits of a clause are 512 bytes, so that everything between reading
//! the columns and writing the answer stays in the first cache. A block that is decided is not looked at further.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;

use super::bind::{MarksForm, Scan};
use super::scan::{self, Level};
use super::{Expression, Filter};
use crate::catalog::{Bitmap, Catalog, Column, Labels, Mask, Predicate};
use crate::ids::{Rank, TypeId};

/// Ranks of a block.
const BLOCK: usize = 4096;
/// Words of a block.
const WORDS: usize = BLOCK / 64;
/// Types with fewer items are not worth a second thread.
const PARALLEL: usize = 1 << 16;
/// A mask of fewer items than one in so many is a list, which is shorter than a bitmap then.
const SPARSE: usize = 64;
/// Longest mask that is a list: a list is sought through and copied to a device for every request.
const LONGEST_LIST: usize = 1024;

/// How many threads evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    One,
    /// Those of the pool.
    All,
}

impl Filter {
    /// The items of a type that pass, as a mask: everything, nothing, a short list or a bitmap.
    ///
    /// A comparison with an attribute that the type does not have, or that holds values of another kind ([`Filter::check`] refuses
    /// the latter), is false for all of them. Runs on rayon's threads; [`FilterCache`](super::FilterCache) keeps the result.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn compile(&self, catalog: &Catalog, t: TypeId) -> Mask {
        self.compile_on(catalog, t, Threads::All)
    }

    pub(super) fn compile_on(&self, catalog: &Catalog, t: TypeId, threads: Threads) -> Mask {
        let index = catalog.index(t);
        let items = index.items();
        let plan = match Plan::new(&self.expression, &|name| catalog.column(t, name)) {
            Plan::Always => return Mask::all(index),
            Plan::Never => return Mask::allow(index, &[]),
            plan => plan,
        };
        let mut words = vec![0; items.div_ceil(64)];
        let level = Level::detect();
        let fill = |work: &mut Work, (block, out): (usize, &mut [u64])| {
            let first = block * BLOCK;
            work.evaluate(&plan, Block { first, end: items.min(first + BLOCK) }, out);
        };
        if items < PARALLEL || threads == Threads::One {
            let mut work = Work::new(level);
            words.chunks_mut(WORDS).enumerate().for_each(|block| fill(&mut work, block));
        } else {
            let blocks = words.par_chunks_mut(WORDS).with_min_len(4).enumerate();
            blocks.for_each_init(|| Work::new(level), fill);
        }
        let alive = Bitmap::from_words(items, words);
        match alive.count(0..items) {
            count if count == items => Mask::all(index),
            count if count <= LONGEST_LIST.min(items / SPARSE) => Mask::allow(index, &ranks(&alive)),
            _ => Mask::from_bitmap(index, alive),
        }
    }
}

/// The SIDs of which any item is alive: `first_item` of an index whose items share SIDs, and a bit per item.
pub(in crate::catalog) fn alive_sids(first_item: &[u32], alive: &Bitmap) -> Vec<u64> {
    let sids = first_item.len() - 1;
    let mut words = vec![0; sids.div_ceil(64)];
    let level = Level::detect();
    let fill = |(block, out): (usize, &mut [u64])| {
        let (first, end) = (block * BLOCK, sids.min((block + 1) * BLOCK));
        scan::parts_from(level, alive.words(), first_item[first], &first_item[first + 1..=end], out);
    };
    // A thread of the pool does this alone: see the cache.
    if sids < PARALLEL || rayon::current_thread_index().is_some() {
        words.chunks_mut(WORDS).enumerate().for_each(fill);
    } else {
        words.par_chunks_mut(WORDS).with_min_len(4).enumerate().for_each(fill);
    }
    words
}

/// The set bits.
fn ranks(bits: &Bitmap) -> Vec<Rank> {
    let mut ranks = Vec::new();
    for (at, &word) in (0u32..).zip(bits.words()) {
        let mut word = word;
        while word != 0 {
            ranks.push(Rank(64 * at + word.trailing_zeros()));
            word &= word - 1;
        }
    }
    ranks
}

/// An expression on the columns of a type.
enum Plan<'a> {
    Always,
    Never,
    All(Vec<Plan<'a>>),
    Any(Vec<Plan<'a>>),
    Not(Box<Plan<'a>>),
    Compare(Clause<'a>),
}

/// A comparison on a column.
struct Clause<'a> {
    present: Option<&'a Bitmap>,
    scan: Scan<'a>,
}

impl<'a> Plan<'a> {
    fn new(expression: &'a Expression, column: &impl Fn(&str) -> Option<&'a Column>) -> Plan<'a> {
        match expression {
            Expression::All(parts) => Plan::all(parts.iter().map(|part| Plan::new(part, column))),
            Expression::Any(parts) => Plan::any(parts.iter().map(|part| Plan::new(part, column))),
            Expression::Not(inner) => match Plan::new(inner, column) {
                Plan::Always => Plan::Never,
                Plan::Never => Plan::Always,
                Plan::Not(twice) => *twice,
                plan => Plan::Not(Box::new(plan)),
            },
            Expression::Compare(predicate) => Plan::compare(predicate, column(predicate.attribute())),
            Expression::Named(_, filter) => Plan::new(&filter.expression, column),
        }
    }

    fn compare(predicate: &'a Predicate, column: Option<&'a Column>) -> Plan<'a> {
        let clause = column.and_then(|column| {
            Some(Clause { present: column.present(), scan: Scan::new(predicate.test(), column.values())? })
        });
        clause.map_or(Plan::Never, Plan::Compare)
    }

    fn all(parts: impl Iterator<Item = Plan<'a>>) -> Plan<'a> {
        let mut kept: Vec<Plan> = Vec::new();
        for part in parts {
            match part {
                Plan::Never => return Plan::Never,
                Plan::Always => {}
                Plan::All(parts) => {
                    parts.into_iter().for_each(|part| Plan::add(&mut kept, part, Clause::narrow))
                }
                part => Plan::add(&mut kept, part, Clause::narrow),
            }
        }
        // What is cheap comes first: it may leave nothing of a block.
        kept.sort_by_key(Plan::cost);
        match kept.len() {
            0 => Plan::Always,
            1 => kept.swap_remove(0),
            _ => Plan::All(kept),
        }
    }

    fn any(parts: impl Iterator<Item = Plan<'a>>) -> Plan<'a> {
        let mut kept: Vec<Plan> = Vec::new();
        for part in parts {
            match part {
                Plan::Always => return Plan::Always,
                Plan::Never => {}
                Plan::Any(parts) => {
                    parts.into_iter().for_each(|part| Plan::add(&mut kept, part, Clause::widen))
                }
                part => Plan::add(&mut kept, part, Clause::widen),
            }
        }
        kept.sort_by_key(Plan::cost);
        match kept.len() {
            0 => Plan::Never,
            1 => kept.swap_remove(0),
            _ => Plan::Any(kept),
        }
    }

    /// Adds a part to a list, joined to a clause on the same column if `join` can.
    fn add(kept: &mut Vec<Plan<'a>>, part: Plan<'a>, join: impl Fn(&mut Clause<'a>, &Clause<'a>) -> bool) {
        if let Plan::Compare(clause) = &part {
            let joined = kept.iter_mut().any(|kept| match kept {
                Plan::Compare(kept) => join(kept, clause),
                _ => false,
            });
            if joined {
                return;
            }
        }
        kept.push(part);
    }

    /// Bytes to be read per item, in steps.
    fn cost(&self) -> u32 {
        match self {
            Plan::Always | Plan::Never => 0,
            Plan::All(parts) | Plan::Any(parts) => parts.iter().map(Plan::cost).sum(),
            Plan::Not(inner) => inner.cost(),
            Plan::Compare(clause) => match &clause.scan {
                Scan::Present | Scan::Bits(..) => 0,
                Scan::Codes(..) => 4,
                Scan::Ints(..) | Scan::Floats(..) => 8,
                Scan::IntSet(..) | Scan::FloatSet(..) => 12,
                Scan::Labels(..) => 16,
                Scan::Texts(..) => 64,
            },
        }
    }
}

impl Clause<'_> {
    /// Takes another clause that must hold too into this one, if both are ranges of one column.
    fn narrow(&mut self, other: &Self) -> bool {
        match (&mut self.scan, &other.scan) {
            (Scan::Ints(values, range), Scan::Ints(others, other)) if std::ptr::eq(*values, *others) => {
                *range = (range.0.max(other.0), range.1.min(other.1));
                true
            }
            (Scan::Floats(values, range), Scan::Floats(others, other)) if std::ptr::eq(*values, *others) => {
                *range = (range.0.max(other.0), range.1.min(other.1));
                true
            }
            _ => false,
        }
    }

    /// Takes another clause that may hold instead into this one, if both are names of one dictionary.
    fn widen(&mut self, other: &Self) -> bool {
        match (&mut self.scan, &other.scan) {
            (Scan::Codes(codes, marks), Scan::Codes(others, other)) if std::ptr::eq(*codes, *others) => {
                marks.unite(other);
                true
            }
            (Scan::Labels(labels, marks), Scan::Labels(others, other)) if std::ptr::eq(*labels, *others) => {
                marks.unite(other);
                true
            }
            _ => false,
        }
    }
}

/// Ranks from a multiple of [`BLOCK`] on.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    end: usize,
}

impl Block {
    /// The bits of the last word that are ranks.
    fn tail(self) -> u64 {
        u64::MAX >> ((64 - (self.end - self.first) % 64) % 64)
    }

    fn invert(self, out: &mut [u64]) {
        out.iter_mut().for_each(|word| *word = !*word);
        if let Some(last) = out.last_mut() {
            *last &= self.tail();
        }
    }
}

/// What one thread evaluates with.
struct Work {
    level: Level,
    /// The bits of the values that are present, before they are spread to ranks.
    packed: Vec<u64>,
    lists: Lists,
}

impl Work {
    fn new(level: Level) -> Work {
        Work { level, packed: Vec::new(), lists: Lists::default() }
    }

    /// Writes the bits of a block; bits beyond its end are 0.
    fn evaluate(&mut self, plan: &Plan<'_>, block: Block, out: &mut [u64]) {
        match plan {
            Plan::Never => out.fill(0),
            Plan::Always => {
                out.fill(0);
                block.invert(out);
            }
            Plan::Not(inner) => {
                self.evaluate(inner, block, out);
                block.invert(out);
            }
            Plan::Compare(clause) => self.compare(clause, block, out),
            Plan::All(parts) => {
                self.evaluate(&parts[0], block, out);
                for part in &parts[1..] {
                    if out.iter().all(|&word| word == 0) {
                        return;
                    }
                    let other = &mut [0; WORDS][..out.len()];
                    self.evaluate(part, block, other);
                    out.iter_mut().zip(other).for_each(|(word, other)| *word &= *other);
                }
            }
            Plan::Any(parts) => {
                self.evaluate(&parts[0], block, out);
                for part in &parts[1..] {
                    let (last, whole) = (out[out.len() - 1], &out[..out.len() - 1]);
                    if last == block.tail() && whole.iter().all(|&word| word == u64::MAX) {
                        return;
                    }
                    let other = &mut [0; WORDS][..out.len()];
                    self.evaluate(part, block, other);
                    out.iter_mut().zip(other).for_each(|(word, other)| *word |= *other);
                }
            }
        }
    }

    fn compare(&mut self, clause: &Clause<'_>, block: Block, out: &mut [u64]) {
        let words = |bits: &Bitmap| block.first / 64..bits.words().len().min(block.first / 64 + out.len());
        let Some(present) = clause.present else {
            match clause.scan {
                Scan::Present => self.evaluate(&Plan::Always, block, out),
                Scan::Bits(bits, wanted) => {
                    out.copy_from_slice(&bits.words()[words(bits)]);
                    if !wanted {
                        block.invert(out);
                    }
                }
                _ => self.scan(&clause.scan, block.first..block.end, out),
            }
            return;
        };
        let values = present.rank(block.first)..present.rank(block.end);
        let present = &present.words()[words(present)];
        match clause.scan {
            Scan::Present => out.copy_from_slice(present),
            Scan::Bits(bits, wanted) => {
                scan::deposit(self.level, present, bits.words(), values.start, out);
                if !wanted {
                    out.iter_mut().zip(present).for_each(|(word, present)| *word = present & !*word);
                }
            }
            _ => {
                let mut packed = std::mem::take(&mut self.packed);
                packed.clear();
                packed.resize(values.len().div_ceil(64), 0);
                self.scan(&clause.scan, values, &mut packed);
                scan::deposit(self.level, present, &packed, 0, out);
                self.packed = packed;
            }
        }
    }

    /// Writes the bits of some of the values of a column.
    fn scan(&mut self, what: &Scan<'_>, at: Range<usize>, out: &mut [u64]) {
        let level = self.level;
        match what {
            Scan::Present | Scan::Bits(..) => unreachable!("these are bits already"),
            Scan::Ints(values, range) => scan::ints(level, &values[at], *range, out),
            Scan::Floats(values, range) => scan::floats(level, &values[at], *range, out),
            Scan::IntSet(values, set) => match set.marks() {
                Some((low, marks)) => scan::marked_ints(level, &values[at], low, marks, out),
                None => scan::each(&values[at], out, |&value| set.contains(value)),
            },
            Scan::FloatSet(values, set) => scan::each(&values[at], out, |value| {
                set.binary_search_by(|one| one.partial_cmp(value).unwrap_or(Ordering::Less)).is_ok()
            }),
            Scan::Codes(values, marks) => scan_codes(level, &values[at], &marks.form, out),
            Scan::Labels(labels, marks) => self.lists.scan(level, labels, &marks.form, at, out),
            Scan::Texts(texts, wanted) => {
                for (word, first) in out.iter_mut().zip(at.clone().step_by(64)) {
                    let holds = |at| u64::from(wanted.contains(texts.get_bytes(at))) << (at - first);
                    *word = (first..at.end.min(first + 64)).fold(0, |word, at| word | holds(at));
                }
            }
        }
    }
}

fn scan_codes(level: Level, codes: &[u32], marks: &MarksForm, out: &mut [u64]) {
    match marks {
        MarksForm::Range(low, high) => scan::codes(level, codes, (*low, *high), out),
        MarksForm::Few(marks) => scan::few_codes(level, codes, *marks, out),
        MarksForm::Many(marks) => scan::many_codes(level, codes, marks, out),
    }
}

/// Room for the labels of lists.
#[derive(Default)]
struct Lists {
    /// Which labels are wanted, a bit each.
    labels: Vec<u64>,
    /// Which lists have one.
    lists: Vec<u64>,
}

impl Lists {
    /// Lists that share a base of their ends.
    const SHARED: usize = 2048;

    /// Whether each of the lists `at` has a marked label: first all their labels, one behind the other, then the parts that are lists.
    fn scan(&mut self, level: Level, labels: &Labels, marks: &MarksForm, at: Range<usize>, out: &mut [u64]) {
        out.fill(0);
        let (offsets, bases) = (labels.ends().offsets(), labels.ends().bases());
        let mut first = at.start;
        while first < at.end {
            let end = at.end.min((first / Lists::SHARED + 1) * Lists::SHARED);
            let origin = if first.is_multiple_of(Lists::SHARED) { 0 } else { offsets[first - 1] };
            let base = bases[first / Lists::SHARED] as usize;
            let flat = &labels.flat()[base + origin as usize..base + offsets[end - 1] as usize];
            self.labels.clear();
            self.labels.resize(flat.len().div_ceil(64), 0);
            scan_codes(level, flat, marks, &mut self.labels);
            if self.labels.iter().any(|&word| word != 0) {
                self.lists.clear();
                self.lists.resize((end - first).div_ceil(64), 0);
                scan::parts(level, &self.labels, origin, &offsets[first..end], &mut self.lists);
                scan::append(out, first - at.start, &self.lists, end - first);
            }
            first = end;
        }
    }
}
