//! LayerNorm, forward and backward.

use kernels::ops::InputGradient;
use kernels::ops::layer_norm::{ParamGradients, backward, forward, reference};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, assert_sums, differences, dot, gpu, random, sum, upload};

const EPS: f32 = 1e-5;

struct Operands {
    x: Vec<f64>,
    dy: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Operands {
    fn new(dtype: DType, rows: usize, cols: usize) -> Operands {
        Operands {
            x: random(dtype, rows * cols, 1),
            dy: random(dtype, rows * cols, 2),
            weight: random(DType::F32, cols, 3),
            bias: random(DType::F32, cols, 4),
        }
    }

    /// dx, dw, db by the formulas of the operation's contract.
    fn gradients(&self) -> [Vec<f64>; 3] {
        let (mut dx, n) = (Vec::new(), self.weight.len() as f64);
        for (normal, rstd, dy) in self.rows() {
            let g: Vec<f64> = dy.iter().zip(&self.weight).map(|(dy, w)| dy * w).collect();
            let (g_mean, g_dot) = (g.iter().sum::<f64>() / n, dot(&g, &normal) / n);
            dx.extend(g.iter().zip(&normal).map(|(g, normal)| rstd * (g - g_mean - normal * g_dot)));
        }
        let [dw, db] = self.parameter_sums(|term| term);
        [dx, dw, db]
    }

    /// x̂, r and dy of each row.
    fn rows(&self) -> impl Iterator<Item = (Vec<f64>, f64, &[f64])> {
        let cols = self.weight.len();
        self.x.chunks(cols).zip(self.dy.chunks(cols)).map(move |(x, dy)| {
            let mean = x.iter().sum::<f64>() / cols as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            (x.iter().map(|x| (x - mean) * rstd).collect(), rstd, dy)
        })
    }

    /// Σ of the terms of dw and of db.
    fn parameter_sums(&self, of: fn(f64) -> f64) -> [Vec<f64>; 2] {
        let [mut dw, mut db] = [0, 0].map(|_| vec![0.0; self.weight.len()]);
        for (normal, _, dy) in self.rows() {
            for i in 0..dy.len() {
                dw[i] += of(dy[i] * normal[i]);
                db[i] += of(dy[i]);
            }
        }
        [dw, db]
    }
}

/// y, dx, dw, db of one pass; dx is added to x, dw and db to ones.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> [Buffer; 4] {
    let operands = Operands::new(dtype, rows, cols);
    let [x, dy] = [&operands.x, &operands.dy].map(|t| upload(device, dtype, t));
    let [weight, bias] = [&operands.weight, &operands.bias].map(|t| upload(device, DType::F32, t));
    let [mut dw, mut db] = [0, 0].map(|_| upload(device, DType::F32, &vec![1.0; cols]));
    let out = forward(&x, &weight, &bias, EPS).unwrap();
    let gradients = ParamGradients { weight: Some(&mut dw), bias: Some(&mut db) };
    let dx = backward(dy, &x, &weight, (&out.mean, &out.rstd), gradients, InputGradient::AddedTo(&x)).unwrap().unwrap();
    [out.y, dx, dw, db]
}

/// What the formulas of `Operands::gradients` are held against: nothing but the forward formula.
#[test]
fn the_gradients_of_these_tests_are_the_derivatives_of_the_reference() {
    let operands = Operands::new(DType::F32, 3, 11);
    let [dx, dw, db] = operands.gradients();
    let Operands { x, dy, weight, bias } = &operands;
    let objective = |x: &[f64], w: &[f64], b: &[f64]| dot(&reference::forward(x, w, b, f64::from(EPS)), dy);
    let all = [
        (dx, differences(x, 1e-5, |x| objective(x, weight, bias))),
        (dw, differences(weight, 1e-5, |w| objective(x, w, bias))),
        (db, differences(bias, 1e-5, |b| objective(x, weight, b))),
    ];
    for (formula, differences) in all {
        formula.iter().zip(differences).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    }
}

/// Sums of at most 5,000 terms in f32, by threads, warps and blocks: each partial sum has at most some 30 terms, so that
/// 1e-5 is a few times the roundings of 2⁻²⁴ that a result collects. Rows of few, nearly equal features have steep
/// derivatives, r is up to 1/√ε ≈ 316: their dx, and dw through x̂, is so much less exact.
#[test]
#[ignore = "needs a GPU"]
fn gpu_forward_and_gradients_equal_the_reference_in_every_type_and_shape() {
    let shapes = [(1, 1), (3, 2), (2, 8), (5, 7), (9, 64), (17, 293), (37, 520), (20, 768), (7, 2561), (3, 5120)];
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, cols) in shapes {
            let operands = Operands::new(dtype, rows, cols);
            let want = reference::forward(&operands.x, &operands.weight, &operands.bias, f64::from(EPS));
            let [want_x, want_w, want_b] = operands.gradients();
            let plus_one = |d: Vec<f64>| d.into_iter().map(|d| d + 1.0).collect::<Vec<_>>();
            let [y, dx, dw, db] = pass(&gpu(), dtype, rows, cols);
            let what = |name: &str| format!("{name} of {rows}×{cols} {dtype}");
            let steep: f64 = if cols < 16 { 2e-3 } else { 2e-5 };
            assert_close(&what("y"), &y, &want, steep.min(1e-4));
            assert_close(&what("dx"), &dx, &sum(&want_x, &operands.x), steep);
            assert_close(&what("dw"), &dw, &plus_one(want_w), steep);
            assert_close(&what("db"), &db, &plus_one(want_b), 1e-5);
        }
    }
}

