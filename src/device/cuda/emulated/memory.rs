//! Device memory of the emulated device: every buffer is a mapping of its own, which ends at a page that faults.

use std::collections::BTreeMap;

use super::super::driver::{DevicePtr, failed};
use crate::error::Result;

/// What fresh memory holds: NaN in every float type.
const POISON: u8 = 0xff;
/// A buffer's end is this far from the faulting page at most.
const ALIGN: usize = 16;

/// Bytes before a buffer that are looked at after each launch; where it begins on a page, that page faults anyhow.
const BEFORE: usize = 128;

/// One buffer of an arena.
struct Buffer {
    purpose: &'static str,
    index: usize,
    /// First address of its arena.
    arena: u64,
    bytes: usize,
    mapping: usize,
    mapped: usize,
    freed: bool,
}

impl std::fmt::Display for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let freed = if self.freed { "freed " } else { "" };
        write!(f, "the {freed}buffer {} of \"{}\" ({} bytes)", self.index, self.purpose, self.bytes)
    }
}

/// All arenas. The memory of a freed one stays reserved and faults, so that later use of it shows.
pub(super) struct Memory {
    buffers: BTreeMap<u64, Buffer>,
    limit: u64,
    used: u64,
    page: usize,
}

impl Memory {
    pub fn new(limit: u64) -> Memory {
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        Memory { buffers: BTreeMap::new(), limit, used: 0, page }
    }

    pub fn free_bytes(&self) -> u64 {
        self.limit - self.used
    }

    /// Maps one buffer per size.
    pub fn allocate(&mut self, purpose: &'static str, sizes: &[usize]) -> Result<Vec<DevicePtr>> {
        let needed: u64 = sizes.iter().map(|&bytes| bytes as u64).sum();
        let free = self.free_bytes();
        if sizes.is_empty() {
            return Err(failed(format_args!("{purpose}: an arena of no buffers")));
        }
        if needed > free {
            return Err(failed(format_args!(
                "{purpose} needs {needed} bytes of memory; {free} of {} are free",
                self.limit
            )));
        }
        let mut pointers: Vec<DevicePtr> = Vec::with_capacity(sizes.len());
        for (index, &bytes) in sizes.iter().enumerate() {
            let (at, mapping, mapped) = self.map(purpose, bytes)?;
            let arena = pointers.first().map_or(at, |first| first.0);
            self.buffers.insert(at, Buffer { purpose, index, arena, bytes, mapping, mapped, freed: false });
            pointers.push(DevicePtr(at));
        }
        self.used += needed;
        Ok(pointers)
    }

    /// A page that faults, the bytes, another such page.
    fn map(&self, purpose: &str, bytes: usize) -> Result<(u64, usize, usize)> {
        let data = bytes.next_multiple_of(self.page);
        let mapped = data + 2 * self.page;
        // SAFETY: a fresh private mapping at an address of the system's choice touches nothing that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(failed(format_args!("{purpose}: the host has no {bytes} bytes to map")));
        }
        let first = mapping as usize + self.page;
        if data > 0 {
            // SAFETY: the pages lie within the mapping just made.
            unsafe {
                if libc::mprotect(first as *mut _, data, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                    return Err(failed(format_args!("{purpose}: the host has no {bytes} bytes of memory")));
                }
                std::ptr::write_bytes(first as *mut u8, POISON, data);
            }
        }
        Ok(((first + data - bytes.next_multiple_of(ALIGN)) as u64, mapping as usize, mapped))
    }

    /// Whether an arena begins here, and is in use.
    pub fn is_arena(&self, first: DevicePtr) -> bool {
        self.buffers.get(&first.0).is_some_and(|b| b.arena == first.0 && !b.freed)
    }

    /// Bytes of an arena no longer count as used; the memory itself is released by [`Memory::release`].
    pub fn discount(&mut self, first: DevicePtr) {
        let bytes: u64 = self.buffers.values().filter(|b| b.arena == first.0).map(|b| b.bytes as u64).sum();
        self.used -= bytes;
    }

    /// Gives an arena's memory back and makes every access to it fault.
    pub fn release(&mut self, first: DevicePtr) {
        for buffer in self.buffers.values_mut().filter(|b| b.arena == first.0) {
            buffer.freed = true;
            // SAFETY: a mapping of ours, replaced by one that holds nothing; no Rust reference into it exists.
            unsafe {
                libc::mmap(
                    buffer.mapping as *mut _,
                    buffer.mapped,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
                    -1,
                    0,
                );
            }
        }
    }

    /// Fails unless `bytes` bytes at `at` lie in one live buffer.
    pub fn check(&self, what: &str, at: DevicePtr, bytes: usize) -> Result<()> {
        let inside = self.buffers.range(..=at.0).next_back().is_some_and(|(&start, b)| {
            !b.freed && (at.0 - start).checked_add(bytes as u64).is_some_and(|end| end <= b.bytes as u64)
        });
        match inside {
            true => Ok(()),
            false => Err(failed(format_args!("{what} of {bytes} bytes at {}", self.describe(at.0)))),
        }
    }

    /// An address in words: where it lies relative to the nearest buffer.
    pub fn describe(&self, address: u64) -> String {
        if address < self.page as u64 {
            return format!("0x{address:x}, a null pointer");
        }
        let before = self.buffers.range(..=address).next_back();
        let after = self.buffers.range(address..).next();
        let past = before.map(|(&start, b)| (address - start).saturating_sub(b.bytes as u64));
        let ahead = after.map(|(&start, _)| start - address);
        let near = 1 << 32;
        match (before, after) {
            (Some((start, b)), _) if address - start < b.bytes as u64 => {
                format!("byte {} of {b}", address - start)
            }
            (Some((_, b)), _)
                if past.unwrap_or(near) <= ahead.unwrap_or(near) && past.unwrap_or(near) < near =>
            {
                format!("{} bytes past the end of {b}", past.unwrap_or(0))
            }
            (_, Some((start, b))) if ahead.unwrap_or(near) < near => {
                format!("{} bytes before {b}", start - address)
            }
            _ => format!("0x{address:x}, which is near no buffer"),
        }
    }

    /// Fails if somebody wrote just before a buffer, or between its end and the page behind it.
    pub fn check_ends(&self) -> Result<(), String> {
        let poisoned = |at: usize, bytes: usize| {
            // SAFETY: the caller names bytes of a live buffer's readable pages.
            let slice = unsafe { std::slice::from_raw_parts(at as *const u8, bytes) };
            slice.iter().position(|&byte| byte != POISON)
        };
        for (&at, buffer) in self.buffers.iter().filter(|(_, b)| !b.freed && b.bytes > 0) {
            let (start, end) = (at as usize, at as usize + buffer.bytes);
            let before = (start - buffer.mapping - self.page).min(BEFORE);
            if let Some(i) = poisoned(start - before, before) {
                let distance = before - i;
                return Err(format!("access out of range: {distance} bytes before {buffer} was written"));
            }
            if let Some(i) = poisoned(end, end.next_multiple_of(ALIGN) - end) {
                return Err(format!("access out of range: byte {i} past the end of {buffer} was written"));
            }
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for buffer in self.buffers.values() {
            // SAFETY: a mapping of ours, which nobody can name any more.
            unsafe { libc::munmap(buffer.mapping as *mut _, buffer.mapped) };
        }
    }
}
