//! The program, given ids.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

use super::Setup;
use super::server::{COMMIT, Mishap, On, Repo};
use crate::cli_support::{CACHE, assert_fails, assert_succeeds, text};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The demo model as a repository, with what is not needed of it.
fn demo() -> Repo {
    let mut files = Vec::new();
    for entry in Path::new(ROOT).join("models/demo").read_dir().unwrap() {
        let path = entry.unwrap().path();
        files.push((path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(path).unwrap()));
    }
    files.push(("pytorch_model.bin".into(), b"code".to_vec()));
    Repo { files: files.into_iter().collect(), ..Repo::default() }
}

/// Paragraphs of a novel.
fn paragraphs(novel: &str, count: usize) -> Vec<String> {
    let novel = std::fs::read_to_string(Path::new(ROOT).join(format!("data/austen/{novel}.txt"))).unwrap();
    let all = novel.split("\n\n").map(|paragraph| paragraph.trim().replace('\n', " "));
    all.filter(|paragraph| !paragraph.is_empty()).cycle().take(count).collect()
}

fn rows_of_parquet(rows: &[String]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message rows { required binary text (utf8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(row.as_str())).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

fn lines_gzipped(documents: &[String]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for document in documents {
        writeln!(out, "{}", serde_json::json!({"text": document, "url": "u"})).unwrap();
    }
    out.finish().unwrap()
}

impl Setup {
    /// The program, whose hub this is.
    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perp-engine"));
        command.args(args).current_dir(self.folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for variable in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
            command.env_remove(variable);
        }
        for variable in ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(variable);
        }
        command
            .env("CUDA_VISIBLE_DEVICES", "")
            .env("XDG_CACHE_HOME", CACHE)
            .env("HF_HOME", self.folder.path())
            .env("HF_ENDPOINT", &self.settings.endpoint);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("report.json")).unwrap()).unwrap()
    }

    /// The perplexity and windows of `eval` in windows of 32 tokens.
    fn evaluated(&self, model: &str, eval: &str) -> (f64, u64) {
        let args = ["eval", "--model", model, "--eval", eval, "--seq-len", "32", "--batch", "16"];
        let mut command = self.program(&args);
        assert_succeeds(&command.args(["--threads", "2", "--report", "report.json"]).output().unwrap());
        let report = self.report();
        (report["perplexity"].as_f64().unwrap(), report["windows"].as_u64().unwrap())
    }
}

#[test]
fn a_model_of_the_hub_is_retrained_as_the_same_folder_is() {
    let setup = Setup::with("models/owner/demo", demo());
    let documents = paragraphs("emma", 200);
    let words = Repo::of(&[
        ("en/words-train.00000-of-00002.json.gz", lines_gzipped(&documents).as_slice()),
        ("en/words-train.00001-of-00002.json.gz", lines_gzipped(&documents[..50]).as_slice()),
        ("en/words-validation.00000-of-00001.json.gz", lines_gzipped(&paragraphs("persuasion", 40)).as_slice()),
    ]);
    for (name, bytes) in &words.files {
        std::fs::write(setup.path(name.rsplit('/').next().unwrap()), bytes).unwrap();
    }
    setup.server.add("datasets/owner/words", words);
    let run = |model: &str, train: &str, eval: &str, out: &str| {
        let args =
            ["retrain", "--model", model, "--train", train, "--eval", eval, "--out", out, "--report", "report.json"];
        let flags = "--seq-len 32 --steps 3 --batch 2 --accumulate 1 --eval-windows 8 --rank 2 --threads 2 --eval-every 2 \
                     --criterion wanda --calibration-samples 4 --calibrate";
        let mut command = setup.program(&args);
        let output = command.args(flags.split_whitespace()).arg(train).output().unwrap();
        let summary = assert_succeeds(&output);
        (summary, String::from_utf8(output.stderr).unwrap(), setup.report())
    };
    let (summary, told, ours) = run("owner/demo", "owner/words:en", "owner/words:en", "from_hub");
    assert!(summary.starts_with("owner/demo · "), "{summary}");
    for part in ["fetch owner/demo: ", "owner/words:en: file 1 to 1 of 2; --shards takes more"] {
        assert!(told.contains(part), "{told}");
    }
    let asked = setup.asked();
    assert!(!asked.iter().any(|path| path.contains(".bin")), "{asked:?}");
    let folder = Path::new(ROOT).join("models/demo");
    let (train, eval) = ("words-train.00000-of-00002.json.gz", "words-validation.00000-of-00001.json.gz");
    let (_, _, theirs) = run(text(&folder), train, eval, "from_folder");
    assert_eq!(ours["perplexity"], theirs["perplexity"]);
    assert!(ours["perplexity"]["retrained"].as_f64().unwrap() > 1.0);
    let loss = |report: &Value| -> Vec<Value> {
        report["steps"].as_array().unwrap().iter().map(|step| step["loss"].clone()).collect()
    };
    assert_eq!(loss(&ours), loss(&theirs));
    assert!(setup.asked().is_empty(), "what is a path is none of the hub's");
    // Its links have become files.
    for name in ["model.safetensors", "tokenizer.json", "adapter/adapter_model.safetensors"] {
        let (hub, folder) = (setup.path("from_hub").join(name), setup.path("from_folder").join(name));
        assert!(!hub.symlink_metadata().unwrap().is_symlink());
        assert!(std::fs::read(hub).unwrap() == std::fs::read(folder).unwrap(), "{name}");
    }
    // The commit can be told from the report.
    assert!(ours["config"]["model"].as_str().unwrap().ends_with(&format!("snapshots/{COMMIT}")));
}

