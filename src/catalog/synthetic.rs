//! Synthetic catalogs for demonstrations, tests and benches: everything here is made up, and drawn from a seed.
//!
//! Catalogs have exactly the number of distinct SIDs asked for, since that is what speed and memory depend on. Draws are counter-based
//! (a hash of seed, round and number), so that they can run in parallel and still do not depend on the number of threads.

mod attributes;

use std::collections::BTreeMap;
use std::str::FromStr;

use rayon::prelude::*;
use serde_json::{Value, json};

use attributes::Source;

use super::columns::Column;
use super::items::TypeItems;
use super::layout::check_levels;
use super::order::bits;
use super::strings::StringsBuilder;
use super::{Catalog, CatalogBuilder, ItemRecord, LayoutSpec, TypeIndex, TypeSpec};
use crate::error::{Error, Result};

/// How codes are distributed, each level for itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Skew {
    /// All codes alike.
    Uniform,
    /// Code `c` with weight `1 / (c + 1)^exponent`.
    Zipf(f64),
}

impl FromStr for Skew {
    type Err = Error;

    /// Parses `uniform` or `zipf:EXPONENT`.
    fn from_str(text: &str) -> Result<Skew> {
        let exponent = text.strip_prefix("zipf:").and_then(|number| number.parse::<f64>().ok());
        match (text, exponent) {
            ("uniform", _) => Ok(Skew::Uniform),
            (_, Some(exponent)) if (0.0..=16.0).contains(&exponent) => Ok(Skew::Zipf(exponent)),
            _ => {
                let message =
                    format!("`{text}`, expected uniform or zipf:EXPONENT with an exponent from 0 to 16");
                Err(Error::invalid("skew", message))
            }
        }
    }
}

/// Draws `count` distinct SIDs, row-major `[count, levels.len()]`, sorted.
///
/// Draws that repeat an earlier SID are drawn again. Where more than half of a round repeats (a strong skew leaves few likely
/// SIDs), the exponent is halved for the next. Where more than half of all possible SIDs are wanted, they are drawn without
/// replacement from the list of all.
///
/// # Errors
/// If `levels` are not 1 to 8 codebooks of 1 to 65,536 codes, the exponent is not from 0 to 16, or there are not `count` different SIDs.
pub fn tuples(levels: &[usize], count: usize, skew: Skew, seed: u64) -> Result<Vec<u16>> {
    check_levels("synthetic", levels)?;
    let exponent = match skew {
        Skew::Uniform => 0.0,
        Skew::Zipf(exponent) => exponent,
    };
    if !(0.0..=16.0).contains(&exponent) {
        return Err(Error::invalid("skew", format!("exponent {exponent}, expected 0 to 16")));
    }
    let space = levels.iter().fold(1u128, |space, &codes| space.saturating_mul(codes as u128));
    if count as u128 > space || count >= u32::MAX as usize {
        let message =
            format!("{count} distinct SIDs, but {levels:?} make {space}, and at most {}", u32::MAX - 1);
        return Err(Error::invalid("items", message));
    }
    if 2 * count as u128 > space {
        return Ok(draw_dense(levels, count, space as usize, Draws { exponent, seed }));
    }
    Ok(draw_sparse(levels, count, Draws { exponent, seed }))
}

/// A trie of exactly `items` distinct SIDs whose codes follow Zipf's law with `exponent` at every level (0: uniform).
///
/// # Errors
/// As [`tuples`].
pub fn zipf(levels: &[usize], items: usize, exponent: f64, seed: u64) -> Result<TypeIndex> {
    TypeIndex::from_tuples(levels, &tuples(levels, items, Skew::Zipf(exponent), seed)?)
}

/// A catalog of `items` items with uniform codes; see [`catalog`].
///
/// # Errors
/// As [`tuples`].
pub fn uniform(types: &[TypeSpec], items: usize, seed: u64) -> Result<Catalog> {
    catalog(types, items, Skew::Uniform, seed)
}

/// A catalog of `items` items, divided evenly among the types, each with a SID of its own.
///
/// The items are named `TYPE:NUMBER`, in SID order, and have neither titles nor attributes; popularity is Zipf-distributed.
///
/// # Errors
/// As [`tuples`], and as [`CatalogBuilder::build`].
pub fn catalog(types: &[TypeSpec], items: usize, skew: Skew, seed: u64) -> Result<Catalog> {
    by_columns(types, items, skew, seed, |_, _| BTreeMap::new())
}

