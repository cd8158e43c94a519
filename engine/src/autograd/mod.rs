//! Reverse-mode differentiation: a tape that saves only what the trainable set needs.
//!
//! A forward function computes its value and, if something upstream of it or in it trains, records a node: which inputs
//! get a gradient, and a closure that turns the output's gradient into theirs. The closure owns exactly what it needs;
//! what no closure owns is freed as the forward pass goes. Gradients of parameters accumulate in the parameters
//! themselves, so the tape carries activations only.
//!
//! [`Tape::segment`] is activation checkpointing: the segment runs without recording, keeps its input alone, and runs
//! again when its gradient is due. The second run computes the same bits, so gradients are the same with and without.
//!
//! One file for each differentiable function; each states its gradient.

mod add;
mod attention;
mod embedding;
mod gate;
mod head_loss;
mod linear;
mod norm;
mod rotary;

use kernels::Device;
use kernels::ops::InputGradient;

use crate::error::Result;
use crate::model::Linear;
use crate::tensor::{Param, Tensor};

pub use attention::attention;
pub use embedding::{add_positions, embedding};
pub use gate::silu_gate;
pub use head_loss::{Loss, head_loss, head_loss_values};
pub use kernels::ops::activation::Activation;
pub use kernels::ops::attention::{Attention, Precision};
pub use kernels::ops::rotary::RotaryTable;
pub use linear::{linear, linear_activation, linear_add};
pub use norm::norm;
pub use rotary::rotary;

/// A value on a tape.
#[derive(Clone, Debug)]
pub struct Var {
    tensor: Tensor,
    node: Option<usize>,
}

impl Var {
    /// A value that no gradient flows to.
    pub fn constant(tensor: Tensor) -> Var {
        Var { tensor, node: None }
    }

    /// The value.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The value alone.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// True where a gradient will flow to it.
    pub fn needs_grad(&self) -> bool {
        self.node.is_some()
    }
}

/// Turns the gradient of a node's output into those of its inputs.
type Backward = Box<dyn FnOnce(&Device, Tensor, &mut Gradients) -> Result<()>>;

/// What is known of the gradients of nodes whose turn is still to come: sums over the uses that came after them.
struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// Adds the gradient of one use.
    fn add(&mut self, node: usize, gradient: Tensor) -> Result<()> {
        let sum = match self.0[node].take() {
            None => gradient,
            Some(sum) => add::sum(sum, gradient)?,
        };
        self.0[node] = Some(sum);
        Ok(())
    }
}

struct Node {
    /// Absent for the leaf of a segment.
    backward: Option<Backward>,
}

/// Hears of each linear layer before it is applied, and of its input `[N, in]`.
pub type Watch = Box<dyn FnMut(&Linear, &Tensor) -> Result<()>>;

/// The record of one forward pass.
pub struct Tape {
    device: Device,
    watch: Option<Watch>,
    recording: bool,
    /// Whether a parameter that trains was met.
    met_trainable: bool,
    /// Segments from here on that keep only their inputs.
    recompute: usize,
    nodes: Vec<Node>,
}

impl Tape {
    /// A tape that records nothing.
    pub fn inference(device: &Device) -> Tape {
        Tape {
            device: device.clone(),
            watch: None,
            recording: false,
            met_trainable: false,
            recompute: 0,
            nodes: Vec::new(),
        }
    }

    /// A tape that records nothing and shows `watch` the input of every linear layer: what calibration collects.
    pub fn watched(device: &Device, watch: impl FnMut(&Linear, &Tensor) -> Result<()> + 'static) -> Tape {
        Tape { watch: Some(Box::new(watch)), ..Tape::inference(device) }
    }

