//! GPUs as data: what a roofline estimate needs.

use kernels::device::KernelStats;

/// A GPU's limits, from its vendor's data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// The name users give.
    pub name: &'static str,
    /// The name on its data sheet.
    pub title: &'static str,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Dense bf16 tensor-core operations a second.
    pub flops: f64,
    /// Memory bytes a second.
    pub bandwidth: f64,
}

const GIB: u64 = 1 << 30;

/// The GPUs that `profile --gpu` knows.
pub const GPUS: [Gpu; 4] = [
    Gpu { name: "a100-40gb", title: "NVIDIA A100 40GB", memory_bytes: 40 * GIB, flops: 312e12, bandwidth: 1555e9 },
    Gpu { name: "a100-80gb", title: "NVIDIA A100 80GB", memory_bytes: 80 * GIB, flops: 312e12, bandwidth: 2039e9 },
    Gpu { name: "h100", title: "NVIDIA H100 SXM 80GB", memory_bytes: 80 * GIB, flops: 989e12, bandwidth: 3350e9 },
    Gpu { name: "rtx4090", title: "NVIDIA RTX 4090", memory_bytes: 24 * GIB, flops: 165e12, bandwidth: 1008e9 },
];

impl Gpu {
    /// The GPU of this name.
    pub fn find(name: &str) -> Option<Gpu> {
        GPUS.into_iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name))
    }

    /// The least seconds that a kernel's operations and bytes can take (Williams et al. 2009, the roofline model): the
    /// larger of compute and memory time, both at their peaks. An estimate from below, never a measurement.
    pub fn roofline_seconds(&self, stats: &KernelStats) -> f64 {
        let compute = stats.flops as f64 / self.flops;
        let memory = (stats.bytes_read + stats.bytes_written) as f64 / self.bandwidth;
        compute.max(memory)
    }
}
