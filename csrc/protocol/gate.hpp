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

#include "protocol/wait.hpp"

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

// The steps granted so far, modulo 2^32. Lane 0's view is everybody's.
template <class L> WM_FN u32 steps_granted(L lanes, const wm_gate_args& g) {
    return static_cast<u32>(lanes.broadcast(index_in(load_relaxed(at<const u64>(g.word), g.scope), g.scope), 0));
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
template <class L> WM_FN bool gate_park(L lanes, const wm_gate_args& g, u64 launch, u32 taken) {
    u64 word = 0;
    if (lanes.rank() == 0) {
        store_relaxed(&at<wm_bell>(g.bell)->parked, launch + 2, g.scope); // P2
        fence_sc_sys();                                                   // P3
        u64* const at_word = at<u64>(g.word);
        word = g.scope == WM_SCOPE_GPU ? or_relaxed_gpu(at_word, WM_PARK_BIT) : load_relaxed_sys(at_word); // P4, P5
    }
    return static_cast<u32>(lanes.broadcast(index_in(word, g.scope), 0)) == taken; // P6
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

// Copies the next record of input i into its buffer and leaves it in the mailbox. A record with an impossible length
// counts as taken, and nothing is in the buffer.
template <class L> WM_FN wm_status gate_take(L lanes, const wm_gate_args& g, u32 i, u64 step) {
    wm_consumer c = attach_consumer(g.ends[i]);
    wm_step_head* head = buffer_of(g, i);
    u32 len = 0, type = 0;
    const wm_status s = get(lanes, c, payload_of(head), payload_bytes(g.ends[i]), len, type);
    if (s == WM_EMPTY)
        return s;
    lanes.sync();
    if (lanes.rank() == 0) {
        *head = {s == WM_OK ? len : WM_STEP_NOTHING, type, step};
        if (s != WM_OK)
            add_relaxed_gpu(&at<wm_module_stats>(g.stats)->rejects[WM_REJECT_LENGTH], 1);
    }
    return s;
}

template <class L> WM_FN void gate_take_nothing(L lanes, const wm_gate_args& g, u32 i, u64 step) {
    if (lanes.rank() == 0)
        *buffer_of(g, i) = {WM_STEP_NOTHING, 0, step};
}

// The records of one step. A bit each: inputs whose slot is to be given back; `good`: those with a record. The arbiter
// has seen their indices; their bytes may be a moment behind, and a wait for them is bounded. None: 0, and nothing was
// taken.
template <class L> WM_FN u32 gate_take_all(L lanes, const wm_gate_args& g, wm_gate_state& s, u32& good) {
    const bool any = g.rule == WM_RULE_ANY;
    const u32 first = any ? static_cast<u32>(s.cursor) : 0;
    u32 took = 0;
    good = 0;
    wait_until(lanes, g.arrival_ns, [&] {
        for (u32 k = 0; k < g.n_inputs; k++) {
            const u32 i = first + k < g.n_inputs ? first + k : first + k - g.n_inputs;
            if ((took >> i & 1) != 0 || (any && took != 0))
                continue;
            const wm_status status = gate_take(lanes, g, i, s.taken);
            took |= status == WM_EMPTY ? 0 : 1u << i;
            good |= status == WM_OK ? 1u << i : 0;
        }
        return any ? took != 0 : took == (1u << g.n_inputs) - 1;
    });
    if (!any && took != (1u << g.n_inputs) - 1)
        return 0;
    for (u32 i = 0; i < g.n_inputs && took != 0; i++) {
        if ((took >> i & 1) == 0)
            gate_take_nothing(lanes, g, i, s.taken);
    }
    return took;
}

// Waits for a grant, bounded. False: the launch is void.
template <class L>
WM_FN bool gate_wait(L lanes, const wm_gate_args& g, const wm_gate_state& s, u32 taken, bool& parked) {
    parked = false;
    bool granted = steps_granted(lanes, g) != taken;
    if (!granted && !gate_is_stopped(lanes, g)) {
        granted = wait_until(lanes, g.spin_ns, [&] { return steps_granted(lanes, g) != taken; });
        if (!granted && g.parks && has_next_door(lanes, g, s, s.launches)) {
            parked = gate_park(lanes, g, s.launches, taken);
            granted = !parked;
        }
    }
    return granted;
}

// The gate. Returns whether the launch is live, the same to all lanes. Ordering: what the producers of the records
// wrote before they pushed is visible to the body.
//
// Between the grant and the body it stores nothing over the bus: a fence, and the end of the kernel, would wait for it.
// A module that never parks has the next launch begin without a ring in any case, and says so first; for one that parks
// the gate's end does.
template <class L> WM_FN bool gate_begin(L lanes, const wm_gate_args& g) {
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
    lanes.sync();
    u32 took = 0, good = 0;
    bool parked;
    const bool granted = gate_wait(lanes, g, s, static_cast<u32>(s.taken), parked);
    const u64 granted_ns = now_ns();
    if (granted)
        took = gate_take_all(lanes, g, s, good);
    const bool live = g.rule == WM_RULE_ANY ? good != 0 : good == (1u << g.n_inputs) - 1;
    lanes.sync();
    if (lanes.rank() == 0) {
        s.took = took;
        s.live = live;
        s.parked = parked;
        s.begin_ns = granted_ns;
        s.spun_ns += granted_ns - begin_ns;
        for (u32 o = 0; live && o < g.n_outputs; o++)
            *buffer_of(g, WM_MAX_INPUTS + o) = {g.lens[o], g.types[o], s.taken};
        if (live && g.calls)
            store_relaxed_sys(&report->live_ns, granted_ns);
    }
    lanes.sync();
    return live;
}

// Pushes what the body left in the buffer of output o. The grant was credit for it, so the mailbox has room.
template <class L> WM_FN wm_status gate_give(L lanes, const wm_gate_args& g, u32 o) {
    wm_step_head* head = buffer_of(g, WM_MAX_INPUTS + o);
    const u32 len = lanes.broadcast(head->len, 0), type = lanes.broadcast(head->type, 0);
    if (len == WM_STEP_NOTHING)
        return WM_EMPTY;
    wm_producer p = attach_producer(g.ends[WM_MAX_INPUTS + o]);
    return try_push(lanes, p, payload_of(head), len, type);
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
template <class L> WM_FN void gate_end(L lanes, const wm_gate_args& g) {
    wm_gate_state& s = *at<wm_gate_state>(g.state);
    wm_gate_report* report = at<wm_gate_report>(g.report);
    const u64 launch = s.launches, took = s.took, live = s.live, parked = s.parked, begin_ns = s.begin_ns;
    lanes.sync();
    u64 in = 0, out = 0, refused = 0;
    for (u32 o = 0; live && o < g.n_outputs; o++) {
        const wm_status status = gate_give(lanes, g, o);
        out += status == WM_OK;
        refused += status != WM_OK && status != WM_EMPTY;
    }
    if (took != 0) {
        lanes.sync();
        fence_release(g.scope); // RELEASE of the indices just published, acquired in grantable
        for (u32 i = 0; i < g.n_inputs; i++) {
            if ((took >> i & 1) == 0)
                continue;
            wm_consumer c = attach_consumer(g.ends[i]);
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
