//! The safetensors format: memory-mapped reading with checks of our own, and writing.
//!
//! A file is `u64 n | n bytes of JSON | data`, little endian; the JSON maps a tensor's name to its type, shape and byte
//! range in the data. Tensors are views of the map; only one that is not aligned to its element is copied. A file
//! is accepted only if the ranges tile the data without gap or overlap, so that no byte is read under two names and none
//! is smuggled in.
//!
//! Format: <https://github.com/huggingface/safetensors>.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};

/// Longest header that is read, in bytes; a model of 100 layers has some 100 KB.
const MAX_HEADER: u64 = 16 << 20;
/// Most sizes of one tensor.
const MAX_RANK: usize = 8;

/// Types of the format with their bits. Tensors that nobody asks for may have any of them.
const TYPES: &[(&str, u64)] = &[
    ("BF16", 16),
    ("F16", 16),
    ("F32", 32),
    ("F64", 64),
    ("BOOL", 8),
    ("U8", 8),
    ("I8", 8),
    ("U16", 16),
    ("I16", 16),
    ("U32", 32),
    ("I32", 32),
    ("U64", 64),
    ("I64", 64),
    ("F8_E4M3", 8),
    ("F8_E5M2", 8),
    ("F8_E8M0", 8),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("F4", 4),
    ("C64", 64),
];

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Type as spelled by the format (`BF16`).
    pub stored: &'static str,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<usize>,
}

impl Entry {
    /// The element type, if it is one that weights may have.
    pub fn dtype(&self) -> Option<DType> {
        match self.stored {
            "BF16" => Some(DType::Bf16),
            "F16" => Some(DType::F16),
            "F32" => Some(DType::F32),
            _ => None,
        }
    }
}

/// Where a file's bytes lie.
#[derive(Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    /// In the program.
    Static(&'static [u8]),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

/// A safetensors file, memory-mapped or part of the program.
pub struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl TensorFile {
    /// Maps a file and checks its header; the data is not read.
    ///
    /// # Errors
    /// [`Error::File`] says what is wrong and at which tensor or byte.
    pub fn open(path: &Path) -> Result<TensorFile> {
        let fail = |e: std::io::Error| Error::file(path, e.to_string());
        // Asked before opening: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        let file = File::open(path).map_err(fail)?;
        // SAFETY: the map is private and read-only. Its bytes are only ever read as plain numbers, for which every bit
        // pattern is valid; as everywhere with mapped models, whoever truncates the file under a running engine ends it.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        TensorFile::over(path, Bytes::Mapped(Arc::new(map)))
    }

    /// Takes a file that is part of the program; `path` is for messages.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub fn from_static(path: &Path, bytes: &'static [u8]) -> Result<TensorFile> {
        TensorFile::over(path, Bytes::Static(bytes))
    }

    fn over(path: &Path, bytes: Bytes) -> Result<TensorFile> {
        let entries = parse_header(bytes.as_ref()).map_err(|message| Error::file(path, message))?;
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(TensorFile { path: path.to_path_buf(), bytes, entries, by_name })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).map(|&i| &self.entries[i])
    }

    /// What the header says of the file as a whole (`__metadata__`); empty if it says nothing.
    pub fn metadata(&self) -> Map<String, Value> {
        #[derive(Default, serde::Deserialize)]
        struct Whole {
            #[serde(default, rename = "__metadata__")]
            metadata: Map<String, Value>,
        }
        let (length, rest) = self.bytes().split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
        // The header was read once, but nobody asked then what kind of value stands here.
        serde_json::from_slice::<Whole>(&rest[..length]).unwrap_or_default().metadata
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The memory map, to advise the system about; `None` for a part of the program.
    pub(super) fn map(&self) -> Option<&Arc<Mmap>> {
        match &self.bytes {
            Bytes::Mapped(map) => Some(map),
            Bytes::Static(_) => None,
        }
    }

    /// A tensor as a view of the map; a copy if its bytes are not aligned. `None` if its type is none that weights have.
    pub fn tensor(&self, entry: &Entry) -> Option<Tensor> {
        let dtype = entry.dtype()?;
        let bytes = &self.bytes()[entry.range.clone()];
        let shape = entry.shape.clone();
        if (bytes.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Some(Tensor::new(dtype, shape, Arc::new(self.bytes.clone()), entry.range.clone()));
        }
        Some(match dtype {
            DType::F32 => Tensor::from_words(dtype, shape, copied::<u32>(bytes)),
            DType::Bf16 | DType::F16 => Tensor::from_words(dtype, shape, copied::<u16>(bytes)),
        })
    }
}

