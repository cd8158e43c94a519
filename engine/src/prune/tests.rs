use std::sync::Arc;

use half::{bf16, f16};
use kernels::weight::FrozenWeight;
use kernels::{Backend, Category, DType, Device};

use super::*;
use crate::model::{Linear, Weight};

fn linear(device: &Device, rows: usize, cols: usize) -> Linear {
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 - 504.5) / 100.0).collect();
    let values = device.upload(Category::Weights, &values).unwrap();
    Linear {
        name: "layer".into(),
        weight: Weight::Frozen(FrozenWeight::dense(values, rows, cols).unwrap()),
        bias: None,
        lora: None,
        prunable: true,
    }
}

/// Entries that the layer stores.
fn stored(linear: &Linear) -> usize {
    match &linear.weight {
        Weight::Frozen(weight) => weight.stored(),
        _ => panic!("it is frozen"),
    }
}

fn values(linear: &Linear) -> Vec<f32> {
    match &linear.weight {
        Weight::Frozen(weight) => weight.to_f32().unwrap(),
        Weight::Offloaded(weight) => weight.bring().unwrap().to_f32().unwrap(),
        Weight::Trainable(param) => param.value().f32().to_vec(),
    }
}

/// Σ x·xᵀ of 3·`cols` tokens whose neighbouring features say almost the same; feature 3 is never seen.
fn gram(cols: usize) -> Vec<f32> {
    let feature = |t: usize, j: usize| match j {
        3 => 0.0,
        j => ((t * 7919 + j * 31) % 1009) as f32 / 504.0 - 1.0 + ((t * 31 + j / 4 * 7919) % 1009) as f32 / 504.0,
    };
    let sum = |i: usize, j: usize| (0..3 * cols).map(|t| feature(t, i) * feature(t, j)).sum();
    (0..cols * cols).map(|at| sum(at / cols, at % cols)).collect()
}

/// Prunes with any criterion.
fn prune(linear: &mut Linear, pruning: &Pruning) -> crate::error::Result<()> {
    let (cols, name) = (linear.weight.cols(), "layer.weight");
    let inputs = match pruning.criterion {
        Criterion::Magnitude | Criterion::Random => return prune_linear(linear, pruning),
        Criterion::Wanda => {
            let gram = gram(cols);
            let squares: Vec<f64> = (0..cols).map(|j| f64::from(gram[j * cols + j])).collect();
            Inputs::Norms(InputNorms::new(&squares, 3 * cols, name)?)
        }
        Criterion::SparseGpt => Inputs::Hessian(Hessian::new(&gram(cols), cols, 3, name)?),
    };
    prune_calibrated(linear, pruning, &inputs).map(drop)
}

#[test]
fn the_count_is_exact_for_every_criterion() {
    let device = Device::cpu();
    for criterion in Criterion::ALL {
        for sparsity in [0.0, 0.1, 0.3, 0.5, 0.7, 0.99] {
            let mut layer = linear(&device, 13, 29);
            let pattern = Pattern::unstructured(sparsity).unwrap();
            let pruning = Pruning { criterion, pattern, seed: 3 };
            prune(&mut layer, &pruning).unwrap();
            let gone = match criterion {
                Criterion::Wanda => 13 * (sparsity * 29.0) as usize,
                // One block of columns is the whole matrix.
                _ => (sparsity * 377.0) as usize,
            };
            assert_eq!(pruning.kept(13, 29, "w").unwrap(), 377 - gone);
            assert_eq!(stored(&layer), 377 - gone, "{criterion} {sparsity}");
        }
    }
}

