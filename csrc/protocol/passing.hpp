// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Records on their way from a tapped mailbox to a journal ring: which they are, and where they go.
#ifndef WARPMAIL_PROTOCOL_PASSING_HPP
#define WARPMAIL_PROTOCOL_PASSING_HPP

#include "protocol/record.hpp"

namespace warpmail {

// From here on a mailbox's slots are long: shorter ones are few lines (pass_lines.hpp), and their loads as few.
constexpr u32 long_stride = 1024;

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
    // Its number, or its index.
    WM_FN u64 count(bool number, u32 n) const {
        return load_relaxed_cta(number ? &a.tapped[m].taken : &a.followed[m]) + n + number;
    }
    WM_FN u64 time_ns() const {
        return load_relaxed_cta(&a.journals[server].batch_ns);
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
    WM_FN void announce(u32 n) const {
        announce_tensor(a, server, place(n));
    }
    // What follows from these is reckoned anew behind this.
    WM_FN void forget() {
        m = forgotten(m);
    }
};

// A batch of records passes now.
template <class L> WM_FN void begin_batch(L lanes, const arbiter& a, u32 ring) {
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.journals[ring].batch_ns, now_ns());
    lanes.sync();
}

// Who sees a descriptor in the ring sees the tensor, and it is announced. Other records point to nothing, and a fence
// here would wait for the bus.
template <class L, class R> WM_FN void pass_descriptor(L lanes, R& r, u32 n) {
    fence_acquire(r.box().scope);
    if (lanes.rank() == 0)
        r.announce(n);
}

} // namespace warpmail

#endif
