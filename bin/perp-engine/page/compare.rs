//! The page that compares runs: the paper's tables and figures, over whatever was run.

use serde_json::{Value, json};

use super::chart::{self, Format, Lines, Series, thinned};
use super::data::RunData;
use super::groups::{Group, Mean, varied};
use super::html::{self, Table, cards, figure, section};
use super::run::value_text;
use super::scale::{Kind, Scale, perplexity, short};
use crate::progress::clock;
use crate::tables;

/// A comparison in the forms that it is written in.
pub struct Comparison {
    pub html: String,
    pub markdown: String,
    pub json: Value,
}

/// Compares runs, each under a name.
pub fn comparison(title: &str, runs: &[(String, RunData)]) -> Comparison {
    let (groups, others) = Group::chosen(Group::all(runs));
    let mut varied = varied(&groups);
    // Where it was chosen it is told in a table of its own.
    varied.retain(|name| name != "lr" || others.is_empty());
    let mut results: Vec<Table> =
        models(&groups).iter().flat_map(|model| by_sparsity(model, &groups, &varied)).collect();
    results.extend(by_criterion(&groups, &varied));
    let mut details = vec![resources(&groups, &varied)];
    details.extend(rates(&groups, &others, &varied));
    details.push(side_by_side(runs));
    let figures = [
        against_sparsity(&groups, &varied),
        against_share(&groups, &varied),
        against_steps(&groups, &varied),
        losses(&groups, &varied),
    ];
    let mut body = section("Perplexity", &html(&results));
    body += &cards("Figures", &figures);
    body += &section("Details", &html(&details));
    body += &section("What all have in common", &common(&groups).html("plain"));
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let subtitle = format!("{}, {}", count(runs.len(), "run"), count(groups.len() + others.len(), "setting"));
    let all: Vec<&Table> = results.iter().chain(&details).collect();
    Comparison {
        html: html::document(title, &subtitle, &body),
        markdown: super::markdown::document(title, &subtitle, &all),
        json: json!({"title": title, "tables": all.iter().map(|table| table_json(table)).collect::<Vec<_>>()}),
    }
}

fn html(tables: &[Table]) -> String {
    tables.iter().map(|table| table.html("")).collect::<Vec<_>>().join("<br>\n")
}

fn table_json(table: &Table) -> Value {
    json!({"caption": table.caption, "header": table.header, "rows": table.rows})
}

/// Values in the order in which they come first.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.fold(Vec::new(), |mut known, value| {
        if !known.contains(&value) {
            known.push(value);
        }
        known
    })
}

fn models<'a>(groups: &[Group<'a>]) -> Vec<&'a str> {
    distinct(groups.iter().map(|group| group.first().model.as_str()))
}

fn criteria<'a>(groups: &[Group<'a>]) -> Vec<&'a str> {
    distinct(groups.iter().map(Group::criterion))
}

