//! The command line as it was given, so that a report can say how to have it again.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use engine::hub::{DataId, ModelId};

use crate::fetch;

static GIVEN: OnceLock<Vec<OsString>> = OnceLock::new();

/// Keeps the arguments of this process, those of --config put in.
pub fn remember(arguments: &[OsString]) {
    let _ = GIVEN.set(arguments.iter().skip(1).cloned().collect());
}

/// The command as a POSIX shell takes it, without `--resume`: had again, the run starts at its beginning.
pub fn given() -> String {
    let words = GIVEN.get().into_iter().flatten().map(|word| word.to_string_lossy());
    line(words.filter(|word| word != "--resume"))
}

/// `perp-engine` and words, quoted where a shell would see more in them.
pub fn line(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    words.into_iter().fold("perp-engine".to_string(), |line, word| line + " " + &quoted(word.as_ref()))
}

/// The words of such a line, without the first.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut chars, mut quoted) = (line.chars(), false);
    while let Some(c) = chars.next() {
        let word = words.last_mut().expect("there is one from the start");
        match c {
            '\'' => quoted = !quoted,
            '\\' if !quoted => word.extend(chars.next()),
            ' ' if !quoted => words.push(String::new()),
            c => word.push(c),
        }
    }
    words.split_off(1)
}

/// A flag, and the folder or files that its values named.
pub type Taken<'a> = (&'a str, &'a [PathBuf]);

/// A command with the hub's ids at the commits that were taken: a branch moves on, and the command would give something else.
pub fn pinned(command: &str, taken: &[Taken<'_>]) -> String {
    let mut flag = String::new();
    line(words(command).iter().map(|word| {
        let (start, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                flag = name.into();
                (format!("{name}="), value)
            }
            None if word.starts_with("--") => {
                flag = word.clone();
                return word.clone();
            }
            _ => (String::new(), word.as_str()),
        };
        let files = taken.iter().find(|(name, _)| *name == flag).map_or(&[][..], |(_, files)| files);
        let pinned = if flag == "--model" { model_at(value, files) } else { data_at(value, files) };
        start + pinned.as_deref().unwrap_or(value)
    }))
}

/// The id of a model with the commit that lies there; nothing for what is no id.
fn model_at(value: &str, folder: &[PathBuf]) -> Option<String> {
    let id = fetch::model_id(Path::new(value))?;
    let revision = commit(&format!("models--{}", id.repo.replace('/', "--")), folder)?;
    Some(ModelId { revision, ..id }.to_string())
}

/// The same of a data set.
fn data_at(value: &str, files: &[PathBuf]) -> Option<String> {
    let id = fetch::data_id(Path::new(value))?;
    let revision = commit(&format!("datasets--{}", id.repo.replace('/', "--")), files)?;
    Some(DataId { revision, ..id }.to_string())
}

/// The commit of a repository whose files these are, where it is one: CACHE/REPOSITORY/snapshots/COMMIT/….
fn commit(repository: &str, files: &[PathBuf]) -> Option<String> {
    let of = |file: &PathBuf| -> Option<String> {
        let mut parts = file.iter().skip_while(|part| *part != OsStr::new(repository)).skip(1);
        let is_snapshot = parts.next()? == "snapshots";
        parts.next().filter(|_| is_snapshot)?.to_str().map(str::to_string)
    };
    let mut commits: Vec<String> = files.iter().filter_map(of).collect();
    commits.dedup();
    commits.pop().filter(|_| commits.is_empty())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_the_words_back() {
        let words = ["retrain", "--model", "a b/$HOME", "it's", "", "--sparsity=0.5", "ünï"];
        let shown = line(words);
        let output =
            std::process::Command::new("sh").arg("-c").arg(format!("set -- {shown}; printf '%s\\n' \"$@\"")).output();
        let expected = ["perp-engine"].iter().chain(&words).map(|word| format!("{word}\n")).collect::<String>();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), expected);
        assert_eq!(super::words(&shown), words);
    }

    #[test]
    fn ids_stand_at_the_commit_that_was_taken_and_nothing_else_is_touched() {
        let (one, two) = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef");
        let at = |repository: &str, commit: &str| PathBuf::from(format!("/cache/{repository}/snapshots/{commit}"));
        let model = [at("models--owner--demo", one)];
        let words =
            [at("datasets--owner--words", two).join("en/a.gz"), at("datasets--owner--words", two).join("en/b.gz")];
        let both = [at("datasets--owner--words", two).join("a.gz"), at("datasets--owner--words", one).join("a.gz")];
        let plain = [PathBuf::from("a b.txt"), words[0].clone()];
        let taken: [Taken<'_>; 4] =
            [("--model", &model), ("--train", &plain), ("--eval", &words), ("--calibrate", &both)];
        let given = |command: &str| pinned(&format!("perp-engine retrain {command}"), &taken);
        let same = |command: &str| assert_eq!(given(command), format!("perp-engine retrain {command}"));

        assert_eq!(
            given("--model owner/demo --quiet"),
            format!("perp-engine retrain --model owner/demo@{one} --quiet")
        );
        assert_eq!(given("--model=owner/demo@main"), format!("perp-engine retrain --model=owner/demo@{one}"));
        assert_eq!(
            given("--eval owner/words:en:test@v2"),
            format!("perp-engine retrain --eval owner/words:en:test@{two}")
        );
        assert_eq!(
            given("--train 'a b.txt' 'owner/words:en/*.gz' --seed 1"),
            format!("perp-engine retrain --train 'a b.txt' 'owner/words:en/*.gz@{two}' --seed 1")
        );
        same(&format!("--model owner/demo@{one}"));
        // Another model, a protocol, a folder to write to, a flag that takes no text.
        same("--model owner/other --eval wikitext2 --out owner/demo --adapter owner/words:en");
        // Of two commits of one data set nobody knows which is whose.
        same("--calibrate owner/words:a@v1 owner/words:b@v2");
    }
}
