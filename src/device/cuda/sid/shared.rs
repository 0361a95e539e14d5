//! What searches share: the tries of their catalogs and the bitmaps of their masks, uploaded once and kept while one uses them.

use std::sync::{Arc, Weak};

use super::super::driver::{DevicePtr, Driver};
use super::memory::Staging;
use super::records::SidLevel;
use crate::catalog::{Bitmap, Catalog, Entries, Layout};
use crate::error::{Error, Result};
use crate::ids::TypeId;

/// Something uploaded, how many searches use it, and when it was last asked for.
struct Entry<T, V> {
    id: UploadId,
    /// Weak: what was swapped out must not stay because it was once searched.
    holder: Weak<T>,
    value: V,
    arena: DevicePtr,
    users: usize,
    asked: u64,
}

/// Names an upload that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UploadId(u64);

/// Uploads by the identity of what was uploaded.
pub(super) struct Uploads<T, V> {
    entries: Vec<Entry<T, V>>,
    /// Uploads that no search uses are kept, while somebody holds what they are of, up to this many.
    idle: usize,
    clock: u64,
}

impl<T, V> Uploads<T, V> {
    /// No uploads, of which at most `idle` will be kept without a search that uses them.
    pub fn new(idle: usize) -> Self {
        Uploads { entries: Vec::new(), idle, clock: 0 }
    }

    /// What `of` was uploaded as, and the name to release it by; `upload` is called if it was not, and returns that and the arena.
    pub fn acquire(
        &mut self,
        driver: &mut dyn Driver,
        of: &Arc<T>,
        upload: impl FnOnce(&mut dyn Driver, &T) -> Result<(V, DevicePtr)>,
    ) -> Result<(UploadId, &V)> {
        self.clock += 1;
        // The address of what is gone is not given to anything new while its entry is there: a weak reference keeps it.
        let known = self.entries.iter().position(|entry| entry.holder.as_ptr() == Arc::as_ptr(of));
        let at = match known {
            Some(at) => at,
            None => {
                self.free_surplus(driver)?;
                let (value, arena) = upload(driver, of)?;
                let (id, holder) = (UploadId(self.clock), Arc::downgrade(of));
                self.entries.push(Entry { id, holder, value, arena, users: 0, asked: 0 });
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[at];
        entry.users += 1;
        entry.asked = self.clock;
        Ok((entry.id, &entry.value))
    }

    /// Ends one use.
    pub fn release(&mut self, id: UploadId) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.users = entry.users.saturating_sub(1);
        }
    }

    /// Frees what no search uses and nobody holds any more.
    ///
    /// A search ends its uses when it is closed. No plan names it from then on, and the steps that did are enqueued: the driver frees an
    /// arena once everything enqueued is done, so none of them loses what it reads.
    pub fn free_gone(&mut self, driver: &mut dyn Driver) -> Result<()> {
        let gone = |entry: &Entry<T, V>| entry.users == 0 && entry.holder.strong_count() == 0;
        while let Some(at) = self.entries.iter().position(gone) {
            driver.free(self.entries.swap_remove(at).arena)?;
        }
        Ok(())
    }

    /// Makes room among what no search uses but somebody holds, the oldest first.
    fn free_surplus(&mut self, driver: &mut dyn Driver) -> Result<()> {
        loop {
            let idle = self.entries.iter().enumerate().filter(|(_, entry)| entry.users == 0);
            let oldest = idle.clone().min_by_key(|(_, entry)| entry.asked).map(|(at, _)| at);
            match oldest {
                Some(at) if idle.count() >= self.idle => driver.free(self.entries.swap_remove(at).arena)?,
                _ => return Ok(()),
            }
        }
    }
}

/// A catalog on the device: per type, the address of its levels' records.
pub(super) struct CatalogRecords {
    pub types: Vec<DevicePtr>,
}

