//! `park.*`: what a spin budget costs and what it buys. Records arrive at random (Poisson) at a resident relay; for each budget
//! and rate: how long push to reply takes, and what share of one SM's time the arbiter held.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use warpmail::{
    Builder, Device, Error, Gauge, HandlerImage, MailboxOptions, Mode, Receiver, Runtime, Sender, SpinBudget, Stats,
    builtin,
};

use super::{Target, corun, plot, text};
use crate::figures::Figures;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Records a second
    #[arg(long, value_delimiter = ',', default_values_t = [10.0, 100.0, 1e3, 1e4, 1e5, 1e6], value_parser = rate)]
    rates: Vec<f64>,
    /// Seconds for each budget and rate
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    seconds: f64,
    /// Name the budget that holds the SM least while 99 of 100 replies come within this time (20us)
    #[arg(long, default_value = "100us", value_parser = latency)]
    latency: Duration,
    /// Matched pairs for each neighbour and state of the arbiter (a GPU only); 0: none
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=1000))]
    pairs: u32,
    /// Only the neighbours
    #[arg(long, conflicts_with_all = ["rates", "seconds"])]
    neighbours: bool,
    /// Shorter: two rates, a fifth of a second each, six pairs
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    target: Target,
}

fn rate(word: &str) -> Result<f64, String> {
    match word.parse::<f64>() {
        Ok(v) if v > 0.0 && v <= 1e7 => Ok(v),
        Ok(_) => Err("must be above 0 up to 10000000".into()),
        Err(e) => Err(e.to_string()),
    }
}

fn latency(word: &str) -> Result<Duration, String> {
    humantime::parse_duration(word).map_err(|e| format!("{e}; a time is like 20us"))
}

/// Budgets from always polling to hardly ever.
fn budgets() -> Vec<(&'static str, SpinBudget)> {
    let of = |micros| SpinBudget { idle_spin: Some(Duration::from_micros(micros)), ..SpinBudget::default() };
    vec![
        ("spinning", SpinBudget { idle_spin: None, ..SpinBudget::default() }),
        ("spin_1000us", of(1000)),
        ("spin_100us", of(100)),
        ("spin_20us", of(20)),
        ("share_1pc", SpinBudget { sm_share: 0.01, ..of(1000) }),
        ("adaptive_20us", SpinBudget { adaptive: true, ..of(20) }),
        ("parked", of(1)),
    ]
}

/// One budget at one rate.
struct Cell {
    budget: &'static str,
    rate: f64,
    /// P50, P99, P99.9 of push to reply, nanoseconds.
    latency: [f64; 3],
    /// Of one SM's time.
    share: f64,
    /// The part of it without work.
    idle_share: f64,
    parks: u64,
    /// Limits that the arbiter itself counted as missed.
    violations: u64,
    /// Watts of the whole device; none where NVML does not say.
    watts: Option<f64>,
}

fn relay(device: &Device, budget: SpinBudget) -> Result<(Runtime, Sender, Receiver), Error> {
    let mut graph = Builder::new(device.clone());
    graph.mode(Mode::Device);
    let servers = if device.info().ordinal.is_some() { SpinBudget::default().servers } else { 0 };
    graph.budget(SpinBudget { servers, ..budget })?;
    let host = graph.host("host")?;
    let relay = graph.resident("relay", builtin::RELAY)?;
    let there = graph.mailbox(host, relay, MailboxOptions::slots(1024))?;
    let back = graph.mailbox(relay, host, MailboxOptions::slots(1024))?;
    let mut runtime = graph.build(HandlerImage::builtin())?;
    let ends = (runtime.sender(there)?, runtime.receiver(back)?);
    runtime.start()?;
    Ok((runtime, ends.0, ends.1))
}

/// Times between arrivals, exponentially distributed: the inverse of the distribution at a number from a linear congruence.
struct Arrivals {
    seed: u64,
    mean_ns: f64,
}

