//! The share of zeros in each decoder layer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::tables;

/// Weights and zeros of each decoder layer.
#[derive(Debug, Default)]
pub struct Layers {
    by_layer: BTreeMap<usize, (usize, usize)>,
}

impl Layers {
    /// Adds a matrix inside a decoder layer by its name, its entries, and how many of them are zero.
    pub fn add(&mut self, name: &str, entries: usize, zeros: usize) {
        if let Some(layer) = name.split('.').find_map(|part| part.parse().ok()) {
            let of = self.by_layer.entry(layer).or_default();
            *of = (of.0 + entries, of.1 + zeros);
        }
    }

    /// For JSON.
    pub fn json(&self) -> Value {
        let layer = |(layer, (entries, zeros)): (&usize, &(usize, usize))| json!({"layer": layer, "parameters": entries, "sparsity": share(*zeros, *entries)});
        self.by_layer.iter().map(layer).collect()
    }

    /// A table; nothing where no weight is zero.
    pub fn table(&self) -> String {
        if self.by_layer.values().all(|(_, zeros)| *zeros == 0) {
            return String::new();
        }
        let mut rows = vec![["layer", "weights", "zeros"].map(String::from).to_vec()];
        for (layer, (entries, zeros)) in &self.by_layer {
            let zeros = format!("{:.2} %", 100.0 * share(*zeros, *entries));
            rows.push(vec![layer.to_string(), tables::count(*entries), zeros]);
        }
        format!("\n{}", tables::columns(&rows))
    }
}

fn share(zeros: usize, of: usize) -> f64 {
    zeros as f64 / of.max(1) as f64
}
