//! What a GPU can do at most, by its name and its clocks.

use super::error::CudaResult;
use super::{Attribute, Gpu};

impl Gpu {
    /// Its compute capability: before the point, and after it.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> CudaResult<(usize, usize)> {
        Ok((
            self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    /// The most operations a second that its tensor cores do in 16 bits with sums in f32, dense; a multiply-add is two. From its
    /// multiprocessors, the highest clock that the driver names, and what NVIDIA publishes of GPUs like it; 0 where the driver
    /// names no clock. What is computed in f32 without tensor cores has a lower peak.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_flops(&self) -> CudaResult<f64> {
        let hertz = 1e3 * self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f64;
        Ok(self.tensor_operations()? * hertz * self.multiprocessors as f64)
    }

    /// The same of one multiprocessor in a cycle.
    ///
    /// # Errors
    /// The driver's.
    pub fn tensor_operations(&self) -> CudaResult<f64> {
        Ok(tensor_operations(&self.name, self.compute_capability()?))
    }

    /// The most bytes a second between it and its memory: two bits a pin and cycle; 0 where the driver names no clock.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_bandwidth(&self) -> CudaResult<f64> {
        let hertz = 1e3 * self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? as f64;
        let bits = self.context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? as f64;
        Ok(2.0 * hertz * bits / 8.0)
    }
}

/// Operations of one multiprocessor in a cycle, as published peaks have them: products of 16 bits on tensor cores, dense, with sums
/// in f32. From compute 8.6 on the same multiprocessor sums in f32 at full rate in professional parts, and at half of it in GeForce
/// ones; and in the L40, of which NVIDIA says 181 TFLOP/s, and 362 of the L40S. Assumed: that all GeForce parts are alike in this,
/// and that what is newer than 9.0 and no relation of theirs does what B200 does.
fn tensor_operations(name: &str, capability: (usize, usize)) -> f64 {
    let halved = name.contains("GeForce") || name.ends_with(" L40");
    match capability {
        (8, 0 | 7) => 2048.0,
        (8 | 12, _) if halved => 512.0,
        (8 | 12, _) => 1024.0,
        (9, _) => 4096.0,
        _ => 8192.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiprocessors, boost clock in MHz and TFLOP/s of data sheets and architecture papers: bf16 or f16, dense, sums in f32.
    #[test]
    fn peaks_are_the_published_ones() {
        for (name, capability, multiprocessors, megahertz, published) in [
            ("NVIDIA A100-SXM4-40GB", (8, 0), 108.0, 1410.0, 312.0),
            ("NVIDIA A30", (8, 0), 56.0, 1440.0, 165.0),
            ("NVIDIA A10", (8, 6), 72.0, 1695.0, 125.0),
            ("NVIDIA A40", (8, 6), 84.0, 1740.0, 149.7),
            ("NVIDIA RTX A6000", (8, 6), 84.0, 1800.0, 154.8),
            ("NVIDIA GeForce RTX 3090", (8, 6), 82.0, 1695.0, 71.0),
            ("NVIDIA L4", (8, 9), 58.0, 2040.0, 121.0),
            ("NVIDIA L40", (8, 9), 142.0, 2490.0, 181.05),
            ("NVIDIA L40S", (8, 9), 142.0, 2520.0, 362.05),
            ("NVIDIA GeForce RTX 4090", (8, 9), 128.0, 2520.0, 165.2),
            ("NVIDIA H100 80GB HBM3", (9, 0), 132.0, 1830.0, 989.4),
            ("NVIDIA GeForce RTX 5090", (12, 0), 170.0, 2407.0, 209.5),
            ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", (12, 0), 188.0, 2617.0, 503.8),
        ] {
            let peak = tensor_operations(name, capability) * multiprocessors * megahertz * 1e6 / 1e12;
            // Data sheets round clocks: the L40S's 362.05 is 1.2 % below what its own 733 with sparsity says.
            assert!((peak / published - 1.0).abs() < 0.015, "{name}: {peak} TFLOP/s, published {published}");
        }
    }
}
