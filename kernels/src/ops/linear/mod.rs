//! Linear layers: y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, and its gradients.
//!
//! x is `[n, in]`, W `[out, in]` (frozen or trainable), b `[out]`, A `[r, in]`, B `[out, r]`, s = α/r, y `[n, out]`.
//! With u = s·x·Aᵀ `[n, r]` and v = s·dy·B `[n, r]` the gradients are
//!
//! | | formula | function |
//! |---|---|---|
//! | dx | dy·W + v·A | [`backward_input`] |
//! | db | Σ_n dy | [`bias_gradient`] |
//! | dA | vᵀ·x | [`lora_gradients`] |
//! | dB | dyᵀ·u | [`lora_gradients`] |
//! | dW | dyᵀ·x | [`weight_gradient`] |
//!
//! (Hu et al. 2021, "LoRA", equation 3.) Only u and v, r numbers a token, are ever stored for the adapter. An adapter may also lie inside
//! the weight, masked or scaled: W is then [`WeightRef::Adapted`], there is no u and no v, and [`adapted_gradients`] gives dA and dB.
//!
//! On a GPU x may be bf16, f16 or f32. In 16 bits tensor cores multiply, where all features are multiples of 8: weights of
//! another type are then rounded to x's, and zeros of 2:4 weights are skipped forward. Factors of the adapter stay f32; in f16
//! they lose what is below 2⁻²⁵. Where [`Gemm`](crate::device::Gemm) says so, dense products without an adapter are
//! cuBLASLt's, which takes the bias, too, in x's type.

mod adapted;
mod bias_gradient;
mod cpu;
pub(super) mod cuda;
mod epilogue;
#[doc(hidden)]
pub mod reference;

pub use adapted::adapted_gradients;
pub use epilogue::Epilogue;

use crate::device::{Backend, Buffer, Category, Cost, DType, Device};
use crate::error::{Error, Result, expect_activations, expect_dtype, expect_len};
use crate::simd::Isa;
use crate::spmm;
use crate::weight::WeightRef;
use cuda::library::Library;

/// A low-rank update of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// A, f32 `[rank, in]`.
    pub a: &'a Buffer,
    /// B, f32 `[out, rank]`.
    pub b: &'a Buffer,
    /// r.
    pub rank: usize,
    /// s = α/r.
    pub scale: f32,
}

impl Lora<'_> {
    fn check(&self, op: &'static str, weight: &WeightRef<'_>) -> Result<()> {
        expect_len(op, "A", self.a.len(), self.rank * weight.cols())?;
        expect_len(op, "B", self.b.len(), weight.rows() * self.rank)?;
        expect_dtype(op, "A", self.a.dtype(), DType::F32)?;
        expect_dtype(op, "B", self.b.dtype(), DType::F32)
    }

    /// Operations of both products of the adapter with `n` rows.
    fn flops(&self, n: usize, weight: &WeightRef<'_>) -> usize {
        2 * n * self.rank * (weight.rows() + weight.cols())
    }

    fn size_bytes(&self) -> usize {
        self.a.size_bytes() + self.b.size_bytes()
    }
}

fn check_weight(op: &'static str, weight: WeightRef<'_>) -> Result<()> {
    match weight {
        WeightRef::Trainable { value, .. } => expect_dtype(op, "weight", value.dtype(), DType::F32),
        WeightRef::Frozen(_) => Ok(()),
        WeightRef::Adapted(adapted) => adapted.check(op),
    }
}

/// y, and what gradients need.
#[derive(Debug)]
pub struct Forward {
    /// y `[n, out]`, in x's element type.
    pub y: Buffer,
    /// u = s·x·Aᵀ, f32 `[n, r]`, where there is an adapter: what [`lora_gradients`] needs.
    pub u: Option<Buffer>,
    /// What the gradient of [`Epilogue::activation`] needs, where it is to be saved.
    pub saved: Option<Buffer>,
}

/// y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ. `bias` is f32 `[out]`.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn forward(
    device: &Device,
    x: &Buffer,
    n: usize,
    weight: WeightRef<'_>,
    bias: Option<&Buffer>,
    lora: Option<Lora<'_>>,
) -> Result<Forward> {
    forward_with(device, x, n, weight, bias, lora, Epilogue::default())
}

