//! `--gemm`: who multiplies dense matrices on a GPU.

use clap::{Args, ValueEnum};
use kernels::device::Gemm;
use kernels::{Backend, Device};

use crate::error::Failure;

/// Who multiplies dense matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// cuBLASLt where it is found and weights train; own kernels otherwise.
    Auto,
    /// Own kernels.
    Own,
    /// cuBLASLt wherever it can.
    Cublas,
}

/// Dense products on a GPU.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "GPU")]
pub struct GemmArgs {
    /// Who computes products with dense weights on a GPU: own (the kernels of this program), cublas (NVIDIA's cuBLASLt 12 or
    /// newer, wherever it can) or auto (cuBLASLt where it is found, for weights that train; a plan for another GPU takes it as
    /// found). Packed weights and adapters are always multiplied by own kernels. Each gives its own bits, and the same in every
    /// run.
    #[arg(long = "gemm", value_enum, default_value = "auto", value_name = "WHO")]
    pub choice: Choice,
}

impl GemmArgs {
    /// As devices know it.
    pub fn gemm(self) -> Gemm {
        match self.choice {
            Choice::Auto => Gemm::Auto,
            Choice::Own => Gemm::Own,
            Choice::Cublas => Gemm::Cublas,
        }
    }

    /// Fails where the library is asked for on a processor.
    pub fn check(self, backend: Backend) -> Result<(), Failure> {
        match (self.choice, backend) {
            (Choice::Cublas, Backend::Cpu) => {
                Err(Failure::usage("--gemm cublas multiplies on a GPU, and this is for the processor; leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// The name that processes started by this one take.
    pub fn name(self) -> String {
        self.choice.to_possible_value().expect("no choice is hidden").get_name().into()
    }
}

/// What a device takes from the library, in words; nothing where that is nothing.
pub fn title(device: &Device) -> Option<String> {
    let version = device.gpu()?.cublas_version()?;
    match device.gemm() {
        Gemm::Own => None,
        Gemm::Auto => Some(format!("cuBLASLt {version} for products of weights that train")),
        Gemm::Cublas => Some(format!("cuBLASLt {version} for dense products")),
    }
}
