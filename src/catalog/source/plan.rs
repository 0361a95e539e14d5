//! From the columns of a row to an item, as a mapping says.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::mapping::{IdFrom, Kind, Mapping, Others, Prefixed, SidFrom, TypeFrom};
use super::{BadRow, MAX_COLUMNS};
use crate::catalog::{ItemRecord, MAX_LEVELS};
use crate::error::{Error, Result};

/// Which parts of the rows are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// All of them.
    All,
    /// Id, type and SID: a first look at the codes need not parse the rest.
    Codes,
}

/// What a column is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Role {
    Id,
    Type,
    Title,
    Popularity,
    Sid,
    /// The code of a level.
    Code(usize),
    Attribute(Attribute),
}

/// How a column becomes an attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    name: String,
    kind: Option<Kind>,
    separator: Option<String>,
}

/// What the plan knows of a column.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Use<'a> {
    /// It is for these.
    Roles(&'a [Role]),
    /// It is an attribute of its own name.
    Other,
    /// It is not wanted.
    Nothing,
}

/// A mapping, made ready for rows.
#[derive(Clone, Debug)]
pub struct Plan {
    columns: HashMap<String, Vec<Role>>,
    /// Columns that the mapping names: they must exist where a file has a header.
    named: Vec<String>,
    others: bool,
    missing: Vec<String>,
    prefix: String,
    constant_type: Option<String>,
    /// Columns per SID if there is one per level, else 0.
    code_columns: usize,
    /// Numbers may stand for texts and texts for numbers: the mapping names these columns, or the format knows texts only.
    lenient_id: bool,
    lenient_title: bool,
    lenient_popularity: bool,
}

impl Plan {
    /// Makes a mapping ready. `texts`: all cells of the format are texts.
    pub fn new(mapping: &Mapping, parts: Parts, texts: bool) -> Plan {
        let mut columns: HashMap<String, Vec<Role>> = HashMap::new();
        let mut add = |column: &str, role| columns.entry(column.to_owned()).or_default().push(role);
        let mut prefix = String::new();
        match &mapping.id {
            None => add("id", Role::Id),
            Some(IdFrom::Column(column)) => add(column, Role::Id),
            Some(IdFrom::Prefixed(Prefixed { column, prefix: before })) => {
                add(column, Role::Id);
                prefix.clone_from(before);
            }
        }
        let mut constant_type = None;
        match &mapping.item_type {
            None => add("type", Role::Type),
            Some(TypeFrom::Column(column)) => add(column, Role::Type),
            Some(TypeFrom::Constant(constant)) => constant_type = Some(constant.value.clone()),
        }
        let mut code_columns = 0;
        match &mapping.sid {
            None => add("sid", Role::Sid),
            Some(SidFrom::Column(column)) => add(column, Role::Sid),
            Some(SidFrom::Levels(levels)) => {
                code_columns = levels.len();
                levels.iter().enumerate().for_each(|(level, column)| add(column, Role::Code(level)));
            }
        }
        if parts == Parts::All {
            add(mapping.title.as_deref().unwrap_or("title"), Role::Title);
            add(mapping.popularity.as_deref().unwrap_or("popularity"), Role::Popularity);
            for (name, from) in &mapping.attributes {
                let (name, kind) = (name.clone(), from.kind);
                let column = from.column.clone().unwrap_or_else(|| name.clone());
                add(&column, Role::Attribute(Attribute { name, kind, separator: from.separator.clone() }));
            }
        }
        for column in &mapping.drop {
            columns.insert(column.clone(), Vec::new());
        }
        let named = mapping.columns().into_iter().chain(mapping.drop.iter().cloned()).collect();
        Plan {
            columns,
            named,
            others: mapping.others == Others::Keep && parts == Parts::All,
            missing: mapping.missing.clone(),
            prefix,
            constant_type,
            code_columns,
            lenient_id: texts || mapping.id.is_some(),
            lenient_title: texts || mapping.title.is_some(),
            lenient_popularity: texts || mapping.popularity.is_some(),
        }
    }