/// y = f(x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ) + r with the epilogue's f and r.
///
/// # Errors
/// As [`forward`].
pub fn forward_with(
    device: &Device,
    x: &Buffer,
    n: usize,
    weight: WeightRef<'_>,
    bias: Option<&Buffer>,
    lora: Option<Lora<'_>>,
    epilogue: Epilogue<'_>,
) -> Result<Forward> {
    const OP: &str = "linear_forward";
    let (rows, cols) = (weight.rows(), weight.cols());
    expect_len(OP, "x", x.len(), n * cols)?;
    expect_activations(OP, "x", x)?;
    check_weight(OP, weight)?;
    if let Some(bias) = bias {
        expect_len(OP, "bias", bias.len(), rows)?;
        expect_dtype(OP, "bias", bias.dtype(), DType::F32)?;
    }
    lora.map_or(Ok(()), |lora| lora.check(OP, &weight))?;
    check_terms(OP, device, weight, lora.is_some())?;
    epilogue.check(OP, x.dtype(), n * rows)?;
    let shape = cuda::Shape { n, cols, rows };
    let by_library = lora.is_none() && cuda::library::takes(device, x.dtype(), weight, n);
    let is_fused = device.backend() == Backend::Cuda && !cuda::is_plain(x.dtype(), &[cols, rows]) && !by_library;
    let (fused, after) = if is_fused { (epilogue, Epilogue::default()) } else { (Epilogue::default(), epilogue) };
    let mut y = device.alloc(Category::Activations, x.dtype(), n * rows)?;
    let mut u = lora.map(|l| device.alloc(Category::Activations, DType::F32, n * l.rank)).transpose()?;
    let mut saved = fused.alloc(device, x.dtype(), n * rows)?;
    let mut work = device.cpu_workspace(cpu::work_len(n, cols, lora))?;
    let mut library = of_library(by_library, || Library::alloc(device, x.dtype(), weight, bias))?;
    let mut factors = cuda::adapted::workspace(device, x.dtype(), shape, weight)?;
    let operands = [bias, fused.residual].into_iter().flatten().map(Buffer::size_bytes).sum::<usize>();
    let cost = Cost::new(
        OP,
        weight.forward_flops(n)
            + forming_flops(device, x.dtype(), shape, weight)
            + lora.map_or(0, |l| l.flops(n, &weight))
            + fused.flops(n * rows),
        x.size_bytes() + weight.size_bytes() + operands + lora.map_or(0, |l| l.size_bytes()),
        y.size_bytes() + saved.as_ref().map_or(0, Buffer::size_bytes),
    );
    if device.gpu().is_some() {
        let ending = (fused, saved.as_mut());
        device.launch(cost, |gpu| match &mut library {
            Some(library) => {
                library.load(gpu, weight)?;
                library.forward(gpu, shape, x.into(), weight, bias, &mut y)
            }
            None => {
                let lora = lora.zip(u.as_mut());
                cuda::forward(gpu, shape, x, weight, bias, lora, ending, &mut factors, &mut y)
            }
        })?;
    } else {
        device.run(cost, || {
            let lora = lora.zip(u.as_mut().map(Buffer::f32_mut));
            cpu::forward(Isa::best(), x.f32(), n, weight, bias.map(Buffer::f32), lora, y.f32_mut(), work.f32_mut());
        });
    }
    drop((work, library, factors));
    let (y, saved_after) = after.apply(y)?;
    Ok(Forward { y, u, saved: saved.or(saved_after) })
}

/// A GPU's products take an adapter inside the weight or one beside it.
fn check_terms(op: &'static str, device: &Device, weight: WeightRef<'_>, lora: bool) -> Result<()> {
    if lora && matches!(weight, WeightRef::Adapted(_)) && device.backend() == Backend::Cuda {
        let what = "an adapter beside one inside the weight".into();
        return Err(Error::Unsupported { op, what, device: "cuda" });
    }
    Ok(())
}

/// Operations of a GPU to form the entries of an adapted weight. The CPU's are in [`WeightRef::product_flops`].
fn forming_flops(device: &Device, dtype: DType, shape: cuda::Shape, weight: WeightRef<'_>) -> usize {
    match weight {
        WeightRef::Adapted(adapted) if device.backend() == Backend::Cuda => {
            cuda::adapted::forming_flops(dtype, shape, adapted)
        }
        _ => 0,
    }
}

/// What the library needs, where a product is its.
fn of_library(is_used: bool, alloc: impl FnOnce() -> Result<Library>) -> Result<Option<Library>> {
    is_used.then(alloc).transpose()
}

