//! Drives the SID step of a device and the CPU's search side by side.

use std::sync::Arc;

use sidereal::catalog::{Layout, LayoutSpec, TypeSpec};
use sidereal::device::cpu::sid::{Search, StepLogits};
use sidereal::device::cuda::args::{BEAM_VIEW_BYTES, MAX_WIDTH, RowGroup, StepCounts};
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::sid::{SidInputs, SidLimits, SidSearches};
use sidereal::device::ops::{self, Normalizer, Path, SearchSpec, Segment, SegmentKind, SidOutcome, SidStep};
use sidereal::ids::{SearchId, TokenId};

use crate::beams::oracle::{Dice, Model, Types, log_sum};

/// A search to be run to its end.
#[derive(Clone)]
pub struct Job {
    pub spec: SearchSpec,
    pub model: Model,
}

impl Job {
    pub fn new(spec: SearchSpec, model: Model) -> Job {
        Job { spec, model }
    }
}

/// A job on its way on both sides.
struct Running {
    model: Model,
    cpu: Search,
    id: SearchId,
    /// Per level, the code of each row.
    history: Vec<Vec<u16>>,
    outcome: Option<SidOutcome>,
    level: usize,
    depth: usize,
}

impl Running {
    fn prefix(&self, row: usize) -> Vec<u16> {
        (0..self.level).map(|l| self.history[l][self.cpu.ancestor_row(row, l)]).collect()
    }

    /// The logits of each slice, in the order of the CPU's columns.
    fn slices(&self) -> Vec<(usize, Vec<f32>)> {
        let slice = |columns: sidereal::device::cpu::sid::CodeColumns| {
            let prefix = self.prefix(columns.row as usize);
            let logit = |code| self.model.logit(columns.item_type, &prefix, code as u16);
            (columns.row as usize, (0..columns.codes).map(logit).collect())
        };
        self.cpu.columns().map(slice).collect()
    }
}

/// The SID step of one device, with buffers for a plan's records.
pub struct Rig<'a> {
    pub driver: &'a mut dyn Driver,
    pub searches: SidSearches,
    layout: Arc<Layout>,
    inputs: SidInputs,
    max_rows: usize,
    arena: DevicePtr,
}

/// Logits that a rig has room for.
const LOGITS: usize = 1 << 20;

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        // A driver that failed does not free.
        let _ = self.driver.free(self.arena);
    }
}

/// Tokens that follow each other at even levels, and descend at odd ones.
fn layout(types: &Types) -> Layout {
    let spec = |(at, levels): (usize, &Vec<usize>)| TypeSpec {
        name: format!("t{at}"),
        levels: levels.clone(),
        token: format!("<t{at}_{{level}}_{{code}}>"),
    };
    let spec =
        LayoutSpec { open: None, close: None, types: types.levels.iter().enumerate().map(spec).collect() };
    let lookup = |token: &str| {
        let parts: Vec<usize> =
            token[2..token.len() - 1].split('_').map(|part| part.parse().unwrap()).collect();
        let before: usize = types.levels[..parts[0]].iter().flatten().sum::<usize>()
            + types.levels[parts[0]][..parts[1]].iter().sum::<usize>();
        let codes = types.levels[parts[0]][parts[1]];
        let code = if parts[1].is_multiple_of(2) { parts[2] } else { codes - 1 - parts[2] };
        Some(TokenId((100 + before + code) as u32))
    };
    Layout::resolve(&spec, lookup).unwrap()
}

/// A plan of `rows` rows that advances one search.
pub fn one_step(search: u32, level: u8, row: u32, rows: usize) -> ops::Plan {
    let step = SidStep { search: SearchId(search), level, row };
    ops::Plan { tokens: vec![TokenId(0); rows], sids: vec![step], ..ops::Plan::default() }
}

/// Plays jobs to their end in one batch on a new rig; returns each one's paths.
pub fn play(driver: &mut dyn Driver, types: &Types, jobs: Vec<Job>, stale: bool) -> Vec<Option<Vec<Path>>> {
    let widest = |job: &Job| *job.spec.widths.iter().max().unwrap() as usize + 5;
    let rows = jobs.iter().map(widest).sum();
    Rig::new(driver, types, rows).play(types, &mut { jobs }, stale)
}

