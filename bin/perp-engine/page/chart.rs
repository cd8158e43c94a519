//! Charts as SVG: sizes are those of a phone's width, so that text stays readable there and grows on wider pages. Series differ
//! by dashes and markers as well as by colour.

use std::fmt::Write;

use super::html::escape;
use super::scale::Scale;

const WIDTH: f64 = 360.0;
/// Room for a tick such as 10,000.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 12.0;
/// Room for the y axis' name.
const TOP: f64 = 26.0;
const BOTTOM: f64 = 38.0;
/// Of charts with two axes.
const HEIGHT: f64 = 230.0;

/// Colours there are; further series begin again.
const COLOURS: usize = 7;

/// Writes a tick.
pub type Format = fn(f64) -> String;

/// One curve.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub name: String,
    /// In the order of x; a y that the scale has no place for leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Half the height of a whisker at each point, or empty.
    pub spread: Vec<f64>,
    /// Markers on the points.
    pub dots: bool,
    /// Drawn thin behind the others and not in the legend.
    pub faint: bool,
    pub colour: usize,
}

/// Curves over x.
pub struct Lines<'a> {
    /// For those who cannot see it.
    pub title: &'a str,
    pub x: (&'a str, Scale, Format),
    pub y: (&'a str, Scale, Format),
    pub series: &'a [Series],
    /// Vertical marks, at x.
    pub marks: &'a [f64],
}

/// The start of a drawing; `title` is read aloud.
fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>\n")
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, class: &str, content: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
        escape(content)
    );
}

fn rule(out: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(out, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

/// A marker of the shape that goes with a colour.
fn marker(x: f64, y: f64, colour: usize) -> String {
    let class = format!("dot f{}", colour % COLOURS);
    match colour % 4 {
        0 => format!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"),
        1 => format!("<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"8\" height=\"8\"/>", x - 4.0, y - 4.0),
        2 => format!(
            "<path class=\"{class}\" d=\"M{x:.1} {:.1}L{:.1} {:.1}L{:.1} {:.1}Z\"/>",
            y - 5.5,
            x + 5.5,
            y + 4.5,
            x - 5.5,
            y + 4.5
        ),
        _ => format!(
            "<path class=\"{class}\" d=\"M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}Z\"/>",
            y - 6.0,
            x + 6.0,
            y + 6.0,
            x - 6.0
        ),
    }
}

/// What the curves are called, below a drawing.
pub fn legend<'a>(entries: impl Iterator<Item = (&'a str, usize, bool)>) -> String {
    let items: String = entries
        .map(|(name, colour, area)| {
            let sample = if area {
                format!("<rect class=\"f{}\" width=\"26\" height=\"12\"/>", colour % COLOURS)
            } else {
                format!("<path class=\"line k{}\" d=\"M0 6H26\"/>{}", colour % COLOURS, marker(13.0, 6.0, colour))
            };
            format!("<li><svg viewBox=\"0 0 26 12\" aria-hidden=\"true\">{sample}</svg>{}</li>", escape(name))
        })
        .collect();
    format!("<ul class=\"legend\">{items}</ul>\n")
}

/// The plot's frame: grid, ticks and the axes' names. Gives how x and y are placed.
struct Frame {
    height: f64,
}

impl Frame {
    fn x(&self, scale: &Scale, value: f64) -> Option<f64> {
        scale.at(value).map(|share| LEFT + share * (WIDTH - LEFT - RIGHT))
    }

    fn y(&self, scale: &Scale, value: f64) -> Option<f64> {
        scale.at(value).map(|share| self.height - BOTTOM - share * (self.height - BOTTOM - TOP))
    }

    fn draw(&self, out: &mut String, x: &(&str, Scale, Format), y: &(&str, Scale, Format)) {
        let bottom = self.height - BOTTOM;
        for tick in &y.1.ticks {
            if let Some(at) = self.y(&y.1, *tick) {
                rule(out, "grid", [LEFT, at, WIDTH - RIGHT, at]);
                text(out, LEFT - 6.0, at + 4.0, "end", "", &y.2(*tick));
            }
        }
        for tick in &x.1.ticks {
            if let Some(at) = self.x(&x.1, *tick) {
                rule(out, "axis", [at, bottom, at, bottom + 4.0]);
                text(out, at, bottom + 17.0, "middle", "", &x.2(*tick));
            }
        }
        rule(out, "axis", [LEFT, bottom, WIDTH - RIGHT, bottom]);
        text(out, (LEFT + WIDTH - RIGHT) / 2.0, self.height - 5.0, "middle", "", x.0);
        // Level, for it is read more easily than on its side.
        text(out, 2.0, 12.0, "start", "", y.0);
    }
}

