//! Products by NVIDIA's library: cuBLASLt, which is looked for when a device is opened that is to use it.
//!
//! For each shape its heuristic is asked once and what it says first is taken, so that all products of a shape are computed
//! by the same algorithm: the same version on the same kind of GPU gives the same bits. Sums are f32 throughout. In 16 bits
//! tensor cores multiply; f32 is multiplied as such, never as TF32, whatever the environment asks for. Workspace comes from
//! the caller, so that it is accounted.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::Gpu;
use super::context::Context;
use super::error::{CudaError, CudaResult, no_memory};
use crate::device::{Buffer, DType, Span};

/// Bytes of workspace for a product: what NVIDIA recommends for Hopper, and more than its older GPUs use.
pub(crate) const WORKSPACE: usize = 32 << 20;

/// The oldest version that is used, as the library counts them: 12.0.
const OLDEST: usize = 120_000;

/// Addresses are at multiples of what algorithms may ask for at most, or of a lesser power of two.
const ALIGNMENT: u32 = 256;

/// C = α·A·B + bias, or C += α·A·B, with row-major C `[m, n]`. Operands are of one type.
pub(crate) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Side<'a>,
    pub b: Side<'a>,
    pub alpha: f32,
    pub accumulate: bool,
    /// `[n]`, in C's type.
    pub bias: Option<&'a Buffer>,
}

/// A row-major operand; A is `[m, k]` and B `[k, n]`, or the other way round where they are turned.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub data: Span<'a>,
    pub turned: bool,
}

impl<'a> Side<'a> {
    pub fn straight(data: impl Into<Span<'a>>) -> Side<'a> {
        Side { data: data.into(), turned: false }
    }

    pub fn turned(data: impl Into<Span<'a>>) -> Side<'a> {
        Side { data: data.into(), turned: true }
    }
}

/// The open library.
pub(super) struct Cublas {
    handle: sys::cublasLtHandle_t,
    version: usize,
    algorithms: Mutex<HashMap<Shape, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: the library's handles may be used from any thread.
unsafe impl Send for Cublas {}
// SAFETY: as above; it keeps nothing in the handle between calls that it does not lock.
unsafe impl Sync for Cublas {}

/// All that an algorithm is chosen by, in the library's words: matrices are column-major, so that A and B change places.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// Of A, B and C.
    dtypes: [DType; 3],
    /// Rows of C, its columns, and the depth.
    size: [usize; 3],
    turned: [bool; 2],
    bias: bool,
    accumulate: bool,
    /// Of the addresses of A, B and C.
    alignment: [u32; 3],
}

impl Cublas {
    /// Looks for the library.
    ///
    /// # Errors
    /// [`CudaError::NoCublas`], [`CudaError::OldCublas`], or its own.
    pub fn open(context: &Context) -> CudaResult<Cublas> {
        // SAFETY: looks for libraries by name; NVIDIA's initialisers are sound.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoCublas { names: names() });
        }
        // SAFETY: the call exists in all versions, and takes nothing.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST {
            return Err(CudaError::OldCublas { found: title(version) });
        }
        context.bind()?;
        let handle = result::create_handle().map_err(|e| failure("cublasLtCreate", e))?;
        Ok(Cublas { handle, version, algorithms: Mutex::default() })
    }

    /// Its version, such as "12.2.5".
    pub fn version(&self) -> String {
        title(self.version)
    }

