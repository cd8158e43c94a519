//! Which of a repository's files are needed.

use std::collections::BTreeSet;
use std::path::Path;

use super::id::DataPart;
use super::listing::{Config, Listing};
use crate::data::is_text;

/// Files beside the weights, as far as there are any.
const SMALL: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// A model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// In one file.
    Single,
    /// In the files that an index names.
    Shards,
}

impl Weights {
    /// The file that is fetched for it.
    pub fn file(self) -> &'static str {
        match self {
            Weights::Single => "model.safetensors",
            Weights::Shards => "model.safetensors.index.json",
        }
    }

    /// Those that a repository has; a single file wins over an index, as in transformers.
    pub fn of(files: &[String]) -> Option<Weights> {
        [Weights::Single, Weights::Shards].into_iter().find(|weights| files.iter().any(|file| file == weights.file()))
    }
}

/// Configuration and tokenizer.
pub fn small_files(files: &[String]) -> impl Iterator<Item = &str> {
    SMALL.into_iter().filter(|small| files.iter().any(|file| file == small))
}

/// Weights in a form that is not read: PyTorch's, which can be converted, or else another's.
pub fn other_weights(files: &[String]) -> Option<&str> {
    let ends = [".bin", ".h5", ".msgpack"];
    ends.iter().find_map(|end| files.iter().find(|file| file.ends_with(end))).map(String::as_str)
}

/// The shards that an index names, each once.
pub fn shards(index: &[u8]) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(index).ok()?;
    let map = index.get("weight_map")?.as_object()?;
    map.values().map(|file| Some(file.as_str()?.to_string())).collect()
}

/// What a text is for, which decides about the split where the id names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Training and calibration.
    Train,
    /// The final measure: test, or else validation.
    Test,
    /// Measures on the way: validation, or else test.
    Validation,
}

impl Use {
    fn splits(self) -> &'static [&'static str] {
        match self {
            Use::Train => &["train"],
            Use::Test => &["test", "validation"],
            Use::Validation => &["validation", "test"],
        }
    }
}

/// Why no files are chosen.
#[derive(Debug, PartialEq, Eq)]
pub enum Nothing {
    /// There are none of text, whatever is asked for.
    NoText,
    /// None of what is asked for: what is missing, and what there is.
    Missing(String),
}

/// The files of a part of a data set, sorted by their names, or as its card has them. A configuration is what the card
/// names so, or else a folder; a split is what the card says of it, or else a word of a file's name or of a folder's.
pub fn data_files(listing: &Listing, part: &DataPart, wanted: Use) -> Result<Vec<String>, Nothing> {
    let mut texts: Vec<&str> =
        listing.files.iter().map(String::as_str).filter(|file| is_text(Path::new(file)) && !is_about(file)).collect();
    texts.sort_unstable();
    if texts.is_empty() {
        return Err(Nothing::NoText);
    }
    let (config, split) = match part {
        DataPart::Files(pattern) => {
            let found = matching(&texts, pattern);
            let some =
                || Nothing::Missing(format!("has no file \"{pattern}\"; it has {}", list(texts.iter().copied())));
            return if found.is_empty() { Err(some()) } else { Ok(found) };
        }
        DataPart::Split { config, split } => (config.as_deref(), split.as_deref()),
    };
    let splits = split.map_or_else(|| wanted.splits().to_vec(), |split| vec![split]);
    if let Some(config) = card_config(&listing.configs, config) {
        return of_card(&texts, config, &splits);
    }
    let chosen: Vec<&str> = texts.iter().copied().filter(|file| is_of_config(file, config)).collect();
    if chosen.is_empty() {
        let cards = listing.configs.iter().map(|config| config.name.as_str());
        let configs: BTreeSet<&str> = texts.iter().flat_map(|file| folders(file).last()).chain(cards).collect();
        let configs = list(configs.into_iter());
        return Err(Nothing::Missing(match config {
            Some(config) => format!("has no part \"{config}\"; it has {configs}"),
            None => format!("has several parts: name one behind a colon, of {configs}"),
        }));
    }
    let of_split = |split: &str| -> Vec<String> {
        chosen.iter().filter(|file| is_of_split(file, split)).map(|file| (*file).to_string()).collect()
    };
    if let Some(found) = splits.iter().map(|split| of_split(split)).find(|found| !found.is_empty()) {
        return Ok(found);
    }
    // What nobody divided is training text.
    if splits == ["train"] && !chosen.iter().any(|file| SPLITS.iter().any(|words| is_of_split(file, words[0]))) {
        return Ok(chosen.into_iter().map(str::to_string).collect());
    }
    Err(no_split(&splits, format!("its files are {}", list(chosen.into_iter()))))
}

