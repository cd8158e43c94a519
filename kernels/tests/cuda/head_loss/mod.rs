//! The head and its loss, with every kind of weight.

mod counts;

use kernels::ops::head_loss::reference::Operands;
use kernels::ops::head_loss::{Head, IGNORED, Wanted, loss, loss_and_gradients_within};
use kernels::ops::linear::Lora;
use kernels::{Buffer, Category, DType, Device};

use crate::linear::{Held, Kind, split_tolerance, tolerance};
use crate::support::{assert_within, cublas, gpu, random, round, rounding, upload};

/// Rows, entries of the vocabulary, features, rank (zero for no adapter).
pub type Shape = (usize, usize, usize, usize);

/// α/r
const SCALE: f64 = 2.0;
/// g
const GRADIENT_SCALE: f64 = 0.375;

/// Every operand, as the kernels get them.
pub struct Case {
    shape: Shape,
    dtype: DType,
    kind: Kind,
    h: Vec<f64>,
    w: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    targets: Vec<u32>,
}

impl Case {
    /// `dtype` is h's.
    pub fn new(dtype: DType, kind: Kind, shape: Shape) -> Case {
        let (n, vocab, dim, rank) = shape;
        let mut w = random(kind.dtype(), vocab * dim, 3);
        if let Kind::Packed(..) = kind {
            w.iter_mut().enumerate().filter(|(i, _)| i % 3 == 1).for_each(|(_, w)| *w = 0.0);
        }
        // Every fourth row is ignored, the last id is among the targets.
        let target = |row: usize| if row % 4 == 3 { IGNORED } else { (vocab - 1 - row * 31 % vocab) as u32 };
        Case {
            shape,
            dtype,
            kind,
            h: random(dtype, n * dim, 1),
            w,
            a: random(DType::F32, rank * dim, 5),
            b: random(DType::F32, vocab * rank, 6),
            targets: (0..n).map(target).collect(),
        }
    }

    /// Whether plain multiply-adds compute it, in f32.
    fn is_plain(&self) -> bool {
        let (_, vocab, dim, _) = self.shape;
        self.dtype == DType::F32 || vocab % 8 != 0 || dim % 8 != 0
    }

    fn check(&self, chunk_bytes: Option<usize>) {
        self.check_on(&gpu(), chunk_bytes);
    }

    fn check_on(&self, device: &Device, chunk_bytes: Option<usize>) {
        let (n, vocab, dim, rank) = self.shape;
        let what = format!("{} {:?} {:?}", self.dtype, self.kind, self.shape);
        let got = pass(device, self, chunk_bytes);
        // Tensor cores multiply numbers of one type, to which weights are rounded.
        let w: Vec<f64> = self.w.iter().map(|w| if self.is_plain() { *w } else { round(self.dtype, *w) }).collect();
        let operands = Operands {
            vocab,
            dim,
            rank,
            scale: SCALE,
            hidden: &self.h,
            weight: &w,
            a: &self.a,
            b: &self.b,
            targets: &self.targets,
        };
        // A logit errs by its sums of D and r products; z is some 2·√D, and without tensor cores errs by such sums of D. A loss is the difference of two numbers that err so,
        // and rounds as logits below D + r·2·D do; its sum of exponentials, each of 2⁻²², merges V/64 sums.
        let size = self.w.iter().fold(1.0f64, |size, w| size.max(w.abs()));
        let z = SCALE * (dim as f64).sqrt();
        let (of_adapter, of_factors) = match self.is_plain() {
            true => (SCALE * rank as f64 * tolerance(dim) + z * tolerance(rank), 0.0),
            false => (split_tolerance(rank, z), 4.0 * 2f64.powi(-16)),
        };
        let logit = size * tolerance(dim) + of_adapter;
        let largest = size * dim as f64 + (2 * rank * dim) as f64;
        let of_loss = 2.0 * logit + 2f64.powi(-22) * (largest + (vocab / 64 + 80) as f64);
        for (name, losses) in ["loss", "loss alone"].iter().zip([&got.losses, &got.losses_alone]) {
            for (row, (got, want)) in losses.iter().zip(operands.losses()).enumerate() {
                let error = (f64::from(*got) - want).abs();
                assert!(error <= of_loss, "{what}: {name} {row} is {got}, not {want} ± {of_loss}");
            }
        }
        // A probability errs by twice a logit's error of itself, and dx is rounded. The sums that follow add f32's rounding
        // in each term, and adapters what is left of their factors: all shares of the sum of the terms' magnitudes.
        let of_dx = if self.is_plain() { 2f64.powi(-24) } else { rounding(self.dtype) };
        let share = of_dx + 2.0 * of_loss + of_factors + 2f64.powi(-23) * (vocab + n) as f64;
        let want = operands.gradients(GRADIENT_SCALE);
        let magnitudes = self.magnitudes(&operands);
        let gradients = [
            ("dh", &got.d_hidden, want.hidden, &magnitudes.hidden, 0.0),
            ("dA", &got.d_a, want.a, &magnitudes.a, 1.0),
            ("dB", &got.d_b, want.b, &magnitudes.b, 1.0),
            ("dW", &got.d_w, want.weight, &magnitudes.weight, 1.0),
        ];
        // What is below f16's range is lost: 2⁻²⁵ of 256 dx, times a factor below the largest logit.
        let lost = GRADIENT_SCALE * 2f64.powi(-33) * vocab.max(n) as f64 * largest;
        for (name, got, want, magnitudes, start) in gradients {
            let want: Vec<f64> = want.iter().map(|x| x + start).collect();
            let rounding = rounding(got.dtype());
            let allowed = |i: usize| share * magnitudes[i] + rounding * want[i].abs() + lost;
            assert_within(&format!("{what}: {name}"), got, &want, allowed);
        }
    }

