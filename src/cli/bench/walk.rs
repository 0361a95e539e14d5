//! SID steps from nodes that are drawn by walking down from random items.
//!
//! The nodes that a search reaches with made-up logits are those of a made-up model; ancestors of random items are what a catalog has:
//! on a skewed one mostly nodes with many children. A search is led to such nodes by logits that leave it no choice, and
//! then timed for one level with pseudo-random logits and given normalisers. The logits were written long before: they come from
//! the third-level cache at best, as the codes do.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sidereal::catalog::{Bitmap, Catalog, Mask, Node, TypeIndex};
use sidereal::device::cpu::logsum::log_sum_exp;
use sidereal::device::cpu::sid::{Search, StepLogits};
use sidereal::device::ops::{Normalizer, SearchSpec};
use sidereal::ids::{SidIndex, TypeId};

/// Sets of logits, and of nodes, that are used in turn.
const LOGITS: usize = 4;
const DRAWS: usize = 16;
/// Draws of an item per node before a level counts as having no more nodes.
const PATIENCE: usize = 64;

/// Steps of one level of a catalog's first type.
pub struct Walks {
    catalog: Arc<Catalog>,
    level: usize,
    /// `[draws][rows]` prefixes.
    nodes: Vec<Vec<Vec<u16>>>,
    /// `[LOGITS][rows, codes]`.
    logits: Vec<Vec<f32>>,
    norms: Vec<Vec<f32>>,
    /// `[rows, codes]` of the widest level: minus infinity, but for the codes of the walk in progress.
    leading: Vec<f32>,
}

impl Walks {
    /// Steps at `level` from up to `rows` different nodes, ancestors of random items that `alive` leaves.
    ///
    /// # Panics
    /// If nothing is alive.
    pub fn new(catalog: &Arc<Catalog>, alive: &Mask, level: usize, rows: usize) -> Walks {
        let index = catalog.index(TypeId(0));
        let (rows, codes) = (if level == 0 { 1 } else { rows }, index.codebook(level));
        let nodes: Vec<_> =
            (0..DRAWS as u64).map(|draw| draw_nodes(index, alive, level, rows, draw)).collect();
        let logits: Vec<Vec<f32>> = (0..LOGITS as u64).map(|seed| noise(rows * codes, seed)).collect();
        let norm = |row: &[f32]| log_sum_exp(row).expect("no logit is NaN");
        let norms = logits.iter().map(|values| values.chunks(codes).map(norm).collect()).collect();
        let widest = (0..index.levels()).map(|level| index.codebook(level)).max().unwrap_or(0);
        let leading = vec![f32::NEG_INFINITY; rows * widest];
        Walks { catalog: catalog.clone(), level, nodes, logits, norms, leading }
    }

    /// Children of the nodes of one draw, on average.
    pub fn children(&self) -> f64 {
        let index = self.catalog.index(TypeId(0));
        let count = |prefix: &Vec<u16>| index.children(self.level, node(index, prefix)).count();
        self.nodes.iter().flatten().map(count).sum::<usize>() as f64 / self.nodes.len() as f64
    }

    /// Nodes of one draw, on average.
    pub fn rows(&self) -> f64 {
        self.nodes.iter().map(Vec::len).sum::<usize>() as f64 / self.nodes.len() as f64
    }

