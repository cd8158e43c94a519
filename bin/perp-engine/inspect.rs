//! `inspect`: what a model folder holds.

mod layers;

use std::path::PathBuf;

use engine::checkpoint::{ModelFolder, TensorInfo};
use engine::prune::{Pattern, detect};
use rayon::prelude::*;
use serde_json::json;

use crate::error::{Failure, one_line, print};
use crate::fetch;
use crate::progress::Console;
use crate::tables;

/// List a model's tensors: element type, shape, bytes, the share of zeros in each, and in each decoder layer, and how matrices
/// were pruned, seen from their zeros: n:m or unstructured.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder: config.json and model.safetensors (or shards with an index); or a model of the hub.
    #[arg(value_name = "DIR|ID", required_unless_present = "model")]
    folder: Option<PathBuf>,
    /// The same, as a flag.
    #[arg(long, value_name = "DIR|ID", conflicts_with = "folder")]
    model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Read flags from a TOML file: the names of the flags without dashes. Flags given here win over the file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

struct Row<'a> {
    info: &'a TensorInfo,
    /// Zeros; nothing where the element type is no float.
    zeros: Option<usize>,
    /// How a matrix of a layer was pruned, if it was.
    pattern: Option<Pattern>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let path = args.folder.as_ref().or(args.model.as_ref()).expect("clap asks for one");
    let folder = ModelFolder::open(fetch::model(&Console::new(false), path, true)?)?;
    let tensors: Vec<&TensorInfo> = folder.tensors().collect();
    let rows: Vec<Row<'_>> = tensors
        .into_par_iter()
        .map(|info| {
            let values = info.read_f32().ok();
            let zeros = values.as_ref().map(|values| values.iter().filter(|x| **x == 0.0).count());
            let matrix = values.filter(|_| info.is_layer_matrix());
            Row { info, zeros, pattern: matrix.and_then(|values| detect(&values, info.shape()[1])) }
        })
        .collect();
    let elements: usize = rows.iter().map(|row| row.info.len()).sum();
    let bytes: usize = rows.iter().map(|row| row.info.size_bytes()).sum();
    let matrices = || rows.iter().filter(|row| row.info.is_layer_matrix());
    let prunable: usize = matrices().map(|row| row.info.len()).sum();
    let zeros: usize = matrices().filter_map(|row| row.zeros).sum();
    let mut layers = layers::Layers::default();
    matrices().for_each(|row| layers.add(row.info.name(), row.info.len(), row.zeros.unwrap_or(0)));
    let share = |zeros: usize, of: usize| zeros as f64 / of.max(1) as f64;
    if args.json {
        let tensors: Vec<_> = rows
            .iter()
            .map(|Row { info, zeros, pattern }| {
                json!({
                    "name": info.name(),
                    "dtype": info.dtype_name(),
                    "shape": info.shape(),
                    "bytes": info.size_bytes(),
                    "packed": info.is_packed(),
                    "sparsity": zeros.map(|zeros| share(zeros, info.len())),
                    "pattern": pattern.map(short),
                })
            })
            .collect();
        let all = json!({
            "model": path,
            "model_type": folder.config().get("model_type"),
            "tensors": tensors,
            "parameters": elements,
            "bytes": bytes,
            "layer_matrices": {"parameters": prunable, "sparsity": share(zeros, prunable)},
            "layers": layers.json(),
        });
        return print(&format!("{}\n", serde_json::to_string_pretty(&all).expect("JSON values serialize")));
    }
    let mut table = vec![["tensor", "type", "shape", "size", "zeros", "pattern"].map(String::from).to_vec()];
    for Row { info, zeros, pattern } in &rows {
        let shape = info.shape().iter().map(usize::to_string).collect::<Vec<_>>().join("×");
        let zeros = zeros.map_or("–".into(), |zeros| format!("{:.2} %", 100.0 * share(zeros, info.len())));
        let size = tables::bytes(info.size_bytes() as u64);
        let dtype = info.dtype_name() + if info.is_packed() { " packed" } else { "" };
        let pattern = pattern.map_or("–".into(), short);
        table.push(vec![one_line(info.name()), dtype, shape, size, zeros, pattern]);
    }
    print(&format!(
        "{}\n{}{} tensors, {} parameters, {}; {:.2} % zeros in the {} weights of linear layers inside decoder layers\n{}",
        path.display(),
        tables::columns(&table),
        rows.len(),
        tables::count(elements),
        tables::bytes(bytes as u64),
        100.0 * share(zeros, prunable),
        tables::count(prunable),
        layers.table(),
    ))
}

/// A pattern without the share of zeros, which stands beside it.
fn short(pattern: Pattern) -> String {
    match pattern {
        Pattern::Unstructured { .. } => "unstructured".into(),
        Pattern::NM { .. } => pattern.to_string(),
    }
}
