//! `cargo bench -p warpmail-cli --bench hop [-- OPTIONS]`: what `warpmail bench hop` measures, in the bench profile.

#[path = "common/mod.rs"]
mod common;

fn main() -> std::process::ExitCode {
    common::run("hop")
}
