//! Rotary embedding, forth and back.

use kernels::ops::rotary::{Direction, RotaryTable, reference, rotate};
use kernels::{Buffer, DType, Device};

use crate::support::{assert_close, differences, dot, gpu, random, upload};

const FACTOR: f64 = 1.25;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub rows: usize,
    pub tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub pairs: usize,
}

impl Shape {
    fn len(self) -> usize {
        self.rows * self.heads * self.head_dim
    }

    fn frequencies(self) -> Vec<f64> {
        (0..self.pairs).map(|i| 100f64.powf(-(i as f64) / self.pairs as f64)).collect()
    }

    /// Turned by `sign`·θ.
    fn reference(self, x: &[f64], sign: f64) -> Vec<f64> {
        let frequencies: Vec<f64> = self.frequencies().iter().map(|f| sign * f).collect();
        reference::rotate(x, self.tokens, self.heads, self.head_dim, &frequencies, FACTOR)
    }
}

/// Random numbers turned one way.
pub fn pass(device: &Device, dtype: DType, shape: Shape, direction: Direction) -> Buffer {
    let table = RotaryTable::new(device, shape.tokens + 3, &shape.frequencies(), FACTOR).unwrap();
    let mut x = upload(device, dtype, &random(dtype, shape.len(), 1));
    rotate(&mut x, &table, shape.tokens, shape.heads, shape.head_dim, direction).unwrap();
    x
}

#[test]
fn the_gradient_of_these_tests_is_the_derivative_of_the_reference() {
    let shape = Shape { rows: 4, tokens: 3, heads: 2, head_dim: 5, pairs: 2 };
    let dy = random(DType::F32, shape.len(), 2);
    // The map is linear: differences are exact but for rounding in f64.
    let want = differences(&random(DType::F32, shape.len(), 1), 0.5, |x| dot(&shape.reference(x, 1.0), &dy));
    shape.reference(&dy, -1.0).iter().zip(want).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
}

/// Angles stay below 110 and round once to f32: an error of 110·2⁻²⁴ ≈ 6.6e-6 beside the products' own roundings.
#[test]
#[ignore = "needs a GPU"]
fn gpu_heads_are_turned_both_ways_in_every_type_and_shape() {
    let shape = |rows, tokens, heads, head_dim, pairs| Shape { rows, tokens, heads, head_dim, pairs };
    let shapes = [
        shape(1, 1, 1, 2, 1),
        shape(13, 5, 3, 9, 2),
        shape(70, 70, 2, 16, 8),
        shape(26, 9, 5, 80, 16),
        shape(3, 4, 2, 80, 40),
        shape(5, 3, 1, 640, 320),
        shape(6, 2, 24, 64, 32),
        shape(4, 2, 1, 70, 35),
        shape(8, 4, 3, 32, 12),
        shape(0, 4, 1, 8, 4),
    ];
    for shape in shapes {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = random(dtype, shape.len(), 1);
            for (direction, sign) in [(Direction::Forward, 1.0), (Direction::Backward, -1.0)] {
                let got = pass(&gpu(), dtype, shape, direction);
                assert_close(&format!("{shape:?} {dtype} {direction:?}"), &got, &shape.reference(&x, sign), 2e-5);
            }
        }
    }
}
