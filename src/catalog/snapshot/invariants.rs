//! What is true of the arrays of every catalog.
//!
//! Nothing here trusts anything that was not checked before: lengths are those of the contents, everything else may be any number.

use rayon::prelude::*;

use super::super::columns::{Column, Values};
use super::super::items::TypeItems;
use super::super::strings::{BLOCK, Ends, MAX_TEXT, Strings};
use super::super::{Bitmap, Catalog, TypeIndex};
use super::sections::{NONE, SectionKind};

/// A section that is not sound, and why.
#[derive(Debug)]
pub(super) struct Fault {
    pub kind: SectionKind,
    pub item_type: u16,
    pub part: u16,
    pub message: String,
}

type Checked = Result<(), (SectionKind, String)>;

/// Checks everything of a type that does not concern other types.
pub(super) fn check_type(items: &TypeItems, t: u16) -> Result<(), Fault> {
    let at = |part: u16| move |(kind, message)| Fault { kind, item_type: t, part, message };
    check_index(&items.index, t)?;
    check_first_items(&items.index).map_err(at(NONE))?;
    let ids = [SectionKind::IdText, SectionKind::IdEnds, SectionKind::IdBases];
    check_strings(&items.ids, ids).map_err(at(NONE))?;
    if let Some(rank) =
        (0..items.ids.len()).into_par_iter().find_first(|&rank| items.ids.get_bytes(rank).is_empty())
    {
        return Err(at(NONE)((SectionKind::IdEnds, format!("the id of rank {rank} is empty"))));
    }
    check_popularity(items).map_err(at(NONE))?;
    if let Some(title) = &items.title {
        check_column(title).map_err(at(0))?;
    }
    for (part, column) in (1..).zip(items.attributes.values()) {
        check_column(column).map_err(at(part))?;
    }
    Ok(())
}

/// A fault of the first element of `0..count` that is not as it should be.
fn all(kind: SectionKind, count: usize, fault: impl Fn(usize) -> Option<String> + Sync) -> Checked {
    let first = (0..count).into_par_iter().with_min_len(4096).find_first(|&at| fault(at).is_some());
    match first.and_then(|at| Some((at, fault(at)?))) {
        None => Ok(()),
        Some((at, message)) => Err((kind, format!("element {at} {message}"))),
    }
}

/// `bounds` begins with 0, ascends strictly, and ends with `end`.
fn check_bounds(kind: SectionKind, bounds: &[u32], end: usize) -> Checked {
    all(kind, bounds.len(), |at| match at {
        0 if bounds[0] != 0 => Some(format!("is {}, expected 0", bounds[0])),
        0 => None,
        _ if bounds[at] <= bounds[at - 1] => {
            Some(format!("is {}, expected above {}", bounds[at], bounds[at - 1]))
        }
        _ => None,
    })?;
    match bounds.last() {
        Some(&last) if last as usize == end => Ok(()),
        last => {
            Err((kind, format!("element {} is {last:?}, expected {end}", bounds.len().saturating_sub(1))))
        }
    }
}

/// The trie: codes within codebooks and ascending below each node, bounds that ascend and agree with those of the next level.
fn check_index(index: &TypeIndex, t: u16) -> Result<(), Fault> {
    // At which SIDs a node of the level before begins.
    let mut begins = vec![false; index.sids()];
    if let Some(first) = begins.first_mut() {
        *first = true;
    }
    for (at, level) in index.parts().iter().enumerate() {
        let fault = |(kind, message)| Fault { kind, item_type: t, part: at as u16, message };
        all(SectionKind::Codes, level.codes.len(), |entry| {
            let (code, codes) = (usize::from(level.codes[entry]), level.codebook);
            (code >= codes).then(|| format!("is {code}, the codebook has {codes} codes"))
        })
        .map_err(fault)?;
        match level.start.is_empty() {
            true => check_column_level(&level.codes, &mut begins).map_err(fault)?,
            false => {
                check_bounds(SectionKind::Starts, &level.start, index.sids()).map_err(fault)?;
                if !level.first.is_empty() {
                    let next = &index.parts()[at + 1];
                    check_bounds(SectionKind::Firsts, &level.first, next.nodes).map_err(fault)?;
                }
                check_explicit_level(&level.codes, &level.start, &mut begins).map_err(fault)?;
            }
        }
        let nodes = begins.iter().filter(|&&begins| begins).count();
        if nodes != level.nodes {
            let message = format!("{nodes} nodes, the contents say {}", level.nodes);
            return Err(fault((SectionKind::Codes, message)));
        }
    }
    check_children(index).map_err(|(part, message)| Fault {
        kind: SectionKind::Firsts,
        item_type: t,
        part,
        message,
    })
}

