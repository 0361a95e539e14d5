//! Made-up attributes, column by column.

use rayon::prelude::*;

use super::Random;
use crate::catalog::columns::{Column, Labels, Values};
use crate::catalog::strings;
use crate::catalog::{Bitmap, Strings};

/// In ascending order, as dictionaries are.
const GENRES: [&str; 24] = [
    "Action",
    "Adventure",
    "Animation",
    "Biography",
    "Business",
    "Comedy",
    "Cooking",
    "Crime",
    "Documentary",
    "Drama",
    "Family",
    "Fantasy",
    "History",
    "Horror",
    "Music",
    "Mystery",
    "Nature",
    "Philosophy",
    "Poetry",
    "Romance",
    "Science Fiction",
    "Sport",
    "Travel",
    "War",
];
/// In ascending order.
const LANGUAGES: [&str; 30] = [
    "ar", "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "he", "hi", "hr", "hu", "id", "it",
    "ja", "ko", "lt", "nl", "no", "pl", "pt", "ro", "ru", "sv", "tr", "uk", "zh",
];

/// Numbers of the draws, one per attribute.
#[derive(Clone, Copy)]
enum Draw {
    Year,
    Price,
    Fresh,
    Genres,
    Lang,
}

/// Where the values of one type are drawn from.
#[derive(Clone, Copy)]
pub(super) struct Source {
    pub seed: u64,
    pub t: usize,
}

impl Source {
    fn at(self, draw: Draw, rank: usize) -> Random {
        Random::new(self.seed, 0x1000 * (1 + draw as u64) + self.t as u64, rank as u64)
    }

    /// The columns of `items` items: `year` (an integer, 1950 to 2024, later ones more often), `price` (a float, missing for one in ten),
    /// `fresh` (true for one in five), `genres` (none to three of 24 labels), `lang` (one of 30, missing for one in fifty).
    pub fn columns(self, items: usize) -> Vec<(String, Column)> {
        let columns = [
            ("year", self.year(items)),
            ("price", self.price(items)),
            ("fresh", self.fresh(items)),
            ("genres", self.genres(items)),
            ("lang", self.lang(items)),
        ];
        columns.into_iter().filter_map(|(name, column)| Some((name.to_owned(), column?))).collect()
    }

    fn year(self, items: usize) -> Option<Column> {
        let year = |rank| {
            let mut random = self.at(Draw::Year, rank);
            1950 + random.below(75).max(random.below(75)) as i64
        };
        let values: Vec<i64> = (0..items).into_par_iter().map(year).collect();
        column(items, |_| true, |_| Values::Int(values.into()))
    }

    fn price(self, items: usize) -> Option<Column> {
        let present = |rank| self.at(Draw::Price, rank).below(10) > 0;
        column(items, present, |ranks| {
            let price = |&rank: &u32| {
                let mut random = self.at(Draw::Price, rank as usize);
                random.next();
                (random.below(4000) + 99) as f64 / 100.0
            };
            Values::Float(ranks.par_iter().map(price).collect::<Vec<f64>>().into())
        })
    }

    fn fresh(self, items: usize) -> Option<Column> {
        let fresh = |rank| self.at(Draw::Fresh, rank).below(5) == 0;
        column(items, |_| true, |_| Values::Bool(Bitmap::par_from_fn(items, fresh)))
    }

    fn genres(self, items: usize) -> Option<Column> {
        let count = |random: &mut Random| if random.below(50) == 0 { 0 } else { 1 + random.below(3) };
        column(
            items,
            |_| true,
            |_| {
                let len = |rank| count(&mut self.at(Draw::Genres, rank));
                let (labels, ends) = strings::gather::<u32>(items, len, |rank, to| {
                    let mut random = self.at(Draw::Genres, rank);
                    count(&mut random);
                    // Distinct and in no order, as editors leave them.
                    for at in 0..to.len() {
                        to[at] = loop {
                            let genre = random.below(GENRES.len()) as u32;
                            if !to[..at].contains(&genre) {
                                break genre;
                            }
                        };
                    }
                });
                let mut labels = labels.to_vec();
                let names = dictionary(&GENRES, &mut labels);
                Values::Labels(Labels::from_parts(names, labels.into(), ends))
            },
        )
    }

    fn lang(self, items: usize) -> Option<Column> {
        let present = |rank| self.at(Draw::Lang, rank).below(50) > 0;
        column(items, present, |ranks| {
            let lang = |&rank: &u32| {
                let mut random = self.at(Draw::Lang, rank as usize);
                random.next();
                // A few languages have most of the items; 6 is English.
                let place = (random.unit().powi(3) * LANGUAGES.len() as f64) as u32;
                (place + 6) % LANGUAGES.len() as u32
            };
            let mut codes: Vec<u32> = ranks.par_iter().map(lang).collect();
            let names = dictionary(&LANGUAGES, &mut codes);
            Values::Category { names, codes: codes.into() }
        })
    }
}

/// A column of the values that `values` makes for the ranks that are present (all of them if the list is empty); none without any.
fn column(
    items: usize,
    present: impl Fn(usize) -> bool + Sync,
    values: impl FnOnce(&[u32]) -> Values,
) -> Option<Column> {
    let bits = Bitmap::par_from_fn(items, &present);
    let count = bits.count(0..items);
    if count == 0 {
        return None;
    }
    let ranks: Vec<u32> = (0..items as u32).filter(|&rank| bits.get(rank as usize)).collect();
    let present = (count < items).then_some(bits);
    Some(Column::from_parts(items, present, values(&ranks)))
}

/// The names that occur, and their numbers among those.
fn dictionary(names: &[&str], numbers: &mut [u32]) -> Strings {
    let mut used = vec![false; names.len()];
    numbers.iter().for_each(|&number| used[number as usize] = true);
    let new: Vec<u32> = used
        .iter()
        .scan(0, |next, &used| {
            *next += u32::from(used);
            Some(*next - u32::from(used))
        })
        .collect();
    numbers.iter_mut().for_each(|number| *number = new[*number as usize]);
    names.iter().zip(used).filter(|(_, used)| *used).map(|(name, _)| *name).collect()
}
