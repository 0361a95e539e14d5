//! The machine code in this binary: which of it a device runs, and its entries, found by name.

use std::collections::HashMap;
use std::ffi::{CString, c_int};

use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUresult};

use super::library::{Failure, check};
use crate::device::cuda::driver::{Kernel, Launch, Properties, failed};
use crate::error::{Error, Result};

mod built {
    //! `CUBINS`, written by build.rs.
    include!(concat!(env!("OUT_DIR"), "/cubins.rs"));
}

/// Architecture, kernel file, machine code.
type Cubin = (&'static str, &'static str, &'static [u8]);

/// Picks the best machine code for a device, one per source file.
pub(super) fn choose(properties: &Properties) -> Result<Vec<Cubin>> {
    pick(built::CUBINS, properties)
}

fn pick(cubins: &[Cubin], properties: &Properties) -> Result<Vec<Cubin>> {
    let mut best: Vec<(Cubin, u32)> = Vec::new();
    for &cubin in cubins {
        let rank = rank(cubin.0, properties.capability);
        match best.iter_mut().find(|(other, _)| other.1 == cubin.1) {
            Some(slot) if rank > slot.1 => *slot = (cubin, rank),
            Some(_) => {}
            None => best.push((cubin, rank)),
        }
    }
    let Some(&((_, file, _), _)) = best.iter().find(|(_, rank)| *rank == 0) else {
        return Ok(best.into_iter().map(|(cubin, _)| cubin).collect());
    };
    let mut built: Vec<_> = cubins.iter().filter(|c| c.1 == file).map(|c| c.0).collect();
    built.sort_unstable();
    let (major, minor) = properties.capability;
    Err(failed(format!(
        "{} has compute capability {major}.{minor}, and this build holds code for sm_{} only: build it with SIDEREAL_CUDA_ARCH={major}{minor}{}",
        properties.name,
        built.join(", sm_"),
        if (major, minor) == (9, 0) { "a" } else { "" },
    )))
}

/// How well code for an architecture suits a device: 0 not at all. Code runs on its own major version from its minor version up; code with
/// an `a` runs on exactly its own, and uses what only that one has.
fn rank(architecture: &str, (major, minor): (u32, u32)) -> u32 {
    let digits = architecture.trim_end_matches(|c: char| !c.is_ascii_digit());
    let Ok(number) = digits.parse::<u32>() else { return 0 };
    let (exact, own) = (digits.len() < architecture.len(), (number / 10, number % 10));
    match exact {
        true if own == (major, minor) => 100,
        false if own.0 == major && own.1 <= minor => 1 + own.1,
        _ => 0,
    }
}

/// An entry and what it was compiled for.
pub(super) struct Entry {
    pub name: String,
    pub function: sys::CUfunction,
    /// Bytes of the argument struct.
    args: usize,
    /// Most threads of a block.
    threads: u32,
    /// Most bytes of dynamic shared memory.
    shared: u32,
}

impl Entry {
    /// Makes sure that a launch is one that the entry and the device allow.
    pub fn admit(&self, launch: &Launch, args: usize) -> Result<()> {
        let refuse = |what: String| Err(failed(format!("kernel {}: {what}", self.name)));
        let [x, y, z] = launch.grid;
        if args != self.args {
            return refuse(format!("{args} bytes of arguments were given, {} are declared", self.args));
        }
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return refuse(format!(
                "a grid of {x} x {y} x {z} blocks is outside 1..2147483647 x 1..65535 x 1..65535"
            ));
        }
        if launch.threads == 0 || launch.threads > self.threads {
            return refuse(format!(
                "{} threads were asked for, it is compiled for 1..{}",
                launch.threads, self.threads
            ));
        }
        if launch.shared > self.shared {
            return refuse(format!(
                "{} bytes of dynamic shared memory were asked for, a block has {}",
                launch.shared, self.shared
            ));
        }
        Ok(())
    }
}

/// The loaded code of a device.
pub(super) struct Modules {
    loaded: Vec<sys::CUmodule>,
    entries: Vec<Entry>,
    by_name: HashMap<String, u32>,
    shared_per_block: u32,
}

impl Modules {
    /// Nothing loaded yet.
    pub fn new(shared_per_block: u32) -> Modules {
        Modules { loaded: Vec::new(), entries: Vec::new(), by_name: HashMap::new(), shared_per_block }
    }

    /// Loads the code that suits a device into the current context.
    pub fn load(&mut self, properties: &Properties) -> Result<()> {
        for (architecture, file, code) in choose(properties)? {
            let mut module = std::ptr::null_mut();
            // SAFETY: a context is current, and `code` is a whole cubin: its length is in its ELF header.
            let result = unsafe { sys::cuModuleLoadData(&mut module, code.as_ptr().cast()) };
            check("cuModuleLoadData", result)
                .map_err(|failure| failed(format!("{file} for sm_{architecture}: {failure}")))?;
            self.loaded.push(module);
        }
        Ok(())
    }

    /// An entry that was found before.
    pub fn known(&self, name: &str) -> Option<Kernel> {
        self.by_name.get(name).map(|&at| Kernel(at))
    }

