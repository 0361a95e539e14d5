//! Launches of the matrix products: `out [rows, n] = x [rows, k] W [n, k]^T (+ bias)`, in `kernels/{skinny,gemm,gemm_hopper}.cu`.
//!
//! Which kernel serves a product is a matter of bytes. Up to 32 rows the weights are nearly all that moves, and `skinny` reads
//! them once at the speed of memory: `2 n k` bytes. Beyond, a tile of `BM x BN` moves `2 k (BM + BN)` bytes from level 2, and
//! the tile is the one whose waves over the multiprocessors move the least. A device of capability 9.0 takes the tiles that
//! arrive by bulk copies; others `mma`.
//!
//! Default: `skinny` for buckets of at most 32 rows, tiles above. Reproducible: `skinny` for every bucket, whose order of sums
//! depends on `k` alone; W is then read from level 2 once per 32 rows.

use bytemuck::{Pod, Zeroable};

use super::args::mirrored;
use super::driver::{DevicePtr, Driver, Kernel, Launch, TensorMap, TensorMapSpec, failed};
use super::norm::{NormRows, RmsNorm, half_index};
use crate::device::ops::DType;
use crate::error::Result;

pub use super::norm::Norm;

mirrored! {
    /// Arguments of `skinny` and `gemm`.
    ProductArgs [96] {
        /// `[max_rows, k]`.
        x: DevicePtr,
        /// `[n, k]`.
        w: DevicePtr,
        /// `[n]` or null.
        bias: DevicePtr,
        /// `[k]`, where the entry says so.
        norm: DevicePtr,
        /// Where results go.
        out: DevicePtr,
        /// A `RowGroup`.
        group: DevicePtr,
        /// Elements of `out`.
        capacity: u64,
        /// Rows of W.
        n: u32,
        /// Columns of W; a multiple of 8.
        k: u32,
        /// Rows of x.
        max_rows: u32,
        /// Most rows of the group.
        bucket: u32,
        /// Elements from row to row of `out`.
        ld_out: u32,
        /// `EPILOGUE_*`.
        epilogue: u32,
        /// Of the norm.
        eps: f32,
        /// Zero.
        reserved: [u32; 3],
    }
}

/// Arguments of `gemm_hopper`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct BulkProductArgs {
    x_map: TensorMap,
    w_map: TensorMap,
    product: ProductArgs,
    w_box: u32,
    reserved: [u32; 7],
}
const _: () = assert!(size_of::<BulkProductArgs>() == 384, "kernels/args.cuh says otherwise");

/// Rows of the boxes in which a matrix is described for bulk copies, and in which activations are.
const W_BOXES: [u32; 3] = [128, 64, 32];
const X_BOX: u32 = 64;

/// A weight matrix `[n, k]` in `D`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    ptr: DevicePtr,
    n: usize,
    k: usize,
    /// One per entry of `W_BOXES`, where the device has bulk copies.
    maps: Option<[TensorMap; 3]>,
}

impl Matrix {
    /// Rows: columns of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Address of the first element.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

/// The left side of a product: `[max_rows, k]` in `D`.
#[derive(Clone, Copy, Debug)]
pub struct Activations {
    ptr: DevicePtr,
    max_rows: usize,
    k: usize,
    map: Option<TensorMap>,
}

impl Activations {
    /// Address of the first element.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Epilogue {
    /// `out = D(product + bias)`.
    Store = 0,
    /// `out = product + bias`, float32.
    Float = 1,
    /// `out = D(out + product + bias)`: `out` is the residual stream.
    Residual = 2,
    /// `out[r, j] = D(silu(product[r, j]) * product[r, n / 2 + j])`: W holds the gate's rows, then as many of the up projection.
    Gated = 3,
}

/// A product to enqueue.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Left side.
    pub x: &'a Activations,
    /// A norm of `x`, whose result is rounded to `D`, before the product.
    pub norm: Option<Norm>,
    /// Right side.
    pub w: &'a Matrix,
    /// `[n]` float32, added before rounding; not with [`Epilogue::Gated`].
    pub bias: Option<DevicePtr>,
    /// What becomes of it.
    pub epilogue: Epilogue,
    /// Where results go: in `D`, or float32; 16-byte aligned.
    pub out: DevicePtr,
    /// Elements from row to row of `out`.
    pub ld_out: usize,
    /// A `RowGroup`: which rows of `x`, and the element of `out` at which the first one's result begins.
    pub group: DevicePtr,
    /// Most rows of the group: the grid's bound.
    pub bucket: usize,
    /// Rows of `ld_out` elements that `out` has room for; nothing is written beyond.
    pub max_out: usize,
}

