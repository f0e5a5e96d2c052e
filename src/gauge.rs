//! What NVML says of a device: power, clocks, how busy its SMs are. NVML is loaded when it is there; a machine without it says
//! so, and nothing else changes. None of its calls is a CUDA call, so none of them waits for a kernel.

use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::enums::gpm::GpmMetricId;
use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};

/// The shortest time between two samples that NVML calculates utilisation from.
const SAMPLE: Duration = Duration::from_millis(100);

/// A device's gauges.
#[derive(Debug)]
pub struct Gauge {
    nvml: Nvml,
    bus: String,
}

/// What the gauges say; none where this device or driver has no such gauge.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reading {
    /// Power of the whole device, averaged by it over some tens of milliseconds to a second, watts.
    pub watts: Option<f64>,
    /// Clock of the SMs, MHz.
    pub sm_mhz: Option<u32>,
    /// The share of its SMs that had a warp, averaged over the time asked for, 0 to 1 (GPM, from Hopper on).
    pub sm_busy: Option<f64>,
    /// Of the warps that they could hold, 0 to 1 (GPM).
    pub sm_occupancy: Option<f64>,
    /// Other processes that compute on the device, by their ids as this machine counts them.
    pub foreign_processes: Option<Vec<u32>>,
}

fn unavailable(reason: impl std::fmt::Display) -> Error {
    Error::Unavailable { what: "NVML", reason: reason.to_string() }
}

impl Gauge {
    /// The gauges of a device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] on the twin, where libnvidia-ml is not found, and where it does not know the device.
    pub fn of(device: &Device) -> Result<Self> {
        let info = device.info();
        let bus = info.pci_bus_id.clone().ok_or_else(|| unavailable(format!("{} is no GPU", info.name)))?;
        let nvml = Nvml::init().map_err(unavailable)?;
        nvml.device_by_pci_bus_id(bus.as_str()).map_err(unavailable)?;
        Ok(Gauge { nvml, bus })
    }

    /// Reads them. With `over` of 100 ms or more, waits that long for how busy the SMs are meanwhile.
    pub fn read(&self, over: Duration) -> Reading {
        let Ok(device) = self.nvml.device_by_pci_bus_id(self.bus.as_str()) else { return Reading::default() };
        let me = std::process::id();
        let mut reading = Reading {
            watts: device.power_usage().ok().map(|milliwatts| f64::from(milliwatts) / 1e3),
            sm_mhz: device.clock_info(Clock::SM).ok(),
            foreign_processes: device
                .running_compute_processes()
                .ok()
                .map(|all| all.iter().map(|p| p.pid).filter(|pid| *pid != me).collect()),
            ..Reading::default()
        };
        if over < SAMPLE || !device.gpm_support().unwrap_or(false) {
            return reading;
        }
        let Ok(before) = device.gpm_sample() else { return reading };
        std::thread::sleep(over);
        let Ok(after) = device.gpm_sample() else { return reading };
        let wanted = [GpmMetricId::SmUtil, GpmMetricId::SmOccupancy];
        if let Ok(found) = nvml_wrapper::gpm::gpm_metrics_get(&self.nvml, &before, &after, &wanted) {
            let share = |i: usize| found.get(i).and_then(|m| m.as_ref().ok()).map(|m| m.value / 100.0);
            (reading.sm_busy, reading.sm_occupancy) = (share(0), share(1));
        }
        reading
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_gauge_is_no_fault() {
        let error = Gauge::of(&Device::twin()).expect_err("the twin draws no power of its own");
        assert!(matches!(error, Error::Unavailable { what: "NVML", .. }), "{error}");
    }
}
