//! The kernels compiled for the host: built in, or from a shared object. The interface is `kernels/host/abi.h`.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;

use super::super::driver::failed;
use crate::error::{Error, Result};

#[repr(C)]
struct HostKernel {
    name: *const c_char,
    threads: u32,
    args_bytes: u32,
}

/// A launch, as the runtime takes it.
#[repr(C)]
pub(super) struct HostLaunch {
    pub kernel: u32,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub dependent: u32,
    pub order: u32,
    pub early: u32,
    pub os_threads: u32,
    pub seed: u64,
    pub args: *const c_void,
}

/// What went wrong in a kernel, as the runtime tells it.
#[repr(C)]
pub(super) struct HostError {
    pub code: u32,
    pub block: [u32; 3],
    pub thread: u32,
    pub in_kernel: u32,
    pub address: u64,
    place: [c_char; 256],
    message: [c_char; 1024],
}

impl HostError {
    pub fn place(&self) -> String {
        text(&self.place)
    }

    pub fn message(&self) -> String {
        text(&self.message)
    }
}

fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

type KernelsFn = unsafe extern "C" fn(*mut u32) -> *const HostKernel;
type LaunchFn = unsafe extern "C" fn(*const HostLaunch, *mut HostError) -> u32;

unsafe extern "C" {
    fn sidereal_host_kernels(count: *mut u32) -> *const HostKernel;
    fn sidereal_host_launch(launch: *const HostLaunch, error: *mut HostError) -> u32;
}

/// An entry.
pub(super) struct Entry {
    pub name: String,
    pub threads: u32,
    pub args_bytes: u32,
}

/// The entries of one object.
pub(super) struct Library {
    pub entries: Vec<Entry>,
    by_name: HashMap<String, u32>,
    launch: LaunchFn,
}

impl Library {
    /// The kernels this crate was built with.
    pub fn built_in() -> Library {
        // SAFETY: the archive that build.rs made implements `abi.h`.
        unsafe { Library::new(sidereal_host_kernels, sidereal_host_launch) }
    }

    /// The kernels of a shared object. It stays loaded: its threads outlive us.
    pub fn load(path: &Path) -> Result<Library> {
        let error = |e: libloading::Error| Error::file(path, e.to_string());
        // SAFETY: whoever names the object vouches for its initialisers and for `abi.h`, whose types these are.
        unsafe {
            let object = std::mem::ManuallyDrop::new(libloading::Library::new(path).map_err(error)?);
            let kernels = *object.get::<KernelsFn>(b"sidereal_host_kernels\0").map_err(error)?;
            let launch = *object.get::<LaunchFn>(b"sidereal_host_launch\0").map_err(error)?;
            Ok(Library::new(kernels, launch))
        }
    }

    /// # Safety
    /// Both functions behave as `abi.h` says.
    unsafe fn new(kernels: KernelsFn, launch: LaunchFn) -> Library {
        let mut count = 0;
        // SAFETY: as promised; the table and its names live as long as the process.
        let entries: Vec<Entry> = unsafe {
            let table = kernels(&mut count);
            (0..count as usize)
                .map(|i| &*table.add(i))
                .map(|k| Entry {
                    name: CStr::from_ptr(k.name).to_string_lossy().into_owned(),
                    threads: k.threads,
                    args_bytes: k.args_bytes,
                })
                .collect()
        };
        let by_name = entries.iter().zip(0..).map(|(entry, i)| (entry.name.clone(), i)).collect();
        Library { entries, by_name, launch }
    }

    /// The index of an entry.
    pub fn find(&self, name: &str) -> Result<u32> {
        let found = self.by_name.get(name).copied();
        found.ok_or_else(|| failed(format_args!("there is no kernel named {name}")))
    }

    /// Runs a launch to its end.
    ///
    /// # Safety
    /// `launch.kernel` is an index into `entries`, grid and threads are within its bounds, and `launch.args` points to
    /// `args_bytes` bytes, aligned to 64. What the kernel does with the addresses in them is its own affair; a fault comes back as
    /// an error.
    pub unsafe fn run(&self, launch: &HostLaunch) -> std::result::Result<(), Box<HostError>> {
        let mut error = Box::new(HostError {
            code: 0,
            block: [0; 3],
            thread: 0,
            in_kernel: 0,
            address: 0,
            place: [0; 256],
            message: [0; 1024],
        });
        // SAFETY: as the caller promised.
        match unsafe { (self.launch)(launch, &mut *error) } {
            0 => Ok(()),
            _ => Err(error),
        }
    }
}
