// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The resident modules of `grant.*` and `park.*`: 0 sends a record back, self-contained; 1 the same with the ordering
// contract; 2 as 0, with the time when it began in the second payload word.
#ifndef WARPMAIL_BENCH_ECHO_HPP
#define WARPMAIL_BENCH_ECHO_HPP

#include "protocol/context.hpp"

namespace bench {

struct echo_handlers {
    template <warpmail::order O, class C> WM_FN static void echo(C& c) {
        for (warpmail::u32 i = 0; i < c.inputs(); i++) {
            if (c.waiting(i) == 0)
                continue;
            warpmail::u32 len = 0, type = 0;
            if (c.template pop<O>(i, c.scratch(), c.scratch_bytes(), len, type) == WM_OK)
                c.template push<O>(0, c.scratch(), len, type);
            return;
        }
    }
    template <class C> WM_FN static void stamp(C& c) {
        const warpmail::u64 began = warpmail::now_ns();
        warpmail::u32 len = 0, type = 0;
        if (c.template pop<warpmail::order::self_contained>(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (c.lanes.rank() == 0)
            reinterpret_cast<warpmail::u64*>(c.scratch())[1] = began;
        c.lanes.sync();
        c.template push<warpmail::order::self_contained>(0, c.scratch(), len, type);
    }
    template <class C> WM_FN static void step(C& c, warpmail::u32 handler) {
        if (handler == 0)
            echo<warpmail::order::self_contained>(c);
        else if (handler == 1)
            echo<warpmail::order::ordered>(c);
        else
            stamp(c);
    }
};

} // namespace bench

#endif
