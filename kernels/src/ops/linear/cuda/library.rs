//! Dense products by cuBLASLt: y = x·Wᵀ + b, dx = dy·W and dW += dyᵀ·x.
//!
//! It multiplies operands of one type. Where x has 16 bits, W and b in f32 are rounded to x's type first, by round.cu: 6 bytes
//! a weight, once for a product, beside the 2·n operations a weight of the product itself.

use super::{Shape, Weight, is_plain};
use crate::device::{Buffer, Category, DType, Device, Gemm, Gpu, Product, Side, Source, Span, WORKSPACE};
use crate::error::Result;
use crate::ops::cuda::kernel_name;
use crate::weight::{FrozenWeight, WeightRef};

static ROUND: Source = Source { name: "round", ptx: include_str!("../../../../ptx/round.ptx") };

/// As in round.cu.
const THREADS: usize = 256;
/// As in round.cu: numbers of a thread.
const EACH: usize = 4;

/// Whether the library multiplies x of type `dtype` in n rows with a weight that has no adapter.
pub(in crate::ops) fn takes(device: &Device, dtype: DType, weight: WeightRef<'_>, n: usize) -> bool {
    let (asked, stored) = match (device.gemm(), weight) {
        (Gemm::Auto | Gemm::Cublas, WeightRef::Trainable { value, .. }) => (true, value.dtype()),
        (gemm, WeightRef::Frozen(FrozenWeight::Dense(dense))) => (gemm == Gemm::Cublas, dense.values().dtype()),
        _ => return false,
    };
    asked && (stored == dtype || stored == DType::F32) && takes_sizes(dtype, [n, weight.rows(), weight.cols()])
}

/// Whether the library sums dyᵀ·x.
pub(in crate::ops) fn takes_gradient(device: &Device, dtype: DType, shape: Shape) -> bool {
    device.gemm() != Gemm::Own && takes_sizes(dtype, [shape.n, shape.rows, shape.cols])
}

/// Tensor cores' copies take 8 features at once; sizes are to it what an i32 holds.
fn takes_sizes(dtype: DType, [n, rows, cols]: [usize; 3]) -> bool {
    let fits = |size: &usize| (1..=i32::MAX as usize).contains(size);
    (dtype == DType::F32 || !is_plain(dtype, &[rows, cols])) && [n, rows, cols].iter().all(fits)
}

/// What lives within a product.
pub(in crate::ops) struct Library {
    workspace: Buffer,
    /// W and b in x's type, where they are stored in another.
    weight: Option<Buffer>,
    bias: Option<Buffer>,
}

impl Library {
    /// For products of x in `dtype` with a weight that [`takes`] admits.
    pub fn alloc(device: &Device, dtype: DType, weight: WeightRef<'_>, bias: Option<&Buffer>) -> Result<Library> {
        let len = weight.rows() * weight.cols();
        let is_stored_so = weight.size_bytes() == len * dtype.size();
        let rounded = |len| device.alloc(Category::Workspace, dtype, len);
        Ok(Library {
            workspace: device.alloc(Category::Workspace, DType::U8, WORKSPACE)?,
            weight: if is_stored_so { None } else { Some(rounded(len)?) },
            bias: bias.filter(|_| dtype != DType::F32).map(|bias| rounded(bias.len())).transpose()?,
        })
    }

    /// For dW.
    pub fn alloc_gradient(device: &Device) -> Result<Library> {
        let workspace = device.alloc(Category::Workspace, DType::U8, WORKSPACE)?;
        Ok(Library { workspace, weight: None, bias: None })
    }

    /// Rounds the weight, where it must be: what [`Library::forward`] and [`Library::backward_input`] multiply.
    pub fn load(&mut self, gpu: &Gpu, weight: WeightRef<'_>) -> Result<()> {
        match (&mut self.weight, Weight::of(weight)?) {
            (Some(rounded), Weight::Dense(values)) => round(gpu, values, rounded),
            _ => Ok(()),
        }
    }

    /// y = x·Wᵀ + b
    pub fn forward(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        x: Span<'_>,
        weight: WeightRef<'_>,
        bias: Option<&Buffer>,
        y: &mut Buffer,
    ) -> Result<()> {
        if let (Some(rounded), Some(bias)) = (&mut self.bias, bias) {
            round(gpu, bias, rounded)?;
        }
        let Shape { n, cols, rows } = shape;
        let (a, b) = (Side::straight(x), Side::turned(stored(&self.weight, weight)?));
        let bias = self.bias.as_ref().or(bias);
        let product = Product { m: n, n: rows, k: cols, a, b, alpha: 1.0, accumulate: false, bias };
        // SAFETY: `mod.rs` checks every length against the shape; W is `[rows, cols]` in x's type.
        Ok(unsafe { gpu.multiply(&product, &mut self.workspace, (y, 0)) }?)
    }

    /// dx = scale·dy·W, dx from element `first` on.
    pub fn backward_input(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        scale: f32,
        dy: Span<'_>,
        weight: WeightRef<'_>,
        (dx, first): (&mut Buffer, usize),
    ) -> Result<()> {
        let Shape { n, cols, rows } = shape;
        let (a, b) = (Side::straight(dy), Side::straight(stored(&self.weight, weight)?));
        let product = Product { m: n, n: cols, k: rows, a, b, alpha: scale, accumulate: false, bias: None };
        // SAFETY: as above.
        Ok(unsafe { gpu.multiply(&product, &mut self.workspace, (dx, first)) }?)
    }

    /// dW += scale·dyᵀ·x
    pub fn weight_gradient(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        scale: f32,
        x: Span<'_>,
        dy: Span<'_>,
        d_weight: &mut Buffer,
    ) -> Result<()> {
        let Shape { n, cols, rows } = shape;
        let (a, b) = (Side::turned(dy), Side::straight(x));
        let product = Product { m: rows, n: cols, k: n, a, b, alpha: scale, accumulate: true, bias: None };
        // SAFETY: as above.
        Ok(unsafe { gpu.multiply(&product, &mut self.workspace, (d_weight, 0)) }?)
    }
}

/// The weight in x's type.
fn stored<'a>(rounded: &'a Option<Buffer>, weight: WeightRef<'a>) -> Result<&'a Buffer> {
    match (rounded, Weight::of(weight)?) {
        (Some(rounded), _) => Ok(rounded),
        (None, Weight::Dense(values)) => Ok(values),
        (None, _) => unreachable!("`takes` admits dense weights only"),
    }
}

/// `to`, in 16 bits, from f32. Their number is a multiple of four, for that of features is one of eight.
fn round(gpu: &Gpu, from: &Buffer, to: &mut Buffer) -> Result<()> {
    let launch = gpu
        .launch(&ROUND, kernel_name!("round", to.dtype()))?
        .grid([to.len().div_ceil(THREADS * EACH), 1, 1])
        .block([THREADS, 1, 1])
        .read(from)
        .value(to.len() as u64)
        .write(to);
    // SAFETY: both have that many elements, of the types that the kernel's name says.
    Ok(unsafe { launch.run() }?)
}