impl<'a> Rig<'a> {
    pub fn new(driver: &'a mut dyn Driver, types: &Types, max_rows: usize) -> Rig<'a> {
        let layout = Arc::new(layout(types));
        let limits = SidLimits { max_rows, multiprocessors: 3 };
        let searches = SidSearches::new(driver, Some(layout.clone()), limits).unwrap();
        let capacity = searches.capacity();
        let sizes = [
            32,
            16 * capacity.candidates,
            32 * capacity.steps,
            32 * capacity.groups,
            4 * LOGITS,
            4 * capacity.rows,
        ];
        let memory = driver.allocate("rig", &sizes).unwrap();
        // Hostile records lead to logits that no step wrote.
        driver.fill(memory[4], 0, sizes[4]).unwrap();
        let inputs = SidInputs {
            counts: memory[0],
            candidates: memory[1],
            steps: memory[2],
            groups: memory[3],
            logits: memory[4],
            logits_len: LOGITS,
            norms: memory[5],
        };
        Rig { driver, searches, layout, inputs, max_rows, arena: memory[0] }
    }

    /// Runs the jobs; with `stale`, as an engine does that plans ahead: with more rows than are live.
    pub fn play(&mut self, types: &Types, jobs: &mut Vec<Job>, stale: bool) -> Vec<Option<Vec<Path>>> {
        assert_eq!(self.layout.types.len(), types.levels.len());
        let mut running: Vec<Running> = jobs
            .drain(..)
            .map(|job| Running {
                model: job.model,
                cpu: Search::new(job.spec.clone()).unwrap(),
                depth: job.spec.widths.len(),
                id: self.searches.open(self.driver, job.spec).unwrap(),
                history: Vec::new(),
                outcome: None,
                level: 0,
            })
            .collect();
        let mut round = 0;
        loop {
            // Every other job starts a step later: levels mix.
            let goes = |(at, job): &(usize, &mut Running)| {
                let ended = job.outcome.is_some_and(|outcome| outcome.live == 0);
                (round > 0 || at % 2 == 0) && job.level < job.depth && (!ended || stale)
            };
            let mut going: Vec<&mut Running> =
                running.iter_mut().enumerate().filter(goes).map(|(_, job)| job).collect();
            if going.is_empty() && round > 0 {
                break;
            }
            self.step(&mut going, stale);
            round += 1;
        }
        let mut all = Vec::new();
        for job in running {
            let paths = self.searches.paths(self.driver, job.id).unwrap();
            assert_eq!(paths, job.cpu.paths(), "search {}", job.id);
            self.searches.close(job.id);
            all.push(job.outcome.filter(|outcome| !outcome.fault).map(|_| paths));
        }
        all
    }

    fn step(&mut self, jobs: &mut [&mut Running], stale: bool) {
        let mut plan = ops::Plan::default();
        for job in jobs.iter() {
            let row = plan.tokens.len() as u32;
            let live = job.cpu.rows();
            let rows = match job.level {
                0 => 1,
                _ if stale => self.searches.most_live(job.id, job.level as u8 - 1).max(1),
                _ => live,
            };
            // Rows of somebody else before each.
            plan.tokens.resize(row as usize + rows + 1, TokenId(0));
            plan.sids.push(SidStep { search: job.id, level: job.level as u8, row });
            if job.level > 0 {
                let (level, private) = (job.level as u8 - 1, 0..0);
                let kind = SegmentKind::Beam { search: job.id, level, private, stride: 1 };
                plan.segments.push(Segment { rows: row..row + rows as u32, table: 0..0, context: 0, kind });
            }
        }
        assert!(plan.rows() <= self.max_rows, "{} rows of {}", plan.rows(), self.max_rows);
        self.searches.plan(&plan).unwrap();
        self.upload();
        self.searches.enqueue_gather(self.driver, &self.inputs).unwrap();
        self.write_logits(jobs, &plan);
        self.write_norms(jobs, &plan);
        self.searches.enqueue_step(self.driver, &self.inputs).unwrap();
        let (at, bytes) = self.searches.results();
        let outcomes = self.searches.outcome(&self.driver.download(at, bytes).unwrap()).unwrap();
        let mut slot = 0;
        for (step, job) in jobs.iter_mut().enumerate() {
            let slots = self.searches.steps()[step].slots as usize;
            self.compare(job, slot, outcomes[step]);
            slot += slots;
        }
    }

    fn upload(&mut self) {
        let counts = StepCounts {
            sid_steps: self.searches.steps().len() as u32,
            candidates: self.searches.candidates().len() as u32,
            ..StepCounts::default()
        };
        let parts: [(DevicePtr, &[u8]); 4] = [
            (self.inputs.counts, bytemuck::bytes_of(&counts)),
            (self.inputs.candidates, bytemuck::cast_slice(self.searches.candidates())),
            (self.inputs.steps, bytemuck::cast_slice(self.searches.steps())),
            (self.inputs.groups, bytemuck::cast_slice(self.searches.groups())),
        ];
        for (to, bytes) in parts.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            self.driver.upload(*to, bytes).unwrap();
        }
    }

