//! Products: what is asked is checked, then a kernel computes it.

use std::collections::hash_map::DefaultHasher;
use std::ffi::{CString, c_void};
use std::hash::{Hash, Hasher};
use std::ops::Range;

use cudarc::driver::{DriverError, result, sys};

use crate::descriptions::{DType, Description, Layout, Preference};
use crate::{Refusal, Status};

const PTX: &str = include_str!("product.ptx");

/// Threads of a block.
const THREADS: u32 = 256;
/// What an algorithm needs: as if it summed in parts.
const WORKSPACE: u64 = 1 << 20;

/// The library, for a context.
#[derive(Debug)]
pub struct Handle {
    context: sys::CUcontext,
    module: sys::CUmodule,
    kernel: sys::CUfunction,
}

/// `cublasLtMatmulAlgo_t`: opaque, copied by callers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    /// What it was chosen for.
    shape: u64,
    alignment: [u32; 4],
    workspace: u64,
    rest: [u64; 4],
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

impl Heuristic {
    pub fn of(algorithm: Algorithm) -> Heuristic {
        let workspace = algorithm.workspace as usize;
        Heuristic { algorithm, workspace, state: Status::SUCCESS, waves: 1.0, reserved: [0; 4] }
    }
}

/// What a product is computed from, and where to.
pub struct Operands {
    /// Of A, B, C and D.
    pub layouts: [Layout; 4],
    pub addresses: [u64; 4],
    pub alpha: f32,
    pub beta: f32,
    pub workspace: (u64, usize),
}

/// Rows of D, its columns, and the depth; as the library's documentation lists what it supports.
fn size(description: &Description, layouts: &[Layout; 4]) -> Result<[u64; 3], Refusal> {
    let [a, b, c, d] = layouts;
    let sides = |layout: &Layout, turned| if turned { (layout.cols, layout.rows) } else { (layout.rows, layout.cols) };
    let ((m, k), (of_b, n)) = (sides(a, description.turned[0]), sides(b, description.turned[1]));
    if of_b != k || (d.rows, d.cols) != (m, n) || c != d {
        return Err(Refusal::value(format!("{layouts:?} do not fit each other")));
    }
    let result =
        if a.dtype == DType::F32 { d.dtype == DType::F32 } else { d.dtype == a.dtype || d.dtype == DType::F32 };
    if a.dtype != b.dtype || !result {
        return Err(Refusal::unsupported(format!("{:?} times {:?} to {:?}", a.dtype, b.dtype, d.dtype)));
    }
    if a.dtype == DType::F32 && !description.pedantic {
        return Err(Refusal::unsupported("f32 whose products the environment may round to TF32"));
    }
    if layouts.iter().any(|layout| layout.dtype != DType::F32 && !layout.leading.is_multiple_of(8)) {
        return Err(Refusal::unsupported("columns in 16 bits that tensor cores can't copy"));
    }
    if [m, n, k].iter().any(|size| *size > i32::MAX as u64) || m * n > u64::from(u32::MAX) {
        return Err(Refusal::unsupported(format!("{m}×{n}×{k}")));
    }
    Ok([m, n, k])
}

/// All that an algorithm may depend on.
fn shape(description: &Description, layouts: &[Layout; 4]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (Description { bias: 0, ..*description }, layouts).hash(&mut hasher);
    hasher.finish()
}

impl Algorithm {
    pub fn choose(
        description: &Description,
        layouts: [Layout; 4],
        preference: &Preference,
    ) -> Result<Algorithm, Refusal> {
        size(description, &layouts)?;
        // COMPUTE_TYPE alone: parts are summed in f32.
        if preference.reductions != 2 {
            return Err(Refusal::unsupported(format!("reductions {:#b} lose bits or order", preference.reductions)));
        }
        let workspace = WORKSPACE.min(preference.workspace);
        let shape = shape(description, &layouts);
        Ok(Algorithm { shape, alignment: preference.alignment, workspace, rest: [0; 4] })
    }
}

/// An operand, as product.cu knows it.
#[repr(C)]
struct Side {
    data: u64,
    leading: u64,
    dtype: i32,
    turned: i32,
}

impl Handle {
    pub fn new() -> Result<Handle, Refusal> {
        let absent = |why: &str| Refusal { status: Status::NOT_INITIALIZED, why: why.into() };
        let context = result::ctx::get_current().map_err(driver)?.ok_or_else(|| absent("no context is current"))?;
        let ptx = CString::new(PTX).expect("PTX is text");
        // SAFETY: the PTX ends with a NUL.
        let module = unsafe { result::module::load_data(ptx.as_ptr().cast()) }.map_err(driver)?;
        // SAFETY: the module was just loaded.
        let kernel = unsafe { result::module::get_function(module, c"product".into()) }.map_err(driver)?;
        Ok(Handle { context, module, kernel })
    }

