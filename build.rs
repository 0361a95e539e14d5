//! Compiles the kernels: to cubins with nvcc (feature `cuda`), and for the host with the C++ compiler (feature `emulated`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(any(feature = "cuda", feature = "emulated"))]
    {
        let sources = sources::Sources::find();
        #[cfg(feature = "cuda")]
        cubins::compile(&sources);
        #[cfg(feature = "emulated")]
        emulated::compile(&sources);
    }
}

/// Ends the build with a sentence.
#[cfg(any(feature = "cuda", feature = "emulated"))]
fn stop(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1);
}

#[cfg(any(feature = "cuda", feature = "emulated"))]
mod sources {
    use std::path::{Path, PathBuf};

    /// The kernel files, and where to put what comes of them.
    pub struct Sources {
        /// `kernels/*.cu`, sorted.
        pub kernels: Vec<PathBuf>,
        /// Cargo's directory for us.
        pub out: PathBuf,
    }

    impl Sources {
        pub fn find() -> Sources {
            let out = std::env::var_os("OUT_DIR").unwrap_or_else(|| crate::stop("OUT_DIR is not set")).into();
            println!("cargo::rerun-if-changed=kernels");
            Sources { kernels: files("kernels", "cu"), out }
        }
    }

    /// The files of a directory with an extension, sorted.
    pub fn files(directory: impl AsRef<Path>, extension: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&directory)
            .unwrap_or_else(|e| crate::stop(&format!("{}: {e}", directory.as_ref().display())));
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .collect();
        files.sort();
        files
    }

    /// Writes a generated file.
    pub fn write(path: &Path, text: &str) {
        if let Err(e) = std::fs::write(path, text) {
            crate::stop(&format!("{}: {e}", path.display()));
        }
    }
}

#[cfg(feature = "emulated")]
mod emulated {
    use std::fmt::Write;
    use std::path::Path;

    use crate::sources::{Sources, files, write};

    /// Compiles kernels, broken kernels for the tests, and the runtime into one archive.
    pub fn compile(sources: &Sources) {
        let kernels = [sources.kernels.clone(), files("kernels/host/tests", "cu")].concat();
        let registry = sources.out.join("registry.cpp");
        write(&registry, &registry_of(&kernels));
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++20")
            .include("kernels")
            .opt_level(2)
            .debug(false)
            .warnings(false)
            .flag("-ffp-contract=off")
            .flag("-fno-strict-aliasing")
            .flag("-fno-exceptions")
            .flag("-Wno-unknown-pragmas")
            .flag("-xc++")
            .files(kernels)
            .files(files("kernels/host", "cpp"))
            .file(registry);
        if let Err(e) = build.try_compile("sidereal_emulated") {
            crate::stop(&format!("the kernels do not compile for the host: {e}"));
        }
    }

    /// A table of the entries, which stand on one line each: `KERNEL(name, ...`.
    fn registry_of(kernels: &[impl AsRef<Path>]) -> String {
        let mut names = Vec::new();
        for path in kernels {
            let text = std::fs::read_to_string(path)
                .unwrap_or_else(|e| crate::stop(&format!("{}: {e}", path.as_ref().display())));
            names.extend(text.lines().filter_map(|line| {
                Some(line.strip_prefix("KERNEL(")?.split_once(',')?.0.trim().to_string())
            }));
        }
        let mut text = String::from("#include \"host/runtime.h\"\n");
        for name in &names {
            let _ = writeln!(text, "extern const host::Kernel host_{name};");
        }
        text.push_str("namespace host {\nextern const Kernel* const kernel_table[];\nextern const uint32_t kernel_count;\n");
        text.push_str("const Kernel* const kernel_table[] = {");
        for name in &names {
            let _ = write!(text, "&host_{name}, ");
        }
        let _ = writeln!(text, "}};\nconst uint32_t kernel_count = {};\n}}", names.len());
        text
    }
}