/// v = s·dy·B, f32 `[n, r]`.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn lora_down(device: &Device, dy: &Buffer, n: usize, weight: WeightRef<'_>, lora: Lora<'_>) -> Result<Buffer> {
    const OP: &str = "lora_down";
    expect_len(OP, "dy", dy.len(), n * weight.rows())?;
    expect_activations(OP, "dy", dy)?;
    lora.check(OP, &weight)?;
    let mut v = device.alloc(Category::Activations, DType::F32, n * lora.rank)?;
    let mut work = device.cpu_workspace(cpu::work_len(n, weight.rows(), None))?;
    let cost = Cost::new(OP, 2 * n * lora.rank * weight.rows(), dy.size_bytes() + lora.b.size_bytes(), v.size_bytes());
    if device.gpu().is_some() {
        let shape = cuda::Shape { n, cols: weight.cols(), rows: weight.rows() };
        device.launch(cost, |gpu| cuda::lora_down(gpu, shape, dy, lora, &mut v))?;
        return Ok(v);
    }
    device.run(cost, || {
        cpu::lora_down(Isa::best(), dy.f32(), n, weight.rows(), lora, v.f32_mut(), work.f32_mut());
    });
    Ok(v)
}

/// dx = dy·W (+ v·A) `[n, in]`, in dy's element type. `lora` comes with its v.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn backward_input(
    device: &Device,
    dy: &Buffer,
    n: usize,
    weight: WeightRef<'_>,
    lora: Option<(Lora<'_>, &Buffer)>,
) -> Result<Buffer> {
    const OP: &str = "linear_backward_input";
    let (rows, cols) = (weight.rows(), weight.cols());
    expect_len(OP, "dy", dy.len(), n * rows)?;
    expect_activations(OP, "dy", dy)?;
    check_weight(OP, weight)?;
    if let Some((lora, v)) = lora {
        lora.check(OP, &weight)?;
        expect_len(OP, "v", v.len(), n * lora.rank)?;
        expect_dtype(OP, "v", v.dtype(), DType::F32)?;
    }
    check_terms(OP, device, weight, lora.is_some())?;
    let shape = cuda::Shape { n, cols, rows };
    let mut dx = device.alloc(Category::Activations, dy.dtype(), n * cols)?;
    let mut work = device.cpu_workspace(cpu::work_len(n, rows, lora.map(|(lora, _)| lora)))?;
    let by_library = lora.is_none() && cuda::library::takes(device, dy.dtype(), weight, n);
    let mut library = of_library(by_library, || Library::alloc(device, dy.dtype(), weight, None))?;
    let mut factors = cuda::adapted::workspace(device, dy.dtype(), shape, weight)?;
    let cost = Cost::new(
        OP,
        weight.product_flops(n)
            + forming_flops(device, dy.dtype(), shape, weight)
            + lora.map_or(0, |(l, _)| 2 * n * l.rank * cols),
        dy.size_bytes() + weight.size_bytes() + lora.map_or(0, |(l, v)| l.a.size_bytes() + v.size_bytes()),
        dx.size_bytes(),
    );
    if device.gpu().is_some() {
        device.launch(cost, |gpu| match &mut library {
            Some(library) => {
                library.load(gpu, weight)?;
                library.backward_input(gpu, shape, 1.0, dy.into(), weight, (&mut dx, 0))
            }
            None => cuda::backward_input(gpu, shape, dy, weight, lora, &mut factors, &mut dx),
        })?;
        return Ok(dx);
    }
    device.run(cost, || {
        let lora = lora.map(|(lora, v)| (lora, v.f32()));
        cpu::backward_input(Isa::best(), dy.f32(), n, weight, lora, dx.f32_mut(), work.f32_mut());
    });
    Ok(dx)
}

