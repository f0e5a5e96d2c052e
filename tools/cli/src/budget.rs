//! The spin budget as a command's options, or as a file.

use std::path::PathBuf;
use std::time::Duration;

use warpmail::{Device, Error, SpinBudget};

/// When an arbiter without work leaves the SM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum IdleSpin {
    /// After this long, or never.
    Is(Option<Duration>),
    /// As soon as polling has cost as much as being woken does.
    BreakEven,
}

fn idle_spin(word: &str) -> Result<IdleSpin, String> {
    match word {
        "break-even" => Ok(IdleSpin::BreakEven),
        word if word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty() => {
            Err(format!("{word} has no unit: a time is like 20us, or it is never, or break-even"))
        }
        word => SpinBudget::parse_idle_spin(word).map(IdleSpin::Is),
    }
}

fn time(word: &str) -> Result<Duration, String> {
    humantime::parse_duration(word).map_err(|e| format!("{e}; a time is like 2ms"))
}

/// Limits on the time the arbiter may hold an SM of the GPU (docs/parking.md). What is given here goes before the file.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Spin budget")]
pub(crate) struct BudgetArgs {
    /// A TOML file with idle_spin, adaptive, sm_share, max_wait, residency, sms and servers, or some of them
    #[arg(long, value_name = "FILE")]
    budget: Option<PathBuf>,
    /// Let the arbiter leave after this much time without work until there is news: a time (20us), never, or break-even, which
    /// measures at the start what being woken costs here
    #[arg(long, value_name = "TIME", value_parser = idle_spin)]
    idle_spin: Option<IdleSpin>,
    /// Let it leave at once where news has been coming later than after idle-spin
    #[arg(long)]
    adaptive: bool,
    /// Long-run limit on polling without work, as a share of one SM, up to 1
    #[arg(long, value_name = "SHARE")]
    sm_share: Option<f64>,
    /// The longest that a parked arbiter makes others wait (2ms)
    #[arg(long, value_name = "TIME", value_parser = time)]
    max_wait: Option<Duration>,
    /// The longest that one launch stays (2ms)
    #[arg(long, value_name = "TIME", value_parser = time)]
    residency: Option<Duration>,
    /// How many SMs the arbiter may occupy: 1, for it is one block
    #[arg(long, value_name = "N")]
    sms: Option<u32>,
    /// Warps (on the twin: threads) that run modules, if not as many as the machine suggests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(warpmail::abi::WM_MAX_SERVERS)))]
    servers: Option<u32>,
}

impl BudgetArgs {
    /// So many servers, and everything else as usual.
    #[cfg(test)]
    pub(crate) fn of_servers(servers: u32) -> Self {
        BudgetArgs { servers: Some(servers), ..Self::default() }
    }

    /// The budget for a device, beginning with its `usual` one.
    pub(crate) fn over(&self, usual: SpinBudget, device: &Device) -> Result<SpinBudget, Error> {
        let mut budget = match &self.budget {
            None => usual,
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::Unavailable {
                    what: "the budget",
                    reason: format!("{} cannot be read: {e}", path.display()),
                })?;
                let named = |word: &str| text.lines().any(|line| line.trim_start().starts_with(word));
                let read = SpinBudget::from_toml(&text)?;
                SpinBudget { servers: if named("servers") { read.servers } else { usual.servers }, ..read }
            }
        };
        match self.idle_spin {
            None => {}
            Some(IdleSpin::Is(time)) => budget.idle_spin = time,
            Some(IdleSpin::BreakEven) => budget.idle_spin = Some(SpinBudget::break_even(device)?), // anew, on the twin too
        }
        budget.adaptive |= self.adaptive;
        budget.sm_share = self.sm_share.unwrap_or(budget.sm_share);
        budget.max_wait = self.max_wait.unwrap_or(budget.max_wait);
        budget.residency = self.residency.unwrap_or(budget.residency);
        budget.sms = self.sms.unwrap_or(budget.sms);
        budget.servers = self.servers.unwrap_or(budget.servers);
        Ok(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<BudgetArgs, String> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            budget: BudgetArgs,
        }
        let words = std::iter::once("test").chain(words.iter().copied());
        <Cli as clap::Parser>::try_parse_from(words).map(|c| c.budget).map_err(|e| e.to_string())
    }

    #[test]
    fn options_go_before_the_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "idle_spin = \"50us\"\nmax_wait = \"3ms\"\n").expect("written");
        let path = file.path().to_str().expect("a name");
        let args = parse(&["--budget", path, "--idle-spin", "20us", "--adaptive"]).expect("good options");
        let usual = SpinBudget { servers: 2, ..SpinBudget::default() };
        let budget = args.over(usual, &Device::twin()).expect("a good budget");
        let wanted = SpinBudget {
            idle_spin: Some(Duration::from_micros(20)),
            adaptive: true,
            max_wait: Duration::from_millis(3),
            servers: 2,
            ..SpinBudget::default()
        };
        assert_eq!(budget, wanted);
    }

    #[test]
    fn one_sm_is_what_there_is() {
        let over = |words: &[&str]| parse(words).expect("good options").over(SpinBudget::default(), &Device::twin());
        assert_eq!(over(&["--sms", "1"]).expect("a good budget").sms, 1);
        let budget = over(&["--sms", "2"]).expect("refused with the graph");
        let refused = warpmail::Builder::new(Device::twin()).budget(budget).map(|_| ()).expect_err("two SMs");
        assert!(refused.to_string().contains("sms 2"), "{refused}");
    }

    #[test]
    fn break_even_is_measured() {
        let args = parse(&["--idle-spin", "break-even"]).expect("good options");
        let budget = args.over(SpinBudget::default(), &Device::twin()).expect("a good budget");
        assert!(budget.idle_spin.is_some_and(|t| t >= Duration::from_micros(1) && t <= budget.residency), "{budget:?}");
    }

    #[test]
    fn bad_words_are_told() {
        for (words, told) in [
            (["--idle-spin", "20"], "no unit"),
            (["--idle-spin", "often"], "never"),
            (["--max-wait", "x"], "like 2ms"),
            (["--servers", "99"], "99"),
        ] {
            let error = parse(&words).expect_err("a bad option");
            assert!(error.contains(told), "{error}");
        }
        let args = parse(&["--budget", "/nowhere/budget.toml"]).expect("a name");
        let error = args.over(SpinBudget::default(), &Device::twin()).expect_err("no such file");
        assert!(error.to_string().contains("/nowhere/budget.toml"), "{error}");
    }
}
