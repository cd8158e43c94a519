//! Layer-wise reconstruction: errors fall, zeros stay, and what is reported is what the layers give.

mod golden_support;

use std::collections::BTreeMap;

use engine::autograd::{Tape, Var};
use engine::calibrate::{self, Calibration, Reconstructed, Reconstructing, Reconstruction, layer_bytes, reconstruct};
use engine::model::{Model, Module, TokenBatch, Weight, count};
use engine::peft::{Method, TrainSet};
use engine::prune::{Allocation, Criterion, Pattern, Pruning, prune_linear, prune_model};
use golden_support::{Golden, MODELS, build};
use kernels::{Backend, DType, Device};

const HALF: Pattern = Pattern::Unstructured { sparsity: 0.5 };

fn calibration(batch: usize, limit: u64) -> Calibration {
    let windows = Golden::open("calibration").ids("input_ids").chunks(24).map(<[u32]>::to_vec).collect();
    Calibration { windows, batch, limit }
}

fn how(method: Method) -> Reconstruction {
    let targets = ["q_proj".to_string(), "v_proj".to_string()];
    let set = TrainSet { head: false, ..TrainSet::of(method, 4, 8.0, &targets) };
    Reconstruction { set, steps: 40, lr: 2e-3, warmup: 0.1, clip: Some(1.0), weight_decay: 0.0, seed: 1 }
}

fn pruning(criterion: Criterion, pattern: Pattern) -> Pruning {
    Pruning { criterion, pattern, seed: 0 }
}

fn run(
    model: &mut dyn Model,
    pruning: &Pruning,
    how: &Reconstruction,
    calibration: &Calibration,
) -> Vec<Reconstructed> {
    reconstruct(model, pruning, &Allocation::uniform(), how, calibration, &mut |_| {}).unwrap()
}

/// Every prunable weight by name, all frozen.
fn weights(model: &mut dyn Model) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    let shown = model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            let Weight::Frozen(weight) = &linear.weight else { panic!("{} is not frozen again", linear.name) };
            all.insert(linear.name.clone(), weight.to_f32()?);
        }
        Ok(())
    });
    shown.unwrap();
    all
}

fn zeros(weights: &[f32]) -> Vec<bool> {
    weights.iter().map(|w| *w == 0.0).collect()
}

#[test]
fn every_layer_errs_less_for_every_method_and_zeros_stay() {
    for name in MODELS {
        for method in Method::ALL {
            // These have no biases.
            if method == Method::Biases && ["llama-gqa", "mistral"].contains(&name) {
                continue;
            }
            for pattern in [HALF, Pattern::NM { n: 2, m: 4 }] {
                let what = format!("{name} {method} {pattern}");
                let pruning = pruning(Criterion::Magnitude, pattern);
                let mut alone = build(&Device::cpu(), name, Some(pruning));
                let alone = weights(&mut *alone);
                let mut model = build(&Device::cpu(), name, None);
                let reports = run(&mut *model, &pruning, &how(method), &calibration(2, u64::MAX));
                assert_eq!(reports.len(), 2);
                // Qwen2's biases are those of queries, keys and values alone: 64 numbers a layer here.
                let most = if (name, method) == ("qwen2", Method::Biases) { 1.0 } else { 0.98 };
                for report in &reports {
                    assert!(report.trained && report.trainable > 0, "{what}: {report:?}");
                    assert!(report.after < most * report.before, "{what}: {report:?}");
                }
                for (linear, weights) in weights(&mut *model) {
                    // Magnitudes decide the mask, and no more than the mask is zero.
                    assert!(zeros(&weights) == zeros(&alone[&linear]), "{what}: the zeros of {linear}");
                    let merged =
                        method.lora().merges() && ["q_proj", "v_proj"].iter().any(|target| linear.ends_with(target));
                    assert_eq!(weights != alone[&linear], method == Method::Full || merged, "{what}: {linear}");
                }
                assert_eq!(count(&mut *model).trainable, 0, "{what}: all is frozen in the end");
            }
        }
    }
}

