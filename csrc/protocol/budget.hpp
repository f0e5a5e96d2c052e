// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What the arbiter may cost while it has nothing to do: the token bucket of sm_share, and the counts of how limits were
// kept. The keeper's alone.
//
// Whatever the arbiter holds its SM for without work is idle polling: polling itself, but also the beginning and the
// leaving of a launch that somebody's news or the pacer started. The bucket fills with the time and idle polling
// empties it. While little is left the arbiter does not poll and parks at once; when it is overdrawn it leaves
// *closed*: the next launch begins when the bucket has filled again, and what has come meanwhile is served together.
#ifndef WARPMAIL_PROTOCOL_BUDGET_HPP
#define WARPMAIL_PROTOCOL_BUDGET_HPP

#include "protocol/arbiter.hpp"

namespace warpmail {

constexpr u64 whole_share = 1000000;         // sm_share_ppm of an SM's whole time; allowance counts millionths of a ns
constexpr u64 second_ns = 1000000000;        // over which sm_share is kept
constexpr u64 budget_tolerance = 10;         // a limit counts as missed when it is missed by more than a tenth
constexpr u64 longest_gain_ns = 10000000000; // longer is not distinguished: nothing takes so long to fill or to empty

// Polling without work that is always allowed: it catches what comes in bursts, and costs less than a launch.
constexpr u64 moment_ns = 2000;

WM_FN bool is_shared(const wm_arbiter_args& args) {
    return args.idle_spin_ns != 0 && args.sm_share_ppm < whole_share;
}

// How much may be kept for later, nanoseconds of polling: a spell of it or a millisecond, but no more than a twentieth
// of what the share is of a second, so that no second goes a tenth beyond it.
WM_FN u64 allowance_most(const wm_arbiter_args& args) {
    const u64 spell = args.idle_spin_ns > 1000000 ? args.idle_spin_ns : 1000000;
    const u64 twentieth = args.sm_share_ppm * (second_ns / whole_share / 20);
    return spell < twentieth ? spell : twentieth;
}

// The bucket after `passed_ns`, of which `idle_ns` were idle polling. A debt beyond a second's share is forgotten.
WM_FN int64_t allowance_after(const wm_arbiter_args& args, int64_t allowance, u64 passed_ns, u64 idle_ns) {
    const u64 passed = passed_ns < longest_gain_ns ? passed_ns : longest_gain_ns;
    const u64 idle = idle_ns < longest_gain_ns ? idle_ns : longest_gain_ns;
    const int64_t most = static_cast<int64_t>(allowance_most(args) * whole_share);
    const int64_t least = -static_cast<int64_t>(args.sm_share_ppm * second_ns);
    allowance += static_cast<int64_t>(passed * args.sm_share_ppm);
    allowance = (allowance < most ? allowance : most) - static_cast<int64_t>(idle * whole_share);
    return allowance > least ? allowance : least;
}

// What a launch costs besides work, of late; with `newest`. At most a quarter of what may be kept, so that twice as
// much can be saved for one.
WM_FN u64 launch_cost_after(const wm_arbiter_args& args, u64 before, u64 newest) {
    const u64 slowly = before - before / 8, most = allowance_most(args) / 4;
    const u64 cost = newest > slowly ? newest : slowly;
    return cost < moment_ns ? moment_ns : cost < most ? cost : most;
}

// How long an overdrawn bucket takes until it has what a launch costs that finds nothing, and some to spare.
WM_FN u64 closed_for(const wm_arbiter_args& args, int64_t allowance, u64 launch_cost) {
    const int64_t lacking = static_cast<int64_t>(2 * launch_cost * whole_share) - allowance;
    return lacking > 0 && args.sm_share_ppm != 0 ? static_cast<u64>(lacking) / args.sm_share_ppm : 0;
}

WM_FN void count_budget(arbiter& a, u32 which, u64 n) {
    add_kept(a, kept_budget + which, n);
}
// Counts one case of a limit missed, if it was: `took` of `limit`, both in nanoseconds.
WM_FN void count_missed(arbiter& a, u32 which, u64 took, u64 limit, u64 slack) {
    if (took <= limit + limit / budget_tolerance + slack)
        return;
    count_budget(a, which, 1);
    count_budget(a, which + 1, took - limit);
}

// A spell of polling is over. By one lane.
WM_FN void count_spell(arbiter& a, u64 polled_ns) {
    if (a.args.idle_spin_ns != 0)
        count_missed(a, budget_over_spin, polled_ns, a.args.idle_spin_ns, moment_ns);
}

// A launch is over, all but its leaving. By one lane.
WM_FN void count_launch(arbiter& a, u64 begin_ns, u64 now, u32 reason) {
    count_budget(a, budget_residency_ends, reason == WM_EXIT_RESIDENCY);
    count_budget(a, budget_closings, reason == WM_EXIT_CLOSED);
    count_missed(a, budget_over_residency, now - begin_ns, a.args.residency_ns, 0);
    const u64 begun = load_relaxed_cta(&a.kept[kept_window_ns]), idle = load_relaxed_cta(&a.kept[kept_idle_ns]);
    if (begun != 0 && now - begun < second_ns)
        return;
    if (begun != 0 && is_shared(a.args)) {
        const u64 allowed = (now - begun) / 1000 * a.args.sm_share_ppm / (whole_share / 1000);
        count_missed(a, budget_over_share, idle - load_relaxed_cta(&a.kept[kept_window_idle_ns]), allowed, 0);
    }
    store_relaxed_cta(&a.kept[kept_window_ns], now);
    store_relaxed_cta(&a.kept[kept_window_idle_ns], idle);
}

} // namespace warpmail

#endif
