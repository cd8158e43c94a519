//! Pages, as a browser shows them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
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
pub fn look(browser: &mut Browser, path: &Path, name: &str) {
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
    let train = Fixture::get().train();
    let calibrated = ["--criterion", "wanda", "--calibrate", text(&train), "--calibration-samples", "8"];
    let calibrated = retrain(&folder, "calibrated.html", &calibrated);
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
    for part in [
        "Before and after",
        "While training",
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Sparsity",
        "Change of the weights",
        "Memory",
        "Kernels",
    ] {
        assert!(html.contains(&format!("<h3>{part}</h3>")), "{part}");
    }
    assert!(!html.contains("<h3>Error of pruning</h3>"), "nothing was calibrated");
    assert!(html.contains("linear_forward") && html.contains("perp-engine retrain --model"), "kernels and the command");
    assert!(page(&cycles).contains("<h3>Cycles</h3>"));
    let html = page(&calibrated);
    let errors = &html[html.find("<h3>Error of pruning</h3>").expect("the figure")..];
    let errors = rows(errors, "Error by decoder layer");
    let numbers: Vec<f64> = errors.iter().map(|row| row[1].strip_suffix(" %").unwrap().parse().unwrap()).collect();
    assert!(errors[0][0] == "0" && errors[1][0] == "1" && errors.len() == 2, "{errors:?}");
    assert!(numbers.iter().all(|error| *error > 0.0 && *error < 100.0), "{numbers:?}");
    let html = page(&compared);
    assert!(html.contains("Runs &amp; &lt;more&gt;") && html.contains(" ± "), "the title, and two seeds");
    for part in ["Perplexity against sparsity", "Perplexity against trainable share", "Training loss"] {
        assert!(html.contains(&format!("<h3>{part}</h3>")), "{part}");
    }
    let Some(mut browser) = Browser::start() else { return };
    look(&mut browser, &one, "run");
    look(&mut browser, &cycles, "cycles");
    look(&mut browser, &calibrated, "calibrated");
    look(&mut browser, &compared, "compared");
}

/// The rows of a page's table, as the text of their cells.
fn rows(html: &str, caption: &str) -> Vec<Vec<String>> {
    let table = &html[html.find(&format!("<caption>{caption}</caption>")).unwrap_or_else(|| panic!("no {caption}"))..];
    let table = &table[..table.find("</table>").unwrap()];
    let body = table.split("<tbody>").nth(1).unwrap();
    let cells = |row: &str| -> Vec<String> {
        let cells = row.split("</t").filter_map(|cell| cell.rsplit_once('>'));
        cells.map(|(_, text)| text.to_string()).filter(|text| !text.is_empty()).collect()
    };
    body.split("</tr>").map(cells).filter(|row| !row.is_empty()).collect()
}

/// A report with other values in some of its places, by JSON pointer.
fn altered(report: &Value, changes: &[(&str, Value)]) -> Value {
    let mut report = report.clone();
    for (place, value) in changes {
        *report.pointer_mut(place).unwrap_or_else(|| panic!("no {place}")) = value.clone();
    }
    report
}

/// Writes reports and has them compared, or the page of one made; returns it.
fn reported(folder: &TempDir, name: &str, reports: &[Value]) -> PathBuf {
    let out = folder.path().join(format!("{name}.html"));
    let files: Vec<PathBuf> =
        (0..reports.len()).map(|number| folder.path().join(format!("{name}-{number}.json"))).collect();
    files.iter().zip(reports).for_each(|(file, report)| std::fs::write(file, report.to_string()).unwrap());
    let mut args = vec!["report", "--out", text(&out)];
    args.extend(files.iter().map(|file| text(file)));
    assert_succeeds(&bare(&args).output().unwrap());
    out
}

/// Where the markers of a drawing are, from the left.
fn markers(drawing: &str) -> Vec<f64> {
    // A circle's middle, a square's corner, a triangle's top.
    let places = [("cx=\"", 0.0), (" x=\"", 4.0), ("d=\"M", 0.0)];
    let marker = |part: &str| {
        let shape = &part[..part.find("/>").unwrap()];
        let (at, half) = places.iter().find_map(|(name, half)| Some((shape.split(name).nth(1)?, half))).unwrap();
        at.split([' ', '"']).next().unwrap().parse::<f64>().unwrap() + half
    };
    drawing.split("class=\"dot f").skip(1).map(marker).collect()
}

