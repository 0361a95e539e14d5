//! Beam search over SIDs: exact, with every rule of `semantics.md` applied by selection.
//!
//! A [`Search`] holds one ordered list of paths per diversity group, live and finished together. [`Search::advance`] is handed the logits
//! that [`Search::columns`] asks for and chooses, of all alive continuations of all live paths and of all finished paths, the
//! best `W`: by score, then the parent's place in the list before, then type order, then code. Candidates are scanned in just that
//! order, so the order of arrival breaks every tie.
//!
//! # Where the text leaves room
//!
//! - **Infinities.** A dead item is never a candidate, so no logit can bring it in. Minus infinity is an ordinary, worst score: alive
//!   children take their places by the rules for ties when nothing better is there. Only a NaN in what a score or its normaliser
//!   is made of is a fault. See [`super::logsum::log_probability`] for differences of infinities.
//! - **Groups** choose one after the other at each level. The penalty lowers the score in that level's choice only; what a path hands
//!   down is its own score, and no normaliser depends on what other groups chose. A SID that an earlier group finishes at a level is dead for later groups at that level, the only one
//!   at which it could be finished; a path all of whose SIDs are gone that way ends without a continuation.
//! - **`max_per_prefix`** counts over all groups: a later group finds the places taken by earlier ones gone.
//! - **Draws** of different groups use different noise. A penalty then lowers the perturbed score.
//! - **A delta** is a second trie; a node is a pair and its children are the union by code, as if the two were one (see `beside`).
//! - When no path is live, the levels that remain only cut the list to their widths; they are run at once.

mod beside;
mod bound;
mod draw;
mod input;
mod pool;
mod scan;
mod step;

use std::cmp::Ordering;

use self::beside::BESIDE;
use self::bound::{Bound, Row as Look};
use self::draw::{Children, Drawn};
pub(crate) use self::input::check;
pub use self::input::{CodeColumns, MAX_WIDTH, StepLogits};
use self::pool::{Candidate, Pool, STAYS};
use self::scan::{Nan, Parent};
use self::step::Step;
use super::logsum::{log_probability, log_sum_exp};
use crate::catalog::{Entries, Layout, Node};
use crate::device::ops::{Normalizer, Path, SearchSpec, SidOutcome};
use crate::error::{Error, Result};
use crate::ids::{SidIndex, TokenId, TypeId};

/// One chosen code of one path; the paths of a search are chains of these.
#[derive(Clone, Copy)]
struct Link {
    parent: u32,
    /// Row at which the code was the input of the next step.
    row: u32,
    log_probability: f32,
    code: u16,
}

const NO_LINK: u32 = u32::MAX;
const NO_ROW: u32 = u32::MAX;

/// A path in a list.
#[derive(Clone, Copy)]
struct Entry {
    /// Its last link.
    link: u32,
    /// Live row, or [`NO_ROW`] if the path is finished.
    row: u32,
    /// Place of its type among the requested ones.
    place: u16,
    /// Type and first code.
    class: u32,
    /// Where it stands; the SID of a finished path.
    node: Node,
    /// Where it stands in the delta.
    beside: Node,
    score: f32,
    drawn: Drawn,
}

/// A live row.
#[derive(Clone, Copy)]
struct Row {
    link: u32,
    place: u16,
}

/// What earlier groups have chosen at this level, per requested type.
#[derive(Default)]
struct Rivals {
    /// Uses of each code; empty without a penalty.
    uses: Vec<Vec<u16>>,
    /// SIDs finished, sorted.
    taken: Vec<Vec<u32>>,
}

