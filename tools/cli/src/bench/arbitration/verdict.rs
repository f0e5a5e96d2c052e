//! When the CPU is the better arbiter: said of the rows that were measured, and of nothing else.

use crate::figures::{Figures, Row};

/// Two steps that differ by less than this factor take equally long.
const ALIKE: f64 = 1.1;

/// What a pipeline cost under one arbiter.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// A body and the hop to the next, P50, nanoseconds.
    step: f64,
    /// Cores of the host, and SMs held.
    host: f64,
    held: f64,
}

impl Cost {
    /// Better than another: quicker, or alike and leaves SMs to others.
    fn beats(&self, other: &Cost) -> bool {
        let (quicker, alike) = (self.step * ALIKE < other.step, self.step < other.step * ALIKE);
        quicker || (alike && self.held * ALIKE < other.held)
    }
}

/// One pipeline with one body: under the quickest of the CPU's arbiters, and of the device's.
struct Case<'a> {
    id: &'a str,
    /// The CPU's.
    arbiter: &'static str,
    cpu: Cost,
    device: Cost,
    /// The CPU beats each of the device's arbiters.
    better: bool,
}

impl Case<'_> {
    fn slowdown(&self) -> f64 {
        self.cpu.step / self.device.step
    }

    fn name(&self) -> String {
        if self.arbiter == "cpu" { self.id.into() } else { format!("{}.{}", self.id, self.arbiter) }
    }
}

fn cost(rows: &[Row], case: &str, arbiter: &str) -> Option<Cost> {
    let value = |what: &str| rows.iter().find(|r| r.id == format!("{case}.{arbiter}.{what}")).map(|r| r.value);
    let micros: f64 = case.rsplit('.').next()?.strip_suffix("us")?.parse().ok()?;
    Some(Cost { step: 1e3 * micros + value("hop")?, host: value("host")?, held: value("held")? })
}

fn case<'a>(rows: &[Row], id: &'a str) -> Option<Case<'a>> {
    let all = |of: &[&'static str]| -> Vec<(&'static str, Cost)> {
        of.iter().filter_map(|a| Some((*a, cost(rows, id, a)?))).collect()
    };
    let (devices, cpus) = (all(&["device", "device_parking"]), all(&["cpu", "cpu_events", "cpu_graph"]));
    let (_, device) = *devices.iter().min_by(|a, b| a.1.step.total_cmp(&b.1.step))?;
    let (arbiter, cpu) = *cpus.iter().min_by(|a, b| a.1.step.total_cmp(&b.1.step))?;
    Some(Case { id, arbiter, cpu, device, better: devices.iter().all(|(_, d)| cpu.beats(d)) })
}

fn cases(rows: &[Row]) -> Vec<Case<'_>> {
    let ids = rows.iter().filter_map(|r| r.id.strip_suffix(".cpu.hop"));
    // Those with a busy host are about its cores, and beside the same pipelines without.
    let ids = ids.filter(|id| !id.starts_with("arb.busy."));
    ids.filter_map(|id| case(rows, id)).collect()
}

/// The smallest and the largest.
fn range(values: impl Iterator<Item = f64>) -> String {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if high - low < 0.005 { format!("{low:.2}") } else { format!("{low:.2} to {high:.2}") }
}