/// Uploads the tries of a catalog; tokens come from the layout.
pub(super) fn upload_catalog(
    driver: &mut dyn Driver,
    catalog: &Catalog,
    layout: &Layout,
) -> Result<(CatalogRecords, DevicePtr)> {
    check_layout(catalog, layout)?;
    let tokens = token_lists(catalog, layout);
    let mut arrays: Vec<&[u8]> = Vec::new();
    let mut add = |bytes| {
        arrays.push(bytes);
        Some(arrays.len() - 1)
    };
    // Per level the places of codes, first, start and tokens among the arrays.
    let mut places: Vec<[Option<usize>; 4]> = Vec::new();
    for (t, lists) in tokens.iter().enumerate() {
        let index = catalog.index(TypeId(t as u16));
        for (level, list) in lists.iter().enumerate() {
            let (codes, mut first, mut start) = match index.entries(level) {
                Entries::Column { codes } => (codes, None, None),
                Entries::Explicit { codes, first, start } => (codes, Some(first), Some(start)),
            };
            let start_at = start.take().and_then(|start| add(bytemuck::cast_slice(start)));
            // Before a column both are the same array.
            let same = matches!(index.entries(level), Entries::Explicit { first, start, .. } if std::ptr::eq(first, start));
            let first_at = match first.take() {
                Some(first) if !same => add(bytemuck::cast_slice(first)),
                _ => start_at,
            };
            let tokens_at = if list.is_empty() { None } else { add(bytemuck::cast_slice(list)) };
            places.push([add(bytemuck::cast_slice(codes)), first_at, start_at, tokens_at]);
        }
    }
    let levels: Vec<usize> = tokens.iter().map(Vec::len).collect();
    let mut sizes: Vec<usize> = vec![size_of::<SidLevel>() * levels.iter().sum::<usize>()];
    sizes.extend(arrays.iter().map(|array| array.len().max(1)));
    let memory = driver.allocate("catalog", &sizes)?;
    let records = level_records(catalog, layout, &levels, &places, &memory[1..]);
    driver.upload(memory[0], bytemuck::cast_slice(&records))?;
    for (to, array) in memory[1..].iter().zip(&arrays).filter(|(_, array)| !array.is_empty()) {
        driver.upload(*to, array)?;
    }
    let begins = levels.iter().scan(0, |at, &count| {
        *at += count;
        Some(*at - count)
    });
    let types = begins.map(|at| memory[0].add(at * size_of::<SidLevel>())).collect();
    Ok((CatalogRecords { types }, memory[0]))
}

/// One record per level of every type.
fn level_records(
    catalog: &Catalog,
    layout: &Layout,
    levels: &[usize],
    places: &[[Option<usize>; 4]],
    memory: &[DevicePtr],
) -> Vec<SidLevel> {
    let of_level = levels.iter().enumerate().flat_map(|(t, &count)| (0..count).map(move |level| (t, level)));
    let record = |((t, level), place): ((usize, usize), &[Option<usize>; 4])| {
        let index = catalog.index(TypeId(t as u16));
        let (Entries::Explicit { codes, .. } | Entries::Column { codes }) = index.entries(level);
        let [codes_at, first, start, tokens] = place.map(|at| at.map_or(DevicePtr::NULL, |at| memory[at]));
        SidLevel {
            codes: codes_at,
            first,
            start,
            tokens,
            first_token: layout.types[t].levels[level].contiguous().map_or(0, |token| token.0),
            codebook: index.codebook(level) as u32,
            entries: codes.len() as u32,
            reserved: 0,
        }
    };
    of_level.zip(places).map(record).collect()
}

/// The tokens of each level of each type; empty where they follow each other.
fn token_lists(catalog: &Catalog, layout: &Layout) -> Vec<Vec<Vec<u32>>> {
    let of_type = |t: usize| {
        let levels = layout.types[t].levels.iter().take(catalog.index(TypeId(t as u16)).levels());
        let list = |level: &crate::catalog::LevelTokens| match level.contiguous() {
            Some(_) => Vec::new(),
            None => (0..level.len()).map(|code| level.token(code as u16).0).collect(),
        };
        levels.map(list).collect()
    };
    (0..catalog.types().len()).map(of_type).collect()
}

/// A catalog's codebooks must be the layout's.
fn check_layout(catalog: &Catalog, layout: &Layout) -> Result<()> {
    for (t, name) in catalog.types().iter().enumerate() {
        let index = catalog.index(TypeId(t as u16));
        let codebooks: Vec<usize> = (0..index.levels()).map(|level| index.codebook(level)).collect();
        let known =
            layout.types.get(t).map(|of| of.levels.iter().map(|level| level.len()).collect::<Vec<_>>());
        if known.as_ref() != Some(&codebooks) {
            let known = known.unwrap_or_default();
            let message =
                format!("type {name} has codebooks {codebooks:?} in the catalog, {known:?} in the layout");
            return Err(Error::Device(message));
        }
    }
    Ok(())
}

/// Uploads a bitmap without waiting: its words, and the counts before every eight of them.
pub(super) fn upload_bitmap(
    driver: &mut dyn Driver,
    staging: &mut Staging,
    bitmap: &Bitmap,
) -> Result<([DevicePtr; 2], DevicePtr)> {
    let words: &[u8] = bytemuck::cast_slice(bitmap.words());
    let counts: &[u8] = bytemuck::cast_slice(bitmap.counts());
    let memory = driver.allocate("mask", &[words.len().max(1), counts.len().max(1)])?;
    staging.send(driver, &[(memory[0], words), (memory[1], counts)])?;
    Ok(([memory[0], memory[1]], memory[0]))
}
