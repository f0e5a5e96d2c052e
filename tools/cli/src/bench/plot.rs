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
