//! Histories where none were recorded, by a process that is written down here.
//!
//! A person has two *tastes*, a first and a weaker second; a taste holds genres of all types, so that who reads about detectives also
//! watches them. A person has an *era*, a place between the oldest and the newest works of each type, and a preference for types. Every work has a popularity of its own, log-normal.
//! The next item's type is drawn from the preferences; then with probability [`SimulationOptions::loyalty`] it is another work of the creator
//! of the last item of that type, and otherwise it is drawn with a weight of
//!
//! `popularity * (exp(2.2 * taste - ((age - era) / 0.15)^2 / 2) + 0.02)`
//!
//! where `taste` is 1 if one of the work's genres belongs to the first taste and 0.6 if one belongs to the second, and `age` is the share of the
//! type's works that are older. Nothing is taken twice. People after the first [`SimulationOptions::users`] are held out. What a person is and takes depends on the
//! seed and the person's number, popularities on the works' ids alone: another seed is other people in the same world.

use rayon::prelude::*;

use super::{History, Split, Work, Works};
use crate::random::Random;

/// Genres that go together, over all types. A genre that stands nowhere is a taste of its own.
const TASTES: [&[&str]; 9] = [
    &["Science Fiction", "Dystopia", "Electronic", "Ambient", "Progressive Rock"],
    &["Horror", "Gothic", "Metal", "Post-Punk"],
    &["Crime", "Mystery", "Thriller", "Blues", "Jazz"],
    &["Fantasy", "Magical Realism", "Animation", "Psychedelic Rock", "Folk"],
    &["Romance", "Coming of Age", "Musical", "Pop", "Soul"],
    &["Humor", "Comedy", "Funk", "New Wave"],
    &["War", "Historical Fiction", "Historical", "Western", "Country"],
    &["Adventure", "Action", "Rock", "Punk", "Hip Hop", "Reggae"],
    &["Literary Fiction", "Classic Fiction", "Drama", "Alternative Rock"],
];
const SECOND_TASTE: f64 = 0.6;
const TASTE_STRENGTH: f64 = 2.2;
const ERA_WIDTH: f64 = 0.15;
const CURIOSITY: f64 = 0.02;
/// Added to the numbers of people who are held out.
const HELD_OUT: u64 = 1 << 40;
/// Of the logarithm of a work's popularity.
const POPULARITY_DEVIATION: f64 = 0.7;

/// How many people, and how they are.
#[derive(Clone, Debug)]
pub struct SimulationOptions {
    /// People to learn from.
    pub users: usize,
    /// People to be judged by, numbered after them.
    pub held_out: usize,
    /// Key of all draws.
    pub seed: u64,
    /// Shortest and longest history.
    pub lengths: (usize, usize),
    /// Probability that somebody stays with the creator of the last item of the type.
    pub loyalty: f64,
}

impl Default for SimulationOptions {
    fn default() -> SimulationOptions {
        SimulationOptions { users: 20_000, held_out: 800, seed: 0, lengths: (5, 16), loyalty: 0.35 }
    }
}

/// Simulates histories; see the module.
pub fn simulate(works: &Works, options: &SimulationOptions) -> Vec<History> {
    let world = World::new(works);
    let person = |user: usize| world.history(user, options);
    (0..options.users + options.held_out).into_par_iter().map(person).collect()
}

/// What is the same for everybody.
struct World<'a> {
    works: &'a Works,
    popularity: Vec<f64>,
    /// Per work the tastes that its genres belong to.
    tastes: Vec<Vec<usize>>,
    taste_count: usize,
    /// Per work the share of its type's works that are older; `None` without a year.
    ages: Vec<Option<f64>>,
}