impl Product<'_> {
    /// Columns of the result.
    fn width(&self) -> usize {
        if self.epilogue == Epilogue::Gated { self.w.n / 2 } else { self.w.n }
    }

    fn check(&self) -> Result<()> {
        if self.x.k != self.w.k {
            return Err(failed(format_args!(
                "a product of rows of {} by a matrix of {} columns",
                self.x.k, self.w.k
            )));
        }
        if self.ld_out < self.width() {
            let width = self.width();
            return Err(failed(format_args!(
                "a product of {width} columns in rows of {} elements",
                self.ld_out
            )));
        }
        if self.epilogue == Epilogue::Gated && (!self.w.n.is_multiple_of(2) || self.bias.is_some()) {
            let bias = if self.bias.is_some() { "a" } else { "no" };
            return Err(failed(format_args!(
                "a gated product of {} rows of W with {bias} bias: expected an even number and none",
                self.w.n
            )));
        }
        Ok(())
    }
}

/// The kernels that serve products; all compute the same, in their own order of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `skinny_*`: at most 32 rows at a time.
    Skinny,
    /// `gemm_128x128_*`.
    Mma128x128,
    /// `gemm_64x64_*`.
    Mma64x64,
    /// `gemm_hopper_128x256_*`.
    Bulk128x256,
    /// `gemm_hopper_128x128_*`.
    Bulk128x128,
    /// `gemm_hopper_64x128_*`.
    Bulk64x128,
}

/// A kernel of `gemm.cu` or `gemm_hopper.cu`, and the shape of its tiles.
struct Tile {
    variant: Variant,
    rows: usize,
    columns: usize,
    threads: u32,
    shared: u32,
    /// bf16, f16.
    names: [&'static str; 2],
}

const MMA: [Tile; 2] = [
    Tile {
        variant: Variant::Mma128x128,
        rows: 128,
        columns: 128,
        threads: 256,
        shared: 3 * 256 * 128,
        names: ["gemm_128x128_bf16", "gemm_128x128_f16"],
    },
    Tile {
        variant: Variant::Mma64x64,
        rows: 64,
        columns: 64,
        threads: 128,
        shared: 4 * 128 * 128,
        names: ["gemm_64x64_bf16", "gemm_64x64_f16"],
    },
];

/// Bytes of the stages of each kernel of `gemm_hopper.cu`.
const RING: u32 = 192 << 10;

const BULK: [Tile; 3] = [
    Tile {
        variant: Variant::Bulk128x256,
        rows: 128,
        columns: 256,
        threads: 384,
        shared: RING,
        names: ["gemm_hopper_128x256_bf16", "gemm_hopper_128x256_f16"],
    },
    Tile {
        variant: Variant::Bulk128x128,
        rows: 128,
        columns: 128,
        threads: 384,
        shared: RING,
        names: ["gemm_hopper_128x128_bf16", "gemm_hopper_128x128_f16"],
    },
    Tile {
        variant: Variant::Bulk64x128,
        rows: 64,
        columns: 128,
        threads: 384,
        shared: RING,
        names: ["gemm_hopper_64x128_bf16", "gemm_hopper_64x128_f16"],
    },
];

impl Tile {
    /// Tiles of a product.
    fn count(&self, p: &Product) -> usize {
        let columns = if p.epilogue == Epilogue::Gated { self.columns / 2 } else { self.columns };
        p.bucket.div_ceil(self.rows) * p.width().div_ceil(columns)
    }

