//! Runs that differ in nothing but their seed are one result, with a mean and a spread; of the learning rates tried, the best on
//! validation text stands for the others, as the paper chooses.

use serde_json::{Map, Value};

use super::data::RunData;
use super::run::{name_of, value_text};
use super::scale::perplexity;

/// What does not decide about a run's numbers, or is told apart elsewhere.
const PLACING: [&str; 5] = ["seed", "model", "threads", "recomputed_layers", "offloaded_layers"];
/// What has a place of its own in tables, or follows from what has.
const NAMED: [&str; 5] = ["criterion", "pattern", "method", "calibrate", "calibration_samples"];
/// What methods have values of their own for: told where runs of one method differ in it.
const OF_METHOD: [&str; 2] = ["targets", "merge"];

/// Runs of one setting.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    pub runs: Vec<&'a RunData>,
    /// Its configuration without what [`PLACING`] lists.
    settings: Map<String, Value>,
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    pub value: f64,
    /// The sample's standard deviation; 0 of a single run.
    pub spread: f64,
    pub count: usize,
}

impl Mean {
    /// Of the values there are.
    pub fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Mean> {
        let values: Vec<f64> = values.flatten().collect();
        let count = values.len();
        if count == 0 {
            return None;
        }
        let value = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
        let spread = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
        Some(Mean { value, spread, count })
    }

    /// As tables have it.
    pub fn text(&self) -> String {
        if self.count > 1 {
            format!("{} ± {}", perplexity(self.value), perplexity(self.spread))
        } else {
            perplexity(self.value)
        }
    }
}

impl<'a> Group<'a> {
    /// Groups in the order in which their first runs come.
    pub fn all(runs: &'a [(String, RunData)]) -> Vec<Group<'a>> {
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (_, run) in runs {
            let mut settings = run.config.clone();
            settings.retain(|name, _| !PLACING.contains(&name.as_str()));
            let same = |group: &&mut Group<'_>| {
                let first = group.first();
                group.settings == settings
                    && first.model == run.model
                    && first.pattern == run.pattern
                    && first.method == run.method
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.runs.push(run),
                None => groups.push(Group { runs: vec![run], settings }),
            }
        }
        groups
    }

    /// Splits groups into those that stand for themselves or are the best of their learning rates, and the others. A rate can be
    /// chosen only where each was measured on validation text.
    pub fn chosen(groups: Vec<Group<'a>>) -> (Vec<Group<'a>>, Vec<Group<'a>>) {
        let keep = |group: &Group<'_>| -> bool {
            let rivals = groups.iter().filter(|other| other.differs_in_lr_alone(group));
            let ours = group.validation();
            rivals.into_iter().all(|other| match (ours, other.validation()) {
                (Some(ours), Some(theirs)) => {
                    let rank = |mean: Mean, group: &Group<'_>| (mean.value, group.lr());
                    let (a, b) = (rank(ours, group), rank(theirs, other));
                    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).is_lt()
                }
                _ => true,
            })
        };
        let kept: Vec<bool> = groups.iter().map(keep).collect();
        let (mut chosen, mut others) = (Vec::new(), Vec::new());
        for (group, kept) in groups.into_iter().zip(kept) {
            if kept { chosen.push(group) } else { others.push(group) }
        }
        (chosen, others)
    }

    fn differs_in_lr_alone(&self, other: &Group<'_>) -> bool {
        let without = |group: &Group<'_>| {
            let mut settings = group.settings.clone();
            settings.remove("lr");
            settings
        };
        let (a, b) = (self.first(), other.first());
        self.lr() != other.lr()
            && (&a.model, &a.method, &a.pattern) == (&b.model, &b.method, &b.pattern)
            && without(self) == without(other)
    }

    /// What all its runs have alike.
    pub fn first(&self) -> &'a RunData {
        self.runs[0]
    }

    /// One of its settings.
    pub fn setting(&self, name: &str) -> Option<&Value> {
        self.settings.get(name)
    }

    /// The names of its settings.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.keys().map(String::as_str)
    }

    pub fn lr(&self) -> f64 {
        self.setting("lr").and_then(Value::as_f64).unwrap_or(0.0)
    }

    pub fn steps(&self) -> usize {
        self.setting("steps").and_then(Value::as_u64).map_or(0, |steps| steps as usize)
    }

    pub fn model(&self) -> &'a str {
        name_of(&self.first().model)
    }

    pub fn criterion(&self) -> &'a str {
        self.first().criterion.as_deref().unwrap_or("–")
    }

    pub fn dense(&self) -> Option<Mean> {
        Mean::of(self.runs.iter().map(|run| run.perplexity.dense))
    }

    pub fn pruned(&self) -> Option<Mean> {
        Mean::of(self.runs.iter().map(|run| run.perplexity.pruned))
    }

    pub fn retrained(&self) -> Option<Mean> {
        Mean::of(self.runs.iter().map(|run| run.perplexity.retrained))
    }

    pub fn validation(&self) -> Option<Mean> {
        Mean::of(self.runs.iter().map(|run| run.validation()))
    }

    /// Its method, and the settings in which it differs from others: "perp, rank 8".
    pub fn label(&self, varied: &[String]) -> String {
        let extra: String = varied
            .iter()
            .filter_map(|name| self.setting(name).map(|value| format!(", {name} {}", value_text(value))))
            .collect();
        format!("{}{extra}", self.first().method)
    }
}

