//! The driver library: whether it is there, its version, its devices, and its errors as sentences.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::modules;
use crate::device::cuda::driver::{Properties, TensorMapSpec, failed};
use crate::error::{Error, Result};

/// The oldest CUDA whose driver runs the machine code of a compiler of version 13: 13.0, which came with driver 580.
const OLDEST: (u32, u32) = (13, 0);

/// A call of the driver library that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub call: &'static str,
    pub code: CUresult,
}

impl Failure {
    /// Whether the context is lost: every later call fails too, whatever it does.
    pub fn is_sticky(self) -> bool {
        use sys::CUresult::*;
        matches!(
            self.code,
            CUDA_ERROR_DEINITIALIZED
                | CUDA_ERROR_DEVICE_UNAVAILABLE
                | CUDA_ERROR_ECC_UNCORRECTABLE
                | CUDA_ERROR_NVLINK_UNCORRECTABLE
                | CUDA_ERROR_CONTAINED
                | CUDA_ERROR_ILLEGAL_ADDRESS
                | CUDA_ERROR_LAUNCH_TIMEOUT
                | CUDA_ERROR_CONTEXT_IS_DESTROYED
                | CUDA_ERROR_ASSERT
                | CUDA_ERROR_HARDWARE_STACK_ERROR
                | CUDA_ERROR_ILLEGAL_INSTRUCTION
                | CUDA_ERROR_MISALIGNED_ADDRESS
                | CUDA_ERROR_INVALID_ADDRESS_SPACE
                | CUDA_ERROR_INVALID_PC
                | CUDA_ERROR_LAUNCH_FAILED
                | CUDA_ERROR_TENSOR_MEMORY_LEAK
                | CUDA_ERROR_EXTERNAL_DEVICE
                | CUDA_ERROR_UNKNOWN
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = cudarc::driver::DriverError(self.code);
        match error.error_string() {
            Ok(words) => write!(f, "{}: {} ({:?})", self.call, words.to_string_lossy(), self.code),
            Err(_) => write!(f, "{}: {:?}", self.call, self.code),
        }
    }
}

/// The result of a call, with its name.
pub(super) fn check(call: &'static str, code: CUresult) -> Result<(), Failure> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(Failure { call, code }) }
}

/// A device of this machine, and whether this build can use it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it is.
    pub properties: Properties,
    /// Why this build cannot use it.
    pub unusable: Option<String>,
}

/// Lists the devices that the driver shows, in its order. Creates no context and allocates nothing.
///
/// # Errors
/// [`crate::Error::Device`] if there is no driver or no device, as a sentence.
pub fn devices() -> Result<Vec<Listed>> {
    let version = open()?;
    let old = too_old(version);
    (0..count()?)
        .map(|ordinal| {
            let properties = properties(device(ordinal)?, version)?;
            let unusable = old.clone().or_else(|| modules::choose(&properties).err().map(sentence));
            Ok(Listed { properties, unusable })
        })
        .collect()
}

/// The error without the word that says whose it is.
fn sentence(error: Error) -> String {
    match error {
        Error::Device(sentence) => sentence,
        other => other.to_string(),
    }
}

/// Finds a device and makes sure that its driver runs what this build holds.
pub(super) fn find(ordinal: usize) -> Result<(sys::CUdevice, Properties)> {
    let version = open()?;
    if let Some(sentence) = too_old(version) {
        return Err(failed(sentence));
    }
    let count = count()?;
    if ordinal >= count {
        return Err(failed(format!(
            "there is no CUDA device {ordinal}: the driver shows {count}{}",
            visible()
        )));
    }
    let device = device(ordinal)?;
    Ok((device, properties(device, version)?))
}

/// Makes sure that there is a driver library that works, and returns its version. Nothing of the library may be called before.
fn open() -> Result<(u32, u32)> {
    // SAFETY: opens and closes shared libraries by name; the driver's has no constructor that asks anything of its caller.
    if !unsafe { sys::is_culib_present() } {
        return Err(failed(
            "there is no NVIDIA driver on this machine (no libcuda.so.1): install one, or use the CPU device",
        ));
    }
    let mut version: c_int = 0;
    // SAFETY: the library is there, and this call needs no initialisation.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }).map_err(failed)?;
    // SAFETY: the library is there.
    check("cuInit", unsafe { sys::cuInit(0) }).map_err(|failure| match failure.code {
        CUresult::CUDA_ERROR_NO_DEVICE => failed(format!("the NVIDIA driver shows no GPU{}", visible())),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            failed("the libcuda.so that was found is the toolkit's stub, not the driver's: take the stubs out of LD_LIBRARY_PATH")
        }
        _ => failed(format!("the NVIDIA driver does not start: {failure}")),
    })?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