    /// What a multiprocessor reads per column of k, in elements.
    fn cost(&self, p: &Product, multiprocessors: usize) -> usize {
        self.count(p).div_ceil(multiprocessors) * (self.rows + self.columns)
    }

    /// Rows of the boxes in which a bulk tile takes W: the longest of the runs in which consecutive rows of W lie in it.
    fn w_box(&self, epilogue: Epilogue) -> usize {
        let run = match epilogue {
            Epilogue::Gated if self.rows == 128 => self.columns / 2,
            Epilogue::Gated => self.columns / 4,
            _ => self.columns,
        };
        W_BOXES.iter().position(|&rows| rows as usize <= run).expect("no tile has runs of less than 32 rows")
    }
}

/// Rows of x that the three sizes of `skinny` take at a time, and the groups of 8 warps and 16 rows of W of a block.
const SKINNY: [(usize, u32, [&str; 2]); 3] = [
    (8, 1, ["skinny_8_bf16", "skinny_8_f16"]),
    (16, 2, ["skinny_16_bf16", "skinny_16_f16"]),
    (32, 2, ["skinny_32_bf16", "skinny_32_f16"]),
];
const SKINNY_NORM: [&str; 2] = ["skinny_8_norm_bf16", "skinny_8_norm_f16"];

/// Most rows for which the skinny kernel is the default.
const SKINNY_ROWS: usize = 32;

/// The kernels of products, and the rows that a norm wrote for them.
pub struct Products {
    dtype: DType,
    reproducible: bool,
    multiprocessors: usize,
    skinny: [Kernel; 3],
    skinny_norm: Kernel,
    mma: [Kernel; 2],
    bulk: Option<[Kernel; 3]>,
    norm: RmsNorm,
    /// `[max_rows, k]` for whatever k a normed product has.
    scratch: DevicePtr,
    widest_k: usize,
    max_rows: usize,
    /// The scratch as the left side of a product, one per k met.
    normed: Vec<Activations>,
}

impl Products {
    /// Resolves the kernels and allocates normed rows of at most `[max_rows, widest_k]`.
    ///
    /// `reproducible`: a row's result does not depend on the number of rows.
    ///
    /// # Errors
    /// If a kernel is missing or memory does not suffice.
    pub fn new(
        driver: &mut dyn Driver,
        dtype: DType,
        widest_k: usize,
        max_rows: usize,
        reproducible: bool,
    ) -> Result<Products> {
        let half = half_index(dtype)?;
        let (capability, multiprocessors) =
            (driver.properties().capability, driver.properties().multiprocessors);
        let bulk = match capability {
            (9, 0) => resolve(driver, BULK.each_ref().map(|t| t.names[half])).ok(),
            _ => None,
        };
        Ok(Products {
            dtype,
            reproducible,
            multiprocessors: multiprocessors.max(1) as usize,
            skinny: resolve(driver, SKINNY.map(|s| s.2[half]))?,
            skinny_norm: driver.kernel(SKINNY_NORM[half])?,
            mma: resolve(driver, MMA.each_ref().map(|t| t.names[half]))?,
            bulk,
            norm: RmsNorm::new(driver, dtype)?,
            scratch: driver.allocate("norm scratch", &[max_rows * widest_k * 2])?[0],
            widest_k,
            max_rows,
            normed: Vec::new(),
        })
    }

    /// Describes a weight matrix.
    ///
    /// # Errors
    /// If `k` is no multiple of 8, or `ptr` none of 16: rows must begin at multiples of 16 bytes.
    pub fn matrix(&self, driver: &mut dyn Driver, ptr: DevicePtr, n: usize, k: usize) -> Result<Matrix> {
        check_rows("weight matrix", ptr, n, k)?;
        let maps = match self.bulk {
            None => None,
            Some(_) => {
                let mut maps = [TensorMap([0; 16]); 3];
                for (map, rows) in maps.iter_mut().zip(W_BOXES) {
                    *map = self.map(driver, ptr, n, k, rows)?;
                }
                Some(maps)
            }
        };
        Ok(Matrix { ptr, n, k, maps })
    }

