//! Sparsities from a JSON or TOML file.
//!
//! ```toml
//! layers = [0.4, 0.5, 0.6]             # or [layers] with 0 = 0.4, …
//! [matrices]                           # these go before layers, a full name before a role
//! q_proj = 0.3
//! "model.layers.2.mlp.down_proj" = 0.2
//! ```
//! A JSON file may also be the list of its layers alone.

use std::collections::BTreeMap;
use std::path::Path;

use engine::prune::{Allocation, Matrix};
use serde_json::{Map, Value};

use crate::error::Failure;
use crate::settings_file::read_text;

/// Reads a file that gives every one of `matrices` a sparsity.
pub fn read(path: &Path, matrices: &[Matrix]) -> Result<Allocation, Failure> {
    let text = read_text(path).map_err(|error| {
        Failure::usage(format!(
            "--allocation {}: cannot be read: {error}; name uniform, owl, or a JSON or TOML file",
            path.display()
        ))
    })?;
    let is_toml = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    let parsed = if is_toml { from_toml(&text) } else { from_json(&text) };
    parsed
        .and_then(|value| resolve(value, matrices))
        .map_err(|what| Failure::usage(format!("--allocation {}: {what}", path.display())))
}

fn from_toml(text: &str) -> Result<Value, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        format!("line {line}: {}", error.message().lines().next().unwrap_or("not TOML"))
    })?;
    serde_json::to_value(table).map_err(|error| error.to_string())
}

fn from_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))
}

/// The sparsity of every matrix: by its name, else by its role, else by its layer.
fn resolve(value: Value, matrices: &[Matrix]) -> Result<Allocation, String> {
    let mut table = match value {
        Value::Object(table) => table,
        list @ Value::Array(_) => Map::from_iter([("layers".to_string(), list)]),
        other => return Err(format!("is {other}; expected \"layers\", \"matrices\" or both")),
    };
    let layers = table.remove("layers").map_or(Ok(BTreeMap::new()), |value| layers(value, matrices))?;
    let named = table.remove("matrices").map_or(Ok(BTreeMap::new()), |value| named(value, matrices))?;
    if let Some(key) = table.keys().next() {
        return Err(format!("unknown key '{key}'; expected \"layers\", \"matrices\" or both"));
    }
    let mut all = Vec::with_capacity(matrices.len());
    for matrix in matrices {
        let own = named.get(&matrix.name).or_else(|| named.get(matrix.role())).or_else(|| layers.get(&matrix.layer));
        match own {
            Some(sparsity) => all.push((matrix.name.clone(), *sparsity)),
            None => {
                return Err(format!(
                    "gives layer {} no sparsity: {} is missing; name the layer in \"layers\", or the matrix in \"matrices\"",
                    matrix.layer, matrix.name
                ));
            }
        }
    }
    Allocation::of(all).map_err(|error| error.to_string())
}

fn layers(value: Value, matrices: &[Matrix]) -> Result<BTreeMap<usize, f64>, String> {
    let count = matrices.iter().map(|matrix| matrix.layer + 1).max().unwrap_or(0);
    let has = || format!("the model has {count} layers, 0 to {}", count.saturating_sub(1));
    let mut all = BTreeMap::new();
    match value {
        Value::Array(list) => {
            if list.len() != count {
                return Err(format!("\"layers\" lists {} sparsities; {}", list.len(), has()));
            }
            for (layer, value) in list.into_iter().enumerate() {
                all.insert(layer, share(&format!("layer {layer}"), &value)?);
            }
        }
        Value::Object(table) => {
            for (key, value) in table {
                let layer = key.parse().ok().filter(|layer| *layer < count);
                let layer: usize = layer.ok_or_else(|| format!("\"layers\" names '{key}'; {}", has()))?;
                if all.insert(layer, share(&format!("layer {layer}"), &value)?).is_some() {
                    return Err(format!("\"layers\" names layer {layer} twice"));
                }
            }
        }
        other => return Err(format!("\"layers\" is {other}; expected a list, or a table by number")),
    }
    Ok(all)
}

