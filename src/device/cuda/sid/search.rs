//! One search on the device: where its parts are, what is written there when it is opened, and how its paths are read.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;

use super::super::args::{MAX_LEVELS, NONE};
use super::super::driver::{DevicePtr, Driver, failed};
use super::memory::{Blocks, Staging};
use super::records::{
    HEADER_AT, MASK_ALL, MASK_BITS, MASK_LIST, MAX_TYPES, SidEntry, SidHeader, SidLink, SidMask, SidType,
    TAKEN_ROOM,
};
use super::shared::{CatalogRecords, UploadId, Uploads, upload_bitmap, upload_catalog};
use crate::catalog::{Bitmap, Catalog, Layout, Mask, MaskBase};
use crate::device::cpu::sid::check;
use crate::device::ops::{Normalizer, Path, SearchSpec};
use crate::error::{Error, Result};
use crate::ids::SidIndex;

/// Everything that opening a search may need or change.
pub(super) struct Stores {
    pub blocks: Blocks,
    pub staging: Staging,
    pub catalogs: Uploads<Catalog, CatalogRecords>,
    pub bitmaps: Uploads<Bitmap, [DevicePtr; 2]>,
}

/// Where the parts of a search lie behind its beginning, in bytes.
#[derive(Clone, Debug)]
struct Parts {
    types: usize,
    lens: [usize; 2],
    group_rows: usize,
    lists: [usize; 2],
    links: usize,
    /// One past what [`Search::paths`] reads.
    paths_end: usize,
    rows: usize,
    /// Arrays that begin as zeros.
    zeros: Range<usize>,
    uses: Option<usize>,
    class_counts: Option<usize>,
    taken: Option<usize>,
    masks: usize,
    end: usize,
}

/// Sizes that the parts follow from.
struct Sizes {
    types: usize,
    depth: usize,
    groups: usize,
    room: usize,
    width: usize,
    uses: usize,
    classes: usize,
    masks: usize,
}

impl Parts {
    fn new(sizes: &Sizes) -> Parts {
        let mut end = HEADER_AT + size_of::<SidHeader>();
        let mut take = |bytes: usize| {
            let at = end;
            end += bytes.next_multiple_of(16);
            at
        };
        let paths = sizes.groups * sizes.room;
        let types = take(sizes.types * size_of::<SidType>());
        let lens = [take(4 * sizes.groups), take(4 * sizes.groups)];
        let group_rows = take(4 * sizes.groups);
        let lists = [take(paths * size_of::<SidEntry>()), take(paths * size_of::<SidEntry>())];
        let links = take(sizes.depth * paths * size_of::<SidLink>());
        let paths_end = take(0);
        let rows = take(4 * sizes.width);
        let zeros = take(0);
        let uses = (sizes.uses > 0).then(|| take(4 * sizes.uses));
        let class_counts = (sizes.classes > 0).then(|| take(4 * sizes.classes));
        let taken = (sizes.groups > 1).then(|| take(8 * TAKEN_ROOM));
        let masks = take(sizes.masks);
        let end = take(0);
        let zeros = zeros..masks;
        Parts {
            types,
            lens,
            group_rows,
            lists,
            links,
            paths_end,
            rows,
            zeros,
            uses,
            class_counts,
            taken,
            masks,
            end,
        }
    }
}

/// A search that lives on the device.
pub(super) struct Search {
    pub spec: SearchSpec,
    /// Its block: a `SidSearch`, which begins with the `BeamView`.
    pub at: DevicePtr,
    block: usize,
    parts: Parts,
    room: usize,
    /// The level that the next plan chooses.
    pub next_level: usize,
    /// Per level, the most beams that are live after its codes are chosen.
    bounds: Vec<usize>,
    /// The uploads that it uses.
    held: Held,
}

/// Uploads in use.
#[derive(Default)]
struct Held {
    catalogs: Vec<UploadId>,
    bitmaps: Vec<UploadId>,
}

