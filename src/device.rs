//! A device to run on, and memory on it.

use std::sync::Arc;

use serde::Serialize;

use crate::backend::{Backend, cuda::Cuda, twin::Twin};
use crate::error::{Error, Result};
use crate::options::Mode;
use crate::probe::{BackendKind, probe};

/// What a [`Device`] is.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceInfo {
    /// CUDA or the twin.
    pub backend: BackendKind,
    /// CUDA ordinal.
    pub ordinal: Option<u32>,
    /// Name, as the driver gives it.
    pub name: String,
    /// Where it is plugged in, as NVML and nvidia-smi name it.
    pub pci_bus_id: Option<String>,
    /// Driver version, as `major.minor` of the CUDA it supports.
    pub driver: Option<String>,
    /// Compute capability.
    pub compute_capability: Option<(u32, u32)>,
    /// SMs; on the twin, hardware threads.
    pub multiprocessors: u32,
    /// Whether streams can wait on memory words: who wakes a parked arbiter is then the GPU's front end (on the twin, its
    /// thread), else a thread of the host.
    pub stream_memory_operations: bool,
    /// Device memory.
    pub memory_bytes: Option<u64>,
}

/// A GPU, or the CPU twin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) backend: Arc<dyn Backend>,
}

impl Device {
    /// The CPU twin: always there.
    pub fn twin() -> Self {
        Device { backend: Arc::new(Twin::new()) }
    }

    /// The CUDA device with this ordinal, or the reason why it cannot be used. Whether a mode can be used on it in this
    /// process is for [`Probe::why_not`](crate::Probe::why_not) to say, and for a build to refuse.
    ///
    /// It works in the device's primary context, and runtimes with the same handlers share their loaded kernels. A reset of
    /// that context (`cudaDeviceReset`, `cuDevicePrimaryCtxReset`) takes what is on it down; a device that is opened after
    /// it, once the older ones are gone, finds its kernels loaded anew.
    pub fn cuda(ordinal: u32) -> Result<Self> {
        if let Some(reason) = probe().why_not(ordinal, Mode::Cpu) {
            return Err(Error::Unavailable { what: "the CUDA device", reason });
        }
        Ok(Device { backend: Arc::new(Cuda::open(ordinal)?) })
    }

    /// CUDA device 0 if the mode that `WARPMAIL_MODE` chooses can be used on it, else the twin.
    pub fn best() -> Self {
        Self::best_for(0, Mode::from_environment().unwrap_or_default())
    }

    /// The CUDA device with this ordinal if this mode can be used on it, else the twin.
    pub fn best_for(ordinal: u32, mode: Mode) -> Self {
        let cuda = match probe().why_not(ordinal, mode) {
            None => Self::cuda(ordinal).map_err(|e| e.to_string()),
            Some(reason) => Err(reason),
        };
        cuda.unwrap_or_else(|reason| {
            tracing::info!(%reason, "using the CPU twin");
            Self::twin()
        })
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.backend.info()
    }

    /// Bytes of device memory that no process has taken; none on the twin, whose memory is the host's.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        self.backend.free_bytes()
    }

    /// Zero-filled device memory.
    pub fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        let address = self.backend.alloc(bytes)?;
        Ok(DeviceBuffer { device: self.clone(), address, bytes })
    }
}

/// Memory on a device, freed when dropped. Give it to [`Builder::keep`](crate::Builder::keep) when a module's state points
/// into it.
#[derive(Debug)]
pub struct DeviceBuffer {
    device: Device,
    address: u64,
    bytes: usize,
}

impl DeviceBuffer {
    /// Device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Copies `bytes` to `offset`. The caller sees to it that no module uses them meanwhile (before
    /// [`Runtime::start`](crate::Runtime::start), or inside a quiesce).
    pub fn upload(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.device.backend.upload(self.address + offset as u64, bytes)
    }

    /// Copies from `offset` to `bytes`, under the same condition.
    pub fn download(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.device.backend.download(bytes, self.address + offset as u64)
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::refused(
                format!("{len} bytes at offset {offset}"),
                format!("outside the buffer's {} bytes", self.bytes),
            )),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.device.backend.free(self.address, self.bytes);
    }
}
