//! Wanda and SparseGPT against the published algorithms in torch, from the files that
//! `tests/reference/make_calibrated_golden.py` wrote: whole models layer by layer, and one wide layer of many blocks.

mod golden_support;

use std::collections::BTreeMap;

use engine::calibrate::{Calibration, LayerReport, Progress, prune_model};
use engine::model::{Linear, Model, Module, Weight};
use engine::prune::{Allocation, Criterion, Hessian, Inputs, Pattern, Pruning, prune_calibrated};
use golden_support::{Golden, MODELS, build};
use kernels::weight::FrozenWeight;
use kernels::{Category, Device};

const PATTERNS: [(&str, Pattern); 4] = [
    ("unstructured", Pattern::Unstructured { sparsity: 0.5 }),
    ("2of4", Pattern::NM { n: 2, m: 4 }),
    ("4of8", Pattern::NM { n: 4, m: 8 }),
    ("5of16", Pattern::NM { n: 5, m: 16 }),
];

/// Sums of squares of f32 results, each within some 1e-5 of f64's (sums of a few hundred products that cancel in part), and
/// at most one mask entry in a thousand, of the least important, differs.
const COST: f64 = 1e-3;

/// Every prunable weight by name.
fn weights(model: &mut dyn Model) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    model
        .visit(&mut |module| {
            if let Module::Linear(linear) = module
                && linear.prunable
            {
                all.insert(linear.name.clone(), values(linear));
            }
            Ok(())
        })
        .unwrap();
    all
}

fn values(linear: &Linear) -> Vec<f32> {
    match &linear.weight {
        Weight::Frozen(weight) => weight.to_f32().unwrap(),
        _ => panic!("nothing trains yet"),
    }
}

fn calibration(batch: usize, limit: u64) -> Calibration {
    let windows = Golden::open("calibration").ids("input_ids").chunks(24).map(<[u32]>::to_vec).collect();
    Calibration { windows, batch, limit }
}

fn pruned(name: &str, pruning: &Pruning, calibration: &Calibration) -> (Box<dyn Model>, Vec<LayerReport>) {
    let mut model = build(&Device::cpu(), name, None);
    let mut dampened = 0;
    let reports = prune_model(&mut *model, pruning, &Allocation::uniform(), calibration, &mut |progress| {
        dampened += usize::from(matches!(progress, Progress::Dampened { .. }));
    })
    .unwrap();
    assert_eq!(dampened, 0);
    (model, reports)
}

fn assert_near(what: &str, got: f64, want: f32) {
    let want = f64::from(want);
    assert!((got - want).abs() <= COST * want, "{what}: {got}, not {want}");
}

fn follows_torch(criterion: Criterion, equal_share: f64) {
    for name in MODELS {
        let golden = Golden::open(&format!("{name}/calibrated"));
        for (pattern_name, pattern) in PATTERNS {
            let what = format!("{name} {criterion} {pattern_name}");
            let file = |part: &str| format!("{criterion}.{pattern_name}.{part}");
            let pruning = Pruning { criterion, pattern, seed: 0 };
            // All windows at once: the layers' errors are over the first batch.
            let (mut model, reports) = pruned(name, &pruning, &calibration(8, u64::MAX));
            let kept: Vec<bool> = weights(&mut *model).values().flatten().map(|w| *w != 0.0).collect();
            let want = golden.bits(&file("mask"));
            let equal = kept.iter().zip(&want).filter(|(got, want)| got == want).count();
            assert!(equal as f64 >= equal_share * kept.len() as f64, "{what}: {equal} of {} entries equal", kept.len());

            let costs: BTreeMap<_, _> =
                reports.iter().flat_map(|layer| &layer.linears).map(|linear| (&linear.name, linear.cost)).collect();
            let want = golden.floats(&file("cost"));
            assert_eq!(costs.len(), want.len(), "{what}");
            for ((linear, cost), want) in costs.into_iter().zip(want) {
                assert_near(&format!("{what} {linear}"), cost, want);
            }
            for (report, want) in reports.iter().zip(golden.floats(&file("error"))) {
                assert_near(&format!("{what} layer {}", report.layer), report.error, want);
            }
        }
    }
}

#[test]
fn wanda_keeps_what_torch_keeps() {
    follows_torch(Criterion::Wanda, 1.0);
}

#[test]
fn sparsegpt_keeps_what_torch_keeps_and_its_layers_err_as_much() {
    follows_torch(Criterion::SparseGpt, 0.999);
}

#[test]
fn neither_batches_nor_a_file_nor_threads_change_what_is_pruned() {
    let pruning = |criterion| Pruning { criterion, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };
    for criterion in [Criterion::Wanda, Criterion::SparseGpt] {
        let bits = |calibration: &Calibration| weights(&mut *pruned("llama-gqa", &pruning(criterion), calibration).0);
        let plain = bits(&calibration(3, u64::MAX));
        assert_eq!(plain, bits(&calibration(3, 0)), "{criterion}: everything in a file");
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(plain, one.install(|| bits(&calibration(3, u64::MAX))), "{criterion}: one thread");
        // Sums in another order: the same masks but for near ties.
        let other = bits(&calibration(8, u64::MAX));
        let all = || plain.values().flatten().zip(other.values().flatten());
        let equal = all().filter(|(a, b)| (**a == 0.0) == (**b == 0.0)).count();
        assert!(equal as f64 >= 0.999 * all().count() as f64, "{criterion}: {equal} of {}", all().count());
    }
}

