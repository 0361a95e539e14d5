//! Named ranges for profilers (NVTX), where the library is there.

use std::ffi::CString;

use cudarc::nvtx::sys;

/// Ranges of the calling thread; does nothing without the library.
pub(super) struct Profiler {
    present: bool,
}

impl Profiler {
    /// Looks for the library once.
    pub fn new() -> Profiler {
        // SAFETY: opens and closes shared libraries by name.
        Profiler { present: unsafe { sys::is_culib_present() } }
    }

    /// Opens a range.
    pub fn push(&self, name: &str) {
        if let (true, Ok(name)) = (self.present, CString::new(name)) {
            // SAFETY: the library is there and copies the string.
            let _ = unsafe { sys::nvtxRangePushA(name.as_ptr()) };
        }
    }

    /// Closes the innermost range.
    pub fn pop(&self) {
        if self.present {
            // SAFETY: the library is there.
            let _ = unsafe { sys::nvtxRangePop() };
        }
    }
}
