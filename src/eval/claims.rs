//! What an answer says of the items that it names, held against the catalog.

use std::collections::BTreeSet;

use crate::dataset::{Work, Works};
use crate::engine::AnswerPart;

/// What a stretch of text claims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Genres named, as the catalog spells them.
    pub genres: Vec<String>,
    /// Creators named.
    pub creators: Vec<String>,
    /// Years named.
    pub years: Vec<i64>,
    /// First years of the decades named.
    pub decades: Vec<i64>,
}

impl Claims {
    /// Whether genre or creator is claimed at all.
    pub fn any(&self) -> bool {
        !self.genres.is_empty() || !self.creators.is_empty()
    }

    /// Whether everything that is claimed is true of a work.
    pub fn hold_for(&self, work: &Work) -> bool {
        self.genres.iter().all(|genre| work.genres.contains(genre))
            && self.creators.iter().all(|creator| work.creator.as_ref() == Some(creator))
            && self.years.iter().all(|&year| work.year == Some(year))
            && self.decades.iter().all(|&decade| work.decade() == Some(decade))
    }
}

/// The names that a catalog knows, the longest first: `Progressive Rock` before `Rock`.
pub(super) struct Vocabulary {
    genres: Vec<String>,
    creators: Vec<String>,
}

impl Vocabulary {
    pub fn new(works: &Works) -> Vocabulary {
        let longest_first = |names: BTreeSet<&String>| {
            let mut names: Vec<String> = names.into_iter().filter(|name| !name.is_empty()).cloned().collect();
            names.sort_by_key(|name| std::cmp::Reverse(name.len()));
            names
        };
        Vocabulary {
            genres: longest_first(works.all().iter().flat_map(|work| &work.genres).collect()),
            creators: longest_first(works.all().iter().filter_map(|work| work.creator.as_ref()).collect()),
        }
    }

    /// What a text claims. A name inside a longer one that was found does not count.
    pub fn claims(&self, text: &str) -> Claims {
        let mut left = text.to_owned();
        let mut creators = take_all(&mut left, &self.creators, false);
        creators.extend(unknown_creators(&left));
        let genres = take_all(&mut left, &self.genres, true);
        let (mut years, mut decades) = (Vec::new(), Vec::new());
        for word in left.split(|c: char| !c.is_alphanumeric()) {
            if let Some(first) = word.strip_suffix('s').filter(|digits| digits.len() == 4) {
                decades.extend(first.parse::<i64>());
            } else if word.len() == 4 {
                years.extend(word.parse::<i64>());
            }
        }
        Claims { genres, creators, years, decades }
    }
}

/// Names after `by` that nobody in the catalog has, to the next mark or `too`: made up, they are claims that nothing can make true.
fn unknown_creators(text: &str) -> Vec<String> {
    let names =
        text.match_indices("by ").filter(|(place, _)| !text[..*place].ends_with(char::is_alphanumeric));
    let named = names.filter_map(|(place, by)| {
        let rest = &text[place + by.len()..];
        let end = rest.find([',', '.', ':', ';', '\n']).unwrap_or(rest.len());
        rest.starts_with(char::is_uppercase).then(|| rest[..end].trim_end_matches(" too").to_owned())
    });
    named.collect()
}

/// The names that stand in the text as whole words, which are blotted out.
fn take_all(text: &mut String, names: &[String], any_case: bool) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        let mut from = 0;
        while let Some(place) = whole_words(&text[from..], name, any_case).map(|place| from + place) {
            from = place + name.len();
            text.replace_range(place..from, &"#".repeat(name.len()));
            if found.last() != Some(name) {
                found.push(name.clone());
            }
        }
    }
    found
}

/// Where a name stands in the text as whole words.
fn whole_words(text: &str, name: &str, any_case: bool) -> Option<usize> {
    let (hay, needle) = match any_case {
        // Blotting keeps byte places; lower case may not, so only ASCII is folded.
        true => (text.to_ascii_lowercase(), name.to_ascii_lowercase()),
        false => (text.to_owned(), name.to_owned()),
    };
    let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    hay.match_indices(&needle).map(|(place, _)| place).find(|&place| {
        let (before, after) = (hay[..place].chars().next_back(), hay[place + needle.len()..].chars().next());
        !letter(before) && !letter(after)
    })
}

