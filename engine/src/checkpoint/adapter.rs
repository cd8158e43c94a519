//! LoRA adapters as PEFT writes and reads them: adapter_config.json beside adapter_model.safetensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Number, Value, json};

use super::error::{Error, Result};
use super::files::{CONFIG_LIMIT, read_json_object, write_json};
use super::output::OutputFolder;
use super::packed::WeightFormat;
use super::tensor_info::TensorInfo;
use super::weight_file;
use super::write::{NewTensor, write_weight_file};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// PEFT wraps the model twice; both wrappers are in its key names.
const PREFIX: &str = "base_model.model.";
const SUFFIX_A: &str = ".lora_A.weight";
const SUFFIX_B: &str = ".lora_B.weight";
/// What VeLoRA and MonteCLoRA leave beside A and B: only their training reads it.
const OF_TRAINING: [&str; 2] = [".lora_velora_embed", ".lora_monteclora_sampler."];

/// What an adapter makes of its weight W. M is 1 where W has an entry, s = α/r.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraForm {
    /// W + s·B·A: a term of its own beside W's.
    Added,
    /// W + s·M⊙(B·A).
    Masked,
    /// W⊙(B·A).
    Scaled,
}

impl LoraForm {
    const ALL: [LoraForm; 3] = [LoraForm::Added, LoraForm::Masked, LoraForm::Scaled];

    /// As "peft_type" names it. PEFT knows the first alone, and refuses the others by their names: as plain LoRA they would be
    /// another model.
    pub fn peft_type(self) -> &'static str {
        match self {
            LoraForm::Added => "LORA",
            LoraForm::Masked => "MASK_LORA",
            LoraForm::Scaled => "SCALE_LORA",
        }
    }
}

/// The module that is the head. It is not pruned, and its adapter is plain LoRA always.
pub const HEAD_MODULE: &str = "lm_head";

/// What adapter_config.json says of a LoRA adapter. The update of a module is (alpha/rank)·B·A.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// What becomes of the weights of all modules but the head.
    pub form: LoraForm,
    /// The rank of every module that `rank_pattern` does not name.
    pub rank: usize,
    /// The alpha of every module that `alpha_pattern` does not name.
    pub alpha: f64,
    /// Names of the modules with LoRA: full paths, or what paths end in (`q_proj`, `lm_head`).
    pub target_modules: Vec<String>,
    /// The folder or hub name of the model that the adapter belongs to.
    pub base_model: String,
    /// Ranks of single modules, by full path or by what paths end in.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
}