    /// The time of one step to a list of `width`, the `at`-th: the search is led to its nodes first.
    ///
    /// # Panics
    /// If the mask leaves nothing below a node.
    pub fn step(&mut self, at: usize, mask: &Arc<Mask>, width: usize) -> Duration {
        let nodes = &self.nodes[at % DRAWS];
        let index = self.catalog.index(TypeId(0));
        let led = |level: usize| prefixes(nodes, level + 1).len();
        let widths = (0..index.levels()).map(|level| if level < self.level { led(level) } else { width });
        let mut search = Search::new(SearchSpec {
            catalog: self.catalog.clone(),
            types: vec![(TypeId(0), mask.clone())],
            delta: None,
            widths: widths.map(|width| width as u32).collect(),
            normalizer: Normalizer::Codebook,
            groups: 1,
            group_penalty: 0.0,
            max_per_prefix: None,
            sampling: None,
        })
        .expect("a plain search");
        let mut reached: Vec<Vec<u16>> = vec![Vec::new()];
        for level in 0..self.level {
            let codes = index.codebook(level);
            let place = |prefix: &[u16]| {
                let row =
                    reached.iter().position(|row| row[..] == prefix[..level]).expect("alive, and led to");
                row * codes + prefix[level] as usize
            };
            let places: Vec<usize> = prefixes(nodes, level + 1).into_iter().map(place).collect();
            // Scores of the nodes are spread over one unit, as those of a search over such logits are.
            let spread = if level + 1 == self.level { 1.0 } else { 0.0 };
            for (i, &place) in places.iter().enumerate() {
                self.leading[place] = spread * (unit((at * 977 + i) as u64, 99) - 1.0);
            }
            advance(&mut search, &self.leading, codes, &vec![0.0; reached.len()]);
            places.iter().for_each(|&place| self.leading[place] = f32::NEG_INFINITY);
            let before = std::mem::take(&mut reached);
            reached.extend((0..search.rows()).map(|row| {
                let from = if level == 0 { 0 } else { search.ancestor_row(row, level - 1) };
                before[from].iter().copied().chain([search.row_code(row).2]).collect::<Vec<u16>>()
            }));
        }
        assert!(self.level == 0 || search.rows() == nodes.len(), "a search was not led to its nodes");
        let inputs = at % LOGITS;
        advance(&mut search, &self.logits[inputs], index.codebook(self.level), &self.norms[inputs])
    }

    /// The time of reading the logits of one step, the `at`-th, and nothing else: a load per line of memory.
    pub fn read(&self, at: usize) -> Duration {
        let start = Instant::now();
        let line = self.logits[at % LOGITS].iter().step_by(16);
        black_box(line.fold(0, |sum, logit| sum ^ logit.to_bits()));
        start.elapsed()
    }
}

/// The different first codes of nodes.
fn prefixes(nodes: &[Vec<u16>], levels: usize) -> BTreeSet<&[u16]> {
    nodes.iter().map(|prefix| &prefix[..levels]).collect()
}

/// Advances by one level and returns the time that took.
fn advance(search: &mut Search, values: &[f32], codes: usize, norms: &[f32]) -> Duration {
    let rows = search.rows().max(1);
    let starts: Vec<usize> = (0..rows).map(|row| row * codes).collect();
    let level = search.level() as u8;
    let logits = StepLogits { values, starts: &starts, norms: Some(&norms[..rows]) };
    let start = Instant::now();
    black_box(search.advance(level, &logits).expect("the step is the next"));
    start.elapsed()
}

fn node(index: &TypeIndex, prefix: &[u16]) -> Node {
    let step = |node, (level, &code): (usize, &u16)| index.child(level, node, code).expect("an item's").node;
    prefix.iter().enumerate().fold(index.root(), step)
}

/// Different prefixes of `levels` codes of random alive SIDs, in order; fewer than `rows` if the level hardly has more.
fn draw_nodes(index: &TypeIndex, alive: &Mask, levels: usize, rows: usize, draw: u64) -> Vec<Vec<u16>> {
    assert!(alive.count(0..index.sids() as u32) > 0, "nothing is alive");
    let mut nodes = BTreeSet::new();
    let (mut at, mut idle) = (0, 0);
    while nodes.len() < rows && idle < PATIENCE * rows {
        at += 1;
        let sid = (unit64(at, draw ^ 0x5eed) % index.sids() as u64) as u32;
        if alive.alive(sid..sid + 1) {
            let codes = (0..levels).map(|level| index.code(SidIndex(sid), level)).collect();
            idle = if nodes.insert(codes) { 0 } else { idle + 1 };
        }
    }
    nodes.into_iter().collect()
}

/// A mask that leaves a share of the items, each for itself.
pub fn share(index: &TypeIndex, share: f64) -> Mask {
    let bound = (share * 2f64.powi(64)) as u64;
    Mask::from_bitmap(index, Bitmap::from_fn(index.items(), |rank| unit64(rank as u64, 77) < bound))
}

fn unit64(i: u64, seed: u64) -> u64 {
    let mut z = (i ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn unit(i: u64, seed: u64) -> f32 {
    (unit64(i, seed) >> 40) as f32 / (1 << 24) as f32
}

/// Pseudo-random logits, about normal.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let side = |i: u64| (unit(i, seed) - 0.5) * 6.0;
    (0..count as u64).map(|i| side(2 * i) + side(2 * i + 1)).collect()
}