#[test]
fn pruning_further_never_brings_a_weight_back_frozen_or_trainable() {
    let device = Device::cpu();
    for criterion in Criterion::ALL {
        for trainable in [false, true] {
            let mut layer = linear(&device, 16, 40);
            let mut gone = vec![false; 640];
            for cycle in 1..=3 {
                let pattern = Pattern::unstructured(imp_sparsity(0.8, cycle, 3)).unwrap();
                let pruning = Pruning { criterion, pattern, seed: 3 };
                prune(&mut layer, &pruning).unwrap();
                if trainable && cycle == 1 {
                    layer.weight = layer.weight.into_trainable(&device, "layer.weight").unwrap();
                }
                let now: Vec<bool> = values(&layer).iter().map(|x| *x == 0.0).collect();
                assert!(gone.iter().zip(&now).all(|(before, now)| !before || *now));
                assert_eq!(now.iter().filter(|gone| **gone).count(), 640 - pruning.kept(16, 40, "").unwrap());
                gone = now;
            }
        }
    }
}

#[test]
fn a_pruned_weight_that_trains_keeps_its_mask() {
    let device = Device::cpu();
    for sparsity in [0.02, 0.5] {
        let mut layer = linear(&device, 10, 10);
        let pruning = Pruning { criterion: Criterion::Magnitude, pattern: Pattern::Unstructured { sparsity }, seed: 0 };
        prune_linear(&mut layer, &pruning).unwrap();
        let before = values(&layer);
        let weight = layer.weight.into_trainable(&device, "layer.weight").unwrap();
        let param: Arc<_> = weight.param().unwrap().clone();
        assert_eq!(param.value().f32(), before);
        let mask = param.mask();
        let words = mask.as_ref().expect("a pruned weight has a mask").as_slice::<u64>();
        for (i, x) in before.iter().enumerate() {
            assert_eq!(words[i / 64] >> (i % 64) & 1 == 1, *x != 0.0, "sparsity {sparsity}, entry {i}");
        }
    }
}

#[test]
fn meta_packs_and_peaks_at_the_same_number_of_bytes() {
    let patterns = [Pattern::Unstructured { sparsity: 0.37 }, Pattern::NM { n: 2, m: 4 }];
    for pattern in patterns {
        let pruning = Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 };
        let bytes = |device: &Device| {
            let mut layer = linear(device, 12, 100);
            prune_linear(&mut layer, &pruning).unwrap();
            let bytes = layer.weight.with_ref(|weight| Ok::<_, kernels::Error>(weight.size_bytes())).unwrap();
            (bytes, device.memory().peak())
        };
        let meta = Device::meta(Backend::Cpu, Device::cpu().threads());
        assert_eq!(bytes(&meta), bytes(&Device::cpu()));
    }
}

#[test]
fn random_scores_belong_to_the_tensor_and_the_seed() {
    let ones = Device::cpu().upload(Category::Weights, &[1.0f32; 50]).unwrap();
    let scores = |tensor, seed| {
        let scores = Criterion::Random.scores(&ones, tensor, seed).unwrap().expect("not the magnitudes");
        scores.f32().to_vec()
    };
    assert_eq!(scores("a", 1), scores("a", 1));
    assert_ne!(scores("a", 1), scores("b", 1));
    assert_ne!(scores("a", 1), scores("a", 2));
}

#[test]
fn patterns_are_read_and_refused() {
    assert_eq!("2:4".parse::<Pattern>().unwrap(), Pattern::NM { n: 2, m: 4 });
    for bad in ["", "2", "4:2", "0:4", "4:4", "1:33", "a:b", "-1:4", "2:4:8"] {
        assert!(bad.parse::<Pattern>().unwrap_err().to_string().contains("write n:m"), "{bad}");
    }
    for bad in [-0.1, 1.0, 1.5, f64::NAN] {
        assert!(Pattern::unstructured(bad).unwrap_err().to_string().contains("outside [0, 1)"));
        assert!(Pattern::Unstructured { sparsity: bad }.kept(3, 6, "w").unwrap_err().to_string().contains("[0, 1)"));
    }
    let error = Pattern::NM { n: 2, m: 4 }.kept(3, 6, "layers.0.fc1.weight").unwrap_err().to_string();
    assert!(error.starts_with("layers.0.fc1.weight: its 6 input features"), "{error}");
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let weights = Device::cpu().upload(Category::Weights, &[1.0, 2.0, 3.0, f32::NAN]).unwrap();
    for criterion in Criterion::ALL {
        let mut layer = linear(&Device::cpu(), 1, 1);
        layer.weight =
            Weight::Frozen(FrozenWeight::dense(weights.duplicate(Category::Weights).unwrap(), 2, 2).unwrap());
        let pruning = Pruning { criterion, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };
        let error = prune(&mut layer, &pruning).unwrap_err().to_string();
        assert_eq!(error, "layer.weight: entry [1, 1] is NaN; the model is damaged");
    }
}

