use std::borrow::Cow;
use std::cell::Cell;

use kernels::device::DType;

use super::super::{DEFAULT_SHARD_BYTES, ModelFolder, NewTensor, OutputFolder, WeightFormat, write_model};
use super::*;

const SHAPES: [(&str, &[usize]); 4] = [("c", &[5, 3]), ("a", &[8]), ("d", &[]), ("b", &[2, 0, 2])];

fn write_all(out: &Path, shard_bytes: u64) {
    let data: Vec<Vec<f32>> = SHAPES.iter().map(|(_, shape)| values(shape.iter().product())).collect();
    let tensors = SHAPES.iter().zip(&data).map(|((name, shape), v)| NewTensor::f32(*name, *shape, v));
    let folder = OutputFolder::create(out).unwrap();
    write_model(&folder, tensors, &config(), None, shard_bytes, WeightFormat::HuggingFace).unwrap();
    folder.commit().unwrap();
}

fn check_all(out: &Path) {
    let folder = ModelFolder::open(out).unwrap();
    assert_eq!(folder.config().to_string(), config().to_string());
    assert_eq!(folder.names().count(), SHAPES.len());
    for (name, shape) in SHAPES {
        assert_eq!(folder.expect(name, shape).unwrap().read_f32().unwrap(), values(shape.iter().product()));
    }
}

#[test]
fn a_model_written_in_one_file_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/parents/model");
    write_all(&out, DEFAULT_SHARD_BYTES);
    check_all(&out);
    assert_eq!(listing(&out), ["config.json", "model.safetensors"]);
    assert_eq!(listing(out.parent().unwrap()), ["model"], "nothing else is left beside it");
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn a_model_written_in_shards_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    // 60, 32, 4 and 0 bytes: the second does not fit beside the first, the third and fourth fit beside the second.
    write_all(&out, 64);
    check_all(&out);
    let index = "model.safetensors.index.json";
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    assert_eq!(listing(&out), ["config.json", shards[0], shards[1], index]);
    let index: Value = serde_json::from_slice(&std::fs::read(out.join(index)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 96);
    assert_eq!(index["weight_map"]["c"], shards[0]);
    assert_eq!(index["weight_map"]["a"], shards[1]);
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = ["one", "two"].map(|name| {
        write_all(&dir.path().join(name), DEFAULT_SHARD_BYTES);
        std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap()
    });
    assert_eq!(bytes[0], bytes[1]);
}

#[test]
fn tensors_are_asked_for_one_at_a_time_and_copied_unchanged() {
    let source = single_file_model(&[("a", &[4]), ("b", &[4])]);
    let model = ModelFolder::open(source.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let asked = Cell::new(0);
    let folder = OutputFolder::create(dir.path().join("out")).unwrap();
    let fresh = NewTensor::new("c", DType::U8, [3], || {
        asked.set(asked.get() + 1);
        Ok(Cow::Owned(vec![1, 2, 3]))
    });
    assert_eq!(asked.get(), 0);
    write_model(
        &folder,
        model.tensors().map(NewTensor::unchanged).chain([fresh]),
        &config(),
        None,
        1 << 20,
        WeightFormat::HuggingFace,
    )
    .unwrap();
    folder.commit().unwrap();
    assert_eq!(asked.get(), 1);
    let copy = ModelFolder::open(dir.path().join("out")).unwrap();
    assert_eq!(copy.tensor("b").unwrap().bytes().unwrap(), model.tensor("b").unwrap().bytes().unwrap());
    assert_eq!(copy.tensor("c").unwrap().bytes().unwrap()[..], [1, 2, 3]);
}

#[test]
fn small_files_come_along_and_other_weights_do_not() {
    let source = single_file_model(&[("a", &[4])]);
    for name in ["tokenizer.json", "merges.txt", "generation_config.json", "LICENSE", "pytorch_model.bin"] {
        std::fs::write(source.path().join(name), name).unwrap();
    }
    let model = ModelFolder::open(source.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(dir.path().join("out")).unwrap();
    write_model(
        &folder,
        model.tensors().map(NewTensor::unchanged),
        &config(),
        Some(&model),
        1 << 20,
        WeightFormat::HuggingFace,
    )
    .unwrap();
    folder.commit().unwrap();
    assert_eq!(
        listing(&dir.path().join("out")),
        ["LICENSE", "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json"]
    );
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("made/for/it");
    let short = || NewTensor::new("a", DType::F32, [4], || Ok(Cow::Owned(vec![0; 15])));
    let v = values(4);
    let folder = OutputFolder::create(&out).unwrap();
    assert_message(
        write_model(&folder, [short()], &config(), None, 1 << 20, WeightFormat::HuggingFace),
        &["tensor a", "needs 16 bytes", "15 came"],
    );
    drop(folder);
    assert!(listing(dir.path()).is_empty());

    let folder = OutputFolder::create(&out).unwrap();
    let twice = [NewTensor::f32("a", [4], &v), NewTensor::f32("a", [4], &v)];
    assert_message(
        write_model(&folder, twice, &config(), None, 1 << 20, WeightFormat::HuggingFace),
        &["tensor a", "twice"],
    );
    let vast = NewTensor::new("v", DType::F32, [usize::MAX, 2], || Ok(Cow::Borrowed(&[])));
    assert_message(
        write_model(&folder, [vast], &config(), None, 1 << 20, WeightFormat::HuggingFace),
        &["tensor v", "more bytes"],
    );
    drop(folder);
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn a_folder_with_something_in_it_is_never_written_over() {
    let model = single_file_model(&[("a", &[1])]);
    assert_message(OutputFolder::create(model.path()), &["holds a model already", "name a new folder"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_message(OutputFolder::create(&file), &["not a folder"]);
    assert_message(OutputFolder::create(dir.path()), &["not empty"]);
    assert_message(OutputFolder::check("/"), &["not the name of a folder"]);
    assert_message(OutputFolder::create(file.join("below")), &["cannot open"]);

    // Something appears while the run is under way.
    let out = dir.path().join("out");
    let folder = OutputFolder::create(&out).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious"), "x").unwrap();
    assert_message(folder.commit(), &["not empty"]);
    assert_eq!(listing(dir.path()), ["file", "out"]);
    assert_eq!(listing(&out), ["precious"]);
}

#[test]
fn an_empty_folder_is_filled() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    write_all(&out, DEFAULT_SHARD_BYTES);
    check_all(&out);
}

#[test]
fn a_header_past_64_kib_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(dir.path().join("out")).unwrap();
    let names: Vec<String> = (0..900).map(|i| format!("model.decoder.layers.{i}.self_attn.q_proj.weight")).collect();
    let tensors = names.iter().map(|name| NewTensor::f32(name.as_str(), [1], &[1.0]));
    write_model(&folder, tensors, &config(), None, 1 << 20, WeightFormat::HuggingFace).unwrap();
    folder.commit().unwrap();
    let bytes = std::fs::read(dir.path().join("out/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(header > 1 << 16 && header.is_multiple_of(8));
    assert_eq!(ModelFolder::open(dir.path().join("out")).unwrap().names().count(), 900);
}
