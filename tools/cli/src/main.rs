//! The `warpmail` command.

mod bench;
mod budget;
mod figures;
mod log;
mod probe;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Mailboxes in device memory and a persistent CUDA arbiter for the modules that share one GPU.
#[derive(Parser)]
#[command(
    name = "warpmail",
    version,
    after_help = "Set RUST_LOG=warpmail=debug to see every lifecycle step on stderr.\n\
    Exit codes: 0 done, 1 done but something failed and was named, 2 wrong usage, 130 stopped by Ctrl-C."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What this machine can do, and why not
    Probe(probe::Args),
    /// Find near-duplicate lines in text, with modules that exchange records through device mailboxes
    Run(run::Args),
    /// Read, check and mend a journal's log on disk
    Log(log::Args),
    /// Measure, against a floor measured in the same run
    Bench(bench::Args),
}

/// Streams share the connections to a device, eight unless this says otherwise, and one that waits holds up those that share its
/// own: as many as there can be, unless the caller has decided. A probe says what a process of the caller's would have.
const CONNECTIONS: (&str, &str) = ("CUDA_DEVICE_MAX_CONNECTIONS", "32");

fn main() -> ExitCode {
    let cli = Cli::parse();
    if std::env::var_os(CONNECTIONS.0).is_none() && !matches!(cli.command, Command::Probe(_)) {
        // SAFETY: this process has one thread yet.
        unsafe { std::env::set_var(CONNECTIONS.0, CONNECTIONS.1) };
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.command {
        Command::Probe(args) => probe::execute(&args),
        Command::Run(args) => run::execute(&args),
        Command::Log(args) => log::execute(&args),
        Command::Bench(args) => bench::execute(&args),
    }
}
