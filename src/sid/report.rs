//! How good codes are.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use super::codebooks::TypeCodebooks;
use super::npy::Codes;
use super::unique::sorted;
use super::vectors::Vectors;
use crate::error::{Error, Result};
use crate::random::Random;

/// Pairs whose likeness is looked at per length of prefix.
const PAIRS: usize = 20_000;
/// Fewest items of a prefix that is shown.
const SHOWN: usize = 3;

/// How good codes are: collisions, use of the codebooks, and how alike items are whose codes begin alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Items.
    pub rows: usize,
    /// Different SIDs.
    pub sids: usize,
    /// SIDs that several items share.
    pub shared: usize,
    /// Items with a shared SID.
    pub rows_shared: usize,
    /// Items of the SID that most share.
    pub largest: usize,
    /// The levels.
    pub levels: Vec<LevelReport>,
    /// Mean cosine of two items drawn at random; absent without vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_cosine: Option<f64>,
}

/// One level of a [`Report`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LevelReport {
    /// Codes of the codebook; without one, the largest code and one more.
    pub codes: usize,
    /// Codes in use.
    pub used: usize,
    /// Exponential of the entropy of the codes: as many equally frequent ones would have it.
    pub perplexity: f64,
    /// Different prefixes up to this level.
    pub prefixes: usize,
    /// Mean squared length of what is left after this level; absent without codebooks and for a unique level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The same relative to the mean squared length of the vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Mean cosine of an item and another one with the same codes up to this level, over items drawn at random among those that have such a
    /// neighbour; absent without vectors or if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
}

impl Report {
    /// Looks at codes; `vectors` row by row are the same items, `books` those that gave the codes.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Invalid`] if numbers of rows, levels or widths do not fit together, or a value is not a number.
    pub fn new(codes: &Codes, vectors: Option<&Vectors>, books: Option<&TypeCodebooks>) -> Result<Report> {
        if let Some(books) = books {
            fits(codes, books)?;
        }
        if let Some(vectors) = vectors {
            if vectors.rows() != codes.rows() {
                let message = format!("{} rows, but there are codes of {}", vectors.rows(), codes.rows());
                return Err(Error::file(vectors.name(), message));
            }
            vectors.check()?;
        }
        let order = sorted(codes);
        let sizes = groups(codes, &order, codes.levels()).map(|group| group.len());
        let mut report = Report {
            rows: codes.rows(),
            sids: 0,
            shared: 0,
            rows_shared: 0,
            largest: 0,
            levels: Vec::new(),
            random_cosine: None,
        };
        for size in sizes {
            report.sids += 1;
            report.shared += usize::from(size > 1);
            report.rows_shared += if size > 1 { size } else { 0 };
            report.largest = report.largest.max(size);
        }
        let errors = match (vectors, books) {
            (Some(vectors), Some(books)) => books.errors_of(vectors, codes)?,
            _ => Vec::new(),
        };
        report.levels =
            (0..codes.levels()).map(|level| level_report(codes, &order, level, &errors, books)).collect();
        if let Some(vectors) = vectors {
            likeness(&mut report, codes, &order, vectors);
        }
        Ok(report)
    }
}

/// Whether codes may have come from codebooks.
fn fits(codes: &Codes, books: &TypeCodebooks) -> Result<()> {
    let sizes = books.sizes();
    if sizes.len() != codes.levels() {
        let message =
            format!("{} levels; the codebooks of `{}` have {}", codes.levels(), books.name, sizes.len());
        return Err(Error::invalid("codes", message));
    }
    for (row, sid) in codes.iter().enumerate() {
        if let Some(level) = (0..sizes.len()).find(|&level| usize::from(sid[level]) >= sizes[level]) {
            let message =
                format!("row {row}: code {} of level {level} is not below {}", sid[level], sizes[level]);
            return Err(Error::invalid("codes", message));
        }
    }
    Ok(())
}

/// Places in `order` of rows with the same first `length` codes.
fn groups(codes: &Codes, order: &[u32], length: usize) -> impl Iterator<Item = Range<usize>> {
    let prefix = move |at: usize| &codes.row(order[at] as usize)[..length];
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = start;
        if first == order.len() {
            return None;
        }
        start = (first..order.len()).find(|&at| prefix(at) != prefix(first)).unwrap_or(order.len());
        Some(first..start)
    })
}

