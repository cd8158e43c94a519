//! The page of one run.

use serde_json::Value;

use super::chart::{self, Bar, Format, Lines, Series, thinned};
use super::data::RunData;
use super::html::{self, Table, cards, escape, figure, section, tile};
use super::scale::{Kind, Scale, perplexity, short};
use crate::progress::clock;
use crate::report::{Matrix, Seconds, Step};
use crate::tables;

/// The page of a run.
pub fn run(run: &RunData) -> String {
    let pruned = run.pattern.is_some();
    let title = match pruned {
        true => format!("{} · {} · {}", name_of(&run.model), run.pattern(), run.method),
        false => format!("{} · trained from scratch", name_of(&run.model)),
    };
    let device = run.gpu.as_ref().unwrap_or(&run.device);
    let subtitle = format!("{} on {device}, seed {}", run.model, run.seed);
    let mut body = format!("<div class=\"tiles\">\n{}</div>\n", tiles(run));
    body += &cards("Perplexity", &[perplexities(run), validation(run), cycles(run)]);
    body += &cards("Training", &curves(run));
    body += &cards("Layers", &layers(run));
    body += &cards("One step", &[memory(run), kernels(run)]);
    body += &section("Configuration", &configuration(run));
    html::document(&title, &subtitle, &body)
}

/// The last part of a path.
pub fn name_of(model: &str) -> &str {
    model.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(model)
}

fn tiles(run: &RunData) -> String {
    let ppl = |value: Option<f64>| value.map_or("–".into(), perplexity);
    let mut out = String::new();
    if run.pattern.is_some() {
        out += &tile(&ppl(run.perplexity.dense), "perplexity dense");
        out += &tile(&ppl(run.perplexity.pruned), "pruned");
        out += &tile(&ppl(run.perplexity.retrained), "retrained");
        let sparsity = &run.sparsity;
        let with = format!("of the weights are zero; {:.2} % with adapters", 100.0 * sparsity.with_adapters);
        out += &tile(&format!("{:.2} %", 100.0 * sparsity.weights), &with);
    } else {
        out += &tile(&ppl(run.perplexity.dense), "perplexity");
    }
    let Seconds { prune, retrain, eval } = run.seconds;
    out += &tile(
        &format!("{:.2} %", run.trainable.percent),
        &format!("{} parameters train", tables::count(run.trainable.count)),
    );
    out += &tile(&run.tokens_per_second.map_or("–".into(), short_rate), "tokens a second");
    out += &tile(&tables::bytes(run.peak_bytes.total), "peak memory of training");
    out + &tile(&clock(prune + retrain + eval), &format!("{} of them training", clock(retrain)))
}

fn short_rate(rate: f64) -> String {
    tables::count(rate.round() as usize)
}