fn named(value: Value, matrices: &[Matrix]) -> Result<BTreeMap<String, f64>, String> {
    let Value::Object(table) = value else {
        return Err(format!("\"matrices\" is {value}; expected a table by name"));
    };
    let mut all = BTreeMap::new();
    for (key, value) in table {
        let name = key.strip_suffix(".weight").unwrap_or(&key);
        if !matrices.iter().any(|matrix| matrix.name == name || matrix.role() == name) {
            let mut roles: Vec<&str> = Vec::new();
            matrices.iter().for_each(|matrix| {
                if !roles.contains(&matrix.role()) {
                    roles.push(matrix.role());
                }
            });
            let example = matrices.first().map_or("", |matrix| &matrix.name);
            return Err(format!(
                "\"matrices\" names '{key}', which the model does not have; write {}, or one matrix such as {example}",
                roles.join(", ")
            ));
        }
        if all.insert(name.to_string(), share(name, &value)?).is_some() {
            return Err(format!("\"matrices\" names {name} twice"));
        }
    }
    Ok(all)
}

fn share(what: &str, value: &Value) -> Result<f64, String> {
    value.as_f64().filter(|share| (0.0..1.0).contains(share)).ok_or_else(|| {
        format!(
            "{what}: its sparsity is {value}; expected a number in [0, 1): the share of weights to remove, such as 0.5"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrices() -> Vec<Matrix> {
        let of_layer = |layer: usize| {
            ["self_attn.q_proj", "fc1"].map(|part| Matrix {
                name: format!("model.layers.{layer}.{part}"),
                layer,
                entries: 10,
            })
        };
        (0..3).flat_map(of_layer).collect()
    }

    fn shares(allocation: &Allocation) -> Vec<f64> {
        matrices().iter().map(|matrix| allocation.mean(std::slice::from_ref(matrix), f64::NAN)).collect()
    }

    #[test]
    fn a_name_goes_before_a_role_and_a_role_before_a_layer() {
        let text = "[layers]\n0 = 0.1\n1 = 0.2\n2 = 0\n[matrices]\nfc1 = 0.5\n\"model.layers.1.fc1.weight\" = 0.7\n";
        let got = resolve(from_toml(text).unwrap(), &matrices()).unwrap();
        assert_eq!(shares(&got), [0.1, 0.5, 0.2, 0.7, 0.0, 0.5]);
        let list = resolve(from_json("[0.1, 0.2, 0.3]").unwrap(), &matrices()).unwrap();
        assert_eq!(shares(&list), [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]);
        let roles = resolve(from_json(r#"{"matrices": {"fc1": 0.5, "q_proj": 0.25}}"#).unwrap(), &matrices()).unwrap();
        assert_eq!(shares(&roles), [0.25, 0.5, 0.25, 0.5, 0.25, 0.5]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, parts) in [
            ("3", &["is 3", "layers"][..]),
            ("{}", &["layer 0", "model.layers.0.self_attn.q_proj", "is missing"]),
            (r#"{"layers": [0.1, 0.2]}"#, &["lists 2", "3 layers, 0 to 2"]),
            (r#"{"layers": {"0": 0.1, "1": 0.2}}"#, &["layer 2", "is missing"]),
            (r#"{"layers": {"3": 0.1}}"#, &["'3'", "0 to 2"]),
            (r#"{"layers": {"-1": 0.1}}"#, &["'-1'", "0 to 2"]),
            (r#"{"layers": {"0": 0.1, "00": 0.1}}"#, &["layer 0 twice"]),
            (r#"{"layers": [0.1, 1.0, 0.2]}"#, &["layer 1", "is 1.0", "[0, 1)"]),
            (r#"{"layers": [0.1, "half", 0.2]}"#, &["layer 1", "half", "[0, 1)"]),
            (r#"{"layers": [0.1, -0.5, 0.2]}"#, &["layer 1", "-0.5"]),
            (r#"{"layers": "all"}"#, &["layers", "expected a list"]),
            (r#"{"matrices": {"q_prj": 0.1}}"#, &["q_prj", "q_proj, fc1", "model.layers.0.self_attn.q_proj"]),
            (r#"{"matrices": {"fc1": 0.1, "fc1.weight": 0.1}}"#, &["fc1 twice"]),
            (r#"{"matrices": [0.1]}"#, &["matrices", "expected a table"]),
            (r#"{"layer": [0.1]}"#, &["unknown key 'layer'"]),
        ] {
            let error = resolve(from_json(text).unwrap(), &matrices()).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
        assert!(from_json("{\"layers\": ").unwrap_err().contains("no JSON"));
        assert!(from_toml("layers = \n").unwrap_err().starts_with("line 1"));
    }
}