/// Each item of an answer (its place among the works) with what the text from it to the next item claims.
pub(super) fn by_item(
    content: &[AnswerPart],
    works: &Works,
    vocabulary: &Vocabulary,
) -> Vec<(Option<usize>, Claims)> {
    let mut items: Vec<(Option<usize>, String)> = Vec::new();
    for part in content {
        match part {
            AnswerPart::Item { id, .. } => items.push((works.find(id), String::new())),
            AnswerPart::Text { text } => {
                if let Some((_, said)) = items.last_mut() {
                    said.push_str(text);
                }
            }
        }
    }
    items.into_iter().map(|(place, said)| (place, vocabulary.claims(&said))).collect()
}

/// What a text claims, by the names that a catalog knows.
pub fn claims(text: &str, works: &Works) -> Claims {
    Vocabulary::new(works).claims(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn work(id: &str, creator: &str, genres: &[&str], year: i64) -> Work {
        Work {
            id: id.to_owned(),
            title: id.to_owned(),
            creator: Some(creator.to_owned()),
            genres: genres.iter().map(|genre| (*genre).to_owned()).collect(),
            year: Some(year),
            ..Work::default()
        }
    }

    pub fn album(id: &str) -> AnswerPart {
        AnswerPart::Item {
            id: id.to_owned(),
            item_type: "album".to_owned(),
            sid: Vec::new(),
            score: 0.0,
            title: None,
            attributes: None,
        }
    }

    fn works() -> Works {
        let all = vec![
            work("fragile", "Yes", &["Progressive Rock", "Rock"], 1971),
            work("blonde", "Bob Dylan", &["Rock", "Folk"], 1966),
            work("tapes", "Bob Dylan and the Band", &["Rock"], 1975),
        ];
        Works::new(vec!["album".to_owned()], all).unwrap()
    }

    #[test]
    fn the_longest_names_are_found_and_nothing_inside_words() {
        let works = works();
        let found = claims(", a progressive rock album from the 1970s by Yes.", &works);
        assert_eq!(found.genres, ["Progressive Rock"]);
        assert_eq!((found.creators, found.decades), (vec!["Yes".to_owned()], vec![1970]));
        let found = claims("by Bob Dylan and the Band, from 1975, for folks and Yesterday", &works);
        assert_eq!((found.creators, found.years), (vec!["Bob Dylan and the Band".to_owned()], vec![1975]));
        assert!(found.genres.is_empty() && found.decades.is_empty());
        assert!(!claims("nothing at all", &works).any());
        // Every place of a name is taken, and a name that nobody has is a claim as well.
        let found = claims("by Yes, and by Yes again; stand by Yes too", &works);
        assert_eq!(found.creators, ["Yes"]);
        let found = claims("a rock album by Bob Maynard, made by hand", &works);
        assert_eq!(found.creators, ["Bob Maynard"]);
        assert!(!found.hold_for(&works.all()[0]));
    }

    #[test]
    fn each_item_answers_for_the_text_after_it() {
        let works = works();
        let text = |text: &str| AnswerPart::Text { text: text.to_owned() };
        let content = [
            text("Try "),
            album("fragile"),
            text(", by Yes, or "),
            album("blonde"),
            text(", a jazz or folk album by Yes."),
        ];
        let found = by_item(&content, &works, &Vocabulary::new(&works));
        let of = |id: &str| &works.all()[works.find(id).unwrap()];
        assert!(found[0].1.hold_for(of("fragile")) && !found[0].1.hold_for(of("blonde")));
        assert!(!found[1].1.hold_for(of("blonde")), "{:?}", found[1].1);
        assert_eq!(found[1].0, works.find("blonde"));
    }
}
