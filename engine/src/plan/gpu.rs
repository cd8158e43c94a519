//! GPUs as data, and what a kernel is estimated to take on one.

use kernels::device::{CudaResult, KernelStats};

/// What bounds kernels on a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Dense bf16 tensor-core operations a second, with sums in f32.
    pub flops: f64,
    /// Memory bytes a second.
    pub bandwidth: f64,
    /// Bytes a second from the host's memory, one way: PCIe 4.0 or 5.0 with 16 lanes.
    pub host_bandwidth: f64,
}

/// A GPU's limits, from its vendor's data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// The name users give.
    pub name: &'static str,
    /// The name on its data sheet.
    pub title: &'static str,
    /// Memory in bytes, as its driver reports it.
    pub memory_bytes: u64,
    /// Operations and bytes a second.
    pub peaks: Peaks,
}

const PCIE_4: f64 = 31.5e9;
const PCIE_5: f64 = 2.0 * PCIE_4;

/// The GPUs that `profile --gpu` knows.
pub const GPUS: [Gpu; 4] = [
    Gpu {
        name: "a100-40gb",
        title: "NVIDIA A100 40GB",
        memory_bytes: 42_405_855_232,
        peaks: Peaks { flops: 312e12, bandwidth: 1555e9, host_bandwidth: PCIE_4 },
    },
    Gpu {
        name: "a100-80gb",
        title: "NVIDIA A100 80GB",
        memory_bytes: 85_198_045_184,
        peaks: Peaks { flops: 312e12, bandwidth: 2039e9, host_bandwidth: PCIE_4 },
    },
    Gpu {
        name: "h100",
        title: "NVIDIA H100 SXM 80GB",
        memory_bytes: 85_029_158_912,
        peaks: Peaks { flops: 989e12, bandwidth: 3350e9, host_bandwidth: PCIE_5 },
    },
    Gpu {
        name: "rtx4090",
        title: "NVIDIA RTX 4090",
        memory_bytes: 25_393_692_672,
        peaks: Peaks { flops: 165e12, bandwidth: 1008e9, host_bandwidth: PCIE_4 },
    },
];

/// What a driver takes for itself: a context's half a gibibyte, about what R535 shows on an A100, the kernels' code and odd
/// pieces of its pool.
const DRIVER_BYTES: u64 = 768 << 20;

/// Seconds of a launch at least: no kernel is shorter, however little it does.
const LAUNCH: f64 = 4e-6;

/// Copies of offloaded weights, as [`OffloadedWeight`](kernels::weight::OffloadedWeight) counts them.
const UPLOAD: &str = "weight_upload";

/// Kernels that run outside the decoder layers.
const OUTSIDE: [&str; 6] =
    ["embedding", "position_embedding", "head_loss", "head_loss_and_gradients", "grad_norm", "adamw"];

/// What of its bound, the roofline, a kernel is assumed to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assumption {
    /// The share, from 0 to 1.
    pub share: f64,
    /// The reason, for all kernels that share it.
    pub why: &'static str,
}

/// Packed products do three things on one SM: for a step of 256×128×32, by the virtual GPU's counts of 256×512×384, tensor cores
/// take 1,024 cycles, shared memory 1,025 (128 bytes each), integers 1,270 (64 lanes each; PTX, of which machine code may need
/// less). All at once that is 0.8 of the peak, one after the other 0.31. Where an adapter lies inside, the products that form a
/// step's entries, 192 cycles for each 16 of the rank, are among the operations.
const PACKED: Assumption = Assumption {
    share: 0.5,
    why: "by counts 0.8 if tensor cores, shared memory and integers all overlap, 0.31 if none do; somewhat less than halfway",
};
const DENSE: Assumption = Assumption {
    share: 0.6,
    why: "own tensor-core kernels, three stages of copies; vendors' libraries reach 0.8 of the peak at these sizes",
};
const ATTENTION: Assumption = Assumption {
    share: 0.45,
    why: "exponentials between the products; FlashAttention-2's paper measured 0.6 to 0.7 of an A100's peak",
};
const ATTENTION_BACKWARD: Assumption = Assumption {
    share: 0.35,
    why: "scores are computed twice, for keys and for queries; FlashAttention-2's paper measured 0.5 to 0.6",
};
const HOST: Assumption = Assumption {
    share: 0.8,
    why: "pinned memory over 16 lanes of PCIe, beside the kernels: copies reach 0.75 to 0.85 of 31.5 GB/s, or of 63 from an H100 on",
};
const MEMORY: Assumption = Assumption {
    share: 0.8,
    why: "bound by memory, in whole sectors and once; copies reach 0.85 to 0.9 of a data sheet's bandwidth",
};

