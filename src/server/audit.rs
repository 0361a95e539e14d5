//! A record of what was answered: one JSON line per answer, written on a thread of its own.
//!
//! Neither the disk nor the log's size can hold up an answer: lines wait in a bounded queue, what does not fit is counted as lost, and a file that
//! has grown to its bound is renamed to `FILE.1`, replacing the one before, and begun anew.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};

/// Lines that may wait for the disk.
const WAITING_LINES: usize = 8192;
/// How long a line may wait in memory.
const FLUSH_AFTER: Duration = Duration::from_millis(200);

/// One line.
#[derive(Serialize)]
pub(crate) struct Record<'a> {
    /// Unix time, milliseconds.
    pub time_ms: u64,
    pub request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<&'a str>,
    /// Name of the API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<&'a str>,
    pub model: &'a str,
    pub model_hash: &'a str,
    pub snapshot: Option<&'a str>,
    /// Digest of the filter in its canonical form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    pub finish_reason: &'a str,
    /// Normaliser of the scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<crate::device::ops::Normalizer>,
    /// Ids and scores in the answer's order.
    pub items: Vec<(&'a str, f32)>,
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

/// The log.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Audit {
    /// Opens the file, to be appended to, and starts its thread.
    pub fn open(path: &Path, max_bytes: u64) -> Result<Audit> {
        let mut log = LogFile::open(path, max_bytes)?;
        let (sender, lines) = sync_channel(WAITING_LINES);
        let writer = std::thread::Builder::new()
            .name("sidereal-audit".to_owned())
            .spawn(move || log.write_all_of(&lines))
            .map_err(|error| Error::file(path, format!("its thread could not be started: {error}")))?;
        Ok(Audit { lines: Some(sender), writer: Some(writer) })
    }

    /// Queues a line. `false`: it is lost, since the disk does not keep up.
    #[must_use]
    pub fn write(&self, record: &Record<'_>) -> bool {
        let Ok(mut line) = serde_json::to_vec(record) else { return false };
        line.push(b'\n');
        self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok())
    }
}

impl Drop for Audit {
    /// Waits until everything queued is on disk.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    file: BufWriter<File>,
    bytes: u64,
}

impl LogFile {
    fn open(path: &Path, max_bytes: u64) -> Result<LogFile> {
        let refused = |error: std::io::Error| Error::file(path, error.to_string());
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(refused)?;
        let bytes = file.metadata().map_err(refused)?.len();
        Ok(LogFile { path: path.to_path_buf(), max_bytes, file: BufWriter::new(file), bytes })
    }

    fn write_all_of(&mut self, lines: &Receiver<Vec<u8>>) {
        let mut failed = false;
        loop {
            let line = match lines.recv_timeout(FLUSH_AFTER) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    self.note(&mut failed, |log| log.file.flush());
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.note(&mut failed, |log| log.file.flush());
                    return;
                }
            };
            self.note(&mut failed, |log| log.append(&line));
        }
    }

    /// Says once that the disk fails, and once that it works again.
    fn note(&mut self, failed: &mut bool, work: impl FnOnce(&mut LogFile) -> std::io::Result<()>) {
        match work(self) {
            Ok(()) if *failed => {
                tracing::warn!(file = %self.path.display(), "the audit log can be written again")
            }
            Err(error) if !*failed => {
                tracing::error!(file = %self.path.display(), %error, "the audit log cannot be written");
                *failed = true;
                return;
            }
            Err(_) => return,
            Ok(()) => {}
        }
        *failed = false;
    }

    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            self.file.flush()?;
            let mut old = self.path.as_os_str().to_owned();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = BufWriter::new(OpenOptions::new().create(true).append(true).open(&self.path)?);
            self.bytes = 0;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}
