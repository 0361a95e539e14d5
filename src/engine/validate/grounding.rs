//! What a request may name: its types, and what is alive in each.

use std::collections::BTreeMap;

use super::{Frontend, ItemsSearch, at_most};
use crate::catalog::{Alive, Filter, Found, View};
use crate::engine::request::Request;
use crate::error::{Error, Result};
use crate::ids::TypeId;

/// What a request may name.
pub(super) struct Grounding<'a> {
    pub view: &'a View,
    pub alive: Alive,
}

impl Grounding<'_> {
    /// Levels of the deepest of these types.
    pub fn levels(&self, alive: &Alive) -> usize {
        alive.types.iter().map(|(t, _)| self.view.levels(*t)).max().unwrap_or(1)
    }

    /// Levels of the deepest type of these searches.
    pub fn depth(&self, searches: &[ItemsSearch]) -> usize {
        searches.iter().map(|search| self.levels(&search.alive)).max().unwrap_or(1)
    }
}

impl Frontend {
    /// Types and what is alive in each.
    pub(super) fn grounding<'a>(
        &self,
        request: &Request,
        view: Option<&'a View>,
        filter: Option<&Filter>,
        dropped: &mut BTreeMap<&'static str, usize>,
    ) -> Result<Grounding<'a>> {
        let Some(view) = view.filter(|_| self.layout.is_some()) else {
            return Err(Error::invalid(
                "output",
                "items need a catalog and a SID layout, and the engine has none",
            ));
        };
        let mut types = match &request.item_types {
            None => (0..view.types().len()).map(|t| TypeId(t as u16)).collect(),
            Some(names) => {
                let find = |(i, name): (usize, &String)| {
                    view.type_id(name).ok_or_else(|| {
                        let known = view.types().join(", ");
                        Error::invalid(
                            format!("item_types[{i}]"),
                            format!("unknown item type `{name}`; the catalog has {known}"),
                        )
                    })
                };
                names.iter().enumerate().map(find).collect::<Result<Vec<_>>>()?
            }
        };
        types.sort_unstable();
        types.dedup();
        if types.is_empty() {
            return Err(Error::invalid("item_types", "the list is empty; at least 1 type is needed"));
        }
        let mut found = |field: &'static str, unknown: &'static str, ids: &Option<Vec<String>>| {
            let Some(ids) = ids else { return Ok(None) };
            at_most(field, ids.len(), self.limits.item_ids)?;
            let found = view.find_all(ids);
            if found.unknown > 0 {
                dropped.insert(unknown, found.unknown);
            }
            Ok::<Option<Found>, Error>(Some(found))
        };
        let allow = found("allow", "unknown_allow", &request.allow)?;
        let exclude = found("exclude", "unknown_exclude", &request.exclude)?;
        if let Some(filter) = filter {
            view.check_filter(filter, &types)?;
        }
        self.check_attributes(request, view, &types)?;
        let alive = view.alive(&types, filter, allow.as_ref(), exclude.as_ref());
        Ok(Grounding { view, alive })
    }

    /// Whether items of these types have the attributes that the request wants back.
    fn check_attributes(&self, request: &Request, view: &View, types: &[TypeId]) -> Result<()> {
        let names = request.return_attributes.as_deref().unwrap_or_default();
        at_most("return_attributes", names.len(), self.limits.list)?;
        let has = |name: &str| {
            let parts = std::iter::once(view.base()).chain(view.delta());
            parts.into_iter().any(|part| types.iter().any(|&t| part.column(t, name).is_some()))
        };
        let Some(i) = names.iter().position(|name| !has(name)) else { return Ok(()) };
        let types: Vec<String> = types.iter().map(|t| format!("`{}`", view.types()[t.index()])).collect();
        Err(Error::invalid(
            format!("return_attributes[{i}]"),
            format!("no item of {} has an attribute `{}`", types.join(", "), names[i]),
        ))
    }
}