impl AdapterConfig {
    /// The rank of a module, by its full path.
    pub fn rank_of(&self, module: &str) -> usize {
        pattern_value(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The alpha of a module, by its full path.
    pub fn alpha_of(&self, module: &str) -> f64 {
        pattern_value(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }

    /// The form of a module's adapter, by its full path.
    pub fn form_of(&self, module: &str) -> LoraForm {
        if module == HEAD_MODULE { LoraForm::Added } else { self.form }
    }

    /// The fields that every PEFT since 0.5 knows; what is left out keeps its default there.
    fn to_json(&self) -> Value {
        json!({
            "alpha_pattern": self.alpha_pattern.iter().map(|(k, &v)| (k.clone(), number(v))).collect::<Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.alpha),
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": self.form.peft_type(),
            "r": self.rank,
            "rank_pattern": self.rank_pattern,
            "revision": null,
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
        })
    }

    fn from_json(json: &Value) -> std::result::Result<AdapterConfig, String> {
        let form = form(json)?;
        refuse_unsupported(json)?;
        let rank = positive_integer(&json["r"]).ok_or("\"r\" must be a positive integer")?;
        let alpha = scale(&json["lora_alpha"]).ok_or("\"lora_alpha\" must be a number that f32 can hold")?;
        let target_modules = match &json["target_modules"] {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(many) => many.iter().map(|m| m.as_str().map(str::to_owned)).collect::<Option<_>>(),
            _ => None,
        }
        .ok_or("\"target_modules\" must be a name or a list of names")?;
        Ok(AdapterConfig {
            form,
            rank,
            alpha,
            target_modules,
            base_model: json["base_model_name_or_path"].as_str().unwrap_or_default().into(),
            rank_pattern: pattern(json, "rank_pattern", positive_integer)?,
            alpha_pattern: pattern(json, "alpha_pattern", scale)?,
        })
    }
}

fn form(json: &Value) -> std::result::Result<LoraForm, String> {
    let Some(name) = json["peft_type"].as_str() else {
        return Err("has no \"peft_type\"; is it a PEFT adapter?".into());
    };
    LoraForm::ALL.into_iter().find(|form| form.peft_type() == name).ok_or_else(|| {
        format!(
            "\"peft_type\" is {name:?}; only \"LORA\" is supported, and \"MASK_LORA\" and \"SCALE_LORA\" of perp-engine"
        )
    })
}

/// Settings of PEFT that change what the tensors mean, and that this reader does not know.
fn refuse_unsupported(json: &Value) -> std::result::Result<(), String> {
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    let switches = [
        "use_dora",
        "use_qalora",
        "lora_bias",
        "fan_in_fan_out",
        "modules_to_save",
        "target_parameters",
        "layer_replication",
        "trainable_token_indices",
    ];
    for name in switches {
        if !off(&json[name]) {
            return Err(format!("\"{name}\" is {}, which is not supported; only plain LoRA is", json[name]));
        }
    }
    // What these make of A and B. Of an object PEFT takes what is left out for its default: an empty one is on, too. Not among them:
    // "velora_config" and "monteclora_config" change gradients and add noise in training alone, and "lora_ga_config" and its like say
    // how a start was found that "init_lora_weights" names.
    let variants = [
        ("alora_invocation_tokens", "an adapter (aLoRA) that is off until these tokens"),
        ("use_bdlora", "an adapter (BD-LoRA) of block-diagonal matrices"),
        ("arrow_config", "a router (Arrow) among other adapters"),
        (
            "kasa_config",
            "an adapter (KaSA) with a diagonal between B and A, for base weights without their least singular values",
        ),
    ];
    for (name, what) in variants {
        let is_off = match &json[name] {
            Value::Null | Value::Bool(false) => true,
            Value::Array(tokens) => tokens.is_empty(),
            _ => false,
        };
        if !is_off {
            return Err(format!("\"{name}\" is {}: {what}, which is not supported; only plain LoRA is", json[name]));
        }
    }
    if !matches!(json["bias"].as_str(), None | Some("none")) {
        return Err(format!("\"bias\" is {}; only \"none\" is supported", json["bias"]));
    }
    // These start from changed base weights, which the adapter alone does not hold.
    let start = json["init_lora_weights"].as_str().unwrap_or_default().to_lowercase();
    let start = start.split("_niter").next().unwrap_or_default();
    if ["pissa", "olora", "loftq", "corda", "lora_ga"].contains(&start) {
        return Err(format!("\"init_lora_weights\" is {start:?}: convert the adapter to plain LoRA with PEFT first"));
    }
    Ok(())
}

/// True where the update is α/√r·B·A (rank-stabilised LoRA, Kalajdzievski 2023, arXiv 2312.03732).
fn is_rank_stabilised(json: &Value) -> std::result::Result<bool, String> {
    match &json["use_rslora"] {
        Value::Null => Ok(false),
        Value::Bool(is) => Ok(*is),
        other => Err(format!("\"use_rslora\" is {other}, expected true or false")),
    }
}

/// Kernels scale in f32.
fn scale(value: &Value) -> Option<f64> {
    value.as_f64().filter(|alpha| (*alpha as f32).is_finite())
}

fn positive_integer(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0)
}

/// PEFT's own files have integers where the value is whole.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        Value::from(value as i64)
    } else {
        Number::from_f64(value).map_or(Value::Null, Value::Number)
    }
}

