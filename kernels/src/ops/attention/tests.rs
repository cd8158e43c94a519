use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::device::Backend;
use crate::strips::{from_rows, to_rows};

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// q, k, v and the gradient of the output.
fn operands(a: &Attention) -> [Vec<f32>; 4] {
    [values(a.query_len(), 1), values(a.key_len(), 2), values(a.key_len(), 3), values(a.query_len(), 4)]
}

/// Output, log-sum-exp, dq, dk and dv on one instruction set, with NaN in all scratch and outputs beforehand.
fn run(isa: Isa, a: &Attention, threads: usize, operands: &[Vec<f32>; 4]) -> [Vec<f32>; 5] {
    let (n, queries, keys) = (a.rows(), a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let widths = [queries, keys, keys, queries];
    let [q, k, v, d_out] = &std::array::from_fn(|i| from_rows(&operands[i], n, widths[i]));
    let nan = |n: usize| vec![f32::NAN; n];
    let (mut out, mut lse) = (nan(q.len()), nan(a.lse_len()));
    let (mut dq, mut dk, mut dv) = (d_out.clone(), nan(k.len()), nan(v.len()));
    let mut shared = nan(cpu::forward::shared_len(isa, a));
    let mut slots = nan(cpu::forward::slot_len(isa, a) * threads);
    let output = cpu::forward::Output { out: &mut out, lse: &mut lse };
    cpu::forward::forward(isa, a, q, k, v, output, &mut shared, &mut slots);
    let saved = cpu::backward::Saved { q, k, v, out: &out, lse: &lse };
    let gradients = cpu::backward::Out { dq: &mut dq, dk: &mut dk, dv: &mut dv };
    cpu::backward::backward(isa, a, saved, gradients, &mut nan(cpu::backward::slot_len(isa, a) * threads));
    let [out, dq] = [out, dq].map(|x| to_rows(&x, n, queries));
    let [dk, dv] = [dk, dv].map(|x| to_rows(&x, n, keys));
    [out, lse, dq, dk, dv]
}

/// Every result comes from a chain of at most four sums of up to n = max(hd, T·H/Hkv) terms. Each sum errs by at most
/// n·2⁻²⁴ times its magnitudes, which operands in [−1, 1] keep below √hd times the largest result, or 1; by 2⁻¹⁵ more where each
/// product may.
fn tolerance(a: &Attention, want: &[f64]) -> f64 {
    let terms = a.head_dim.max(a.tokens * a.heads / a.kv_heads) as f64 + 16.0;
    let largest = want.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    let of_product = if a.precision == Precision::Bits16 { 2f64.powi(-15) } else { 0.0 };
    4.0 * (terms * 2f64.powi(-24) + of_product) * largest * (a.head_dim as f64).sqrt()
}

fn compare(a: &Attention, isa: Isa, got: &[Vec<f32>; 5], want: &[Vec<f64>; 5]) {
    for (name, (got, want)) in ["out", "lse", "dq", "dk", "dv"].iter().zip(got.iter().zip(want)) {
        let tolerance = tolerance(a, want);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= tolerance, "{name}[{i}] is {got}, not {want}, on {isa:?} for {a:?}");
        }
    }
}

fn check(a: &Attention) {
    let operands = operands(a);
    let [q, k, v, d_out] = operands.each_ref().map(|x| wide(x));
    let (out, lse) = reference::forward(a, &q, &k, &v);
    let (dq, dk, dv) = reference::backward(a, &d_out, &q, &k, &v);
    let want = [out, lse, dq, dk, dv];
    for isa in Isa::available() {
        compare(a, isa, &run(isa, a, 2, &operands), &want);
    }
}

