use std::collections::BTreeMap;

use super::super::{Adapter, AdapterConfig, LoraForm, NewLora, OutputFolder, write_adapter};
use super::*;

const Q: &str = "model.decoder.layers.0.self_attn.q_proj";
const HEAD: &str = "lm_head";

fn adapter_config() -> AdapterConfig {
    AdapterConfig {
        form: LoraForm::Added,
        rank: 2,
        alpha: 32.0,
        target_modules: vec!["q_proj".into(), HEAD.into()],
        base_model: "some/base".into(),
        rank_pattern: BTreeMap::from([(HEAD.into(), 3)]),
        alpha_pattern: BTreeMap::from([(format!("^{Q}"), 1.5)]),
    }
}

/// q_proj [5, 4] at rank 2, lm_head [7, 4] at rank 3.
fn written() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let v = values(64);
    let modules = [
        NewLora { module: Q.into(), a: &v[..8], b: &v[..10] },
        NewLora { module: HEAD.into(), a: &v[..12], b: &v[..21] },
    ];
    let folder = OutputFolder::create(dir.path().join("model")).unwrap();
    write_adapter(&folder, Some("adapter"), &adapter_config(), modules).unwrap();
    folder.commit().unwrap();
    dir
}

fn path(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("model/adapter")
}

/// The written adapter with fields of its adapter_config.json replaced.
fn open_with(changes: Value) -> Result<Adapter> {
    let dir = written();
    let file = path(&dir).join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        json[field] = value.clone();
    }
    std::fs::write(&file, json.to_string()).unwrap();
    Adapter::open(path(&dir))
}

#[test]
fn an_adapter_reads_back() {
    let dir = written();
    let adapter = Adapter::open(path(&dir)).unwrap();
    assert_eq!(adapter.config, adapter_config());
    assert_eq!(adapter.modules.keys().collect::<Vec<_>>(), [HEAD, Q]);
    let (q, head) = (&adapter.modules[Q], &adapter.modules[HEAD]);
    assert_eq!((q.a.shape(), q.b.shape(), q.rank, q.alpha), (&[2, 4][..], &[5, 2][..], 2, 1.5));
    assert_eq!((head.a.shape(), head.b.shape(), head.rank, head.alpha), (&[3, 4][..], &[7, 3][..], 3, 32.0));
    assert_eq!(q.b.read_f32().unwrap(), values(10));
}

#[test]
fn the_files_are_as_peft_writes_them() {
    let dir = written();
    let json: Value = serde_json::from_slice(&std::fs::read(path(&dir).join("adapter_config.json")).unwrap()).unwrap();
    for (field, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(2)),
        ("lora_alpha", json!(32)),
        ("lora_dropout", json!(0.0)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("base_model_name_or_path", json!("some/base")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("rank_pattern", json!({"lm_head": 3})),
    ] {
        assert_eq!(json[field], value, "{field}");
    }
    let bytes = std::fs::read(path(&dir).join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let a = tensors.tensor("base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
    assert_eq!((a.dtype(), a.shape()), (safetensors::Dtype::F32, &[2, 4][..]));
    let b = tensors.tensor("base_model.model.lm_head.lora_B.weight").unwrap();
    assert_eq!(b.shape(), [7, 3]);
}

/// Of another form than PEFT's, an adapter bears a name that PEFT does not load; the head's is plain LoRA.
#[test]
fn the_form_of_an_adapter_is_its_type() {
    for (name, form) in [("LORA", LoraForm::Added), ("MASK_LORA", LoraForm::Masked), ("SCALE_LORA", LoraForm::Scaled)] {
        let adapter = open_with(json!({"peft_type": name})).unwrap();
        assert_eq!((adapter.config.form, adapter.config.form.peft_type()), (form, name));
        assert_eq!((adapter.modules[Q].form, adapter.modules[HEAD].form), (form, LoraForm::Added));
    }
}

#[test]
fn patterns_match_whole_path_components() {
    let config = AdapterConfig {
        rank_pattern: BTreeMap::from([("q_proj".into(), 5), ("^layers.1.v_proj".into(), 6)]),
        ..adapter_config()
    };
    assert_eq!(config.rank_of("layers.0.q_proj"), 5);
    assert_eq!(config.rank_of("q_proj"), 5);
    assert_eq!(config.rank_of("layers.0.eq_proj"), 2, "q_proj is no component of eq_proj");
    assert_eq!(config.rank_of("layers.1.v_proj"), 6);
    assert_eq!(config.rank_of("model.layers.1.v_proj"), 2, "the anchor means the whole path");
}

#[test]
fn adapters_of_another_kind_are_refused_by_field() {
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("peft_type", json!(null)),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 4]])),
        ("bias", json!("all")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("OLoRA")),
        ("init_lora_weights", json!("lora_ga")),
        ("alora_invocation_tokens", json!([5, 7])),
        ("use_bdlora", json!({"target_modules_bd_a": ["q_proj"], "nblocks": 2})),
        ("use_bdlora", json!(true)),
        ("arrow_config", json!({"top_k": 3})),
        ("kasa_config", json!({"beta": 1e-4, "gamma": 1e-3})),
        ("kasa_config", json!({})),
        ("r", json!(0)),
        ("r", json!("16")),
        ("lora_alpha", json!(null)),
        ("target_modules", json!([1])),
        ("rank_pattern", json!({"layers\\.[01]\\..*": 4})),
        ("rank_pattern", json!({"q_proj": -1})),
        ("alpha_pattern", json!([])),
    ] {
        assert_message(open_with(json!({field: value})), &["adapter_config.json", field]);
    }
}

