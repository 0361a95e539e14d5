//! Filters that have a name on the server.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Filter, FilterLimits};
use crate::catalog::Catalog;
use crate::catalog::predicate::excerpt;
use crate::error::{Error, Result};
use crate::ids::TypeId;

/// Most filters of a set.
const MAX_FILTERS: usize = 1024;
/// Most bytes of a name.
const MAX_NAME: usize = 64;
/// Names that a message lists.
const LISTED: usize = 20;

/// Filters by name, for expressions of the form `{"named": NAME}`.
#[derive(Clone, Debug, Default)]
pub struct FilterSet {
    filters: BTreeMap<Arc<str>, Arc<Filter>>,
}

impl FilterSet {
    /// Parses an object of names and expressions. A named filter does not refer to others.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path (`filters.kids.all[0]`): an expression that [`Filter::parse`] refuses, more than 1,024 filters, a
    /// name that is empty, longer than 64 bytes, or holds anything but letters, digits, `_`, `-` and `.`.
    pub fn parse(filters: &Map<String, Value>, limits: &FilterLimits) -> Result<FilterSet> {
        if filters.len() > MAX_FILTERS {
            let message = format!("{} filters, at most {MAX_FILTERS} are allowed", filters.len());
            return Err(Error::invalid("filters", message));
        }
        let none = FilterSet::default();
        let parse = |(name, value): (&String, &Value)| {
            check_name(name)?;
            let filter = Filter::parse_at(&format!("filters.{name}"), value, limits, &none)?;
            Ok((name.as_str().into(), Arc::new(filter)))
        };
        Ok(FilterSet { filters: filters.iter().map(parse).collect::<Result<_>>()? })
    }

    /// Parses an expression as [`Filter::parse`] does, with the filters of this set by their names.
    ///
    /// # Errors
    /// As [`Filter::parse`]; an unknown name is answered with the known ones. What a name stands for counts against `limits`.
    pub fn parse_filter(&self, value: &Value, limits: &FilterLimits) -> Result<Filter> {
        Filter::parse_at("filter", value, limits, self)
    }

    /// The filter of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Filter>> {
        self.filters.get(name)
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.filters.keys().map(|name| &**name)
    }

    /// How many filters there are.
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there are no filters.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Checks every filter against all types of a catalog, so that a mistake shows when a server starts and not at the first request.
    ///
    /// # Errors
    /// As [`Filter::check`], with a path that begins with the name (`filters.kids.all[0].ge`).
    pub fn check(&self, catalog: &Catalog) -> Result<()> {
        let types: Vec<TypeId> = (0..catalog.types().len()).map(|t| TypeId(t as u16)).collect();
        self.filters
            .iter()
            .try_for_each(|(name, filter)| filter.check_at(&format!("filters.{name}"), catalog, &types))
    }

    pub(super) fn entry(&self, name: &str) -> Option<(&Arc<str>, &Arc<Filter>)> {
        self.filters.get_key_value(name)
    }

    /// The known names, in a sentence.
    pub(super) fn listed(&self) -> String {
        if self.is_empty() {
            return "no filter has a name here".to_owned();
        }
        let names = self.names().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match self.len().saturating_sub(LISTED) {
            0 => format!("there are {names}"),
            more => format!("there are {names} and {more} more"),
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        let message = format!(
            "`{}` is no name for a filter: 1 to {MAX_NAME} bytes of letters, digits, `_`, `-` and `.`",
            excerpt(name)
        );
        return Err(Error::invalid("filters", message));
    }
    Ok(())
}
