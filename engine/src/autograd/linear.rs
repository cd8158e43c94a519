//! y = f(x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ) + r. The gradients stand in [`kernels::ops::linear`] and [`kernels::ops::activation`]. An adapter that is
//! masked or scaled lies inside W instead: see [`LoraForm`](crate::model::LoraForm).
//!
//! Saves x only where A, B or W train: a frozen weight's gradient is never formed, so its input is not needed. Of f it saves
//! what f alone would: ReLU one bit an element, the others their input.

use std::sync::Arc;

use kernels::Device;
use kernels::ops::activation::{self, Activation};
use kernels::ops::linear::{self as op, Epilogue};
use kernels::weight::WeightRef;

use super::{Tape, Var};
use crate::error::Result;
use crate::model::{Linear, LoraValues};
use crate::tensor::Tensor;

/// Applies a linear layer to `[n, in]`.
///
/// # Errors
/// Shapes that do not fit, or no memory.
pub fn linear(tape: &mut Tape, layer: &Arc<Linear>, x: &Var) -> Result<Var> {
    with(tape, layer, x, None, None)
}

/// Applies a linear layer and an activation function to `[n, in]`: one kernel on a GPU.
///
/// # Errors
/// As [`linear`].
pub fn linear_activation(tape: &mut Tape, layer: &Arc<Linear>, x: &Var, kind: Activation) -> Result<Var> {
    with(tape, layer, x, Some(kind), None)
}

/// `residual` `[n, out]` + what a linear layer makes of `[n, in]`: one kernel on a GPU.
///
/// # Errors
/// As [`linear`].
pub fn linear_add(tape: &mut Tape, layer: &Arc<Linear>, x: &Var, residual: Var) -> Result<Var> {
    with(tape, layer, x, None, Some(residual))
}

fn with(tape: &mut Tape, layer: &Arc<Linear>, x: &Var, kind: Option<Activation>, residual: Option<Var>) -> Result<Var> {
    if let Some(watch) = &mut tape.watch {
        watch(layer, x.tensor())?;
    }
    let n = x.tensor().rows();
    let into_layer = tape.needs_grad(&[x], &layer.params());
    let residual_node = residual.as_ref().and_then(|residual| residual.node);
    let forward = {
        let bias = layer.bias.as_ref().map(|bias| bias.value());
        let lora = layer.lora.as_ref().map(|lora| lora.values());
        let epilogue = Epilogue {
            activation: kind,
            save: into_layer,
            residual: residual.as_ref().map(|residual| residual.tensor().buffer()),
        };
        layer.weight.with_ref(|weight| {
            let (weight, lora) = operands(weight, lora.as_ref())?;
            let x = x.tensor().buffer();
            crate::error::Result::Ok(op::forward_with(tape.device(), x, n, weight, bias.as_deref(), lora, epilogue)?)
        })?
    };
    drop(residual);
    let y = Tensor::new(forward.y, n, layer.weight.rows());
    if !into_layer && residual_node.is_none() {
        return Ok(Var::constant(y));
    }
    let lora_trains = layer.lora.as_ref().is_some_and(|lora| lora.is_trainable());
    let saved_x = (lora_trains || layer.weight.is_trainable()).then(|| x.tensor().clone());
    let backward = Backward {
        layer: layer.clone(),
        n,
        activation: kind.zip(forward.saved),
        x: saved_x.filter(|_| into_layer),
        u: forward.u.filter(|_| lora_trains && into_layer),
        lora_trains,
        wanted: x.needs_grad(),
    };
    let nodes = vec![x.node, residual_node];
    Ok(tape.record_nodes(y, nodes, move |device, dy| {
        let of_residual = residual_node.map(|_| dy.clone());
        let dx = if into_layer { backward.run(device, dy)? } else { None };
        Ok(vec![dx, of_residual])
    }))
}

/// What is multiplied, and the adapter that is a term of its own.
fn operands<'a>(
    weight: WeightRef<'a>,
    lora: Option<&'a LoraValues<'_>>,
) -> Result<(WeightRef<'a>, Option<op::Lora<'a>>)> {
    let Some(lora) = lora else { return Ok((weight, None)) };
    Ok(match lora.inside(weight)? {
        Some(adapted) => (WeightRef::Adapted(adapted), None),
        None => (weight, Some(lora.borrow())),
    })
}

/// What the backward pass needs.
struct Backward {
    layer: Arc<Linear>,
    n: usize,
    /// The function, and what its gradient needs.
    activation: Option<(Activation, kernels::Buffer)>,
    /// x, where a gradient of A, B or W is formed from it.
    x: Option<Tensor>,
    /// s·x·Aᵀ, where A and B train and are a term of their own.
    u: Option<kernels::Buffer>,
    lora_trains: bool,
    /// Whether x gets a gradient.
    wanted: bool,
}

impl Backward {
    /// Parameters accumulate their gradients; returns x's, where it gets one.
    fn run(self, device: &Device, dy: Tensor) -> Result<Option<Tensor>> {
        let Backward { layer, n, activation, x, u, lora_trains, wanted } = self;
        let dy = match activation {
            None => dy,
            Some((kind, saved)) => {
                let dy = dy.into_buffer()?;
                let dz = match kind {
                    Activation::Relu => activation::relu_backward(dy, &saved)?,
                    kind => activation::backward(kind, dy, &saved)?,
                };
                Tensor::new(dz, n, layer.weight.rows())
            }
        };
        let dy = dy.buffer();
        if let Some(bias) = layer.bias.as_ref().filter(|bias| bias.is_trainable()) {
            bias.accumulate(|d_bias| op::bias_gradient(device, dy, n, d_bias))?;
        }
        let lora = layer.lora.as_ref().map(|lora| lora.values());
        layer.weight.with_ref(|weight| {
            let (weight, lora_ref) = operands(weight, lora.as_ref())?;
            let v = match lora_ref {
                Some(lora) if lora_trains || wanted => Some(op::lora_down(device, dy, n, weight, lora)?),
                _ => None,
            };
            if let (Some(x), Some(u), Some(v), Some(lora)) = (&x, &u, &v, &layer.lora) {
                let (mut d_a, mut d_b) = (lora.a.take_grad()?, lora.b.take_grad()?);
                op::lora_gradients(device, x.buffer(), dy, n, (u, v), &mut d_a, &mut d_b)?;
                lora.a.put_grad(d_a);
                lora.b.put_grad(d_b);
            }
            if let (Some(x), WeightRef::Adapted(adapted), Some(lora)) = (&x, weight, &layer.lora)
                && lora_trains
            {
                let (mut d_a, mut d_b) = (lora.a.take_grad()?, lora.b.take_grad()?);
                op::adapted_gradients(device, x.buffer(), dy, n, adapted, &mut d_a, &mut d_b)?;
                lora.a.put_grad(d_a);
                lora.b.put_grad(d_b);
            }
            if let (Some(x), Some(param)) = (&x, layer.weight.param().filter(|param| param.is_trainable())) {
                param.accumulate(|d_w| op::weight_gradient(device, x.buffer(), dy, n, d_w))?;
            }
            let dx = if wanted {
                let dx = op::backward_input(device, dy, n, weight, lora_ref.zip(v.as_ref()))?;
                Some(Tensor::new(dx, n, weight.cols()))
            } else {
                None
            };
            Ok(dx)
        })
    }
}
