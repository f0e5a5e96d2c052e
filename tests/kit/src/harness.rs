//! Trials that run in a child process with a wall-clock limit, on the twin and on a GPU, or are waived with the reason.

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use warpmail::Device;

/// A scenario: runs on a device, says what went wrong.
pub type Scenario = fn(&Device) -> Result<(), String>;

const CHILD: &str = "WARPMAIL_TRIAL";

/// Runs every scenario on the twin and on CUDA device 0, each in a child process that is killed after `limit`. Where the GPU
/// cannot be used its trials are waived: reported as ignored, counted, with the reason at the end.
pub fn main(scenarios: &[(&'static str, Scenario)], limit: Duration) -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(scenarios, &name);
    }
    let args = Arguments::from_args();
    let why_not = warpmail::probe().why_not_cuda(0);
    let mut trials = Vec::new();
    for (name, _) in scenarios {
        for backend in ["twin", "cuda"] {
            let full = format!("{backend}::{name}");
            let waived = backend == "cuda" && why_not.is_some();
            let child_name = full.clone();
            let trial = Trial::test(full, move || parent(&child_name, limit));
            trials.push(trial.with_ignored_flag(waived));
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    if let Some(reason) = why_not {
        println!("waived: {} ({reason})", conclusion.num_ignored);
    }
    conclusion.exit_code()
}

fn child(scenarios: &[(&'static str, Scenario)], name: &str) -> ExitCode {
    let Some((backend, scenario)) = name.split_once("::") else {
        eprintln!("{name}: not the name of a trial");
        return ExitCode::FAILURE;
    };
    let device = if backend == "twin" { Ok(Device::twin()) } else { Device::cuda(0) };
    let found = scenarios.iter().find(|(n, _)| *n == scenario).map(|(_, run)| run);
    match (device, found) {
        (Ok(device), Some(run)) => match run(&device) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("{message}");
                ExitCode::FAILURE
            }
        },
        (Err(e), _) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
        (_, None) => {
            eprintln!("{name}: there is no such scenario");
            ExitCode::FAILURE
        }
    }
}

/// Processes that share a GPU take turns on it, and a persistent kernel takes all of its turn: one trial at a time.
static GPU: Mutex<()> = Mutex::new(());

fn parent(name: &str, limit: Duration) -> Result<(), Failed> {
    let _turn = name.starts_with("cuda").then(|| GPU.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut child = Command::new(exe)
        .env(CHILD, name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let mut stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let until = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Some(status),
            None if Instant::now() >= until => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = reader.join().unwrap_or_default();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{status}: {text}").into()),
        None => Err(format!("killed after {limit:?}: {text}").into()),
    }
}
