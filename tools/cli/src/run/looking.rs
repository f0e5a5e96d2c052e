//! What `warpmail run` and `warpmail log replay` ask a user alike: what to look for, where, and what to say.

use std::process::ExitCode;

use clap::ValueEnum;
use warpmail::{Device, Error, Mode};

use super::USAGE;
use super::graph::Options;
use super::records;
use crate::budget::BudgetArgs;

/// Where the modules run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The GPU if it can be used, else the twin
    Auto,
    /// The GPU, or an error with the reason
    Cuda,
    /// CPU threads
    Twin,
}

#[derive(clap::Args)]
pub(crate) struct Looking {
    /// Similarity (cosine) from which a line counts as a near-duplicate, above 0 and up to 1
    #[arg(long, default_value = "0.9", value_parser = parse_threshold, value_name = "COSINE", allow_hyphen_values = true)]
    pub(super) threshold: u32,
    /// Lines remembered; when full, the oldest is forgotten. About 530 bytes of device memory each. 1048576 unless given or
    /// resumed
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 28), value_name = "LINES")]
    pub(super) capacity: Option<u32>,
    /// Also list novel lines
    #[arg(long)]
    all: bool,
    /// Where the modules run
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// Who arbitrates: the device itself, or a thread of the host that launches each grant; the results are the same.
    /// device unless given here or in WARPMAIL_MODE
    #[arg(long, value_name = "device|cpu")]
    mode: Option<Mode>,
    /// CUDA device, if not the first
    #[arg(long, value_name = "N")]
    device: Option<u32>,
    /// Time and steps of each module in the summary
    #[arg(long, conflicts_with = "quiet")]
    pub(super) stats: bool,
    /// No summary and no progress bar; errors are named all the same
    #[arg(long, short)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    budget: BudgetArgs,
}

fn parse_threshold(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(t) if t > 0.0 && t <= 1.0 => Ok((t * f64::from(records::ONE)).round().max(1.0) as u32),
        _ => Err("must be a number above 0 and up to 1".into()),
    }
}

impl Looking {
    /// Whether options contradict each other; says so, for the command of this name.
    pub(crate) fn contradicts(&self, command: &str) -> Option<ExitCode> {
        (self.backend == Backend::Twin && self.device.is_some()).then(|| {
            eprintln!("warpmail {command}: --device chooses a GPU, --backend twin uses none");
            ExitCode::from(USAGE)
        })
    }

    /// As given, or as WARPMAIL_MODE says.
    fn mode(&self) -> Result<Mode, Error> {
        self.mode.map_or_else(Mode::from_environment, Ok)
    }

    pub(super) fn device(&self) -> Result<Device, Error> {
        let ordinal = self.device.unwrap_or(0);
        match self.backend {
            Backend::Twin => Ok(Device::twin()),
            Backend::Cuda => Device::cuda(ordinal),
            Backend::Auto => Ok(Device::best_for(ordinal, self.mode()?)),
        }
    }

    pub(super) fn options(&self) -> Result<Options, Error> {
        Ok(Options {
            mode: self.mode()?,
            threshold: self.threshold,
            emit_all: self.all,
            capacity: self.capacity.unwrap_or(1 << 20),
            budget: self.budget.clone(),
        })
    }
}
