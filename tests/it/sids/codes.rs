//! What codes are, whatever computes them.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sidereal::sid::{Codebook, Codes, Fit, FitOptions, Report, TypeCodebooks, Vectors, fit, prefixes};

use super::{clustered, reference};

fn quiet(_: &'static str, _: u64, _: u64) {}

fn options(levels: &[usize]) -> FitOptions {
    FitOptions::new(levels)
}

fn fitted(values: &[f32], dim: usize, options: &FitOptions) -> Fit {
    fit("item", &Vectors::from_rows(dim, values.to_vec()).unwrap(), options, &quiet).unwrap()
}

fn centroids(books: &TypeCodebooks) -> Vec<Vec<Vec<f32>>> {
    books.levels.iter().map(|b| b.centroids().chunks_exact(b.dim()).map(<[f32]>::to_vec).collect()).collect()
}

/// The codes that every centroid and every row say.
#[track_caller]
fn check_codes(values: &[f32], dim: usize, fit: &Fit) {
    let books = centroids(&fit.codebooks);
    for (row, x) in values.chunks_exact(dim).enumerate() {
        let codes = &fit.codes.row(row)[..books.len()];
        assert_eq!(codes, reference::codes(x, &books), "row {row}");
    }
}

#[test]
fn errors_are_those_of_the_textbook() {
    for (rows, dim, centres, levels, seed) in [
        (600, 8, 12, vec![8, 8], 1),
        (900, 17, 30, vec![16, 8, 4], 2),
        (400, 3, 5, vec![5, 7], 3),
        (700, 33, 1, vec![16, 16], 4),
    ] {
        let values = clustered(rows, dim, centres, seed);
        let ours: Vec<f64> = (0..3)
            .map(|seed| {
                let mut options = options(&levels);
                options.seed = seed;
                *fitted(&values, dim, &options).codebooks.errors.last().unwrap()
            })
            .collect();
        let theirs: Vec<f64> =
            (0..3).map(|seed| *reference::errors(&values, dim, &levels, seed).last().unwrap()).collect();
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        assert!(
            mean(&ours) <= 1.05 * mean(&theirs),
            "{rows} x {dim}, {levels:?}: {ours:?}, textbook {theirs:?}"
        );
    }
}

#[test]
fn growing_parts_and_samples_lose_little() {
    let values = clustered(12_000, 12, 40, 5);
    let whole = {
        let mut options = options(&[32, 32]);
        options.batch = 12_000;
        *fitted(&values, 12, &options).codebooks.errors.last().unwrap()
    };
    for (batch, sample) in [(256, None), (512, Some(6000)), (1, Some(12_000))] {
        let mut options = options(&[32, 32]);
        (options.batch, options.sample) = (batch, sample);
        let fit = fitted(&values, 12, &options);
        let error = *fit.codebooks.errors.last().unwrap();
        assert!(error <= 1.05 * whole, "batch {batch}, sample {sample:?}: {error}, all at once {whole}");
        check_codes(&values, 12, &fit);
    }
}

#[test]
fn codes_are_those_of_the_nearest_centroid() {
    // Sizes about the blocks of 256 rows and the tiles of 1024 centroids, widths about the lanes.
    for (rows, dim, levels) in [
        (1, 5, vec![3]),
        (255, 15, vec![7, 2]),
        (256, 16, vec![16, 9]),
        (257, 17, vec![17, 1]),
        (600, 1, vec![6, 5, 4]),
        (2100, 6, vec![1025]),
        (1500, 64, vec![33, 31]),
    ] {
        let values = clustered(rows, dim, 9, rows as u64);
        let fit = fitted(&values, dim, &options(&levels));
        check_codes(&values, dim, &fit);
        assert_eq!(fit.codebooks.sizes(), levels);
        assert_eq!((fit.codes.rows(), fit.codes.levels()), (rows, levels.len()));
    }
}

#[test]
fn of_equally_near_centroids_the_lowest_code_wins() {
    // On a grid of whole numbers distances are exact, and ties are many.
    let mut random = SmallRng::seed_from_u64(6);
    let grid = |random: &mut SmallRng, n: usize| -> Vec<f32> {
        (0..n).map(|_| f32::from(random.random_range(-2i8..3))).collect()
    };
    for (codes, dim) in [(64, 2), (200, 3), (1100, 4), (40, 20)] {
        let values = grid(&mut random, 500 * dim);
        let books = TypeCodebooks {
            name: "item".into(),
            levels: (0..2).map(|_| Codebook::new(dim, grid(&mut random, codes * dim))).collect(),
            unique: None,
            normalize: false,
            seed: 0,
            rows: 0,
            errors: vec![0.0; 3],
        };
        let found = books.assign(&Vectors::from_rows(dim, values.clone()).unwrap(), None, &quiet).unwrap();
        let all = centroids(&books);
        for (row, x) in values.chunks_exact(dim).enumerate() {
            assert_eq!(found.row(row), reference::codes(x, &all), "{codes} x {dim}, row {row}");
        }
    }
}

#[test]
fn close_calls_are_decided_exactly() {
    // Centroids far from 0 that differ in the last bits: in float32 `|c|² - 2 x·c` is lost in rounding.
    let mut random = SmallRng::seed_from_u64(7);
    let dim = 24;
    let base: Vec<f32> = (0..dim).map(|_| 1000.0 + random.random::<f32>()).collect();
    let mut near = |spread: f32| -> Vec<f32> {
        base.iter().map(|b| b + spread * (random.random::<f32>() - 0.5)).collect()
    };
    let level: Vec<f32> = (0..50).flat_map(|_| near(0.01)).collect();
    let values: Vec<f32> = (0..300).flat_map(|_| near(0.01)).collect();
    let books = TypeCodebooks {
        name: "item".into(),
        levels: vec![Codebook::new(dim, level)],
        unique: None,
        normalize: false,
        seed: 0,
        rows: 0,
        errors: vec![0.0; 2],
    };
    let found = books.assign(&Vectors::from_rows(dim, values.clone()).unwrap(), None, &quiet).unwrap();
    let all = centroids(&books);
    let mut used = BTreeSet::new();
    for (row, x) in values.chunks_exact(dim).enumerate() {
        assert_eq!(found.row(row), reference::codes(x, &all), "row {row}");
        used.insert(found.row(row)[0]);
    }
    assert!(used.len() > 20, "the case is no case: {used:?}");
}

#[test]
fn threads_change_nothing() {
    let values = clustered(5000, 20, 60, 8);
    let mut options = options(&[32, 16, 8]);
    (options.batch, options.unique) = (300, Some(1));
    let with = |threads: usize, options: &FitOptions| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fitted(&values, 20, options))
    };
    let one = with(1, &options);
    for threads in [2, 3, 5] {
        assert_eq!(with(threads, &options), one, "{threads} threads");
    }
    assert_eq!(fitted(&values, 20, &options), one, "a second run");
    options.seed = 1;
    assert_ne!(with(1, &options).codebooks.levels, one.codebooks.levels, "the seed says nothing");
}

