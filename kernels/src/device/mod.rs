//! Devices: where buffers live and where kernels run.
//!
//! One code path serves every device. An operation allocates its outputs and workspace through [`Device::alloc`], then
//! hands [`Device::run`] its [`Cost`] and a closure that computes. On the CPU the closure runs; on Meta it does not, and
//! nothing is allocated, but the same bytes are accounted and the same costs recorded. A plan read from Meta therefore
//! cannot drift from what the CPU does. On a GPU an operation hands `Device::launch` the launch of its kernels instead.

mod accountant;
mod arena;
mod buffer;
mod cost;
mod cuda;
mod graph;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

pub use accountant::{Accountant, Category, MemoryReport};
pub use arena::{Recording, Slab};
pub use buffer::{Buffer, DType, Element};
pub use cost::{Cost, KernelStats};
pub use cuda::{CudaError, CudaResult, Event, Gpu, Launch, Source, Span, Stream};
pub(crate) use cuda::{Pinned, Product, Ring, Side, WORKSPACE, places};

pub use graph::{Feed, Graph, Kept};

use crate::error::Result;
use crate::simd::Isa;
use arena::Arena;
use buffer::Pool;

/// The kind of hardware a device is, or (for Meta) stands for. It decides element types and workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The host's processor: activations in f32.
    Cpu,
    /// A CUDA GPU: activations in bf16.
    Cuda,
}

impl Backend {
    /// The element type of activations on this hardware.
    pub fn compute_dtype(self) -> DType {
        match self {
            Backend::Cpu => DType::F32,
            Backend::Cuda => DType::BF16,
        }
    }
}

/// Who multiplies dense matrices on a GPU. Products with packed weights and with adapters are always our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gemm {
    /// Our kernels.
    #[default]
    Own,
    /// cuBLASLt, where it is found, for products with weights that train. They are rounded to the activations' type once for
    /// each product, where our kernels round them tile by tile. Products with frozen weights and the head's stay ours: what
    /// follows them, activation functions and residuals, or the softmax, is in the same kernel.
    Auto,
    /// cuBLASLt for all dense products that it can do.
    Cublas,
}

