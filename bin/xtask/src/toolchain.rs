//! The CUDA compiler, its headers and its assembler, from pinned Python wheels: no toolkit and no GPU is needed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

const REQUIREMENTS: &str = include_str!("../toolchain.txt");

/// Where the tools are.
pub struct Toolchain {
    pub nvrtc: PathBuf,
    pub headers: PathBuf,
    /// Headers that come with the compiler: the fragments of `mma.h`.
    pub compiler_headers: PathBuf,
    pub ptxas: PathBuf,
}

impl Toolchain {
    /// The tools under `target`, installed there the first time. pip checks each wheel against its sha256 before it unpacks.
    pub fn get(target: &Path) -> Result<Toolchain> {
        let home = target.join("cuda-toolchain");
        let stamp = home.join("toolchain.txt");
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == REQUIREMENTS) {
            return Ok(Toolchain::at(&home));
        }
        if home.exists() {
            std::fs::remove_dir_all(&home).map_err(|e| format!("cannot remove {}: {e}", home.display()))?;
        }
        std::fs::create_dir_all(&home).map_err(|e| format!("cannot create {}: {e}", home.display()))?;
        let list = home.join("requirements.txt");
        std::fs::write(&list, REQUIREMENTS).map_err(|e| format!("cannot write {}: {e}", list.display()))?;
        install(&list, &home)?;
        let tools = Toolchain::at(&home);
        for tool in [&tools.nvrtc, &tools.headers, &tools.compiler_headers, &tools.ptxas] {
            if !tool.exists() {
                return Err(format!("the wheels of bin/xtask/toolchain.txt hold no {}", tool.display()));
            }
        }
        // Written last: an installation that was cut off starts anew.
        std::fs::write(&stamp, REQUIREMENTS).map_err(|e| format!("cannot write {}: {e}", stamp.display()))?;
        Ok(tools)
    }

    fn at(home: &Path) -> Toolchain {
        let home = home.join("nvidia");
        Toolchain {
            nvrtc: home.join("cuda_nvrtc/lib/libnvrtc.so.12"),
            headers: home.join("cuda_runtime/include"),
            compiler_headers: home.join("cuda_nvcc/include"),
            ptxas: home.join("cuda_nvcc/bin/ptxas"),
        }
    }
}

fn install(list: &Path, home: &Path) -> Result<()> {
    eprintln!("installing the CUDA compiler of bin/xtask/toolchain.txt in {}", home.display());
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"])
        .args(["--require-hashes", "--no-deps", "--only-binary=:all:", "--target"])
        .arg(home)
        .arg("--requirement")
        .arg(list)
        .output()
        .map_err(|e| {
            format!("cannot run python3 ({e}): the CUDA compiler comes as Python wheels; install python3 and pip")
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "pip could not install the CUDA compiler (Linux on x86-64, python3 with pip and a network are needed):\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