fn level_report(
    codes: &Codes,
    order: &[u32],
    level: usize,
    errors: &[f64],
    books: Option<&TypeCodebooks>,
) -> LevelReport {
    let mut counts: HashMap<u16, usize> = HashMap::new();
    codes.iter().for_each(|sid| *counts.entry(sid[level]).or_default() += 1);
    let rows = codes.rows() as f64;
    // Sorted, so that the sum has one order.
    let mut sizes: Vec<usize> = counts.values().copied().collect();
    sizes.sort_unstable();
    let share = |&n: &usize| n as f64 / rows;
    let entropy: f64 = sizes.iter().map(share).map(|p| -p * p.ln()).sum();
    let highest = counts.keys().max().map_or(0, |&code| usize::from(code) + 1);
    let error = errors.get(level + 1).copied();
    LevelReport {
        codes: books.map_or(highest, |books| books.sizes()[level]),
        used: counts.len(),
        perplexity: entropy.exp(),
        prefixes: groups(codes, order, level + 1).count(),
        error,
        share: error.filter(|_| errors[0] > 0.0).map(|error| error / errors[0]),
        cosine: None,
    }
}

/// Fills in the cosines.
fn likeness(report: &mut Report, codes: &Codes, order: &[u32], vectors: &Vectors) {
    let mut random = Random::new(0, 3);
    for (level, of_level) in report.levels.iter_mut().enumerate() {
        // For each place of `order`, the group it lies in.
        let mut group_of = vec![0..0; order.len()];
        groups(codes, order, level + 1).for_each(|group| group_of[group.clone()].fill(group));
        let places: Vec<u32> =
            (0..order.len() as u32).filter(|&at| group_of[at as usize].len() > 1).collect();
        let pairs = (0..if places.is_empty() { 0 } else { PAIRS }).map(|_| {
            let at = places[random.below(places.len())] as usize;
            let group = group_of[at].clone();
            let other = group.start + random.below(group.len() - 1);
            (order[at], order[if other >= at { other + 1 } else { other }])
        });
        of_level.cosine = mean_cosine(vectors, &pairs.collect::<Vec<_>>());
    }
    let pairs = (0..if order.len() > 1 { PAIRS } else { 0 }).map(|_| {
        let (a, b) = (random.below(order.len()), random.below(order.len() - 1));
        (a as u32, if b >= a { b + 1 } else { b } as u32)
    });
    report.random_cosine = mean_cosine(vectors, &pairs.collect::<Vec<_>>());
}

/// The mean cosine of pairs of rows; a row without length is like nothing (0).
fn mean_cosine(vectors: &Vectors, pairs: &[(u32, u32)]) -> Option<f64> {
    let dim = vectors.dim();
    let cosine = |&(a, b): &(u32, u32)| {
        let (mut x, mut y) = (vec![0.0; dim], vec![0.0; dim]);
        vectors.read(a as usize..a as usize + 1, &mut x);
        vectors.read(b as usize..b as usize + 1, &mut y);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let lengths = dot(&x, &x).sqrt() * dot(&y, &y).sqrt();
        if lengths > 0.0 { dot(&x, &y) / lengths } else { 0.0 }
    };
    let all: Vec<f64> = pairs.par_iter().map(cosine).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

/// Prefixes of `length` codes with the rows that begin with them: `count` of those that at least three rows share (at least one, if
/// there are none), spread over all in the order of codes.
///
/// # Panics
/// If `length` exceeds the number of levels.
pub fn prefixes(codes: &Codes, length: usize, count: usize) -> Vec<(Vec<u16>, Vec<usize>)> {
    assert!(length <= codes.levels(), "a prefix of {length} codes of {}", codes.levels());
    let order = sorted(codes);
    let all: Vec<Range<usize>> = groups(codes, &order, length).collect();
    let several: Vec<Range<usize>> = all.iter().filter(|group| group.len() >= SHOWN).cloned().collect();
    let from = if several.is_empty() { all } else { several };
    let count = count.min(from.len());
    (0..count)
        .map(|i| {
            let rows: Vec<usize> =
                order[from[i * from.len() / count].clone()].iter().map(|&row| row as usize).collect();
            (codes.row(rows[0])[..length].to_vec(), rows)
        })
        .collect()
}
