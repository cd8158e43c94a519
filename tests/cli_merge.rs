//! Adapters that merge, as a user runs them: `retrain` with the methods that keep every zero, and `merge`.

mod cli_support;

use std::collections::BTreeMap;
use std::path::Path;

use cli_support::runs::Place;
use cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Tensors of a folder by name: their bytes.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Which of a matrix' entries, all f32, are zero.
fn zeros(bytes: &[u8]) -> Vec<bool> {
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x) == 0.0).collect()
}

fn is_pruned(name: &str) -> bool {
    name.contains(".layers.") && (name.contains("proj.") || name.contains(".fc")) && name.ends_with(".weight")
}

fn assert_same_zeros(before: &Path, after: &Path) {
    let (before, after) = (tensors(before), tensors(after));
    let pruned: Vec<_> = before.keys().filter(|name| is_pruned(name)).collect();
    assert_eq!(pruned.len(), 12);
    for name in pruned {
        assert!(zeros(&before[name]) == zeros(&after[name]), "{name}: its zeros have moved");
        assert!(before[name] != after[name], "{name}: nothing was merged");
    }
}

fn perplexity(folder: &Path, adapter: Option<&Path>) -> f64 {
    let fixture = Fixture::get();
    let dir = TempDir::new().unwrap();
    let (report, eval) = (dir.path().join("eval.json"), fixture.eval());
    let mut args =
        vec!["eval", "--model", text(folder), "--eval", text(&eval), "--report", text(&report), "--eval-windows", "16"];
    adapter.into_iter().for_each(|adapter| args.extend(["--adapter", text(adapter)]));
    assert_succeeds(&program(&args).output().unwrap());
    json(&report)["perplexity"].as_f64().unwrap()
}

/// What another order of sums in f32 does to a perplexity: a logit is a sum of 32 products and an adapter's 4, each rounding by at most
/// 2⁻²⁴ of what their magnitudes add up to, which is about 4.
const ORDER: f64 = 36.0 * 4.0 / (1 << 24) as f64;

/// The same losses, summed in batches of another size: 16·31 terms in f64, each rounding by at most 2⁻⁵³ of a sum that is some 3 a term:
/// 2e-13 of the perplexity.
fn assert_same(perplexity: f64, want: f64, what: &str) {
    assert!((perplexity / want - 1.0).abs() < 1e-12, "{what}: {perplexity}, not {want}");
}

#[test]
fn what_is_retrained_is_one_folder_with_the_zeros_of_the_pruned_model() {
    let fixture = Fixture::get();
    let dir = TempDir::new().unwrap();
    let pruned = dir.path().join("pruned");
    let model = fixture.model();
    let args = ["prune", "--model", text(&model), "--sparsity", "0.6", "--out", text(&pruned), "--quiet"];
    assert_succeeds(&program(&args).output().unwrap());
    for method in ["mask-lora", "scale-lora", "lora-prune"] {
        let place = Place::new();
        let (out, report) = (place.path("out"), place.path("run.json"));
        assert_succeeds(&place.command(&["--method", method]).output().unwrap());
        let report = json(&report);
        let [before, after] = ["pruned", "retrained"].map(|name| report["perplexity"][name].as_f64().unwrap());
        assert!(after < 0.99 * before, "{method}: {before} → {after}");
        assert_same_zeros(&pruned, &out);
        assert!(!out.join("adapter").exists());
        assert_eq!(json(&out.join("config.json"))["tie_word_embeddings"], false);
        assert_eq!(report["merged"]["matrices"], 13);
        assert_eq!(report["merged"]["zeros_before"], report["merged"]["zeros_after"]);
        assert_eq!(report["sparsity"]["weights"], report["sparsity"]["with_adapters"]);
        // The embedding is as it was; the head is the embedding's no longer.
        let (dense, merged) = (tensors(&model), tensors(&out));
        let table = "model.decoder.embed_tokens.weight";
        assert!(dense[table] == merged[table] && merged[table] != merged["lm_head.weight"]);
        // The same weights, mapped instead of packed: the same products in the same order, to which zeros add nothing.
        assert_same(perplexity(&out, None), after, method);
    }
}