fn costs(cases: &[&Case<'_>]) -> String {
    let of = |what: fn(&Case<'_>) -> f64| range(cases.iter().map(|c| what(c)));
    format!(
        "a step takes {} times as long under the CPU, SMs held are {} (device: {}), cores of the host {} ({})",
        of(|c| c.slowdown()),
        of(|c| c.cpu.held),
        of(|c| c.device.held),
        of(|c| c.cpu.host),
        of(|c| c.device.host)
    )
}

fn sentence(cases: &[Case<'_>]) -> String {
    let (better, others): (Vec<_>, Vec<_>) = cases.iter().partition(|c| c.better);
    let of = format!("of the {} cases measured here", cases.len());
    if better.is_empty() {
        return format!("CPU arbitration is the better choice in none {of}: {}.", costs(&others));
    }
    let names: Vec<String> = better.iter().map(|c| c.name()).collect();
    let cpu = format!("{} {of} ({}): {}", better.len(), names.join(", "), costs(&better));
    let rest = if others.is_empty() { String::new() } else { format!("; where the device is, {}", costs(&others)) };
    format!("CPU arbitration is the better choice in {cpu}{rest}.")
}

/// Adds `arb.cpu_better`, the number of cases in which the CPU is the better arbiter, which also says so in words.
pub(super) fn add(figures: &mut Figures) {
    let cases = cases(figures.rows());
    if cases.is_empty() {
        return;
    }
    let (n, says) = (cases.iter().filter(|c| c.better).count(), sentence(&cases));
    figures.add("arb.cpu_better", n as f64, "cases", None).says = Some(says);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hop in nanoseconds, cores, SMs under device, device_parking and cpu.
    fn figures(of: &[(&str, [[f64; 3]; 3])]) -> Figures {
        let mut figures = Figures::new(warpmail::Device::twin().info());
        for (case, costs) in of {
            for (arbiter, [hop, host, held]) in ["device", "device_parking", "cpu"].iter().zip(costs) {
                figures.add(&format!("{case}.{arbiter}.hop"), *hop, "ns", None);
                figures.add(&format!("{case}.{arbiter}.host"), *host, "cores", None);
                figures.add(&format!("{case}.{arbiter}.held"), *held, "SMs", None);
            }
        }
        figures
    }

    fn verdict(of: &[(&str, [[f64; 3]; 3])]) -> (f64, String) {
        let mut figures = figures(of);
        add(&mut figures);
        let last = figures.rows().last().expect("rows");
        assert_eq!(last.id, "arb.cpu_better");
        (last.value, last.says.clone().expect("a sentence"))
    }

    const SHORT: [[f64; 3]; 3] = [[1000.0, 0.1, 1.0], [9000.0, 0.1, 0.3], [9000.0, 1.1, 0.1]];

    #[test]
    fn long_bodies_are_the_cpus() {
        let (n, says) = verdict(&[("arb.chain.0us", SHORT), ("arb.chain.500us", SHORT)]);
        assert_eq!(n, 1.0, "{says}");
        assert!(says.contains("better choice in 1 of the 2 cases measured here (arb.chain.500us)"), "{says}");
        assert!(says.contains("1.02 times as long under the CPU"), "{says}");
        assert!(says.contains("where the device is, a step takes 9.00 times as long"), "{says}");
    }

    #[test]
    fn where_the_device_wins_nothing_is_made_up() {
        let (n, says) = verdict(&[("arb.ring.5us", SHORT)]);
        assert!(n == 0.0 && says.contains("in none of the 1 cases"), "{says}");
    }

    #[test]
    fn a_parking_device_that_costs_as_little_is_no_reason() {
        let costs = [[1000.0, 0.1, 1.0], [2000.0, 0.1, 0.1], [9000.0, 1.1, 0.1]];
        assert_eq!(verdict(&[("arb.chain.500us", costs)]).0, 0.0);
    }

    #[test]
    fn a_quicker_cpu_is_better() {
        let costs = [[9000.0, 0.1, 0.1], [9000.0, 0.1, 0.1], [1000.0, 1.1, 0.1]];
        let (n, says) = verdict(&[("arb.stream.chain.0us", costs)]);
        assert!(n == 1.0 && !says.contains("where the device is"), "{says}");
    }

    #[test]
    fn the_quickest_of_the_cpus_counts() {
        let mut figures = figures(&[("arb.stream.chain.50us", SHORT)]);
        for (what, value) in [("hop", 500.0), ("host", 1.0), ("held", 0.1)] {
            figures.add(&format!("arb.stream.chain.50us.cpu_graph.{what}"), value, "ns", None);
        }
        add(&mut figures);
        let last = figures.rows().last().expect("rows");
        let says = last.says.clone().expect("a sentence");
        assert!(last.value == 1.0 && says.contains("(arb.stream.chain.50us.cpu_graph)"), "{says}");
    }
}