impl Search {
    /// Opens a search: checks it as the CPU device does, uploads what it needs and is not there yet, writes its parameters.
    ///
    /// # Errors
    /// Those of the check and the driver's; more than 1024 types, or more levels than kernels have room for.
    pub fn open(
        driver: &mut dyn Driver,
        stores: &mut Stores,
        layout: &Layout,
        spec: SearchSpec,
    ) -> Result<Search> {
        let depth = check(&spec)?;
        if spec.types.len() > MAX_TYPES || depth > MAX_LEVELS {
            let types = spec.types.len();
            return Err(failed(format!(
                "a search of {types} types and {depth} levels, at most {MAX_TYPES} and {MAX_LEVELS}"
            )));
        }
        // Before anything is uploaded: a snapshot that was swapped out and the one that took its place need not fit together.
        stores.catalogs.free_gone(driver)?;
        stores.bitmaps.free_gone(driver)?;
        let sizes = sizes(&spec, depth);
        let parts = Parts::new(&sizes);
        let (at, block) = stores.blocks.take(driver, parts.end)?;
        let bounds = (0..depth).map(|level| live_bound(&spec, level)).collect();
        let held = Held::default();
        let mut search = Search { at, block, parts, room: sizes.room, next_level: 0, bounds, held, spec };
        match search.write(driver, stores, layout, depth) {
            Ok(()) => Ok(search),
            Err(error) => {
                search.close(stores);
                Err(error)
            }
        }
    }

    /// Gives its memory back.
    pub fn close(self, stores: &mut Stores) {
        stores.blocks.give(self.at, self.block);
        self.held.catalogs.iter().for_each(|&id| stores.catalogs.release(id));
        self.held.bitmaps.iter().for_each(|&id| stores.bitmaps.release(id));
    }

    /// Levels of the deepest type.
    pub fn depth(&self) -> usize {
        self.bounds.len()
    }

    /// The most beams that are live after the codes of `level` are chosen.
    pub fn width_at(&self, level: usize) -> usize {
        self.bounds.get(level).copied().unwrap_or(0)
    }

    /// Paths that a group keeps at a level.
    pub fn group_width(&self, level: usize) -> u32 {
        self.spec.widths[level] / self.spec.groups
    }

    fn write(
        &mut self,
        driver: &mut dyn Driver,
        stores: &mut Stores,
        layout: &Layout,
        depth: usize,
    ) -> Result<()> {
        let (types, lists) = self.types(driver, stores, layout)?;
        let header = self.header(depth);
        let zeros = &self.parts.zeros;
        driver.fill(self.at, 0, 16)?;
        driver.fill(self.at.add(self.parts.lens[0]), 0, self.parts.lists[0] - self.parts.lens[0])?;
        if !zeros.is_empty() {
            driver.fill(self.at.add(zeros.start), 0, zeros.len())?;
        }
        let records: &[u8] = bytemuck::cast_slice(&types);
        let parts = [
            (self.at.add(HEADER_AT), bytemuck::bytes_of(&header)),
            (self.at.add(self.parts.types), records),
            (self.at.add(self.parts.masks), bytemuck::cast_slice(&lists)),
        ];
        stores.staging.send(driver, &parts)
    }

    fn header(&self, depth: usize) -> SidHeader {
        let place = |at: usize| self.at.add(at);
        let maybe = |at: Option<usize>| at.map_or(DevicePtr::NULL, place);
        let spec = &self.spec;
        let words = |value: u64| [value as u32, (value >> 32) as u32];
        let mut widths = [0; MAX_LEVELS];
        widths[..depth].copy_from_slice(&spec.widths);
        SidHeader {
            types: place(self.parts.types),
            lists: self.parts.lists.map(place),
            links: place(self.parts.links),
            rows: place(self.parts.rows),
            lens: self.parts.lens.map(place),
            group_rows: place(self.parts.group_rows),
            uses: maybe(self.parts.uses),
            class_counts: maybe(self.parts.class_counts),
            taken: maybe(self.parts.taken),
            depth: depth as u32,
            type_count: spec.types.len() as u32,
            normalizer: match spec.normalizer {
                Normalizer::Codebook => 0,
                Normalizer::Vocabulary => 1,
                Normalizer::Valid => 2,
            },
            groups: spec.groups,
            group_room: self.room as u32,
            cap: spec.max_per_prefix.unwrap_or(0),
            sampled: u32::from(spec.sampling.is_some()),
            penalty: spec.group_penalty,
            temperature: spec.sampling.map_or(1.0, |sampling| sampling.temperature),
            seed: words(spec.sampling.map_or(0, |sampling| sampling.seed)),
            draw: words(spec.sampling.map_or(0, |sampling| sampling.draw)),
            widths,
            ..SidHeader::zeroed()
        }
    }

