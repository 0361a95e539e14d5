//! `sidereal doctor`: what this machine offers and what would run where.

use clap::Args;
use serde::Serialize;
use sidereal::device::cpu::{SimdLevel, read_bandwidth};

use super::gpus::Cuda;

/// Say what this machine offers and what would run where.
#[derive(Args)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    cores: usize,
    cpu: String,
    cpu_features: Vec<&'static str>,
    kernels: String,
    memory_total_gib: Option<f64>,
    memory_available_gib: Option<f64>,
    read_gb_s: f64,
    cuda: Cuda,
    devices: Vec<&'static str>,
}

impl Doctor {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cuda = Cuda::look();
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            cores,
            cpu: cpu_name(),
            cpu_features: cpu_features(),
            kernels: SimdLevel::detect().to_string(),
            memory_total_gib: meminfo_gib(&meminfo, "MemTotal:"),
            memory_available_gib: meminfo_gib(&meminfo, "MemAvailable:"),
            read_gb_s: read_bandwidth(cores)? / 1e9,
            devices: devices(&cuda),
            cuda,
        };
        if self.json {
            println!("{}", serde_json::to_string(&report)?);
            return Ok(());
        }
        println!("sidereal {}", report.version);
        println!("cpu       {}, {} cores available", report.cpu, report.cores);
        println!("features  {}", report.cpu_features.join(" "));
        println!("kernels   {} (chosen at run time)", report.kernels);
        if let (Some(total), Some(available)) = (report.memory_total_gib, report.memory_available_gib) {
            println!("memory    {total:.1} GiB, {available:.1} GiB available");
        }
        println!("read      {:.1} GB/s, a plain parallel sum: what decoding is limited by", report.read_gb_s);
        for line in report.cuda.lines() {
            println!("cuda      {line}");
        }
        println!("devices   {}", report.devices.join(", "));
        Ok(())
    }
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, n)| n));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let table = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    table.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

fn meminfo_gib(meminfo: &str, key: &str) -> Option<f64> {
    let line = meminfo.lines().find(|line| line.starts_with(key))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / (1 << 20) as f64)
}

/// What `--device` can be here.
fn devices(cuda: &Cuda) -> Vec<&'static str> {
    let mut devices = vec!["cpu"];
    if cuda.is_usable() {
        devices.push("cuda");
    }
    if cfg!(feature = "emulated") {
        devices.push("emulated");
    }
    devices
}