    /// The gradients' sums, of the magnitudes of their terms.
    fn magnitudes(&self, operands: &Operands<'_>) -> Magnitudes {
        let (n, vocab, dim, rank) = self.shape;
        let [mut hidden, mut a, mut b, mut weight] =
            [n * dim, rank * dim, vocab * rank, vocab * dim].map(|len| vec![0.0; len]);
        let add = |to: &mut [f64], factor: f64, from: &[f64]| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from.abs());
        };
        for (row, target) in self.targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
            let h = &self.h[row * dim..][..dim];
            let z = operands.low_rank(h);
            for (v, log_p) in operands.log_probabilities(h).into_iter().enumerate() {
                let dx = GRADIENT_SCALE * (log_p.exp() - f64::from(u8::from(v as u32 == *target))).abs();
                add(&mut hidden[row * dim..][..dim], dx, &operands.weight[v * dim..][..dim]);
                add(&mut weight[v * dim..][..dim], dx, h);
                add(&mut b[v * rank..][..rank], dx, &z);
                for r in 0..rank {
                    let u = SCALE * dx * self.b[v * rank + r].abs();
                    add(&mut hidden[row * dim..][..dim], u, &self.a[r * dim..][..dim]);
                    add(&mut a[r * dim..][..dim], u, h);
                }
            }
        }
        Magnitudes { hidden, a, b, weight }
    }
}

struct Magnitudes {
    hidden: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    weight: Vec<f64>,
}

/// What the operation gives; the parameters' gradients start at 1.
pub struct Results {
    losses_alone: Vec<f32>,
    losses: Vec<f32>,
    d_hidden: Buffer,
    d_a: Buffer,
    d_b: Buffer,
    d_w: Buffer,
}

/// The loss alone, then all gradients.
pub fn pass(device: &Device, case: &Case, chunk_bytes: Option<usize>) -> Results {
    let (_, vocab, dim, rank) = case.shape;
    let h = upload(device, case.dtype, &case.h);
    let held = Held::new(device, case.kind, &case.w, (vocab, dim));
    let [a, b] = [&case.a, &case.b].map(|x| upload(device, DType::F32, x));
    let ones = |len| device.upload(Category::Gradients, &vec![1.0f32; len]).unwrap();
    let [mut d_a, mut d_b, mut d_w] = [a.len(), b.len(), vocab * dim].map(ones);
    let lora = Lora { a: &a, b: &b, rank, scale: SCALE as f32 };
    let head = Head { weight: held.weight(), lora: (rank > 0).then_some(lora) };
    let losses_alone = loss(&h, head, &case.targets).unwrap();
    let wanted = Wanted {
        scale: GRADIENT_SCALE as f32,
        hidden: true,
        lora: (rank > 0).then_some((&mut d_a, &mut d_b)),
        weight: Some(&mut d_w),
    };
    let both = loss_and_gradients_within(chunk_bytes, &h, head, &case.targets, wanted).unwrap();
    Results {
        losses_alone: losses_alone.read().unwrap(),
        losses: both.rows.read().unwrap(),
        d_hidden: both.d_hidden.unwrap(),
        d_a,
        d_b,
        d_w,
    }
}

