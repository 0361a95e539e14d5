//! Vectors of items: `[rows, dim]`, mapped and converted block by block, never copied whole.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;

use super::npy;
use crate::device::ops::{DType, Tensor};
use crate::error::{Error, Result};
use crate::model::tensors::TensorFile;

/// Widest vectors that are read.
pub const MAX_DIM: usize = 1 << 16;
/// Largest value: squares of [`MAX_DIM`] of them still add up in float32.
const MAX_VALUE: f32 = 1e15;

/// Whether a value is a number within the bound.
fn is_bounded(value: f32) -> bool {
    value.abs() <= MAX_VALUE
}
/// Rows that are converted at a time.
pub(super) const BLOCK: usize = 256;

/// Vectors of items, one per row.
#[derive(Clone, Debug)]
pub struct Vectors {
    name: PathBuf,
    rows: usize,
    dim: usize,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    /// A mapped `.npy` file.
    Npy(Arc<Mmap>, Range<usize>, Element),
    /// A tensor of a mapped safetensors file.
    Tensor(Tensor),
    Held(Arc<Vec<f32>>),
}

#[derive(Clone, Copy, Debug)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }

    fn of_npy(descr: &str) -> Option<Element> {
        match descr {
            "<f2" => Some(Element::F16),
            "<f4" => Some(Element::F32),
            "<f8" => Some(Element::F64),
            _ => None,
        }
    }

    /// Converts little-endian elements.
    fn read(self, bytes: &[u8], out: &mut [f32]) {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
            for (to, from) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *to = read(*from);
            }
        }
        match self {
            Element::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Element::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Element::F32 => each(bytes, out, f32::from_le_bytes),
            Element::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

impl Vectors {
    /// Maps `FILE.npy` (float16, 32 or 64; row-major), `FILE.safetensors` (its only tensor of two sizes) or `FILE.safetensors:TENSOR`
    /// (float16, bfloat16, float32). The values are not looked at; see [`Vectors::check`].
    ///
    /// # Errors
    /// [`Error::File`] says what is wrong and at which byte, key or tensor.
    pub fn open(source: impl AsRef<Path>) -> Result<Vectors> {
        let source = source.as_ref();
        let (path, tensor) = split(source);
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match (extension, tensor) {
            ("npy", None) => Vectors::open_npy(&path),
            ("safetensors", tensor) => Vectors::open_safetensors(&path, tensor.as_deref()),
            _ => Err(Error::file(source, "is neither FILE.npy nor FILE.safetensors[:TENSOR]")),
        }
    }

    /// Vectors in memory, row by row.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `dim` is 0 or does not divide the number of values.
    pub fn from_rows(dim: usize, values: Vec<f32>) -> Result<Vectors> {
        if dim == 0 || !values.len().is_multiple_of(dim) {
            let message = format!("{} values are not rows of {dim}", values.len());
            return Err(Error::invalid("vectors", message));
        }
        let (rows, data) = (values.len() / dim, Data::Held(Arc::new(values)));
        Ok(Vectors { name: "vectors".into(), rows, dim, data })
    }

    fn open_npy(path: &Path) -> Result<Vectors> {
        let fail = |e: std::io::Error| Error::file(path, e.to_string());
        // Asked before opening: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(fail)?.is_file() {
            return Err(Error::file(path, "is not a file"));
        }
        let file = File::open(path).map_err(fail)?;
        // SAFETY: the map is private and read-only, and its bytes are only ever converted to numbers, for which every bit
        // pattern is valid; as with mapped models, whoever truncates the file meanwhile ends the process.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let header = npy::parse(&map, |descr| Element::of_npy(descr).map(Element::size))
            .map_err(|message| Error::file(path, message))?;
        let (rows, dim) = matrix(path, &header.shape)?;
        let element = Element::of_npy(&header.descr).expect("the header was checked for it");
        Ok(Vectors { name: path.into(), rows, dim, data: Data::Npy(Arc::new(map), header.range, element) })
    }

    fn open_safetensors(path: &Path, name: Option<&str>) -> Result<Vectors> {
        let file = TensorFile::open(path)?;
        let entry = match name {
            Some(name) => file.entry(name).ok_or_else(|| {
                let names: Vec<&str> = file.entries().iter().take(8).map(|e| e.name.as_str()).collect();
                Error::file(path, format!("has no tensor {name:?}; its first are {names:?}"))
            })?,
            None => {
                let mut matrices = file.entries().iter().filter(|e| e.shape.len() == 2);
                match (matrices.next(), matrices.next()) {
                    (Some(one), None) => one,
                    (None, _) => return Err(Error::file(path, "has no tensor of two sizes")),
                    (Some(a), Some(b)) => {
                        let message = format!(
                            "has several tensors of two sizes ({:?}, {:?}, …); name one as FILE:TENSOR",
                            a.name, b.name
                        );
                        return Err(Error::file(path, message));
                    }
                }
            }
        };
        let (rows, dim) = matrix(path, &entry.shape)?;
        let Some(tensor) = file.tensor(entry) else {
            let message = format!("tensor {:?} is {}; F32, F16 and BF16 are read", entry.name, entry.stored);
            return Err(Error::file(path, message));
        };
        Ok(Vectors { name: path.into(), rows, dim, data: Data::Tensor(tensor) })
    }

    /// The file, or `vectors`.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Copies rows, as float32.
    ///
    /// # Panics
    /// If there are no such rows or `out` has another size.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), rows.len() * self.dim, "room for rows");
        let values = rows.start * self.dim..rows.end * self.dim;
        let (bytes, element) = match &self.data {
            Data::Held(all) => return out.copy_from_slice(&all[values]),
            Data::Npy(map, range, element) => (&map[range.clone()], *element),
            Data::Tensor(tensor) => {
                let element = match tensor.dtype() {
                    DType::F32 => Element::F32,
                    DType::F16 => Element::F16,
                    DType::Bf16 => Element::Bf16,
                };
                (tensor.bytes(), element)
            }
        };
        element.read(&bytes[values.start * element.size()..values.end * element.size()], out);
    }

    /// Checks every value; reads the whole file once.
    ///
    /// # Errors
    /// [`Error::File`] with row and column of the first value that is not a number, or not within ±1e15.
    pub fn check(&self) -> Result<()> {
        let blocks = self.rows.div_ceil(BLOCK);
        let first = (0..blocks).into_par_iter().map_init(Vec::new, |values, block| {
            let rows = block * BLOCK..((block + 1) * BLOCK).min(self.rows);
            values.resize(rows.len() * self.dim, 0.0);
            self.read(rows.clone(), values);
            // The comparison is false for NaN. Counting has no order, so that it is done in vectors.
            let bad = values.iter().filter(|v| !is_bounded(**v)).count();
            let at = if bad == 0 { None } else { values.iter().position(|v| !is_bounded(*v)) };
            at.map(|at| (rows.start + at / self.dim, at % self.dim, values[at]))
        });
        match first.find_first(Option::is_some).flatten() {
            None => Ok(()),
            Some((row, column, value)) => {
                let message =
                    format!("row {row}, column {column}: {value} is not a number within ±{MAX_VALUE:e}");
                Err(Error::file(&self.name, message))
            }
        }
    }
}

/// Cuts `FILE.safetensors:TENSOR`; a file whose name holds a colon wins.
fn split(source: &Path) -> (PathBuf, Option<String>) {
    let whole = || (source.to_path_buf(), None);
    if source.exists() {
        return whole();
    }
    match source.to_str().and_then(|text| text.rsplit_once(".safetensors:")) {
        Some((stem, tensor)) => (format!("{stem}.safetensors").into(), Some(tensor.to_owned())),
        None => whole(),
    }
}

/// Rows and width of a shape.
fn matrix(path: &Path, shape: &[usize]) -> Result<(usize, usize)> {
    match *shape {
        [rows, dim] if (1..=MAX_DIM).contains(&dim) && rows <= u32::MAX as usize => Ok((rows, dim)),
        _ => {
            let message = format!(
                "shape {shape:?}: expected [rows, dim] with at most {} rows and dim from 1 to {MAX_DIM}",
                u32::MAX
            );
            Err(Error::file(path, message))
        }
    }
}
