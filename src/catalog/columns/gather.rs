//! Columns from parts of others, in any order.
//!
//! This is the one place where the form of a column is decided, so that a catalog of the same items has the same bytes whether it was built
//! from records or merged from catalogs.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::super::intern::Interner;
use super::super::strings::{self, Strings};
use super::super::{Array, Bitmap};
use super::{Column, FEW_NAMES, Labels, Values};

/// Items per task: below, threads cost more than they save.
const GRAIN: usize = 4096;

/// The items of one catalog and their column, if any of them has a value.
type Part<'a> = (usize, Option<&'a Column>);

/// Columns with a value among those picked, by the place of their first value; places count through all of them.
struct Source<'a> {
    columns: Vec<(u32, &'a Column)>,
    /// The values picked, in the order of the result.
    places: Cow<'a, [u32]>,
}

/// Joins columns of one attribute: item `rank` of the result is item `picks[rank]`, counted through the parts. `None` if no item picked
/// has a value.
///
/// # Errors
/// A sentence with both kinds if the values picked are of kinds that do not go together.
pub(in super::super) fn gather(parts: &[Part<'_>], picks: &[u32]) -> Result<Option<Column>, String> {
    let (present, source) = choose(parts, picks);
    if source.places.is_empty() {
        return Ok(None);
    }
    let values = source.values()?;
    Ok(Some(Column { len: picks.len(), present, values }))
}

/// Which of the items picked have a value, and where.
fn choose<'a>(parts: &[Part<'a>], picks: &'a [u32]) -> (Option<Bitmap>, Source<'a>) {
    let mut columns = Vec::new();
    let mut starts = Vec::with_capacity(parts.len());
    let (mut items, mut values) = (0, 0);
    for &(len, column) in parts {
        starts.push((items as u32, values, column));
        items += len;
        if let Some(column) = column {
            columns.push((values, column));
            values += column.values().len() as u32;
        }
    }
    if parts.iter().all(|(_, column)| column.is_some_and(|column| column.present.is_none())) {
        return (None, Source::new(columns, picks.into()));
    }
    let place = |pick: u32| {
        let (first, values, column) = starts[starts.partition_point(|&(first, ..)| first <= pick) - 1];
        Some(values + column?.place((pick - first) as usize)? as u32)
    };
    let places: Vec<u32> = picks.par_iter().with_min_len(GRAIN).filter_map(|&pick| place(pick)).collect();
    let present = (places.len() < picks.len())
        .then(|| Bitmap::par_from_fn(picks.len(), |rank| place(picks[rank]).is_some()));
    (present, Source::new(columns, places.into()))
}

impl<'a> Source<'a> {
    /// Leaves out columns of which nothing is picked: what they held does not matter.
    fn new(columns: Vec<(u32, &'a Column)>, places: Cow<'a, [u32]>) -> Source<'a> {
        let used: Vec<AtomicBool> = columns.iter().map(|_| AtomicBool::new(columns.len() == 1)).collect();
        let source = Source { columns, places };
        if source.columns.len() > 1 {
            source.places.par_iter().with_min_len(GRAIN).for_each(|&place| {
                let used = &used[source.part(place)];
                if !used.load(Ordering::Relaxed) {
                    used.store(true, Ordering::Relaxed);
                }
            });
        }
        let columns = source.columns.into_iter().zip(used).filter(|(_, used)| used.load(Ordering::Relaxed));
        Source { columns: columns.map(|(column, _)| column).collect(), places: source.places }
    }

    /// The column of a place, by number.
    #[inline]
    fn part(&self, place: u32) -> usize {
        self.columns.partition_point(|&(first, _)| first <= place) - 1
    }

    /// The column that holds a place, and the place within it.
    #[inline]
    fn locate(&self, place: u32) -> (&'a Values, usize) {
        let (first, column) = self.columns[self.part(place)];
        (&column.values, (place - first) as usize)
    }