#[test]
fn frozen_centroids_give_the_same_codes() {
    for normalize in [false, true] {
        let values = clustered(3000, 10, 25, 9);
        let mut options = options(&[16, 16, 16]);
        (options.normalize, options.sample) = (normalize, Some(1500));
        let fit = fitted(&values, 10, &options);
        let assign = |values: &[f32]| {
            fit.codebooks.assign(&Vectors::from_rows(10, values.to_vec()).unwrap(), None, &quiet).unwrap()
        };
        assert_eq!(assign(&values), fit.codes);
        // Alone, and beside other rows.
        for row in [0, 1, 255, 256, 2999] {
            assert_eq!(assign(&values[row * 10..][..10]).row(0), fit.codes.row(row), "row {row}");
        }
        let error =
            Report::new(&fit.codes, Some(&Vectors::from_rows(10, values).unwrap()), Some(&fit.codebooks));
        let errors: Vec<f64> = error.unwrap().levels.iter().filter_map(|level| level.error).collect();
        assert_eq!(errors, fit.codebooks.errors[1..]);
        if normalize {
            assert!((fit.codebooks.errors[0] - 1.0).abs() < 1e-6, "{:?}", fit.codebooks.errors);
        }
    }
}

#[test]
fn fewer_rows_than_codes_and_duplicates() {
    // As many codes as different rows: nothing is left over, and no other code is used.
    for (different, copies, codes) in
        [(1, 1, 4), (3, 1, 8), (5, 40, 5), (5, 40, 64), (1, 300, 16), (90, 3, 1030)]
    {
        let mut random = SmallRng::seed_from_u64(different as u64);
        let rows: Vec<Vec<f32>> =
            (0..different).map(|i| vec![i as f32, random.random_range(0..9) as f32, 1.0]).collect();
        let values: Vec<f32> = (0..copies).flat_map(|_| rows.iter().flatten().copied()).collect();
        let fit = fitted(&values, 3, &options(&[codes]));
        assert!(fit.codebooks.errors[1] < 1e-9, "{different} x {copies}: {:?}", fit.codebooks.errors);
        let used: BTreeSet<&[u16]> = fit.codes.iter().collect();
        assert_eq!(used.len(), different.min(codes));
        check_codes(&values, 3, &fit);
    }
}

