//! Text sampling: `kernels/sample.cu` and what it needs of the host.
//!
//! `cpu/sample.rs` says what a row's parameters mean; the tokens are the same as there. Three launches per step:
//!
//! | launch | grid | reads |
//! |---|---|---|
//! | `sample_scan` | parts of 8192 tokens x rows | every logit once |
//! | `sample_choose` | rows | the maxima of 64 tokens each, and the 64s that matter |
//! | `sample_draw` | parts x rows | what is left of rows that draw from nearly everything; most rows are done before |
//!
//! The order of every sum is given by the vocabulary and the row's own edits, so a row's result is the same alone and in a batch.
//!
//! What a row asks for travels as a [`TextInfo`], its penalties, bias and bans as a run of [`TextEdit`]s, ascending by token. The device
//! places both in its plan buffer.

use super::args::mirrored;
use super::driver::{DevicePtr, Driver, Kernel, Launch, failed};
use crate::device::cpu::sample::{GREEDY, TextSampler};
use crate::device::elementary::ln;
use crate::device::ops::{TextOutcome, TextRow};
use crate::error::Result;
use crate::ids::TokenId;

/// Most likeliest tokens of a row.
pub const MAX_TOP: u32 = 64;
/// Largest vocabulary: a candidate has 21 bits for its token, and the last part may be padded.
pub const MAX_VOCAB: usize = (1 << 21) - 8192;
/// Bytes of an entry of the results.
const RESULT: usize = 16;

/// Tokens of a part of a row, and of a block of the tables of maxima.
const PART: usize = 8192;
const BLOCK: usize = 64;
const SCAN_THREADS: u32 = 256;
const CHOOSE_THREADS: u32 = 512;
const DRAW: u32 = 0;
const GREEDILY: u32 = 1;
const TARGET: u32 = 2;
const COUNT: u32 = 0;
const BIAS: u32 = 1 << 30;
const BAN: u32 = 2 << 30;
const TOKEN_BITS: u32 = (1 << 30) - 1;

mirrored! {
    /// One text row of the plan.
    TextInfo [80] {
        /// Element at which the row's logits begin.
        logits: u64,
        /// Key of the noise.
        seed: u64,
        /// Number of the draw.
        draw: u64,
        /// Draw, take the largest, or score the target.
        kind: u32,
        /// Token to score.
        target: u32,
        /// Not 0: the opener may be chosen.
        allow_open: u32,
        /// 0: off.
        top_k: u32,
        /// Divides the logits.
        temperature: f32,
        /// 1: off.
        top_p: f32,
        /// Smallest scaled logit that min-p leaves; minus infinity: off.
        least: f32,
        /// Repetition penalty.
        repetition: f32,
        /// Presence penalty.
        presence: f32,
        /// Frequency penalty.
        frequency: f32,
        /// The row's edits.
        edit_first: u32,
        /// How many.
        edit_count: u32,
        /// Likeliest tokens asked for.
        top: u32,
        /// The row's first entry of the results.
        result: u32,
    }
    /// A change to a logit: what is done, in the top two bits, with the token below; and the operand.
    TextEdit [8] {
        /// Count, bias or ban, and the token.
        what: u32,
        /// Occurrences in the answer, or the bits of a float.
        operand: u32,
    }
    /// Arguments of the sampling kernels.
    SampleArgs [128] {
        /// Float32.
        logits: DevicePtr,
        /// `[max_rows]` [`TextInfo`].
        rows: DevicePtr,
        /// `[max_edits]` [`TextEdit`].
        edits: DevicePtr,
        /// The step's counts.
        counts: DevicePtr,
        /// Bits of the tokens that text may contain.
        allowed: DevicePtr,
        /// Those of a row that are not edited.
        masks: DevicePtr,
        /// Maxima of 64 logits each.
        raw_maxima: DevicePtr,
        /// Maxima of 64 logits each within the mask.
        maxima: DevicePtr,
        /// `[max_rows, parts]` maxima and sums.
        parts_of: DevicePtr,
        /// `[max_edits]` logits after edits.
        edited: DevicePtr,
        /// `[max_rows]` what the choice leaves to the draw.
        states: DevicePtr,
        /// `[max_results]` entries of 16 bytes.
        results: DevicePtr,
        /// Elements of the logits.
        logits_len: u64,
        /// Tokens.
        vocab: u32,
        /// The opener, or `NONE`.
        opener: u32,
        /// Parts of a row.
        parts: u32,
        /// Rows there is room for.
        max_rows: u32,
        /// Edits there is room for.
        max_edits: u32,
        /// Entries of the results.
        max_results: u32,
    }
}

