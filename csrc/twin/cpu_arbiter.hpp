// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The arbiter on the CPU: one thread keeps, is the inbox, claims and hands grants to `Steps` (protocol/hand.hpp). One
// call is one launch, as with the arbiters that run their handlers themselves. All its tables are in host memory.
#ifndef WARPMAIL_TWIN_CPU_ARBITER_HPP
#define WARPMAIL_TWIN_CPU_ARBITER_HPP

#include <new>
#include <vector>

#include "protocol/hand.hpp"
#include "twin/idle.hpp"

namespace warpmail {

// Grants that have ended or were given since the arbiter began; when it moves, the arbiter is not idle.
WM_FN u64 activity(const std::vector<handed>& servers) {
    u64 sum = 0;
    for (const handed& h : servers)
        sum += 2 * h.state.turns + (h.module != no_module);
    return sum;
}

// `sleeps`: whether it may sleep when it is idle; one that parks never does before it parks. Returns 0, or
// WM_BAD_ARGUMENT when the arguments cannot be, WM_FULL when memory is short, WM_STOPPING when a step failed: then it
// has left where it stood.
template <class Steps> int cpu_arbiter(const wm_arbiter_args* args, Steps& steps, bool sleeps) noexcept {
    if (args == nullptr || !args_are_valid(*args) || args->plan == 0)
        return WM_BAD_ARGUMENT;
    try {
        const one_lane lanes;
        arbiter a(*args);
        const u64 begin_ns = now_ns();
        u64 kept_bytes;
        std::vector<u64> memory(place(a, nullptr, kept_bytes) / 8 + 2, 0xA5A5A5A5A5A5A5A5ull); // what was there before
        u8* const base = reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(memory.data())));
        place(a, base, kept_bytes);
        begin(lanes, a, base, begin_ns, {lanes, a.args});
        std::vector<handed> servers;
        for (u32 s = 0; s < server_count(*args); s++)
            servers.push_back(hand_begin(a, s));
        keep_state k = keep_begin(lanes, a, begin_ns);
        inbox_state b = inbox_begin(lanes, a);
        for (u32 part = 0; part < (args->scanners ? args->scanners : 1); part++)
            scan_begin(lanes, a, part, 1); // of nothing: every word is the inbox's
        idle_backoff idle(sleeps && !can_park(*args));
        u64 before = activity(servers);
        for (bool keeping = true; inbox_turn(lanes, a, b);) {
            for (u32 s = 0; s < servers.size(); s++) {
                if (!hand_turn(a, steps, servers.data(), s))
                    return WM_STOPPING;
            }
            if (keeping)
                keeping = keep_turn(lanes, a, k);
            const u64 now = activity(servers);
            if (now != before || !keeping)
                idle.reset();
            else
                idle.wait();
            before = now;
        }
        leave_image(lanes, a, base);
        return WM_OK;
    } catch (const std::bad_alloc&) {
        return WM_FULL;
    }
}

} // namespace warpmail

#endif
