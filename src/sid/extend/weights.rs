//! The safetensors files of an extended folder: copied, or written anew with longer matrices.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Job, edit, rows};
use crate::error::{Error, Result};
use crate::model::tensors::{Entry, TensorFile, write_stream};

const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Writes all tensor files, and the index if there is one.
pub(super) fn write(job: &Job<'_>) -> Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(job.dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(|e| Error::file(job.dir, e.to_string()))?;
    files.retain(|file| file.extension().is_some_and(|e| e == "safetensors") && file.is_file());
    files.sort();
    // As the model is read: a single file wins over an index.
    let index = job.dir.join(INDEX);
    let sharded = !job.dir.join(SINGLE).exists() && index.exists();
    let mut shards = BTreeSet::new();
    let mut more = 0;
    for file in &files {
        let name = file.file_name().unwrap_or_default();
        let to = job.out.join(name);
        if sharded || name == SINGLE {
            more += file_with_rows(job, file, &to)?;
            shards.insert(name.to_string_lossy().into_owned());
        } else {
            // An adapter, or what else lies there: no file of the checkpoint.
            std::fs::copy(file, &to).map_err(|e| Error::file(file, format!("cannot be copied: {e}")))?;
        }
    }
    if sharded {
        edit(&index, &job.out.join(INDEX), |map| {
            let total = map.get_mut("metadata").and_then(|m| m.get_mut("total_size"));
            if let Some((slot, old)) = total.and_then(|slot| slot.as_u64().map(|old| (slot, old))) {
                *slot = Value::from(old + more);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Writes one file of the checkpoint; returns the bytes by which its tensors grew.
fn file_with_rows(job: &Job<'_>, from: &Path, to: &Path) -> Result<u64> {
    let file = TensorFile::open(from)?;
    let is_matrix = |entry: &Entry| entry.name == EMBED || entry.name == HEAD;
    if job.tokens.added.is_empty() || !file.entries().iter().any(is_matrix) {
        std::fs::copy(from, to).map_err(|e| Error::file(from, format!("cannot be copied: {e}")))?;
        return Ok(0);
    }
    let mut entries: Vec<Entry> = file.entries().to_vec();
    let mut new_rows: Vec<Option<Vec<u8>>> = vec![None; entries.len()];
    let mut more = 0;
    for (entry, new) in entries.iter_mut().zip(&mut new_rows).filter(|(entry, _)| is_matrix(entry)) {
        let expected = [job.model.shape().vocab, job.model.shape().hidden];
        let Some(tensor) = file.tensor(entry).filter(|_| entry.shape == expected) else {
            let message = format!(
                "{}: expected {expected:?} in bf16, f16 or f32, found {:?} {}",
                entry.name, entry.shape, entry.stored
            );
            return Err(Error::file(from, message));
        };
        // A head that is stored although it is tied stays equal to the embedding.
        let matrix = u64::from(entry.name == HEAD && !job.model.config.tied);
        *new = Some(rows::rows(job, &tensor, matrix)?);
        let width = expected[1] * tensor.dtype().size();
        entry.shape[0] = job.tokens.rows;
        more += (job.tokens.rows - expected[0]) * width;
        entry.range.end += (job.tokens.rows - expected[0]) * width;
    }
    write_stream(to, file.metadata(), &entries, &mut |at, out| {
        let old = &file.bytes()[file.entries()[at].range.clone()];
        match &new_rows[at] {
            None => out.write_all(old),
            Some(new) => splice(old, new, entries[at].range.len() / job.tokens.rows, job.tokens.old, out),
        }
    })?;
    Ok(more as u64)
}

/// Old rows with new ones from row `first` on, in place of padding as far as there is any.
fn splice(old: &[u8], new: &[u8], width: usize, first: usize, out: &mut dyn Write) -> std::io::Result<()> {
    let start = (first * width).min(old.len());
    out.write_all(&old[..start])?;
    out.write_all(new)?;
    out.write_all(old.get(start + new.len()..).unwrap_or_default())
}
