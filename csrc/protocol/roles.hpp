// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The turns that the arbiter's roles take. The persistent kernel gives each role its warps; the twin gives each its
// threads, or composes them on one.
//   decide   takes grants back, gives grants, keeps the residency bound; touches working memory only
//   scan     looks at the device side: lines of index words in device memory
//   inbox    looks at the host side (pinned memory is slow to read, so it has its own warp) and writes telemetry
//   serve    runs resident handlers
#ifndef WARPMAIL_PROTOCOL_ROLES_HPP
#define WARPMAIL_PROTOCOL_ROLES_HPP

#include "protocol/context.hpp"
#include "protocol/telemetry.hpp"

namespace warpmail {

WM_FN bool args_are_valid(const wm_arbiter_args& args) {
    return args.magic == WM_ABI_MAGIC && args.version == WM_ABI_VERSION && args.n_mailboxes <= WM_MAX_MAILBOXES &&
           args.n_modules <= WM_MAX_MODULES && args.servers <= WM_MAX_SERVERS && args.scanners <= WM_MAX_SCANNERS &&
           args.scratch_bytes % 16 == 0 && args.residency_ns != 0;
}

// The decider's own state.
struct decide_state {
    u32 cursor;
    u32 reason; // WM_EXIT_* once it has begun to close
    u32 turns;
    u64 begin_ns;
    u64 now_ns; // read every clock_turns turns
    bool was_busy;
};
constexpr u32 clock_turns = 16;

WM_FN decide_state decide_begin() {
    const u64 now = now_ns();
    return {0, WM_EXIT_NONE, 0, now, now, false};
}

// Reads the clock: residency, and how the time was spent since the last reading, by whether a grant is outstanding now.
template <class L> WM_FN void look_at_clock(L lanes, arbiter& a, decide_state& d, bool busy) {
    const u64 now = lanes.broadcast(now_ns(), 0);
    const u64 stop = lanes.broadcast(load_relaxed_cta(&a.flags[flag_stop]), 0);
    if (d.reason == WM_EXIT_NONE && stop)
        d.reason = WM_EXIT_STOP;
    else if (d.reason == WM_EXIT_NONE && now - d.begin_ns >= a.args.residency_ns)
        d.reason = WM_EXIT_RESIDENCY;
    if (lanes.rank() == 0) {
        const u32 flag = busy || d.was_busy ? flag_work : flag_idle;
        store_relaxed_cta(&a.flags[flag], load_relaxed_cta(&a.flags[flag]) + (now - d.now_ns));
        store_relaxed_cta(&a.flags[flag_rounds], d.turns);
    }
    d.now_ns = now;
    d.was_busy = false;
}

// One turn. Returns 1 + the number of grants given, or 0 when every server has been told to leave.
template <class L> WM_FN u32 decide_turn(L lanes, arbiter& a, decide_state& d) {
    const bool busy = collect(lanes, a);
    if (d.turns++ % clock_turns == 0)
        look_at_clock(lanes, a, d, busy);
    if (d.reason == WM_EXIT_NONE) {
        const u32 granted = decide(lanes, a, d.cursor, d.now_ns);
        if (granted && lanes.rank() == 0)
            store_relaxed_cta(&a.flags[flag_grants], load_relaxed_cta(&a.flags[flag_grants]) + granted);
        d.was_busy |= busy || granted != 0;
        return 1 + granted;
    }
    if (busy)
        return 1;
    // Nothing is outstanding and nothing more is granted: everyone leaves.
    look_at_clock(lanes, a, d, false);
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width())
        store_release_cta(&a.grant[s], leave_word);
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_cta(&a.flags[flag_leave], d.reason); // RELEASE, acquired in inbox_turn and scan_turn
    return 0;
}

// One turn of scanner `part` of `parts`. False when the launch is over.
template <class L> WM_FN bool scan_turn(L lanes, arbiter& a, u32 part, u32 parts) {
    scan(lanes, a, WM_SIDE_DEVICE, part, parts);
    return lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0) == WM_EXIT_NONE; // ACQUIRE of decide_turn
}

struct inbox_state {
    telemetry_base base;
    u64 written_ns; // when telemetry was last written
};

template <class L> WM_FN inbox_state inbox_begin(L lanes, arbiter& a) {
    return {telemetry_begin(lanes, a), 0};
}

// One turn. False when the launch is over and the last telemetry is written.
template <class L> WM_FN bool inbox_turn(L lanes, arbiter& a, inbox_state& b) {
    const u64 reason = lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0); // ACQUIRE of decide_turn
    const u64 now = lanes.broadcast(now_ns(), 0);
    if (reason != WM_EXIT_NONE || now - b.written_ns >= WM_TELEMETRY_NS) {
        telemetry_write(lanes, a, b.base, now);
        b.written_ns = now;
    }
    if (reason != WM_EXIT_NONE) {
        telemetry_end(lanes, a, reason);
        return false;
    }
    // Used after the scan, so that its way over the bus overlaps with the scan's.
    const u64 stop = load_relaxed_sys(&at<wm_control>(a.args.control)->stop);
    scan(lanes, a, WM_SIDE_HOST, 0, 1);
    if (stop && lanes.rank() == 0)
        store_relaxed_cta(&a.flags[flag_stop], stop);
    lanes.sync();
    return true;
}

// One turn. 0: left, 1: nothing to do, 2: served a grant.
template <class H, class L> WM_FN u32 serve_turn(L lanes, arbiter& a, u32 server, u64& seen) {
    bool left = false;
    const u32 module = take_grant(lanes, a, server, seen, left);
    if (left)
        return 0;
    if (module == no_module)
        return 1;
    run_grant<H>(lanes, a, server, module);
    finish_grant(lanes, a, server, seen);
    return 2;
}

} // namespace warpmail

#endif
