// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// One grant, run by somebody else than the arbiter that gave it: a short launch of a kernel, on the twin a thread. It
// has a table of its own, with one module and that module's ends, and evaluates and runs them with the arbiter's own
// functions. What it moves reaches the arbiter through the readiness words of the ends, which are all in pinned memory.
#ifndef WARPMAIL_PROTOCOL_STEP_HPP
#define WARPMAIL_PROTOCOL_STEP_HPP

#include "protocol/run.hpp"
#include "protocol/telemetry.hpp"

namespace warpmail {

WM_FN bool step_is_valid(const wm_step_args& s) {
    return s.magic == WM_ABI_MAGIC && s.version == WM_ABI_VERSION && s.module.n_inputs <= WM_MAX_INPUTS &&
           s.module.n_outputs <= WM_MAX_OUTPUTS && s.scratch_bytes % 16 == 0 && s.journal_stage_bytes % 16 == 0;
}

// The arguments of the step's own table, of which the working memory's layout follows.
WM_FN wm_arbiter_args step_table(const wm_step_args& s) {
    wm_arbiter_args t = {};
    t.n_mailboxes = WM_MAX_ENDS;
    t.n_modules = 1;
    t.servers = 1;
    t.module_stats = s.module_stats;
    t.journals = s.journal.header; // not 0 where there is a ring
    t.durable = s.durable;
    t.leases = s.leases;
    t.scratch_bytes = s.scratch_bytes;
    t.journal_stage_bytes = s.journal_stage_bytes;
    t.journal_need = s.journal_need;
    t.journal_ahead = 1; // it may be
    return t;
}

// One end. Nobody but the module is resident here: what moves marks no other.
WM_FN void step_begin_end(arbiter& a, const wm_step_args& s, u32 i) {
    const wm_mailbox& box = s.ends[i];
    const_cast<wm_mailbox*>(a.rows)[i] = box;
    const u32 tap = (box.tap & 15u) | how_journalled(box.tap, i < WM_MAX_INPUTS, i >= WM_MAX_INPUTS, false);
    a.boxes[i] = {static_cast<u8>(box.slots_log2 & 63), static_cast<u8>(WM_SIDE_HOST), static_cast<u8>(tap), 0, 0, 0};
    const bool is_behind = (s.behind >> i & 1) != 0, is_input = i < WM_MAX_INPUTS;
    a.written[i] = is_behind && is_input ? load_relaxed(write_idx_of(box), box.scope) : s.written[i];
    a.consumed[i] = is_behind && !is_input ? load_relaxed(read_idx_of(box), box.scope) : s.consumed[i];
    a.quarantined[i] = 0;
    if (s.journal.header != 0)
        a.followed[i] = is_input ? a.consumed[i] : a.written[i];
    if (s.journal.header != 0 && box.tap != WM_TAP_NONE) {
        const wm_tap_counts* counts = at<const wm_tap_counts>(s.tap_counts) + box.mailbox_id;
        a.tapped[i] = {load_relaxed_sys(&counts->taken), load_relaxed_sys(&counts->dropped),
                       load_relaxed_sys(&counts->ahead)};
        a.followed[i] += (tap & tap_ahead) != 0 ? a.tapped[i].ahead : 0;
    }
}

template <class L> WM_FN void step_begin(L lanes, arbiter& a, const wm_step_args& s) {
    for (u32 i = lanes.rank(); i < WM_MAX_ENDS; i += lanes.width()) {
        const bool is_input = i < WM_MAX_INPUTS;
        if (is_input ? i < s.module.n_inputs : i - WM_MAX_INPUTS < s.module.n_outputs)
            step_begin_end(a, s, i);
    }
    module_brief& m = a.modules[0];
    for (u32 i = lanes.rank(); i < WM_MAX_INPUTS; i += lanes.width())
        m.inputs[i] = static_cast<uint16_t>(i);
    for (u32 i = lanes.rank(); i < WM_MAX_OUTPUTS; i += lanes.width())
        m.outputs[i] = static_cast<uint16_t>(WM_MAX_INPUTS + i);
    for (u32 c = lanes.rank(); c < WM_PRIORITIES; c += lanes.width())
        a.look[c] = 0;
    if (lanes.rank() == 0) {
        m.state = s.module.state;
        m.state_bytes = s.module.state_bytes;
        m.handler = s.module.handler;
        m.batch = s.module.batch;
        m.out_records = s.module.out_records;
        m.kind = static_cast<u8>(WM_KIND_RESIDENT);
        m.rule = static_cast<u8>(s.module.rule);
        m.n_inputs = static_cast<u8>(s.module.n_inputs);
        m.n_outputs = static_cast<u8>(s.module.n_outputs);
        m.priority = 0;
        if (s.journal.header != 0)
            a.journals[0] = attach_ring(s.journal);
    }
    lanes.sync();
}

// What the host reads of the module from here on; its one writer is the step that was granted.
template <class L> WM_FN void step_end(L lanes, arbiter& a, const wm_step_args& s) {
    lanes.sync();
    copy_words(lanes, at<u64>(s.module_stats_out), at<const u64>(s.module_stats), sizeof(wm_module_stats) / 8);
    for (u32 i = lanes.rank(); s.journal.header != 0 && i < WM_MAX_ENDS; i += lanes.width()) {
        const bool is_input = i < WM_MAX_INPUTS;
        const bool is_end = is_input ? i < s.module.n_inputs : i - WM_MAX_INPUTS < s.module.n_outputs;
        if (!is_end || a.boxes[i].tap == WM_TAP_NONE)
            continue;
        wm_tap_counts* counts = at<wm_tap_counts>(s.tap_counts) + a.rows[i].mailbox_id;
        store_relaxed_sys(&counts->taken, a.tapped[i].taken);
        store_relaxed_sys(&counts->dropped, a.tapped[i].dropped);
        store_relaxed_sys(&counts->ahead, is_ahead(a, i));
    }
}

// Runs the grant, or nothing where it was given ahead and the rule does not hold. `table` and `base` are shared by the
// lanes; base has as many bytes as `place` says of the table.
template <class H, class L> WM_FN void run_step(L lanes, const wm_step_args& s, wm_arbiter_args& table, u8* base) {
    const u64 begin_ns = now_ns();
    if (lanes.rank() == 0)
        table = step_table(s);
    lanes.sync();
    arbiter a(table);
    u64 kept_bytes;
    place(a, base, kept_bytes);
    step_begin(lanes, a, s);
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.grants[0].since_ns, begin_ns);
    if (may_step(lanes, a, a.modules[0]) && journal_has_room(lanes, a, 0)) {
        tally t;
        given_record<L> given; // to nobody here
        run_grant<H>(lanes, a, 0, 0, found_records<L>{}, given, t);
        const u64 busy_ns = now_ns() - begin_ns;
        hurry_journal(lanes, a, 0);
        count(lanes, a, 0, t, busy_ns);
        step_end(lanes, a, s);
    }
}

} // namespace warpmail

#endif
