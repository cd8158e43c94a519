//! Packed folders: what is written comes back, and every damage is named.

use std::collections::BTreeMap;

use half::f16;
use kernels::device::{Category, DType, Device};
use kernels::weight::FrozenWeight;

use super::super::{ModelFolder, OutputFolder};
use super::*;
use crate::model;

const NAME: &str = "model.layers.0.fc1.weight";

/// A dense folder with a half-empty f16 matrix in a layer, a full one, and a vector.
fn dense_folder(rows: usize, cols: usize) -> TempDir {
    let dir = single_file_model(&[]);
    let path = dir.path().join("model.safetensors");
    std::fs::remove_file(&path).unwrap();
    // Two of every four, at places that move: a negative zero among the kept.
    let half: Vec<f16> = (0..rows * cols)
        .map(|i| match (i * 7 + i / cols) % 4 {
            0 => f16::from_f32(1.0 + (i % 50) as f32),
            1 => f16::from_f32(if i % 3 == 0 { -0.0 } else { -2.5 }),
            _ => f16::ZERO,
        })
        .collect();
    let full = values(6 * 8).iter().map(|x| x + 100.0).collect::<Vec<_>>();
    let tensors = vec![
        NewTensor::new(NAME, DType::F16, [rows, cols], || Ok(bytemuck::cast_slice(&half).into())),
        NewTensor::f32("model.layers.0.fc2.weight", [6, 8], &full),
        NewTensor::f32("model.layers.0.fc1.bias", [8], &full[..8]),
    ];
    write_weight_file(&SystemDisk, &path, tensors, WeightFormat::HuggingFace).unwrap();
    dir
}

fn converted(from: &Path, to: &Path, format: WeightFormat) -> ModelFolder {
    let out = OutputFolder::create(to).unwrap();
    model::convert(&ModelFolder::open(from).unwrap(), &out, format).unwrap();
    out.commit().unwrap();
    ModelFolder::open(to).unwrap()
}

#[test]
fn a_model_comes_back_bit_for_bit_and_takes_9_2_bits_a_weight() {
    let (rows, cols) = (96, 512);
    let dense = dense_folder(rows, cols);
    let before = std::fs::read(dense.path().join("model.safetensors")).unwrap();
    let packed = converted(dense.path(), &dense.path().join("packed"), WeightFormat::Packed);
    assert_eq!(listing(packed.path()), ["config.json", "model-packed.safetensors"]);
    let info = packed.expect(NAME, &[rows, cols]).unwrap();
    assert!(info.is_packed() && !packed.tensor("model.layers.0.fc2.weight").unwrap().is_packed());
    let bits = 8.0 * info.size_bytes() as f64 / (rows * cols) as f64;
    assert!(bits <= 9.2, "{bits} bits a weight");
    // And packed again, from packed.
    let again = converted(packed.path(), &dense.path().join("again"), WeightFormat::Packed);
    let read = |folder: &ModelFolder| std::fs::read(folder.path().join("model-packed.safetensors")).unwrap();
    assert!(read(&packed) == read(&again));
    let back = converted(packed.path(), &dense.path().join("back"), WeightFormat::HuggingFace);
    assert!(std::fs::read(back.path().join("model.safetensors")).unwrap() == before);
    assert_ne!(packed.hash(), back.hash());
}

#[test]
fn a_packed_matrix_is_multiplied_where_it_stands_in_the_file() {
    for (rows, cols) in [(8, 64), (5, 300), (3, 7)] {
        let dir = dense_folder(rows, cols);
        let dense = ModelFolder::open(dir.path()).unwrap();
        let packed = converted(dir.path(), &dir.path().join("packed"), WeightFormat::Packed);
        let (info, device) = (packed.tensor(NAME).unwrap(), Device::cpu());
        if !info.is_packed() {
            assert_eq!(cols, 7, "a row of 7 takes a word of 64 bits: it stays dense");
            continue;
        }
        let before = device.memory().in_use();
        let weight = info.load_weight(&device, Category::Weights).unwrap();
        assert!(matches!(weight, FrozenWeight::Sparse(_)));
        let (held, stored) = (weight.to_packed_rows().unwrap(), info.packed_rows().unwrap().unwrap());
        assert_eq!(held.bits.as_ptr(), stored.bits.as_ptr());
        assert_eq!(held.starts.as_ptr(), stored.starts.as_ptr());
        assert_eq!(held.values.as_ptr(), stored.values.as_ptr());
        // Its shape is not among what it holds.
        assert_eq!(device.memory().in_use() - before, info.size_bytes() as u64);
        let want = dense.tensor(NAME).unwrap();
        assert_eq!(weight.to_bytes().unwrap(), &want.bytes().unwrap()[..]);
        assert_eq!(info.bytes().unwrap(), want.bytes().unwrap());
        assert_eq!(info.read_f32().unwrap(), want.read_f32().unwrap());
        let loaded = info.load(&device, Category::Weights).unwrap();
        assert_eq!(loaded.bytes(), &want.bytes().unwrap()[..]);
    }
}

