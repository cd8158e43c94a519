//! Adapters inside weights: W + s·M⊙(B·A) and W⊙(B·A), their products and gradients.

use kernels::ops::linear::reference::Operands;
use kernels::ops::linear::{adapted_gradients, backward_input, forward};
use kernels::weight::{Adapted, Form, FrozenWeight, WeightRef};
use kernels::{Backend, Buffer, Category, DType, Device};

use super::{Case, Kind, SCALE, Shape, product, size, split_tolerance, tolerance};
use crate::support::{assert_close, assert_within, differences, dot, download, gpu, random, rounding, upload};

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const F32: DType = DType::F32;

/// A case whose factors lie inside its weight.
pub struct Inside {
    pub case: Case,
    dtype: DType,
    scaled: bool,
    /// Entries that are stored, of a dense weight those that are not zero.
    pub keep: Vec<bool>,
}

/// What a device holds of it.
pub struct Held {
    pub weight: FrozenWeight,
    a: Buffer,
    b: Buffer,
    rank: usize,
    form: Form,
}

impl Held {
    pub fn adapted(&self) -> Adapted<'_> {
        Adapted { weight: &self.weight, a: &self.a, b: &self.b, rank: self.rank, form: self.form }
    }
}

impl Inside {
    /// `dtype` is the activations'. Of a packed weight some stored entries are zero.
    pub fn new(dtype: DType, kind: Kind, shape: Shape, scaled: bool) -> Inside {
        let mut case = Case::new(dtype, kind, shape);
        let mut keep: Vec<bool> = case.w.iter().map(|w| *w != 0.0).collect();
        match kind {
            Kind::Packed(..) => case.w.iter_mut().skip(5).step_by(7).for_each(|w| *w = 0.0),
            Kind::Dense(_) => {
                case.w.iter_mut().skip(2).step_by(3).for_each(|w| *w = 0.0);
                keep = case.w.iter().map(|w| *w != 0.0).collect();
            }
            // The places that pack_two_four fills up are kept, too.
            Kind::TwoFour(_) => {
                for group in keep.chunks_mut(4) {
                    while group.iter().filter(|keep| **keep).count() < 2 {
                        *group.iter_mut().find(|keep| !**keep).expect("one of four") = true;
                    }
                }
            }
            Kind::Trainable => panic!("adapters lie in frozen weights"),
        }
        Inside { case, dtype, scaled, keep }
    }

    pub fn hold(&self, device: &Device) -> Held {
        let (_, cols, rows, rank) = self.case.shape;
        let source = upload(device, self.case.kind.dtype(), &self.case.w);
        let mut mask = vec![0u64; self.keep.len().div_ceil(64)];
        self.keep.iter().enumerate().filter(|(_, keep)| **keep).for_each(|(i, _)| mask[i / 64] |= 1 << (i % 64));
        let mask = device.upload(Category::Workspace, &mask).unwrap();
        let kept = self.keep.iter().filter(|keep| **keep).count();
        let weight = match self.case.kind {
            Kind::Packed(..) => FrozenWeight::pruned(device, &source, rows, cols, &mask, kept),
            Kind::TwoFour(_) => FrozenWeight::pruned_n_of_m(device, &source, rows, cols, &mask, 2, 4),
            _ => FrozenWeight::dense(source, rows, cols),
        };
        let [a, b] = [&self.case.a, &self.case.b].map(|t| upload(device, F32, t));
        let form = if self.scaled { Form::Scale } else { Form::Add { scale: SCALE as f32 } };
        Held { weight: weight.unwrap(), a, b, rank, form }
    }

    /// Whether tensor cores multiply.
    fn is_rounded(&self) -> bool {
        let (_, cols, rows, _) = self.case.shape;
        self.dtype != F32 && cols % 8 == 0 && rows % 8 == 0
    }

    /// V `[out, in]`.
    fn effective(&self) -> Vec<f64> {
        let (n, cols, rows, rank) = self.case.shape;
        let Case { w, a, b, .. } = &self.case;
        Operands { n, rows, cols, rank, scale: SCALE, w, a, b, bias: &[] }.adapted(&self.keep, self.scaled)
    }

    /// H `[out, in]`, with s where entries are not scaled.
    fn of_entries(&self) -> Vec<f64> {
        let (_, cols, _, _) = self.case.shape;
        let mut g = self.case.d_w();
        for (i, g) in g.iter_mut().enumerate() {
            let factor = if self.scaled { self.case.w[i] } else { SCALE };
            *g = if self.keep[i / cols * cols + i % cols] { *g * factor } else { 0.0 };
        }
        g
    }

