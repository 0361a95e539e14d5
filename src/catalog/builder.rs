//! Collecting items, and sorting them into a catalog.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value;

use super::columns::ColumnBuilder;
use super::intern::Interner;
use super::items::TypeItems;
use super::strings::{self, MAX_TEXT, Strings};
use super::{Catalog, ItemRecord, TypeIndex, TypeSpec};
use crate::error::{Error, Result};

/// Most attributes of a type: each costs a bit per item even where it is missing.
pub(super) const MAX_ATTRIBUTES: usize = 256;

/// Most items of a catalog.
pub(super) const MAX_ITEMS: usize = u32::MAX as usize - 1;

/// What is known of a type's items before they are sorted, by row.
struct TypeRows {
    name: String,
    codebooks: Vec<usize>,
    /// Number of each row's item, counted through all types in the order of arrival.
    numbers: Vec<u32>,
    tuples: Vec<u16>,
    popularity: Vec<f64>,
    titles: ColumnBuilder,
    attributes: BTreeMap<String, ColumnBuilder>,
}

/// Collects items and sorts them into a [`Catalog`].
pub struct CatalogBuilder {
    types: Vec<TypeRows>,
    ids: Interner,
}

impl CatalogBuilder {
    /// For the types of a layout (names and codebook sizes; how tokens are spelled does not matter here).
    pub fn new(types: &[TypeSpec]) -> CatalogBuilder {
        let rows = |spec: &TypeSpec| TypeRows {
            name: spec.name.clone(),
            codebooks: spec.levels.clone(),
            numbers: Vec::new(),
            tuples: Vec::new(),
            popularity: Vec::new(),
            titles: ColumnBuilder::like(&Value::String(String::new())),
            attributes: BTreeMap::new(),
        };
        CatalogBuilder { types: types.iter().map(rows).collect(), ids: Interner::default() }
    }

    /// Items so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no items yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an item.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the field: an id that is empty or known already, an unknown type, a SID of the wrong length, a code
    /// outside of its codebook, a popularity that is not finite, a text above 1 MiB, more than 256 attributes of a type, a value of another
    /// kind than those that items of the type had before (integers and floats go together, and become floats).
    /// The builder is then as it was.
    pub fn push(&mut self, item: ItemRecord) -> Result<()> {
        let at = self.check(&item)?;
        let number = self.ids.intern(item.id.as_bytes());
        let rows = &mut self.types[at];
        let row = rows.numbers.len() as u32;
        rows.numbers.push(number);
        rows.tuples.extend_from_slice(&item.sid);
        // Adding zero turns -0 into 0, which must not sort below it.
        rows.popularity.push(item.popularity + 0.0);
        if let Some(title) = item.title {
            rows.titles.push(row, &Value::String(title));
        }
        for (name, value) in item.attributes.into_iter().filter(|(_, value)| !value.is_null()) {
            rows.attributes.entry(name).or_insert_with(|| ColumnBuilder::like(&value)).push(row, &value);
        }
        Ok(())
    }

    /// Checks an item and returns the place of its type.
    fn check(&self, item: &ItemRecord) -> Result<usize> {
        if item.id.is_empty() {
            return Err(Error::invalid("id", "an item's id must not be empty"));
        }
        check_length("id", &item.id)?;
        if self.ids.find(item.id.as_bytes()).is_some() {
            return Err(Error::invalid("id", format!("`{}` is the id of an item before", item.id)));
        }
        if self.ids.len() >= MAX_ITEMS {
            return Err(Error::invalid("id", format!("more than {MAX_ITEMS} items")));
        }
        let at = self.find_type(&item.item_type)?;
        let rows = &self.types[at];
        rows.check_sid(&item.sid)?;
        if !item.popularity.is_finite() {
            let message = format!("{} is not a finite number", item.popularity);
            return Err(Error::invalid("popularity", message));
        }
        check_length("title", item.title.as_deref().unwrap_or_default())?;
        let mut attributes = rows.attributes.len();
        for (name, value) in item.attributes.iter().filter(|(_, value)| !value.is_null()) {
            check_value(name, value)?;
            match rows.attributes.get(name) {
                Some(column) => column
                    .check(value)
                    .map_err(|message| Error::invalid(name, format!("{message} of type `{}`", rows.name)))?,
                None => attributes += 1,
            }
            if attributes > MAX_ATTRIBUTES {
                let message = format!("type `{}` has more than {MAX_ATTRIBUTES} attributes", rows.name);
                return Err(Error::invalid(name, message));
            }
        }
        Ok(at)
    }

