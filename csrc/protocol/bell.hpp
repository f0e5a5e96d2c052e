// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Telling the arbiter of news, and waking it if it is parked. The other half is park.hpp; the two together are the
// model tests/model/park.pml, whose step names stand here: R1-R3 for device ends, H1-H3 for host ends.
//
// No wake-up is lost, whoever is slow:
//   a device end  its readiness word is exchanged, and the parking arbiter sets a bit in the same word. One of the two
//                 comes first: either the end finds the bit and rings, or the arbiter finds the new index and stays.
//                 Besides, it rings at once where it sees that the arbiter is parked.
//   a host end    host and device share no read-modify-write. Each stores, fences and loads what the other stores.
// Ringing is storing 1 into a door. Late or double rings only start a launch that finds nothing to do.
#ifndef WARPMAIL_PROTOCOL_BELL_HPP
#define WARPMAIL_PROTOCOL_BELL_HPP

#include "protocol/atomics.hpp"

namespace warpmail {

// The index in a readiness word of a list with this scope, and back.
WM_FN u64 index_in(u64 word, u32 scope) {
    return scope == WM_SCOPE_GPU ? word >> 1 : word;
}
WM_FN u64 device_word(u64 idx) {
    return idx << 1;
}

WM_FN void open_door(u64 doors, u64 credit) {
    store_relaxed_sys(&at<wm_doorbell>(doors)[credit % WM_DOORS].rung, u64{1});
}

// `parked` was read from the bell.
WM_FN void ring(const wm_bell* bell, u64 parked) {
    if (parked)
        open_door(bell->doors, parked - 1); // R3, H3
}

// By one thread of a device end, after its slots. The exchange's answer is used at once: a warp that goes on to wait
// for a reply would wait longer for that. Whether to ring, and at which door, is looked up before the exchange, so that
// the way to a parked arbiter is one load; that may be an old answer, so it is looked up again behind the exchange.
WM_FN void publish_from_device(u64* word, u64 idx, u64 bell) {
    if (bell == 0)
        return store_relaxed_gpu(word, device_word(idx));
    const wm_bell* b = at<const wm_bell>(bell);
    const u64 early = load_relaxed_gpu(&b->parked), doors = load_relaxed_gpu(&b->doors); // R1a
    const u64 before = exchange_relaxed_gpu(word, device_word(idx));                     // R1
    if (early)
        open_door(doors, early - 1); // R1b
    if (before & WM_PARK_BIT) {
        fence_acquire(WM_SCOPE_GPU);                     // ACQUIRE of P3: `parked` is at least as new as the bit
        const u64 parked = load_relaxed_gpu(&b->parked); // R2
        if (parked != early)
            ring(b, parked); // R3
    }
}

WM_FN void publish_from_host(u64* word, u64 idx, u64 bell) {
    store_relaxed_sys(word, idx); // H1
    if (bell == 0)
        return;
    const wm_bell* b = at<const wm_bell>(bell);
    fence_sc_sys();                        // H2, with P3
    ring(b, load_relaxed_sys(&b->parked)); // H3
}

WM_FN void publish(u64* word, u64 idx, u64 bell, u32 side) {
    if (side == WM_SIDE_HOST)
        publish_from_host(word, idx, bell);
    else
        publish_from_device(word, idx, bell);
}

} // namespace warpmail

#endif
