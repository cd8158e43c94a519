//! The scaling plot: a column of two panels for each series, tokens a second above, memory below.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::scaling::Series;
use crate::error::Failure;

const PANEL: (u32, u32) = (330, 250);
const TITLE: u32 = 40;
const SPEED: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const MEMORY: RGBColor = RGBColor(0xd6, 0x5f, 0x0e);

/// An SVG document.
pub fn draw(all: &[Series], title: &str) -> Result<String, Failure> {
    let mut svg = String::new();
    let size = (PANEL.0 * all.len() as u32, TITLE + 2 * PANEL.1);
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("cannot draw the plot: {e}"));
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(|e| failed(&e))?;
        let (heading, body) = root.split_vertically(TITLE);
        let style = ("sans-serif", 18).into_font().into_text_style(&heading);
        heading.draw_text(title, &style, (16, 12)).map_err(|e| failed(&e))?;
        let panels = body.split_evenly((2, all.len()));
        for (column, series) in all.iter().enumerate() {
            let of = |f: &dyn Fn(&super::scaling::Point) -> f64| series.points.iter().map(f).collect::<Vec<f64>>();
            let names: Vec<&str> = series.points.iter().map(|point| point.value.as_str()).collect();
            let speed = of(&|point| point.tokens_per_second);
            let memory = of(&|point| point.peak_resident_bytes.unwrap_or(point.peak_bytes) as f64 / (1 << 30) as f64);
            panel(&panels[column], "tokens a second", SPEED, series.varied, &names, &speed).map_err(|e| failed(&e))?;
            panel(&panels[all.len() + column], "peak memory, GiB", MEMORY, series.varied, &names, &memory)
                .map_err(|e| failed(&e))?;
        }
        root.present().map_err(|e| failed(&e))?;
    }
    Ok(svg)
}

/// A line over named points, which lie evenly: their values grow by factors.
fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    what: &str,
    color: RGBColor,
    varied: &str,
    names: &[&str],
    values: &[f64],
) -> Result<(), Box<dyn std::error::Error>> {
    let top = values.iter().copied().fold(0.0, f64::max) * 1.15;
    let last = (names.len() - 1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(what, ("sans-serif", 14))
        .x_label_area_size(36)
        .y_label_area_size(46)
        .build_cartesian_2d(-0.25..last + 0.25, 0.0..top.max(f64::MIN_POSITIVE))?;
    let name = |at: &f64| {
        let nearest = at.round();
        if (at - nearest).abs() < 1e-6 {
            names.get(nearest as usize).map_or(String::new(), |name| (*name).into())
        } else {
            String::new()
        }
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(varied)
        .x_labels(names.len() * 2 + 1)
        .x_label_formatter(&name)
        .y_labels(6)
        .label_style(("sans-serif", 12))
        .draw()?;
    let points = || values.iter().enumerate().map(|(i, value)| (i as f64, *value));
    chart.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
    chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scaling::Point;

    #[test]
    fn every_point_and_label_is_in_the_drawing() {
        let point = |value: &str, tokens_per_second| Point {
            value: value.into(),
            tokens_per_second,
            peak_bytes: 1 << 30,
            peak_resident_bytes: None,
        };
        let series = [
            Series { varied: "sparsity", points: vec![point("0.5", 100.0), point("0.95", 200.0)] },
            Series { varied: "sequences", points: vec![point("8", 50.0)] },
        ];
        let svg = draw(&series, "a title").unwrap();
        for text in ["a title", "sparsity", "sequences", "0.95", "0.5", "tokens a second", "peak memory, GiB"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 6);
    }
}
