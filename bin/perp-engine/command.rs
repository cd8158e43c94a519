//! The command line as it was given, so that a report can say how to have it again.

use std::ffi::OsString;
use std::sync::OnceLock;

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
    }
}
