//! A model folder that speaks a layout: tokens in the tokenizer, rows in embedding and head.
//!
//! New ids follow the tokenizer's last one; the matrices grow only where ids go beyond their rows, so that padding rows are used first. Rows of tokens that
//! were there stay as they are, bit for bit, and so do their logits; every new token gets a new row, also in place of padding. The
//! folder is written beside its final place and moved there when it is complete and opens; the original is only read.

mod rows;
mod tokenizer;
mod weights;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::codebooks::Codebooks;
use crate::catalog::{Layout, LayoutSpec, Place};
use crate::error::{Error, Result};
use crate::ids::TokenId;
use crate::model::Model;
use crate::text::Tokenizer;

/// Kinds of files with weights that are not read here, and would contradict those that are written.
const LEFT_BEHIND: [&str; 8] = ["bin", "pt", "pth", "gguf", "onnx", "msgpack", "h5", "tflite"];

/// What the rows of new tokens are.
#[derive(Clone, Debug)]
pub enum Init {
    /// The mean of all rows of old tokens.
    Mean,
    /// Drawn for each value from the normal distribution with the mean and the deviation that old tokens have there.
    Normal,
    /// Zero.
    Zero,
    /// The mean, plus the code's centroid through a random projection, as long as old rows deviate from the mean on average: codes whose
    /// centroids are alike start alike. Openers, closers and codes of unique levels, which have no centroid, are drawn as with `Normal`.
    Centroids(Codebooks),
}

/// What an extension did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Extension {
    /// Tokens that were added.
    pub added: usize,
    /// Tokens of the layout that were there.
    pub existing: usize,
    /// The first added id.
    pub first: Option<TokenId>,
    /// Rows of the matrices before.
    pub rows_before: usize,
    /// Rows of the matrices now.
    pub rows: usize,
    /// Files that were not copied because they hold weights of another kind.
    pub left_behind: Vec<String>,
}

/// Writes `out`, a copy of the model folder `dir` that speaks `layout`.
///
/// # Errors
/// [`Error::File`] with file and place if the folder cannot be read, or `out` exists and is not empty; [`Error::Invalid`] if the layout gives ids instead
/// of names or does not fit the codebooks. Nothing is left at `out` then.
pub fn extend(dir: &Path, layout: &LayoutSpec, init: &Init, seed: u64, out: &Path) -> Result<Extension> {
    let model = Model::open(dir)?;
    let tokenizer = Tokenizer::open(dir)?;
    if tokenizer.vocab_size() > model.shape().vocab {
        let (tokens, rows) = (tokenizer.vocab_size(), model.shape().vocab);
        let message = format!("its ids go up to {}, but the model has rows for {rows} tokens", tokens - 1);
        return Err(Error::file(dir.join("tokenizer.json"), message));
    }
    let names = token_names(layout)?;
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file() {
        return Err(Error::file(out, "exists; an extended model is written to a folder of its own"));
    }
    let tokens = Tokens::new(&tokenizer, &names, model.shape().vocab);
    let resolved = Layout::resolve(layout, |token| tokens.ids.get(token).copied())?;
    let partial = partial_name(out)?;
    let written = write(&Job {
        dir,
        out: &partial,
        model: &model,
        layout,
        resolved: &resolved,
        tokens: &tokens,
        init,
        seed,
    });
    let left_behind = match written.and_then(|left| verify(&partial, layout, &tokens).map(|()| left)) {
        Ok(left) => left,
        Err(error) => {
            // What could be written is of no use; that it cannot be removed would hide the reason.
            let _ = std::fs::remove_dir_all(&partial);
            return Err(error);
        }
    };
    if out.exists() {
        std::fs::remove_dir(out).map_err(|e| Error::file(out, e.to_string()))?;
    }
    std::fs::rename(&partial, out).map_err(|e| Error::file(out, e.to_string()))?;
    Ok(Extension {
        added: tokens.added.len(),
        existing: names.len() - tokens.added.len(),
        first: tokens.added.first().map(|(_, id)| *id),
        rows_before: model.shape().vocab,
        rows: tokens.rows,
        left_behind,
    })
}

/// The names of all tokens of a layout, openers first.
fn token_names(layout: &LayoutSpec) -> Result<Vec<String>> {
    let mut names: Vec<String> = layout.open.iter().chain(&layout.close).cloned().collect();
    for (at, of_type) in layout.types.iter().enumerate() {
        if !of_type.token.contains("{code}") {
            let message =
                format!("`{}` names no tokens; a pattern with {{code}} is needed to add them", of_type.token);
            return Err(Error::invalid(format!("types[{at}].token"), message));
        }
        for (level, &codes) in of_type.levels.iter().enumerate() {
            let letter = char::from(b'a' + level.min(25) as u8).to_string();
            let named = of_type.token.replace("{level}", &level.to_string()).replace("{letter}", &letter);
            // `Layout::resolve` checks the sizes; this only keeps a foreign file from filling the memory.
            names.extend(
                (0..codes.min(crate::catalog::MAX_CODES + 1))
                    .map(|code| named.replace("{code}", &code.to_string())),
            );
        }
    }
    Ok(names)
}

