//! In which format weights are written.

use clap::ValueEnum;
use engine::checkpoint::WeightFormat;

/// The format of a written model.
#[derive(clap::Args, Clone, Debug)]
pub struct FormatArgs {
    /// How --out stores weights [default: hf].
    #[arg(long, value_enum, value_name = "FORMAT", requires = "out", help_heading = "Machine and output")]
    out_format: Option<Format>,
}

/// A format of weights, as users name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Dense, zeros as zeros: what transformers loads.
    #[default]
    Hf,
    /// Pruned matrices without their zeros, 9 bits a weight at half density in 16 bits: for this program, which multiplies them
    /// where they stand. `convert` turns one into the other.
    Packed,
}

impl FormatArgs {
    /// The format asked for.
    pub fn weights(&self) -> WeightFormat {
        self.out_format.unwrap_or_default().into()
    }
}

impl From<Format> for WeightFormat {
    fn from(format: Format) -> WeightFormat {
        match format {
            Format::Hf => WeightFormat::HuggingFace,
            Format::Packed => WeightFormat::Packed,
        }
    }
}
