// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The steps of a stream module. On its stream stand, for each launch: a wait for a door, the gate, the body, the gate's
// end. The gate polls for a grant (grant.hpp is the other side), takes the records into bound buffers and says whether
// this launch is live; a launch that finds no grant in time is void, and its body has nothing to do. The end pushes
// what the body left in the output buffers and gives the input slots back.
//
// Parking is that of an arbiter with one readiness word, the steps granted, whose far end is the arbiter that grants:
// the steps' names are those of park.hpp and bell.hpp, and of the model tests/model/park.pml.
//
// One warp, or one thread. What a launch leaves in wm_gate_state the next one finds: the stream's order is between
// them.
#ifndef WARPMAIL_PROTOCOL_GATE_HPP
#define WARPMAIL_PROTOCOL_GATE_HPP

#include "protocol/warp_ends.hpp"

namespace warpmail {

WM_FN bool gate_is_valid(const wm_gate_args& g) {
    return g.magic == WM_ABI_MAGIC && g.version == WM_ABI_VERSION && g.n_inputs >= 1 && g.n_inputs <= WM_MAX_INPUTS &&
           g.n_outputs <= WM_MAX_OUTPUTS;
}

WM_FN wm_step_head* buffer_of(const wm_gate_args& g, u32 row) {
    return at<wm_step_head>(g.buffers[row]);
}
WM_FN u8* payload_of(wm_step_head* head) {
    return reinterpret_cast<u8*>(head) + WM_STEP_HEAD_BYTES;
}

// What the word of grants says: WM_GRANT_AHEAD_BIT, and in its low half the steps granted. Lane 0's view is
// everybody's.
template <class L> WM_FN u64 grants_of(L lanes, const wm_gate_args& g) {
    return lanes.broadcast(index_in(load_relaxed(at<const u64>(g.word), g.scope), g.scope), 0);
}
// Whether a step beyond those taken has been granted. Steps may have been taken ahead of their grants.
WM_FN bool has_grant(u64 grants, u64 taken) {
    return static_cast<int32_t>(static_cast<u32>(grants) - static_cast<u32>(taken)) > 0;
}
template <class L> WM_FN bool gate_is_stopped(L lanes, const wm_gate_args& g) {
    return lanes.broadcast(load_relaxed_sys(&at<wm_control>(g.control)->stop.rung), 0) != 0;
}

// P1: whether the door of credit `launch + 1` is clear and may be rung at. Credits only grow: what was seen once holds,
// and a look over the bus is seldom needed.
template <class L> WM_FN bool has_next_door(L lanes, const wm_gate_args& g, const wm_gate_state& s, u64 launch) {
    return s.credits >= launch + 2 ||
           lanes.broadcast(load_relaxed_sys(&at<wm_control>(g.control)->credits), 0) >= launch + 2;
}

// Announces that the module is parked and looks once more. True: whoever grants from here on rings at the next door.
template <class L> WM_FN bool gate_park(L lanes, const wm_gate_args& g, u64 launch, u64 taken) {
    u64 word = 0;
    if (lanes.rank() == 0) {
        store_relaxed(&at<wm_bell>(g.bell)->parked, launch + 2, g.scope); // P2
        fence_sc_sys();                                                   // P3
        u64* const at_word = at<u64>(g.word);
        word = g.scope == WM_SCOPE_GPU ? or_relaxed_gpu(at_word, WM_PARK_BIT) : load_relaxed_sys(at_word); // P4, P5
    }
    return !has_grant(lanes.broadcast(index_in(word, g.scope), 0), taken); // P6
}

// Has the next launch begin without a ring: opens its door if that is clear, else the launcher will.
template <class L> WM_FN void gate_leave_wanted(L lanes, const wm_gate_args& g, const wm_gate_state& s, u64 launch) {
    bool clear = s.credits >= launch + 2;
    if (!clear) {
        if (lanes.rank() == 0) {
            store_relaxed_sys(&at<wm_gate_report>(g.report)->wanted, launch + 2); // L1
            fence_sc_sys();                                                       // L2, with C3
        }
        lanes.sync();
        clear = has_next_door(lanes, g, s, launch);
    }
    if (clear && lanes.rank() == 0) // L3
        open_door(g.doors, launch + 1);
}

// The ends as this launch found them: nobody else moves their near indices while it runs.
template <class L> WM_FN void gate_attach(L lanes, const wm_gate_args& g, wm_gate_state& s) {
    for (u32 i = lanes.rank(); i < g.n_inputs; i += lanes.width())
        s.read_idx[i] = load_relaxed(read_idx_of(g.ends[i]), g.ends[i].scope);
    for (u32 o = lanes.rank(); o < g.n_outputs; o += lanes.width()) {
        const wm_mailbox& m = g.ends[WM_MAX_INPUTS + o];
        s.write_idx[o] = load_relaxed(write_idx_of(m), m.scope);
        s.read_seen[o] = load_relaxed(read_idx_of(m), m.scope);
        *buffer_of(g, WM_MAX_INPUTS + o) = {g.lens[o], g.types[o], s.taken};
    }
    lanes.sync();
}

// A module's inputs, or its outputs, are *plain* if there is one, with slots of the default stride in device memory.
// Nearly all are; what is known while compiling is off the way from one body to the next. The host chooses the kernel.
template <bool Plain> WM_FN u32 n_inputs(const wm_gate_args& g) {
    return Plain ? 1 : g.n_inputs;
}
template <bool Plain> WM_FN u32 n_outputs(const wm_gate_args& g) {
    return Plain ? 1 : g.n_outputs;
}
template <bool Plain> WM_FN wm_mailbox gate_mailbox(const wm_gate_args& g, u32 row) {
    wm_mailbox m = g.ends[row];
    if (Plain) {
        m.record_stride = WM_STRIDE_DEFAULT;
        m.scope = WM_SCOPE_GPU;
    }
    return m;
}

template <bool Plain> WM_FN wm_consumer gate_consumer(const wm_gate_args& g, const wm_gate_state& s, u32 i) {
    return {gate_mailbox<Plain>(g, i), s.read_idx[i], s.read_idx[i]};
}

// Whether every output has room for a record; looks at the consumer's index only where none seemed to be.
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

// Copies the next record of input i into its buffer and leaves it in the mailbox. A record with an impossible length
// counts as taken, and nothing is in the buffer.
template <bool Plain, class L>
WM_FN wm_status gate_take(L lanes, const wm_gate_args& g, const wm_gate_state& s, u32 i) {
    wm_consumer c = gate_consumer<Plain>(g, s, i);
    wm_step_head* head = buffer_of(g, i);
    u32 len = 0, type = 0;
    const wm_status status = get(lanes, c, payload_of(head), payload_bytes(c.mailbox), len, type);
    if (status == WM_EMPTY)
        return status;
    if (lanes.rank() == 0) {
        *head = {status == WM_OK ? len : WM_STEP_NOTHING, type, s.taken};
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
WM_FN bool gate_take_more(L lanes, const wm_gate_args& g, const wm_gate_state& s, gate_records& r) {
    const bool any = Plain || g.rule == WM_RULE_ANY;
    const u32 n = n_inputs<Plain>(g), first = any && !Plain ? static_cast<u32>(s.cursor) : 0;
    for (u32 k = 0; k < n; k++) {
        const u32 i = first + k < n ? first + k : first + k - n;
        if ((r.took >> i & 1) != 0 || (any && r.took != 0))
            continue;
        const wm_status status = gate_take<Plain>(lanes, g, s, i);
        r.took |= status == WM_EMPTY ? 0 : 1u << i;
        r.good |= status == WM_OK ? 1u << i : 0;
    }
    return is_step<Plain>(g, r.took);
}

// Whether the records of a step seem to be there. Where one is enough, taking it is looking.
template <bool Plain, class L> WM_FN bool gate_seems_ready(L lanes, const wm_gate_args& g, const wm_gate_state& s) {
    for (u32 i = 0; !Plain && i < g.n_inputs && g.n_inputs > 1 && g.rule != WM_RULE_ANY; i++) {
        wm_consumer c = gate_consumer<Plain>(g, s, i);
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
WM_FN bool gate_wait(L lanes, const wm_gate_args& g, wm_gate_state& s, gate_records& r, u64& now, bool& parked) {
    const u64 taken = s.taken;
    u64 grants = grants_of(lanes, g), since = now;
    bool granted = has_grant(grants, taken), room = gate_has_room(lanes, g, s);
    parked = false;
    for (u32 looks = 0;; looks++) {
        // Both are under way while it looks at the slots.
        const u64 word = load_relaxed(at<const u64>(g.word), g.scope);
        now = now_ns();
        const bool ahead = g.ahead != 0 && (grants >> WM_GRANT_AHEAD_BIT & 1) != 0 && room;
        for (u32 k = 0; k < slot_looks && (granted || ahead); k++) {
            if ((granted || gate_seems_ready<Plain>(lanes, g, s)) && gate_take_more<Plain>(lanes, g, s, r))
                return true;
        }
        grants = lanes.broadcast(index_in(word, g.scope), 0);
        room = room || gate_has_room(lanes, g, s);
        bool late = lanes.any(now - since >= (granted ? g.arrival_ns : g.spin_ns));
        if (looks == 0 && !granted)
            late = gate_is_stopped(lanes, g);
        const bool may_park = late && looks != 0 && !granted && g.parks && has_next_door(lanes, g, s, s.launches);
        if (may_park && gate_park(lanes, g, s.launches, taken)) {
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
// Between the grant and the body it stores nothing over the bus: a fence, and the end of the kernel, would wait for it.
// A module that never parks has the next launch begin without a ring in any case, and says so first; for one that parks
// the gate's end does.
template <bool Plain, class L> WM_FN bool gate_begin(L lanes, const wm_gate_args& g) {
    wm_gate_state& s = *at<wm_gate_state>(g.state);
    wm_gate_report* report = at<wm_gate_report>(g.report);
    const u64 begin_ns = now_ns();
    if (lanes.rank() == 0) {
        if (g.parks)
            store_relaxed(&at<wm_bell>(g.bell)->parked, u64{0}, g.scope); // R0: awake
        store_relaxed_sys(&report->begun, s.launches + 1);
    }
    if (g.doors != 0 && !g.parks)
        gate_leave_wanted(lanes, g, s, s.launches);
    gate_attach(lanes, g, s);
    gate_records r{0, 0};
    u64 now = begin_ns;
    bool parked;
    if (!gate_wait<Plain>(lanes, g, s, r, now, parked))
        r = {0, 0};
    let_next_begin();
    const bool live = is_step<Plain>(g, r.good);
    if (lanes.rank() == 0) {
        for (u32 i = 0; !Plain && i < g.n_inputs && r.took != 0; i++) {
            if ((r.took >> i & 1) == 0)
                *buffer_of(g, i) = {WM_STEP_NOTHING, 0, s.taken};
        }
        s.took = r.took;
        s.live = live;
        s.parked = parked;
        s.begin_ns = now;
        s.spun_ns += now - begin_ns;
        if (live && g.calls)
            store_relaxed_sys(&report->live_ns, now);
    }
    lanes.sync();
    return live;
}

// What a push to one output needs to know. `word`: where outputs are plain, the lane's word of the payload, which is
// then under way with the rest.
struct gate_output {
    wm_step_head head;
    u64 write_idx, read_seen, word;
};
template <bool Plain, class L>
WM_FN gate_output gate_look_at(L lanes, const wm_gate_args& g, const wm_gate_state& s, u32 o) {
    wm_step_head* head = buffer_of(g, WM_MAX_INPUTS + o);
    const bool has_word = Plain && L::is_group() && lanes.rank() != 0;
    return {*head, s.write_idx[o], s.read_seen[o],
            has_word ? reinterpret_cast<const u64*>(payload_of(head))[lanes.rank() - 1] : 0};
}

// Pushes what the body left in the buffer of output o, behind the fence of gate_end. The grant was credit for it, so
// the mailbox has room.
template <bool Plain, class L>
WM_FN wm_status gate_give(L lanes, const wm_gate_args& g, const gate_output& out, u32 o) {
    const u32 row = WM_MAX_INPUTS + o, len = out.head.len;
    wm_producer p{gate_mailbox<Plain>(g, row), out.write_idx, out.read_seen};
    if (len == WM_STEP_NOTHING)
        return WM_EMPTY;
#if defined(__CUDA_ARCH__)
    if (Plain && L::is_group()) {
        const fragment<1> words{{lanes.rank() * 8 < len + 8 ? out.word : 0}};
        return warp_producer<>(p).try_push<order::fenced>(words, len, out.head.type);
    }
#endif
    // A single thread's release is in the store of the slot's head.
    constexpr order how = L::is_group() ? order::fenced : order::ordered;
    return try_push<how>(lanes, p, payload_of(buffer_of(g, row)), len, out.head.type);
}

// Wakes the modules that the records are for, if they are parked: sooner than the arbiter's grant will. A hint: a
// module that is about to park may be missed here, and the grant rings then.
template <class L> WM_FN void gate_wake_others(L lanes, const wm_gate_args& g, u32 given) {
    for (u32 o = lanes.rank(); o < g.n_outputs; o += lanes.width()) {
        if ((given >> o & 1) == 0 || g.wakes[o] == 0)
            continue;
        const wm_bell* bell = at<const wm_bell>(g.wakes[o]);
        ring(bell, load_relaxed_gpu(&bell->parked));
    }
}

template <class L> WM_FN void gate_count(L lanes, const wm_gate_args& g, u64 in, u64 out, u64 refused, u64 busy_ns) {
    wm_module_stats* stats = at<wm_module_stats>(g.stats);
    if (lanes.rank() == 0) {
        add_relaxed_gpu(&stats->steps, 1);
        add_relaxed_gpu(&stats->records_in, in);
        add_relaxed_gpu(&stats->records_out, out);
        add_relaxed_gpu(&stats->busy_ns, busy_ns);
        if (refused)
            add_relaxed_gpu(&stats->rejects[WM_REJECT_LENGTH], refused);
    }
    lanes.sync();
    for (u32 i = lanes.rank(); g.stats_out != 0 && i < sizeof(wm_module_stats) / 8; i += lanes.width())
        store_relaxed_sys(at<u64>(g.stats_out) + i, load_relaxed_gpu(at<const u64>(g.stats) + i));
}

// The gate's end, behind the body. First what others wait for: the records, then the slots, then the next launch.
template <bool Plain, class L> WM_FN void gate_end(L lanes, const wm_gate_args& g) {
    wm_gate_state& s = *at<wm_gate_state>(g.state);
    wm_gate_report* report = at<wm_gate_report>(g.report);
    wait_for_previous();
    const u64 launch = s.launches, took = s.took, live = s.live, parked = s.parked, begin_ns = s.begin_ns;
    gate_output output = {};
    if (n_outputs<Plain>(g) != 0)
        output = gate_look_at<Plain>(lanes, g, s, 0);
    // RELEASE of what the body wrote, acquired by whoever pops the records. The body has ended, so there is nothing to
    // wait for but the fence itself, which overlaps with the loads above.
    if (L::is_group() && n_outputs<Plain>(g) != 0 && lanes.rank() == 0)
        fence_release(Plain ? WM_SCOPE_GPU : g.out_scope);
    lanes.sync();
    u64 in = 0, out = 0, refused = 0;
    u32 given = 0;
    for (u32 o = 0; live && o < n_outputs<Plain>(g); o++) {
        output = o == 0 ? output : gate_look_at<Plain>(lanes, g, s, o);
        const wm_status status = gate_give<Plain>(lanes, g, output, o);
        given |= status == WM_OK ? 1u << o : 0;
        out += status == WM_OK;
        refused += status != WM_OK && status != WM_EMPTY;
    }
    gate_wake_others(lanes, g, given);
    if (took != 0) {
        lanes.sync();
        fence_release(g.scope); // RELEASE of the indices just published, acquired in grantable
        for (u32 i = 0; i < g.n_inputs; i++) {
            if ((took >> i & 1) == 0)
                continue;
            wm_consumer c = gate_consumer<false>(g, s, i);
            release(lanes, c, 1);
            in++;
            if (lanes.rank() == 0)
                s.cursor = i + 1 < g.n_inputs ? i + 1 : 0;
        }
        gate_count(lanes, g, in, out, refused, now_ns() - begin_ns);
    }
    if (g.doors != 0 && g.parks && !parked)
        gate_leave_wanted(lanes, g, s, launch);
    const u64 credits = load_relaxed_sys(&at<wm_control>(g.control)->credits); // for the next launch
    lanes.sync();
    if (lanes.rank() == 0) {
        s.taken += took != 0;
        s.launches = launch + 1;
        s.took = s.live = 0;
        s.credits = credits;
        s.parks += parked;
        store_relaxed_sys(&report->steps, s.taken);
        store_relaxed_sys(&report->parks, s.parks);
        store_relaxed_sys(&report->spun_ns, s.spun_ns);
        if (g.calls)
            store_relaxed_sys(&report->live_ns, u64{0});
        store_release_sys(&report->ended, launch + 1);
    }
}

} // namespace warpmail

#endif
