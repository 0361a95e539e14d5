//! Filters: which items a request may name, by their attributes.
//!
//! ```json
//! {"all": [{"attr": "year", "ge": 1990}, {"not": {"attr": "genres", "has": "Horror"}}, {"named": "kids"}]}
//! ```
//! A filter is parsed once, checked against a catalog, and then evaluated in two ways that share no code but the parser: on one item's
//! values ([`Filter::matches`], the gate's), and on the columns of a whole type at once ([`Filter::compile`], the search's).
//! A missing value makes a comparison false, and `not` is plain negation: `{"not": {"attr": "year", "lt": 1990}}` holds for items
//! without a year.

mod bind;
mod cache;
mod canonical;
mod check;
mod compile;
mod named;
mod parse;
mod row;
mod scan;

use std::sync::Arc;

pub use cache::{CacheLimits, CacheUse, FilterCache};
pub(super) use check::misfit;
pub(super) use compile::alive_sids;
pub use named::FilterSet;

use super::Predicate;

/// Bounds of what a filter may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterLimits {
    /// Levels of `all`, `any`, `not` and comparisons, named filters included; default 16.
    pub depth: usize,
    /// Expressions of every kind, those of named filters included; default 1,024.
    pub nodes: usize,
    /// Values of one `in`; default 10,000.
    pub list: usize,
    /// Bytes of a string: a name, a label, a value; default 1,024.
    pub text: usize,
}

impl Default for FilterLimits {
    fn default() -> FilterLimits {
        FilterLimits { depth: 16, nodes: 1024, list: 10_000, text: 1024 }
    }
}

/// A filter over the attributes of items.
///
/// Two filters are equal if their canonical texts are: the order within `all`, `any` and `in`, repetitions, and how numbers are
/// written make no difference.
#[derive(Clone, Debug)]
pub struct Filter {
    expression: Expression,
    canonical: Arc<str>,
    digest: u64,
    depth: usize,
    nodes: usize,
}

#[derive(Clone, Debug)]
enum Expression {
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Not(Box<Expression>),
    Compare(Predicate),
    Named(Arc<str>, Arc<Filter>),
}

/// Where in the JSON of a filter something lies; written out only for messages.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root(&'a str),
    Key(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Root(name) => f.write_str(name),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Item(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

impl Filter {
    /// A number that is the same for equal filters and hardly ever for others.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The filter in a form that does not depend on how it was written.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for Filter {}
