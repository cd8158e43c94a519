//! Every CUDA source to its PTX.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::nvrtc::Nvrtc;
use crate::ptxas::{TARGETS, Usage, assemble};
use crate::toolchain::Toolchain;

/// One translation unit; both paths are relative to the workspace.
struct Unit {
    source: PathBuf,
    ptx: PathBuf,
    /// Whether users' GPUs run it: a spill there is a fault. Test programs call functions through pointers and themselves, for
    /// which the calling convention alone saves registers in memory.
    ships: bool,
}

/// Compiles all, and writes the PTX or compares it with what is there.
pub fn run(root: &Path, check: bool) -> Result<()> {
    let units = units(root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let tools = Toolchain::get(&target)?;
    let nvrtc = Nvrtc::load(&tools.nvrtc)?;
    let mut faults = Vec::new();
    println!(
        "{:<44} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "registers a thread", "sm_80", "sm_86", "sm_89", "sm_90", "shared"
    );
    for unit in &units {
        let ptx = match compile(&nvrtc, &tools, root, unit) {
            Ok(ptx) => ptx,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        let committed = std::fs::read_to_string(root.join(&unit.ptx)).unwrap_or_default();
        if check && committed != ptx {
            faults.push(format!(
                "{} is not what {} compiles to: run `cargo xtask ptx` and commit it",
                unit.ptx.display(),
                unit.source.display()
            ));
        } else if committed != ptx {
            write(&root.join(&unit.ptx), &ptx)?;
        }
        // What was just compiled, whether or not it is what is committed.
        let fresh = target.join("cuda-toolchain").join("unit.ptx");
        write(&fresh, &ptx)?;
        let usages = TARGETS.iter().map(|target| assemble(&tools.ptxas, &fresh, target)).collect::<Result<Vec<_>>>();
        match usages {
            Ok(usages) => report(unit, &usages, &mut faults),
            Err(fault) => faults.push(fault.replace(&fresh.display().to_string(), &unit.ptx.display().to_string())),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// One row a kernel, and a fault for each that ships and spills.
fn report(unit: &Unit, usages: &[Vec<Usage>], faults: &mut Vec<String>) {
    for first in &usages[0] {
        print!("{:<44}", first.kernel);
        for (target, kernels) in TARGETS.iter().zip(usages) {
            let Some(usage) = kernels.iter().find(|usage| usage.kernel == first.kernel) else {
                print!(" {:>8}", "?");
                faults.push(format!("{}: ptxas lists no {} for {target}", unit.source.display(), first.kernel));
                continue;
            };
            print!(" {:>8}", usage.registers);
            if unit.ships && usage.spills > 0 {
                faults.push(format!(
                    "{}: {} spills {} bytes a thread on {target}: it needs fewer live values or a smaller block",
                    unit.source.display(),
                    usage.kernel,
                    usage.spills
                ));
            }
        }
        println!(" {:>8}", first.shared);
    }
}

/// `kernels/src/ops/OP/OP.cu` → `kernels/ptx/OP.ptx`; what runs in tests only → PTX beside it.
fn units(root: &Path) -> Result<Vec<Unit>> {
    let mut units = Vec::new();
    for folder in files(&root.join("kernels/src/ops"))? {
        for source in files(&folder)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu")) {
            let ptx = Path::new("kernels/ptx").join(source.file_stem().unwrap_or_default()).with_extension("ptx");
            units.push(Unit { source: relative(root, &source), ptx, ships: true });
        }
    }
    for folder in ["tests/virtual-gpu/programs", "tests/virtual-cublas/src"] {
        for source in files(&root.join(folder))? {
            if source.extension().is_some_and(|e| e == "cu") {
                let source = relative(root, &source);
                units.push(Unit { ptx: source.with_extension("ptx"), source, ships: false });
            }
        }
    }
    Ok(units)
}

/// The entries of a folder in order; none if it is no folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let unreadable = |e| format!("cannot read {}: {e}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(unreadable)?;
    paths.sort();
    Ok(paths)
}

fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn compile(nvrtc: &Nvrtc, tools: &Toolchain, root: &Path, unit: &Unit) -> Result<String> {
    let source = std::fs::read_to_string(root.join(&unit.source))
        .map_err(|e| format!("cannot read {}: {e}", unit.source.display()))?;
    let options = [
        "--gpu-architecture=compute_80".into(),
        "--std=c++17".into(),
        // `.loc` lines: faults and profiles name a line of the CUDA source.
        "--generate-line-info".into(),
        format!("--include-path={}", root.join("kernels/src/ops").display()),
        format!("--include-path={}", tools.headers.display()),
        format!("--include-path={}", tools.compiler_headers.display()),
    ];
    let toolkit = [tools.headers.as_path(), &tools.compiler_headers];
    Ok(portable(&nvrtc.compile(&unit.source.to_string_lossy(), &source, &options)?, root, &toolkit))
}

/// PTX that is the same on every machine and no larger than it must be: source files by their names within the workspace,
/// headers of the toolkit, wherever it is installed, by their file's alone, without sizes and times;
/// of `.loc` the line, without the names of inlined functions, which are half of the text; calls without the number that
/// counts them over all that the compiler has compiled since it was loaded.
fn portable(ptx: &str, root: &Path, toolkit: &[&Path]) -> String {
    let mut out = String::with_capacity(ptx.len());
    let mut lines = ptx.trim_end().lines();
    while let Some(line) = lines.next() {
        let words = line.trim_start();
        if let Some((number, rest)) = words.strip_prefix(".file").and_then(|rest| rest.split_once('"')) {
            let path = Path::new(rest.split('"').next().unwrap_or_default());
            let own = path.strip_prefix(root).ok().filter(|_| !toolkit.iter().any(|headers| path.starts_with(headers)));
            let path = match own {
                None if path.is_absolute() => Path::new(path.file_name().unwrap_or_default()),
                own => own.unwrap_or(path),
            };
            out.push_str(&format!(".file {} \"{}\"", number.trim(), path.display()));
        } else if words.starts_with(".section") && words.contains(".debug_str") {
            lines.by_ref().take_while(|line| line.trim() != "}").for_each(drop);
            continue;
        } else if words.starts_with(".loc") {
            out.push_str(line.split(", function_name").next().unwrap_or_default());
        } else if let Some((brace, _)) = line.split_once(" // callseq ") {
            out.push_str(brace);
        } else if is_unused_constant(words, ptx) {
            continue;
        } else {
            out.push_str(line.trim_end());
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// True for a variable of the file's own that nothing reads: NVRTC emits the `constexpr`s of some sources.
fn is_unused_constant(line: &str, ptx: &str) -> bool {
    let Some((declaration, _)) = line.strip_prefix(".global").and_then(|rest| rest.split_once([';', '=', '['])) else {
        return false;
    };
    declaration.split_whitespace().last().is_some_and(|name| ptx.matches(name).count() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_within_the_workspace_and_nothing_is_there_that_no_one_reads() {
        let ptx = "\
.version 8.2
.global .align 4 .u32 UNUSED = 3;
.global .align 8 .b8 table[8] = {1};
\t.loc\t1 54 9, function_name $L__info_string0, inlined_at 1 60 9
\t{ // callseq 27, 0
ld.global.u8 %rs1, [table];
\t} // callseq 27
\t.file\t1 \"/home/me/perp/kernels/a.cuh\", 1700000000, 420
.file 2 \"/opt/x/cuda_fp16.hpp\"
.file 3 \"/home/me/perp/target/cuda/include/mma.h\"
\t.section\t.debug_str
\t{
$L__info_string0:
.b8 95
\t}
";
        let want = "\
.version 8.2
.global .align 8 .b8 table[8] = {1};
\t.loc\t1 54 9
\t{
ld.global.u8 %rs1, [table];
\t}
.file 1 \"kernels/a.cuh\"
.file 2 \"cuda_fp16.hpp\"
.file 3 \"mma.h\"
";
        let toolkit = Path::new("/home/me/perp/target/cuda/include");
        assert_eq!(portable(ptx, Path::new("/home/me/perp"), &[toolkit]), want);
    }
}