/// Patterns: shares of zeros from the least, then n:m.
fn patterns(groups: &[Group<'_>]) -> Vec<String> {
    let mut patterns = distinct(groups.iter().map(|group| group.first().pattern()));
    let share = |pattern: &String| pattern.strip_suffix(" %").and_then(|share| share.parse::<f64>().ok());
    patterns.sort_by(|a, b| match (share(a), share(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    patterns
}

/// The mean over all runs of `groups` of what was pruned and not retrained: it depends on no method.
fn pruned_of<'a>(groups: impl Iterator<Item = &'a Group<'a>>) -> Option<Mean> {
    // The same pruning stands in the report of each run after it: once for each value, seeds apart.
    let values = distinct(groups.flat_map(|group| &group.runs).filter_map(|run| run.perplexity.pruned));
    Mean::of(values.into_iter().map(Some))
}

/// The paper's Tables 1 and 5: methods by sparsity, for one model.
fn by_sparsity(model: &str, groups: &[Group<'_>], varied: &[String]) -> Option<Table> {
    let of_model: Vec<&Group<'_>> = groups.iter().filter(|group| group.first().model == model).collect();
    let patterns = patterns(groups);
    let dense = of_model
        .iter()
        .find_map(|group| group.dense())
        .map_or(String::new(), |dense| format!("; dense {}", dense.text()));
    let name = of_model.first()?.model();
    let header = ["method".to_string(), "trainable".into()].into_iter().chain(patterns.clone());
    let mut table = Table::new(format!("{name}: perplexity after retraining{dense}"), header);
    let criteria = criteria(groups);
    let several = criteria.len() > 1;
    for criterion in criteria {
        let of: Vec<&&Group<'_>> = of_model.iter().filter(|group| group.criterion() == criterion).collect();
        if of.is_empty() {
            continue; // only other models have it
        }
        let prefix = if several { format!("{criterion}: ") } else { String::new() };
        let cell = |mean: Option<Mean>| mean.map_or("–".into(), |mean| mean.text());
        let pruned = patterns.iter().map(|pattern| {
            cell(pruned_of(of.iter().filter(|group| group.first().pattern() == *pattern).map(|group| **group)))
        });
        table.row([format!("{prefix}not retrained"), "–".into()].into_iter().chain(pruned));
        for label in distinct(of.iter().map(|group| group.label(varied))) {
            let with: Vec<_> = of.iter().filter(|group| group.label(varied) == label).collect();
            let share = with.first().map_or(String::new(), |group| format!("{:.2} %", group.first().trainable.percent));
            let cells = patterns.iter().map(|pattern| {
                cell(with.iter().find(|group| group.first().pattern() == *pattern).and_then(|group| group.retrained()))
            });
            table.row([format!("{prefix}{label}"), share].into_iter().chain(cells));
        }
    }
    mark_best(&mut table, &of_model, &patterns);
    Some(table)
}

/// Marks the lowest of each column, where there is a choice.
fn mark_best(table: &mut Table, groups: &[&Group<'_>], patterns: &[String]) {
    for (i, pattern) in patterns.iter().enumerate() {
        let means =
            groups.iter().filter(|group| group.first().pattern() == *pattern).filter_map(|group| group.retrained());
        let means: Vec<Mean> = means.collect();
        let Some(best) = means.iter().min_by(|a, b| a.value.total_cmp(&b.value)).filter(|_| means.len() > 1) else {
            continue;
        };
        let text = best.text();
        table
            .best
            .extend(table.rows.iter().enumerate().filter(|(_, row)| row[i + 2] == text).map(|(row, _)| (row, i + 2)));
    }
}

/// The paper's Table 2: criteria with and without retraining, by model.
fn by_criterion(groups: &[Group<'_>], varied: &[String]) -> Option<Table> {
    let (models, criteria) = (models(groups), criteria(groups));
    if models.len() < 2 && criteria.len() < 2 {
        return None;
    }
    let names = models.iter().map(|model| super::run::name_of(model).to_string());
    let header = ["criterion".to_string(), "sparsity".into()].into_iter().chain(names);
    let mut table = Table::new("Criteria by model, before and after retraining", header);
    let cell = |mean: Option<Mean>| mean.map_or("–".into(), |mean| mean.text());
    let of = |model: &str| groups.iter().filter(move |group| group.first().model == model).collect::<Vec<_>>();
    let dense = models.iter().map(|model| cell(of(model).iter().find_map(|group| group.dense())));
    table.row(["dense".to_string(), "0 %".into()].into_iter().chain(dense));
    for pattern in patterns(groups) {
        for criterion in &criteria {
            let here = |model: &str| -> Vec<&Group<'_>> {
                of(model)
                    .into_iter()
                    .filter(|g| g.criterion() == *criterion && g.first().pattern() == pattern)
                    .collect()
            };
            let labels = distinct(models.iter().flat_map(|model| here(model)).map(|group| group.label(varied)));
            if labels.is_empty() {
                continue;
            }
            let pruned = models.iter().map(|model| cell(pruned_of(here(model).into_iter())));
            table.row([criterion.to_string(), pattern.clone()].into_iter().chain(pruned));
            for label in labels {
                let retrained = models.iter().map(|model| {
                    cell(
                        here(model)
                            .iter()
                            .find(|group| group.label(varied) == label)
                            .and_then(|group| group.retrained()),
                    )
                });
                table.row([format!("{criterion} + {label}"), pattern.clone()].into_iter().chain(retrained));
            }
        }
    }
    Some(table)
}

/// What tells a group from the others, in the words that are needed for it.
fn series_name(groups: &[Group<'_>], group: &Group<'_>, parts: &[Option<String>]) -> String {
    let mut words = Vec::new();
    if models(groups).len() > 1 {
        words.push(group.model().to_string());
    }
    if criteria(groups).len() > 1 {
        words.push(group.criterion().to_string());
    }
    words.extend(parts.iter().flatten().cloned());
    words.join(" · ")
}

/// Puts points of groups into series by name, each sorted by x.
fn series_of<'a>(points: impl Iterator<Item = (String, f64, Mean)> + 'a) -> Vec<Series> {
    let mut all: Vec<(String, Vec<(f64, Mean)>)> = Vec::new();
    for (name, x, mean) in points {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push((x, mean)),
            None => all.push((name, vec![(x, mean)])),
        }
    }
    all.into_iter()
        .enumerate()
        .map(|(colour, (name, mut points))| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points.dedup_by(|a, b| a.0 == b.0);
            Series {
                name,
                spread: points.iter().map(|(_, mean)| mean.spread).collect(),
                points: points.into_iter().map(|(x, mean)| (x, mean.value)).collect(),
                dots: true,
                colour,
                ..Series::default()
            }
        })
        .collect()
}

/// A figure of perplexities over x, or nothing where no series has two points.
fn perplexity_figure(heading: &str, text: &str, x_name: &str, kind: Kind, series: &[Series]) -> String {
    if series.iter().all(|series| series.points.len() < 2) {
        return String::new();
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let x = (x_name, Scale::of(kind, points().map(|point| point.0), false), short as Format);
    let y = ("perplexity", Scale::of(Kind::Log, points().map(|point| point.1), false), short as Format);
    let mut table = Table::new(heading, ["series", x_name, "perplexity", "±"]);
    for series in series {
        for ((x, y), spread) in series.points.iter().zip(&series.spread) {
            table.row([series.name.clone(), short(*x), perplexity(*y), perplexity(*spread)]);
        }
    }
    let chart = chart::lines(&Lines { title: heading, x, y, series, marks: &[] });
    figure(heading, text, &chart, &table)
}

fn unstructured<'a, 'b>(groups: &'b [Group<'a>]) -> impl Iterator<Item = (&'b Group<'a>, f64)> {
    groups.iter().filter_map(|group| {
        let share = group.first().pattern.as_deref()?.strip_prefix("unstructured ")?.parse::<f64>().ok()?;
        Some((group, 100.0 * share))
    })
}

fn against_sparsity(groups: &[Group<'_>], varied: &[String]) -> String {
    let pruned = unstructured(groups).filter_map(|(group, share)| {
        Some((series_name(groups, group, &[Some("not retrained".into())]), share, group.pruned()?))
    });
    let retrained = unstructured(groups).filter_map(|(group, share)| {
        Some((series_name(groups, group, &[Some(group.label(varied))]), share, group.retrained()?))
    });
    let series = series_of(pruned.chain(retrained));
    let text = "Logarithmic scale; whiskers are the standard deviation over seeds.";
    perplexity_figure("Perplexity against sparsity", text, "sparsity (%)", Kind::Linear, &series)
}

fn against_share(groups: &[Group<'_>], varied: &[String]) -> String {
    let without_steps: Vec<String> = varied.iter().filter(|name| *name == "steps").cloned().collect();
    let points = groups.iter().filter_map(|group| {
        let steps = (!without_steps.is_empty()).then(|| format!("{} steps", group.steps()));
        let name = series_name(groups, group, &[Some(group.first().pattern()), steps]);
        Some((name, group.first().trainable.percent, group.retrained()?))
    });
    let text = "How little may train? Both scales are logarithmic.";
    perplexity_figure(
        "Perplexity against trainable share",
        text,
        "trainable parameters (%)",
        Kind::Log,
        &series_of(points),
    )
}

/// The paper's Figure 3.
fn against_steps(groups: &[Group<'_>], varied: &[String]) -> String {
    if !varied.iter().any(|name| name == "steps") {
        return String::new();
    }
    let rest: Vec<String> = varied.iter().filter(|name| *name != "steps").cloned().collect();
    let name =
        |group: &Group<'_>| series_name(groups, group, &[Some(group.first().pattern()), Some(group.label(&rest))]);
    let start = groups.iter().filter_map(|group| Some((name(group), 0.0, group.pruned()?)));
    let ends = groups.iter().filter_map(|group| Some((name(group), group.steps() as f64, group.retrained()?)));
    let text = "Each point is a run of that many steps with a schedule of its own; at 0 the pruned model.";
    perplexity_figure("Perplexity against retraining steps", text, "steps", Kind::Linear, &series_of(start.chain(ends)))
}

fn losses(groups: &[Group<'_>], varied: &[String]) -> String {
    const SHOWN: usize = 7;
    let curve = |group: &Group<'_>| {
        let run = group.first();
        let cycle = run.steps_of_a_cycle();
        let points: Vec<(f64, f64)> =
            run.steps.iter().map(|step| (((step.cycle.max(1) - 1) * cycle + step.step) as f64, step.loss)).collect();
        let window = (points.len() / 20).max(1);
        let means: Vec<(f64, f64)> = points
            .windows(window)
            .map(|part| (part[part.len() - 1].0, part.iter().map(|point| point.1).sum::<f64>() / window as f64))
            .collect();
        let name = series_name(groups, group, &[Some(run.pattern()), Some(group.label(varied))]);
        Series { name, points: thinned(&means), ..Series::default() }
    };
    let mut series: Vec<Series> =
        groups.iter().map(curve).filter(|series| series.points.len() > 1).take(SHOWN).collect();
    series.iter_mut().enumerate().for_each(|(colour, series)| series.colour = colour);
    if series.is_empty() {
        return String::new();
    }
    let points = || series.iter().flat_map(|series| &series.points);
    let last = points().map(|point| point.0).fold(1.0, f64::max);
    let mut table = Table::new("Loss at the end", ["run", "loss"]);
    for series in &series {
        table.row([series.name.clone(), series.points.last().map_or("–".into(), |point| format!("{:.4}", point.1))]);
    }
    let chart = chart::lines(&Lines {
        title: "Training loss",
        x: ("step", Scale::exact(1.0, last), short),
        y: ("", Scale::of(Kind::Linear, points().map(|point| point.1), false), short),
        series: &series,
        marks: &[],
    });
    let more = if groups.len() > SHOWN { format!(" The first {SHOWN} of {}.", groups.len()) } else { String::new() };
    figure("Training loss", &format!("Means over a twentieth of each run; its first seed.{more}"), &chart, &table)
}

fn resources(groups: &[Group<'_>], varied: &[String]) -> Table {
    let header = ["setting", "sparsity", "trainable", "of all", "tokens a second", "peak memory", "training time"];
    let mut table = Table::new("What it takes: means over seeds", header);
    for group in groups {
        let mean = |value: &dyn Fn(&RunData) -> Option<f64>| Mean::of(group.runs.iter().map(|run| value(run)));
        let run = group.first();
        table.row([
            series_name(groups, group, &[Some(group.label(varied))]),
            run.pattern(),
            tables::count(run.trainable.count),
            format!("{:.2} %", run.trainable.percent),
            mean(&|run| run.tokens_per_second).map_or("–".into(), |rate| tables::count(rate.value.round() as usize)),
            mean(&|run| Some(run.peak_bytes.total as f64))
                .map_or("–".into(), |bytes| tables::bytes(bytes.value as u64)),
            mean(&|run| Some(run.seconds.retrain)).map_or("–".into(), |seconds| clock(seconds.value)),
        ]);
    }
    table
}

/// The learning rates that were tried, where one was chosen.
fn rates(chosen: &[Group<'_>], others: &[Group<'_>], varied: &[String]) -> Option<Table> {
    if others.is_empty() {
        return None;
    }
    let header = ["setting", "sparsity", "learning rate", "validation", "perplexity", ""];
    let mut table = Table::new("Learning rates: the best on validation text is taken", header);
    let mut all: Vec<(&Group<'_>, bool)> =
        chosen.iter().map(|group| (group, true)).chain(others.iter().map(|group| (group, false))).collect();
    let name = |group: &Group<'_>| series_name(chosen, group, &[Some(group.label(varied))]);
    let key = |group: &Group<'_>| (name(group), group.first().pattern());
    all.sort_by(|a, b| key(a.0).cmp(&key(b.0)).then(a.0.lr().total_cmp(&b.0.lr())));
    let cell = |mean: Option<Mean>| mean.map_or("–".into(), |mean| mean.text());
    for (group, taken) in all {
        let (name, pattern) = key(group);
        let taken = if taken { "taken" } else { "" };
        table.row([name, pattern, short(group.lr()), cell(group.validation()), cell(group.retrained()), taken.into()]);
    }
    Some(table)
}

fn side_by_side(runs: &[(String, RunData)]) -> Table {
    let header = [
        "report",
        "model",
        "criterion",
        "sparsity",
        "method",
        "lr",
        "steps",
        "seed",
        "dense",
        "pruned",
        "retrained",
        "device",
    ];
    let mut table = Table::new("All runs", header);
    for (name, run) in runs {
        let ppl = |value: Option<f64>| value.map_or("–".into(), perplexity);
        let config = |name: &str| run.config.get(name).map_or("–".into(), value_text);
        table.row([
            name.clone(),
            super::run::name_of(&run.model).into(),
            run.criterion.clone().unwrap_or("–".into()),
            run.pattern(),
            run.method.clone(),
            config("lr"),
            config("steps"),
            run.seed.to_string(),
            ppl(run.perplexity.dense),
            ppl(run.perplexity.pruned),
            ppl(run.perplexity.retrained),
            run.gpu.clone().unwrap_or(run.device.clone()),
        ]);
    }
    table
}

fn common(groups: &[Group<'_>]) -> Table {
    let mut table = Table::new("Settings that are the same in all runs", [] as [&str; 0]);
    for name in groups[0].names() {
        let value = groups[0].setting(name);
        if groups.iter().all(|group| group.setting(name) == value) {
            table.row([name.to_string(), value.map_or(String::new(), value_text)]);
        }
    }
    table
}