    /// What a column is for.
    pub fn use_of(&self, column: &str) -> Use<'_> {
        match self.columns.get(column) {
            Some(roles) if roles.is_empty() => Use::Nothing,
            Some(roles) => Use::Roles(roles),
            None if self.others => Use::Other,
            None => Use::Nothing,
        }
    }

    /// A row of which nothing could be read.
    pub fn unreadable(&self, message: String) -> BadRow {
        BadRow { item_type: self.constant_type.clone(), message }
    }

    /// Checks the column names of a file that has the same columns in all rows.
    ///
    /// # Errors
    /// [`Error::Invalid`]: a column that the mapping names is missing, no column of ids, an attribute that comes from two columns, too many columns.
    pub fn check_header(&self, header: &[String]) -> Result<()> {
        if header.len() > MAX_COLUMNS {
            return Err(Error::invalid("header", format!("{} columns, at most {MAX_COLUMNS}", header.len())));
        }
        let quoted = |names: &[String]| {
            let shown = names.iter().take(40).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            if names.len() > 40 { format!("{shown}, …") } else { shown }
        };
        if let Some(missing) = self.named.iter().find(|column| !header.contains(column)) {
            let message =
                format!("no column `{missing}`, which the mapping names; there are {}", quoted(header));
            return Err(Error::invalid("header", message));
        }
        let has =
            |role: &Role| header.iter().any(|c| matches!(self.use_of(c), Use::Roles(r) if r.contains(role)));
        if !has(&Role::Id) {
            let message =
                format!("no column `id`, and no mapping that names another; there are {}", quoted(header));
            return Err(Error::invalid("header", message));
        }
        let mut names: Vec<&str> = Vec::new();
        for column in header {
            match self.use_of(column) {
                Use::Other => names.push(column),
                Use::Nothing => {}
                Use::Roles(roles) => names.extend(roles.iter().filter_map(|role| match role {
                    Role::Attribute(attribute) => Some(attribute.name.as_str()),
                    _ => None,
                })),
            }
        }
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => {
                let message = format!(
                    "attribute `{0}` comes from two columns; drop = [\"{0}\"] leaves one out",
                    pair[0]
                );
                Err(Error::invalid("header", message))
            }
        }
    }
}

/// An item that is being put together.
pub struct Assembly<'a> {
    plan: &'a Plan,
    record: ItemRecord,
    /// Codes of columns, met so far.
    codes: [Option<u16>; MAX_LEVELS],
    /// The first thing that was wrong.
    wrong: Option<String>,
}

impl<'a> Assembly<'a> {
    /// Nothing yet.
    pub fn new(plan: &'a Plan) -> Assembly<'a> {
        let item_type = plan.constant_type.clone().unwrap_or_default();
        let record = ItemRecord { item_type, ..ItemRecord::default() };
        Assembly { plan, record, codes: [None; MAX_LEVELS], wrong: None }
    }

    /// Notes something that makes the row a bad one.
    pub fn fail(&mut self, message: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            self.wrong = Some(message());
        }
    }

    /// Adds the value of a column.
    pub fn put(&mut self, column: &str, use_of: Use<'_>, value: Value) {
        let missing = |text: &str| self.plan.missing.iter().any(|known| known == text);
        if value.is_null() || value.as_str().is_some_and(missing) {
            return;
        }
        match use_of {
            Use::Nothing => {}
            Use::Other => self.attribute(column, column, Ok(value)),
            Use::Roles([role]) => self.apply(column, role, value),
            Use::Roles(roles) => roles.iter().for_each(|role| self.apply(column, role, value.clone())),
        }
    }

    fn attribute(&mut self, column: &str, name: &str, value: Result<Value, String>) {
        match value {
            Ok(Value::Null) => {}
            Ok(value) => {
                if self.record.attributes.insert(name.to_owned(), value).is_some() {
                    self.fail(|| format!("{name}: given twice"));
                }
            }
            Err(message) => self.fail(|| format!("{}: {message}", labelled(name, column))),
        }
    }

