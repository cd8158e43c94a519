//! A cuBLASLt for tests on machines without NVIDIA's: the functions that perp-engine calls, under their names.
//!
//! It computes with a kernel of its own, one entry a thread, through whatever CUDA driver the process has loaded: on the
//! virtual GPU each address that it touches is checked. What the real library leaves undefined is an error here: a pointer
//! whose matrix leaves its allocation, an algorithm that was chosen for another product, less alignment or workspace than
//! was promised, results that overlap operands. Why a call is refused goes to stderr. `VIRTUAL_CUBLAS_VERSION` is what it
//! says of its version.

#![allow(non_snake_case)]

mod descriptions;
mod matmul;

use std::ffi::c_void;

use descriptions::{Description, Layout, Preference};
use matmul::{Algorithm, Handle, Heuristic, Operands};

/// `cublasStatus_t`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub i32);

impl Status {
    /// All is well.
    pub const SUCCESS: Status = Status(0);
    /// No context is current, or no driver is there.
    pub const NOT_INITIALIZED: Status = Status(1);
    /// A parameter that can't be.
    pub const INVALID_VALUE: Status = Status(7);
    /// The driver refused.
    pub const EXECUTION_FAILED: Status = Status(13);
    /// A product that the library does not do.
    pub const NOT_SUPPORTED: Status = Status(15);
}

/// Why a call is refused.
#[derive(Debug)]
pub struct Refusal {
    status: Status,
    why: String,
}

impl Refusal {
    fn value(why: impl Into<String>) -> Refusal {
        Refusal { status: Status::INVALID_VALUE, why: why.into() }
    }

    fn unsupported(why: impl Into<String>) -> Refusal {
        Refusal { status: Status::NOT_SUPPORTED, why: why.into() }
    }
}

/// The answer to a call.
fn answer(call: &str, result: Result<(), Refusal>) -> Status {
    match result {
        Ok(()) => Status::SUCCESS,
        Err(Refusal { status, why }) => {
            eprintln!("virtual cuBLASLt: {call}: {why}");
            status
        }
    }
}

/// What a handle of the caller points to.
///
/// # Safety
/// It is null, or was made by this library and not destroyed.
unsafe fn made<'a, T>(handle: *mut T, what: &str) -> Result<&'a mut T, Refusal> {
    // SAFETY: the caller vouches for it.
    unsafe { handle.as_mut() }.ok_or_else(|| Refusal::value(format!("no {what}")))
}

/// Gives a new object to the caller.
///
/// # Safety
/// `to` is null or may be written.
unsafe fn give<T>(to: *mut *mut T, value: Result<T, Refusal>) -> Result<(), Refusal> {
    // SAFETY: the caller vouches for it.
    let to = unsafe { to.as_mut() }.ok_or_else(|| Refusal::value("nowhere to put it"))?;
    *to = Box::into_raw(Box::new(value?));
    Ok(())
}

/// Frees an object.
///
/// # Safety
/// As [`made`].
unsafe fn destroy<T>(call: &str, handle: *mut T) -> Status {
    if handle.is_null() {
        return answer(call, Err(Refusal::value("nothing to destroy")));
    }
    // SAFETY: the caller vouches for it.
    drop(unsafe { Box::from_raw(handle) });
    Status::SUCCESS
}

