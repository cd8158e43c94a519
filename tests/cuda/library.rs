//! Whole steps whose dense products are cuBLASLt's. Where a real GPU comes without the library there is nothing to hold; the
//! virtual GPU always has one.

use engine::peft::Method;
use engine::prune::Pattern;
use engine::retrain::StepRecord;
use kernels::device::{CudaError, Gemm};
use kernels::{Backend, DType, Device, Error};

use crate::memory::measure;
use crate::small_models::{folder, llama, opt, opt_post_norm};
use crate::training::{LOSS, NORM, train};

const HALF: Pattern = Pattern::Unstructured { sparsity: 0.5 };

pub fn with_library(gemm: Gemm) -> Option<Device> {
    match Device::cuda_with(0, Gemm::Cublas) {
        Ok(_) => Some(Device::cuda_with(0, gemm).expect("the library that was just there")),
        Err(Error::Cuda(CudaError::NoCublas { .. })) if std::env::var_os("VIRTUAL_GPU_DEVICE").is_none() => None,
        Err(error) => panic!("{error}"),
    }
}

/// Workspace and rounded weights are planned, too.
#[test]
#[ignore = "needs a GPU"]
fn gpu_peaks_are_metas_with_the_library() {
    for gemm in [Gemm::Auto, Gemm::Cublas] {
        let Some(device) = with_library(gemm) else { return };
        let meta = Device::meta_with(Backend::Cuda, device.threads(), gemm);
        for (config, dtype) in [(opt(), DType::BF16), (llama(), DType::F32)] {
            let folder = folder(&config, dtype, 0.05);
            for (method, pattern) in [(Method::Full, HALF), (Method::Perp, Pattern::Unstructured { sparsity: 0.0 })] {
                let of = |device: &Device| measure(device, &folder, method, pattern, 0);
                assert_eq!(of(&device), of(&meta), "{gemm:?} {} {method} {pattern}", config["model_type"]);
            }
        }
    }
}

/// The same products in sums of another order, and biases rounded to bf16 as activations are: what training in bf16 may be
/// off by. The same run gives the same bits again.
#[test]
#[ignore = "needs a GPU"]
fn gpu_full_training_by_the_library_follows_our_kernels() {
    let own = Device::cuda(0).unwrap();
    for (config, gemm) in [(opt_post_norm(), Gemm::Auto), (llama(), Gemm::Cublas)] {
        let Some(device) = with_library(gemm) else { return };
        let folder = folder(&config, DType::BF16, 0.08);
        let train = |device| train(device, &folder, Method::Full, HALF, 0);
        let (want, got) = (train(&own), train(&device));
        for (got, want) in got.iter().zip(&want) {
            let what = format!("{} {gemm:?}, step {}", config["model_type"], want.step);
            let (loss, norm) = (got.loss / want.loss - 1.0, got.grad_norm / want.grad_norm - 1.0);
            assert!(loss.abs() <= LOSS, "{what}: loss {}, not {}", got.loss, want.loss);
            assert!(norm.abs() <= NORM, "{what}: norm {}, not {}", got.grad_norm, want.grad_norm);
        }
        if gemm == Gemm::Cublas {
            let bits = |records: &[StepRecord]| records.iter().map(|r| (r.loss, r.grad_norm)).collect::<Vec<_>>();
            assert_eq!(bits(&train(&device)), bits(&got));
        }
    }
}
