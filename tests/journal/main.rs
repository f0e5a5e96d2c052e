//! The journal's log: what it promises, through crashes, damage and full disks.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod model;
mod power;
mod sim;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test, and why it cannot be run here; none if it can.
type Case = (&'static str, fn(), Option<String>);

fn cases() -> Vec<Case> {
    vec![
        ("power::every_acknowledged_record_survives", power::every_acknowledged_record_survives, None),
        ("power::planted_mistakes_are_found", power::planted_mistakes_are_found, None),
    ]
}

fn main() -> ExitCode {
    let cases = cases();
    let waived: Vec<String> =
        cases.iter().filter_map(|(name, _, why)| Some(format!("waived: {name}: {}", why.as_ref()?))).collect();
    let trials = cases.into_iter().map(|(name, test, why_not)| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(why_not.is_some())
    });
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());
    waived.iter().for_each(|line| println!("{line}"));
    println!("waived: {}", waived.len());
    conclusion.exit_code()
}
