// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The gate's end: pushes what the body left, gives the slots back, counts. See gate.hpp.
#ifndef WARPMAIL_PROTOCOL_GATE_END_HPP
#define WARPMAIL_PROTOCOL_GATE_END_HPP

#include "protocol/gate.hpp"
#include "protocol/warp_ends.hpp"

namespace warpmail {

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
    wm_producer p{gate_mailbox<Plain>(g, row), out.write_idx, out.read_seen, 0};
    if (len == WM_STEP_NOTHING)
        return WM_EMPTY;
#if defined(__CUDA_ARCH__) || defined(WARPMAIL_HOST_WARPS)
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