#[test]
fn what_needs_calibration_says_so_without_it() {
    for criterion in [Criterion::Wanda, Criterion::SparseGpt] {
        let pruning = Pruning { criterion, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };
        let error = prune_linear(&mut linear(&Device::cpu(), 4, 4), &pruning).unwrap_err().to_string();
        assert!(error.contains("layer.weight") && error.contains("calibration"), "{error}");
        // A plan needs no values.
        let mut layer = linear(&Device::meta(Backend::Cpu, 1), 10, 7);
        prune_linear(&mut layer, &pruning).unwrap();
        assert_eq!(stored(&layer), pruning.kept(10, 7, "w").unwrap());
    }
}

#[test]
fn inputs_that_are_not_finite_are_named() {
    let error = InputNorms::new(&[1.0, f64::INFINITY], 5, "w").unwrap_err().to_string();
    assert!(error.starts_with("w: its calibration inputs are not finite (feature 1)"), "{error}");
    let error = Hessian::new(&[1.0, 0.0, f32::INFINITY, f32::NAN], 2, 5, "w").unwrap_err().to_string();
    assert!(error.starts_with("w: its calibration inputs are not finite (feature 1)"), "{error}");
}

#[test]
fn dampening_rises_until_the_hessian_is_positive_definite() {
    assert_eq!(Hessian::new(&gram(8), 8, 1, "w").unwrap().dampening(), 0.01);
    // Eigenvalues 1 ± c under a mean diagonal of 1: definite from a dampening of c − 1 on. No inputs have such moments, but
    // f32 sums of many almost equal ones come close.
    let hessian = |c: f32| Hessian::new(&[1.0, c, c, 1.0], 2, 2, "w");
    assert!(!hessian(1.005).unwrap().was_indefinite());
    for (c, dampening) in [(1.05, 0.1), (1.5, 1.0), (50.0, 100.0)] {
        let got = hessian(c).unwrap();
        assert!(got.was_indefinite() && (got.dampening() / dampening - 1.0).abs() < 1e-12, "{c}: {}", got.dampening());
    }
    let error = hessian(1e4).unwrap_err().to_string();
    assert!(error.starts_with("w: ") && error.contains("--criterion wanda"), "{error}");
}

#[test]
fn sparsegpt_errs_less_than_the_same_mask_alone() {
    let (rows, cols) = (6, 300);
    let gram = gram(cols);
    let mut layer = linear(&Device::cpu(), rows, cols);
    let dense = values(&layer);
    let pruning =
        Pruning { criterion: Criterion::SparseGpt, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };
    prune(&mut layer, &pruning).unwrap();
    let pruned = values(&layer);
    let error = |values: &[f32]| -> f64 {
        let change: Vec<f64> = values.iter().zip(&dense).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let row = |row: &[f64]| -> f64 {
            (0..cols * cols).map(|at| row[at / cols] * f64::from(gram[at]) * row[at % cols]).sum()
        };
        change.chunks(cols).map(row).sum()
    };
    let masked: Vec<f32> = dense.iter().zip(&pruned).map(|(w, kept)| if *kept == 0.0 { 0.0 } else { *w }).collect();
    assert!(error(&pruned) < 0.5 * error(&masked), "{} of {}", error(&pruned), error(&masked));
}