#[cfg(feature = "cuda")]
mod cubins {
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use crate::sources::{Sources, write};

    /// Compiles each kernel file to a cubin per architecture, and lists them in `cubins.rs`:
    /// `pub static CUBINS: &[(architecture, file, bytes)]`.
    pub fn compile(sources: &Sources) {
        for variable in ["SIDEREAL_NVCC", "SIDEREAL_CUDA_ARCH", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let nvcc = find_nvcc();
        let architectures = std::env::var("SIDEREAL_CUDA_ARCH").unwrap_or_else(|_| "90a".to_string());
        let mut list = String::from(
            "/// `(architecture, kernel file, cubin)`.\npub static CUBINS: &[(&str, &str, &[u8])] = &[\n",
        );
        let mut jobs = Vec::new();
        for architecture in architectures.split(',').map(str::trim) {
            for kernel in &sources.kernels {
                let name = kernel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let cubin = sources.out.join(format!("{name}.sm_{architecture}.cubin"));
                let _ = writeln!(list, "    ({architecture:?}, {name:?}, include_bytes!({:?})),", cubin);
                jobs.push((architecture.to_string(), kernel.clone(), cubin));
            }
        }
        list.push_str("];\n");
        run_all(&nvcc, &jobs);
        write(&sources.out.join("cubins.rs"), &list);
    }

    type Job = (String, PathBuf, PathBuf);

    /// As many compilations at a time as Cargo allows; a failure prints nvcc's own words.
    fn run_all(nvcc: &Path, jobs: &[Job]) {
        let width = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).max(1);
        let next = std::sync::atomic::AtomicUsize::new(0);
        let failed = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..width.min(jobs.len()) {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                        let out = run(nvcc, job);
                        if !out.status.success() {
                            failed.store(true, std::sync::atomic::Ordering::Relaxed);
                            eprint!(
                                "{}{}",
                                String::from_utf8_lossy(&out.stdout),
                                String::from_utf8_lossy(&out.stderr)
                            );
                        }
                    }
                });
            }
        });
        if failed.into_inner() {
            crate::stop("nvcc failed; its messages are above");
        }
    }

    fn run(nvcc: &Path, (architecture, kernel, cubin): &Job) -> Output {
        Command::new(nvcc)
            .args(["-std=c++20", "-O3", "-lineinfo", "-Ikernels", "-cubin"])
            .arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"))
            .arg("-o")
            .arg(cubin)
            .arg(kernel)
            .output()
            .unwrap_or_else(|e| crate::stop(&format!("{}: {e}", nvcc.display())))
    }

    /// `SIDEREAL_NVCC`, a CUDA installation, the search path, or the wheels of the active Python environment.
    fn find_nvcc() -> PathBuf {
        if let Some(named) = std::env::var_os("SIDEREAL_NVCC").filter(|named| !named.is_empty()) {
            return named.into();
        }
        let mut places: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
            .iter()
            .filter_map(std::env::var_os)
            .map(|home| PathBuf::from(home).join("bin"))
            .collect();
        places.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        if let Some(environment) = std::env::var_os("VIRTUAL_ENV") {
            let pythons =
                std::fs::read_dir(PathBuf::from(environment).join("lib")).into_iter().flatten().flatten();
            places.extend(pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin")));
        }
        places.push("/usr/local/cuda/bin".into());
        places.into_iter().map(|place| place.join("nvcc")).find(|nvcc| nvcc.is_file()).unwrap_or_else(|| {
            crate::stop(
                "The feature `cuda` needs nvcc 13.0, which is not in SIDEREAL_NVCC, CUDA_HOME, CUDA_PATH, PATH or the active Python environment. \
                 Without a CUDA installation:\n  python3 -m venv .venv && . .venv/bin/activate\n  \
                 pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*'\n\
                 or name the compiler in SIDEREAL_NVCC.",
            )
        })
    }
}
