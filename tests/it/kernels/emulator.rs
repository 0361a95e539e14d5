//! The emulated driver itself: what it reports of broken kernels, and that stale memory shows.

use std::time::Duration;

use bytemuck::Zeroable;
use sidereal::device::cuda::args::{CheckArgs, ProbeArgs};
use sidereal::device::cuda::driver::{DevicePtr, Driver, Kernel, Launch};
use sidereal::device::cuda::emulated::{Completion, EmulatedDriver, EmulatedOptions, Order};

use super::{download, drivers_in_every_order, emulated, upload};

const FAULTS: &str = include_str!("../../../kernels/host/tests/faults.cu");

fn driver() -> Box<dyn Driver> {
    Box::new(EmulatedDriver::new(EmulatedOptions::from_environment().unwrap()).unwrap())
}

fn launch(kernel: Kernel, threads: u32) -> Launch {
    Launch { kernel, grid: [1, 1, 1], threads, shared: 0, dependent: false }
}

/// `faults.cu:LINE` of the line that carries the mark of a mistake.
fn place(mistake: u32) -> String {
    let mark = format!("// mistake {mistake}");
    let line = FAULTS.lines().position(|line| line.ends_with(&mark)).unwrap();
    format!("faults.cu:{})", line + 1)
}

/// What the emulated device says of a mistake, and afterwards that a new one works.
fn complaint(options: EmulatedOptions, kernel: &str, mode: u32, shared: u32) -> String {
    let mut driver: Box<dyn Driver> = Box::new(EmulatedDriver::new(options).unwrap());
    let driver = &mut *driver;
    let buffers = driver.allocate("words", &[64 * 4, 64 * 4, 61]).unwrap();
    driver.fill(buffers[0], 0, 64 * 4).unwrap();
    let args = CheckArgs {
        input: buffers[0],
        output: buffers[1],
        output2: buffers[2],
        n: if mode == 33 { 61 } else { 64 },
        mode,
        ..CheckArgs::zeroed()
    };
    let kernel = driver.kernel(kernel).unwrap();
    driver.run(&Launch { shared, dependent: mode == 34, ..launch(kernel, 64) }, &args).unwrap();
    let Err(error) = driver.synchronize() else { panic!("mistake {mode} was not found") };
    let error = error.to_string();
    // It is sticky.
    assert_eq!(driver.synchronize().unwrap_err().to_string(), error);
    assert_eq!(driver.fill(buffers[0], 0, 4).unwrap_err().to_string(), error);
    error
}

#[test]
fn mistakes_of_synchronization_are_named() {
    let mistakes = [
        (0, "divergence at a barrier"),
        (1, "deadlock: no thread can go on; 32 threads wait"),
        (2, "deadlock"),
        (3, "exited lane"),
        (4, "does not name the calling lane 4"),
        (5, "divergence in a warp"),
        (6, "more arrivals than expected"),
        (7, "never initialised"),
        (8, "memory is polled and nobody changes it"),
        (9, "deadlock"),
        (10, "barrier 1 is for"),
    ];
    for (mode, words) in mistakes {
        let error = complaint(emulated(Order::Forward, Completion::Late), "fault_synchronization", mode, 0);
        assert!(error.contains(words), "mistake {mode}: {error}");
        assert!(error.contains("kernel fault_synchronization, block (0, 0, 0), thread "), "{error}");
        assert!(error.contains(&place(mode)) || mode == 2, "mistake {mode} is at {}: {error}", place(mode));
        let reverse =
            complaint(emulated(Order::Reverse, Completion::Early), "fault_synchronization", mode, 0);
        assert!(!reverse.is_empty());
    }
}

#[test]
fn mistakes_of_memory_are_named() {
    let mistakes = [
        (20, "misaligned address: 16-byte load", true),
        (21, "0 bytes past the end of the buffer 0 of \"words\" (256 bytes)", false),
        (22, "4 bytes before the buffer 0 of \"words\"", false),
        (23, "a null pointer", false),
        (24, "shared-memory overrun: byte 0 after the array", true),
        (25, "shared-memory overrun: byte 0 after the array", true),
        (26, "the carver needs 65536 bytes of dynamic shared memory; the launch gave 1024", true),
        (27, "carved in two ways", true),
        (29, "is not an address in shared memory", true),
        (30, "stack overflow", false),
        (31, "integer division by zero", false),
        (32, "access out of range", false),
        (33, "byte 0 past the end of the buffer 2 of \"words\" (61 bytes) was written", false),
        (34, "without a call of dependency_wait()", false),
    ];
    for (mode, words, placed) in mistakes {
        let error = complaint(emulated(Order::Forward, Completion::Late), "fault_memory", mode, 1024);
        assert!(error.contains(words), "mistake {mode}: {error}");
        assert!(error.contains("kernel fault_memory"), "{error}");
        assert!(!placed || error.contains(&place(mode)), "mistake {mode} is at {}: {error}", place(mode));
    }
    // One byte past the dynamic shared memory, where no carver watches.
    let error = complaint(emulated(Order::Forward, Completion::Late), "fault_memory", 28, 64);
    assert!(error.contains("shared-memory overrun"), "{error}");
}

