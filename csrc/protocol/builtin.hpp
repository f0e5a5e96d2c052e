// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Handlers that come with the library; also the smallest example of a handler set.
//   0 relay    takes one record from each input that has one and gives it to every output, unchanged
//   1 discard  takes what waits at each input, up to 32 records
#ifndef WARPMAIL_PROTOCOL_BUILTIN_HPP
#define WARPMAIL_PROTOCOL_BUILTIN_HPP

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 builtin_relay = 0;
constexpr u32 builtin_discard = 1;

struct builtin_handlers {
    template <class C> WM_FN static void step(C& c, u32 handler) {
        for (u32 ready = c.ready(); ready != 0; ready &= ready - 1) {
            const u32 i = lowest_bit(ready);
            if (handler == builtin_discard && c.skip(i, 32) > 0)
                continue;
            typename C::held r;
            if (c.take(i, r) != WM_OK)
                continue;
            for (u32 o = 0; handler == builtin_relay && o < c.outputs(); o++)
                c.give(o, r);
            c.lanes.sync();
        }
    }
};

} // namespace warpmail

#endif
