//! The records of `kernels/sid.cuh`, field by field.

use super::super::args::{BEAM_VIEW_BYTES, MAX_LEVELS, mirrored};
use super::super::driver::DevicePtr;

/// Most requested types of one search.
pub const MAX_TYPES: usize = 1024;
/// Most survivors of a row.
pub const ROW_ROOM: u32 = 2240;
/// Slots of the hash table of finished SIDs.
pub const TAKEN_ROOM: usize = 2048;
/// Where a search's parameters begin: behind its view.
pub const HEADER_AT: usize = BEAM_VIEW_BYTES;
/// Everything is alive.
pub const MASK_ALL: u32 = 0;
/// A bitmap is alive.
pub const MASK_BITS: u32 = 1;
/// A sorted list is alive.
pub const MASK_LIST: u32 = 2;

mirrored! {
    /// One level of a type's trie and the tokens of its codes.
    SidLevel [48] {
        /// `[entries]` u16.
        codes: DevicePtr,
        /// `[entries + 1]` first entry of the children; null: a column.
        first: DevicePtr,
        /// `[entries + 1]` first SID; null: a column.
        start: DevicePtr,
        /// `[codebook]`; null: they follow `first_token`.
        tokens: DevicePtr,
        /// Token of code 0.
        first_token: u32,
        /// Codes.
        codebook: u32,
        /// Entries.
        entries: u32,
        /// Zero.
        reserved: u32,
    }
    /// What of a trie is alive.
    SidMask [48] {
        /// Bits.
        words: DevicePtr,
        /// Set bits before each 8 words.
        before: DevicePtr,
        /// Sorted SIDs that are alive.
        list: DevicePtr,
        /// Sorted SIDs that are dead.
        dead: DevicePtr,
        /// Length of `list`.
        list_len: u32,
        /// Length of `dead`.
        dead_len: u32,
        /// `MASK_*`.
        base: u32,
        /// Zero.
        reserved: u32,
    }
    /// A requested type of a search.
    SidType [144] {
        /// `[depth]` levels.
        levels: DevicePtr,
        /// `[depth]` levels of the delta, or null.
        delta: DevicePtr,
        /// What of the snapshot is alive.
        mask: SidMask,
        /// What of the delta is alive.
        delta_mask: SidMask,
        /// Levels.
        depth: u32,
        /// The type.
        item_type: u32,
        /// Class of code 0 of the first level.
        class_base: u32,
        /// Place of code 0 among the uses.
        uses_base: u32,
        /// SIDs of the snapshot.
        sids: u32,
        /// Zero.
        reserved: [u32; 3],
    }
    /// A path of a list.
    SidEntry [48] {
        /// Its last link.
        link: u32,
        /// Live row, or none: finished.
        row: u32,
        /// Place of its type.
        place: u32,
        /// Type and first code.
        class: u32,
        /// First entry of its node; the SID of a finished path.
        first: u32,
        /// One past the last.
        end: u32,
        /// Score.
        score: f32,
        /// Log-probability at the temperature.
        phi: f32,
        /// The same, perturbed.
        perturbed: f32,
        /// First entry of its node in the delta.
        delta_first: u32,
        /// One past the last.
        delta_end: u32,
        /// Zero.
        reserved: u32,
    }
    /// A chosen code.
    SidLink [16] {
        /// The link before, or none.
        parent: u32,
        /// Row at which the code was an input.
        row: u32,
        /// Log-probability.
        log_probability: f32,
        /// The code.
        code: u32,
    }
    /// The parameters of a search and where its parts are; they follow its view.
    SidHeader [224] {
        /// `[type_count]`.
        types: DevicePtr,
        /// `[groups, group_room]` each.
        lists: [DevicePtr; 2],
        /// `[depth, groups, group_room]`.
        links: DevicePtr,
        /// `[width]`.
        rows: DevicePtr,
        /// `[groups]` each.
        lens: [DevicePtr; 2],
        /// `[groups]`.
        group_rows: DevicePtr,
        /// Uses of each code, or null.
        uses: DevicePtr,
        /// Paths of each class, or null.
        class_counts: DevicePtr,
        /// Finished SIDs, or null.
        taken: DevicePtr,
        /// Level chosen next.
        level: u32,
        /// Levels.
        depth: u32,
        /// A NaN was met.
        fault: u32,
        /// Of the present list.
        parity: u32,
        /// Types.
        type_count: u32,
        /// `NORM_*`: the order of [`Normalizer`](crate::device::ops::Normalizer).
        normalizer: u32,
        /// Groups.
        groups: u32,
        /// The largest width over groups.
        group_room: u32,
        /// Most paths of a class; 0: no bound.
        cap: u32,
        /// Drawn.
        sampled: u32,
        /// Price of a use.
        penalty: f32,
        /// Temperature.
        temperature: f32,
        /// Seed, low word first.
        seed: [u32; 2],
        /// Draw, low word first.
        draw: [u32; 2],
        /// Running threshold.
        floor: u32,
        /// Zero.
        reserved: u32,
        /// Width of each level.
        widths: [u32; MAX_LEVELS],
    }
    /// A search to advance by one level.
    SidStepRecord [32] {
        /// The search.
        search: u32,
        /// The level.
        level: u32,
        /// First slot.
        slot_first: u32,
        /// Slots.
        slots: u32,
        /// First survivor.
        keys_first: u32,
        /// Survivors per slot.
        room: u32,
        /// First vocabulary normaliser, or none.
        norm_first: u32,
        /// Differs from plan to plan.
        epoch: u32,
    }
    /// A row that may need a codebook.
    SidCandidate [16] {
        /// The step.
        step: u32,
        /// Slot of the step.
        at: u32,
        /// Place of the type among the requested ones.
        place: u32,
        /// Row of the plan.
        row: u32,
    }
    /// Candidates of one codebook.
    SidHeadGroup [32] {
        /// First candidate.
        candidate_first: u32,
        /// Candidates.
        candidates: u32,
        /// First row of the product's input.
        list_first: u32,
        /// Most rows.
        rows: u32,
        /// First logit.
        out: u64,
        /// Codes.
        codebook: u32,
        /// As the steps'.
        epoch: u32,
    }
    /// What a search is after a step.
    SidResult [8] {
        /// Live beams.
        live: u32,
        /// A NaN was met.
        fault: u32,
    }
    /// Arguments of `sid_gather`.
    SidGatherArgs [112] {
        /// Lengths.
        counts: DevicePtr,
        /// Steps.
        steps: DevicePtr,
        /// Candidates.
        candidates: DevicePtr,
        /// Head groups.
        groups: DevicePtr,
        /// Table of searches.
        searches: DevicePtr,
        /// `RowGroup` per head group.
        row_groups: DevicePtr,
        /// Rows of the plan.
        list: DevicePtr,
        /// Slots.
        slots: DevicePtr,
        /// Capacity of `steps`.
        max_steps: u32,
        /// Capacity of `candidates`.
        max_candidates: u32,
        /// Capacity of `groups`.
        max_groups: u32,
        /// Capacity of `searches`.
        max_searches: u32,
        /// Capacity of `list`.
        max_list: u32,
        /// Capacity of `slots`.
        max_slots: u32,
        /// Rows of a plan.
        max_rows: u32,
        /// Capacity of the vocabulary's normalisers.
        max_norms: u32,
        /// Capacity of the survivors.
        max_keys: u64,
        /// Capacity of the logits.
        max_logits: u64,
    }
    /// Arguments of the scoring and choosing kernels.
    SidStepArgs [112] {
        /// Lengths.
        counts: DevicePtr,
        /// Steps.
        steps: DevicePtr,
        /// Table of searches.
        searches: DevicePtr,
        /// Slots.
        slots: DevicePtr,
        /// Logits of the codebooks.
        logits: DevicePtr,
        /// Normalisers of the vocabulary.
        norms: DevicePtr,
        /// Survivors.
        keys: DevicePtr,
        /// Entries of the survivors.
        entries: DevicePtr,
        /// Normalisers and counts of the slots.
        scores: DevicePtr,
        /// `SidResult` per step.
        results: DevicePtr,
        /// Capacity of `steps`.
        max_steps: u32,
        /// Capacity of `searches`.
        max_searches: u32,
        /// Capacity of `slots`.
        max_slots: u32,
        /// Zero.
        reserved: u32,
        /// Capacity of the survivors.
        max_keys: u64,
        /// Zero.
        reserved2: u64,
    }
    /// Arguments of `sid_vocab_norm`.
    SidNormArgs [32] {
        /// `RowGroup`: how many rows.
        group: DevicePtr,
        /// `[rows, columns]`.
        logits: DevicePtr,
        /// `[rows]`.
        norms: DevicePtr,
        /// Tokens of the vocabulary.
        columns: u32,
        /// Capacity of `norms`.
        max_rows: u32,
    }
}

/// Bytes of a `SidSlot`, which only kernels read.
pub const SLOT_BYTES: usize = 112;
/// Bytes of a `SidScore`: normaliser, normaliser of the draw, largest perturbed score, survivors.
pub const SCORE_BYTES: usize = 16;
