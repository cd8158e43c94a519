//! Layer-wise reconstruction: errors fall, zeros stay, and what is reported is what the layers give.

mod golden_support;

use std::collections::BTreeMap;

use engine::autograd::{Tape, Var};
use engine::calibrate::{
    self, Calibration, Reconstructed, Reconstructing, Reconstruction, layer_bytes, plan_reconstruction, reconstruct,
};
use engine::model::{Model, Module, TokenBatch, Weight, count, params};
use engine::peft::{Method, TrainSet};
use engine::prune::{Allocation, Criterion, Pattern, Pruning, prune_linear};
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
    for method in [Method::Perp, Method::MaskLora, Method::LoraPrune, Method::Full] {
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

/// Methods whose adapters merge.
const MERGING: [Method; 3] = [Method::MaskLora, Method::ScaleLora, Method::LoraPrune];

/// Biases and norms by name, in bits.
fn others(model: &mut dyn Model) -> BTreeMap<String, Vec<u32>> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    let all = params(model).into_iter().map(|param| (param.name().to_string(), bits(param.value().f32())));
    all.filter(|(name, _)| !name.contains("lora_")).collect()
}

/// Layers that stay as pruned are as pruned to the last bit, in weights and in what lies beside them.
fn assert_as_pruned(what: &str, pruned: &mut dyn Model, model: &mut dyn Model, reports: &[Reconstructed]) {
    assert!(reports.iter().all(|report| !report.trained && report.after == report.before), "{what}: {reports:?}");
    assert!(weights(model) == weights(pruned), "{what}: weights");
    assert!(others(model) == others(pruned), "{what}: biases and norms");
}

/// Rank 3: of scale-lora 3·(1/√3)² is not 1 in f32.
fn of_rank_3(method: Method) -> Reconstruction {
    let mut how = how(method);
    how.set.rank = 3;
    how
}

#[test]
fn training_that_makes_a_layer_worse_is_taken_back() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in [&MERGING[..], &[Method::Full, Method::Norms, Method::Perp]].concat() {
        let mut pruned = build(&Device::cpu(), "opt-pre", Some(pruning));
        let mut model = build(&Device::cpu(), "opt-pre", None);
        let wild = Reconstruction { lr: 10.0, clip: None, ..of_rank_3(method) };
        let reports = run(&mut *model, &pruning, &wild, &calibration(4, u64::MAX));
        assert_as_pruned(&method.to_string(), &mut *pruned, &mut *model, &reports);
        assert_eq!(count(&mut *model).adapters > 0, method == Method::Perp, "{method}: what merges leaves nothing");
    }
}

#[test]
fn what_was_not_trained_is_not_merged() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in MERGING {
        let mut pruned = build(&Device::cpu(), "llama-gqa", Some(pruning));
        let mut model = build(&Device::cpu(), "llama-gqa", None);
        let still = Reconstruction { lr: 0.0, ..of_rank_3(method) };
        let reports = run(&mut *model, &pruning, &still, &calibration(4, u64::MAX));
        assert_as_pruned(&method.to_string(), &mut *pruned, &mut *model, &reports);
        assert_eq!(count(&mut *model).adapters, 0);
    }
}

/// The adapters of lora-prune fill zeros while they train, and what they put there is lost when they are merged. Here the second layer
/// errs less with them and more without what is lost: it stays as pruned. (By magnitude a layer's mask depends on its weights alone.)
#[test]
fn a_layer_that_is_better_with_adapters_and_worse_merged_stays_as_pruned() {
    let pruning = pruning(Criterion::Magnitude, Pattern::Unstructured { sparsity: 0.2 });
    let with = |method: Method| {
        let targets = [engine::peft::ALL_LINEAR.to_string()];
        let set = TrainSet { biases: false, norms: false, head: false, ..TrainSet::of(method, 16, 32.0, &targets) };
        let how = Reconstruction { set, lr: 3e-2, steps: 60, ..how(method) };
        let mut model = build(&Device::cpu(), "opt-pre", None);
        let reports = run(&mut *model, &pruning, &how, &calibration(2, u64::MAX));
        (model, reports)
    };
    let (_, beside) = with(Method::Perp);
    assert!(beside.iter().all(|report| report.trained && report.after < 0.8 * report.before), "{beside:?}");
    let (mut model, reports) = with(Method::LoraPrune);
    assert!(reports[0].trained && reports[0].after < reports[0].before, "{reports:?}");
    assert!(!reports[1].trained && reports[1].after == reports[1].before, "{reports:?}");
    let mut pruned = build(&Device::cpu(), "opt-pre", Some(pruning));
    let pruned = weights(&mut *pruned);
    for (name, weights) in weights(&mut *model) {
        assert_eq!(weights == pruned[&name], name.contains("layers.1."), "{name}");
    }
    assert_eq!(count(&mut *model).adapters, 0);
}

/// A golden model whose weights are rounded to f16.
fn in_f16(name: &str, pruning: Option<Pruning>) -> Box<dyn Model> {
    let dir = tempfile::TempDir::new().unwrap();
    let out = engine::checkpoint::OutputFolder::create(dir.path().join("half")).unwrap();
    let folder = engine::checkpoint::ModelFolder::open(golden_support::folder().join(name)).unwrap();
    let (mut dense, format) = (build(&Device::cpu(), name, None), engine::checkpoint::WeightFormat::HuggingFace);
    engine::model::save(&mut *dense, &out, folder.config(), None, Some(DType::F16), format).unwrap();
    out.commit().unwrap();
    let folder = engine::checkpoint::ModelFolder::open(dir.path().join("half")).unwrap();
    let device = Device::cpu();
    let mut loader = engine::model::Loader::new(&device, engine::model::Source::Folder(&folder));
    if let Some(pruning) = pruning {
        loader = loader.on_linear(move |linear| prune_linear(linear, &pruning));
    }
    models::from_config(folder.config()).unwrap().build(&loader).unwrap()
}