impl Arrivals {
    fn next(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((self.seed >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        -uniform.ln() * self.mean_ns
    }
}

fn measure(
    device: &Device,
    name: &'static str,
    budget: SpinBudget,
    rate: f64,
    seconds: f64,
    watts: &dyn Fn() -> Option<f64>,
) -> Result<Cell, String> {
    let (mut runtime, mut sender, mut receiver) = relay(device, budget).map_err(text)?;
    let mut histogram = Histogram::<u64>::new(3).map_err(|e| e.to_string())?;
    let mut arrivals = Arrivals { seed: 1, mean_ns: 1e9 / rate };
    let mut buffer = [0u8; 248];
    std::thread::sleep(Duration::from_millis(20)); // started, and as idle as it gets
    let (before, begin) = (runtime.stats(), Instant::now());
    let (span, mut due, mut sent, mut got) = (seconds * 1e9, arrivals.next(), 0u64, 0u64);
    let limit = Duration::from_secs_f64(seconds + 20.0);
    while due < span || got < sent {
        let now = begin.elapsed();
        if due < span && now.as_nanos() as f64 >= due {
            // The time it was due, not the time it was sent: a generator that falls behind must not hide it.
            match sender.try_push(1, &(due as u64).to_le_bytes()) {
                Ok(()) => {
                    sent += 1;
                    due += arrivals.next();
                }
                Err(Error::Full { .. }) => {}
                Err(e) => return Err(text(e)),
            }
        }
        while receiver.try_pop(&mut buffer).map_err(text)?.is_some() {
            let stamp = u64::from_le_bytes(std::array::from_fn(|i| buffer[i]));
            let latency = (begin.elapsed().as_nanos() as u64).saturating_sub(stamp);
            histogram.record(latency).map_err(|e| e.to_string())?;
            got += 1;
        }
        if now > limit {
            return Err(format!("{name} at {rate}/s: only {got} of {sent} replies came within {limit:?}"));
        }
        if got == sent && due - now.as_nanos() as f64 > 300_000.0 {
            std::thread::sleep(Duration::from_micros(100)); // leaves the core to others, and is back in time
        }
    }
    let elapsed = begin.elapsed().as_nanos() as f64;
    let watts = watts();
    runtime.stop(Duration::from_secs(5)).map_err(text)?;
    let after = runtime.stats();
    let spent = |of: fn(&Stats) -> u64| (of(&after) - of(&before)) as f64 / elapsed;
    let idle_share = spent(|s| s.idle_poll_ns);
    Ok(Cell {
        budget: name,
        rate,
        latency: [0.5, 0.99, 0.999].map(|q| histogram.value_at_quantile(q) as f64),
        share: spent(|s| s.work_ns) + idle_share,
        idle_share,
        parks: after.parks - before.parks,
        violations: after.budget.violations() - before.budget.violations(),
        watts,
    })
}

pub(crate) fn execute(args: &Args, svg: Option<&Path>) -> Result<Figures, String> {
    let device = args.target.gpu()?.unwrap_or_else(Device::twin);
    if device.info().ordinal.is_none() {
        println!(
            "The twin: threads of this machine, not a GPU; a door is found open by a thread that sleeps in between."
        );
    }
    let mut figures = Figures::new(device.info());
    let (mut rates, seconds, pairs) = match args.quick {
        true => (vec![100.0, 1e4], 0.2, args.pairs.min(6)),
        false => (args.rates.clone(), args.seconds, args.pairs),
    };
    if args.neighbours {
        rates.clear();
    }
    let gauge = Gauge::of(&device).inspect_err(|e| println!("power: {e}")).ok();
    let watts = || gauge.as_ref().and_then(|g| g.read(Duration::ZERO).watts);
    let bar = ProgressBar::new((rates.len() * budgets().len()) as u64);
    let mut cells = Vec::new();
    for &rate in &rates {
        let mut floor = None;
        for (name, budget) in budgets() {
            let cell = measure(&device, name, budget, rate, seconds, &watts)?;
            let hot = *floor.get_or_insert(cell.latency[0]);
            let id = format!("park.latency.{name}.{rate:.0}");
            figures.add(&id, cell.latency[0], "ns", Some(hot)).spread(cell.latency);
            cells.push(cell);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    for cell in &cells {
        figures.add(&format!("park.share.{}.{:.0}", cell.budget, cell.rate), cell.share, "share of one SM", None);
        if let Some(watts) = cell.watts {
            figures.add(&format!("park.power.{}.{:.0}", cell.budget, cell.rate), watts, "W", None);
        }
        if cell.violations > 0 {
            println!("{} at {:.0}/s: {} limits missed by more than a tenth", cell.budget, cell.rate, cell.violations);
        }
    }
    // How far idle polling went beyond what sm_share allows, over the whole measurement.
    let error = |c: &Cell| c.idle_share / 0.01 - 1.0;
    let worst = cells.iter().filter(|c| c.budget == "share_1pc").map(error).fold(f64::MIN, f64::max);
    if device.info().ordinal.is_some() && !rates.is_empty() {
        figures.add("park.share_error", worst, "of the share", None);
    }
    choose(&cells, &rates, args.latency.as_nanos() as f64);
    let corun::Measured { coruns, chains, missing } = if device.info().ordinal.is_some() && pairs > 0 {
        corun::measure(&device, pairs as usize, &watts)?
    } else {
        corun::Measured::default()
    };
    missing.iter().for_each(|line| println!("{line}"));
    tell_neighbours(&mut figures, &coruns);
    corun::cause::tell(&mut figures, &chains);
    if let Some(path) = svg {
        let point = |c: &Cell| plot::Point { rate: c.rate, share: c.share, ns: c.latency[0], budget: c.budget };
        let points: Vec<_> = cells.iter().map(point).collect();
        if !points.is_empty() {
            plot::pareto(&figures, &points, path)?;
        }
        let slower: Vec<_> = coruns.iter().map(|c| (c.neighbour, c.state, c.share, c.slowdown)).collect();
        if !slower.is_empty() {
            plot::slowdown(&figures, &slower, &path.with_extension("slowdown.svg"))?;
        }
    }
    Ok(figures)
}

/// Rows of neighbours: beside over alone, the ratio being the median of the pairs' own.
fn tell_neighbours(figures: &mut Figures, coruns: &[corun::Corun]) {
    for c in coruns {
        let suffix = if c.state == "parked" { String::new() } else { format!(".{}", c.state) };
        let id = format!("park.corun.{}{suffix}", c.neighbour);
        figures.add(&id, c.beside_ms, "ms", Some(c.alone_ms)).ratio = Some(c.slowdown);
        figures.add(&format!("{id}.share"), c.share, "share of one SM", None);
        if let Some(watts) = c.watts {
            figures.add(&format!("{id}.power"), watts, "W", None);
        }
    }
}

/// Says which budget holds the SM least and is still fast enough.
fn choose(cells: &[Cell], rates: &[f64], want_ns: f64) {
    for &rate in rates {
        let fast_enough = cells.iter().filter(|c| c.rate == rate && c.latency[1] <= want_ns);
        match fast_enough.min_by(|a, b| a.share.total_cmp(&b.share)) {
            Some(c) => println!(
                "{rate:.0}/s with P99 within {:.0} µs: {} (P99 {:.1} µs, {:.2} % of one SM, {} parks)",
                want_ns / 1e3,
                c.budget,
                c.latency[1] / 1e3,
                c.share * 100.0,
                c.parks
            ),
            None => println!("{rate:.0}/s with P99 within {:.0} µs: none of these budgets", want_ns / 1e3),
        }
    }
}