#[test]
fn empty_codes_are_filled() {
    // One centre with nearly all rows and a few far rows: a start that misses some leaves codes empty.
    let mut random = SmallRng::seed_from_u64(11);
    let mut values: Vec<f32> = (0..4000).map(|_| random.random::<f32>() * 1e-3).collect();
    for far in 1..=12u8 {
        values.extend([f32::from(far) * 100.0, f32::from(far % 5) * -70.0]);
    }
    let fit = fitted(&values, 2, &options(&[32]));
    let used: BTreeSet<&[u16]> = fit.codes.iter().collect();
    assert_eq!(used.len(), 32, "codes without rows");
    assert!(fit.codebooks.errors[1] < 1e-4, "{:?}", fit.codebooks.errors);
}

#[test]
fn the_unique_level_separates() {
    let values: Vec<f32> = clustered(400, 4, 6, 12).iter().map(|v| v.round()).collect();
    let values = [&values[..], &values[..200 * 4], &values[..7 * 4]].concat();
    for at_least in [1, 50] {
        let mut options = options(&[6, 4]);
        options.unique = Some(at_least);
        let fit = fitted(&values, 4, &options);
        let mut groups: BTreeMap<&[u16], Vec<u16>> = BTreeMap::new();
        for sid in fit.codes.iter() {
            groups.entry(&sid[..2]).or_default().push(sid[2]);
        }
        let largest = groups.values().map(Vec::len).max().unwrap();
        assert!(largest > 10);
        assert_eq!(fit.codebooks.unique, Some(largest.max(at_least)));
        for (sid, last) in groups {
            assert_eq!(last, (0..last.len() as u16).collect::<Vec<_>>(), "{sid:?}: in the order of rows");
        }
    }
}

#[test]
fn new_items_take_free_codes() {
    let books = TypeCodebooks {
        name: "item".into(),
        levels: vec![Codebook::new(1, vec![0.0, 10.0])],
        unique: Some(4),
        normalize: false,
        seed: 0,
        rows: 0,
        errors: vec![0.0; 2],
    };
    let assign = |values: &[f32], taken: &[[u16; 2]]| {
        let taken = Codes::new(2, taken.concat());
        books.assign(&Vectors::from_rows(1, values.to_vec()).unwrap(), Some(&taken), &quiet)
    };
    let codes = assign(&[1.0, 9.0, 2.0, 9.0], &[[0, 0], [0, 2], [1, 1]]).unwrap();
    assert_eq!(codes.iter().collect::<Vec<_>>(), [[0, 1], [1, 0], [0, 3], [1, 2]]);
    let error = assign(&[1.0, 2.0, 1.0], &[[0, 0], [0, 2], [1, 1]]).unwrap_err().to_string();
    assert!(error.contains("row 2: all 4 codes of the unique level are taken under [0]"), "{error}");
    let error = assign(&[1.0], &[[0, 0], [0, 2], [0, 0]]).unwrap_err().to_string();
    assert!(error.contains("row 2 of the taken codes: [0, 0] occurs a second time"), "{error}");
    let taken = Codes::new(1, vec![3]);
    let error = books.assign(&Vectors::from_rows(1, vec![1.0]).unwrap(), Some(&taken), &quiet).unwrap_err();
    assert!(error.to_string().contains("1 levels, expected 2"), "{error}");
    let error = books.assign(&Vectors::from_rows(2, vec![1.0, 2.0]).unwrap(), None, &quiet).unwrap_err();
    assert!(error.to_string().contains("2 values per row; the codebooks of `item` are for 1"), "{error}");
}

