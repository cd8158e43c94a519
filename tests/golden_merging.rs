//! Adapters that merge, against torch: losses, logits and gradients, and the logits of the merged models, from the files that
//! `tests/reference/make_merging_golden.py` wrote.

mod golden_support;

use engine::autograd::{Tape, head_loss};
use engine::model::{self, Model, Module, TokenBatch, Weight};
use engine::peft::{self, ALL_LINEAR, Method, TrainSet};
use engine::prune::{Criterion, Pattern, Pruning};
use golden_support::{Golden, assert_close, assert_scaled, build, logits};
use kernels::Device;

/// As in tests/golden.rs: f32 within 1e-4 relative to the tensor's largest magnitude.
const TOLERANCE: f64 = 1e-4;
const MODELS: [&str; 3] = ["opt-pre", "opt-post", "llama-gqa"];
const PATTERNS: [(&str, Pattern); 2] =
    [("unstructured", Pattern::Unstructured { sparsity: 0.5 }), ("2of4", Pattern::NM { n: 2, m: 4 })];

fn input() -> TokenBatch {
    TokenBatch::new(Golden::open("inputs").ids("input_ids"), 24)
}

/// A golden model with the adapters that `golden` starts from, as `method` has them.
fn adapted(name: &str, pattern: Pattern, method: Method, golden: &Golden) -> Box<dyn Model> {
    let pruning = Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 };
    let mut model = build(&Device::cpu(), name, Some(pruning));
    let set = TrainSet::of(method, 4, 8.0, &[ALL_LINEAR.to_string()]);
    for param in peft::apply(&mut *model, &set, 0).unwrap() {
        if let Some(initial) = golden.try_floats(&format!("initial.{}", param.name())) {
            param.value_mut().f32_mut().copy_from_slice(&initial);
        }
    }
    model
}

fn each(mut check: impl FnMut(&str, Pattern, Method, &Golden, &str)) {
    for name in MODELS {
        for (file, pattern) in PATTERNS {
            for method in [Method::MaskLora, Method::ScaleLora, Method::LoraPrune] {
                let golden = Golden::open(&format!("{name}/{file}.{method}"));
                check(name, pattern, method, &golden, &format!("{name} {file} {method}"));
            }
        }
    }
}

#[test]
fn losses_and_every_gradient_equal_torch_with_and_without_checkpointing() {
    let device = Device::cpu();
    for recompute in [0, usize::MAX] {
        each(|name, pattern, method, golden, what| {
            let mut model = adapted(name, pattern, method, golden);
            let batch = input();
            assert_close(what, &logits(&*model, &batch), &golden.floats("logits"), TOLERANCE);
            let mut tape = Tape::training(&device, recompute);
            let hidden = model.forward(&mut tape, &batch).unwrap();
            let scale = 1.0 / batch.predictions() as f32;
            let loss = head_loss(model.head(), &hidden, &batch.targets(), scale).unwrap();
            let mean = loss.rows.sum().unwrap() / batch.predictions() as f64;
            tape.backward(hidden, loss.gradient.unwrap()).unwrap();
            let want = f64::from(golden.floats("loss")[0]);
            assert!((mean - want).abs() <= TOLERANCE * want, "{what}: loss {mean}, not {want}");
            let params: Vec<_> = model::params(&mut *model).into_iter().filter(|param| param.is_trainable()).collect();
            let mut ours: Vec<String> = params.iter().map(|param| param.name().to_string()).collect();
            ours.sort();
            let names = golden.names_under("grad.");
            assert_eq!(ours, names, "{what}: the trainable tensors");
            // A gradient that is zero in exact arithmetic is measured against the step's largest (tests/golden.rs).
            let largest = names.iter().map(|n| golden.largest(&format!("grad.{n}"))).fold(0.0, f64::max);
            for param in &params {
                let grad = param.take_grad().unwrap();
                let want = golden.floats(&format!("grad.{}", param.name()));
                assert_scaled(&format!("{what} {}", param.name()), grad.f32(), &want, TOLERANCE, 1e-3 * largest);
            }
        });
    }
}

/// Masks of all linear layers inside decoder layers.
fn masks(model: &mut dyn Model) -> Vec<Vec<u64>> {
    let mut masks = Vec::new();
    let mut each = |module: Module<'_>| {
        if let Module::Linear(linear) = module
            && let Weight::Frozen(weight) = &linear.weight
        {
            masks.extend(weight.mask()?);
        }
        Ok(())
    };
    model.visit(&mut each).unwrap();
    masks
}

/// The weights are f32: a merged entry is the one that products formed, bit for bit, and only the head's term changes its place
/// in a sum. What is rounded in 16 bits stands in tests/merging.rs. Of lora-prune nothing is left where zeros are: torch's merged
/// logits are not those of its adapters.
#[test]
fn a_merged_model_has_the_same_masks_and_torchs_logits() {
    each(|name, pattern, method, golden, what| {
        let mut model = adapted(name, pattern, method, golden);
        let want = golden.try_floats("merged.logits").unwrap_or_else(|| golden.floats("logits"));
        assert_eq!(want == golden.floats("logits"), method != Method::LoraPrune);
        let (before, sparsity) = (masks(&mut *model), model::sparsity(&mut *model).unwrap().weights);
        assert!(!before.is_empty());
        let mut report = peft::merge(&mut *model, &mut |_| ()).unwrap();
        assert_eq!(report.matrices, before.len());
        assert_eq!((report.zeros_before, report.rounding()), (report.zeros_after, 0.0), "{what}");
        report += peft::merge_head(&mut *model).unwrap();
        assert_eq!(report.matrices, before.len() + 1);
        assert!(!model.head().tied, "{what}: the embedding has taken a part of the head's adapter");
        assert!(before == masks(&mut *model), "{what}: a mask has changed");
        assert_eq!(model::sparsity(&mut *model).unwrap().with_adapters, sparsity);
        assert_eq!(model::count(&mut *model).adapters, 0);
        assert_close(what, &logits(&*model, &input()), &want, TOLERANCE);
    });
}

#[test]
fn a_fresh_adapter_changes_nothing() {
    for method in [Method::MaskLora, Method::ScaleLora, Method::LoraPrune] {
        let pruning = Pruning { criterion: Criterion::Magnitude, pattern: PATTERNS[0].1, seed: 0 };
        let mut model = build(&Device::cpu(), "opt-pre", Some(pruning));
        let want = logits(&*model, &input());
        peft::apply(&mut *model, &TrainSet::of(method, 16, 32.0, &[ALL_LINEAR.to_string()]), 0).unwrap();
        // Of scale-lora sixteen products of quarters are added, 1 exactly.
        assert_close(method.name(), &logits(&*model, &input()), &want, 0.0);
    }
}
