//! y, u, dx and v.

use kernels::ops::linear::{Lora, backward_input, forward, lora_down};
use kernels::weight::FrozenWeight;
use kernels::{Buffer, DType, Device};

use super::{Case, Kind, SCALE, Shape, size, split_tolerance, tolerance};
use crate::support::{assert_close, differences, dot, gpu, upload};

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const F32: DType = DType::F32;

/// y, dx, and u and v where there is an adapter.
pub fn pass(device: &Device, dtype: DType, case: &Case) -> (Buffer, Buffer, Option<(Buffer, Buffer)>) {
    let (n, _, _, rank) = case.shape;
    let [x, dy] = [&case.x, &case.dy].map(|t| upload(device, dtype, t));
    let [a, b, bias] = [&case.a, &case.b, &case.bias].map(|t| upload(device, F32, t));
    let held = case.hold(device);
    let lora = (rank > 0).then_some(Lora { a: &a, b: &b, rank, scale: SCALE as f32 });
    let out = forward(device, &x, n, held.weight(), Some(&bias), lora).unwrap();
    let v = lora.map(|lora| lora_down(device, &dy, n, held.weight(), lora).unwrap());
    let dx = backward_input(device, &dy, n, held.weight(), lora.zip(v.as_ref())).unwrap();
    (out.y, dx, out.u.zip(v))
}

fn equal_the_reference(dtype: DType, kind: Kind, shape: Shape) {
    let mut case = Case::new(dtype, kind, shape);
    let (_, cols, rows, rank) = shape;
    let (y, dx, down) = pass(&gpu(), dtype, &case);
    case.round_weight(dtype);
    let what = |name: &str| format!("{name} of {shape:?} {dtype} {kind:?}");
    // The adapter's part: what is wrong with u and v, and what is lost where they are multiplied.
    let adapter = |k| rank as f64 * split_tolerance(k, SCALE) + split_tolerance(rank, size(k));
    assert_close(&what("y"), &y, &case.y(), tolerance(cols) + adapter(cols));
    assert_close(&what("dx"), &dx, &case.dx(), tolerance(rows) + adapter(rows));
    if let Some((u, v)) = down {
        assert_close(&what("u"), &u, &case.u(), split_tolerance(cols, SCALE));
        assert_close(&what("v"), &v, &case.v(), split_tolerance(rows, SCALE));
    }
}

#[test]
fn the_input_gradient_of_these_tests_is_the_derivative_of_the_reference() {
    let mut case = Case::new(F32, Kind::Packed(F32, 50), (3, 5, 7, 2));
    let want = case.dx();
    // The objective is linear in x: differences are exact but for rounding in f64.
    let got = differences(&case.x.clone(), 0.5, |x| {
        case.x = x.to_vec();
        dot(&case.y(), &case.dy)
    });
    want.iter().zip(got).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
}

/// Tiles of C are 128×128 or 256×128, panels 32 deep: shapes inside one, with edges in every direction, and of several.
const EVEN: [Shape; 5] = [(1, 8, 8, 1), (16, 32, 64, 0), (130, 72, 136, 3), (17, 40, 264, 16), (5, 304, 48, 23)];