/// The settings in which groups differ, without those that tables have a place for, and those that follow from the methods.
pub fn varied(groups: &[Group<'_>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in groups.iter().flat_map(Group::names) {
        let differs = groups.iter().any(|group| {
            let same_method = |other: &&Group<'_>| other.first().method == group.first().method;
            let first = match OF_METHOD.contains(&name) {
                true => groups.iter().find(same_method),
                false => groups.first(),
            };
            first.is_some_and(|first| first.setting(name) != group.setting(name))
        });
        if differs && !NAMED.contains(&name) && !names.iter().any(|known| known == name) {
            names.push(name.into());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_has_the_spread_of_its_sample() {
        let mean = Mean::of([Some(2.0), None, Some(4.0), Some(6.0)].into_iter()).unwrap();
        assert_eq!(mean, Mean { value: 4.0, spread: 2.0, count: 3 });
        assert_eq!(mean.text(), "4.00 ± 2.00");
        assert_eq!(Mean::of([None].into_iter()), None);
        assert_eq!(Mean::of([Some(63.144)].into_iter()).unwrap().text(), "63.14");
    }

    fn run(method: &str, targets: &str, lr: f64) -> (String, RunData) {
        let run = serde_json::json!({
            "version": "0", "model": "m", "device": "cpu", "method": method, "criterion": "magnitude", "pattern": "unstructured 0.5", "seed": 0,
            "perplexity": {"dense": 1.0, "pruned": 2.0, "retrained": 1.5},
            "sparsity": {"weights": 0.5, "with_adapters": 0.5},
            "trainable": {"count": 1, "percent": 1.0}, "tokens_per_second": 1.0,
            "seconds": {"prune": 1.0, "retrain": 1.0, "eval": 1.0}, "peak_bytes": {"total": 1},
            "config": {"targets": [targets], "lr": lr},
        });
        (method.into(), serde_json::from_value(run).unwrap())
    }

    #[test]
    fn what_a_method_has_of_its_own_is_told_only_where_its_runs_differ_in_it() {
        let runs = [run("norms", "q_proj", 1e-3), run("mask-lora", "all-linear", 1e-3), run("full", "q_proj", 1e-4)];
        let groups = Group::all(&runs);
        assert_eq!(varied(&groups), ["lr"]);
        let runs = [run("perp", "q_proj", 1e-3), run("perp", "fc1", 1e-3)];
        assert_eq!(varied(&Group::all(&runs)), ["targets"]);
    }
}