    /// The records of the requested types, and the lists of their masks, which lie in the search's own block.
    fn types(
        &mut self,
        driver: &mut dyn Driver,
        stores: &mut Stores,
        layout: &Layout,
    ) -> Result<(Vec<SidType>, Vec<u32>)> {
        let spec = self.spec.clone();
        let levels = self.levels(driver, stores, layout, &spec.catalog)?;
        let delta = match &spec.delta {
            Some(delta) => self.levels(driver, stores, layout, &delta.catalog)?,
            None => Vec::new(),
        };
        let mut lists: Vec<u32> = Vec::new();
        let (mut class_base, mut uses_base) = (0, 0);
        let mut records = Vec::with_capacity(spec.types.len());
        for (place, (item_type, mask)) in spec.types.iter().enumerate() {
            let index = spec.catalog.index(*item_type);
            let mut record = SidType {
                levels: levels[place],
                mask: self.mask(driver, stores, mask, &mut lists)?,
                depth: index.levels() as u32,
                item_type: u32::from(item_type.0),
                class_base,
                uses_base,
                sids: index.sids() as u32,
                ..SidType::zeroed()
            };
            if let Some(added) = &spec.delta {
                record.delta = delta[place];
                record.delta_mask = self.mask(driver, stores, &added.masks[place], &mut lists)?;
            }
            class_base += index.codebook(0) as u32;
            uses_base += widest_codebook(&spec, *item_type) as u32;
            records.push(record);
        }
        Ok((records, lists))
    }

    /// Where the levels of the requested types of a catalog are.
    fn levels(
        &mut self,
        driver: &mut dyn Driver,
        stores: &mut Stores,
        layout: &Layout,
        catalog: &Arc<Catalog>,
    ) -> Result<Vec<DevicePtr>> {
        let upload = |driver: &mut dyn Driver, catalog: &Catalog| upload_catalog(driver, catalog, layout);
        let (id, found) = stores.catalogs.acquire(driver, catalog, upload)?;
        self.held.catalogs.push(id);
        Ok(self.spec.types.iter().map(|of| found.types[of.0.index()]).collect())
    }

    /// The record of a mask; its lists are appended to `lists`.
    fn mask(
        &mut self,
        driver: &mut dyn Driver,
        stores: &mut Stores,
        mask: &Mask,
        lists: &mut Vec<u32>,
    ) -> Result<SidMask> {
        let mut add = |list: &[u32]| {
            let at = self.at.add(self.parts.masks + 4 * lists.len());
            lists.extend_from_slice(list);
            (at, list.len() as u32)
        };
        let (base, dead) = mask.parts();
        let mut record = SidMask { base: MASK_ALL, ..SidMask::zeroed() };
        (record.dead, record.dead_len) = add(dead);
        match base {
            MaskBase::All => {}
            MaskBase::List(list) => {
                (record.list, record.list_len) = add(list);
                record.base = MASK_LIST;
            }
            MaskBase::Bits(bits) => {
                let Stores { bitmaps, staging, .. } = stores;
                let upload = |driver: &mut dyn Driver, bits: &Bitmap| upload_bitmap(driver, staging, bits);
                let (id, found) = bitmaps.acquire(driver, bits, upload)?;
                [record.words, record.before] = *found;
                record.base = MASK_BITS;
                self.held.bitmaps.push(id);
            }
        }
        Ok(record)
    }

