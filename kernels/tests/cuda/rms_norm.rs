//! RMSNorm, forward and backward.

use kernels::ops::InputGradient;
use kernels::ops::rms_norm::{backward, forward, reference};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, assert_sums, differences, dot, download, gpu, random, sum, upload};

const EPS: f32 = 1e-5;

struct Operands {
    x: Vec<f64>,
    dy: Vec<f64>,
    weight: Vec<f64>,
}

impl Operands {
    fn new(dtype: DType, rows: usize, cols: usize) -> Operands {
        Operands {
            x: random(dtype, rows * cols, 1),
            dy: random(dtype, rows * cols, 2),
            weight: random(DType::F32, cols, 3),
        }
    }

    /// dx and dw by the formulas of the operation's contract.
    fn gradients(&self) -> [Vec<f64>; 2] {
        let mut dx = Vec::new();
        for (normal, rstd, dy) in self.rows() {
            let g: Vec<f64> = dy.iter().zip(&self.weight).map(|(dy, w)| dy * w).collect();
            let mean = dot(&g, &normal) / dy.len() as f64;
            dx.extend(g.iter().zip(&normal).map(|(g, normal)| rstd * (g - normal * mean)));
        }
        [dx, self.weight_sums(|term| term)]
    }

    /// x̂, r and dy of each row.
    fn rows(&self) -> impl Iterator<Item = (Vec<f64>, f64, &[f64])> {
        let cols = self.weight.len();
        self.x.chunks(cols).zip(self.dy.chunks(cols)).map(move |(x, dy)| {
            let rstd = 1.0 / (dot(x, x) / cols as f64 + f64::from(EPS)).sqrt();
            (x.iter().map(|x| x * rstd).collect(), rstd, dy)
        })
    }

    /// Σ of the terms of dw.
    fn weight_sums(&self, of: fn(f64) -> f64) -> Vec<f64> {
        let mut dw = vec![0.0; self.weight.len()];
        for (normal, _, dy) in self.rows() {
            dw.iter_mut().zip(dy.iter().zip(&normal)).for_each(|(dw, (dy, normal))| *dw += of(dy * normal));
        }
        dw
    }
}

/// y, dx, dw of one pass; dx is added to x, dw to ones.
pub fn pass(device: &Device, dtype: DType, rows: usize, cols: usize) -> [Buffer; 3] {
    let operands = Operands::new(dtype, rows, cols);
    let [x, dy] = [&operands.x, &operands.dy].map(|t| upload(device, dtype, t));
    let weight = upload(device, DType::F32, &operands.weight);
    let mut dw = upload(device, DType::F32, &vec![1.0; cols]);
    let out = forward(&x, &weight, EPS).unwrap();
    let dx = backward(dy, &x, &weight, &out.rstd, Some(&mut dw), InputGradient::AddedTo(&x)).unwrap().unwrap();
    [out.y, dx, dw]
}

#[test]
fn the_gradients_of_these_tests_are_the_derivatives_of_the_reference() {
    let operands = Operands::new(DType::F32, 3, 5);
    let [dx, dw] = operands.gradients();
    let Operands { x, dy, weight } = &operands;
    let objective = |x: &[f64], w: &[f64]| dot(&reference::forward(x, w, f64::from(EPS)), dy);
    let all =
        [(dx, differences(x, 1e-5, |x| objective(x, weight))), (dw, differences(weight, 1e-5, |w| objective(x, w)))];
    for (formula, differences) in all {
        formula.iter().zip(differences).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
    }
}

/// Backward's sums over rows, and what x̂ of few features collects, are at most `roundings`.
fn equal_the_reference(dtype: DType, rows: usize, cols: usize, roundings: usize) {
    let operands = Operands::new(dtype, rows, cols);
    let want = reference::forward(&operands.x, &operands.weight, f64::from(EPS));
    let [want_x, want_w] = operands.gradients();
    let plus_one = |d: Vec<f64>| d.into_iter().map(|d| d + 1.0).collect::<Vec<_>>();
    let [y, dx, dw] = pass(&gpu(), dtype, rows, cols);
    let what = |name: &str| format!("{name} of {rows}×{cols} {dtype}");
    let steep: f64 = if cols < 16 { 2e-3 } else { 2e-5 };
    assert_close(&what("y"), &y, &want, 1e-5);
    assert_close(&what("dx"), &dx, &sum(&want_x, &operands.x), steep);
    let sizes = plus_one(operands.weight_sums(f64::abs));
    assert_sums(&what("dw"), &dw, &plus_one(want_w), &sizes, roundings);
}

/// As for LayerNorm: sums whose parts have at most some 30 terms collect a few roundings of 2⁻²⁴, 1e-5 in all; a row of few
/// tiny features has a steep derivative, r is up to 1/√ε ≈ 316. In dw of 60 rows a thread adds at most 30, a block 2 to 20
/// teams' sums, and one thread after the other 2 blocks': below 60, and some 40 are in x̂.
#[test]
#[ignore = "needs a GPU"]
fn gpu_forward_and_gradients_equal_the_reference_in_every_type_and_shape() {
    let shapes = [(1, 1), (3, 2), (2, 8), (5, 7), (9, 64), (17, 293), (37, 520), (60, 768), (3, 5120)];
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, cols) in shapes {
            equal_the_reference(dtype, rows, cols, 100);
        }
    }
}

/// 16-bit rows of the greatest length, and more than 216 blocks of backward take before each takes more. Of these a thread
/// adds 2, a block 20 teams' sums, 8 threads 27 blocks' and then each other's, to what was there: 58 roundings, and some 40
/// are in x̂.
#[test]
#[ignore = "needs a GPU"]
fn gpu_the_longest_rows_and_many_rows_equal_the_reference() {
    equal_the_reference(DType::BF16, 2, 10_240, 100);
    equal_the_reference(DType::BF16, 7000, 24, 100);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_that_are_not_wanted_are_not_computed() {
    let device = gpu();
    let operands = Operands::new(DType::BF16, 6, 40);
    let [want_x, want_w] = operands.gradients();
    let x = upload(&device, DType::BF16, &operands.x);
    let weight = upload(&device, DType::F32, &operands.weight);
    let out = forward(&x, &weight, EPS).unwrap();
    let pass = |d_weight: Option<&mut Buffer>, input| {
        let dy = upload(&device, DType::BF16, &operands.dy);
        backward(dy, &x, &weight, &out.rstd, d_weight, input).unwrap()
    };
    let mut dw = upload(&device, DType::F32, &[0.0; 40]);
    assert!(pass(Some(&mut dw), InputGradient::Unwanted).is_none());
    assert_close("dw", &dw, &want_w, 2e-5);
    assert_close("dx", &pass(None, InputGradient::Alone).unwrap(), &want_x, 2e-5);
    assert!(pass(None, InputGradient::Unwanted).is_none());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_have_the_same_bits_every_time() {
    let run = || pass(&gpu(), DType::BF16, 100, 264).map(|buffer| download(&buffer));
    assert_eq!(run(), run());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_rows_are_no_work() {
    let [y, dx, dw] = pass(&gpu(), DType::BF16, 0, 8);
    assert!(y.is_empty() && dx.is_empty());
    assert_eq!(download(&dw), [1.0; 8]);
}
