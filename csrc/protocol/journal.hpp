// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Taps: records of chosen mailboxes are copied into a ring in pinned memory as they pass a server, for the host to
// drain. A record passes where a resident module takes it, or, when its consumer is not resident, where a resident
// module gives it.
//
// Each server has a ring of its own, so none waits for another; the number in the head, consecutive in each mailbox,
// restores the order of a mailbox whose module was run by several servers. A record that is dropped takes no number.
// The stores into pinned memory are posted: nothing waits for them. Those of a step's records follow when the step has
// published what it gives: meanwhile the records lie in the server's stage, in working memory.
#ifndef WARPMAIL_PROTOCOL_JOURNAL_HPP
#define WARPMAIL_PROTOCOL_JOURNAL_HPP

#include "protocol/arbiter.hpp"
#include "protocol/durable.hpp"

namespace warpmail {

// Free slots in the server's ring, the far index loaded again when fewer than `want` seem free.
template <class L> WM_FN u64 journal_room(L lanes, wm_producer& end, u64 want) {
    const u64 idx = load_relaxed_cta(&end.write_idx), slots = slot_count(end.mailbox);
    u64 read = load_relaxed_cta(&end.read_seen);
    if (slots - (idx - read) >= want)
        return slots - (idx - read);
    read = lanes.broadcast(load_relaxed_sys(read_idx_of(end.mailbox)), 0);
    lanes.sync();
    if (lanes.rank() == 0)
        store_relaxed_cta(&end.read_seen, read);
    lanes.sync();
    return slots - (idx - read);
}

// Whether a step of any module can be journalled without waiting. Looks over the bus only when the ring seems full.
template <class L> WM_FN bool journal_has_room(L lanes, arbiter& a, u32 server) {
    if (a.args.journal_need == 0)
        return true;
    return journal_room(lanes, a.journals[server], a.args.journal_need) >= a.args.journal_need;
}

// Bytes of a place in a stage: head and payload of a record.
WM_FN u32 stage_place(const wm_producer& end) {
    return static_cast<u32>(align16(end.mailbox.record_stride));
}
// Place n of a server's stage.
WM_FN u8* stage_of(const arbiter& a, u32 server, u32 n = 0) {
    return a.stage + static_cast<u64>(server) * a.args.journal_stage_bytes + n * stage_place(a.journals[server]);
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

// Writes the record at place n of the stage, the next but n of the ring. All lanes; the place is theirs again on
// return. What is needed stays in working memory and is read here, which keeps the registers of the kernel down.
template <class L> WM_FN void write_staged(L lanes, const arbiter& a, u32 server, u32 place, u32 n, u32 len, u32 type) {
    const wm_producer& end = a.journals[server];
    const u64 idx = load_relaxed_cta(&end.write_idx) + n;
    write_slot<order::self_contained>(lanes, slot_at(end.mailbox, idx), any_form(end.mailbox),
                                      lap_tag(idx, end.mailbox.slots_log2), stage_of(a, server, place),
                                      static_cast<u32>(sizeof(wm_journal_head)) + len, type);
    lanes.sync();
}

// Publishes n more records of the ring; by lane 0.
WM_FN void publish_journal(arbiter& a, u32 server, u32 n) {
    wm_producer& end = a.journals[server];
    const u64 idx = load_relaxed_cta(&end.write_idx) + n;
    store_relaxed_cta(&end.write_idx, idx);
    store_relaxed_sys(write_idx_of(end.mailbox), idx);
}

// Writes the first n places of the stage to the ring, with one clock and one publication for all.
template <class L> WM_FN void journal_flush(L lanes, arbiter& a, u32 server, u32 n) {
    if (n == 0)
        return;
    for (u32 i = 0; i < n; i++) {
        wm_journal_head* head = reinterpret_cast<wm_journal_head*>(stage_of(a, server, i));
        const u32 meta = head->reserved;
        lanes.sync();
        if (lanes.rank() == 0) {
            head->time_ns = i == 0 ? now_ns() : reinterpret_cast<wm_journal_head*>(stage_of(a, server))->time_ns;
            head->reserved = 0;
        }
        lanes.sync();
        write_staged(lanes, a, server, i, i, meta & 0xFFFFu, meta >> 16);
    }
    if (lanes.rank() == 0)
        publish_journal(a, server, n);
    lanes.sync();
}

// Journals a record of mailbox m whose payload lies at `from`, by the server that owns the module at hand: it is copied
// to the stage, and goes to the ring when the step has ended, so that whoever waits for what the step gives does not
// wait for that. `staged` places are taken, and that many on return. Whether the ring has room is found out here. The
// caller's lanes have seen the payload.
//
// A descriptor goes to the ring at once: before anybody could learn of it from this step and end its lease.
template <class L>
WM_FN u32 journal(L lanes, arbiter& a, u32 server, u32 m, u64 index, const void* from, u32 len, u32 type, u32 staged) {
    wm_producer& end = a.journals[server];
    if ((staged + 1) * stage_place(end) > a.args.journal_stage_bytes) {
        journal_flush(lanes, a, server, staged);
        staged = 0;
    }
    const u64 taken = load_relaxed_cta(&a.tapped[m].taken), idx = load_relaxed_cta(&end.write_idx) + staged;
    u64 read = load_relaxed_cta(&end.read_seen);
    if (idx - read >= slot_count(end.mailbox))
        read = lanes.broadcast(load_relaxed_sys(read_idx_of(end.mailbox)), 0);
    const bool room = idx - read < slot_count(end.mailbox);
    lanes.sync(); // the last use of these words is over
    u8* const place = stage_of(a, server, staged);
    if (room)
        stage_payload(lanes, place + sizeof(wm_journal_head), static_cast<const u8*>(from), len);
    if (lanes.rank() == 0) {
        store_relaxed_cta(&end.read_seen, read);
        if (room) {
            *reinterpret_cast<wm_journal_head*>(place) = {taken + 1, index, 0, a.rows[m].mailbox_id, len | type << 16};
            store_relaxed_cta(&a.tapped[m].taken, taken + 1);
        } else {
            store_relaxed_cta(&a.tapped[m].dropped, load_relaxed_cta(&a.tapped[m].dropped) + 1);
        }
    }
    lanes.sync();
    staged += room;
    if (type != WM_TYPE_TENSOR)
        return staged;
    journal_flush(lanes, a, server, staged);
    return 0;
}

// Writes the record in the first place of the stage, number n of a batch from mailbox m, to the ring.
template <class L>
WM_FN void journal_staged(L lanes, const arbiter& a, u32 server, u32 m, u32 n, u64 index, u32 len, u32 type) {
    if (lanes.rank() == 0) {
        wm_journal_head* head = reinterpret_cast<wm_journal_head*>(stage_of(a, server));
        head->number = load_relaxed_cta(&a.tapped[m].taken) + n + 1;
        head->index = index;
    }
    lanes.sync();
    write_staged(lanes, a, server, 0, n, len, type);
}

// Copies up to `most` records of mailbox m, from index `from` on, to the ring, as many as have wholly arrived; gives
// their number. One that cannot be ends it.
WM_FN u32 pass_ready(one_lane lanes, arbiter& a, u32 server, u32 m, u64 from, u32 most) {
    const wm_mailbox& box = a.rows[m];
    u8* to = stage_of(a, server) + sizeof(wm_journal_head);
    const u32 payload = payload_bytes(box);
    u32 n = 0;
    for (u32 len = 0, type = 0; n < most; n++) {
        const u64 idx = from + n;
        if (!read_slot<order::ordered>(lanes, slot_at(box, idx), any_form(box), lap_tag(idx, box.slots_log2), to,
                                       payload, len, type) ||
            len > payload)
            break;
        journal_staged(lanes, a, server, m, n, idx, len, type);
    }
    return n;
}

#if defined(WM_HAS_WARPS)
// The same by a warp. Loads of several groups are under way at once, whether of one record or of several: one after the
// other each would cost a way to L2 and back.
WM_FN u32 pass_ready(warp_lanes lanes, arbiter& a, u32 server, u32 m, u64 from, u32 most) {
    constexpr u32 ahead = 4;
    const wm_mailbox& box = a.rows[m];
    const u32 stride = box.record_stride, groups = groups_in(stride), units = most * groups;
    const u32 lane = lanes.rank();
    u64* const to = reinterpret_cast<u64*>(stage_of(a, server) + sizeof(wm_journal_head));
    u32 n = 0, group = 0, len = 0, type = 0; // of what is staged next
    u32 load_record = 0, load_group = 0;     // of what is loaded next
    bool good = true;
    for (u32 u = 0; u < units && good; u += ahead) {
        u64 v[ahead];
#pragma unroll
        for (u32 i = 0; i < ahead; i++) {
            const u64 idx = from + load_record;
            const bool has_word = u + i < units && lane < group_words(stride, load_group);
            const u64* word = slot_at(box, idx) + load_group * WM_GROUP_WORDS + lane;
            v[i] = has_word ? load_relaxed(word, box.scope) : lap_tag(idx, box.slots_log2);
            load_group = load_group + 1 == groups ? 0 : load_group + 1;
            load_record += load_group == 0;
        }
#pragma unroll
        for (u32 i = 0; i < ahead; i++) {
            const u64 idx = from + n;
            good = good && u + i < units && lanes.all(is_fresh(v[i], lap_tag(idx, box.slots_log2)));
            if (!good)
                continue;
            if (group == 0) {
                const u32 meta = lanes.broadcast(static_cast<u32>(v[i]), 0);
                len = meta_len(meta);
                type = meta_type(meta);
                good = len <= payload_in(stride);
            }
            const u64 word = restored(lanes, v[i], lanes.broadcast(static_cast<u32>(v[i] >> WM_HEAD_BITS_SHIFT), 0));
            if (good && lane != 0 && lane < group_words(stride, group))
                to[group * (WM_GROUP_WORDS - 1) + lane - 1] = word;
            group = group + 1 == groups ? 0 : group + 1;
            if (good && group == 0) {
                journal_staged(lanes, a, server, m, n, idx, len, type);
                n++;
            }
        }
    }
    // Before the ring's index: who sees that sees what the producers wrote before they pushed.
    fence_acquire(box.scope);
    return n;
}
#endif

// Journals up to `most` records that wait in mailbox m, from index `from` on, with one publication of the ring's index;
// gives their number, and the caller releases them. In a ring that is nearly full it leaves what a step needs. Nothing
// is staged.
template <class L> WM_FN u32 journal_ready(L lanes, arbiter& a, u32 server, u32 m, u64 from, u32 most) {
    wm_producer& end = a.journals[server];
    const u64 spare = a.args.journal_need ? a.args.journal_need - 1 : 0;
    const u64 room = journal_room(lanes, end, most + spare);
    const u32 limit = room <= spare ? 0 : room - spare < most ? static_cast<u32>(room - spare) : most;
    lanes.sync(); // the last use of stage and end is over
    if (lanes.rank() == 0)
        *reinterpret_cast<wm_journal_head*>(stage_of(a, server)) = {0, 0, now_ns(), a.rows[m].mailbox_id, 0};
    const u32 n = pass_ready(lanes, a, server, m, from, limit);
    if (n != 0 && lanes.rank() == 0) {
        publish_journal(a, server, n);
        store_relaxed_cta(&a.tapped[m].taken, load_relaxed_cta(&a.tapped[m].taken) + n);
    }
    lanes.sync();
    return n;
}

// The head of the record in a slot of a ring, by the host; `len` of head and payload. False: it has not arrived. What
// cannot be a record has mailbox_id ~0.
WM_FN bool look_journal(const u64* slot, any_form form, u64 tag, wm_journal_head& head, u32& len, u32& type) {
    constexpr u32 words = sizeof(wm_journal_head) / 8;
    static_assert(words < WM_STRIDE_MIN / 8, "a head lies in the first group of the shortest slot");
    const u64 meta = load_head<order::ordered>(slot, form.scope());
    u64 word[words], differs = meta ^ tag;
    for (u32 i = 0; i < words; i++) {
        const u64 v = load_relaxed(slot + i + 1, form.scope());
        differs |= v ^ tag;
        word[i] = (v & ~tag_mask) | ((meta << (WM_HEAD_BITS_SHIFT - i - 1)) & tag_mask);
    }
    if ((differs & tag_mask) != 0)
        return false;
    len = meta_len(meta);
    type = meta_type(meta);
    head = {word[0], word[1], word[2], static_cast<u32>(word[3]), static_cast<u32>(word[3] >> 32)};
    if (len < sizeof(wm_journal_head) || len > payload_in(form.stride()))
        head.mailbox_id = ~0u;
    return true;
}

// Records of mailbox m that the host knows to be on disk, of those journalled.
WM_FN u64 durable_of(const arbiter& a, u32 m) {
    return a.args.durable ? load_relaxed_sys(at<const u64>(a.args.durable) + a.rows[m].mailbox_id) & ~durable_ended : 0;
}

} // namespace warpmail

#endif
