// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Records that wait in a tapped mailbox, copied to a journal ring many at a time, for a module that has no use for
// them. Usual slots and long ones go by way of registers. A warp brings others to working memory with all loads under
// way together; there a short loop makes the records of them that go over the bus, in whole sectors. Who
// journals is one of a dozen warps whose code goes through one cache of instructions: a loop that stays in it counts
// for more than one that is unrolled.
#ifndef WARPMAIL_PROTOCOL_PASS_HPP
#define WARPMAIL_PROTOCOL_PASS_HPP

#include "protocol/pass_lines.hpp"

namespace warpmail {

// Copies up to `most` records to the ring, as many as have wholly arrived; gives their number. One that cannot be ends
// it. Straight into the slot: who has not seen the ring's index does not look there.
template <class R> WM_FN u32 pass_each(one_lane lanes, R& r, u32 most) {
    const wm_mailbox& box = r.box();
    const u32 payload = payload_bytes(box);
    u32 n = 0;
    for (u32 len = 0, type = 0; n < most; n++) {
        u8* const slot = r.slot(n);
        const u64 idx = r.index(n);
        if (!read_slot<order::ordered>(lanes, slot_at(box, idx), any_form(box), lap_tag(idx, box.slots_log2),
                                       slot + sizeof(wm_journal_head), payload, len, type) ||
            len > payload)
            break;
        *reinterpret_cast<wm_journal_head*>(slot) = r.head(n, len, type, r.time_ns());
        if (type == WM_TYPE_TENSOR)
            r.announce(n);
    }
    return n;
}

WM_FN u32 pass_ready(one_lane lanes, const passing_records& r, u32 most) {
    return pass_each(lanes, r, most);
}

// Payload word w of the slot at `slot` in working memory; `stale` gets bit 31 if what it was made from is not fresh.
WM_FN u64 staged_word(const u64* slot, u32 w, u32 tag_high, u32& stale) {
    const u32 group = w / (WM_GROUP_WORDS - 1), pos = w % (WM_GROUP_WORDS - 1); // behind the head
    const u32 head = upper_half(slot[group * WM_GROUP_WORDS]);
    const u64 v = slot[group * WM_GROUP_WORDS + 1 + pos];
    stale |= (upper_half(v) ^ tag_high) | (head ^ tag_high);
    return (v & ~tag_mask) | static_cast<u64>(head << (31 - pos) & 0x80000000u) << 32;
}

// One record out of a slot in working memory into its slot of the ring, in whole sectors. False: it has not wholly
// arrived, or cannot be.
template <class L> WM_FN bool pass_staged(L lanes, const passing_records& r, u32 n, const u64* slot, u32 tag_high) {
    const u32 lane = lanes.rank(), meta = static_cast<u32>(slot[0]), len = meta_len(meta), type = meta_type(meta);
    u32 stale = upper_half(slot[0]) ^ tag_high;
    if ((stale & 0x80000000u) != 0 || len > payload_bytes(r.box()))
        return false;
    ring_chunk* const to = reinterpret_cast<ring_chunk*>(r.slot(n));
    if (lane < 2)
        to[lane] = head_chunk(r.head(n, len, type, now_ns()), lane);
    // All of it is looked at (M2 of mailbox.hpp): the producer may fill the slot again as soon as this one is done.
    const u32 chunks = ring_chunks(len) - 2, words = payload_bytes(r.box()) / 8;
    WM_ROLLED
    for (u32 c = lane; 2 * c < words; c += lanes.width()) {
        ring_chunk v;
        v.words[0] = staged_word(slot, 2 * c, tag_high, stale);
        v.words[1] = 2 * c + 1 < words ? staged_word(slot, 2 * c + 1, tag_high, stale) : 0;
        if (c < chunks)
            to[c + 2] = v;
    }
    const bool good = lanes.all((stale & 0x80000000u) == 0);
    if (good && type == WM_TYPE_TENSOR)
        pass_descriptor(lanes, r, n);
    return good;
}

// How many loads of each lane are under way at once, in a warp of 2 KiB; one on devices where the rest of a server
// needs the registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr u32 loads_ahead = 1;
#else
constexpr u32 loads_ahead = 4;
#endif
// Brings `bytes` that lie one behind the other, a multiple of 64, to working memory.
template <class L> WM_FN void fetch_slots(L lanes, u64* stage, const u64* from, u32 bytes) {
    constexpr u32 ahead = loads_ahead;
    const u32 words = bytes / 8, step = 2 * lanes.width();
    for (u32 first = 2 * lanes.rank(); first < words; first += ahead * step) {
        ring_chunk v[ahead];
        WM_UNROLLED
        for (u32 i = 0; i < ahead; i++) {
            if (first + i * step < words)
                load_relaxed_two_sys(from + first + i * step, v[i].words); // whichever scope the mailbox has
        }
        WM_UNROLLED
        for (u32 i = 0; i < ahead; i++) {
            if (first + i * step < words)
                *reinterpret_cast<ring_chunk*>(stage + first + i * step) = v[i];
        }
    }
    lanes.sync();
}

#if defined(WM_HAS_WARPS)
// Records asked for at once: as many as leave the rest of a role its registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000
constexpr u32 plain_ahead = 8;
#else
constexpr u32 plain_ahead = 6;
#endif
// Up to `most` records of a mailbox of the usual form, several at a time with all loads under way together: out of a
// warp's registers into slots of the ring, in whole sectors. What is the same for all of them is found out once: a warp
// carries as many as its instructions allow.
WM_DEV u32 pass_plain(warp_lanes lanes, const passing_records& r, u32 most) {
    constexpr u32 at_once = plain_ahead;
    const wm_mailbox box = plain_row(r.box().header, r.box().slots_log2);
    const wm_ring ring = r.a.journals[r.server].ring;
    const u32 lane = lanes.rank(), mask = static_cast<u32>(ring_slots(ring)) - 1, mailbox_id = r.box().mailbox_id;
    const u32 place = static_cast<u32>(r.place(0));
    const u64 number = r.count(true, 0), index = r.index(0);
    // Lane 0's word lies behind the others: the rest of the last sector.
    const u32 at_word = (lane - 1) & (WM_GROUP_WORDS - 1);
    u32 n = 0;
    for (u32 count = at_once; n < most && count == at_once; n += count) {
        u64 v[at_once];
        const u32 fresh = ask_plain(lanes, box, index + n, v);
        const u64 time_ns = now_ns();
        count = fresh < most - n ? fresh : most - n;
        WM_UNROLLED
        for (u32 i = 0; i < at_once; i++) {
            if (i >= count)
                continue;
            const u64 first = lanes.broadcast(v[i], 0);
            const u32 meta = static_cast<u32>(first), len = meta_len(meta), type = meta_type(meta);
            u8* const to = at<u8>(ring.header + WM_RING_HEADER_BYTES + u64{(place + n + i) & mask} * ring.slot_bytes);
            // The head's chunks, by lanes 0 and 1.
            const u64 last = journal_head_end(mailbox_id, len, type);
            if (lane < 2)
                reinterpret_cast<ring_chunk*>(to)[lane] = {
                    {lane == 0 ? number + n + i : time_ns, lane == 0 ? index + n + i : last}};
            if (at_word < 2 * ring_chunks(len) - 4)
                reinterpret_cast<u64*>(to + sizeof(wm_journal_head))[at_word] =
                    lane == 0 ? 0 : restored(lanes, v[i], static_cast<u32>(first >> WM_HEAD_BITS_SHIFT));
            if (type == WM_TYPE_TENSOR)
                pass_descriptor(lanes, r, n + i);
        }
    }
    return n;
}
#endif

// The same by way of working memory: as many slots at a time as the stage holds and as lie before the end of the
// mailbox's ring. It needs few registers and little code.
template <class L> WM_FN u32 pass_by_stage(L lanes, const passing_records& r, u32 most) {
    const wm_mailbox& box = r.box();
    u32 n = 0;
    u64* const stage = reinterpret_cast<u64*>(stage_of(r.a, r.server));
    for (bool good = true; good && n < most;) {
        // From here to the end of the mailbox's ring.
        const u32 first = static_cast<u32>(r.index(n)) & ((1u << box.slots_log2) - 1);
        u32 slots = (1u << box.slots_log2) - first;
        slots = slots < most - n ? slots : most - n;
        slots = slots < r.a.args.journal_stage_bytes / box.record_stride
                    ? slots
                    : r.a.args.journal_stage_bytes / box.record_stride;
        fetch_slots(lanes, stage, slot_at(box, first), slots * box.record_stride);
        const u32 tag_high = upper_half(lap_tag(r.index(n), box.slots_log2));
        WM_ROLLED
        for (u32 i = 0; good && i < slots; i++) {
            good = pass_staged(lanes, r, n, stage + i * words_in(box.record_stride), tag_high);
            n += good;
        }
        lanes.sync(); // the stage is free again
    }
    return n;
}
WM_FN u32 pass_by_stage(one_lane lanes, const passing_records& r, u32 most) {
    return pass_ready(lanes, r, most);
}

// The quickest way of a warp.
template <class L> WM_FN u32 pass_ready(L lanes, const passing_records& r, u32 most) {
#if defined(WM_HAS_WARPS)
    if (r.box().record_stride == WM_STRIDE_DEFAULT && r.box().scope == WM_SCOPE_GPU)
        return pass_plain(lanes, r, most);
    if (r.box().record_stride >= long_stride)
        return line_copier<lines_ahead, 4>(lanes, r).copy(most);
#endif
    return pass_by_stage(lanes, r, most);
}

} // namespace warpmail

#endif