/// Left as adapters they are what retraining merges them into, bit for bit: by the command, which reads their form from them.
#[test]
fn what_is_not_merged_while_it_is_retrained_can_be_later() {
    for (method, form) in [("mask-lora", "mask"), ("scale-lora", "scale"), ("lora-prune", "mask")] {
        let (now, later) = (Place::new(), Place::new());
        assert_succeeds(&now.command(&["--method", method]).output().unwrap());
        assert_succeeds(&later.command(&["--method", method, "--merge", "none"]).output().unwrap());
        let (model, adapter) = (later.path("out"), later.path("out/adapter"));
        let [merged, kept] = [&now, &later].map(|place| json(&place.path("run.json")));
        assert_eq!(kept["merged"], Value::Null);
        assert_eq!(merged["perplexity"]["pruned"], kept["perplexity"]["pruned"]);
        let retrained = |report: &Value| report["perplexity"]["retrained"].as_f64().unwrap();
        // f32 throughout: the same entries, and only the head's sums are taken in another order. lora-prune loses something.
        let apart = (retrained(&merged) / retrained(&kept) - 1.0).abs();
        assert_eq!(apart < ORDER, method != "lora-prune", "{method}: {apart}");
        assert_same(perplexity(&model, Some(&adapter)), retrained(&kept), method);

        // Each entry of f32 is a sum of 4 products and w, each rounding by at most 2⁻²⁴ of magnitudes that are below 2·|w|.
        if method != "lora-prune" {
            let [merged, kept] = [&merged, &kept].map(|report| report["matrices"].as_array().unwrap());
            for (merged, kept) in merged.iter().zip(kept) {
                let [now, later] = [merged, kept].map(|matrix| matrix["changed_norm"].as_f64().unwrap());
                let most = 5.0 * 2.0 * merged["dense_norm"].as_f64().unwrap() / f64::from(1 << 24);
                assert!(now > 100.0 * most && (now - later).abs() < most, "{method} {merged} {kept}");
            }
        }

        let out = later.path("merged");
        let args = ["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&out)];
        let chosen = ["--form", "mask"];
        let args_chosen = [&args[..], if method == "lora-prune" { &chosen } else { &[] }].concat();
        let told = assert_succeeds(&bare(&args_chosen).output().unwrap());
        assert!(told.contains("12 matrices") && told.contains("1 matrices"), "{told}");
        assert!(tensors(&out) == tensors(&now.path("out")), "{method}: another merge");
        assert_eq!(json(&out.join("config.json")), json(&now.path("out/config.json")));
        let other = later.path("other");
        let args = ["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&other), "--form"];
        let run = |form: &str| bare(&[&args[..], &[form]].concat()).output().unwrap();
        if method != "lora-prune" {
            assert_fails(&run("add"), 1, &[text(&adapter), "in another form than it was trained in"]);
            assert!(!other.exists());
        }
        assert_succeeds(&run(form));
        assert!(tensors(&other) == tensors(&out));
    }
}

#[test]
fn the_heads_adapter_can_stay_one() {
    let place = Place::new();
    let out = place.path("out");
    let flags = ["--method", "mask-lora", "--merge", "layers", "--targets", "fc1", "--pattern", "2:4"];
    assert_succeeds(&place.command(&flags).output().unwrap());
    let report = json(&place.path("run.json"));
    assert_eq!(report["merged"]["matrices"], 2);
    assert_ne!(json(&out.join("config.json"))["tie_word_embeddings"], false);
    let adapter = json(&out.join("adapter/adapter_config.json"));
    assert_eq!(adapter["target_modules"], serde_json::json!(["lm_head"]));
    let retrained = report["perplexity"]["retrained"].as_f64().unwrap();
    assert_same(perplexity(&out, Some(&out.join("adapter"))), retrained, "the head's adapter beside the model");

    let output = Place::new().command(&["--merge", "none"]).output().unwrap();
    assert_fails(&output, 2, &["--merge goes with the methods mask-lora, scale-lora and lora-prune"]);
    let output = Place::new().command(&["--parts", "mask-lora,lora"]).output().unwrap();
    assert_fails(&output, 2, &["a layer has one adapter"]);
}

/// With --form add the merged model computes what the adapter model does, up to the order of sums in f32; with mask the pruned
/// matrices keep their zeros, and what is not a target every bit. Which of them is wanted must be said.
#[test]
fn an_adapter_merges_into_its_model_and_zeros_stay_unless_asked() {
    let place = Place::new();
    assert_succeeds(&place.command(&["--targets", "all-linear"]).output().unwrap());
    let (model, adapter) = (place.path("out"), place.path("out/adapter"));
    let merge = |name: &str, flags: &[&str]| {
        let out = place.path(name);
        let args = ["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&out)];
        let told = bare(&[&args[..], flags].concat()).output().unwrap();
        (out, String::from_utf8_lossy(&told.stderr).into_owned(), assert_succeeds(&told))
    };
    let no = place.path("no");
    let mut refused = bare(&["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&no)]);
    let says = [text(&adapter), "is plain LoRA", "is pruned", "--form mask keeps the zeros", "--form add fills them"];
    assert_fails(&refused.output().unwrap(), 1, &says);
    assert!(!no.exists());
    let with_adapter = perplexity(&model, Some(&adapter));
    let (added, warned, _) = merge("added", &["--form", "add"]);
    assert!(warned.contains("--form add filled") && warned.contains("--form mask would have kept them"), "{warned}");
    assert!((perplexity(&added, None) / with_adapter - 1.0).abs() < ORDER);

    let (kept, warned, told) = merge("kept", &["--form", "mask"]);
    assert!(
        told.contains("12 matrices") && told.contains("zeros kept") && !warned.contains("filled"),
        "{told}{warned}"
    );
    assert_same_zeros(&model, &kept);
    assert_eq!(json(&kept.join("config.json"))["tie_word_embeddings"], false);
    let (before, after) = (tensors(&model), tensors(&kept));
    for (name, bytes) in before.iter().filter(|(name, _)| !is_pruned(name)) {
        assert!(*bytes == after[name], "{name} has changed");
    }
    assert_eq!(after.len(), before.len() + 1, "the head is new");
    assert!(kept.join("tokenizer.json").exists());
    // Of what plain LoRA puts where zeros are, nothing is left: another model, no worse than the pruned one.
    let pruned = json(&place.path("run.json"))["perplexity"]["pruned"].as_f64().unwrap();
    let masked = perplexity(&kept, None);
    assert!(masked != with_adapter && masked < pruned, "{pruned} → {masked}, {with_adapter} with the adapter beside");

    // In f16 every entry is the nearest to that of f32, and none has become zero.
    let (half, ..) = merge("half", &["--form", "mask", "--dtype", "f16"]);
    let rounded = tensors(&half);
    for (name, bytes) in after.iter().filter(|(name, _)| is_pruned(name)) {
        let want = bytes.as_chunks::<4>().0.iter().flat_map(|x| {
            let x = f32::from_le_bytes(*x);
            let nearest = f16::from_f32(x);
            if nearest == f16::ZERO && x != 0.0 { f16::from_bits(1).copysign(f16::from_f32(x)) } else { nearest }
                .to_le_bytes()
        });
        assert!(want.eq(rounded[name].iter().copied()), "{name}");
    }
    let listed = assert_succeeds(&bare(&["inspect", text(&half), "--json"]).output().unwrap());
    let sparsity = |text: &str| serde_json::from_str::<Value>(text).unwrap()["layer_matrices"]["sparsity"].clone();
    let of_model = assert_succeeds(&bare(&["inspect", text(&model), "--json"]).output().unwrap());
    assert_eq!(sparsity(&listed), sparsity(&of_model));
}

/// Plain LoRA on dense matrices, the head and one role: W + s·B·A, without a choice to make.
#[test]
fn plain_lora_merges_into_dense_matrices() {
    let place = Place::new();
    assert_succeeds(&place.command(&["--sparsity", "0", "--parts", "head,lora", "--targets", "fc2"]).output().unwrap());
    let (model, adapter, out) = (place.path("out"), place.path("out/adapter"), place.path("merged"));
    let args = ["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&out), "--report"];
    let report = place.path("merge.json");
    assert_succeeds(&bare(&[&args[..], &[text(&report)]].concat()).output().unwrap());
    let report = json(&report);
    assert_eq!((&report["added"]["matrices"], &report["zeros_kept"]["matrices"]), (&3.into(), &0.into()));
    let (with_adapter, without) = (perplexity(&model, Some(&adapter)), perplexity(&model, None));
    let merged = perplexity(&out, None);
    assert!((merged / with_adapter - 1.0).abs() < ORDER && (merged / without - 1.0).abs() > 100.0 * ORDER);
}

/// Runs of a sweep start from the pruned model, not from what the one before merged into it.
#[test]
fn a_sweep_merges_in_each_run_alone() {
    let fixture = Fixture::get();
    let place = Place::new();
    let (file, out) = (place.path("sweep.toml"), place.path("sweep"));
    let [model, train, eval] = [fixture.model(), fixture.train(), fixture.eval()].map(|path| text(&path).to_string());
    let run = format!(
        "[run]\nmodel = {model:?}\ntrain = {train:?}\neval = {eval:?}\nsteps = 3\nbatch = 2\nrank = 4\nlr = 2e-3\n\
         sparsity = 0.6\neval-windows = 16\nthreads = 2\n[grid]\nmethod = [\"perp\", \"mask-lora\", \"norms\", \"scale-lora\"]\n"
    );
    std::fs::write(&file, run).unwrap();
    assert_succeeds(&bare(&["sweep", text(&file), "--out", text(&out), "--quiet"]).output().unwrap());
    let reports: Vec<Value> =
        std::fs::read_dir(out.join("runs")).unwrap().map(|entry| json(&entry.unwrap().path())).collect();
    assert_eq!(reports.len(), 4);
    for report in reports {
        let method = report["method"].as_str().unwrap();
        let alone = Place::new();
        let flags = ["--method", method, "--steps", "3", "--batch", "2", "--accumulate", "4"];
        assert_succeeds(&alone.command(&flags).output().unwrap());
        let alone = json(&alone.path("run.json"));
        assert_eq!(report["perplexity"], alone["perplexity"], "{method}");
        assert_eq!(report["merged"], alone["merged"], "{method}");
        assert_eq!(report["matrices"], alone["matrices"], "{method}");
    }
}

/// A file of the bare decoder names no head and has no prefix: merged with a head of its own it is a whole model.
#[test]
fn a_bare_decoder_takes_an_adapter_too() {
    let place = Place::new();
    assert_succeeds(&place.command(&["--steps", "2"]).output().unwrap());
    let (model, adapter) = (place.path("out"), place.path("out/adapter"));
    let merge = |model: &Path, name: &str| {
        let out = place.path(name);
        let args = [
            "merge",
            "--model",
            text(model),
            "--adapter",
            text(&adapter),
            "--out",
            text(&out),
            "--quiet",
            "--form",
            "mask",
        ];
        assert_succeeds(&bare(&args).output().unwrap());
        out
    };
    let whole = merge(&model, "whole");
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed =
        file.tensors().into_iter().map(|(name, view)| (name.strip_prefix("model.").unwrap().to_string(), view));
    safetensors::serialize_to_file(renamed, None, &model.join("model.safetensors")).unwrap();
    assert!(tensors(&merge(&model, "of bare")) == tensors(&whole));
}

/// What drops doubles from PyTorch's files leaves a table that is tied under either name.
#[test]
fn a_tied_table_under_the_heads_name_is_the_embeddings_too() {
    let place = Place::new();
    assert_succeeds(&place.command(&["--steps", "2"]).output().unwrap());
    let (model, adapter) = (place.path("out"), place.path("out/adapter"));
    let want = perplexity(&model, Some(&adapter));
    let merge = |name: &str| {
        let out = place.path(name);
        let args = ["merge", "--model", text(&model), "--adapter", text(&adapter), "--out", text(&out), "--quiet"];
        assert_succeeds(&bare(&[&args[..], &["--form", "mask"]].concat()).output().unwrap());
        out
    };
    let whole = merge("whole");
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = file.tensors().into_iter().map(|(name, view)| {
        (if name.ends_with("embed_tokens.weight") { "lm_head.weight".to_string() } else { name }, view)
    });
    safetensors::serialize_to_file(renamed, None, &model.join("model.safetensors")).unwrap();
    assert_eq!(perplexity(&model, Some(&adapter)), want);
    assert!(tensors(&merge("of the head's")) == tensors(&whole));
}

#[test]
fn an_adapter_of_another_model_is_named_and_nothing_is_written() {
    let fixture = Fixture::get();
    let place = Place::new();
    assert_succeeds(&place.command(&["--steps", "1"]).output().unwrap());
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let (adapter, out) = (place.path("out/adapter"), place.path("merged"));
    let args = ["merge", "--model", text(&demo), "--adapter", text(&adapter), "--out", text(&out)];
    assert_fails(&bare(&args).output().unwrap(), 1, &["lm_head has the shape", "it belongs to another model"]);
    assert!(!out.exists());
    let model = fixture.model();
    let args = ["merge", "--model", text(&model), "--adapter", text(&model), "--out", text(&out)];
    assert_fails(&bare(&args).output().unwrap(), 1, &["adapter_config.json"]);
    assert!(!out.exists());
}
