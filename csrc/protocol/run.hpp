// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Running a grant: the steps of one module, and what they count.
#ifndef WARPMAIL_PROTOCOL_RUN_HPP
#define WARPMAIL_PROTOCOL_RUN_HPP

#include "protocol/context.hpp"

namespace warpmail {

// Adds what has been tallied to a module's counters.
template <class L> WM_FN void count(L lanes, const arbiter& a, u32 module, tally& t) {
    if (lanes.rank() == 0 && t.steps != 0) {
        wm_module_stats* s = at<wm_module_stats>(a.args.module_stats) + module;
        add_relaxed_gpu(&s->steps, u64{t.steps});
        add_relaxed_gpu(&s->records_in, u64{t.records_in});
        add_relaxed_gpu(&s->records_out, u64{t.records_out});
    }
    t = {};
}

// Runs one grant: at least one step, then more while the rule still holds, up to the module's batch. The module is
// owned by this server, and `grants` says since when; `found` at its inputs. Whether the last step moved a record. What
// it journalled and left in `kept` is the caller's to finish (finish_grant).
template <class H, bool Taps = true, class L>
WM_INLINED bool run_grant(L lanes, arbiter& a, u32 server, u32 module, const found_records<L>& found,
                          kept_records<L>& kept, tally& t) {
    const module_brief& mod = a.modules[module];
    context<L, Taps> c(lanes, a, server, module, found, kept);
    u32 steps = 0;
    bool moved = false;
    for (bool more = true; more;) {
        const u32 before = c.moved();
        H::step(c, mod.handler);
        lanes.sync();
        c.flush();
        steps++;
        moved = c.moved() != before;
        if (!moved)
            c.reject(WM_REJECT_NO_PROGRESS);
        // Whoever has found all that there was looks at the same places next.
        more = moved && !found.whole && may_step(lanes, a, mod);
        bool last = steps >= mod.batch || !moved;
        if (Taps && more && !last) {
            settle_kept(lanes, a, server, kept);
            last = !journal_has_room(lanes, a, server);
        }
        if (last) {
            // What is left is somebody else's turn first; without progress, only news are worth another look.
            if (more && lanes.rank() == 0)
                mark(a, module);
            break;
        }
    }
    t.steps += steps;
    c.add_to(t);
    // By lane 0, which has stored the beginning. Added at once: sums of times would take up two registers.
    if (lanes.rank() == 0)
        add_relaxed_gpu(&at<wm_module_stats>(a.args.module_stats)[module].busy_ns,
                        now_ns() - load_relaxed_cta(&a.grants[server].since_ns));
    return moved;
}

} // namespace warpmail

#endif
