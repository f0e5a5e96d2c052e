//! Module graphs, end to end, on the twin and on a GPU. Each scenario runs in a child process that is killed if it hangs.

mod ahead;
mod bodies;
mod checkpoint;
mod credit;
mod deliver;
mod faults;
mod flow;
mod leases;
mod life;
mod linger;
mod mode;
mod order;
mod park;
mod room;
mod steps;
mod tap;
mod tap_steps;
mod tap_tensors;
mod turns;

use std::process::ExitCode;
use std::time::Duration;

use warpmail_testkit::harness::{Scenario, Special};

/// Every wait of the scenarios; far longer than any should take.
pub(crate) const BOUND: Duration = Duration::from_secs(120);

pub(crate) type Outcome = Result<(), String>;

/// An error that says where.
pub(crate) fn expect(condition: bool, what: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(what()) }
}

pub(crate) fn text(e: warpmail::Error) -> String {
    e.to_string()
}

/// Words of a module's state.
pub(crate) fn words(runtime: &warpmail::Runtime, module: warpmail::ModuleId) -> Result<[u64; 8], String> {
    let mut bytes = [0; 64];
    runtime.read_state(module, &mut bytes).map_err(text)?;
    Ok(std::array::from_fn(|i| u64::from_ne_bytes(std::array::from_fn(|b| bytes[8 * i + b]))))
}

