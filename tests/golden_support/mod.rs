//! Golden files, and the models that go with them.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::autograd::Tape;
use engine::checkpoint::ModelFolder;
use engine::model::{Loader, Lora, LoraForm, Model, Module, Source, TokenBatch, Weight, between_steps};
use engine::peft::TrainSet;
use engine::prune::{Pruning, prune_linear};
use engine::tensor::Param;
use kernels::ops::linear;
use kernels::strips::to_rows;
use kernels::{Category, Device};
use safetensors::{Dtype, SafeTensors};

pub const MODELS: [&str; 5] = ["opt-pre", "opt-post", "llama-gqa", "qwen2", "mistral"];
pub const PATTERNS: [&str; 3] = ["unstructured", "2of4", "4of8"];

/// Where the files lie.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// One golden file, read whole.
pub struct Golden {
    floats: HashMap<String, Vec<f32>>,
    ids: HashMap<String, Vec<u32>>,
    bytes: HashMap<String, Vec<u8>>,
}

impl Golden {
    pub fn find(name: &str) -> Option<Golden> {
        let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).ok()?;
        let file = SafeTensors::deserialize(&bytes).expect("golden files are valid");
        let mut golden = Golden { floats: HashMap::new(), ids: HashMap::new(), bytes: HashMap::new() };
        for (name, view) in file.tensors() {
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let values = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                    golden.floats.insert(name, values);
                }
                Dtype::I64 => {
                    let values = data
                        .chunks_exact(8)
                        .map(|b| u32::try_from(i64::from_le_bytes(b.try_into().unwrap())).unwrap())
                        .collect();
                    golden.ids.insert(name, values);
                }
                Dtype::U8 => {
                    golden.bytes.insert(name, data.to_vec());
                }
                other => panic!("{name}: unexpected {other:?}"),
            }
        }
        Some(golden)
    }

    pub fn open(name: &str) -> Golden {
        Golden::find(name).unwrap_or_else(|| panic!("golden file {name} is there"))
    }

    pub fn try_floats(&self, name: &str) -> Option<Vec<f32>> {
        self.floats.get(name).cloned()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.try_floats(name).unwrap_or_else(|| panic!("{name} is in the golden file"))
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        self.ids[name].clone()
    }

    /// Bits, the first of a byte in its lowest place.
    pub fn bits(&self, name: &str) -> Vec<bool> {
        self.bytes[name].iter().flat_map(|byte| (0..8).map(move |at| byte >> at & 1 == 1)).collect()
    }

    pub fn largest(&self, name: &str) -> f64 {
        largest(&self.floats(name))
    }

    /// Names under a prefix, without it, sorted.
    pub fn names_under(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.floats.keys().filter_map(|name| name.strip_prefix(prefix)).map(str::to_string).collect();
        names.sort();
        names
    }
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |most, x| most.max(f64::from(x.abs())))
}

/// Every value within `tolerance` of the tensor's largest magnitude.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    assert_scaled(what, got, want, tolerance, 0.0);
}

/// Every value within `tolerance` of the tensor's largest magnitude, or of `floor` where that is larger.
pub fn assert_scaled(what: &str, got: &[f32], want: &[f32], tolerance: f64, floor: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = largest(want).max(floor);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - f64::from(*want)).abs();
        assert!(error <= tolerance * scale, "{what}[{i}] = {got}, not {want} (error {error:.2e}, scale {scale:.2e})");
    }
}

/// A golden model, pruned as it is loaded.
pub fn build(device: &Device, name: &str, pruning: Option<Pruning>) -> Box<dyn Model> {
    let folder = ModelFolder::open(folder().join(name)).unwrap();
    let architecture = models::from_config(folder.config()).unwrap();
    let mut loader = Loader::new(device, Source::Folder(&folder));
    if let Some(pruning) = pruning {
        loader = loader.on_linear(move |linear| prune_linear(linear, &pruning));
    }
    architecture.build(&loader).unwrap()
}

/// Attaches the golden adapter's pairs to the layers that `set` names.
pub fn attach_adapter(model: &mut dyn Model, name: &str, set: &TrainSet) {
    let adapter = Golden::open(&format!("{name}/adapter/adapter_model"));
    let device = engine::model::device_of(model);
    let lora = |module: &str, rows: usize, cols: usize| {
        let param = |part: &str, shape: [usize; 2]| {
            let values = adapter.floats(&format!("base_model.model.{module}.lora_{part}.weight"));
            let value = device.upload(Category::Adapters, &values).unwrap();
            Arc::new(Param::new(format!("{module}.lora_{part}.weight"), &shape, value))
        };
        Some(Lora { a: param("A", [4, cols]), b: param("B", [rows, 4]), rank: 4, alpha: 8.0, form: LoraForm::Added })
    };
    model
        .visit(&mut |module| {
            match module {
                Module::Linear(layer) if set.targets.iter().any(|target| target == layer.role()) => {
                    let layer = between_steps(layer);
                    layer.lora = lora(&layer.name, layer.weight.rows(), layer.weight.cols());
                }
                Module::Head(head) if set.head => {
                    head.lora = lora("lm_head", head.weight.rows(), head.weight.cols());
                }
                _ => {}
            }
            Ok(())
        })
        .unwrap();
}

/// The entries that are not zero are those that the golden mask keeps.
pub fn assert_masks(model: &mut dyn Model, golden: &Golden, what: &str) {
    let mut checked = 0;
    model
        .visit(&mut |module| {
            if let Module::Linear(layer) = module
                && layer.prunable
            {
                let want = &golden.bytes[&format!("mask.{}.weight", layer.name)];
                let (rows, cols) = (layer.weight.rows(), layer.weight.cols());
                let Weight::Frozen(weight) = &layer.weight else { panic!("{what}: nothing trains yet") };
                for (i, x) in weight.to_f32()?.into_iter().enumerate() {
                    let (row, col) = (i / cols, i % cols);
                    assert_eq!(x != 0.0, want[i] == 1, "{what}: {}[{row}, {col}]", layer.name);
                }
                assert_eq!(want.len(), rows * cols);
                checked += 1;
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(checked, golden.bytes.len(), "{what}: every mask was checked");
}

/// Logits `[N, V]` by the head's linear layer.
pub fn logits(model: &dyn Model, batch: &TokenBatch) -> Vec<f32> {
    let head = model.head();
    let device = head.device();
    let hidden = model.forward(&mut Tape::inference(&device), batch).unwrap();
    let lora = head.lora.as_ref().map(Lora::values);
    let lora = lora.as_ref().map(|lora| lora.borrow());
    let (x, n) = (hidden.tensor().buffer(), hidden.tensor().rows());
    let logits = head.weight.with_ref(|weight| linear::forward(&device, x, n, weight, None, lora)).unwrap().y;
    to_rows(logits.f32(), n, head.weight.rows())
}