#[test]
#[ignore = "needs a GPU"]
fn gpu_dense_products_equal_the_reference_in_any_shape() {
    for shape in EVEN {
        equal_the_reference(BF16, Kind::Dense(BF16), shape);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_packed_products_equal_the_reference_in_any_shape() {
    for shape in EVEN {
        equal_the_reference(BF16, Kind::Packed(BF16, 50), shape);
    }
    equal_the_reference(BF16, Kind::Packed(BF16, 50), (260, 64, 72, 0));
}

/// Tiles are of 256 features and 128 rows forward.
#[test]
#[ignore = "needs a GPU"]
fn gpu_two_four_products_equal_the_reference_in_any_shape() {
    for shape in EVEN {
        equal_the_reference(BF16, Kind::TwoFour(BF16), shape);
    }
    equal_the_reference(F16, Kind::TwoFour(F16), (130, 72, 136, 3));
    equal_the_reference(F16, Kind::TwoFour(F16), (260, 64, 72, 0));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_packed_products_equal_the_reference_at_any_sparsity() {
    for sparsity in [0, 70, 95, 100] {
        equal_the_reference(BF16, Kind::Packed(BF16, sparsity), (9, 104, 80, 2));
        equal_the_reference(F16, Kind::Packed(F32, sparsity), (9, 104, 80, 2));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_products_of_mixed_types_equal_the_reference() {
    let shape = (19, 104, 80, 4);
    for dtype in [BF16, F16] {
        for kind in [BF16, F16, F32] {
            equal_the_reference(dtype, Kind::Dense(kind), shape);
            equal_the_reference(dtype, Kind::Packed(kind, 50), shape);
        }
        for kind in [BF16, F16] {
            equal_the_reference(dtype, Kind::TwoFour(kind), shape);
        }
        equal_the_reference(dtype, Kind::Trainable, (130, 40, 136, 0));
    }
}

/// Features that are not multiples of 8, and f32, take plain multiply-adds.
#[test]
#[ignore = "needs a GPU"]
fn gpu_plain_products_equal_the_reference() {
    for shape in [(1, 1, 1, 1), (3, 5, 7, 2), (70, 33, 66, 0), (5, 100, 9, 3)] {
        equal_the_reference(F32, Kind::Trainable, shape);
        equal_the_reference(F32, Kind::Dense(F16), shape);
        equal_the_reference(F32, Kind::Packed(BF16, 50), shape);
        equal_the_reference(BF16, Kind::Packed(BF16, 70), shape);
        equal_the_reference(F16, Kind::Dense(F16), shape);
    }
    for shape in [(3, 4, 7, 2), (70, 36, 66, 0), (5, 100, 9, 3)] {
        equal_the_reference(F32, Kind::TwoFour(F16), shape);
        equal_the_reference(BF16, Kind::TwoFour(BF16), shape);
    }
}

/// More tiles than a band has, in both directions.
#[test]
#[ignore = "needs a GPU"]
fn gpu_many_tiles_equal_the_reference() {
    equal_the_reference(BF16, Kind::Dense(BF16), (1160, 40, 136, 0));
    equal_the_reference(BF16, Kind::Packed(BF16, 50), (1160, 40, 136, 0));
    equal_the_reference(BF16, Kind::TwoFour(BF16), (260, 40, 1160, 0));
}

/// Adapters' products of 64 rows and of 128 in a block.
#[test]
#[ignore = "needs a GPU"]
fn gpu_adapters_of_many_rows_equal_the_reference() {
    for n in [4033, 8065] {
        equal_the_reference(BF16, Kind::Dense(BF16), (n, 40, 72, 5));
        equal_the_reference(F16, Kind::Dense(F16), (n, 72, 8, 18));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_rows_give_no_output() {
    let (y, dx, _) = pass(&gpu(), BF16, &Case::new(BF16, Kind::Dense(BF16), (0, 8, 8, 2)));
    assert!(y.is_empty() && dx.is_empty());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_without_a_bias_nothing_is_added() {
    let (shape, kind) = ((9, 16, 24, 0), Kind::Packed(BF16, 50));
    let mut case = Case::new(BF16, kind, shape);
    let x = upload(&gpu(), BF16, &case.x);
    let y = forward(&gpu(), &x, shape.0, case.hold(&gpu()).weight(), None, None).unwrap().y;
    case.bias.fill(0.0);
    assert_close("y", &y, &case.y(), tolerance(shape.1));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_operands_without_a_kernel_are_named() {
    let device = gpu();
    let case = Case::new(BF16, Kind::Dense(BF16), (1, 8, 8, 1));
    let held = case.hold(&device);
    let words = device.upload(kernels::Category::Activations, &[0u32; 8]).unwrap();
    let error = forward(&device, &words, 1, held.weight(), None, None).unwrap_err();
    assert_eq!(error.to_string(), "linear_forward: x is u32, expected bf16");
    let [a, b] = [BF16, F32].map(|dtype| upload(&device, dtype, &[0.0; 8]));
    let lora = Lora { a: &a, b: &b, rank: 1, scale: 1.0 };
    let error = lora_down(&device, &b, 1, held.weight(), lora).unwrap_err();
    assert_eq!(error.to_string(), "lora_down: A is bf16, expected f32");
}

/// A weight that a GPU holds reads back as it was, packed or not.
#[test]
#[ignore = "needs a GPU"]
fn gpu_a_packed_weight_reads_back_bit_for_bit() {
    let case = Case::new(BF16, Kind::Packed(BF16, 70), (1, 45, 70, 0));
    let held = case.hold(&gpu());
    let kernels::weight::WeightRef::Frozen(weight) = held.weight() else { unreachable!() };
    let want: Vec<f32> = case.w.iter().map(|w| *w as f32).collect();
    assert_eq!(weight.to_f32().unwrap(), want);
    assert!(matches!(weight, FrozenWeight::Blocks(_)));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_2_4_weight_reads_back_bit_for_bit() {
    let case = Case::new(F16, Kind::TwoFour(F16), (1, 44, 70, 0));
    let held = case.hold(&gpu());
    let kernels::weight::WeightRef::Frozen(weight) = held.weight() else { unreachable!() };
    let want: Vec<f32> = case.w.iter().map(|w| *w as f32).collect();
    assert_eq!(weight.to_f32().unwrap(), want);
    assert!(matches!(weight, FrozenWeight::TwoFour(_)));
}
