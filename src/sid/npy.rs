//! NumPy's `.npy`: the header, codes in and out.
//!
//! A file is `\x93NUMPY`, major and minor version, the header's length (two bytes in version 1, four in 2 and 3), a Python dictionary
//! with `descr`, `fortran_order` and `shape`, then the elements. Only flat, row-major, little-endian arrays of numbers are read.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Longest header that is read, in bytes; numpy itself writes 118 for a matrix.
const MAX_HEADER: usize = 1 << 16;

/// What a header says, and where the elements lie.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Type as numpy spells it (`<f4`).
    pub descr: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the elements in the file.
    pub range: Range<usize>,
}

/// Checks the header of a file; `size` gives the bytes of an element of a type that the caller reads, else `None`.
///
/// # Errors
/// A sentence with the byte or key that is wrong.
pub(super) fn parse(
    file: &[u8],
    size: impl Fn(&str) -> Option<usize>,
) -> std::result::Result<Header, String> {
    if file.len() < 10 || &file[..6] != MAGIC {
        return Err("byte 0: does not begin with \\x93NUMPY and a version; not a .npy file".into());
    }
    let (length, start) = match file[6] {
        1 => (u16::from_le_bytes([file[8], file[9]]) as usize, 10),
        2 | 3 => {
            let Some(length) = file.get(8..12) else {
                return Err(format!(
                    "byte 8: the header's length is cut off; the file has {} bytes",
                    file.len()
                ));
            };
            (u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize, 12)
        }
        other => return Err(format!("byte 6: format version {other} is not read; versions 1 to 3 are")),
    };
    if length > MAX_HEADER {
        return Err(format!("byte 8: the header is {length} bytes long; at most {MAX_HEADER} are read"));
    }
    let Some(text) = file.get(start..start + length) else {
        return Err(format!(
            "byte 8: the header is {length} bytes long, but only {} follow",
            file.len() - start
        ));
    };
    let mut dict = Dict { text, at: 0, start };
    let (descr, fortran, shape) = dict.read()?;
    if fortran {
        return Err(
            "fortran_order: True: the elements lie column by column; save the array with order='C'".into()
        );
    }
    let Some(size) = size(&descr) else {
        return Err(format!("descr: elements of type '{}' are not read here", brief(&descr)));
    };
    let first = start + length;
    let bytes = shape.iter().try_fold(size, |n, &s| n.checked_mul(s));
    match bytes {
        Some(bytes) if bytes == file.len() - first => Ok(Header { descr, shape, range: first..file.len() }),
        Some(bytes) => Err(format!(
            "shape {shape:?} of '{descr}' takes {bytes} bytes, but {} follow the header",
            file.len() - first
        )),
        None => Err(format!("shape {shape:?} of '{descr}' is more than can be addressed")),
    }
}

/// Reader of the header's dictionary.
struct Dict<'a> {
    text: &'a [u8],
    at: usize,
    /// Where the text lies in the file, for messages.
    start: usize,
}

