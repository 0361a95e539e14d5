//! The prompt format.
//!
//! ```text
//! Recommend the next item.              what is to be done, in one of several wordings
//! History: [span][span][span]           or `Query: …`, `Item: [span]`, `Description: …`
//! Target item type: film                or `any`; absent where no item is answered
//! Output: items                         `items`, `text` or `mixed`
//! ```

use serde::{Deserialize, Serialize};

use super::Split;
use super::wording::instructions;
use crate::engine::{Content, Message, Output, Part, Request};
use crate::error::{Error, Result};
use crate::random::Random;

/// What a model is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// A query to items.
    Search,
    /// A history to the next item.
    Recommend,
    /// A history or a query to text that names items and gives reasons.
    Explain,
    /// A history to a description of the person's tastes.
    Profile,
    /// An item to its facts.
    Describe,
    /// A description to its item.
    Find,
    /// An item to its type.
    Type,
}

impl Task {
    /// All tasks.
    pub const ALL: [Task; 7] =
        [Task::Search, Task::Recommend, Task::Explain, Task::Profile, Task::Describe, Task::Find, Task::Type];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Task::Search => "search",
            Task::Recommend => "recommend",
            Task::Explain => "explain",
            Task::Profile => "profile",
            Task::Describe => "describe",
            Task::Find => "find",
            Task::Type => "type",
        }
    }

    /// Whether it asks about what somebody took.
    pub(super) fn needs_histories(self) -> bool {
        matches!(self, Task::Recommend | Task::Profile)
    }

    /// The task of a name.
    ///
    /// # Errors
    /// If there is none; the error lists the names.
    pub fn named(name: &str) -> Result<Task> {
        Task::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
            Error::invalid("task", format!("`{name}` is none of {}", names.join(", ")))
        })
    }

    /// What its answers consist of.
    pub fn output(self) -> Output {
        match self {
            Task::Search | Task::Recommend | Task::Find => Output::Items,
            Task::Explain => Output::Mixed,
            Task::Profile | Task::Describe | Task::Type => Output::Text,
        }
    }
}

/// What a prompt is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// What somebody looks for.
    Query(String),
    /// What somebody read, watched or heard; item ids, newest last.
    History(Vec<String>),
    /// One item.
    Item(String),
    /// What somebody says of an item.
    Description(String),
}

/// A task, put into words.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What is asked.
    pub task: Task,
    /// Its first line.
    pub instruction: String,
    /// What it is about.
    pub subject: Subject,
    /// Name of the type of the items to answer with; `None`: any.
    pub target: Option<String>,
}

impl Prompt {
    /// A prompt in the task's first wording.
    pub fn new(task: Task, subject: Subject, target: Option<&str>) -> Prompt {
        let instruction = instructions(task).first().to_owned();
        Prompt { task, instruction, subject, target: target.map(str::to_owned) }
    }

    /// A prompt in a wording drawn from those of a side of the split.
    pub(super) fn draw(
        task: Task,
        subject: Subject,
        target: Option<&str>,
        split: Split,
        random: &mut Random,
    ) -> Prompt {
        let instruction = instructions(task).draw(split, random).to_owned();
        Prompt { instruction, ..Prompt::new(task, subject, target) }
    }

    /// The parts of the user's message.
    pub fn parts(&self) -> Vec<Part> {
        let text = |text: String| Part::Text { text };
        let head = &self.instruction;
        let mut parts = match &self.subject {
            Subject::Query(query) => vec![text(format!("{head}\nQuery: {query}"))],
            Subject::Description(about) => vec![text(format!("{head}\nDescription: {about}"))],
            Subject::History(items) => {
                vec![text(format!("{head}\nHistory: ")), Part::History { items: items.clone() }]
            }
            Subject::Item(id) => vec![text(format!("{head}\nItem: ")), Part::Item { id: id.clone() }],
        };
        let output = match self.task.output() {
            Output::Items => "items",
            Output::Mixed => "mixed",
            Output::Text => "text",
        };
        let tail = match self.task.output() {
            Output::Text => format!("\nOutput: {output}"),
            _ => format!("\nTarget item type: {}\nOutput: {output}", self.target.as_deref().unwrap_or("any")),
        };
        parts.push(text(tail));
        parts
    }

    /// A request that asks it: its message, its output and its target; everything else is left to the engine.
    pub fn request(&self) -> Request {
        Request {
            messages: Some(vec![Message { role: "user".to_owned(), content: Content::Parts(self.parts()) }]),
            output: Some(self.task.output()),
            item_types: self
                .target
                .as_ref()
                .filter(|_| self.task.output() != Output::Text)
                .map(|target| vec![target.clone()]),
            ..Request::default()
        }
    }
}