    fn map<T: Send>(&self, value: impl Fn(&'a Values, usize) -> T + Sync) -> Array<T> {
        let value = |&place: &u32| {
            let (values, at) = self.locate(place);
            value(values, at)
        };
        self.places.par_iter().with_min_len(GRAIN).map(value).collect::<Vec<T>>().into()
    }

    /// The values picked, in the form that they have by themselves.
    fn values(&self) -> Result<Values, String> {
        let all = |is: fn(&Values) -> bool| self.columns.iter().all(|(_, column)| is(&column.values));
        if all(|values| matches!(values, Values::Bool(_))) {
            return Ok(Values::Bool(self.bools()));
        }
        if all(|values| matches!(values, Values::Int(_))) {
            return Ok(Values::Int(self.map(|values, at| match values {
                Values::Int(values) => values[at],
                _ => unreachable!("integers"),
            })));
        }
        if all(|values| matches!(values, Values::Int(_) | Values::Float(_))) {
            return Ok(Values::Float(self.map(|values, at| match values {
                Values::Int(values) => values[at] as f64,
                Values::Float(values) => values[at],
                _ => unreachable!("numbers"),
            })));
        }
        if all(|values| matches!(values, Values::Text(_) | Values::Category { .. })) {
            return Ok(self.texts());
        }
        if all(|values| matches!(values, Values::Labels(_))) {
            return Ok(Values::Labels(self.labels()));
        }
        if all(|values| matches!(values, Values::Labels(_) | Values::Json(_))) {
            return self.json();
        }
        Err(self.mixture())
    }

    fn mixture(&self) -> String {
        let mut kinds: Vec<&str> = self.columns.iter().map(|(_, column)| column.values().kind()).collect();
        kinds.dedup();
        format!("{} of one type", kinds.join(" beside "))
    }

    fn bools(&self) -> Bitmap {
        Bitmap::par_from_fn(self.places.len(), |at| match self.locate(self.places[at]) {
            (Values::Bool(values), at) => values.get(at),
            _ => unreachable!("booleans"),
        })
    }

    /// The bytes of a string or of JSON text.
    fn text(&self, place: u32) -> &'a [u8] {
        match self.locate(place) {
            (Values::Text(values) | Values::Json(values), at) => values.get_bytes(at),
            (Values::Category { names, codes }, at) => names.get_bytes(codes[at] as usize),
            (Values::Labels(_), _) => b"[]",
            _ => unreachable!("text"),
        }
    }

    fn plain_texts(&self) -> Strings {
        let text = |at: usize| self.text(self.places[at]);
        let (flat, ends) = strings::gather(
            self.places.len(),
            |at| text(at).len(),
            |at, to: &mut [u8]| to.copy_from_slice(text(at)),
        );
        Strings::from_parts(flat, ends)
    }

