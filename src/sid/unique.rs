//! The level that separates items whose codes are equal.

use std::collections::HashMap;

use super::npy::Codes;
use crate::catalog::MAX_CODES;

/// Rows in the order of their codes, equal ones in the order of rows.
pub(super) fn sorted(codes: &Codes) -> Vec<u32> {
    let mut order: Vec<u32> = (0..codes.rows() as u32).collect();
    order.sort_unstable_by(|&a, &b| codes.row(a as usize).cmp(codes.row(b as usize)).then(a.cmp(&b)));
    order
}

/// Appends a code that counts the rows with equal codes, in their order; also the size of the largest such group.
///
/// # Errors
/// A sentence if a group is larger than a codebook may be.
pub(super) fn separate(codes: &Codes) -> Result<(Codes, usize), String> {
    let levels = codes.levels();
    let mut all = vec![0u16; codes.rows() * (levels + 1)];
    let mut largest = 0;
    for group in sorted(codes).chunk_by(|&a, &b| codes.row(a as usize) == codes.row(b as usize)) {
        if group.len() > MAX_CODES {
            let (sid, rows) = (codes.row(group[0] as usize), group.len());
            return Err(format!(
                "{rows} rows share the codes {sid:?}; a unique level separates at most {MAX_CODES}"
            ));
        }
        largest = largest.max(group.len());
        for (last, &row) in group.iter().enumerate() {
            let to = &mut all[row as usize * (levels + 1)..][..levels + 1];
            to[..levels].copy_from_slice(codes.row(row as usize));
            to[levels] = last as u16;
        }
    }
    Ok((Codes::new(levels + 1, all), largest))
}

/// Appends to each row the lowest code that neither `taken` nor a row before it has under the same codes.
///
/// # Errors
/// A sentence naming the row if all `size` codes are taken, or if `taken` has another number of levels or names a SID twice.
pub(super) fn extend(codes: &Codes, taken: Option<&Codes>, size: usize) -> Result<Codes, String> {
    let levels = codes.levels();
    let mut used: HashMap<&[u16], Used> = HashMap::new();
    for (row, sid) in taken.iter().flat_map(|taken| taken.iter()).enumerate() {
        if sid.len() != levels + 1 {
            return Err(format!("the taken codes have {} levels, expected {}", sid.len(), levels + 1));
        }
        if !used.entry(&sid[..levels]).or_default().insert(sid[levels]) {
            return Err(format!("row {row} of the taken codes: {sid:?} occurs a second time"));
        }
    }
    let mut all = Vec::with_capacity(codes.rows() * (levels + 1));
    for (row, sid) in codes.iter().enumerate() {
        let of_sid = used.entry(sid).or_default();
        let Some(free) = of_sid.lowest_free().filter(|&code| usize::from(code) < size) else {
            return Err(format!("row {row}: all {size} codes of the unique level are taken under {sid:?}"));
        };
        of_sid.insert(free);
        all.extend_from_slice(sid);
        all.push(free);
    }
    Ok(Codes::new(levels + 1, all))
}

/// Codes in use: all below a number, and some above it.
#[derive(Default)]
struct Used {
    below: u32,
    above: std::collections::BTreeSet<u16>,
}

impl Used {
    /// Whether the code was free.
    fn insert(&mut self, code: u16) -> bool {
        if u32::from(code) < self.below || !self.above.insert(code) {
            return false;
        }
        while self.above.first().is_some_and(|&first| u32::from(first) == self.below) {
            self.above.pop_first();
            self.below += 1;
        }
        true
    }

    fn lowest_free(&self) -> Option<u16> {
        u16::try_from(self.below).ok()
    }
}
