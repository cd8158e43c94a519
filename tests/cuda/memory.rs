//! Three accounts of one step: Meta's plan, the accountant's, and the driver's.

use engine::peft::{self, Method};
use engine::plan::{self, StepShape};
use engine::prune::Pattern;
use kernels::device::MemoryReport;
use kernels::{Backend, DType, Device};
use serde_json::Value;
use tempfile::TempDir;

use crate::small_models::{folder, llama, load_offloaded, opt, opt_post_norm, train_set, trained};

/// Runs two steps; what was in use before, and the peak of the second.
fn measure_offloaded(
    device: &Device,
    folder: &TempDir,
    method: Method,
    pattern: Pattern,
    recompute: usize,
    layers: usize,
) -> (u64, MemoryReport) {
    let mut model = load_offloaded(device, folder, pattern, layers);
    let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
    let in_use = device.memory().in_use();
    let shape = StepShape { batch: 2, accumulate: 2, seq_len: 37, recompute };
    (in_use, plan::measure(&mut *model, params, shape).unwrap().peak)
}

pub fn measure(
    device: &Device,
    folder: &TempDir,
    method: Method,
    pattern: Pattern,
    recompute: usize,
) -> (u64, MemoryReport) {
    measure_offloaded(device, folder, method, pattern, recompute, 0)
}

fn peaks_agree(config: &Value, method: Method, pattern: Pattern, recompute: usize) {
    let what = format!("{} {method} {pattern} recomputing {recompute}", config["model_type"]);
    let folder = folder(config, DType::BF16, 0.05);
    let of = |device: &Device| measure(device, &folder, method, pattern, recompute);
    let device = Device::cuda(0).unwrap();
    assert_eq!(of(&device), of(&Device::meta(Backend::Cuda, device.threads())), "{what}");
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_peaks_are_metas_for_every_method() {
    for config in [opt(), opt_post_norm(), llama()] {
        for method in trained() {
            if method == Method::Biases && config["model_type"] == "llama" {
                continue;
            }
            peaks_agree(&config, method, Pattern::Unstructured { sparsity: 0.5 }, 0);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_peaks_are_metas_for_every_pattern_and_with_checkpointing() {
    for pattern in
        [Pattern::Unstructured { sparsity: 0.0 }, Pattern::Unstructured { sparsity: 0.9 }, Pattern::NM { n: 2, m: 4 }]
    {
        for recompute in [1, usize::MAX] {
            peaks_agree(&opt(), Method::Perp, pattern, recompute);
            peaks_agree(&opt(), Method::MaskLora, pattern, recompute);
        }
    }
}

/// Each layer in the host's memory lowers the peak; the first has two places for the largest matrix to pay.
#[test]
#[ignore = "needs a GPU"]
fn gpu_peaks_are_metas_with_layers_offloaded() {
    let device = Device::cuda(0).unwrap();
    let meta = Device::meta(Backend::Cuda, device.threads());
    let folder = folder(&opt(), DType::BF16, 0.05);
    let half = Pattern::Unstructured { sparsity: 0.5 };
    let of = |device: &Device, layers| measure_offloaded(device, &folder, Method::Perp, half, 0, layers);
    let planned = [0, 1, 2, 3].map(|layers| of(&meta, layers));
    for layers in [1, 3] {
        assert_eq!(of(&device, layers), planned[layers], "{layers} layers");
    }
    let peak = planned.map(|(_, peak)| peak.total);
    assert!(peak[3] < peak[2] && peak[2] < peak[1] && peak[2] < peak[0], "{peak:?}");
}

/// A graph's memory is planned to the byte: what its places take beyond their buffers is the same on Meta.
#[test]
#[ignore = "needs a GPU"]
fn gpu_peaks_of_graphs_are_metas() {
    let device = Device::cuda(0).unwrap();
    let meta = Device::meta(Backend::Cuda, device.threads());
    let half = Pattern::Unstructured { sparsity: 0.5 };
    let of = |device: &Device, folder: &TempDir, method, recompute, layers, graph| {
        let mut model = load_offloaded(device, folder, half, layers);
        let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
        let in_use = device.memory().in_use();
        let shape = StepShape { batch: 2, accumulate: 2, seq_len: 37, recompute };
        let peak = match graph {
            true => plan::measure_graph(&mut *model, params, shape).unwrap(),
            false => plan::measure(&mut *model, params, shape).unwrap().peak,
        };
        (in_use, peak)
    };
    for (config, method, recompute, layers) in
        [(opt(), Method::Perp, 0, 0), (opt(), Method::Perp, 2, 1), (llama(), Method::Full, 0, 0)]
    {
        let folder = folder(&config, DType::BF16, 0.05);
        let planned = of(&meta, &folder, method, recompute, layers, true);
        assert_eq!(of(&device, &folder, method, recompute, layers, true), planned, "{method} {recompute} {layers}");
        // All that a plain step has at its peak is in it, and its places are not much larger.
        let (in_use, plain) = of(&meta, &folder, method, recompute, layers, false);
        assert!(planned.1.total >= plain.total, "{} is less than {}", planned.1.total, plain.total);
        let (slab, step) = (planned.1.total - in_use, plain.total - in_use);
        println!("{method} {recompute} {layers}: {slab} for {step}");
    }
}

/// From the first tensor to the last step. A driver rounds buffers up, to 512 bytes; a virtual one does not.
#[test]
#[ignore = "needs a GPU, and that no other test takes of its memory"]
fn the_driver_gives_what_is_accounted() {
    let device = Device::cuda(0).unwrap();
    let gpu = device.gpu().unwrap();
    const HALF: Pattern = Pattern::Unstructured { sparsity: 0.5 };
    for (config, method, pattern) in [
        (llama(), Method::Perp, HALF),
        (llama(), Method::MaskLora, HALF),
        (llama(), Method::Full, HALF),
        (opt(), Method::Perp, Pattern::NM { n: 2, m: 4 }),
        (opt(), Method::Probe, Pattern::NM { n: 1, m: 4 }),
        (opt_post_norm(), Method::ScaleLora, Pattern::Unstructured { sparsity: 0.7 }),
    ] {
        let folder = folder(&config, DType::BF16, 0.05);
        device.trim();
        device.memory().reset_peak();
        gpu.reset_pool_peak().unwrap();
        let (weights, _) = measure(&device, &folder, method, pattern, 0);
        let (accounted, given) = (device.memory().peak().total, gpu.pool_peak().unwrap().unwrap());
        // With graphs: their slab is all that is taken, once the steps before have given back what they had.
        let mut model = load_offloaded(&device, &folder, pattern, 0);
        let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
        device.trim();
        gpu.reset_pool_peak().unwrap();
        let shape = StepShape { batch: 2, accumulate: 2, seq_len: 37, recompute: 0 };
        let graph = plan::measure_graph(&mut *model, params, shape).unwrap().total;
        let graph_given = gpu.pool_peak().unwrap().unwrap();
        drop(model);
        let buffers = if std::env::var_os("VIRTUAL_GPU_DEVICE").is_some() { 0 } else { 2000 };
        assert!(
            accounted > weights && (accounted..=accounted + 512 * buffers).contains(&given),
            "{method} {pattern}: {given}, not {accounted}"
        );
        let with_graph = (graph..=graph + 512 * buffers).contains(&graph_given);
        assert!(with_graph, "{method} {pattern}: {graph_given}, not {graph}");
    }
}