fn perplexities(run: &RunData) -> String {
    let names = match run.pattern {
        Some(_) => ["dense", "pruned", "retrained"],
        None => ["pretrained", "", ""],
    };
    let values = [run.perplexity.dense, run.perplexity.pruned, run.perplexity.retrained];
    let rows: Vec<Bar> = names
        .iter()
        .zip(values)
        .enumerate()
        .filter_map(|(colour, (name, value))| {
            value.map(|value| Bar { name: (*name).into(), value, label: perplexity(value), colour })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let windows = run.eval_windows.map_or(String::new(), |windows| {
        let length =
            run.config.get("seq_len").and_then(Value::as_u64).map_or(String::new(), |n| format!(" of {n} tokens"));
        format!("Lower is better; logarithmic scale; {} windows{length}.", tables::count(windows))
    });
    let x = ("perplexity", Scale::of(Kind::Log, rows.iter().map(|row| row.value), false), short as Format);
    let mut table = Table::new("Perplexities", ["model", "perplexity"]);
    rows.iter().for_each(|row| table.row([row.name.clone(), format!("{:.4}", row.value)]));
    figure(
        "Before and after",
        &windows,
        &chart::dots("Perplexity of the dense, pruned and retrained model", &x, &rows),
        &table,
    )
}

fn validation(run: &RunData) -> String {
    if run.validation.len() < 2 {
        return String::new();
    }
    let steps = run.steps_of_a_cycle();
    let points: Vec<(f64, f64)> =
        run.validation.iter().map(|at| (((at.cycle.max(1) - 1) * steps + at.step) as f64, at.perplexity)).collect();
    let mut table = Table::new("Validation perplexity by step", ["step", "perplexity"]);
    points.iter().for_each(|(step, value)| table.row([tables::count(*step as usize), format!("{value:.4}")]));
    let last = points.last().map_or(1.0, |point| point.0);
    let y = ("perplexity", Scale::of(Kind::Log, points.iter().map(|point| point.1), false), short as Format);
    let dots = points.len() <= 40;
    let series = [Series { name: "validation".into(), points, dots, ..Series::default() }];
    let chart = chart::lines(&Lines {
        title: "Validation perplexity while training",
        x: ("step", Scale::exact(0.0, last), short),
        y,
        series: &series,
        marks: &[],
    });
    figure("While training", "On the validation sequences; logarithmic scale.", &chart, &table)
}

fn cycles(run: &RunData) -> String {
    if run.cycles.len() < 2 {
        return String::new();
    }
    let curve = |name: &str, colour, value: fn(&super::data::Cycle) -> Option<f64>| Series {
        name: name.into(),
        points: run.cycles.iter().filter_map(|c| Some((100.0 * c.sparsity, value(c)?))).collect(),
        dots: true,
        colour,
        ..Series::default()
    };
    let series = [curve("pruned", 1, |c| c.pruned), curve("retrained", 2, |c| c.retrained)];
    let values = || series.iter().flat_map(|series| &series.points);
    let mut table = Table::new("Cycles", ["cycle", "sparsity", "pruned", "retrained"]);
    for cycle in &run.cycles {
        let ppl = |value: Option<f64>| value.map_or("–".into(), perplexity);
        table.row([
            cycle.cycle.to_string(),
            format!("{:.2} %", 100.0 * cycle.sparsity),
            ppl(cycle.pruned),
            ppl(cycle.retrained),
        ]);
    }
    let chart = chart::lines(&Lines {
        title: "Perplexity after each cycle of pruning and retraining",
        x: ("sparsity (%)", Scale::of(Kind::Linear, values().map(|point| point.0), false), short),
        y: ("perplexity", Scale::of(Kind::Log, values().map(|point| point.1), false), short),
        series: &series,
        marks: &[],
    });
    figure("Cycles", "Perplexity after each pruning and each retraining.", &chart, &table)
}

/// A curve of one quantity over all steps.
struct Curve {
    heading: &'static str,
    text: &'static str,
    kind: Kind,
    smooth: bool,
    value: fn(&Step) -> f64,
}

fn curves(run: &RunData) -> Vec<String> {
    if run.steps.is_empty() {
        return Vec::new();
    }
    let all = [
        Curve {
            heading: "Loss",
            text: "Of each step, before its update.",
            kind: Kind::Linear,
            smooth: true,
            value: |s| s.loss,
        },
        Curve { heading: "Learning rate", text: "", kind: Kind::Linear, smooth: false, value: |s| s.lr },
        Curve {
            heading: "Gradient norm",
            text: "Of all trainable parameters together, before clipping; logarithmic scale.",
            kind: Kind::Log,
            smooth: false,
            value: |s| s.grad_norm,
        },
    ];
    all.iter().map(|curve| draw_curve(run, curve)).collect()
}

fn draw_curve(run: &RunData, curve: &Curve) -> String {
    let cycle_steps = run.steps_of_a_cycle();
    let global = |step: &Step| ((step.cycle.max(1) - 1) * cycle_steps + step.step) as f64;
    let points: Vec<(f64, f64)> = run.steps.iter().map(|step| (global(step), (curve.value)(step))).collect();
    let mut series = vec![Series { name: curve.heading.into(), points: thinned(&points), ..Series::default() }];
    // A single step's loss says little: its batch is small.
    let smooth = curve.smooth && points.len() >= 30;
    if smooth {
        series[0].faint = true;
        let points = thinned(&smoothed(&points));
        series.push(Series { name: "smoothed".into(), points, ..Series::default() });
    }
    let marks: Vec<f64> = (1..run.cycles.len().max(1)).map(|cycle| (cycle * cycle_steps) as f64 + 0.5).collect();
    let last = points.last().map_or(1.0, |point| point.0);
    let first = points.first().map_or(1.0, |point| point.0);
    let chart = chart::lines(&Lines {
        title: curve.heading,
        x: ("step", Scale::exact(first.min(1.0), last), short),
        y: ("", Scale::of(curve.kind, points.iter().map(|point| point.1), false), short),
        series: &series,
        marks: &marks,
    });
    let mut table = Table::new(format!("{} by step", curve.heading), ["step", curve.heading]);
    let every = points.len().div_ceil(50);
    for (i, (step, value)) in points.iter().enumerate() {
        if i % every == 0 || i + 1 == points.len() {
            table.row([tables::count(*step as usize), format!("{value:.4e}")]);
        }
    }
    let text = if smooth { format!("{} The bold line is smoothed.", curve.text) } else { curve.text.into() };
    figure(curve.heading, &text, &chart, &table)
}

/// An exponential mean over a twentieth of the curve, its start unbiased.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(2.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|(x, y)| {
            sum = keep * sum + y;
            weight = keep * weight + 1.0;
            (*x, sum / weight)
        })
        .collect()
}

