//! How SIDs are spelled in a vocabulary.
//!
//! A [`LayoutSpec`] is what a person writes or a vocabulary shows: names, codebook sizes, token patterns. A [`Layout`] is the same
//! resolved to token ids. Ids of one codebook nearly always follow each other, so a resolved layout is a short list of runs, both for
//! code to token (an addition) and for token to code (a binary search); scattered ids fall back to lists.
//!
//! Token patterns hold `{code}` and, if there is more than one level, `{level}` (a number from 0) or `{letter}` (the level as
//! a letter from `a`). Where the vocabulary has no usable names, ids take the pattern's place:
//!
//! ```json
//! {"name": "book", "levels": [32, 32], "token": "<book_{level}_{code}>"}
//! {"name": "book", "levels": [32, 32], "token": [4096, 4128]}
//! {"name": "book", "levels": [2, 3], "token": [[900, 17], [31, 30, 44]]}
//! ```
//! The second form gives the id of code 0 of each level, the third every id.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MAX_CODES, MAX_LEVELS};
use crate::error::{Error, Result};
use crate::ids::{TokenId, TypeId};

/// A layout as its JSON file spells it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayoutSpec {
    /// Token that opens a span; given together with `close` or not at all.
    pub open: Option<String>,
    /// Token that closes a span.
    pub close: Option<String>,
    /// Types in type order.
    pub types: Vec<TypeSpec>,
}

/// A type of a layout.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TypeSpec {
    /// Its name.
    pub name: String,
    /// Codebook size per level.
    pub levels: Vec<usize>,
    /// Token pattern with `{level}` or `{letter}`, and `{code}`; or the JSON text of token ids, which a
    /// JSON file spells as an array (see the examples above).
    #[serde(deserialize_with = "read_token", serialize_with = "write_token")]
    pub token: String,
}

impl LayoutSpec {
    /// Reads a layout file.
    ///
    /// # Errors
    /// [`Error::File`] with line and column if the file cannot be read, is not such JSON, or has unknown fields.
    pub fn read(path: impl AsRef<Path>) -> Result<LayoutSpec> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::file(path, error.to_string()))
    }
}

/// The two shapes of `token` in JSON.
#[derive(Deserialize, Serialize)]
#[serde(untagged, expecting = "expected a token pattern, a list of first ids, or a list of lists of ids")]
enum TokenField<'a> {
    Pattern(Cow<'a, str>),
    First(Vec<u32>),
    Ids(Vec<Vec<u32>>),
}

fn read_token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match TokenField::deserialize(deserializer)? {
        TokenField::Pattern(pattern) => Ok(pattern.into_owned()),
        ids => serde_json::to_string(&ids).map_err(serde::de::Error::custom),
    }
}

fn write_token<S: Serializer>(token: &str, serializer: S) -> Result<S::Ok, S::Error> {
    parse_ids(token).unwrap_or(TokenField::Pattern(token.into())).serialize(serializer)
}

/// The ids that stand in a pattern's place, if they do.
fn parse_ids(token: &str) -> Option<TokenField<'static>> {
    if !token.starts_with('[') || token.contains("{code}") {
        return None;
    }
    let first = serde_json::from_str(token).map(TokenField::First);
    first.or_else(|_| serde_json::from_str(token).map(TokenField::Ids)).ok()
}

/// What a token of a layout stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The opener of a span.
    Open,
    /// The closer of a span.
    Close,
    /// A code.
    Code {
        /// Its type.
        item_type: TypeId,
        /// Its level, from 0.
        level: u8,
        /// The code.
        code: u16,
    },
}

/// A layout resolved against a vocabulary.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Opener of spans.
    pub open: Option<TokenId>,
    /// Closer of spans.
    pub close: Option<TokenId>,
    /// Types in type order.
    pub types: Vec<TypeLayout>,
    /// All tokens, by first token.
    runs: Vec<Run>,
}

/// The tokens of a type.
#[derive(Clone, Debug)]
pub struct TypeLayout {
    /// Name of the type.
    pub name: String,
    /// Tokens per level.
    pub levels: Vec<LevelTokens>,
}

/// The tokens of one level of one type.
#[derive(Clone, Debug)]
pub struct LevelTokens(Tokens);

#[derive(Clone, Debug)]
enum Tokens {
    Contiguous { first: u32, len: u32 },
    List(Arc<[u32]>),
}

