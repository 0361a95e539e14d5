//! API keys: who may ask, and who may change the server.
//!
//! ```toml
//! [keys]                      # may use every route of the first listener
//! storefront = "sk-…"
//! newsletter = "sk-…"
//!
//! [admin]                     # may use the admin listener as well
//! operations = "sk-…"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// Shortest key: shorter ones can be guessed.
const MIN_KEY_BYTES: usize = 16;
/// Longest key, and longest header that is looked at.
const MAX_KEY_BYTES: usize = 512;
/// Most keys of a file: every request is compared with each of them.
const MAX_KEYS: usize = 1024;

/// The keys of a server; reloadable.
#[derive(Debug, Default)]
pub struct Keys {
    file: Option<PathBuf>,
    /// `None`: every route is open.
    set: RwLock<Option<Arc<Vec<Key>>>>,
}

#[derive(Debug)]
struct Key {
    secret: String,
    name: Arc<str>,
    admin: bool,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Name of the key; `None` on a server without keys.
    pub name: Option<Arc<str>>,
    /// Whether the key is one of `[admin]`; everybody is on a server without keys.
    pub admin: bool,
}

impl Caller {
    /// What fairness and the prefix cache tell callers apart by.
    pub fn tenant(&self) -> u64 {
        self.name.as_ref().map_or(0, |name| xxh3_64(name.as_bytes()))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    keys: BTreeMap<String, String>,
    #[serde(default)]
    admin: BTreeMap<String, String>,
}

impl Keys {
    /// Reads a file of keys; without one every route is open.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, has no key, or a key that is too short, too long or there twice.
    pub fn open(file: Option<&Path>) -> Result<Keys> {
        let set = file.map(read).transpose()?;
        Ok(Keys { file: file.map(Path::to_path_buf), set: RwLock::new(set.map(Arc::new)) })
    }

    /// Reads the file again; the old keys stay if that fails. Returns the number of keys.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub fn reload(&self) -> Result<usize> {
        let Some(file) = &self.file else { return Ok(0) };
        let set = read(file)?;
        let count = set.len();
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(set));
        Ok(count)
    }

    /// Whether keys are asked for.
    pub fn required(&self) -> bool {
        self.set().is_some()
    }

    fn set(&self) -> Option<Arc<Vec<Key>>> {
        self.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who a request comes from; `None`: its key is missing or unknown. Takes as long for every key of one length.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let Some(set) = self.set() else { return Some(Caller { name: None, admin: true }) };
        let given = given(headers)?;
        let mut found = Choice::from(0);
        let mut place = 0u64;
        for (at, key) in set.iter().enumerate() {
            let same = key.secret.as_bytes().ct_eq(given.as_bytes());
            place.conditional_assign(&(at as u64), same);
            found |= same;
        }
        if !bool::from(found) {
            return None;
        }
        let key = &set[place as usize];
        Some(Caller { name: Some(Arc::clone(&key.name)), admin: key.admin })
    }
}

