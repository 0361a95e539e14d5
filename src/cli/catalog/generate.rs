//! `sidereal catalog generate`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{CatalogBuilder, ItemRecord, TypeSpec};

use crate::cli::load::progress;

/// Items made at once.
const BATCH: usize = 1 << 16;

const GENRES: [&str; 16] = [
    "Adventure",
    "Art",
    "Biography",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "History",
    "Horror",
    "Music",
    "Romance",
    "Science Fiction",
    "Sport",
    "Travel",
];

/// Make a synthetic catalog.
#[derive(Args)]
#[command(after_help = "Examples:
  sidereal catalog generate --items 10000000 --levels 8192,8192,8192 --skew zipf:1.0 --out ten-million.sidcat
  sidereal catalog generate --items 50000 --levels 256,256,256,256 --attributes --out small.sidcat")]
pub struct Generate {
    /// Items, each with a SID of its own
    #[arg(long, value_name = "N")]
    items: usize,
    /// Codes of each level
    #[arg(long, value_name = "K,K,…", value_delimiter = ',', required = true)]
    levels: Vec<usize>,
    /// How codes are distributed: uniform, or zipf:EXPONENT
    #[arg(long, value_name = "KIND", default_value = "uniform")]
    skew: Skew,
    /// Key of all random draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Name of the one type
    #[arg(long = "type", value_name = "NAME", default_value = "item")]
    item_type: String,
    /// Also titles, years, prices, stock, genres and publishers
    #[arg(long)]
    attributes: bool,
    /// The snapshot file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Generate {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        if self.items == 0 {
            bail!("--items 0: a catalog has at least one");
        }
        if self.item_type.is_empty() {
            bail!("--type: a type's name must not be empty");
        }
        let sids = synthetic::tuples(&self.levels, self.items, self.skew, self.seed)?;
        let token = format!("<{}_{{level}}_{{code}}>", self.item_type);
        let spec = TypeSpec { name: self.item_type.clone(), levels: self.levels.clone(), token };
        let mut builder = CatalogBuilder::new(&[spec]);
        let bar = progress("making items");
        bar.set_length(self.items as u64);
        let make = |batch: usize| -> Vec<ItemRecord> {
            let numbers = (batch * BATCH).min(self.items)..((batch + 1) * BATCH).min(self.items);
            numbers.into_par_iter().map(|number| self.item(number, &sids)).collect()
        };
        let mut items = make(0);
        for batch in 0..self.items.div_ceil(BATCH) {
            // The next items are made while these are added.
            let add = || items.into_iter().try_for_each(|item| builder.push(item));
            let (next, added) = rayon::join(|| make(batch + 1), add);
            added?;
            items = next;
            bar.set_position(builder.len() as u64);
        }
        bar.finish_and_clear();
        super::save(&builder.build()?, &self.out, start)
    }

    /// An item that depends on its number, its codes and the seed alone.
    fn item(&self, number: usize, sids: &[u16]) -> ItemRecord {
        let levels = self.levels.len();
        let sid = sids[number * levels..(number + 1) * levels].to_vec();
        let mut draw = Draw(self.seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // A few items are much more popular than the others.
        let popularity = (self.items as f64 / (draw.below(self.items as u64) + 1) as f64).round();
        let (title, attributes) = match self.attributes {
            true => (Some(format!("Synthetic {} {number}", self.item_type)), attributes(&sid, &mut draw)),
            false => (None, Map::new()),
        };
        let id = format!("{}:{number}", self.item_type);
        ItemRecord { id, item_type: String::new(), title, popularity, sid, attributes }
    }
}

fn attributes(sid: &[u16], draw: &mut Draw) -> Map<String, Value> {
    let mut attributes = Map::new();
    let mut put = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    // The first genre follows the first code, as codes made from embeddings would have it.
    let genre = usize::from(sid[0]) % GENRES.len();
    let second = draw.below(GENRES.len() as u64) as usize;
    let genres =
        if second == genre { json!([GENRES[genre]]) } else { json!([GENRES[genre], GENRES[second]]) };
    put("genres", genres);
    let age = draw.below(80).min(draw.below(80));
    put("year", json!(2025 - age as i64));
    put("in_stock", json!(draw.below(10) < 9));
    if draw.below(20) > 0 {
        put("price", json!((100 + draw.below(9900)) as f64 / 100.0));
    }
    let publisher = draw.below(1000).min(draw.below(1000));
    put("publisher", json!(format!("Publisher {publisher}")));
    attributes
}

/// A short stream of random numbers: SplitMix64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ z >> 31) * u128::from(bound)) >> 64) as u64
    }
}
