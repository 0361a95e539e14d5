//! The kernels that measure a device's limits: they read every byte once, and multiply as often as they are told to.

use sidereal::device::cuda::ceilings::{Extent, MatrixArgs, ReadArgs, THREADS, measure};
use sidereal::device::cuda::driver::{Driver, Launch};

use super::for_each_driver;

fn launch(driver: &mut dyn Driver, name: &str, blocks: usize) -> Launch {
    let kernel = driver.kernel(name).unwrap();
    Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared: 0, dependent: false }
}

fn read(driver: &mut dyn Driver, words: &[u32], blocks: usize) -> Vec<u32> {
    let (bytes, poison) = (words.len() * 4, 64);
    let buffers = driver.allocate("ceilings", &[bytes, blocks * 4 + poison]).unwrap();
    driver.upload(buffers[0], bytemuck::cast_slice(words)).unwrap();
    driver.fill(buffers[1], 0xff, blocks * 4 + poison).unwrap();
    let args = ReadArgs { data: buffers[0], out: buffers[1], vectors: words.len() as u64 / 4, reserved: 0 };
    let launch = launch(driver, "read_ceiling", blocks);
    driver.run(&launch, &args).unwrap();
    let mut out: Vec<u32> =
        bytemuck::allocation::pod_collect_to_vec(&driver.download(buffers[1], blocks * 4 + poison).unwrap());
    driver.free(buffers[0]).unwrap();
    assert!(out.split_off(blocks).iter().all(|&word| word == u32::MAX), "written beyond the end");
    out
}

#[test]
fn every_word_is_read_once() {
    for_each_driver(|driver| {
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
            assert_eq!(out, expected, "{vectors} vectors, {blocks} blocks");
        }
    });
}

#[test]
fn every_round_is_a_product() {
    for_each_driver(|driver| {
        let (blocks, per_block) = (2, THREADS as usize);
        let bytes = blocks * per_block * 4;
        let out = driver.allocate("ceilings", &[bytes]).unwrap()[0];
        let launch = launch(driver, "matrix_ceiling_bf16", blocks);
        let mut sums = |rounds, mask| -> Vec<f32> {
            driver.fill(out, 0xff, bytes).unwrap();
            driver.run(&launch, &MatrixArgs { out, rounds, mask }).unwrap();
            bytemuck::allocation::pod_collect_to_vec(&driver.download(out, bytes).unwrap())
        };
        // Ones: 32 accumulators of a thread, each 16 x rounds.
        for rounds in [0, 1, 3] {
            assert_eq!(sums(rounds, 0), vec![32.0 * 16.0 * rounds as f32; blocks * per_block]);
        }
        let random = sums(2, 0x807f_807f);
        assert_eq!(random, sums(2, 0x807f_807f));
        // Sums of products of random sign: neither all equal nor out of reach of 32 x 16 x 2 x 4.
        assert!(random.iter().all(|sum| sum.abs() < 4096.0) && random.iter().any(|&sum| sum != random[0]));
        driver.free(out).unwrap();
    });
}

#[test]
fn both_limits_are_measured() {
    for_each_driver(|driver| {
        let free = driver.free_memory().unwrap();
        let ceilings = measure(driver, &Extent { bytes: 1 << 20, rounds: 1, repeats: 2 }).unwrap();
        assert!(ceilings.read > 0.0 && ceilings.read.is_finite(), "{ceilings:?}");
        assert!(ceilings.matrix > 0.0 && ceilings.matrix.is_finite(), "{ceilings:?}");
        assert_eq!(driver.free_memory().unwrap(), free);
    });
}