/// The state of one beam search on the CPU device.
pub struct Search {
    spec: SearchSpec,
    /// Levels of the deepest requested type.
    depth: usize,
    /// Class of each requested type's code 0.
    classes: Vec<u32>,
    /// The level that is chosen next.
    level: usize,
    fault: bool,
    lists: Vec<Vec<Entry>>,
    next: Vec<Vec<Entry>>,
    links: Vec<Link>,
    rows: Vec<Row>,
    /// `[rows]` logarithm of the normaliser of the step in progress, and of the one that draws.
    norms: Vec<f32>,
    drawn_norms: Vec<f32>,
    rivals: Rivals,
    pool: Pool,
    bound: Bound,
    children: Children,
}

impl Search {
    /// A search before its first level; all memory it will need is allocated here.
    ///
    /// # Errors
    /// If no type is requested or the types are not in type order, there is not one width per level of the deepest type, a width is
    /// not from 1 to [`MAX_WIDTH`] or not divided by the groups, a delta does not fit the catalog, or penalty, cap or temperature
    /// make no sense.
    pub fn new(spec: SearchSpec) -> Result<Search> {
        let depth = check(&spec)?;
        let index = |place: usize| spec.catalog.index(spec.types[place].0);
        let types = spec.types.len();
        let widest = spec.widths.iter().max().map_or(1, |&w| w as usize);
        let groups = spec.groups as usize;
        let mut classes = Vec::with_capacity(types);
        let mut first_codes = 0;
        for place in 0..types {
            classes.push(first_codes as u32);
            first_codes += index(place).codebook(0);
        }
        let codes = |place| (0..index(place).levels()).map(|l| index(place).codebook(l)).max().unwrap_or(0);
        let mut pool = Pool::new(widest / groups);
        if let Some(limit) = spec.max_per_prefix {
            pool.set_cap(limit, first_codes);
        }
        let mut children = Children::default();
        if spec.normalizer == Normalizer::Valid || spec.sampling.is_some() {
            let most = (0..types).map(codes).max().unwrap_or(0).max(first_codes);
            children.reserve(most, types);
        }
        let charged = groups > 1 && spec.group_penalty > 0.0;
        let rivals = Rivals {
            uses: (0..types).filter(|_| charged).map(|place| vec![0; codes(place)]).collect(),
            taken: vec![Vec::with_capacity(if groups > 1 { widest } else { 0 }); types],
        };
        let lists = || (0..groups).map(|_| Vec::with_capacity(widest / groups)).collect::<Vec<_>>();
        Ok(Search {
            depth,
            classes,
            level: 0,
            fault: false,
            lists: lists(),
            next: lists(),
            links: Vec::with_capacity(spec.widths.iter().map(|&w| w as usize).sum()),
            rows: Vec::with_capacity(widest),
            norms: Vec::with_capacity(widest),
            drawn_norms: Vec::with_capacity(widest),
            rivals,
            pool,
            bound: Bound::new(widest / groups),
            children,
            spec,
        })
    }

    /// What the search was made from.
    pub fn spec(&self) -> &SearchSpec {
        &self.spec
    }

