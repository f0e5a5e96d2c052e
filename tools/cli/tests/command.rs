//! The command on the twin and on a GPU: the same answers, and benches that say where they ran. Part of the bundle.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::Value;
use warpmail::{Builder, Device, Mode};
use warpmail_testkit::harness::{Scenario, Special};

type Outcome = Result<(), String>;

/// The built command; in a bundle it lies beside the folder of the tests.
fn command() -> Command {
    let bundled = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("warpmail")));
    let path = bundled.filter(|p| p.is_file()).unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_warpmail")));
    let mut command = Command::new(path);
    command.env_remove("RUST_LOG").env_remove("WARPMAIL_TRIAL");
    command
}

fn backend(device: &Device) -> &'static str {
    if device.info().ordinal.is_some() { "cuda" } else { "twin" }
}

/// A file of the test's own, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("warpmail-command-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The JSON that a command wrote to a file.
fn json_of(command: &mut Command, file: &Scratch) -> Result<Value, String> {
    let output = command.arg("--json").arg(&file.0).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("{}: {said}", output.status));
    }
    let text = std::fs::read_to_string(&file.0).map_err(|e| format!("{e}: {said}"))?;
    serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
}

fn run_gives_the_twins_answers(device: &Device) -> Outcome {
    // These texts nearly repeat themselves often enough; lines that do not fit a record come with them.
    let sources = [include_str!("run.rs"), include_str!("cli.rs"), include_str!("command.rs")].concat();
    let text = Scratch::new("text");
    std::fs::write(&text.0, [sources.clone(), sources.replace('\n', " "), "\n".into()].concat())
        .map_err(|e| e.to_string())?;
    let on = |backend: &str, mode: &str| {
        let mut run = command();
        run.args(["run", "--quiet", "--capacity", "8192", "--all", "--backend", backend, "--mode", mode]).arg(&text.0);
        json_of(&mut run, &Scratch::new(backend))
    };
    let mode = Builder::new(device.clone()).current_mode().map_err(|e| e.to_string())?.to_string();
    let (twin, here) = (on("twin", "device")?, on(backend(device), &mode)?);
    if here["run"]["backend"] != backend(device) || here["run"]["mode"] != mode.as_str() {
        return Err(format!("it ran on {}, arbitrated by {}", here["run"]["backend"], here["run"]["mode"]));
    }
    let compared = twin["summary"]["compared"].as_u64().unwrap_or(0);
    if compared < 300 {
        return Err(format!("only {compared} lines were compared"));
    }
    for part in ["results", "summary"] {
        if here[part] != twin[part] {
            return Err(format!("{part} differ from the twin's"));
        }
    }
    Ok(())
}

/// Short runs of the benches: rows with figures that can be, from the device that was asked for, and a picture.
fn benches_say_where_they_ran(device: &Device) -> Outcome {
    // Those of the arbiter on the CPU where that is what is tried.
    let mode = Builder::new(device.clone()).current_mode().map_err(|e| e.to_string())?;
    let arbitration = ("arbitration", &["--records", "20", "--bodies", "0"][..], "arb.chain.0us.cpu.hop");
    let others = [
        ("hop", &["--rounds", "300", "--pairs", "2"][..], "hop.ordered"),
        ("throughput", &["--rounds", "1"], "throughput.pair"),
        ("drain", &["--mib", "4", "--records", "20000", "--rounds", "1"], "drain.disk_4k"),
        ("spin-budget", &["--rates", "500,5000", "--seconds", "0.05"], "park.latency.parked.500"),
    ];
    let benches = if mode == Mode::Cpu { &[arbitration][..] } else { &others };
    for &(bench, options, wanted) in benches {
        let picture = Scratch::new("svg");
        let mut run = command();
        run.current_dir(std::env::temp_dir());
        run.args(["bench", bench, "--backend", backend(device)]).args(options).arg("--svg").arg(&picture.0);
        let rows = json_of(&mut run, &Scratch::new(bench)).map_err(|e| format!("bench {bench}: {e}"))?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|r| r["id"] == wanted).ok_or_else(|| format!("bench {bench}: no row {wanted}"))?;
        let sane = row["value"].as_f64().is_some_and(|v| v > 0.0) && row["ratio"].as_f64().is_some_and(|r| r > 0.0);
        if !sane || rows.iter().any(|r| r["backend"] != backend(device)) {
            return Err(format!("bench {bench}: {rows:?}"));
        }
        let svg = std::fs::read_to_string(&picture.0).map_err(|e| e.to_string())?;
        let shown = if bench == "spin-budget" { "500 records/s" } else { wanted };
        if !svg.starts_with("<svg") || !svg.contains(shown) {
            return Err(format!("bench {bench}: the picture shows no {shown}"));
        }
    }
    Ok(())
}

const SCENARIOS: &[(&str, Scenario)] = &[
    ("run_gives_the_twins_answers", run_gives_the_twins_answers),
    ("benches_say_where_they_ran", benches_say_where_they_ran),
];

fn main() -> ExitCode {
    let special = Special { blocking: &["run_gives_the_twins_answers"], ..Special::default() };
    warpmail_testkit::harness::main(SCENARIOS, special, Duration::from_secs(180))
}
