//! The engine against torch, transformers and peft: logits, losses, masks, every trainable gradient, and trajectories of
//! AdamW, from the files that `tests/reference/make_golden.py` wrote. What each file holds: `tests/golden/README.md`.

mod golden_support;

use engine::autograd::{Tape, head_loss};
use engine::checkpoint::{Adapter, LoraForm};
use engine::model::TokenBatch;
use engine::peft::{self, Method, TrainSet};
use engine::prune::{Criterion, Pattern, Pruning};
use engine::retrain::{Config, Trainer};
use golden_support::{Golden, MODELS, PATTERNS, assert_close, assert_scaled, attach_adapter, build, logits};
use kernels::Device;

/// f32 within 1e-4 relative to the tensor's largest magnitude. (Each value is a sum of at most some thousand products of
/// numbers near 1; torch's own f32 differs from its f64 by up to 7e-6.)
const TOLERANCE: f64 = 1e-4;

fn pruning(pattern: &str) -> Option<Pruning> {
    let pattern = match pattern {
        "dense" => return None,
        "unstructured" => Pattern::Unstructured { sparsity: 0.5 },
        "2of4" => Pattern::NM { n: 2, m: 4 },
        "4of8" => Pattern::NM { n: 4, m: 8 },
        other => panic!("unknown pattern {other}"),
    };
    Some(Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 })
}

fn input() -> TokenBatch {
    let inputs = Golden::open("inputs");
    TokenBatch::new(inputs.ids("input_ids"), 24)
}

#[test]
fn masks_logits_and_losses_equal_transformers_for_every_model_and_pattern() {
    let device = Device::cpu();
    for name in MODELS {
        for pattern in ["dense", "unstructured", "2of4", "4of8"] {
            let what = format!("{name} {pattern}");
            let golden = Golden::open(&format!("{name}/{pattern}"));
            let mut model = build(&device, name, pruning(pattern));
            if pattern != "dense" {
                golden_support::assert_masks(&mut *model, &golden, &what);
            }
            let batch = input();
            assert_close(&format!("{what} logits"), &logits(&*model, &batch), &golden.floats("logits"), TOLERANCE);
            let mut tape = Tape::training(&device, 0);
            let hidden = model.forward(&mut tape, &batch).unwrap();
            let loss = head_loss(model.head(), &hidden, &batch.targets(), 1.0).unwrap();
            let mean = loss.rows.sum().unwrap() / batch.predictions() as f64;
            let want = f64::from(golden.floats("loss")[0]);
            assert!((mean - want).abs() <= TOLERANCE * want, "{what}: loss {mean}, not {want}");
        }
    }
}