/// 16-bit rows of the greatest length, and more than 216 blocks of backward take before each takes more. Of these a thread
/// adds 3, a block 20 teams' sums, 8 threads 27 blocks' and then each other's, to what was there: 59 roundings, and some 40
/// are in x̂ of 24 features.
#[test]
#[ignore = "needs a GPU"]
fn gpu_the_longest_rows_and_many_rows_equal_the_reference() {
    for (rows, cols) in [(2, 10_240), (12_000, 24)] {
        let operands = Operands::new(DType::BF16, rows, cols);
        let want = reference::forward(&operands.x, &operands.weight, &operands.bias, f64::from(EPS));
        let [want_x, want_w, want_b] = operands.gradients();
        let plus_one = |d: Vec<f64>| d.into_iter().map(|d| d + 1.0).collect::<Vec<_>>();
        let [y, dx, dw, db] = pass(&gpu(), DType::BF16, rows, cols);
        assert_close("y", &y, &want, 1e-5);
        assert_close("dx", &dx, &sum(&want_x, &operands.x), 2e-5);
        let [sizes_w, sizes_b] = operands.parameter_sums(f64::abs).map(plus_one);
        assert_sums("dw", &dw, &plus_one(want_w), &sizes_w, 100);
        assert_sums("db", &db, &plus_one(want_b), &sizes_b, 59);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_large_mean_does_not_drown_the_deviations() {
    let (rows, cols) = (3, 512);
    let x: Vec<f64> = random(DType::F32, rows * cols, 1).iter().map(|x| f64::from((1000.0 + x) as f32)).collect();
    let (weight, bias) = (random(DType::F32, cols, 3), random(DType::F32, cols, 4));
    let device = gpu();
    let [xb, wb, bb] = [&x, &weight, &bias].map(|t| upload(&device, DType::F32, t));
    let out = forward(&xb, &wb, &bb, EPS).unwrap();
    // The mean of numbers near 1000 is right to some 2⁻²⁴·1000 = 6e-5, against deviations near 0.6.
    assert_close("y", &out.y, &reference::forward(&x, &weight, &bias, f64::from(EPS)), 3e-4);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_that_are_not_wanted_are_not_computed() {
    let device = gpu();
    let operands = Operands::new(DType::BF16, 6, 40);
    let [want_x, want_w, want_b] = operands.gradients();
    let x = upload(&device, DType::BF16, &operands.x);
    let [weight, bias] = [&operands.weight, &operands.bias].map(|t| upload(&device, DType::F32, t));
    let out = forward(&x, &weight, &bias, EPS).unwrap();
    let pass = |gradients: ParamGradients<'_>, input| {
        let dy = upload(&device, DType::BF16, &operands.dy);
        backward(dy, &x, &weight, (&out.mean, &out.rstd), gradients, input).unwrap()
    };
    let zeros = || upload(&device, DType::F32, &[0.0; 40]);
    let (mut dw, mut db) = (zeros(), zeros());
    assert!(pass(ParamGradients { weight: Some(&mut dw), bias: None }, InputGradient::Unwanted).is_none());
    let dx = pass(ParamGradients { weight: None, bias: Some(&mut db) }, InputGradient::Alone).unwrap();
    assert!(pass(ParamGradients::default(), InputGradient::Unwanted).is_none());
    assert_close("dx", &dx, &want_x, 2e-5);
    assert_close("dw", &dw, &want_w, 1e-4);
    assert_close("db", &db, &want_b, 1e-5);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_have_the_same_bits_every_time() {
    let run = || pass(&gpu(), DType::BF16, 100, 264).map(|buffer| crate::support::download(&buffer));
    assert_eq!(run(), run());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_rows_that_are_too_long_are_refused() {
    let device = gpu();
    let [x, w] = [10_248, 10_248].map(|len| upload(&device, DType::F32, &vec![1.0; len]));
    let error = forward(&x, &w, &w, EPS).unwrap_err().to_string();
    assert_eq!(error, "layer_norm_forward: rows of 10248 features, a GPU takes 5120 of f32");
}
