// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What the arbiter tells the host: counters copied into pinned memory with plain relaxed stores, one writer. The host
// reads them without any driver call; each word is exact, words of one copy may be a moment apart.
#ifndef WARPMAIL_PROTOCOL_TELEMETRY_HPP
#define WARPMAIL_PROTOCOL_TELEMETRY_HPP

#include "protocol/arbiter.hpp"

namespace warpmail {

template <class L> WM_FN void copy_words(L lanes, u64* to, const u64* from, u64 n) {
    for (u64 i = lanes.rank(); i < n; i += lanes.width())
        store_relaxed_sys(to + i, load_relaxed_gpu(from + i));
}

// Whether the launch before left the SM until there was news, or until its share allowed the next.
WM_FN bool was_away(const arbiter& a) {
    const u64 reason = load_relaxed_cta(&a.kept[kept_exit]);
    return reason == WM_EXIT_PARK || reason == WM_EXIT_CLOSED;
}

template <class L> WM_FN void telemetry_begin(L lanes, arbiter& a, u64 now) {
    if (lanes.rank() != 0)
        return;
    if (was_away(a))
        add_kept(a, kept_parked_ns, now - load_relaxed_cta(&a.kept[kept_end_ns]));
    store_relaxed_sys(&at<wm_telemetry>(a.args.telemetry)->launches, launch_of(a) + 1);
}

// Who is being served.
template <class L> WM_FN void telemetry_grants(L lanes, arbiter& a) {
    wm_telemetry* t = at<wm_telemetry>(a.args.telemetry);
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        store_relaxed_sys(&t->grants_held[s].since_ns, load_relaxed_cta(&a.grants[s].since_ns));
        store_relaxed_sys(&t->grants_held[s].module_plus_one, load_relaxed_cta(&a.grants[s].module_plus_one));
    }
}

// What ends refused of mailboxes in device memory, whose headers the host cannot read: of the next `n` mailboxes. Those
// that refused nothing cost two loads, which are under way together.
constexpr u32 refused_at_once = 32;
template <class L> WM_FN void telemetry_refused(L lanes, arbiter& a, u32 n) {
    const u32 first = static_cast<u32>(load_relaxed_cta(&a.kept[kept_refused]));
    const u32 all = a.args.n_mailboxes;
    for (u32 i = lanes.rank(); i < n; i += lanes.width()) {
        const u32 m = first + i < all ? first + i : first + i - all;
        const wm_mailbox& box = a.rows[m];
        if (box.scope != WM_SCOPE_GPU || load_relaxed_cta(&a.quarantined[m]) == 1 + WM_REJECT_HEADER)
            continue;
        const wm_refusals* ends = at<const wm_mailbox_header>(box.header)->refused;
        if (load_relaxed_gpu(&ends[0].all) + load_relaxed_gpu(&ends[1].all) == 0)
            continue;
        u64* to = reinterpret_cast<u64*>(&(at<wm_mailbox_stats>(a.args.mailbox_stats_out) + m)->refused);
        const u64 *producer = reinterpret_cast<const u64*>(ends), *consumer = reinterpret_cast<const u64*>(ends + 1);
        WM_ROLLED
        for (u32 w = 0; w < refusal_words; w++)
            store_relaxed_sys(to + w, load_relaxed_gpu(producer + w) + load_relaxed_gpu(consumer + w));
    }
    lanes.sync(); // every lane has read where it begins
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.kept[kept_refused], u64{first + n < all ? first + n : first + n - all});
}

