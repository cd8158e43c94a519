//! How many entries of each matrix go: the same share of all, or, layer by layer, more of one and less of another.
//!
//! OWL: Yin et al. 2024, "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity"
//! (arXiv 2310.05175), section 3.2. A layer with more outliers among its scores keeps more of its weights.

use std::collections::BTreeMap;

use super::{Error, Pattern, Pruning, Result, imp_sparsity};
use crate::model::{Model, Module};

/// A matrix that pruning works on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The module path of its linear layer.
    pub name: String,
    /// The decoder layer that it is in.
    pub layer: usize,
    /// Its entries.
    pub entries: usize,
}

impl Matrix {
    /// The last part of its path, such as `q_proj`.
    pub fn role(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// Every matrix that pruning works on, in the order of [`Model::visit`].
pub fn matrices(model: &mut dyn Model) -> Vec<Matrix> {
    let mut all = Vec::new();
    let shown = model.visit(&mut |module| {
        if let Module::Linear(linear) = module
            && linear.prunable
        {
            let entries = linear.weight.rows() * linear.weight.cols();
            all.push(Matrix { name: linear.name.clone(), layer: linear.layer().unwrap_or(0), entries });
        }
        Ok(())
    });
    debug_assert!(shown.is_ok(), "the closure returns no error");
    all
}

/// Of each matrix, the share of its entries that goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    /// By module path; empty where all have the same.
    sparsities: BTreeMap<String, f64>,
}

impl Allocation {
    /// The same share of every matrix: what [`Pruning`] says.
    pub fn uniform() -> Allocation {
        Allocation::default()
    }

    /// A share of its own for each matrix.
    ///
    /// # Errors
    /// A share outside [0, 1).
    pub fn of(sparsities: impl IntoIterator<Item = (String, f64)>) -> Result<Allocation> {
        let sparsities: BTreeMap<String, f64> = sparsities.into_iter().collect();
        sparsities.values().try_for_each(|sparsity| Pattern::unstructured(*sparsity).map(drop))?;
        Ok(Allocation { sparsities })
    }

    /// A share for each decoder layer, which all its matrices get.
    ///
    /// # Errors
    /// A share outside [0, 1).
    ///
    /// # Panics
    /// If there are fewer shares than layers.
    pub fn of_layers(matrices: &[Matrix], layers: &[f64]) -> Result<Allocation> {
        Allocation::of(matrices.iter().map(|matrix| (matrix.name.clone(), layers[matrix.layer])))
    }

    /// True where all matrices have the same share.
    pub fn is_uniform(&self) -> bool {
        self.sparsities.is_empty()
    }

    /// How the matrix of this module path is pruned where `pruning` says it for all.
    pub fn pruning(&self, pruning: &Pruning, name: &str) -> Pruning {
        match self.sparsities.get(name) {
            Some(sparsity) => Pruning { pattern: Pattern::Unstructured { sparsity: *sparsity }, ..*pruning },
            None => *pruning,
        }
    }

    /// What is gone after cycle `cycle` (from 1) of `cycles` toward this: each removes the same share of what is left of a matrix.
    pub fn after(&self, cycle: usize, cycles: usize) -> Allocation {
        let after = |(name, sparsity): (&String, &f64)| (name.clone(), imp_sparsity(*sparsity, cycle, cycles));
        Allocation { sparsities: self.sparsities.iter().map(after).collect() }
    }

    /// The share of all entries that goes; `otherwise` of matrices without a share of their own.
    pub fn mean(&self, matrices: &[Matrix], otherwise: f64) -> f64 {
        let share = |matrix: &Matrix| self.sparsities.get(&matrix.name).copied().unwrap_or(otherwise);
        weighted(matrices.iter().map(|matrix| (share(matrix), matrix.entries)))
    }

    /// The share of each decoder layer's entries that goes, as [`mean`](Self::mean).
    pub fn layers(&self, matrices: &[Matrix], otherwise: f64) -> Vec<f64> {
        let layers = matrices.iter().map(|matrix| matrix.layer + 1).max().unwrap_or(0);
        let within = |layer| matrices.iter().filter(move |matrix| matrix.layer == layer).cloned().collect::<Vec<_>>();
        (0..layers).map(|layer| self.mean(&within(layer), otherwise)).collect()
    }
}

/// OWL's two numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Owl {
    /// M: an outlier is a score above M times the mean of its layer's.
    pub m: f64,
    /// λ: how far layers' sparsities may lie apart is 2λ.
    pub lambda: f64,
}