    fn find_type(&self, name: &str) -> Result<usize> {
        if name.is_empty() && self.types.len() == 1 {
            return Ok(0);
        }
        self.types.iter().position(|rows| rows.name == name).ok_or_else(|| {
            let known =
                self.types.iter().map(|rows| format!("`{}`", rows.name)).collect::<Vec<_>>().join(", ");
            let found =
                if name.is_empty() { "no type given".to_owned() } else { format!("unknown type `{name}`") };
            Error::invalid("type", format!("{found}, the layout has {known}"))
        })
    }

    /// Sorts and indexes the items.
    ///
    /// # Errors
    /// If two types have one name, or the levels of a type are not 1 to 8 codebooks of 1 to 65,536 codes.
    pub fn build(self) -> Result<Catalog> {
        let names: Vec<String> = self.types.iter().map(|rows| rows.name.clone()).collect();
        if let Some(at) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
            return Err(Error::invalid(
                format!("types[{at}]"),
                format!("a second type named `{}`", names[at]),
            ));
        }
        // Where rows come from is told by numbers now; drop the table that finds them.
        let ids = self.ids.finish();
        let mut types = Vec::with_capacity(names.len());
        for (at, rows) in self.types.into_iter().enumerate() {
            types.push(rows.sort(&ids).map_err(|error| match error {
                Error::Invalid { field, message } => Error::invalid(format!("types[{at}].{field}"), message),
                other => other,
            })?);
        }
        drop(ids);
        Ok(Catalog::seal(names, types))
    }
}

impl TypeRows {
    fn check_sid(&self, sid: &[u16]) -> Result<()> {
        if sid.len() != self.codebooks.len() {
            let (name, levels) = (&self.name, self.codebooks.len());
            let message = format!("{} codes, but type `{name}` has {levels} levels", sid.len());
            return Err(Error::invalid("sid", message));
        }
        for (level, (&code, &codes)) in sid.iter().zip(&self.codebooks).enumerate() {
            if usize::from(code) >= codes {
                let message =
                    format!("code {code}, but level {level} of type `{}` has {codes} codes", self.name);
                return Err(Error::invalid(format!("sid[{level}]"), message));
            }
        }
        Ok(())
    }

    fn sort(self, ids: &Strings) -> Result<TypeItems> {
        let id = |row: u32| ids.get_bytes(self.numbers[row as usize] as usize);
        let before = by_popularity(|row| self.popularity[row as usize], id);
        let (index, order) = TypeIndex::build(&self.codebooks, &self.tuples, before)?;
        drop(self.tuples);
        let id_at = |rank: usize| id(order[rank]);
        let (text, ends) =
            strings::gather(order.len(), |at| id_at(at).len(), |at, to| to.copy_from_slice(id_at(at)));
        let ids = Strings::from_parts(text, ends);
        let popularity = order.iter().map(|&row| self.popularity[row as usize]).collect();
        drop((self.numbers, self.popularity));
        let finish = |(name, column): (String, ColumnBuilder)| Some((name, column.finish(&order)?));
        Ok(TypeItems {
            index,
            ids,
            title: self.titles.finish(&order),
            popularity,
            attributes: self.attributes.into_iter().filter_map(finish).collect(),
        })
    }
}

/// The order of items that share a SID: the most popular first, then by id, bytewise.
pub(super) fn by_popularity<'a>(
    popularity: impl Fn(u32) -> f64,
    id: impl Fn(u32) -> &'a [u8],
) -> impl Fn(u32, u32) -> Ordering {
    move |a, b| popularity(b).total_cmp(&popularity(a)).then_with(|| id(a).cmp(id(b)))
}

fn check_length(field: &str, text: &str) -> Result<()> {
    if text.len() > MAX_TEXT {
        return Err(Error::invalid(field, format!("{} bytes, at most {MAX_TEXT}", text.len())));
    }
    Ok(())
}

/// Checks that whatever column a value may end in can hold it: as a string, or as JSON text.
fn check_value(name: &str, value: &Value) -> Result<()> {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        _ => check_length(name, &value.to_string()),
    }
}
