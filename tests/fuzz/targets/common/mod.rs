//! What the targets share: a file for bytes, and what is done with a source.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use sidereal::catalog::source::{CodesFile, Format, Mapping, OnError, Sources};

/// Writes bytes to a file of this process.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sidereal-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for temporary files");
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    path
}

/// Finds the types of a source, and reads it with them.
pub fn read(path: &Path, format: Format, codes: Option<CodesFile>) {
    let mapping = Mapping { format: Some(format), ..Mapping::default() };
    let mut sources = Sources::new().file(path, mapping).on_error(OnError::Skip);
    if let Some(codes) = codes {
        sources = sources.codes(codes);
    }
    if let Ok(types) = sources.infer_types(&mut |_, _| ()) {
        let _ = sources.read(&types, &mut |_, _| ());
    }
}
