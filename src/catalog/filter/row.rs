//! A filter on one item's values.

use super::{Expression, Filter};
use crate::catalog::Item;

impl Filter {
    /// Whether an item passes, by its attribute values alone.
    ///
    /// This is what the gate asks of an item that is about to leave the engine; it knows nothing of [`Filter::compile`].
    pub fn matches(&self, item: Item<'_>) -> bool {
        self.expression.holds(item)
    }
}

impl Expression {
    fn holds(&self, item: Item<'_>) -> bool {
        match self {
            Expression::All(parts) => parts.iter().all(|part| part.holds(item)),
            Expression::Any(parts) => parts.iter().any(|part| part.holds(item)),
            Expression::Not(inner) => !inner.holds(item),
            Expression::Compare(predicate) => predicate.matches(item),
            Expression::Named(_, filter) => filter.matches(item),
        }
    }
}
