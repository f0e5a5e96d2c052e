//! A picture of a bench's rows: a bar a row on a logarithmic scale, its floor as a mark on it, P50 to P99.9 as a line.

use std::path::Path;

use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figures::{Figures, Row};

const WIDTH: u32 = 960;
const ROW: u32 = 26;
/// Pixels of a panel besides its rows: title and axis.
const FRAME: u32 = 90;
const LABELS: u32 = 300;

/// Draws one panel for each unit.
pub(crate) fn draw(figures: &Figures, path: &Path) -> Result<(), String> {
    let mut units: Vec<&str> = Vec::new();
    for row in figures.rows() {
        if !units.contains(&row.unit) {
            units.push(row.unit);
        }
    }
    let of_unit = |unit: &str| -> Vec<&Row> { figures.rows().iter().filter(|r| r.unit == unit).collect() };
    let heights: Vec<u32> = units.iter().map(|u| FRAME + ROW * of_unit(u).len() as u32).collect();
    let root = SVGBackend::new(path, (WIDTH, heights.iter().sum::<u32>().max(FRAME))).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| format!("{} cannot be drawn: {e}", path.display());
    root.fill(&WHITE).map_err(|e| failed(&e))?;
    let mut rest = root.clone();
    for (unit, height) in units.iter().zip(heights) {
        let (area, below) = rest.split_vertically(height);
        panel(&area, unit, &of_unit(unit)).map_err(|e| failed(&e))?;
        rest = below;
    }
    root.present().map_err(|e| failed(&e))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn panel<'a>(area: &Area<'a>, unit: &str, rows: &[&Row]) -> Result<(), DrawError<'a>> {
    let marks = |r: &&Row| [Some(r.value), r.floor, r.p50, r.p999].into_iter().flatten().filter(|v| *v > 0.0);
    let (low, high) = rows.iter().flat_map(marks).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    let (low, high) = if low <= high { (low / 1.6, high * 1.6) } else { (1.0, 10.0) };
    let first = rows.first();
    let title = first.map_or(String::new(), |r| format!("{unit}: {} ({}), warpmail {}", r.device, r.backend, r.commit));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .margin_left(LABELS)
        .margin_right(90)
        .x_label_area_size(36)
        .build_cartesian_2d((low..high).log_scale(), 0f64..rows.len() as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc(unit).x_label_formatter(&|v| number(*v)).draw()?;
    let label = |h: HPos| ("sans-serif", 13).into_text_style(area).pos(Pos::new(h, VPos::Center));
    let plane = chart.plotting_area();
    for (i, row) in rows.iter().enumerate() {
        let middle = (rows.len() - 1 - i) as f64 + 0.5;
        let is_baseline = row.id.contains("baseline") || row.id.ends_with(".raw_flag");
        let colour = if is_baseline { RGBColor(190, 190, 190) } else { RGBColor(90, 140, 200) };
        plane.draw(&Rectangle::new([(low, middle - 0.28), (row.value.max(low), middle + 0.28)], colour.filled()))?;
        if let (Some(p50), Some(p999)) = (row.p50, row.p999) {
            let line = |from, to| PathElement::new(vec![from, to], BLACK.mix(0.6));
            plane.draw(&line((p50.max(low), middle), (p999.max(low), middle)))?;
            for at in [row.p99, Some(p999)].into_iter().flatten() {
                plane.draw(&line((at.max(low), middle - 0.14), (at.max(low), middle + 0.14)))?;
            }
        }
        if let Some(floor) = row.floor.filter(|f| *f > 0.0) {
            let ends = vec![(floor, middle - 0.42), (floor, middle + 0.42)];
            plane.draw(&PathElement::new(ends, RED.stroke_width(2)))?;
        }
        let ratio = row.ratio.map_or(String::new(), |r| format!(" ×{r:.2}"));
        plane.draw(&(EmptyElement::at((low, middle)) + Text::new(row.id.clone(), (-8, 0), label(HPos::Right))))?;
        let value = format!("{}{ratio}", number(row.value));
        plane.draw(&(EmptyElement::at((high, middle)) + Text::new(value, (6, 0), label(HPos::Left))))?;
    }
    Ok(())
}

/// A few digits that tell neighbours apart.
fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

/// One budget at one rate.
pub(crate) struct Point {
    /// Records a second.
    pub(crate) rate: f64,
    /// Of one SM's time.
    pub(crate) share: f64,
    /// Median of push to reply, nanoseconds.
    pub(crate) ns: f64,
    pub(crate) budget: &'static str,
}

