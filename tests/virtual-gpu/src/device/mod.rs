//! Devices as data: what a GPU of a given model offers, so that limits are as real as on the hardware.
//!
//! A description is a TOML file. Four ship in the library; `VIRTUAL_GPU_DEVICE` picks by name or names a file of the
//! same form. Several, separated by commas, make a machine with several GPUs.

mod occupancy;

use serde::{Deserialize, Serialize};

/// The environment variable that chooses the devices.
pub const DEVICE_VARIABLE: &str = "VIRTUAL_GPU_DEVICE";

/// The device of a machine that asks for none.
pub const DEFAULT_DEVICE: &str = "a100-80gb";

/// The descriptions that ship, by the name that `VIRTUAL_GPU_DEVICE` takes.
const SHIPPED: [(&str, &str); 4] = [
    ("a100-40gb", include_str!("a100-40gb.toml")),
    ("a100-80gb", include_str!("a100-80gb.toml")),
    ("h100", include_str!("h100.toml")),
    ("rtx-4090", include_str!("rtx-4090.toml")),
];

/// What one GPU offers. All sizes are bytes unless the name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The name that `cuDeviceGetName` gives.
    pub name: String,
    /// Compute capability, (major, minor).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Threads a block may have.
    pub max_threads_per_block: u32,
    /// Threads resident on one multiprocessor.
    pub max_threads_per_sm: u32,
    /// Blocks resident on one multiprocessor.
    pub max_blocks_per_sm: u32,
    /// 32-bit registers of one multiprocessor.
    pub registers_per_sm: u32,
    /// 32-bit registers that one block may use.
    pub registers_per_block: u32,
    /// 32-bit registers that one thread may use.
    pub max_registers_per_thread: u32,
    /// Shared memory of one multiprocessor.
    pub shared_per_sm: u32,
    /// Shared memory that a block gets without asking.
    pub shared_per_block: u32,
    /// Shared memory that a block gets once its function opts in.
    pub shared_per_block_optin: u32,
    /// Shared memory that the system takes from every resident block.
    pub reserved_shared_per_block: u32,
    /// Global memory.
    pub memory_bytes: u64,
    /// L2 cache.
    pub l2_bytes: u64,
    /// Clock of the multiprocessors, kHz.
    pub clock_khz: u32,
    /// Clock of the memory, kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus, bits.
    pub bus_width_bits: u32,
    /// Throughput of single over double precision.
    pub fp32_to_fp64_ratio: u32,
    /// True where memory errors are corrected.
    pub ecc: bool,
}

/// A device that can't be described.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is no shipped device and no readable file.
    #[error("{name}: no such device, expected one of {}, or a TOML file that describes one ({source})", names())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Why it could not be read as a file.
        source: std::io::Error,
    },
    /// The file is no description.
    #[error("{name}: not a device description: {source}")]
    Invalid {
        /// The file.
        name: String,
        /// What is wrong in it.
        source: toml::de::Error,
    },
    /// The numbers contradict each other.
    #[error("{name}: {what}")]
    Inconsistent {
        /// The file.
        name: String,
        /// Which numbers, and what would be right.
        what: &'static str,
    },
}

/// The names of the shipped devices, for messages.
fn names() -> String {
    SHIPPED.map(|(name, _)| name).join(", ")
}

impl Description {
    /// A shipped device by name, or the description in the TOML file of that path.
    ///
    /// # Errors
    /// Where the name is unknown, the file is no description, or its numbers contradict each other.
    pub fn find(name: &str) -> Result<Description, Error> {
        match SHIPPED.iter().find(|(shipped, _)| shipped.eq_ignore_ascii_case(name)) {
            Some((_, text)) => Description::parse(name, text),
            None => {
                let text =
                    std::fs::read_to_string(name).map_err(|source| Error::Unknown { name: name.to_owned(), source })?;
                Description::parse(name, &text)
            }
        }
    }

    /// The device of a machine that asks for none.
    pub fn default_device() -> Description {
        Description::find(DEFAULT_DEVICE).expect("the shipped descriptions are tested")
    }

    fn parse(name: &str, text: &str) -> Result<Description, Error> {
        let description: Description =
            toml::from_str(text).map_err(|source| Error::Invalid { name: name.to_owned(), source })?;
        match description.contradiction() {
            Some(what) => Err(Error::Inconsistent { name: name.to_owned(), what }),
            None => Ok(description),
        }
    }

    fn contradiction(&self) -> Option<&'static str> {
        let zero = [self.sms, self.max_blocks_per_sm, self.registers_per_block, self.clock_khz].contains(&0);
        if zero || self.memory_bytes == 0 {
            return Some("sms, max_blocks_per_sm, registers_per_block, clock_khz and memory_bytes must not be 0");
        }
        if !(32..=1024).contains(&self.max_threads_per_block) || self.max_threads_per_block > self.max_threads_per_sm {
            return Some("max_threads_per_block must be 32 to 1024 and at most max_threads_per_sm");
        }
        if self.shared_per_block > self.shared_per_block_optin
            || u64::from(self.shared_per_block_optin) + u64::from(self.reserved_shared_per_block)
                > u64::from(self.shared_per_sm)
        {
            return Some(
                "expected shared_per_block <= shared_per_block_optin <= shared_per_sm - reserved_shared_per_block",
            );
        }
        None
    }
}

/// The devices that a list names, in its order; the list is that of `VIRTUAL_GPU_DEVICE`, separated by commas.
///
/// # Errors
/// As [`Description::find`].
pub fn from_list(list: &str) -> Result<Vec<Description>, Error> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Description::find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_device_is_consistent() {
        for (name, _) in SHIPPED {
            Description::find(name).unwrap();
        }
    }

    #[test]
    fn a_list_names_several_devices_in_order() {
        let devices = from_list("h100, RTX-4090").unwrap();
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]);
    }

    #[test]
    fn a_file_describes_a_device_of_ones_own() {
        let folder = std::env::temp_dir().join(format!("virtual-gpu-device-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("small.toml");
        let text = SHIPPED[0].1.replace("42405855232", "1048576");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Description::find(path.to_str().unwrap()).unwrap().memory_bytes, 1 << 20);
        std::fs::write(&path, SHIPPED[0].1.replace("sms = 108", "sms = 0")).unwrap();
        assert!(matches!(Description::find(path.to_str().unwrap()), Err(Error::Inconsistent { .. })));
        std::fs::write(&path, SHIPPED[0].1.replace("sms", "smss")).unwrap();
        assert!(matches!(Description::find(path.to_str().unwrap()), Err(Error::Invalid { .. })));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_unknown_device_is_named_with_those_that_ship() {
        let error = Description::find("v100").unwrap_err().to_string();
        assert!(error.contains("v100") && error.contains("a100-80gb"), "{error}");
    }
}
