//! What reports say of ids: the commits that were taken.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::Setup;
use super::server::{COMMIT, CONVERTED, Repo};
use crate::cli_support::{CACHE, assert_succeeds};

/// A hub with the demo model, words in two splits, and pages that the hub has made Parquet of.
fn setup() -> Setup {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let demo = root.join("models/demo").read_dir().unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(path).unwrap())
    });
    let setup = Setup::with("models/owner/demo", Repo { files: demo.collect(), ..Repo::default() });
    let novel = std::fs::read_to_string(root.join("data/austen/persuasion.txt")).unwrap();
    let lines: Vec<String> = novel.split("\n\n").map(|part| json!({"text": part}).to_string() + "\n").collect();
    let (train, test) = (lines[..60].concat(), lines[60..100].concat());
    setup
        .server
        .add("datasets/owner/words", Repo::of(&[("train.jsonl", train.as_bytes()), ("test.jsonl", test.as_bytes())]));
    let converted = Repo::of(&[("default/train/0000.jsonl", train.as_bytes())]).files;
    setup.server.add("datasets/owner/pages", Repo { converted, ..Repo::of(&[("pages.bin", b"none")]) });
    setup
}

impl Setup {
    /// Runs the program, whose hub this is; returns the report.
    fn reported(&self, words: &[&str], report: &str) -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
        for variable in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(variable);
        }
        for variable in ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(variable);
        }
        command.env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE).env("HF_HOME", self.folder.path());
        command.env("HF_ENDPOINT", &self.settings.endpoint).current_dir(self.folder.path()).args(words);
        assert_succeeds(&command.output().unwrap());
        serde_json::from_slice(&std::fs::read(self.folder.path().join(report)).unwrap()).unwrap()
    }
}

#[test]
fn the_command_of_a_report_names_the_commits_and_gives_the_same_again() {
    let setup = setup();
    let given = "retrain --model owner/demo --train owner/words owner/pages --eval owner/words:test.jsonl@refs/pr/1 --eval-every 2 \
                 --validation owner/words --criterion wanda --calibrate owner/pages --calibration-samples 4 --seq-len 32 --steps 2 \
                 --batch 2 --accumulate 1 --eval-windows 8 --rank 2 --threads 2 --report run.json --log run.jsonl";
    let words: Vec<&str> = given.split_whitespace().collect();
    let first = setup.reported(&words, "run.json");
    let command = first["command"].as_str().unwrap();
    let expected = words
        .join(" ")
        .replace("owner/demo", &format!("owner/demo@{COMMIT}"))
        .replace("owner/words ", &format!("owner/words@{COMMIT} "))
        .replace("test.jsonl@refs/pr/1", &format!("test.jsonl@{COMMIT}"))
        .replace("owner/pages", &format!("owner/pages@{CONVERTED}"));
    assert_eq!(command, format!("perp-engine {expected}"));
    let log = std::fs::read_to_string(setup.folder.path().join("run.jsonl")).unwrap();
    let config: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(config["command"], command);

    // A branch that moves on does not come into it: nobody asks for one.
    setup.server.requests();
    let again = setup.reported(&command.split(' ').skip(1).collect::<Vec<_>>(), "run.json");
    assert!(setup.server.requests().is_empty());
    assert_eq!((&again["perplexity"], &again["command"]), (&first["perplexity"], &first["command"]));
}

#[test]
fn so_does_that_of_a_run_of_a_sweep() {
    let setup = setup();
    let grid = "[run]\nmodel = 'owner/demo'\ntrain = 'owner/words'\nsteps = 2\nbatch = 2\naccumulate = 1\nseq-len = 32\nrank = 2\n\
                [grid]\nseed = [3]\n";
    std::fs::write(setup.folder.path().join("grid.toml"), grid).unwrap();
    setup.reported(&["sweep", "grid.toml", "--out", "all"], "all/comparison.json");
    let reports: Vec<_> = setup.folder.path().join("all/runs").read_dir().unwrap().collect();
    assert_eq!(reports.len(), 1);
    let report: Value = serde_json::from_slice(&std::fs::read(reports[0].as_ref().unwrap().path()).unwrap()).unwrap();
    let command = report["command"].as_str().unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    for id in ["owner/demo", "owner/words"] {
        assert!(words.contains(&format!("{id}@{COMMIT}").as_str()), "{command}");
    }
}
