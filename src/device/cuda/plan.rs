//! The plan buffer: everything that changes from step to step, in one copy.
//!
//! A step's records are packed into pinned memory, section after section, and copied to one fixed buffer on the device. Sections have
//! capacities that are powers of two, so that steps of about one size have one [`Layout`], and with it the addresses that a captured
//! graph has frozen. The pinned side is a ring, so that a step can be packed while the one before it is still being copied.

use std::time::Duration;

use super::driver::{DevicePtr, Driver, Event, Pinned};
use crate::error::Result;

/// Steps that may be packed before the first of them has been copied.
const RING: usize = 4;

/// The sections of the buffer, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// One `StepCounts`.
    Counts,
    /// `RowGroup`s of the host; see [`super::step::Groups`].
    Groups,
    /// `RowInfo` per row.
    Rows,
    /// Segment of each row.
    RowSegment,
    /// `SegmentInfo`s.
    Segments,
    /// Attention items of 16 packed queries.
    Narrow,
    /// Attention items of 64 or 128 packed queries.
    Wide,
    /// Block tables.
    Blocks,
    /// Soft tokens, `[n, hidden]` float32.
    Soft,
    /// Rows whose logits over the vocabulary are wanted: text, then normalisers, then evaluation.
    HeadRows,
    /// Parameters of the text rows.
    Text,
    /// Lists of the text rows.
    TextWords,
    /// Rows offered to the codebook products.
    Candidates,
    /// Searches to advance.
    Steps,
    /// Head groups of the searches.
    SidGroups,
}

/// Number of sections.
pub(super) const SECTIONS: usize = 15;

/// Bytes of a section and of one of its elements.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part<'a> {
    /// Its contents.
    pub bytes: &'a [u8],
    /// Bytes of an element.
    pub element: usize,
    /// Least capacity in elements.
    pub least: usize,
}

impl<'a> Part<'a> {
    /// A section of records.
    pub fn of<T: bytemuck::Pod>(records: &'a [T], least: usize) -> Part<'a> {
        Part { bytes: bytemuck::cast_slice(records), element: size_of::<T>(), least }
    }
}

/// Where the sections lie: capacities in elements and offsets in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    capacity: [u32; SECTIONS],
    offset: [u32; SECTIONS],
    bytes: u32,
}

impl Layout {
    fn new(parts: &[Part<'_>; SECTIONS]) -> Layout {
        let mut layout = Layout::default();
        for (i, part) in parts.iter().enumerate() {
            let used = part.bytes.len() / part.element.max(1);
            // An absent section has room for one element all the same: its address is never out of bounds.
            let capacity = used.max(part.least).max(1).next_power_of_two();
            layout.capacity[i] = capacity as u32;
            layout.offset[i] = layout.bytes;
            layout.bytes += (capacity * part.element.max(4)).next_multiple_of(64) as u32;
        }
        layout
    }

    /// Elements that a section has room for.
    pub fn capacity(&self, section: Section) -> usize {
        self.capacity[section as usize] as usize
    }
}

/// The buffer on the device and its pinned ring.
pub(super) struct PlanBuffer {
    device: DevicePtr,
    bytes: usize,
    ring: Vec<(Pinned, Option<Event>)>,
    next: usize,
    layout: Layout,
}

impl PlanBuffer {
    /// A buffer of at least `bytes` bytes.
    pub fn new(driver: &mut dyn Driver, bytes: usize) -> Result<PlanBuffer> {
        let bytes = bytes.next_power_of_two();
        let device = driver.allocate("plan", &[bytes])?[0];
        let ring = (0..RING).map(|_| Ok((driver.pin(bytes)?, None))).collect::<Result<_>>()?;
        Ok(PlanBuffer { device, bytes, ring, next: 0, layout: Layout::default() })
    }

    /// Packs the sections and copies them. Answers whether the buffer had to move: graphs that know its address are then of no use.
    ///
    /// # Errors
    /// The driver's.
    pub fn fill(
        &mut self,
        driver: &mut dyn Driver,
        parts: &[Part<'_>; SECTIONS],
        limit: Duration,
    ) -> Result<bool> {
        let layout = Layout::new(parts);
        let moved = layout.bytes as usize > self.bytes;
        if moved {
            driver.synchronize()?;
            driver.free(self.device)?;
            *self = PlanBuffer::new(driver, layout.bytes as usize)?;
        }
        let (pinned, copied) = &mut self.ring[self.next];
        if let Some(event) = copied.take() {
            driver.wait(event, limit)?;
        }
        for (part, &offset) in parts.iter().zip(&layout.offset) {
            pinned.bytes_mut()[offset as usize..][..part.bytes.len()].copy_from_slice(part.bytes);
        }
        driver.copy_in(self.device, pinned, 0..layout.bytes as usize)?;
        *copied = Some(driver.record()?);
        self.next = (self.next + 1) % RING;
        self.layout = layout;
        Ok(moved)
    }

    /// Where the present step's sections lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address of a section of the present step.
    pub fn at(&self, section: Section) -> DevicePtr {
        self.device.add(self.layout.offset[section as usize] as usize)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