/// How often a kernel that turns 64 words round does so, over all orders.
fn turns(kernel: &str) -> (usize, usize) {
    let words: Vec<u32> = (100..164).collect();
    let expected: Vec<u32> = words.iter().rev().copied().collect();
    let mut right = 0;
    let drivers = drivers_in_every_order();
    let all = drivers.len();
    for (_, mut driver) in drivers {
        let driver = &mut *driver;
        let (input, output) = (upload(driver, &words), upload(driver, &[0u32; 64]));
        let kernel = driver.kernel(kernel).unwrap();
        driver.run(&launch(kernel, 64), &CheckArgs { input, output, ..CheckArgs::zeroed() }).unwrap();
        right += usize::from(download::<u32>(driver, output, 64) == expected);
    }
    (right, all)
}

#[test]
fn a_missing_barrier_or_wait_shows_in_some_order() {
    let (right, all) = turns("fault_none");
    assert_eq!(right, all);
    for kernel in ["fault_no_barrier", "fault_no_wait"] {
        let (right, all) = turns(kernel);
        assert!(right < all, "{kernel} gave the right result in all {all} orders");
    }
}

#[test]
fn a_fault_ends_the_launch_of_all_blocks_and_nothing_else() {
    for threads in [1, 2, 0] {
        let options = EmulatedOptions { threads, ..EmulatedOptions::from_environment().unwrap() };
        let mut broken: Box<dyn Driver> = Box::new(EmulatedDriver::new(options).unwrap());
        let at = broken.allocate("words", &[256]).unwrap()[0];
        let args = CheckArgs { input: at, output: at, n: 64, mode: 21, ..CheckArgs::zeroed() };
        let kernel = broken.kernel("fault_memory").unwrap();
        broken.run(&Launch { grid: [50, 2, 3], ..launch(kernel, 64) }, &args).unwrap();
        let error = broken.synchronize().unwrap_err().to_string();
        assert!(error.contains("past the end of the buffer 0"), "{error}");
        assert_eq!(turns("fault_none").0, drivers_in_every_order().len());
    }
}

fn probe(driver: &mut dyn Driver, x: DevicePtr, y: DevicePtr, scale: f32) {
    let kernel = driver.kernel("probe").unwrap();
    let args = ProbeArgs { x, y, count: 4, scale, offset: 0.0 };
    driver.run(&Launch { grid: [2, 1, 1], ..launch(kernel, 32) }, &args).unwrap();
}

#[test]
fn every_order_gives_the_same_bits() {
    let x: Vec<f32> = (0..1000).map(|i| i as f32 * 0.1).collect();
    for (name, mut driver) in drivers_in_every_order() {
        let driver = &mut *driver;
        let (at, to) = (upload(driver, &x), upload(driver, &vec![0f32; 1000]));
        let kernel = driver.kernel("probe").unwrap();
        let args = ProbeArgs { x: at, y: to, count: 1000, scale: 1.1, offset: -2.3 };
        driver.run(&Launch { grid: [3, 1, 1], dependent: true, ..launch(kernel, 128) }, &args).unwrap();
        let expected: Vec<f32> = x.iter().map(|x| x * 1.1 - 2.3).collect();
        assert_eq!(download::<f32>(driver, to, 1000), expected, "{name}");
    }
}

#[test]
fn a_graph_reads_the_arguments_it_recorded() {
    let mut driver = driver();
    let driver = &mut *driver;
    let (x, y) = (upload(driver, &[1f32, 2.0, 3.0, 4.0]), upload(driver, &[0f32; 4]));
    driver.begin_capture().unwrap();
    assert!(driver.synchronize().is_err() && driver.allocate("more", &[16]).is_err());
    probe(driver, x, y, 2.0);
    driver.copy(x, y, 16).unwrap();
    let graph = driver.end_capture().unwrap();
    // Nothing ran.
    assert_eq!(download::<f32>(driver, y, 4), [0.0; 4]);
    probe(driver, x, y, 5.0);
    driver.replay(graph).unwrap();
    driver.replay(graph).unwrap();
    assert_eq!(download::<f32>(driver, y, 4), [4.0, 8.0, 12.0, 16.0]);
    assert!(driver.end_capture().is_err());
}