/// Sums over the matrices of a decoder layer.
struct Layer {
    layer: usize,
    entries: usize,
    zeros: usize,
    /// Squares of norms.
    dense: f64,
    removed: f64,
    changed: f64,
}

impl Layer {
    fn all(matrices: &[Matrix]) -> Vec<Layer> {
        let mut layers: Vec<Layer> = Vec::new();
        for matrix in matrices {
            let Some(number) = matrix.layer else { continue };
            let at = layers.iter().position(|layer| layer.layer == number).unwrap_or_else(|| {
                layers.push(Layer { layer: number, entries: 0, zeros: 0, dense: 0.0, removed: 0.0, changed: 0.0 });
                layers.len() - 1
            });
            let layer = &mut layers[at];
            layer.entries += matrix.entries;
            layer.zeros += matrix.zeros;
            layer.dense += matrix.dense_norm.powi(2);
            layer.removed += matrix.removed_norm.powi(2);
            layer.changed += matrix.changed_norm.powi(2);
        }
        layers.sort_by_key(|layer| layer.layer);
        layers
    }

    fn sparsity(&self) -> f64 {
        100.0 * self.zeros as f64 / self.entries.max(1) as f64
    }

    /// Of the dense layer's norm, in percent.
    fn share(&self, squared: f64) -> f64 {
        if self.dense > 0.0 { 100.0 * (squared / self.dense).sqrt() } else { 0.0 }
    }
}

