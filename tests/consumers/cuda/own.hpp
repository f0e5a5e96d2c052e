// SPDX-License-Identifier: Apache-2.0 OR MIT
// A handler that answers each record with what it found in it: {length, sum of the bytes, how many records so far}.
#ifndef CONSUMERS_OWN_HPP
#define CONSUMERS_OWN_HPP

#include <warpmail/handler.hpp>

constexpr warpmail::u32 own_sum = 3;

struct own_answer {
    uint64_t len, sum, seen;
};

struct own_handlers {
    template <class C> WM_FN static void step(C& c, warpmail::u32 handler) {
        if (handler != own_sum || c.state_bytes() < sizeof(uint64_t))
            return;
        warpmail::u32 len = 0, type = 0, sum = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        for (warpmail::u32 i = c.lanes.rank(); i < len; i += c.lanes.width())
            sum += c.scratch()[i];
        sum = c.lanes.sum(sum);
        c.lanes.sync();
        uint64_t* seen = c.template state<uint64_t>();
        if (c.lanes.rank() == 0) {
            ++*seen;
            *reinterpret_cast<own_answer*>(c.scratch()) = own_answer{len, sum, *seen};
        }
        c.lanes.sync();
        c.push(0, c.scratch(), sizeof(own_answer), type);
    }
};

#endif
