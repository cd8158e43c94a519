//! `generate`.

use serde_json::Value;
use tempfile::TempDir;

use crate::cli_support::{Fixture, assert_fails, assert_succeeds, bare, program, text};

fn generate(flags: &[&str]) -> (String, Value) {
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("said.json");
    let base = ["generate", "--report", text(&report), "--quiet"];
    let out = assert_succeeds(&program(&[&base[..], flags].concat()).output().unwrap());
    (out, serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap())
}

#[test]
fn the_demo_goes_on_as_transformers_does() {
    // transformers 5.23 on models/demo: generate(…, do_sample=False, max_new_tokens=40) after "She was very".
    #[rustfmt::skip]
    const GREEDY: [u64; 40] = [
        1390, 276, 473, 301, 12, 284, 460, 14, 972, 12, 474, 343, 199, 1538, 1987, 342, 301, 12, 284, 310,
        323, 353, 375, 14, 544, 343, 414, 684, 199, 3157, 276, 361, 414, 1287, 276, 582, 12, 339, 331, 343,
    ];
    let (out, said) = generate(&["--prompt", "She was very", "--tokens", "40"]);
    let tokens: Vec<u64> = said[0]["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(tokens, GREEDY);
    assert_eq!(out, format!("She was very{}\n", said[0]["text"].as_str().unwrap()));
}

#[test]
fn draws_depend_on_the_seed_and_one_choice_is_the_likeliest() {
    let said = |flags: &[&str]| {
        let base = ["--prompt", "She was", "--tokens", "16"];
        generate(&[&base[..], flags].concat()).1[0]["tokens"].clone()
    };
    let greedy = said(&[]);
    assert_eq!(said(&["--temperature", "2", "--top-k", "1"]), greedy);
    assert_eq!(said(&["--temperature", "2", "--top-p", "1e-6"]), greedy);
    let drawn = said(&["--temperature", "1", "--seed", "1"]);
    assert_eq!(said(&["--temperature", "1", "--seed", "1"]), drawn);
    assert_ne!(said(&["--temperature", "1", "--seed", "2"]), drawn);
}

#[test]
fn dense_pruned_and_retrained_models_are_heard_side_by_side() {
    let fixture = Fixture::get();
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (model, train, pruned, retrained) = (fixture.model(), fixture.train(), at("pruned"), at("retrained"));
    let quiet = ["--quiet", "--sparsity", "0.7", "--model", text(&model)];
    assert_succeeds(&program(&[&["prune", "--out", text(&pruned)][..], &quiet].concat()).output().unwrap());
    #[rustfmt::skip]
    let flags = [
        "retrain", "--train", text(&train), "--steps", "5", "--batch", "2", "--accumulate", "1", "--out", text(&retrained),
        "--token-cache", "off",
    ];
    assert_succeeds(&program(&[&flags[..], &quiet].concat()).output().unwrap());
    let adapter = retrained.join("adapter");
    #[rustfmt::skip]
    let flags = [
        "--model", text(&model), "--model", text(&pruned), "--model", text(&retrained), "--adapter", text(&adapter),
        "--prompt", "She", "--tokens", "8",
    ];
    let (out, said) = generate(&flags);
    assert_eq!(said.as_array().unwrap().len(), 3);
    assert!(said[1]["adapter"].is_null() && said[2]["adapter"] == text(&adapter));
    // Under the prompt, and a head of two lines, each column has its model's text.
    let mut lines = out.lines();
    assert_eq!([lines.next(), lines.next()], [Some("She"), Some("")]);
    let names: Vec<&str> = lines.next().unwrap().split('│').map(str::trim).collect();
    assert!(names.len() == 3 && names[1].ends_with("/pruned") && names[2].ends_with("/retrained/adapter"), "{out}");
    assert_eq!(lines.next().unwrap().matches('┼').count(), 2, "{out}");
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split('│').map(str::trim).collect()).collect();
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    for (column, said) in said.as_array().unwrap().iter().enumerate() {
        let shown: Vec<&str> = rows.iter().map(|row| row.get(column).copied().unwrap_or_default()).collect();
        assert_eq!(words(&shown.join(" ")), words(said["text"].as_str().unwrap()), "{out}");
    }

    let (in_turn, same) = generate(&[&flags[..], &["--in-turn"]].concat());
    assert_eq!(in_turn.matches("── ").count(), 3, "{in_turn}");
    assert!(in_turn.contains(&format!("── {} + {}\nShe", retrained.display(), adapter.display())), "{in_turn}");
    for (said, same) in said.as_array().unwrap().iter().zip(same.as_array().unwrap()) {
        assert_eq!(said["tokens"], same["tokens"]);
    }

    // The context is 32 tokens, the prompt's included.
    let (_, said) = generate(&["--model", text(&model), "--prompt", "She", "--tokens", "500"]);
    assert!(said[0]["tokens"].as_array().unwrap().len() < 32);
}

#[test]
fn what_cannot_be_said_is_named() {
    let model = Fixture::get().model();
    let fails = |flags: &[&str], code, parts: &[&str]| assert_fails(&bare(flags).output().unwrap(), code, parts);
    let long = "She said that ".repeat(40);
    fails(&["generate", "--model", text(&model), "--prompt", &long], 2, &["--prompt has", "reads 32 at most"]);
    fails(&["generate", "--model", "/nowhere", "--prompt", "a"], 1, &["/nowhere"]);
    fails(&["generate", "--prompt", "a", "--temperature", "-1"], 2, &["--temperature"]);
    fails(&["generate", "--prompt", "a", "--adapter", "/nowhere"], 1, &["/nowhere"]);
    fails(&["generate"], 2, &["--prompt"]);
}