    fn multiply(&self, gpu: &Gpu, product: &Product<'_>, workspace: &mut Buffer, c: Span<'_>) -> CudaResult<()> {
        // Column-major Cᵀ = Bᵀ·Aᵀ: what is straight to us is so to the library, too.
        let (first, second) = (product.b, product.a);
        let addresses = [gpu.address_of(first.data)?, gpu.address_of(second.data)?, gpu.address_of(c)?];
        let shape = Shape {
            dtypes: [first.data.dtype(), second.data.dtype(), c.dtype()],
            size: [product.n, product.m, product.k],
            turned: [first.turned, second.turned],
            bias: product.bias.is_some(),
            accumulate: product.accumulate,
            alignment: addresses.map(|address| ALIGNMENT.min(1 << address.trailing_zeros().min(31))),
        };
        let described = Described::new(&shape)?;
        if let Some(bias) = product.bias {
            let bias = gpu.address(bias)?;
            described.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let algorithm = self.algorithm(&shape, &described)?;
        let [a, b, c] = addresses.map(|address| address as *mut c_void);
        let (alpha, beta) = (product.alpha, if product.accumulate { 1.0f32 } else { 0.0 });
        let (alpha, beta) = (std::ptr::from_ref(&alpha).cast(), std::ptr::from_ref(&beta).cast());
        let [a_layout, b_layout, c_layout] = described.layouts;
        let (scratch, bytes) = (gpu.address(workspace)? as *mut c_void, workspace.size_bytes());
        gpu.context.bind()?;
        // SAFETY: the caller vouches for the operands; layouts and description are alive, and the stream is of the same
        // driver.
        let answer = unsafe {
            result::matmul(
                self.handle,
                described.product,
                alpha,
                beta,
                a,
                a_layout,
                b,
                b_layout,
                c,
                c_layout,
                c,
                c_layout,
                &algorithm,
                scratch,
                bytes,
                gpu.stream().raw().cast(),
            )
        };
        answer.map_err(|e| failure("cublasLtMatmul", e))
    }

    /// What the library's heuristic says first for a shape.
    fn algorithm(&self, shape: &Shape, described: &Described) -> CudaResult<sys::cublasLtMatmulAlgo_t> {
        let mut algorithms = self.algorithms.lock().expect("no panic while locked");
        if let Some(algorithm) = algorithms.get(shape) {
            return Ok(*algorithm);
        }
        let preference = Preference::new(shape)?;
        let [a, b, c] = described.layouts;
        // SAFETY: all that is described is alive.
        let found =
            unsafe { result::get_matmul_algo_heuristic(self.handle, described.product, a, b, c, c, preference.0) };
        let found = found.map_err(|e| failure("cublasLtMatmulAlgoGetHeuristic", e))?;
        algorithms.insert(*shape, found.algo);
        Ok(found.algo)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        // SAFETY: made once by `open`; the GPU waits for its work before it lets go.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Gpu {
    /// C from element `first` on, by the library. `workspace` has [`WORKSPACE`] bytes.
    ///
    /// # Safety
    /// The operands hold what the product's shape says.
    ///
    /// # Errors
    /// The library's, and [`CudaError::Elsewhere`].
    ///
    /// # Panics
    /// If the device was opened without it.
    pub(crate) unsafe fn multiply(
        &self,
        product: &Product<'_>,
        workspace: &mut Buffer,
        (c, first): (&mut Buffer, usize),
    ) -> CudaResult<()> {
        let cublas = self.cublas.as_ref().expect("products go to the library only where there is one");
        cublas.multiply(self, product, workspace, Span { buffer: c, first })
    }
}

/// A product and its matrices, in the library's descriptions.
struct Described {
    product: sys::cublasLtMatmulDesc_t,
    /// Of A, B and C.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
}

impl Described {
    fn new(shape: &Shape) -> CudaResult<Described> {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC};
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, k] = shape.size;
        // The plain type may be made TF32 or an emulation by the environment.
        let compute = if shape.dtypes[0] == DType::F32 { CUBLAS_COMPUTE_32F_PEDANTIC } else { CUBLAS_COMPUTE_32F };
        let product = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)
            .map_err(|e| failure("cublasLtMatmulDescCreate", e))?;
        let mut described = Described { product, layouts: [std::ptr::null_mut(); 3] };
        for (attribute, turned) in [Attribute::CUBLASLT_MATMUL_DESC_TRANSA, Attribute::CUBLASLT_MATMUL_DESC_TRANSB]
            .into_iter()
            .zip(shape.turned)
        {
            // `cublasOperation_t`: CUBLAS_OP_N is 0, CUBLAS_OP_T 1.
            described.set(attribute, &i32::from(turned))?;
        }
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let sizes =
            [if shape.turned[0] { (k, m) } else { (m, k) }, if shape.turned[1] { (n, k) } else { (k, n) }, (m, n)];
        for ((layout, (rows, cols)), dtype) in described.layouts.iter_mut().zip(sizes).zip(shape.dtypes) {
            *layout = result::create_matrix_layout(data_type(dtype), rows as u64, cols as u64, rows as i64)
                .map_err(|e| failure("cublasLtMatrixLayoutCreate", e))?;
        }
        Ok(described)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> CudaResult<()> {
        // SAFETY: the value has the attribute's type, and is copied.
        let answer = unsafe {
            result::set_matmul_desc_attribute(self.product, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        answer.map_err(|e| failure("cublasLtMatmulDescSetAttribute", e))
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: each was made once by `new`; the library has read them when a product is on its way.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// What algorithms may do.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(shape: &Shape) -> CudaResult<Preference> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Reduction;
        let preference = result::create_matmul_pref().map_err(|e| failure("cublasLtMatmulPreferenceCreate", e))?;
        let preference = Preference(preference);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        // A depth in parts is summed in f32, in order: never in C's type.
        let reductions = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions)?;
        let [a, b, c] = shape.alignment;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c)?;
        Ok(preference)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> CudaResult<()> {
        // SAFETY: the value has the attribute's type, and is copied.
        let answer = unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        };
        answer.map_err(|e| failure("cublasLtMatmulPreferenceSetAttribute", e))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once by `new`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn data_type(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

/// The names that are looked for which a library of today could have.
fn names() -> String {
    let candidates = cudarc::get_lib_name_candidates("cublasLt").into_iter();
    let named: Vec<String> = candidates.filter(|name| !name.contains("64") || cfg!(windows)).collect();
    named.join(", ")
}

/// 120205 is 12.2.5.
fn title(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn failure(call: &'static str, error: CublasError) -> CudaError {
    match error.0 {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => no_memory(call),
        status => CudaError::Driver { call, reason: format!("{status:?}") },
    }
}
