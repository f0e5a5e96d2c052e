// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A journal ring, see abi.h: the side that fills it. A record's bytes lie in its slot as they are, so the host uses
// them where they lie; what says that they are there is the ring's index.
//
// Invariants
//   R1  write_idx is stored with release behind the bytes of all records before it: RELEASE here, acquired by the host
//       before it looks at them.
//   R2  A slot is filled again only when read_idx was seen to have passed it, by an acquire: ACQUIRE of the host's
//   store
//       behind its last use of the bytes.
//   R3  `announced` is stored before anybody can learn from this arbiter of a tensor whose descriptor it covers; so
//       whoever knows that such a tensor's lease has ended knows of the descriptor in the ring.
#ifndef WARPMAIL_PROTOCOL_RING_HPP
#define WARPMAIL_PROTOCOL_RING_HPP

#include "protocol/lanes.hpp"

namespace warpmail {

// An end, in working memory: a server's, or the journal's role's (journal.hpp). Each word has one writer.
struct ring_end {
    wm_ring ring;
    u64 write_idx; // records that are in the ring; who fills it, with release
    u64 read_seen; // read_idx when it was last looked at; likewise
    u64 published; // records that the host was told of; the role, or who fills it
    u64 batch_ns;  // when the records of its present batch pass; who fills it
    u64 batches;   // that were handed to other blocks in part (carry.hpp); likewise
    u64 each;      // records of such a part of its present batch; likewise
    u64 alone;     // batches that are carried without help, before it is asked for again; likewise
    u64 lost;      // not 0: a warp of one of those may still write here, so there is no room; likewise
    // Of a role (journal.hpp): when it went along all its mailboxes last; when something was followed last, since the
    // servers left, or 0.
    u64 followed_ns, moved_ns;
};

WM_FN u64 ring_slots(const wm_ring& ring) {
    return 1ull << ring.slots_log2;
}
WM_FN u8* ring_slot(const wm_ring& ring, u64 idx) {
    return at<u8>(ring.header + WM_RING_HEADER_BYTES + (idx & (ring_slots(ring) - 1)) * ring.slot_bytes);
}
WM_FN wm_ring_header* ring_header(const wm_ring& ring) {
    return at<wm_ring_header>(ring.header);
}

// The end, taken up where the header says that it was left.
WM_FN ring_end attach_ring(const wm_ring& ring) {
    const u64 wrote = load_relaxed_sys(&ring_header(ring)->write_idx);
    return {ring, wrote, load_acquire_sys(&ring_header(ring)->read_idx), wrote, 0, 0, 0, 0, 0, 0, 0};
}

// Free slots; the far index is looked at again, over the bus, only when fewer than `want` seem free.
template <class L> WM_FN u64 ring_room(L lanes, ring_end& end, u64 want) {
    const u64 idx = load_relaxed_cta(&end.write_idx), slots = ring_slots(end.ring);
    u64 read = load_relaxed_cta(&end.read_seen);
    if (slots - (idx - read) >= want)
        return slots - (idx - read);
    if (load_relaxed_cta(&end.lost) != 0)
        return 0;
    read = lanes.broadcast(load_acquire_sys(&ring_header(end.ring)->read_idx), 0); // R2
    lanes.sync();
    if (lanes.rank() == 0)
        store_relaxed_cta(&end.read_seen, read);
    lanes.sync();
    return slots - (idx - read);
}

// 8 bytes of a payload from byte `at_byte` on; those behind its end are zeros. `wide`: src is aligned to 8.
WM_FN u64 ring_word(const u8* src, u32 len, u32 at_byte, bool wide) {
    if (wide && at_byte + 8 <= len)
        return *reinterpret_cast<const u64*>(src + at_byte);
    u64 v = 0;
    WM_ROLLED
    for (u32 i = at_byte; i < len && i < at_byte + 8; i++)
        v |= static_cast<u64>(src[i]) << (8 * (i - at_byte));
    return v;
}

// What a lane stores at once.
struct alignas(16) ring_chunk {
    u64 words[2];
};

// Those of a record, in whole sectors of 32 bytes, which the bus likes best.
WM_FN u32 ring_chunks(u32 len) {
    return (static_cast<u32>(sizeof(wm_journal_head)) + len + 31) / 32 * 2;
}
// The last word of a head.
WM_FN u64 journal_head_end(u32 mailbox_id, u32 len, u32 type) {
    return mailbox_id | static_cast<u64>(len) << 32 | static_cast<u64>(type) << 48;
}
// Chunk c of a head, 0 or 1.
WM_FN ring_chunk head_chunk(const wm_journal_head& head, u32 c) {
    const u64 last = journal_head_end(head.mailbox_id, head.len, head.type);
    return {{c == 0 ? head.number : head.time_ns, c == 0 ? head.index : last}};
}

// Puts head and payload into a slot. The caller's lanes meet afterwards.
template <class L> WM_FN void fill_slot(L lanes, u8* slot, const wm_journal_head& head, const void* from, u32 len) {
    const u8* src = static_cast<const u8*>(from);
    if (!L::is_group()) {
        *reinterpret_cast<wm_journal_head*>(slot) = head;
        __builtin_memcpy(slot + sizeof(head), src, len);
        return;
    }
    ring_chunk* to = reinterpret_cast<ring_chunk*>(slot);
    const bool wide = (reinterpret_cast<uintptr_t>(src) & 7u) == 0;
    const u32 chunks = ring_chunks(len);
    for (u32 c = lanes.rank(); c < chunks; c += lanes.width()) {
        const u32 at_byte = (c - 2) * 16;
        ring_chunk v = head_chunk(head, c);
        if (c >= 2) {
            v.words[0] = ring_word(src, len, at_byte, wide);
            v.words[1] = ring_word(src, len, at_byte + 8, wide);
        }
        to[c] = v;
    }
}

} // namespace warpmail

#endif
