//! What can go wrong between the program and the GPU, and what to do about it.

use cudarc::driver::sys::CUresult;

/// A failure of the driver, the GPU or a launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No libcuda on this machine.
    #[error("no NVIDIA driver found (libcuda.so): install the driver of your GPU (R535 or newer), or use the CPU")]
    NoDriver,
    /// The driver cannot load the kernels.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, the kernels need CUDA 12.2: install driver R535 or newer, or use the CPU",
        found / 1000, found % 1000 / 10
    )]
    OldDriver {
        /// What the driver says: 1000 · major + 10 · minor.
        found: i32,
    },
    /// The driver lists no such GPU.
    #[error(
        "GPU {ordinal} asked for, but the driver sees {count}: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU"
    )]
    NoGpu {
        /// The number asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU lacks instructions that the kernels use.
    #[error(
        "{name} has compute capability {major}.{minor}, the kernels need 8.0 (A100, RTX 30 and newer): \
         use another GPU or the CPU"
    )]
    OldGpu {
        /// The GPU's name.
        name: String,
        /// Compute capability, before the point.
        major: i32,
        /// Compute capability, after the point.
        minor: i32,
    },
    /// No cuBLASLt on this machine, where it was asked for.
    #[error(
        "no cuBLASLt found (looked for {names}): install NVIDIA's cuBLAS 12 and name its folder in LD_LIBRARY_PATH, \
         or take --gemm own"
    )]
    NoCublas {
        /// The names that were looked for.
        names: String,
    },
    /// The cuBLASLt that was found is not used.
    #[error(
        "cuBLASLt {found} found, 12.0 or newer is needed: put a newer one first in LD_LIBRARY_PATH, or take --gemm own"
    )]
    OldCublas {
        /// Its version.
        found: String,
    },
    /// The driver did not take a file of kernels.
    #[error("the driver cannot load the kernels of {module}: {log}")]
    Load {
        /// The operation whose kernels they are.
        module: &'static str,
        /// What the driver's compiler says.
        log: String,
    },
    /// A launch that the kernel or the GPU does not allow; nothing was launched.
    #[error("{kernel}: {reason}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Work that cannot be captured as a graph, or a graph that cannot be launched.
    #[error("the work cannot be one CUDA graph: {reason}")]
    Graph {
        /// Why not.
        reason: String,
    },
    /// A kernel's operand is on another device.
    #[error("{buffer} is not on {gpu}: upload it there first")]
    Elsewhere {
        /// The operand.
        buffer: String,
        /// The GPU's name.
        gpu: String,
    },
    /// The GPU has not enough memory left.
    #[error("the GPU has {free} of {total} bytes free, {requested} asked")]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
        /// Bytes that the driver calls free.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
    },
    /// A kernel failed or the GPU is gone: nothing more can be computed by this process.
    #[error(
        "the GPU stopped ({reason}), noticed at {call}: start the program again from its last checkpoint; \
         if it happens again, look for the cause in dmesg (Xid) and nvidia-smi"
    )]
    Lost {
        /// The driver's call that reported it, which comes after the one that caused it.
        call: &'static str,
        /// What the driver says.
        reason: String,
    },
    /// Any other failure of the driver.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The driver's call.
        call: &'static str,
        /// What the driver says.
        reason: String,
    },
}

/// The result of a call of the driver.
pub type CudaResult<T> = Result<T, CudaError>;

/// The driver's answer to `call`, as an error that says what it means.
pub(super) fn check(call: &'static str, answer: Result<(), cudarc::driver::DriverError>) -> CudaResult<()> {
    answer.map_err(|error| failure(call, error))
}

/// What a failed call means.
pub(super) fn failure(call: &'static str, error: cudarc::driver::DriverError) -> CudaError {
    use CUresult::*;
    let name = error.error_name().ok().map_or("an unknown error".into(), |name| name.to_string_lossy().into_owned());
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let reason = if text.is_empty() { name } else { format!("{name}: {text}") };
    match error.0 {
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_SYSTEM_NOT_READY => CudaError::Lost { call, reason },
        _ => CudaError::Driver { call, reason },
    }
}