/// The first child of a node begins at the node's first SID.
fn check_children(index: &TypeIndex) -> Result<(), (u16, String)> {
    for (at, pair) in index.parts().windows(2).enumerate() {
        let (level, next) = (&pair[0], &pair[1]);
        for (node, &child) in level.first.iter().enumerate() {
            let (found, expected) = (next.start[child as usize], level.start[node]);
            if found != expected {
                let message = format!(
                    "element {node} is {child}, a node that begins at SID {found}, expected {expected}"
                );
                return Err((at as u16, message));
            }
        }
    }
    Ok(())
}

/// Nodes begin where those of the level before begin, and where the code changes; it must not fall in between.
fn check_column_level(codes: &[u16], begins: &mut [bool]) -> Checked {
    for sid in 1..codes.len() {
        if begins[sid] {
            continue;
        }
        if codes[sid] < codes[sid - 1] {
            let message =
                format!("element {sid} is {}, below {} in the same node", codes[sid], codes[sid - 1]);
            return Err((SectionKind::Codes, message));
        }
        begins[sid] = codes[sid] > codes[sid - 1];
    }
    Ok(())
}

/// As for a column; every node begins where `start` says.
fn check_explicit_level(codes: &[u16], start: &[u32], begins: &mut [bool]) -> Checked {
    let mut new = vec![false; begins.len()];
    for (node, &sid) in start[..codes.len()].iter().enumerate() {
        new[sid as usize] = true;
        if node > 0 && !begins[sid as usize] && codes[node] <= codes[node - 1] {
            let message =
                format!("element {node} is {}, after {} in the same node", codes[node], codes[node - 1]);
            return Err((SectionKind::Codes, message));
        }
    }
    if let Some(sid) = (0..begins.len()).find(|&sid| begins[sid] && !new[sid]) {
        return Err((
            SectionKind::Starts,
            format!("no node begins at SID {sid}, where one of the level before does"),
        ));
    }
    begins.copy_from_slice(&new);
    Ok(())
}

/// Ranks of SIDs, and the order by popularity, which permutes them.
fn check_first_items(index: &TypeIndex) -> Checked {
    if !index.has_collisions() {
        return Ok(());
    }
    check_bounds(SectionKind::FirstItems, index.first_item(), index.items())?;
    let preferred = index.preferred();
    if preferred.is_empty() {
        return Ok(());
    }
    let sids = index.first_item().par_windows(2).with_min_len(4096);
    let bad = sids.find_first(|pair| {
        let ranks = pair[0] as usize..pair[1] as usize;
        let mut sorted = preferred[ranks.clone()].to_vec();
        sorted.sort_unstable();
        !sorted.iter().copied().eq(pair[0]..pair[1])
    });
    match bad {
        None => Ok(()),
        Some(pair) => {
            let message =
                format!("elements {} to {} are not those numbers in some order", pair[0], pair[1] - 1);
            Err((SectionKind::Preferred, message))
        }
    }
}

/// Popularity is finite, and does not ascend among the items of a SID; equal ones follow each other by id.
fn check_popularity(items: &TypeItems) -> Checked {
    let (index, popularity) = (&items.index, &items.popularity);
    all(SectionKind::Popularity, popularity.len(), |rank| {
        let value = popularity[rank];
        let sound = value.is_finite() && (value != 0.0 || value.is_sign_positive());
        (!sound).then(|| format!("is {value:?}, expected a finite number, zero without a sign"))
    })?;
    if !index.has_collisions() {
        return Ok(());
    }
    let order = |at: usize| index.preferred().get(at).map_or(at, |&rank| rank as usize);
    let sids = index.first_item().par_windows(2).with_min_len(4096);
    let bad = sids.find_map_first(|pair| {
        (pair[0] as usize + 1..pair[1] as usize).find(|&at| {
            let (before, after) = (order(at - 1), order(at));
            let by_id = || items.ids.get_bytes(before) >= items.ids.get_bytes(after);
            popularity[before] < popularity[after] || popularity[before] == popularity[after] && by_id()
        })
    });
    match bad {
        None => Ok(()),
        Some(at) => Err((
            SectionKind::Popularity,
            format!("rank {} goes before rank {} of the same SID", order(at), order(at - 1)),
        )),
    }
}

/// Ends ascend from 0 to `total`; parts are at most `most` long.
fn check_ends(ends: &Ends, [kind, bases]: [SectionKind; 2], total: usize, most: usize) -> Checked {
    let offsets = ends.offsets();
    let blocks = offsets.chunks(BLOCK).zip(ends.bases());
    let mut expected = 0;
    for (block, (offsets, &base)) in blocks.enumerate() {
        if base != expected {
            return Err((bases, format!("element {block} is {base}, expected {expected}")));
        }
        expected += u64::from(*offsets.last().unwrap_or(&0));
    }
    if expected != total as u64 {
        return Err((kind, format!("{} parts end at {expected}, expected {total}", ends.len())));
    }
    all(kind, offsets.len(), |at| {
        let before = if at % BLOCK == 0 { 0 } else { offsets[at - 1] };
        let fits = offsets[at] >= before && (offsets[at] - before) as usize <= most;
        (!fits)
            .then(|| format!("is {}, expected {before} to {}", offsets[at], u64::from(before) + most as u64))
    })
}