#[test]
fn rounding_is_to_nearest_and_makes_no_zero() {
    for (x, dtype, want) in [
        (1.0 + 2f32.powi(-11), DType::F16, 1.0),
        (1.0 + 3.0 * 2f32.powi(-11), DType::F16, 1.0 + 2f32.powi(-9)),
        (-1e-30, DType::F16, -(2f32.powi(-24))),
        (1e-30, DType::BF16, bf16::from_f32(1e-30).to_f32()),
        (1e-44, DType::BF16, bf16::from_bits(1).to_f32()),
        (1e-44, DType::F32, 1e-44),
        (0.0, DType::F16, 0.0),
        (1e6, DType::F16, f32::INFINITY),
    ] {
        assert_eq!(rounded(x, dtype), want, "{x:e} as {dtype}");
    }
}

/// A layer of f16.
fn half_linear(values: &[f32], rows: usize, cols: usize) -> Linear {
    let values: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
    let values = Device::cpu().upload(Category::Weights, &values).unwrap();
    let weight = Weight::Frozen(FrozenWeight::dense(values, rows, cols).unwrap());
    Linear { name: "layer".into(), weight, bias: None, lora: None, prunable: true }
}

/// Two features with the moments [1, c; c, 1]: where the first's w goes, c/1.01·w is added to the second's.
fn two_features(c: f32) -> Inputs {
    Inputs::Hessian(Hessian::new(&[1.0, c, c, 1.0], 2, 2, "layer.weight").unwrap())
}

const SPARSEGPT: Pruning =
    Pruning { criterion: Criterion::SparseGpt, pattern: Pattern::Unstructured { sparsity: 0.5 }, seed: 0 };

#[test]
fn what_sparsegpt_keeps_is_never_rounded_to_zero() {
    // 0.31 of the smallest number is left of the second: zero is nearer than any other.
    let least = f16::from_bits(1).to_f32();
    for (w, sign) in [([least, -least], -1.0), ([-least, least], 1.0)] {
        let mut layer = half_linear(&w, 1, 2);
        prune_calibrated(&mut layer, &SPARSEGPT, &two_features(0.7)).unwrap();
        assert_eq!(values(&layer), [0.0, sign * least]);
        let Weight::Frozen(weight) = &layer.weight else { panic!("nothing trains") };
        assert_eq!((weight.mask().unwrap(), weight.zeros().unwrap()), (Some(vec![0b10]), 1));
    }
}

#[test]
fn what_sparsegpt_makes_too_large_is_named() {
    // Of each row the first goes, and 0.9/1.01 of it to the second.
    let mut layer = half_linear(&[1.0, 1.0, 60_000.0, 60_000.0], 2, 2);
    let before = values(&layer);
    let pruning = Pruning { pattern: Pattern::NM { n: 1, m: 2 }, ..SPARSEGPT };
    let error = prune_calibrated(&mut layer, &pruning, &two_features(0.9)).unwrap_err().to_string();
    let (start, end) = ("layer.weight: SparseGPT makes entry [1, 1] 11", ", which f16 does not hold; give more");
    assert!(error.starts_with(start) && error.contains(end) && error.contains("--criterion wanda"), "{error}");
    assert_eq!(values(&layer), before);
}

/// Of these 16 columns of each row the first half is zero, and of the others nothing.
fn half_zero(rows: usize) -> Linear {
    let entry = |i: usize| if i % 16 < 8 { 0.0 } else { (i * 7919 % 1009) as f32 / 100.0 + 1.0 };
    half_linear(&(0..rows * 16).map(entry).collect::<Vec<_>>(), rows, 16)
}