    /// Categories if few strings differ, else strings.
    fn texts(&self) -> Values {
        let limit = FEW_NAMES.max(self.places.len() / 8);
        let mut names = Interner::default();
        // Per column of categories, the new number of each name that was met.
        let mut known: Vec<Vec<u32>> = Vec::new();
        for (_, column) in &self.columns {
            known.push(match &column.values {
                Values::Category { names, .. } => vec![u32::MAX; names.len()],
                _ => Vec::new(),
            });
        }
        let mut numbers = Vec::with_capacity(self.places.len());
        for &place in self.places.iter() {
            let part = self.part(place);
            let number = match self.locate(place) {
                (Values::Category { names: old, codes }, at) => {
                    let number = &mut known[part][codes[at] as usize];
                    if *number == u32::MAX {
                        *number = names.intern(old.get_bytes(codes[at] as usize));
                    }
                    *number
                }
                _ => names.intern(self.text(place)),
            };
            if names.len() > limit {
                return Values::Text(self.plain_texts());
            }
            numbers.push(number);
        }
        let mut order: Vec<u32> = (0..names.len() as u32).collect();
        order.sort_unstable_by_key(|&name| names.get_bytes(name));
        let mut sorted = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            sorted[old as usize] = new as u32;
        }
        numbers.par_iter_mut().with_min_len(GRAIN).for_each(|number| *number = sorted[*number as usize]);
        Values::Category { names: select(&names.finish(), &order), codes: numbers.into() }
    }

    /// Labels; columns of JSON beside them hold nothing but empty lists.
    fn labels(&self) -> Labels {
        let names = |part: usize| match &self.columns[part].1.values {
            Values::Labels(labels) => Some(&labels.names),
            _ => None,
        };
        let name_count = |part: usize| names(part).map_or(0, Strings::len);
        let list = |at: usize| {
            let place = self.places[at];
            let list: &[u32] = match self.locate(place) {
                (Values::Labels(labels), at) => labels.list(at),
                _ => &[],
            };
            (self.part(place), list)
        };
        let used: Vec<Vec<AtomicBool>> = (0..self.columns.len())
            .map(|part| (0..name_count(part)).map(|_| AtomicBool::new(false)).collect())
            .collect();
        (0..self.places.len()).into_par_iter().with_min_len(GRAIN).for_each(|at| {
            let (part, list) = list(at);
            for &label in list {
                let used = &used[part][label as usize];
                // Reading is cheap while all threads read; writing is not.
                if !used.load(Ordering::Relaxed) {
                    used.store(true, Ordering::Relaxed);
                }
            }
        });
        let mut met: Vec<(&[u8], usize, usize)> = Vec::new();
        for (part, used) in used.iter().enumerate() {
            let labels = (0..used.len()).filter(|&label| used[label].load(Ordering::Relaxed));
            met.extend(labels.filter_map(|label| Some((names(part)?.get_bytes(label), part, label))));
        }
        met.par_sort_unstable();
        let mut numbers: Vec<Vec<u32>> = used.iter().map(|used| vec![0; used.len()]).collect();
        let mut dictionary = strings::StringsBuilder::default();
        for (at, &(name, part, label)) in met.iter().enumerate() {
            if at == 0 || met[at - 1].0 != name {
                dictionary.push_bytes(name);
            }
            numbers[part][label] = dictionary.len() as u32 - 1;
        }
        let copy = |at: usize, to: &mut [u32]| {
            let (part, list) = list(at);
            to.iter_mut().zip(list).for_each(|(to, &label)| *to = numbers[part][label as usize]);
        };
        let (labels, ends) = strings::gather(self.places.len(), |at| list(at).1.len(), copy);
        Labels { names: dictionary.finish(), labels, ends }
    }

    /// JSON text, beside which there may be empty lists of labels, or labels, beside which there may be the text of empty lists.
    fn json(&self) -> Result<Values, String> {
        let any = |is: fn(&Values, usize) -> bool| {
            self.places.par_iter().with_min_len(GRAIN).any(|&place| {
                let (values, at) = self.locate(place);
                is(values, at)
            })
        };
        let text = any(|values, at| matches!(values, Values::Json(texts) if texts.get_bytes(at) != b"[]"));
        let labels =
            any(|values, at| matches!(values, Values::Labels(labels) if !labels.list(at).is_empty()));
        match (text, labels) {
            (true, true) => Err(self.mixture()),
            (true, false) => Ok(Values::Json(self.plain_texts())),
            (false, _) => Ok(Values::Labels(self.labels())),
        }
    }
}

/// The strings `numbers`, in that order.
fn select(strings: &Strings, numbers: &[u32]) -> Strings {
    let text = |at: usize| strings.get_bytes(numbers[at] as usize);
    let (flat, ends) =
        strings::gather(numbers.len(), |at| text(at).len(), |at, to: &mut [u8]| to.copy_from_slice(text(at)));
    Strings::from_parts(flat, ends)
}
