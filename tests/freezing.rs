//! Layers that freeze and unfreeze over a cycle: what is frozen does not move, has no gradient work, no moments, and no bytes in
//! the plan.

mod small_models;

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::model::TokenBatch;
use engine::peft::{self, Method};
use engine::plan::{self, StepShape};
use engine::prune::Pattern;
use engine::retrain::{Config, End, Freezing, FreezingPlan, Trainer};
use engine::tensor::Param;
use kernels::{Backend, Device};
use small_models::{build, llama, opt, opt_post_norm, train_set};

const HALF: Pattern = Pattern::Unstructured { sparsity: 0.5 };
const WAYS: [Freezing; 4] = [
    Freezing { from: End::Input, unfreeze: false },
    Freezing { from: End::Output, unfreeze: false },
    Freezing { from: End::Input, unfreeze: true },
    Freezing { from: End::Output, unfreeze: true },
];

fn config(steps: usize, recompute: usize) -> Config {
    Config { steps, batch: 2, accumulate: 2, lr: 1e-3, warmup: 0.0, clip: None, weight_decay: 0.0, recompute }
}

fn batches(vocab: u32) -> Vec<TokenBatch> {
    let tokens = |salt: u32| (0..2 * 37).map(|t| (t * 37 + salt * 61) % vocab).collect();
    (0..2).map(|salt| TokenBatch::new(tokens(salt), 37)).collect()
}

/// LoRA begins with B = 0, where A has no gradient.
fn fill_lora(params: &[Arc<Param>]) {
    for param in params.iter().filter(|param| param.name().contains("lora_B")) {
        let fill = |values: &mut [f32]| {
            values.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 7) as f32 * 0.01 - 0.03);
            Ok(())
        };
        param.value_mut().fill(fill).unwrap();
    }
}

fn values(params: &[Arc<Param>]) -> BTreeMap<String, Vec<f32>> {
    params.iter().map(|param| (param.name().to_string(), param.value().f32().to_vec())).collect()
}

/// The layer in a parameter's name.
fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

#[test]
fn what_is_frozen_does_not_move_and_what_is_not_moves_by_the_same_bits() {
    for model_config in [opt(), opt_post_norm(), llama()] {
        for method in [Method::Perp, Method::Full] {
            let prepare = || {
                let mut model = build(&Device::cpu(), &model_config, HALF);
                let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
                fill_lora(&params);
                (model, params)
            };
            let layers = prepare().0.info().layers;
            for freezing in WAYS {
                let (mut model, params) = prepare();
                let plan = FreezingPlan::new(&mut *model, &params, freezing, 2 * layers).unwrap();
                let mut trainer =
                    Trainer::with_freezing(&*model, params.clone(), config(2 * layers, 0), Some(plan.clone())).unwrap();
                let mut before = values(&params);
                for step in 1..=2 * layers {
                    // The same step with nothing frozen, from the same values.
                    let (free, free_params) = prepare();
                    for (param, free) in params.iter().zip(&free_params) {
                        free.value_mut().f32_mut().copy_from_slice(param.value().f32());
                    }
                    Trainer::new(&*free, free_params.clone(), config(1, 0))
                        .unwrap()
                        .step(&*free, &batches(300))
                        .unwrap();
                    let free = values(&free_params);
                    trainer.step(&*model, &batches(300)).unwrap();
                    let after = values(&params);
                    let range = freezing.trainable(step, 2 * layers, layers);
                    for (index, param) in params.iter().enumerate() {
                        let (name, what) =
                            (param.name(), format!("{} {method} {freezing:?} step {step}", model_config["model_type"]));
                        // What comes before the first layer goes with it, what comes after the last one always trains.
                        let first = name.contains("embed") || name.contains("project_in");
                        let depth = if first { Some(0) } else { layer(name) };
                        let trains = depth.is_none_or(|layer| range.contains(&layer));
                        assert_eq!(plan.trains(index, step), trains, "{what}: {name}");
                        assert_eq!(param.is_trainable(), trains, "{what}: {name}");
                        assert!(param.with_grad(|grad| grad.is_none()), "{what}: {name} has a gradient left");
                        if !trains {
                            assert!(after[name] == before[name], "{what}: {name} moved");
                        } else if step == 1 {
                            // The first step of AdamW is that of a fresh optimizer.
                            assert!(
                                after[name] == free[name],
                                "{what}: {name} moved otherwise than with nothing frozen"
                            );
                        }
                    }
                    let moved = params.iter().filter(|param| after[param.name()] != before[param.name()]).count();
                    let trained = (0..params.len()).filter(|index| plan.trains(*index, step)).count();
                    // A step of the last rate 1e-3/(2L) moves nearly all; biases of keys have no gradient but rounding.
                    assert!(2 * moved > trained, "{moved} of {trained} moved");
                    before = after;
                }
            }
        }
    }
}

