// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Leaving the SM until somebody has news, and leaving it for a moment. The keeper does it, when no server is left. The
// other half is bell.hpp; the two together are the model tests/model/park.pml, whose step names stand here.
//
// Launch n uses credit n: the kernel starts when the front end finds door n % WM_DOORS open, and the launch before
// ended. A launch that parks leaves the next door closed and says which it is; one that leaves for any other reason
// says that the next launch is wanted, and opens its door if the launcher has cleared it already; else the launcher
// opens it. One that has overdrawn its share leaves closed: it announces nothing, so nobody rings, and the launcher
// opens the door when the time has come.
#ifndef WARPMAIL_PROTOCOL_PARK_HPP
#define WARPMAIL_PROTOCOL_PARK_HPP

#include "protocol/arbiter.hpp"

namespace warpmail {

WM_FN bool can_park(const wm_arbiter_args& args) {
    return args.idle_spin_ns != 0;
}

// P1 Whether there is a door to ring at.
WM_FN bool may_park(const arbiter& a) {
    return load_relaxed_sys(&at<wm_control>(a.args.control)->credits) >= launch_of(a) + 2;
}
// Whether the next launch stands behind that door already; else a ring is answered when the launcher comes to it.
WM_FN bool is_backed(const arbiter& a) {
    return load_relaxed_sys(&at<wm_control>(a.args.control)->enqueued) >= launch_of(a) + 2;
}

// Whether every readiness word has been looked at in this launch.
WM_FN bool has_looked(const arbiter& a) {
    const u32 scanners = a.args.scanners ? a.args.scanners : 1;
    return load_relaxed_cta(a.looked) == (1u << (scanners + 1)) - 1;
}

// Whether some module's rule or credit may have changed and nobody has looked yet.
template <class L> WM_FN bool has_looks(L lanes, const arbiter& a) {
    const u32 words = classes_of(a) * words_for(a.args.n_modules);
    u32 bits = 0;
    for (u32 w = lanes.rank(); w < words; w += lanes.width())
        bits |= load_relaxed_cta(&a.look[w]);
    return lanes.any(bits != 0);
}

// Whether a readiness word says what its scan has seen. ACQUIRE of the scan's store.
WM_FN bool was_seen(const watch_list& w, u32 i, u64 word) {
    return load_acquire_cta(&w.seen[i]) == folded(index_in(word, w.scope));
}

// Announces that the arbiter is parked, and looks once more at everything. True: there is nothing new, and whoever has
// news from here on opens the next door. False: there is; leave_wanted then.
template <class L> WM_FN bool park(L lanes, arbiter& a) {
    if (lanes.rank() == 0) {
        store_relaxed_gpu(&at<wm_bell>(a.args.device_bell)->parked, launch_of(a) + 2); // P2
        store_relaxed_sys(&at<wm_bell>(a.args.host_bell)->parked, launch_of(a) + 2);
    }
    lanes.sync();
    fence_sc_sys(); // P3: a release for the marks of P4; with H2 for the loads of P5
    bool news = false;
    for (u32 i = lanes.rank(); i < a.device_side.n; i += lanes.width()) {
        u64* word = const_cast<u64*>(a.device_side.words) + i;
        news = !was_seen(a.device_side, i, or_relaxed_gpu(word, WM_PARK_BIT)) || news; // P4
    }
    for (u32 i = lanes.rank(); i < a.host_side.n; i += lanes.width())
        news = !was_seen(a.host_side, i, load_relaxed_sys(a.host_side.words + i)) || news; // P5
    return !lanes.any(news) && !has_looks(lanes, a);                                       // P6
}

// The arbiter parks: what was granted last is likely to be what it is woken for, so servers of the next launch look
// there at once, while its scan is still under way. Only where nothing waits: what a step has left is no news.
template <class L> WM_FN void expect_again(L lanes, const arbiter& a) {
    for (u32 c = lanes.rank(); a.args.n_modules != 0 && c < classes_of(a); c += lanes.width()) {
        const u32 next = load_relaxed_cta(&a.cursor[c]), last = (next ? next : a.args.n_modules) - 1;
        const module_brief& mod = a.modules[last];
        if (mod.priority == c && mod.kind == WM_KIND_RESIDENT && mod.n_inputs == 1 && pending(a, mod.inputs[0]) == 0 &&
            !is_quarantined(a, mod.inputs[0]))
            mark(a, last);
    }
    lanes.sync();
}

// Says that the next launch should begin at once.
template <class L> WM_FN void leave_wanted(L lanes, arbiter& a) {
    if (lanes.rank() == 0) {
        store_relaxed_sys(&at<wm_telemetry>(a.args.telemetry)->wanted, launch_of(a) + 2); // L1
        fence_sc_sys();                                                                   // L2, with C3
        if (may_park(a))                                                                  // L3
            open_door(a.args.doors, launch_of(a) + 1);
    }
    lanes.sync();
}

// Says that the next launch should begin in `ns`, and not before, whoever has news. The launcher opens its door (D2).
template <class L> WM_FN void leave_closed(L lanes, arbiter& a, u64 ns) {
    wm_telemetry* t = at<wm_telemetry>(a.args.telemetry);
    if (lanes.rank() == 0) {
        store_relaxed_sys(&t->closed_ns, ns);
        store_release_sys(&t->due, launch_of(a) + 2); // D1. RELEASE of closed_ns, acquired by the launcher
    }
    lanes.sync();
}

} // namespace warpmail

#endif