/// The bytes as words, copied to where they are aligned.
fn copied<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut words = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut::<T, u8>(&mut words).copy_from_slice(bytes);
    words
}

/// A tensor as the JSON spells it.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    #[serde(deserialize_with = "short_list")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads at most [`MAX_RANK`] numbers, so that a file cannot make us allocate a multiple of its size.
fn short_list<'de, D: Deserializer<'de>>(input: D) -> std::result::Result<Vec<u64>, D::Error> {
    struct Short;
    impl<'de> Visitor<'de> for Short {
        type Value = Vec<u64>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {MAX_RANK} sizes")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Vec<u64>, A::Error> {
            let mut sizes = Vec::new();
            while let Some(size) = seq.next_element()? {
                if sizes.len() == MAX_RANK {
                    return Err(A::Error::custom(format!("a tensor has at most {MAX_RANK} sizes")));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    input.deserialize_seq(Short)
}

/// The header's map; a plain map would let the second of two tensors of one name win.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> serde::Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<RawHeader, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let (mut seen, mut entries) = (HashSet::new(), Vec::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{} occurs twice", cut(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let entry = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("tensor {}: {e}", cut(&name))))?;
                        entries.push((name, entry));
                    }
                }
                Ok(RawHeader(entries))
            }
        }
        input.deserialize_map(Header)
    }
}

/// A foreign name as it goes into a message.
fn cut(name: &str) -> String {
    super::fields::brief(&Value::from(name))
}

/// Checks a file's header and returns its tensors, in the order of their bytes.
///
/// # Errors
/// A sentence that says what is wrong and at which tensor or byte.
fn parse_header(file: &[u8]) -> std::result::Result<Vec<Entry>, String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("is {} bytes long; the length of the header alone takes 8", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("byte 0: the header is {length} bytes long; at most {MAX_HEADER} are read"));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(format!("byte 0: the header is {length} bytes long, but only {} follow", rest.len()));
    };
    let raw: RawHeader = serde_json::from_slice(header).map_err(|e| format!("header: {e}"))?;
    let start = 8 + header.len();
    let mut entries = raw
        .0
        .into_iter()
        .map(|(name, e)| entry(name, e, start, data.len()))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    entries.sort_by_key(|e| (e.range.start, e.range.end));
    let mut end = start;
    for e in &entries {
        if e.range.start != end {
            let what =
                if e.range.start < end { "overlaps its predecessor" } else { "leaves a gap before it" };
            return Err(format!(
                "tensor {} {what}: expected it at byte {end}, found it at byte {}",
                cut(&e.name),
                e.range.start
            ));
        }
        end = e.range.end;
    }
    if end != file.len() {
        return Err(format!("the tensors end at byte {end}, but the file is {} bytes long", file.len()));
    }
    Ok(entries)
}

/// Checks one tensor of a header; `start` is the first byte of the data, `data` their number.
fn entry(name: String, raw: RawEntry, start: usize, data: usize) -> std::result::Result<Entry, String> {
    let fail = |message: String| format!("tensor {}: {message}", cut(&name));
    let Some(&(stored, bits)) = TYPES.iter().find(|(name, _)| *name == raw.dtype) else {
        return Err(fail(format!("dtype {} is unknown", cut(&raw.dtype))));
    };
    let (first, end) = raw.data_offsets;
    if first > end || end > data as u64 {
        return Err(fail(format!(
            "data_offsets [{first}, {end}] are not a range of the {data} bytes of data"
        )));
    }
    let bits = raw.shape.iter().try_fold(bits, |n, &size| n.checked_mul(size));
    let Some(bytes) = bits.filter(|b| b % 8 == 0).map(|b| b / 8) else {
        return Err(fail(format!("shape {:?} of {stored} is not a number of bytes", raw.shape)));
    };
    if bytes != end - first {
        return Err(fail(format!(
            "shape {:?} of {stored} takes {bytes} bytes, but data_offsets [{first}, {end}] hold {}",
            raw.shape,
            end - first
        )));
    }
    let shape = raw.shape.iter().map(|&size| size as usize).collect();
    Ok(Entry { name, stored, shape, range: start + first as usize..start + end as usize })
}

/// Writes tensors as a safetensors file, in the order given, each aligned to at least 8 bytes where sizes allow.
///
/// # Errors
/// [`Error::File`] if the file cannot be written.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let entry = |(name, tensor): &(String, Tensor)| {
        let stored = match tensor.dtype() {
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
            DType::F32 => "F32",
        };
        Entry { name: name.clone(), stored, shape: tensor.shape().to_vec(), range: 0..tensor.bytes().len() }
    };
    let entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let metadata = [("format".to_owned(), "pt".into())].into_iter().collect();
    write_stream(path, metadata, &entries, &mut |i, out| out.write_all(tensors[i].1.bytes()))
}

