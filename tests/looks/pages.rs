//! Pages, as a browser shows them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::browser::{Browser, FAULTS};
use crate::cli_support::runs::Place;
use crate::cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};

/// Runs `retrain` on the fixture; returns its report.
fn retrain(folder: &TempDir, name: &str, flags: &[&str]) -> PathBuf {
    let fixture = Fixture::get();
    let report = folder.path().join(name);
    let (model, train, eval) = (fixture.model(), fixture.train(), fixture.eval());
    #[rustfmt::skip]
    let mut args = vec![
        "retrain", "--model", text(&model), "--train", text(&train), "--eval", text(&eval), "--report", text(&report),
        "--steps", "12", "--batch", "2", "--accumulate", "1", "--rank", "4", "--eval-windows", "8", "--token-cache", "off",
        "--quiet",
    ];
    args.extend(flags);
    assert_succeeds(&program(&args).output().unwrap());
    report
}

fn page(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Looks at a page at every width and setting, and from a printer's side.
fn look(browser: &mut Browser, path: &Path, name: &str) {
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        browser.set(width, scheme);
        browser.open(path);
        let faults = browser.evaluate(FAULTS);
        assert_eq!(faults, Value::Array(Vec::new()), "{name}, {width} wide, {scheme}");
        let ground = browser.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(ground == "rgb(255, 255, 255)", scheme == "light", "{name}: {ground}");
        browser.picture(&format!("{name}-{width}-{scheme}"));
    }
    // Opened, the tables beside the drawings fit as well.
    browser.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)");
    assert_eq!(browser.evaluate(FAULTS), Value::Array(Vec::new()), "{name}, tables open");
    assert_eq!(browser.complaints, [] as [&str; 0], "{name}");
}

#[test]
fn pages_render_without_complaint_and_are_read_in_light_and_dark_and_on_a_phone() {
    let folder = TempDir::new().unwrap();
    let one = retrain(&folder, "one.html", &["--eval-every", "4", "--sparsity", "0.6"]);
    let cycles = retrain(&folder, "cycles.html", &["--cycles", "2", "--sparsity", "0.7", "--method", "full"]);
    let mut reports = Vec::new();
    for (i, flags) in [
        ["--sparsity", "0.5", "--method", "norms", "--seed", "0"],
        ["--sparsity", "0.5", "--method", "norms", "--seed", "1"],
        ["--sparsity", "0.7", "--method", "norms", "--seed", "0"],
        ["--sparsity", "0.5", "--method", "perp", "--seed", "0"],
        ["--pattern", "2:4", "--method", "perp", "--seed", "0"],
    ]
    .iter()
    .enumerate()
    {
        reports.push(retrain(&folder, &format!("{i}.json"), flags));
    }
    let compared = folder.path().join("compared.html");
    let mut args = vec!["report", "--out", text(&compared), "--title", "Runs & <more>"];
    args.extend(reports.iter().map(|path| text(path)));
    assert_succeeds(&bare(&args).output().unwrap());

    let html = page(&one);
    for part in
        ["Loss", "Gradient norm", "Learning rate", "While training", "Sparsity", "Change of the weights", "Memory"]
    {
        assert!(html.contains(&format!("<h3>{part}</h3>")), "{part}");
    }
    assert!(html.contains("linear_forward") && html.contains("perp-engine retrain --model"), "kernels and the command");
    assert!(page(&cycles).contains("<h3>Cycles</h3>"));
    let html = page(&compared);
    assert!(html.contains("Runs &amp; &lt;more&gt;") && html.contains(" ± "), "the title, and two seeds");
    for part in ["Perplexity against sparsity", "Perplexity against trainable share", "Training loss"] {
        assert!(html.contains(&format!("<h3>{part}</h3>")), "{part}");
    }
    let Some(mut browser) = Browser::start() else { return };
    look(&mut browser, &one, "run");
    look(&mut browser, &cycles, "cycles");
    look(&mut browser, &compared, "compared");
}

