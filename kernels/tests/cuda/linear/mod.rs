//! Linear layers with every kind of weight, and adapters.

pub mod counts;
pub mod epilogues;
pub mod gradients;
mod inside;
pub mod library;
pub mod products;

use kernels::ops::linear::reference::Operands;
use kernels::weight::{FrozenWeight, WeightRef};
use kernels::{Buffer, Category, DType, Device};

use crate::support::{random, round, upload};

/// Rows of x, input features, output features, rank (zero for no adapter).
pub type Shape = (usize, usize, usize, usize);

/// α/r
const SCALE: f64 = 2.0;

/// How a weight is held.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Dense(DType),
    /// Packed, with this share of zeros in percent.
    Packed(DType, u32),
    /// Packed, two of every four entries kept, or fewer.
    TwoFour(DType),
    Trainable,
}

impl Kind {
    pub fn dtype(self) -> DType {
        match self {
            Kind::Dense(dtype) | Kind::Packed(dtype, _) | Kind::TwoFour(dtype) => dtype,
            Kind::Trainable => DType::F32,
        }
    }
}

/// Every operand, as the kernels get them.
pub struct Case {
    shape: Shape,
    kind: Kind,
    x: Vec<f64>,
    dy: Vec<f64>,
    w: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    bias: Vec<f64>,
}

impl Case {
    /// `dtype` is the activations'.
    pub fn new(dtype: DType, kind: Kind, shape: Shape) -> Case {
        let (n, cols, rows, rank) = shape;
        let mut w = random(kind.dtype(), rows * cols, 3);
        if let Kind::Packed(_, sparsity) = kind {
            // One tile full and one row empty, too: neighbours of every kind.
            let draw = random(DType::F32, w.len(), 7);
            let threshold = f64::from(sparsity) / 50.0 - 1.0;
            for (i, w) in w.iter_mut().enumerate() {
                let (row, col) = (i / cols, i % cols);
                let full = sparsity < 100 && row / 32 == 1 && col / 32 == 0;
                if !full && (draw[i] < threshold || row == 3) {
                    *w = 0.0;
                }
            }
        }
        if let Kind::TwoFour(_) = kind {
            // One row empty, and groups of one: fewer than may be kept.
            let draw = random(DType::F32, w.len(), 7);
            for (group, draw) in w.chunks_mut(4).zip(draw.chunks(4)) {
                let mut order = [0, 1, 2, 3];
                order.sort_by(|a, b| draw[*a].total_cmp(&draw[*b]));
                let keep = if draw[0] < -0.9 { 1 } else { 2 };
                order[keep..].iter().for_each(|i| group[*i] = 0.0);
            }
            w.iter_mut().skip(3 * cols).take(cols).for_each(|w| *w = 0.0);
        }
        Case {
            shape,
            kind,
            x: random(dtype, n * cols, 1),
            dy: random(dtype, n * rows, 2),
            w,
            a: random(DType::F32, rank * cols, 5),
            b: random(DType::F32, rows * rank, 6),
            bias: random(DType::F32, rows, 4),
        }
    }

    /// Tensor cores multiply numbers of one type, to which weights are rounded; f32 and odd features have none.
    fn round_weight(&mut self, dtype: DType) {
        let (_, cols, rows, _) = self.shape;
        if dtype != DType::F32 && cols % 8 == 0 && rows % 8 == 0 {
            self.w.iter_mut().for_each(|w| *w = round(dtype, *w));
        }
    }

    fn y(&self) -> Vec<f64> {
        let (n, cols, rows, rank) = self.shape;
        let (w, a, b, bias) = (&self.w, &self.a, &self.b, &self.bias);
        Operands { n, rows, cols, rank, scale: SCALE, w, a, b, bias }.forward(&self.x)
    }

    /// s·x·Aᵀ
    fn u(&self) -> Vec<f64> {
        let (n, cols, _, rank) = self.shape;
        product((n, rank, cols), |i, j, k| SCALE * self.x[i * cols + k] * self.a[j * cols + k])
    }

    /// s·dy·B
    fn v(&self) -> Vec<f64> {
        let (n, _, rows, rank) = self.shape;
        product((n, rank, rows), |i, j, k| SCALE * self.dy[i * rows + k] * self.b[k * rank + j])
    }

