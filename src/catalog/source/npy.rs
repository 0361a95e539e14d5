//! Codes in NumPy's format: a table of integers, `[rows, levels]` in C order.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::catalog::MAX_LEVELS;
use crate::error::{Error, Result};

/// Longest header; NumPy's own have 128 bytes.
const MAX_HEADER: usize = 1 << 16;

/// A file of codes, read row by row.
pub struct CodeRows {
    path: PathBuf,
    file: BufReader<File>,
    element: Element,
    /// Rows of the file.
    pub rows: u64,
    /// Codes per row.
    pub levels: usize,
    next: u64,
}

/// How an integer lies in the file.
#[derive(Clone, Copy)]
struct Element {
    bytes: usize,
    signed: bool,
    big_endian: bool,
}

impl CodeRows {
    pub fn open(path: &Path) -> Result<CodeRows> {
        let failed = |message: String| Error::file(path, message);
        let mut file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let length = file.metadata().map_err(|error| failed(error.to_string()))?.len();
        let header = read_header(&mut file).map_err(failed)?;
        let start = header.bytes;
        let (element, shape) = parse_header(&header.text).map_err(failed)?;
        let [rows, levels] = shape[..] else {
            return Err(failed(format!("shape {shape:?}, expected [rows, levels]")));
        };
        if !(1..=MAX_LEVELS as u64).contains(&levels) {
            return Err(failed(format!("{levels} codes per row, expected 1 to {MAX_LEVELS}")));
        }
        let data = rows.checked_mul(levels * element.bytes as u64).and_then(|bytes| bytes.checked_add(start));
        if data != Some(length) {
            let expected = data.map_or("more than 2^64".to_owned(), |bytes| bytes.to_string());
            return Err(failed(format!(
                "{length} bytes, but [{rows}, {levels}] of its type need {expected}"
            )));
        }
        let file = BufReader::with_capacity(1 << 18, file);
        Ok(CodeRows { path: path.to_path_buf(), file, element, rows, levels: levels as usize, next: 0 })
    }

    /// The next row; `None` after the last.
    pub fn next_row(&mut self) -> Result<Option<Vec<u16>>> {
        if self.next == self.rows {
            return Ok(None);
        }
        let mut bytes = [0; 8 * MAX_LEVELS];
        let size = self.element.bytes;
        let bytes = &mut bytes[..size * self.levels];
        let place = |level: usize| format!("row {}, level {level}", self.next);
        self.file
            .read_exact(bytes)
            .map_err(|error| Error::file(&self.path, format!("{}: {error}", place(0))))?;
        let mut codes = Vec::with_capacity(self.levels);
        for (level, bytes) in bytes.chunks_exact(size).enumerate() {
            let value = self.element.value(bytes);
            codes.push(u16::try_from(value).map_err(|_| {
                Error::file(
                    &self.path,
                    format!("{}: {value}, expected a code from 0 to {}", place(level), u16::MAX),
                )
            })?);
        }
        self.next += 1;
        Ok(Some(codes))
    }

    /// Rows not read yet.
    pub fn left(&self) -> u64 {
        self.rows - self.next
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Element {
    fn value(self, bytes: &[u8]) -> i128 {
        let unsigned = bytes.iter().enumerate().fold(0u64, |value, (at, &byte)| {
            let place = if self.big_endian { bytes.len() - 1 - at } else { at };
            value | u64::from(byte) << (8 * place)
        });
        if !self.signed {
            return unsigned.into();
        }
        let unused = 64 - 8 * bytes.len() as u32;
        (((unsigned << unused) as i64) >> unused).into()
    }
}

/// The text of a header, and the bytes up to its end.
struct Header {
    text: String,
    bytes: u64,
}

fn read_header(file: &mut File) -> Result<Header, String> {
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|_| "shorter than the header of an .npy file".to_owned())?;
    if start[..6] != *b"\x93NUMPY" {
        return Err("not an .npy file: it does not begin with \\x93NUMPY".to_owned());
    }
    let (length, before) = match start[6] {
        1 => (read_number::<2>(file)?, 10),
        2 | 3 => (read_number::<4>(file)?, 12),
        version => return Err(format!("version {version} of the .npy format, expected 1 to 3")),
    };
    if length > MAX_HEADER {
        return Err(format!("a header of {length} bytes, at most {MAX_HEADER}"));
    }
    let mut text = vec![0; length];
    file.read_exact(&mut text).map_err(|_| format!("ends inside of its header of {length} bytes"))?;
    let text = String::from_utf8(text).map_err(|_| "its header is not UTF-8".to_owned())?;
    Ok(Header { text, bytes: before + length as u64 })
}

fn read_number<const N: usize>(file: &mut File) -> Result<usize, String> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).map_err(|_| "ends before its header".to_owned())?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

/// Element type and shape of a header such as `{'descr': '<u2', 'fortran_order': False, 'shape': (10, 3), }`.
fn parse_header(header: &str) -> Result<(Element, Vec<u64>), String> {
    let after = |key: &str| {
        let (_, rest) =
            header.split_once(&format!("'{key}':")).ok_or_else(|| format!("its header has no `{key}`"))?;
        Ok::<&str, String>(rest.trim_start())
    };
    let descr = after("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    let descr = descr.map(|(descr, _)| descr).ok_or("its elements are not of one type")?;
    let element = match descr.as_bytes() {
        [order @ (b'<' | b'>' | b'|'), kind @ (b'u' | b'i'), size @ (b'1' | b'2' | b'4' | b'8')] => {
            Element { bytes: usize::from(size - b'0'), signed: *kind == b'i', big_endian: *order == b'>' }
        }
        _ => return Err(format!("elements of type `{descr}`, expected integers")),
    };
    if !after("fortran_order")?.starts_with("False") {
        return Err("in Fortran order, expected C order (numpy.ascontiguousarray)".to_owned());
    }
    let shape = after("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let (shape, _) = shape.ok_or("its header has no shape")?;
    let numbers = shape.split(',').map(str::trim).filter(|number| !number.is_empty());
    let parse = |number: &str| number.parse::<u64>().map_err(|_| format!("a shape with `{number}` in it"));
    Ok((element, numbers.map(parse).collect::<Result<_, _>>()?))
}