    /// Does what the products would do: reads which rows each codebook is wanted for, and writes their logits; NaN everywhere else.
    fn write_logits(&mut self, jobs: &[&mut Running], plan: &ops::Plan) {
        let mut values = vec![f32::NAN; self.searches.logits_needed().max(1)];
        assert!(values.len() <= LOGITS);
        let groups = self.searches.head_groups();
        let Some(first) = groups.first() else { return };
        let list = self.driver.download(first.list, 4 * self.searches.candidates().len()).unwrap();
        let list: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&list);
        // What each group should have found: (row of the plan, job, slice).
        let mut expected: Vec<Vec<(u32, Vec<f32>)>> = vec![Vec::new(); groups.len()];
        for (job, step) in jobs.iter().zip(&plan.sids) {
            for (columns, (row, slice)) in job.cpu.columns().zip(job.slices()) {
                let wanted = |group: &sidereal::device::cuda::sid::HeadGroup| {
                    (group.item_type, group.level) == (columns.item_type, columns.level)
                };
                expected[groups.iter().position(wanted).unwrap()].push((step.row + row as u32, slice));
            }
        }
        for (group, expected) in groups.iter().zip(expected) {
            let record = self.driver.download(group.record, 16).unwrap();
            let record: RowGroup = bytemuck::pod_read_unaligned(&record);
            let rows = &list[record.first as usize..][..record.rows as usize];
            assert_eq!(rows, expected.iter().map(|row| row.0).collect::<Vec<_>>(), "{group:?}");
            assert!(record.rows as usize <= group.bucket);
            for (i, (_, slice)) in expected.iter().enumerate() {
                values[record.out as usize + i * slice.len()..][..slice.len()].copy_from_slice(slice);
            }
        }
        self.driver.upload(self.inputs.logits, bytemuck::cast_slice(&values)).unwrap();
    }

    fn write_norms(&mut self, jobs: &[&mut Running], plan: &ops::Plan) {
        let rows = self.searches.vocabulary_rows().to_vec();
        let mut norms = vec![f32::NAN; rows.len().max(1)];
        for (job, step) in jobs.iter().zip(&plan.sids) {
            let given = vocabulary(job);
            for (at, norm) in given.iter().enumerate() {
                if let Some(i) = rows.iter().position(|&row| row == step.row + at as u32) {
                    norms[i] = *norm;
                }
            }
        }
        self.driver.upload(self.inputs.norms, bytemuck::cast_slice(&norms)).unwrap();
    }

    /// Advances the CPU's search with the device's normalisers and compares everything that can be seen.
    fn compare(&mut self, job: &mut Running, slot: usize, outcome: SidOutcome) {
        let slices = job.slices();
        let rows = if job.level == 0 { 1 } else { job.cpu.rows() };
        let norms = match job.cpu.spec().normalizer {
            Normalizer::Valid => None,
            Normalizer::Vocabulary => Some(vocabulary(job)),
            // After a fault rows may have been left alone.
            Normalizer::Codebook if outcome.fault => Some(vec![f32::NAN; rows]),
            Normalizer::Codebook => Some(self.codebook_norms(&slices, slot, rows, job.level == 0)),
        };
        let values: Vec<f32> = slices.iter().flat_map(|slice| slice.1.clone()).collect();
        let starts: Vec<usize> = slices
            .iter()
            .scan(0, |at, slice| {
                *at += slice.1.len();
                Some(*at - slice.1.len())
            })
            .collect();
        let ended = job.cpu.level() == job.depth;
        let logits =
            StepLogits { values: &values, starts: &starts, norms: norms.as_deref().filter(|_| !ended) };
        let expected = job.cpu.advance(job.level as u8, &logits).unwrap();
        assert_eq!(outcome, expected, "search {} level {}", job.id, job.level);
        job.outcome = Some(outcome);
        job.level += 1;
        let rows = 0..job.cpu.rows();
        if !rows.is_empty() {
            job.history.push(rows.map(|row| job.cpu.row_code(row).2).collect());
        }
        self.compare_view(job);
    }

    fn compare_view(&mut self, job: &Running) {
        let view = self.searches.beam_view(job.id).unwrap();
        let view = self.driver.download(view, BEAM_VIEW_BYTES).unwrap();
        let live: u32 = bytemuck::pod_read_unaligned(&view[..4]);
        assert_eq!(live as usize, job.cpu.rows());
        let tokens: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&view[16..16 + 4 * MAX_WIDTH]);
        let ancestors: Vec<u16> = bytemuck::allocation::pod_collect_to_vec(&view[16 + 4 * MAX_WIDTH..]);
        for row in 0..live as usize {
            assert_eq!(tokens[row], job.cpu.row_token(&self.layout, row).0, "row {row}");
            for l in 0..job.level {
                let found = ancestors[l * MAX_WIDTH + row] as usize;
                assert_eq!(found, job.cpu.ancestor_row(row, l), "row {row} level {l}");
            }
        }
    }

    /// The device's normalisers of a search's rows, close to float64.
    fn codebook_norms(
        &mut self,
        slices: &[(usize, Vec<f32>)],
        slot: usize,
        rows: usize,
        first: bool,
    ) -> Vec<f32> {
        if slices.is_empty() {
            return vec![0.0; rows];
        }
        let bytes = self.driver.download(self.searches.scores().add(16 * slot), 16 * slices.len()).unwrap();
        let norms: Vec<f32> =
            bytes.chunks_exact(16).map(|score| bytemuck::pod_read_unaligned(&score[..4])).collect();
        let all = |slices: &[(usize, Vec<f32>)]| {
            log_sum(slices.iter().flat_map(|slice| &slice.1).map(|&v| f64::from(v)))
        };
        for (at, norm) in norms.iter().enumerate() {
            let expected = if first { all(slices) } else { all(&slices[at..at + 1]) };
            let close = (f64::from(*norm) - expected).abs() <= 2e-6 * expected.abs().max(1.0);
            assert!(
                close || f64::from(*norm) == expected || norm.is_nan() && expected.is_nan(),
                "{norm} {expected}"
            );
            assert!(!first || norm.to_bits() == norms[0].to_bits());
        }
        norms[..rows].to_vec()
    }

    /// Launches everything as for a plan that advances these searches, with anything in its records.
    pub fn hostile(&mut self, ids: &[SearchId], dice: &mut Dice) {
        let capacity = *self.searches.capacity();
        let mut plan = one_step(0, 0, 0, self.max_rows);
        plan.sids = ids.iter().map(|&search| SidStep { search, level: 0, row: 0 }).collect();
        self.searches.plan(&plan).unwrap();
        for small in [true, false, true, true] {
            let mut random = |bytes: usize| -> Vec<u32> {
                let bound = [2, 5, 300][dice.below(3)];
                let mut word =
                    || if small || dice.once_in(2) { dice.below(bound) as u32 } else { dice.next() as u32 };
                (0..bytes / 4).map(|_| word()).collect()
            };
            let parts = [
                (self.inputs.counts, random(32)),
                (self.inputs.candidates, random(16 * capacity.candidates)),
                (self.inputs.steps, random(32 * capacity.steps)),
                (self.inputs.groups, random(32 * capacity.groups)),
                (self.inputs.norms, random(4 * capacity.rows)),
            ];
            for (to, words) in &parts {
                self.driver.upload(*to, bytemuck::cast_slice(words)).unwrap();
            }
            self.searches.enqueue_gather(self.driver, &self.inputs).unwrap();
            let (group, norms) = (self.inputs.groups, self.inputs.norms);
            self.searches
                .enqueue_norms(self.driver, self.inputs.logits, 9, group, capacity.rows, norms)
                .unwrap();
            self.searches.enqueue_step(self.driver, &self.inputs).unwrap();
        }
    }
}

/// A job's normalisers over the vocabulary, one per row.
fn vocabulary(job: &Running) -> Vec<f32> {
    if job.cpu.spec().normalizer != Normalizer::Vocabulary {
        return Vec::new();
    }
    if let Model::Integer(_) | Model::Flat = job.model {
        return vec![0.0; if job.level == 0 { 1 } else { job.cpu.rows() }];
    }
    let slices = job.slices();
    let norm = |slices: &[(usize, Vec<f32>)]| {
        let values = slices.iter().flat_map(|slice| &slice.1).map(|&v| f64::from(v));
        log_sum(values.chain([1.5])) as f32
    };
    if job.level == 0 {
        vec![norm(&slices)]
    } else {
        slices.iter().map(|slice| norm(std::slice::from_ref(slice))).collect()
    }
}
