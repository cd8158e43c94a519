//! Dense linear layers on tensor cores.

use kernels::ops::linear::{backward_input, forward, reference::Operands};
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, differences, dot, gpu, random, upload};

/// Rows of x, input features, output features.
type Shape = (usize, usize, usize);

struct Case {
    shape: Shape,
    x: Vec<f64>,
    dy: Vec<f64>,
    w: Vec<f64>,
    bias: Vec<f64>,
}

impl Case {
    fn new(dtype: DType, shape: Shape) -> Case {
        let (n, cols, rows) = shape;
        Case {
            shape,
            x: random(dtype, n * cols, 1),
            dy: random(dtype, n * rows, 2),
            w: random(dtype, rows * cols, 3),
            bias: random(DType::F32, rows, 4),
        }
    }

    fn forward(&self, x: &[f64], bias: &[f64]) -> Vec<f64> {
        let (n, cols, rows) = self.shape;
        Operands { n, rows, cols, rank: 0, scale: 0.0, w: &self.w, a: &[], b: &[], bias }.forward(x)
    }

    /// dx = dy·W
    fn input_gradient(&self) -> Vec<f64> {
        let (_, cols, rows) = self.shape;
        let mut dx = Vec::new();
        for dy in self.dy.chunks(rows) {
            dx.extend((0..cols).map(|col| (0..rows).map(|row| dy[row] * self.w[row * cols + col]).sum::<f64>()));
        }
        dx
    }
}

/// y with a bias, y without, dx.
pub fn pass(device: &Device, dtype: DType, shape: Shape) -> [Buffer; 3] {
    let case = Case::new(dtype, shape);
    let (n, cols, rows) = shape;
    let [x, dy, w] = [&case.x, &case.dy, &case.w].map(|t| upload(device, dtype, t));
    let bias = upload(device, DType::F32, &case.bias);
    let held = FrozenWeight::dense(w, rows, cols).unwrap();
    let weight = WeightRef::Frozen(&held);
    let y = forward(device, &x, n, weight, Some(&bias), None).unwrap().y;
    let plain = forward(device, &x, n, weight, None, None).unwrap().y;
    [y, plain, backward_input(device, &dy, n, weight, None).unwrap()]
}

#[test]
fn the_input_gradient_of_these_tests_is_the_derivative_of_the_reference() {
    let case = Case::new(DType::F32, (3, 5, 7));
    // The objective is linear in x: differences are exact but for rounding in f64.
    let want = differences(&case.x, 0.5, |x| dot(&case.forward(x, &case.bias), &case.dy));
    case.input_gradient().iter().zip(want).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
}

/// Products of 16-bit numbers are exact in f32; a sum of k of them below 1 has k roundings of at most 2⁻²³ of the running
/// sum (tensor cores cut off, they do not round), which is some √k.
fn tolerance(k: usize) -> f64 {
    2f64.powi(-23) * (k + 8) as f64 * (k as f64).sqrt()
}

fn equal_the_reference(dtype: DType, shape: Shape) {
    let case = Case::new(dtype, shape);
    let (_, cols, rows) = shape;
    let [y, plain, dx] = pass(&gpu(), dtype, shape);
    let what = |name: &str| format!("{name} of {shape:?} {dtype}");
    assert_close(&what("y"), &y, &case.forward(&case.x, &case.bias), tolerance(cols));
    assert_close(&what("plain y"), &plain, &case.forward(&case.x, &vec![0.0; rows]), tolerance(cols));
    assert_close(&what("dx"), &dx, &case.input_gradient(), tolerance(rows));
}

/// Tiles are 128×128×32: shapes inside one, with edges in every direction, of several, and features that are not
/// multiples of 8.
#[test]
#[ignore = "needs a GPU"]
fn gpu_forward_and_input_gradient_equal_the_reference_in_any_shape() {
    let shapes =
        [(1, 1, 1), (3, 5, 7), (1, 8, 8), (16, 32, 64), (130, 72, 136), (17, 40, 264), (129, 33, 131), (5, 300, 9)];
    for shape in shapes {
        for dtype in [DType::BF16, DType::F16] {
            equal_the_reference(dtype, shape);
        }
    }
}

/// More tiles than a band has, in both directions.
#[test]
#[ignore = "needs a GPU"]
fn gpu_many_tiles_equal_the_reference() {
    equal_the_reference(DType::BF16, (1160, 40, 136));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_rows_give_no_output() {
    let [y, _, dx] = pass(&gpu(), DType::BF16, (0, 8, 8));
    assert!(y.is_empty() && dx.is_empty());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_operands_without_a_kernel_are_named() {
    let device = gpu();
    let w = upload(&device, DType::F16, &[0.0; 64]);
    let held = FrozenWeight::dense(w, 8, 8).unwrap();
    let error = |x: DType, weight: WeightRef<'_>| {
        forward(&device, &upload(&device, x, &[0.0; 8]), 1, weight, None, None).unwrap_err().to_string()
    };
    assert_eq!(error(DType::BF16, WeightRef::Frozen(&held)), "linear_forward: weight is f16, expected bf16");
    assert_eq!(error(DType::F32, WeightRef::Frozen(&held)), "linear_forward: x is f32, expected bf16");
    let value = upload(&device, DType::F32, &[0.0; 64]);
    let trainable = WeightRef::Trainable { value: &value, rows: 8, cols: 8 };
    let want = "linear_forward: a trainable weight is not available on cuda; use the CPU";
    assert_eq!(error(DType::BF16, trainable), want);
}