fn layers(run: &RunData) -> Vec<String> {
    let layers = Layer::all(&run.matrices);
    if layers.is_empty() {
        return Vec::new();
    }
    let curve = |name: &str, colour, value: &dyn Fn(&Layer) -> f64| Series {
        name: name.into(),
        points: layers.iter().map(|layer| (layer.layer as f64, value(layer))).collect(),
        dots: layers.len() <= 40,
        colour,
        ..Series::default()
    };
    let x = || {
        let last = layers.last().map_or(0, |layer| layer.layer) as f64;
        let mut scale = Scale::exact(-0.3, last + 0.3);
        scale.ticks.retain(|tick| tick.fract() == 0.0);
        ("decoder layer", scale, short as Format)
    };
    let sparsity = [curve("zeros", 0, &Layer::sparsity)];
    let norms = [
        curve("removed by pruning", 1, &|layer| layer.share(layer.removed)),
        curve("changed in what is left", 2, &|layer| layer.share(layer.changed)),
    ];
    let draw = |title: &str, series: &[Series], most: f64| {
        let values = series.iter().flat_map(|series| &series.points).map(|point| point.1).chain([most]);
        let y = ("%", Scale::of(Kind::Linear, values, true), short as Format);
        chart::lines(&Lines { title, x: x(), y, series, marks: &[] })
    };
    let mut by_layer = Table::new("Sparsity by decoder layer", ["layer", "weights", "zeros", "sparsity"]);
    for layer in &layers {
        by_layer.row([
            layer.layer.to_string(),
            tables::count(layer.entries),
            tables::count(layer.zeros),
            format!("{:.2} %", layer.sparsity()),
        ]);
    }
    let mut by_matrix = Table::new("Norms by matrix", ["matrix", "zeros", "norm dense", "removed", "changed"]);
    for matrix in &run.matrices {
        by_matrix.row([
            matrix.name.clone(),
            format!("{:.2} %", 100.0 * matrix.zeros as f64 / matrix.entries.max(1) as f64),
            format!("{:.4}", matrix.dense_norm),
            format!("{:.4}", matrix.removed_norm),
            format!("{:.4}", matrix.changed_norm),
        ]);
    }
    let mut figures = vec![
        figure(
            "Sparsity",
            "Zeros among the weights of each decoder layer.",
            &draw("Sparsity by layer", &sparsity, 100.0),
            &by_layer,
        ),
        figure(
            "Change of the weights",
            "Frobenius norms, as shares of the dense layer's: of the weights that pruning removed, and of the change in those \
             that are left, adapters included.",
            &draw("Norm of the change of the weights by layer", &norms, 0.0),
            &by_matrix,
        ),
    ];
    figures.extend(layer_errors(run));
    figures
}

fn layer_errors(run: &RunData) -> Option<String> {
    let errors = &run.cycles.last()?.layer_errors;
    if errors.is_empty() {
        return None;
    }
    let points: Vec<(f64, f64)> = errors.iter().enumerate().map(|(i, error)| (i as f64, 100.0 * error)).collect();
    let mut table = Table::new("Error by decoder layer", ["layer", "error"]);
    points.iter().for_each(|(layer, error)| table.row([short(*layer), format!("{error:.3} %")]));
    let y = ("%", Scale::of(Kind::Linear, points.iter().map(|point| point.1), true), short as Format);
    let mut x = Scale::exact(-0.3, points.len() as f64 - 0.7);
    x.ticks.retain(|tick| tick.fract() == 0.0);
    let series = [Series { name: "error".into(), points, dots: errors.len() <= 40, ..Series::default() }];
    let chart = chart::lines(&Lines {
        title: "Error by layer",
        x: ("decoder layer", x, short),
        y,
        series: &series,
        marks: &[],
    });
    Some(figure(
        "Error of pruning",
        "Share of what each layer adds to its input that calibrated pruning changed.",
        &chart,
        &table,
    ))
}

