//! Which instruction forms the suite covers.

use std::collections::BTreeSet;

use crate::{GROUPS, harness};

const LIST: &str = include_str!("forms.txt");

/// Forms that run, of all that the list names.
const COUNTS: (usize, usize) = (6424, 9140);

/// `a{,b,c}d` → a d, a b d, a c d.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_owned()] };
    let close = open + pattern[open..].find('}').expect("a brace closes");
    let tails = expand(&pattern[close + 1..]);
    let choices = pattern[open + 1..close].split(',');
    choices.flat_map(|c| tails.iter().map(move |t| format!("{}{c}{t}", &pattern[..open]))).collect()
}

/// The forms of the list: those that must run, those that must run and are newer, those that do not run.
#[derive(Default)]
struct List {
    supported: BTreeSet<String>,
    newer: BTreeSet<String>,
    missing: BTreeSet<String>,
}

fn list() -> List {
    let mut list = List::default();
    for line in LIST.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (set, pattern) = match (line.strip_prefix("- "), line.strip_prefix("+ ")) {
            (Some(pattern), _) => (&mut list.missing, pattern),
            (_, Some(pattern)) => (&mut list.newer, pattern),
            _ => (&mut list.supported, line),
        };
        for form in expand(pattern) {
            assert!(set.insert(form.clone()), "{form} is listed twice");
        }
    }
    list
}

#[test]
fn every_listed_form_has_a_program_and_every_program_is_listed() {
    let List { supported, newer, missing } = list();
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
    let wanted: BTreeSet<_> = supported.union(&newer).cloned().collect();
    let lacking: Vec<_> = wanted.difference(&covered).collect();
    let unlisted: Vec<_> = covered.difference(&wanted).collect();
    assert!(lacking.is_empty(), "{} forms lack a program: {lacking:#?}", lacking.len());
    assert!(unlisted.is_empty(), "{} forms are not in forms.txt: {unlisted:#?}", unlisted.len());
    assert!(supported.is_disjoint(&missing) && supported.is_disjoint(&newer));
    let total = supported.len() + missing.len();
    println!(
        "{} of {total} instruction forms of the PTX ISA for compute_80 have a program that runs, {} of later targets",
        supported.len(),
        newer.len()
    );
    assert_eq!((supported.len(), total), COUNTS, "forms.txt has grown or shrunk: say so here");
}
