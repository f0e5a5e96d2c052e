//! Trials that run in a child process with a wall-clock limit, on the twin and on a GPU, in both modes, or are waived with the
//! reason.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use warpmail::{Device, Mode};

/// A scenario: runs on a device, says what went wrong.
pub type Scenario = fn(&Device) -> Result<(), String>;

const CHILD: &str = "WARPMAIL_TRIAL";

/// A place to run scenarios in, by the name that its trials begin with.
struct Place {
    name: &'static str,
    cuda: bool,
    mode: Mode,
    /// Where no kernel can stay: launches that block, and one connection to the device.
    blocking: bool,
    /// On the twin, but with the persistent kernel's own block, lane by lane.
    warps: bool,
}

const TWIN: Place = Place { name: "twin", cuda: false, mode: Mode::Device, blocking: false, warps: false };
const CUDA: Place = Place { name: "cuda", cuda: true, ..TWIN };
const PLACES: [Place; 6] = [
    TWIN,
    CUDA,
    Place { name: "twin-warps", warps: true, ..TWIN },
    Place { name: "twin-cpu", mode: Mode::Cpu, ..TWIN },
    Place { name: "cuda-cpu", mode: Mode::Cpu, ..CUDA },
    Place { name: "cuda-cpu-blocking", mode: Mode::Cpu, blocking: true, ..CUDA },
];

/// What a scenario's child says first in a line that is to be seen while it runs.
const PROGRESS: &str = "progress: ";

/// Says how far a long scenario is; shown at once.
pub fn progress(how_far: &str) {
    eprintln!("{PROGRESS}{how_far}");
}

/// Seconds that a scenario may take, if it is not to be the usual limit: for those that were asked to do more than usual.
pub const LIMIT: &str = "WARPMAIL_TRIAL_SECONDS";

/// Set where the test handlers' twin is to be the persistent kernel's own block.
pub const WARPS: &str = "WARPMAIL_TRIAL_WARPS";

/// Names of scenarios that run in other places than most.
#[derive(Debug, Clone, Copy, Default)]
pub struct Special<'a> {
    /// On the GPU also with `CUDA_LAUNCH_BLOCKING=1` and `CUDA_DEVICE_MAX_CONNECTIONS=1`.
    pub blocking: &'a [&'a str],
    /// On the twin also with the persistent kernel's own block.
    pub warps: &'a [&'a str],
    /// Waived where the CPU arbitrates: what they are about is not there; and why.
    pub resident: &'a [(&'a str, &'a str)],
}

/// Runs every scenario on the twin and on CUDA device 0, arbitrated by the device and by the CPU, each in a child process
/// that is killed after `limit`. Where the GPU cannot be used its trials are waived: reported as ignored, counted, with the
/// reason at the end.
pub fn main(scenarios: &[(&'static str, Scenario)], special: Special, limit: Duration) -> ExitCode {
    main_in(&PLACES, scenarios, special, limit)
}

/// The same for scenarios that have no arbiter: on the twin and on the GPU, once.
pub fn main_without_arbiter(scenarios: &[(&'static str, Scenario)], limit: Duration) -> ExitCode {
    main_in(&PLACES[..2], scenarios, Special::default(), limit)
}

fn main_in(
    places: &'static [Place],
    scenarios: &[(&'static str, Scenario)],
    special: Special,
    limit: Duration,
) -> ExitCode {
    if let Ok(name) = std::env::var(CHILD) {
        return child(scenarios, &name);
    }
    let args = Arguments::from_args();
    let probe = warpmail::probe();
    let asked = std::env::var(LIMIT).ok().and_then(|v| v.parse().ok()).map(Duration::from_secs);
    let limit = asked.unwrap_or(limit);
    let (mut trials, mut waived) = (Vec::new(), BTreeMap::<String, usize>::new());
    for place in places {
        let no_place = if place.cuda { probe.why_not(0, place.mode) } else { None };
        let is_here = |name: &&str| {
            (!place.blocking || special.blocking.contains(name)) && (!place.warps || special.warps.contains(name))
        };
        for (name, _) in scenarios.iter().filter(|(name, _)| is_here(name)) {
            let absent = special.resident.iter().find(|(n, _)| n == name && place.mode == Mode::Cpu);
            let why_not = absent.map(|(_, why)| (*why).into()).or_else(|| no_place.clone());
            let full = format!("{}::{name}", place.name);
            let child_name = full.clone();
            let trial = Trial::test(full, move || parent(&child_name, place, limit));
            trials.push(trial.with_ignored_flag(why_not.is_some()));
            if let Some(reason) = why_not {
                *waived.entry(format!("{}: {reason}", place.name)).or_default() += 1;
            }
        }
    }
    let conclusion = libtest_mimic::run(&args, trials);
    for (reason, trials) in &waived {
        println!("waived: {trials} ({reason})");
    }
    conclusion.exit_code()
}

fn child(scenarios: &[(&'static str, Scenario)], name: &str) -> ExitCode {
    let Some((place, scenario)) = name.split_once("::") else {
        eprintln!("{name}: not the name of a trial");
        return ExitCode::FAILURE;
    };
    let device = if place.starts_with("twin") { Ok(Device::twin()) } else { Device::cuda(0) };
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

fn parent(name: &str, place: &Place, limit: Duration) -> Result<(), Failed> {
    let _turn = place.cuda.then(|| GPU.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(exe);
    for variable in ["CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS"].iter().filter(|_| place.blocking) {
        command.env(variable, "1");
    }
    // Streams that wait hold up those that share their connection to the device; there are 8 unless this says otherwise.
    if !place.blocking {
        command.env("CUDA_DEVICE_MAX_CONNECTIONS", "32");
    }
    if place.warps {
        command.env(WARPS, "1");
    }
    let mut child = command
        .env(CHILD, name)
        .env("WARPMAIL_MODE", place.mode.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let (stderr, of) = (child.stderr.take(), name.to_string());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        for line in stderr.into_iter().flat_map(|s| BufReader::new(s).split(b'\n')).map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            match line.strip_prefix(PROGRESS) {
                Some(how_far) => eprintln!("{of}: {how_far}"),
                None => text.extend([&*line, "\n"]),
            }
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
