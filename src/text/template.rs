//! The model's chat template, compiled once at start.
//!
//! A template comes with the model, never from a client, and is written for transformers' Jinja: Python's string methods,
//! `trim_blocks` and `lstrip_blocks`, `raise_exception`, `tojson` without HTML escapes. Fuel bounds what one rendering may
//! cost, and a probe at start turns a template that cannot render into an error with file and line.

use std::path::{Path, PathBuf};

use crate::text::dialect;
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Value, context};

/// Instructions one rendering may take: some seconds at worst, thousands of messages in any known template.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

/// A compiled chat template and the file it came from.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: Option<String>,
    eos: Option<String>,
}

/// One message as a template sees it.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// The role.
    pub role: &'a str,
    /// The content, one string.
    pub content: String,
}

impl Turn<'_> {
    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role), ("content", &self.content)])
    }
}

/// Where a template was found and what the tokenizer's configuration adds to it.
#[derive(Debug)]
pub(super) struct TemplateSource {
    /// The file that holds it.
    pub path: PathBuf,
    /// The template's text.
    pub source: String,
    /// The string of the token that begins a sequence.
    pub bos: Option<String>,
    /// The string of the token that ends one.
    pub eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template and renders a probe.
    ///
    /// # Errors
    /// A syntax error, or a template that renders none of three ordinary conversations, with its file and line.
    pub fn compile(template: TemplateSource) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the standard delimiters are valid"));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.add_function("raise_exception", dialect::raise_exception);
        environment.add_function("strftime_now", |format: &str| dialect::strftime_now(format));
        environment.add_filter("tojson", dialect::tojson);
        environment
            .add_template_owned(NAME, dialect::without_generation_tags(&template.source))
            .map_err(|error| at_line(&template.path, &error))?;
        let compiled = ChatTemplate { environment, bos: template.bos, eos: template.eos };
        compiled.probe(&template.path)?;
        Ok(compiled)
    }

    /// Renders messages with the prompt for the answer.
    ///
    /// # Errors
    /// [`Error::Invalid`] on `messages` when the template refuses them, breaks, or runs out of fuel.
    pub fn render(&self, turns: &[Turn<'_>]) -> Result<String> {
        self.run(turns).map_err(|error| Error::invalid("messages", describe(&error)))
    }

    fn run(&self, turns: &[Turn<'_>]) -> Result<String, minijinja::Error> {
        self.environment.get_template(NAME)?.render(context! {
            messages => turns.iter().map(Turn::value).collect::<Value>(),
            add_generation_prompt => true,
            bos_token => self.bos.as_deref().unwrap_or(""),
            eos_token => self.eos.as_deref().unwrap_or(""),
            tools => Value::from(()),
            documents => Value::from(()),
        })
    }

    fn probe(&self, path: &Path) -> Result<()> {
        let turn = |role| Turn { role, content: "Hello".to_owned() };
        let conversations: [&[Turn<'_>]; 3] = [
            &[turn("user")],
            &[turn("system"), turn("user")],
            &[turn("user"), turn("assistant"), turn("user")],
        ];
        // A template may refuse one of them (no system turn, for instance) but not all.
        let mut failures = conversations.iter().map(|turns| self.run(turns).err());
        let first = failures.next().flatten();
        match first {
            Some(error) if failures.all(|failure| failure.is_some()) => Err(at_line(path, &error)),
            _ => Ok(()),
        }
    }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) if error.kind() == minijinja::ErrorKind::InvalidOperation => {
            format!("the chat template says: {detail}")
        }
        _ => format!("the chat template failed: {error}"),
    }
}

fn at_line(path: &Path, error: &minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!("line {line}: "));
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    Error::file(path, format!("the chat template does not work: {line}{detail}"))
}