fn too_old(version: (u32, u32)) -> Option<String> {
    (version < OLDEST).then(|| {
        format!(
            "this build needs a driver for CUDA {}.{} (580 or newer); the one here is for CUDA {}.{}",
            OLDEST.0, OLDEST.1, version.0, version.1
        )
    })
}

/// What hides devices, if something does.
fn visible() -> String {
    std::env::var("CUDA_VISIBLE_DEVICES")
        .map_or(String::new(), |list| format!(" (CUDA_VISIBLE_DEVICES is {list:?})"))
}

fn count() -> Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: the library is initialised.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) }).map_err(failed)?;
    match usize::try_from(count) {
        Ok(0) | Err(_) => Err(failed(format!("the NVIDIA driver shows no GPU{}", visible()))),
        Ok(count) => Ok(count),
    }
}

fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let mut device: sys::CUdevice = 0;
    // SAFETY: the library is initialised; the ordinal is below the count of devices.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as c_int) }).map_err(failed)?;
    Ok(device)
}

fn properties(device: sys::CUdevice, driver: (u32, u32)) -> Result<Properties> {
    let mut name = [0; 256];
    // SAFETY: a device of the driver, and a buffer of the length given.
    check("cuDeviceGetName", unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device)
    })
    .map_err(failed)?;
    // SAFETY: the last byte is zero whatever the call wrote before it.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory = 0;
    // SAFETY: a device of the driver.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) }).map_err(failed)?;
    let attribute = |which: Attribute| -> Result<u32> {
        let mut value: c_int = 0;
        // SAFETY: a device of the driver.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })
            .map_err(failed)?;
        Ok(value.unsigned_abs())
    };
    Ok(Properties {
        emulated: false,
        name,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        driver,
    })
}

/// The primary context of a device, kept for as long as anything of it lives.
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// The device hangs: whatever frees something of this context would wait for ever.
    abandoned: AtomicBool,
}

// SAFETY: a context may be current to several threads, and the driver library takes its calls from any.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes a reference on the device's primary context, so that an embedding program's other users of the device share it.
    pub fn retain(device: sys::CUdevice) -> Result<Arc<Context>> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a device of the driver.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut raw, device) })
            .map_err(failed)?;
        Ok(Arc::new(Context { device, raw, abandoned: AtomicBool::new(false) }))
    }

    /// Makes it the calling thread's.
    pub fn enter(&self) -> Result<(), Failure> {
        // SAFETY: the context is retained until the drop.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// From now on nothing of this context is freed.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether nothing may be freed.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.is_abandoned() {
            // SAFETY: retained once, released once. An error has nobody to be told to.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// Makes sure that the library takes a matrix; its own answer would be no more than "invalid argument".
pub(super) fn admit_map(spec: &TensorMapSpec, properties: &Properties) -> Result<()> {
    let refuse = |what: String| Err(failed(format!("a tensor map of {spec:?}: {what}")));
    if properties.capability < (9, 0) {
        return refuse(format!("{} has no bulk copies", properties.name));
    }
    if !spec.base.0.is_multiple_of(16) || !spec.stride.is_multiple_of(16) {
        return refuse("base and stride are multiples of 16".into());
    }
    if spec.rows == 0 || spec.columns == 0 || spec.rows > 1 << 32 || spec.columns > 1 << 32 {
        return refuse("rows and columns are 1 to 2^32".into());
    }
    if spec.stride < 2 * spec.columns || spec.stride >= 1 << 40 {
        return refuse("a stride is at least a row and below 2^40".into());
    }
    if !(1..=256).contains(&spec.box_rows) {
        return refuse("a box has 1 to 256 rows".into());
    }
    Ok(())
}
