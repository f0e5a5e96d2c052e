// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Handlers that come with the library; also the smallest example of a handler set.
//   0 relay    takes one record from each input that has one and gives it to every output, unchanged
//   1 discard  takes what waits at each input, up to 16 records
#ifndef WARPMAIL_PROTOCOL_BUILTIN_HPP
#define WARPMAIL_PROTOCOL_BUILTIN_HPP

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 builtin_relay = 0;
constexpr u32 builtin_discard = 1;

struct builtin_handlers {
    template <class C> WM_FN static void step(C& c, u32 handler) {
        for (u32 i = 0; i < c.inputs(); i++) {
            // One lane's view of the far index decides for all.
            if (c.lanes.broadcast(static_cast<u32>(c.waiting(i) > 0), 0) == 0)
                continue;
            if (handler == builtin_discard && c.skip(i, 16) > 0)
                continue;
            u32 len = 0, type = 0;
            if (c.pop(i, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
                continue;
            c.lanes.sync();
            for (u32 o = 0; handler == builtin_relay && o < c.outputs(); o++)
                c.push(o, c.scratch(), len, type);
            c.lanes.sync();
        }
    }
};

} // namespace warpmail

#endif
