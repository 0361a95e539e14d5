//! Writing a file.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use super::super::Catalog;
use super::format::{self, ENTRY, HEADER, Header};
use super::sections::sections;
use crate::error::{Error, Result};

/// Bytes between two reports.
const PIECE: usize = 8 << 20;

impl Catalog {
    /// Writes this catalog into a file that [`Catalog::open`] maps; the same catalog gives the same bytes.
    ///
    /// What the path named before stays until all is on disk, then the new file takes its place at once. `progress` is told
    /// (done, total) in bytes.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be written to or the disk is full; nothing is left behind then.
    /// [`Error::Unsupported`] on a big-endian machine.
    pub fn write(&self, path: impl AsRef<Path>, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        super::little_endian()?;
        let path = path.as_ref();
        let fail = |error: io::Error| Error::file(path, format!("cannot be written: {error}"));
        let (temporary, file) = create(path).map_err(fail)?;
        let done = self.write_to(&file, progress).and_then(|()| file.sync_all());
        let done = done.and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = done {
            // The first error is the one to tell; the file may be gone already.
            let _ = std::fs::remove_file(&temporary);
            return Err(fail(error));
        }
        sync_folder(path).map_err(fail)
    }

    fn write_to(&self, mut file: impl Write, progress: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        let sections = sections(self);
        let lengths: Vec<_> = sections
            .iter()
            .zip(self.checksums())
            .map(|(section, &checksum)| (section.key, section.bytes.len() as u64, checksum))
            .collect();
        let (entries, file_length) = format::place(&lengths);
        let table: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        let header = Header {
            sections: entries.len() as u32,
            file_length,
            layout_hash: self.layout_hash(),
            digest: format::digest(lengths.into_iter()),
            table_checksum: xxh3_64(&table),
        };
        file.write_all(&header.to_bytes())?;
        file.write_all(&table)?;
        let mut at = (HEADER + ENTRY * entries.len()) as u64;
        for (section, entry) in sections.iter().zip(&entries) {
            pad(&mut file, &mut at, entry.offset)?;
            for piece in section.bytes.chunks(PIECE) {
                file.write_all(piece)?;
                at += piece.len() as u64;
                progress(at, file_length);
            }
        }
        pad(&mut file, &mut at, file_length)?;
        progress(at, file_length);
        Ok(())
    }
}

fn pad(file: &mut impl Write, at: &mut u64, to: u64) -> io::Result<()> {
    file.write_all(&[0; format::ALIGN][..(to - *at) as usize])?;
    *at = to;
    Ok(())
}

/// A new file beside `path`, so that renaming it does not cross file systems.
fn create(path: &Path) -> io::Result<(PathBuf, File)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    if path.is_dir() {
        return Err(io::Error::other("the path is a folder"));
    }
    loop {
        let mut temporary = OsString::from(".");
        temporary.push(name);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".{}-{number}.tmp", std::process::id()));
        let temporary = path.with_file_name(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            // Left behind by a process that was killed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            file => return Ok((temporary, file?)),
        }
    }
}

/// Makes the new name survive a power failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::super::synthetic;
    use super::*;

    /// A disk with so many bytes left.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_is_met() {
        let catalog = synthetic::tiny();
        let mut length = 0;
        catalog.write_to(Disk(usize::MAX), &mut |_, total| length = total as usize).unwrap();
        for left in (0..length).step_by(97).chain([63, 64, length - 1]) {
            let error = catalog.write_to(Disk(left), &mut |_, _| ()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{left} bytes left");
        }
        catalog.write_to(Disk(length), &mut |_, _| ()).unwrap();
    }
}
