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

// Whether a step beyond those taken has been granted. The word of grants says, in its low half, how many have been, and
// WM_GRANT_AHEAD_BIT; steps may have been taken ahead of their grants.
WM_FN bool has_grant(u64 grants, u64 taken) {
    return static_cast<int32_t>(static_cast<u32>(grants) - static_cast<u32>(taken)) > 0;
}
template <class L> WM_FN bool gate_is_stopped(L lanes, const wm_gate_args& g) {
    return lanes.broadcast(load_relaxed_sys(&at<wm_control>(g.control)->stop.rung), 0) != 0;
}

// P1: whether the door of credit `launch + 1` is clear and may be rung at. Credits only grow: those that were seen once
// hold, and a look over the bus is seldom needed.
template <class L> WM_FN bool has_next_door(L lanes, const wm_gate_args& g, u64 credits, u64 launch) {
    return credits >= launch + 2 ||
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
template <class L> WM_FN void gate_leave_wanted(L lanes, const wm_gate_args& g, u64 credits, u64 launch) {
    bool clear = credits >= launch + 2;
    if (!clear) {
        if (lanes.rank() == 0) {
            store_relaxed_sys(&at<wm_gate_report>(g.report)->wanted, launch + 2); // L1
            fence_sc_sys();                                                       // L2, with C3
        }
        lanes.sync();
        clear = has_next_door(lanes, g, credits, launch);
    }
    if (clear && lanes.rank() == 0) // L3
        open_door(g.doors, launch + 1);
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

template <bool Plain> WM_FN wm_consumer gate_consumer(const wm_gate_args& g, u32 i, u64 read_idx) {
    return {gate_mailbox<Plain>(g, i), read_idx, read_idx, 0};
}

} // namespace warpmail

#endif
