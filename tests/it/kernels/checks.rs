//! The wrappers that all kernels are made of, against plain loops; exact, since the numbers are small integers.

use bytemuck::Zeroable;
use half::{bf16, f16};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sidereal::device::cuda::args::{CheckArgs, CheckProductArgs};
use sidereal::device::cuda::driver::{DevicePtr, Driver, Launch, TensorMapSpec};

use super::{download, drivers_in_every_order, upload};

fn run(driver: &mut dyn Driver, kernel: &str, grid: u32, threads: u32, args: &CheckArgs) {
    let kernel = driver.kernel(kernel).unwrap();
    driver.run(&Launch { kernel, grid: [grid, 1, 1], threads, shared: 0, dependent: false }, args).unwrap();
    driver.synchronize().unwrap();
}

/// Floats at and around every boundary of rounding, and some from everywhere.
fn floats() -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut bits: Vec<u32> = (0..=u16::MAX).map(|half| f16::from_bits(half).to_f32().to_bits()).collect();
    for shift in [12, 15, 16] {
        let middles: Vec<u32> = bits.iter().step_by(7).map(|b| b ^ (1 << shift)).collect();
        bits.extend(middles.iter().flat_map(|&b| [b, b.wrapping_add(1), b.wrapping_sub(1)]));
    }
    bits.extend((0..20_000).map(|_| rng.random::<u32>()));
    // Halfway points and neighbours of half's subnormals.
    bits.extend((0..1024u32).flat_map(|i| {
        let middle = ((i as f32 + 0.5) * 2f32.powi(-24)).to_bits();
        [middle, middle + 1, middle.wrapping_sub(1)]
    }));
    bits.into_iter().map(f32::from_bits).collect()
}

fn same(found: f32, expected: f32) -> bool {
    found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan())
}

#[test]
fn conversions_round_to_nearest_even() {
    let floats = floats();
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        let input = upload(driver, &floats);
        for kind in ["bf16", "f16"] {
            let out = driver.allocate("test", &[floats.len() * 2, floats.len() * 4]).unwrap();
            let n = floats.len() as u64;
            let args = CheckArgs { input, output: out[0], output2: out[1], n, ..CheckArgs::zeroed() };
            run(driver, &format!("check_convert_{kind}"), 3, 256, &args);
            let narrow: Vec<u16> = download(driver, out[0], floats.len());
            let back: Vec<f32> = download(driver, out[1], floats.len());
            for ((&x, bits), back) in floats.iter().zip(narrow).zip(back) {
                let (expected, widened) = match kind {
                    "bf16" => (bf16::from_f32(x).to_f32(), bf16::from_bits(bits).to_f32()),
                    _ => (f16::from_f32(x).to_f32(), f16::from_bits(bits).to_f32()),
                };
                assert!(
                    same(widened, expected) && same(back, expected),
                    "{name} {kind} of {x:e}: {widened:e}, {back:e}"
                );
            }
        }
    }
}

/// Small integers as 2-byte elements.
fn integers(rng: &mut StdRng, count: usize, kind: &str) -> (Vec<u16>, Vec<f32>) {
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-6i32..=6) as f32).collect();
    let bits = values
        .iter()
        .map(|&v| if kind == "bf16" { bf16::from_f32(v).to_bits() } else { f16::from_f32(v).to_bits() });
    (bits.collect(), values)
}

#[test]
fn a_warp_multiplies_fragments() {
    let mut rng = StdRng::seed_from_u64(11);
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        for (kind, mode) in [("bf16", 0), ("bf16", 1), ("f16", 0), ("f16", 1)] {
            let (bits_a, a) = integers(&mut rng, 256, kind);
            let (bits_b, b) = integers(&mut rng, 128, kind);
            let (input, input2) = (upload(driver, &bits_a), upload(driver, &bits_b));
            let output = driver.allocate("test", &[128 * 4]).unwrap()[0];
            let args = CheckArgs { input, input2, output, mode, ..CheckArgs::zeroed() };
            run(driver, &format!("check_mma_{kind}"), 1, 32, &args);
            let d: Vec<f32> = download(driver, output, 128);
            for (i, &found) in d.iter().enumerate() {
                let (row, column) = (i / 8, i % 8);
                let b_at = |k: usize| if mode == 1 { b[k * 8 + column] } else { b[column * 16 + k] };
                let expected = 1.0 + (0..16).map(|k| a[row * 16 + k] * b_at(k)).sum::<f32>();
                assert_eq!(found, expected, "{name} {kind} mode {mode} at [{row}, {column}]");
            }
        }
    }
}

