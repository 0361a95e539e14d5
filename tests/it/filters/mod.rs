//! Filters: parser, row evaluation and compiled masks against an evaluator of their own, and the cache.

mod cache;
mod exprs;
mod masks;
mod oracle;
mod parser;
mod random;

use sidereal::catalog::{Catalog, CatalogBuilder, ItemRecord, TypeSpec};

/// A stream of numbers without a pattern, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

pub fn spec(name: &str, levels: &[usize]) -> TypeSpec {
    TypeSpec { name: name.into(), levels: levels.to_vec(), token: format!("<{name}_{{level}}_{{code}}>") }
}

pub fn build(types: &[TypeSpec], records: &[ItemRecord]) -> Catalog {
    let mut builder = CatalogBuilder::new(types);
    records.iter().for_each(|record| builder.push(record.clone()).unwrap());
    builder.build().unwrap()
}
