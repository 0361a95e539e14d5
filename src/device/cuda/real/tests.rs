//! What of the driver can be tested without a GPU: against a stand-in for NVIDIA's library (`fake.c`), which checks every call and
//! plays a machine that something is wrong with. Each machine is a process of its own: a library is loaded once and for all.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

const CHILD: &str = "device::cuda::real::tests::on_a_fake_machine";

/// Compiles the stand-in; none if there is no C compiler.
fn fake(folder: &Path) -> bool {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/real/fake.c");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-std=gnu11", "-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so.1")).arg(source);
    compile.status().is_ok_and(|status| status.success())
}

#[test]
fn every_machine_gets_its_sentence() {
    let folder = tempfile::tempdir().unwrap();
    assert!(fake(folder.path()), "the stand-in does not compile");
    let machines =
        ["good", "separate", "empty", "stub", "old", "other", "fault", "hang"].map(|machine| (machine, ""));
    // What `SIDEREAL_CUDA_WAIT` says there.
    for (machine, wait) in machines.into_iter().chain([("hang", "1"), ("good", "soon")]) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args([CHILD, "--exact", "--ignored", "--nocapture"])
            .env("FAKE_CUDA", machine)
            .env_remove("SIDEREAL_CUDA_WAIT");
        if !wait.is_empty() {
            child.env("SIDEREAL_CUDA_WAIT", wait);
        }
        child.env("LD_LIBRARY_PATH", folder.path()).env_remove("CUDA_VISIBLE_DEVICES");
        child.env("SIDEREAL_CUDA_SEPARATE", if machine == "separate" { "1" } else { "0" });
        let output = child.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{machine}: {said}");
        // What hangs is never freed, and everything else always is.
        let opened = ["good", "separate", "fault"].contains(&machine) && wait.is_empty();
        assert_eq!(said.contains("fake libcuda: released"), opened, "{machine}: {said}");
    }
}

#[test]
fn a_machine_without_a_driver_gets_a_sentence() {
    if Path::new("/proc/driver/nvidia/version").exists() {
        return;
    }
    let error = CudaDriver::new(0).err().unwrap().to_string();
    assert!(error.contains("there is no NVIDIA driver on this machine"), "{error}");
    assert_eq!(devices().unwrap_err().to_string(), error);
}

#[test]
#[ignore = "started by every_machine_gets_its_sentence"]
fn on_a_fake_machine() {
    let refused = |words: &str| {
        let error = CudaDriver::new(0).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
        error
    };
    match std::env::var("FAKE_CUDA").unwrap_or_default().as_str() {
        "empty" => _ = refused("the NVIDIA driver shows no GPU"),
        "stub" => _ = refused("the toolkit's stub"),
        "old" => {
            let error = refused("needs a driver for CUDA 13.0 (580 or newer); the one here is for CUDA 12.4");
            assert!(error.contains(devices().unwrap()[0].unusable.as_ref().unwrap()));
        }
        "other" => {
            let error = refused("Fake GPU has compute capability 12.0, and this build holds code for");
            assert!(error.ends_with(devices().unwrap()[0].unusable.as_ref().unwrap()));
        }
        "fault" => fault(),
        "hang" if std::env::var_os("SIDEREAL_CUDA_WAIT").is_some() => impatient(),
        "hang" => hang(),
        "good" if std::env::var_os("SIDEREAL_CUDA_WAIT").is_some() => {
            _ = refused("SIDEREAL_CUDA_WAIT: \"soon\" is no number of seconds")
        }
        "good" | "separate" => good(),
        other => panic!("no machine {other:?}"),
    }
}

fn launch(driver: &mut CudaDriver) -> Result<()> {
    let kernel = driver.kernel("fake_kernel")?;
    let args: [u8; 32] = std::array::from_fn(|i| i as u8);
    driver.launch(&Launch { kernel, grid: [3, 1, 1], threads: 128, shared: 64, dependent: true }, &args)
}

fn good() {
    let listed = devices().unwrap();
    assert_eq!((listed.len(), listed[0].unusable.as_ref()), (1, None));
    assert_eq!(listed[0].properties.driver, (13, 0));
    let error = CudaDriver::new(1).err().unwrap().to_string();
    assert!(error.contains("there is no CUDA device 1: the driver shows 1"), "{error}");

    let mut driver = CudaDriver::new(0).unwrap();
    assert_eq!(driver.properties().capability, (9, 0));
    memory(&mut driver);
    launches(&mut driver);
    events(&mut driver);
    maps(&mut driver);
    // A value may move to another thread, and pinned memory may outlive it.
    let pinned = driver.pin(10).unwrap();
    std::thread::spawn(move || driver.synchronize().unwrap()).join().unwrap();
    drop(pinned);
}

fn memory(driver: &mut CudaDriver) {
    let buffers = driver.allocate("test", &[1, 0, 300]).unwrap();
    assert!(buffers.iter().all(|at| at.0.is_multiple_of(256)));
    if !driver.separate {
        assert_eq!(buffers[2].0 - buffers[0].0, 512);
    }
    assert!(driver.allocate("nothing", &[]).unwrap().is_empty());
    let mut from = driver.pin(300).unwrap();
    assert!(from.bytes().iter().all(|&byte| byte == 0));
    from.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    driver.copy_in(buffers[2], &from, 10..300).unwrap();
    driver.fill(buffers[2], 7, 5).unwrap();
    driver.copy(buffers[0], buffers[2].add(4), 1).unwrap();
    let to = driver.pin(400).unwrap();
    driver.copy_out(&to, 100, buffers[2], 290).unwrap();
    driver.copy_out(&to, 0, buffers[0], 1).unwrap();
    assert_eq!(&to.bytes()[100..108], &[7, 7, 7, 7, 7, 15, 16, 17]);
    assert_eq!(to.bytes()[0], 7);
    // Nothing is nothing, and beyond is an error.
    driver.copy_in(DevicePtr::NULL, &from, 5..5).unwrap();
    driver.copy(DevicePtr::NULL, DevicePtr::NULL, 0).unwrap();
    assert!(driver.copy_in(buffers[2], &from, 0..301).is_err());
    assert!(driver.copy_out(&to, 399, buffers[2], 2).is_err());
    assert!(driver.copy_out(&to, usize::MAX, buffers[2], 2).is_err());
    for size in [2 << 20, usize::MAX] {
        let error = driver.allocate("weights", &[16, size]).unwrap_err().to_string();
        assert!(error.contains("weights needs ") && error.contains("Fake GPU has 0.00 GiB free"), "{error}");
    }
    driver.free(buffers[0]).unwrap();
    assert!(driver.free(buffers[0]).is_err());
    driver.allocate("freed by the drop", &[1]).unwrap();
}

