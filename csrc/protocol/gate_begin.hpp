// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The gate: waits for a step, takes its records, parks. See gate.hpp.
#ifndef WARPMAIL_PROTOCOL_GATE_BEGIN_HPP
#define WARPMAIL_PROTOCOL_GATE_BEGIN_HPP

#include "protocol/gate_tap.hpp"

namespace warpmail {

// What a launch knows from its beginning on. In registers: the acquire behind a record empties the cache, and then a
// look at the state is a way to L2 between the record and the body.
struct gate_now {
    u64 launches, taken, cursor, credits, spun_ns; // as in wm_gate_state
    u64 read_idx;                                  // of a plain input; of others the state has them
    u64 grants;                                    // when it began
    bool full;                                     // an output of this lane's seemed to be, then
};

// The ends as this launch found them: nobody else moves their near indices while it runs. All loads are under way
// together; the first store that needs one waits for all of them, once.
template <bool Plain, class L> WM_FN gate_now gate_attach(L lanes, const wm_gate_args& g, wm_gate_state& s) {
    gate_now v{s.launches, s.taken, s.cursor, s.credits, s.spun_ns, 0, 0, false};
    const u64 word = load_relaxed(at<const u64>(g.word), g.scope);
    if (Plain)
        v.read_idx = load_relaxed(read_idx_of(g.ends[0]), WM_SCOPE_GPU);
    for (u32 o = lanes.rank(); o < g.n_outputs; o += lanes.width()) {
        const wm_mailbox& m = g.ends[WM_MAX_INPUTS + o];
        const u64 write_idx = load_relaxed(write_idx_of(m), m.scope), read_seen = load_relaxed(read_idx_of(m), m.scope);
        s.write_idx[o] = write_idx;
        s.read_seen[o] = read_seen;
        *buffer_of(g, WM_MAX_INPUTS + o) = {g.lens[o], g.types[o], v.taken};
        v.full = v.full || write_idx - read_seen >= slot_count(m);
    }
    for (u32 i = lanes.rank(); i < n_inputs<Plain>(g); i += lanes.width())
        s.read_idx[i] = Plain ? v.read_idx : load_relaxed(read_idx_of(g.ends[i]), g.ends[i].scope);
    lanes.sync();
    v.grants = lanes.broadcast(index_in(word, g.scope), 0);
    return v;
}

// Whether every output has room for a record now; looks at the consumer's index only where none seemed to be.
template <class L> WM_FN bool gate_has_room(L lanes, const wm_gate_args& g, wm_gate_state& s) {
    bool full = false;
    for (u32 o = lanes.rank(); o < g.n_outputs; o += lanes.width()) {
        const wm_mailbox& m = g.ends[WM_MAX_INPUTS + o];
        if (s.write_idx[o] - s.read_seen[o] >= slot_count(m))
            s.read_seen[o] = load_relaxed(read_idx_of(m), m.scope);
        full = full || s.write_idx[o] - s.read_seen[o] >= slot_count(m);
    }
    lanes.sync();
    return !lanes.any(full);
}

template <bool Plain>
WM_FN wm_consumer gate_input(const wm_gate_args& g, const wm_gate_state& s, const gate_now& v, u32 i) {
    return gate_consumer<Plain>(g, i, Plain ? v.read_idx : s.read_idx[i]);
}

// The next record of an input. Of a plain one by a warp, a word a lane: the kernel behind this one may begin as soon as
// the record is seen to be there, and what is stored then comes from registers.
template <bool Plain, class L> WM_FN wm_status gate_get(L lanes, wm_consumer& c, u8* payload, u32& len, u32& type) {
#if defined(__CUDA_ARCH__) || defined(WARPMAIL_HOST_WARPS)
    if (Plain && L::is_group()) {
        const warp_lanes warp;
        const u64 tag = lap_tag(c.read_idx, c.mailbox.slots_log2);
        const u64 v = load_relaxed(slot_at(c.mailbox, c.read_idx) + warp.rank(), WM_SCOPE_GPU);
        if (!warp.all(is_fresh(v, tag)))
            return WM_EMPTY;
        let_next_begin();
        acquire_slot<order::ordered>(warp, WM_SCOPE_GPU);
        const u64 head = warp.broadcast(v, 0);
        len = meta_len(head);
        type = meta_type(head);
        if (len > payload_in(WM_STRIDE_DEFAULT))
            return refused(warp, c.mailbox.header, WM_SCOPE_GPU, WM_END_CONSUMER, refusal::length, WM_BAD_LENGTH);
        if (warp.rank() != 0)
            lane_store(payload, len, warp.rank() - 1, restored(warp, v, static_cast<u32>(head >> WM_HEAD_BITS_SHIFT)),
                       len % 8 == 0); // buffers are aligned
        return WM_OK;
    }
#endif
    return get(lanes, c, payload, payload_bytes(c.mailbox), len, type);
}

// Copies the next record of input i into its buffer and leaves it in the mailbox. A record with an impossible length
// counts as taken, and nothing is in the buffer.
template <bool Plain, class L>
WM_FN wm_status gate_take(L lanes, const wm_gate_args& g, const wm_gate_state& s, const gate_now& v, u32 i) {
    wm_consumer c = gate_input<Plain>(g, s, v, i);
    wm_step_head* head = buffer_of(g, i);
    u32 len = 0, type = 0;
    // A longer slot is read in parts: none of it goes to the buffer before all of it is there.
    if (!Plain && c.mailbox.record_stride > WM_STRIDE_DEFAULT &&
        peek<order::self_contained>(lanes, c, len, type) == WM_EMPTY)
        return WM_EMPTY;
    const wm_status status = gate_get<Plain>(lanes, c, payload_of(head), len, type);
    if (status == WM_EMPTY)
        return status;
    if (lanes.rank() == 0) {
        *head = {status == WM_OK ? len : WM_STEP_NOTHING, type, v.taken};
        if (status != WM_OK)
            add_relaxed_gpu(&at<wm_module_stats>(g.stats)->rejects[WM_REJECT_LENGTH], 1);
    }
    return status;
}

// The records of a step as far as they have been taken. A bit each: inputs whose slot is to be given back; `good`:
// those with a record.
struct gate_records {
    u32 took, good;
};
// Whether `inputs` are what a step takes.
template <bool Plain> WM_FN bool is_step(const wm_gate_args& g, u32 inputs) {
    return Plain || g.rule == WM_RULE_ANY ? inputs != 0 : inputs == (1u << g.n_inputs) - 1;
}

// Takes what is there of what the step still lacks; whether it has all now.
template <bool Plain, class L>
WM_FN bool gate_take_more(L lanes, const wm_gate_args& g, const wm_gate_state& s, const gate_now& v, gate_records& r) {
    const bool any = Plain || g.rule == WM_RULE_ANY;
    const u32 n = n_inputs<Plain>(g), first = any && !Plain ? static_cast<u32>(v.cursor) : 0;
    for (u32 k = 0; k < n; k++) {
        const u32 i = first + k < n ? first + k : first + k - n;
        if ((r.took >> i & 1) != 0 || (any && r.took != 0))
            continue;
        const wm_status status = gate_take<Plain>(lanes, g, s, v, i);
        r.took |= status == WM_EMPTY ? 0 : 1u << i;
        r.good |= status == WM_OK ? 1u << i : 0;
    }
    return is_step<Plain>(g, r.took);
}

// Whether the records of a step seem to be there. Where one is enough, taking it is looking.
template <bool Plain, class L> WM_FN bool gate_seems_ready(L lanes, const wm_gate_args& g, const wm_gate_state& s) {
    for (u32 i = 0; !Plain && i < g.n_inputs && g.n_inputs > 1 && g.rule != WM_RULE_ANY; i++) {
        wm_consumer c = gate_consumer<Plain>(g, i, s.read_idx[i]);
        u32 len, type;
        if (peek<order::self_contained>(lanes, c, len, type) == WM_EMPTY)
            return false;
    }
    return true;
}

// Looks at the slots for each look at the grants.
constexpr u32 slot_looks = 4;

// Waits for a step: for its grant and then for the records' bytes, which may be a moment behind; or, where the gate may
// step ahead, for records and room that it sees itself. Bounded. False: the launch is void, and nothing was taken.
// `now`: the time, as it was at most a few looks ago.
template <bool Plain, class L>
WM_FN bool gate_wait(L lanes, const wm_gate_args& g, wm_gate_state& s, const gate_now& v, gate_records& r, u64& now,
                     bool& parked) {
    const u64 taken = v.taken;
    u64 grants = v.grants, since = now;
    bool granted = has_grant(grants, taken), room = !lanes.any(v.full);
    bool can = Plain || gate_can_journal(lanes, g, s);
    parked = false;
    for (u32 looks = 0;; looks++) {
        // Both are under way while it looks at the slots.
        const u64 word = load_relaxed(at<const u64>(g.word), g.scope);
        now = now_ns();
        const bool ahead = g.ahead != 0 && (grants >> WM_GRANT_AHEAD_BIT & 1) != 0 && room;
        for (u32 k = 0; k < slot_looks && can && (granted || ahead); k++) {
            if ((granted || gate_seems_ready<Plain>(lanes, g, s)) && gate_take_more<Plain>(lanes, g, s, v, r))
                return true;
        }
        grants = lanes.broadcast(index_in(word, g.scope), 0);
        room = room || gate_has_room(lanes, g, s);
        can = can || gate_can_journal(lanes, g, s);
        bool late = lanes.any(now - since >= (granted ? g.arrival_ns : g.spin_ns));
        if (looks == 0 && (!granted || !can))
            late = gate_is_stopped(lanes, g);
        const bool may_park =
            late && looks != 0 && !granted && g.parks && has_next_door(lanes, g, v.credits, v.launches);
        if (may_park && gate_park(lanes, g, v.launches, taken)) {
            parked = true;
            return false;
        }
        if (!granted && (may_park || has_grant(grants, taken))) { // the bytes are waited for on their own
            granted = true;
            since = now;
        } else if (late) {
            return false;
        }
        pause_after(looks);
    }
}

// The gate. Returns whether the launch is live, the same to all lanes. Ordering: what the producers of the records
// wrote before they pushed is visible to the body.
//
// Between the grant and the body it stores nothing over the bus, but for records that are journalled where they are
// taken: a fence, and the end of the kernel, would wait for it.
// A module that never parks has the next launch begin without a ring in any case, and says so first; for one that parks
// the gate's end does.
template <bool Plain, class L> WM_FN bool gate_begin(L lanes, const wm_gate_args& g) {
    wm_gate_state& s = *at<wm_gate_state>(g.state);
    wm_gate_report* report = at<wm_gate_report>(g.report);
    const u64 begin_ns = now_ns();
    if (lanes.rank() == 0 && g.parks)
        store_relaxed(&at<wm_bell>(g.bell)->parked, u64{0}, g.scope); // R0: awake
    const gate_now v = gate_attach<Plain>(lanes, g, s);
    if (lanes.rank() == 0)
        store_relaxed_sys(&report->begun, v.launches + 1);
    if (g.doors != 0 && !g.parks)
        gate_leave_wanted(lanes, g, v.credits, v.launches);
    gate_records r{0, 0};
    u64 now = begin_ns;
    bool parked;
    if (!gate_wait<Plain>(lanes, g, s, v, r, now, parked))
        r = {0, 0};
    let_next_begin();
    if (!Plain && gate_has_taps(g))
        gate_journal_inputs(lanes, g, s, r.good);
    const bool live = is_step<Plain>(g, r.good);
    if (lanes.rank() == 0) {
        for (u32 i = 0; !Plain && i < g.n_inputs && r.took != 0; i++) {
            if ((r.took >> i & 1) == 0)
                *buffer_of(g, i) = {WM_STEP_NOTHING, 0, v.taken};
        }
        s.took = r.took;
        s.live = live;
        s.parked = parked;
        s.begin_ns = now;
        s.spun_ns = v.spun_ns + (now - begin_ns);
        if (live && g.calls)
            store_relaxed_sys(&report->live_ns, now);
    }
    lanes.sync();
    return live;
}

} // namespace warpmail

#endif