/// The key of a request: `Authorization: Bearer KEY`, or `Basic` with the key as password. One header, or none counts.
fn given(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    if rest.len() > MAX_KEY_BYTES * 2 {
        return None;
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim_matches(' ').to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let text = String::from_utf8(base64(rest.trim_matches(' '))?).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// Decodes base64 with padding (RFC 4648, section 4).
fn base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(body.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in body.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

fn read(file: &Path) -> Result<Vec<Key>> {
    let text = std::fs::read_to_string(file).map_err(|error| Error::file(file, error.to_string()))?;
    // The message of the parser would show the line, and with it a key.
    let parsed: File = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        Error::file(
            file,
            format!("line {line}: expected [keys] and [admin] with lines of the form name = \"key\""),
        )
    })?;
    let of = |names: BTreeMap<String, String>, admin| {
        names.into_iter().map(move |(name, secret)| Key { secret, name: name.into(), admin })
    };
    let keys: Vec<Key> = of(parsed.keys, false).chain(of(parsed.admin, true)).collect();
    if keys.is_empty() || keys.len() > MAX_KEYS {
        return Err(Error::file(file, format!("{} keys; expected 1 to {MAX_KEYS}", keys.len())));
    }
    let mut seen = BTreeMap::new();
    for key in &keys {
        if !(MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&key.secret.len()) {
            let (name, len) = (&key.name, key.secret.len());
            let message =
                format!("{name}: a key of {len} bytes; expected {MIN_KEY_BYTES} to {MAX_KEY_BYTES}");
            return Err(Error::file(file, message));
        }
        if !key.secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::file(file, format!("{}: a key has visible ASCII characters only", key.name)));
        }
        if let Some(other) = seen.insert(key.secret.as_str(), &key.name) {
            return Err(Error::file(file, format!("{other} and {} have the same key", key.name)));
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const ONE: &str = "sk-one-0123456789abcdef";
    const TWO: &str = "sk-two-0123456789abcdef";

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).expect("ascii"))])
    }

    fn name(keys: &Keys, headers: &HeaderMap) -> Option<String> {
        keys.caller(headers).and_then(|caller| caller.name).map(|name| name.to_string())
    }

    #[test]
    fn a_key_is_itself_and_nothing_like_it() {
        let file = file(&format!("[keys]\na = \"{ONE}\"\n[admin]\nb = \"{TWO}\"\n"));
        let keys = Keys::open(Some(file.path())).expect("valid");
        assert_eq!(name(&keys, &headers(&format!("Bearer {ONE}"))).as_deref(), Some("a"));
        assert_eq!(name(&keys, &headers(&format!("bearer  {TWO} "))).as_deref(), Some("b"));
        assert!(keys.caller(&headers(&format!("Bearer {TWO}"))).expect("known").admin);
        assert!(!keys.caller(&headers(&format!("Bearer {ONE}"))).expect("known").admin);
        let upper = ONE.to_uppercase();
        let long = format!("{ONE}x");
        for wrong in ["", "Bearer", "Bearer ", &upper, ONE, &long, &ONE[1..], "Basic !!!!", "Basic"] {
            assert!(keys.caller(&headers(wrong)).is_none(), "{wrong}");
            assert!(keys.caller(&headers(&format!("Bearer {wrong}"))).is_none() || wrong == ONE, "{wrong}");
        }
        assert!(keys.caller(&HeaderMap::new()).is_none());
        let mut twice = headers(&format!("Bearer {ONE}"));
        twice.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert!(keys.caller(&twice).is_none(), "two headers are none");
    }

    #[test]
    fn browsers_send_the_key_as_a_password() {
        let file = file(&format!("[keys]\na = \"{ONE}\"\n"));
        let keys = Keys::open(Some(file.path())).expect("valid");
        // "me:sk-one-0123456789abcdef"
        let value = "Basic bWU6c2stb25lLTAxMjM0NTY3ODlhYmNkZWY=";
        assert_eq!(name(&keys, &headers(value)).as_deref(), Some("a"));
        for bad in ["Basic bWU6c2s", "Basic ====", "Basic bWU=", "Basic \u{7f}"] {
            assert!(HeaderValue::from_str(bad).is_err() || keys.caller(&headers(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for bad in ["Z", "Zg", "Zg=", "Z===", "Zg==Zg==", "Z g="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_a_file_everything_is_open() {
        let keys = Keys::open(None).expect("nothing to read");
        assert!(!keys.required());
        assert!(keys.caller(&HeaderMap::new()).is_some_and(|caller| caller.admin && caller.tenant() == 0));
    }

    #[test]
    fn bad_files_are_refused_without_showing_a_key() {
        let short = "[keys]\na = \"short\"".to_owned();
        let twice = format!("[keys]\na = \"{ONE}\"\n[admin]\nb = \"{ONE}\"");
        let unknown = format!("[others]\na = \"{ONE}\"");
        let broken = format!("[keys]\na = {ONE}");
        for (text, expected) in [
            (&short, "a: a key of 5 bytes"),
            (&twice, "a and b have the same key"),
            (&unknown, "line 1"),
            (&broken, "line 2"),
            (&String::new(), "0 keys"),
        ] {
            let error = Keys::open(Some(file(text).path())).expect_err(text).to_string();
            assert!(error.contains(expected) && !error.contains(ONE), "{error}");
        }
    }

    #[test]
    fn keys_are_reloaded_and_kept_if_that_fails() {
        let file = file(&format!("[keys]\na = \"{ONE}\""));
        let keys = Keys::open(Some(file.path())).expect("valid");
        std::fs::write(file.path(), "").expect("written");
        assert!(keys.reload().is_err());
        assert!(keys.caller(&headers(&format!("Bearer {ONE}"))).is_some());
        std::fs::write(file.path(), format!("[keys]\nb = \"{TWO}\"")).expect("written");
        assert_eq!(keys.reload().expect("valid"), 1);
        assert!(keys.caller(&headers(&format!("Bearer {ONE}"))).is_none());
        assert_eq!(name(&keys, &headers(&format!("Bearer {TWO}"))).as_deref(), Some("b"));
    }
}