/// The tokens of a layout and their ids.
struct Tokens {
    ids: HashMap<String, TokenId>,
    /// Those that are new, by id.
    added: Vec<(String, TokenId)>,
    /// Entries of the old tokenizer: ids below have a meaning already.
    old: usize,
    /// Rows of the matrices afterwards.
    rows: usize,
}

impl Tokens {
    fn new(tokenizer: &Tokenizer, names: &[String], rows: usize) -> Tokens {
        let old = tokenizer.vocab_size();
        let (mut ids, mut added) = (HashMap::new(), Vec::new());
        for name in names {
            if ids.contains_key(name) {
                continue;
            }
            let id = tokenizer.token_to_id(name).unwrap_or_else(|| {
                let id = TokenId((old + added.len()) as u32);
                added.push((name.clone(), id));
                id
            });
            ids.insert(name.clone(), id);
        }
        let rows = rows.max(added.last().map_or(0, |(_, id)| id.index() + 1));
        Tokens { ids, added, old, rows }
    }
}

/// All that writing needs.
struct Job<'a> {
    dir: &'a Path,
    out: &'a Path,
    model: &'a Model,
    layout: &'a LayoutSpec,
    resolved: &'a Layout,
    tokens: &'a Tokens,
    init: &'a Init,
    seed: u64,
}

impl Job<'_> {
    /// The place of an added token in the layout.
    fn place(&self, added: usize) -> Option<Place> {
        self.resolved.place(self.tokens.added[added].1)
    }
}

/// A folder beside `out` that is not there yet.
fn partial_name(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().ok_or_else(|| Error::file(out, "is not a name for a new folder"))?;
    let mut partial = OsStr::new(".").to_os_string();
    partial.push(name);
    partial.push(format!(".{}", std::process::id()));
    Ok(out.with_file_name(partial))
}

fn write(job: &Job<'_>) -> Result<Vec<String>> {
    std::fs::create_dir_all(job.out).map_err(|e| Error::file(job.out, e.to_string()))?;
    let mut left_behind = Vec::new();
    let mut files: Vec<PathBuf> = std::fs::read_dir(job.dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|e| Error::file(job.dir, e.to_string()))?;
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = file.extension().and_then(OsStr::to_str).unwrap_or_default();
        let to = job.out.join(&name);
        match name.as_str() {
            _ if !file.is_file() => {}
            "tokenizer.json" => tokenizer::vocabulary(job, &file, &to)?,
            "tokenizer_config.json" => tokenizer::config(job, &file, &to)?,
            "added_tokens.json" => tokenizer::added(job, &file, &to)?,
            "config.json" => edit(&file, &to, |map| {
                map.insert("vocab_size".into(), job.tokens.rows.into());
                Ok(())
            })?,
            "sid_layout.json" | "model.safetensors.index.json" => {}
            _ if extension == "safetensors" => {}
            _ if LEFT_BEHIND.contains(&extension) || name.ends_with(".bin.index.json") => {
                left_behind.push(name)
            }
            _ => {
                std::fs::copy(&file, &to)
                    .map_err(|e| Error::file(&file, format!("cannot be copied: {e}")))?;
            }
        }
    }
    weights::write(job)?;
    let layout = serde_json::to_string_pretty(job.layout).expect("a layout is JSON");
    put(&job.out.join("sid_layout.json"), &format!("{layout}\n"))?;
    Ok(left_behind)
}

/// Opens what was written, as an engine would.
fn verify(out: &Path, layout: &LayoutSpec, tokens: &Tokens) -> Result<()> {
    let model = Model::open(out)?;
    let tokenizer = Tokenizer::open(out)?;
    if model.shape().vocab != tokens.rows || tokenizer.vocab_size() > tokens.rows {
        let (rows, vocab) = (model.shape().vocab, tokenizer.vocab_size());
        let message = format!("{rows} rows and {vocab} tokens were written, expected {} rows", tokens.rows);
        return Err(Error::file(out, message));
    }
    let wrong = tokens.ids.iter().find(|(name, id)| tokenizer.token_to_id(name) != Some(**id));
    if let Some((name, id)) = wrong {
        let found = tokenizer.token_to_id(name);
        return Err(Error::file(out, format!("token {name:?} became id {found:?} instead of {id}")));
    }
    Layout::resolve(layout, |token| tokenizer.token_to_id(token)).map(drop)
}

fn put(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| Error::file(path, e.to_string()))
}

/// Copies a JSON object with changes.
fn edit(from: &Path, to: &Path, change: impl FnOnce(&mut Map<String, Value>) -> Result<()>) -> Result<()> {
    let bytes = std::fs::read(from).map_err(|e| Error::file(from, e.to_string()))?;
    let mut value: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(from, format!("is not JSON: {e}")))?;
    let Some(map) = value.as_object_mut() else { return Err(Error::file(from, "is not a JSON object")) };
    change(map)?;
    put(to, &format!("{value:#}\n"))
}