/// The version, as 10000 · major + 100 · minor + patch.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    std::env::var("VIRTUAL_CUBLAS_VERSION").ok().and_then(|text| text.parse().ok()).unwrap_or(120_205)
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut *mut Handle) -> Status {
    // SAFETY: `handle` is the caller's to vouch for.
    answer("cublasLtCreate", unsafe { give(handle, Handle::new()) })
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(handle: *mut Handle) -> Status {
    // SAFETY: as above.
    unsafe { destroy("cublasLtDestroy", handle) }
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut *mut Layout,
    dtype: u32,
    rows: u64,
    cols: u64,
    leading: i64,
) -> Status {
    // SAFETY: as above.
    answer("cublasLtMatrixLayoutCreate", unsafe { give(layout, Layout::new(dtype, rows, cols, leading)) })
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut Layout) -> Status {
    // SAFETY: as above.
    unsafe { destroy("cublasLtMatrixLayoutDestroy", layout) }
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    description: *mut *mut Description,
    compute: u32,
    scale: u32,
) -> Status {
    // SAFETY: as above.
    answer("cublasLtMatmulDescCreate", unsafe { give(description, Description::new(compute, scale)) })
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(description: *mut Description) -> Status {
    // SAFETY: as above.
    unsafe { destroy("cublasLtMatmulDescDestroy", description) }
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    description: *mut Description,
    which: u32,
    value: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: as above.
    let result = unsafe {
        made(description, "description").and_then(|description| description.set(which, bytes_of(value, bytes)?))
    };
    answer("cublasLtMatmulDescSetAttribute", result)
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut *mut Preference) -> Status {
    // SAFETY: as above.
    answer("cublasLtMatmulPreferenceCreate", unsafe { give(preference, Ok(Preference::default())) })
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut Preference) -> Status {
    // SAFETY: as above.
    unsafe { destroy("cublasLtMatmulPreferenceDestroy", preference) }
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut Preference,
    which: u32,
    value: *const c_void,
    bytes: usize,
) -> Status {
    // SAFETY: as above.
    let result =
        unsafe { made(preference, "preference").and_then(|preference| preference.set(which, bytes_of(value, bytes)?)) };
    answer("cublasLtMatmulPreferenceSetAttribute", result)
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: *mut Handle,
    description: *mut Description,
    a: *mut Layout,
    b: *mut Layout,
    c: *mut Layout,
    d: *mut Layout,
    preference: *mut Preference,
    asked: i32,
    results: *mut Heuristic,
    found: *mut i32,
) -> Status {
    // SAFETY: as above; one result is asked for at least, and there is room for it.
    let result = unsafe {
        (|| {
            made(handle, "handle")?;
            if asked < 1 {
                return Err(Refusal::value("no algorithm is asked for"));
            }
            let layouts = [made(a, "A")?, made(b, "B")?, made(c, "C")?, made(d, "D")?].map(|layout| *layout);
            let algorithm =
                Algorithm::choose(made(description, "description")?, layouts, made(preference, "preference")?)?;
            *made(results, "place for the result")? = Heuristic::of(algorithm);
            *made(found, "place for their number")? = 1;
            Ok(())
        })()
    };
    answer("cublasLtMatmulAlgoGetHeuristic", result)
}

/// # Safety
/// As CUDA says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: *mut Handle,
    description: *mut Description,
    alpha: *const f32,
    a: u64,
    a_layout: *mut Layout,
    b: u64,
    b_layout: *mut Layout,
    beta: *const f32,
    c: u64,
    c_layout: *mut Layout,
    d: u64,
    d_layout: *mut Layout,
    algorithm: *const Algorithm,
    workspace: u64,
    workspace_bytes: usize,
    stream: *mut c_void,
) -> Status {
    // SAFETY: as above; scalars are in the host's memory, as descriptions say that can't be told otherwise.
    let result = unsafe {
        (|| {
            let layouts =
                [made(a_layout, "A")?, made(b_layout, "B")?, made(c_layout, "C")?, made(d_layout, "D")?].map(|l| *l);
            let operands = Operands {
                layouts,
                addresses: [a, b, c, d],
                alpha: *made(alpha.cast_mut(), "alpha")?,
                beta: *made(beta.cast_mut(), "beta")?,
                workspace: (workspace, workspace_bytes),
            };
            let algorithm = made(algorithm.cast_mut(), "algorithm")?;
            made(handle, "handle")?.multiply(made(description, "description")?, algorithm, &operands, stream)
        })()
    };
    answer("cublasLtMatmul", result)
}

/// The value of an attribute.
///
/// # Safety
/// `value` is null or holds so many bytes.
unsafe fn bytes_of<'a>(value: *const c_void, bytes: usize) -> Result<&'a [u8], Refusal> {
    if value.is_null() {
        return Err(Refusal::value("no value"));
    }
    // SAFETY: the caller vouches for it.
    Ok(unsafe { std::slice::from_raw_parts(value.cast(), bytes) })
}