impl World<'_> {
    fn new(works: &Works) -> World<'_> {
        let drawn = |work: &Work| {
            let key = work.id.bytes().fold(0, |key, byte| Random::new(key, u64::from(byte)).bits());
            (POPULARITY_DEVIATION * Random::new(key, 0).normal()).exp()
        };
        let popularity = works.all().iter().map(drawn).collect();
        let mut own: Vec<String> = Vec::new();
        let mut taste_of = |genre: &String| -> usize {
            if let Some(place) = TASTES.iter().position(|genres| genres.contains(&genre.as_str())) {
                return place;
            }
            let place = own.iter().position(|known| known == genre).unwrap_or_else(|| {
                own.push(genre.clone());
                own.len() - 1
            });
            TASTES.len() + place
        };
        let tastes: Vec<Vec<usize>> =
            works.all().iter().map(|work| work.genres.iter().map(&mut taste_of).collect()).collect();
        let taste_count = tastes.iter().flatten().max().map_or(1, |last| last + 1);
        World { works, popularity, tastes, taste_count, ages: ages(works) }
    }

    fn history(&self, user: usize, options: &SimulationOptions) -> History {
        let split = if user < options.users { Split::Train } else { Split::Test };
        // Numbers of their own: whoever is held out is nobody's training, however many people there are.
        let key = if split == Split::Train { user as u64 } else { HELD_OUT | (user - options.users) as u64 };
        let random = &mut Random::new(options.seed, key);
        let all = self.works.all();
        // A taste is drawn by a work that has it, so that no one likes what the catalog lacks.
        let first = self.some_taste(random);
        let second = self.some_taste(random);
        let era = random.unit();
        let weights: Vec<f64> =
            (0..all.len()).map(|place| self.weight(place, [first, second], era)).collect();
        let types: Vec<f64> = (0..self.works.types().len()).map(|t| self.type_weight(t, random)).collect();
        let (shortest, longest) = options.lengths;
        let length = shortest + random.below(longest.max(shortest) - shortest + 1);
        let mut taken: Vec<usize> = Vec::with_capacity(length.min(all.len()));
        while taken.len() < length.min(all.len()) {
            let item_type = draw(&types, random);
            let next = match random.unit() < options.loyalty {
                true => self.same_creator(item_type, &taken, random),
                false => None,
            };
            let next = next.or_else(|| self.by_weight(item_type, &weights, &taken, random));
            // The types of somebody who has seen everything of them.
            let Some(next) = next.or_else(|| (0..all.len()).find(|place| !taken.contains(place))) else {
                break;
            };
            taken.push(next);
        }
        History { user: key, split, items: taken.iter().map(|&place| all[place].id.clone()).collect() }
    }

    fn some_taste(&self, random: &mut Random) -> usize {
        let tastes = &self.tastes[random.below(self.tastes.len())];
        if tastes.is_empty() { random.below(self.taste_count) } else { tastes[random.below(tastes.len())] }
    }

    fn weight(&self, place: usize, [first, second]: [usize; 2], era: f64) -> f64 {
        let tastes = &self.tastes[place];
        let taste = match (tastes.contains(&first), tastes.contains(&second)) {
            (true, _) => 1.0,
            (false, true) => SECOND_TASTE,
            _ => 0.0,
        };
        let distance = self.ages[place].map_or(0.0, |age| (age - era) / ERA_WIDTH);
        let fit = (TASTE_STRENGTH * taste - distance * distance / 2.0).exp();
        self.popularity[place] * (fit + CURIOSITY)
    }

    /// Most people have one or two types that they care for.
    fn type_weight(&self, item_type: usize, random: &mut Random) -> f64 {
        let cares = 0.05 + random.unit().powi(2);
        if self.works.of_type(item_type).is_empty() { 0.0 } else { cares }
    }

    fn same_creator(&self, item_type: usize, taken: &[usize], random: &mut Random) -> Option<usize> {
        let all = self.works.all();
        let last: &Work = &all[*taken.iter().rev().find(|&&place| all[place].item_type == item_type)?];
        let creator = last.creator.as_ref()?;
        let others: Vec<usize> = self
            .works
            .of_type(item_type)
            .filter(|place| all[*place].creator.as_ref() == Some(creator) && !taken.contains(place))
            .collect();
        (!others.is_empty()).then(|| others[random.below(others.len())])
    }

    fn by_weight(
        &self,
        item_type: usize,
        weights: &[f64],
        taken: &[usize],
        random: &mut Random,
    ) -> Option<usize> {
        let range = self.works.of_type(item_type);
        let left: Vec<usize> = range.filter(|place| !taken.contains(place)).collect();
        let left_weights: Vec<f64> = left.iter().map(|&place| weights[place]).collect();
        (!left.is_empty()).then(|| left[draw(&left_weights, random)])
    }
}

fn ages(works: &Works) -> Vec<Option<f64>> {
    let mut ages = Vec::with_capacity(works.all().len());
    for item_type in 0..works.types().len() {
        let of_type = &works.all()[works.of_type(item_type)];
        let mut years: Vec<i64> = of_type.iter().filter_map(|work| work.year).collect();
        years.sort_unstable();
        let age = |work: &Work| {
            let older = years.partition_point(|&year| Some(year) < work.year);
            work.year.map(|_| older as f64 / years.len() as f64)
        };
        ages.extend(of_type.iter().map(age));
    }
    ages
}

/// A place drawn with the weights.
fn draw(weights: &[f64], random: &mut Random) -> usize {
    let mut left = random.unit() * weights.iter().sum::<f64>();
    for (place, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return place;
        }
    }
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0)
}
