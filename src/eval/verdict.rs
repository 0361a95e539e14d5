//! Whether an answer in text is true, and whether it answers what was asked.

use super::claims::{Claims, Vocabulary, by_item};
use crate::dataset::{Sample, Subject, Task, Work, Works, facts};
use crate::engine::AnswerPart;

/// Holds answers against a catalog's works.
pub(super) struct Verdicts<'a> {
    works: &'a Works,
    vocabulary: Vocabulary,
}

impl<'a> Verdicts<'a> {
    pub fn new(works: &'a Works) -> Verdicts<'a> {
        Verdicts { works, vocabulary: Vocabulary::new(works) }
    }

    /// Whether all that an answer claims is true; `None` if it claims nothing.
    pub fn true_of(&self, sample: &Sample, content: &[AnswerPart]) -> Option<bool> {
        let text = written(content);
        let work = sample.target.map(|place| &self.works.all()[place]);
        match sample.prompt.task {
            Task::Explain => {
                let said = by_item(content, self.works, &self.vocabulary);
                let claims = said.iter().any(|(_, claims)| claims.any());
                let hold = said.iter().all(|(place, claims)| {
                    place.is_some_and(|place| claims.hold_for(&self.works.all()[place]))
                });
                claims.then_some(hold)
            }
            Task::Type => Some(work.is_some_and(|work| text.trim() == self.works.type_of(work))),
            Task::Describe => {
                let work = work?;
                Some(text.starts_with(&facts(work, self.works.type_of(work))))
            }
            _ => {
                let claims = self.vocabulary.claims(&text);
                claims.any().then(|| self.shown_by(&claims, sample))
            }
        }
    }

    /// Whether an explanation names items and all of them answer the query, or what it says before the first of them is true of the history.
    pub fn fits(&self, sample: &Sample, content: &[AnswerPart]) -> bool {
        let named = content.iter().filter_map(|part| match part {
            AnswerPart::Item { id, .. } => Some(self.works.find(id)),
            AnswerPart::Text { .. } => None,
        });
        let named: Vec<Option<usize>> = named.collect();
        if named.is_empty() {
            return false;
        }
        let right = |place: usize| sample.target == Some(place) || sample.others.contains(&place);
        match (&sample.prompt.subject, content.first()) {
            (Subject::Query(_), _) => named.into_iter().all(|place| place.is_some_and(right)),
            (Subject::History(_), Some(AnswerPart::Text { text })) => {
                self.shown_by(&self.vocabulary.claims(text), sample)
            }
            _ => true,
        }
    }

    /// Whether a history has something of all that is claimed.
    fn shown_by(&self, claims: &Claims, sample: &Sample) -> bool {
        let Subject::History(ids) = &sample.prompt.subject else { return false };
        let seen: Vec<&Work> =
            ids.iter().filter_map(|id| Some(&self.works.all()[self.works.find(id)?])).collect();
        let some = |fits: &dyn Fn(&Work) -> bool| seen.iter().any(|work| fits(work));
        claims.genres.iter().all(|genre| some(&|work| work.genres.contains(genre)))
            && claims.creators.iter().all(|name| some(&|work| work.creator.as_ref() == Some(name)))
            && claims.decades.iter().all(|&first| some(&|work| work.decade() == Some(first)))
    }
}

/// An answer as it would be read, items as `[title]`.
pub(super) fn written(content: &[AnswerPart]) -> String {
    let part = |part: &AnswerPart| match part {
        AnswerPart::Text { text } => text.clone(),
        AnswerPart::Item { id, title, .. } => format!("[{}]", title.as_deref().unwrap_or(id)),
    };
    content.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Prompt;
    use crate::eval::claims::tests::{album, work};

    fn works() -> Works {
        let all = vec![
            work("fragile", "Yes", &["Progressive Rock", "Rock"], 1971),
            work("blonde", "Bob Dylan", &["Rock", "Folk"], 1966),
            work("desire", "Bob Dylan", &["Folk"], 1976),
        ];
        Works::new(vec!["album".to_owned()], all).unwrap()
    }

    fn sample(works: &Works, task: Task, subject: Subject, target: Option<&str>) -> Sample {
        Sample {
            prompt: Prompt::new(task, subject, None),
            answer: Vec::new(),
            others: Vec::new(),
            earlier: Vec::new(),
            taken: Vec::new(),
            target: target.map(|id| works.find(id).unwrap()),
        }
    }

    fn history(ids: &[&str]) -> Subject {
        Subject::History(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    /// `[id]` is an item, the rest is text.
    fn answer(written: &str) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        for piece in written.split_inclusive(']') {
            let (text, id) = piece.split_once('[').map_or((piece, None), |(text, id)| (text, Some(id)));
            if !text.is_empty() {
                parts.push(AnswerPart::Text { text: text.to_owned() });
            }
            if let Some(id) = id {
                parts.push(album(id.trim_end_matches(']')));
            }
        }
        assert_eq!(super::written(&parts), written);
        parts
    }

    #[test]
    fn an_explanation_is_true_if_each_item_is_what_is_said_of_it() {
        let works = works();
        let verdicts = Verdicts::new(&works);
        let sample = sample(&works, Task::Explain, Subject::Query("rock".to_owned()), Some("fragile"));
        let verdict = |said: &str| verdicts.true_of(&sample, &answer(said));
        assert_eq!(verdict("Try [fragile], rock by Yes, or [blonde], folk from 1966."), Some(true));
        assert_eq!(verdict("Try [fragile], rock by Yes, or [blonde], folk from 1967."), Some(false));
        assert_eq!(verdict("Try [fragile], folk from 1966, or [blonde], rock by Yes."), Some(false));
        assert_eq!(verdict("Try [fragile], by Alan Smithee."), Some(false), "nobody's name");
        assert_eq!(verdict("Try [lost], a rock album."), Some(false), "nothing that is in the catalog");
        assert_eq!(verdict("Try [fragile]. You may like it."), None, "claims nothing");
        assert_eq!(verdict("A rock album by Yes."), None, "names nothing");
    }

    #[test]
    fn an_explanation_fits_if_its_items_answer_or_the_history_shows_its_reason() {
        let works = works();
        let verdicts = Verdicts::new(&works);
        let query = Subject::Query("an album by Bob Dylan".to_owned());
        let mut asked = sample(&works, Task::Explain, query, Some("blonde"));
        asked.others = vec![works.find("desire").unwrap()];
        let fits = |sample: &Sample, said: &str| verdicts.fits(sample, &answer(said));
        assert!(fits(&asked, "[blonde], folk, and [desire], folk too."));
        assert!(!fits(&asked, "[blonde], folk, and [fragile], rock."), "another item beside the right one");
        assert!(!fits(&asked, "[lost], folk.") && !fits(&asked, "Folk by Bob Dylan."));

        let taken = sample(&works, Task::Explain, history(&["fragile"]), None);
        assert!(fits(&taken, "You like Yes and rock from the 1970s: [blonde], rock."));
        assert!(!fits(&taken, "You like folk: [blonde], rock."), "nothing they took is folk");
        assert!(!fits(&taken, "You like rock from the 1960s: [blonde], rock."), "nor from then");
        assert!(!fits(&taken, "You like Bob Dylan: [blonde], rock."), "nor by him");
        assert!(fits(&taken, "[blonde], rock."), "gives no reason that could be wrong");
        assert!(!fits(&taken, "You like rock."), "names nothing");
    }

    #[test]
    fn texts_are_held_against_the_history_the_item_and_its_type() {
        let works = works();
        let verdicts = Verdicts::new(&works);
        let profile = sample(&works, Task::Profile, history(&["fragile", "desire"]), None);
        let verdict = |sample: &Sample, said: &str| verdicts.true_of(sample, &answer(said));
        assert_eq!(verdict(&profile, "Likes folk and rock, and Bob Dylan."), Some(true));
        assert_eq!(verdict(&profile, "Likes folk of the 1960s."), Some(false));
        assert_eq!(verdict(&profile, "Likes many things."), None);

        let item = Subject::Item("fragile".to_owned());
        let described = sample(&works, Task::Describe, item.clone(), Some("fragile"));
        let right = facts(&works.all()[works.find("fragile").unwrap()], "album");
        assert_eq!(verdict(&described, &format!("{right} More of it.")), Some(true));
        assert_eq!(verdict(&described, &right.replace("1971", "1972")), Some(false));
        let kind = sample(&works, Task::Type, item, Some("fragile"));
        assert_eq!(verdict(&kind, " album\n"), Some(true));
        assert_eq!(verdict(&kind, "film"), Some(false));
    }
}
