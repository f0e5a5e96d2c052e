//! `warpmail probe`.

use std::process::ExitCode;

use warpmail::{BackendKind, KernelStatus, Probe};

/// Says what this machine and this build can do. Creates no CUDA context and launches nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Exit with 1 if device-arbitrated mode cannot run on device 0
    #[arg(long)]
    require_cuda: bool,
}

pub(crate) fn execute(args: &Args) -> ExitCode {
    let probe = warpmail::probe();
    if args.json {
        match serde_json::to_string_pretty(&probe) {
            Ok(text) => println!("{text}"),
            Err(e) => {
                eprintln!("warpmail probe: the answer cannot be written as JSON: {e}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        print(&probe);
    }
    if args.require_cuda && probe.best() != BackendKind::Cuda { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print(probe: &Probe) {
    println!("warpmail {} (commit {}, ABI {})", probe.version, probe.commit, probe.abi_version);
    match &probe.kernels {
        KernelStatus::Built(archs) => println!("kernels   built for compute capability {archs}, and PTX of the last"),
        KernelStatus::NotBuilt(reason) => println!("kernels   not built: {reason}"),
    }
    match &probe.driver {
        Ok(version) => println!("driver    supports CUDA {version}"),
        Err(reason) => println!("driver    {reason}"),
    }
    if let Some(reason) = &probe.process {
        println!("process   {reason}");
    }
    println!(
        "streams   {} connections to a device (CUDA_DEVICE_MAX_CONNECTIONS; 32 at most): {} stream modules of a process wait \
         without holding up one another",
        probe.connections,
        probe.stream_modules()
    );
    for d in &probe.devices {
        let (major, minor) = d.compute_capability;
        println!(
            "device {}  {}: compute capability {major}.{minor}, {} SMs, {:.0} GiB",
            d.ordinal,
            d.name,
            d.multiprocessors,
            d.memory_bytes as f64 / f64::from(1 << 30)
        );
        let has = |yes: bool| if yes { "yes" } else { "no" };
        let waits =
            if d.stream_memory_operations { "" } else { ": a parked arbiter is woken by the host, some 50 us later" };
        println!("          stream memory operations: {}{waits}", has(d.stream_memory_operations));
        println!("          atomics shared with the host: {} (not needed)", has(d.host_native_atomics));
        if let Some(reason) = &d.refused {
            println!("          not usable: {reason}");
        }
    }
    println!("twin      always works; {} hardware threads here", probe.host_threads);
    match probe.why_not_cuda(0) {
        None => println!("=> modules run on device 0"),
        Some(reason) => println!("=> modules run on the CPU twin: {reason}"),
    }
}