#[test]
fn warp_collectives() {
    let x: Vec<u32> = (0..32u32).map(|i| (i * 37 + 11) % 101).collect();
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        let input = upload(driver, &x);
        let output = driver.allocate("test", &[14 * 32 * 4]).unwrap()[0];
        run(driver, "check_collectives", 1, 32, &CheckArgs { input, output, ..CheckArgs::zeroed() });
        let out: Vec<u32> = download(driver, output, 14 * 32);
        for lane in 0..32usize {
            let v = x[lane];
            let bits =
                |f: &dyn Fn(u32) -> bool| x.iter().zip(0..).map(|(&y, i)| u32::from(f(y)) << i).sum::<u32>();
            let low: u32 = x[..10].iter().sum();
            let high = x[10..].iter().fold(0, |a, b| a | b);
            let expected = [
                x[5],
                x[lane ^ 3],
                x[if lane < 2 { lane } else { lane - 2 }],
                x[if lane + 4 > 31 { lane } else { lane + 4 }],
                x[if lane % 8 + 3 > 7 { lane } else { lane + 3 }],
                bits(&|y| y & 1 == 1),
                x.iter().sum(),
                *x.iter().max().unwrap(),
                *x.iter().min().unwrap(),
                bits(&|y| y % 5 == v % 5),
                u32::from(x.contains(&7)) + 2 * u32::from(x.iter().all(|&y| y < 100)),
                if lane < 10 { low } else { high },
                v.count_ones()
                    | v.leading_zeros() << 8
                    | if v == 0 { 0 } else { v.trailing_zeros() + 1 } << 16,
                v.reverse_bits() ^ ((u64::from(v.wrapping_mul(0x9e37_79b9)) * 0x85eb_ca6b) >> 32) as u32,
            ];
            for (i, expected) in expected.into_iter().enumerate() {
                assert_eq!(out[i * 32 + lane], expected, "{name}: word {i} of lane {lane}");
            }
        }
    }
}

#[test]
fn blocks_wait_for_each_other() {
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        for blocks in [1u32, 2, 7, 40] {
            let input2 = upload(driver, &[0u32; 2]);
            let out = driver.allocate("test", &[blocks as usize * 4; 2]).unwrap();
            let args = CheckArgs { input2, output: out[0], output2: out[1], ..CheckArgs::zeroed() };
            run(driver, "check_grid_barrier", blocks, 32, &args);
            let sums: Vec<u32> = download(driver, out[0], blocks as usize);
            assert_eq!(sums, vec![blocks * (blocks + 1) / 2; blocks as usize], "{name}");
        }
    }
}

#[test]
fn warps_hand_over_through_named_barriers() {
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        for n in [32usize, 64, 320] {
            let x: Vec<u32> = (0..n as u32).map(|i| i * i).collect();
            let input = upload(driver, &x);
            let output = driver.allocate("test", &[n * 4]).unwrap()[0];
            run(
                driver,
                "check_hand_over",
                1,
                64,
                &CheckArgs { input, output, n: n as u64, ..CheckArgs::zeroed() },
            );
            let y: Vec<u32> = download(driver, output, n);
            assert_eq!(y, x.iter().map(|x| x + 1).collect::<Vec<_>>(), "{name}");
        }
    }
}

