// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The turns that the arbiter's roles take. The persistent kernel gives each role its warps; the twin gives each its
// threads, or composes them on one.
//   keep     keeps the spin budget, the stop doorbell and the clock; ends the launch, parks
//   scan     looks at the device side: readiness lines in device memory
//   inbox    looks at the host side (pinned memory is slow to read, so it has its own warp) and writes telemetry
//   serve    claims modules and runs resident handlers
#ifndef WARPMAIL_PROTOCOL_ROLES_HPP
#define WARPMAIL_PROTOCOL_ROLES_HPP

#include "protocol/begin.hpp"
#include "protocol/claim.hpp"
#include "protocol/context.hpp"
#include "protocol/park.hpp"
#include "protocol/scan.hpp"
#include "protocol/telemetry.hpp"

namespace warpmail {

WM_FN bool args_are_valid(const wm_arbiter_args& args) {
    return args.magic == WM_ABI_MAGIC && args.version == WM_ABI_VERSION && args.n_mailboxes <= WM_MAX_MAILBOXES &&
           args.n_modules <= WM_MAX_MODULES && args.servers <= WM_MAX_SERVERS && args.scanners <= WM_MAX_SCANNERS &&
           2 + args.servers + args.scanners <= WM_MAX_WARPS && args.n_device_words <= 2 * WM_MAX_MAILBOXES &&
           args.n_host_words <= 2 * WM_MAX_MAILBOXES && args.scratch_bytes % 16 == 0 &&
           args.journal_stage_bytes % 16 == 0 && args.residency_ns != 0 &&
           (args.idle_spin_ns == 0 || (args.doors != 0 && args.device_bell != 0 && args.host_bell != 0));
}

// The keeper's own state.
struct keep_state {
    u32 reason; // WM_EXIT_* once it has begun to close
    u64 turns;
    u64 begin_ns;
    u64 now_ns;
    u64 idle_since_ns;
    u64 granted;   // by all servers, when it last looked
    u64 allowance; // as in wm_telemetry
};

// The token bucket of sm_share: it fills with the time, idle polling empties it.
WM_FN u64 allowance_after(const wm_arbiter_args& args, u64 allowance, u64 ns, bool idle) {
    constexpr u64 unit = 1000000;
    const u64 most = (args.idle_spin_ns > 1000000 ? args.idle_spin_ns : 1000000) * unit;
    const u64 gain = (ns < most / unit ? ns : most / unit) * args.sm_share_ppm, spent = idle ? ns * unit : 0;
    allowance = allowance + gain < most ? allowance + gain : most;
    return allowance > spent ? allowance - spent : 0;
}

template <class L> WM_FN keep_state keep_begin(L lanes, const arbiter& a) {
    const u64 now = lanes.broadcast(now_ns(), 0); // what follows from it must be the same for all lanes
    keep_state k{WM_EXIT_NONE, 0, now, now, now, 0, a.flags[flag_allowance]};
    if (a.last_exit == WM_EXIT_PARK) {
        const u64 stay = a.args.idle_spin_ns < wake_grace_ns ? a.args.idle_spin_ns : wake_grace_ns;
        k.idle_since_ns = now + stay - a.args.idle_spin_ns;
        k.allowance = allowance_after(a.args, k.allowance, now - a.last_end_ns, false);
    }
    return k;
}

// Why this launch should end now, if it should.
template <class L> WM_FN u32 reason_to_leave(L lanes, const arbiter& a, const keep_state& k) {
    if (lanes.broadcast(load_relaxed_cta(&a.flags[flag_stop]), 0) != 0)
        return WM_EXIT_STOP;
    if (k.now_ns - k.begin_ns >= a.args.residency_ns)
        return WM_EXIT_RESIDENCY;
    const u64 idle_ns = k.now_ns - k.idle_since_ns;
    const bool limited = a.args.sm_share_ppm < 1000000, spent = limited && k.allowance == 0;
    const bool enough = idle_ns >= a.args.idle_spin_ns || (spent && idle_ns >= wake_grace_ns);
    if (can_park(a.args) && enough && lanes.broadcast(may_park(a) ? 1u : 0u, 0) != 0)
        return WM_EXIT_PARK;
    return WM_EXIT_NONE;
}

// One turn: how the time since the last was spent, by whether a grant is held now; whether it is time to leave. Returns
// false when every server has left.
template <class L> WM_FN bool keep_turn(L lanes, arbiter& a, keep_state& k) {
    bool busy = false, here = false;
    u64 granted = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        const u64 module = load_acquire_cta(&a.grants[s].module_plus_one); // ACQUIRE of serve_turn
        busy = busy || (module != 0 && module != WM_GRANT_LEFT);
        here = here || module != WM_GRANT_LEFT;
        granted += load_relaxed_cta(&a.granted[s]);
    }
    busy = lanes.any(busy);
    granted = lanes.sum(granted);
    const u64 now = lanes.broadcast(now_ns(), 0), spent = now - k.now_ns;
    const bool idle = !busy && granted == k.granted && !has_looks(lanes, a);
    k.now_ns = now;
    k.granted = granted;
    if (!idle)
        k.idle_since_ns = now;
    k.allowance = allowance_after(a.args, k.allowance, spent, idle);
    if (k.reason == WM_EXIT_NONE) {
        k.reason = reason_to_leave(lanes, a, k);
        if (k.reason != WM_EXIT_NONE && lanes.rank() == 0)
            store_relaxed_cta(&a.flags[flag_closing], u64{1});
    }
    if (lanes.rank() == 0) {
        const u32 flag = busy ? flag_work : flag_idle;
        store_relaxed_cta(&a.flags[flag], load_relaxed_cta(&a.flags[flag]) + spent);
        store_relaxed_cta(&a.flags[flag_allowance], k.allowance);
        store_relaxed_cta(&a.flags[flag_rounds], ++k.turns);
    }
    if (lanes.any(here))
        return true;
    if (k.reason == WM_EXIT_PARK && !park(lanes, a))
        k.reason = WM_EXIT_NEWS;
    if (can_park(a.args) && (k.reason == WM_EXIT_NEWS || k.reason == WM_EXIT_RESIDENCY))
        leave_wanted(lanes, a);
    if (lanes.rank() == 0)
        store_release_cta(&a.flags[flag_leave], u64{k.reason}); // RELEASE, acquired in inbox_turn and scan_turn
    return false;
}

