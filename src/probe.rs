//! What this machine can do, and why not.

use cudarc::driver::{DriverError, result, sys};
use serde::Serialize;

use crate::image::HandlerImage;
use crate::options::Mode;

/// The CUDA version whose driver the embedded kernels need.
const NEEDED_DRIVER: i32 = 13000;
/// The oldest compute capability that the kernels are built for.
const NEEDED_CAPABILITY: (u32, u32) = (8, 0);

/// What runs the arbiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The persistent kernel.
    Cuda,
    /// CPU threads.
    Twin,
}

impl std::fmt::Display for BackendKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BackendKind::Cuda => "cuda",
            BackendKind::Twin => "twin",
        })
    }
}

/// Whether CUDA kernels are part of this build.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelStatus {
    /// Compute capabilities that machine code was built for.
    Built(String),
    /// Why there are none.
    NotBuilt(String),
}

/// One CUDA device.
#[derive(Debug, Clone, Serialize)]
pub struct CudaDevice {
    /// CUDA ordinal.
    pub ordinal: u32,
    /// Name, as the driver gives it.
    pub name: String,
    /// Compute capability.
    pub compute_capability: (u32, u32),
    /// SMs.
    pub multiprocessors: u32,
    /// Device memory.
    pub memory_bytes: u64,
    /// Shared memory that one block can ask for.
    pub shared_bytes: u64,
    /// Whether streams can wait on memory words, so that a parked arbiter is woken by the GPU's front end; else by the host.
    pub stream_memory_operations: bool,
    /// Whether atomics of the host and of the device on host memory are atomic to each other.
    pub host_native_atomics: bool,
    /// Why device-arbitrated mode cannot use it; none if it can.
    pub refused: Option<String>,
}

/// The answer of [`probe()`].
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// This library's version.
    pub version: &'static str,
    /// The commit it was built from.
    pub commit: &'static str,
    /// The version of the bytes shared with the device.
    pub abi_version: u32,
    /// Whether kernels are part of this build.
    pub kernels: KernelStatus,
    /// CUDA version of the driver, or why there is no driver.
    pub driver: Result<String, String>,
    /// What keeps device-arbitrated mode from working in this process, whatever the device. CPU-arbitrated mode works.
    pub process: Option<String>,
    /// Connections to each device that this process's streams share: `CUDA_DEVICE_MAX_CONNECTIONS` as it was when the driver was
    /// first asked, 8 unless it says otherwise. A stream that waits holds up those that share its own.
    pub connections: usize,
    /// CUDA devices.
    pub devices: Vec<CudaDevice>,
    /// Hardware threads for the twin.
    pub host_threads: usize,
}

impl Probe {
    /// The reason why device-arbitrated mode cannot run on this device, or none if it can.
    pub fn why_not_cuda(&self, ordinal: u32) -> Option<String> {
        self.why_not(ordinal, Mode::Device)
    }

    /// The reason why a mode cannot run on this device, or none if it can.
    pub fn why_not(&self, ordinal: u32, mode: Mode) -> Option<String> {
        if let KernelStatus::NotBuilt(reason) = &self.kernels {
            return Some(format!("the kernels are not built: {reason}"));
        }
        if let Err(reason) = &self.driver {
            return Some(reason.clone());
        }
        if let (Some(reason), Mode::Device) = (&self.process, mode) {
            return Some(reason.clone());
        }
        match self.devices.iter().find(|d| d.ordinal == ordinal) {
            Some(device) => device.refused.clone(),
            None => Some(format!("there is no CUDA device {ordinal}; {} found", self.devices.len())),
        }
    }

    /// Stream modules of one process that each have a connection of their own.
    pub fn stream_modules(&self) -> usize {
        self.connections.saturating_sub(OTHER_CONNECTIONS)
    }

    /// What `Device::best` takes.
    pub fn best(&self) -> BackendKind {
        if self.why_not_cuda(0).is_none() { BackendKind::Cuda } else { BackendKind::Twin }
    }
}

pub(crate) fn driver_reason(e: DriverError) -> String {
    let text =
        |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(e.error_name()), text(e.error_string()))
}

/// Looks at the machine. Creates no CUDA context and launches nothing.
pub fn probe() -> Probe {
    let kernels = match HandlerImage::builtin().cuda() {
        Ok(()) => KernelStatus::Built(HandlerImage::built_archs().to_string()),
        Err(reason) => KernelStatus::NotBuilt(reason.to_string()),
    };
    let driver = driver_version();
    let devices = if driver.is_ok() { devices() } else { Vec::new() };
    let driver = driver.and_then(|version| {
        let text = format!("{}.{}", version / 1000, version % 1000 / 10);
        if version < NEEDED_DRIVER {
            return Err(format!(
                "the driver supports CUDA {text}; the kernels need a driver for CUDA 13.0 or newer (580)"
            ));
        }
        Ok(text)
    });
    Probe {
        version: env!("CARGO_PKG_VERSION"),
        commit: crate::COMMIT,
        abi_version: crate::abi::WM_ABI_VERSION,
        kernels,
        driver,
        process: no_place_to_stay(),
        connections: connections(),
        devices,
        host_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
    }
}

