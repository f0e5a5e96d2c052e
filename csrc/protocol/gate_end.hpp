// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The gate's end: pushes what the body left, gives the slots back, counts. See gate.hpp.
#ifndef WARPMAIL_PROTOCOL_GATE_END_HPP
#define WARPMAIL_PROTOCOL_GATE_END_HPP

#include "protocol/gate_tap.hpp"
#include "protocol/warp_ends.hpp"

namespace warpmail {

// What a push to one output needs to know. `word`: where outputs are plain, the lane's word of the payload, which is
// then under way with the rest. `parked` and `doors` are of the bell of the stream module that the record is for.
struct gate_output {
    wm_step_head head;
    u64 write_idx, word, parked, doors;
};
template <bool Plain, class L>
WM_FN gate_output gate_look_at(L lanes, const wm_gate_args& g, const wm_gate_state& s, u32 o) {
    wm_step_head* head = buffer_of(g, WM_MAX_INPUTS + o);
    const bool has_word = Plain && L::is_group() && lanes.rank() != 0;
    gate_output out{*head, s.write_idx[o], 0, 0, 0};
    if (has_word)
        out.word = reinterpret_cast<const u64*>(payload_of(head))[lanes.rank() - 1];
    if (g.wakes[o] != 0) {
        const wm_bell* bell = at<const wm_bell>(g.wakes[o]);
        out.parked = load_relaxed_gpu(&bell->parked);
        out.doors = bell->doors;
    }
    return out;
}

// Wakes that module if it was parked: sooner than the arbiter's grant will. A hint: a module that is about to park may
// be missed here, and the grant rings then. What is woken takes longer to come than the publication of the record, so
// this stands in front of that, which may wait for an answer.
template <class L> WM_FN void gate_wake(L lanes, const gate_output& out) {
    if (lanes.rank() == 0 && out.parked != 0)
        open_door(out.doors, out.parked - 1);
}

// Pushes what the body left in the buffer of output o, behind the fence of gate_end. The mailbox has room: the grant
// was credit for it, or the gate had seen the room itself. So the header is not asked, whose index may be behind what
// the arbiter was told (publish_read).
template <bool Plain, class L>
WM_FN wm_status gate_give(L lanes, const wm_gate_args& g, const gate_output& out, u32 o) {
    const u32 row = WM_MAX_INPUTS + o, len = out.head.len;
    if (len == WM_STEP_NOTHING)
        return WM_EMPTY;
    const wm_mailbox box = gate_mailbox<Plain>(g, row);
    wm_producer p{box, out.write_idx, out.write_idx + 1 - slot_count(box), 0}; // one slot is free
#if defined(__CUDA_ARCH__) || defined(WARPMAIL_HOST_WARPS)
    if (Plain && L::is_group()) {
        const fragment<1> words{{lanes.rank() * 8 < len + 8 ? out.word : 0}};
        warp_producer<> to(p);
        if (len > warp_producer<>::payload)
            return refused(lanes, p.mailbox.header, WM_SCOPE_GPU, WM_END_PRODUCER, refusal::length, WM_BAD_LENGTH);
        to.put(0, words, len, out.head.type);
        gate_wake(lanes, out);
        to.commit(1);
        return WM_OK;
    }
#endif
    gate_wake(lanes, out);
    // A single thread's release is in the store of the slot's head.
    constexpr order how = L::is_group() ? order::fenced : order::ordered;
    return try_push<how>(lanes, p, payload_of(buffer_of(g, row)), len, out.head.type);
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
    // While the body ends: arguments, and the way to what they name, are cold in a kernel that has just begun.
    if (n_outputs<Plain>(g) != 0) {
        prefetch_l2(buffer_of(g, WM_MAX_INPUTS));
        prefetch_l2(write_idx_of(g.ends[WM_MAX_INPUTS]));
    }
    prefetch_l2(&s);
    wait_for_previous();
    const u64 launch = s.launches, took = s.took, live = s.live, parked = s.parked, begin_ns = s.begin_ns;
    const u64 read_idx = s.read_idx[0], before = s.credits;
    gate_output output = {};
    if (n_outputs<Plain>(g) != 0)
        output = gate_look_at<Plain>(lanes, g, s, 0);
    const bool journals = !Plain && live && gate_has_taps(g);
    if (journals)
        gate_journal_outputs(lanes, g, s, true);
    // RELEASE of what the body wrote, acquired by whoever pops the records. The body has ended, so there is nothing to
    // wait for but the fence itself, which overlaps with the loads above.
    if (L::is_group() && n_outputs<Plain>(g) != 0 && lanes.rank() == 0)
        fence_release(Plain ? WM_SCOPE_GPU : g.out_scope);
    lanes.sync();
    u64 in = 0, out = 0, refused = 0;
    for (u32 o = 0; live && o < n_outputs<Plain>(g); o++) {
        output = Plain || o == 0 ? output : gate_look_at<Plain>(lanes, g, s, o);
        const wm_status status = gate_give<Plain>(lanes, g, output, o);
        out += status == WM_OK;
        refused += status != WM_OK && status != WM_EMPTY;
    }
    if (took != 0) {
        lanes.sync();
        fence_release(g.scope); // RELEASE of the indices just published, acquired in grantable
        for (u32 i = 0; i < g.n_inputs; i++) {
            if ((took >> i & 1) == 0)
                continue;
            wm_consumer c = gate_consumer<false>(g, i, i == 0 ? read_idx : s.read_idx[i]);
            release(lanes, c, 1);
            in++;
            if (lanes.rank() == 0)
                s.cursor = i + 1 < g.n_inputs ? i + 1 : 0;
        }
        gate_count(lanes, g, in, out, refused, now_ns() - begin_ns);
    }
    if (journals) {
        gate_journal_outputs(lanes, g, s, false);
        gate_publish(lanes, g, s);
    }
    if (g.doors != 0 && g.parks && !parked)
        gate_leave_wanted(lanes, g, before, launch);
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
