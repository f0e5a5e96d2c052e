//! The C API through its exports, declared as bindgen declares them from the header: on the twin and on a GPU, each
//! scenario in a child process that is killed if it hangs.
#![allow(clippy::undocumented_unsafe_blocks)] // every block here calls one C function, right or deliberately wrong

mod checkpoint;
mod ends;
mod graph;
mod handles;
mod life;
mod steps;
mod structs;
mod sys;
mod tensor;

use std::ffi::CStr;
use std::process::ExitCode;
use std::time::Duration;

use sys::*;
use warpmail::Device;
use warpmail_testkit::harness::{Scenario, Special};

/// Every wait that should succeed: far longer than any should take. Nanoseconds.
pub(crate) const BOUND: u64 = 120_000_000_000;
pub(crate) const MS: u64 = 1_000_000;

pub(crate) type Outcome = Result<(), String>;

pub(crate) fn expect(condition: bool, what: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(what()) }
}

pub(crate) fn name(status: i32) -> String {
    unsafe { CStr::from_ptr(warpmail_status_name(status)) }.to_string_lossy().into_owned()
}

pub(crate) fn message() -> String {
    unsafe { CStr::from_ptr(warpmail_last_error()) }.to_string_lossy().into_owned()
}

pub(crate) fn ok(status: i32) -> Outcome {
    expect(status == 0, || format!("{}: {}", name(status), message()))
}

/// The status is the wanted one, and the message says each of the words.
pub(crate) fn is(status: i32, wanted: i32, words: &[&str]) -> Outcome {
    expect(status == wanted, || format!("{} instead of {}: {}", name(status), name(wanted), message()))?;
    let message = message();
    expect(!message.is_empty() && words.iter().all(|w| message.contains(w)), || format!("{message:?}, not {words:?}"))
}

/// What a function writes through its last parameter.
pub(crate) fn made<T: Copy>(empty: T, make: impl FnOnce(*mut T) -> i32) -> Result<T, String> {
    let mut value = empty;
    ok(make(&mut value))?;
    Ok(value)
}

pub(crate) fn handle<T>(make: impl FnOnce(*mut *mut T) -> i32) -> Result<*mut T, String> {
    made(std::ptr::null_mut(), make)
}

/// The device of a scenario, as C knows it.
pub(crate) fn device(device: &Device) -> Result<*mut warpmail_device, String> {
    handle(|out| match device.info().ordinal {
        Some(ordinal) => unsafe { warpmail_device_cuda(ordinal, out) },
        None => unsafe { warpmail_device_twin(out) },
    })
}

pub(crate) fn text(e: warpmail::Error) -> String {
    e.to_string()
}

/// A pointer that may go to another thread: handles may.
pub(crate) struct Shared<T>(pub(crate) *mut T);
unsafe impl<T> Send for Shared<T> {}
impl<T> Copy for Shared<T> {}
impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

const SCENARIOS: &[(&str, Scenario)] = &[
    ("null_is_refused_everywhere", handles::null_is_refused_everywhere),
    ("foreign_handles_are_refused", handles::foreign_handles_are_refused),
    ("destroyed_handles_stay_destroyed", handles::destroyed_handles_stay_destroyed),
    ("kinds_are_not_mixed_up", handles::kinds_are_not_mixed_up),
    ("threads_race_for_handles", handles::threads_race_for_handles),
    ("statuses_have_names", structs::statuses_have_names),
    ("versions_are_checked", structs::versions_are_checked),
    ("structs_say_their_size", structs::structs_say_their_size),
    ("images_are_checked", structs::images_are_checked),
    ("texts_say_what_they_need", structs::texts_say_what_they_need),
    ("graph_rules_are_told", graph::rules_are_told),
    ("records_come_back_whole", graph::records_come_back_whole),
    ("batches_and_small_buffers", ends::batches_and_small_buffers),
    ("one_thread_at_a_time", ends::one_thread_at_a_time),
    ("many_threads_take_turns", ends::many_threads_take_turns),
    ("waits_are_bounded", ends::waits_are_bounded),
    ("one_end_each", ends::one_end_each),
    ("quiesce_lends_the_runtime", life::quiesce_lends_the_runtime),
    ("an_idle_arbiter_parks", life::an_idle_arbiter_parks),
    ("a_journal_keeps_what_passes", life::a_journal_keeps_what_passes),
    ("a_checkpoint_brings_states_back", checkpoint::brings_states_back),
    ("checkpoints_refuse_what_cannot_be", checkpoint::refuse_what_cannot_be),
    ("tensors_travel_through_a_graph", tensor::travel_through_a_graph),
    ("tensors_are_delivered", tensor::are_delivered),
    ("tensors_reach_a_journal", tensor::tensors_reach_a_journal),
    ("ends_of_tensors_say_what_is_wrong", tensor::ends_say_what_is_wrong),
    ("pools_say_what_is_wrong", tensor::pools_say_what_is_wrong),
    ("adopted_memory_is_told_when_free", tensor::adopted_memory_is_told_when_free),
    ("steps_carry_records", steps::carry_records),
    ("steps_push_what_was_agreed_on", steps::push_what_was_agreed_on),
    ("mistakes_with_steps_are_told", steps::mistakes_are_told),
    ("states_only_at_rest", life::states_only_at_rest),
    ("stop_is_bounded_and_names_the_stuck", life::stop_is_bounded_and_names_the_stuck),
    ("a_failed_launch_is_told", life::a_failed_launch_is_told),
    ("calls_wait_for_their_turn", life::calls_wait_for_their_turn),
    ("ends_outlive_the_runtime", life::ends_outlive_the_runtime),
];

fn main() -> ExitCode {
    let special = Special { blocking: &["records_come_back_whole"], ..Special::default() };
    warpmail_testkit::harness::main(SCENARIOS, special, Duration::from_secs(600))
}
