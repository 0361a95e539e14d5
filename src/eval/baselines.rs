//! What a model must beat.

use std::collections::{BTreeMap, HashMap};

use crate::dataset::{Work, Works};

/// What most people took.
pub struct Popularity {
    counts: Vec<f64>,
}

impl Popularity {
    /// Of the histories to learn from, as places of works.
    pub fn new(works: &Works, histories: &[Vec<usize>]) -> Popularity {
        let mut counts = vec![0.0; works.all().len()];
        histories.iter().flatten().for_each(|&place| counts[place] += 1.0);
        Popularity { counts }
    }

    /// The `k` most popular works of a type that are not in `but`.
    pub fn rank(&self, works: &Works, item_type: usize, but: &[usize], k: usize) -> Vec<usize> {
        best(works.of_type(item_type).filter(|place| !but.contains(place)), |place| self.counts[place], k)
    }
}

/// What others took who took the same: items by the cosine of who took them.
pub struct Neighbours {
    /// Per work the works taken together with it, and their cosines.
    near: Vec<HashMap<usize, f64>>,
    popularity: Popularity,
}

impl Neighbours {
    /// Of the histories to learn from.
    pub fn new(works: &Works, histories: &[Vec<usize>]) -> Neighbours {
        let popularity = Popularity::new(works, histories);
        let mut near: Vec<HashMap<usize, f64>> = vec![HashMap::new(); works.all().len()];
        for history in histories {
            for &a in history {
                for &b in history.iter().filter(|&&b| b != a) {
                    *near[a].entry(b).or_default() += 1.0;
                }
            }
        }
        for (a, row) in near.iter_mut().enumerate() {
            for (&b, together) in row.iter_mut() {
                *together /= (popularity.counts[a] * popularity.counts[b]).sqrt();
            }
        }
        Neighbours { near, popularity }
    }

    /// The `k` works of a type nearest to those of `seen` together, none of `but`; equally near ones by popularity.
    pub fn rank(
        &self,
        works: &Works,
        item_type: usize,
        seen: &[usize],
        but: &[usize],
        k: usize,
    ) -> Vec<usize> {
        let score = |place: usize| {
            let near: f64 = seen.iter().filter_map(|&other| self.near[other].get(&place)).sum();
            near + 1e-9 * self.popularity.counts[place]
        };
        best(works.of_type(item_type).filter(|place| !but.contains(place)), score, k)
    }
}

/// Words against words: Okapi BM25 (Robertson and Zaragoza 2009) over title, creator, year, decade, genres, type and sentence.
pub struct Bm25 {
    /// Per work how often it has each word.
    documents: Vec<BTreeMap<String, f64>>,
    lengths: Vec<f64>,
    /// Inverse document frequencies.
    idf: HashMap<String, f64>,
    mean_length: f64,
}

const SATURATION: f64 = 1.2;
const LENGTH_WEIGHT: f64 = 0.75;

impl Bm25 {
    /// Of all works.
    pub fn new(works: &Works) -> Bm25 {
        let documents: Vec<BTreeMap<String, f64>> =
            works.all().iter().map(|work| counted(&text_of(work, works.type_of(work)))).collect();
        let lengths: Vec<f64> = documents.iter().map(|document| document.values().sum()).collect();
        let mut frequency: HashMap<String, f64> = HashMap::new();
        documents
            .iter()
            .flat_map(BTreeMap::keys)
            .for_each(|word| *frequency.entry(word.clone()).or_default() += 1.0);
        let n = documents.len() as f64;
        let idf = frequency
            .into_iter()
            .map(|(word, df)| (word, (1.0 + (n - df + 0.5) / (df + 0.5)).ln()))
            .collect();
        let mean_length = lengths.iter().sum::<f64>() / n;
        Bm25 { documents, lengths, idf, mean_length }
    }

    /// The `k` works of a type that fit best.
    pub fn rank(&self, works: &Works, item_type: usize, query: &str, k: usize) -> Vec<usize> {
        let words = counted(query);
        let score = |place: usize| -> f64 {
            let norm =
                SATURATION * (1.0 - LENGTH_WEIGHT + LENGTH_WEIGHT * self.lengths[place] / self.mean_length);
            let of_word = |word: &String| {
                let count = self.documents[place].get(word)?;
                Some(self.idf[word] * count * (SATURATION + 1.0) / (count + norm))
            };
            words.keys().filter_map(of_word).sum()
        };
        best(works.of_type(item_type), score, k)
    }
}

fn text_of(work: &Work, item_type: &str) -> String {
    let year = work.year.map(|year| year.to_string()).unwrap_or_default();
    let decade = work.decade().map(|decade| format!("{decade}s")).unwrap_or_default();
    let (creator, about) =
        (work.creator.as_deref().unwrap_or_default(), work.about.as_deref().unwrap_or_default());
    format!(
        "{} {creator} {year} {decade} {} {item_type} {item_type}s {about}",
        work.title,
        work.genres.join(" ")
    )
}

fn counted(text: &str) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_owned()).or_default() += 1.0;
    }
    counts
}

/// The `k` places with the highest scores; equal ones in their order.
fn best(places: impl Iterator<Item = usize>, score: impl Fn(usize) -> f64, k: usize) -> Vec<usize> {
    let mut scored: Vec<(f64, usize)> = places.map(|place| (score(place), place)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scored.into_iter().take(k).map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works() -> Works {
        let work = |id: &str, title: &str, creator: &str| Work {
            id: id.to_owned(),
            title: title.to_owned(),
            creator: Some(creator.to_owned()),
            genres: vec!["Drama".to_owned()],
            ..Work::default()
        };
        let all = vec![
            work("a", "Red", "K"),
            work("b", "Blue", "K"),
            work("c", "White Red", "L"),
            work("d", "Green", "M"),
        ];
        Works::new(vec!["film".to_owned()], all).unwrap()
    }

    #[test]
    fn popularity_leaves_out_what_was_seen() {
        let works = works();
        let popularity = Popularity::new(&works, &[vec![0, 1], vec![1, 2], vec![1]]);
        assert_eq!(popularity.rank(&works, 0, &[], 4), [1, 0, 2, 3]);
        assert_eq!(popularity.rank(&works, 0, &[1], 2), [0, 2]);
    }

    #[test]
    fn neighbours_are_those_taken_together_however_rare() {
        let works = works();
        // 0 and 3 are always together; 1 is with everything.
        let histories = vec![vec![0, 3, 1], vec![0, 3], vec![1, 2], vec![1, 2], vec![1, 2]];
        let neighbours = Neighbours::new(&works, &histories);
        assert_eq!(neighbours.rank(&works, 0, &[0], &[0], 2), [3, 1]);
        assert_eq!(neighbours.rank(&works, 0, &[2], &[2], 1), [1]);
        // Nothing is known: popularity decides.
        assert_eq!(neighbours.rank(&works, 0, &[], &[], 1), [1]);
    }

    #[test]
    fn words_find_titles_and_rare_words_count_more() {
        let works = works();
        let bm25 = Bm25::new(&works);
        assert_eq!(bm25.rank(&works, 0, "green drama", 1), [3]);
        assert_eq!(bm25.rank(&works, 0, "RED by K", 1), [0]);
        assert_eq!(bm25.rank(&works, 0, "nothing", 4), [0, 1, 2, 3]);
    }
}
