//! OWL's allocation against the published formula in torch and NumPy, from the file that
//! `tests/reference/make_allocation_golden.py` wrote; and every criterion under an allocation.

mod golden_support;

use std::collections::BTreeMap;

use engine::calibrate::{self, Calibration, layer_outliers};
use engine::model::{self, Linear, Model, Module, Weight};
use engine::prune::{Allocation, Criterion, Matrix, Owl, Pattern, Pruning, matrices, prune_model};
use golden_support::{Golden, MODELS, build};
use kernels::Device;

const M: f64 = 3.0;
const SPARSITY: f64 = 0.6;

fn calibration(batch: usize, limit: u64) -> Calibration {
    let windows = Golden::open("calibration").ids("input_ids").chunks(24).map(<[u32]>::to_vec).collect();
    Calibration { windows, batch, limit }
}

fn outliers(model: &mut dyn Model, calibration: &Calibration) -> Vec<f64> {
    layer_outliers(model, M, calibration, &mut |_, _, _| {}).unwrap()
}

fn values(linear: &Linear) -> Vec<f32> {
    match &linear.weight {
        Weight::Frozen(weight) => weight.to_f32().unwrap(),
        _ => panic!("nothing trains yet"),
    }
}

/// What stays of every prunable weight, by name.
fn masks(model: &mut dyn Model) -> BTreeMap<String, Vec<bool>> {
    let mut all = BTreeMap::new();
    let shown = model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            all.insert(linear.name.clone(), values(linear).iter().map(|w| *w != 0.0).collect());
        }
        Ok(())
    });
    shown.unwrap();
    all
}

/// Prunes with any criterion.
fn prune(model: &mut dyn Model, criterion: Criterion, allocation: &Allocation) {
    let pruning = Pruning { criterion, pattern: Pattern::Unstructured { sparsity: SPARSITY }, seed: 3 };
    if criterion.needs_calibration() {
        calibrate::prune_model(model, &pruning, allocation, &calibration(8, u64::MAX), &mut |_| {}).unwrap();
    } else {
        prune_model(model, &pruning, allocation, &mut |_| Ok(())).unwrap();
    }
}

/// f32 of a value in f64.
fn assert_rounded(what: &str, got: &[f64], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        // Half a unit in the last place of f32, and of the f64 sums before it nearly nothing.
        assert!((got - f64::from(*want)).abs() <= f64::from(*want) * 6.1e-8, "{what}: {got}, not {want}");
    }
}

#[test]
fn outliers_sparsities_and_wandas_masks_are_torchs() {
    let golden = Golden::open("allocation");
    for name in MODELS {
        let mut model = build(&Device::cpu(), name, None);
        let all = matrices(&mut *model);
        let shares = outliers(&mut *model, &calibration(8, u64::MAX));
        // Counts: no score is within 1e-5 of the threshold.
        assert_rounded(name, &shares, &golden.floats(&format!("{name}.outliers")));
        let sparsities = Owl { m: M, lambda: 0.08 }.sparsities(&shares, &all, SPARSITY).unwrap();
        assert_rounded(name, &sparsities, &golden.floats(&format!("{name}.sparsities")));
        prune(&mut *model, Criterion::Wanda, &Allocation::of_layers(&all, &sparsities).unwrap());
        let kept: Vec<bool> = masks(&mut *model).into_values().flatten().collect();
        let want = golden.bits(&format!("{name}.mask"));
        let wrong = kept.iter().zip(&want).filter(|(got, want)| got != want).count();
        assert!(wrong == 0 && want.len() >= kept.len(), "{name}: {wrong} of {} entries differ", kept.len());
    }
    for (name, lambda, sparsity) in [("small", 0.08, 0.7), ("deep", 0.15, 0.5), ("even", 0.08, 0.5)] {
        let shares: Vec<f64> = golden.floats(&format!("{name}.outliers")).into_iter().map(f64::from).collect();
        let matrix = |layer| Matrix { name: format!("{layer}.fc1"), layer, entries: 100 };
        let all: Vec<Matrix> = (0..shares.len()).map(matrix).collect();
        let got = Owl { m: M, lambda }.sparsities(&shares, &all, sparsity).unwrap();
        assert_rounded(name, &got, &golden.floats(&format!("{name}.sparsities")));
    }
}

#[test]
fn neither_batches_nor_a_file_nor_threads_change_what_is_an_outlier() {
    let shares = |calibration: &Calibration| outliers(&mut *build(&Device::cpu(), "llama-gqa", None), calibration);
    let plain = shares(&calibration(3, u64::MAX));
    assert_eq!(plain, shares(&calibration(3, 0)), "everything in a file");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(plain, one.install(|| shares(&calibration(3, u64::MAX))), "one thread");
}

#[test]
fn every_criterion_removes_what_each_matrix_is_allocated() {
    for criterion in Criterion::ALL {
        let mut model = build(&Device::cpu(), "opt-pre", None);
        let all = matrices(&mut *model);
        // A share of its own for each matrix; one stays dense.
        let share = |index: usize| index as f64 * 0.07;
        let allocation =
            Allocation::of(all.iter().enumerate().map(|(index, matrix)| (matrix.name.clone(), share(index)))).unwrap();
        prune(&mut *model, criterion, &allocation);
        let (masks, mut zeros) = (masks(&mut *model), 0);
        for (index, matrix) in all.iter().enumerate() {
            let gone = masks[&matrix.name].iter().filter(|kept| !**kept).count();
            // Wanda cuts each row: ⌊s·in⌋ of it, so at most one entry of a row short of s·in.
            let most = (share(index) * matrix.entries as f64) as usize;
            let rows = if criterion == Criterion::Wanda { matrix.entries / 32 } else { 1 };
            assert!(gone <= most && gone + rows >= most, "{criterion} {}: {gone} of {most}", matrix.name);
            zeros += gone;
        }
        let entries: usize = all.iter().map(|matrix| matrix.entries).sum();
        let sparsity = model::sparsity(&mut *model).unwrap();
        assert_eq!(sparsity.weights, zeros as f64 / entries as f64);
        assert_eq!(sparsity.layers.len(), 2);
        // Both layers have as many weights.
        assert!((sparsity.layers.iter().sum::<f64>() / 2.0 - sparsity.weights).abs() < 1e-15);
        assert!(sparsity.layers[0] < sparsity.layers[1]);
    }
}
