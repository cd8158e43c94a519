//! Weight files, their index, configurations and adapters.

use engine::checkpoint::{Adapter, ModelFolder};
use engine::model::{self, Loader, Source};
use kernels::DType;
use kernels::device::{Backend, Category, Device};
use kernels::weight::PackedRows;

use super::bounded::within;
use super::scratch;

/// Heap for what is at most some megabytes in a file of some kilobytes.
const MEMORY: usize = 64 << 20;

/// A safetensors file: header, offsets, shapes, types, names. What is taken for good lies in the file.
pub fn weights(bytes: &[u8]) {
    scratch::fixed("config.json", b"{}");
    scratch::file("model.safetensors", bytes);
    within(MEMORY, || {
        let Ok(folder) = ModelFolder::open(scratch::folder()) else { return };
        let mut places: Vec<(usize, usize)> = Vec::new();
        for info in folder.tensors() {
            assert!(info.offset() + info.size_bytes() <= bytes.len(), "{info:?} leaves its file");
            let stored = info.bytes().expect("it is not packed");
            assert_eq!(stored, &bytes[info.offset()..][..info.size_bytes()]);
            places.push((info.offset(), info.offset() + info.size_bytes()));
            if let Ok(values) = info.read_f32() {
                assert_eq!(values.len(), info.len());
            }
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors overlap");
        assert_eq!(folder.names().count(), places.len());
        assert!(!folder.hash().is_empty());
        let _ = folder.first_not_finite();
    });
}

/// model-packed.safetensors: matrices in parts. What is taken for good is a matrix, the same by its parts, unpacked and as a
/// product's operand.
pub fn packed(bytes: &[u8]) {
    scratch::fixed("config.json", b"{}");
    scratch::file("model-packed.safetensors", bytes);
    within(MEMORY, || {
        let Ok(folder) = ModelFolder::open(scratch::folder()) else { return };
        for info in folder.tensors().filter(|info| info.is_packed()) {
            let [rows, cols] = info.shape()[..] else { panic!("{info:?} is packed and no matrix") };
            let weight = info.load_weight(&Device::cpu(), Category::Weights);
            let Ok(parts) = info.packed_rows() else {
                return assert!(weight.is_err(), "{info:?} is loaded but not read");
            };
            let (parts, weight) = (parts.expect("it is packed"), weight.expect("its parts belong together"));
            let dense = info.bytes().expect("its parts belong together");
            assert_eq!(weight.to_bytes().expect("it is in memory"), *dense);
            let mask = weight.mask().expect("it is in memory").expect("it is packed");
            assert_eq!(mask, parts.mask(rows, cols));
            let stored: usize = mask.iter().map(|word| word.count_ones() as usize).sum();
            assert_eq!(stored, weight.stored());
            if cols > 0 {
                let size = weight.dtype().size();
                assert_eq!(PackedRows::pack(&dense, cols, size).unpack(rows, cols, size), *dense);
            }
        }
        let _ = folder.first_not_finite();
    });
}

/// A safetensors file of one tensor.
fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
}

/// model.safetensors.index.json beside two shards. No tensor comes from elsewhere.
pub fn index(bytes: &[u8]) {
    scratch::fixed("config.json", b"{}");
    scratch::fixed("a.safetensors", &shard("a"));
    scratch::fixed("b.safetensors", &shard("b"));
    scratch::file("model.safetensors.index.json", bytes);
    within(MEMORY, || {
        let Ok(folder) = ModelFolder::open(scratch::folder()) else { return };
        for info in folder.tensors() {
            assert_eq!(info.file().parent(), Some(scratch::folder()));
        }
    });
}

/// The most decoder layers of a configuration that is built as far as a plan.
const LAYERS: usize = 4;

/// config.json of any family, what it says of the weights' form, and, where it is small, the network and its plan.
pub fn config(bytes: &[u8]) {
    let path = scratch::file("config.json", bytes);
    scratch::fixed("model.safetensors", &shard("a"));
    within(MEMORY, || {
        let Ok(value) = ModelFolder::read_config(path) else { return };
        // Refuses weights in another program's form.
        if let Err(error) = ModelFolder::open(scratch::folder()) {
            assert!(!error.to_string().is_empty());
        }
        let architecture = match models::from_config(&value) {
            Ok(architecture) => architecture,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        assert!(architecture.init_std().is_finite());
        let info = architecture.info();
        assert!(info.layers > 0 && info.vocab > 0);
        if info.layers > LAYERS {
            return;
        }
        let loader = Loader::new(&Device::meta(Backend::Cpu, 1), Source::Absent(DType::F16));
        if let Ok(mut network) = architecture.build(&loader) {
            assert!(model::count(&mut *network).base > 0);
        }
    });
}

const ADAPTER_CONFIG: &[u8] = br#"{"peft_type":"LORA","r":1,"lora_alpha":2,"target_modules":["q"]}"#;

/// An adapter's weights: two matrices of one entry.
fn pair() -> Vec<u8> {
    let header = r#"{"base_model.model.q.lora_A.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"base_model.model.q.lora_B.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
}

fn adapter() {
    within(MEMORY, || {
        let Ok(adapter) = Adapter::open(scratch::folder()) else { return };
        assert!(!adapter.modules.is_empty());
        for (module, pair) in &adapter.modules {
            assert_eq!((pair.a.shape()[0], pair.b.shape()[1]), (pair.rank, pair.rank), "{module}");
            assert!(pair.rank > 0 && (pair.alpha as f32).is_finite());
        }
        let _ = adapter.first_not_finite();
    });
}

/// adapter_config.json.
pub fn adapter_config(bytes: &[u8]) {
    scratch::fixed("adapter_model.safetensors", &pair());
    scratch::file("adapter_config.json", bytes);
    adapter();
}

/// adapter_model.safetensors.
pub fn adapter_weights(bytes: &[u8]) {
    scratch::fixed("adapter_config.json", ADAPTER_CONFIG);
    scratch::file("adapter_model.safetensors", bytes);
    adapter();
}