    /// The level whose codes are chosen next; the number of levels when the search has ended.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Live rows: 0 before the first level and after the end.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The slices of logits that the next [`Search::advance`] takes: at the first level one per requested type, then one per live row.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = CodeColumns> + '_ {
        let first = self.level == 0;
        let count = if first { self.spec.types.len() } else { self.rows.len() };
        (0..count).map(move |at| {
            let (row, place) = if first { (0, at) } else { (at, self.rows[at].place as usize) };
            let item_type = self.spec.types[place].0;
            CodeColumns {
                row: row as u32,
                item_type,
                level: self.level as u8,
                codes: self.spec.catalog.index(item_type).codebook(self.level) as u32,
            }
        })
    }

    /// The code that is the input of a live row: type, level, code.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_code(&self, row: usize) -> (TypeId, u8, u16) {
        let Row { link, place } = self.rows[row];
        (self.spec.types[place as usize].0, (self.level - 1) as u8, self.links[link as usize].code)
    }

    /// The token that is the input of a live row.
    ///
    /// # Panics
    /// If there is no such row, or the layout is another one than the catalog's.
    pub fn row_token(&self, layout: &Layout, row: usize) -> TokenId {
        let (item_type, level, code) = self.row_code(row);
        layout.types[item_type.index()].levels[level as usize].token(code)
    }

    /// The row at which the path of live row `row` had its code of `level` as input: place `w` of that level in the private
    /// cache. At the rows' own level, `row` itself.
    ///
    /// # Panics
    /// If there is no such row, or `level` is beyond the rows' own.
    pub fn ancestor_row(&self, row: usize, level: usize) -> usize {
        assert!(level < self.level, "level {level} of rows at level {}", self.level as i64 - 1);
        let mut link = self.links[self.rows[row].link as usize];
        for _ in level + 1..self.level {
            link = self.links[link.parent as usize];
        }
        link.row as usize
    }

    /// Chooses the codes of a level.
    ///
    /// Nothing is allocated. A NaN in a logit of an alive code, or in what the normaliser covers, is a fault and ends the search.
    /// A search that has ended stays as it is: whoever plans steps ahead may not know it yet.
    ///
    /// # Errors
    /// If `level` is not the next one, or the logits are not those that [`Search::columns`] asks for.
    pub fn advance(&mut self, level: u8, logits: &StepLogits<'_>) -> Result<SidOutcome> {
        self.check_step(level, logits)?;
        if self.level < self.depth && self.choose(logits).is_err() {
            self.fault = true;
            self.level = self.depth;
            self.rows.clear();
            self.lists.iter_mut().for_each(Vec::clear);
        }
        let none = StepLogits { values: &[], starts: &[], norms: Some(&[]) };
        while self.rows.is_empty() && self.level < self.depth {
            self.choose(&none).expect("no logits, hence no NaN");
        }
        Ok(SidOutcome { live: self.rows.len() as u32, fault: self.fault })
    }

    /// The finished paths: best first, or in the order drawn; those of several groups merged by score, or group after
    /// group if drawn.
    pub fn paths(&self) -> Vec<Path> {
        let finished = self.lists.iter().flatten().filter(|entry| entry.row == NO_ROW);
        let mut paths: Vec<Path> = finished.map(|entry| self.path(entry)).collect();
        if self.lists.len() > 1 && self.spec.sampling.is_none() {
            paths.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
        }
        paths
    }

    fn path(&self, entry: &Entry) -> Path {
        let (mut codes, mut levels) = (Vec::new(), Vec::new());
        let mut at = entry.link;
        while at != NO_LINK {
            let link = self.links[at as usize];
            codes.push(link.code);
            levels.push(link.log_probability);
            at = link.parent;
        }
        codes.reverse();
        levels.reverse();
        let item_type = self.spec.types[entry.place as usize].0;
        Path { item_type, codes, sid: SidIndex(entry.node.first), score: entry.score, levels }
    }

    fn check_step(&self, level: u8, logits: &StepLogits<'_>) -> Result<()> {
        if self.level == self.depth && (level as usize) < self.depth {
            return Ok(());
        }
        if level as usize != self.level {
            let next = self.level;
            let depth = self.depth;
            return Err(Error::Device(format!(
                "a search of {depth} levels at level {next} was told to choose level {level}"
            )));
        }
        let slices = self.columns();
        if logits.starts.len() != slices.len() {
            let (found, expected) = (logits.starts.len(), slices.len());
            return Err(Error::Device(format!(
                "{found} slices of logits for a search that needs {expected}"
            )));
        }
        for (slice, &start) in slices.zip(logits.starts) {
            if logits.values.len() < start + slice.codes as usize {
                let (codes, len) = (slice.codes, logits.values.len());
                return Err(Error::Device(format!("{codes} logits from {start}, but there are {len}")));
            }
        }
        let rows = if self.level == 0 { 1 } else { self.rows.len() };
        let norms = logits.norms.map(<[f32]>::len);
        let needed = self.spec.normalizer == Normalizer::Vocabulary;
        if norms.map_or(needed, |norms| norms != rows) {
            return Err(Error::Device(format!(
                "{} normalisers for {rows} rows of a search",
                norms.unwrap_or(0)
            )));
        }
        Ok(())
    }

    /// Chooses one level, group by group.
    fn choose(&mut self, logits: &StepLogits<'_>) -> Result<(), Nan> {
        self.normalize(logits)?;
        self.warm();
        self.rows.clear();
        for group in 0..self.lists.len() {
            self.pool.begin(self.spec.widths[self.level] as usize / self.lists.len());
            if self.level == 0 {
                self.extend_roots(group, logits)?;
            } else {
                self.extend_list(group, logits)?;
            }
            self.keep(group, logits);
        }
        self.pool.forget(self.next.iter().flatten().map(|entry| entry.class));
        self.forget_rivals();
        std::mem::swap(&mut self.lists, &mut self.next);
        self.level += 1;
        Ok(())
    }

    /// Fills `norms`, unless each row's depends on its alive children.
    fn normalize(&mut self, logits: &StepLogits<'_>) -> Result<(), Nan> {
        let Search { spec, rows, norms, drawn_norms, level, .. } = self;
        let count = if *level == 0 { 1 } else { rows.len() };
        norms.clear();
        drawn_norms.clear();
        drawn_norms.resize(count, 0.0);
        match (spec.normalizer, logits.norms) {
            (Normalizer::Valid, _) => norms.resize(count, 0.0),
            (_, Some(given)) => norms.extend_from_slice(given),
            (_, None) if *level == 0 => {
                // The types' sums, then the sum of those: a type's slice lies wherever the head put it.
                for (at, (item_type, _)) in spec.types.iter().enumerate() {
                    let codes = spec.catalog.index(*item_type).codebook(0);
                    norms.push(log_sum_exp(logits.slice(at, codes)).ok_or(Nan)?);
                }
                let all = if norms.len() == 1 { norms[0] } else { log_sum_exp(norms).ok_or(Nan)? };
                norms.clear();
                norms.push(all);
            }
            (_, None) => {
                for (at, row) in rows.iter().enumerate() {
                    let codes = spec.catalog.index(spec.types[row.place as usize].0).codebook(*level);
                    norms.push(log_sum_exp(logits.slice(at, codes)).ok_or(Nan)?);
                }
            }
        }
        if norms.iter().any(|norm| norm.is_nan()) { Err(Nan) } else { Ok(()) }
    }

    /// Touches the first code below every live path, one independent load each: rows are scanned one after the other, and
    /// in a large catalog each would begin by waiting for memory.
    fn warm(&self) {
        let mut sum = 0;
        for entry in self.lists.iter().flatten().filter(|entry| entry.row != NO_ROW) {
            let index = self.spec.catalog.index(self.spec.types[entry.place as usize].0);
            let (Entries::Explicit { codes, .. } | Entries::Column { codes }) = index.entries(self.level);
            // A path that only the delta has stands nowhere here.
            sum ^= codes.get(entry.node.first as usize).copied().unwrap_or(0);
            let sid = index.sids_below(self.level, entry.node).start;
            sum ^= self.spec.types[entry.place as usize].1.glance(sid) as u16;
        }
        std::hint::black_box(sum);
    }

    /// Offers the first-level children of all requested types.
    fn extend_roots(&mut self, group: usize, logits: &StepLogits<'_>) -> Result<(), Nan> {
        let Search { spec, classes, rivals, pool, bound, children, norms, drawn_norms, .. } = self;
        let step = Step { spec, classes, rivals, logits: *logits, level: 0, group };
        if spec.normalizer != Normalizer::Valid && spec.sampling.is_none() {
            let first = step.root(0, norms[0]);
            if may_bound(spec) && bound.begin(pool.width(), (first.node.end - first.node.first) as usize) {
                bound.look(&Look::of(&first));
                pool.threshold = bound.threshold(|entry| first.rules.alive(&scan::sids(&first, entry)));
            }
            return (0..spec.types.len()).try_for_each(|place| scan::scan(&step.root(place, norms[0]), pool));
        }
        children.clear();
        for place in 0..spec.types.len() {
            children.gather(&step.root(place, 0.0))?;
        }
        if spec.normalizer == Normalizer::Valid {
            norms[0] = children.norm()?;
        }
        children.drop_taken(|place| step.root(place, 0.0));
        match spec.sampling {
            Some(sampling) => {
                let parent = |place| (step.root(place, 0.0), step.noise(place));
                drawn_norms[0] = children.draw(parent, Drawn::ROOT, sampling.temperature, pool)?;
            }
            None => children.offer(|place| step.root(place, norms[0]), norms[0], pool),
        }
        Ok(())
    }

    /// Looks at children of a group's list before they are offered, for a threshold and to have their logits at hand.
    fn look_ahead(&mut self, group: usize, logits: &StepLogits<'_>) {
        let Search { spec, pool, bound, norms, level, lists, .. } = self;
        let live = || lists[group].iter().filter(|entry| entry.row != NO_ROW);
        let Some(place) = live().next().map(|entry| entry.place) else { return };
        let (item_type, mask) = &spec.types[place as usize];
        let index = spec.catalog.index(*item_type);
        let looks = live().filter(|entry| entry.place == place).map(|entry| Look {
            index,
            level: *level,
            node: entry.node,
            logits: logits.slice(entry.row as usize, index.codebook(*level)),
            score: entry.score,
            norm: norms[entry.row as usize],
        });
        let entries = looks.clone().map(|look| (look.node.end - look.node.first) as usize).sum();
        // Below a mask that leaves little the best children are mostly dead.
        if may_bound(spec) && mask.is_all() && bound.begin(pool.width(), entries) {
            looks.for_each(|look| bound.look(&look));
            pool.threshold = bound.threshold(|_| true);
        } else {
            std::hint::black_box(looks.map(|look| look.touch()).fold(0, |sum, bits| sum ^ bits));
        }
    }

    /// Offers the finished paths of a group's list and the children of its live ones.
    fn extend_list(&mut self, group: usize, logits: &StepLogits<'_>) -> Result<(), Nan> {
        if self.spec.normalizer != Normalizer::Valid && self.spec.sampling.is_none() {
            self.look_ahead(group, logits);
        }
        let Search { spec, classes, rivals, pool, children, norms, drawn_norms, level, lists, .. } = self;
        let step = Step { spec, classes, rivals, logits: *logits, level: *level, group };
        for (at, entry) in lists[group].iter().enumerate() {
            if entry.row == NO_ROW {
                let score = if spec.sampling.is_some() { entry.drawn.perturbed } else { entry.score };
                pool.offer(score, Candidate::new(at, 0, STAYS, entry.class));
                continue;
            }
            let row = entry.row as usize;
            if spec.normalizer != Normalizer::Valid && spec.sampling.is_none() {
                scan::scan(&step.live(at, entry, norms[row]), pool)?;
                continue;
            }
            children.clear();
            children.gather(&step.live(at, entry, 0.0))?;
            if spec.normalizer == Normalizer::Valid {
                norms[row] = children.norm()?;
            }
            let parent = step.live(at, entry, norms[row]);
            children.drop_taken(|_| parent);
            match spec.sampling {
                Some(sampling) => {
                    let noise = step.noise(entry.place as usize);
                    drawn_norms[row] =
                        children.draw(|_| (parent, noise), entry.drawn, sampling.temperature, pool)?;
                }
                None => children.offer(|_| parent, norms[row], pool),
            }
        }
        Ok(())
    }

    /// Makes the pool's candidates the group's next list.
    fn keep(&mut self, group: usize, logits: &StepLogits<'_>) {
        let Search {
            spec, classes, rivals, pool, norms, drawn_norms, level, lists, next, links, rows, ..
        } = self;
        let step = Step { spec, classes, rivals, logits: *logits, level: *level, group };
        next[group].clear();
        for candidate in pool.finish() {
            if candidate.entry == STAYS {
                next[group].push(lists[group][candidate.parent as usize]);
                continue;
            }
            let at = candidate.parent as usize;
            let (parent, from, link, row, place) = if *level == 0 {
                (step.root(at, norms[0]), Drawn::ROOT, NO_LINK, 0, at)
            } else {
                let entry = &lists[group][at];
                let row = entry.row as usize;
                (step.live(at, entry, norms[row]), entry.drawn, entry.link, row, entry.place as usize)
            };
            let mut entry = follow(&parent, candidate, links.len() as u32);
            entry.place = place as u16;
            let logit = parent.logits[candidate.code as usize];
            let log_probability = log_probability(logit, parent.norm);
            entry.score = scan::add(parent.score, log_probability);
            if let Some(sampling) = spec.sampling {
                let log_q = self::log_probability(logit / sampling.temperature, drawn_norms[row]);
                entry.drawn = Drawn { phi: scan::add(from.phi, log_q), perturbed: candidate.perturbed };
            }
            if *level + 1 < parent.index.levels() {
                entry.row = rows.len() as u32;
                rows.push(Row { link: entry.link, place: entry.place });
            }
            links.push(Link { parent: link, row: entry.row, log_probability, code: candidate.code });
            next[group].push(entry);
        }
        pool.count_list();
        if lists.len() > 1 {
            self.tell_rivals(group);
        }
    }

    /// Notes what a group has chosen, for the groups after it.
    fn tell_rivals(&mut self, group: usize) {
        let Rivals { uses, taken } = &mut self.rivals;
        for entry in &self.next[group] {
            let (place, link) = (entry.place as usize, &self.links[entry.link as usize]);
            let levels = self.spec.catalog.index(self.spec.types[place].0).levels();
            // A path that was finished before has no code at this level.
            if entry.row == NO_ROW && levels != self.level + 1 {
                continue;
            }
            if let Some(uses) = uses.get_mut(place) {
                uses[link.code as usize] += 1;
            }
            if entry.row == NO_ROW {
                taken[place].push(entry.node.first);
            }
        }
        taken.iter_mut().for_each(|sids| sids.sort_unstable());
    }

    fn forget_rivals(&mut self) {
        let Rivals { uses, taken } = &mut self.rivals;
        if !uses.is_empty() {
            for entry in self.next.iter().flatten() {
                uses[entry.place as usize][self.links[entry.link as usize].code as usize] = 0;
            }
        }
        taken.iter_mut().for_each(Vec::clear);
    }
}

/// Whether what a child's score is decides alone whether it is among the best.
fn may_bound(spec: &SearchSpec) -> bool {
    spec.groups == 1 && spec.max_per_prefix.is_none()
}

/// The path that a candidate leads to; score, place and row are the caller's to fill in.
fn follow(parent: &Parent<'_>, candidate: &Candidate, link: u32) -> Entry {
    let Parent { index, level, .. } = *parent;
    let beside = parent.beside.map_or(Node::default(), |beside| beside.child(level, candidate.code));
    let node = match (candidate.entry, parent.beside) {
        // A whole SID that only the delta has is numbered behind the snapshot's.
        (BESIDE, Some(delta)) if level + 1 == index.levels() => {
            Node { first: delta.offset + beside.first, end: delta.offset + beside.end }
        }
        (BESIDE, _) => Node::default(),
        (entry, _) => scan::child(index, level, parent.node, entry),
    };
    Entry {
        link,
        row: NO_ROW,
        place: 0,
        class: candidate.class,
        node,
        beside,
        score: 0.0,
        drawn: Drawn::ROOT,
    }
}
