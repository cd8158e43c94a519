//! Operands, rounded as their element type asks, and comparisons.

use std::sync::OnceLock;

use half::{bf16, f16};
use kernels::device::{CudaError, Gemm};
use kernels::{Buffer, Category, DType, Device, Error};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The first GPU, opened once: loading kernels takes longer than running them here.
pub fn gpu() -> Device {
    static GPU: OnceLock<Device> = OnceLock::new();
    GPU.get_or_init(|| Device::cuda(0).expect("a GPU, real or virtual")).clone()
}

/// The same with cuBLASLt for all dense products; none where the machine has no such library.
pub fn cublas() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(|| with_library(Gemm::Cublas)).clone()
}

/// The first GPU, opened anew, with cuBLASLt for what `gemm` says. The virtual one always has that.
pub fn with_library(gemm: Gemm) -> Option<Device> {
    match Device::cuda_with(0, Gemm::Cublas) {
        Ok(_) => Some(Device::cuda_with(0, gemm).expect("the library that was just there")),
        Err(Error::Cuda(CudaError::NoCublas { .. })) if std::env::var_os("VIRTUAL_GPU_DEVICE").is_none() => None,
        Err(error) => panic!("{error}"),
    }
}

/// Numbers in [−1, 1) that `dtype` holds exactly.
pub fn random(dtype: DType, len: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| round(dtype, f64::from((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0))).collect()
}

/// The nearest number of the type.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::BF16 => bf16::from_f64(x).to_f64(),
        DType::F16 => f16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

/// The largest relative error of rounding to the type.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

pub fn upload(device: &Device, dtype: DType, values: &[f64]) -> Buffer {
    let category = Category::Activations;
    match dtype {
        DType::BF16 => device.upload(category, &values.iter().map(|x| bf16::from_f64(*x)).collect::<Vec<_>>()),
        DType::F16 => device.upload(category, &values.iter().map(|x| f16::from_f64(*x)).collect::<Vec<_>>()),
        _ => device.upload(category, &values.iter().map(|x| *x as f32).collect::<Vec<_>>()),
    }
    .unwrap()
}

pub fn download(buffer: &Buffer) -> Vec<f64> {
    match buffer.dtype() {
        DType::BF16 => buffer.download::<bf16>().unwrap().into_iter().map(bf16::to_f64).collect(),
        DType::F16 => buffer.download::<f16>().unwrap().into_iter().map(f16::to_f64).collect(),
        _ => buffer.download::<f32>().unwrap().into_iter().map(f64::from).collect(),
    }
}

/// Every value within rounding to the buffer's type, plus `tolerance` for what came before (relative above 1).
pub fn assert_close(what: &str, got: &Buffer, want: &[f64], tolerance: f64) {
    let rounding = rounding(got.dtype());
    assert_within(what, got, want, |i| rounding * want[i].abs() + tolerance * want[i].abs().max(1.0));
}

/// Every value within what is allowed at its place.
pub fn assert_within(what: &str, got: &Buffer, want: &[f64], allowed: impl Fn(usize) -> f64) {
    let got = download(got);
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let allowed = allowed(i);
        assert!((got - want).abs() <= allowed, "{what}[{i}] = {got}, not {want} ± {allowed}");
    }
}

/// Sums in f32 that round `roundings` times, one after the other: each time a part of the sum, which is no larger than the
/// sum of magnitudes, changes by at most 2⁻²⁴ of itself.
pub fn assert_sums(what: &str, got: &Buffer, want: &[f64], magnitudes: &[f64], roundings: usize) {
    let share = roundings as f64 * rounding(DType::F32);
    assert_within(what, got, want, |i| share * magnitudes[i]);
}

/// Element by element.
pub fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Central differences of `objective` in each entry of `values`.
pub fn differences(values: &[f64], step: f64, mut objective: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut values = values.to_vec();
    (0..values.len())
        .map(|i| {
            let x = values[i];
            values[i] = x + step;
            let high = objective(&values);
            values[i] = x - step;
            let low = objective(&values);
            values[i] = x;
            (high - low) / (2.0 * step)
        })
        .collect()
}

/// Σ a·b
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