impl Gpu {
    /// The GPU of this name.
    pub fn find(name: &str) -> Option<Gpu> {
        GPUS.into_iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name))
    }

    /// What a process can have of its memory.
    pub fn usable_bytes(&self) -> u64 {
        self.memory_bytes - DRIVER_BYTES
    }
}

impl Peaks {
    /// Those of a GPU that is there, from its clocks; none where its driver names no clock. Of the bus to the host the driver says
    /// nothing: assumed are 16 lanes of PCIe 4.0 for compute capability 8, and of 5.0 for what is newer.
    ///
    /// # Errors
    /// The driver's.
    pub fn of(gpu: &kernels::device::Gpu) -> CudaResult<Option<Peaks>> {
        let (flops, bandwidth) = (gpu.peak_flops()?, gpu.peak_bandwidth()?);
        let host_bandwidth = if gpu.compute_capability()?.0 < 9 { PCIE_4 } else { PCIE_5 };
        Ok((flops > 0.0 && bandwidth > 0.0).then_some(Peaks { flops, bandwidth, host_bandwidth }))
    }

    /// The least seconds that a kernel's operations and bytes can take (Williams et al. 2009, the roofline model): the
    /// larger of compute and memory time, both at their peaks.
    pub fn roofline_seconds(&self, stats: &KernelStats) -> f64 {
        let bytes = (stats.bytes_read + stats.bytes_written) as f64;
        if stats.kernel == UPLOAD {
            return bytes / self.host_bandwidth;
        }
        (stats.flops as f64 / self.flops).max(bytes / self.bandwidth)
    }

    /// The seconds of a step whose kernels take what `of` says, where the weights of this share of the decoder layers, from 0 to 1,
    /// are offloaded. Two places take turns, so that a weight is on its way while kernels of its own layer or the one before run:
    /// beside other layers', the head's or the optimizer's, nothing is.
    pub fn step_seconds(&self, kernels: &[KernelStats], offloaded: f64, of: impl Fn(&KernelStats) -> f64) -> f64 {
        let sum =
            |which: &dyn Fn(&str) -> bool| -> f64 { kernels.iter().filter(|stats| which(stats.kernel)).map(&of).sum() };
        let (uploads, others) = (sum(&|kernel| kernel == UPLOAD), sum(&|kernel| kernel != UPLOAD));
        let beside = offloaded * sum(&|kernel| kernel != UPLOAD && !OUTSIDE.contains(&kernel));
        others + (uploads - beside).max(0.0)
    }

    /// The seconds that a kernel is estimated to take: its bound over the share of it that [`assumed`] says, and what its
    /// launches take at least. Never a measurement.
    pub fn estimated_seconds(&self, stats: &KernelStats) -> f64 {
        (self.roofline_seconds(stats) / assumed(stats.kernel).share).max(LAUNCH * stats.calls as f64)
    }
}

/// The share of its bound that a kernel is assumed to reach.
pub fn assumed(kernel: &str) -> Assumption {
    match kernel {
        "linear_forward" | "linear_backward_input" => PACKED,
        // Of both, nearly all is one plain product; what it is masked with and projected on is among the operations.
        "linear_weight_gradient" | "adapted_gradients" | "head_loss" | "head_loss_and_gradients" => DENSE,
        "attention_forward" => ATTENTION,
        UPLOAD => HOST,
        "attention_backward" => ATTENTION_BACKWARD,
        _ => MEMORY,
    }
}