const SCENARIOS: &[(&str, Scenario)] = &[
    ("relay_keeps_every_record", flow::relay_keeps_every_record),
    ("every_stride_and_ring_size", flow::every_stride_and_ring_size),
    ("ring_of_three_modules", flow::ring_of_three_modules),
    ("all_rule_joins_two_inputs", flow::all_rule_joins_two_inputs),
    ("pointers_are_safe_to_follow", flow::pointers_are_safe_to_follow),
    ("any_rule_is_fair", flow::any_rule_is_fair),
    ("urgent_classes_come_first", turns::urgent_classes_come_first),
    ("short_launches_starve_nobody", turns::short_launches_starve_nobody),
    ("a_ring_gives_way", turns::a_ring_gives_way),
    ("what_is_told_of_need_not_wait", turns::what_is_told_of_need_not_wait),
    ("lingering_servers_starve_nobody", linger::servers_starve_nobody),
    ("lingering_servers_let_it_park", linger::servers_let_it_park),
    ("lingering_servers_leave_what_is_quarantined", linger::servers_leave_what_is_quarantined),
    ("lingering_servers_drop_what_cannot_be", linger::servers_drop_what_cannot_be),
    ("full_mailboxes_hold_back", flow::full_mailboxes_hold_back),
    ("short_residency_loses_nothing", flow::short_residency_loses_nothing),
    ("pushes_to_a_parked_arbiter_arrive", park::pushes_to_a_parked_arbiter_arrive),
    ("pushes_to_an_adaptive_arbiter_arrive", park::pushes_to_an_adaptive_arbiter_arrive),
    ("what_is_left_is_not_granted_again", park::what_is_left_is_not_granted_again),
    ("the_host_may_watch_the_doors", park::the_host_may_watch_the_doors),
    ("adaptive_arbiters_poll_less", park::adaptive_arbiters_poll_less),
    ("sm_share_is_a_limit", park::sm_share_is_a_limit),
    ("closed_arbiters_stop_and_pause", park::closed_arbiters_stop_and_pause),
    ("several_producers_wake_it", park::several_producers_wake_it),
    ("no_push_waits_for_the_pacer", park::no_push_waits_for_the_pacer),
    ("a_slot_given_back_wakes_it", park::a_slot_given_back_wakes_it),
    ("parked_arbiters_stop_and_pause", park::parked_arbiters_stop_and_pause),
    ("short_launches_and_parking_lose_nothing", park::short_launches_and_parking_lose_nothing),
    ("the_pacer_bounds_every_wait", park::the_pacer_bounds_every_wait),
    ("steps_carry_every_record", steps::carry_every_record),
    ("steps_mix_with_resident_modules", steps::mix_with_resident_modules),
    ("steps_pass_many_through_a_mixed_pipeline", steps::pass_many_through_a_mixed_pipeline),
    ("steps_join_what_the_rule_says", steps::join_what_the_rule_says),
    ("steps_never_meet_a_full_mailbox", steps::never_meet_a_full_mailbox),
    ("a_grant_is_room", credit::a_grant_is_room),
    ("a_quiesce_gives_no_credit_twice", credit::a_quiesce_gives_no_credit_twice),
    ("steps_are_woken_from_parking", steps::are_woken_from_parking),
    ("steps_wake_one_another_from_parking", steps::wake_one_another_from_parking),
    ("steps_call_the_host_once_a_step", steps::call_the_host_once_a_step),
    ("steps_pause_close_and_stop", steps::pause_close_and_stop),
    ("mistakes_with_steps_are_refused", steps::mistakes_are_refused),
    ("failing_bodies_are_named", steps::failing_bodies_are_named),
    ("bodies_fail_mid_way", bodies::fail_mid_way),
    ("bodies_are_dropped_mid_way", bodies::are_dropped_mid_way),
    ("bodies_are_stopped_mid_way", bodies::are_stopped_mid_way),
    ("bodies_are_counted_to_the_last", bodies::are_counted_to_the_last),
    ("bodies_may_be_long", bodies::may_be_long),
    ("taps_keep_every_record_in_order", tap::taps_keep_every_record_in_order),
    ("taps_of_one_type_and_of_all", tap::taps_of_one_type_and_of_all),
    ("bursts_pass_a_tap_whole", tap::bursts_pass_a_tap_whole),
    ("further_blocks_carry_long_records", tap::further_blocks_carry_long_records),
    ("steps_journal_more_than_a_stage_holds", tap::steps_journal_more_than_a_stage_holds),
    ("a_slow_sink_holds_back_or_drops", tap::a_slow_sink_holds_back_or_drops),
    ("a_shut_sink_lets_a_quiesce_in", tap::a_shut_sink_lets_a_quiesce_in),
    ("a_failed_sink_is_told", tap::a_failed_sink_is_told),
    ("modules_see_what_is_durable", tap::modules_see_what_is_durable),
    ("stream_modules_wait_for_their_records", tap::stream_modules_wait_for_their_records),
    ("taps_of_steps_are_whole_and_in_order", tap_steps::are_whole_and_in_order),
    ("taps_of_steps_hold_back_drop_and_choose", tap_steps::hold_back_drop_and_choose),
    ("taps_of_steps_of_several_ends", tap_steps::of_several_ends),
    ("taps_of_steps_take_tensors_along", tap_steps::take_tensors_along),
    ("taps_of_steps_end_with_their_sink", tap_steps::end_with_their_sink),
    ("taps_of_steps_let_a_quiesce_in", tap_steps::let_a_quiesce_in),
    ("taps_of_steps_of_a_module_with_itself", tap_steps::of_a_module_with_itself),
    ("tensors_reach_the_log_and_come_back", tap_tensors::tensors_reach_the_log_and_come_back),
    ("a_slow_sink_gets_the_tensors_as_they_were", tap_tensors::a_slow_sink_gets_the_tensors_as_they_were),
    ("tensors_that_are_unusual", tap_tensors::tensors_that_are_unusual),
    ("replay_puts_records_back", tap::replay_puts_records_back),
    ("checkpoints_are_of_one_moment", checkpoint::are_of_one_moment),
    ("a_restored_graph_goes_on", checkpoint::a_restored_graph_goes_on),
    ("a_checkpoint_needs_a_moment_of_rest", checkpoint::needs_a_moment_of_rest),
    ("checkpoints_of_other_graphs_are_refused", checkpoint::of_other_graphs_are_refused),
    ("pointers_that_point_elsewhere_are_refused", checkpoint::pointers_that_point_elsewhere_are_refused),
    ("a_checkpoint_waits_for_the_journal", checkpoint::waits_for_the_journal),
    ("leases_travel_and_come_back", leases::travel_and_come_back),
    ("stale_leases_are_refused", leases::stale_ones_are_refused),
    ("poison_is_not_followed", leases::poison_is_not_followed),
    ("a_full_pool_refuses", leases::a_full_pool_refuses),
    ("adopted_memory_is_lent", leases::adopted_memory_is_lent),
    ("a_stop_gives_back_leases", leases::a_stop_gives_back_what_is_on_its_way),
    ("lease_hand_offs_in_any_order", leases::hand_offs_in_any_order),
    ("deliveries_arrive", deliver::arrive),
    ("deliveries_that_cannot_be", deliver::that_cannot_be),
    ("deliveries_of_several_inputs", deliver::of_several_inputs),
    ("start_and_stop_a_hundred_times", life::start_and_stop_a_hundred_times),
    ("quiesce_while_records_flow", life::quiesce_while_records_flow),
    ("host_modules_run_and_end", life::host_modules_run_and_end),
    ("drop_without_stop", life::drop_without_stop),
    ("servers_of_any_number", life::servers_of_any_number),
    ("runtimes_of_different_sizes_at_once", life::runtimes_of_different_sizes_at_once),
    ("no_room_is_a_state", faults::no_room_is_a_state),
    ("a_full_device_is_waited_for", room::a_full_device_is_waited_for),
    ("a_neighbour_is_left_alone", room::a_neighbour_is_left_alone),
    ("stuck_handler_is_named", faults::stuck_handler_is_named),
    ("wrong_types_and_lengths_are_counted", faults::wrong_types_and_lengths_are_counted),
    ("no_progress_is_counted", faults::no_progress_is_counted),
    ("refused_calls_are_counted", faults::refused_calls_are_counted),
    ("broken_header_is_quarantined", faults::broken_header_is_quarantined),
    ("wild_index_is_quarantined", faults::wild_index_is_quarantined),
    ("both_modes_give_the_same", mode::both_modes_give_the_same),
    ("chains_are_granted_ahead", mode::chains_are_granted_ahead),
    ("steps_are_enqueued_behind_their_producers", ahead::steps_are_enqueued_behind_their_producers),
    ("steps_ahead_change_no_result", ahead::steps_ahead_change_no_result),
    ("rings_of_steps_run_ahead_and_stop", ahead::rings_of_steps_run_ahead_and_stop),
    ("a_stuck_body_is_named_before_those_behind_it", ahead::a_stuck_body_is_named_before_those_behind_it),
    ("passes_give_the_same", order::passes_give_the_same),
    ("passes_pause_and_stop", order::passes_pause_and_stop),
    ("orders_that_are_not_fixed_are_refused", order::orders_that_are_not_fixed_are_refused),
    ("device_ends_reach_the_cpu", mode::device_ends_reach_the_cpu),
    ("a_kernel_needs_a_place_to_stay", mode::a_kernel_needs_a_place_to_stay),
];

