//! What the assembler says of a kernel on each GPU: registers, memory, spills.

use std::path::Path;
use std::process::Command;

use crate::Result;

/// The GPUs that every kernel must assemble for: A100; RTX 30; RTX 40 and L4; H100.
pub const TARGETS: [&str; 4] = ["sm_80", "sm_86", "sm_89", "sm_90"];

/// What one kernel needs.
#[derive(Debug, Default, PartialEq)]
pub struct Usage {
    pub kernel: String,
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// Local memory in bytes a thread.
    pub stack: u32,
    /// Bytes a thread that are stored and loaded again for lack of registers.
    pub spills: u32,
}

/// Assembles `ptx` for `target` and throws the machine code away.
pub fn assemble(ptxas: &Path, ptx: &Path, target: &str) -> Result<Vec<Usage>> {
    let output = Command::new(ptxas)
        .args(["-v", "--warn-on-spills", "-arch", target, "-o", "/dev/null"])
        .arg(ptx)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", ptxas.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} does not assemble for {target}:\n{}", ptx.display(), log.trim()));
    }
    Ok(parse(&log))
}

fn parse(log: &str) -> Vec<Usage> {
    let mut kernels: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some(name) = line.split_once("Compiling entry function '").and_then(|(_, rest)| rest.split('\'').next())
        {
            kernels.push(Usage { kernel: name.into(), ..Usage::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let before = |words: &str| number_before(line, words);
        if let Some(stack) = before(" bytes stack frame") {
            kernel.stack += stack;
            kernel.spills += before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(" registers") {
            kernel.registers = registers;
            kernel.shared = before(" bytes smem").unwrap_or(0);
        }
    }
    kernels
}

/// The number right before `words`.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = line.split_once(words)?.0;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_shared_memory_and_spills_are_read_from_the_log() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers, 400 bytes cmem[0]
";
        let one = Usage { kernel: "one".into(), registers: 255, shared: 1024, stack: 16, spills: 20 };
        let two = Usage { kernel: "two".into(), registers: 9, ..Usage::default() };
        assert_eq!(parse(log), [one, two]);
    }
}
