use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::reference::Operands;
use super::*;
use crate::ops::activation::{self, Activation};
use crate::ops::testing::{self, upload_tokens};
use crate::weight::FrozenWeight;

struct Case {
    n: usize,
    rows: usize,
    cols: usize,
    rank: usize,
    scale: f64,
    x: Vec<f64>,
    dy: Vec<f64>,
    w: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    bias: Vec<f64>,
}

impl Case {
    fn new(n: usize, rows: usize, cols: usize, rank: usize, seed: u64) -> Case {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut values = |len: usize| -> Vec<f64> {
            (0..len).map(|_| f64::from((rng.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0)).collect()
        };
        Case {
            n,
            rows,
            cols,
            rank,
            scale: 2.0,
            x: values(n * cols),
            dy: values(n * rows),
            w: values(rows * cols),
            a: values(rank * cols),
            b: values(rows * rank),
            bias: values(rows),
        }
    }

    fn operands(&self) -> Operands<'_> {
        Operands {
            n: self.n,
            rows: self.rows,
            cols: self.cols,
            rank: self.rank,
            scale: self.scale,
            w: &self.w,
            a: &self.a,
            b: &self.b,
            bias: &self.bias,
        }
    }

    /// Σ dy·y: its derivatives are the gradients that the kernels compute.
    fn objective(&self) -> f64 {
        self.operands().forward(&self.x).iter().zip(&self.dy).map(|(y, dy)| y * dy).sum()
    }

    /// Central differences of the objective over the tensor that `of` picks. The objective is at most bilinear in any
    /// one tensor, so they are exact but for f64 rounding.
    fn differences(&mut self, of: impl Fn(&mut Case) -> &mut Vec<f64>) -> Vec<f64> {
        (0..of(self).len())
            .map(|i| {
                let x = of(self)[i];
                of(self)[i] = x + 0.5;
                let high = self.objective();
                of(self)[i] = x - 0.5;
                let low = self.objective();
                of(self)[i] = x;
                high - low
            })
            .collect()
    }
}

fn upload(device: &Device, values: &[f64]) -> Buffer {
    let values: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    device.upload(Category::Weights, &values).unwrap()
}

/// Sums of `terms` products of magnitude at most `size` in f32, each rounding at most 2⁻²⁴ of the running sum.
fn assert_close(what: &str, got: &[f32], want: &[f64], terms: usize, size: f64) {
    let tolerance = (terms + 8) as f64 * size * 2f64.powi(-24) * 8.0;
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*got) - want).abs() <= tolerance, "{what}[{i}] = {got}, not {want} ± {tolerance}");
    }
    assert_eq!(got.len(), want.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn forward_and_every_gradient_equal_the_reference(
        n in 1usize..20, rows in 1usize..40, cols in 1usize..40, rank in 0usize..5, frozen: bool, seed: u64,
    ) {
        check(n, rows, cols, rank, frozen, seed);
    }
}

#[test]
fn more_tokens_than_a_strip_equal_the_reference() {
    check(96, 4, 6, 2, true, 1);
    check(213, 5, 3, 1, false, 2);
    check(112, 3, 70, 0, true, 3);
}