impl Owl {
    /// The sparsity of each decoder layer: 1 − (2λ·(D − min D)/(max D − min D) + c), D being the layer's share of outliers, and c
    /// such that the mean over all weights is `sparsity`. Where all layers have the same share, all get `sparsity`.
    ///
    /// # Errors
    /// [`Error::OwlRange`] where a layer's would be outside [0, 1).
    ///
    /// # Panics
    /// If `outliers` is not one share a layer.
    pub fn sparsities(self, outliers: &[f64], matrices: &[Matrix], sparsity: f64) -> Result<Vec<f64>> {
        let mut entries = vec![0; outliers.len()];
        matrices.iter().for_each(|matrix| entries[matrix.layer] += matrix.entries);
        let (least, most) = outliers.iter().fold((f64::MAX, f64::MIN), |(a, b), d| (a.min(*d), b.max(*d)));
        let spread = if most > least { 2.0 * self.lambda / (most - least) } else { 0.0 };
        let kept: Vec<f64> = outliers.iter().map(|d| (d - least) * spread).collect();
        let mean = weighted(kept.iter().copied().zip(entries));
        let sparsities: Vec<f64> = kept.iter().map(|kept| sparsity - (kept - mean)).collect();
        let Some(layer) = sparsities.iter().position(|s| !(0.0..1.0).contains(s)) else { return Ok(sparsities) };
        // What a layer is away from the mean grows with λ.
        let room = |s: &f64| if *s < sparsity { sparsity / (sparsity - s) } else { (1.0 - sparsity) / (s - sparsity) };
        let room = sparsities.iter().map(room).fold(1.0, f64::min);
        Err(Error::OwlRange { layer, sparsity: sparsities[layer], largest: self.lambda * room })
    }
}

/// The mean of values with weights; 0 of none.
fn weighted(values: impl Iterator<Item = (f64, usize)>) -> f64 {
    let (sum, weights) = values.fold((0.0, 0), |(sum, all), (x, weight)| (sum + x * weight as f64, all + weight));
    if weights == 0 { 0.0 } else { sum / weights as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prune::Criterion;

    /// One matrix a layer.
    fn layers(entries: &[usize]) -> Vec<Matrix> {
        let matrix = |(layer, entries): (usize, &usize)| Matrix {
            name: format!("layers.{layer}.fc1"),
            layer,
            entries: *entries,
        };
        entries.iter().enumerate().map(matrix).collect()
    }

    proptest! {
        #[test]
        fn owl_keeps_the_mean_and_its_bounds_and_gives_more_outliers_more_weights(
            outliers in prop::collection::vec((0.0..0.2f64, 1..1000usize), 1..40),
            sparsity in 0.0..0.99f64,
            lambda in 0.0..0.2f64,
        ) {
            let (outliers, entries): (Vec<f64>, Vec<usize>) = outliers.into_iter().unzip();
            let matrices = layers(&entries);
            match (Owl { m: 5.0, lambda }).sparsities(&outliers, &matrices, sparsity) {
                Ok(got) => {
                    // f64 sums of at most 40 terms below 1,000, over their weights.
                    let all = Allocation::of_layers(&matrices, &got).unwrap();
                    prop_assert!((all.mean(&matrices, 0.0) - sparsity).abs() < 1e-12);
                    prop_assert!(got.iter().all(|s| (s - sparsity).abs() <= 2.0 * lambda + 1e-12));
                    for (a, b) in outliers.iter().zip(&got).flat_map(|a| outliers.iter().zip(&got).map(move |b| (a, b))) {
                        prop_assert!(a.0 <= b.0 || a.1 <= b.1, "{a:?} {b:?}");
                    }
                }
                Err(Error::OwlRange { layer, sparsity: s, largest }) => {
                    prop_assert!(!(0.0..1.0).contains(&s) && layer < outliers.len() && largest < lambda);
                    // What the error says fits; the largest itself lies on the bound.
                    let owl = Owl { m: 5.0, lambda: largest * 0.999 };
                    prop_assert!(owl.sparsities(&outliers, &matrices, sparsity).is_ok());
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn cycles_end_at_the_allocation_and_never_bring_a_weight_back(
            shares in prop::collection::vec(0.0..0.999f64, 1..20),
            cycles in 1..6usize,
        ) {
            let all = Allocation::of(shares.iter().enumerate().map(|(i, s)| (i.to_string(), *s))).unwrap();
            prop_assert_eq!(&all.after(cycles, cycles), &all);
            for cycle in 1..cycles {
                let (before, after) = (all.after(cycle, cycles), all.after(cycle + 1, cycles));
                prop_assert!(before.sparsities.iter().all(|(name, s)| *s <= after.sparsities[name]));
            }
        }
    }

    #[test]
    fn layers_with_equal_outliers_are_pruned_alike() {
        let matrices = layers(&[10, 20, 30]);
        let owl = Owl { m: 5.0, lambda: 0.08 };
        assert_eq!(owl.sparsities(&[0.01; 3], &matrices, 0.7).unwrap(), [0.7; 3]);
        let error = owl.sparsities(&[0.01, 0.02, 0.03], &matrices, 0.0).unwrap_err().to_string();
        assert!(error.contains("layer 2") && error.contains("--owl-lambda below 0.0000"), "{error}");
    }

    #[test]
    fn a_matrix_has_its_own_share_and_the_others_the_run_s() {
        let uniform = Pruning { criterion: Criterion::Wanda, pattern: Pattern::NM { n: 2, m: 4 }, seed: 7 };
        let all = Allocation::of([("layers.1.fc1".to_string(), 0.25)]).unwrap();
        assert_eq!(all.pruning(&uniform, "layers.0.fc1"), uniform);
        let own = Pruning { pattern: Pattern::Unstructured { sparsity: 0.25 }, ..uniform };
        assert_eq!(all.pruning(&uniform, "layers.1.fc1"), own);
        let matrices = layers(&[100, 300]);
        assert_eq!(all.mean(&matrices, 0.5), (50.0 + 75.0) / 400.0);
        assert_eq!(all.layers(&matrices, 0.5), [0.5, 0.25]);
        assert!(Allocation::of([("a".to_string(), 1.0)]).is_err());
    }
}