fn launches(driver: &mut CudaDriver) {
    let error = driver.kernel("nothing").unwrap_err().to_string();
    assert!(error.contains("there is no kernel nothing in this build"), "{error}");
    launch(driver).unwrap();
    launch(driver).unwrap();
    assert_eq!(driver.kernel("fake_kernel").unwrap(), driver.kernel("fake_kernel").unwrap());
    let kernel = driver.kernel("fake_other").unwrap();
    let too_large = Launch { kernel, grid: [1, 1, 1], threads: 1, shared: 232_448, dependent: false };
    let error = driver.launch(&too_large, &[0; 32]).unwrap_err().to_string();
    assert!(
        error
            .contains("fake_other: 232448 bytes of dynamic shared memory were asked for, a block has 231424"),
        "{error}"
    );

    driver.begin_capture().unwrap();
    launch(driver).unwrap();
    assert_eq!(driver.kernel("fake_other").unwrap(), kernel);
    for error in [
        driver.kernel("fake_third").err(),
        driver.record().err(),
        driver.pin(1).err(),
        driver.synchronize().err(),
    ] {
        assert!(error.unwrap().to_string().ends_with("inside a capture"));
    }
    let graph = driver.end_capture().unwrap();
    driver.replay(graph).unwrap();
    assert!(driver.replay(Graph(1)).is_err());
    driver.forget(graph).unwrap();
    assert!(driver.replay(graph).is_err() && driver.forget(graph).is_err());
    driver.begin_capture().unwrap();
    assert_eq!(driver.end_capture().unwrap(), graph);
    assert!(driver.end_capture().is_err());
}

fn events(driver: &mut CudaDriver) {
    let first = driver.record().unwrap();
    launch(driver).unwrap();
    let second = driver.record().unwrap();
    assert!(driver.is_done(first).unwrap());
    driver.wait(second, Duration::ZERO).unwrap();
    assert_eq!(driver.elapsed(first, second).unwrap(), Duration::from_micros(1500));
    assert!(driver.is_done(Event(second.0 + 1)).is_err());
    for _ in 0..2 * EVENTS {
        driver.record().unwrap();
    }
    assert!(driver.is_done(first).unwrap());
    assert!(driver.elapsed(first, second).is_err());
}

fn maps(driver: &mut CudaDriver) {
    let spec =
        TensorMapSpec { base: DevicePtr(1024), rows: 5, columns: 40, stride: 80, box_rows: 64, bf16: true };
    let map = driver.tensor_map(&spec).unwrap();
    assert_eq!(map.0[..7], [1024, 40, 5, 80, 64, 64, 9]);
    for bad in [
        TensorMapSpec { base: DevicePtr(8), ..spec },
        TensorMapSpec { stride: 72, ..spec },
        TensorMapSpec { stride: 64, ..spec },
        TensorMapSpec { rows: 0, ..spec },
        TensorMapSpec { box_rows: 257, ..spec },
    ] {
        assert!(driver.tensor_map(&bad).is_err(), "{bad:?}");
    }
}

/// The first error names the call that noticed and the kernel before it; every later one has the same words.
fn fault() {
    let mut driver = CudaDriver::new(0).unwrap();
    launch(&mut driver).unwrap();
    let first = driver.synchronize().unwrap_err().to_string();
    assert!(first.contains("cuEventCreate: an illegal memory access was encountered"), "{first}");
    assert!(
        first.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && first.ends_with("enqueued last: kernel fake_kernel"),
        "{first}"
    );
    let later = [
        driver.pin(1).err(),
        driver.record().err(),
        driver.free_memory().err(),
        driver.begin_capture().err(),
        launch(&mut driver).err(),
    ];
    for error in later {
        assert_eq!(error.unwrap().to_string(), first);
    }
}

/// A kernel that never ends is an error once the limit is over, and then nothing waits for it.
fn impatient() {
    let mut driver = CudaDriver::new(0).unwrap();
    launch(&mut driver).unwrap();
    let start = Instant::now();
    let error = driver.synchronize().unwrap_err().to_string();
    assert!(error.contains("the device has not finished after 1.0"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn hang() {
    let mut driver = CudaDriver::new(0).unwrap();
    let pinned = driver.pin(16).unwrap();
    launch(&mut driver).unwrap();
    let event = driver.record().unwrap();
    let start = Instant::now();
    assert!(!driver.is_done(event).unwrap());
    let error = driver.wait(event, Duration::from_millis(50)).unwrap_err().to_string();
    assert!(
        error.contains("the device has not finished after 0.") && error.ends_with("kernel fake_kernel"),
        "{error}"
    );
    assert_eq!(driver.synchronize().unwrap_err().to_string(), error);
    drop((driver, pinned));
    assert!(start.elapsed() < Duration::from_secs(10));
}