/// Writes a safetensors file whose data never lies in memory as a whole: `put` writes the bytes of one entry after the other.
/// Of the entries' ranges only the lengths count.
///
/// # Errors
/// [`Error::File`] if the file cannot be written, or an entry got another number of bytes than it says.
pub fn write_stream(
    path: &Path,
    metadata: Map<String, Value>,
    entries: &[Entry],
    put: &mut dyn FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), Value::Object(metadata));
    let mut end = 0;
    for e in entries {
        let start = end;
        end += e.range.len();
        let entry = serde_json::json!({"dtype": e.stored, "shape": e.shape, "data_offsets": [start, end]});
        header.insert(e.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces up to a multiple of 64 let the first tensor start on a cache line of the map.
    header.resize((8 + header.len()).next_multiple_of(64) - 8, b' ');
    let fail = |e: std::io::Error| Error::file(path, e.to_string());
    let mut out = Counted { out: BufWriter::new(File::create(path).map_err(fail)?), bytes: 0 };
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    out.write_all(&header).map_err(fail)?;
    for (i, e) in entries.iter().enumerate() {
        let start = out.bytes;
        put(i, &mut out).map_err(fail)?;
        let (written, expected) = (out.bytes - start, e.range.len() as u64);
        if written != expected {
            let message = format!("tensor {}: {written} bytes written, expected {expected}", cut(&e.name));
            return Err(Error::file(path, message));
        }
    }
    out.flush().map_err(fail)
}

/// A writer that knows how much went through it.
struct Counted {
    out: BufWriter<File>,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    #[test]
    fn malformed_headers_are_refused_with_the_place() {
        let table: &[(Vec<u8>, &str)] = &[
            (vec![], "is 0 bytes long"),
            (vec![1, 2, 3], "is 3 bytes long"),
            (u64::MAX.to_le_bytes().to_vec(), "byte 0: the header is 18446744073709551615 bytes long"),
            (100u64.to_le_bytes().to_vec(), "byte 0: the header is 100 bytes long, but only 0 follow"),
            (file("[]", 0), "header: invalid type"),
            (file("{", 0), "header: EOF"),
            (
                file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 3),
                "not a range of the 3 bytes",
            ),
            (
                file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
                "tensor \"a\": data_offsets [4, 0]",
            ),
            (file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4), "takes 8 bytes"),
            (file(r#"{"a":{"dtype":"X1","shape":[2],"data_offsets":[0,4]}}"#, 4), "dtype \"X1\" is unknown"),
            (file(r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}"#, 0), "not a number of bytes"),
            (
                file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4),
                "not a number of bytes",
            ),
            (file(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4), "tensor \"a\""),
            (
                file(r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, 4),
                "at most 8 sizes",
            ),
            (file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, 4), "unknown field"),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                    2,
                ),
                "\"a\" occurs twice",
            ),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                    3,
                ),
                "tensor \"b\" overlaps",
            ),
            (
                file(
                    r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
                    3,
                ),
                "tensor \"b\" leaves a gap",
            ),
            (file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, 3), "the tensors end at byte"),
        ];
        for (bytes, expected) in table {
            let message = parse_header(bytes).expect_err(expected);
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    #[test]
    fn an_unaligned_tensor_is_copied_and_equal() {
        // One byte in front shifts the float by one.
        let header = r#"{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#;
        let header = format!("{header:<120}");
        let mut bytes = file(&header, 1);
        bytes.extend(1.5f32.to_le_bytes());
        bytes.extend((-2.25f32).to_le_bytes());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.tensor(file.entry("f").unwrap()).unwrap().to_f32(), [1.5, -2.25]);
        assert!(file.tensor(file.entry("b").unwrap()).is_none(), "bytes are no weights");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let values = [1.0, -0.5, 3.25, 8.0, 0.0, 2.0];
        let tensors: Vec<_> = [DType::Bf16, DType::F16, DType::F32]
            .into_iter()
            .map(|d| (format!("t.{d}"), Tensor::rounded(d, vec![2, 3], &values)))
            .collect();
        write(&path, &tensors).unwrap();
        let file = TensorFile::open(&path).unwrap();
        for (name, tensor) in &tensors {
            let found = file.tensor(file.entry(name).unwrap()).unwrap();
            assert_eq!(
                (found.dtype(), found.shape(), found.bytes()),
                (tensor.dtype(), tensor.shape(), tensor.bytes())
            );
        }
        let theirs = std::fs::read(&path).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&theirs).unwrap().names().len(), 3);
    }
}