impl LevelTokens {
    fn new(ids: Vec<u32>) -> LevelTokens {
        let contiguous = ids.windows(2).all(|pair| pair[0].checked_add(1) == Some(pair[1]));
        match ids.first() {
            Some(&first) if contiguous => LevelTokens(Tokens::Contiguous { first, len: ids.len() as u32 }),
            _ => LevelTokens(Tokens::List(ids.into())),
        }
    }

    /// Codes of the codebook.
    pub fn len(&self) -> usize {
        match &self.0 {
            Tokens::Contiguous { len, .. } => *len as usize,
            Tokens::List(ids) => ids.len(),
        }
    }

    /// Whether there are no codes; a resolved layout has no such level.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The token of a code.
    ///
    /// # Panics
    /// If the code is not below [`LevelTokens::len`].
    #[inline]
    pub fn token(&self, code: u16) -> TokenId {
        match &self.0 {
            Tokens::Contiguous { first, len } => {
                assert!(u32::from(code) < *len, "code {code} of {len}");
                TokenId(first + u32::from(code))
            }
            Tokens::List(ids) => TokenId(ids[usize::from(code)]),
        }
    }

    /// The token of code 0 if the tokens of all codes follow each other.
    pub fn contiguous(&self) -> Option<TokenId> {
        match &self.0 {
            Tokens::Contiguous { first, .. } => Some(TokenId(*first)),
            Tokens::List(_) => None,
        }
    }

    fn iter(&self) -> impl Iterator<Item = TokenId> + '_ {
        (0..self.len()).map(|code| self.token(code as u16))
    }
}

/// Tokens that follow each other and stand for codes that follow each other.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    len: u32,
    place: Place,
}

impl Run {
    fn at(&self, offset: u32) -> Place {
        match self.place {
            Place::Code { item_type, level, code } => {
                Place::Code { item_type, level, code: code + offset as u16 }
            }
            delimiter => delimiter,
        }
    }
}

impl Layout {
    /// Resolves a spec; `lookup` finds a token's id in the vocabulary, and knows nothing of ids given as numbers.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the field: an opener without closer, no types, a type without name or with another's, levels that are not
    /// 1 to 8 codebooks of 1 to 65,536 codes, a pattern without its placeholders, ids that do not match the levels, a token
    /// missing in the vocabulary, a token with two meanings.
    pub fn resolve(spec: &LayoutSpec, lookup: impl Fn(&str) -> Option<TokenId>) -> Result<Layout> {
        check_names(spec)?;
        let find = |field: String, token: &str| {
            lookup(token).ok_or_else(|| Error::invalid(field, format!("`{token}` is not in the vocabulary")))
        };
        let open = spec.open.as_deref().map(|token| find("open".into(), token)).transpose()?;
        let close = spec.close.as_deref().map(|token| find("close".into(), token)).transpose()?;
        let mut types = Vec::with_capacity(spec.types.len());
        for (at, of_type) in spec.types.iter().enumerate() {
            let field = format!("types[{at}]");
            check_levels(&field, &of_type.levels)?;
            let ids = resolve_ids(&field, of_type, &find)?;
            let levels = ids.into_iter().map(LevelTokens::new).collect();
            types.push(TypeLayout { name: of_type.name.clone(), levels });
        }
        let mut layout = Layout { open, close, types, runs: Vec::new() };
        layout.runs = layout.sorted_runs();
        for pair in layout.runs.windows(2) {
            if pair[0].first + (pair[0].len - 1) >= pair[1].first {
                let token = pair[1].first;
                let (a, b) =
                    (layout.describe(pair[0].at(token - pair[0].first)), layout.describe(pair[1].place));
                return Err(Error::invalid("types", format!("token {token} is both {a} and {b}")));
            }
        }
        Ok(layout)
    }

