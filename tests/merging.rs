//! What rounding to 16 bits makes of merged adapters, layer by layer.

mod small_models;

use engine::model::{Linear, Model, Module, Weight};
use engine::peft::{self, Method};
use engine::prune::Pattern;
use kernels::ops::linear as op;
use kernels::strips::to_rows;
use kernels::weight::WeightRef;
use kernels::{Category, DType, Device};
use small_models::{folder, llama, load, opt, train_set};

/// Tokens of each layer's input.
const N: usize = 5;

/// Numbers in [−1, 1] that look random.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// A linear layer's output, row-major, with its adapter where it has one.
fn output(device: &Device, linear: &Linear, x: &[f32]) -> Vec<f32> {
    let x = device.upload(Category::Activations, &kernels::strips::from_rows(x, N, linear.weight.cols())).unwrap();
    let lora = linear.lora.as_ref().map(|lora| lora.values());
    let y = linear.weight.with_ref(|weight| {
        let inside = lora.as_ref().and_then(|lora| lora.inside(weight).unwrap());
        op::forward(device, &x, N, inside.map_or(weight, WeightRef::Adapted), None, None)
    });
    to_rows(y.unwrap().y.f32(), N, linear.weight.rows())
}

/// Each linear layer's name, output, and W in f32.
fn outputs(device: &Device, model: &mut dyn Model) -> Vec<(String, Vec<f32>, Vec<f32>)> {
    let mut found = Vec::new();
    let mut each = |module: Module<'_>| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            let x = values(N * linear.weight.cols(), 3);
            let Weight::Frozen(weight) = &linear.weight else { panic!("{} is frozen", linear.name) };
            found.push((linear.name.clone(), output(device, linear, &x), weight.to_f32()?));
        }
        Ok(())
    };
    model.visit(&mut each).unwrap();
    found
}

/// A merged entry is the one that products formed, rounded to nearest: by at most half a place, 2^-(p) of it where the element
/// type has p bits (11 of f16, 8 of bf16), and by at most the smallest number where it is subnormal, for none becomes zero. Both
/// sums are of `in` terms in f32, each rounding by at most 2⁻²⁴ of what the magnitudes add up to.
#[test]
fn a_merged_layers_outputs_are_off_by_the_rounding_of_its_entries() {
    let device = Device::cpu();
    for (dtype, unit, smallest) in
        [(DType::F16, 2f64.powi(-11), 2f64.powi(-24)), (DType::BF16, 2f64.powi(-8), 2f64.powi(-133))]
    {
        for (config, pattern) in
            [(opt(), Pattern::Unstructured { sparsity: 0.5 }), (llama(), Pattern::NM { n: 2, m: 4 })]
        {
            for method in [Method::MaskLora, Method::ScaleLora] {
                let folder = folder(&config, dtype, 0.08);
                let mut model = load(&device, &folder, pattern);
                for (seed, param) in peft::apply(&mut *model, &train_set(method), 0).unwrap().iter().enumerate() {
                    let scale = if method == Method::MaskLora { 0.05 } else { 0.4 };
                    let fill = |to: &mut [f32]| {
                        let new = values(to.len(), seed);
                        to.iter_mut().zip(new).for_each(|(to, x)| *to = scale * x);
                        Ok(())
                    };
                    if param.name().contains("lora_") {
                        param.value_mut().fill(fill).unwrap();
                    }
                }
                let before = outputs(&device, &mut *model);
                let report = peft::merge(&mut *model, &mut |_| ()).unwrap();
                assert!(report.rounding() > 0.0 && report.zeros_before == report.zeros_after);
                let after = outputs(&device, &mut *model);
                for ((name, before, old), (_, after, w)) in before.iter().zip(&after) {
                    let (rows, cols) = (after.len() / N, w.len() * N / after.len());
                    assert!(
                        old.iter().zip(w).all(|(old, new)| (*old == 0.0) == (*new == 0.0)),
                        "{name}: its zeros moved"
                    );
                    assert!(before != after, "{name}: nothing was rounded");
                    let x = values(N * cols, 3);
                    for (at, (before, after)) in before.iter().zip(after).enumerate() {
                        let (token, row) = (at / rows, at % rows);
                        let terms = x[token * cols..][..cols].iter().zip(&w[row * cols..][..cols]);
                        // The formed entry is at most (1 + 2·unit)·|w|.
                        let of = |(x, w): (&f32, &f32)| {
                            let smallest = if *w == 0.0 { 0.0 } else { smallest };
                            let (x, w) = (f64::from(x.abs()), f64::from(w.abs()) * (1.0 + 2.0 * unit));
                            x * (w * unit + smallest + 2.0 * cols as f64 * 2f64.powi(-24) * w)
                        };
                        let most: f64 = terms.map(of).sum();
                        let off = (f64::from(*before) - f64::from(*after)).abs();
                        assert!(
                            off <= most,
                            "{dtype} {method} {name}[{token}, {row}]: {before} and {after}: {off:e} > {most:e}"
                        );
                    }
                }
            }
        }
    }
}
