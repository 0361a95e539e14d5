//! Flat arrays that do not care where they lie: in memory of their own, or in a mapped file.
//!
//! The tries and columns of a catalog are arrays of plain numbers, the same bytes in memory, on disk and on a device. A snapshot of ten million
//! items is opened by pointing at them. Reading an element costs what it costs of a slice: where the memory comes from is decided
//! once, when the array is made.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::Mmap;

/// An immutable array of plain numbers; cloning shares it.
pub struct Array<T: 'static> {
    at: *const T,
    len: usize,
    /// Keeps the memory alive; never read.
    _owner: Owner<T>,
}

enum Owner<T> {
    Vec(Arc<Vec<T>>),
    Map(Arc<Mmap>),
}

// SAFETY: an array is a shared, read-only view of memory that its owner keeps alive; it is as `Send` and `Sync` as `Arc<Vec<T>>`.
unsafe impl<T: Send + Sync> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Array<T> {}

impl<T: AnyBitPattern> Array<T> {
    /// The array that lies in `range` of a mapped file; `None` if the range is not within the file, not whole elements, or not aligned for them.
    ///
    /// The numbers are taken as they lie there, so that files are little-endian and only little-endian machines may map them.
    pub fn mapped(map: &Arc<Mmap>, range: Range<usize>) -> Option<Array<T>> {
        let bytes = map.get(range)?;
        let slice: &[T] = bytemuck::try_cast_slice(bytes).ok()?;
        // The map lies where it is until it is dropped, and the array holds it.
        Some(Array { at: slice.as_ptr(), len: slice.len(), _owner: Owner::Map(map.clone()) })
    }
}

impl<T> From<Vec<T>> for Array<T> {
    fn from(values: Vec<T>) -> Array<T> {
        let owner = Arc::new(values);
        Array { at: owner.as_ptr(), len: owner.len(), _owner: Owner::Vec(owner) }
    }
}

impl<T> Default for Array<T> {
    fn default() -> Array<T> {
        Vec::new().into()
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Array<T> {
        let owner = match &self._owner {
            Owner::Vec(values) => Owner::Vec(values.clone()),
            Owner::Map(map) => Owner::Map(map.clone()),
        };
        Array { at: self.at, len: self.len, _owner: owner }
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `at` and `len` are those of a slice within the owner, which lives as long as `self`, is never written and never moves.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T: NoUninit> Array<T> {
    /// The bytes, as a file holds them.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl<T> FromIterator<T> for Array<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Array<T> {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T: PartialEq> PartialEq for Array<T> {
    fn eq(&self, other: &Array<T>) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Array<T> {}

impl<T: fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn map(bytes: &[u8]) -> Arc<Mmap> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        // SAFETY: nobody else knows the file.
        Arc::new(unsafe { Mmap::map(&file).unwrap() })
    }

    #[test]
    fn a_mapped_array_is_the_file_and_outlives_the_handle() {
        let bytes: Vec<u8> = (0..64).collect();
        let map = map(&bytes);
        let array: Array<u32> = Array::mapped(&map, 8..24).unwrap();
        drop(map);
        let copy = array.clone();
        drop(array);
        assert_eq!(*copy, [0x0b0a_0908, 0x0f0e_0d0c, 0x1312_1110, 0x1716_1514]);
        assert_eq!(copy.bytes(), &bytes[8..24]);
    }

    #[test]
    fn what_does_not_fit_is_none() {
        let map = map(&[0; 64]);
        for range in [0..65, 60..68, 0..6, 2..6, 70..74] {
            assert!(Array::<u32>::mapped(&map, range.clone()).is_none(), "{range:?}");
        }
        assert_eq!(Array::<u32>::mapped(&map, 64..64).unwrap().len(), 0);
        assert!(Array::<u32>::default().is_empty());
    }
}