/// Draws curves, with a legend where there are several.
pub fn lines(chart: &Lines<'_>) -> String {
    let frame = Frame { height: HEIGHT };
    let mut out = open(chart.title, frame.height);
    frame.draw(&mut out, &chart.x, &chart.y);
    for mark in chart.marks {
        if let Some(x) = frame.x(&chart.x.1, *mark) {
            rule(&mut out, "mark", [x, TOP, x, frame.height - BOTTOM]);
        }
    }
    for series in chart.series {
        let mut path = String::new();
        let mut pen_up = true;
        let mut dots = String::new();
        for (i, (x, y)) in series.points.iter().enumerate() {
            let (Some(px), Some(py)) = (frame.x(&chart.x.1, *x), frame.y(&chart.y.1, *y)) else {
                pen_up = true;
                continue;
            };
            let _ = write!(path, "{}{px:.1} {py:.1}", if pen_up { 'M' } else { 'L' });
            pen_up = false;
            if let Some(spread) = series.spread.get(i).filter(|spread| **spread > 0.0) {
                let (low, high) = (frame.y(&chart.y.1, y - spread), frame.y(&chart.y.1, y + spread));
                let _ = write!(
                    dots,
                    "<path class=\"k{}\" d=\"M{px:.1} {:.1}V{:.1}\"/>",
                    series.colour % COLOURS,
                    low.unwrap_or(frame.height - BOTTOM),
                    high.unwrap_or(TOP)
                );
            }
            if series.dots {
                let label = format!("{}: {} at {}", series.name, chart.y.2(*y), chart.x.2(*x));
                let _ = writeln!(dots, "<g><title>{}</title>{}</g>", escape(label), marker(px, py, series.colour));
            }
        }
        let faint = if series.faint { " faint" } else { "" };
        let _ = writeln!(out, "<path class=\"line k{}{faint}\" d=\"{path}\"/>{dots}", series.colour % COLOURS);
    }
    out += "</svg>\n";
    let named: Vec<_> = chart.series.iter().filter(|series| !series.faint).collect();
    if named.len() > 1 {
        out += &legend(named.iter().map(|series| (series.name.as_str(), series.colour, false)));
    }
    out
}

/// Areas one above the other; each of `layers` has a height for each of the same x, from 0 on.
pub fn stack(title: &str, x_name: &str, y: &(&str, Scale, Format), layers: &[(String, usize, Vec<f64>)]) -> String {
    let frame = Frame { height: HEIGHT };
    let mut out = open(title, frame.height);
    let count = layers.iter().map(|(_, _, heights)| heights.len()).max().unwrap_or(0);
    let x = (x_name, Scale::exact(0.0, 1.0), (|_| String::new()) as Format);
    frame.draw(&mut out, &x, y);
    let mut below = vec![0.0; count];
    for (_, colour, heights) in layers {
        let above: Vec<f64> = below.iter().zip(heights).map(|(a, b)| a + b).collect();
        let point = |i: usize, value: f64| {
            let share = i as f64 / count.saturating_sub(1).max(1) as f64;
            format!("{:.1} {:.1}", frame.x(&x.1, share).unwrap_or(LEFT), frame.y(&y.1, value).unwrap_or(TOP))
        };
        let mut path = format!("M{}", point(0, below[0]));
        above.iter().enumerate().for_each(|(i, value)| path += &format!("L{}", point(i, *value)));
        below.iter().enumerate().rev().for_each(|(i, value)| path += &format!("L{}", point(i, *value)));
        let _ = writeln!(out, "<path class=\"f{}\" d=\"{path}Z\"/>", colour % COLOURS);
        below = above;
    }
    out += "</svg>\n";
    out + &legend(layers.iter().map(|(name, colour, _)| (name.as_str(), *colour, true)))
}

/// A named value with what is written beside it.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub label: String,
    pub colour: usize,
}

