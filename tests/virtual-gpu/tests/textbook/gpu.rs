//! A device with one module on it.

use std::sync::Arc;

use virtual_gpu::device::Description;
use virtual_gpu::exec::{Launch, LoadedModule, Outcome, launch};
use virtual_gpu::fault::Fault;
use virtual_gpu::lower;
use virtual_gpu::memory::{Access, GlobalMemory};

/// A number as the device keeps it.
pub trait Number: Copy {
    fn put(self, bytes: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
    const SIZE: usize = size_of::<Self>();
}

macro_rules! numbers {
    ($($ty:ty)*) => {$(
        impl Number for $ty {
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                <$ty>::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
numbers!(u8 i16 u16 i32 u32 i64 u64 f32 f64 half::f16 half::bf16);

/// Parameters of a kernel, each aligned to its size.
#[derive(Default)]
pub struct Params(Vec<u8>);

impl Params {
    pub fn with<T: Number>(mut self, value: T) -> Params {
        self.0.resize(self.0.len().next_multiple_of(T::SIZE), 0);
        value.put(&mut self.0);
        self
    }
}

/// `params![a, b, c]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => { $crate::gpu::Params::default()$(.with($value))* };
}

pub struct Gpu {
    memory: GlobalMemory,
    module: LoadedModule,
}

impl Gpu {
    pub fn new(ptx: &str) -> Gpu {
        let memory = GlobalMemory::new(1 << 30);
        let module = lower::load(ptx).unwrap_or_else(|e| panic!("{e}"));
        Gpu { module: LoadedModule::load(Arc::new(module), &memory).unwrap(), memory }
    }

    /// A buffer with these values.
    pub fn upload<T: Number>(&self, values: &[T]) -> u64 {
        let mut bytes = Vec::new();
        values.iter().for_each(|v| v.put(&mut bytes));
        let address = self.memory.alloc(bytes.len() as u64).unwrap();
        self.memory.write(address, &bytes).unwrap();
        address
    }

    /// A buffer that nothing has written.
    pub fn alloc<T: Number>(&self, len: usize) -> u64 {
        self.memory.alloc((len * T::SIZE) as u64).unwrap()
    }

    /// What a buffer holds; bytes that nothing has written are an error.
    pub fn download<T: Number>(&self, address: u64, len: usize) -> Vec<T> {
        let mut bytes = vec![0; len * T::SIZE];
        self.memory.read(address, &mut bytes, Access::Checked).unwrap();
        bytes.chunks(T::SIZE).map(T::get).collect()
    }

    /// Gives a variable of the module its values.
    pub fn set<T: Number>(&self, name: &str, values: &[T]) {
        let mut bytes = Vec::new();
        values.iter().for_each(|v| v.put(&mut bytes));
        let (address, size) = self.module.global(name).unwrap();
        assert_eq!(size, bytes.len() as u64);
        self.memory.write(address, &bytes).unwrap();
    }

    pub fn try_launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        params: &Params,
    ) -> Result<Outcome, Fault> {
        self.launch(name, grid, block, dynamic_shared, params, false)
    }

    fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        params: &Params,
        cooperative: bool,
    ) -> Result<Outcome, Fault> {
        launch(&Launch {
            module: &self.module,
            function: self.module.module().function(name).unwrap(),
            grid,
            block,
            dynamic_shared,
            params: &params.0,
            device: &Description::default_device(),
            memory: &self.memory,
            cooperative,
        })
    }

    /// A one-dimensional launch that must succeed.
    pub fn run(&self, name: &str, grid: u32, block: u32, params: Params) -> Outcome {
        self.run_3d(name, [grid, 1, 1], [block, 1, 1], 0, params)
    }

    /// A cooperative launch: all blocks at once.
    pub fn run_together(&self, name: &str, grid: u32, block: u32, params: Params) -> Outcome {
        let outcome = self.launch(name, [grid, 1, 1], [block, 1, 1], 0, &params, true);
        outcome.unwrap_or_else(|fault| panic!("{fault}"))
    }

    pub fn run_3d(&self, name: &str, grid: [u32; 3], block: [u32; 3], shared: u32, params: Params) -> Outcome {
        self.try_launch(name, grid, block, shared, &params).unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}