    /// A tape for one forward and backward pass, of which the first `recompute` segments keep only their inputs. The first,
    /// because they would keep theirs the longest, and run again when all others' memory is free.
    pub fn training(device: &Device, recompute: usize) -> Tape {
        Tape { recording: true, recompute, ..Tape::inference(device) }
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// True where a function of these inputs and parameters must record itself.
    fn needs_grad(&mut self, inputs: &[&Var], params: &[Option<&Param>]) -> bool {
        let trains = params.iter().flatten().any(|param| param.is_trainable());
        self.met_trainable |= trains;
        self.recording && (trains || inputs.iter().any(|var| var.needs_grad()))
    }

    /// The value with its node. `backward` gives the inputs' gradients in their order, `None` where an input gets none.
    fn record(
        &mut self,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce(&Device, Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
    ) -> Var {
        self.record_nodes(value, inputs.iter().map(|var| var.node).collect(), backward)
    }

    /// The same where the inputs themselves were overwritten: by their nodes.
    fn record_nodes(
        &mut self,
        value: Tensor,
        inputs: Vec<Option<usize>>,
        backward: impl FnOnce(&Device, Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
    ) -> Var {
        self.push(value, move |device, gradient, gradients| {
            for (input, gradient) in inputs.iter().zip(backward(device, gradient)?) {
                if let (Some(input), Some(gradient)) = (input, gradient) {
                    gradients.add(*input, gradient)?;
                }
            }
            Ok(())
        })
    }

    /// The value with its node. `backward` also hears whether `input` gets a gradient, and what its other uses have made of it, and
    /// returns the sum of that and its own: a kernel that can add needs no other to.
    fn record_sum(
        &mut self,
        value: Tensor,
        input: &Var,
        backward: impl FnOnce(Tensor, InputGradient<'_>) -> Result<Option<Tensor>> + 'static,
    ) -> Var {
        let input = input.node;
        self.push(value, move |_, gradient, gradients| {
            let Some(input) = input else { return backward(gradient, InputGradient::Unwanted).map(drop) };
            let sum = gradients.0[input].take();
            let wanted = sum.as_ref().map_or(InputGradient::Alone, |sum| InputGradient::AddedTo(sum.buffer()));
            gradients.0[input] = backward(gradient, wanted)?;
            Ok(())
        })
    }

    fn push(
        &mut self,
        value: Tensor,
        backward: impl FnOnce(&Device, Tensor, &mut Gradients) -> Result<()> + 'static,
    ) -> Var {
        self.nodes.push(Node { backward: Some(Box::new(backward)) });
        Var { tensor: value, node: Some(self.nodes.len() - 1) }
    }

    /// Runs `forward` on `input`; where it is to be recomputed, keeps only `input` of it and runs it again in the backward pass. Where
    /// nothing trains in it or before it, there is none.
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn segment(&mut self, input: Var, forward: impl Fn(&mut Tape, Var) -> Result<Var> + 'static) -> Result<Var> {
        if !self.recording || self.recompute == 0 {
            return forward(self, input);
        }
        self.recompute -= 1;
        let mut dry = Tape::inference(&self.device);
        let output = forward(&mut dry, Var::constant(input.tensor.clone()))?.into_tensor();
        if !input.needs_grad() && !dry.met_trainable {
            return Ok(Var::constant(output));
        }
        let (tensor, wanted) = (input.tensor.clone(), input.needs_grad());
        Ok(self.record(output, &[&input], move |device, gradient| {
            let mut tape = Tape::training(device, 0);
            let leaf = if wanted {
                tape.nodes.push(Node { backward: None });
                Var { tensor, node: Some(0) }
            } else {
                Var::constant(tensor)
            };
            let output = forward(&mut tape, leaf)?;
            Ok(vec![tape.backward(output, gradient)?])
        }))
    }

    /// Runs the tape backwards from `output`, whose gradient is `gradient`. Parameters accumulate theirs. Returns the
    /// gradient of the leaf, where there is one.
    ///
    /// # Errors
    /// Those of the recorded functions.
    pub fn backward(mut self, output: Var, gradient: Tensor) -> Result<Option<Tensor>> {
        let mut gradients = Gradients(Vec::new());
        gradients.0.resize_with(self.nodes.len(), || None);
        let Some(root) = output.node else { return Ok(None) };
        // The output's value is not needed any more; functions downstream own what they saved.
        drop(output);
        gradients.0[root] = Some(gradient);
        while let Some(node) = self.nodes.pop() {
            let Some(gradient) = gradients.0.pop().flatten() else { continue };
            let Some(backward) = node.backward else { return Ok(Some(gradient)) };
            backward(&self.device, gradient, &mut gradients)?;
        }
        Ok(None)
    }
}
