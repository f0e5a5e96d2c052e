//! Runs one bench of the `warpmail` command, with the options behind `--`.

use std::process::{Command, ExitCode};

pub(crate) fn run(bench: &str) -> ExitCode {
    // Cargo adds `--bench` of its own.
    let options = std::env::args().skip(1).filter(|a| a != "--bench");
    match Command::new(env!("CARGO_BIN_EXE_warpmail")).args(["bench", bench]).args(options).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("the warpmail command cannot be run: {e}");
            ExitCode::FAILURE
        }
    }
}
