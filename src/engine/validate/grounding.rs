//! What a request may name: its types, and what is alive in each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Frontend, ItemsSearch, at_most};
use crate::catalog::{Catalog, Mask};
use crate::engine::request::Request;
use crate::error::{Error, Result};
use crate::ids::{Rank, TypeId};

/// What a request may name.
pub(super) struct Grounding<'a> {
    pub catalog: &'a Arc<Catalog>,
    pub types: Vec<(TypeId, Arc<Mask>)>,
}

impl Grounding<'_> {
    pub fn depth(&self, searches: &[ItemsSearch]) -> usize {
        let types = searches.iter().flat_map(|search| &search.types);
        types.map(|(t, _)| self.catalog.index(*t).levels()).max().unwrap_or(1)
    }
}

impl Frontend {
    /// Types and what is alive in each.
    pub(super) fn grounding<'a>(
        &self,
        request: &Request,
        catalog: Option<&'a Arc<Catalog>>,
        dropped: &mut BTreeMap<&'static str, usize>,
    ) -> Result<Grounding<'a>> {
        let Some(catalog) = catalog.filter(|_| self.layout.is_some()) else {
            return Err(Error::invalid(
                "output",
                "items need a catalog and a SID layout, and the engine has none",
            ));
        };
        let mut types = match &request.item_types {
            None => (0..catalog.types().len()).map(|t| TypeId(t as u16)).collect(),
            Some(names) => {
                let find = |(i, name): (usize, &String)| {
                    catalog.type_id(name).ok_or_else(|| {
                        let known = catalog.types().join(", ");
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
        let mut ranks_of = |field: &'static str,
                            ids: &Option<Vec<String>>|
         -> Result<Option<Vec<Vec<Rank>>>> {
            let Some(ids) = ids else { return Ok(None) };
            at_most(field, ids.len(), self.limits.item_ids)?;
            let mut ranks = vec![Vec::new(); catalog.types().len()];
            let mut unknown = 0;
            for id in ids {
                match catalog.find(id) {
                    Some((item_type, rank)) => ranks[item_type.index()].push(rank),
                    None => unknown += 1,
                }
            }
            if unknown > 0 {
                dropped.insert(if field == "allow" { "unknown_allow" } else { "unknown_exclude" }, unknown);
            }
            Ok(Some(ranks))
        };
        let allow = ranks_of("allow", &request.allow)?;
        let exclude = ranks_of("exclude", &request.exclude)?;
        let mask = |item_type: TypeId| {
            let index = catalog.index(item_type);
            let mask = match &allow {
                Some(ranks) => Mask::allow(index, &ranks[item_type.index()]),
                None => Mask::all(index),
            };
            match &exclude {
                Some(ranks) => mask.excluding(index, &ranks[item_type.index()]),
                None => mask,
            }
        };
        let types = types.into_iter().map(|t| (t, Arc::new(mask(t)))).collect();
        Ok(Grounding { catalog, types })
    }
}