// One copy of everything; of refusals a part, unless it is `whole`. `ends`: the last one of a launch.
template <class L> WM_FN void telemetry_write(L lanes, arbiter& a, u64 now, bool ends = false, bool whole = false) {
    wm_telemetry* t = at<wm_telemetry>(a.args.telemetry);
    u64 bad = 0;
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        wm_mailbox_stats* s = at<wm_mailbox_stats>(a.args.mailbox_stats_out) + m;
        const u64 w = load_relaxed_cta(&a.written[m]), c = load_relaxed_cta(&a.consumed[m]);
        const u64 depth = pending(a, m);
        if (depth > a.depth_max[m])
            a.depth_max[m] = static_cast<u32>(depth);
        store_relaxed_sys(&s->written, w);
        store_relaxed_sys(&s->consumed, c);
        store_relaxed_sys(&s->quarantine, u64{load_relaxed_cta(&a.quarantined[m])});
        const bool followed = a.args.journals != 0 && is_followed(a.boxes[m]);
        store_relaxed_sys(&s->behind, ends && followed ? to_follow(a, m, a.boxes[m]) : 0);
        if (a.depth_max[m] > load_relaxed_sys(&s->depth_max))
            store_relaxed_sys(&s->depth_max, a.depth_max[m]);
        bad += is_quarantined(a, m);
    }
    bad = lanes.sum(bad);
    if (a.args.plan == 0) // else the host copies headers for it
        telemetry_refused(lanes, a,
                          whole || a.args.n_mailboxes < refused_at_once ? a.args.n_mailboxes : refused_at_once);
    // Of an arbiter on the CPU: by the steps themselves.
    const bool serves = a.args.plan == 0;
    for (u32 m = lanes.rank(); serves && a.args.journals && m < a.args.n_mailboxes; m += lanes.width()) {
        if (a.boxes[m].tap == WM_TAP_NONE)
            continue; // nobody's, or of the steps of a stream module
        wm_tap_counts* counts = at<wm_tap_counts>(a.args.tap_counts) + m;
        store_relaxed_sys(&counts->taken, load_relaxed_cta(&a.tapped[m].taken));
        store_relaxed_sys(&counts->dropped, load_relaxed_cta(&a.tapped[m].dropped));
        store_relaxed_sys(&counts->ahead, is_ahead(a, m));
    }
    copy_words(lanes, at<u64>(a.args.module_stats_out), at<const u64>(a.args.module_stats),
               serves ? static_cast<u64>(a.args.n_modules) * (sizeof(wm_module_stats) / 8) : 0);
    telemetry_grants(lanes, a);
    u64 granted = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        const u64 turns = load_relaxed_cta(&a.granted[s]);
        store_relaxed_sys(&t->turns[s], turns);
        granted += turns;
    }
    granted = lanes.sum(granted);
    for (u32 c = lanes.rank(); c < WM_PRIORITIES; c += lanes.width())
        store_relaxed_sys(&t->cursor[c], u64{load_relaxed_cta(&a.cursor[c])});
    u64* counts = reinterpret_cast<u64*>(&t->budget);
    for (u32 i = lanes.rank(); i < budget_words; i += lanes.width())
        store_relaxed_sys(counts + i, load_relaxed_cta(&a.kept[kept_budget + i]));
    if (lanes.rank() == 0) {
        store_relaxed_sys(&t->rounds, load_relaxed_cta(&a.kept[kept_rounds]));
        store_relaxed_sys(&t->grants, granted);
        store_relaxed_sys(&t->work_ns, load_relaxed_cta(&a.kept[kept_work_ns]));
        store_relaxed_sys(&t->idle_poll_ns, load_relaxed_cta(&a.kept[kept_idle_ns]));
        store_relaxed_sys(&t->quarantined, bad);
        store_relaxed_sys(&t->allowance, load_relaxed_cta(&a.kept[kept_allowance]));
        store_relaxed_sys(&t->ahead, load_relaxed_cta(&a.kept[kept_ahead]));
        store_relaxed_sys(&t->parks, load_relaxed_cta(&a.kept[kept_parks]));
        store_relaxed_sys(&t->parked_ns, load_relaxed_cta(&a.kept[kept_parked_ns]));
        store_relaxed_sys(&t->heartbeat_ns, now);
    }
    lanes.sync();
}

// The last words of a launch. RELEASE of launches_ended: a host that acquires it sees the final counters.
template <class L> WM_FN void telemetry_end(L lanes, arbiter& a, u64 now, u64 reason) {
    wm_telemetry* t = at<wm_telemetry>(a.args.telemetry);
    if (lanes.rank() == 0) {
        store_relaxed_cta(&a.kept[kept_exit], reason);
        store_relaxed_cta(&a.kept[kept_end_ns], now);
        add_kept(a, kept_parks, reason == WM_EXIT_PARK);
    }
    lanes.sync();
    telemetry_write(lanes, a, now, true, reason == WM_EXIT_STOP);
    if (lanes.rank() == 0) {
        store_relaxed_sys(&t->exit_reason, reason);
        store_release_sys(&t->launches_ended, launch_of(a) + 1);
        add_kept(a, kept_launch, 1); // for the image
    }
}

} // namespace warpmail

#endif