/// Calls of a kernel in one step on Meta, with the layers frozen that `plan` says for `step` of as many steps as layers.
fn calls(freezing: Option<(Freezing, usize)>, recompute: usize) -> BTreeMap<&'static str, u64> {
    let device = Device::meta(Backend::Cpu, 2);
    let mut model = build(&device, &opt(), HALF);
    let mut params = peft::apply(&mut *model, &train_set(Method::Perp), 0).unwrap();
    if let Some((freezing, step)) = freezing {
        let plan = FreezingPlan::new(&mut *model, &params, freezing, 3).unwrap();
        params = plan.freeze(&params, step);
    }
    let shape = StepShape { batch: 1, accumulate: 1, seq_len: 16, recompute };
    let step = plan::measure(&mut *model, params, shape).unwrap();
    step.kernels.iter().map(|stats| (stats.kernel, stats.calls)).collect()
}

#[test]
fn the_backward_pass_stops_at_the_first_layer_that_trains() {
    let of = |all: &BTreeMap<&str, u64>, kernel: &str| all.get(kernel).copied().unwrap_or(0);
    let all = calls(None, 0);
    let gradients = ["attention_backward", "bias_gradient", "linear_backward_input"];
    let names: Vec<_> = all.keys().copied().collect();
    assert!(gradients.iter().all(|kernel| of(&all, kernel) > 0), "{names:?}");
    assert_eq!((of(&all, "attention_forward"), of(&all, "attention_backward")), (3, 3));
    // In step k of 3, k of 3 layers are frozen from the input: nothing goes back through them.
    for frozen in 1..=3 {
        let got = calls(Some((WAYS[0], frozen)), 0);
        assert_eq!(of(&got, "attention_backward"), 3 - frozen as u64);
        assert_eq!(of(&got, "attention_forward"), 3);
        for kernel in &gradients[1..] {
            assert!(of(&got, kernel) * 3 <= of(&all, kernel) * (3 - frozen as u64) + 3, "{kernel}: {got:?} of {all:?}");
        }
        // What is frozen is not computed again, either.
        let again = calls(Some((WAYS[0], frozen)), usize::MAX);
        assert_eq!(of(&again, "attention_forward"), 3 + 3 - frozen as u64);
    }
    assert_eq!(of(&calls(Some((WAYS[0], 3)), 0), "linear_backward_input"), 0, "the head alone trains");
    // From the output, gradients go through frozen layers, but none of their parameters has one.
    let got = calls(Some((WAYS[1], 1)), 0);
    assert_eq!(of(&got, "attention_backward"), 3);
    assert_eq!(of(&got, "bias_gradient") * 3, of(&all, "bias_gradient") * 2);
}

#[test]
fn the_plans_peak_is_that_of_a_whole_run() {
    let threads = rayon::current_num_threads();
    for (method, recompute) in [(Method::Perp, 0), (Method::Full, 0), (Method::Perp, 2), (Method::Biases, usize::MAX)] {
        for freezing in WAYS {
            // Fewer steps than layers: the first one freezes already.
            for steps in [2, 5] {
                let planned = {
                    let mut model = build(&Device::meta(Backend::Cpu, threads), &opt(), HALF);
                    let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
                    let plan = FreezingPlan::new(&mut *model, &params, freezing, steps).unwrap();
                    let params = plan.freeze(&params, plan.fullest());
                    let shape = StepShape { batch: 2, accumulate: 2, seq_len: 37, recompute };
                    plan::measure(&mut *model, params, shape).unwrap().peak
                };
                let device = Device::cpu();
                let mut model = build(&device, &opt(), HALF);
                let params = peft::apply(&mut *model, &train_set(method), 0).unwrap();
                let plan = FreezingPlan::new(&mut *model, &params, freezing, steps).unwrap();
                device.trim();
                device.memory().reset_peak();
                let mut trainer =
                    Trainer::with_freezing(&*model, params, config(steps, recompute), Some(plan)).unwrap();
                for _ in 0..steps {
                    trainer.step(&*model, &batches(300)).unwrap();
                }
                assert_eq!(
                    planned,
                    device.memory().peak(),
                    "{method} {freezing:?} {steps} steps, recomputing {recompute}"
                );
            }
        }
    }
}

#[test]
fn where_nothing_trains_outside_the_layers_one_always_does() {
    let mut model = build(&Device::meta(Backend::Cpu, 2), &opt(), HALF);
    let params = peft::apply(&mut *model, &train_set(Method::Biases), 0).unwrap();
    for (freezing, step, left) in [(WAYS[0], 3, 2..3), (WAYS[1], 3, 0..1), (WAYS[2], 1, 0..1), (WAYS[3], 1, 2..3)] {
        let steps = if freezing.unfreeze { 30 } else { 3 };
        let plan = FreezingPlan::new(&mut *model, &params, freezing, steps).unwrap();
        assert_eq!(plan.layers(step), left, "{freezing:?}");
        let freed = plan.freeze(&params, step);
        assert!(!freed.is_empty() && freed.iter().all(|param| layer(param.name()).is_some_and(|l| left.contains(&l))));
    }
    let mut set = train_set(Method::Probe);
    (set.biases, set.norms) = (false, false);
    let params = peft::apply(&mut *model, &set, 0).unwrap();
    let error = FreezingPlan::new(&mut *model, &params, WAYS[0], 3).unwrap_err().to_string();
    assert!(error.starts_with("--freeze: nothing inside the decoder layers trains"), "{error}");
}