fn check(n: usize, rows: usize, cols: usize, rank: usize, frozen: bool, seed: u64) {
    let mut case = Case::new(n, rows, cols, rank, seed);
    let device = Device::cpu();
    let value = upload(&device, &case.w);
    let held = FrozenWeight::dense(upload(&device, &case.w), rows, cols).unwrap();
    let weight =
        if frozen { WeightRef::Frozen(&held) } else { WeightRef::Trainable { value: &value, rows, cols, mask: None } };
    let (a, b) = (upload(&device, &case.a), upload(&device, &case.b));
    let lora = (rank > 0).then_some(Lora { a: &a, b: &b, rank, scale: 2.0 });
    let (x, dy) = (upload_tokens(&device, &case.x, n), upload_tokens(&device, &case.dy, n));
    let bias = upload(&device, &case.bias);
    let size = 1.0 + 2.0 * rank as f64;

    let out = forward(&device, &x, n, weight, Some(&bias), lora).unwrap();
    assert_close("y", &testing::rows(out.y.f32(), n), &case.operands().forward(&case.x), cols + rank, size);
    let plain = forward(&device, &x, n, weight, None, None).unwrap();
    let without = Operands { rank: 0, bias: &vec![0.0; rows], ..case.operands() };
    assert_close("plain y", &testing::rows(plain.y.f32(), n), &without.forward(&case.x), cols, 1.0);

    let v = lora.map(|lora| lora_down(&device, &dy, n, weight, lora).unwrap());
    let dx = backward_input(&device, &dy, n, weight, lora.zip(v.as_ref())).unwrap();
    assert_close("dx", &testing::rows(dx.f32(), n), &case.differences(|case| &mut case.x), rows * (rank + 1), size);

    // Gradients of trainable tensors add to what is there.
    let ones = |len: usize| upload(&device, &vec![1.0; len]);
    let plus_one = |d: Vec<f64>| -> Vec<f64> { d.into_iter().map(|d| d + 1.0).collect() };
    let mut d_bias = ones(rows);
    bias_gradient(&device, &dy, n, &mut d_bias).unwrap();
    assert_close("db", d_bias.f32(), &plus_one(case.differences(|case| &mut case.bias)), n, 1.0);
    let mut d_weight = ones(rows * cols);
    weight_gradient(&device, &x, &dy, n, &mut d_weight).unwrap();
    assert_close("dW", d_weight.f32(), &plus_one(case.differences(|case| &mut case.w)), n, 1.0);
    if let (Some(u), Some(v)) = (&out.u, &v) {
        let (mut d_a, mut d_b) = (ones(rank * cols), ones(rows * rank));
        lora_gradients(&device, &x, &dy, n, (u, v), &mut d_a, &mut d_b).unwrap();
        assert_close("dA", d_a.f32(), &plus_one(case.differences(|case| &mut case.a)), n * rows, 2.0);
        assert_close("dB", d_b.f32(), &plus_one(case.differences(|case| &mut case.b)), n * cols, 2.0);
    }
}

#[test]
fn an_operand_of_the_wrong_length_is_named() {
    let device = Device::cpu();
    let value = upload(&device, &[1.0; 6]);
    let weight = WeightRef::Trainable { value: &value, rows: 2, cols: 3, mask: None };
    let x = upload(&device, &[1.0; 5]);
    let error = forward(&device, &x, 2, weight, None, None).unwrap_err().to_string();
    assert_eq!(error, "linear_forward: x has 5 elements, expected 6");
}

/// The operations that follow are tested by themselves, to the tolerances taken here.
#[test]
fn an_epilogue_follows_the_product() {
    let (n, rows, cols) = (101, 7, 5);
    let case = Case::new(n, rows, cols, 0, 4);
    let device = Device::cpu();
    let held = FrozenWeight::dense(upload(&device, &case.w), rows, cols).unwrap();
    let (x, bias) = (upload_tokens(&device, &case.x, n), upload(&device, &case.bias));
    let residual = upload_tokens(&device, &case.dy, n);
    let z = case.operands().forward(&case.x);
    for activation in [Some(Activation::Relu), Some(Activation::Silu), None] {
        let epilogue = Epilogue { activation, save: true, residual: Some(&residual) };
        let out = forward_with(&device, &x, n, WeightRef::Frozen(&held), Some(&bias), None, epilogue).unwrap();
        let f = |z: f64| activation.map_or(z, |kind| activation::reference::forward(kind, z));
        let want: Vec<f64> = z.iter().zip(&case.dy).map(|(z, r)| f(*z) + r).collect();
        assert_close("y", &testing::rows(out.y.f32(), n), &want, cols, 1.0);
        match (activation, out.saved) {
            (Some(Activation::Relu), Some(signs)) => assert_eq!(signs.len(), (n * rows).div_ceil(64)),
            (Some(_), Some(saved)) => assert_close("z", &testing::rows(saved.f32(), n), &z, cols, 1.0),
            (activation, saved) => assert!(activation.is_none() && saved.is_none()),
        }
    }
}
