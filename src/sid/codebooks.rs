//! The codebooks of a catalog, and their file.
//!
//! A safetensors file with a tensor `TYPE.LEVEL` `[codes, dim]` of float32 per level, and in its metadata `format` (`sidereal-codebooks`), `version` (`1`)
//! and `types`, a JSON list in type order: `name`, `levels` (codes per level), `unique` (codes of the unique level, or null), `normalize`,
//! `seed`, `rows` (fitted to), `errors` (mean squared length of the vectors, and of what is left after each level).

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Progress;
use super::codebook::Codebook;
use super::npy::Codes;
use super::unique;
use super::vectors::{MAX_DIM, Vectors};
use crate::catalog::{MAX_CODES, MAX_LEVELS};
use crate::device::ops::Tensor;
use crate::error::{Error, Result};
use crate::model::tensors::{Entry, TensorFile, write_stream};

const FORMAT: &str = "sidereal-codebooks";
const VERSION: &str = "1";
/// Values that keep sums of squares within float32, as in vectors.
const MAX_VALUE: f32 = 2e15;

/// Whether a value is a number within the bound.
fn is_bounded(value: f32) -> bool {
    value.abs() <= MAX_VALUE
}

/// The codebooks of all types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codebooks {
    /// Types in type order.
    pub types: Vec<TypeCodebooks>,
}

/// The codebooks of one type, and how they came about.
#[derive(Clone, Debug, PartialEq)]
pub struct TypeCodebooks {
    /// Name of the type.
    pub name: String,
    /// Centroids of each level; at least one level, all of one width.
    pub levels: Vec<Codebook>,
    /// Codes of a last level that separates items with equal codes.
    pub unique: Option<usize>,
    /// Whether vectors are scaled to length 1 first.
    pub normalize: bool,
    /// Seed of the fit.
    pub seed: u64,
    /// Rows of the fit.
    pub rows: usize,
    /// Over the rows of the fit: mean squared length of the vectors, then of what is left after each level.
    pub errors: Vec<f64>,
}

/// A type as the metadata spells it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    name: String,
    levels: Vec<usize>,
    unique: Option<usize>,
    normalize: bool,
    seed: u64,
    rows: usize,
    errors: Vec<f64>,
}

impl TypeCodebooks {
    /// Width of the vectors.
    pub fn dim(&self) -> usize {
        self.levels[0].dim()
    }

    /// Codes per level, the unique level's included: the type's `levels` in a layout.
    pub fn sizes(&self) -> Vec<usize> {
        self.levels.iter().map(Codebook::codes).chain(self.unique).collect()
    }

    /// Gives rows codes from these centroids: the bits that [`fit`](super::fit) gave the same rows, on every machine and for any number of threads.
    ///
    /// With a unique level each row takes the lowest last code that no row of `taken` and no row before it has under the same codes.
    ///
    /// # Errors
    /// [`Error::File`] names the row whose value is not a number or that finds no free code, or says that widths differ.
    pub fn assign(&self, vectors: &Vectors, taken: Option<&Codes>, progress: Progress<'_>) -> Result<Codes> {
        vectors.check()?;
        let (codes, _) = self.nearest(vectors, progress)?;
        match self.unique {
            None => Ok(codes),
            Some(size) => {
                unique::extend(&codes, taken, size).map_err(|message| Error::file(vectors.name(), message))
            }
        }
    }

    fn described(&self) -> Described {
        Described {
            name: self.name.clone(),
            levels: self.levels.iter().map(Codebook::codes).collect(),
            unique: self.unique,
            normalize: self.normalize,
            seed: self.seed,
            rows: self.rows,
            errors: self.errors.clone(),
        }
    }
}

