//! `convert`: a model in the other format, bit for bit.

use std::path::PathBuf;

use engine::checkpoint::{ModelFolder, OutputFolder};
use engine::model;

use crate::error::{Failure, print};
use crate::fetch;
use crate::format::Format;
use crate::progress::Console;
use crate::tables;

/// Write a model in another format: packed, where pruned matrices lose their zeros, or dense again as transformers loads it. No
/// bit of a weight changes, either way.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder of either format, or a model of the hub, such as facebook/opt-1.3b or facebook/opt-1.3b@REVISION.
    #[arg(long, value_name = "DIR|ID")]
    model: PathBuf,
    /// Write the converted model to this new folder.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How to store weights.
    #[arg(long, value_enum, value_name = "FORMAT")]
    out_format: Format,
    /// Say nothing but the result and warnings.
    #[arg(long)]
    quiet: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    OutputFolder::check(&args.out)?;
    let folder = ModelFolder::open(fetch::model(&Console::new(args.quiet), &args.model, true)?)?;
    let out = OutputFolder::create(&args.out)?;
    model::convert(&folder, &out, args.out_format.into())?;
    out.commit()?;
    let written = ModelFolder::open(&args.out)?;
    let weights = |folder: &ModelFolder| {
        let (mut bytes, mut packed) = (0, 0);
        for info in folder.tensors() {
            bytes += info.size_bytes();
            packed += usize::from(info.is_packed());
        }
        vec![tables::bytes(bytes as u64), format!("{packed} matrices packed")]
    };
    let row = |name: &str, folder: &ModelFolder| [vec![name.to_string()], weights(folder)].concat();
    print(&format!("{}\n{}", args.out.display(), tables::columns(&[row("before", &folder), row("after", &written)])))
}
