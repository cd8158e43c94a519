//! How many blocks of a kernel one multiprocessor holds at once: the rules of NVIDIA's occupancy calculator for compute
//! capability 7.0 and later.

use super::Description;

/// Threads of a warp.
const WARP: u32 = 32;
/// Registers are handed to warps in units of this many.
const REGISTER_UNIT: u32 = 256;
/// A multiprocessor has this many sub-partitions, each with its share of the registers.
const PARTITIONS: u32 = 4;
/// Shared memory is handed to blocks in units of this many bytes.
const SHARED_UNIT: u64 = 128;

impl Description {
    /// Blocks of `threads` threads, `registers` registers a thread and `shared` bytes of shared memory that one
    /// multiprocessor holds at once; 0 where not even one fits.
    pub fn blocks_per_sm(&self, threads: u32, registers: u32, shared: u64) -> u32 {
        if threads == 0 || threads > self.max_threads_per_block || registers > self.max_registers_per_thread {
            return 0;
        }
        let warps = threads.div_ceil(WARP);
        let by_warps = self.max_threads_per_sm / WARP / warps;
        let by_registers = match (registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT) {
            per_warp if per_warp * warps > self.registers_per_block => 0,
            per_warp => self.registers_per_sm / PARTITIONS / per_warp * PARTITIONS / warps,
        };
        let per_block = shared.next_multiple_of(SHARED_UNIT) + u64::from(self.reserved_shared_per_block);
        let by_shared = if shared > u64::from(self.shared_per_block_optin) {
            0
        } else {
            u32::try_from(u64::from(self.shared_per_sm) / per_block.max(1)).unwrap_or(u32::MAX)
        };
        self.max_blocks_per_sm.min(by_warps).min(by_registers).min(by_shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_resource_decides() {
        let device = Description::find("a100-80gb").unwrap();
        assert_eq!(device.blocks_per_sm(1024, 32, 0), 2, "threads");
        assert_eq!(device.blocks_per_sm(32, 32, 0), 32, "blocks");
        assert_eq!(device.blocks_per_sm(256, 128, 0), 2, "registers: 16 warps of 4096");
        assert_eq!(device.blocks_per_sm(128, 32, 48 << 10), 3, "shared memory: 3 of 49 KiB in 164");
        assert_eq!(device.blocks_per_sm(128, 32, 163 << 10), 1, "all that a block may opt into");
    }

    #[test]
    fn what_never_fits_counts_zero() {
        let device = Description::find("a100-80gb").unwrap();
        assert_eq!(device.blocks_per_sm(0, 32, 0), 0);
        assert_eq!(device.blocks_per_sm(1025, 32, 0), 0);
        assert_eq!(device.blocks_per_sm(128, 256, 0), 0);
        assert_eq!(device.blocks_per_sm(1024, 128, 0), 0, "131072 registers a block");
        assert_eq!(device.blocks_per_sm(128, 32, 164 << 10), 0);
    }
}