    /// Copies the part of its block that holds its paths and reads them as the CPU device does.
    pub fn paths(&self, driver: &mut dyn Driver) -> Result<Vec<Path>> {
        let bytes = driver.download(self.at.add(HEADER_AT), self.parts.paths_end - HEADER_AT)?;
        let header: SidHeader = bytemuck::pod_read_unaligned(&bytes[..size_of::<SidHeader>()]);
        let read = Reader { bytes: &bytes, origin: HEADER_AT };
        let parity = header.parity as usize % 2;
        let mut paths = Vec::new();
        for group in 0..self.spec.groups as usize {
            let len = read.at::<u32>(self.parts.lens[parity], group) as usize;
            for at in 0..len.min(self.room) {
                let entry: SidEntry = read.at(self.parts.lists[parity], group * self.room + at);
                if entry.row == NONE {
                    paths.push(self.path(&read, &entry)?);
                }
            }
        }
        if self.spec.groups > 1 && self.spec.sampling.is_none() {
            paths.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
        }
        Ok(paths)
    }

    fn path(&self, read: &Reader<'_>, entry: &SidEntry) -> Result<Path> {
        let (mut codes, mut levels) = (Vec::new(), Vec::new());
        let links = self.depth() * self.spec.groups as usize * self.room;
        let mut at = entry.link;
        while at != NONE {
            if at as usize >= links || codes.len() == self.depth() {
                return Err(failed(format!("link {at} of a path, of {links}")));
            }
            let link: SidLink = read.at(self.parts.links, at as usize);
            codes.push(link.code as u16);
            levels.push(link.log_probability);
            at = link.parent;
        }
        codes.reverse();
        levels.reverse();
        let types = &self.spec.types;
        let item_type = types
            .get(entry.place as usize)
            .ok_or_else(|| Error::Device(format!("type {} of a path, of {}", entry.place, types.len())))?;
        Ok(Path { item_type: item_type.0, codes, sid: SidIndex(entry.first), score: entry.score, levels })
    }
}

/// Records in a copy of a part of a search's block.
struct Reader<'a> {
    bytes: &'a [u8],
    origin: usize,
}

impl Reader<'_> {
    fn at<T: bytemuck::AnyBitPattern>(&self, part: usize, index: usize) -> T {
        let at = part - self.origin + index * size_of::<T>();
        bytemuck::pod_read_unaligned(&self.bytes[at..at + size_of::<T>()])
    }
}

fn widest_codebook(spec: &SearchSpec, item_type: crate::ids::TypeId) -> usize {
    let index = spec.catalog.index(item_type);
    (0..index.levels()).map(|level| index.codebook(level)).max().unwrap_or(0)
}

fn sizes(spec: &SearchSpec, depth: usize) -> Sizes {
    let width = spec.widths.iter().max().map_or(1, |&width| width as usize);
    let groups = spec.groups as usize;
    let charged = groups > 1 && spec.group_penalty > 0.0;
    let mask = |mask: &Arc<Mask>| {
        let (base, dead) = mask.parts();
        let list = if let MaskBase::List(list) = base { list.len() } else { 0 };
        4 * (list + dead.len())
    };
    let first_codes = || spec.types.iter().map(|of| spec.catalog.index(of.0).codebook(0)).sum();
    Sizes {
        types: spec.types.len(),
        depth,
        groups,
        room: width / groups,
        width,
        uses: if charged { spec.types.iter().map(|of| widest_codebook(spec, of.0)).sum() } else { 0 },
        classes: if spec.max_per_prefix.is_some() { first_codes() } else { 0 },
        masks: spec
            .types
            .iter()
            .map(|of| &of.1)
            .chain(spec.delta.iter().flat_map(|of| &of.masks))
            .map(mask)
            .sum(),
    }
}

/// The most beams that are live after the codes of `level` are chosen: the width, or all nodes of types that go deeper, in the snapshot and in
/// the delta. Groups may hold the same node each.
fn live_bound(spec: &SearchSpec, level: usize) -> usize {
    let nodes = |catalog: &Catalog| -> usize {
        let indices = spec.types.iter().map(|of| catalog.index(of.0));
        indices.filter(|index| index.levels() > level + 1).map(|index| index.nodes(level)).sum()
    };
    let all = nodes(&spec.catalog) + spec.delta.as_ref().map_or(0, |delta| nodes(&delta.catalog));
    (spec.widths[level] as usize).min(all.saturating_mul(spec.groups as usize))
}