#[test]
fn calibrated_criteria_choose_as_they_do_alone_and_all_see_reconstructed_inputs() {
    for criterion in [Criterion::Wanda, Criterion::SparseGpt] {
        let pruning = pruning(criterion, HALF);
        let mut alone = build(&Device::cpu(), "opt-pre", None);
        calibrate::prune_model(&mut *alone, &pruning, &Allocation::uniform(), &calibration(2, u64::MAX), &mut |_| {})
            .unwrap();
        let mut model = build(&Device::cpu(), "opt-pre", None);
        let reports = run(&mut *model, &pruning, &how(Method::Full), &calibration(2, u64::MAX));
        assert!(reports.iter().all(|report| report.after < report.before), "{criterion}: {reports:?}");
        let (alone, got) = (weights(&mut *alone), weights(&mut *model));
        // The first layer's inputs are the same; the second's are another model's.
        let same = |layer: &str| {
            let of = got.iter().filter(|(name, _)| name.contains(layer));
            of.map(|(name, weights)| zeros(weights) == zeros(&alone[name])).collect::<Vec<_>>()
        };
        assert!(same("layers.0.").iter().all(|same| *same), "{criterion}");
        assert!(same("layers.1.").iter().any(|same| !*same), "{criterion}");
    }
}

/// ‖a − b‖²
fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

#[test]
fn the_reported_errors_are_those_of_the_layers() {
    let device = Device::cpu();
    let calibration = calibration(3, u64::MAX);
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in [Method::Perp, Method::Full] {
        let dense = build(&device, "llama-gqa", None);
        let mut model = build(&device, "llama-gqa", None);
        let reports = run(&mut *model, &pruning, &how(method), &calibration);
        let (mut errors, mut added) = ([0.0; 2], [0.0; 2]);
        for window in &calibration.windows {
            let batch = TokenBatch::new(window.clone(), window.len());
            let tape = || Tape::inference(&device);
            let mut x = model.embed(&mut tape(), &batch).unwrap().into_tensor();
            for layer in 0..2 {
                let give = |model: &dyn Model| {
                    model.decode(&mut tape(), layer, Var::constant(x.clone()), &batch).unwrap().into_tensor()
                };
                let (want, got) = (give(&*dense), give(&*model));
                errors[layer] += distance(got.buffer().f32(), want.buffer().f32());
                added[layer] += distance(want.buffer().f32(), x.buffer().f32());
                x = got;
            }
        }
        for (layer, report) in reports.iter().enumerate() {
            // Windows run in batches of three and alone: sums of products in another order, so outputs differ by some 1e-6 of theirs,
            // and an error of a hundredth of them by some 1e-4.
            let want = errors[layer] / added[layer];
            assert!((report.after / want - 1.0).abs() < 1e-3, "{method} layer {layer}: {} of {want}", report.after);
        }
    }
}

#[test]
fn neither_a_file_nor_threads_change_a_bit_and_the_seed_does() {
    let bits = |how: &Reconstruction, limit: u64| {
        let mut model = build(&Device::cpu(), "opt-post", None);
        let reports = run(&mut *model, &pruning(Criterion::Wanda, HALF), how, &calibration(3, limit));
        (weights(&mut *model), reports)
    };
    let full = how(Method::Full);
    let plain = bits(&full, u64::MAX);
    assert!(plain == bits(&full, 0), "everything in a file");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(plain == one.install(|| bits(&full, u64::MAX)), "one thread");
    assert!(plain.0 != bits(&Reconstruction { seed: 2, ..full }, u64::MAX).0, "another order of windows");
}

#[test]
fn training_that_makes_a_layer_worse_is_taken_back() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in [Method::Full, Method::Norms, Method::MaskLora] {
        let mut pruned = build(&Device::cpu(), "opt-pre", None);
        prune_model(&mut *pruned, &pruning, &Allocation::uniform(), &mut |_, _| {}).unwrap();
        let mut model = build(&Device::cpu(), "opt-pre", None);
        let wild = Reconstruction { lr: 10.0, clip: None, ..how(method) };
        let reports = run(&mut *model, &pruning, &wild, &calibration(4, u64::MAX));
        assert!(reports.iter().all(|report| !report.trained && report.after == report.before), "{reports:?}");
        assert!(weights(&mut *model) == weights(&mut *pruned), "{method}");
    }
}

