use super::super::ModelFolder;
use super::*;

/// Two shards and their index.
fn sharded_model(index: Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("config.json"), config().to_string()).unwrap();
    write_file(&path("one.safetensors"), &[("a", &[2, 3])]);
    write_file(&path("two.safetensors"), &[("b", &[4])]);
    std::fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    dir
}

#[test]
fn a_single_file_model_opens() {
    let dir = single_file_model(&[("b", &[3]), ("a", &[2, 4])]);
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(folder.config(), &config());
    let keys: Vec<_> = folder.config().as_object().unwrap().keys().collect();
    assert_eq!(keys, ["model_type", "hidden_size", "zeta", "alpha"], "config.json keeps its order");
    assert_eq!(folder.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(folder.expect("a", &[2, 4]).unwrap().read_f32().unwrap(), values(8));
    assert!(folder.tensor("c").is_none());
}

#[test]
fn a_sharded_model_opens() {
    let dir = sharded_model(json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}));
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(folder.expect("b", &[4]).unwrap().file(), dir.path().join("two.safetensors"));
    assert_eq!(folder.tensors().map(|t| t.len()).sum::<usize>(), 10);
}

#[cfg(unix)]
#[test]
fn links_as_in_a_download_cache_open() {
    let blobs = single_file_model(&[("a", &[2])]);
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(blobs.path().join(name), dir.path().join(name)).unwrap();
    }
    ModelFolder::open(dir.path()).unwrap().expect("a", &[2]).unwrap();
}

#[test]
fn index_entries_must_be_plain_names() {
    for entry in
        ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\\b", "c:x", "./one.safetensors"]
    {
        let dir = sharded_model(json!({"weight_map": {"a": entry}}));
        assert_message(ModelFolder::open(dir.path()), &["index.json", "tensor a", "plain file name"]);
    }
    let dir = sharded_model(json!({"weight_map": {"a": 7}}));
    assert_message(ModelFolder::open(dir.path()), &["tensor a", "plain file name"]);
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let open = |map: Value| {
        let dir = sharded_model(json!({ "weight_map": map }));
        ModelFolder::open(dir.path())
    };
    assert_message(open(json!({"a": "three.safetensors"})), &["three.safetensors", "no such file", "for a"]);
    assert_message(open(json!({"a": "one.safetensors", "x": "two.safetensors"})), &["two.safetensors", "no tensor x"]);
    assert_message(open(json!({"a": "two.safetensors"})), &["two.safetensors", "no tensor a"]);
    assert_message(open(json!({})), &["names no tensors"]);
    assert_message(open(json!([])), &["weight_map"]);

    let dir = sharded_model(json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}));
    std::fs::copy(dir.path().join("one.safetensors"), dir.path().join("two.safetensors")).unwrap();
    assert_message(ModelFolder::open(dir.path()), &["tensor a", "one.safetensors", "two.safetensors"]);
}

#[test]
fn what_is_missing_is_named() {
    assert_message(ModelFolder::open("no/such/folder"), &["no/such/folder", "no such folder"]);
    let dir = tempfile::tempdir().unwrap();
    assert_message(ModelFolder::open(dir.path()), &["config.json", "no such file"]);
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_message(ModelFolder::open(dir.path()), &["no weights", "model.safetensors", "index.json"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_message(ModelFolder::open(dir.path()), &["pytorch_model.bin", "convert it to safetensors"]);
}

#[test]
fn a_damaged_configuration_is_named() {
    let dir = single_file_model(&[("a", &[1])]);
    let path = dir.path().join("config.json");
    for (text, part) in
        [("{\"a\": ", "not valid JSON"), ("[1]", "JSON object"), (&"[".repeat(10_000), "not valid JSON")]
    {
        std::fs::write(&path, text).unwrap();
        assert_message(ModelFolder::open(dir.path()), &["config.json", part]);
    }
    std::fs::write(&path, " ".repeat(9 << 20)).unwrap();
    assert_message(ModelFolder::open(dir.path()), &["config.json", "more than 8388608 bytes"]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_message(ModelFolder::open(dir.path()), &["config.json", "not a regular file"]);
}

#[test]
fn a_missing_tensor_suggests_the_closest_names() {
    let dir = single_file_model(&[("model.layers.0.q_proj.weight", &[2, 2]), ("model.norm.weight", &[2]), ("x", &[1])]);
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_message(
        folder.expect("layers.0.q_proj.weight", &[2, 2]),
        &["no tensor named layers.0.q_proj.weight", "closest names are model.layers.0.q_proj.weight"],
    );
    assert_message(folder.expect("model.norm.weigth", &[2]), &["closest names are model.norm.weight"]);
    assert!(!message(folder.expect("zzzz", &[2])).contains("closest"));
}

#[test]
fn a_wrong_shape_or_type_names_both() {
    let dir = single_file_model(&[("a", &[2, 3])]);
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_message(folder.expect("a", &[3, 2]), &["model.safetensors", "tensor a", "[2, 3]", "[3, 2]"]);

    let header = br#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(folder.tensor("ids").unwrap().dtype_name(), "I64", "listing it is no error");
    assert_message(folder.expect("ids", &[1]), &["tensor ids is I64", "F32, F16 or BF16"]);
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
    let dir = single_file_model(&[("a", &[16, 16]), ("b", &[33])]);
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_message(ModelFolder::open(dir.path()), &["model.safetensors", "truncated"]);
    }
    std::fs::write(&path, [&whole[..], b"tail"].concat()).unwrap();
    assert_message(ModelFolder::open(dir.path()), &["bytes that belong to no tensor"]);
}

#[test]
fn a_bad_header_is_an_error_and_never_a_panic() {
    let dir = single_file_model(&[("a", &[1])]);
    let path = dir.path().join("model.safetensors");
    let with_header = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    let huge = usize::MAX;
    let cases: [(Vec<u8>, &str); 7] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "git lfs pull"),
        (u64::MAX.to_le_bytes().to_vec(), "more than any has"),
        (with_header("not json"), "not a valid safetensors"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#), "not a valid safetensors"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#), "not a valid safetensors"),
        (with_header(&format!(r#"{{"a":{{"dtype":"F32","shape":[{huge},2],"data_offsets":[0,4]}}}}"#)), "overflow"),
        (with_header(r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}"#), "not a valid safetensors"),
    ];
    for (bytes, part) in cases {
        std::fs::write(&path, bytes).unwrap();
        assert_message(ModelFolder::open(dir.path()), &["model.safetensors", part]);
    }
}