    /// Puts a product into the stream.
    pub fn multiply(
        &self,
        description: &Description,
        algorithm: &Algorithm,
        operands: &Operands,
        stream: *mut c_void,
    ) -> Result<(), Refusal> {
        if result::ctx::get_current().map_err(driver)? != Some(self.context) {
            return Err(Refusal::value("another context is current than when the handle was made"));
        }
        let stream: sys::CUstream = stream.cast();
        let Operands { layouts, addresses, alpha, beta, workspace } = operands;
        let [m, n, k] = size(description, layouts)?;
        if algorithm.shape != shape(description, layouts) {
            return Err(Refusal::value("the algorithm was chosen for another product"));
        }
        self.check(description, algorithm, operands)?;
        // Whoever reads the workspace or relies on it staying as it was notices.
        for end in [workspace.0, workspace.0 + algorithm.workspace.saturating_sub(4096)] {
            let bytes = algorithm.workspace.min(4096) as usize;
            // SAFETY: the workspace has been checked to hold what the algorithm needs.
            unsafe { result::memset_d8_async(end, 0xff, bytes, stream) }.map_err(driver)?;
        }
        let side = |at: usize| Side {
            data: addresses[at],
            leading: layouts[at].leading,
            dtype: number(layouts[at].dtype),
            turned: i32::from(description.turned[at]),
        };
        let (mut a, mut b, mut d) = (side(0), side(1), addresses[3]);
        let (mut m, mut n, mut k, mut leading) = (m as i32, n as i32, k as i32, layouts[3].leading);
        let (mut alpha, mut beta, mut bias) = (*alpha, *beta, if description.has_bias { description.bias } else { 0 });
        let mut dtype = number(layouts[3].dtype);
        let mut bias_type = dtype;
        let mut arguments = [
            (&raw mut a).cast::<c_void>(),
            (&raw mut b).cast(),
            (&raw mut m).cast(),
            (&raw mut n).cast(),
            (&raw mut k).cast(),
            (&raw mut alpha).cast(),
            (&raw mut beta).cast(),
            (&raw mut bias).cast(),
            (&raw mut bias_type).cast(),
            (&raw mut d).cast(),
            (&raw mut dtype).cast(),
            (&raw mut leading).cast(),
        ];
        let blocks = (m as u32 * n as u32).div_ceil(THREADS);
        // SAFETY: the arguments are the kernel's, and every matrix lies within its allocation.
        unsafe { result::launch_kernel(self.kernel, (blocks, 1, 1), (THREADS, 1, 1), 0, stream, &mut arguments) }
            .map_err(driver)
    }

    fn check(&self, description: &Description, algorithm: &Algorithm, operands: &Operands) -> Result<(), Refusal> {
        let Operands { layouts, addresses, beta, workspace, .. } = operands;
        let names = ["A", "B", "C", "D"];
        for ((name, address), alignment) in names.into_iter().zip(addresses).zip(algorithm.alignment) {
            if !address.is_multiple_of(u64::from(alignment)) {
                return Err(Refusal::value(format!("{name} at {address:#x}, promised at multiples of {alignment}")));
            }
        }
        if (workspace.1 as u64) < algorithm.workspace || !workspace.0.is_multiple_of(256) {
            return Err(Refusal::value(format!("a workspace of {} bytes at {:#x}", workspace.1, workspace.0)));
        }
        if *beta != 0.0 && addresses[2] != addresses[3] {
            return Err(Refusal::unsupported("sums that are added to another matrix"));
        }
        let place = |at: usize| addresses[at]..addresses[at] + layouts[at].extent();
        let mut read = vec![("A", place(0)), ("B", place(1))];
        if description.has_bias {
            let bytes = layouts[3].rows * layouts[3].dtype.size();
            if !description.bias.is_multiple_of(16) {
                return Err(Refusal::value(format!("a bias at {:#x}, expected multiples of 16", description.bias)));
            }
            read.push(("bias", description.bias..description.bias + bytes));
        }
        let scratch = workspace.0..workspace.0 + workspace.1 as u64;
        let result = place(3);
        for (name, place) in read.iter().chain([&("D", result.clone()), &("workspace", scratch.clone())]) {
            inside(name, place)?;
        }
        read.push(("workspace", scratch));
        match read.iter().find(|(_, place)| place.start < result.end && result.start < place.end) {
            Some((name, _)) => Err(Refusal::value(format!("D overlaps {name}"))),
            None => Ok(()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: loaded once by `new`; CUDA waits for its kernels.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

/// Refuses memory that is not all of one allocation.
fn inside(name: &str, place: &Range<u64>) -> Result<(), Refusal> {
    let (mut base, mut bytes) = (0, 0);
    // SAFETY: the call writes two numbers.
    let answer = unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, place.start) };
    answer.result().map_err(|_| Refusal::value(format!("{name} at {:#x} is no memory of the GPU", place.start)))?;
    if place.end > base + bytes as u64 {
        let past = place.end - base - bytes as u64;
        return Err(Refusal::value(format!("{name} reaches {past} bytes past its allocation")));
    }
    Ok(())
}

/// As `Type` in type.cuh.
fn number(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

fn driver(error: DriverError) -> Refusal {
    Refusal { status: Status::EXECUTION_FAILED, why: format!("{error:?}") }
}