    /// Describes rows `first..first + n` of a matrix.
    ///
    /// # Errors
    /// If the matrix has fewer.
    pub fn rows_of(
        &self,
        driver: &mut dyn Driver,
        matrix: &Matrix,
        first: usize,
        n: usize,
    ) -> Result<Matrix> {
        if first + n > matrix.n {
            let end = first + n;
            return Err(failed(format_args!("rows {first}..{end} of a matrix of {} rows", matrix.n)));
        }
        self.matrix(driver, matrix.ptr.add(first * matrix.k * 2), n, matrix.k)
    }

    /// Describes activations.
    ///
    /// # Errors
    /// If `k` is no multiple of 8, or `ptr` none of 16.
    pub fn activations(
        &self,
        driver: &mut dyn Driver,
        ptr: DevicePtr,
        max_rows: usize,
        k: usize,
    ) -> Result<Activations> {
        check_rows("activations", ptr, max_rows, k)?;
        let map = match self.bulk {
            None => None,
            Some(_) => Some(self.map(driver, ptr, max_rows, k, X_BOX)?),
        };
        Ok(Activations { ptr, max_rows, k, map })
    }

    fn map(
        &self,
        driver: &mut dyn Driver,
        base: DevicePtr,
        rows: usize,
        k: usize,
        box_rows: u32,
    ) -> Result<TensorMap> {
        driver.tensor_map(&TensorMapSpec {
            base,
            rows: rows as u64,
            columns: k as u64,
            stride: k as u64 * 2,
            box_rows,
            bf16: self.dtype == DType::Bf16,
        })
    }

    /// The variants that this device has.
    pub fn variants(&self) -> Vec<Variant> {
        let mut variants = vec![Variant::Skinny];
        variants.extend(MMA.iter().map(|t| t.variant));
        variants.extend(BULK.iter().filter(|_| self.bulk.is_some()).map(|t| t.variant));
        variants
    }

    /// The variant that [`Products::enqueue`] takes.
    pub fn choose(&self, p: &Product) -> Variant {
        if self.reproducible || p.bucket <= SKINNY_ROWS {
            return Variant::Skinny;
        }
        let tiles: &[Tile] = if self.bulk.is_some() { &BULK } else { &MMA };
        let cheapest = tiles.iter().min_by_key(|t| t.cost(p, self.multiprocessors));
        cheapest.map_or(Variant::Skinny, |t| t.variant)
    }

    /// Enqueues a product: one launch, or two where a norm comes first and the rows are more than 8.
    ///
    /// # Errors
    /// If the sizes do not agree; the driver's.
    pub fn enqueue(&mut self, driver: &mut dyn Driver, p: &Product) -> Result<()> {
        let variant = self.choose(p);
        self.enqueue_as(driver, p, variant)
    }

    /// Enqueues a product by a variant of one's choice (tests, benches).
    ///
    /// # Errors
    /// If the sizes do not agree, or the device does not have the variant; the driver's.
    pub fn enqueue_as(&mut self, driver: &mut dyn Driver, p: &Product, variant: Variant) -> Result<()> {
        p.check()?;
        if p.bucket == 0 {
            return Ok(());
        }
        let fused = variant == Variant::Skinny && p.bucket <= SKINNY[0].0;
        let (Some(norm), false) = (p.norm, fused) else {
            return self.launch(driver, p, variant);
        };
        let x = self.normed_rows(driver, p)?;
        let rows = NormRows {
            norm,
            x: p.x.ptr,
            out: x.ptr,
            list: None,
            group: p.group,
            hidden: p.x.k,
            max_rows: p.x.max_rows,
            max_out: x.max_rows,
            bucket: p.bucket,
        };
        self.norm.enqueue(driver, &rows)?;
        self.launch(driver, &Product { x: &x, norm: None, ..*p }, variant)
    }