    /// Bᵀ·H
    fn d_a(&self) -> Vec<f64> {
        let ((_, cols, rows, rank), h) = (self.case.shape, self.of_entries());
        product((rank, cols, rows), |i, j, k| self.case.b[k * rank + i] * h[k * cols + j])
    }

    /// H·Aᵀ
    fn d_b(&self) -> Vec<f64> {
        let ((_, cols, rows, rank), h) = (self.case.shape, self.of_entries());
        product((rows, rank, cols), |i, j, k| h[i * cols + k] * self.case.a[j * cols + k])
    }

    fn what(&self, name: &str) -> String {
        format!(
            "{name} of {:?} {} {:?} {}",
            self.case.shape,
            self.dtype,
            self.case.kind,
            if self.scaled { "scaled" } else { "masked" }
        )
    }
}

/// y and dx.
pub fn products(
    device: &Device,
    inside: &Inside,
    held: &Held,
    x: &[f64],
    dy: &[f64],
    bias: Option<&[f64]>,
) -> [Buffer; 2] {
    let (_, cols, rows, _) = inside.case.shape;
    let [x, dy] = [x, dy].map(|t| upload(device, inside.dtype, t));
    let bias = bias.map(|bias| upload(device, F32, bias));
    let weight = WeightRef::Adapted(held.adapted());
    let y = forward(device, &x, x.len() / cols, weight, bias.as_ref(), None).unwrap().y;
    [y, backward_input(device, &dy, dy.len() / rows, weight, None).unwrap()]
}

/// dA and dB, added to what `before` puts there.
pub fn gradients(device: &Device, inside: &Inside, held: &Held, before: impl Fn(usize) -> Vec<f64>) -> [Buffer; 2] {
    let case = &inside.case;
    let [x, dy] = [&case.x, &case.dy].map(|t| upload(device, inside.dtype, t));
    let [mut d_a, mut d_b] = [&case.a, &case.b].map(|t| upload(device, F32, &before(t.len())));
    adapted_gradients(device, &x, &dy, case.shape.0, held.adapted(), &mut d_a, &mut d_b).unwrap();
    [d_a, d_b]
}

fn identity(len: usize) -> Vec<f64> {
    (0..len * len).map(|i| f64::from(u8::from(i / len == i % len))).collect()
}

/// The entries as they are multiplied: of the identity a product is one of them. Forward and backward have the same bits; what is
/// not kept is zero, and the rest formed within the error of B·A, whose factors are taken in two parts, and rounded once.
fn formed(inside: &Inside, held: &Held) -> Vec<f64> {
    let (_, cols, rows, rank) = inside.case.shape;
    let [y, dx] = products(&gpu(), inside, held, &identity(cols), &identity(rows), None);
    let (turned, formed) = (download(&y), download(&dx));
    for (i, entry) in formed.iter().enumerate() {
        assert_eq!(*entry, turned[i % cols * rows + i / cols], "{}", inside.what("Vᵀ"));
        assert!(inside.keep[i] || *entry == 0.0, "{}: a zero is lost", inside.what("V"));
    }
    let of_product = if inside.is_rounded() { split_tolerance(rank, SCALE) } else { SCALE * tolerance(rank) };
    let want = inside.effective();
    assert_within(&inside.what("V"), &dx, &want, |i| {
        rounding(inside.dtype) * want[i].abs() + f64::from(u8::from(inside.keep[i])) * of_product
    });
    formed
}

fn equal_the_reference(dtype: DType, kind: Kind, shape: Shape) {
    for scaled in [false, true] {
        let inside = Inside::new(dtype, kind, shape, scaled);
        let held = inside.hold(&gpu());
        let (n, cols, rows, rank) = shape;
        // What is multiplied is known bit for bit where it is rounded, and else within its error.
        let seen = formed(&inside, &held);
        let v = if inside.is_rounded() { seen } else { inside.effective() };
        let [y, dx] = products(&gpu(), &inside, &held, &inside.case.x, &inside.case.dy, Some(&inside.case.bias));
        let case = &inside.case;
        let of_entry = if inside.is_rounded() { 0.0 } else { SCALE * tolerance(rank) + size(rank) * 2f64.powi(-23) };
        let want = product((n, rows, cols), |i, j, k| case.x[i * cols + k] * v[j * cols + k]);
        let want: Vec<f64> = want.iter().enumerate().map(|(at, y)| y + case.bias[at % rows]).collect();
        let allowed = |terms: usize| size(rank + 1) * tolerance(terms) + terms as f64 * of_entry;
        assert_close(&inside.what("y"), &y, &want, allowed(cols));
        let want = product((n, cols, rows), |i, j, k| case.dy[i * rows + k] * v[k * cols + j]);
        assert_close(&inside.what("dx"), &dx, &want, allowed(rows));

        let before = |len| random(F32, len, 9);
        let [d_a, d_b] = gradients(&gpu(), &inside, &held, before);
        // Of H: G's sums; of the projections: their factors in two parts, H being one.
        let allowed = |terms: usize| split_tolerance(terms, size(n)) + terms as f64 * SCALE * tolerance(n);
        for (name, got, want, terms) in [("dA", d_a, inside.d_a(), rows), ("dB", d_b, inside.d_b(), cols)] {
            let want: Vec<f64> = want.iter().zip(before(want.len())).map(|(a, b)| a + b).collect();
            assert_close(&inside.what(name), &got, &want, allowed(terms));
        }
    }
}

