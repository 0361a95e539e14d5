//! The catalog of real works that the demonstration learns: facts, held against what is plausible.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;

/// Genres of each type, and the years between which a work of it can have come out.
const TYPES: [(&str, [i64; 2], &[&str]); 3] = [
    (
        "book",
        [1500, 2025],
        &[
            "Adventure",
            "Classic Fiction",
            "Coming of Age",
            "Crime",
            "Dystopia",
            "Fantasy",
            "Gothic",
            "Historical Fiction",
            "Horror",
            "Humor",
            "Literary Fiction",
            "Magical Realism",
            "Mystery",
            "Romance",
            "Science Fiction",
            "Thriller",
            "War",
        ],
    ),
    (
        "film",
        [1895, 2025],
        &[
            "Action",
            "Adventure",
            "Animation",
            "Comedy",
            "Crime",
            "Drama",
            "Fantasy",
            "Historical",
            "Horror",
            "Musical",
            "Mystery",
            "Romance",
            "Science Fiction",
            "Thriller",
            "War",
            "Western",
        ],
    ),
    (
        "album",
        [1948, 2025],
        &[
            "Alternative Rock",
            "Ambient",
            "Blues",
            "Country",
            "Electronic",
            "Folk",
            "Funk",
            "Hip Hop",
            "Jazz",
            "Metal",
            "New Wave",
            "Pop",
            "Post-Punk",
            "Progressive Rock",
            "Psychedelic Rock",
            "Punk",
            "Reggae",
            "Rock",
            "Soul",
        ],
    ),
];
/// Nobody publishes for longer.
const LONGEST_CAREER: i64 = 65;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Work {
    id: String,
    #[serde(rename = "type")]
    item_type: String,
    title: String,
    creator: String,
    year: i64,
    genres: Vec<String>,
    about: String,
    #[serde(default)]
    popularity: u64,
    #[serde(default)]
    sid: Vec<u16>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> Vec<Work> {
    let text = std::fs::read_to_string(root().join(path)).unwrap();
    let work = |(number, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{path}, line {}: {error}", number + 1))
    };
    text.lines().enumerate().map(work).collect()
}

fn sources() -> Vec<Work> {
    TYPES.iter().flat_map(|(name, ..)| read(&format!("training/catalog/{name}.jsonl"))).collect()
}

/// Letters and digits alone, in lower case.
fn bare(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[test]
fn every_type_has_works_enough_and_no_work_twice() {
    let works = sources();
    let mut ids = HashSet::new();
    let mut titles = HashSet::new();
    let mut sentences = HashSet::new();
    for work in &works {
        assert!(ids.insert(&work.id), "{} stands there twice", work.id);
        assert!(work.id.starts_with(&format!("{}:", work.item_type)), "{}", work.id);
        assert!(titles.insert((&work.item_type, bare(&work.title), &work.creator)), "{} twice", work.title);
        assert!(sentences.insert(bare(&work.about)), "{}: its sentence is another work's too", work.id);
    }
    for (name, ..) in TYPES {
        let count = works.iter().filter(|work| work.item_type == name).count();
        assert!(count >= 300, "{count} works of type {name}");
    }
}

#[test]
fn years_genres_and_sentences_are_plausible() {
    for work in sources() {
        let (_, [first, last], genres) = TYPES.iter().find(|(name, ..)| *name == work.item_type).unwrap();
        assert!((*first..=*last).contains(&work.year), "{}: {}", work.id, work.year);
        assert!((2..=3).contains(&work.genres.len()), "{}: {:?}", work.id, work.genres);
        assert_eq!(work.genres.iter().collect::<HashSet<_>>().len(), work.genres.len(), "{}", work.id);
        for genre in &work.genres {
            assert!(genres.contains(&genre.as_str()), "{}: genre {genre}", work.id);
        }
        let words = work.about.split_whitespace().count();
        assert!((6..=22).contains(&words) && work.about.ends_with('.'), "{}: {}", work.id, work.about);
        // A full stop inside is that of initials or "Mrs.".
        let inside = work.about.split_whitespace().rev().skip(1);
        let ended = inside.filter(|word| word.ends_with('.') && word.trim_end_matches('.').len() > 3);
        assert_eq!(ended.count(), 0, "{}: more than one sentence", work.id);
        assert!(!work.about.contains(&work.year.to_string()), "{}: the sentence tells the year", work.id);
        let title = bare(&work.title);
        assert!(
            title.len() < 5 || !bare(&work.about).contains(&title),
            "{}: the sentence tells the title",
            work.id
        );
        assert!(!work.about.contains(&work.creator), "{}: the sentence tells the creator", work.id);
        for text in [&work.title, &work.creator, &work.about] {
            assert_eq!(text.trim(), text, "{}", work.id);
            assert!(!text.is_empty() && !text.contains(['\n', '\t', '<', '|']), "{}: {text}", work.id);
        }
    }
}

#[test]
fn creators_have_one_spelling_and_lives_of_human_length() {
    let works = sources();
    let mut spellings: HashMap<String, &str> = HashMap::new();
    let mut careers: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    for work in &works {
        let spelling = spellings.entry(bare(&work.creator)).or_insert(&work.creator);
        assert_eq!(*spelling, work.creator, "two spellings");
        let career = careers.entry((&work.item_type, &work.creator)).or_insert((work.year, work.year));
        *career = (career.0.min(work.year), career.1.max(work.year));
    }
    for ((_, creator), (first, last)) in careers {
        assert!(last - first <= LONGEST_CAREER, "{creator}: {first} to {last}");
    }
}

#[test]
fn searches_for_ten_works_are_possible() {
    let works = sources();
    for (name, ..) in TYPES {
        let mut creators: HashMap<&str, usize> = HashMap::new();
        let mut decades: HashMap<(&str, i64), usize> = HashMap::new();
        for work in works.iter().filter(|work| work.item_type == name) {
            *creators.entry(&work.creator).or_default() += 1;
            work.genres.iter().for_each(|genre| *decades.entry((genre, work.year / 10)).or_default() += 1);
        }
        let of_ten = |counts: &mut dyn Iterator<Item = usize>| counts.filter(|&count| count >= 10).count();
        let (creators, decades) = (of_ten(&mut creators.into_values()), of_ten(&mut decades.into_values()));
        assert!(creators >= 8 && decades >= 15, "{name}: {creators} creators, {decades} genres of a decade");
    }
}

#[test]
fn the_demonstration_holds_these_works_and_nothing_else() {
    let embedded = read("src/demo/model/catalog.jsonl");
    let mut sids = HashSet::new();
    for work in &embedded {
        assert!(sids.insert((&work.item_type, &work.sid)), "{}: its SID is another work's too", work.id);
    }
    assert!(embedded.iter().filter(|work| work.popularity > 0).count() > 1000, "nobody took them");
    let facts = |works: Vec<Work>| -> BTreeMap<String, Work> {
        works
            .into_iter()
            .map(|work| (work.id.clone(), Work { popularity: 0, sid: Vec::new(), ..work }))
            .collect()
    };
    assert_eq!(facts(embedded), facts(sources()), "training/recipe.py makes src/demo/model anew");
}