/// Ends are sound and every string is UTF-8.
fn check_strings(strings: &Strings, [text, ends, bases]: [SectionKind; 3]) -> Checked {
    check_ends(strings.ends(), [ends, bases], strings.text().len(), MAX_TEXT)?;
    all(text, strings.len(), |at| {
        let checked = std::str::from_utf8(strings.get_bytes(at));
        checked.err().map(|error| format!("is no string: {error}"))
    })
}

/// A dictionary is sorted and without repeats.
fn check_names(names: &Strings) -> Checked {
    check_strings(names, [SectionKind::NameText, SectionKind::NameEnds, SectionKind::NameBases])?;
    all(SectionKind::NameText, names.len(), |at| {
        let sorted = at == 0 || names.get_bytes(at - 1) < names.get_bytes(at);
        (!sorted).then(|| format!("is `{}`, not above `{}`", names.get(at), names.get(at - 1)))
    })
}

fn check_numbers(kind: SectionKind, numbers: &[u32], names: usize) -> Checked {
    all(kind, numbers.len(), |at| {
        (numbers[at] as usize >= names).then(|| format!("is {}, there are {names} names", numbers[at]))
    })
}

/// No bits beyond the length, and counts that are those of the bits.
fn check_bitmap(bitmap: &Bitmap, [words, counts]: [SectionKind; 2]) -> Checked {
    let expected = Bitmap::from_words(bitmap.len(), bitmap.words().to_vec());
    if let Some(last) =
        bitmap.words().len().checked_sub(1).filter(|&at| bitmap.words()[at] != expected.words()[at])
    {
        return Err((words, format!("element {last} has bits beyond the {}th", bitmap.len())));
    }
    all(counts, bitmap.counts().len(), |at| {
        let (found, expected) = (bitmap.counts()[at], expected.counts()[at]);
        (found != expected).then(|| format!("is {found}, expected {expected}"))
    })
}

/// Values are as many as items that have one, and each is one of its kind.
fn check_column(column: &Column) -> Checked {
    use SectionKind::*;
    let (present, values) = column.parts();
    if let Some(present) = present {
        check_bitmap(present, [Present, PresentCounts])?;
        let (found, expected) = (present.count(0..present.len()), column.values().len());
        if found != expected {
            return Err((Present, format!("{found} items with a value, but {expected} values")));
        }
    }
    match values {
        Values::Bool(values) => check_bitmap(values, [Bools, BoolCounts]),
        Values::Int(_) => Ok(()),
        Values::Float(values) => all(Floats, values.len(), |at| {
            (!values[at].is_finite()).then(|| format!("is {}, expected a finite number", values[at]))
        }),
        Values::Text(values) => check_strings(values, [Text, TextEnds, TextBases]),
        Values::Json(values) => {
            check_strings(values, [Text, TextEnds, TextBases])?;
            all(Text, values.len(), |at| match serde_json::from_str(values.get(at)) {
                Ok(serde_json::Value::Array(_) | serde_json::Value::Object(_)) => None,
                Ok(value) => Some(format!("is {value}, expected a list or an object")),
                Err(error) => Some(format!("is no JSON: {error}")),
            })
        }
        Values::Category { names, codes } => {
            check_names(names)?;
            check_numbers(Categories, codes, names.len())
        }
        Values::Labels(labels) => {
            check_names(labels.names())?;
            check_ends(labels.ends(), [ListEnds, ListBases], labels.flat().len(), MAX_TEXT)?;
            check_numbers(Labels, labels.flat(), labels.names().len())
        }
    }
}

/// Every item is found by its id, so that no two have one.
pub(super) fn check_ids(catalog: &Catalog) -> Result<(), Fault> {
    let fault = |message| Fault { kind: SectionKind::IdTable, item_type: NONE, part: NONE, message };
    let total = catalog.len();
    let numbers = catalog.id_table().numbers();
    if let Some((slot, number)) = numbers.clone().find(|&(_, number)| number as usize >= total) {
        return Err(fault(format!("element {slot} is item {number} of {total}")));
    }
    let used = numbers.count();
    if used != total {
        return Err(fault(format!("{used} items, expected {total}")));
    }
    for t in (0..catalog.parts().len() as u16).map(crate::ids::TypeId) {
        let ids = catalog.ids(t);
        let bad = (0..ids.len())
            .into_par_iter()
            .with_min_len(4096)
            .find_first(|&rank| catalog.find(ids.get(rank)) != Some((t, crate::ids::Rank(rank as u32))));
        if let Some(rank) = bad {
            let (id, name) = (ids.get(rank), &catalog.types()[t.index()]);
            let found = catalog.find(id);
            return Err(fault(format!("`{id}`, rank {rank} of type `{name}`, is found as {found:?}")));
        }
    }
    Ok(())
}
