//! y = f(z) + r, where z is what a layer gives without an epilogue.

use kernels::ops::activation::{Activation, backward, reference, relu, relu_backward};
use kernels::ops::add::add_assign;
use kernels::ops::linear::{Epilogue, Forward, Lora, forward_with};
use kernels::weight::{Adapted, Form, WeightRef};
use kernels::{Buffer, DType, Device};

use super::{Case, Kind, SCALE, Shape};
use crate::activation::{KINDS, slope};
use crate::support::{assert_close, download, gpu, random, upload};

const BF16: DType = DType::BF16;
const F16: DType = DType::F16;
const F32: DType = DType::F32;

/// Several layers of the same operands.
pub struct Layer<'a> {
    device: &'a Device,
    case: Case,
    dtype: DType,
    x: Buffer,
    residual: Buffer,
    factors: [Buffer; 3],
    /// The adapter lies inside the weight.
    inside: bool,
}

impl<'a> Layer<'a> {
    pub fn new(device: &'a Device, dtype: DType, kind: Kind, shape: Shape) -> Layer<'a> {
        let case = Case::new(dtype, kind, shape);
        let x = upload(device, dtype, &case.x);
        let factors = [&case.a, &case.b, &case.bias].map(|t| upload(device, F32, t));
        let residual = upload(device, dtype, &random(dtype, shape.0 * shape.2, 8));
        Layer { device, case, dtype, x, residual, factors, inside: false }
    }

    /// The same with the adapter inside a frozen weight.
    pub fn inside(device: &'a Device, dtype: DType, kind: Kind, shape: Shape) -> Layer<'a> {
        Layer { inside: true, ..Layer::new(device, dtype, kind, shape) }
    }

    pub fn forward(&self, activation: Option<Activation>, save: bool, residual: bool) -> Forward {
        let (n, _, _, rank) = self.case.shape;
        let [a, b, bias] = &self.factors;
        let held = self.case.hold(self.device);
        let scale = SCALE as f32;
        let (weight, lora) = match held.weight() {
            WeightRef::Frozen(weight) if self.inside => {
                (WeightRef::Adapted(Adapted { weight, a, b, rank, form: Form::Add { scale } }), None)
            }
            weight => (weight, (rank > 0).then_some(Lora { a, b, rank, scale })),
        };
        let epilogue = Epilogue { activation, save, residual: residual.then_some(&self.residual) };
        forward_with(self.device, &self.x, n, weight, Some(bias), lora, epilogue).unwrap()
    }

    /// All epilogues give what operations of their own would.
    pub fn is_followed(&self) {
        let copy = |buffer: &Buffer| buffer.duplicate(buffer.category()).unwrap();
        let bits = |buffer: &Buffer| download(buffer).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let buffer = self.forward(None, false, false).y;
        let z = download(&buffer);
        let dy = random(self.dtype, z.len(), 9);
        for activation in KINDS.map(Some).into_iter().chain([None]) {
            let what = format!("{activation:?} of {:?} {} {:?}", self.case.shape, self.dtype, self.case.kind);
            let alone = self.forward(activation, true, false);
            let want: Vec<f64> = z.iter().map(|z| activation.map_or(*z, |kind| reference::forward(kind, *z))).collect();
            // As tests of the functions allow; ReLU and none are exact.
            let exact = matches!(activation, None | Some(Activation::Relu));
            assert_close(&what, &alone.y, &want, if exact { 0.0 } else { 1e-6 });
            let mut sum = copy(&alone.y);
            add_assign(&mut sum, &self.residual).unwrap();
            for save in [false, true] {
                let with = self.forward(activation, save, true);
                assert_eq!(bits(&with.y), bits(&sum), "{what}");
                assert_eq!(with.saved.is_some(), save && activation.is_some(), "{what}");
            }

            let gradient = upload(self.device, self.dtype, &dy);
            let want = |kind| z.iter().zip(&dy).map(|(z, dy)| dy * slope(kind, *z)).collect::<Vec<_>>();
            match (activation, alone.saved) {
                (None, None) => {}
                (Some(Activation::Relu), Some(signs)) => {
                    let expected = relu(copy(&buffer), true).unwrap().1.unwrap();
                    assert_eq!(signs.download::<u64>().unwrap(), expected.download::<u64>().unwrap(), "{what}");
                    let dx = download(&relu_backward(gradient, &signs).unwrap());
                    assert!(dx.iter().zip(&z).zip(&dy).all(|((dx, z), dy)| *dx == if *z > 0.0 { *dy } else { 0.0 }));
                }
                (Some(kind), Some(saved)) => {
                    assert_eq!(bits(&saved), bits(&buffer), "{what}");
                    assert_close(&what, &backward(kind, gradient, &saved).unwrap(), &want(kind), 1e-5);
                }
                (_, saved) => panic!("{what} saves {saved:?}"),
            }
        }
    }
}

/// Less than a word of signs, words begun, and edges of tiles.
#[test]
#[ignore = "needs a GPU"]
fn gpu_epilogues_do_what_operations_of_their_own_would() {
    for shape in [(1, 8, 8, 1), (19, 40, 136, 3), (130, 16, 72, 0)] {
        for kind in [Kind::Dense(BF16), Kind::Packed(BF16, 50), Kind::TwoFour(F16)] {
            Layer::new(&gpu(), BF16, kind, shape).is_followed();
        }
    }
    Layer::new(&gpu(), BF16, Kind::Trainable, (9, 16, 24, 0)).is_followed();
    Layer::new(&gpu(), F16, Kind::Packed(F32, 50), (9, 16, 24, 2)).is_followed();
    Layer::new(&gpu(), F16, Kind::TwoFour(F16), (9, 16, 24, 2)).is_followed();
}

/// Plain products are followed by these operations.
#[test]
#[ignore = "needs a GPU"]
fn gpu_plain_products_take_epilogues() {
    Layer::new(&gpu(), F32, Kind::Dense(F32), (5, 12, 9, 2)).is_followed();
    Layer::new(&gpu(), BF16, Kind::TwoFour(BF16), (5, 12, 9, 2)).is_followed();
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_epilogues_of_adapted_weights_do_what_operations_of_their_own_would() {
    let device = gpu();
    for (dtype, kind) in
        [(BF16, Kind::Packed(BF16, 50)), (F16, Kind::Dense(F16)), (BF16, Kind::TwoFour(BF16)), (F32, Kind::Dense(F32))]
    {
        Layer::inside(&device, dtype, kind, (21, 40, 136, 3)).is_followed();
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_no_rows_save_nothing() {
    let device = gpu();
    let layer = Layer::new(&device, BF16, Kind::Dense(BF16), (0, 8, 8, 0));
    for kind in KINDS {
        let out = layer.forward(Some(kind), true, true);
        assert!(out.y.is_empty() && out.saved.unwrap().is_empty());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_residual_that_does_not_fit_is_named() {
    let device = gpu();
    let mut layer = Layer::new(&device, BF16, Kind::Dense(BF16), (2, 8, 8, 0));
    let error = |layer: &Layer<'_>| {
        let held = layer.case.hold(layer.device);
        let epilogue = Epilogue { residual: Some(&layer.residual), ..Epilogue::default() };
        forward_with(layer.device, &layer.x, 2, held.weight(), None, None, epilogue).unwrap_err().to_string()
    };
    layer.residual = upload(layer.device, BF16, &[0.0; 8]);
    assert_eq!(error(&layer), "linear_forward: residual has 8 elements, expected 16");
    layer.residual = upload(layer.device, F32, &[0.0; 16]);
    assert_eq!(error(&layer), "linear_forward: residual is f32, expected bf16");
}
