//! The words of prompts and answers. `{…}` are filled in.
//!
//! Each list has wordings for training and, after them, wordings that only evaluation uses.

use super::prompt::Task;
use super::{Split, Work};
use crate::random::Random;

/// Ways to say one thing.
pub(super) struct Wordings {
    training: &'static [&'static str],
    held_out: &'static [&'static str],
}

impl Wordings {
    /// One of them.
    pub fn draw(&self, split: Split, random: &mut Random) -> &'static str {
        let list = match split {
            Split::Train => self.training,
            Split::Test => self.held_out,
        };
        list[random.below(list.len())]
    }

    /// The first, for those who want none in particular.
    pub fn first(&self) -> &'static str {
        self.training[0]
    }

    #[cfg(test)]
    pub fn all(&self) -> [&'static [&'static str]; 2] {
        [self.training, self.held_out]
    }
}

/// First lines of a task's prompts.
pub(super) fn instructions(task: Task) -> &'static Wordings {
    match task {
        Task::Search => &Wordings {
            training: &[
                "Find an item.",
                "Search the catalog.",
                "Find what is asked for.",
                "Which items fit the query?",
                "Search for items that match.",
                "Look this up.",
            ],
            held_out: &["Find items for this query.", "Search the catalog for items that fit."],
        },
        Task::Recommend => &Wordings {
            training: &[
                "Recommend the next item.",
                "Suggest what to try next.",
                "What should come next?",
                "Recommend something new.",
                "Continue this history.",
                "Pick the next item for this person.",
            ],
            held_out: &["Suggest the next item.", "What should this person try next?"],
        },
        Task::Explain => &Wordings {
            training: &[
                "Recommend an item and say why.",
                "Suggest something and explain it.",
                "Recommend something, with a reason.",
                "What do you recommend, and why?",
                "Suggest an item and give a reason.",
                "Name something that fits and say why.",
            ],
            held_out: &["Suggest something and say why.", "Recommend an item and explain it."],
        },
        Task::Profile => &Wordings {
            training: &[
                "Describe this person's tastes.",
                "What does this person like?",
                "Summarize these interests.",
                "Write a profile of this person.",
                "What are the interests behind this history?",
            ],
            held_out: &["Describe what this person likes.", "Summarize this person's tastes."],
        },
        Task::Describe => &Wordings {
            training: &[
                "Describe the item.",
                "What is this?",
                "Tell me about this item.",
                "Say what this item is.",
                "Give the facts of this item.",
            ],
            held_out: &["Describe this item.", "What is this item about?"],
        },
        Task::Find => &Wordings {
            training: &[
                "Which item is described?",
                "Name the item of this description.",
                "What item is this about?",
                "Find the item that is described.",
            ],
            held_out: &["Find the item of this description.", "Which item is this about?"],
        },
        Task::Type => &Wordings {
            training: &[
                "What type of item is this?",
                "Name the type of this item.",
                "Which type has this item?",
            ],
            held_out: &["What is the type of this item?"],
        },
    }
}

/// A query for one work by its title.
pub(super) const BY_TITLE: Wordings = Wordings {
    training: &[
        "{title}",
        "{title}",
        "the {type} {title}",
        "{type} called {title}",
        "{title} by {creator}",
        "{creator}, {title}",
        "{title} ({year})",
        "a {type} with the title {title}",
        "I am looking for {title}",
    ],
    held_out: &["the {type} called {title}", "looking for {title}", "{title}, {type} by {creator}"],
};

/// A query for the works of a creator.
pub(super) const BY_CREATOR: Wordings = Wordings {
    training: &[
        "{creator}",
        "{types} by {creator}",
        "{creator} {types}",
        "{types} from {creator}",
        "anything by {creator}",
        "something by {creator}",
        "all {types} that {creator} made",
        "a {type} of {creator}",
    ],
    held_out: &["more {types} by {creator}", "any {type} by {creator}", "the {types} of {creator}"],
};