/// What is to be said of a graph with so many stream modules: streams share the connections to a device, and one that waits
/// holds up those that share its own, until the pacer lets it go.
pub(crate) fn too_few_connections(stream_modules: usize) -> Option<String> {
    too_few(stream_modules, connections())
}

fn too_few(stream_modules: usize, connections: usize) -> Option<String> {
    let mend = if connections < MOST_CONNECTIONS {
        "set CUDA_DEVICE_MAX_CONNECTIONS=32 before the process first uses CUDA"
    } else {
        "there are no more: merge modules"
    };
    (stream_modules > 0 && stream_modules + OTHER_CONNECTIONS > connections).then(|| {
        format!(
            "{stream_modules} stream modules and the arbiter share {connections} connections to the device, so that some wait \
             for others: {mend}"
        )
    })
}

/// Of the arbiter's launches, of the waits that stand aside from them, and of copies.
const OTHER_CONNECTIONS: usize = 3;
/// The driver's.
const USUAL_CONNECTIONS: usize = 8;
const MOST_CONNECTIONS: usize = 32;

/// Looked up once: what is set after the driver has begun changes nothing.
fn connections() -> usize {
    static FOUND: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| connections_of(std::env::var("CUDA_DEVICE_MAX_CONNECTIONS").ok().as_deref()))
}

fn connections_of(variable: Option<&str>) -> usize {
    let set = variable.and_then(|v| v.trim().parse().ok());
    set.filter(|n| *n > 0).unwrap_or(USUAL_CONNECTIONS).min(MOST_CONNECTIONS)
}

/// What keeps a kernel from staying on the device while others run, whatever the device.
pub(crate) fn no_place_to_stay() -> Option<String> {
    let is = |name: &str, bad: &dyn Fn(&str) -> bool| std::env::var(name).is_ok_and(|v| bad(v.trim()));
    let reason = if is("CUDA_LAUNCH_BLOCKING", &|v| !v.is_empty() && v != "0") {
        "CUDA_LAUNCH_BLOCKING is set: a launch of the persistent kernel would not return"
    } else if is("CUDA_DEVICE_MAX_CONNECTIONS", &|v| v == "1") {
        "CUDA_DEVICE_MAX_CONNECTIONS is 1: the persistent kernel would hold up every other stream"
    } else {
        return None;
    };
    Some(format!("{reason}; unset it, or let the CPU arbitrate (Mode::Cpu, --mode cpu, WARPMAIL_MODE=cpu)"))
}

fn driver_version() -> Result<i32, String> {
    // SAFETY: looks for the library and loads it; nothing is called before it is known to be there.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda was not found".into());
    }
    connections();
    result::init().map_err(|e| format!("the NVIDIA driver does not start: {}", driver_reason(e)))?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(driver_reason)?;
    Ok(version)
}

fn devices() -> Vec<CudaDevice> {
    let count = result::device::get_count().unwrap_or(0);
    (0..count).filter_map(|ordinal| device(ordinal).ok()).collect()
}

fn device(ordinal: i32) -> Result<CudaDevice, DriverError> {
    use sys::CUdevice_attribute::*;
    let device = result::device::get(ordinal)?;
    // SAFETY: `device` is a device of this process and the attribute exists in every driver that the probe accepts.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let compute_capability = (
        attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
        attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
    );
    let name = result::device::get_name(device)?;
    let refused = (compute_capability < NEEDED_CAPABILITY).then(|| {
        let (major, minor) = compute_capability;
        format!("{name} has compute capability {major}.{minor}; 8.0 or newer is needed")
    });
    Ok(CudaDevice {
        ordinal: ordinal as u32,
        name,
        compute_capability,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device)? } as u64,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u64,
        stream_memory_operations: attribute(CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS)? != 0,
        host_native_atomics: attribute(CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED)? != 0,
        refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_the_variables() {
        for (variable, connections) in [(None, 8), (Some("32"), 32), (Some(" 4 "), 4), (Some("99"), 32), (Some("x"), 8)]
        {
            assert_eq!(connections_of(variable), connections, "{variable:?}");
        }
    }

    #[test]
    fn too_few_are_named() {
        assert_eq!(too_few(0, 1), None);
        assert_eq!(too_few(5, 8), None);
        assert!(too_few(6, 8).is_some_and(|why| why.contains("CUDA_DEVICE_MAX_CONNECTIONS=32")));
        assert_eq!(too_few(29, 32), None);
        assert!(too_few(30, 32).is_some_and(|why| why.contains("merge")));
    }
}