    /// Finds a layout in a vocabulary: `<TYPE_LEVEL_CODE>` with level and code from 0, or `<s_a_0> <s_b_1> …`, or
    /// `<a_0> <b_1> …` (one type named `item`, a letter per level); opener `<|sid_begin|>` or `<|sid_start|>`, closer
    /// `<|sid_end|>`. Types are in the order of their first tokens. `Ok(None)` if there are no such tokens.
    ///
    /// # Errors
    /// If levels or codes have gaps or exceed the bounds, two spellings are mixed, or an opener has no closer.
    pub fn detect<'a>(tokens: impl Iterator<Item = (&'a str, TokenId)>) -> Result<Option<LayoutSpec>> {
        super::detect::detect(tokens)
    }

    /// What a token stands for; `None` if it is none of the layout's.
    pub fn place(&self, token: TokenId) -> Option<Place> {
        let run = self.runs[..self.runs.partition_point(|run| run.first <= token.0)].last()?;
        let offset = token.0 - run.first;
        (offset < run.len).then(|| run.at(offset))
    }

    /// All tokens of the layout: opener, closer, codes.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> + '_ {
        let codes = self.types.iter().flat_map(|t| t.levels.iter().flat_map(LevelTokens::iter));
        self.open.into_iter().chain(self.close).chain(codes)
    }

    /// The span of an item: opener, codes, closer (without delimiters if the layout has none).
    ///
    /// # Panics
    /// If there is no such type, or a code lies outside of its codebook.
    pub fn span(&self, t: TypeId, codes: &[u16]) -> Vec<TokenId> {
        let levels = &self.types[t.index()].levels;
        debug_assert_eq!(levels.len(), codes.len(), "codes of type {t}");
        let codes = levels.iter().zip(codes).map(|(level, &code)| level.token(code));
        self.open.into_iter().chain(codes).chain(self.close).collect()
    }

    /// Specs (names, codebook sizes, token ids) for building a catalog.
    pub fn specs(&self) -> Vec<TypeSpec> {
        let spec = |t: &TypeLayout| {
            let first: Option<Vec<u32>> =
                t.levels.iter().map(|level| level.contiguous().map(|token| token.0)).collect();
            let ids = match first {
                Some(first) => TokenField::First(first),
                None => TokenField::Ids(
                    t.levels.iter().map(|l| l.iter().map(|token| token.0).collect()).collect(),
                ),
            };
            let token = serde_json::to_string(&ids).expect("numbers are JSON");
            TypeSpec { name: t.name.clone(), levels: t.levels.iter().map(LevelTokens::len).collect(), token }
        };
        self.types.iter().map(spec).collect()
    }

    /// The largest token of the layout.
    pub fn max_token(&self) -> TokenId {
        TokenId(self.runs.iter().map(|run| run.first + (run.len - 1)).max().unwrap_or(0))
    }

    fn sorted_runs(&self) -> Vec<Run> {
        let delimiters = [(self.open, Place::Open), (self.close, Place::Close)];
        let mut runs: Vec<Run> = delimiters
            .into_iter()
            .filter_map(|(token, place)| Some(Run { first: token?.0, len: 1, place }))
            .collect();
        for (t, of_type) in self.types.iter().enumerate() {
            for (level, tokens) in of_type.levels.iter().enumerate() {
                let place = |code| Place::Code { item_type: TypeId(t as u16), level: level as u8, code };
                match &tokens.0 {
                    Tokens::Contiguous { first, len } => {
                        runs.push(Run { first: *first, len: *len, place: place(0) })
                    }
                    Tokens::List(ids) => runs.extend(list_runs(ids, place)),
                }
            }
        }
        runs.sort_by_key(|run| run.first);
        runs
    }

    fn describe(&self, place: Place) -> String {
        match place {
            Place::Open => "the opener".into(),
            Place::Close => "the closer".into(),
            Place::Code { item_type, level, code } => {
                format!("code {code} of level {level} of type `{}`", self.types[item_type.index()].name)
            }
        }
    }
}

/// Cuts a list of ids into runs.
fn list_runs(ids: &[u32], place: impl Fn(u16) -> Place) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (code, &id) in ids.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.first.checked_add(run.len) == Some(id) => run.len += 1,
            _ => runs.push(Run { first: id, len: 1, place: place(code as u16) }),
        }
    }
    runs
}

fn check_names(spec: &LayoutSpec) -> Result<()> {
    match (&spec.open, &spec.close) {
        (Some(open), None) => {
            return Err(Error::invalid("close", format!("missing beside the opener `{open}`")));
        }
        (None, Some(close)) => {
            return Err(Error::invalid("open", format!("missing beside the closer `{close}`")));
        }
        _ => {}
    }
    if spec.types.is_empty() || spec.types.len() > usize::from(u16::MAX) {
        let message = format!("{} types, expected 1 to {}", spec.types.len(), u16::MAX);
        return Err(Error::invalid("types", message));
    }
    let mut names = BTreeSet::new();
    for (at, of_type) in spec.types.iter().enumerate() {
        let field = format!("types[{at}].name");
        if of_type.name.is_empty() {
            return Err(Error::invalid(field, "a type's name must not be empty"));
        }
        if !names.insert(&of_type.name) {
            return Err(Error::invalid(field, format!("a second type named `{}`", of_type.name)));
        }
    }
    Ok(())
}

