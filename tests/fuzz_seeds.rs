//! Writes those seeds of the fuzz targets that are not text: `cargo test --release --test fuzz_seeds -- --ignored`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use engine::checkpoint::{NewTensor, RunFolder, Tokenizer};
use engine::data::{Corpus, SamplerPosition, TokenCache};
use engine::retrain::RunState;
use kernels::weight::PackedRows;
use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde_json::json;

#[test]
#[ignore = "writes fuzz/seeds"]
fn write_seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root.join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    for (name, bytes) in weights() {
        put("weights", name, &bytes);
    }
    for (name, bytes) in [("two", packed(&[(3, 70), (2, 300)])), ("small", packed(&[(1, 1)]))] {
        put("packed", name, &bytes);
    }
    for (name, bytes) in adapters() {
        put("adapter_weights", name, &bytes);
    }
    put("checkpoint", "run", &checkpoint());
    put("token_file", "tokens", &token_file());
    let lines = b"{\"text\":\"hello\"}\n{\"text\":\"a longer line, a longer line, a longer line\"}\n";
    let two = [gzip(lines), gzip(lines)].concat();
    put("gzip", "members", &two);
    put("gzip", "one", &gzip(lines));
    put("gzip", "bomb", &gzip(&vec![b'a'; 1 << 20]));
    put("zstd", "one", &zstd::encode_all(&lines[..], 3).unwrap());
    put("zstd", "frames", &zstd::encode_all(&lines[..], 3).unwrap().repeat(2));
    put("zstd", "run", &zstd::encode_all(&vec![b'a'; 1 << 20][..], 3).unwrap());
    for (name, codec) in [
        ("plain", Compression::UNCOMPRESSED),
        ("snappy", Compression::SNAPPY),
        ("gzip", Compression::GZIP(Default::default())),
        ("zstd", Compression::ZSTD(Default::default())),
        ("brotli", Compression::BROTLI(Default::default())),
        ("lz4", Compression::LZ4_RAW),
    ] {
        put("parquet", name, &rows(WriterProperties::builder().set_compression(codec)));
    }
    let second = WriterProperties::builder().set_writer_version(parquet::file::properties::WriterVersion::PARQUET_2_0);
    put("parquet", "second-version", &rows(second));
    let text = || ColumnPath::from("text");
    let delta = WriterProperties::builder()
        .set_column_dictionary_enabled(text(), false)
        .set_column_encoding(text(), Encoding::DELTA_BYTE_ARRAY);
    put("parquet", "delta", &rows(delta));
}

fn file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn weights() -> Vec<(&'static str, Vec<u8>)> {
    let two = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]}}"#;
    let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F16","shape":[2],"data_offsets":[2,6]}}"#;
    let one = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let vast = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
    let empty = r#"{"a":{"dtype":"I64","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#;
    vec![
        ("two", file(two, 8)),
        ("overlap", file(overlap, 6)),
        ("twice", file(&format!("{{{one},{one}}}"), 4)),
        ("vast", file(vast, 0)),
        ("empty", file(empty, 0)),
        ("nothing", file("{}", 0)),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec()),
    ]
}

/// Packed f16 matrices of these shapes, half of their entries zeros, and a dense vector beside them.
fn packed(shapes: &[(usize, usize)]) -> Vec<u8> {
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    let mut tensor = |name: String, dtype: &str, shape: &[usize], bytes: &[u8]| {
        let range = [data.len(), data.len() + bytes.len()];
        tensors.push((name, json!({"dtype": dtype, "shape": shape, "data_offsets": range})));
        data.extend_from_slice(bytes);
    };
    for (index, (rows, cols)) in shapes.iter().copied().enumerate() {
        let entry = |i: usize| if i.is_multiple_of(2) { 0u16 } else { 0x3c00 + i as u16 };
        let dense: Vec<u8> = (0..rows * cols).flat_map(|i| entry(i + 1).to_le_bytes()).collect();
        let parts = PackedRows::pack(&dense, cols, 2);
        let (words, spans) = PackedRows::row_lens(cols);
        let name = format!("layers.{index}.weight");
        let shape: Vec<u8> = [rows as u64, cols as u64].iter().flat_map(|x| x.to_le_bytes()).collect();
        let bits: Vec<u8> = parts.bits.iter().flat_map(|x| x.to_le_bytes()).collect();
        let starts: Vec<u8> = parts.starts.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensor(format!("{name}.shape"), "U64", &[2], &shape);
        tensor(format!("{name}.bits"), "U64", &[rows, words], &bits);
        tensor(format!("{name}.starts"), "U32", &[rows, spans], &starts);
        tensor(format!("{name}.values"), "F16", &[parts.values.len() / 2], &parts.values);
    }
    tensor("norm.weight".into(), "F16", &[1], &[0, 0x3c]);
    let mut header = serde_json::Map::from_iter(tensors);
    header.insert("__metadata__".into(), json!({"format": "perp-engine-packed-1"}));
    let header = serde_json::Value::from(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn adapters() -> Vec<(&'static str, Vec<u8>)> {
    let matrix = |name: &str, dtype: &str, shape: &str, range: &str| {
        format!(r#""base_model.model.{name}.weight":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}"#)
    };
    let a = matrix("q.lora_A", "F32", "[1,2]", "[0,8]");
    let b = matrix("q.lora_B", "F16", "[2,1]", "[8,12]");
    let base = matrix("q.base_layer", "F32", "[1]", "[12,16]");
    vec![
        ("pair", file(&format!("{{{a},{b}}}"), 12)),
        ("base", file(&format!("{{{a},{b},{base}}}"), 16)),
        ("single", file(&format!("{{{a}}}"), 8)),
    ]
}

fn checkpoint() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let state = RunState {
        version: "0.1.0".into(),
        device: "cpu".into(),
        cycle: 1,
        step: 2,
        sampler: SamplerPosition::default(),
        configuration: serde_json::Map::from_iter([("lr".into(), json!(0.5))]),
        measured: json!({"dense": 1.5}),
    };
    let tensors = vec![
        NewTensor::f64("steps", [1, 7], vec![1.0, 2.0, 3.5, 1e-3, 1.0, 64.0, 0.5]),
        NewTensor::f32("value.a", [2], &[1.0, -1.0]),
    ];
    let run = serde_json::to_value(state).unwrap();
    let path = RunFolder::open(folder.path()).unwrap().save(2, &run, tensors).unwrap();
    fs::read(path).unwrap()
}

/// As the target has it.
const TOKENIZER: &[u8] = include_bytes!("../fuzz/src/targets/tokenizer.json");

fn token_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    put("tokenizer.json", TOKENIZER);
    let text = put("text.jsonl", b"{\"text\":\"abba\"}\n{\"text\":\"b\"}\n");
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    let cache = folder.path().join("tokens");
    TokenCache::at(&cache).tokens(&Corpus { files: vec![text], joining: None }, &tokenizer, |_| {}).unwrap();
    fs::read(fs::read_dir(cache).unwrap().next().unwrap().unwrap().path()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of two row groups: a column of strings behind one of numbers.
fn rows(properties: parquet::file::properties::WriterPropertiesBuilder) -> Vec<u8> {
    let schema = "message rows { required int32 id; optional binary text (utf8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    for texts in [["one", "two two two"], ["three", ""]] {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        ids.typed::<parquet::data_type::Int32Type>().write_batch(&[1, 2], None, None).unwrap();
        ids.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&[1, 1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}
