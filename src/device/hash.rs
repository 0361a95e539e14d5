//! A device with a hash in place of a model: what the scheduler is proven with, and what its own cost is measured on.
//!
//! The "key" of a token is a hash of the token and its position, written to the plan's cache slot; the "attention" of a row
//! hashes every key of its context in order, read back from the cache through the plan's block tables and, for beams,
//! through parent pointers. Logits are a hash of that and the column. So an answer depends on every token before it having been
//! written to, and found at, the right slot: a block that is freed too early, shared wrongly or handed out twice changes the
//! answer. Sampling and searches are the CPU device's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::cpu::logsum::log_sum_exp;
use super::cpu::sample::TextSampler;
use super::cpu::sid::{Search, StepLogits};
use super::ops::{
    Buffer, Device, DeviceConfig, Normalizer, Outcome, Path, Plan, SearchSpec, Segment, SegmentKind,
};
use crate::error::{Error, Result};
use crate::ids::{SearchId, TokenId};
use crate::kv::BLOCK_TOKENS;

/// The device; weights of its configuration are not looked at.
pub struct HashDevice {
    config: DeviceConfig,
    step_time: Duration,
    started: Instant,
    sampler: TextSampler,
    cache: Vec<u64>,
    /// State of each row.
    rows: Vec<u64>,
    searches: Vec<Option<Search>>,
    open: Arc<AtomicUsize>,
    outcome: Outcome,
    logits: Vec<f32>,
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x2545_f491_4f6c_dd1d);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A logit from -4 to 4.
fn logit(state: u64, token: TokenId) -> f32 {
    (mix(state, u64::from(token.0)) >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0
}

impl HashDevice {
    /// Makes a device whose steps take at least `step_time`.
    ///
    /// # Errors
    /// [`Error::Device`] if text mask and vocabulary do not fit.
    pub fn new(config: DeviceConfig, step_time: Duration) -> Result<HashDevice> {
        let opener = config.layout.as_ref().and_then(|layout| layout.open);
        Ok(HashDevice {
            sampler: TextSampler::new(config.shape.vocab, &config.text_tokens, opener)?,
            cache: vec![0; config.cache_blocks * BLOCK_TOKENS],
            rows: Vec::with_capacity(config.max_rows),
            searches: Vec::new(),
            open: Arc::default(),
            outcome: Outcome::default(),
            logits: Vec::new(),
            started: Instant::now(),
            step_time,
            config,
        })
    }

    /// Counts the searches that are open: 0 when no request is left, or one has leaked.
    pub fn open_searches(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }

    fn search(&self, id: SearchId) -> Result<&Search> {
        self.searches
            .get(id.index())
            .and_then(Option::as_ref)
            .ok_or_else(|| Error::Device(format!("there is no search {id}")))
    }

    fn slot(blocks: &[crate::ids::BlockId], place: usize) -> usize {
        blocks[place / BLOCK_TOKENS].index() * BLOCK_TOKENS + place % BLOCK_TOKENS
    }

    fn context(&self, plan: &Plan, segment: &Segment) -> u64 {
        let table = &plan.blocks[segment.table.start as usize..segment.table.end as usize];
        (0..segment.context as usize).fold(0, |state, place| mix(state, self.cache[Self::slot(table, place)]))
    }

    fn causal(&mut self, plan: &Plan, segment: &Segment) {
        let mut state = self.context(plan, segment);
        for row in segment.rows.clone() {
            let row = row as usize;
            let soft = plan.soft.iter().find(|soft| soft.row as usize == row);
            let input = soft.map_or(u64::from(plan.tokens[row].0), |soft| {
                soft.values.iter().fold(u64::MAX, |state, v| mix(state, u64::from(v.to_bits())))
            });
            let key = mix(input, u64::from(plan.positions[row]));
            self.cache[plan.slots[row] as usize] = key;
            state = mix(state, key);
            self.rows[row] = state;
        }
    }

    fn beams(&mut self, plan: &Plan, segment: &Segment) -> Result<()> {
        let SegmentKind::Beam { search, level, ref private, stride } = segment.kind else { return Ok(()) };
        let context = self.context(plan, segment);
        let private = &plan.blocks[private.start as usize..private.end as usize];
        let layout = self.config.layout.clone().ok_or_else(|| Error::Device("no layout".to_owned()))?;
        let live = self.search(search)?.rows().min(segment.rows.len());
        for beam in 0..live {
            let row = segment.rows.start as usize + beam;
            let token = self.search(search)?.row_token(&layout, beam);
            self.cache[plan.slots[row] as usize] = mix(u64::from(token.0), u64::from(plan.positions[row]));
            let mut state = context;
            for l in 0..=level as usize {
                let at = if l == level as usize { beam } else { self.search(search)?.ancestor_row(beam, l) };
                state = mix(state, self.cache[Self::slot(private, l * stride as usize + at)]);
            }
            self.rows[row] = state;
        }
        Ok(())
    }
}

impl Device for HashDevice {
    fn describe(&self) -> String {
        format!("hash, steps of {:?}", self.step_time)
    }

    fn open_search(&mut self, spec: SearchSpec) -> Result<SearchId> {
        let search = Search::new(spec)?;
        let place = self.searches.iter().position(Option::is_none).unwrap_or_else(|| {
            self.searches.push(None);
            self.searches.len() - 1
        });
        self.searches[place] = Some(search);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(SearchId(place as u32))
    }

    fn close_search(&mut self, search: SearchId) {
        if self.searches.get_mut(search.index()).and_then(Option::take).is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn search_paths(&mut self, search: SearchId) -> Result<Vec<Path>> {
        Ok(self.search(search)?.paths())
    }

    fn begin(&mut self, plan: &Plan) -> Result<()> {
        self.started = Instant::now();
        self.rows.clear();
        self.rows.resize(plan.rows(), 0);
        Ok(())
    }

    fn forward(&mut self, plan: &Plan) -> Result<bool> {
        // All keys before any context is read: sequences of one step may share blocks only of earlier steps.
        for segment in &plan.segments {
            match segment.kind {
                SegmentKind::Causal => self.causal(plan, segment),
                SegmentKind::Beam { .. } => self.beams(plan, segment)?,
            }
        }
        Ok(true)
    }

    fn embed(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    fn attention_input(&mut self, _plan: &Plan, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn attention(&mut self, _plan: &Plan, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn attention_output(&mut self, _plan: &Plan, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn mlp_input(&mut self, _plan: &Plan, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn mlp_output(&mut self, _plan: &Plan, _layer: usize) -> Result<()> {
        Ok(())
    }

    fn head(&mut self, _plan: &Plan) -> Result<()> {
        Ok(())
    }

    fn sample(&mut self, plan: &Plan) -> Result<()> {
        let vocab = self.config.shape.vocab as u32;
        for text in &plan.text {
            let state = self.rows[text.row as usize];
            self.logits.clear();
            self.logits.extend((0..vocab).map(|token| logit(state, TokenId(token))));
            self.outcome.text.push(self.sampler.sample(&self.logits, text));
        }
        Ok(())
    }

    fn step_sids(&mut self, plan: &Plan) -> Result<()> {
        let layout = self.config.layout.clone().ok_or_else(|| Error::Device("no layout".to_owned()));
        for step in &plan.sids {
            let layout = layout.clone()?;
            let search = self.search(step.search)?;
            let (mut values, mut starts, mut norms) = (Vec::new(), Vec::new(), Vec::new());
            for columns in search.columns() {
                let state = self.rows[(step.row + columns.row) as usize];
                let tokens = &layout.types[columns.item_type.index()].levels[columns.level as usize];
                starts.push(values.len());
                values.extend((0..tokens.len()).map(|code| logit(state, tokens.token(code as u16))));
            }
            if search.spec().normalizer == Normalizer::Vocabulary {
                let rows = if step.level == 0 { 1 } else { search.rows() };
                for row in 0..rows {
                    let state = self.rows[step.row as usize + row];
                    let all: Vec<f32> = (0..self.config.shape.vocab as u32)
                        .map(|token| logit(state, TokenId(token)))
                        .collect();
                    norms.push(log_sum_exp(&all).unwrap_or(f32::NAN));
                }
            }
            let norms = (!norms.is_empty()).then_some(&norms[..]);
            let logits = StepLogits { values: &values, starts: &starts, norms };
            let search = self.searches[step.search.index()].as_mut();
            let search =
                search.ok_or_else(|| Error::Device(format!("there is no search {}", step.search)))?;
            self.outcome.sids.push(search.advance(step.level, &logits)?);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Outcome> {
        if let Some(left) = self.step_time.checked_sub(self.started.elapsed()) {
            std::thread::sleep(left);
        }
        Ok(std::mem::take(&mut self.outcome))
    }

    fn read(&mut self, buffer: Buffer) -> Result<Vec<f32>> {
        Err(Error::Unsupported(format!("the hash device has no buffer {buffer:?}")))
    }

    fn write(&mut self, buffer: Buffer, _values: &[f32]) -> Result<()> {
        Err(Error::Unsupported(format!("the hash device has no buffer {buffer:?}")))
    }
}