fn memory(run: &RunData) -> String {
    let Some(detail) = run.step_detail.as_ref().filter(|detail| !detail.memory.is_empty()) else {
        return String::new();
    };
    let total = |sample: &Vec<u64>| sample.iter().sum::<u64>();
    let peak = detail.memory.iter().max_by_key(|sample| total(sample)).expect("not empty");
    let (unit, name) = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(size, _)| total(peak) >= *size)
        .unwrap_or((1, "B"));
    let mut table = Table::new(format!("Memory at the peak of step {}", detail.step), ["for", "bytes", ""]);
    let mut layers = Vec::new();
    for (i, category) in detail.categories.iter().enumerate() {
        let at = |sample: &Vec<u64>| sample.get(i).copied().unwrap_or(0);
        if detail.memory.iter().any(|sample| at(sample) > 0) {
            let heights = detail.memory.iter().map(|sample| at(sample) as f64 / unit as f64).collect();
            layers.push((category.clone(), i, heights));
            table.row([category.clone(), tables::count(at(peak) as usize), tables::bytes(at(peak))]);
        }
    }
    table.row(["together".into(), tables::count(total(peak) as usize), tables::bytes(total(peak))]);
    let y = (name, Scale::of(Kind::Linear, [total(peak) as f64 / unit as f64].into_iter(), true), short as Format);
    let text = format!(
        "Bytes in use as step {} took and gave them, by what they are for; {} at the peak.",
        detail.step,
        tables::bytes(total(peak))
    );
    let chart = chart::stack("Memory in use over a step, by category", "over the step", &y, &layers);
    figure("Memory", &text, &chart, &table)
}

fn kernels(run: &RunData) -> String {
    const SHOWN: usize = 11;
    let Some(detail) = run.step_detail.as_ref().filter(|detail| !detail.kernels.is_empty()) else {
        return String::new();
    };
    let whole = detail.seconds.max(f64::MIN_POSITIVE);
    let label = |seconds: f64| format!("{:.1} ms, {:.1} %", 1e3 * seconds, 100.0 * seconds / whole);
    let bar =
        |name: &str, seconds: f64, colour| Bar { name: name.into(), value: seconds, label: label(seconds), colour };
    let mut bars: Vec<Bar> = detail.kernels.iter().take(SHOWN).map(|k| bar(&k.kernel, k.seconds, 0)).collect();
    let timed: f64 = detail.kernels.iter().map(|kernel| kernel.seconds).sum();
    let rest: f64 = detail.kernels.iter().skip(SHOWN).map(|kernel| kernel.seconds).sum();
    if detail.kernels.len() > SHOWN {
        bars.push(bar("other kernels", rest, 6));
    }
    bars.push(bar("between kernels", (detail.seconds - timed).max(0.0), 6));
    let mut table = Table::new(
        format!("Kernels of step {}", detail.step),
        ["kernel", "calls", "ms", "of the step", "GFLOP/s", "GB/s"],
    );
    for kernel in &detail.kernels {
        let rate =
            |amount: u64| if kernel.seconds > 0.0 { short(amount as f64 / kernel.seconds / 1e9) } else { "–".into() };
        table.row([
            kernel.kernel.clone(),
            tables::count(kernel.calls as usize),
            format!("{:.3}", 1e3 * kernel.seconds),
            format!("{:.2} %", 100.0 * kernel.seconds / whole),
            rate(kernel.flops),
            rate(kernel.bytes),
        ]);
    }
    let text = format!("Time of step {}: {:.1} ms in all.", detail.step, 1e3 * detail.seconds);
    figure("Kernels", &text, &chart::bars("Time of a step by kernel", &bars), &table)
}

fn configuration(run: &RunData) -> String {
    let mut out = String::new();
    if let Some(command) = &run.command {
        out += &format!("<h3>To have it again</h3>\n<pre>{}</pre>\n", escape(command));
    }
    let mut table = Table::new("All that decides about this run", [] as [&str; 0]);
    table.row(["perp-engine", run.version.as_str()]);
    table.row(["device", run.gpu.as_ref().unwrap_or(&run.device)]);
    run.config.iter().for_each(|(name, value)| table.row([name.clone(), value_text(value)]));
    out + &table.html("plain")
}

/// A configuration's value as people read it.
pub fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().filter(|x| x.fract() != 0.0).map_or(number.to_string(), short_or_full),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Array(list) => list.iter().map(value_text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn short_or_full(x: f64) -> String {
    if x.abs() < 1e-3 { format!("{x:e}") } else { x.to_string() }
}