// One turn of scanner `part` of `parts`. False when the launch is over.
template <class L> WM_FN bool scan_turn(L lanes, arbiter& a, u32 part, u32 parts) {
    scan(lanes, a, a.device_side, part, parts);
    return lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0) == WM_EXIT_NONE; // ACQUIRE of keep_turn
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
    const u64 reason = lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0); // ACQUIRE of keep_turn
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
    const u64 stop = load_relaxed_sys(&at<wm_control>(a.args.control)->stop.rung);
    scan(lanes, a, a.host_side, 0, 1);
    if (stop && lanes.rank() == 0)
        store_relaxed_cta(&a.flags[flag_stop], stop);
    lanes.sync();
    return true;
}

enum class served : u32 { left, nothing, grant };

// One turn.
template <class H, class L> WM_FN served serve_turn(L lanes, arbiter& a, u32 server) {
    const u64 turn = lanes.broadcast(load_relaxed_cta(&a.granted[server]), 0);
    const bool closing = lanes.any(load_relaxed_cta(&a.flags[flag_closing]) != 0);
    const u32 module = closing || !journal_has_room(lanes, a, server) ? no_module : claim(lanes, a, turn);
    if (module != no_module) {
        const u64 begin_ns = now_ns();
        if (lanes.rank() == 0) {
            store_relaxed_cta(&a.grants[server].since_ns, begin_ns);
            store_relaxed_cta(&a.grants[server].module_plus_one, u64{module} + 1);
        }
        if (a.args.servers == 0)
            telemetry_grants(lanes, a); // this thread is the inbox too: nobody else could say so meanwhile
        run_grant<H>(lanes, a, server, module, begin_ns);
        disown(lanes, a, module);
        if (lanes.rank() == 0) {
            store_relaxed_cta(&a.grants[server].module_plus_one, u64{0});
            store_relaxed_cta(&a.granted[server], turn + 1);
        }
        return served::grant;
    }
    if (!closing)
        return served::nothing;
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_cta(&a.grants[server].module_plus_one, u64{WM_GRANT_LEFT}); // RELEASE, acquired in keep_turn
    return served::left;
}

} // namespace warpmail

#endif