#[test]
fn a_sweep_s_runs_and_generate_take_ids() {
    let setup = Setup::with("models/owner/demo", demo());
    let words = Repo::of(&[
        ("en/words-train.json.gz", lines_gzipped(&paragraphs("emma", 100)).as_slice()),
        ("en/words-test.json.gz", lines_gzipped(&paragraphs("persuasion", 40)).as_slice()),
    ]);
    setup.server.add("datasets/owner/words", words);
    let grid = "[run]\nmodel = 'owner/demo'\ntrain = 'owner/words:en'\neval = ['owner/words:en']\nsteps = 2\nbatch = 2\n\
                accumulate = 1\nseq-len = 32\neval-windows = 4\nrank = 2\n[grid]\nseed = [0, 1]\n";
    std::fs::write(setup.path("grid.toml"), grid).unwrap();
    let output = setup.program(&["sweep", "grid.toml", "--out", "all"]).output().unwrap();
    assert_succeeds(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("fetch owner/demo: "), "{told}");
    assert!(told.contains("prune: as the run before"), "{told}");
    let reports: Vec<_> = setup.path("all/runs").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(reports.len(), 2);
    for report in reports {
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        assert_eq!(report["model"], "owner/demo");
        assert!(report["perplexity"]["retrained"].as_f64().unwrap() > 1.0);
    }
    let folder = Path::new(ROOT).join("models/demo");
    let said = |models: &[&str]| -> (String, Value) {
        let mut command =
            setup.program(&["generate", "--prompt", "She was", "--tokens", "8", "--report", "report.json"]);
        for model in models {
            command.args(["--model", model]);
        }
        (assert_succeeds(&command.output().unwrap()), setup.report())
    };
    let (out, both) = said(&["owner/demo", text(&folder)]);
    assert!(out.lines().nth(2).is_some_and(|names| names.starts_with("owner/demo ")), "{out}");
    assert_eq!(both[0]["model"], "owner/demo");
    assert_eq!(both[0]["tokens"].as_array().unwrap().len(), 8);
    assert_eq!(both[0]["tokens"], both[1]["tokens"]);
}

