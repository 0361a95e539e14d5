//! Memory of searches: blocks that are reused, and host memory that copies start from.

use std::collections::BTreeMap;

use super::super::driver::{DevicePtr, Driver, Event, Pinned, failed};
use crate::error::Result;

/// Blocks of device memory by size, which is a power of two. It grows when a search is opened, never within a step.
#[derive(Default)]
pub(super) struct Blocks {
    free: BTreeMap<usize, Vec<DevicePtr>>,
}

impl Blocks {
    /// A block of at least `bytes`, and its size.
    pub fn take(&mut self, driver: &mut dyn Driver, bytes: usize) -> Result<(DevicePtr, usize)> {
        let size = bytes.next_power_of_two();
        if let Some(block) = self.free.get_mut(&size).and_then(Vec::pop) {
            return Ok((block, size));
        }
        let arena = driver.allocate("search", &[size])?;
        let block = arena.first().ok_or_else(|| failed("an allocation without an address"))?;
        Ok((*block, size))
    }

    /// Gives a block back. What is enqueued may still read it: whoever takes it next writes to it in stream order.
    pub fn give(&mut self, block: DevicePtr, size: usize) {
        self.free.entry(size).or_default().push(block);
    }
}

/// Pinned buffers, each busy until the copy from it is done.
#[derive(Default)]
pub(super) struct Staging {
    buffers: Vec<(Pinned, Event)>,
}

impl Staging {
    /// Copies `parts` to the device in stream order, without waiting.
    pub fn send(&mut self, driver: &mut dyn Driver, parts: &[(DevicePtr, &[u8])]) -> Result<()> {
        let bytes: usize = parts.iter().map(|part| part.1.len().next_multiple_of(16)).sum();
        let mut buffer = self.idle(driver, bytes)?;
        let mut at = 0;
        for (_, part) in parts {
            buffer.bytes_mut()[at..at + part.len()].copy_from_slice(part);
            at += part.len().next_multiple_of(16);
        }
        at = 0;
        for (to, part) in parts {
            if !part.is_empty() {
                driver.copy_in(*to, &buffer, at..at + part.len())?;
            }
            at += part.len().next_multiple_of(16);
        }
        let event = driver.record()?;
        self.buffers.push((buffer, event));
        Ok(())
    }

    /// A buffer that nothing is being copied from.
    fn idle(&mut self, driver: &mut dyn Driver, bytes: usize) -> Result<Pinned> {
        for i in 0..self.buffers.len() {
            if self.buffers[i].0.bytes().len() >= bytes && driver.is_done(self.buffers[i].1)? {
                return Ok(self.buffers.swap_remove(i).0);
            }
        }
        driver.pin(bytes.next_power_of_two().max(4096))
    }
}