/// Whether files that are named as parts of a whole (`…00000-of-01024…`) are its first ones.
pub fn are_first(files: &[String]) -> bool {
    files.iter().enumerate().all(|(index, name)| place(name).is_none_or(|(shard, _)| shard == index))
}

/// How many files a split has by the name of one of them.
pub fn total(files: &[String]) -> usize {
    files.first().and_then(|name| place(name)).map_or(files.len(), |(_, all)| all)
}

/// The words that stand for a split in names, its own first.
const SPLITS: [&[&str]; 3] =
    [&["train", "training"], &["validation", "valid", "val", "dev"], &["test", "testing", "eval", "evaluation"]];

/// Files of JSON that describe a data set.
fn is_about(file: &str) -> bool {
    ["dataset_info.json", "dataset_infos.json", "state.json"].iter().any(|about| file.rsplit('/').next() == Some(about))
}

/// The card's configuration of a name; of none the default one, or the only one.
fn card_config<'a>(configs: &'a [Config], name: Option<&str>) -> Option<&'a Config> {
    let found = |test: &dyn Fn(&Config) -> bool| configs.iter().find(|config| test(config));
    match (name, configs) {
        (Some(name), _) => found(&|config| config.name == name),
        (None, [only]) => Some(only),
        (None, _) => found(&|config| config.is_default).or_else(|| found(&|config| config.name == "default")),
    }
}

fn of_card(texts: &[&str], config: &Config, splits: &[&str]) -> Result<Vec<String>, Nothing> {
    let found = splits.iter().find_map(|split| config.splits.iter().find(|(name, _)| name == split));
    let Some((split, patterns)) = found else {
        let all = list(config.splits.iter().map(|(name, _)| name.as_str()));
        return Err(no_split(splits, format!("\"{}\" has {all}", config.name.escape_debug())));
    };
    let mut files: Vec<String> = Vec::new();
    for pattern in patterns {
        for file in matching(texts, pattern) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    if files.is_empty() {
        let patterns = list(patterns.iter().map(String::as_str));
        let split = split.escape_debug();
        return Err(Nothing::Missing(format!("has no files of text for its split \"{split}\", which are {patterns}")));
    }
    Ok(files)
}

fn no_split(splits: &[&str], has: String) -> Nothing {
    Nothing::Missing(format!("has no split \"{}\"; {has}", splits.join("\" or \"")))
}

/// Those that a pattern matches; a `*` stays within a folder.
fn matching(files: &[&str], pattern: &str) -> Vec<String> {
    let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let pattern = pattern.trim_start_matches("./");
    match glob::Pattern::new(pattern) {
        Ok(glob) => files.iter().filter(|file| glob.matches_with(file, options)).map(|file| (*file).into()).collect(),
        Err(_) => files.iter().filter(|file| **file == pattern).map(|file| (*file).into()).collect(),
    }
}

/// The folders that a file is in, the outermost first.
fn folders(file: &str) -> impl DoubleEndedIterator<Item = &str> {
    file.rsplit_once('/').map_or("", |(folder, _)| folder).split('/').filter(|folder| !folder.is_empty())
}

fn is_of_config(file: &str, config: Option<&str>) -> bool {
    // The hub's own Parquet files of what is large lie in partial-SPLIT.
    let is_split = |folder: &str| {
        let split = folder.strip_prefix("partial-").unwrap_or(folder);
        SPLITS.iter().any(|words| words.contains(&split))
    };
    let is_plain = |folder: &str| folder == "data" || folder == "default" || is_split(folder);
    match config {
        Some(config) => folders(file).any(|folder| folder == config),
        None => folders(file).all(is_plain),
    }
}

fn is_of_split(file: &str, split: &str) -> bool {
    let one = [split];
    let words = SPLITS.iter().copied().find(|words| words[0] == split).unwrap_or(&one);
    file.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)))
}

/// Which part of a whole a name says it is, from 0, and of how many parts: `…00003-of-01024…`.
fn place(name: &str) -> Option<(usize, usize)> {
    let (before, after) = name.rsplit_once("-of-")?;
    let start = before.len() - before.bytes().rev().take_while(u8::is_ascii_digit).count();
    let end = after.bytes().take_while(u8::is_ascii_digit).count();
    Some((before[start..].parse().ok()?, after[..end].parse().ok()?))
}

/// Up to a dozen names, as messages have them.
fn list<'a>(mut names: impl Iterator<Item = &'a str>) -> String {
    let some: Vec<String> = names.by_ref().take(12).map(|name| name.escape_debug().to_string()).collect();
    some.join(", ") + if names.next().is_some() { ", …" } else { "" }
}