impl Codebooks {
    /// The codebooks of a type; the only one's if no name is given.
    ///
    /// # Errors
    /// [`Error::Invalid`] on `type` if there is none of that name, or none is named and there are several.
    pub fn of_type(&self, name: Option<&str>) -> Result<&TypeCodebooks> {
        let names = || self.types.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
        match name {
            Some(name) => self.types.iter().find(|t| t.name == name).ok_or_else(|| {
                Error::invalid(
                    "type",
                    format!("there are no codebooks of `{name}`; there are of {}", names()),
                )
            }),
            None if self.types.len() == 1 => Ok(&self.types[0]),
            None => Err(Error::invalid("type", format!("name one of {}", names()))),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written, [`Error::Invalid`] if two types have one name.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.types.iter().find(|t| !names.insert(&t.name)) {
            return Err(Error::invalid("types", format!("a second type named `{}`", twice.name)));
        }
        let types: Vec<Described> = self.types.iter().map(TypeCodebooks::described).collect();
        let types = serde_json::to_string(&types).expect("names and numbers are JSON");
        let metadata = [("format", FORMAT.to_owned()), ("version", VERSION.to_owned()), ("types", types)];
        let metadata: Map<String, Value> =
            metadata.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
        let books: Vec<(String, &Codebook)> = self
            .types
            .iter()
            .flat_map(|t| {
                t.levels.iter().enumerate().map(|(level, book)| (format!("{}.{level}", t.name), book))
            })
            .collect();
        let entry = |(name, book): &(String, &Codebook)| Entry {
            name: name.clone(),
            stored: "F32",
            shape: vec![book.codes(), book.dim()],
            range: 0..size_of_val(book.centroids()),
        };
        let entries: Vec<Entry> = books.iter().map(entry).collect();
        write_stream(path.as_ref(), metadata, &entries, &mut |i, out| {
            books[i].1.centroids().iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))
        })
    }

    /// Reads a file that [`Codebooks::write`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] names the key or tensor that is missing, of another shape, or not made of numbers.
    pub fn read(path: impl AsRef<Path>) -> Result<Codebooks> {
        let file = TensorFile::open(path.as_ref())?;
        let fail = |message: String| Error::file(file.path(), message);
        let metadata = file.metadata();
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
        if (text("format"), text("version")) != (FORMAT, VERSION) {
            return Err(fail(format!(
                "metadata does not say that this is a {FORMAT} file of version {VERSION}"
            )));
        }
        let types: Vec<Described> =
            serde_json::from_str(text("types")).map_err(|e| fail(format!("metadata, types: {e}")))?;
        let mut names = BTreeSet::new();
        if let Some(twice) = types.iter().find(|t| !names.insert(&t.name)) {
            return Err(fail(format!("metadata, types: a second type named {:?}", twice.name)));
        }
        let types = types.iter().map(|t| read_type(&file, t).map_err(&fail)).collect::<Result<_>>()?;
        Ok(Codebooks { types })
    }
}

fn read_type(file: &TensorFile, t: &Described) -> Result<TypeCodebooks, String> {
    let count = t.levels.len() + usize::from(t.unique.is_some());
    let sizes = t.levels.iter().chain(&t.unique);
    if t.levels.is_empty() || count > MAX_LEVELS || !sizes.clone().all(|n| (1..=MAX_CODES).contains(n)) {
        let sizes: Vec<&usize> = sizes.collect();
        return Err(format!(
            "type {:?}: levels {sizes:?}: expected 1 to {MAX_LEVELS} of 1 to {MAX_CODES} codes",
            t.name
        ));
    }
    if t.errors.len() != t.levels.len() + 1 {
        return Err(format!("type {:?}: {} errors, expected {}", t.name, t.errors.len(), t.levels.len() + 1));
    }
    let mut levels: Vec<Codebook> = Vec::new();
    for (level, &codes) in t.levels.iter().enumerate() {
        let name = format!("{}.{level}", t.name);
        let entry = file.entry(&name).ok_or_else(|| format!("there is no tensor {name:?}"))?;
        let dim = levels.first().map_or(entry.shape.get(1).copied().unwrap_or(0), Codebook::dim);
        if entry.stored != "F32" || entry.shape != [codes, dim] || !(1..=MAX_DIM).contains(&dim) {
            let (shape, stored) = (&entry.shape, entry.stored);
            return Err(format!(
                "tensor {name:?}: expected [{codes}, {}] F32, found {shape:?} {stored}",
                dim.max(1)
            ));
        }
        let tensor: Tensor = file.tensor(entry).ok_or_else(|| format!("tensor {name:?} is not F32"))?;
        let values: Vec<f32> =
            tensor.bytes().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        if let Some(at) = values.iter().position(|v| !is_bounded(*v)) {
            let value = values[at];
            return Err(format!(
                "tensor {name:?}, row {}, column {}: {value} is not a number within ±{MAX_VALUE:e}",
                at / dim,
                at % dim
            ));
        }
        levels.push(Codebook::new(dim, values));
    }
    Ok(TypeCodebooks {
        name: t.name.clone(),
        levels,
        unique: t.unique,
        normalize: t.normalize,
        seed: t.seed,
        rows: t.rows,
        errors: t.errors.clone(),
    })
}
