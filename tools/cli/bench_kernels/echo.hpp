// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The resident modules of `grant.*`, `park.*` and `arb.*`: 0 sends a record back, self-contained; 1 the same with the
// ordering contract; 2 as 0, with the times when it began, when its launch began and was ready, and when it was
// granted, in the payload words from the second on; 3 works for a while and notes when.
#ifndef WARPMAIL_BENCH_ECHO_HPP
#define WARPMAIL_BENCH_ECHO_HPP

#include "protocol/context.hpp"

namespace bench {

struct echo_handlers {
    template <warpmail::order O, class C> WM_FN static void echo(C& c) {
        const warpmail::u32 ready = c.ready();
        typename C::held r;
        if (ready != 0 && c.template take<O>(warpmail::lowest_bit(ready), r) == WM_OK)
            c.template give<O>(0, r);
    }
    template <class C> WM_FN static void stamp(C& c) {
        const warpmail::u64 began = warpmail::now_ns();
        warpmail::u32 len = 0, type = 0;
        if (c.template pop<warpmail::order::self_contained>(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            warpmail::u64* const word = reinterpret_cast<warpmail::u64*>(c.scratch());
            word[1] = began;
            word[2] = c.launch_began_ns();
            word[3] = c.launch_ready_ns();
            word[4] = c.granted_ns();
        }
        c.lanes.sync();
        c.template push<warpmail::order::self_contained>(0, c.scratch(), len, type);
    }
    // A record is {number, hops so far, {began, ended} of each}. State: 0 nanoseconds to work  1 hops after which a
    // record leaves by the last output, 0: it goes to all  2 not 0: takes one from each input, and counts as the last
    // end before it the latest of theirs
    template <class C> WM_FN static void work(C& c) {
        using warpmail::u32;
        using warpmail::u64;
        const u64 began = warpmail::now_ns();
        const u64* s = c.template state<u64>();
        u64* const record = reinterpret_cast<u64*>(c.scratch());
        u32 len = 0, type = 0, taken = 0;
        for (u32 i = 0; i < c.inputs() && (taken == 0 || s[2] != 0); i++) {
            if (c.lanes.broadcast(static_cast<u32>(c.waiting(i) > 0), 0) == 0)
                continue;
            u64* const into = record + (taken ? 32 : 0);
            if (c.pop(i, into, 248, len, type) != WM_OK)
                continue;
            c.lanes.sync();
            u64* const last = record + 1 + 2 * record[1];
            if (c.lanes.rank() == 0 && taken && into[1 + 2 * into[1]] > *last)
                *last = into[1 + 2 * into[1]];
            c.lanes.sync();
            taken++;
        }
        if (taken == 0)
            return;
        const u64 hops = record[1], leaves_after = s[1];
        while (c.lanes.any(warpmail::now_ns() - began < s[0]))
            warpmail::pause();
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            record[2 + 2 * hops] = began;
            record[3 + 2 * hops] = warpmail::now_ns();
            record[1] = hops + 1;
        }
        c.lanes.sync();
        const u32 outputs = c.outputs(), first = leaves_after != 0 && hops + 1 >= leaves_after ? outputs - 1 : 0;
        for (u32 o = first; o < (leaves_after != 0 ? first + 1 : outputs); o++)
            c.push(o, record, 248, type);
    }
    template <class C> WM_FN static void step(C& c, warpmail::u32 handler) {
        if (handler == 3)
            work(c);
        else if (handler == 0)
            echo<warpmail::order::self_contained>(c);
        else if (handler == 1)
            echo<warpmail::order::ordered>(c);
        else
            stamp(c);
    }
};

} // namespace bench

#endif