/// The same with attributes: `year` (an integer from 1950 to 2024), `price` (a float, missing for one item in ten), `fresh` (true for one
/// in five), `genres` (none to three of 24 labels), `lang` (one of 30 strings, missing for one in fifty).
///
/// # Errors
/// As [`catalog`].
pub fn catalog_with_attributes(types: &[TypeSpec], items: usize, skew: Skew, seed: u64) -> Result<Catalog> {
    by_columns(types, items, skew, seed, |t, count| Source { seed, t }.columns(count).into_iter().collect())
}

/// A catalog made column by column: ten million records would take longer to write down than to index.
fn by_columns(
    types: &[TypeSpec],
    items: usize,
    skew: Skew,
    seed: u64,
    attributes: impl Fn(usize, usize) -> BTreeMap<String, Column>,
) -> Result<Catalog> {
    // Whatever is wrong with the types is wrong without items too.
    CatalogBuilder::new(types).build()?;
    let mut complete = Vec::with_capacity(types.len());
    for (at, spec) in types.iter().enumerate() {
        let count = items / types.len() + usize::from(at < items % types.len());
        let sids = tuples(&spec.levels, count, skew, seed.wrapping_add(at as u64))?;
        let popularity = |number: usize| {
            let place = Random::new(seed, at as u64, number as u64).below(count);
            (count as f64 / (place + 1) as f64).round()
        };
        let mut ids = StringsBuilder::default();
        let mut id = String::new();
        for number in 0..count {
            id.clear();
            id.push_str(&spec.name);
            id.push(':');
            id.push_str(&number.to_string());
            ids.push(&id);
        }
        complete.push(TypeItems {
            // The tuples are sorted and distinct: an item's number is its rank.
            index: TypeIndex::from_tuples(&spec.levels, &sids)?,
            ids: ids.finish(),
            popularity: (0..count).into_par_iter().map(popularity).collect::<Vec<f64>>().into(),
            title: None,
            attributes: attributes(at, count),
        });
    }
    Ok(Catalog::seal(types.iter().map(|spec| spec.name.clone()).collect(), complete))
}

/// What draws depend on.
#[derive(Clone, Copy)]
struct Draws {
    exponent: f64,
    seed: u64,
}

/// Draws SIDs until there are enough different ones.
fn draw_sparse(levels: &[usize], count: usize, Draws { mut exponent, seed }: Draws) -> Vec<u16> {
    let widths: Vec<u32> = levels.iter().map(|&codes| bits(codes)).collect();
    let mut keys: Vec<u128> = Vec::new();
    let mut round = 0;
    while keys.len() < count {
        let before = keys.len();
        let sums: Vec<Vec<f64>> = levels.iter().map(|&codes| cumulative_weights(codes, exponent)).collect();
        keys.par_extend((0..count - before).into_par_iter().map(|number| {
            let mut random = Random::new(seed, round, number as u64);
            sums.iter().zip(&widths).fold(0u128, |key, (sums, &width)| {
                let (total, aim) = (sums[sums.len() - 1], random.unit());
                let code = sums.partition_point(|&sum| sum <= aim * total).min(sums.len() - 1);
                key << width | code as u128
            })
        }));
        keys.par_sort_unstable();
        keys.dedup();
        round += 1;
        if 2 * (keys.len() - before) < count - before {
            exponent = if exponent < 0.1 { 0.0 } else { exponent / 2.0 };
        }
    }
    keys.par_iter()
        .flat_map_iter(|&key| {
            let mut shift = widths.iter().sum::<u32>();
            widths.iter().map(move |&width| {
                shift -= width;
                if width == 0 { 0 } else { (key >> shift) as u16 & (u32::MAX >> (32 - width)) as u16 }
            })
        })
        .collect()
}

/// Takes the `count` SIDs with the largest `log(weight) + Gumbel noise`: draws without replacement, by weight.
fn draw_dense(levels: &[usize], count: usize, space: usize, Draws { exponent, seed }: Draws) -> Vec<u16> {
    let codes_of = |sid: usize| {
        let mut rest = sid;
        let mut codes: Vec<u16> = vec![0; levels.len()];
        for (code, &codebook) in codes.iter_mut().zip(levels).rev() {
            *code = (rest % codebook) as u16;
            rest /= codebook;
        }
        codes
    };
    let mut keys: Vec<(f64, usize)> = (0..space)
        .into_par_iter()
        .map(|sid| {
            let weight: f64 =
                codes_of(sid).iter().map(|&code| -exponent * (f64::from(code) + 1.0).ln()).sum();
            let noise = -(-Random::new(seed, 0, sid as u64).unit().max(f64::MIN_POSITIVE).ln()).ln();
            (weight + noise, sid)
        })
        .collect();
    keys.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut chosen: Vec<usize> = keys[..count].iter().map(|&(_, sid)| sid).collect();
    chosen.sort_unstable();
    chosen.into_iter().flat_map(codes_of).collect()
}

