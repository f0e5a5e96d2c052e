// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A batch of a server's: what follow_some does of it, without the mailbox's own end.
#ifndef WARPMAIL_TESTS_TSAN_BATCHES_HPP
#define WARPMAIL_TESTS_TSAN_BATCHES_HPP

#include "protocol/journal.hpp"

// Journals up to `most` records of mailbox m, from `followed` on, into the ring; gives their number.
template <class L>
warpmail::u32 journal_batch(L lanes, warpmail::arbiter& a, warpmail::u32 ring, warpmail::u32 m, warpmail::u32 most) {
    const warpmail::u64 room = warpmail::ring_room(lanes, a.journals[ring], most);
    const warpmail::u32 limit = room < most ? static_cast<warpmail::u32>(room) : most;
    const warpmail::u32 n = warpmail::carry_ready(lanes, warpmail::passing_records{a, ring, m}, limit);
    lanes.sync();
    if (n != 0 && lanes.rank() == 0)
        warpmail::count_journalled(a, ring, m, n);
    lanes.sync();
    return n;
}

#endif