/// What a text sampler is made for.
#[derive(Clone, Copy, Debug)]
pub struct TextSizes<'a> {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// A bit for each token that text may contain, 64 to a word.
    pub text_tokens: &'a [u64],
    /// A token that is allowed where a row says so.
    pub opener: Option<TokenId>,
    /// Most text rows of a launch.
    pub max_rows: usize,
    /// Edits of a step for which there is room at first: counted tokens, biases and bans of all rows.
    pub max_edits: usize,
}

/// Where a step's input lies on the device.
#[derive(Clone, Copy, Debug)]
pub struct TextInputs {
    /// Float32 logits.
    pub logits: DevicePtr,
    /// Elements of the logits' buffer.
    pub logits_len: usize,
    /// [`TextSamplerCuda::records`], room for `max_rows`.
    pub records: DevicePtr,
    /// [`TextSamplerCuda::edits`], room for `max_edits`.
    pub edits: DevicePtr,
    /// The step's counts.
    pub counts: DevicePtr,
}

/// Samples text tokens on the device.
#[derive(Debug)]
pub struct TextSamplerCuda {
    scan: Kernel,
    choose: Kernel,
    draw: Kernel,
    /// Complete but for the inputs.
    args: SampleArgs,
    arena: DevicePtr,
    shared: u32,
    records: Vec<TextInfo>,
    edits: Vec<TextEdit>,
    results: usize,
}

/// Bytes of what a sampler keeps for launches of at most `rows` rows, but for what grows with edits and likeliest tokens.
pub(super) fn bytes(vocab: usize, rows: usize) -> usize {
    sizes(vocab, rows).iter().sum()
}

/// Bytes of the arena's buffers.
fn sizes(vocab: usize, max_rows: usize) -> [usize; 6] {
    let parts = vocab.div_ceil(PART).max(1);
    let (words, blocks) = (parts * PART / 32, parts * PART / BLOCK);
    [
        words * 4,
        max_rows * words * 4,
        max_rows * blocks * 4,
        max_rows * blocks * 4,
        max_rows * parts * 16,
        max_rows * 48,
    ]
}

impl TextSamplerCuda {
    /// Resolves the kernels, allocates what they keep between launches and uploads the mask.
    ///
    /// # Errors
    /// Those of the CPU's sampler about the mask; a vocabulary beyond [`MAX_VOCAB`] or the device's shared memory; the driver's.
    pub fn new(driver: &mut dyn Driver, sizes: &TextSizes<'_>) -> Result<TextSamplerCuda> {
        let &TextSizes { vocab, text_tokens, opener, max_rows, max_edits } = sizes;
        TextSampler::new(vocab, text_tokens, opener)?;
        let parts = vocab.div_ceil(PART).max(1);
        let shared = choose_shared(parts * PART / BLOCK);
        let most = driver.properties().shared_per_block;
        if vocab > MAX_VOCAB || shared > most {
            return Err(failed(format!(
                "text sampling: a vocabulary of {vocab} tokens, the limit is {MAX_VOCAB}, and of {shared} bytes of shared memory, the \
                 device has {most}"
            )));
        }
        let max_results = max_rows * (1 + MAX_TOP as usize / 2);
        let sizes = self::sizes(vocab, max_rows);
        let at = driver.allocate("text sampling", &sizes.map(|bytes| bytes.max(RESULT)))?;
        let grown = [max_edits * 4, max_results * RESULT];
        let grown = driver.allocate("text edits and results", &grown.map(|bytes| bytes.max(RESULT)))?;
        let mut mask = vec![0u64; sizes[0] / 8];
        mask[..text_tokens.len()].copy_from_slice(text_tokens);
        driver.upload(at[0], bytemuck::cast_slice(&mask))?;
        let args = SampleArgs {
            allowed: at[0],
            masks: at[1],
            raw_maxima: at[2],
            maxima: at[3],
            parts_of: at[4],
            edited: grown[0],
            states: at[5],
            results: grown[1],
            vocab: vocab as u32,
            opener: opener.map_or(u32::MAX, |opener| opener.0),
            parts: parts as u32,
            max_rows: max_rows as u32,
            max_edits: max_edits as u32,
            max_results: max_results as u32,
            ..SampleArgs::default()
        };
        Ok(TextSamplerCuda {
            scan: driver.kernel("sample_scan")?,
            choose: driver.kernel("sample_choose")?,
            draw: driver.kernel("sample_draw")?,
            args,
            arena: at[0],
            shared,
            records: Vec::with_capacity(max_rows),
            edits: Vec::new(),
            results: 0,
        })
    }

    /// Gives the memory back.
    ///
    /// # Errors
    /// The driver's.
    pub fn free(self, driver: &mut dyn Driver) -> Result<()> {
        driver.free(self.args.edited)?;
        driver.free(self.arena)
    }