/// A `rank_pattern` or `alpha_pattern`. PEFT reads the keys as regular expressions; names, with or without the anchor
/// that PEFT writes, mean the same either way, and anything more is refused.
fn pattern<T>(
    json: &Value,
    field: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<BTreeMap<String, T>, String> {
    let map = match &json[field] {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Object(map) => map,
        _ => return Err(format!("\"{field}\" must be an object")),
    };
    map.iter()
        .map(|(key, value)| {
            let name = key.strip_prefix('^').unwrap_or(key);
            if !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-')) {
                return Err(format!("\"{field}\" has the regular expression {key:?}; write module names instead"));
            }
            let value = read(value).ok_or_else(|| format!("\"{field}\" has {value} for {key:?}"))?;
            Ok((key.clone(), value))
        })
        .collect()
}

fn pattern_value<T: Copy>(pattern: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let names = |key: &str| match key.strip_prefix('^') {
        Some(path) => module == path,
        None => module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    };
    pattern.iter().find(|(key, _)| names(key)).map(|(_, &value)| value)
}

/// One module's pair of matrices, to be written.
pub struct NewLora<'a> {
    /// The module's path in the transformers model: `model.decoder.layers.0.self_attn.q_proj`.
    pub module: String,
    /// A, `[rank, in]`.
    pub a: &'a [f32],
    /// B, `[out, rank]`.
    pub b: &'a [f32],
}

/// Writes an adapter into `out`, or into its subfolder `subfolder`, as PEFT's `save_pretrained` would: f32 tensors
/// `base_model.model.<module>.lora_A.weight` and `….lora_B.weight`.
///
/// # Errors
/// [`Error::BadTensor`] for a matrix whose length is no multiple of its module's rank, or a module given twice;
/// [`Error::Io`].
pub fn write_adapter<'a>(
    out: &OutputFolder,
    subfolder: Option<&str>,
    config: &AdapterConfig,
    modules: impl IntoIterator<Item = NewLora<'a>>,
) -> Result<()> {
    let folder = subfolder.map_or_else(|| Ok(out.path().to_path_buf()), |name| out.subfolder(name))?;
    let mut tensors: BTreeMap<String, NewTensor> = BTreeMap::new();
    for NewLora { module, a, b } in modules {
        let rank = config.rank_of(&module);
        for (suffix, values) in [(SUFFIX_A, a), (SUFFIX_B, b)] {
            let name = format!("{PREFIX}{module}{suffix}");
            let bad = |reason: String| Error::BadTensor { tensor: name.clone(), reason };
            if rank == 0 || !values.len().is_multiple_of(rank) {
                return Err(bad(format!("{} elements cannot be cut into rank {rank}", values.len())));
            }
            let other = values.len() / rank;
            let shape = if suffix == SUFFIX_A { [rank, other] } else { [other, rank] };
            if tensors.insert(name.clone(), NewTensor::f32(name.clone(), shape, values)).is_some() {
                return Err(bad("it is there twice".into()));
            }
        }
    }
    write_weight_file(
        out.disk(),
        &folder.join(WEIGHTS_FILE),
        tensors.into_values().collect(),
        WeightFormat::HuggingFace,
    )?;
    write_json(out.disk(), &folder.join(CONFIG_FILE), &config.to_json())
}

/// One module's pair of matrices, as they lie in an adapter file.
#[derive(Clone, Debug)]
pub struct LoraTensors {
    /// A, `[rank, in]`.
    pub a: TensorInfo,
    /// B, `[out, rank]`.
    pub b: TensorInfo,
    /// The module's rank.
    pub rank: usize,
    /// The module's alpha, times √rank where the adapter is rank-stabilised: the update is (alpha/rank)·B·A.
    pub alpha: f64,
    /// What they make of the module's weight.
    pub form: LoraForm,
}

/// A LoRA adapter folder.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its matrices by module path.
    pub modules: BTreeMap<String, LoraTensors>,
    /// The folder.
    pub path: PathBuf,
}

impl Adapter {
    /// The first matrix, by its module's name, that holds an infinity or a NaN.
    pub fn first_not_finite(&self) -> Option<&TensorInfo> {
        self.modules.values().flat_map(|pair| [&pair.a, &pair.b]).find(|info| !info.is_finite())
    }

