//! GPUs as data, and what a kernel is estimated to take on one.

use kernels::device::{CudaResult, KernelStats};

/// What bounds kernels on a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Dense bf16 tensor-core operations a second, with sums in f32.
    pub flops: f64,
    /// The same of one multiprocessor in a cycle.
    pub flops_per_cycle: f64,
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
        peaks: Peaks { flops: 312e12, flops_per_cycle: 2048.0, bandwidth: 1555e9, host_bandwidth: PCIE_4 },
    },
    Gpu {
        name: "a100-80gb",
        title: "NVIDIA A100 80GB",
        memory_bytes: 85_198_045_184,
        peaks: Peaks { flops: 312e12, flops_per_cycle: 2048.0, bandwidth: 2039e9, host_bandwidth: PCIE_4 },
    },
    Gpu {
        name: "h100",
        title: "NVIDIA H100 SXM 80GB",
        memory_bytes: 85_029_158_912,
        peaks: Peaks { flops: 989e12, flops_per_cycle: 4096.0, bandwidth: 3350e9, host_bandwidth: PCIE_5 },
    },
    Gpu {
        name: "rtx4090",
        title: "NVIDIA RTX 4090",
        memory_bytes: 25_393_692_672,
        peaks: Peaks { flops: 165e12, flops_per_cycle: 512.0, bandwidth: 1008e9, host_bandwidth: PCIE_4 },
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

/// What a kernel does on tensor cores: what bounds it is how fast its warps issue all else, so that the operations of a
/// multiprocessor's cycle are what carries from one GPU to another, up to a share of what its tensor cores could do.
struct Products {
    flops_per_cycle: f64,
    most: f64,
    why: &'static str,
}

impl Products {
    /// `share` of the peak was measured on an H100, whose tensor cores do 4,096 operations of a multiprocessor's cycle, by
    /// `bench --model opt-2.7b --batch 1 --seq-len 2048` (benches/README.md).
    const fn on_h100(share: f64, most: f64, why: &'static str) -> Products {
        Products { flops_per_cycle: share * 4096.0, most, why }
    }
}

const PACKED: Products = Products::on_h100(
    0.138,
    0.5,
    "products of packed weights: operations of a multiprocessor's cycle, measured on an H100 with 2,048 tokens",
);
const HEAD: Products = Products::on_h100(
    0.079,
    0.6,
    "the head's, from f16: operations of a multiprocessor's cycle, measured on an H100 with 2,048 tokens",
);
const ATTENTION: Products = Products::on_h100(
    0.185,
    0.45,
    "attention, exponentials between its products: operations of a multiprocessor's cycle, measured on an H100 at 2,048 tokens",
);
const ATTENTION_BACKWARD: Products = Products::on_h100(
    0.153,
    0.35,
    "scores computed twice, for keys and for queries: operations of a multiprocessor's cycle, measured on an H100 at 2,048 tokens",
);
const DENSE: Assumption = Assumption {
    share: 0.6,
    why: "products of weights that train, of which no kernel was measured; vendors' libraries reach 0.8 of the peak at these sizes",
};
const HOST: Assumption = Assumption {
    share: 0.8,
    why: "pinned memory over 16 lanes of PCIe, beside the kernels: copies reach 0.75 to 0.85 of 31.5 GB/s, or of 63 from an H100 on",
};
const MAPS: Assumption = Assumption {
    share: 0.7,
    why: "read once and written once: measured on an H100 with 2,048 tokens, 0.56 to 0.82 of its bandwidth",
};
const SUMS: Assumption = Assumption {
    share: 0.25,
    why: "sums of rows and columns: measured on an H100 with 2,048 tokens, 0.15 to 0.33, with 8,192 0.45 to 0.65",
};
const ADAPTERS: Assumption = Assumption {
    share: 0.07,
    why: "adapters' thin products, 50 µs each whatever they move: measured on an H100 with 2,048 tokens, 0.07, with 8,192 0.24",
};
const ADAPTER_GRADIENTS: Assumption =
    Assumption { share: 0.18, why: "adapters' gradients: measured on an H100 with 2,048 tokens, with 8,192 0.45" };

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
        let (flops, bandwidth, flops_per_cycle) = (gpu.peak_flops()?, gpu.peak_bandwidth()?, gpu.tensor_operations()?);
        let host_bandwidth = if gpu.compute_capability()?.0 < 9 { PCIE_4 } else { PCIE_5 };
        Ok((flops > 0.0 && bandwidth > 0.0).then_some(Peaks { flops, flops_per_cycle, bandwidth, host_bandwidth }))
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

    /// The seconds that a kernel is estimated to take: its bound over the share of it that [`Peaks::assumed`] says, and what its
    /// launches take at least. Never a measurement of this GPU.
    pub fn estimated_seconds(&self, stats: &KernelStats) -> f64 {
        (self.roofline_seconds(stats) / self.assumed(stats.kernel).share).max(LAUNCH * stats.calls as f64)
    }

    /// The share of its bound that a kernel is assumed to reach.
    pub fn assumed(&self, kernel: &str) -> Assumption {
        let products = match kernel {
            "linear_forward" | "linear_backward_input" => PACKED,
            "head_loss" | "head_loss_and_gradients" => HEAD,
            "attention_forward" => ATTENTION,
            "attention_backward" => ATTENTION_BACKWARD,
            // Of both, nearly all is one plain product; what it is masked with and projected on is among the operations.
            "linear_weight_gradient" | "adapted_gradients" => return DENSE,
            "lora_down" => return ADAPTERS,
            "lora_gradients" => return ADAPTER_GRADIENTS,
            UPLOAD => return HOST,
            "bias_gradient" | "grad_norm" | "embedding" => return SUMS,
            kernel if kernel.contains("norm_") => return SUMS,
            _ => return MAPS,
        };
        let share = (products.flops_per_cycle / self.flops_per_cycle).min(products.most);
        Assumption { share, why: products.why }
    }
}
