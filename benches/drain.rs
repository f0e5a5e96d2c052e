//! `cargo bench -p warpmail-cli --bench drain [-- OPTIONS]`: what `warpmail bench drain` measures.

#[path = "common/mod.rs"]
mod common;

fn main() -> std::process::ExitCode {
    common::run("drain")
}
