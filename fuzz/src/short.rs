//! A short run for every build: the seeds, and what simple mutations make of them, always the same. It needs no coverage, so it
//! takes the crates that the other tests are built with; libFuzzer looks further (`tools/fuzz.sh`).

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use crate::targets;

type Target = (&'static str, fn(&[u8]));

/// Inputs of each target, beside its seeds.
const INPUTS: usize = 1500;

macro_rules! all {
    ($($name:ident)*) => { [$((stringify!($name), targets::$name as fn(&[u8]))),*] };
}

const ALL: [Target; 24] = all!(
    adapter_config adapter_weights allocation checkpoint config gzip hub_discussions hub_id hub_index hub_listing index
    json_lines packed parquet ptx report run_toml sweep_toml text token_file tokenizer vocabulary weights zstd
);

/// Runs every target; ends the process where one fails.
pub fn run(fuzz: &Path) {
    for (name, target) in ALL {
        assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name} is no target of libFuzzer");
        let seeds = files(&fuzz.join("seeds").join(name));
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let words = fs::read_to_string(fuzz.join("dictionaries").join(name)).unwrap_or_default();
        let words: Vec<Vec<u8>> = words.lines().filter_map(word).collect();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let each = INPUTS / seeds.len();
        for seed in &seeds {
            let bytes = fs::read(seed).expect("it was listed");
            check(name, target, &bytes);
            for _ in 0..each {
                check(name, target, &mutated(&bytes, &words, &mut random));
            }
        }
        targets::clear();
        println!("{name:16} {:3} seeds, {:5} inputs", seeds.len(), each * seeds.len());
    }
    let targets = files(&fuzz.join("fuzz_targets")).len();
    assert_eq!(targets, ALL.len(), "a target of libFuzzer is not run here");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it is listed").path()).collect();
    files.sort();
    files
}

/// Keeps an input that fails.
fn check(name: &str, target: fn(&[u8]), input: &[u8]) {
    if panic::catch_unwind(|| target(input)).is_err() {
        let path = std::env::temp_dir().join(format!("perp-engine-{name}"));
        fs::write(&path, input).expect("there is room for the input");
        eprintln!("{name} failed on the input in {}", path.display());
        std::process::exit(1);
    }
}

/// A line of a dictionary: a word in quotes, with `\"`, `\\` and `\xAB`.
fn word(line: &str) -> Option<Vec<u8>> {
    let text = line.strip_prefix('"')?.strip_suffix('"')?.as_bytes();
    let (mut word, mut at) = (Vec::new(), 0);
    while at < text.len() {
        match &text[at..] {
            [b'\\', b'x', high, low, ..] => {
                let digits = [*high, *low];
                word.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
                at += 4;
            }
            [b'\\', escaped, ..] => {
                word.push(*escaped);
                at += 2;
            }
            [byte, ..] => {
                word.push(*byte);
                at += 1;
            }
            [] => break,
        }
    }
    Some(word)
}

/// Xorshift: the same inputs in every build.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// One to four changes: a bit, a byte, a number, a word, a part that is cut, taken out or doubled.
fn mutated(seed: &[u8], words: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let to = at + random.below(bytes.len() + 1 - at);
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
            3 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            4 if at < bytes.len() => bytes[at] = [0, 0x7f, 0x80, 0xff][random.below(4)],
            5 if at + 4 <= bytes.len() => {
                let number = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][random.below(5)];
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            6 | 7 if !words.is_empty() => {
                let word = words[random.below(words.len())].iter().copied();
                // In the place of what is there, or between.
                let end = if random.below(2) == 0 { at } else { to };
                drop(bytes.splice(at..end, word));
            }
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
    bytes
}