#[test]
fn the_report_holds_what_the_page_shows_and_agrees_with_itself() {
    let folder = TempDir::new().unwrap();
    let report: Value = serde_json::from_str(&page(&retrain(&folder, "run.json", &["--sparsity", "0.6"]))).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let matrices = report["matrices"].as_array().unwrap();
    assert_eq!(matrices.len(), 2 * 6);
    let sum = |field: &str| matrices.iter().map(|matrix| number(&matrix[field])).sum::<f64>();
    assert!((sum("zeros") / sum("entries") - number(&report["sparsity"]["weights"])).abs() < 1e-12);
    for matrix in matrices {
        let [dense, removed, changed] =
            ["dense_norm", "removed_norm", "changed_norm"].map(|field| number(&matrix[field]));
        // The smallest 60 % hold less than 60 % of the squares.
        assert!(removed > 0.0 && removed < 0.6f64.sqrt() * dense, "{matrix}");
        // LoRA is on q_proj and v_proj; the others' weights are frozen.
        let trains = ["q_proj", "v_proj"].iter().any(|role| matrix["name"].as_str().unwrap().ends_with(role));
        assert_eq!(changed > 0.0, trains, "{matrix}");
    }
    let detail = &report["step_detail"];
    assert_eq!(detail["step"], 2);
    let totals: Vec<u64> = detail["memory"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sample| sample.as_array().unwrap().iter().map(|bytes| bytes.as_u64().unwrap()).sum())
        .collect();
    // The peak of training is that of a step, and a step gives back what it took.
    assert_eq!(totals.iter().max(), report["peak_bytes"]["total"].as_u64().as_ref());
    assert!(totals.len() > 100 && totals.len() <= 1024);
    let timed: f64 = detail["kernels"].as_array().unwrap().iter().map(|kernel| number(&kernel["seconds"])).sum();
    assert!(timed > 0.0 && timed <= number(&detail["seconds"]), "{timed} of {}", detail["seconds"]);
}

#[test]
fn hostile_names_are_shown_and_not_run() {
    let folder = TempDir::new().unwrap();
    let report = retrain(&folder, "run.json", &[]);
    let mut value: Value = serde_json::from_str(&page(&report)).unwrap();
    let bad =
        "x</title></table><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'&";
    for field in ["model", "method", "criterion", "device", "command"] {
        value[field] = bad.into();
    }
    value["config"][bad] = bad.into();
    value["matrices"][0]["name"] = bad.into();
    value["step_detail"]["kernels"][0]["kernel"] = bad.into();
    std::fs::write(&report, value.to_string()).unwrap();
    let other = folder.path().join("o<b>.json");
    value["seed"] = 1.into();
    std::fs::write(&other, value.to_string()).unwrap();
    let (one, two) = (folder.path().join("one.html"), folder.path().join("two.html"));
    assert_succeeds(&bare(&["report", "--out", text(&one), text(&report)]).output().unwrap());
    assert_succeeds(&bare(&["report", "--out", text(&two), text(&report), text(&other)]).output().unwrap());
    for path in [&one, &two] {
        let html = page(path);
        assert!(!html.contains("<script") && !html.contains("<img"), "{}", path.display());
        assert!(html.contains("&lt;script&gt;"));
    }
    let Some(mut browser) = Browser::start() else { return };
    for path in [&one, &two] {
        look(&mut browser, path, "hostile");
        assert_ne!(browser.evaluate("document.title"), "owned");
    }
}

#[test]
fn what_cannot_be_reported_is_named() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("no.json"), "{\"a\": 1}").unwrap();
    let fails = |flags: &[&str], code, parts: &[&str]| assert_fails(&bare(flags).output().unwrap(), code, parts);
    let (no, out) = (at("no.json"), at("out.html"));
    fails(&["report", "--out", text(&out), text(&no)], 1, &["no.json", "no report of retrain"]);
    fails(&["report", "--out", text(&out), "/nowhere/a.json"], 1, &["/nowhere/a.json"]);
    fails(&["report", "--out", text(&at("out.pdf")), text(&no)], 2, &["out.pdf", ".html, .md or .json"]);
    fails(&["report", "--out", text(&out)], 2, &["FILE"]);
    let (model, eval) = (Fixture::get().model(), Fixture::get().eval());
    let args = ["eval", "--model", text(&model), "--eval", text(&eval), "--report", text(&out)];
    fails(&args, 2, &["--report", "out.html", ".json"]);
    assert!(!out.exists());
}

#[test]
fn a_resumed_run_has_one_log_and_its_page() {
    let place = Place::new();
    let log = place.path("run.jsonl");
    let flags = ["--steps", "12", "--save-every", "4", "--log", text(&log)];
    assert_succeeds(&place.run(&flags));
    // The checkpoint of step 12 goes: the run goes on from step 8.
    std::fs::remove_file(&place.files()[0]).unwrap();
    let out = place.path("out2");
    let again = [&flags[..], &["--resume", "--out", text(&out)]].concat();
    assert_succeeds(&place.run(&again));
    let events: Vec<Value> = page(&log).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = events.iter().filter(|e| e["event"] == "step").map(|e| e["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<u64>>());
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "config").count(), 2, "one for each start");
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("config", "end"));
    assert_eq!(kinds.iter().filter(|kind| **kind == "end").count(), 1);
    let names: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert_eq!(names, ["dense", "pruned", "retrained"]);
}