#[test]
fn a_weight_that_trained_is_packed_again_in_its_element_type() {
    let dir = tempfile::TempDir::new().unwrap();
    let out = engine::checkpoint::OutputFolder::create(dir.path().join("half")).unwrap();
    let folder = engine::checkpoint::ModelFolder::open(golden_support::folder().join("llama-gqa")).unwrap();
    let mut model = build(&Device::cpu(), "llama-gqa", None);
    engine::model::save(
        &mut *model,
        &out,
        folder.config(),
        None,
        Some(DType::F16),
        engine::checkpoint::WeightFormat::HuggingFace,
    )
    .unwrap();
    out.commit().unwrap();
    let folder = engine::checkpoint::ModelFolder::open(dir.path().join("half")).unwrap();
    let device = Device::cpu();
    let source = engine::model::Source::Folder(&folder);
    let architecture = models::from_config(folder.config()).unwrap();
    let pruning = pruning(Criterion::Magnitude, HALF);
    let mut alone = architecture
        .build(&engine::model::Loader::new(&device, source).on_linear(|linear| prune_linear(linear, &pruning)))
        .unwrap();
    let mut model = architecture.build(&engine::model::Loader::new(&device, source)).unwrap();
    let reports = run(&mut *model, &pruning, &how(Method::Full), &calibration(4, u64::MAX));
    assert!(reports.iter().all(|report| report.trained));
    let bytes = |model: &mut dyn Model| {
        let mut all = Vec::new();
        let shown = model.visit(&mut |module| {
            if let Module::Linear(linear) = module {
                assert_eq!(linear.weight.dtype(), DType::F16);
                all.push(linear.weight.with_ref(|weight| Ok::<_, kernels::Error>(weight.size_bytes()))?);
            }
            Ok(())
        });
        shown.unwrap();
        all
    };
    assert_eq!(bytes(&mut *model), bytes(&mut *alone));
}

#[test]
fn a_layers_plan_is_that_of_its_training_step() {
    let threads = rayon::current_num_threads();
    for method in [Method::Perp, Method::Full] {
        let measured = |device: &Device, name: &str| {
            let mut model = build_on(device, name);
            layer_bytes(&mut *model, &how(method), 2, 24).unwrap()
        };
        for name in MODELS {
            let planned = measured(&Device::meta(Backend::Cpu, threads), name);
            assert_eq!(planned, measured(&Device::cpu(), name), "{name} {method}");
            assert!(planned > 0);
        }
    }
}

/// Without values on Meta.
fn build_on(device: &Device, name: &str) -> Box<dyn Model> {
    let folder = engine::checkpoint::ModelFolder::open(golden_support::folder().join(name)).unwrap();
    let source = if device.is_meta() {
        engine::model::Source::Absent(DType::F32)
    } else {
        engine::model::Source::Random { seed: 0, std: 0.1, dtype: DType::F32 }
    };
    let pruning = pruning(Criterion::Magnitude, HALF);
    let loader = engine::model::Loader::new(device, source).on_linear(move |linear| prune_linear(linear, &pruning));
    models::from_config(folder.config()).unwrap().build(&loader).unwrap()
}

#[test]
fn progress_tells_all_work_and_each_layer() {
    let mut model = build(&Device::cpu(), "opt-pre", None);
    let (mut last, mut layers) = ((0, 0), Vec::new());
    let how = Reconstruction { steps: 3, ..how(Method::Norms) };
    let pruning = pruning(Criterion::Magnitude, HALF);
    reconstruct(
        &mut *model,
        &pruning,
        &Allocation::uniform(),
        &how,
        &calibration(4, u64::MAX),
        &mut |event| match event {
            Reconstructing::Work { done, all, .. } => {
                assert_eq!(done, last.0 + 1);
                last = (done, all);
            }
            Reconstructing::Layer(report) => layers.push(report.layer),
            Reconstructing::Dampened { .. } => panic!("magnitudes have no Hessian"),
        },
    )
    .unwrap();
    // Two layers: three passes of two batches, and three steps.
    assert_eq!((last, layers), ((18, 18), vec![0, 1]));
}
