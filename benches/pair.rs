//! `cargo bench -p warpmail-cli --bench pair [-- OPTIONS]`: what `warpmail bench pair` measures, in the bench profile.

#[path = "common/mod.rs"]
mod common;

fn main() -> std::process::ExitCode {
    common::run("pair")
}