#[test]
fn pinned_memory_written_again_too_early_shows() {
    let mut driver = driver();
    let driver = &mut *driver;
    let to = upload(driver, &[0u32; 8]);
    let mut pinned = driver.pin(32).unwrap();
    pinned.bytes_mut()[..16].copy_from_slice(bytemuck::cast_slice(&[1u32; 4]));
    driver.copy_in(to, &pinned, 0..16).unwrap();
    pinned.bytes_mut()[..16].copy_from_slice(bytemuck::cast_slice(&[2u32; 4]));
    assert_eq!(download::<u32>(driver, to, 4), [2; 4]);
    // With an event between, it does not.
    driver.copy_in(to, &pinned, 0..16).unwrap();
    let event = driver.record().unwrap();
    driver.wait(event, Duration::from_secs(1)).unwrap();
    pinned.bytes_mut()[..16].copy_from_slice(bytemuck::cast_slice(&[3u32; 4]));
    assert_eq!(download::<u32>(driver, to, 4), [2; 4]);
    // Dropped before its turn.
    driver.copy_in(to, &pinned, 0..16).unwrap();
    drop(pinned);
    let error = driver.synchronize().unwrap_err().to_string();
    assert!(error.contains("was dropped before the copy had its turn"), "{error}");
}

#[test]
fn memory_is_bounded_poisoned_and_checked() {
    let options = EmulatedOptions { memory: 4096, ..EmulatedOptions::from_environment().unwrap() };
    let mut driver: Box<dyn Driver> = Box::new(EmulatedDriver::new(options).unwrap());
    let driver = &mut *driver;
    let buffers = driver.allocate("first", &[1000, 24]).unwrap();
    assert_eq!(driver.free_memory().unwrap(), 4096 - 1024);
    assert_eq!(download::<u8>(driver, buffers[1], 24), [0xff; 24]);
    let error = driver.allocate("second", &[4000]).unwrap_err().to_string();
    assert_eq!(error, "device: second needs 4000 bytes of memory; 3072 of 4096 are free");
    let error = driver.fill(buffers[1], 0, 25).unwrap_err().to_string();
    assert!(error.contains("fill of 25 bytes at byte 0 of the buffer 1 of \"first\" (24 bytes)"), "{error}");
    // A launch that was enqueued before the arena was freed still finds it; one enqueued after does not.
    driver.fill(buffers[0], 0, 1000).unwrap();
    probe(driver, buffers[0], buffers[0], 1.0);
    driver.free(buffers[0]).unwrap();
    assert!(driver.free(buffers[0]).is_err());
    assert_eq!(driver.free_memory().unwrap(), 4096);
    driver.synchronize().unwrap();
    assert!(driver.fill(buffers[0], 0, 4).is_err());
    probe(driver, buffers[0], buffers[0], 1.0);
    let error = driver.synchronize().unwrap_err().to_string();
    assert!(error.contains("byte 0 of the freed buffer 0 of \"first\""), "{error}");
}

#[test]
fn launches_beyond_the_kernel_or_the_device_are_refused() {
    let mut driver = driver();
    let driver = &mut *driver;
    assert!(
        driver.kernel("no_such_kernel").unwrap_err().to_string().contains("no kernel named no_such_kernel")
    );
    let kernel = driver.kernel("probe").unwrap();
    let good = launch(kernel, 32);
    let args = [0u8; 32];
    let refused = [
        (good, &args[..16], "16 bytes of arguments; it takes 32"),
        (Launch { threads: 33, ..good }, &args[..], "whole warps"),
        (Launch { threads: 512, ..good }, &args[..], "at most 256 threads"),
        (Launch { grid: [1, 0, 1], ..good }, &args[..], "a grid of 1 x 0 x 1 blocks"),
        (Launch { grid: [1, 65_536, 1], ..good }, &args[..], "a grid of"),
        (Launch { shared: 232_449, ..good }, &args[..], "a block has at most 232448"),
    ];
    for (launch, args, words) in refused {
        let error = driver.launch(&launch, args).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    driver.launch(&good, &args).unwrap();
    driver.synchronize().unwrap();
}
