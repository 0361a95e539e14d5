//! The kernels that measure a device's limits: they read every byte once, and multiply as often as they are told to.

use sidereal::device::cuda::ceilings::{
    Extent, MatrixArgs, Multiplier, ReadArgs, THREADS, WARPGROUPS, WARPS, measure,
};
use sidereal::device::cuda::driver::{Driver, Launch};

use super::{download, drivers, upload};

fn launch(driver: &mut dyn Driver, name: &str, blocks: usize) -> Launch {
    let kernel = driver.kernel(name).unwrap();
    Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared: 0, dependent: true }
}

fn read(driver: &mut dyn Driver, words: &[u32], blocks: usize) -> Vec<u32> {
    let poison = 64;
    let data = upload(driver, words);
    let out = driver.allocate("ceilings", &[blocks * 4 + poison]).unwrap()[0];
    driver.fill(out, 0xff, blocks * 4 + poison).unwrap();
    let args = ReadArgs { data, out, vectors: words.len() as u64 / 4, reserved: 0 };
    let launch = launch(driver, "read_ceiling", blocks);
    driver.run(&launch, &args).unwrap();
    let mut sums: Vec<u32> = download(driver, out, blocks + poison / 4);
    driver.free(data).unwrap();
    driver.free(out).unwrap();
    assert!(sums.split_off(blocks).iter().all(|&word| word == u32::MAX), "written beyond the end");
    sums
}

#[test]
fn every_word_is_read_once() {
    for (name, mut driver) in drivers() {
        let driver = &mut *driver;
        // One vector, a tile less one, a tile, tiles and a rest; fewer tiles than blocks and more.
        for (vectors, blocks) in [(1, 1), (2047, 2), (2048, 3), (5 * 2048 + 77, 2), (9000, 7)] {
            let words: Vec<u32> = (0..vectors * 4u32).map(|i| (i + 1).wrapping_mul(0x9e37_79b9)).collect();
            let out = read(driver, &words, blocks);
            let expected: Vec<u32> = (0..blocks)
                .map(|block| {
                    let tiles = words.chunks(2048 * 4).skip(block).step_by(blocks);
                    tiles.flatten().fold(0, |sum, word| sum ^ word)
                })
                .collect();
            assert_eq!(out, expected, "{name}: {vectors} vectors, {blocks} blocks");
        }
    }
}

fn sums(driver: &mut dyn Driver, kernel: &Multiplier, rounds: u32, mask: u32) -> Vec<f32> {
    let threads = 2 * THREADS as usize;
    let out = driver.allocate("ceilings", &[threads * 4]).unwrap()[0];
    driver.fill(out, 0xff, threads * 4).unwrap();
    let launch = Launch { shared: kernel.shared, ..launch(driver, kernel.name, 2) };
    driver.run(&launch, &MatrixArgs { out, rounds, mask }).unwrap();
    let sums = download(driver, out, threads);
    driver.free(out).unwrap();
    sums
}

#[test]
fn every_round_is_a_product() {
    for (name, mut driver) in drivers() {
        let driver = &mut *driver;
        for kernel in [WARPS, WARPGROUPS] {
            if kernel.name == WARPGROUPS.name && driver.properties().capability != (9, 0) {
                continue;
            }
            for rounds in [0, 1, 3] {
                let expected = (kernel.ones.0 * kernel.ones.1 * rounds) as f32;
                let sums = sums(driver, &kernel, rounds, 0);
                assert!(
                    sums.iter().all(|&sum| sum == expected),
                    "{name}: {}: {rounds} rounds: {sums:?}",
                    kernel.name
                );
            }
            let random = sums(driver, &kernel, 2, 0x807f_807f);
            assert_eq!(random, sums(driver, &kernel, 2, 0x807f_807f), "{name}: {}", kernel.name);
            // Products of random sign, each below 4: sums of them are neither equal nor anywhere near the largest.
            let most = 8.0 * (kernel.ones.0 * kernel.ones.1) as f32;
            assert!(random.iter().all(|sum| sum.abs() < most / 2.0), "{name}: {random:?}");
            assert!(random.iter().any(|&sum| sum != random[0]), "{name}: {random:?}");
        }
    }
}

#[test]
fn both_limits_are_measured() {
    for (name, mut driver) in drivers() {
        let driver = &mut *driver;
        let free = driver.free_memory().unwrap();
        let ceilings = measure(driver, &Extent { bytes: 1 << 20, rounds: 1, repeats: 2 }).unwrap();
        assert!(ceilings.read > 0.0 && ceilings.read.is_finite(), "{name}: {ceilings:?}");
        assert!(ceilings.matrix > 0.0 && ceilings.matrix.is_finite(), "{name}: {ceilings:?}");
        assert_eq!(driver.free_memory().unwrap(), free);
    }
}
