// A handler set of one's own: written once, for a warp on the device and for one thread on the twin.
#ifndef OWN_HANDLERS_HPP
#define OWN_HANDLERS_HPP

#include <warpmail/handler.hpp>

struct own_handlers {
    // 1. Called once per firing, by all lanes together. `handler` is the number from warpmail_module_options.
    template <class C> WM_FN static void step(C& c, warpmail::u32) {
        warpmail::u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        // 2. The lanes share the bytes: one source for 32 lanes and for one.
        for (warpmail::u32 i = c.lanes.rank(); i < len; i += c.lanes.width()) {
            const warpmail::u8 b = c.scratch()[i];
            c.scratch()[i] = b >= 'a' && b <= 'z' ? static_cast<warpmail::u8>(b - 32) : b;
        }
        // 3. The module's own memory, kept between steps: here it counts the bytes seen.
        warpmail::u64* seen = c.template state<warpmail::u64>();
        if (seen != nullptr && c.lanes.rank() == 0)
            *seen += len;
        c.lanes.sync();
        c.push(0, c.scratch(), len, type);
    }
};

#endif