    /// dy·W + v·A
    fn dx(&self) -> Vec<f64> {
        let (n, cols, rows, rank) = self.shape;
        let v = self.v();
        let frozen = product((n, cols, rows), |i, j, k| self.dy[i * rows + k] * self.w[k * cols + j]);
        let adapter = product((n, cols, rank), |i, j, k| v[i * rank + k] * self.a[k * cols + j]);
        frozen.iter().zip(adapter).map(|(a, b)| a + b).collect()
    }

    /// vᵀ·x
    fn d_a(&self) -> Vec<f64> {
        let (n, cols, _, rank) = self.shape;
        let v = self.v();
        product((rank, cols, n), |i, j, k| v[k * rank + i] * self.x[k * cols + j])
    }

    /// dyᵀ·u
    fn d_b(&self) -> Vec<f64> {
        let (n, _, rows, rank) = self.shape;
        let u = self.u();
        product((rows, rank, n), |i, j, k| self.dy[k * rows + i] * u[k * rank + j])
    }

    /// dyᵀ·x
    fn d_w(&self) -> Vec<f64> {
        let (n, cols, rows, _) = self.shape;
        product((rows, cols, n), |i, j, k| self.dy[k * rows + i] * self.x[k * cols + j])
    }

    fn hold(&self, device: &Device) -> Held {
        let (_, cols, rows, _) = self.shape;
        Held::new(device, self.kind, &self.w, (rows, cols))
    }
}

/// `[m, n]`: Σ of term(i, j, k) over `depth` k.
fn product((m, n, depth): (usize, usize, usize), term: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    (0..m * n).map(|at| (0..depth).map(|k| term(at / n, at % n, k)).sum()).collect()
}

/// A weight on a device.
pub enum Held {
    Frozen(FrozenWeight),
    Trainable(Buffer, usize, usize),
}

impl Held {
    pub fn new(device: &Device, kind: Kind, w: &[f64], (rows, cols): (usize, usize)) -> Held {
        let source = upload(device, kind.dtype(), w);
        match kind {
            Kind::Trainable => Held::Trainable(source, rows, cols),
            Kind::Dense(_) => Held::Frozen(FrozenWeight::dense(source, rows, cols).unwrap()),
            Kind::Packed(..) | Kind::TwoFour(_) => {
                let mut mask = vec![0u64; w.len().div_ceil(64)];
                let kept = w.iter().enumerate().filter(|(_, w)| **w != 0.0).map(|(i, _)| mask[i / 64] |= 1 << (i % 64));
                let kept = kept.count();
                let mask = device.upload(Category::Workspace, &mask).unwrap();
                Held::Frozen(match kind {
                    Kind::TwoFour(_) => FrozenWeight::pruned_n_of_m(device, &source, rows, cols, &mask, 2, 4).unwrap(),
                    _ => FrozenWeight::pruned(device, &source, rows, cols, &mask, kept).unwrap(),
                })
            }
        }
    }

    pub fn weight(&self) -> WeightRef<'_> {
        match self {
            Held::Frozen(weight) => WeightRef::Frozen(weight),
            Held::Trainable(value, rows, cols) => WeightRef::Trainable { value, rows: *rows, cols: *cols, mask: None },
        }
    }
}

/// The error of a sum of `terms` products of numbers below 1: they are exact in f32 where the numbers have 16 bits, else
/// rounded by 2⁻²⁴; each of the sums' roundings is at most 2⁻²³ of the running sum (tensor cores cut off, they do not round),
/// which is some √terms.
pub fn tolerance(terms: usize) -> f64 {
    2f64.powi(-23) * (terms + 8) as f64 * (terms as f64).sqrt()
}

/// The error of a sum of `terms` products of a number below 1 with one of a factor in f32 below `size`, which is taken in two
/// parts of 16 bits: what is left of it is at most 2⁻¹⁶, in both factors if both are in f32, and so is the product of both
/// second parts, which is left out.
pub fn split_tolerance(terms: usize, size: f64) -> f64 {
    size * (tolerance(terms) + 3.0 * 2f64.powi(-16) * terms as f64)
}

/// Sums of `terms` products of random numbers in [−1, 1) spread by √terms / 3: nearly all are below √terms.
fn size(terms: usize) -> f64 {
    SCALE * (terms as f64).sqrt()
}
