//! Whole runs of `retrain` with checkpoints, and what they end in.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{CACHE, Fixture, assert_succeeds, text};

/// One run's places: the checkpoints, the model that it writes, its report.
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// New places.
    pub fn new() -> Place {
        Place { folder: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path("run")
    }

    /// Its checkpoints, the newest first.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.checkpoints())
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
        files.reverse();
        files
    }

    /// `retrain` on the fixture, small and short, with more flags.
    pub fn command(&self, flags: &[&str]) -> Command {
        let fixture = Fixture::get();
        let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
        command
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("XDG_CACHE_HOME", CACHE)
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        let path = |path: PathBuf| text(&path).to_string();
        let defaults = [
            ("--model", path(fixture.model())),
            ("--train", path(fixture.train())),
            ("--eval", path(fixture.eval())),
            ("--out", path(self.path("out"))),
            ("--report", path(self.path("run.json"))),
            ("--steps", "24".into()),
            ("--batch", "4".into()),
            ("--accumulate", "2".into()),
            ("--eval-windows", "16".into()),
            ("--rank", "4".into()),
            ("--lr", "2e-3".into()),
            ("--sparsity", "0.6".into()),
            ("--threads", "2".into()),
        ];
        command.arg("retrain");
        for (flag, value) in defaults {
            let excluded = flag == "--sparsity" && ["--pattern", "--prune"].iter().any(|other| flags.contains(other));
            if !flags.contains(&flag) && !excluded {
                command.args([flag, &value]);
            }
        }
        command.args(flags);
        command
    }

    /// The same with checkpoints.
    pub fn kept(&self, flags: &[&str]) -> Command {
        let mut command = self.command(flags);
        command.arg("--checkpoints").arg(self.checkpoints());
        command
    }

    pub fn run(&self, flags: &[&str]) -> Output {
        self.kept(flags).output().unwrap()
    }

    /// Starts a run and waits until it has written the checkpoint `newest`, or is over.
    pub fn start_until(&self, flags: &[&str], newest: &str) -> Child {
        let mut child = self.kept(flags).spawn().unwrap();
        let started = Instant::now();
        while self.files().first().is_none_or(|path| path.file_name().unwrap().to_str().unwrap() < newest)
            && child.try_wait().unwrap().is_none()
        {
            assert!(started.elapsed() < Duration::from_secs(120), "no checkpoint {newest}");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    /// Removes what a run ended in, so that the next comparison is not with what an earlier one left.
    pub fn forget_result(&self) {
        std::fs::remove_dir_all(self.path("out")).unwrap();
        std::fs::remove_file(self.path("run.json")).unwrap();
    }

    /// All that a run ends in: weights, adapter, and the report without what time and place it took.
    pub fn result(&self) -> (Vec<Vec<u8>>, Value) {
        let out = self.path("out");
        let files = ["model.safetensors", "adapter/adapter_model.safetensors"].map(|file| out.join(file));
        let bytes = files.iter().filter(|file| file.exists()).map(|file| std::fs::read(file).unwrap()).collect();
        let mut report: Value = serde_json::from_slice(&std::fs::read(self.path("run.json")).unwrap()).unwrap();
        for list in ["steps", "validation"] {
            for one in report[list].as_array_mut().unwrap() {
                assert!(one["seconds"].as_f64().unwrap() > 0.0);
                one.as_object_mut().unwrap().remove("seconds");
            }
        }
        for measured in ["seconds", "tokens_per_second", "peak_bytes", "step_detail", "command"] {
            report.as_object_mut().unwrap().remove(measured);
        }
        (bytes, report)
    }
}

/// What a run that nothing disturbs ends in.
pub fn uninterrupted(flags: &[&str]) -> (Vec<Vec<u8>>, Value) {
    let place = Place::new();
    assert_succeeds(&place.command(flags).output().unwrap());
    place.result()
}

/// The error line of a process.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
