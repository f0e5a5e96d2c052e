// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Running a grant: the steps of one module, and what they count.
#ifndef WARPMAIL_PROTOCOL_RUN_HPP
#define WARPMAIL_PROTOCOL_RUN_HPP

#include "protocol/context.hpp"

namespace warpmail {

// Adds what has been tallied, and a time, to a module's counters. A lane has one of them.
template <class L> WM_FN void count(L lanes, const arbiter& a, u32 module, tally& t, u64 busy_ns) {
    u64* const counters = &at<wm_module_stats>(a.args.module_stats)[module].steps;
    for (u32 i = lanes.rank(); i < 4; i += lanes.width()) {
        const u32 n = i == 0 ? t.steps : i == 1 ? t.records_in : t.records_out;
        add_relaxed_gpu(counters + i, i == 3 ? busy_ns : n);
    }
    t = {};
}
static_assert(offsetof(wm_module_stats, steps) == 0 && offsetof(wm_module_stats, records_in) == 8 &&
                  offsetof(wm_module_stats, records_out) == 16 && offsetof(wm_module_stats, busy_ns) == 24,
              "the counters that count adds to lie side by side");

// How long the grant that a server holds has lasted.
WM_FN u64 held_ns(const arbiter& a, u32 server) {
    return now_ns() - load_relaxed_cta(&a.grants[server].since_ns);
}

// Runs one grant: at least one step, then more while the rule still holds, up to the module's batch. The module is
// owned by this server; `found` at its inputs. Whether the last step moved a record. What it gave and left in `given`
// is the caller's to tell of (chain.hpp).
template <class H, taps Taps = all_taps, class L>
WM_INLINED bool run_grant(L lanes, arbiter& a, u32 server, u32 module, const found_records<L>& found,
                          given_record<L>& given, tally& t) {
    const module_brief& mod = a.modules[module];
    context<L, Taps> c(lanes, a, server, module, found);
    u32 steps = 0;
    bool moved = false;
    for (bool next = true;;) {
        c.journal(next);
        if (!next)
            break;
        if (Taps == all_taps && steps != 0 && !journal_has_room(lanes, a, server)) {
            if (lanes.rank() == 0)
                mark(a, module);
            break;
        }
        const u32 before = c.moved();
        H::step(c, mod.handler);
        lanes.sync();
        c.flush();
        steps++;
        moved = c.moved() != before;
        if (!moved)
            c.reject(WM_REJECT_NO_PROGRESS);
        // Whoever has found all that there was looks at the same places next.
        const bool more = moved && !found.whole && may_step<Taps>(lanes, a, mod);
        next = more && steps < mod.batch;
        // What is left is somebody else's turn first; without progress, only news are worth another look.
        if (more && !next && lanes.rank() == 0)
            mark(a, module);
        if (next)
            c.tell();
    }
    given = c.given();
    t.steps += steps;
    c.add_to(t);
    return moved;
}

} // namespace warpmail

#endif