impl Point {
    /// Per cent and microseconds, for logarithmic axes.
    fn place(&self) -> (f64, f64) {
        ((self.share * 100.0).max(1e-3), (self.ns / 1e3).max(1e-3))
    }
}

/// A range with room around the values.
fn around(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low <= high { low / 2.0..high * 2.0 } else { 1.0..10.0 }
}

/// Median latency against the share of an SM's time, a line for each rate, a point for each budget; both logarithmic.
pub(crate) fn pareto(figures: &Figures, points: &[Point], path: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{} cannot be drawn: {e}", path.display());
    let root = SVGBackend::new(path, (WIDTH, 640)).into_drawing_area();
    pareto_on(&root, figures, points).map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}

fn pareto_on<'a>(root: &Area<'a>, figures: &Figures, points: &[Point]) -> Result<(), DrawError<'a>> {
    root.fill(&WHITE)?;
    let first = figures.rows().first();
    let title = first.map_or(String::new(), |r| format!("{} ({}), warpmail {}", r.device, r.backend, r.commit));
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(
            around(points.iter().map(|p| p.place().0)).log_scale(),
            around(points.iter().map(|p| p.place().1)).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("share of one SM's time, %")
        .y_desc("push to reply, median, µs")
        .x_label_formatter(&|v| number(*v))
        .y_label_formatter(&|v| number(*v))
        .draw()?;
    let mut rates: Vec<f64> = points.iter().map(|p| p.rate).collect();
    rates.dedup();
    for (i, rate) in rates.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let line: Vec<_> = points.iter().filter(|p| p.rate == *rate).collect();
        let mut ends: Vec<(f64, f64)> = line.iter().map(|p| p.place()).collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart
            .draw_series(LineSeries::new(ends.clone(), colour.stroke_width(2)))?
            .label(format!("{rate:.0} records/s"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(ends.iter().map(|p| Circle::new(*p, 4, colour.filled())))?;
        if i == 0 {
            let names = line
                .iter()
                .map(|p| EmptyElement::at(p.place()) + Text::new(p.budget.to_string(), (6, -14), ("sans-serif", 12)));
            chart.draw_series(names)?;
        }
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}

/// How much slower a neighbour is, in per cent, against the share of an SM's time that the arbiter held: a colour for each
/// neighbour, a point for each state of the arbiter. `(neighbour, state, share, slowdown)`.
pub(crate) fn slowdown(
    figures: &Figures,
    points: &[(&'static str, &'static str, f64, f64)],
    path: &Path,
) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("{} cannot be drawn: {e}", path.display());
    let root = SVGBackend::new(path, (WIDTH, 480)).into_drawing_area();
    slowdown_on(&root, figures, points).map_err(|e| failed(&e))?;
    root.present().map_err(|e| failed(&e))
}

fn slowdown_on<'a>(
    root: &Area<'a>,
    figures: &Figures,
    points: &[(&'static str, &'static str, f64, f64)],
) -> Result<(), DrawError<'a>> {
    root.fill(&WHITE)?;
    let place = |p: &(&str, &str, f64, f64)| ((p.2 * 100.0).max(1e-3), (p.3 - 1.0) * 100.0);
    let first = figures.rows().first();
    let title = first.map_or(String::new(), |r| format!("{} ({}), warpmail {}", r.device, r.backend, r.commit));
    let (low, high) = points.iter().map(|p| place(p).1).fold((0f64, 1f64), |(l, h), v| (l.min(v), h.max(v)));
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(around(points.iter().map(|p| place(p).0)).log_scale(), low - 0.5..high * 1.2)?;
    chart
        .configure_mesh()
        .x_desc("share of one SM's time, %")
        .y_desc("slower than alone, %")
        .x_label_formatter(&|v| number(*v))
        .draw()?;
    let mut neighbours: Vec<&str> = points.iter().map(|p| p.0).collect();
    neighbours.dedup();
    for (i, neighbour) in neighbours.into_iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        let own: Vec<_> = points.iter().filter(|p| p.0 == neighbour).collect();
        chart
            .draw_series(own.iter().map(|p| Circle::new(place(p), 4, colour.filled())))?
            .label(neighbour)
            .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
        let label = |p: &&&(&str, &str, f64, f64)| {
            EmptyElement::at(place(p)) + Text::new(p.1.to_string(), (6, -14), ("sans-serif", 12))
        };
        chart.draw_series(own.iter().map(|p| label(&p)))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}