/// One entry, edges in every direction, a vocabulary of several statistics and parts.
#[test]
#[ignore = "needs a GPU"]
fn gpu_losses_and_gradients_equal_the_reference() {
    for shape in [(1, 8, 8, 0), (70, 200, 40, 3), (9, 2056, 24, 17)] {
        Case::new(DType::BF16, Kind::Dense(DType::BF16), shape).check(None);
        Case::new(DType::F16, Kind::Dense(DType::F16), shape).check(None);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_any_weight_makes_a_head() {
    for (dtype, kind) in [
        (DType::BF16, Kind::Trainable),
        (DType::BF16, Kind::Dense(DType::F16)),
        (DType::BF16, Kind::Packed(DType::BF16, 33)),
        (DType::F16, Kind::Trainable),
    ] {
        Case::new(dtype, kind, (21, 2120, 40, 2)).check(None);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_f32_and_odd_shapes_are_computed_in_f32() {
    for (dtype, kind) in [
        (DType::F32, Kind::Dense(DType::F32)),
        (DType::F32, Kind::Packed(DType::F32, 33)),
        (DType::BF16, Kind::Dense(DType::BF16)),
        (DType::F16, Kind::Trainable),
    ] {
        for shape in [(5, 1, 3, 0), (37, 133, 24, 2), (66, 72, 13, 1)] {
            Case::new(dtype, kind, shape).check(None);
        }
    }
    Case::new(DType::F32, Kind::Dense(DType::BF16), (20, 64, 16, 4)).check(None);
}

/// Three chunks: 128 rows, 128 and 17; then of f32.
#[test]
#[ignore = "needs a GPU"]
fn gpu_chunks_are_rows_of_the_same() {
    Case::new(DType::BF16, Kind::Dense(DType::BF16), (273, 64, 16, 2)).check(Some(1));
    Case::new(DType::F32, Kind::Dense(DType::F32), (273, 21, 5, 1)).check(Some(1));
}

/// Without an adapter the products are the library's, and with one they are not.
#[test]
#[ignore = "needs a GPU"]
fn gpu_cublas_losses_and_gradients_equal_the_reference() {
    let Some(device) = cublas() else { return };
    for dtype in [DType::BF16, DType::F16] {
        Case::new(dtype, Kind::Trainable, (70, 200, 40, 0)).check_on(&device, None);
        Case::new(dtype, Kind::Dense(dtype), (9, 2056, 24, 0)).check_on(&device, None);
        Case::new(dtype, Kind::Trainable, (9, 200, 24, 2)).check_on(&device, None);
    }
    Case::new(DType::BF16, Kind::Trainable, (273, 64, 16, 0)).check_on(&device, Some(1));
    Case::new(DType::F32, Kind::Dense(DType::F32), (37, 133, 13, 0)).check_on(&device, None);
}

/// Logits of some hundreds: no exponential overflows, and a loss is the difference to the largest.
#[test]
#[ignore = "needs a GPU"]
fn gpu_large_logits_neither_overflow_nor_lose_the_loss() {
    for dtype in [DType::BF16, DType::F32] {
        let mut case = Case::new(dtype, Kind::Dense(dtype), (8, 80, 8, 0));
        case.w.iter_mut().for_each(|w| *w *= 128.0);
        case.check(None);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_logit_that_is_not_a_number_makes_the_loss_not_a_number() {
    for dtype in [DType::BF16, DType::F32] {
        let mut case = Case::new(dtype, Kind::Dense(dtype), (2, 80, 8, 0));
        case.w[70 * 8] = f64::NAN;
        let results = pass(&gpu(), &case, None);
        assert!(results.losses.iter().chain(&results.losses_alone).all(|loss| loss.is_nan()), "{:?}", results.losses);
    }
}