fn matrix(driver: &mut dyn Driver, bits: &[u16], (rows, k): (u64, u64), bf16: bool) -> TensorMapSpec {
    // Rows are padded with NaN to a multiple of 16 bytes; what lies beyond the columns must read as zero.
    let stride = k.next_multiple_of(8);
    let padded: Vec<u16> = bits
        .chunks(k as usize)
        .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0xffff, (stride - k) as usize)))
        .collect();
    let base: DevicePtr = upload(driver, &padded);
    TensorMapSpec { base, rows, columns: k, stride: stride * 2, box_rows: rows as u32, bf16 }
}

/// What a kernel of `threads` threads and `shared` bytes makes of the matrices `a` and `b`: `[64, n]`, summed over `k`.
fn product(
    driver: &mut dyn Driver,
    (kernel, threads, shared): (&str, u32, usize),
    (a, b): (TensorMapSpec, TensorMapSpec),
    (n, k): (usize, usize),
) -> Vec<f32> {
    let output = driver.allocate("test", &[64 * n * 4]).unwrap()[0];
    let (a, b) = (driver.tensor_map(&a).unwrap(), driver.tensor_map(&b).unwrap());
    let args = CheckProductArgs { a, b, output, k: k as u64, unused: [0; 6] };
    let kernel = driver.kernel(kernel).unwrap();
    let launch = Launch { kernel, grid: [1, 1, 1], threads, shared: shared as u32, dependent: false };
    driver.run(&launch, &args).unwrap();
    download(driver, output, 64 * n)
}

#[test]
fn a_warpgroup_multiplies_tiles() {
    let mut rng = StdRng::seed_from_u64(13);
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        if driver.properties().capability != (9, 0) {
            continue;
        }
        for (kind, n, k) in [
            ("bf16", 64, 64),
            ("bf16", 128, 72),
            ("bf16", 256, 200),
            ("f16", 64, 509),
            ("f16", 128, 1),
            ("f16", 256, 64),
        ] {
            let (bits_a, a) = integers(&mut rng, 64 * k, kind);
            let (bits_b, b) = integers(&mut rng, n * k, kind);
            let spec_a = matrix(driver, &bits_a, (64, k as u64), kind == "bf16");
            let spec_b = matrix(driver, &bits_b, (n as u64, k as u64), kind == "bf16");
            let kernel = format!("check_wgmma_{n}_{kind}");
            let launch = (kernel.as_str(), 256, 3 * (64 + n) * 128 + 2 * 32);
            let d = product(driver, launch, (spec_a, spec_b), (n, k));
            for (i, &found) in d.iter().enumerate() {
                let (row, column) = (i / n, i % n);
                let expected: f32 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
                assert_eq!(found, expected, "{name} {kind} n {n} k {k} at [{row}, {column}]");
            }
        }
    }
}

#[test]
fn a_warpgroup_multiplies_registers_by_rows_of_tiles() {
    const K: usize = 64;
    let mut rng = StdRng::seed_from_u64(17);
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        if driver.properties().capability != (9, 0) {
            continue;
        }
        for (kind, n) in [("bf16", 64), ("bf16", 128), ("f16", 64), ("f16", 128)] {
            let (bits_a, a) = integers(&mut rng, 64 * K, kind);
            let (bits_b, b) = integers(&mut rng, K * n, kind);
            let spec_a = matrix(driver, &bits_a, (64, K as u64), kind == "bf16");
            let spec_b = matrix(driver, &bits_b, (K as u64, n as u64), kind == "bf16");
            let kernel = format!("check_values_{n}_{kind}");
            let launch = (kernel.as_str(), 128, (64 + n) * 128 + 32);
            let d = product(driver, launch, (spec_a, spec_b), (n, K));
            for (i, &found) in d.iter().enumerate() {
                let (row, column) = (i / n, i % n);
                let expected = 1.0 + (0..K).map(|k| a[row * K + k] * b[k * n + column]).sum::<f32>();
                assert_eq!(found, expected, "{name} {kind} n {n} at [{row}, {column}]");
            }
        }
    }
}