/// Checks number and sizes of a type's levels.
pub(super) fn check_levels(field: &str, levels: &[usize]) -> Result<()> {
    if levels.is_empty() || levels.len() > MAX_LEVELS {
        let message = format!("{} levels, expected 1 to {MAX_LEVELS}", levels.len());
        return Err(Error::invalid(format!("{field}.levels"), message));
    }
    match levels.iter().position(|&codes| codes == 0 || codes > MAX_CODES) {
        None => Ok(()),
        Some(level) => {
            let message = format!("a codebook of {} codes, expected 1 to {MAX_CODES}", levels[level]);
            Err(Error::invalid(format!("{field}.levels[{level}]"), message))
        }
    }
}

/// The ids of a type, per level and code.
fn resolve_ids(
    field: &str,
    spec: &TypeSpec,
    find: &impl Fn(String, &str) -> Result<TokenId>,
) -> Result<Vec<Vec<u32>>> {
    let field = format!("{field}.token");
    let wrong = |message: String| Err(Error::invalid(&field, message));
    match parse_ids(&spec.token) {
        Some(TokenField::First(first)) => {
            if first.len() != spec.levels.len() {
                return wrong(format!("{} first ids for {} levels", first.len(), spec.levels.len()));
            }
            let mut ids = Vec::with_capacity(first.len());
            for (&first, &codes) in first.iter().zip(&spec.levels) {
                let Some(end) = first.checked_add(codes as u32) else {
                    return wrong(format!("{codes} ids from {first} on exceed 32 bits"));
                };
                ids.push((first..end).collect());
            }
            Ok(ids)
        }
        Some(TokenField::Ids(ids)) => {
            let found: Vec<usize> = ids.iter().map(Vec::len).collect();
            if found != spec.levels {
                return wrong(format!("{found:?} ids, expected {:?} as in `levels`", spec.levels));
            }
            Ok(ids)
        }
        _ => {
            let level_named = spec.token.contains("{level}") || spec.token.contains("{letter}");
            if !spec.token.contains("{code}") || (spec.levels.len() > 1 && !level_named) {
                let message = format!("`{}` lacks {{code}}, or {{level}} or {{letter}}", spec.token);
                return wrong(message);
            }
            let level_ids = |(level, &codes): (usize, &usize)| {
                let letter = char::from(b'a' + level as u8).to_string();
                let named = spec.token.replace("{level}", &level.to_string()).replace("{letter}", &letter);
                let id = |code: usize| find(field.clone(), &named.replace("{code}", &code.to_string()));
                (0..codes).map(|code| id(code).map(|token| token.0)).collect()
            };
            spec.levels.iter().enumerate().map(level_ids).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A vocabulary of these tokens, with ids from 100 on.
    fn vocabulary<'a>(tokens: &[&'a str]) -> BTreeMap<&'a str, TokenId> {
        tokens.iter().enumerate().map(|(at, &token)| (token, TokenId(100 + at as u32))).collect()
    }

    fn spec(text: &str) -> LayoutSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn layouts_resolve_to_tokens_and_back() {
        let tokens = vocabulary(&[
            "<open>", "<close>", "<x_0_0>", "<x_0_1>", "<x_1_0>", "<y_0_0>", "<x_1_1>", "<y_0_1>",
        ]);
        let spec = spec(
            r#"{"open": "<open>", "close": "<close>", "types": [
                {"name": "x", "levels": [2, 2], "token": "<x_{level}_{code}>"},
                {"name": "y", "levels": [2], "token": "<y_{level}_{code}>"},
                {"name": "p", "levels": [3, 1], "token": [500, 600]},
                {"name": "q", "levels": [1, 3], "token": [[9], [30, 31, 8]]}]}"#,
        );
        let layout = Layout::resolve(&spec, |token| tokens.get(token).copied()).unwrap();
        assert_eq!(layout.span(TypeId(0), &[1, 1]), [100, 103, 106, 101].map(TokenId));
        assert_eq!(layout.span(TypeId(3), &[0, 2]), [100, 9, 8, 101].map(TokenId));
        let contiguous = |t: usize, level: usize| layout.types[t].levels[level].contiguous();
        assert_eq!(contiguous(0, 0), Some(TokenId(102)));
        assert_eq!((contiguous(0, 1), contiguous(2, 0), contiguous(3, 1)), (None, Some(TokenId(500)), None));
        assert_eq!(layout.max_token(), TokenId(600));
        let mut seen = BTreeSet::new();
        for (t, of_type) in layout.types.iter().enumerate() {
            for (level, tokens) in of_type.levels.iter().enumerate() {
                for code in 0..tokens.len() as u16 {
                    let place = Place::Code { item_type: TypeId(t as u16), level: level as u8, code };
                    assert_eq!(layout.place(tokens.token(code)), Some(place));
                    seen.insert(tokens.token(code));
                }
            }
        }
        assert_eq!(layout.place(TokenId(100)), Some(Place::Open));
        assert_eq!(layout.place(TokenId(101)), Some(Place::Close));
        seen.extend([TokenId(100), TokenId(101)]);
        assert_eq!(layout.tokens().collect::<BTreeSet<_>>(), seen);
        for token in (0..700).map(TokenId).filter(|token| !seen.contains(token)) {
            assert_eq!(layout.place(token), None, "token {token}");
        }
        // The specs of a resolved layout need no vocabulary.
        let again = LayoutSpec { open: None, close: None, types: layout.specs() };
        let again = Layout::resolve(&again, |_| None).unwrap();
        assert_eq!(again.span(TypeId(0), &[1, 1]), [103, 106].map(TokenId));
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains("[[9],[30,31,8]]") && text.contains("[500,600]"), "{text}");
        assert_eq!(serde_json::from_str::<LayoutSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let tokens = vocabulary(&["<o>", "<c>", "<x_0_0>", "<x_0_1>"]);
        let x = r#"{"name": "x", "levels": [2], "token": "<x_{level}_{code}>"}"#;
        let table = [
            (r#"{"types": []}"#.to_owned(), "types: 0 types, expected 1 to 65535"),
            (format!(r#"{{"open": "<o>", "types": [{x}]}}"#), "close: missing beside the opener `<o>`"),
            (format!(r#"{{"close": "<c>", "types": [{x}]}}"#), "open: missing beside the closer `<c>`"),
            (
                format!(r#"{{"open": "<q>", "close": "<c>", "types": [{x}]}}"#),
                "open: `<q>` is not in the vocabulary",
            ),
            (
                format!(r#"{{"open": "<o>", "close": "<o>", "types": [{x}]}}"#),
                "token 100 is both the opener and the closer",
            ),
            (format!(r#"{{"open": "<x_0_1>", "close": "<c>", "types": [{x}]}}"#), "token 103 is both "),
            (format!(r#"{{"types": [{x}, {x}]}}"#), "types[1].name: a second type named `x`"),
            (
                format!(r#"{{"types": [{}]}}"#, x.replace("\"x\"", "\"\"")),
                "types[0].name: a type's name must not be empty",
            ),
            (
                format!(r#"{{"types": [{}]}}"#, x.replace("[2]", "[3]")),
                "types[0].token: `<x_0_2>` is not in the vocabulary",
            ),
            (
                format!(r#"{{"types": [{}]}}"#, x.replace("[2]", "[]")),
                "types[0].levels: 0 levels, expected 1 to 8",
            ),
            (
                format!(r#"{{"types": [{}]}}"#, x.replace("[2]", "[2, 0]")),
                "types[0].levels[1]: a codebook of 0 codes",
            ),
            (
                format!(r#"{{"types": [{}]}}"#, x.replace("{code}", "0")),
                "types[0].token: `<x_{level}_0>` lacks {code}",
            ),
            (
                format!(r#"{{"types": [{x}, {{"name": "y", "levels": [2], "token": [103]}}]}}"#),
                "token 103 is both code 1 of level 0 of type `x` and code 0 of level 0 of type `y`",
            ),
            (r#"{"types": [{"name": "y", "levels": [2], "token": [[5, 5]]}]}"#.to_owned(), "token 5 is both"),
            (
                r#"{"types": [{"name": "y", "levels": [2], "token": [5, 9]}]}"#.to_owned(),
                "2 first ids for 1 levels",
            ),
            (
                r#"{"types": [{"name": "y", "levels": [2], "token": [[5]]}]}"#.to_owned(),
                "[1] ids, expected [2]",
            ),
            (
                r#"{"types": [{"name": "y", "levels": [2], "token": [4294967295]}]}"#.to_owned(),
                "exceed 32 bits",
            ),
        ];
        for (text, expected) in table {
            let error =
                Layout::resolve(&spec(&text), |token| tokens.get(token).copied()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sid_layout.json");
        for (text, expected) in [
            (r#"{"opener": "<o>", "types": []}"#, "unknown field `opener`"),
            (r#"{"types": [{"name": "y", "levels": [2], "token": 5}]}"#, "expected a token pattern"),
            ("{", "line 1 column 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = LayoutSpec::read(&path).unwrap_err().to_string();
            assert!(error.contains("sid_layout.json: ") && error.contains(expected), "{text}: {error}");
        }
    }
}