/// A handle to a device; clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    backend: Backend,
    meta: bool,
    gpu: Option<Arc<Gpu>>,
    gemm: Gemm,
    threads: usize,
    accountant: Accountant,
    pool: Pool,
    arena: Mutex<Arena>,
    profile: Mutex<Option<cost::Profile>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Device {
    /// The host's processor, with the threads of the current rayon pool and no memory limit of our own.
    pub fn cpu() -> Device {
        Device::new(Backend::Cpu, false, rayon::current_num_threads(), None)
    }

    /// The host's processor; an allocation that would bring the total past `limit` bytes fails.
    pub fn cpu_with_limit(limit: u64) -> Device {
        Device::new(Backend::Cpu, false, rayon::current_num_threads(), Some(limit))
    }

    /// A device that accounts as `backend` would with `threads` host threads, and neither allocates nor computes.
    pub fn meta(backend: Backend, threads: usize) -> Device {
        Device::meta_with(backend, threads, Gemm::Own)
    }

    /// The same, where `gemm` computes a GPU's dense products: [`Gemm::Auto`] stands for one where the library is found. A
    /// processor multiplies by itself, whatever `gemm` says.
    pub fn meta_with(backend: Backend, threads: usize, gemm: Gemm) -> Device {
        let gemm = if backend == Backend::Cuda { gemm } else { Gemm::Own };
        Device::with_gpu(backend, true, threads, None, None, gemm)
    }

    /// The GPU with number `ordinal`, as the driver counts them, with our kernels for all products.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda): no driver, too old a driver, no such GPU, or one that is too old for the kernels.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Device::cuda_with(ordinal, Gemm::Own)
    }

    /// The GPU with number `ordinal`, whose dense products `gemm` computes. [`Gemm::Auto`] is [`Gemm::Own`] where no library
    /// is found that can be used.
    ///
    /// # Errors
    /// As [`Device::cuda`]; with [`Gemm::Cublas`] also no library, or too old a one.
    pub fn cuda_with(ordinal: usize, gemm: Gemm) -> Result<Device> {
        let gpu = Gpu::open(ordinal, gemm)?;
        let gemm = if gpu.cublas_version().is_some() { gemm } else { Gemm::Own };
        Ok(Device::with_gpu(Backend::Cuda, false, rayon::current_num_threads(), None, Some(gpu), gemm))
    }

    fn new(backend: Backend, meta: bool, threads: usize, limit: Option<u64>) -> Device {
        Device::with_gpu(backend, meta, threads, limit, None, Gemm::Own)
    }

    fn with_gpu(
        backend: Backend,
        meta: bool,
        threads: usize,
        limit: Option<u64>,
        gpu: Option<Arc<Gpu>>,
        gemm: Gemm,
    ) -> Device {
        let device = Device(Arc::new(Inner {
            backend,
            meta,
            gpu,
            gemm,
            threads: threads.max(1),
            accountant: Accountant::new(limit),
            pool: Pool::default(),
            arena: Mutex::default(),
            profile: Mutex::new(None),
        }));
        if backend == Backend::Cpu {
            // Each thread of the CPU device keeps one packing scratch for its whole life.
            let each = crate::spmm::thread_scratch_bytes(Isa::best());
            device.memory().reserve(Category::Workspace, (device.threads() * each) as u64);
        }
        device
    }

    /// "cpu", "cuda" or "meta".
    pub fn name(&self) -> &'static str {
        match self.0.backend {
            _ if self.0.meta => "meta",
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        }
    }

    /// The GPU, where the device is one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.0.gpu.as_ref()
    }

    /// Who multiplies dense matrices, where the device is a GPU or stands for one; [`Gemm::Own`] on a processor.
    pub fn gemm(&self) -> Gemm {
        self.0.gemm
    }

    /// Waits until all kernels have run.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda) where one of them failed.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.gpu().map_or(Ok(()), |gpu| gpu.stream().synchronize())?)
    }

    /// True where buffers hold no data.
    pub fn is_meta(&self) -> bool {
        self.0.meta
    }

    /// The hardware this device is or stands for.
    pub fn backend(&self) -> Backend {
        self.0.backend
    }

    /// The element type of activations.
    pub fn compute_dtype(&self) -> DType {
        self.0.backend.compute_dtype()
    }

    /// Host threads that share the work.
    pub fn threads(&self) -> usize {
        self.0.threads
    }

    /// The accountant: bytes in use and their high-water mark.
    pub fn memory(&self) -> &Accountant {
        &self.0.accountant
    }

    /// A buffer of `len` elements with unspecified (but initialised) contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) past the device's limit.
    pub fn alloc(&self, category: Category, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::alloc(self, category, dtype, len, false)
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn zeros(&self, category: Category, dtype: DType, len: usize) -> Result<Buffer> {
        Buffer::alloc(self, category, dtype, len, true)
    }

    /// A buffer that holds a copy of `values` (on Meta: only their number).
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn upload<T: Element>(&self, category: Category, values: &[T]) -> Result<Buffer> {
        self.upload_feed(Feed::Fixed, category, values)
    }

    /// The same; `feed` says what the values are when the work that they are for is captured and launched again.
    pub(crate) fn upload_feed<T: Element>(&self, feed: Feed, category: Category, values: &[T]) -> Result<Buffer> {
        let mut buffer = self.alloc(category, T::DTYPE, values.len())?;
        if !self.is_meta() {
            buffer.write_feed(feed, bytemuck::cast_slice(values))?;
        }
        Ok(buffer)
    }

    /// Workspace that only the CPU's kernels need: empty where the device stands for other hardware.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    pub fn cpu_workspace(&self, len: usize) -> Result<Buffer> {
        let len = if self.backend() == Backend::Cpu { len } else { 0 };
        self.alloc(Category::Workspace, DType::F32, len)
    }

    /// Runs one kernel: records `cost`, and computes where the device computes.
    pub fn run(&self, cost: Cost, compute: impl FnOnce()) {
        let profiled = self.0.profile.lock().expect("no panic while locked").is_some();
        let start = profiled.then(Instant::now);
        if !self.is_meta() {
            compute();
        }
        if let Some(start) = start
            && let Some(profile) = self.0.profile.lock().expect("no panic while locked").as_mut()
        {
            profile.add(cost, start.elapsed());
        }
    }

    /// Puts the kernels of one operation into the GPU's stream: records `cost`, with the GPU's time while a profile is
    /// taken (for which the host waits then).
    pub(crate) fn launch(&self, cost: Cost, launch: impl FnOnce(&Gpu) -> Result<()>) -> Result<()> {
        let gpu = self.gpu().expect("launched on a GPU");
        if self.0.profile.lock().expect("no panic while locked").is_none() {
            return launch(gpu);
        }
        let (start, end) = (gpu.new_event(true)?, gpu.new_event(true)?);
        start.record(gpu.stream())?;
        launch(gpu)?;
        end.record(gpu.stream())?;
        end.synchronize()?;
        let elapsed = std::time::Duration::from_secs_f64(end.seconds_since(&start)?.max(0.0));
        if let Some(profile) = self.0.profile.lock().expect("no panic while locked").as_mut() {
            profile.add(cost, elapsed);
        }
        Ok(())
    }

    /// True while costs are recorded.
    pub fn is_profiled(&self) -> bool {
        self.0.profile.lock().expect("no panic while locked").is_some()
    }

    /// Starts to record the cost and time of every kernel.
    pub fn start_profile(&self) {
        *self.0.profile.lock().expect("no panic while locked") = Some(cost::Profile::default());
    }

    /// Stops recording; one row a kernel name, in order of first use.
    pub fn take_profile(&self) -> Vec<KernelStats> {
        self.0.profile.lock().expect("no panic while locked").take().map(cost::Profile::into_rows).unwrap_or_default()
    }

    /// Gives memory that freed buffers left for reuse back to the system (between phases with different shapes).
    pub fn trim(&self) {
        self.0.pool.clear();
        // What went wrong in earlier work is told by the next call that can fail.
        let _ = self.gpu().map(|gpu| gpu.trim());
    }

    fn pool(&self) -> &Pool {
        &self.0.pool
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.0.arena.lock().expect("no panic while locked")
    }
}
