//! What a criterion needs of linear layers' inputs, summed while a decoder layer runs.

use std::collections::HashMap;
use std::sync::Weak;

use half::{bf16, f16};
use kernels::ops::linear as op;
use kernels::strips::{Strips, strips};
use kernels::{Backend, Buffer, Category, DType};
use rayon::prelude::*;

use crate::error::Result;
use crate::model::Linear;
use crate::prune::{Criterion, Hessian, InputNorms, Inputs};
use crate::tensor::Tensor;

/// Sums over the inputs of a decoder layer's linear layers. Layers that are given the very same tensor (queries, keys and
/// values; a gate and what it gates) share their sums.
#[derive(Default)]
pub(super) struct Collector {
    gram: bool,
    groups: Vec<Group>,
    /// The group of each linear layer that is the first of its group, none for the others.
    leaders: HashMap<String, Option<usize>>,
    /// What the last linear layer was given.
    last: Option<Weak<Buffer>>,
}

/// Linear layers with the same input.
pub(super) struct Group {
    /// Their module paths.
    pub names: Vec<String>,
    /// The sums over their input.
    pub sums: Sums,
}

/// Sums over an input x of many tokens.
pub(super) enum Sums {
    /// Σ x_j² `[in]`, and the tokens.
    Squares(Vec<f64>, usize),
    /// Σ x·xᵀ `[in, in]`, f32 on the device.
    Gram(Buffer),
}

impl Collector {
    pub fn new(criterion: Criterion) -> Collector {
        Collector { gram: criterion == Criterion::SparseGpt, ..Collector::default() }
    }

    /// Adds the input `[N, in]` of a linear layer.
    pub fn add(&mut self, linear: &Linear, input: &Tensor) -> Result<()> {
        if !linear.prunable {
            return Ok(());
        }
        let group = match self.leaders.get(&linear.name) {
            Some(group) => *group,
            None => self.meet(linear, input)?,
        };
        group.map_or(Ok(()), |group| self.groups[group].sums.add(input))
    }

    /// The first input of a layer: decides whose sums it shares. Returns the group that it leads.
    fn meet(&mut self, linear: &Linear, input: &Tensor) -> Result<Option<usize>> {
        let mark = input.mark();
        let shares = self.last.as_ref().is_some_and(|last| last.ptr_eq(&mark));
        self.last = Some(mark);
        let leads = if shares {
            self.groups.last_mut().expect("of the last layer").names.push(linear.name.clone());
            None
        } else {
            let (device, cols) = (input.buffer().device(), input.cols());
            let sums = if self.gram {
                Sums::Gram(device.zeros(Category::Workspace, DType::F32, cols * cols)?)
            } else {
                Sums::Squares(vec![0.0; cols], 0)
            };
            self.groups.push(Group { names: vec![linear.name.clone()], sums });
            Some(self.groups.len() - 1)
        };
        self.leaders.insert(linear.name.clone(), leads);
        Ok(leads)
    }

    /// All sums.
    pub fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}

impl Sums {
    fn add(&mut self, x: &Tensor) -> Result<()> {
        match self {
            Sums::Squares(squares, tokens) => {
                *tokens += x.rows();
                add_squares(x, squares)
            }
            // The gradient of a weight for which dy is x: Σ x·xᵀ.
            Sums::Gram(gram) => {
                let device = gram.device().clone();
                Ok(op::weight_gradient(&device, x.buffer(), x.buffer(), x.rows(), gram)?)
            }
        }
    }

    /// Made ready for the criterion. `samples` sequences were summed; `tensor` names the weight in errors.
    pub fn into_inputs(self, samples: usize, tensor: &str) -> Result<Inputs> {
        Ok(match self {
            Sums::Squares(squares, tokens) => Inputs::Norms(InputNorms::new(&squares, tokens, tensor)?),
            Sums::Gram(gram) => {
                let cols = gram.len().isqrt();
                Inputs::Hessian(Hessian::new(&gram.read::<f32>()?, cols, samples, tensor)?)
            }
        })
    }
}

/// squares[j] += Σ over tokens of x_j², in f64 and in an order that the shape decides.
fn add_squares(x: &Tensor, squares: &mut [f64]) -> Result<()> {
    let (tokens, features, buffer) = (x.rows(), x.cols(), x.buffer());
    if buffer.device().backend() == Backend::Cpu {
        let x = Strips::new(buffer.f32(), tokens, features);
        squares.par_iter_mut().enumerate().for_each(|(j, sum)| {
            *sum += strips(tokens).map(|strip| sum_of_squares(&x.rows(strip, j)[..strip.width])).sum::<f64>();
        });
        return Ok(());
    }
    let mut add_row = |row: &mut dyn Iterator<Item = f32>| {
        squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x) * f64::from(x));
    };
    match buffer.dtype() {
        DType::BF16 => {
            buffer.read::<bf16>()?.chunks(features).for_each(|row| add_row(&mut row.iter().map(|x| x.to_f32())))
        }
        DType::F16 => {
            buffer.read::<f16>()?.chunks(features).for_each(|row| add_row(&mut row.iter().map(|x| x.to_f32())))
        }
        _ => buffer.read::<f32>()?.chunks(features).for_each(|row| add_row(&mut row.iter().copied())),
    }
    Ok(())
}

/// In eight sums, so that it goes by vectors.
fn sum_of_squares(x: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    for x in x.chunks(LANES) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    sums.iter().sum()
}