    fn apply(&mut self, column: &str, role: &Role, value: Value) {
        let plan = self.plan;
        let applied = match role {
            Role::Id => text(value, plan.lenient_id).and_then(|id| {
                if id.is_empty() {
                    return Err("an item's id must not be empty".to_owned());
                }
                self.record.id = if plan.prefix.is_empty() { id } else { format!("{}{id}", plan.prefix) };
                Ok(())
            }),
            Role::Type => text(value, false).map(|item_type| self.record.item_type = item_type),
            Role::Title => text(value, plan.lenient_title).map(|title| self.record.title = Some(title)),
            Role::Popularity => number(&value, plan.lenient_popularity).map(|popularity| {
                self.record.popularity = popularity.unwrap_or_default();
            }),
            Role::Sid => return self.sid(column, &value),
            Role::Code(level) => parse_code(&value).map(|code| self.codes[*level] = Some(code)),
            Role::Attribute(attribute) => {
                let value = convert(value, attribute);
                return self.attribute(column, &attribute.name, value);
            }
        };
        if let Err(message) = applied {
            let name = match role {
                Role::Id => "id",
                Role::Type => "type",
                Role::Title => "title",
                Role::Popularity => "popularity",
                Role::Code(level) => &format!("sid[{level}]"),
                Role::Sid | Role::Attribute(_) => "sid",
            };
            self.fail(|| format!("{}: {message}", labelled(name, column)));
        }
    }

    fn sid(&mut self, column: &str, value: &Value) {
        let codes: Result<Vec<u16>, (usize, String)> = match value {
            Value::Array(codes) => {
                codes.iter().enumerate().map(|(l, code)| parse_code(code).map_err(|e| (l, e))).collect()
            }
            Value::String(text) => split_codes(text),
            other => {
                let name = labelled("sid", column);
                return self.fail(|| format!("{name}: expected a list of codes, found {}", kind(other)));
            }
        };
        match codes {
            Ok(codes) => self.record.sid = codes,
            Err((level, message)) => {
                self.fail(|| format!("{}: {message}", labelled(&format!("sid[{level}]"), column)));
            }
        }
    }

    /// The item; its SID is empty if the row has none.
    pub fn finish(mut self) -> Result<ItemRecord, BadRow> {
        if self.plan.code_columns > 0 {
            let given = self.codes[..self.plan.code_columns].iter().copied();
            match given.clone().collect::<Option<Vec<u16>>>() {
                Some(codes) => self.record.sid = codes,
                None if given.flatten().next().is_none() => {}
                None => self.fail(|| "sid: some levels have a code and others have none".to_owned()),
            }
        }
        if self.record.id.is_empty() {
            self.fail(|| "id: missing".to_owned());
        }
        match self.wrong {
            None => Ok(self.record),
            Some(message) => {
                let item_type = Some(self.record.item_type).filter(|name| !name.is_empty());
                Err(BadRow { item_type, message })
            }
        }
    }
}

/// A part of an item, and its column if that has another name.
fn labelled(name: &str, column: &str) -> String {
    let plain = name.split('[').next() == Some(column);
    if plain { name.to_owned() } else { format!("{name} (column `{column}`)") }
}

fn text(value: Value, lenient: bool) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) if lenient => Ok(number.to_string()),
        other => Err(format!("expected a string, found {}", kind(&other))),
    }
}

/// A number; `None` if the text is empty.
fn number(value: &Value, lenient: bool) -> Result<Option<f64>, String> {
    match value {
        Value::Number(number) => Ok(number.as_f64()),
        Value::String(text) if lenient => match text.trim() {
            "" => Ok(None),
            text => parse_float(text).map(Some),
        },
        other => Err(format!("expected a number, found {}", kind(other))),
    }
}

fn parse_float(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| format!("{} is not a finite number", shown(text)))
}

/// An integer, also one that is written as a float.
fn parse_int(text: &str) -> Result<i64, String> {
    let exact = |number: &f64| number.fract() == 0.0 && number.abs() <= (1u64 << 53) as f64;
    let written = text.parse::<i64>().ok();
    let number = written.or_else(|| text.parse::<f64>().ok().filter(exact).map(|number| number as i64));
    number.ok_or_else(|| format!("{} is not a 64-bit integer", shown(text)))
}

fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err(format!("{} is neither true nor false", shown(text))),
    }
}

pub(super) fn parse_code(code: &Value) -> Result<u16, String> {
    let number = match code {
        Value::Number(number) => number.as_u64().and_then(|code| u16::try_from(code).ok()),
        Value::String(text) => parse_int(text.trim()).ok().and_then(|code| u16::try_from(code).ok()),
        other => return Err(format!("expected a code, found {}", kind(other))),
    };
    number.ok_or_else(|| format!("expected a code from 0 to {}, found {code}", u16::MAX))
}

/// Codes of a text such as `3,17,9`, `3 17 9` or `[3, 17, 9]`.
fn split_codes(text: &str) -> Result<Vec<u16>, (usize, String)> {
    let inner = text.trim();
    let inner = inner.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(inner);
    let words =
        inner.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';')).filter(|word| !word.is_empty());
    let parse = |(level, word): (usize, &str)| {
        let code = word.parse::<u16>();
        code.map_err(|_| (level, format!("expected a code from 0 to {}, found {}", u16::MAX, shown(word))))
    };
    words.enumerate().map(parse).collect()
}

/// A value as an attribute of its kind; null if there is none.
fn convert(value: Value, attribute: &Attribute) -> Result<Value, String> {
    let Some(to) = attribute.kind else { return Ok(value) };
    // A cell of blanks holds nothing but for who wants strings.
    if to != Kind::String && value.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Ok(Value::Null);
    }
    let unfit = |wanted: &str, value: &Value| Err(format!("expected {wanted}, found {}", kind(value)));
    match (to, value) {
        (Kind::Bool, Value::Bool(value)) => Ok(value.into()),
        (Kind::Bool, Value::String(text)) => parse_bool(text.trim()).map(Value::from),
        (Kind::Bool, Value::Number(number)) => parse_bool(&number.to_string()).map(Value::from),
        (Kind::Bool, other) => unfit("a boolean", &other),
        (Kind::Int, Value::Number(number)) => parse_int(&number.to_string()).map(Value::from),
        (Kind::Int, Value::String(text)) => parse_int(text.trim()).map(Value::from),
        (Kind::Int, other) => unfit("an integer", &other),
        (Kind::Float, Value::Number(number)) => Ok(number.as_f64().map_or(Value::Null, Value::from)),
        (Kind::Float, Value::String(text)) => parse_float(text.trim()).map(Value::from),
        (Kind::Float, other) => unfit("a number", &other),
        (Kind::String, Value::String(text)) => Ok(text.into()),
        (Kind::String, Value::Number(number)) => Ok(number.to_string().into()),
        (Kind::String, Value::Bool(value)) => Ok(value.to_string().into()),
        (Kind::String, other) => unfit("a string", &other),
        (Kind::Labels, value) => {
            let mut labels = Vec::new();
            collect_labels(value, attribute.separator.as_deref(), &mut labels)?;
            let mut seen = HashSet::with_capacity(labels.len());
            labels.retain(|label| seen.insert(label.clone()));
            Ok(labels.into())
        }
    }
}

fn collect_labels(value: Value, separator: Option<&str>, labels: &mut Vec<String>) -> Result<(), String> {
    let mut add = |label: &str| {
        if !label.is_empty() {
            labels.push(label.to_owned());
        }
    };
    match (value, separator) {
        (Value::String(text), Some(separator)) => {
            text.split(separator).for_each(|label| add(label.trim()));
            Ok(())
        }
        (Value::String(text), None) => {
            add(text.trim());
            Ok(())
        }
        (Value::Number(number), _) => {
            add(&number.to_string());
            Ok(())
        }
        (Value::Bool(value), _) => {
            add(if value { "true" } else { "false" });
            Ok(())
        }
        (Value::Null, _) => Ok(()),
        (Value::Array(list), _) => {
            list.into_iter().try_for_each(|value| collect_labels(value, separator, labels))
        }
        (other @ Value::Object(_), _) => Err(format!("expected labels, found {}", kind(&other))),
    }
}

/// A text as a message shows it: not all of a long one.
fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