/// Running sums of `1 / (code + 1)^exponent`.
fn cumulative_weights(codes: usize, exponent: f64) -> Vec<f64> {
    let weights = (1..=codes).map(|place| (place as f64).powf(-exponent));
    weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect()
}

/// A short stream of random numbers that starts anywhere: SplitMix64 from a hashed counter.
struct Random(u64);

impl Random {
    fn new(seed: u64, round: u64, number: u64) -> Random {
        Random(mix(mix(mix(seed) ^ round) ^ number))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

const GENRES: [&str; 8] =
    ["Adventure", "Biography", "Comedy", "Crime", "Fantasy", "History", "Romance", "Science Fiction"];
const MOODS: [&str; 12] = [
    "Amber",
    "Borrowed",
    "Crooked",
    "Distant",
    "Electric",
    "Forgotten",
    "Gentle",
    "Hollow",
    "Indigo",
    "Last",
    "Patient",
    "Salt",
];
const THINGS: [&str; 12] = [
    "Archive",
    "Bridge",
    "Cartographer",
    "Dial",
    "Estuary",
    "Furnace",
    "Garden",
    "Harbour",
    "Lantern",
    "Orchard",
    "Signal",
    "Winter",
];

/// Names, codebooks and numbers of items of the tiny catalog's types.
const TINY: [(&str, &[usize], usize); 3] =
    [("book", &[8, 8, 8], 120), ("film", &[8, 6, 6, 4], 110), ("podcast", &[8, 32], 70)];

/// The layout of [`tiny`]: three types of different depth, with delimiters.
pub fn tiny_layout() -> LayoutSpec {
    let spec = |(name, levels, _): (&str, &[usize], usize)| TypeSpec {
        name: name.to_owned(),
        levels: levels.to_vec(),
        token: format!("<{name}_{{level}}_{{code}}>"),
    };
    LayoutSpec {
        open: Some("<|sid_begin|>".into()),
        close: Some("<|sid_end|>".into()),
        types: TINY.map(spec).to_vec(),
    }
}

/// The items of [`tiny`].
pub fn tiny_records() -> Vec<ItemRecord> {
    let mut records: Vec<ItemRecord> = Vec::new();
    for (t, (name, levels, count)) in TINY.into_iter().enumerate() {
        for number in 1..=count {
            let mut random = Random::new(20, t as u64, number as u64);
            let genre = random.below(GENRES.len());
            let second = random.below(GENRES.len());
            // The first code follows the genre, as codes made from embeddings would.
            let drawn = levels.iter().map(|&codes| random.below(codes) as u16).collect::<Vec<_>>();
            let mut sid = drawn;
            sid[0] = genre as u16;
            let mut genres = vec![GENRES[genre]];
            if second != genre {
                genres.push(GENRES[second]);
            }
            // Every tenth item shares the SID of the one before it.
            if number % 10 == 0
                && let Some(before) = records.last()
            {
                sid.clone_from(&before.sid);
                genres[0] = GENRES[usize::from(sid[0])];
                genres.dedup();
            }
            let words = (MOODS[random.below(MOODS.len())], THINGS[random.below(THINGS.len())]);
            let attributes = [("year", json!(1950 + random.below(75))), ("genres", json!(genres))];
            records.push(ItemRecord {
                id: format!("{name}:{number}"),
                item_type: name.to_owned(),
                title: Some(format!("The {} {} (synthetic {name} {number})", words.0, words.1)),
                popularity: (10_000.0 / number as f64).round(),
                sid,
                attributes: attributes
                    .into_iter()
                    .map(|(key, value): (&str, Value)| (key.to_owned(), value))
                    .collect(),
            });
        }
    }
    records
}

/// A small made-up catalog for demonstrations and tests: 300 books, films and podcasts with titles, years and genres, of
/// which some share a SID. It is the same at every call.
pub fn tiny() -> Catalog {
    let mut builder = CatalogBuilder::new(&tiny_layout().types);
    for record in tiny_records() {
        builder.push(record).expect("the tiny catalog's items are well-formed");
    }
    builder.build().expect("the tiny catalog's types are well-formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(levels: &[usize], count: usize, skew: Skew) {
        let drawn = tuples(levels, count, skew, 7).unwrap();
        let rows: Vec<&[u16]> = drawn.chunks_exact(levels.len()).collect();
        assert_eq!(rows.len(), count, "{levels:?}");
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "{levels:?}");
        assert!(
            rows.iter().all(|row| row.iter().zip(levels).all(|(&code, &codes)| usize::from(code) < codes))
        );
        assert_eq!(drawn, tuples(levels, count, skew, 7).unwrap(), "{levels:?} drawn again");
    }

    #[test]
    fn draws_exactly_the_number_asked_for() {
        let tables: [(&[usize], usize); 8] = [
            (&[1], 1),
            (&[4, 1, 4], 16),
            (&[4, 4], 9),
            (&[4, 4], 8),
            (&[65_536; 8], 100),
            (&[16; 4], 20_000),
            (&[65_536, 3], 3),
            (&[8], 0),
        ];
        for (levels, count) in tables {
            for skew in [Skew::Uniform, Skew::Zipf(1.0), Skew::Zipf(4.0)] {
                distinct(levels, count, skew);
            }
        }
    }

    #[test]
    fn refuses_what_cannot_be_drawn() {
        let message = |levels: &[usize], count, skew| tuples(levels, count, skew, 0).unwrap_err().to_string();
        assert!(message(&[2, 3], 7, Skew::Uniform).contains("7 distinct SIDs, but [2, 3] make 6"));
        assert!(message(&[0], 0, Skew::Uniform).contains("codebook of 0 codes"));
        assert!(message(&[2], 1, Skew::Zipf(f64::NAN)).contains("exponent NaN"));
        assert_eq!("zipf:1.5".parse::<Skew>().unwrap(), Skew::Zipf(1.5));
        assert!("zipf:-1".parse::<Skew>().is_err() && "even".parse::<Skew>().is_err());
    }

    #[test]
    fn columns_are_what_records_would_have_made() {
        let spec = |name: &str, levels: &[usize]| TypeSpec {
            name: name.into(),
            levels: levels.to_vec(),
            token: "<s_{letter}_{code}>".into(),
        };
        for (types, items) in [
            (vec![spec("a", &[16, 16])], 0),
            (vec![spec("a", &[16, 16]), spec("b", &[64])], 1),
            (vec![spec("a", &[16, 16]), spec("b", &[64])], 2),
            (vec![spec("a", &[16, 16]), spec("b", &[64])], 7),
            (vec![spec("a", &[64, 64, 64]), spec("b", &[64, 64])], 2600),
        ] {
            let made = catalog_with_attributes(&types, items, Skew::Uniform, 5).unwrap();
            let mut builder = CatalogBuilder::new(&types);
            for (t, spec) in types.iter().enumerate() {
                let t = crate::ids::TypeId(t as u16);
                for rank in 0..made.index(t).items() as u32 {
                    let item = made.item(t, crate::ids::Rank(rank));
                    let attributes = made.attributes().iter();
                    builder
                        .push(ItemRecord {
                            id: item.id().to_owned(),
                            item_type: spec.name.clone(),
                            popularity: item.popularity(),
                            sid: item.codes(),
                            attributes: attributes
                                .filter_map(|name| Some((name.clone(), item.attribute(name)?)))
                                .collect(),
                            ..ItemRecord::default()
                        })
                        .unwrap();
                }
            }
            assert_eq!(builder.build().unwrap().snapshot(), made.snapshot(), "{items} items");
        }
    }

    #[test]
    fn zipf_is_skewed_and_uniform_is_not() {
        let share = |skew| {
            let drawn = tuples(&[1024, 1024, 1024], 20_000, skew, 3).unwrap();
            drawn.chunks_exact(3).filter(|sid| sid[0] == 0).count()
        };
        // Zipf: 1 / H(1024) = 13 % of 20,000 before repeats are drawn again; uniform: 20.
        assert!((1500..3500).contains(&share(Skew::Zipf(1.0))), "{}", share(Skew::Zipf(1.0)));
        assert!((2..60).contains(&share(Skew::Uniform)));
    }

    #[test]
    fn the_tiny_catalog_has_what_a_demonstration_needs() {
        let catalog = tiny();
        assert_eq!(catalog.len(), 300);
        assert_eq!(catalog.attributes(), ["genres", "year"]);
        assert_eq!(catalog.snapshot(), tiny().snapshot());
        for t in 0..3 {
            let index = catalog.index(crate::ids::TypeId(t));
            assert!(index.has_collisions() && index.sids() * 4 > index.items() * 3, "type {t}");
        }
        let (t, rank) = catalog.find("film:3").unwrap();
        let item = catalog.item(t, rank);
        assert!(item.title().unwrap().ends_with("(synthetic film 3)"));
        assert_eq!(item.attribute("genres").unwrap()[0], GENRES[usize::from(item.codes()[0])]);
    }
}
