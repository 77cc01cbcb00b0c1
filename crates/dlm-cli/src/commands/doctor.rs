//! `dlm doctor`: what this machine and this build can do.

use crate::args::DoctorArgs;
use serde::Serialize;
use std::{
    fs,
    io::{Write, stdout},
    path::Path,
};
use tch::Cuda;

/// What the doctor found.
#[derive(Debug, Serialize)]
struct Findings {
    dlm: &'static str,
    libtorch: &'static str,
    device: String,
    cores: usize,
    threads: i32,
    bf16: &'static str,
    memory_bytes: Option<u64>,
    free_memory_bytes: Option<u64>,
    free_disk_bytes: Option<u64>,
}

/// Runs `dlm doctor`.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let findings = Findings {
        dlm: env!("CARGO_PKG_VERSION"),
        libtorch: dlm_torch::libtorch_version(),
        device: device(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: tch::get_num_threads(),
        bf16: bf16(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        memory_bytes: meminfo(&memory, "MemTotal"),
        free_memory_bytes: meminfo(&memory, "MemAvailable"),
        free_disk_bytes: free_disk(Path::new(".")),
    };
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&findings)?)?;
        return Ok(());
    }
    let size = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / f64::powi(2.0, 30)))
    };
    writeln!(out, "dlm        {}", findings.dlm)?;
    writeln!(out, "libtorch   {}", findings.libtorch)?;
    writeln!(out, "device     {}", findings.device)?;
    writeln!(out, "threads    {} on {} cores", findings.threads, findings.cores)?;
    writeln!(out, "bf16       {}", findings.bf16)?;
    writeln!(out, "memory     {} free of {}", size(findings.free_memory_bytes), size(findings.memory_bytes))?;
    writeln!(out, "disk       {} free in this folder", size(findings.free_disk_bytes))?;
    Ok(())
}

fn device() -> String {
    match usize::try_from(Cuda::device_count()) {
        Ok(count) if Cuda::is_available() && count > 0 => format!("cuda ({count} devices)"),
        _ => "cpu".to_owned(),
    }
}

/// Whether a processor with these flags has instructions for bfloat16.
pub(crate) fn bf16_in_hardware(cpuinfo: &str) -> bool {
    bf16(cpuinfo).starts_with("in hardware")
}

/// How fast bfloat16 is on a processor with these flags.
fn bf16(cpuinfo: &str) -> &'static str {
    let has = |flag: &str| cpuinfo.split_ascii_whitespace().any(|word| word == flag);
    if has("amx_bf16") {
        "in hardware (AMX)"
    } else if has("avx512_bf16") {
        "in hardware (AVX-512)"
    } else if has("bf16") {
        "in hardware (ARM)"
    } else {
        "emulated: slower than float32"
    }
}

fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn free_disk(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_with_amx_computes_bf16_in_hardware() {
        assert_eq!(bf16("flags : sse2 avx512_bf16 amx_bf16"), "in hardware (AMX)");
        assert_eq!(bf16("flags : sse2 avx2"), "emulated: slower than float32");
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        assert_eq!(meminfo("MemTotal:       2048 kB\nMemFree: 1 kB", "MemTotal"), Some(2_097_152));
        assert_eq!(meminfo("", "MemTotal"), None);
    }
}
