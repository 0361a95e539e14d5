//! Recognising a layout by the names of tokens.
//!
//! Only names that the spelling itself would write are taken (`<book_0_7>`, not `<book_0_07>`), so that what is detected
//! can be resolved. Names with gaps are an error rather than no layout: a model with half its codes is broken, and serving it as
//! a model without items would hide that.

use std::collections::BTreeMap;

use super::layout::{LayoutSpec, TypeSpec, check_levels};
use crate::error::{Error, Result};
use crate::ids::TokenId;

const OPENERS: [&str; 2] = ["<|sid_begin|>", "<|sid_start|>"];
const CLOSER: &str = "<|sid_end|>";

/// A family of token names; the order is that of preference in messages only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spelling {
    /// `<TYPE_LEVEL_CODE>` of one type.
    Named(String),
    /// `<s_a_0>`.
    PrefixedLetters,
    /// `<a_0>`.
    Letters,
}

impl Spelling {
    fn pattern(&self) -> String {
        match self {
            Spelling::Named(name) => format!("<{name}_{{level}}_{{code}}>"),
            Spelling::PrefixedLetters => "<s_{letter}_{code}>".into(),
            Spelling::Letters => "<{letter}_{code}>".into(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Spelling::Named(name) => name,
            _ => "item",
        }
    }
}

/// Per level the number of codes and the largest; tokens are distinct, so the two tell whether there are gaps.
#[derive(Default)]
struct Found {
    levels: BTreeMap<u32, (u64, u64)>,
    first_token: Option<TokenId>,
}

/// See [`super::Layout::detect`].
pub(super) fn detect<'a>(tokens: impl Iterator<Item = (&'a str, TokenId)>) -> Result<Option<LayoutSpec>> {
    let mut found: BTreeMap<Spelling, Found> = BTreeMap::new();
    let mut openers = [false; 2];
    let mut closer = false;
    for (name, token) in tokens {
        closer |= name == CLOSER;
        for (present, opener) in openers.iter_mut().zip(OPENERS) {
            *present |= name == opener;
        }
        if let Some((spelling, level, code)) = parse(name) {
            let of_type = found.entry(spelling).or_default();
            let (count, largest) = of_type.levels.entry(level).or_insert((0, 0));
            *count += 1;
            *largest = code.max(*largest);
            of_type.first_token = Some(of_type.first_token.map_or(token, |first| first.min(token)));
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let mut by_token: Vec<(Spelling, Found)> = found.into_iter().collect();
    by_token.sort_by_key(|(_, found)| found.first_token);
    if let Some((letters, _)) = by_token.iter().find(|(spelling, _)| !matches!(spelling, Spelling::Named(_)))
        && by_token.len() > 1
    {
        let other =
            by_token.iter().find(|(spelling, _)| spelling != letters).map(|(other, _)| other.pattern());
        let message = format!(
            "the vocabulary holds tokens `{}` and `{}`; say which are SIDs in a layout file",
            letters.pattern(),
            other.unwrap_or_default()
        );
        return Err(Error::Unsupported(message));
    }
    let open =
        OPENERS.iter().zip(openers).find(|(_, present)| *present).map(|(&opener, _)| opener.to_owned());
    let close = closer.then(|| CLOSER.to_owned());
    match (&open, &close) {
        (Some(open), None) => {
            Err(Error::Unsupported(format!("the vocabulary holds `{open}` but not `{CLOSER}`")))
        }
        (None, Some(_)) => {
            Err(Error::Unsupported(format!("the vocabulary holds `{CLOSER}` but not `{}`", OPENERS[0])))
        }
        _ => {
            let types = by_token.iter().map(|(spelling, found)| type_spec(spelling, found));
            Ok(Some(LayoutSpec { open, close, types: types.collect::<Result<_>>()? }))
        }
    }
}

fn type_spec(spelling: &Spelling, found: &Found) -> Result<TypeSpec> {
    let pattern = spelling.pattern();
    let mut levels = Vec::new();
    for (expected, (&level, &(count, largest))) in found.levels.iter().enumerate() {
        if level as usize != expected {
            let message = format!("tokens `{pattern}`: level {level} is there, level {expected} is not");
            return Err(Error::Unsupported(message));
        }
        if count != largest + 1 {
            let message = format!(
                "tokens `{pattern}`: level {level} has {count} codes, but the largest is {largest}; codes have no gaps"
            );
            return Err(Error::Unsupported(message));
        }
        levels.push(count as usize);
    }
    check_levels(&format!("tokens `{pattern}`"), &levels)?;
    Ok(TypeSpec { name: spelling.name().to_owned(), levels, token: pattern })
}

/// Spelling, level and code of a token's name.
fn parse(token: &str) -> Option<(Spelling, u32, u64)> {
    let body = token.strip_prefix('<')?.strip_suffix('>')?;
    let (rest, code) = body.rsplit_once('_')?;
    let code = decimal(code)?;
    if let Some(level) = letter(rest) {
        return Some((Spelling::Letters, level, code));
    }
    let (name, level) = rest.rsplit_once('_')?;
    if let Some(level) = letter(level).filter(|_| name == "s") {
        return Some((Spelling::PrefixedLetters, level, code));
    }
    let named = !name.is_empty() && !name.contains(['<', '>', '|', '{', '}']);
    let level = u32::try_from(decimal(level)?).ok()?;
    named.then(|| (Spelling::Named(name.to_owned()), level, code))
}

fn letter(text: &str) -> Option<u32> {
    match text.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(u32::from(letter - b'a')),
        _ => None,
    }
}

/// A number as it is normally written: digits without leading zeros, few enough for the arithmetic here.
fn decimal(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.len() <= 9);
    (plain && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect_in(tokens: &[&str]) -> Result<Option<LayoutSpec>> {
        detect(tokens.iter().zip(100..).map(|(&token, id)| (token, TokenId(id))))
    }

    #[test]
    fn layouts_are_detected_by_their_names() {
        let pattern = |tokens: &[&str]| {
            let spec = detect_in(tokens).unwrap()?;
            Some(spec.types.into_iter().map(|t| (t.name, t.levels, t.token)).collect::<Vec<_>>())
        };
        let one = |name: &str, levels: &[usize], token: &str| {
            Some(vec![(name.to_owned(), levels.to_vec(), token.to_owned())])
        };
        assert_eq!(
            pattern(&["a", "<|im_start|>", "<0x0A>", "<extra_id_0>", "<_0_0>", "<|sid_begin|>"]),
            None
        );
        assert_eq!(
            pattern(&["<book_0_0>", "<book_0_1>", "<book_1_0>"]),
            one("book", &[2, 1], "<book_{level}_{code}>")
        );
        assert_eq!(
            pattern(&["<tv_show_0_0>", "<tv_show_0_00>"]),
            one("tv_show", &[1], "<tv_show_{level}_{code}>")
        );
        assert_eq!(pattern(&["<s_a_0>", "<s_b_0>", "<s_b_1>"]), one("item", &[1, 2], "<s_{letter}_{code}>"));
        assert_eq!(pattern(&["<a_0>", "<b_0>", "<c_0>"]), one("item", &[1, 1, 1], "<{letter}_{code}>"));
        let order = pattern(&["<z_0_0>", "<b_0_0>"]).unwrap();
        assert_eq!(
            (order[0].0.as_str(), order[1].0.as_str()),
            ("z", "b"),
            "types in the order of their tokens"
        );
        for (opener, tokens) in [("<|sid_begin|>", 3), ("<|sid_start|>", 3), ("", 1)] {
            let names = ["<a_0>", "<|sid_end|>", opener];
            let spec = detect_in(&names[..tokens]).unwrap().unwrap();
            assert_eq!(spec.open.as_deref().unwrap_or_default(), opener);
            assert_eq!(spec.close.is_some(), tokens == 3);
        }
        let errors: [(&[&str], &str); 7] = [
            (&["<b_0_0>", "<b_0_2>"], "level 0 has 2 codes, but the largest is 2"),
            (&["<b_0_1>"], "level 0 has 1 codes, but the largest is 1"),
            (&["<b_0_0>", "<b_2_0>"], "level 2 is there, level 1 is not"),
            (&["<b_0>"], "level 1 is there, level 0 is not"),
            (&["<a_0>", "<book_0_0>"], "tokens `<{letter}_{code}>` and `<book_{level}_{code}>`"),
            (&["<a_0>", "<|sid_begin|>"], "holds `<|sid_begin|>` but not `<|sid_end|>`"),
            (&["<a_0>", "<|sid_end|>"], "holds `<|sid_end|>` but not `<|sid_begin|>`"),
        ];
        for (tokens, expected) in errors {
            let message = detect_in(tokens).unwrap_err().to_string();
            assert!(message.contains(expected), "{tokens:?}: {message}");
        }
    }
}
