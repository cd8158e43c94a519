//! What the hub says of a repository at a commit, as far as it is read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The files of a commit, and how a data set's card divides them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub commit: String,
    pub files: Vec<String>,
    pub configs: Vec<Config>,
}

/// A configuration that a data set's card names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub name: String,
    pub is_default: bool,
    /// Splits, each with the patterns of its files.
    pub splits: Vec<(String, Vec<String>)>,
}

/// The API's answer. It is kept in the same form, without what is not read.
#[derive(Deserialize, Serialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
    #[serde(rename = "cardData", default, skip_serializing_if = "Option::is_none")]
    card: Option<Card>,
}

#[derive(Deserialize, Serialize)]
struct Sibling {
    rfilename: String,
}

#[derive(Deserialize, Serialize)]
struct Card {
    /// A list; a card is written by people, and what is none is left alone.
    #[serde(default)]
    configs: Value,
}

impl Listing {
    /// Out of the API's answer, with what of it is worth to be kept.
    pub fn parse(answer: &[u8]) -> serde_json::Result<(Listing, String)> {
        let info: Info = serde_json::from_slice(answer)?;
        let kept = serde_json::to_string(&info)?;
        let configs = info.card.iter().filter_map(|card| card.configs.as_array()).flatten();
        let configs = configs.filter_map(config).collect();
        let files = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        Ok((Listing { commit: info.sha, files, configs }, kept))
    }
}

/// A configuration with files; data_files is a pattern, a list of them, or a list of splits with their patterns. Those of no
/// split are training text.
fn config(value: &Value) -> Option<Config> {
    let name = value.get("config_name")?.as_str()?.to_string();
    let is_default = value.get("default").and_then(Value::as_bool).unwrap_or(false);
    let files = value.get("data_files")?;
    let one = std::slice::from_ref(files);
    let entries = files.as_array().map_or(one, Vec::as_slice);
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    for entry in entries {
        let (split, paths) = match entry {
            Value::String(_) => ("train", entry),
            _ => (entry.get("split")?.as_str()?, entry.get("path")?),
        };
        let paths = paths.as_array().map_or(std::slice::from_ref(paths), Vec::as_slice);
        let paths = paths.iter().map(|path| path.as_str().map(str::to_string)).collect::<Option<Vec<_>>>()?;
        match splits.iter_mut().find(|(name, _)| name == split) {
            Some((_, all)) => all.extend(paths),
            None => splits.push((split.to_string(), paths)),
        }
    }
    (!splits.is_empty()).then_some(Config { name, is_default, splits })
}
