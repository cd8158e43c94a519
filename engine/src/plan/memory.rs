//! How much memory this machine can still give, and how much this process has had.

use std::fs;

/// Bytes that a new process can use without swapping: the kernel's estimate, or what is left of the control group's limit
/// where that is less. `None` where the system tells neither.
pub fn available_memory() -> Option<u64> {
    [system(), control_group()].into_iter().flatten().min()
}

/// The most bytes this process has had resident in memory, where the system tells.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

fn system() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn control_group() -> Option<u64> {
    let read =
        |name: &str| -> Option<u64> { fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok() };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}
