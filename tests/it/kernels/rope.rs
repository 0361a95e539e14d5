//! `kernels/rope.cu` against float64: norm, rotation, rounding, and where keys and values go.

use bytemuck::{Zeroable, bytes_of, cast_slice};
use sidereal::device::cuda::args::{RowInfo, StepCounts};
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::rope::{RopeCache, RopeLayer, RopeShape};
use sidereal::device::ops::DType;

use super::attention::case::{from_bits, hash};
use super::{drivers, drivers_in_every_order};

struct Case {
    dtype: DType,
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    norm: bool,
    /// Position and slot of each row.
    rows: Vec<(u32, u32)>,
    cache_blocks: usize,
}

const EPS: f32 = 1e-5;
const SCALE: f32 = 1.2;

struct Results {
    q: Vec<u16>,
    k: Vec<u16>,
    v: Vec<u16>,
}

impl Case {
    fn all(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    fn qkv(&self) -> Vec<f32> {
        let value = |i| hash([1, i as u32, 0, 0, 0]) as f32 / u32::MAX as f32 * 6.0 - 3.0;
        (0..self.rows.len() * self.all() * self.head_dim).map(value).collect()
    }

    fn weights(&self, which: u32) -> Vec<f32> {
        (0..self.head_dim).map(|i| hash([2, which, i as u32, 0, 0]) as f32 / u32::MAX as f32 + 0.5).collect()
    }

    fn inv_freq(&self) -> Vec<f32> {
        (0..self.head_dim / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / self.head_dim as f32)).collect()
    }

    fn run(&self, driver: &mut dyn Driver, bucket: u32, counts: StepCounts) -> Results {
        let (rows, width) = (self.rows.len() + 1, self.heads * self.head_dim * 2);
        let cache = self.cache_blocks * self.kv_heads * 16 * self.head_dim * 2;
        let qkv = self.qkv();
        let sizes = [
            qkv.len() * 4,
            self.head_dim * 4,
            self.head_dim * 4,
            self.head_dim * 2,
            self.rows.len() * 16,
            32,
            rows * width,
            cache,
            cache,
        ];
        let at = driver.allocate("rope test", &sizes).unwrap();
        for (at, &bytes) in at.iter().zip(&sizes) {
            driver.fill(*at, 0xff, bytes).unwrap();
        }
        let info = |&(position, slot): &(u32, u32)| RowInfo { position, slot, ..RowInfo::zeroed() };
        driver.upload(at[0], cast_slice(&qkv)).unwrap();
        driver.upload(at[1], cast_slice(&self.weights(0))).unwrap();
        driver.upload(at[2], cast_slice(&self.weights(1))).unwrap();
        driver.upload(at[3], cast_slice(&self.inv_freq())).unwrap();
        driver.upload(at[4], cast_slice(&self.rows.iter().map(info).collect::<Vec<_>>())).unwrap();
        driver.upload(at[5], bytes_of(&counts)).unwrap();
        let shape = RopeShape {
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            cache_blocks: self.cache_blocks as u32,
            max_rows: self.rows.len() as u32,
            eps: EPS,
            scale: SCALE,
            inv_freq: at[3],
        };
        let kernel = RopeCache::new(driver, self.dtype, self.head_dim, shape).unwrap();
        let layer = RopeLayer {
            qkv: at[0],
            norms: self.norm.then_some([at[1], at[2]]),
            rows: at[4],
            counts: at[5],
            q: at[6],
            k: at[7],
            v: at[8],
        };
        kernel.enqueue(driver, &layer, bucket).unwrap();
        let mut read = |from: DevicePtr, bytes: usize| {
            bytemuck::allocation::pod_collect_to_vec(&driver.download(from, bytes).unwrap())
        };
        let results = Results { q: read(at[6], rows * width), k: read(at[7], cache), v: read(at[8], cache) };
        driver.free(at[0]).unwrap();
        results
    }

    /// Head `head` of a row of the product, normed and rotated if it is of q or k.
    fn reference(&self, qkv: &[f32], row: usize, head: usize) -> Vec<f64> {
        let from = &qkv[(row * self.all() + head) * self.head_dim..][..self.head_dim];
        let mut x: Vec<f64> = from.iter().map(|&v| f64::from(v)).collect();
        if head >= self.heads + self.kv_heads {
            return x;
        }
        if self.norm {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / self.head_dim as f64;
            let weights = self.weights(u32::from(head >= self.heads));
            let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
            x.iter_mut().zip(weights).for_each(|(v, w)| *v *= factor * f64::from(w));
        }
        let half = self.head_dim / 2;
        for (i, inv) in self.inv_freq().into_iter().enumerate() {
            let (sin, cos) = f64::from(self.rows[row].0 as f32 * inv).sin_cos();
            let (a, b, scale) = (x[i], x[i + half], f64::from(SCALE));
            x[i] = (a * cos - b * sin) * scale;
            x[i + half] = (b * cos + a * sin) * scale;
        }
        x
    }

