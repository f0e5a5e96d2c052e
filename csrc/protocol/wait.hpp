// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Bounded waits. Every wait takes a budget in nanoseconds, is bounded in release builds too, and says how it ended.
#ifndef WARPMAIL_PROTOCOL_WAIT_HPP
#define WARPMAIL_PROTOCOL_WAIT_HPP

#include "protocol/mailbox.hpp"

namespace warpmail {

// Calls `attempt` (bool()) until it is true or the budget is spent; at least once. All lanes leave together. The clock
// is read every 8 attempts: a budget is kept to within 8 attempts and one tick of the clock.
template <class L, class F> WM_FN bool wait_until(L lanes, u64 budget_ns, F&& attempt) {
    u64 begin = 0;
    for (u32 looks = 0;; looks++) {
        if (attempt())
            return true;
        if (looks % 8 == 0) {
            const u64 now = now_ns();
            if (looks == 0)
                begin = now;
            if (lanes.any(looks != 0 && now - begin >= budget_ns))
                return false;
        }
        if (lanes.rank() == 0)
            pause_after(looks);
    }
}

// try_push, waiting for a free slot up to budget_ns; WM_TIMEOUT in place of WM_FULL.
template <order O = order::ordered, class L>
WM_FN wm_status push(L lanes, wm_producer& p, const void* src, u32 len, u32 type, u64 budget_ns) {
    wm_status s = WM_FULL;
    wait_until(lanes, budget_ns, [&] {
        s = try_push<O>(lanes, p, src, len, type);
        return s != WM_FULL;
    });
    return s == WM_FULL ? WM_TIMEOUT : s;
}

// try_pop, waiting for a record up to budget_ns; WM_TIMEOUT in place of WM_EMPTY.
template <order O = order::ordered, class L>
WM_FN wm_status pop(L lanes, wm_consumer& c, void* dst, u32 dst_bytes, u32& len, u32& type, u64 budget_ns) {
    wm_status s = WM_EMPTY;
    wait_until(lanes, budget_ns, [&] {
        s = try_pop<O>(lanes, c, dst, dst_bytes, len, type);
        return s != WM_EMPTY;
    });
    return s == WM_EMPTY ? WM_TIMEOUT : s;
}

} // namespace warpmail

#endif
