//! Line charts as SVG, in colours that are readable on light and on dark paper.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde::Serialize;

/// The size of a chart, in its own units; the page scales it.
const SIZE: (u32, u32) = (560, 260);
/// Points of a line; more are averaged in as many groups.
const POINTS: usize = 240;
/// Colours of lines, told apart by people who do not see all colours.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 132, 209),
    RGBColor(224, 108, 23),
    RGBColor(24, 150, 92),
    RGBColor(180, 90, 180),
    RGBColor(158, 130, 20),
    RGBColor(200, 60, 60),
];

/// A line of a chart.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Its points, in the order of x.
    pub points: Vec<(f64, f64)>,
    /// Half the width of the 95 % interval at each point; empty where there is none.
    pub intervals: Vec<f64>,
}

/// A chart of the page.
#[derive(Debug, Clone, Serialize)]
pub struct Chart {
    title: String,
    note: String,
    /// Names and colours of the lines.
    legend: Vec<(String, String)>,
    svg: String,
}

impl Chart {
    /// Draws lines over a named axis; none where no line has a point. `note` says in a sentence how to read it.
    ///
    /// # Errors
    /// When the library cannot draw it.
    pub fn draw(title: &str, note: &str, across: &str, lines: &[Line]) -> Result<Option<Self>> {
        let lines: Vec<Line> = lines.iter().map(thinned).filter(|line| !line.points.is_empty()).collect();
        let all = || lines.iter().flat_map(|line| &line.points);
        let reach = |line: &Line, at: usize| line.intervals.get(at).copied().unwrap_or(0.0);
        if all().next().is_none() {
            return Ok(None);
        }
        let (left, right) = bounds(all().map(|point| point.0));
        let ends = lines.iter().flat_map(|line| {
            line.points
                .iter()
                .enumerate()
                .flat_map(|(at, point)| [point.1 - reach(line, at), point.1 + reach(line, at)])
        });
        let (low, high) = bounds(ends);
        let room = (high - low) * 0.06;
        let bottom = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin(6)
                .margin_right(14)
                .x_label_area_size(42)
                .y_label_area_size(62)
                .build_cartesian_2d(left..right, bottom..high + room)
                .map_err(failed)?;
            let decimals = decimals(high - low);
            chart
                .configure_mesh()
                .x_desc(across)
                .x_labels(if right - left < 12.0 { (right - left) as usize + 1 } else { 7 })
                .y_labels(6)
                .x_label_formatter(&|x| format!("{x:.0}"))
                .y_label_formatter(&|y| number(*y, decimals))
                .label_style(("sans-serif", 16))
                .axis_desc_style(("sans-serif", 16))
                .axis_style(RGBColor(128, 128, 128))
                .bold_line_style(RGBColor(128, 128, 128).mix(0.25))
                .light_line_style(TRANSPARENT)
                .draw()
                .map_err(failed)?;
            for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
                chart
                    .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
                    .map_err(failed)?;
                if !line.intervals.is_empty() {
                    let bar = |(at, &(x, y)): (usize, &(f64, f64))| {
                        let half = reach(line, at);
                        PathElement::new(vec![(x, y - half), (x, y + half)], colour.stroke_width(2))
                    };
                    chart.draw_series(line.points.iter().enumerate().map(bar)).map_err(failed)?;
                }
                if line.points.len() <= 12 {
                    let dot = |&point: &(f64, f64)| Circle::new(point, 3, colour.filled());
                    chart.draw_series(line.points.iter().map(dot)).map_err(failed)?;
                }
            }
            area.present().map_err(failed)?;
        }
        let legend = lines.iter().zip(COLOURS.iter().cycle());
        let colour = |RGBColor(r, g, b): &RGBColor| format!("#{r:02X}{g:02X}{b:02X}");
        Ok(Some(Self {
            title: title.into(),
            note: note.into(),
            legend: legend.map(|(line, of)| (line.name.clone(), colour(of))).collect(),
            // Letters take the colour of the page's, so that they are readable on dark paper.
            svg: svg
                .replace("fill=\"#000000\"", "fill=\"currentColor\"")
                .replace(" width=\"560\" height=\"260\" ", " "),
        }))
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a chart cannot be drawn: {error}")
}

/// A line with at most [`POINTS`] points, each the mean of a group; points that are no numbers are left out.
fn thinned(line: &Line) -> Line {
    let mut line = line.clone();
    if line.intervals.is_empty() {
        line.points.retain(|(x, y)| x.is_finite() && y.is_finite());
    }
    let size = line.points.len().div_ceil(POINTS);
    if size > 1 {
        let mean = |group: &[(f64, f64)]| {
            let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (x / group.len() as f64, y / group.len() as f64)
        };
        line.points = line.points.chunks(size).map(mean).collect();
        line.intervals.clear();
    }
    line
}

/// The lowest and the highest number, never the same.
fn bounds(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), n| (low.min(n), high.max(n)));
    let width = high - low;
    if width > 1e-12 * high.abs().max(1e-6) {
        (low, high)
    } else {
        (low - low.abs().max(0.01) * 0.5, high + high.abs().max(0.01) * 0.5)
    }
}

/// Decimals that tell the labels of an axis apart.
fn decimals(width: f64) -> usize {
    (1.0 - width.log10().floor()).clamp(0.0, 12.0) as usize
}

/// A label: small numbers by their exponent.
fn number(value: f64, decimals: usize) -> String {
    if decimals > 4 { format!("{value:.1e}") } else { format!("{value:.decimals$}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(points: Vec<(f64, f64)>) -> Line {
        Line { name: "loss".into(), points, intervals: vec![] }
    }

    #[test]
    fn a_chart_has_its_lines_and_nothing_gives_none() {
        let points: Vec<(f64, f64)> = (0..1000).map(|at| (f64::from(at), f64::from(at).sqrt())).collect();
        let chart = Chart::draw("Loss", "lower is better", "step", &[line(points)]).unwrap().unwrap();
        assert!(chart.svg.starts_with("<svg viewBox=") && chart.svg.contains("<polyline"), "{}", &chart.svg[..200]);
        assert!(!chart.svg.contains("fill=\"#000000\"") && chart.svg.contains("currentColor"));
        assert_eq!(chart.legend, [("loss".to_owned(), "#0084D1".to_owned())]);
        assert!(Chart::draw("", "", "", &[line(vec![])]).unwrap().is_none());
        for flat in [vec![(1.0, 0.0)], vec![(0.0, 3.0), (1.0, 3.0)], vec![(0.0, f64::NAN), (1.0, 1.0)]] {
            assert!(Chart::draw("", "", "", &[line(flat)]).unwrap().is_some());
        }
    }

    #[test]
    fn labels_tell_what_they_label_apart() {
        assert_eq!(number(0.25, decimals(0.8)), "0.25");
        assert_eq!(number(120.0, decimals(300.0)), "120");
        assert_eq!(number(3e-5, decimals(3e-5)), "3.0e-5");
    }
}
