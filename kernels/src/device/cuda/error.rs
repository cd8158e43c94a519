//! What can go wrong between the program and the GPU, and what to do about it.

use cudarc::driver::DriverError;
use cudarc::driver::result;
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
    /// The driver is there and does not start.
    #[error("the NVIDIA driver does not start ({reason}): {remedy}, or use the CPU")]
    NotStarted {
        /// What it says.
        reason: String,
        /// What most often helps.
        remedy: &'static str,
    },
    /// The GPU takes no program, or no further one.
    #[error(
        "GPU {ordinal} takes no further program ({reason}): in exclusive mode it serves one at a time, in prohibited mode none \
         (nvidia-smi shows both); wait, use another GPU, or use the CPU"
    )]
    Taken {
        /// Its number, from 0.
        ordinal: usize,
        /// What the driver says.
        reason: String,
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
    /// The GPU has not enough memory left for a buffer.
    #[error("the GPU has {free} of {total} bytes free, {requested} asked; {}", LESS)]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
        /// Bytes that the driver calls free.
        free: usize,
        /// Bytes of the GPU.
        total: usize,
    },
    /// No memory for what the driver or a library takes for itself, or for pinned memory of the host.
    #[error("{call}: out of memory{}; {remedy}", free_of(*free))]
    NoMemory {
        /// The call that asked for it.
        call: &'static str,
        /// Bytes of the GPU that are free, and all of them, where the driver tells.
        free: Option<(usize, usize)>,
        /// What needs less.
        remedy: &'static str,
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

/// What a program can do that has not enough of a GPU's memory.
const LESS: &str =
    "a smaller --batch or --seq-len, --checkpointing on, --offload auto or a higher --sparsity needs less";

fn free_of(free: Option<(usize, usize)>) -> String {
    free.map_or(String::new(), |(free, total)| format!(", {free} of the GPU's {total} bytes are free"))
}

/// The driver's answer to `call`, as an error that says what it means.
pub(super) fn check(call: &'static str, answer: Result<(), DriverError>) -> CudaResult<()> {
    answer.map_err(|error| failure(call, error))
}

/// What the driver says, by name and in its words.
fn reason(error: DriverError) -> String {
    let name = error.error_name().ok().map_or("an unknown error".into(), |name| name.to_string_lossy().into_owned());
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    if text.is_empty() { name } else { format!("{name}: {text}") }
}

/// What a failed call means.
pub(super) fn failure(call: &'static str, error: DriverError) -> CudaError {
    use CUresult::*;
    match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => no_memory(call),
        // What a GPU that has left the bus answers is most often the last: an unknown error.
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
        | CUDA_ERROR_SYSTEM_NOT_READY
        | CUDA_ERROR_UNKNOWN => CudaError::Lost { call, reason: reason(error) },
        _ => CudaError::Driver { call, reason: reason(error) },
    }
}

/// What it means where GPU `ordinal` is being opened: nothing has been computed that could be lost.
pub(super) fn opening(call: &'static str, ordinal: usize, error: DriverError) -> CudaError {
    use CUresult::*;
    let remedy = match error.0 {
        CUDA_ERROR_OUT_OF_MEMORY => return no_memory(call),
        CUDA_ERROR_DEVICE_UNAVAILABLE => return CudaError::Taken { ordinal, reason: reason(error) },
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "its library and its kernel module are of different versions, most often since an update: reboot, or install the \
             driver anew"
        }
        CUDA_ERROR_SYSTEM_NOT_READY => {
            "GPUs joined by NVSwitch wait for the fabric manager: start the service nvidia-fabricmanager of the driver's version"
        }
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "its library is of CUDA's compatibility package, which this GPU does not take: take that folder out of LD_LIBRARY_PATH"
        }
        CUDA_ERROR_STUB_LIBRARY => "libcuda.so is a toolkit's stub: take its folder out of LD_LIBRARY_PATH",
        CUDA_ERROR_UNKNOWN => {
            "see whether nvidia-smi works; load the module nvidia_uvm (nvidia-modprobe -u; in a container, give it /dev/nvidia-uvm), \
             and reboot where that does not help"
        }
        _ if call == "cuInit" => {
            "see whether nvidia-smi works, and what dmesg says of the GPU (Xid); reboot where neither helps"
        }
        _ => return failure(call, error),
    };
    CudaError::NotStarted { reason: format!("{call}: {}", reason(error)), remedy }
}

/// `call` found no memory: the host's, or the GPU's for something other than a buffer.
pub(super) fn no_memory(call: &'static str) -> CudaError {
    // Where a context is bound, the driver knows.
    let free = result::mem_get_info().ok();
    let (free, remedy) = match call {
        "cuMemHostAlloc" => (
            None,
            "the host has no more memory that can be pinned: offload fewer layers (--offload N), raise the limit of locked memory \
             (ulimit -l), or end other programs",
        ),
        "cuDevicePrimaryCtxRetain" => (
            free,
            "other programs have the GPU's memory (nvidia-smi shows them): end one, use another GPU, or use the CPU",
        ),
        "cuGraphInstantiate" | "cuGraphLaunch" => (free, "--cuda-graphs off needs less, and so does a smaller --batch"),
        call if call.starts_with("cublas") => (free, "--gemm own needs less, and so does a smaller --batch"),
        _ => (free, LESS),
    };
    CudaError::NoMemory { call, free, remedy }
}
