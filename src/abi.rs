//! The bytes shared with the device, bound from `csrc/include/warpmail/abi.h` with bindgen's layout checks on.
//!
//! Names are the C names. See the header for what each field means.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, clippy::all)]
#![allow(clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

macro_rules! plain_bytes {
    ($($name:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)` integers and arrays of integers only; the header's static assertions leave no padding.
        unsafe impl bytemuck::Zeroable for $name {}
        // SAFETY: as above: every bit pattern is a value and there are no padding bytes.
        unsafe impl bytemuck::Pod for $name {}
    )*};
}
plain_bytes!(
    wm_refusals,
    wm_mailbox_header,
    wm_mailbox,
    wm_producer,
    wm_consumer,
    wm_module,
    wm_tensor,
    wm_leases,
    wm_ring,
    wm_lease_row,
    wm_bell,
    wm_control,
    wm_grant,
    wm_journal_head,
    wm_durable,
    wm_tap_counts,
    wm_telemetry,
    wm_mailbox_stats,
    wm_module_stats,
    wm_arbiter_args,
    wm_step_plan,
    wm_server_mark,
    wm_step_head,
    wm_gate_state,
    wm_gate_report,
    wm_gate_args,
    wm_ahead,
);

/// Beside the count of durable records: the journal has failed.
pub const WM_DURABLE_ENDED: u64 = 1 << WM_DURABLE_ENDED_BIT;