/// The folders as PEFT wrote them, opened and attached as users' are.
#[test]
fn peft_s_adapter_folders_give_peft_s_logits() {
    let device = Device::cpu();
    for name in MODELS {
        let adapter = Adapter::open(golden_support::folder().join(name).join("adapter")).unwrap();
        let config = &adapter.config;
        assert_eq!((config.form, config.rank, config.alpha), (LoraForm::Added, 4, 8.0), "{name}");
        assert_eq!(config.base_model, name);
        // q_proj and v_proj of two layers, and the head.
        assert_eq!(adapter.modules.len(), 5, "{name}");
        for pattern in PATTERNS {
            let what = format!("{name} {pattern}");
            let golden = Golden::open(&format!("{name}/{pattern}.perp"));
            let mut model = build(&device, name, pruning(pattern));
            let without = logits(&*model, &input());
            peft::attach(&mut *model, &adapter).unwrap();
            let want = golden.floats("logits");
            assert_close(&format!("{what} logits"), &logits(&*model, &input()), &want, TOLERANCE);
            let far = without.iter().zip(&want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(far > 100.0 * TOLERANCE * golden.largest("logits"), "{what}: the adapter says something");
        }
    }
}

fn gradients_equal_peft(recompute: usize) {
    let device = Device::cpu();
    let targets = ["q_proj".to_string(), "v_proj".to_string()];
    for name in MODELS {
        for pattern in PATTERNS {
            for method in Method::ALL.into_iter().filter(|method| !method.lora().merges()) {
                let Some(golden) = Golden::find(&format!("{name}/{pattern}.{method}")) else {
                    assert_eq!(method, Method::Biases, "only models without biases lack a file");
                    continue;
                };
                let what = format!("{name} {pattern} {method}");
                let mut model = build(&device, name, pruning(pattern));
                let set = TrainSet::of(method, 4, 8.0, &targets);
                attach_adapter(&mut *model, name, &set);
                let params = engine::peft::apply(&mut *model, &set, 0).unwrap();
                let batch = input();
                let mut tape = Tape::training(&device, recompute);
                let hidden = model.forward(&mut tape, &batch).unwrap();
                let scale = 1.0 / batch.predictions() as f32;
                let loss = head_loss(model.head(), &hidden, &batch.targets(), scale).unwrap();
                let mean = loss.rows.sum().unwrap() / batch.predictions() as f64;
                tape.backward(hidden, loss.gradient.unwrap()).unwrap();
                let want = f64::from(golden.floats("loss")[0]);
                assert!((mean - want).abs() <= TOLERANCE * want, "{what}: loss {mean}, not {want}");

                let names: Vec<String> = golden.names_under("grad.");
                let mut ours: Vec<String> = params.iter().map(|param| param.name().to_string()).collect();
                ours.sort();
                assert_eq!(ours, names, "{what}: the trainable tensors");
                // A gradient that is zero in exact arithmetic (OPT's key biases: softmax ignores a constant shift) is
                // measured against the step's largest gradient.
                let largest = names.iter().map(|n| golden.largest(&format!("grad.{n}"))).fold(0.0, f64::max);
                for param in &params {
                    let mut grad = param.take_grad().unwrap();
                    if let Some(mask) = param.mask().as_ref() {
                        kernels::ops::adamw::apply_mask(&mut grad, mask).unwrap();
                    }
                    let want = golden.floats(&format!("grad.{}", param.name()));
                    assert_scaled(&format!("{what} {}", param.name()), grad.f32(), &want, TOLERANCE, 1e-3 * largest);
                }
            }
        }
    }
}

#[test]
fn every_trainable_gradient_equals_peft_for_every_model_pattern_and_method() {
    gradients_equal_peft(0);
}

#[test]
fn every_trainable_gradient_equals_peft_with_checkpointing() {
    gradients_equal_peft(usize::MAX);
}

#[test]
fn twenty_steps_of_adamw_follow_torch() {
    let device = Device::cpu();
    let targets = ["q_proj".to_string(), "v_proj".to_string()];
    let ids = Golden::open("inputs").ids("batches");
    for name in ["opt-pre", "llama-gqa"] {
        for method in [Method::Perp, Method::Full] {
            let what = format!("{name} {method}");
            let golden = Golden::open(&format!("{name}/trajectory.{method}"));
            let mut model = build(&device, name, pruning("unstructured"));
            let set = TrainSet::of(method, 4, 8.0, &targets);
            let params = engine::peft::apply(&mut *model, &set, 0).unwrap();
            for param in &params {
                if let Some(initial) = golden.try_floats(&format!("initial.{}", param.name())) {
                    param.value_mut().f32_mut().copy_from_slice(&initial);
                }
            }
            let config = Config {
                steps: 20,
                batch: 2,
                accumulate: 2,
                lr: 1e-3,
                warmup: 0.1,
                clip: Some(1.0),
                weight_decay: 0.0,
                recompute: 0,
            };
            let mut trainer = Trainer::new(&*model, params.clone(), config).unwrap();
            let (losses, norms, rates) =
                (golden.floats("losses"), golden.floats("grad_norms"), golden.floats("learning_rates"));
            for (step, ids) in ids.chunks(2 * 2 * 16).enumerate() {
                let micro: Vec<_> = ids.chunks(2 * 16).map(|ids| TokenBatch::new(ids.to_vec(), 16)).collect();
                let record = trainer.step(&*model, &micro).unwrap();
                let close = |got: f64, want: f32, kind: &str| {
                    let want = f64::from(want);
                    assert!((got - want).abs() <= 1e-3 * want.abs(), "{what} step {step}: {kind} {got}, not {want}");
                };
                close(record.loss, losses[step], "loss");
                close(record.grad_norm, norms[step], "gradient norm");
                close(record.lr, rates[step], "learning rate");
            }
            for param in &params {
                // The key biases' gradient is rounding noise around zero, which AdamW's division turns into steps of
                // arbitrary sign (see tests/golden/README.md).
                if name == "opt-pre" && param.name().ends_with("k_proj.bias") {
                    continue;
                }
                let want = golden.floats(&format!("final.{}", param.name()));
                assert_close(&format!("{what} {}", param.name()), param.value().f32(), &want, 1e-3);
            }
        }
    }
}
