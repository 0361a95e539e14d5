//! Random cases, the oracle, and the loop that drives a search.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sidereal::catalog::{Bitmap, Catalog, CatalogBuilder, ItemRecord, Mask, TypeSpec};
use sidereal::device::cpu::sid::{Search, StepLogits};
use sidereal::device::ops::{Delta, Normalizer, Path, SearchSpec};
use sidereal::ids::{Rank, SidIndex, TypeId};

/// Scores closer than this may swap.
pub const CLOSE: f64 = 1e-5;

/// A small generator of numbers.
pub struct Dice(pub u64);

impl Dice {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Logits as a function of type and prefix.
#[derive(Clone, Copy, Debug)]
pub enum Model {
    /// Anything from -4 to 4.
    Smooth(u64),
    /// Integers from -3 to 0, with normalisers of 0: every sum is exact.
    Integer(u64),
    /// All the same, with normalisers of 0.
    Flat,
    /// Infinities and huge numbers; NaN once in the given number (0: never).
    Hostile(u64, usize),
}

impl Model {
    /// The logit of a code after a prefix.
    pub fn logit(self, item_type: TypeId, prefix: &[u16], code: u16) -> f32 {
        let (Model::Smooth(seed) | Model::Integer(seed) | Model::Hostile(seed, _)) = self else {
            return 0.25;
        };
        let start = mix(seed ^ u64::from(item_type.0 + 1) << 40);
        let hash = prefix.iter().chain([&code]).fold(start, |h, &c| mix(h ^ (u64::from(c) + 1)));
        let unit = (hash >> 40) as f32 / (1 << 24) as f32;
        match self {
            Model::Smooth(_) => (unit - 0.5) * 8.0,
            Model::Integer(_) => -(unit * 4.0).floor(),
            Model::Hostile(_, nan) if nan > 0 && hash % nan as u64 == 0 => f32::NAN,
            _ => {
                let (inf, max) = (f32::INFINITY, f32::MAX);
                [inf, -inf, 1e30, -1e30, max, -max, 0.0, -0.0, 1e-40, 3.0][(hash >> 20) as usize % 10]
            }
        }
    }

    pub fn exact(self) -> bool {
        matches!(self, Model::Integer(_) | Model::Flat)
    }

