//! The SID step, from the logits of the codebooks to the next beams: `sid_gather`, `sid_score` and `sid_select` of many searches at once.
//!
//! `sid_step/32xw64/v8192x3/zipf1.0/level1`: 32 searches of width 64 choose the second of three codes out of 8,192, on a catalog of ten million items whose
//! codes follow Zipf's law. Beams of the first level are drawn like ancestors of random items, later ones are those that the search reaches with random
//! logits. The limit is that of reading the logits and, at the second level, the children's codes. `SID_STEP_ITEMS` makes the catalogs smaller.
//!
//! `head/32xw64/v8192x3/uniform/step`: the second step with the product before it that makes its logits, `[2048, 2048]` by the codebook's `[8192, 2048]`;
//! `…/product` is that product alone, and the difference what gathering rows and choosing add to it. The limit of both is the product's, its float32 logits
//! written.

use std::cell::RefCell;
use std::sync::Arc;

use criterion::Criterion;
use sidereal::catalog::synthetic::{self, Skew};
use sidereal::catalog::{Catalog, Layout, LayoutSpec, Mask, TypeSpec};
use sidereal::device::cuda::args::{RowGroup, StepCounts};
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::products::{Activations, Epilogue, Matrix, Product, Products};
use sidereal::device::cuda::sid::{SidInputs, SidLimits, SidSearches};
use sidereal::device::ops::{DType, Normalizer, Plan, SearchSpec, Segment, SegmentKind, SidStep};
use sidereal::ids::{SearchId, TokenId, TypeId};

use crate::gpu::{Gpu, Work, noise};

/// Steps of a round, each of searches of its own: a step changes what it advances.
const SETS: usize = 16;
/// Buffers of logits that take turns; one alone is larger than the level-2 cache at the shapes that have a limit to reach.
const LOGITS: usize = 3;