    fn check(&self, results: &Results) {
        let qkv = self.qkv();
        let cache = self.cache_blocks * self.kv_heads * 16 * self.head_dim;
        let mut written = vec![false; cache];
        for (row, &(_, slot)) in self.rows.iter().enumerate() {
            for head in 0..self.all() {
                let of_q = head < self.heads;
                let kv_head = head.saturating_sub(self.heads) % self.kv_heads;
                let (block, place) = (slot as usize / 16, slot as usize % 16);
                let (to, at) = match head {
                    _ if of_q => (&results.q, (row * self.heads + head) * self.head_dim),
                    h => (
                        if h < self.heads + self.kv_heads { &results.k } else { &results.v },
                        ((block * self.kv_heads + kv_head) * 16 + place) * self.head_dim,
                    ),
                };
                for (d, expected) in self.reference(&qkv, row, head).into_iter().enumerate() {
                    let found = f64::from(from_bits(self.dtype, to[at + d]));
                    let relative = if self.dtype == DType::Bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
                    assert!(
                        (found - expected).abs() <= 1e-5 + relative * 1.01 * expected.abs(),
                        "{:?} row {row}, head {head}, dimension {d}: {found}, not {expected}",
                        (self.dtype, self.head_dim, self.heads, self.kv_heads, self.norm)
                    );
                    if !of_q {
                        written[at + d] = true;
                    }
                }
            }
        }
        for (i, written) in written.iter().enumerate() {
            assert!(*written || (results.k[i], results.v[i]) == (0xffff, 0xffff), "element {i} of the cache");
        }
        let rows = self.rows.len() * self.heads * self.head_dim;
        assert!(results.q[rows..].iter().all(|&bits| bits == 0xffff), "a row beyond the last");
    }
}

fn counts(rows: usize) -> StepCounts {
    StepCounts { rows: rows as u32, ..StepCounts::zeroed() }
}

fn cases() -> Vec<Case> {
    let positions = [0, 1, 7, 100, 4095, 131_071, 1_000_003];
    let mut cases = Vec::new();
    for dtype in [DType::Bf16, DType::F16] {
        for (head_dim, heads, kv_heads) in
            [(16, 1, 1), (16, 7, 1), (32, 3, 3), (64, 14, 2), (128, 32, 8), (128, 3, 1)]
        {
            let norm = heads % 2 == 0 || dtype == DType::F16;
            let rows = positions.iter().enumerate().map(|(i, &p)| (p, (i as u32 * 37 + 5) % (9 * 16)));
            cases.push(Case {
                dtype,
                head_dim,
                heads,
                kv_heads,
                norm,
                rows: rows.take(if heads == 32 { 3 } else { 7 }).collect(),
                cache_blocks: 9,
            });
        }
    }
    cases
}

#[test]
fn heads_are_normed_rotated_and_stored() {
    for (_, mut driver) in drivers() {
        for case in cases() {
            let n = case.rows.len();
            case.check(&case.run(&mut *driver, n as u32 + 3, counts(n)));
        }
    }
}

#[test]
fn rows_do_not_know_each_other_nor_the_order_of_threads() {
    let whole = &cases()[4];
    let n = whole.rows.len();
    for (name, mut driver) in drivers_in_every_order() {
        let first = whole.run(&mut *driver, 3, counts(n));
        whole.check(&first);
        let again = whole.run(&mut *driver, 4, counts(n));
        assert!(again.q == first.q && again.k == first.k && again.v == first.v, "{name}");
        let alone = Case { rows: whole.rows[..1].to_vec(), ..cases().swap_remove(4) };
        let found = alone.run(&mut *driver, 1, counts(1));
        let width = whole.heads * whole.head_dim;
        assert!(found.q[..width] == first.q[..width], "{name}");
    }
}

#[test]
fn neither_slots_nor_counts_lead_out_of_bounds() {
    for (_, mut driver) in drivers() {
        for seed in 0..20u32 {
            let mut case = cases().swap_remove(1);
            let slot = |i: u32| match (seed + i) % 3 {
                0 => hash([seed, i, 0, 0, 0]),
                1 => u32::MAX - i,
                _ => 9 * 16 + i,
            };
            case.rows = (0..5).map(|i| (hash([seed, i, 1, 0, 0]), slot(i))).collect();
            let results = case.run(&mut *driver, 9, counts(hash([seed, 0, 0, 0, 0]) as usize));
            assert!(results.k.iter().chain(&results.v).all(|&bits| bits == 0xffff));
        }
    }
}
