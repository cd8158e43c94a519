//! What callers describe: matrices, products, and what algorithms may do.

use cudarc::cublaslt::sys::cublasComputeType_t as Compute;
use cudarc::cublaslt::sys::cublasLtEpilogue_t as Epilogue;
use cudarc::cublaslt::sys::cublasLtMatmulDescAttributes_t as Attribute;
use cudarc::cublaslt::sys::cublasLtMatmulPreferenceAttributes_t as Limit;
use cudarc::cublaslt::sys::cudaDataType_t as Data;

use crate::Refusal;

/// `cublasOperation_t`.
const CUBLAS_OP_N: u32 = 0;
const CUBLAS_OP_T: u32 = 1;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    BF16,
}

impl DType {
    fn of(number: u32) -> Result<DType, Refusal> {
        [(Data::CUDA_R_32F, DType::F32), (Data::CUDA_R_16F, DType::F16), (Data::CUDA_R_16BF, DType::BF16)]
            .into_iter()
            .find_map(|(data, dtype)| (data as u32 == number).then_some(dtype))
            .ok_or_else(|| Refusal::unsupported(format!("element type {number}")))
    }

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        if self == DType::F32 { 4 } else { 2 }
    }
}

/// A column-major matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    pub dtype: DType,
    pub rows: u64,
    pub cols: u64,
    pub leading: u64,
}

impl Layout {
    pub fn new(dtype: u32, rows: u64, cols: u64, leading: i64) -> Result<Layout, Refusal> {
        if rows == 0 || cols == 0 || leading < rows as i64 {
            return Err(Refusal::value(format!("{rows}×{cols} with {leading} between columns")));
        }
        Ok(Layout { dtype: DType::of(dtype)?, rows, cols, leading: leading as u64 })
    }

    /// Bytes from its first to behind its last element.
    pub fn extent(&self) -> u64 {
        ((self.cols - 1) * self.leading + self.rows) * self.dtype.size()
    }
}

/// A product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Description {
    /// f32 is multiplied as such, whatever the environment says.
    pub pedantic: bool,
    pub turned: [bool; 2],
    pub has_bias: bool,
    pub bias: u64,
}

impl Description {
    pub fn new(compute: u32, scale: u32) -> Result<Description, Refusal> {
        if DType::of(scale)? != DType::F32 {
            return Err(Refusal::unsupported("scales that are not f32"));
        }
        let pedantic = compute == Compute::CUBLAS_COMPUTE_32F_PEDANTIC as u32;
        if !pedantic && compute != Compute::CUBLAS_COMPUTE_32F as u32 {
            return Err(Refusal::unsupported(format!("sums of type {compute}: only f32 is exact enough")));
        }
        Ok(Description { pedantic, turned: [false; 2], has_bias: false, bias: 0 })
    }

    pub fn set(&mut self, which: u32, value: &[u8]) -> Result<(), Refusal> {
        let is = |attribute: Attribute| which == attribute as u32;
        if is(Attribute::CUBLASLT_MATMUL_DESC_TRANSA) || is(Attribute::CUBLASLT_MATMUL_DESC_TRANSB) {
            let operation = word(value)?;
            let turned = operation == CUBLAS_OP_T;
            if !turned && operation != CUBLAS_OP_N {
                return Err(Refusal::unsupported(format!("operation {operation}")));
            }
            self.turned[usize::from(is(Attribute::CUBLASLT_MATMUL_DESC_TRANSB))] = turned;
        } else if is(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE) {
            let epilogue = word(value)?;
            self.has_bias = epilogue == Epilogue::CUBLASLT_EPILOGUE_BIAS as u32;
            if !self.has_bias && epilogue != Epilogue::CUBLASLT_EPILOGUE_DEFAULT as u32 {
                return Err(Refusal::unsupported(format!("epilogue {epilogue}")));
            }
        } else if is(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER) {
            self.bias = long(value)?;
        } else {
            return Err(Refusal::unsupported(format!("attribute {which}")));
        }
        Ok(())
    }
}

/// What algorithms may do.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    pub workspace: u64,
    /// Reductions that are allowed, a bit each.
    pub reductions: u32,
    /// Of the addresses of A, B, C and D.
    pub alignment: [u32; 4],
}

impl Default for Preference {
    fn default() -> Preference {
        Preference { workspace: 0, reductions: 7, alignment: [256; 4] }
    }
}

impl Preference {
    pub fn set(&mut self, which: u32, value: &[u8]) -> Result<(), Refusal> {
        let is = |limit: Limit| which == limit as u32;
        let sides = [
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        if is(Limit::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
            self.workspace = long(value)?;
        } else if is(Limit::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
            self.reductions = word(value)?;
        } else if let Some(side) = sides.into_iter().position(is) {
            let alignment = word(value)?;
            if !alignment.is_power_of_two() {
                return Err(Refusal::value(format!("alignment {alignment} is no power of two")));
            }
            self.alignment[side] = alignment;
        } else {
            return Err(Refusal::unsupported(format!("preference {which}")));
        }
        Ok(())
    }
}

fn word(value: &[u8]) -> Result<u32, Refusal> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Refusal::value(format!("{} bytes, expected 4", value.len())))
}

fn long(value: &[u8]) -> Result<u64, Refusal> {
    value.try_into().map(u64::from_ne_bytes).map_err(|_| Refusal::value(format!("{} bytes, expected 8", value.len())))
}
