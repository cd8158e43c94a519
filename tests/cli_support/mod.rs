//! Runs the program on a small model that it makes itself.

// Each test file uses a part of this.
#![allow(dead_code)]

pub mod runs;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use assert_cmd::Command;
use tempfile::TempDir;

/// Where tests keep tokens: not in the user's cache.
pub const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");

/// The program with arguments.
pub fn program(args: &[&str]) -> Command {
    let mut command = bare(args);
    command.args(["--threads", "2"]);
    command
}

/// The program with nothing added, on a machine without a GPU or a hub.
pub fn bare(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("perp-engine").expect("the binary is built");
    command.args(args).env("CUDA_VISIBLE_DEVICES", "").env("XDG_CACHE_HOME", CACHE).env("HF_HUB_OFFLINE", "1");
    command
}

/// Fails with `code` and one line of error that holds every part; nothing panics.
pub fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let line = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_else(|| panic!("no error: {stderr}"));
    for part in parts {
        assert!(line.contains(part), "'{part}' is not in: {line}");
    }
}

/// Succeeds; returns standard output.
pub fn assert_succeeds(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with a small OPT (2 layers of 32, context 32), its tokenizer, and text; made once, by `pretrain`.
pub struct Fixture {
    folder: TempDir,
}

impl Fixture {
    pub fn get() -> &'static Fixture {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| {
            let folder = TempDir::new().unwrap();
            let fixture = Fixture { folder };
            let novel = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/austen/persuasion.txt");
            let novel = std::fs::read_to_string(novel).unwrap();
            let part =
                |range: std::ops::Range<usize>| novel.chars().skip(range.start).take(range.len()).collect::<String>();
            std::fs::write(fixture.train(), part(0..60_000)).unwrap();
            std::fs::write(fixture.eval(), part(60_000..70_000)).unwrap();
            std::fs::write(fixture.path("config.json"), SMALL_OPT).unwrap();
            let (config, train, eval) = (fixture.path("config.json"), fixture.train(), fixture.eval());
            let model = fixture.model();
            let args = [
                "pretrain",
                "--model",
                text(&config),
                "--train",
                text(&train),
                "--eval",
                text(&eval),
                "--out",
                text(&model),
                "--steps",
                "700",
                "--batch",
                "8",
                "--lr",
                "5e-3",
                "--quiet",
            ];
            assert_succeeds(&program(&args).output().unwrap());
            fixture
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn model(&self) -> PathBuf {
        self.path("model")
    }

    pub fn train(&self) -> PathBuf {
        self.path("train.txt")
    }

    pub fn eval(&self) -> PathBuf {
        self.path("eval.txt")
    }

    /// A copy of the model folder, for a test to damage.
    pub fn copy(&self) -> TempDir {
        let copy = TempDir::new().unwrap();
        for entry in std::fs::read_dir(self.model()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    /// A copy with NaN for all values of these tensors.
    pub fn with_nan(&self, tensors: &[&str]) -> TempDir {
        let copy = self.copy();
        let path = copy.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        for tensor in tensors {
            let range = {
                let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
                let data = file.tensor(tensor).unwrap();
                let first = data.data().as_ptr() as usize - bytes.as_ptr() as usize;
                first..first + data.data().len()
            };
            bytes[range].as_chunks_mut().0.iter_mut().for_each(|value| *value = f32::NAN.to_le_bytes());
        }
        std::fs::write(&path, bytes).unwrap();
        copy
    }
}

const SMALL_OPT: &str = r#"{
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 300, "hidden_size": 32,
    "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 2, "max_position_embeddings": 32,
    "word_embed_proj_dim": 32, "init_std": 0.1, "torch_dtype": "float32"
}"#;
