//! Access to a Parquet file from several threads, and the bounds on what it may ask for.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

/// Most values of a page. A page says how many it has before it has to hold them: a run of a billion equal levels takes six bytes.
const MAX_PAGE_VALUES: u32 = 1 << 24;

/// A file read at places of the reader's choice. The parquet crate's own reader of files moves one cursor for all threads.
pub struct Chunks {
    file: Arc<Mutex<File>>,
    length: u64,
}

impl Chunks {
    pub fn open(path: &Path) -> std::io::Result<Chunks> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Chunks { file: Arc::new(Mutex::new(file)), length })
    }

    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<At>;

    fn get_read(&self, start: u64) -> Result<BufReader<At>> {
        Ok(BufReader::new(At { file: Arc::clone(&self.file), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes from byte {start} on, but the file has {}",
                self.length
            )));
        }
        let mut bytes = vec![0; length];
        At { file: Arc::clone(&self.file), position: start }.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// A place in a file.
pub struct At {
    file: Arc<Mutex<File>>,
    position: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // Nothing is left half done by a reader that panics: every one seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.position))?;
        let read = file.read(buffer)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// The pages of a column, those with too many values refused.
pub struct Bounded(pub Box<dyn PageReader>);

impl Iterator for Bounded {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Bounded {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.0.get_next_page()?;
        match &page {
            Some(page) if page.num_values() > MAX_PAGE_VALUES => Err(ParquetError::General(format!(
                "a page of {} values, at most {MAX_PAGE_VALUES}",
                page.num_values()
            ))),
            _ => Ok(page),
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.0.at_record_boundary()
    }
}
