//! What chat templates expect beyond Jinja itself: Python's JSON, dates, and tags that only training reads.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// `raise_exception(message)`: the template refuses its input.
pub(super) fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`: the current date in UTC.
pub(super) fn strftime_now(format: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    strftime(seconds, format)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats seconds since 1970 (UTC) in C's notation; a conversion that is not known stays as it is.
pub(super) fn strftime(seconds: u64, format: &str) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (unpadded, spec) = match rest.strip_prefix('-') {
            Some(after) => (true, after),
            None => (false, rest),
        };
        let number = |value: u64| if unpadded { value.to_string() } else { format!("{value:02}") };
        let text: Cow<'_, str> = match spec.chars().next() {
            Some('Y') => year.to_string().into(),
            Some('y') => number(year % 100).into(),
            Some('m') => number(month).into(),
            Some('d') => number(day).into(),
            Some('H') => number(hour).into(),
            Some('I') => number((hour + 11) % 12 + 1).into(),
            Some('M') => number(minute).into(),
            Some('S') => number(second % 60).into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('F') => format!("{year}-{month:02}-{day:02}").into(),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60).into(),
            Some('%') => "%".into(),
            _ => {
                out.push('%');
                continue;
            }
        };
        out.push_str(&text);
        rest = &spec[1..];
    }
    out + rest
}

/// Year, month and day of a number of days since 1970-01-01: whole years, then whole months are taken off.
fn civil(mut days: u64) -> (u64, u64, u64) {
    // 400 years have 146,097 days; taking those first keeps the loops short.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// `tojson` as Python's `json.dumps` writes it: nothing escaped for HTML, `", "` and `": "` between parts.
///
/// Takes `indent`, `ensure_ascii` (default false), `sort_keys`; `separators` is accepted and ignored.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(usize::try_from(indent)?),
        _ => None,
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.get::<Option<Value>>("separators")?;
    options.assert_all_used()?;
    let mut writer =
        JsonWriter { out: String::new(), indent: indent.map(|width| width.min(16)), ascii, sorted };
    writer.value(value, 1)?;
    Ok(Value::from(writer.out))
}

/// Deeper values are refused: a namespace may hold itself.
const MAX_DEPTH: usize = 64;

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

struct JsonWriter {
    out: String,
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(refused(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut count = 0;
                for item in value.try_iter()?.checked() {
                    self.separate(count, depth);
                    self.value(&item?, depth + 1)?;
                    count += 1;
                }
                self.close(count == 0, depth, ']');
            }
            ValueKind::Map => self.map(value, depth)?,
            kind => return Err(refused(format!("{kind} has no JSON form"))),
        }
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut keys = map.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
        if self.sorted {
            keys.sort_by_key(ToString::to_string);
        }
        self.out.push('{');
        for (place, key) in keys.iter().enumerate() {
            self.separate(place, depth);
            self.string(&key.to_string());
            self.out.push_str(": ");
            self.value(&map.get_item(key)?, depth + 1)?;
        }
        self.close(keys.is_empty(), depth, '}');
        Ok(())
    }

    fn separate(&mut self, place: usize, depth: usize) {
        match self.indent {
            Some(width) => {
                self.out.push_str(if place == 0 { "\n" } else { ",\n" });
                self.out.extend(std::iter::repeat_n(' ', width * depth));
            }
            None if place > 0 => self.out.push_str(", "),
            None => {}
        }
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if let (Some(width), false) = (self.indent, empty) {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * (depth - 1)));
        }
        self.out.push(bracket);
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        for c in quoted.chars() {
            // The marks of the prompt renderer stay as they are: escaped, they could not be taken out again.
            if self.ascii && !c.is_ascii() && !crate::text::prompt::may_be_mark(c) {
                let mut units = [0; 2];
                c.encode_utf16(&mut units)
                    .iter()
                    .for_each(|unit| self.out.push_str(&format!("\\u{unit:04x}")));
            } else {
                self.out.push(c);
            }
        }
    }
}

/// Turns `{% generation %}` … `{% endgeneration %}`, which mark what is trained on, into blocks that do nothing.
///
/// They become `{% if true %}` … `{% endif %}` so that white space around them is treated as for any other block.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let word = tag[..end].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match word {
            "generation" => out.push_str(&tag[..end].replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag[..end].replacen("endgeneration", "endif", 1)),
            _ => {
                rest = tag;
                continue;
            }
        }
        rest = &tag[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(strftime(0, "%a %d %b %Y %H:%M:%S"), "Thu 01 Jan 1970 00:00:00");
        assert_eq!(strftime(951_782_400, "%-d %B %y, %A"), "29 February 00, Tuesday");
        assert_eq!(strftime(1_735_689_599, "%F %T %I %p %% %q %"), "2024-12-31 23:59:59 11 PM % %q %");
        assert_eq!(strftime(4_107_542_400, "%Y-%m-%d"), "2100-03-01");
    }

    #[test]
    fn generation_tags_go_and_nothing_else() {
        let source =
            "a {%- generation -%} b {% endgeneration %}{% if generation %}{{ '%}' }}{% endif %} {% x";
        assert_eq!(
            without_generation_tags(source),
            "a {%- if true -%} b {% endif %}{% if generation %}{{ '%}' }}{% endif %} {% x"
        );
    }
}
