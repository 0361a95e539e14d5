//! From JSON to a filter, within bounds, with the place of every mistake.

use std::sync::Arc;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::{Expression, Filter, FilterLimits, FilterSet, Path};
use crate::catalog::Predicate;
use crate::catalog::predicate::{excerpt, shown};
use crate::error::{Error, Result};

const FORMS: &str = "`all`, `any`, `not`, `named`, or `attr` with a comparison";

impl Filter {
    /// Parses an expression: `{"all": [...]}`, `{"any": [...]}`, `{"not": ...}`, or an attribute with one comparison,
    /// `{"attr": NAME, OPERATOR: VALUE}` with `eq`, `in`, `has`, `lt`, `le`, `gt` or `ge`.
    ///
    /// An empty `all` holds for every item, an empty `any` for none.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path of what is wrong (`filter.all[1].not.ge`): an unknown key, no comparison or several, an operand of
    /// the wrong type, a bound of `limits` exceeded, a named filter (which only a [`FilterSet`] knows).
    pub fn parse(value: &Value, limits: &FilterLimits) -> Result<Filter> {
        Filter::parse_at("filter", value, limits, &FilterSet::default())
    }

    /// Parses an expression that may refer to the filters of `named`; paths of errors start with `root`.
    pub(super) fn parse_at(
        root: &str,
        value: &Value,
        limits: &FilterLimits,
        named: &FilterSet,
    ) -> Result<Filter> {
        let mut parser = Parser { limits, named, nodes: 0, depth: 0 };
        let expression = parser.expression(value, Path::Root(root), 1)?;
        let canonical: Arc<str> = expression.canonical().into();
        let digest = xxh3_64(canonical.as_bytes());
        Ok(Filter { expression, canonical, digest, depth: parser.depth, nodes: parser.nodes })
    }
}

struct Parser<'a> {
    limits: &'a FilterLimits,
    named: &'a FilterSet,
    /// Expressions so far.
    nodes: usize,
    /// The deepest so far.
    depth: usize,
}

impl Parser<'_> {
    /// Parses an expression at `depth`, counted from 1.
    fn expression(&mut self, value: &Value, path: Path<'_>, depth: usize) -> Result<Expression> {
        self.count(1, depth, path)?;
        let Value::Object(object) = value else {
            return Err(invalid(path, format!("needs an object with {FORMS}, found {}", shown(value))));
        };
        if object.contains_key("attr") {
            return self.comparison(object, path);
        }
        let mut keys = object.iter();
        let (key, inner) = match (keys.next(), keys.next()) {
            (Some(entry), None) => entry,
            (None, _) => return Err(invalid(path, format!("an empty object; it needs {FORMS}"))),
            (Some((first, _)), Some((second, _))) => {
                let (first, second) = (excerpt(first), excerpt(second));
                let message = format!("needs exactly one of {FORMS}, found `{first}` and `{second}`");
                return Err(invalid(path, message));
            }
        };
        match key.as_str() {
            "all" => Ok(Expression::All(self.list(inner, Path::Key(&path, "all"), depth + 1)?)),
            "any" => Ok(Expression::Any(self.list(inner, Path::Key(&path, "any"), depth + 1)?)),
            "not" => {
                let inner = self.expression(inner, Path::Key(&path, "not"), depth + 1)?;
                Ok(Expression::Not(Box::new(inner)))
            }
            "named" => self.reference(inner, Path::Key(&path, "named"), depth),
            other => Err(invalid(path, format!("unknown key `{}`; it needs {FORMS}", excerpt(other)))),
        }
    }

    /// Counts expressions down to `depth`, before any of them is looked into.
    fn count(&mut self, nodes: usize, depth: usize, path: Path<'_>) -> Result<()> {
        self.nodes += nodes;
        self.depth = self.depth.max(depth);
        if depth > self.limits.depth {
            let message = format!("{depth} levels deep, at most {} are allowed", self.limits.depth);
            return Err(invalid(path, message));
        }
        if self.nodes > self.limits.nodes {
            return Err(invalid(path, format!("more than the {} expressions allowed", self.limits.nodes)));
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, path: Path<'_>, depth: usize) -> Result<Vec<Expression>> {
        let Value::Array(values) = value else {
            return Err(invalid(path, format!("needs a list of expressions, found {}", shown(value))));
        };
        let parts = values.iter().enumerate();
        parts.map(|(at, value)| self.expression(value, Path::Item(&path, at), depth)).collect()
    }

    fn comparison(&self, object: &Map<String, Value>, path: Path<'_>) -> Result<Expression> {
        let parsed = Predicate::parse_within(object, self.limits);
        parsed.map(Expression::Compare).map_err(|flaw| match flaw.key {
            Some(key) => invalid(Path::Key(&path, key), flaw.message),
            None => invalid(path, flaw.message),
        })
    }

    fn reference(&mut self, value: &Value, path: Path<'_>, depth: usize) -> Result<Expression> {
        let Value::String(name) = value else {
            return Err(invalid(path, format!("needs the name of a filter, found {}", shown(value))));
        };
        let Some((name, filter)) = self.named.entry(name) else {
            let known = self.named.listed();
            return Err(invalid(path, format!("unknown filter `{}`; {known}", excerpt(name))));
        };
        self.count(filter.nodes, depth + filter.depth, path)?;
        Ok(Expression::Named(name.clone(), filter.clone()))
    }
}

fn invalid(path: Path<'_>, message: String) -> Error {
    Error::invalid(path.to_string(), message)
}
