//! Models: what their folders say, their weights, and the one walk through a decoder.
//!
//! [`Model::open`] reads a Hugging Face folder; nothing is trusted and nothing is copied whole. What an engine needs beyond
//! tensors and sizes (tokenizer, template, layout) other rooms read from the same folder.

mod adapter;
pub mod config;
pub mod decoder;
mod fields;
pub mod random;
mod rope;
pub mod tensors;
pub mod tiny;
pub mod weights;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use adapter::Adapter;
pub use config::{ARCHITECTURES, Architecture, Config, GenerationDefaults};
pub use random::RandomSpec;
pub use tiny::{DemoSpec, write_demo};

use crate::device::ops::{DType, Shape, Tensor, Weights};
use crate::error::{Error, Result};
use crate::ids::TokenId;

/// Told how far a long job is: bytes done, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A model, ready to be given to a device.
#[derive(Clone, Debug)]
pub struct Model {
    /// The folder's name, or `random-…`.
    pub name: String,
    /// The folder; `None` for random models.
    pub dir: Option<PathBuf>,
    /// 16 hexadecimal digits that change with the configuration, the tensors' shapes and (almost surely) their values.
    pub id: String,
    /// The checked configuration.
    pub config: Config,
    /// All weights; views of mapped files.
    pub weights: Weights,
    /// The adapter for user vectors, if the model has one.
    pub adapter: Option<Adapter>,
    maps: Vec<Arc<Mmap>>,
}

impl Model {
    /// Opens a Hugging Face folder. The weights are mapped, not read: this takes milliseconds whatever the size.
    ///
    /// # Errors
    /// [`Error::File`] names file and key or tensor; [`Error::Unsupported`] names what is not served.
    pub fn open(dir: &Path) -> Result<Model> {
        if !dir.is_dir() {
            return Err(Error::file(dir, "is not a folder"));
        }
        let config = Config::read(dir)?;
        let checkpoint = weights::Checkpoint::open(dir, config.dtype)?;
        let adapter = Adapter::open(dir, &checkpoint, config.shape.hidden)?;
        let name =
            dir.canonicalize().ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        let model = Model::of(name.unwrap_or_else(|| "model".into()), config, &checkpoint)?;
        Ok(Model { dir: Some(dir.to_path_buf()), adapter, ..model })
    }

    /// A model whose files are part of the program: the contents of `config.json`, `generation_config.json` and
    /// `model.safetensors`.
    ///
    /// # Errors
    /// As [`Model::open`], with bare file names.
    pub fn from_static(name: &str, config: &str, generation: &str, weights: &'static [u8]) -> Result<Model> {
        let (config_path, generation_path) = (Path::new("config.json"), Path::new("generation_config.json"));
        let config = Config::from_maps(
            (config_path, &fields::parse_object(config_path, config)?),
            (generation_path, &fields::parse_object(generation_path, generation)?),
        )?;
        let file = tensors::TensorFile::from_static(Path::new("model.safetensors"), weights)?;
        let checkpoint = weights::Checkpoint::of(file, config.dtype);
        Model::of(name.to_owned(), config, &checkpoint)
    }

    fn of(name: String, config: Config, checkpoint: &weights::Checkpoint) -> Result<Model> {
        let mut taken = HashSet::new();
        let weights = weights::assemble(&config, &mut |name, shape| {
            taken.insert(name.to_owned());
            checkpoint.take(name, shape)
        })?;
        let unused = checkpoint.unused(&taken);
        if let Some(first) = unused.first() {
            // As in transformers no error: a checkpoint may hold what its config does not ask for.
            tracing::warn!("{name}: {} tensors are not used, {first} first", unused.len());
        }
        let mut id = Fnv::new();
        id.feed(format!("{:?}", config.shape).as_bytes());
        checkpoint.digest(&mut |bytes| id.feed(bytes));
        let maps = checkpoint.maps();
        Ok(Model { name, dir: None, id: id.hex(), config, weights, adapter: None, maps })
    }

    /// A model with random weights and the shape of a real one ([`random::names`]); see [`RandomSpec`] for more.
    ///
    /// # Errors
    /// [`Error::Unsupported`] lists the names.
    pub fn random(name: &str, dtype: DType, seed: u64) -> Result<Model> {
        RandomSpec::named(name)?.dtype(dtype).seed(seed).build()
    }

    /// Sizes, windows and rope.
    pub fn shape(&self) -> &Shape {
        &self.config.shape
    }

    /// Tokens that end an answer, sorted.
    pub fn eos(&self) -> &[TokenId] {
        &self.config.eos
    }

    /// The type of the matrices: the default of the activations.
    pub fn dtype(&self) -> DType {
        self.weights.layers.first().map_or(self.weights.embed.dtype(), |l| l.q.dtype())
    }

    /// Bytes of all weights, a tied head counted once.
    pub fn weight_bytes(&self) -> usize {
        let mut bytes = 0;
        self.each(&mut |t| bytes += t.bytes().len());
        bytes
    }

    /// Reads all weights into the page cache, so that the first request does not wait for the disk.
    ///
    /// Reading is advice, not a promise: the system may drop pages again. Takes as long as the disk does.
    pub fn preload(&self, progress: Progress<'_>) {
        const PIECE: usize = 64 << 20;
        let total: u64 = self.maps.iter().map(|m| m.len() as u64).sum();
        let mut done = 0;
        for map in &self.maps {
            #[cfg(unix)]
            if let Err(e) = map.advise(memmap2::Advice::WillNeed) {
                tracing::debug!("madvise: {e}");
            }
            for piece in map.chunks(PIECE) {
                // One byte of each page is enough to have it read; the sum keeps the loop from being optimised away.
                let sum = piece.iter().step_by(4096).fold(0u8, |sum, b| sum.wrapping_add(*b));
                std::hint::black_box(sum);
                done += piece.len() as u64;
                progress(done, total);
            }
        }
    }

    /// Visits every tensor once.
    fn each(&self, visit: &mut dyn FnMut(&Tensor)) {
        let w = &self.weights;
        visit(&w.embed);
        visit(&w.norm);
        if !self.config.tied {
            visit(&w.head);
        }
        for l in &w.layers {
            let plain = [&l.input_norm, &l.q, &l.k, &l.v, &l.o, &l.post_norm, &l.gate, &l.up, &l.down];
            plain.into_iter().for_each(&mut *visit);
            l.qkv_bias.iter().flatten().for_each(&mut *visit);
            l.qk_norm.iter().flatten().for_each(&mut *visit);
            l.o_bias.iter().for_each(&mut *visit);
        }
    }
}

/// FNV-1a over bytes, 64 bits: an identity for caches and logs, not a defence.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn feed(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn value(&self) -> u64 {
        self.0
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}
