// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Records on their way from a tapped mailbox to a journal ring: which they are, and where they go.
#ifndef WARPMAIL_PROTOCOL_PASSING_HPP
#define WARPMAIL_PROTOCOL_PASSING_HPP

#include "protocol/record.hpp"

namespace warpmail {

WM_FN u8* stage_of(const arbiter& a, u32 ring) {
    return a.stage + ring * a.args.journal_stage_bytes;
}
// Before anybody learns of a tensor whose descriptor is the record `idx` of the server's ring (R3); by lane 0.
WM_FN void announce_tensor(const arbiter& a, u32 server, u64 idx) {
    store_relaxed_sys(&ring_header(a.journals[server].ring)->announced, idx + 1);
}

// Records that wait in a mailbox, on their way to the ring of a server. What working memory knows is read there each
// time, which keeps the registers of the kernel down.
struct passing_records {
    const arbiter& a;
    u32 server, m;

    WM_FN const wm_mailbox& box() const {
        return a.rows[m];
    }
    // Index of record n in the mailbox.
    WM_FN u64 index(u32 n) const {
        return load_relaxed_cta(&a.followed[m]) + n;
    }
    // Its index in the ring.
    WM_FN u64 place(u32 n) const {
        return load_relaxed_cta(&a.journals[server].write_idx) + n;
    }
    WM_FN u8* slot(u32 n) const {
        return ring_slot(a.journals[server].ring, place(n));
    }
    WM_FN wm_journal_head head(u32 n, u32 len, u32 type, u64 time_ns) const {
        return {load_relaxed_cta(&a.tapped[m].taken) + n + 1,
                index(n),
                time_ns,
                box().mailbox_id,
                static_cast<uint16_t>(len),
                static_cast<uint16_t>(type)};
    }
};

// Who sees a descriptor in the ring sees the tensor, and it is announced. Other records point to nothing, and a fence
// here would wait for the bus.
template <class L> WM_FN void pass_descriptor(L lanes, const passing_records& r, u32 n) {
    fence_acquire(r.box().scope);
    if (lanes.rank() == 0)
        announce_tensor(r.a, r.server, r.place(n));
}

} // namespace warpmail

#endif
