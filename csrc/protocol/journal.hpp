// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Taps: records of chosen mailboxes are copied into a ring in pinned memory as they pass a server, for the host to
// drain. A record passes where a resident module takes it, or, when its consumer is not resident, where a resident
// module gives it.
//
// Each server has a ring of its own, so none waits for another; the number in the head, consecutive in each mailbox,
// restores the order of a mailbox whose module was run by several servers. A record that is dropped takes no number.
// The stores into pinned memory are posted: nothing waits for them.
#ifndef WARPMAIL_PROTOCOL_JOURNAL_HPP
#define WARPMAIL_PROTOCOL_JOURNAL_HPP

#include "protocol/arbiter.hpp"
#include "protocol/durable.hpp"

namespace warpmail {

// Whether a step of any module can be journalled without waiting. Looks over the bus only when the ring seems full.
template <class L> WM_FN bool journal_has_room(L lanes, arbiter& a, u32 server) {
    if (a.args.journal_need == 0)
        return true;
    wm_producer& end = a.journals[server];
    const u64 idx = load_relaxed_cta(&end.write_idx), slots = slot_count(end.mailbox);
    u64 read = load_relaxed_cta(&end.read_seen);
    if (slots - (idx - read) >= a.args.journal_need)
        return true;
    read = lanes.broadcast(load_relaxed_sys(read_idx_of(end.mailbox)), 0);
    const bool room = slots - (idx - read) >= a.args.journal_need;
    lanes.sync();
    if (lanes.rank() == 0)
        store_relaxed_cta(&end.read_seen, read);
    lanes.sync();
    return room;
}

// Copies `len` bytes; all lanes together, none of which sees the end of it before a `sync`.
template <class L> WM_FN void stage_payload(L lanes, u8* to, const u8* from, u32 len) {
    u32 done = 0;
    if (is_wide(from)) {
        for (u32 w = lanes.rank(); w < len / 8; w += lanes.width())
            reinterpret_cast<u64*>(to)[w] = reinterpret_cast<const u64*>(from)[w];
        done = len / 8 * 8;
    }
    for (u32 i = done + lanes.rank(); i < len; i += lanes.width())
        to[i] = from[i];
}

// Journals a record of mailbox m whose payload lies at `from`, by the server that owns the module at hand. The server's
// end of its ring stays in working memory: the few words that are needed are read where they are needed, which keeps
// the registers of the kernel down.
template <class L>
WM_FN void journal(L lanes, arbiter& a, u32 server, u32 m, u64 index, const void* from, u32 len, u32 type) {
    u8* stage = a.stage + static_cast<u64>(server) * a.args.journal_stage_bytes;
    wm_producer& end = a.journals[server];
    const u64 taken = load_relaxed_cta(&a.tapped[m].taken), idx = load_relaxed_cta(&end.write_idx);
    u64 read = load_relaxed_cta(&end.read_seen);
    if (idx - read >= slot_count(end.mailbox))
        read = lanes.broadcast(load_relaxed_sys(read_idx_of(end.mailbox)), 0);
    const bool room = idx - read < slot_count(end.mailbox);
    lanes.sync(); // the payload is there, and the last use of stage and end is over
    if (room) {
        if (lanes.rank() == 0)
            *reinterpret_cast<wm_journal_head*>(stage) = {taken + 1, index, now_ns(), a.rows[m].mailbox_id, 0};
        stage_payload(lanes, stage + sizeof(wm_journal_head), static_cast<const u8*>(from), len);
        lanes.sync();
        write_slot<order::self_contained>(lanes, slot_at(end.mailbox, idx), any_form(end.mailbox),
                                          lap_tag(idx, end.mailbox.slots_log2), stage,
                                          static_cast<u32>(sizeof(wm_journal_head)) + len, type);
    }
    if (lanes.rank() == 0) {
        store_relaxed_cta(&end.read_seen, read);
        if (room) {
            store_relaxed_cta(&end.write_idx, idx + 1);
            store_relaxed_sys(write_idx_of(end.mailbox), idx + 1);
            store_relaxed_cta(&a.tapped[m].taken, taken + 1);
        } else {
            store_relaxed_cta(&a.tapped[m].dropped, load_relaxed_cta(&a.tapped[m].dropped) + 1);
        }
    }
    lanes.sync();
}

// Records of mailbox m that the host knows to be on disk, of those journalled.
WM_FN u64 durable_of(const arbiter& a, u32 m) {
    return a.args.durable ? load_relaxed_sys(at<const u64>(a.args.durable) + a.rows[m].mailbox_id) & ~durable_ended : 0;
}

} // namespace warpmail

#endif
