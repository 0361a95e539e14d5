//! One text for all ways to write a filter.

use super::Expression;

impl Expression {
    /// This expression as a text that is the same for every order within `all`, `any` and `in`, with repetitions, nesting and
    /// names removed.
    pub fn canonical(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// What an expression comes to: without a name, a list around one expression, or two negations in a row.
    fn plain(&self) -> &Expression {
        let mut plain = self;
        loop {
            plain = match plain {
                Expression::Named(_, filter) => &filter.expression,
                Expression::All(list) | Expression::Any(list) if list.len() == 1 => &list[0],
                Expression::Not(inner) => match inner.plain() {
                    Expression::Not(twice) => twice,
                    _ => return plain,
                },
                _ => return plain,
            };
        }
    }

    fn write(&self, text: &mut String) {
        match self.plain() {
            Expression::Compare(predicate) => predicate.write(text),
            Expression::Not(inner) => {
                text.push_str("not(");
                inner.write(text);
                text.push(')');
            }
            list => {
                let all = matches!(list, Expression::All(_));
                let mut parts = Vec::new();
                list.collect(all, &mut parts);
                parts.sort_unstable();
                parts.dedup();
                match &parts[..] {
                    [one] => text.push_str(one),
                    parts => {
                        text.push_str(if all { "all(" } else { "any(" });
                        text.push_str(&parts.join("&"));
                        text.push(')');
                    }
                }
            }
        }
    }

    /// The parts of an `all` (or an `any`), those of the same within it included.
    fn collect(&self, all: bool, parts: &mut Vec<String>) {
        match self.plain() {
            Expression::All(list) if all => list.iter().for_each(|part| part.collect(all, parts)),
            Expression::Any(list) if !all => list.iter().for_each(|part| part.collect(all, parts)),
            other => parts.push(other.canonical()),
        }
    }
}
