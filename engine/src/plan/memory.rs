//! How much memory this machine can still give.

use std::fs;

/// Bytes that a new process can use without swapping: the kernel's estimate, or what is left of the control group's limit
/// where that is less. `None` where the system tells neither.
pub fn available_memory() -> Option<u64> {
    [system(), control_group()].into_iter().flatten().min()
}

fn system() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn control_group() -> Option<u64> {
    let read =
        |name: &str| -> Option<u64> { fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok() };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}