    /// What it is, as BLAKE3 of all that decides about its updates.
    ///
    /// # Errors
    /// As [`TensorInfo::read_f32`].
    pub fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for (module, LoraTensors { a, b, rank, alpha, form }) in &self.modules {
            hasher.update(format!("{module} {rank} {alpha} {form:?} {:?} {:?};", a.shape(), b.shape()).as_bytes());
            for part in [a, b] {
                hasher.update(bytemuck::cast_slice(&part.read_f32()?));
            }
        }
        Ok(hasher.finalize().to_string())
    }

    /// Opens an adapter folder. PEFT adds copies of the base model's embedding and head to adapters that target them, and
    /// some of its variants what their training alone needs; these are left unread.
    ///
    /// # Errors
    /// Names the file and the field or tensor: missing or damaged file, a kind of adapter other than plain LoRA, a
    /// matrix without its partner, a shape that contradicts the rank.
    pub fn open(path: impl AsRef<Path>) -> Result<Adapter> {
        let path = path.as_ref();
        let config_file = path.join(CONFIG_FILE);
        if !config_file.is_file() {
            let reason = "no such file; an adapter folder has adapter_config.json and adapter_model.safetensors".into();
            return Err(Error::Missing { path: config_file, reason });
        }
        let json = read_json_object(&config_file, CONFIG_LIMIT)?;
        let bad_config = |reason: String| Error::Adapter { path: config_file.clone(), reason };
        let config = AdapterConfig::from_json(&json).map_err(bad_config)?;
        let rank_stabilised = is_rank_stabilised(&json).map_err(bad_config)?;
        let file = path.join(WEIGHTS_FILE);
        if !file.is_file() {
            let mut reason = "no such file".to_owned();
            if path.join("adapter_model.bin").is_file() {
                reason += "; there is only adapter_model.bin, which can run code when read: \
                           convert it (load it with PEFT and call save_pretrained)";
            }
            return Err(Error::Missing { path: file, reason });
        }
        let bad = |reason: String| Error::Adapter { path: file.clone(), reason };
        let mut halves: BTreeMap<String, [Option<TensorInfo>; 2]> = BTreeMap::new();
        for info in weight_file::open(&file)? {
            let name = info.name().to_owned();
            let module = name.strip_prefix(PREFIX).unwrap_or(&name);
            if let Some(module) = module.strip_suffix(SUFFIX_A) {
                halves.entry(module.into()).or_default()[0] = Some(info);
            } else if let Some(module) = module.strip_suffix(SUFFIX_B) {
                halves.entry(module.into()).or_default()[1] = Some(info);
            } else if !(module.ends_with(".base_layer.weight")
                || module.ends_with("embed_tokens.weight")
                || OF_TRAINING.iter().any(|part| module.contains(part)))
            {
                return Err(bad(format!("tensor {name} is not part of a plain LoRA adapter")));
            }
        }
        if halves.is_empty() {
            return Err(bad("holds no lora_A and lora_B matrices".into()));
        }
        let mut modules = BTreeMap::new();
        for (module, pair) in halves {
            let [Some(a), Some(b)] = pair else {
                return Err(bad(format!("module {module} has only one of lora_A and lora_B")));
            };
            let rank = config.rank_of(&module);
            for (info, dimension, layout) in [(&a, 0, "[rank, in]"), (&b, 1, "[out, rank]")] {
                info.dtype()?;
                if info.shape().len() != 2 || info.shape()[dimension] != rank {
                    return Err(bad(format!(
                        "tensor {} has shape {:?}; with rank {rank} (adapter_config.json) it must be {layout}",
                        info.name(),
                        info.shape()
                    )));
                }
            }
            // α/√r is (α·√r)/r.
            let factor = if rank_stabilised { (rank as f64).sqrt() } else { 1.0 };
            let (alpha, form) = (config.alpha_of(&module) * factor, config.form_of(&module));
            modules.insert(module, LoraTensors { a, b, rank, alpha, form });
        }
        Ok(Adapter { config, modules, path: path.into() })
    }
}
