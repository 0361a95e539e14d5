//! A comparison made ready for a column: numbers become closed ranges, strings numbers of a dictionary.

use std::collections::HashSet;

use crate::catalog::predicate::{Number, Operand, Order, Test};
use crate::catalog::{Bitmap, ColumnValues, Labels, Strings};

/// What to do with the values of a column.
pub(super) enum Scan<'a> {
    /// Any value will do.
    Present,
    /// Those equal to the boolean.
    Bits(&'a Bitmap, bool),
    /// Both ends included.
    Ints(&'a [i64], (i64, i64)),
    IntSet(&'a [i64], IntSet),
    /// Both ends included.
    Floats(&'a [f64], (f64, f64)),
    /// Ascending.
    FloatSet(&'a [f64], Vec<f64>),
    Codes(&'a [u32], Marks),
    Texts(&'a Strings, Texts<'a>),
    Labels(&'a Labels, Marks),
}

impl<'a> Scan<'a> {
    /// Prepares a comparison; `None` if no value can pass, or if it does not compare such values at all.
    pub fn new(test: &'a Test, values: ColumnValues<'a>) -> Option<Scan<'a>> {
        match (values, test) {
            (ColumnValues::Bool(bits), Test::Eq(Operand::Bool(wanted))) => Some(Scan::Bits(bits, *wanted)),
            (ColumnValues::Bool(bits), Test::In(wanted)) => {
                let wants = |value| wanted.contains(&Operand::Bool(value));
                match (wants(false), wants(true)) {
                    (true, true) => Some(Scan::Present),
                    (false, false) => None,
                    (_, wanted) => Some(Scan::Bits(bits, wanted)),
                }
            }
            (ColumnValues::Int(values), Test::Order(order, bound)) => {
                Some(Scan::Ints(values, int_range(*order, *bound)?))
            }
            (ColumnValues::Float(values), Test::Order(order, bound)) => {
                Some(Scan::Floats(values, float_range(*order, *bound)))
            }
            (ColumnValues::Int(values), Test::Eq(_) | Test::In(_)) => {
                let set = IntSet::new(operands(test).iter().filter_map(int_value).collect())?;
                match set.range() {
                    Some(range) => Some(Scan::Ints(values, range)),
                    None => Some(Scan::IntSet(values, set)),
                }
            }
            (ColumnValues::Float(values), Test::Eq(_) | Test::In(_)) => {
                let mut set: Vec<f64> = operands(test).iter().filter_map(float_value).collect();
                set.sort_unstable_by(f64::total_cmp);
                match &set[..] {
                    [] => None,
                    [one] => Some(Scan::Floats(values, (*one, *one))),
                    _ => Some(Scan::FloatSet(values, set)),
                }
            }
            (ColumnValues::Category { names, codes }, Test::Eq(_) | Test::In(_)) => {
                let numbers = texts(test).filter_map(|text| names.binary_search(text));
                Some(Scan::Codes(codes, Marks::new(numbers.map(|number| number as u32).collect())?))
            }
            (ColumnValues::Text(values), Test::Eq(_) | Test::In(_)) => {
                Some(Scan::Texts(values, Texts::new(texts(test).map(str::as_bytes).collect())?))
            }
            (ColumnValues::Labels(labels), Test::Has(label)) => {
                let number = labels.names().binary_search(label)? as u32;
                Some(Scan::Labels(labels, Marks::new(vec![number])?))
            }
            _ => None,
        }
    }
}

fn operands(test: &Test) -> &[Operand] {
    match test {
        Test::Eq(value) => std::slice::from_ref(value),
        Test::In(values) => values,
        Test::Has(_) | Test::Order(..) => &[],
    }
}

fn texts(test: &Test) -> impl Iterator<Item = &str> {
    operands(test).iter().filter_map(|value| match value {
        Operand::Text(text) => Some(text.as_str()),
        _ => None,
    })
}

/// The integer that is equal to a value.
fn int_value(value: &Operand) -> Option<i64> {
    match value {
        Operand::Number(Number::Int(value)) => Some(*value),
        _ => None,
    }
}

/// The float that is equal to a value.
fn float_value(value: &Operand) -> Option<f64> {
    match value {
        Operand::Number(Number::Float(value)) => Some(*value),
        Operand::Number(Number::Int(value)) => {
            let near = *value as f64;
            (near as i128 == i128::from(*value)).then_some(near)
        }
        _ => None,
    }
}

/// The integers of an order comparison.
fn int_range(order: Order, bound: Number) -> Option<(i64, i64)> {
    match (order, bound) {
        (Order::Lt, Number::Int(bound)) => Some((i64::MIN, bound.checked_sub(1)?)),
        (Order::Le, Number::Int(bound)) => Some((i64::MIN, bound)),
        (Order::Gt, Number::Int(bound)) => Some((bound.checked_add(1)?, i64::MAX)),
        (Order::Ge, Number::Int(bound)) => Some((bound, i64::MAX)),
        // A bound that is a float lies between two integers, or beyond all of them; the cast stops at the ends.
        (Order::Lt | Order::Le, Number::Float(bound)) => {
            (bound >= i64::MIN as f64).then(|| (i64::MIN, bound.floor() as i64))
        }
        (Order::Gt | Order::Ge, Number::Float(bound)) => {
            (bound < i64::MAX as f64).then(|| (bound.ceil() as i64, i64::MAX))
        }
    }
}

/// The floats of an order comparison.
fn float_range(order: Order, bound: Number) -> (f64, f64) {
    // The floats next to the bound, the same twice if it is one itself.
    let (below, above) = match bound {
        Number::Float(bound) => (bound, bound),
        Number::Int(bound) => {
            let near = bound as f64;
            match (near as i128).cmp(&i128::from(bound)) {
                std::cmp::Ordering::Equal => (near, near),
                std::cmp::Ordering::Less => (near, near.next_up()),
                std::cmp::Ordering::Greater => (near.next_down(), near),
            }
        }
    };
    let between = below < above;
    match order {
        Order::Lt => (f64::NEG_INFINITY, if between { below } else { below.next_down() }),
        Order::Le => (f64::NEG_INFINITY, below),
        Order::Gt => (if between { above } else { above.next_up() }, f64::INFINITY),
        Order::Ge => (above, f64::INFINITY),
    }
}

/// A set of integers, not empty.
pub(super) struct IntSet {
    /// Ascending.
    values: Vec<i64>,
    /// A bit per integer from the first value on, if those are few.
    marks: Vec<u64>,
}

impl IntSet {
    /// Spans up to this many integers are looked up by bit.
    const MARKED: u64 = 1 << 16;

    fn new(mut values: Vec<i64>) -> Option<IntSet> {
        values.sort_unstable();
        values.dedup();
        let (first, last) = (*values.first()?, *values.last()?);
        let span = last.wrapping_sub(first) as u64;
        let mut marks = Vec::new();
        if span < IntSet::MARKED {
            marks.resize(span as usize / 64 + 1, 0);
            for value in &values {
                let at = value.wrapping_sub(first) as usize;
                marks[at / 64] |= 1 << (at % 64);
            }
        }
        Some(IntSet { values, marks })
    }

    /// The ends, if there are no gaps between them.
    fn range(&self) -> Option<(i64, i64)> {
        let (first, last) = (self.values[0], self.values[self.values.len() - 1]);
        (last.wrapping_sub(first) as u64 == self.values.len() as u64 - 1).then_some((first, last))
    }

    /// The lowest integer, and a bit per integer from there on, if those are few.
    pub fn marks(&self) -> Option<(i64, &[u64])> {
        (!self.marks.is_empty()).then_some((self.values[0], &self.marks))
    }

    #[inline]
    pub fn contains(&self, value: i64) -> bool {
        self.values.binary_search(&value).is_ok()
    }
}

/// A set of numbers of a dictionary, not empty.
pub(super) struct Marks {
    /// Ascending.
    numbers: Vec<u32>,
    pub form: MarksForm,
}

/// The cheapest way to ask for a number.
pub(super) enum MarksForm {
    /// Both ends included.
    Range(u32, u32),
    /// Bits of the numbers below 64.
    Few(u64),
    /// A bit per number.
    Many(Vec<u64>),
}

impl Marks {
    fn new(mut numbers: Vec<u32>) -> Option<Marks> {
        numbers.sort_unstable();
        numbers.dedup();
        let (first, last) = (*numbers.first()?, *numbers.last()?);
        let mut words = vec![0u64; last as usize / 64 + 1];
        numbers.iter().for_each(|&number| words[number as usize / 64] |= 1 << (number % 64));
        let form = match &words[..] {
            _ if (last - first) as usize == numbers.len() - 1 => MarksForm::Range(first, last),
            [few] => MarksForm::Few(*few),
            _ => MarksForm::Many(words),
        };
        Some(Marks { numbers, form })
    }

    /// Adds the numbers of another set of the same dictionary.
    pub fn unite(&mut self, other: &Marks) {
        let numbers = self.numbers.iter().chain(&other.numbers).copied().collect();
        if let Some(united) = Marks::new(numbers) {
            *self = united;
        }
    }
}

/// A set of strings, not empty.
pub(super) struct Texts<'a> {
    texts: HashSet<&'a [u8]>,
    /// A bit per length: most strings differ by that already.
    lengths: Vec<u64>,
}

impl<'a> Texts<'a> {
    fn new(texts: HashSet<&'a [u8]>) -> Option<Texts<'a>> {
        let longest = texts.iter().map(|text| text.len()).max()?;
        let mut lengths = vec![0; longest / 64 + 1];
        texts.iter().for_each(|text| lengths[text.len() / 64] |= 1 << (text.len() % 64));
        Some(Texts { texts, lengths })
    }

    #[inline]
    pub fn contains(&self, text: &[u8]) -> bool {
        let fits = self.lengths.get(text.len() / 64).is_some_and(|word| word >> (text.len() % 64) & 1 == 1);
        fits && self.texts.contains(text)
    }
}
