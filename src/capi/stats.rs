//! Statistics.

use std::ffi::c_char;

use super::args::give_struct;
use super::border::enter;
use super::fault::{Fault, Result};
use super::sys::{self, warpmail_mailbox_stats, warpmail_module_stats, warpmail_runtime, warpmail_stats};
use super::{args, table, version};
use crate::stats::Stats;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_stats(
    runtime: *mut warpmail_runtime,
    stats: *mut warpmail_stats,
) -> i32 {
    enter(|| {
        let s = look(runtime)?;
        let value = warpmail_stats {
            struct_size: 0,
            modules: s.modules.len() as u32,
            mailboxes: s.mailboxes.len() as u32,
            serving: s.serving.len() as u32,
            heartbeat_ns: s.heartbeat_ns,
            launches: s.launches,
            launches_ended: s.launches_ended,
            rounds: s.rounds,
            grants: s.grants,
            work_ns: s.work_ns,
            idle_poll_ns: s.idle_poll_ns,
            parks: s.parks,
            parked_ns: s.parked_ns,
            parked: s.parked.into(),
            closed: s.closed.into(),
            allowance_ns: s.budget.allowance_ns,
            residency_ends: s.budget.residency_ends,
            closings: s.budget.closings,
            over_residency: s.budget.over_residency,
            over_residency_ns: s.budget.over_residency_ns,
            over_spin: s.budget.over_spin,
            over_spin_ns: s.budget.over_spin_ns,
            over_share: s.budget.over_share,
            over_share_ns: s.budget.over_share_ns,
        };
        // SAFETY: as the header asks of the caller.
        unsafe { give_struct(value, stats, "warpmail_stats") }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_module_stats(
    runtime: *mut warpmail_runtime,
    module: u32,
    stats: *mut warpmail_module_stats,
) -> i32 {
    enter(|| {
        let all = look(runtime)?;
        let s = row(&all.modules, module, "module")?;
        let value = warpmail_module_stats {
            struct_size: 0,
            reserved: 0,
            steps: s.steps,
            records_in: s.records_in,
            records_out: s.records_out,
            busy_ns: s.busy_ns,
            rejected_length: s.rejects.length,
            rejected_type: s.rejects.msg_type,
            rejected_content: s.rejects.content,
            no_progress: s.rejects.no_progress,
            rejected_lease: s.rejects.lease,
        };
        // SAFETY: as the header asks of the caller.
        unsafe { give_struct(value, stats, "warpmail_module_stats") }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_mailbox_stats(
    runtime: *mut warpmail_runtime,
    mailbox: u32,
    stats: *mut warpmail_mailbox_stats,
) -> i32 {
    enter(|| {
        let all = look(runtime)?;
        let s = row(&all.mailboxes, mailbox, "mailbox")?;
        let value = warpmail_mailbox_stats {
            struct_size: 0,
            quarantined: s.quarantined.is_some().into(),
            written: s.written,
            consumed: s.consumed,
            depth_max: s.depth_max,
            refused_length: s.refused.length,
            refused_argument: s.refused.argument,
            refused_header: s.refused.header,
            refused_index: s.refused.index,
        };
        // SAFETY: as the header asks of the caller.
        unsafe { give_struct(value, stats, "warpmail_mailbox_stats") }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_stats_json(
    runtime: *mut warpmail_runtime,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        let json = version::json(&look(runtime)?)?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn warpmail_runtime_journal_json(
    runtime: *mut warpmail_runtime,
    text: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> i32 {
    enter(|| {
        let stats = table::share(runtime)?.look(|r| Ok(r.journal_stats()))?;
        let none = || Fault::new(sys::WARPMAIL_BAD_STATE, "the runtime has no journal: see warpmail_runtime_journal");
        let json = version::json(&stats.ok_or_else(none)?)?;
        // SAFETY: as the header asks of the caller.
        unsafe { args::give_text(&json, text, size, needed) }
    })
}

fn look(runtime: *mut warpmail_runtime) -> Result<Stats> {
    Ok(table::share(runtime)?.memory.stats())
}

fn row<'a, T>(rows: &'a [T], id: u32, what: &str) -> Result<&'a T> {
    rows.get(id as usize).ok_or_else(|| {
        Fault::new(sys::WARPMAIL_REFUSED, format!("{what} id {id}: this graph has only {} of them", rows.len()))
    })
}