/// Whatever a pattern leaves, the mask in memory is the one that the zeros of a file tell.
#[test]
fn more_zeros_than_should_go_are_none_of_the_entries() {
    let patterns = [Pattern::Unstructured { sparsity: 0.25 }, Pattern::NM { n: 2, m: 4 }, Pattern::NM { n: 3, m: 8 }];
    for criterion in Criterion::ALL {
        for pattern in patterns {
            let what = format!("{criterion} {pattern}");
            let pruning = Pruning { criterion, pattern, seed: 3 };
            let is_kept = |words: &[u64], at: usize| words[at / 64] >> (at % 64) & 1 == 1;
            let mut layer = half_zero(6);
            prune(&mut layer, &pruning).unwrap();
            let Weight::Frozen(weight) = &layer.weight else { panic!("nothing trains") };
            let (mask, entries) = (weight.mask().unwrap().unwrap(), values(&layer));
            for (at, x) in entries.iter().enumerate() {
                assert_eq!(is_kept(&mask, at), *x != 0.0, "{what}: entry {at} is {x}");
            }
            // Groups that are full lose what they should; the others have nothing.
            let stays = match pattern {
                Pattern::NM { n, m } => 6 * (8 / m * n),
                Pattern::Unstructured { .. } => 6 * 8,
            };
            // SparseGPT's feature 3, never seen, is zero anyway.
            assert_eq!((stored(&layer), weight.dtype()), (stays, DType::F16), "{what}");

            let mut layer = half_zero(6);
            layer.weight = layer.weight.into_trainable(&Device::cpu(), "layer.weight").unwrap();
            prune(&mut layer, &pruning).unwrap();
            let param = layer.weight.param().unwrap().clone();
            let mask = param.mask().as_ref().unwrap().as_slice::<u64>().to_vec();
            for (at, x) in param.value().f32().iter().enumerate() {
                assert_eq!(is_kept(&mask, at), *x != 0.0, "{what}: entry {at}, which trains, is {x}");
            }
        }
    }
}

#[test]
fn features_never_seen_leave_no_entry_that_is_zero() {
    // Features 4 to 6: of their group of four more is zero than goes.
    let gram: Vec<f32> =
        (0..64).map(|at| if at / 8 == at % 8 && !(4..7).contains(&(at % 8)) { 1.0 } else { 0.0 }).collect();
    let inputs = Inputs::Hessian(Hessian::new(&gram, 8, 2, "layer.weight").unwrap());
    let mut layer = half_linear(&(1..=16).map(|i| i as f32).collect::<Vec<_>>(), 2, 8);
    let pruning = Pruning { pattern: Pattern::NM { n: 2, m: 4 }, ..SPARSEGPT };
    prune_calibrated(&mut layer, &pruning, &inputs).unwrap();
    let Weight::Frozen(weight) = &layer.weight else { panic!("nothing trains") };
    assert_eq!(values(&layer), [0., 0., 3., 4., 0., 0., 0., 8., 0., 0., 11., 12., 0., 0., 0., 16.]);
    assert_eq!((weight.mask().unwrap(), weight.stored()), (Some(vec![0b1000_1100_1000_1100]), 6));
}

#[test]
fn counts_are_pythons_int_of_the_product() {
    // int(0.3 * 10) and its kin in Python, where the products round to 3.0, 28.999…, 56.999… and 2.0.
    for (sparsity, entries, gone) in [(0.3, 10, 3), (0.29, 100, 28), (0.57, 100, 56), (0.1, 20, 2)] {
        let pattern = Pattern::unstructured(sparsity).unwrap();
        assert_eq!(entries - pattern.kept(1, entries, "w").unwrap(), gone, "{sparsity} of {entries}");
    }
}

#[test]
fn cycles_remove_the_same_share_of_what_is_left() {
    assert_eq!(imp_sparsity(0.75, 1, 2), 0.5);
    assert_eq!(imp_sparsity(0.75, 2, 2), 0.75);
    assert_eq!(imp_sparsity(0.3, 1, 1), 0.3);
}

#[test]
fn dtypes_survive_pruning() {
    let device = Device::cpu();
    let half: Vec<half::f16> = (0..64).map(|i| half::f16::from_f32(i as f32 + 1.0)).collect();
    let mut layer = linear(&device, 1, 1);
    let source = device.upload(Category::Weights, &half).unwrap();
    layer.weight = Weight::Frozen(FrozenWeight::dense(source, 8, 8).unwrap());
    let pattern = Pattern::Unstructured { sparsity: 0.5 };
    prune_linear(&mut layer, &Pruning { criterion: Criterion::Magnitude, pattern, seed: 0 }).unwrap();
    assert_eq!(layer.weight.dtype(), DType::F16);
    assert_eq!(values(&layer)[32..], (32..64).map(|i| i as f32 + 1.0).collect::<Vec<_>>()[..]);
}
