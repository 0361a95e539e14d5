//! Whether a filter can be asked of a catalog: its attributes exist, and hold values that can be compared in this way.

use super::{Expression, Filter, Path};
use crate::catalog::predicate::{Operand, Test};
use crate::catalog::{Catalog, Column, ColumnValues, Predicate};
use crate::error::{Error, Result};
use crate::ids::TypeId;

impl Filter {
    /// Checks that the items of `types` can be filtered in this way.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the path of the comparison: an attribute that none of the types has, or one whose values in one of the types are
    /// of a kind that the operator does not compare (`lt` on labels, `has` on integers, anything on JSON objects). `has` on
    /// strings is no error and never holds.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn check(&self, catalog: &Catalog, types: &[TypeId]) -> Result<()> {
        self.check_at("filter", catalog, types)
    }

    /// The same, with paths that start with `root`.
    pub(super) fn check_at(&self, root: &str, catalog: &Catalog, types: &[TypeId]) -> Result<()> {
        self.expression.check(Path::Root(root), catalog, types)
    }
}

impl Expression {
    fn check(&self, path: Path<'_>, catalog: &Catalog, types: &[TypeId]) -> Result<()> {
        let list = |key, parts: &[Expression]| {
            let path = Path::Key(&path, key);
            let mut parts = parts.iter().enumerate();
            parts.try_for_each(|(at, part)| part.check(Path::Item(&path, at), catalog, types))
        };
        match self {
            Expression::All(parts) => list("all", parts),
            Expression::Any(parts) => list("any", parts),
            Expression::Not(inner) => inner.check(Path::Key(&path, "not"), catalog, types),
            Expression::Compare(predicate) => compare(predicate, path, catalog, types),
            Expression::Named(name, filter) => {
                let path = Path::Key(&path, "named");
                filter.expression.check(Path::Key(&path, name), catalog, types)
            }
        }
    }
}

fn compare(predicate: &Predicate, path: Path<'_>, catalog: &Catalog, types: &[TypeId]) -> Result<()> {
    let name = predicate.attribute();
    let mut found = false;
    for &t in types {
        let Some(column) = catalog.column(t, name) else { continue };
        found = true;
        if let Some(misfit) = misfit(predicate.test(), column) {
            let path = Path::Key(&path, predicate.test().operator()).to_string();
            let message = format!("attribute `{name}` of type `{}` {misfit}", catalog.types()[t.index()]);
            return Err(Error::invalid(path, message));
        }
    }
    if found {
        return Ok(());
    }
    let types = types.iter().map(|t| format!("`{}`", catalog.types()[t.index()]));
    let types = types.collect::<Vec<_>>().join(", ");
    let message = match catalog.has_attribute(name) {
        true => format!("no item of {types} has an attribute `{name}`"),
        false => format!("no item of the catalog has an attribute `{name}`"),
    };
    Err(Error::invalid(Path::Key(&path, "attr").to_string(), message))
}

/// Why values of this column cannot be compared in this way, if they cannot: "holds integers, which `has` does not compare".
pub(in crate::catalog) fn misfit(test: &Test, column: &Column) -> Option<String> {
    let values = column.values();
    let operator = test.operator();
    let stranger = |wanted: &Operand| match (wanted, &values) {
        (Operand::Bool(_), ColumnValues::Bool(_))
        | (Operand::Number(_), ColumnValues::Int(_) | ColumnValues::Float(_))
        | (Operand::Text(_), ColumnValues::Text(_) | ColumnValues::Category { .. }) => None,
        _ => Some(format!(
            "holds {}, which `{operator}` does not compare with {}",
            values.kind(),
            wanted.kind()
        )),
    };
    let refused =
        |fits: bool| (!fits).then(|| format!("holds {}, which `{operator}` does not compare", values.kind()));
    match (test, &values) {
        (_, ColumnValues::Json(_)) => Some(format!("holds {}, which cannot be filtered on", values.kind())),
        (Test::Eq(_) | Test::In(_), ColumnValues::Labels(_)) => {
            Some(format!("holds {}, which `{operator}` does not compare; `has` does", values.kind()))
        }
        (Test::Eq(wanted), _) => stranger(wanted),
        (Test::In(wanted), _) => wanted.iter().find_map(stranger),
        (Test::Has(_), values) => refused(matches!(
            values,
            ColumnValues::Labels(_) | ColumnValues::Text(_) | ColumnValues::Category { .. }
        )),
        (Test::Order(..), values) => refused(matches!(values, ColumnValues::Int(_) | ColumnValues::Float(_))),
    }
}
