//! `cargo bench -p warpmail-cli --bench throughput [-- OPTIONS]`: what `warpmail bench throughput` measures, in the bench profile.

#[path = "common/mod.rs"]
mod common;

fn main() -> std::process::ExitCode {
    common::run("throughput")
}