#[test]
fn protocols_are_texts_joined_and_counted_as_the_field_does() {
    let setup = Setup::with("models/owner/demo", demo());
    let mut rows = paragraphs("persuasion", 300);
    for at in [0, 7, 100] {
        rows[at] = String::new(); // as WikiText has them
    }
    let wikitext = Repo::of(&[
        ("wikitext-2-raw-v1/test-00000-of-00001.parquet", &rows_of_parquet(&rows)),
        ("wikitext-2-raw-v1/train-00000-of-00001.parquet", b"not asked for"),
        ("wikitext-103-raw-v1/test-00000-of-00001.parquet", b"not asked for"),
    ]);
    setup.server.add("datasets/Salesforce/wikitext", wikitext);
    // 1,100 documents of some 100 tokens are more than 256 windows of 32.
    let documents = paragraphs("emma", 1200);
    let c4 = Repo::of(&[
        ("en/c4-train.00000-of-01024.json.gz", b"not asked for"),
        ("en/c4-validation.00000-of-00008.json.gz", &lines_gzipped(&documents)),
        ("en/c4-validation.00001-of-00008.json.gz", b"not asked for"),
    ]);
    setup.server.add("datasets/allenai/c4", c4);

    std::fs::write(setup.path("rows.txt"), rows.join("\n\n")).unwrap();
    let ours = setup.evaluated("owner/demo", "wikitext2");
    assert_eq!(setup.report()["protocol"], "wikitext2");
    assert_eq!(ours, setup.evaluated("owner/demo", "rows.txt"));

    std::fs::write(setup.path("documents.txt"), documents[..1100].join(" ")).unwrap();
    let (value, windows) = setup.evaluated("owner/demo", "c4");
    assert_eq!(windows, 256);
    let mut command = setup.program(&["eval", "--model", "owner/demo", "--eval", "documents.txt", "--seq-len", "32"]);
    command.args(["--batch", "16", "--threads", "2", "--eval-windows", "256", "--report", "report.json"]);
    assert_succeeds(&command.output().unwrap());
    assert_eq!(setup.report()["perplexity"].as_f64(), Some(value));

    let mut alone = setup.program(&["eval", "--model", "owner/demo", "--eval", "c4", "rows.txt"]);
    assert_fails(&alone.output().unwrap(), 2, &["--eval c4 stands alone"]);
    // A file of that name is that file.
    std::fs::write(setup.path("c4"), "text").unwrap();
    let mut file = setup.program(&["eval", "--model", "owner/demo", "--eval", "c4"]);
    assert_fails(&file.output().unwrap(), 1, &["c4: not a supported kind of text"]);
}

#[test]
fn commands_that_need_no_weights_fetch_none() {
    let setup = Setup::with("models/owner/demo", demo());
    let output = setup.program(&["profile", "--model", "owner/demo", "--seq-len", "32"]).output().unwrap();
    assert!(assert_succeeds(&output).contains("fits"), "{output:?}");
    let asked = setup.asked();
    assert!(!asked.is_empty() && !asked.iter().any(|path| path.contains("safetensors")), "{asked:?}");
    let listed = assert_succeeds(&setup.program(&["inspect", "owner/demo"]).output().unwrap());
    assert!(listed.contains("model.decoder.layers.0.fc1.weight"), "{listed}");
    // Built-in names, files of the folder and what cannot be an id are not asked for.
    setup.server.requests();
    assert_succeeds(&setup.program(&["profile", "--model", "opt-125m", "--seq-len", "32"]).output().unwrap());
    std::fs::create_dir_all(setup.path("owner/demo")).unwrap();
    for (model, part) in [
        ("owner/demo", "owner/demo/config.json: no such file"),
        ("nowhere", "nowhere: no such folder"),
        ("./owner/none", "./owner/none: no such folder"),
        ("owner/none/more", "owner/none/more: no such folder"),
    ] {
        assert_fails(&setup.program(&["inspect", model]).output().unwrap(), 1, &[part]);
    }
    let mut command = setup.program(&["retrain", "--train", "owner/none.txt", "--seq-len", "32", "--batch", "1"]);
    assert_fails(&command.output().unwrap(), 1, &["cannot read owner/none.txt"]);
    assert!(setup.server.requests().is_empty());
}

#[test]
fn weights_from_the_conversion_bot_s_pull_request_are_said_to_be() {
    let demo = demo();
    let title = "Adding `safetensors` variant of this model";
    let pull = serde_json::json!({
        "num": 12, "title": title, "isPullRequest": true, "status": "open", "author": {"name": "SFconvertbot"},
    });
    let mut old = demo.clone();
    old.files.remove("model.safetensors");
    let offered = Repo { pulls: [(12, demo.files)].into(), discussions: vec![pull], ..old.clone() };
    let setup = Setup::with("models/owner/old", offered);
    let run = |offline: &str| {
        let output = setup.program(&["inspect", "owner/old"]).env("HF_HUB_OFFLINE", offline).output().unwrap();
        let listed = assert_succeeds(&output);
        assert!(listed.contains("model.decoder.layers.0.fc1.weight"), "{listed}");
        let told = String::from_utf8(output.stderr).unwrap();
        let said =
            "fetch owner/old: main has no safetensors; all is taken from refs/pr/12, a pull request of SFconvertbot";
        assert_eq!(told.matches(said).count(), 1, "{told}");
    };
    run("0");
    setup.server.requests();
    run("1");
    assert!(setup.server.requests().is_empty());
    setup.server.add("models/owner/old", old);
    let none = setup.program(&["inspect", "owner/old"]).output().unwrap();
    assert_fails(&none, 1, &["owner/old: has no model.safetensors, only pytorch_model.bin", "owner/old@refs/pr/N"]);
}

