// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Taps of mailboxes that no resident module stands at: the steps of a stream module journal what they take from a host
// or a kernel of the caller's, and what they give to anybody but a resident module. Each such module has a ring of its
// own, of which its steps are the one writer; see ring.hpp, whose invariants hold here too.
//
// Where a tap holds back what finds no room, the gate takes no step before the ring has room for all that it journals.
#ifndef WARPMAIL_PROTOCOL_GATE_TAP_HPP
#define WARPMAIL_PROTOCOL_GATE_TAP_HPP

#include "protocol/gate.hpp"
#include "protocol/ring.hpp"

namespace warpmail {

WM_FN bool gate_has_taps(const wm_gate_args& g) {
    return g.journal.header != 0;
}

// Whether records of this type at end `row` are journalled here.
WM_FN bool gate_is_chosen(const wm_gate_args& g, u32 row, u32 type) {
    const u32 tap = g.ends[row].tap;
    return tap != WM_TAP_NONE && ((tap >> WM_TAP_TYPED_BIT & 1) == 0 || tap >> WM_TAP_TYPE_SHIFT == type);
}

// Free slots of the module's ring; the far index is looked at, over the bus, only when fewer than `want` seem free.
template <class L> WM_FN u64 gate_ring_room(L lanes, const wm_gate_args& g, wm_gate_state& s, u64 want) {
    const u64 slots = ring_slots(g.journal), idx = s.journalled, room = slots - (idx - s.journal_read);
    if (room >= want)
        return room;
    const u64 read = lanes.broadcast(load_acquire_sys(&ring_header(g.journal)->read_idx), 0); // R2
    lanes.sync();
    if (lanes.rank() == 0)
        s.journal_read = read;
    lanes.sync();
    return slots - (idx - read);
}

// Whether a step can be journalled without waiting.
template <class L> WM_FN bool gate_can_journal(L lanes, const wm_gate_args& g, wm_gate_state& s) {
    return g.journal_need == 0 || gate_ring_room(lanes, g, s, g.journal_need) >= g.journal_need;
}

// Journals record `index` of end `row`, whose payload lies in the end's buffer, or counts it as dropped.
template <class L>
WM_FN void gate_journal(L lanes, const wm_gate_args& g, wm_gate_state& s, u32 row, u64 index, u32 len, u32 type) {
    lanes.sync(); // the payload is there
    const u64 idx = s.journalled, number = s.tapped[row].taken + 1;
    const bool room = gate_ring_room(lanes, g, s, 1) != 0;
    if (room)
        fill_slot(
            lanes, ring_slot(g.journal, idx),
            {number, index, now_ns(), g.ends[row].mailbox_id, static_cast<uint16_t>(len), static_cast<uint16_t>(type)},
            payload_of(buffer_of(g, row)), len);
    lanes.sync(); // all is stored, and what lane 0 changes now was read
    if (lanes.rank() == 0) {
        s.tapped[row].taken += room;
        s.tapped[row].dropped += !room;
        s.journalled = idx + room;
        if (room && type == WM_TYPE_TENSOR) // R3
            store_relaxed_sys(&ring_header(g.journal)->announced, idx + 1);
    }
    lanes.sync();
}

// Tells the host how many records of each end were journalled, and of those in the ring.
template <class L> WM_FN void gate_publish(L lanes, const wm_gate_args& g, const wm_gate_state& s) {
    for (u32 row = lanes.rank(); row < WM_MAX_ENDS; row += lanes.width()) {
        if (g.ends[row].tap == WM_TAP_NONE)
            continue;
        wm_tap_counts* counts = at<wm_tap_counts>(g.tap_counts) + g.ends[row].mailbox_id;
        store_relaxed_sys(&counts->taken, s.tapped[row].taken);
        store_relaxed_sys(&counts->dropped, s.tapped[row].dropped);
    }
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_sys(&ring_header(g.journal)->write_idx, s.journalled); // R1
}

// Journals the records that a step has taken, `good`, a bit each. They are in their buffers, and the body has not
// begun: it may release the lease of a tensor, and write where its record lies.
template <class L> WM_FN void gate_journal_inputs(L lanes, const wm_gate_args& g, wm_gate_state& s, u32 good) {
    bool any = false;
    lanes.sync(); // lane 0 has written the heads
    for (u32 i = 0; i < g.n_inputs; i++) {
        const wm_step_head head = *buffer_of(g, i);
        if ((good >> i & 1) == 0 || !gate_is_chosen(g, i, head.type))
            continue;
        gate_journal(lanes, g, s, i, s.read_idx[i], head.len, head.type);
        any = true;
    }
    if (any)
        gate_publish(lanes, g, s);
}

// Journals the records that a step gives: descriptors of tensors before anybody can learn of them (R3), all others when
// they are on their way, so that nobody who waits for them waits for the bus.
template <class L> WM_FN void gate_journal_outputs(L lanes, const wm_gate_args& g, wm_gate_state& s, bool tensors) {
    for (u32 o = 0; o < g.n_outputs; o++) {
        const u32 row = WM_MAX_INPUTS + o;
        const wm_step_head head = *buffer_of(g, row);
        const u32 type = head.type & 0xFFFFu;
        // A length that cannot be is not pushed either.
        if (head.len <= payload_bytes(g.ends[row]) && (type == WM_TYPE_TENSOR) == tensors &&
            gate_is_chosen(g, row, type))
            gate_journal(lanes, g, s, row, s.write_idx[o], head.len, type);
    }
}

} // namespace warpmail

#endif
