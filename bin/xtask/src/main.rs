//! Chores of developers, run as `cargo xtask CHORE`.
//!
//! `ptx` compiles every CUDA source to the PTX that is committed beside it, which programs embed: users need a driver,
//! no toolkit. `ptx --check` changes nothing and fails where PTX and source differ, or where a kernel spills registers on
//! a GPU that we support.

mod nvrtc;
mod ptx;
mod ptxas;
mod toolchain;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask ptx [--check]

  ptx          compile the CUDA sources of kernels/ and of what tests run to PTX, and assemble it
  ptx --check  fail if the committed PTX is not what the sources give, or if a kernel spills registers";

/// What went wrong, and what to do about it.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace holds bin/xtask");
    let done = match arguments[..] {
        ["ptx"] => ptx::run(root, false),
        ["ptx", "--check"] => ptx::run(root, true),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