/// Of them, those that run once more where no kernel can stay.
const BLOCKING: &[&str] = &[
    "relay_keeps_every_record",
    "ring_of_three_modules",
    "all_rule_joins_two_inputs",
    "full_mailboxes_hold_back",
    "taps_keep_every_record_in_order",
    "taps_of_one_type_and_of_all",
    "taps_of_steps_are_whole_and_in_order",
    "quiesce_while_records_flow",
    "chains_are_granted_ahead",
    "steps_are_enqueued_behind_their_producers",
    "passes_give_the_same",
    "a_kernel_needs_a_place_to_stay",
];

/// Of them, those that run on the twin with the persistent kernel's own block too, whose lanes a thread runs in turns.
const WARPS: &[&str] = &[
    "relay_keeps_every_record",
    "every_stride_and_ring_size",
    "ring_of_three_modules",
    "all_rule_joins_two_inputs",
    "pointers_are_safe_to_follow",
    "any_rule_is_fair",
    "urgent_classes_come_first",
    "short_launches_starve_nobody",
    "lingering_servers_starve_nobody",
    "lingering_servers_let_it_park",
    "lingering_servers_leave_what_is_quarantined",
    "lingering_servers_drop_what_cannot_be",
    "full_mailboxes_hold_back",
    "short_residency_loses_nothing",
    "pushes_to_a_parked_arbiter_arrive",
    "a_slot_given_back_wakes_it",
    "parked_arbiters_stop_and_pause",
    "short_launches_and_parking_lose_nothing",
    "steps_carry_every_record",
    "steps_mix_with_resident_modules",
    "steps_join_what_the_rule_says",
    "steps_never_meet_a_full_mailbox",
    "a_grant_is_room",
    "steps_wake_one_another_from_parking",
    "bodies_fail_mid_way",
    "bodies_are_dropped_mid_way",
    "bodies_are_stopped_mid_way",
    "taps_keep_every_record_in_order",
    "taps_of_one_type_and_of_all",
    "bursts_pass_a_tap_whole",
    "steps_journal_more_than_a_stage_holds",
    "a_slow_sink_holds_back_or_drops",
    "a_failed_sink_is_told",
    "modules_see_what_is_durable",
    "replay_puts_records_back",
    "taps_of_steps_are_whole_and_in_order",
    "taps_of_steps_hold_back_drop_and_choose",
    "tensors_reach_the_log_and_come_back",
    "a_checkpoint_waits_for_the_journal",
    "leases_travel_and_come_back",
    "quiesce_while_records_flow",
    "wrong_types_and_lengths_are_counted",
    "no_progress_is_counted",
    "refused_calls_are_counted",
    "broken_header_is_quarantined",
    "wild_index_is_quarantined",
];

const NO_LINGERING: &str = "an arbiter on the CPU does not linger";

/// Of them, those that need servers which stay, and why they are waived where there are none.
const RESIDENT: &[(&str, &str)] = &[
    ("lingering_servers_starve_nobody", NO_LINGERING),
    ("lingering_servers_let_it_park", NO_LINGERING),
    ("lingering_servers_leave_what_is_quarantined", NO_LINGERING),
    ("lingering_servers_drop_what_cannot_be", NO_LINGERING),
];

/// Whether the persistent kernel serves: then millions of steps take seconds.
pub(crate) fn is_fast(device: &warpmail::Device) -> bool {
    let mode = warpmail::Builder::new(device.clone()).current_mode();
    device.info().ordinal.is_some() && matches!(mode, Ok(warpmail::Mode::Device))
}

/// Whether a thread of the host runs the lanes of the arbiter's block one after the other: then thousands take seconds.
pub(crate) fn is_lane_by_lane() -> bool {
    std::env::var_os(warpmail_testkit::harness::WARPS).is_some()
}

fn main() -> ExitCode {
    let special = Special { blocking: BLOCKING, warps: WARPS, resident: RESIDENT };
    warpmail_testkit::harness::main(SCENARIOS, special, Duration::from_secs(600))
}
