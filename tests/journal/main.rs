//! The journal's log, and checkpoints: what they promise, through crashes, damage and full disks.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod ahead;
mod child;
mod crash;
mod damage;
mod direct;
mod files;
mod full;
mod keep;
mod keep_crash;
mod model;
mod power;
mod roundtrip;
mod sim;
mod sim_disk;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test, and why it cannot be run here; none if it can.
type Case = (&'static str, fn(), Option<String>);

fn cases() -> Vec<Case> {
    let no_mount = full::why_not();
    let can = |name, test: fn()| -> Case { (name, test, None) };
    vec![
        can("roundtrip::records_come_back", roundtrip::records_come_back),
        can("roundtrip::long_tensors", roundtrip::long_tensors),
        can("roundtrip::reader_beside_writer", roundtrip::reader_beside_writer),
        can("roundtrip::retention_keeps_what_it_should", roundtrip::retention_keeps_what_it_should),
        can("roundtrip::policies_sync_when_they_say", roundtrip::policies_sync_when_they_say),
        can("ahead::refused_batches_come_again_anywhere", ahead::refused_batches_come_again_anywhere),
        can("ahead::nothing_is_acknowledged_after_a_failed_sync", ahead::nothing_is_acknowledged_after_a_failed_sync),
        can("direct::batches_begin_at_blocks", direct::batches_begin_at_blocks),
        can("direct::tensors_in_any_memory", direct::tensors_in_any_memory),
        can("direct::a_damaged_filler_is_told", direct::a_damaged_filler_is_told),
        can("direct::readers_beside_direct_writes", direct::readers_beside_direct_writes),
        can("direct::an_old_log_goes_on", direct::an_old_log_goes_on),
        can("damage::every_flipped_bit", damage::every_flipped_bit),
        can("damage::every_truncation", damage::every_truncation),
        can("damage::what_is_behind_damage_can_be_read", damage::what_is_behind_damage_can_be_read),
        can("damage::records_inside_payloads", damage::records_inside_payloads),
        can("files::segments_in_disorder", files::segments_in_disorder),
        can("files::files_that_are_something_else", files::files_that_are_something_else),
        can("files::empty_and_sparse_files", files::empty_and_sparse_files),
        can("files::one_writer", files::one_writer),
        can("files::a_directory_that_vanishes", files::a_directory_that_vanishes),
        can("damage::a_cut_makes_it_whole", damage::a_cut_makes_it_whole),
        can("power::every_acknowledged_record_survives", power::every_acknowledged_record_survives),
        can("power::planted_mistakes_are_found", power::planted_mistakes_are_found),
        ("crash::every_system_call", crash::every_system_call, crash::why_not()),
        can("keep::every_flipped_bit_and_length", keep::every_flipped_bit_and_length),
        can("keep::other_versions_and_programs", keep::other_versions_and_programs),
        can("keep::one_writer_at_a_time", keep::one_writer_at_a_time),
        can("keep_crash::survives_power_loss", keep_crash::survives_power_loss),
        ("keep_crash::survives_every_system_call", keep_crash::survives_every_system_call, crash::why_not()),
        can("full::writes_cut_short_by_a_limit", full::writes_cut_short_by_a_limit),
        ("full::a_full_disk_is_back_pressure", full::a_full_disk_is_back_pressure, no_mount.clone()),
        ("full::no_room_to_begin", full::no_room_to_begin, no_mount.clone()),
        ("full::a_read_only_disk_can_be_read", full::a_read_only_disk_can_be_read, no_mount),
    ]
}

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(keep_crash::DIR) {
        return keep_crash::child(dir.as_ref());
    }
    if let Some(dir) = std::env::var_os(child::DIR) {
        return child::main(dir.as_ref());
    }
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