fn attention(batch: usize, tokens: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Attention { batch, tokens, heads, kv_heads, head_dim, scale, window: None, precision: Precision::F32 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn equals_the_reference_for_any_shape(
        batch in 1usize..3, tokens in 1usize..150, kv_heads in 1usize..4, group in 1usize..4,
        head_dim in prop_oneof![1usize..40, Just(64), Just(80), Just(128)],
        window in prop_oneof![Just(None), (1usize..160).prop_map(Some)],
        precision in prop_oneof![Just(Precision::F32), Just(Precision::Bits16)],
    ) {
        check(&Attention { window, precision, ..attention(batch, tokens, kv_heads * group, kv_heads, head_dim) });
    }
}

#[test]
fn equals_the_reference_over_several_tiles_of_keys() {
    for precision in [Precision::F32, Precision::Bits16] {
        check(&Attention { precision, ..attention(1, 400, 2, 1, 20) });
        check(&Attention { precision, ..attention(1, 420, 2, 1, 64) });
        check(&Attention { precision, window: Some(131), ..attention(1, 400, 2, 1, 12) });
        check(&Attention { precision, window: Some(131), ..attention(1, 400, 2, 1, 40) });
    }
}

#[test]
fn the_reference_gradients_are_finite_differences_of_the_reference() {
    let a = Attention { window: Some(3), ..attention(2, 5, 4, 2, 3) };
    let [q, k, v, d_out] = operands(&a).map(|x| wide(&x));
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        reference::forward(&a, q, k, v).0.iter().zip(&d_out).map(|(x, w)| x * w).sum()
    };
    let (dq, dk, dv) = reference::backward(&a, &d_out, &q, &k, &v);
    // A central difference errs by h²/6 times the third derivative (below about 10) plus 2⁻⁵²·loss/h: both near 1e-10.
    let h = 1e-5;
    for (operand, gradient) in [dq, dk, dv].iter().enumerate() {
        for (i, want) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut x = [q.clone(), k.clone(), v.clone()];
                x[operand][i] += step;
                loss(&x[0], &x[1], &x[2])
            };
            let got = (at(h) - at(-h)) / (2.0 * h);
            assert!((got - want).abs() < 1e-8, "operand {operand}, element {i}: {got}, not {want}");
        }
    }
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    for precision in [Precision::F32, Precision::Bits16] {
        let a = Attention { precision, ..attention(2, 100, 6, 3, 16) };
        let operands = operands(&a);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(Isa::best(), &a, threads, &operands))
        };
        let one = with(1);
        assert_eq!(one, with(2));
        assert_eq!(one, with(5));
    }
}

#[test]
fn large_scores_neither_overflow_nor_underflow_the_softmax() {
    for precision in [Precision::F32, Precision::Bits16] {
        let a = Attention { scale: 100.0, precision, ..attention(1, 40, 1, 1, 16) };
        let [out, lse, dq, dk, dv] = run(Isa::best(), &a, 1, &operands(&a));
        assert!([out, lse, dq, dk, dv].iter().flatten().all(|x| x.is_finite()));
    }
}

fn upload(device: &Device, x: &[f32]) -> Buffer {
    device.upload(Category::Activations, x).unwrap()
}

#[test]
fn meta_accounts_what_the_cpu_takes() {
    let a = Attention { precision: Precision::Bits16, ..attention(2, 37, 6, 3, 20) };
    let [q, k, v, d_out] = operands(&a);
    let peak = |device: &Device| {
        let [q, k, v] = [&q, &k, &v].map(|x| upload(device, x));
        let (out, lse) = forward(&a, &q, &k, &v).unwrap();
        let forward_peak = device.memory().peak();
        let gradients = backward(&a, upload(device, &d_out), &q, &k, &v, &out, &lse).unwrap();
        assert_eq!(gradients.dq.len(), q.len());
        (forward_peak, device.memory().peak())
    };
    let cpu = Device::cpu();
    assert_eq!(peak(&cpu), peak(&Device::meta(Backend::Cpu, cpu.threads())));
}

#[test]
fn bad_operands_are_named() {
    let device = Device::cpu();
    let a = attention(1, 4, 4, 2, 8);
    let [q, k, v, _] = operands(&a).map(|x| upload(&device, &x));
    let message = |a: &Attention, q: &Buffer| forward(a, q, &k, &v).unwrap_err().to_string();
    assert_eq!(message(&a, &k), "attention_forward: q has 64 elements, expected 128");
    assert!(message(&Attention { kv_heads: 3, ..a }, &q).contains("4 query heads cannot share 3"));
    assert!(message(&Attention { kv_heads: 0, ..a }, &q).contains("cannot share 0"));
    assert!(message(&Attention { heads: 0, ..a }, &q).contains("0 query heads cannot share"));
    assert!(message(&Attention { window: Some(0), ..a }, &q).contains("window of 0"));
    assert!(message(&Attention { scale: f32::NAN, ..a }, &q).contains("scale is NaN"));
    assert!(message(&Attention { head_dim: 0, ..a }, &q).contains("head dimension is 0"));
    let ids = device.upload(Category::Activations, &[0u32; 128]).unwrap();
    assert_eq!(message(&a, &ids), "attention_forward: q is u32, expected f32");
}
