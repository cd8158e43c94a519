//! What pruning and retraining made of a model's matrices, beside those in the folder it came from.

use rayon::prelude::*;

use super::load::find;
use super::{Linear, Lora, LoraForm, Model, Module, Weight};
use crate::checkpoint::ModelFolder;
use crate::error::Result;

/// What became of a prunable matrix D of the folder, which is now W with the zeros of a mask M, and an adapter beside or
/// inside it where it has one. Norms are Frobenius'.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixChange {
    /// Its module path.
    pub name: String,
    /// The decoder layer that it is in.
    pub layer: Option<usize>,
    /// Its number of entries.
    pub entries: usize,
    /// Zeros of W.
    pub zeros: usize,
    /// ‖D‖.
    pub dense_norm: f64,
    /// ‖D − M⊙D‖: what pruning took away.
    pub removed_norm: f64,
    /// ‖W' − M⊙D‖, W' being W with its adapter ([`LoraForm`]): what training changed in what was left, and SparseGPT's update.
    pub changed_norm: f64,
}

/// The changes of every prunable matrix, in the order of [`Model::visit`]. Each is read whole into the host's memory, one after
/// the other.
///
/// # Errors
/// A matrix that `folder` does not have, or the GPU's.
pub fn changes(model: &mut dyn Model, folder: &ModelFolder) -> Result<Vec<MatrixChange>> {
    let mut all = Vec::new();
    model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            all.push(change(linear, folder)?);
        }
        Ok(())
    })?;
    Ok(all)
}

fn change(linear: &Linear, folder: &ModelFolder) -> Result<MatrixChange> {
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let dense = find(folder, &format!("{}.weight", linear.name), &[rows, cols])?.read_f32()?;
    let now = match &linear.weight {
        Weight::Frozen(weight) => weight.to_f32()?,
        Weight::Offloaded(weight) => weight.bring()?.to_f32()?,
        Weight::Trainable(param) => param.value().download::<f32>()?,
    };
    let update = linear.lora.as_ref().map(Update::of).transpose()?;
    let sums: Vec<[f64; 4]> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let part = row * cols..(row + 1) * cols;
            let product = update.as_ref().map(|update| (update.form, update.row(row, cols)));
            let mut sums = [0.0; 4];
            for (col, (d, w)) in dense[part.clone()].iter().zip(&now[part]).enumerate() {
                let (d, w) = (f64::from(*d), f64::from(*w));
                let (kept, removed) = if w == 0.0 { (0.0, d) } else { (d, 0.0) };
                let changed = product.as_ref().map_or(w, |(form, product)| adapted(*form, w, product[col])) - kept;
                sums[0] += f64::from(u8::from(w == 0.0));
                sums[1] += d * d;
                sums[2] += removed * removed;
                sums[3] += changed * changed;
            }
            sums
        })
        .collect();
    // Row by row, so that the number of threads changes no bit.
    let [zeros, dense, removed, changed] = sums.iter().fold([0.0; 4], |a, b| std::array::from_fn(|i| a[i] + b[i]));
    Ok(MatrixChange {
        name: linear.name.clone(),
        layer: linear.layer(),
        entries: rows * cols,
        zeros: zeros as usize,
        dense_norm: dense.sqrt(),
        removed_norm: removed.sqrt(),
        changed_norm: changed.sqrt(),
    })
}

/// An entry w with its adapter, whose product there is p: s·B·A, or B·A where it scales.
fn adapted(form: LoraForm, w: f64, p: f64) -> f64 {
    match form {
        LoraForm::Added => w + p,
        LoraForm::Masked if w == 0.0 => 0.0,
        LoraForm::Masked => w + p,
        LoraForm::Scaled => w * p,
    }
}

/// An adapter's product, a row at a time.
struct Update {
    form: LoraForm,
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f64,
}

impl Update {
    fn of(lora: &Lora) -> Result<Update> {
        let (a, b) = (lora.a.value().download::<f32>()?, lora.b.value().download::<f32>()?);
        let scale = if lora.form == LoraForm::Scaled { 1.0 } else { f64::from(lora.scale()) };
        Ok(Update { form: lora.form, a, b, rank: lora.rank, scale })
    }

    fn row(&self, row: usize, cols: usize) -> Vec<f64> {
        let mut out = vec![0.0; cols];
        for (a, b) in self.a.chunks(cols.max(1)).zip(&self.b[row * self.rank..(row + 1) * self.rank]) {
            let factor = self.scale * f64::from(*b);
            out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * f64::from(*a));
        }
        out
    }
}