#[test]
fn the_environment_is_the_one_that_the_hub_s_programs_read() {
    let setup = Setup::with("models/owner/demo", Repo { gate: Some("hf_good".into()), ..demo() });
    let inspect = || setup.program(&["inspect", "owner/demo@main"]);
    assert_fails(&inspect().output().unwrap(), 1, &["owner/demo: it is gated", "HF_TOKEN (there is none)"]);
    assert_fails(&inspect().env("HF_TOKEN", "hf_bad").output().unwrap(), 1, &["HF_TOKEN (the one given may not)"]);
    assert_fails(&inspect().env("HF_TOKEN", "hf\nbad").output().unwrap(), 1, &["HF_TOKEN"]);
    let offline = inspect().env("HF_HUB_OFFLINE", "1").output().unwrap();
    let cache = format!("not in the cache {}", setup.path("hub").display());
    assert_fails(&offline, 1, &["owner/demo: ", &cache, "HF_HUB_OFFLINE"]);
    assert_fails(&inspect().env("HF_ENDPOINT", "huggingface.co").output().unwrap(), 1, &["HF_ENDPOINT: ", "https://"]);
    assert_fails(
        &inspect().env("HF_HUB_DOWNLOAD_TIMEOUT", "soon").output().unwrap(),
        1,
        &["HF_HUB_DOWNLOAD_TIMEOUT: "],
    );
    let certificates = inspect().env("SSL_CERT_FILE", "/nowhere").output().unwrap();
    assert_fails(&certificates, 1, &["SSL_CERT_FILE: cannot read /nowhere"]);
    // The file that `hf auth login` writes.
    std::fs::write(setup.path("token"), "hf_good\n").unwrap();
    let elsewhere = setup.path("elsewhere");
    assert_succeeds(&inspect().env("HF_HUB_CACHE", &elsewhere).output().unwrap());
    assert!(elsewhere.join("models--owner--demo/snapshots").join(COMMIT).is_dir());
    assert!(!setup.path("hub").exists());
    let offline = inspect().env("HF_HUB_CACHE", &elsewhere).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_succeeds(&offline);
}

#[test]
fn of_two_processes_one_fetches() {
    let setup = Setup::with("models/owner/demo", demo());
    let files = demo().files;
    let needed = files.iter().filter(|(name, _)| name.ends_with(".json") || name.ends_with(".safetensors"));
    let size: usize = needed.map(|(_, bytes)| bytes.len()).sum();
    for _ in 0..4 {
        setup.server.mishap(On::Body, Mishap::Slow(100, Duration::from_millis(400)));
    }
    let both: Vec<_> = (0..2).map(|_| setup.program(&["inspect", "owner/demo"]).spawn().unwrap()).collect();
    let listed: Vec<String> = both.into_iter().map(|one| assert_succeeds(&one.wait_with_output().unwrap())).collect();
    assert_eq!(listed[0], listed[1]);
    assert_eq!(setup.server.sent(), size, "each byte once");
}

#[test]
fn a_killed_fetch_goes_on() {
    let setup = Setup::with("models/owner/demo", demo());
    setup.program(&["profile", "--model", "owner/demo", "--seq-len", "32"]).output().unwrap();
    setup.server.sent();
    let whole = demo().files["model.safetensors"].len();
    setup.server.mishap(On::Body, Mishap::Stall(whole / 2));
    let mut killed = setup.program(&["inspect", "owner/demo"]).spawn().unwrap();
    let blobs = setup.path("hub/models--owner--demo/blobs");
    let come = || -> u64 {
        let files = blobs.read_dir().unwrap().flatten();
        let incomplete = files.filter(|entry| entry.path().extension().is_some_and(|end| end == "incomplete"));
        incomplete.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
    };
    let start = std::time::Instant::now();
    while come() < whole as u64 / 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "half of it comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_succeeds(&setup.program(&["inspect", "owner/demo"]).output().unwrap());
    assert_eq!(setup.server.sent(), whole, "each byte once");
}