pub fn benches(c: &mut Criterion, gpu: &mut Gpu) {
    let items = std::env::var("SID_STEP_ITEMS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let skews = [("uniform", Skew::Uniform), ("zipf0.8", Skew::Zipf(0.8)), ("zipf1.0", Skew::Zipf(1.0))];
    for (shape, levels) in [("v8192x3", vec![8192; 3]), ("v2048x8", vec![2048; 8])] {
        for (skew_name, skew) in skews {
            let shapes = [(32, 64), (1, 256), (4, 256), (2, 70)].map(|(searches, width)| {
                let begin = format!("{searches}xw{width}/{shape}/{skew_name}");
                let (steps, head) = (format!("sid_step/{begin}"), format!("head/{begin}"));
                ((gpu.wanted(&steps), gpu.wanted(&head)), searches, width, begin)
            });
            if shapes.iter().all(|(wanted, ..)| *wanted == (false, false)) {
                continue;
            }
            let token = "<s_{level}_{code}>".to_owned();
            let spec = TypeSpec { name: "item".to_owned(), levels: levels.clone(), token };
            let catalog = synthetic::catalog(std::slice::from_ref(&spec), items, skew, 7);
            let catalog = Arc::new(catalog.expect("the space is large enough"));
            for ((steps, head), searches, width, begin) in shapes {
                if !steps && !head {
                    continue;
                }
                let mut rig = Rig::new(gpu, &spec, &catalog, (searches, width));
                println!("sid_step/{begin}/level1: {} children", rig.children);
                if steps {
                    // All steps of the shape whose whole search has a limit.
                    let last = if (searches, width) == (2, 70) { levels.len() } else { 3 };
                    (0..last).for_each(|level| rig.bench(c, gpu, &begin, level));
                }
                if head {
                    rig.bench_head(c, gpu, &begin);
                }
                rig.free(gpu);
            }
        }
    }
}

/// Searches of one width over one catalog, and the buffers of their steps.
struct Rig {
    catalog: Arc<Catalog>,
    mask: Arc<Mask>,
    steps: SidSearches,
    searches: usize,
    width: usize,
    /// Per set the records of its step.
    inputs: Vec<SidInputs>,
    /// `[searches, codes]` of the first level.
    first: DevicePtr,
    /// `[searches x width, codes]` each.
    logits: Vec<DevicePtr>,
    logits_len: usize,
    /// Children of the nodes that the second level looks at, over all searches.
    children: usize,
}

impl Rig {
    fn new(gpu: &mut Gpu, spec: &TypeSpec, catalog: &Arc<Catalog>, (searches, width): (usize, usize)) -> Rig {
        let layout = LayoutSpec { open: None, close: None, types: vec![spec.clone()] };
        let levels = spec.levels.clone();
        let token = |token: &str| {
            let mut numbers = token.trim_matches(['<', '>']).split('_').skip(1).map(str::parse::<usize>);
            let (level, code) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            Some(TokenId((levels[..level].iter().sum::<usize>() + code) as u32))
        };
        let layout = Arc::new(Layout::resolve(&layout, token).expect("a token per code"));
        let limits = SidLimits {
            max_rows: searches * width,
            multiprocessors: gpu.driver.properties().multiprocessors,
        };
        let steps = SidSearches::new(&mut *gpu.driver, Some(layout), limits).expect("memory for the step");
        let capacity = *steps.capacity();
        let codes = spec.levels[0];
        let logits_len = searches * width * codes;
        let logits: Vec<DevicePtr> = (0..LOGITS)
            .map(|at| gpu.upload(&noise(at as u64 + 1, logits_len).map(|x| 4.0 * x).collect::<Vec<f32>>()))
            .collect();
        let (first, children) = first_logits(catalog, searches, width);
        let first = gpu.upload(&first);
        let sizes =
            [32, 16 * capacity.candidates, 32 * capacity.steps, 32 * capacity.groups, 4 * capacity.rows];
        let inputs = (0..SETS).map(|set| {
            let memory = gpu.allocate(&sizes);
            SidInputs {
                counts: memory[0],
                candidates: memory[1],
                steps: memory[2],
                groups: memory[3],
                logits: logits[set % LOGITS],
                logits_len,
                norms: memory[4],
            }
        });
        let inputs = inputs.collect();
        let mask = Arc::new(Mask::all(catalog.index(TypeId(0))));
        let catalog = catalog.clone();
        Rig { catalog, mask, steps, searches, width, inputs, first, logits, logits_len, children }
    }

    fn bench(&mut self, c: &mut Criterion, gpu: &mut Gpu, begin: &str, level: usize) {
        self.check(&mut *gpu.driver, level);
        let work = self.work(level);
        let prepare = |rig: &mut Rig, driver: &mut dyn Driver| rig.prepare(driver, level);
        let enqueue = |rig: &mut Rig, driver: &mut dyn Driver, set: usize| rig.enqueue(driver, set, level);
        gpu.bench_rounds(
            c,
            ("sid_step", &format!("{begin}/level{level}")),
            (work, SETS),
            self,
            (prepare, enqueue),
        );
    }

    /// The second level's codebook, alone and with its step behind it.
    fn bench_head(&mut self, c: &mut Criterion, gpu: &mut Gpu, begin: &str) {
        let rows = self.searches * self.width;
        let codes = self.catalog.index(TypeId(0)).codebook(1);
        let head = RefCell::new(Head::new(gpu, rows, codes));
        let work = Work {
            bytes: 2 * HIDDEN * (codes + rows) + 4 * rows * codes,
            operations: 2.0 * (rows * codes * HIDDEN) as f64,
        };
        for (what, steps) in [("product", false), ("step", true)] {
            let prepare = |rig: &mut Rig, driver: &mut dyn Driver| rig.prepare(driver, 1);
            let enqueue = |rig: &mut Rig, driver: &mut dyn Driver, set: usize| {
                head.borrow_mut().enqueue(driver, rig.inputs[set].logits, set)?;
                if steps { rig.enqueue(driver, set, 1) } else { Ok(()) }
            };
            gpu.bench_rounds(c, ("head", &format!("{begin}/{what}")), (work, SETS), self, (prepare, enqueue));
        }
        self.check(&mut *gpu.driver, 1);
        head.into_inner().free(gpu);
    }

    fn rows(&self, level: usize) -> usize {
        if level == 0 { self.searches } else { self.searches * self.width }
    }

    fn work(&self, level: usize) -> Work {
        let codes = self.catalog.index(TypeId(0)).codebook(level);
        let children = if level == 1 { self.children } else { 0 };
        Work { bytes: 4 * self.rows(level) * codes + 2 * children, operations: 0.0 }
    }

    /// Opens the searches of every set, brings them to `level` and plans that step.
    fn prepare(&mut self, driver: &mut dyn Driver, level: usize) {
        let mut open = Vec::new();
        for set in 0..SETS {
            let ids: Vec<SearchId> = (0..self.searches).map(|_| self.open(driver)).collect();
            for before in 0..level {
                self.plan(driver, &ids, before, set);
                self.enqueue(driver, set, before).expect("a step");
            }
            self.plan(driver, &ids, level, set);
            open.extend(ids);
        }
        // On the host; what they have on the device nobody takes before the next round opens others.
        open.into_iter().for_each(|id| self.steps.close(id));
    }

    /// The step of a set; all sets have plans of one shape, so that the last one planned stands for each.
    fn enqueue(&self, driver: &mut dyn Driver, set: usize, level: usize) -> sidereal::Result<()> {
        let inputs = self.at_level(set, level);
        self.steps.enqueue_gather(driver, &inputs)?;
        self.steps.enqueue_step(driver, &inputs)
    }

    /// A step that does nothing would be fast.
    fn check(&mut self, driver: &mut dyn Driver, level: usize) {
        self.prepare(driver, level);
        (0..SETS).for_each(|set| self.enqueue(driver, set, level).expect("a launch"));
        let (at, bytes) = self.steps.results();
        let results = driver.download(at, bytes).expect("results");
        let outcomes = self.steps.outcome(&results).expect("whole records");
        assert_eq!(outcomes.len(), self.searches);
        let last = level + 1 == self.catalog.index(TypeId(0)).levels();
        let expected = if last { 0 } else { self.width as u32 };
        assert!(outcomes.iter().all(|outcome| !outcome.fault && outcome.live == expected), "{outcomes:?}");
    }

    fn at_level(&self, set: usize, level: usize) -> SidInputs {
        let logits = if level == 0 { self.first } else { self.inputs[set].logits };
        SidInputs { logits, logits_len: self.logits_len, ..self.inputs[set] }
    }

    fn open(&mut self, driver: &mut dyn Driver) -> SearchId {
        let spec = SearchSpec {
            catalog: self.catalog.clone(),
            types: vec![(TypeId(0), self.mask.clone())],
            delta: None,
            widths: vec![self.width as u32; self.catalog.index(TypeId(0)).levels()],
            normalizer: Normalizer::Codebook,
            groups: 1,
            group_penalty: 0.0,
            max_per_prefix: None,
            sampling: None,
        };
        self.steps.open(driver, spec).expect("a search")
    }

    /// Plans a step of the searches and uploads its records.
    fn plan(&mut self, driver: &mut dyn Driver, ids: &[SearchId], level: usize, set: usize) {
        let rows = if level == 0 { 1 } else { self.width };
        let mut plan = Plan { tokens: vec![TokenId(0); rows * ids.len()], ..Plan::default() };
        for (at, &search) in ids.iter().enumerate() {
            let row = (at * rows) as u32;
            plan.sids.push(SidStep { search, level: level as u8, row });
            if level > 0 {
                let kind = SegmentKind::Beam { search, level: level as u8 - 1, private: 0..0, stride: 1 };
                plan.segments.push(Segment { rows: row..row + rows as u32, table: 0..0, context: 0, kind });
            }
        }
        self.steps.plan(&plan).expect("a plan");
        let counts = StepCounts {
            sid_steps: self.steps.steps().len() as u32,
            candidates: self.steps.candidates().len() as u32,
            ..StepCounts::default()
        };
        let inputs = &self.inputs[set];
        let parts: [(DevicePtr, &[u8]); 4] = [
            (inputs.counts, bytemuck::bytes_of(&counts)),
            (inputs.candidates, bytemuck::cast_slice(self.steps.candidates())),
            (inputs.steps, bytemuck::cast_slice(self.steps.steps())),
            (inputs.groups, bytemuck::cast_slice(self.steps.groups())),
        ];
        parts.into_iter().for_each(|(to, bytes)| driver.upload(to, bytes).expect("an upload"));
    }

    fn free(self, gpu: &mut Gpu) {
        let inputs = self.inputs.iter().map(|inputs| inputs.counts);
        let all = self.logits.iter().copied().chain([self.first]).chain(inputs);
        all.for_each(|at| gpu.driver.free(at).expect("freed"));
    }
}

/// The hidden size of a decoder of 1.7B.
const HIDDEN: usize = 2048;

/// The product that makes the logits of a codebook.
struct Head {
    products: Products,
    x: Activations,
    /// More of them than the level-2 cache holds.
    w: Vec<Matrix>,
    group: DevicePtr,
    rows: usize,
}

impl Head {
    fn new(gpu: &mut Gpu, rows: usize, codes: usize) -> Head {
        let products = Products::new(&mut *gpu.driver, DType::Bf16, 8, 8, false).expect("kernels");
        // Logits spread like those of the steps without it.
        let scale = 4.0 * 3.0 / (HIDDEN as f32).sqrt();
        let x: Vec<half::bf16> = noise(1, rows * HIDDEN).map(|x| half::bf16::from_f32(scale * x)).collect();
        let x = gpu.upload(&x);
        let x = products.activations(&mut *gpu.driver, x, rows, HIDDEN).expect("activations");
        let w = (0..gpu.sets(2 * HIDDEN * codes)).map(|_| {
            let at = gpu.random(2 * HIDDEN * codes);
            products.matrix(&mut *gpu.driver, at, codes, HIDDEN).expect("a matrix")
        });
        let w = w.collect();
        Head { products, x, w, group: gpu.upload(&[RowGroup { first: 0, rows: rows as u32, out: 0 }]), rows }
    }

    fn enqueue(&mut self, driver: &mut dyn Driver, logits: DevicePtr, set: usize) -> sidereal::Result<()> {
        let w = &self.w[set % self.w.len()];
        let product = Product {
            x: &self.x,
            norm: None,
            w,
            bias: None,
            epilogue: Epilogue::Float,
            out: logits,
            ld_out: w.n(),
            group: self.group,
            bucket: self.rows,
            max_out: self.rows,
        };
        self.products.enqueue(driver, &product)
    }

    fn free(self, gpu: &mut Gpu) {
        let all = self.w.iter().map(Matrix::ptr).chain([self.x.ptr(), self.group]);
        all.for_each(|at| gpu.driver.free(at).expect("freed"));
    }
}

/// Logits of the first level, `[searches, codes]`, whose best `width` are drawn like first codes of random items (a code's logarithm of SIDs below it, plus
/// Gumbel noise); and the children of all that.
fn first_logits(catalog: &Catalog, searches: usize, width: usize) -> (Vec<f32>, usize) {
    let index = catalog.index(TypeId(0));
    let codes = index.codebook(0);
    let (mut logits, mut children) = (Vec::with_capacity(searches * codes), 0);
    for search in 0..searches {
        let mut row = vec![f32::NEG_INFINITY; codes];
        let mut nodes = Vec::new();
        let random: Vec<f32> = noise(1000 + search as u64, codes).map(|x| (x + 1.0) / 2.0).collect();
        index.for_each_child(0, index.root(), |child| {
            let gumbel = -(-(random[child.code as usize].clamp(1e-6, 1.0 - 1e-6)).ln()).ln();
            row[child.code as usize] = (child.sids.len() as f32).ln() + gumbel;
            nodes.push((row[child.code as usize], child.node));
        });
        nodes.sort_by(|a, b| b.0.total_cmp(&a.0));
        children += nodes.iter().take(width).map(|(_, node)| index.children(1, *node).count()).sum::<usize>();
        logits.extend(row);
    }
    (logits, children)
}