#[test]
fn a_rank_stabilised_adapter_is_scaled_by_the_root_of_each_module_s_rank() {
    let adapter = open_with(json!({"use_rslora": true})).unwrap();
    let (q, head) = (&adapter.modules[Q], &adapter.modules[HEAD]);
    assert_eq!((q.rank, q.alpha), (2, 1.5 * 2f64.sqrt()));
    assert_eq!((head.rank, head.alpha), (3, 32.0 * 3f64.sqrt()));
    assert_eq!(open_with(json!({"use_rslora": false})).unwrap().modules[Q].alpha, 1.5);
}

#[test]
fn fields_that_change_nothing_are_accepted() {
    open_with(json!({"use_dora": false, "modules_to_save": [], "lora_dropout": 0.1, "new_in_some_version": 1}))
        .unwrap();
    open_with(json!({"init_lora_weights": "gaussian", "target_modules": "q_proj", "inference_mode": false})).unwrap();
    open_with(json!({"alora_invocation_tokens": [], "use_bdlora": false, "arrow_config": null, "kasa_config": null}))
        .unwrap();
    // What trains otherwise, or starts elsewhere, and computes the same.
    open_with(json!({"velora_config": {"num_groups": 64}, "monteclora_config": null})).unwrap();
    open_with(json!({"monteclora_config": {"num_samples": 8}, "init_lora_weights": "mica"})).unwrap();
    open_with(json!({"lora_ga_config": {"direction": "ArB2r"}, "eva_config": {"rho": 2.0}})).unwrap();
}

#[test]
fn shapes_must_agree_with_the_rank() {
    assert_message(open_with(json!({"r": 4})), &["q_proj.lora_A.weight", "[2, 4]", "rank 4", "[rank, in]"]);
    assert_message(open_with(json!({"rank_pattern": {}})), &["lm_head.lora_A.weight", "[3, 4]", "rank 2"]);
}

fn open_tensors(tensors: &[(&str, &[usize])]) -> Result<Adapter> {
    let dir = written();
    let file = path(&dir).join("adapter_model.safetensors");
    std::fs::remove_file(&file).unwrap();
    write_file(&file, tensors);
    Adapter::open(path(&dir))
}

#[test]
fn tensors_must_be_pairs_of_plain_lora() {
    let a = "base_model.model.x.q_proj.lora_A.weight";
    let b = "base_model.model.x.q_proj.lora_B.weight";
    assert_message(open_tensors(&[(a, &[2, 4])]), &["module x.q_proj has only one"]);
    assert_message(open_tensors(&[(a, &[2, 4]), (b, &[5, 2, 1])]), &["lora_B", "[5, 2, 1]", "[out, rank]"]);
    assert_message(open_tensors(&[]), &["no lora_A and lora_B"]);
    let vector = "base_model.model.x.q_proj.lora_magnitude_vector";
    assert_message(open_tensors(&[(a, &[2, 4]), (b, &[5, 2]), (vector, &[5])]), &["lora_magnitude_vector"]);
    let head = "base_model.model.lm_head.base_layer.weight";
    let adapter = open_tensors(&[(a, &[2, 4]), (b, &[5, 2]), (head, &[9, 4])]).unwrap();
    assert_eq!(adapter.modules.len(), 1, "a copy of the base's head is passed over");
    let embed = "base_model.model.x.q_proj.lora_velora_embed";
    let sampler = "base_model.model.x.q_proj.lora_monteclora_sampler.std_prior";
    let adapter = open_tensors(&[(a, &[2, 4]), (b, &[5, 2]), (embed, &[2]), (sampler, &[2])]).unwrap();
    assert_eq!(adapter.modules.len(), 1, "what training alone reads is passed over");
    let diagonal = "base_model.model.x.q_proj.lora_diag";
    assert_message(open_tensors(&[(a, &[2, 4]), (b, &[5, 2]), (diagonal, &[2])]), &["lora_diag", "plain LoRA"]);
}

#[test]
fn missing_files_are_named() {
    assert_message(Adapter::open("no/such"), &["no/such", "adapter_config.json", "no such file"]);
    let dir = written();
    let file = path(&dir).join("adapter_model.safetensors");
    std::fs::rename(&file, path(&dir).join("adapter_model.bin")).unwrap();
    assert_message(Adapter::open(path(&dir)), &["adapter_model.safetensors", "only adapter_model.bin"]);
}

#[test]
fn matrices_that_do_not_fit_the_rank_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = OutputFolder::create(dir.path().join("out")).unwrap();
    let v = values(7);
    let lora = || NewLora { module: Q.into(), a: &v[..7], b: &v[..4] };
    assert_message(
        write_adapter(&folder, None, &adapter_config(), [lora()]),
        &["q_proj.lora_A", "7 elements", "rank 2"],
    );
    let lora = || NewLora { module: Q.into(), a: &v[..6], b: &v[..4] };
    assert_message(write_adapter(&folder, None, &adapter_config(), [lora(), lora()]), &["q_proj.lora_A", "twice"]);
}