#[test]
fn activations_that_overflow_are_an_error_that_names_the_first_weight_to_read_them() {
    for (criterion, scale) in [(Criterion::Wanda, f32::INFINITY), (Criterion::SparseGpt, 1e25)] {
        let mut model = build(&Device::cpu(), "llama-gqa", None);
        model
            .visit(&mut |module| {
                if let Module::Norm(norm) = module
                    && norm.name == "model.layers.1.post_attention_layernorm"
                {
                    norm.weight.value_mut().f32_mut()[6] = scale;
                }
                Ok(())
            })
            .unwrap();
        let pruning = Pruning { criterion, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };
        let error = prune_model(&mut *model, &pruning, &Allocation::uniform(), &calibration(8, u64::MAX), &mut |_| {})
            .unwrap_err()
            .to_string();
        let start = "model.layers.1.mlp.gate_proj.weight: its calibration inputs are not finite (feature 6)";
        assert!(error.starts_with(start), "{criterion}: {error}");
    }
}

/// Numbers in [-1, 1], as the script makes them.
fn hashed(i: usize, j: usize, salt: usize) -> f64 {
    ((i * 7919 + j * 104_729 + i * j * 31 + salt) % 1009) as f64 / 504.0 - 1.0
}

#[test]
fn sparsegpt_follows_torch_through_blocks_groups_and_a_feature_never_seen() {
    const ROWS: usize = 40;
    const COLS: usize = 320;
    const SEQUENCES: usize = 6;
    const TOKENS: usize = 480;
    const DEAD: usize = 17;
    let golden = Golden::open("calibration");
    let dense: Vec<f32> = (0..ROWS * COLS).map(|at| hashed(at / COLS, at % COLS, 3) as f32).collect();
    let input = |token: usize, j: usize| match j {
        DEAD => 0.0,
        j => (hashed(token, j / 16, 5) * 2.0 + hashed(token, j, 11)) as f32,
    };
    let x: Vec<f32> = (0..TOKENS * COLS).map(|at| input(at / COLS, at % COLS)).collect();
    let product = |i: usize, j: usize| {
        (0..TOKENS).map(|t| f64::from(x[t * COLS + i]) * f64::from(x[t * COLS + j])).sum::<f64>() as f32
    };
    let gram: Vec<f32> = (0..COLS * COLS).map(|at| product(at / COLS, at % COLS)).collect();
    let inputs = Inputs::Hessian(Hessian::new(&gram, COLS, SEQUENCES, "layer.weight").unwrap());
    let device = Device::cpu();
    for (name, pattern) in [
        ("unstructured", Pattern::Unstructured { sparsity: 0.6 }),
        ("2of4", Pattern::NM { n: 2, m: 4 }),
        ("4of8", Pattern::NM { n: 4, m: 8 }),
        ("3of5", Pattern::NM { n: 3, m: 5 }),
    ] {
        let weight = FrozenWeight::dense(device.upload(Category::Weights, &dense).unwrap(), ROWS, COLS).unwrap();
        let mut linear =
            Linear { name: "layer".into(), weight: Weight::Frozen(weight), bias: None, lora: None, prunable: true };
        let pruning = Pruning { criterion: Criterion::SparseGpt, pattern, seed: 0 };
        let cost = prune_calibrated(&mut linear, &pruning, &inputs).unwrap();
        let pruned = values(&linear);
        let Weight::Frozen(weight) = &linear.weight else { panic!("nothing trains") };
        let words = weight.mask().unwrap().expect("it is packed");
        let want = golden.bits(&format!("{name}.mask"));
        let equal = (0..ROWS * COLS).filter(|at| (words[at / 64] >> (at % 64) & 1 == 1) == want[*at]).count();
        assert!(equal as f64 >= 0.999 * (ROWS * COLS) as f64, "{name}: {equal} of {} entries equal", ROWS * COLS);
        assert_near(&format!("{name} cost"), cost, golden.floats(&format!("{name}.cost"))[0]);
        let mut error = 0.0;
        for row in 0..ROWS {
            for token in x.chunks(COLS) {
                let at = row * COLS..(row + 1) * COLS;
                let change = pruned[at.clone()].iter().zip(&dense[at]).zip(token);
                let change: f64 = change.map(|((p, d), x)| (f64::from(*p) - f64::from(*d)) * f64::from(*x)).sum();
                error += change * change;
            }
        }
        assert_near(&format!("{name} error"), error, golden.floats(&format!("{name}.error"))[0]);
    }
}
