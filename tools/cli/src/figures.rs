//! One format for figures: a list of rows, printed as a table and written as JSON.

use std::path::Path;

use serde::Serialize;
use warpmail::DeviceInfo;

/// One figure. Fields that do not apply are null.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What `value` is compared with, in the same unit, measured in the same run.
    pub(crate) floor: Option<f64>,
    /// `value / floor`.
    pub(crate) ratio: Option<f64>,
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) p999: Option<f64>,
    pub(crate) backend: String,
    pub(crate) device: String,
    pub(crate) driver: Option<String>,
    pub(crate) commit: &'static str,
    pub(crate) command: String,
    /// What the figure means, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) says: Option<String>,
}

impl Row {
    /// Sets P50, P99 and P99.9, in the row's unit.
    pub(crate) fn spread(&mut self, [p50, p99, p999]: [f64; 3]) {
        (self.p50, self.p99, self.p999) = (Some(p50), Some(p99), Some(p999));
    }
}

/// Collects rows that share a device and a command line.
pub(crate) struct Figures {
    device: DeviceInfo,
    rows: Vec<Row>,
}

impl Figures {
    pub(crate) fn new(device: &DeviceInfo) -> Self {
        Figures { device: device.clone(), rows: Vec::new() }
    }

    /// Adds a value, with the floor it is compared with.
    pub(crate) fn add(&mut self, id: &str, value: f64, unit: &'static str, floor: Option<f64>) -> &mut Row {
        let ratio = floor.filter(|f| *f > 0.0).map(|f| value / f);
        self.rows.push(Row {
            id: id.into(),
            value,
            unit,
            floor,
            ratio,
            p50: None,
            p99: None,
            p999: None,
            backend: self.device.backend.to_string(),
            device: self.device.name.clone(),
            driver: self.device.driver.clone(),
            commit: warpmail::COMMIT,
            command: command_line(),
            says: None,
        });
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(crate) fn print(&self) {
        let driver = self.device.driver.as_deref().map_or(String::new(), |d| format!(", driver for CUDA {d}"));
        println!("{} ({}{driver}), warpmail {}", self.device.name, self.device.backend, warpmail::COMMIT);
        println!(
            "{:<28} {:>14} {:>14} {:>8}  {:>10} {:>10} {:>10}  unit",
            "row", "value", "floor", "ratio", "p50", "p99", "p99.9"
        );
        let cell = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
        for r in &self.rows {
            println!(
                "{:<28} {:>14.3} {:>14} {:>8}  {:>10} {:>10} {:>10}  {}",
                r.id,
                r.value,
                cell(r.floor, 3),
                cell(r.ratio, 3),
                cell(r.p50, 1),
                cell(r.p99, 1),
                cell(r.p999, 1),
                r.unit
            );
        }
        for says in self.rows.iter().filter_map(|r| r.says.as_ref()) {
            println!("\n{says}");
        }
    }

    /// Writes the rows as a JSON list.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(&self.rows).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{} cannot be written: {e}", path.display()))
    }
}

/// The command as it was given, paths by their last part only: the rest would say where it was run.
fn command_line() -> String {
    let last = |word: String| match Path::new(&word).file_name() {
        Some(name) if word.contains('/') => name.to_string_lossy().into_owned(),
        _ => word,
    };
    std::env::args().map(last).collect::<Vec<_>>().join(" ")
}