impl Dict<'_> {
    fn error<T>(&self, expected: &str) -> std::result::Result<T, String> {
        let found = String::from_utf8_lossy(&self.text[self.at.min(self.text.len())..]).into_owned();
        Err(format!("header, byte {}: expected {expected}, found `{}`", self.start + self.at, brief(&found)))
    }

    fn read(&mut self) -> std::result::Result<(String, bool, Vec<usize>), String> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.take(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let again = match key.as_str() {
                "descr" => descr.replace(self.string()?).is_some(),
                "fortran_order" => fortran.replace(self.flag()?).is_some(),
                "shape" => shape.replace(self.sizes()?).is_some(),
                other => return Err(format!("header: key '{}' is unknown", brief(other))),
            };
            if again {
                return Err(format!("header: key '{key}' occurs twice"));
            }
            if !self.take(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        self.skip();
        if self.at < self.text.len() {
            return self.error("the end of the header");
        }
        let missing = |key: &str| format!("header: the key '{key}' is missing");
        Ok((
            descr.ok_or_else(|| missing("descr"))?,
            fortran.ok_or_else(|| missing("fortran_order"))?,
            shape.ok_or_else(|| missing("shape"))?,
        ))
    }

    fn skip(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip();
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> std::result::Result<(), String> {
        if self.take(byte) { Ok(()) } else { self.error(&format!("`{}`", char::from(byte))) }
    }

    fn string(&mut self) -> std::result::Result<String, String> {
        self.skip();
        let Some(&quote) = self.text.get(self.at).filter(|&&b| b == b'\'' || b == b'"') else {
            return self.error("a string");
        };
        let rest = &self.text[self.at + 1..];
        let Some(length) = rest.iter().position(|&b| b == quote) else {
            return self.error("a closed string");
        };
        let text = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 2;
        Ok(text)
    }

    fn flag(&mut self) -> std::result::Result<bool, String> {
        self.skip();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.error("True or False")
    }

    fn sizes(&mut self) -> std::result::Result<Vec<usize>, String> {
        self.expect(b'(')?;
        let mut sizes = Vec::new();
        while !self.take(b')') {
            self.skip();
            let digits = self.text[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
            let text = std::str::from_utf8(&self.text[self.at..self.at + digits]).unwrap_or_default();
            let Ok(size) = text.parse() else { return self.error("a size") };
            if sizes.len() == 8 {
                return self.error("at most 8 sizes");
            }
            sizes.push(size);
            self.at += digits;
            if !self.take(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(sizes)
    }
}

/// A foreign text as it goes into a message.
fn brief(text: &str) -> String {
    match text.char_indices().nth(40) {
        None => text.trim_end().to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The codes of items: `[rows, levels]`, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    levels: usize,
    values: Vec<u16>,
}

impl Codes {
    /// Codes row by row.
    ///
    /// # Panics
    /// If `levels` is 0 or does not divide the number of codes.
    pub fn new(levels: usize, values: Vec<u16>) -> Codes {
        assert!(
            levels > 0 && values.len().is_multiple_of(levels),
            "{} codes of {levels} levels",
            values.len()
        );
        Codes { levels, values }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.levels
    }

    /// Codes of a row.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// The codes of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u16] {
        &self.values[row * self.levels..(row + 1) * self.levels]
    }

    /// All rows, one after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u16]> {
        self.values.chunks_exact(self.levels)
    }

    /// Reads a `.npy` file of unsigned 16-bit numbers `[rows, levels]`.
    ///
    /// # Errors
    /// [`Error::File`] with the byte or key that is wrong.
    pub fn read(path: impl AsRef<Path>) -> Result<Codes> {
        let path = path.as_ref();
        let fail = |message: String| Error::file(path, message);
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let header = parse(&bytes, |descr| (descr == "<u2").then_some(2)).map_err(fail)?;
        let [_, levels] = header.shape[..] else {
            return Err(fail(format!("shape {:?}: expected [rows, levels]", header.shape)));
        };
        if levels == 0 {
            return Err(fail(format!("shape {:?}: a row must have a code", header.shape)));
        }
        let pairs = bytes[header.range].chunks_exact(2);
        Ok(Codes::new(levels, pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()))
    }

    /// Writes a `.npy` file of unsigned 16-bit numbers `[rows, levels]`.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let write = || -> std::io::Result<()> {
            let mut out = BufWriter::new(File::create(path)?);
            let mut header = format!(
                "{{'descr': '<u2', 'fortran_order': False, 'shape': ({}, {}), }}",
                self.rows(),
                self.levels
            );
            // Spaces and a line feed, up to a multiple of 64 bytes with what comes before.
            let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
            header.extend(std::iter::repeat_n(' ', length - 1 - header.len()));
            out.write_all(MAGIC)?;
            out.write_all(&[1, 0])?;
            out.write_all(&(length as u16).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            out.write_all(b"\n")?;
            for code in &self.values {
                out.write_all(&code.to_le_bytes())?;
            }
            out.flush()
        };
        write().map_err(|e| Error::file(path, e.to_string()))
    }
}