/// Horizontal bars from 0, each below its name and its label.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let (step, thickness) = (31.0, 7.0);
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let mut out = open(title, bars.len() as f64 * step);
    for (i, bar) in bars.iter().enumerate() {
        let y = i as f64 * step + 14.0;
        let share = if most > 0.0 { bar.value / most } else { 0.0 };
        text(&mut out, 0.0, y, "start", "strong", &shortened(&bar.name, 26));
        text(&mut out, WIDTH, y, "end", "", &bar.label);
        let _ = writeln!(
            out,
            "<rect class=\"f{}\" x=\"0\" y=\"{:.1}\" width=\"{:.1}\" height=\"{thickness}\" rx=\"2\"/>",
            bar.colour % COLOURS,
            y + 5.0,
            (share * WIDTH).max(1.0)
        );
    }
    out + "</svg>\n"
}

/// Values as dots on a scale of their own, a row each: a bar would need a zero, which a log scale has not.
pub fn dots(title: &str, x: &(&str, Scale, Format), rows: &[Bar]) -> String {
    let (step, left, right) = (32.0, 84.0, 66.0);
    let height = rows.len() as f64 * step + BOTTOM + 4.0;
    let bottom = height - BOTTOM;
    let place = |value| x.1.at(value).map(|share| left + share * (WIDTH - left - right));
    let mut out = open(title, height);
    for tick in &x.1.ticks {
        if let Some(at) = place(*tick) {
            rule(&mut out, "grid", [at, 0.0, at, bottom]);
            text(&mut out, at, bottom + 17.0, "middle", "", &x.2(*tick));
        }
    }
    rule(&mut out, "axis", [left, bottom, WIDTH - right, bottom]);
    text(&mut out, (left + WIDTH - right) / 2.0, height - 5.0, "middle", "", x.0);
    for (i, row) in rows.iter().enumerate() {
        let y = (i as f64 + 0.5) * step;
        text(&mut out, left - 10.0, y + 4.0, "end", "strong", &shortened(&row.name, 11));
        if let Some(at) = place(row.value) {
            rule(&mut out, "axis", [left, y, at, y]);
            let _ = writeln!(out, "{}", marker(at, y, row.colour));
            text(&mut out, at + 10.0, y + 4.0, "start", "strong", &row.label);
        }
    }
    out + "</svg>\n"
}

/// The first characters of a name, so that it stays in its place.
fn shortened(name: &str, most: usize) -> String {
    if name.chars().count() <= most { name.into() } else { name.chars().take(most - 1).chain(['…']).collect() }
}

/// At most some 400 points of a curve: of each stretch the lowest and the highest, so that no spike is lost.
pub fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const STRETCHES: usize = 200;
    if points.len() <= 2 * STRETCHES {
        return points.to_vec();
    }
    points
        .chunks(points.len().div_ceil(STRETCHES))
        .flat_map(|stretch| {
            let order = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let (low, high) = (stretch.iter().min_by(order), stretch.iter().max_by(order));
            let mut pair: Vec<(f64, f64)> = low.into_iter().chain(high).copied().collect();
            pair.sort_by(|a, b| a.0.total_cmp(&b.0));
            pair.dedup();
            pair
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::scale::{Kind, short};

    #[test]
    fn a_thinned_curve_keeps_its_spikes_and_its_order() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), if i == 7777 { 9.0 } else { 1.0 })).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= 400 && thin.contains(&(7777.0, 9.0)), "{}", thin.len());
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thinned(&points[..10]), points[..10]);
    }

    #[test]
    fn what_has_no_place_on_a_scale_leaves_a_gap() {
        let series =
            [Series { points: vec![(0.0, 10.0), (1.0, f64::NAN), (2.0, 1000.0)], dots: true, ..Series::default() }];
        let x = ("x", Scale::exact(0.0, 2.0), short as Format);
        let y = ("y", Scale::of(Kind::Log, series[0].points.iter().map(|point| point.1), false), short as Format);
        let drawn = lines(&Lines { title: "<t>", x, y, series: &series, marks: &[] });
        assert!(!drawn.contains("NaN") && drawn.contains("&lt;t&gt;"), "{drawn}");
        assert_eq!(drawn.matches("<circle").count(), 2);
        let path = drawn.split("class=\"line k0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((path.matches('M').count(), path.matches('L').count()), (2, 0), "{path}");
    }
}