#[test]
fn the_gradients_of_these_tests_are_the_derivatives_of_the_reference() {
    for scaled in [false, true] {
        let mut inside = Inside::new(F32, Kind::Packed(F32, 50), (3, 5, 7, 2), scaled);
        let wanted = [inside.d_a(), inside.d_b()];
        let (n, cols, rows, _) = inside.case.shape;
        // The objective is linear in A and in B: differences are exact but for rounding in f64.
        let mut objective = |values: &[f64], which: usize| {
            *(if which == 0 { &mut inside.case.a } else { &mut inside.case.b }) = values.to_vec();
            let v = inside.effective();
            dot(&product((n, rows, cols), |i, j, k| inside.case.x[i * cols + k] * v[j * cols + k]), &inside.case.dy)
        };
        for (which, want) in wanted.iter().enumerate() {
            let fresh = Inside::new(F32, Kind::Packed(F32, 50), (3, 5, 7, 2), scaled).case;
            let start = if which == 0 { &fresh.a } else { &fresh.b };
            let got = differences(start, 0.5, |values| objective(values, which));
            objective(start, which);
            want.iter().zip(got).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
        }
    }
}

/// Tiles of C are 256×128, those of G 128×128, panels and packed tiles 32 wide, 16 of the rank go together.
const EVEN: [Shape; 5] = [(1, 8, 8, 1), (16, 32, 64, 16), (40, 72, 136, 3), (17, 40, 264, 17), (5, 304, 48, 37)];