/// dA += vᵀ·x and dB += dyᵀ·u, into f32 buffers of the shapes of A and B.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn lora_gradients(
    device: &Device,
    x: &Buffer,
    dy: &Buffer,
    n: usize,
    (u, v): (&Buffer, &Buffer),
    d_a: &mut Buffer,
    d_b: &mut Buffer,
) -> Result<()> {
    const OP: &str = "lora_gradients";
    let rank = u.len() / n.max(1);
    let (rows, cols) = (dy.len() / n.max(1), x.len() / n.max(1));
    expect_len(OP, "v", v.len(), n * rank)?;
    expect_len(OP, "dA", d_a.len(), rank * cols)?;
    expect_len(OP, "dB", d_b.len(), rows * rank)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "dy", dy.dtype(), x.dtype())?;
    for (what, factor) in [("u", u), ("v", v), ("dA", &*d_a), ("dB", &*d_b)] {
        expect_dtype(OP, what, factor.dtype(), DType::F32)?;
    }
    let shape = cuda::Shape { n, cols, rows };
    let work_len = match device.backend() {
        Backend::Cpu => 0,
        Backend::Cuda => cuda::parts_len(x.dtype(), shape, rank),
    };
    let mut work = device.alloc(Category::Workspace, DType::F32, work_len)?;
    let cost = Cost::new(
        OP,
        2 * n * rank * (rows + cols),
        x.size_bytes() + dy.size_bytes() + u.size_bytes() + v.size_bytes() + d_a.size_bytes() + d_b.size_bytes(),
        d_a.size_bytes() + d_b.size_bytes(),
    );
    if device.gpu().is_some() {
        let gradients = (d_a, d_b);
        return device.launch(cost, |gpu| {
            cuda::lora_gradients(gpu, shape, (rank, 1.0), (x.into(), dy.into()), (u, v), gradients, &mut work)
        });
    }
    device.run(cost, || {
        let shape = cpu::LoraShape { n, rows, cols, rank };
        let (d_a, d_b) = (d_a.f32_mut(), d_b.f32_mut());
        cpu::lora_gradients(Isa::best(), shape, x.f32(), dy.f32(), u.f32(), v.f32(), d_a, d_b);
    });
    Ok(())
}

/// dW += dyᵀ·x, into an f32 buffer `[out, in]`.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn weight_gradient(device: &Device, x: &Buffer, dy: &Buffer, n: usize, d_weight: &mut Buffer) -> Result<()> {
    const OP: &str = "linear_weight_gradient";
    let (rows, cols) = (dy.len() / n.max(1), x.len() / n.max(1));
    expect_len(OP, "dW", d_weight.len(), rows * cols)?;
    expect_activations(OP, "x", x)?;
    expect_dtype(OP, "dy", dy.dtype(), x.dtype())?;
    expect_dtype(OP, "dW", d_weight.dtype(), DType::F32)?;
    let mut work = device.cpu_workspace(spmm::features_workspace_len(Isa::best(), cols, n))?;
    let shape = cuda::Shape { n, cols, rows };
    let by_library = cuda::library::takes_gradient(device, x.dtype(), shape);
    let mut library = of_library(by_library, || Library::alloc_gradient(device))?;
    let cost = Cost::new(
        OP,
        2 * n * rows * cols,
        x.size_bytes() + dy.size_bytes() + d_weight.size_bytes(),
        d_weight.size_bytes(),
    );
    if device.gpu().is_some() {
        return device.launch(cost, |gpu| match &mut library {
            Some(library) => library.weight_gradient(gpu, shape, 1.0, x.into(), dy.into(), d_weight),
            None => cuda::weight_gradient(gpu, shape, 1.0, x.into(), dy.into(), d_weight),
        });
    }
    device.run(cost, || {
        cpu::weight_gradient(Isa::best(), (n, rows, cols), x.f32(), dy.f32(), d_weight.f32_mut(), work.f32_mut());
    });
    Ok(())
}

/// db += Σ_n dy, into an f32 buffer `[out]`.
///
/// # Errors
/// An operand whose length or element type does not fit, or no memory.
pub fn bias_gradient(device: &Device, dy: &Buffer, n: usize, d_bias: &mut Buffer) -> Result<()> {
    const OP: &str = "bias_gradient";
    expect_len(OP, "dy", dy.len(), n * d_bias.len())?;
    expect_activations(OP, "dy", dy)?;
    expect_dtype(OP, "db", d_bias.dtype(), DType::F32)?;
    let cost = Cost::new(OP, dy.len(), dy.size_bytes() + d_bias.size_bytes(), d_bias.size_bytes());
    let on_gpu = device.backend() == Backend::Cuda;
    let partials = on_gpu.then(|| bias_gradient::partials(device, n, d_bias.len())).transpose()?;
    if let (Some(_), Some(mut partials)) = (device.gpu(), partials) {
        return device.launch(cost, |gpu| bias_gradient::launch(gpu, dy, n, &mut partials, d_bias));
    }
    device.run(cost, || cpu::bias_gradient(Isa::best(), dy.f32(), n, d_bias.f32_mut()));
    Ok(())
}

#[cfg(test)]
mod tests;