/// A packed folder of one matrix of 4×128, changed: parts by suffix, each with type, shape and bytes.
fn damaged(change: impl Fn(&mut BTreeMap<&'static str, (DType, Vec<usize>, Vec<u8>)>)) -> Result<FrozenWeight> {
    let mut parts = BTreeMap::from([
        ("shape", (DType::U64, vec![2], bytemuck::cast_slice(&[4u64, 128]).to_vec())),
        ("bits", (DType::U64, vec![4, 2], bytemuck::cast_slice(&[3u64; 8]).to_vec())),
        ("starts", (DType::U32, vec![4, 1], bytemuck::cast_slice(&[0u32, 4, 8, 12]).to_vec())),
        ("values", (DType::F32, vec![16], bytemuck::cast_slice(&[1.0f32; 16]).to_vec())),
    ]);
    change(&mut parts);
    let dir = single_file_model(&[]);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let tensors = parts
        .iter()
        .map(|(part, (dtype, shape, bytes))| {
            NewTensor::new(format!("{NAME}.{part}"), *dtype, shape.clone(), move || Ok(bytes.into()))
        })
        .collect();
    let path = dir.path().join("model-packed.safetensors");
    write_weight_file(&SystemDisk, &path, tensors, WeightFormat::Packed).unwrap();
    let folder = ModelFolder::open(dir.path())?;
    let info = folder.tensors().next().expect("there is one");
    info.load_weight(&Device::cpu(), Category::Weights)
}

#[test]
fn damage_is_named() {
    assert!(damaged(|_| {}).is_ok());
    let number =
        |at: usize, value: u64| move |bytes: &mut Vec<u8>| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    assert_message(damaged(|p| drop(p.remove("starts"))), &[NAME, "has no .starts"]);
    assert_message(damaged(|p| drop(p.remove("bits"))), &["is part of a packed matrix that has no .bits"]);
    assert_message(
        damaged(|p| (p.get_mut("bits").unwrap().0, p.get_mut("bits").unwrap().1) = (DType::U32, vec![4, 4])),
        &["bits", "U32, not U64"],
    );
    assert_message(damaged(|p| p.get_mut("values").unwrap().0 = DType::U32), &["values", "U32"]);
    assert_message(damaged(|p| number(0, 1 << 40)(&mut p.get_mut("shape").unwrap().2)), &["more than 2³² − 1 entries"]);
    assert_message(
        damaged(|p| number(0, u64::MAX)(&mut p.get_mut("shape").unwrap().2)),
        &["more than 2³² − 1 entries"],
    );
    assert_message(damaged(|p| number(8, 200)(&mut p.get_mut("shape").unwrap().2)), &["said to be 4×200, but"]);
    assert_message(damaged(|p| number(16, 7)(&mut p.get_mut("bits").unwrap().2)), &[NAME, "damaged", "start of row 2"]);
    assert_message(
        damaged(|p| number(56, 1)(&mut p.get_mut("bits").unwrap().2)),
        &["has 15 bits, but there are 16 values"],
    );
    assert_message(damaged(|p| p.get_mut("starts").unwrap().2[4] = 5), &["the start of row 1 at column 0 is 5, but 4"]);
}

#[test]
fn a_file_of_another_version_is_refused() {
    let dir = dense_folder(8, 64);
    let plain = dir.path().join("model.safetensors");
    std::fs::rename(plain, dir.path().join("model-packed.safetensors")).unwrap();
    let wanted = ["give its format as \"pt\"", "\"perp-engine-packed-1\"", "convert the model anew"];
    assert_message(ModelFolder::open(dir.path()), &wanted);
}
