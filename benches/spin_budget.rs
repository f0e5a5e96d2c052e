//! `cargo bench -p warpmail-cli --bench spin-budget [-- OPTIONS]`: what `warpmail bench spin-budget` measures.

#[path = "common/mod.rs"]
mod common;

fn main() -> std::process::ExitCode {
    common::run("spin-budget")
}