/// A query for a genre in a decade.
pub(super) const BY_GENRE_AND_DECADE: Wordings = Wordings {
    training: &[
        "{genre} {types} from the {decade}",
        "{decade} {genre}",
        "{decade} {genre} {types}",
        "{genre} {types} of the {decade}",
        "{genre}, {decade}",
        "{types} from the {decade}, {genre}",
        "a {genre} {type} made in the {decade}",
    ],
    held_out: &[
        "some {genre} {types} from the {decade}",
        "a {genre} {type} of the {decade}",
        "{types} of the {decade}: {genre}",
    ],
};

/// A query for a genre.
pub(super) const BY_GENRE: Wordings = Wordings {
    training: &["{genre}", "{genre} {types}", "a {genre} {type}", "{types}: {genre}", "something in {genre}"],
    held_out: &["some {genre} {types}", "any {genre} {type}"],
};

/// A query for a decade.
pub(super) const BY_DECADE: Wordings = Wordings {
    training: &["{types} from the {decade}", "{decade} {types}", "{types} of the {decade}", "{decade}"],
    held_out: &["some {types} from the {decade}", "a {type} of the {decade}"],
};

/// A query for what a creator made in a genre.
pub(super) const BY_CREATOR_AND_GENRE: Wordings = Wordings {
    training: &["{genre} {types} by {creator}", "{creator} {genre}", "a {genre} {type} from {creator}"],
    held_out: &["some {genre} {types} by {creator}", "any {genre} {type} of {creator}"],
};

/// A description of a work, as [`Task::Find`] has it.
pub(super) const DESCRIPTIONS: Wordings = Wordings {
    training: &[
        "{about}",
        "{about}",
        "A {genres} {type} by {creator} from {year}.",
        "A {genre} {type} from the {decade} by {creator}: {about}",
        "{title} ({year}), {genres}, by {creator}.",
    ],
    held_out: &["A {genres} {type}. {about}", "{about} From the {decade}."],
};

/// Fills what braces name with what a work says; `None` if the work does not say it.
pub(super) fn fill(wording: &str, work: &Work, item_type: &str, genre: Option<&str>) -> Option<String> {
    let mut out = String::with_capacity(wording.len() + 32);
    let mut rest = wording;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        out.push_str(before);
        let value = match name {
            "title" => work.title.clone(),
            "creator" => work.creator.clone()?,
            "year" => work.year?.to_string(),
            "decade" => decade(work.decade()?),
            "genre" => spoken(genre.or(work.genres.first().map(String::as_str))?),
            "genres" => genres(work)?,
            "about" => work.about.clone()?,
            "type" => item_type.to_owned(),
            "types" => plural(item_type),
            _ => return None,
        };
        append(&mut out, &value);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// Appends a word; an article before it becomes what is said before its first letter.
pub(super) fn append(out: &mut String, value: &str) {
    let article = out.ends_with(" a ") || matches!(out.as_str(), "a " | "A ");
    if article && value.to_lowercase().starts_with(['a', 'e', 'i', 'o', 'u']) {
        out.insert(out.len() - 1, 'n');
    }
    out.push_str(value);
}

/// A genre inside a sentence.
pub(super) fn spoken(genre: &str) -> String {
    genre.to_lowercase()
}

/// `1980s`.
pub(super) fn decade(first_year: i64) -> String {
    format!("{first_year}s")
}

/// The plural of a type's name.
pub(super) fn plural(item_type: &str) -> String {
    if item_type.ends_with('s') { item_type.to_owned() } else { format!("{item_type}s") }
}

/// The first two genres: `horror and science fiction`.
pub(super) fn genres(work: &Work) -> Option<String> {
    let spoken: Vec<String> = work.genres.iter().take(2).map(|genre| spoken(genre)).collect();
    (!spoken.is_empty()).then(|| list_of(&spoken))
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn list_of<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, before)) => format!("{} and {last}", before.join(", ")),
    }
}