    /// `ln sum exp` over the vocabulary, of which `codes` is a part.
    fn vocabulary(self, codes: impl Iterator<Item = f32>) -> f64 {
        if self.exact() { 0.0 } else { log_sum(codes.map(f64::from).chain([1.5])) }
    }
}

/// `ln sum exp` in float64.
pub fn log_sum(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() && values.iter().all(|v| !v.is_nan()) {
        return max;
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// A catalog and the codebooks of its types.
pub struct Types {
    pub catalog: Arc<Catalog>,
    pub levels: Vec<Vec<usize>>,
    /// Per type, the distinct SIDs in order.
    pub sids: Vec<Arc<Vec<Vec<u16>>>>,
}

/// SIDs with their types; they may repeat.
pub type Sids = Vec<(usize, Vec<u16>)>;

/// A catalog of these SIDs (type, codes); SIDs may repeat.
pub fn catalog(levels: &[Vec<usize>], sids: &[(usize, Vec<u16>)]) -> Types {
    let spec = |(at, levels): (usize, &Vec<usize>)| TypeSpec {
        name: format!("t{at}"),
        levels: levels.clone(),
        token: format!("<t{at}_{{level}}_{{code}}>"),
    };
    let specs: Vec<TypeSpec> = levels.iter().enumerate().map(spec).collect();
    let mut builder = CatalogBuilder::new(&specs);
    for (at, (item_type, sid)) in sids.iter().enumerate() {
        let (id, item_type) = (format!("i{at}"), format!("t{item_type}"));
        builder.push(ItemRecord { id, item_type, sid: sid.clone(), ..ItemRecord::default() }).unwrap();
    }
    let of_type = |t: usize| sids.iter().filter(move |sid| sid.0 == t).map(|sid| sid.1.clone());
    let ordered = |t: usize| Arc::new(BTreeSet::from_iter(of_type(t)).into_iter().collect());
    let distinct = (0..levels.len()).map(ordered).collect();
    Types { catalog: Arc::new(builder.build().unwrap()), levels: levels.to_vec(), sids: distinct }
}

/// Up to three types of one to five levels, small and middling codebooks, uniform or skewed, with collisions.
pub fn random_catalog(dice: &mut Dice) -> Types {
    let items = if dice.once_in(12) { 3000 } else { 1 + dice.below(150) };
    let (levels, sids) = random_sids(dice, items);
    catalog(&levels, &sids)
}

/// The codebooks and SIDs of a random catalog.
pub fn random_sids(dice: &mut Dice, items: usize) -> (Vec<Vec<usize>>, Sids) {
    let codebook = |dice: &mut Dice| {
        let spread = if dice.once_in(3) { 39 } else { 7 };
        2 + dice.below(spread)
    };
    let levels: Vec<Vec<usize>> =
        (0..1 + dice.below(3)).map(|_| (0..1 + dice.below(5)).map(|_| codebook(dice)).collect()).collect();
    let skew = 1 + dice.below(3) as i32;
    let sids: Vec<_> = (0..items)
        .map(|_| {
            let item_type = dice.below(levels.len());
            let unit = |dice: &mut Dice| dice.below(1 << 20) as f64 / (1 << 20) as f64;
            let codes = levels[item_type].iter().map(|&codes| (unit(dice).powi(skew) * codes as f64) as u16);
            (item_type, codes.collect())
        })
        .collect();
    (levels, sids)
}

/// A random catalog and a delta beside it: items go to either or to both, one type or one end of the first codes to one of them alone.
pub fn random_pair(dice: &mut Dice, items: usize) -> (Types, Types) {
    let (levels, sids) = random_sids(dice, items);
    let (one, other) = ([2, 4, 30][dice.below(3)], 1 + dice.below(6));
    let alone = dice.below(2 * levels.len());
    let cut = if dice.once_in(3) { dice.below(5) as u16 } else { u16::MAX };
    let to_delta = dice.once_in(2);
    let (mut base, mut delta) = (Sids::new(), Sids::new());
    for (t, codes) in sids {
        let whole = t == alone || codes[0] >= cut;
        let in_delta = if whole { to_delta } else { dice.once_in(one) };
        let in_both = !whole && dice.once_in(other);
        if in_delta || in_both {
            delta.push((t, codes.clone()));
        }
        if !in_delta || in_both {
            base.push((t, codes));
        }
    }
    // Neighbours of what the snapshot has: the same codes up to some level.
    for _ in 0..dice.below(8) {
        let Some((t, mut codes)) = (!base.is_empty()).then(|| base[dice.below(base.len())].clone()) else {
            break;
        };
        let same = dice.below(codes.len() + 1);
        for (code, &bound) in codes.iter_mut().zip(&levels[t]).skip(same) {
            *code = dice.below(bound) as u16;
        }
        delta.push((t, codes));
    }
    (catalog(&levels, &base), catalog(&levels, &delta))
}

/// A mask, and the same as a set of tuples.
fn random_mask(types: &Types, t: TypeId, dice: &mut Dice) -> (Mask, BTreeSet<Vec<u16>>) {
    let index = types.catalog.index(t);
    let mut alive: BTreeSet<u32> = (0..index.items() as u32).collect();
    let mut mask = Mask::all(index);
    let some = |dice: &mut Dice, n: usize| -> BTreeSet<u32> {
        (0..index.items() as u32).filter(|_| dice.once_in(n)).collect()
    };
    let ranks = |set: &BTreeSet<u32>| set.iter().map(|&rank| Rank(rank)).collect::<Vec<_>>();
    if dice.once_in(4) {
        let kept = some(dice, 2);
        mask = Mask::from_bitmap(index, Bitmap::from_fn(index.items(), |rank| kept.contains(&(rank as u32))));
        alive.retain(|rank| kept.contains(rank));
    }
    if dice.once_in(4) {
        let kept = some(dice, 3);
        mask = mask.restricted_to(index, &ranks(&kept));
        alive.retain(|rank| kept.contains(rank));
    }
    if dice.once_in(3) {
        let gone = some(dice, 4);
        mask = mask.excluding(index, &ranks(&gone));
        alive.retain(|rank| !gone.contains(rank));
    }
    if dice.once_in(4) {
        let gone: BTreeSet<u32> = (0..index.sids() as u32).filter(|_| dice.once_in(4)).collect();
        mask = mask.excluding_sids(index, &gone.iter().map(|&sid| SidIndex(sid)).collect::<Vec<_>>());
        alive.retain(|&rank| !gone.contains(&index.sid_of(Rank(rank)).0));
    }
    let tuples = alive.iter().map(|&rank| types.catalog.item(t, Rank(rank)).codes()).collect();
    (mask, tuples)
}

/// A search and what the oracle needs to know of it.
pub struct Case {
    pub spec: SearchSpec,
    pub model: Model,
    /// Per requested type.
    pub alive: Vec<BTreeSet<Vec<u16>>>,
    pub codebooks: Vec<Vec<usize>>,
    /// Per requested type, the SIDs of the snapshot and of the delta, each in order.
    pub sids: Vec<[Arc<Vec<Vec<u16>>>; 2]>,
}

/// A random case over a catalog: some of its types, masks, widths and a normaliser.
pub fn random_case(types: &Types, model: Model, dice: &mut Dice) -> Case {
    let mut requested: Vec<TypeId> = (0..types.levels.len() as u16).map(TypeId).collect();
    if requested.len() > 1 && dice.once_in(2) {
        requested.remove(dice.below(requested.len()));
    }
    let masks: Vec<_> = requested.iter().map(|&t| random_mask(types, t, dice)).collect();
    let codebooks: Vec<_> = requested.iter().map(|t| types.levels[t.index()].clone()).collect();
    let depth = codebooks.iter().map(Vec::len).max().unwrap();
    let most = [4, 16, 64][dice.below(3)];
    let width = 1 + dice.below(most);
    let per_level = dice.once_in(4);
    let widths = (0..depth).map(|_| if per_level { 1 + dice.below(64) } else { width } as u32).collect();
    let normalizer = match dice.below(3) {
        _ if model.exact() => Normalizer::Vocabulary,
        0 => Normalizer::Vocabulary,
        1 => Normalizer::Codebook,
        _ => Normalizer::Valid,
    };
    let mut spec = plain(types, widths);
    spec.types = requested.iter().zip(&masks).map(|(&t, (mask, _))| (t, Arc::new(mask.clone()))).collect();
    spec.normalizer = normalizer;
    let sids = requested.iter().map(|t| [types.sids[t.index()].clone(), Arc::default()]).collect();
    Case { spec, model, alive: masks.into_iter().map(|m| m.1).collect(), codebooks, sids }
}

/// A random case over a catalog and a delta: what is alive in either is alive.
pub fn random_case_beside(types: &Types, delta: &Types, model: Model, dice: &mut Dice) -> Case {
    let mut case = random_case(types, model, dice);
    let mut masks = Vec::new();
    for (place, (t, _)) in case.spec.types.iter().enumerate() {
        let (mask, alive) = random_mask(delta, *t, dice);
        masks.push(Arc::new(mask));
        case.alive[place].extend(alive);
        case.sids[place][1] = delta.sids[t.index()].clone();
    }
    case.spec.delta = Some(Delta { catalog: delta.catalog.clone(), masks });
    case
}

/// A search over all of a catalog.
pub fn plain(types: &Types, widths: Vec<u32>) -> SearchSpec {
    let all = |t| (TypeId(t), Arc::new(Mask::all(types.catalog.index(TypeId(t)))));
    SearchSpec {
        catalog: types.catalog.clone(),
        types: (0..types.levels.len() as u16).map(all).collect(),
        delta: None,
        widths,
        normalizer: Normalizer::Codebook,
        groups: 1,
        group_penalty: 0.0,
        max_per_prefix: None,
        sampling: None,
    }
}

/// Runs a search to its end; `None` after a fault. The prefixes of rows come from `ancestor_row`.
pub fn run(spec: &SearchSpec, model: Model) -> Option<Vec<Path>> {
    let mut search = Search::new(spec.clone()).unwrap();
    let mut history: Vec<Vec<u16>> = Vec::new();
    let depth = spec.widths.len();
    for level in 0..depth {
        let (mut values, mut starts, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        let mut slices = Vec::new();
        for slice in search.columns() {
            let ancestor = |l: usize| history[l][search.ancestor_row(slice.row as usize, l)];
            let prefix: Vec<u16> = (0..level).map(ancestor).collect();
            starts.push(values.len());
            values.extend((0..slice.codes).map(|c| model.logit(slice.item_type, &prefix, c as u16)));
            slices.push(starts[starts.len() - 1]..values.len());
        }
        if level == 0 {
            norms.push(model.vocabulary(values.iter().copied()) as f32);
        } else {
            norms.extend(slices.iter().map(|s| model.vocabulary(values[s.clone()].iter().copied()) as f32));
        }
        let given = (spec.normalizer == Normalizer::Vocabulary).then_some(&norms[..]);
        let step = StepLogits { values: &values, starts: &starts, norms: given };
        let outcome = search.advance(level as u8, &step).unwrap();
        assert_eq!(outcome.live as usize, search.rows());
        if outcome.fault {
            assert_eq!((outcome.live, search.paths().len()), (0, 0));
            return None;
        }
        if outcome.live == 0 {
            break;
        }
        let rows = 0..search.rows();
        history.push(rows.clone().map(|row| search.row_code(row).2).collect());
        rows.for_each(|row| assert_eq!(search.ancestor_row(row, level), row));
    }
    assert_eq!((search.level(), search.rows()), (depth, 0));
    Some(search.paths())
}

/// A path of the oracle.
#[derive(Clone, Debug)]
pub struct Found {
    pub place: usize,
    pub codes: Vec<u16>,
    pub score: f64,
    /// What decided its choice at the last level at which it competed.
    pub selected: f64,
}

/// What the oracle finds: a list per group.
pub struct Answer {
    pub lists: Vec<Vec<Found>>,
    /// Two candidates at some cut were too close for float32 to tell apart.
    pub close: bool,
}

impl Case {
    /// What identifies a prefix: its first SID in the snapshot's order, else in the delta's, numbered behind the snapshot's.
    pub fn identity(&self, place: usize, prefix: &[u16]) -> Option<u32> {
        let [base, delta] = &self.sids[place];
        let first = |sids: &[Vec<u16>]| {
            let at = sids.partition_point(|sid| &sid[..] < prefix);
            sids.get(at).is_some_and(|sid| sid.starts_with(prefix)).then_some(at)
        };
        first(base).or_else(|| first(delta).map(|at| base.len() + at)).map(|at| at as u32)
    }

    /// The log-probability of each alive continuation of a prefix (`None`: of nothing, over all requested types), with
    /// its type, in the order of ties.
    pub fn continuations(&self, from: Option<&Found>) -> Vec<(usize, u16, f64)> {
        let empty = Vec::new();
        let prefix = from.map_or(&empty, |f| &f.codes);
        let places = from.map_or(0..self.codebooks.len(), |f| f.place..f.place + 1);
        let mut codebook = Vec::new();
        let mut alive = Vec::new();
        for place in places {
            let item_type = self.spec.types[place].0;
            for code in 0..self.codebooks[place][prefix.len()] as u16 {
                let logit = self.model.logit(item_type, prefix, code);
                codebook.push(logit);
                let next: Vec<u16> = prefix.iter().copied().chain([code]).collect();
                let mut after = self.alive[place].range(next.clone()..);
                if after.next().is_some_and(|sid| sid.starts_with(&next)) {
                    alive.push((place, code, f64::from(logit)));
                }
            }
        }
        let norm = match self.spec.normalizer {
            Normalizer::Codebook => log_sum(codebook.into_iter().map(f64::from)),
            Normalizer::Vocabulary => self.model.vocabulary(codebook.into_iter()),
            Normalizer::Valid => log_sum(alive.iter().map(|a| a.2)),
        };
        alive.into_iter().map(|(place, code, logit)| (place, code, logit - norm)).collect()
    }

    /// The search by its definition.
    pub fn oracle(&self) -> Answer {
        let spec = &self.spec;
        let groups = spec.groups as usize;
        let mut answer = Answer { lists: vec![Vec::new(); groups], close: false };
        for (level, &width) in spec.widths.iter().enumerate() {
            let mut uses: BTreeMap<(usize, u16), usize> = BTreeMap::new();
            let mut prefixes: BTreeMap<(usize, u16), u32> = BTreeMap::new();
            let mut taken: BTreeSet<(usize, Vec<u16>)> = BTreeSet::new();
            for group in 0..groups {
                let mut all = self.candidates(level, &answer.lists[group], &taken);
                for found in &mut all {
                    let code = found.codes.get(level).map(|&code| (found.place, code));
                    let paid = code.and_then(|code| uses.get(&code)).copied().unwrap_or(0);
                    found.selected = found.score - f64::from(spec.group_penalty) * paid as f64;
                }
                all.sort_by(|a, b| b.selected.partial_cmp(&a.selected).unwrap());
                let width = width as usize / groups;
                let mut list: Vec<Found> = Vec::new();
                for found in all {
                    let count = prefixes.entry((found.place, found.codes[0])).or_default();
                    if list.len() == width || spec.max_per_prefix.is_some_and(|cap| *count == cap) {
                        // Whatever was chosen so far could have been this one if their scores are close.
                        answer.close |= list.iter().any(|kept| kept.selected - found.selected < CLOSE);
                        continue;
                    }
                    *count += 1;
                    list.push(found);
                }
                for found in &list {
                    if let Some(&code) = found.codes.get(level) {
                        *uses.entry((found.place, code)).or_default() += 1;
                    }
                    if found.codes.len() == self.codebooks[found.place].len() {
                        taken.insert((found.place, found.codes.clone()));
                    }
                }
                answer.lists[group] = list;
            }
        }
        answer
    }

    fn candidates(&self, level: usize, list: &[Found], taken: &BTreeSet<(usize, Vec<u16>)>) -> Vec<Found> {
        let extend = |from: Option<&Found>| -> Vec<Found> {
            let (codes, score) = from.map_or((Vec::new(), 0.0), |f| (f.codes.clone(), f.score));
            let longer = self.continuations(from).into_iter().map(|(place, code, log_probability)| Found {
                place,
                codes: codes.iter().copied().chain([code]).collect(),
                score: score + log_probability,
                selected: 0.0,
            });
            longer.filter(|f| !taken.contains(&(f.place, f.codes.clone()))).collect()
        };
        if level == 0 {
            return extend(None);
        }
        let finished = |f: &Found| f.codes.len() == self.codebooks[f.place].len();
        list.iter().flat_map(|f| if finished(f) { vec![f.clone()] } else { extend(Some(f)) }).collect()
    }
}