    /// The scratch as rows of `p`'s width.
    fn normed_rows(&mut self, driver: &mut dyn Driver, p: &Product) -> Result<Activations> {
        if let Some(x) = self.normed.iter().find(|x| x.k == p.x.k && x.max_rows == p.x.max_rows) {
            return Ok(*x);
        }
        if p.x.max_rows > self.max_rows || p.x.k > self.widest_k {
            return Err(failed(format_args!(
                "a normed product of {} rows of {}: there is room for {} rows of {}",
                p.x.max_rows, p.x.k, self.max_rows, self.widest_k
            )));
        }
        let x = self.activations(driver, self.scratch, p.x.max_rows, p.x.k)?;
        self.normed.push(x);
        Ok(x)
    }

    fn launch(&self, driver: &mut dyn Driver, p: &Product, variant: Variant) -> Result<()> {
        if variant == Variant::Skinny {
            return self.launch_skinny(driver, p);
        }
        if let Some(i) = MMA.iter().position(|t| t.variant == variant) {
            let tile = &MMA[i];
            let grid = [tile.count(p) as u32, 1, 1];
            let launch = Launch {
                kernel: self.mma[i],
                grid,
                threads: tile.threads,
                shared: tile.shared,
                dependent: true,
            };
            return driver.run(&launch, &args(p));
        }
        let bulk = BULK.iter().position(|t| t.variant == variant).zip(self.bulk);
        let (Some((i, kernels)), Some(x_map), Some(maps)) = (bulk, p.x.map, p.w.maps) else {
            return Err(failed(format_args!("{variant:?}: this device has no bulk copies")));
        };
        let tile = &BULK[i];
        let grid = [tile.count(p).min(self.multiprocessors) as u32, 1, 1];
        let launch =
            Launch { kernel: kernels[i], grid, threads: tile.threads, shared: tile.shared, dependent: true };
        let w_box = tile.w_box(p.epilogue);
        let args = BulkProductArgs {
            x_map,
            w_map: maps[w_box],
            product: args(p),
            w_box: W_BOXES[w_box],
            reserved: [0; 7],
        };
        driver.run(&launch, &args)
    }

    fn launch_skinny(&self, driver: &mut dyn Driver, p: &Product) -> Result<()> {
        let size = SKINNY.iter().position(|s| p.bucket <= s.0).unwrap_or(SKINNY.len() - 1);
        let (rows, groups, _) = SKINNY[size];
        let kernel = if p.norm.is_some() { self.skinny_norm } else { self.skinny[size] };
        let columns = if p.epilogue == Epilogue::Gated { 8 } else { 16 } * groups as usize;
        let grid = [p.bucket.div_ceil(rows) as u32, p.width().div_ceil(columns) as u32, 1];
        driver.run(&Launch { kernel, grid, threads: 256 * groups, shared: 0, dependent: true }, &args(p))
    }
}

fn resolve<const N: usize>(driver: &mut dyn Driver, names: [&str; N]) -> Result<[Kernel; N]> {
    let mut kernels = [Kernel(0); N];
    for (kernel, name) in kernels.iter_mut().zip(names) {
        *kernel = driver.kernel(name)?;
    }
    Ok(kernels)
}

fn args(p: &Product) -> ProductArgs {
    ProductArgs {
        x: p.x.ptr,
        w: p.w.ptr,
        bias: p.bias.unwrap_or(DevicePtr::NULL),
        norm: p.norm.map_or(DevicePtr::NULL, |n| n.weight),
        out: p.out,
        group: p.group,
        capacity: p.max_out as u64 * p.ld_out as u64,
        n: p.w.n as u32,
        k: p.w.k as u32,
        max_rows: p.x.max_rows as u32,
        bucket: p.bucket as u32,
        ld_out: p.ld_out as u32,
        epilogue: p.epilogue as u32,
        eps: p.norm.map_or(0.0, |n| n.eps),
        reserved: [0; 3],
    }
}

/// Rows of 2-byte elements that kernels read 16 bytes at a time.
fn check_rows(what: &str, ptr: DevicePtr, rows: usize, k: usize) -> Result<()> {
    if k == 0 || rows == 0 || !k.is_multiple_of(8) || !ptr.0.is_multiple_of(16) {
        return Err(failed(format_args!(
            "{what} [{rows}, {k}] at {:#x}: expected rows of a multiple of 8 elements at a multiple of 16 bytes",
            ptr.0
        )));
    }
    Ok(())
}