#[test]
fn reports_count() {
    let codes = Codes::new(2, vec![0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 2, 5, 0, 2]);
    let values =
        [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [-1.0, 0.0], [-3.0, 0.0], [-2.0, 0.0], [1.0, 1.0], [1.0, 0.0]];
    let vectors = Vectors::from_rows(2, values.concat()).unwrap();
    let report = Report::new(&codes, Some(&vectors), None).unwrap();
    assert_eq!(
        (report.rows, report.sids, report.shared, report.rows_shared, report.largest),
        (8, 5, 2, 5, 3)
    );
    let levels: Vec<_> = report.levels.iter().map(|l| (l.codes, l.used, l.prefixes)).collect();
    assert_eq!(levels, [(3, 3, 3), (6, 4, 5)]);
    let entropy = |counts: &[f64]| counts.iter().map(|n| -n / 8.0 * (n / 8.0).ln()).sum::<f64>().exp();
    assert!((report.levels[0].perplexity - entropy(&[4.0, 3.0, 1.0])).abs() < 1e-12);
    assert!((report.levels[1].perplexity - entropy(&[4.0, 2.0, 1.0, 1.0])).abs() < 1e-12);
    // Items with equal SIDs point the same way.
    assert!((report.levels[1].cosine.unwrap() - 1.0).abs() < 1e-9);
    assert!(report.levels[0].cosine.unwrap() < 0.9 && report.random_cosine.unwrap() < 0.3);
    assert_eq!(report.levels[0].error, None);
    let shown = prefixes(&codes, 1, 10);
    assert_eq!(shown, [(vec![0], vec![0, 1, 2, 7]), (vec![1], vec![3, 4, 5])]);
    assert_eq!(prefixes(&codes, 2, 1), [(vec![1, 0], vec![3, 4, 5])]);
    let other = Vectors::from_rows(2, vec![0.0; 6]).unwrap();
    let error = Report::new(&codes, Some(&other), None).unwrap_err().to_string();
    assert!(error.contains("3 rows, but there are codes of 8"), "{error}");
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let vectors = |values: Vec<f32>| Vectors::from_rows(2, values).unwrap();
    let mut values = clustered(600, 2, 3, 13);
    let message = |vectors: &Vectors, options: &FitOptions| {
        fit("item", vectors, options, &quiet).unwrap_err().to_string()
    };
    let good = vectors(values.clone());
    for (levels, unique, expected) in [
        (vec![], None, "levels: 0 levels, the unique one included; expected 1 to 8"),
        (vec![2; 8], Some(1), "levels: 9 levels"),
        (vec![4, 0], None, "levels[1]: a codebook of 0 codes"),
        (vec![65_537], None, "levels[0]: a codebook of 65537 codes, expected 1 to 65536"),
        (vec![4], Some(65_537), "levels[1]: a codebook of 65537 codes"),
    ] {
        let mut options = options(&levels);
        options.unique = unique;
        let error = message(&good, &options);
        assert!(error.contains(expected), "{error}");
    }
    assert!(message(&vectors(vec![]), &options(&[2])).contains("no rows"));
    values[2 * 511 + 1] = f32::NAN;
    assert!(message(&vectors(values.clone()), &options(&[2])).contains("row 511, column 1: NaN"));
    values[2 * 300] = f32::NEG_INFINITY;
    assert!(message(&vectors(values.clone()), &options(&[2])).contains("row 300, column 0: -inf"));
    values[0] = 1e16;
    assert!(message(&vectors(values.clone()), &options(&[2])).contains("row 0, column 0: 10000000000000000"));
    let mut normalized = options(&[2]);
    normalized.normalize = true;
    let error = message(&vectors(vec![1.0, 2.0, 0.0, 0.0, 3.0, 4.0]), &normalized);
    assert!(error.contains("row 1: all values are 0"), "{error}");
    // The largest values that are read do not overflow.
    let fit = fitted(&[1e15, -1e15, -1e15, 1e15, 0.0, 0.0], 2, &options(&[3]));
    assert_eq!(fit.codes.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(fit.codebooks.errors[1], 0.0);
}