    /// Takes the text rows of a step; the logits of row `i` begin at element `logits_at(i)`. Keeps its memory.
    ///
    /// # Errors
    /// If more likeliest tokens are asked for than are kept.
    pub fn plan(&mut self, rows: &[TextRow], logits_at: impl Fn(usize) -> u64) -> Result<()> {
        self.records.clear();
        self.edits.clear();
        self.results = 0;
        for (i, row) in rows.iter().enumerate() {
            if row.top_logprobs > MAX_TOP {
                let found = row.top_logprobs;
                return Err(failed(format!("{found} likeliest tokens of a row, the limit is {MAX_TOP}")));
            }
            let first = self.edits.len();
            edit_list(row, self.args.vocab, &mut self.edits);
            let info = record(row);
            self.records.push(TextInfo {
                logits: logits_at(i),
                edit_first: first as u32,
                edit_count: (self.edits.len() - first) as u32,
                result: self.results as u32,
                ..info
            });
            self.results += entries(info.top);
        }
        Ok(())
    }

    /// Makes room for the planned rows' edits and results; answers whether anything moved.
    ///
    /// # Errors
    /// The driver's.
    pub fn reserve(&mut self, driver: &mut dyn Driver) -> Result<bool> {
        let (edits, results) = (self.edits.len(), self.results);
        if edits <= self.args.max_edits as usize && results <= self.args.max_results as usize {
            return Ok(false);
        }
        let edits = edits.next_power_of_two().max(self.args.max_edits as usize);
        let results = results.next_power_of_two().max(self.args.max_results as usize);
        driver.free(self.args.edited)?;
        let at = driver.allocate("text edits and results", &[edits * 4, results * RESULT])?;
        (self.args.edited, self.args.results) = (at[0], at[1]);
        (self.args.max_edits, self.args.max_results) = (edits as u32, results as u32);
        Ok(true)
    }

    /// The planned rows, for the plan buffer.
    pub fn records(&self) -> &[TextInfo] {
        &self.records
    }

    /// The planned rows' edits, for the plan buffer.
    pub fn edits(&self) -> &[TextEdit] {
        &self.edits
    }

    /// Enqueues the launches for up to `rows` text rows; how many there are, the step's counts say.
    ///
    /// # Errors
    /// The driver's.
    pub fn enqueue(&self, driver: &mut dyn Driver, inputs: &TextInputs, rows: u32) -> Result<()> {
        let rows = rows.min(self.args.max_rows);
        if rows == 0 {
            return Ok(());
        }
        let args = SampleArgs {
            logits: inputs.logits,
            logits_len: inputs.logits_len as u64,
            rows: inputs.records,
            edits: inputs.edits,
            counts: inputs.counts,
            ..self.args
        };
        let parts = [args.parts, rows, 1];
        let launch =
            |kernel, grid, threads, shared| Launch { kernel, grid, threads, shared, dependent: true };
        driver.run(&launch(self.scan, parts, SCAN_THREADS, 0), &args)?;
        driver.run(&launch(self.choose, [rows, 1, 1], CHOOSE_THREADS, self.shared), &args)?;
        driver.run(&launch(self.draw, parts, SCAN_THREADS, 0), &args)
    }

    /// Where the results of the planned rows lie, and their bytes.
    pub fn results(&self) -> (DevicePtr, usize) {
        (self.args.results, self.results * RESULT)
    }

