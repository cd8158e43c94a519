//! Which instruction forms the suite covers.

use std::collections::BTreeSet;

use crate::{GROUPS, harness};

const LIST: &str = include_str!("forms.txt");

/// `a{,b,c}d` → a d, a b d, a c d.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let close = open + pattern[open..].find('}').expect("a brace closes");
    let tails = expand(&pattern[close + 1..]);
    let choices = pattern[open + 1..close].split(',');
    choices.flat_map(|c| tails.iter().map(move |t| format!("{}{c}{t}", &pattern[..open]))).collect()
}

/// The forms of the list: those that must run, and those that are known not to.
fn list() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut supported, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for line in LIST.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (set, pattern) = match line.strip_prefix("- ") {
            Some(pattern) => (&mut missing, pattern),
            None => (&mut supported, line),
        };
        for form in expand(pattern) {
            assert!(set.insert(form.clone()), "{form} is listed twice");
        }
    }
    (supported, missing)
}

#[test]
fn every_listed_form_has_a_program_and_every_program_is_listed() {
    let (supported, missing) = list();
    let mut covered = BTreeSet::new();
    let groups: Vec<_> = GROUPS
        .iter()
        .map(|(_, group)| {
            std::thread::spawn(move || {
                group();
                harness::forms()
            })
        })
        .collect();
    for (group, (name, _)) in groups.into_iter().zip(GROUPS) {
        covered.extend(group.join().unwrap_or_else(|_| panic!("group {name} fails")));
    }
    let lacking: Vec<_> = supported.difference(&covered).collect();
    let unlisted: Vec<_> = covered.difference(&supported).collect();
    let total = supported.len() + missing.len();
    println!("{} of {total} instruction forms of the PTX ISA for compute_80 have a program", covered.len());
    assert!(lacking.is_empty(), "{} forms lack a program: {lacking:#?}", lacking.len());
    assert!(unlisted.is_empty(), "{} forms are not in forms.txt: {unlisted:#?}", unlisted.len());
    assert!(supported.is_disjoint(&missing));
}