#[test]
#[ignore = "needs a GPU"]
fn gpu_packed_weights_with_an_adapter_inside_equal_the_reference() {
    for shape in EVEN {
        equal_the_reference(BF16, Kind::Packed(BF16, 50), shape);
    }
    // More tokens than a tile has.
    equal_the_reference(BF16, Kind::Packed(BF16, 50), (260, 40, 48, 2));
    for sparsity in [0, 95, 100] {
        equal_the_reference(BF16, Kind::Packed(BF16, sparsity), (9, 104, 80, 2));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_two_four_weights_with_an_adapter_inside_equal_the_reference() {
    for shape in EVEN {
        equal_the_reference(BF16, Kind::TwoFour(BF16), shape);
    }
    equal_the_reference(F16, Kind::TwoFour(F16), (40, 72, 136, 3));
    equal_the_reference(F16, Kind::TwoFour(BF16), (9, 104, 80, 18));
    equal_the_reference(BF16, Kind::TwoFour(F16), (9, 104, 80, 2));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_weights_of_any_type_with_an_adapter_inside_equal_the_reference() {
    let shape = (19, 104, 80, 4);
    for dtype in [BF16, F16] {
        for kind in [BF16, F16, F32] {
            equal_the_reference(dtype, Kind::Dense(kind), shape);
            equal_the_reference(dtype, Kind::Packed(kind, 50), shape);
        }
    }
    equal_the_reference(F16, Kind::Packed(F32, 70), (130, 40, 136, 19));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_plain_weights_with_an_adapter_inside_equal_the_reference() {
    for shape in [(1, 1, 1, 1), (3, 5, 7, 2), (70, 33, 66, 17)] {
        equal_the_reference(F32, Kind::Dense(F16), shape);
        equal_the_reference(F32, Kind::Packed(BF16, 50), shape);
        equal_the_reference(BF16, Kind::Packed(F32, 70), shape);
        equal_the_reference(F16, Kind::Dense(BF16), shape);
    }
    for shape in [(3, 4, 7, 2), (70, 36, 66, 5)] {
        equal_the_reference(F32, Kind::TwoFour(F16), shape);
        equal_the_reference(BF16, Kind::TwoFour(BF16), shape);
    }
}

/// More tiles of G than a launch takes: of 129 beside each other three rows, 384 rows of 128 each or 192 of 64.
#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_of_several_launches_equal_the_reference() {
    for (dtype, shape) in [(BF16, (4, 16_448, 400, 1)), (F32, (2, 8_200, 460, 1))] {
        let inside = Inside::new(dtype, Kind::Packed(BF16, 90), shape, false);
        let [d_a, d_b] = gradients(&gpu(), &inside, &inside.hold(&gpu()), |len| vec![0.0; len]);
        let allowed = |terms: usize| split_tolerance(terms, size(shape.0)) + terms as f64 * SCALE * tolerance(shape.0);
        assert_close(&inside.what("dA"), &d_a, &inside.d_a(), allowed(shape.2));
        assert_close(&inside.what("dB"), &d_b, &inside.d_b(), allowed(shape.1));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_gradients_of_adapters_inside_weights_have_the_same_bits_in_every_run() {
    let inside = Inside::new(BF16, Kind::Packed(BF16, 50), (70, 264, 392, 3), false);
    let held = inside.hold(&gpu());
    let bits = || gradients(&gpu(), &inside, &held, |len| vec![0.0; len]).map(|buffer| download(&buffer));
    assert_eq!(bits(), bits());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_nothing_comes_of_no_rank_and_of_no_rows() {
    for (kind, shape) in [(Kind::Packed(BF16, 50), (4, 8, 16, 0)), (Kind::Dense(BF16), (4, 7, 16, 0))] {
        for scaled in [false, true] {
            let inside = Inside::new(BF16, kind, shape, scaled);
            let held = inside.hold(&gpu());
            let v = formed(&inside, &held);
            // An empty sum scales by zero.
            assert!(v.iter().zip(&inside.case.w).all(|(v, w)| *v == if scaled { 0.0 } else { *w }));
            let [d_a, d_b] = gradients(&gpu(), &inside, &held, |len| vec![1.0; len]);
            assert!(d_a.is_empty() && d_b.is_empty());
        }
    }
    let inside = Inside::new(BF16, Kind::Packed(BF16, 50), (0, 8, 8, 2), false);
    let held = inside.hold(&gpu());
    let [y, dx] = products(&gpu(), &inside, &held, &[], &[], None);
    let [d_a, _] = gradients(&gpu(), &inside, &held, |len| vec![1.0; len]);
    assert!(y.is_empty() && dx.is_empty() && download(&d_a).iter().all(|x| *x == 1.0));
}

/// Beside operands and results there are, in a product, both factors in two parts, and in the gradients what 512 tiles of G leave.
/// The matrix itself would take 4 MiB in 16 bits, twice that in f32. Meta accounts and counts the same.
#[test]
#[ignore = "needs a GPU"]
fn gpu_no_matrix_of_the_weights_size_is_held() {
    let shape = (8, 4096, 512, 2);
    let (n, cols, rows, rank) = shape;
    let inside = Inside::new(BF16, Kind::Packed(BF16, 50), shape, false);
    let run = |device: &Device| {
        let held = inside.hold(device);
        let [x, dy] = [n * cols, n * rows].map(|len| device.zeros(Category::Activations, BF16, len).unwrap());
        let [mut d_a, mut d_b] =
            [rank * cols, rows * rank].map(|len| device.zeros(Category::Gradients, F32, len).unwrap());
        let weight = WeightRef::Adapted(held.adapted());
        device.start_profile();
        let peak = |run: &mut dyn FnMut()| {
            let before = device.memory().in_use();
            device.memory().reset_peak();
            run();
            (device.memory().peak().total - before) as usize
        };
        let peaks = [
            peak(&mut || drop(forward(device, &x, n, weight, None, None).unwrap())),
            peak(&mut || drop(backward_input(device, &dy, n, weight, None).unwrap())),
            peak(&mut || adapted_gradients(device, &x, &dy, n, held.adapted(), &mut d_a, &mut d_b).unwrap()),
        ];
        (peaks, device.take_profile().iter().map(|k| (k.kernel, k.flops, k.bytes_read)).collect::<Vec<_>>())
    };
    let device = Device::cuda(0).unwrap();
    let (peaks, costs) = run(&device);
    let factors = (cols + rows) * 16 * 4;
    let (wide, high) = (cols / 128, rows / 128);
    assert_eq!(peaks, [factors + n * rows * 2, factors + n * cols * 2, (wide * rows + high * cols) * rank * 4]);
    assert!(peaks.iter().all(|peak| 8 * peak <= rows * cols * 2), "{peaks:?}");
    assert_eq!(run(&Device::meta(Backend::Cuda, device.threads())), (peaks, costs));
}