    /// What became of `rows` text rows, from the bytes at [`TextSamplerCuda::results`].
    ///
    /// # Errors
    /// If the bytes are not results of so many rows.
    pub fn outcome(rows: usize, bytes: &[u8]) -> Result<Vec<TextOutcome>> {
        let broken = || failed(format!("{} bytes of text results do not hold {rows} rows", bytes.len()));
        let word = |at: usize| -> Option<u32> {
            let bytes = bytes.get(at * 4..at * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let mut at = 0;
        let mut outcomes = Vec::with_capacity(rows);
        for _ in 0..rows {
            let mut head = [0; 4];
            for (i, head) in head.iter_mut().enumerate() {
                *head = word(at + i).ok_or_else(broken)?;
            }
            let [token, logprob, fault, counts] = head;
            let (found, asked) = (counts & 0xffff, counts >> 16);
            if fault > 1 || found > asked || asked > MAX_TOP {
                return Err(broken());
            }
            let mut outcome = TextOutcome { fault: true, ..TextOutcome::default() };
            if fault == 0 {
                let top = (0..found as usize).map(|i| {
                    let at = at + 4 + 2 * i;
                    Some((TokenId(word(at)?), f32::from_bits(word(at + 1)?)))
                });
                let top = top.collect::<Option<Vec<_>>>().ok_or_else(broken)?;
                outcome = TextOutcome {
                    token: TokenId(token),
                    logprob: f32::from_bits(logprob),
                    top,
                    fault: false,
                };
            }
            outcomes.push(outcome);
            at += 4 * entries(asked);
        }
        Ok(outcomes)
    }
}

/// Entries of a row's result that reports `top` tokens.
fn entries(top: u32) -> usize {
    1 + top.div_ceil(2) as usize
}

/// Bytes of shared memory of `sample_choose` for a row of `blocks` blocks: digits, list, group, and the blocks to look at.
fn choose_shared(blocks: usize) -> u32 {
    let digits = 3 * 2048 * 4;
    let list = 4096 * 8;
    let group = 2 * 512 * 8;
    let small = 2 * 16 * 8 + 16 + 16 + 16;
    (digits + list + group + small + 2 * blocks) as u32
}

/// The parameters of a row.
fn record(row: &TextRow) -> TextInfo {
    let sampling = &*row.sampling;
    let kind = match row.target {
        Some(_) => TARGET,
        None if sampling.temperature < GREEDY => GREEDILY,
        None => DRAW,
    };
    let least = match sampling.min_p > 0.0 {
        true => ln(sampling.min_p.clamp(f32::MIN_POSITIVE, 1.0)),
        false => f32::NEG_INFINITY,
    };
    TextInfo {
        seed: sampling.seed,
        draw: row.draw,
        kind,
        target: row.target.map_or(u32::MAX, |token| token.0),
        allow_open: u32::from(row.allow_open),
        top_k: sampling.top_k,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        least,
        repetition: sampling.repetition_penalty,
        presence: sampling.presence_penalty,
        frequency: sampling.frequency_penalty,
        top: row.top_logprobs,
        ..TextInfo::default()
    }
}

/// Appends the edits of a row: of each token the counts first, then biases, then bans.
fn edit_list(row: &TextRow, vocab: u32, edits: &mut Vec<TextEdit>) {
    if row.target.is_some() {
        return;
    }
    let first = edits.len();
    let count = row.counts.iter().map(|count| (COUNT, count.token, count.answer));
    let bias = row.sampling.bias.iter().map(|&(token, bias)| (BIAS, token, bias.to_bits()));
    let ban = row.banned.iter().map(|&token| (BAN, token, 0));
    let inside = count.chain(bias).chain(ban).filter(|(_, token, _)| token.0 < vocab);
    edits.extend(inside.map(|(kind, token, operand)| TextEdit { what: kind | token.0, operand }));
    // Stable, and quick on the few ascending runs that these lists are.
    edits[first..].sort_by_key(|edit| edit.what & TOKEN_BITS);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::ops::{Sampling, TokenCount};

    #[test]
    fn edits_are_ascending_and_in_the_order_of_application() {
        let count = |token, answer| TokenCount { token: TokenId(token), answer };
        let row = TextRow {
            row: 0,
            sampling: Arc::new(Sampling {
                bias: vec![(TokenId(3), 1.5), (TokenId(9), 2.0)],
                ..Sampling::default()
            }),
            draw: 0,
            counts: vec![count(1, 0), count(3, 7), count(50, 2)],
            allow_open: false,
            banned: vec![TokenId(9), TokenId(3), TokenId(0)],
            top_logprobs: 0,
            target: None,
        };
        let mut edits = vec![TextEdit::default()];
        edit_list(&row, 50, &mut edits);
        let edit = |what, operand: u32| TextEdit { what, operand };
        let (one_and_a_half, two) = (1.5f32.to_bits(), 2.0f32.to_bits());
        let expected = [
            TextEdit::default(),
            edit(BAN, 0),
            edit(1, 0),
            edit(3, 7),
            edit(BIAS | 3, one_and_a_half),
            edit(BAN | 3, 0),
            edit(BIAS | 9, two),
            edit(BAN | 9, 0),
        ];
        assert_eq!(edits, expected);
    }

    #[test]
    fn results_are_read_back_and_broken_ones_refused() {
        let words =
            [7u32, 0.5f32.to_bits(), 0, 1 | 3 << 16, 9, 0.25f32.to_bits(), 1, 1, 1, 1, 1, 1, 5, 0, 1, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let outcomes = TextSamplerCuda::outcome(2, &bytes).unwrap();
        assert_eq!((outcomes[0].token, outcomes[0].logprob), (TokenId(7), 0.5));
        assert_eq!(outcomes[0].top, [(TokenId(9), 0.25)]);
        assert!(!outcomes[0].fault && outcomes[1].fault);
        assert!(TextSamplerCuda::outcome(3, &bytes).is_err());
        assert!(TextSamplerCuda::outcome(1, &[255; 64]).is_err());
    }
}