#[test]
fn a_run_s_perplexities_stand_on_a_logarithmic_scale() {
    let folder = TempDir::new().unwrap();
    let report: Value = serde_json::from_str(&page(&retrain(&folder, "run.json", &["--method", "norms"]))).unwrap();
    let perplexity = json!({"dense": 10.0, "pruned": 1000.0, "retrained": 100.0});
    let html = page(&reported(&folder, "one", &[altered(&report, &[("/perplexity", perplexity)])]));
    let figure = &html[html.find("<h3>Before and after</h3>").expect("the figure")..];
    let figure = &figure[..figure.find("</figure>").unwrap()];
    assert!(figure.contains("logarithmic scale"), "{figure}");
    let measured = rows(figure, "Perplexities");
    assert_eq!(measured, [["dense", "10.0000"], ["pruned", "1000.0000"], ["retrained", "100.0000"]]);
    // 100 is as far from 10 as from 1000; on a linear scale it would be at a tenth of the way. Places have one decimal.
    let [dense, pruned, retrained] = markers(figure)[..] else { panic!("{figure}") };
    assert!(pruned - dense > 100.0, "{dense} {pruned}");
    assert!((retrained - (dense + pruned) / 2.0).abs() <= 0.15, "{dense} {retrained} {pruned}");
}

#[test]
fn criteria_by_model_and_perplexity_against_steps_are_compared_as_in_the_paper() {
    let folder = TempDir::new().unwrap();
    let report: Value = serde_json::from_str(&page(&retrain(&folder, "run.json", &["--method", "norms"]))).unwrap();
    let name = Fixture::get().model();
    let name = name.file_name().unwrap().to_str().unwrap();
    let of = |criterion: &str, pattern: &str, pruned: f64, retrained: f64| {
        altered(
            &report,
            &[
                ("/criterion", json!(criterion)),
                ("/pattern", json!(pattern)),
                ("/config/criterion", json!(criterion)),
                ("/config/pattern", json!(pattern)),
                ("/perplexity", json!({"dense": 12.5, "pruned": pruned, "retrained": retrained})),
            ],
        )
    };
    let mut runs = vec![
        of("magnitude", "unstructured 0.5", 41.0, 21.0),
        of("wanda", "unstructured 0.5", 31.0, 20.0),
        of("magnitude", "2:4", 61.0, 26.0),
        of("wanda", "2:4", 51.0, 25.0),
    ];
    runs.push(altered(
        &runs[1],
        &[
            ("/model", json!("/models/other")),
            ("/perplexity", json!({"dense": 9.0, "pruned": 19.0, "retrained": 11.0})),
        ],
    ));
    let criteria = reported(&folder, "criteria", &runs);
    let html = page(&criteria);
    let caption = "Criteria by model, before and after retraining";
    let head = format!(
        "<caption>{caption}</caption>\n<thead><tr><th scope=\"col\">criterion</th><th scope=\"col\">sparsity</th>\
         <th scope=\"col\">{name}</th><th scope=\"col\">other</th></tr></thead>"
    );
    assert!(html.contains(&head), "{html}");
    let expected = [
        ["dense", "0 %", "12.50", "9.00"],
        ["magnitude", "50 %", "41.00", "–"],
        ["magnitude + norms", "50 %", "21.00", "–"],
        ["wanda", "50 %", "31.00", "19.00"],
        ["wanda + norms", "50 %", "20.00", "11.00"],
        ["magnitude", "2:4", "61.00", "–"],
        ["magnitude + norms", "2:4", "26.00", "–"],
        ["wanda", "2:4", "51.00", "–"],
        ["wanda + norms", "2:4", "25.00", "–"],
    ];
    assert_eq!(rows(&html, caption), expected);
    let by_sparsity = rows(&html, &format!("{name}: perplexity after retraining; dense 12.50"));
    assert_eq!(by_sparsity[3][0], "wanda: norms");
    assert_eq!(by_sparsity[3][2..], ["20.00", "25.00"]);
    let other = rows(&html, "other: perplexity after retraining; dense 9.00");
    let names: Vec<&str> = other.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["wanda: not retrained", "wanda: norms"], "magnitude pruned the first model alone");
    assert!(!html.contains("Perplexity against retraining steps"), "all have the same steps");

    let after = |steps: u64, retrained: f64| {
        let taken = report["steps"].as_array().unwrap()[..steps as usize].to_vec();
        let perplexity = json!({"dense": 12.5, "pruned": 40.0, "retrained": retrained});
        altered(&report, &[("/config/steps", json!(steps)), ("/steps", json!(taken)), ("/perplexity", perplexity)])
    };
    let steps = reported(&folder, "steps", &[after(8, 22.0), after(12, 20.0), after(4, 30.0)]);
    let html = page(&steps);
    assert!(!html.contains(caption), "there is one criterion, and one model");
    assert!(html.contains("<h3>Perplexity against retraining steps</h3>"));
    let expected = [("0", "40.00"), ("4", "30.00"), ("8", "22.00"), ("12", "20.00")]
        .map(|(steps, perplexity)| ["50 % · norms", steps, perplexity, "0.00"]);
    assert_eq!(rows(&html, "Perplexity against retraining steps"), expected);
    let Some(mut browser) = Browser::start() else { return };
    look(&mut browser, &criteria, "criteria");
    look(&mut browser, &steps, "steps");
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
