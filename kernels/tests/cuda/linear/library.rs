//! Dense products by cuBLASLt, held against the same references as our own. Where a real GPU comes without the library there
//! is nothing to hold; the virtual GPU always has one.

use kernels::device::Gemm;
use kernels::{DType, Device};

use super::epilogues::Layer;
use super::gradients::{self, KIND};
use super::products::pass;
use super::{Case, Kind, Shape, tolerance};
use crate::support::{assert_close, cublas, download, random, round, upload};

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const F32: DType = DType::F32;

fn equal_the_reference(device: &Device, dtype: DType, kind: Kind, shape: Shape) {
    let mut case = Case::new(dtype, kind, shape);
    let (y, dx, _) = pass(device, dtype, &case);
    case.round_weight(dtype);
    // The library adds a bias of y's type.
    case.bias.iter_mut().for_each(|b| *b = round(dtype, *b));
    let what = |name: &str| format!("{name} of {shape:?} {dtype} {kind:?}");
    assert_close(&what("y"), &y, &case.y(), tolerance(shape.1));
    assert_close(&what("dx"), &dx, &case.dx(), tolerance(shape.2));
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_cublas_products_equal_the_reference_in_any_shape() {
    let Some(device) = cublas() else { return };
    for shape in [(1, 8, 8, 0), (16, 32, 64, 0), (130, 72, 136, 0), (5, 304, 48, 0)] {
        for dtype in [BF16, F16] {
            equal_the_reference(&device, dtype, Kind::Trainable, shape);
            equal_the_reference(&device, dtype, Kind::Dense(dtype), shape);
        }
    }
    for shape in [(1, 1, 1, 0), (3, 5, 7, 0), (70, 33, 66, 0)] {
        equal_the_reference(&device, F32, Kind::Trainable, shape);
        equal_the_reference(&device, F32, Kind::Dense(F32), shape);
    }
    let (y, dx, _) = pass(&device, BF16, &Case::new(BF16, Kind::Trainable, (0, 8, 8, 0)));
    assert!(y.is_empty() && dx.is_empty());
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_cublas_weight_gradients_are_added_to_what_is_there() {
    let Some(device) = cublas() else { return };
    for (dtype, shape) in [(BF16, (33, 136, 72, 0)), (F16, (1, 8, 8, 0)), (F32, (33, 70, 9, 0))] {
        let case = Case::new(dtype, KIND, shape);
        let before = |len| random(F32, len, 9);
        let [_, _, d_w] = gradients::pass(&device, dtype, &case, before);
        let want: Vec<f64> = case.d_w().iter().zip(before(d_w.len())).map(|(a, b)| a + b).collect();
        assert_close(&format!("dW of {shape:?} {dtype}"), &d_w, &want, tolerance(shape.0));
    }
}

/// What follows a product is then operations of its own.
#[test]
#[ignore = "needs a GPU"]
fn gpu_cublas_products_are_followed_by_every_epilogue() {
    let Some(device) = cublas() else { return };
    Layer::new(&device, BF16, Kind::Trainable, (19, 40, 72, 0)).is_followed();
    Layer::new(&device, F16, Kind::Dense(F16), (19, 40, 72, 0)).is_followed();
}

/// Of each kind of product that could be the library's: those of weights that train, frozen ones, and one with an adapter.
pub const LAUNCHES: Shape = (256, 512, 256, 0);

fn launches(gemm: Gemm) {
    let Some(device) = crate::support::with_library(gemm) else { return };
    let (n, cols, rows, _) = LAUNCHES;
    // Sizes to be counted, not numbers to be checked.
    for (kind, rank) in [(Kind::Trainable, 0), (Kind::Dense(BF16), 0), (Kind::Trainable, 2)] {
        pass(&device, BF16, &Case::new(BF16, kind, (n, cols, rows, rank)));
    }
    let x = upload(&device, BF16, &random(BF16, n * cols, 1));
    let dy = upload(&device, BF16, &random(BF16, n * rows, 2));
    let mut d_w = upload(&device, F32, &vec![0.0; rows * cols]);
    kernels::ops::linear::weight_gradient(&device, &x, &dy, n, &mut d_w).unwrap();
    download(&d_w);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_library_for_what_trains() {
    launches(Gemm::Auto);
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_library_for_all() {
    launches(Gemm::Cublas);
}
