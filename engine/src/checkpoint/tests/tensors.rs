use std::borrow::Cow;

use half::{bf16, f16};
use kernels::device::{Backend, Category, DType, Device};

use super::super::{ModelFolder, NewTensor, WeightFormat};
use super::*;

const ELEMENTS: usize = 60;

/// The same values in every weight type.
fn model() -> TempDir {
    let dir = single_file_model(&[]);
    let path = dir.path().join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    let v = values(ELEMENTS);
    let half: Vec<f16> = v.iter().map(|&x| f16::from_f32(x)).collect();
    let brain: Vec<bf16> = v.iter().map(|&x| bf16::from_f32(x)).collect();
    let tensors = vec![
        NewTensor::f32("f32", [6, 10], &v),
        NewTensor::new("f16", DType::F16, [6, 10], || Ok(Cow::Borrowed(bytemuck::cast_slice(&half)))),
        NewTensor::new("bf16", DType::BF16, [6, 10], || Ok(Cow::Borrowed(bytemuck::cast_slice(&brain)))),
    ];
    write_weight_file(&SystemDisk, &path, tensors, WeightFormat::HuggingFace).unwrap();
    dir
}

#[test]
fn every_weight_type_reads_as_the_same_f32() {
    let dir = model();
    let folder = ModelFolder::open(dir.path()).unwrap();
    let device = Device::cpu();
    for (name, dtype) in [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)] {
        let info = folder.expect(name, &[6, 10]).unwrap();
        assert_eq!(info.dtype().unwrap(), dtype);
        assert_eq!(info.size_bytes(), ELEMENTS * dtype.size());
        assert_eq!(info.read_f32().unwrap(), values(ELEMENTS));
        let owned = info.load_f32(&device, Category::Adapters).unwrap();
        assert_eq!(owned.f32(), values(ELEMENTS));
        let mapped = info.load(&device, Category::Weights).unwrap();
        assert_eq!(mapped.dtype(), dtype);
        assert_eq!(mapped.bytes(), &info.bytes().unwrap()[..]);
    }
}

#[test]
fn a_header_of_odd_length_leaves_data_that_still_reads() {
    let dir = single_file_model(&[]);
    let half: Vec<u8> = values(4).iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    for pad in 0..4 {
        let header = format!(r#"{{"a":{{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}}}{}"#, " ".repeat(pad));
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &half].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let folder = ModelFolder::open(dir.path()).unwrap();
        let info = folder.expect("a", &[4]).unwrap();
        assert_eq!(info.read_f32().unwrap(), values(4));
        let buffer = info.load(&Device::cpu(), Category::Weights).unwrap();
        assert_eq!(buffer.as_slice::<f16>()[3].to_f32(), values(4)[3]);
    }
}

#[test]
fn meta_accounts_what_the_cpu_takes() {
    let dir = model();
    let folder = ModelFolder::open(dir.path()).unwrap();
    let taken = |device: &Device| {
        let before = device.memory().in_use();
        let info = folder.tensor("bf16").unwrap();
        let _frozen = info.load(device, Category::Weights).unwrap();
        let _trained = info.load_f32(device, Category::Weights).unwrap();
        device.memory().in_use() - before
    };
    // 2 bytes an element as they lie in the file, 4 in f32.
    assert_eq!(taken(&Device::cpu()), 6 * ELEMENTS as u64);
    assert_eq!(taken(&Device::meta(Backend::Cpu, 1)), 6 * ELEMENTS as u64);
}

#[test]
fn a_device_without_room_names_the_tensor() {
    let dir = model();
    let folder = ModelFolder::open(dir.path()).unwrap();
    let device = Device::cpu_with_limit(0);
    let info = folder.tensor("f32").unwrap();
    assert_message(info.load(&device, Category::Weights), &["tensor f32", "out of memory"]);
    assert_message(info.load_f32(&device, Category::Weights), &["tensor f32", "out of memory"]);
}