/// Steps so small that no weight of 16 bits moves: the adapters make the layer better by a trace, the merged layer is the pruned one.
#[test]
fn what_rounding_takes_away_again_is_no_training() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in [Method::MaskLora, Method::LoraPrune] {
        let targets = [engine::peft::ALL_LINEAR.to_string()];
        let set = TrainSet { biases: false, norms: false, head: false, ..TrainSet::of(method, 4, 8.0, &targets) };
        let mut pruned = in_f16("llama-gqa", Some(pruning));
        let mut model = in_f16("llama-gqa", None);
        let how = Reconstruction { set, lr: 1e-7, ..how(method) };
        let reports = run(&mut *model, &pruning, &how, &calibration(4, u64::MAX));
        assert_as_pruned(&method.to_string(), &mut *pruned, &mut *model, &reports);
    }
}

#[test]
fn weights_that_sixteen_bits_do_not_hold_are_taken_back() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    for method in [&MERGING[..], &[Method::Full]].concat() {
        let mut pruned = in_f16("llama-gqa", Some(pruning));
        let mut model = in_f16("llama-gqa", None);
        // One step, of so much for each entry.
        let wild = Reconstruction { steps: 1, lr: 1e6, warmup: 0.0, ..how(method) };
        let reports = run(&mut *model, &pruning, &wild, &calibration(4, u64::MAX));
        assert_as_pruned(&method.to_string(), &mut *pruned, &mut *model, &reports);
    }
}

#[test]
fn a_weight_that_trained_is_packed_again_in_its_element_type() {
    let pruning = pruning(Criterion::Magnitude, HALF);
    let mut alone = in_f16("llama-gqa", Some(pruning));
    let mut model = in_f16("llama-gqa", None);
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
    for method in [Method::Perp, Method::MaskLora, Method::Full] {
        let measured = |device: &Device, name: &str| {
            let mut model = build_on(device, name, Some(pruning(Criterion::Magnitude, HALF)));
            layer_bytes(&mut *model, &how(method), 2, 24).unwrap()
        };
        for name in MODELS {
            let planned = measured(&Device::meta(Backend::Cpu, threads), name);
            assert_eq!(planned, measured(&Device::cpu(), name), "{name} {method}");
            assert!(planned > 0);
        }
    }
}

/// A run holds layers that are still dense, beside the one that trains: the plan does, too. All hidden states go to the file, which leaves
/// those of a batch.
#[test]
fn a_run_takes_what_is_planned_with_the_layers_that_are_dense_yet() {
    let threads = rayon::current_num_threads();
    for name in ["opt-pre", "llama-gqa"] {
        for (method, criterion, pattern) in [
            (Method::Perp, Criterion::Magnitude, Pattern::Unstructured { sparsity: 0.9 }),
            (Method::LoraPrune, Criterion::Wanda, HALF),
            (Method::MaskLora, Criterion::Magnitude, Pattern::NM { n: 2, m: 4 }),
            (Method::Norms, Criterion::SparseGpt, HALF),
            (Method::Full, Criterion::Magnitude, HALF),
        ] {
            let what = format!("{name} {method} {criterion} {pattern}");
            let (pruning, how) = (pruning(criterion, pattern), how(method));
            let meta = Device::meta(Backend::Cpu, threads);
            let mut model = build_on(&meta, name, None);
            let plan = plan_reconstruction(&mut *model, &pruning, &Allocation::uniform(), &how, 2, 24).unwrap();
            let device = Device::cpu();
            let mut model = build_on(&device, name, None);
            device.memory().reset_peak();
            run(&mut *model, &pruning, &how, &calibration(2, 0));
            let peak = device.memory().peak().total;
            assert_eq!(plan.peak, peak, "{what}");
            assert!(plan.training < peak, "{what}: {} for training a layer", plan.training);
            // No room was given: what is done lies in files.
            let mut in_files = 0;
            model
                .visit(&mut |module| {
                    if let Module::Linear(linear) = module
                        && linear.prunable
                        && let Weight::Frozen(weight) = &linear.weight
                    {
                        assert_eq!(weight.mapped_bytes(), weight.size_bytes(), "{what}: {}", linear.name);
                        in_files += 1;
                    }
                    Ok(())
                })
                .unwrap();
            assert!(in_files > 0, "{what}");
        }
    }
}

/// Without values on Meta.
fn build_on(device: &Device, name: &str, pruning: Option<Pruning>) -> Box<dyn Model> {
    let folder = engine::checkpoint::ModelFolder::open(golden_support::folder().join(name)).unwrap();
    let source = if device.is_meta() {
        engine::model::Source::Absent(DType::F32)
    } else {
        engine::model::Source::Random { seed: 0, std: 0.1, dtype: DType::F32 }
    };
    let mut loader = engine::model::Loader::new(device, source);
    if let Some(pruning) = pruning {
        loader = loader.on_linear(move |linear| prune_linear(linear, &pruning));
    }
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