    /// Finds an entry and makes it ready to launch, inside a capture too.
    pub fn find(&mut self, name: &str) -> Result<Kernel> {
        if let Some(kernel) = self.known(name) {
            return Ok(kernel);
        }
        let Ok(symbol) = CString::new(name) else { return Err(unknown(name)) };
        for &module in &self.loaded {
            let mut function = std::ptr::null_mut();
            // SAFETY: a module of the current context.
            let result = unsafe { sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr()) };
            if result == CUresult::CUDA_ERROR_NOT_FOUND {
                continue;
            }
            let entry = check("cuModuleGetFunction", result)
                .and_then(|()| entry(name, function, self.shared_per_block))
                .map_err(|failure| failed(format!("kernel {name}: {failure}")))?;
            let at = self.entries.len() as u32;
            self.entries.push(entry);
            self.by_name.insert(name.to_owned(), at);
            return Ok(Kernel(at));
        }
        Err(unknown(name))
    }

    /// An entry by its number.
    pub fn get(&self, kernel: Kernel) -> Result<&Entry> {
        self.entries.get(kernel.0 as usize).ok_or_else(|| failed(format!("there is no kernel {}", kernel.0)))
    }

    /// Unloads everything.
    ///
    /// # Safety
    /// The context is current and nothing that was launched is under way.
    pub unsafe fn unload(&mut self) {
        self.entries.clear();
        self.by_name.clear();
        for module in self.loaded.drain(..) {
            // SAFETY: as promised; loaded once, unloaded once. An error has nobody to be told to.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}

fn unknown(name: &str) -> Error {
    failed(format!("there is no kernel {name} in this build"))
}

/// Reads what a function was compiled for and lets it have all the shared memory that a block can get.
fn entry(name: &str, function: sys::CUfunction, shared_per_block: u32) -> Result<Entry, Failure> {
    // SAFETY: a function of a loaded module, here and below. Loaded now: a first launch inside a capture must not load code.
    check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) })?;
    let attribute = |which| -> Result<u32, Failure> {
        let mut value: c_int = 0;
        // SAFETY: as above.
        check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut value, which, function) })?;
        Ok(value.unsigned_abs())
    };
    let threads = attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    let shared = shared_per_block.saturating_sub(attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?);
    let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: as above.
    check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(function, most, shared as c_int) })?;
    let (mut offset, mut args) = (0, 0);
    // SAFETY: as above. Every entry takes one struct (the KERNEL macro).
    check("cuFuncGetParamInfo", unsafe { sys::cuFuncGetParamInfo(function, 0, &mut offset, &mut args) })?;
    Ok(Entry { name: name.to_owned(), function, args, threads, shared })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(capability: (u32, u32)) -> Properties {
        Properties {
            emulated: false,
            name: "Test".into(),
            capability,
            multiprocessors: 1,
            memory: 1,
            shared_per_block: 1,
            l2: 1,
            driver: (13, 0),
        }
    }

    #[test]
    fn the_best_code_is_picked_for_every_file() {
        let cubins: [Cubin; 4] =
            [("80", "a", b"1"), ("90a", "a", b"2"), ("90a", "b", b"3"), ("80", "b", b"4")];
        let picked = |capability| -> Vec<&str> {
            pick(&cubins, &device(capability))
                .unwrap()
                .iter()
                .map(|c| std::str::from_utf8(c.2).unwrap())
                .collect()
        };
        assert_eq!(picked((9, 0)), ["2", "3"]);
        assert_eq!(picked((8, 0)), ["1", "4"]);
        assert_eq!(picked((8, 9)), ["1", "4"]);
        assert_eq!(rank("86", (8, 0)), 0);
        assert!(rank("86", (8, 9)) > rank("80", (8, 9)));
        assert_eq!(rank("90a", (9, 1)), 0);
        assert_eq!(rank("120", (12, 0)), 1);
    }

    #[test]
    fn a_device_without_code_is_told_what_was_built() {
        let cubins: [Cubin; 2] = [("90a", "a", b"1"), ("80", "a", b"2")];
        let error = pick(&cubins, &device((12, 0))).unwrap_err().to_string();
        assert_eq!(
            error,
            "device: Test has compute capability 12.0, and this build holds code for sm_80, sm_90a only: build it with \
             SIDEREAL_CUDA_ARCH=120"
        );
        let one: [Cubin; 1] = [("80", "a", b"2")];
        assert!(pick(&one, &device((9, 0))).unwrap_err().to_string().ends_with("=90a"));
    }

    #[test]
    fn launches_beyond_the_bounds_are_refused_by_name() {
        let entry =
            Entry { name: "k".into(), function: std::ptr::null_mut(), args: 48, threads: 128, shared: 1000 };
        let good =
            Launch { kernel: Kernel(0), grid: [1, 1, 1], threads: 128, shared: 1000, dependent: false };
        assert!(entry.admit(&good, 48).is_ok());
        let bad = [
            (good, 32, "32 bytes of arguments were given, 48 are declared"),
            (Launch { grid: [1, 0, 1], ..good }, 48, "grid of 1 x 0 x 1"),
            (Launch { grid: [1, 1, 65_536], ..good }, 48, "grid of 1 x 1 x 65536"),
            (Launch { threads: 129, ..good }, 48, "129 threads were asked for, it is compiled for 1..128"),
            (
                Launch { shared: 1001, ..good },
                48,
                "1001 bytes of dynamic shared memory were asked for, a block has 1000",
            ),
        ];
        for (launch, args, words) in bad {
            let error = entry.admit(&launch, args).unwrap_err().to_string();
            assert!(error.contains("kernel k: ") && error.contains(words), "{error}");
        }
    }
}
