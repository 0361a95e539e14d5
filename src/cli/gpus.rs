//! What `sidereal doctor` says of NVIDIA GPUs.

use serde::Serialize;

/// The GPUs of this machine as this build sees them.
#[derive(Serialize)]
pub struct Cuda {
    /// Whether this build has the CUDA device.
    built: bool,
    /// Why no GPU can be seen: not built, no driver, none there.
    #[serde(skip_serializing_if = "Option::is_none")]
    none: Option<String>,
    gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Serialize)]
struct Gpu {
    name: String,
    capability: String,
    multiprocessors: u32,
    memory_gib: f64,
    /// CUDA version of the driver.
    driver: String,
    /// Why this build cannot use it, or what went wrong when it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
    /// Rate of a stream of reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_gb_s: Option<f64>,
    /// Rate of bf16 matrix products.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix_tflop_s: Option<f64>,
}

impl Cuda {
    /// Looks for GPUs, and measures those that this build can use (a second each).
    #[cfg(feature = "cuda")]
    pub fn look() -> Cuda {
        match sidereal::device::cuda::real::devices() {
            Ok(listed) => {
                let gpus = listed.into_iter().enumerate().map(|(ordinal, listed)| Gpu::look(ordinal, listed));
                Cuda { built: true, none: None, gpus: gpus.collect() }
            }
            Err(error) => Cuda { built: true, none: Some(sentence(error)), gpus: Vec::new() },
        }
    }

    /// Says how to get the device.
    #[cfg(not(feature = "cuda"))]
    pub fn look() -> Cuda {
        let how = "not in this build; --features cuda puts it in (needs nvcc 13.0 to build and only NVIDIA's driver to run)";
        Cuda { built: false, none: Some(how.to_owned()), gpus: Vec::new() }
    }

    /// Whether some GPU can be used.
    pub fn is_usable(&self) -> bool {
        self.gpus.iter().any(|gpu| gpu.unusable.is_none())
    }

    /// The report for people.
    pub fn lines(&self) -> Vec<String> {
        self.none
            .iter()
            .cloned()
            .chain(self.gpus.iter().enumerate().map(|(ordinal, gpu)| gpu.line(ordinal)))
            .collect()
    }
}

impl Gpu {
    #[cfg(feature = "cuda")]
    fn look(ordinal: usize, listed: sidereal::device::cuda::real::Listed) -> Gpu {
        let properties = listed.properties;
        let mut gpu = Gpu {
            capability: format!("{}.{}", properties.capability.0, properties.capability.1),
            multiprocessors: properties.multiprocessors,
            memory_gib: properties.memory as f64 / (1u64 << 30) as f64,
            driver: format!("{}.{}", properties.driver.0, properties.driver.1),
            name: properties.name,
            unusable: listed.unusable,
            read_gb_s: None,
            matrix_tflop_s: None,
        };
        if gpu.unusable.is_none() {
            match ceilings(ordinal) {
                Ok(ceilings) => {
                    gpu.read_gb_s = Some(ceilings.read / 1e9);
                    gpu.matrix_tflop_s = Some(ceilings.matrix / 1e12);
                }
                Err(error) => gpu.unusable = Some(sentence(error)),
            }
        }
        gpu
    }

    fn line(&self, ordinal: usize) -> String {
        let mut line = format!(
            "{ordinal}: {}, compute capability {}, {} multiprocessors, {:.1} GiB, driver for CUDA {}",
            self.name, self.capability, self.multiprocessors, self.memory_gib, self.driver
        );
        if let (Some(read), Some(matrix)) = (self.read_gb_s, self.matrix_tflop_s) {
            line += &format!("; reads {read:.0} GB/s, multiplies bf16 at {matrix:.0} TFLOP/s");
        }
        if let Some(why) = &self.unusable {
            line += &format!("; unusable: {why}");
        }
        line
    }
}

#[cfg(feature = "cuda")]
fn ceilings(ordinal: usize) -> sidereal::Result<sidereal::device::cuda::ceilings::Ceilings> {
    use sidereal::device::cuda::ceilings::{Extent, measure};
    let mut driver = sidereal::device::cuda::real::CudaDriver::new(ordinal)?;
    let extent = Extent::of(&mut driver)?;
    measure(&mut driver, &extent)
}

/// The error without the word that says whose it is.
#[cfg(feature = "cuda")]
fn sentence(error: sidereal::Error) -> String {
    match error {
        sidereal::Error::Device(sentence) => sentence,
        other => other.to_string(),
    }
}
