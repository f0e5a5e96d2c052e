// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A mailbox: single-producer single-consumer ring of slots. Each end is a plain struct (wm_producer, wm_consumer) that
// its one owner keeps; the far index is cached and refreshed only when the ring looks full. The consumer does not look
// at write_idx at all: the slot itself says whether it is ready.
//
// Invariants
//   M1  read_idx <= write_idx <= read_idx + slots, modulo 2^64.
//   M2  write_idx is stored after the record's slot, read_idx after the record was copied out. Both stores are relaxed:
//       readiness is the tag's business (S3), and a slot is reused only when the producer has *seen* a read_idx that
//       the consumer stored after every word it read carried the old lap's tag, so no later write can reach that read.
//   M3  One writer per word: write_idx and `written` belong to the producer, read_idx and `consumed` to the consumer.
//
// All calls are made by all lanes with the same arguments; with warp_lanes the warp is converged. They never wait.
#ifndef WARPMAIL_PROTOCOL_MAILBOX_HPP
#define WARPMAIL_PROTOCOL_MAILBOX_HPP

#include "protocol/slot.hpp"

namespace warpmail {

WM_FN u64 slot_count(const wm_mailbox& m) {
    return 1ull << m.slots_log2;
}
WM_FN u32 payload_bytes(const wm_mailbox& m) {
    return slot_shape(m.record_stride).payload_bytes();
}
WM_FN u64* slot_at(const wm_mailbox& m, u64 idx) {
    return at<u64>(m.slots + (idx & (slot_count(m) - 1)) * m.record_stride);
}
WM_FN u64* write_idx_of(const wm_mailbox& m) {
    return &at<wm_mailbox_header>(m.header)->write_idx;
}
WM_FN u64* read_idx_of(const wm_mailbox& m) {
    return &at<wm_mailbox_header>(m.header)->read_idx;
}

// Whether the header behind a handle is what the handle says it is. Never writes.
WM_FN wm_status check_header(const wm_mailbox& m) {
    if (m.header == 0 || m.slots == 0)
        return WM_BAD_ARGUMENT;
    const wm_mailbox_header* h = at<const wm_mailbox_header>(m.header);
    if (h->magic != WM_ABI_MAGIC)
        return WM_BAD_MAGIC;
    if (h->version != WM_ABI_VERSION)
        return WM_BAD_VERSION;
    if (!stride_is_valid(h->record_stride) || h->record_stride != m.record_stride ||
        h->slots_log2 > WM_SLOTS_LOG2_MAX || h->slots_log2 != m.slots_log2 ||
        h->capacity_bytes != static_cast<u64>(h->record_stride) << h->slots_log2)
        return WM_BAD_STRIDE;
    if (h->mailbox_id != m.mailbox_id || h->producer_id != m.producer_id || h->consumer_id != m.consumer_id)
        return WM_BAD_ARGUMENT;
    if (load_relaxed(&h->write_idx, m.scope) - load_relaxed(&h->read_idx, m.scope) > slot_count(m))
        return WM_BAD_INDEX;
    return WM_OK;
}

// The producer's end, taken up where the header says it was left.
WM_FN wm_producer attach_producer(const wm_mailbox& m) {
    wm_producer p;
    p.mailbox = m;
    p.write_idx = load_relaxed(write_idx_of(m), m.scope);
    p.read_seen = load_relaxed(read_idx_of(m), m.scope);
    return p;
}

// The consumer's end, taken up where the header says it was left.
WM_FN wm_consumer attach_consumer(const wm_mailbox& m) {
    wm_consumer c;
    c.mailbox = m;
    c.read_idx = c.write_seen = load_relaxed(read_idx_of(m), m.scope);
    return c;
}

// Free slots as last seen; refreshes when fewer than `want` seem free.
template <class L> WM_FN u64 free_slots(L lanes, wm_producer& p, u64 want) {
    u64 used = p.write_idx - p.read_seen;
    if (slot_count(p.mailbox) - used < want) {
        // Lanes may load at different moments: lane 0's value is the warp's.
        p.read_seen = lanes.broadcast(load_relaxed(read_idx_of(p.mailbox), p.mailbox.scope), 0);
        used = p.write_idx - p.read_seen;
    }
    return slot_count(p.mailbox) - used;
}

// Makes the records pushed so far visible to scans, monitors and credits; the consumer does not wait for it.
WM_FN void publish_written(const wm_producer& p) {
    store_relaxed(write_idx_of(p.mailbox), p.write_idx, p.mailbox.scope);
    if (p.mailbox.written)
        store_relaxed(at<u64>(p.mailbox.written), p.write_idx, p.mailbox.scope);
}
WM_FN void publish_read(const wm_consumer& c) {
    store_relaxed(read_idx_of(c.mailbox), c.read_idx, c.mailbox.scope);
    if (c.mailbox.consumed)
        store_relaxed(at<u64>(c.mailbox.consumed), c.read_idx, c.mailbox.scope);
}

// Whether it is worth looking at the next slot. On the host a look at a slot takes its line away from the producer that
// is filling it; write_idx, stored once a record, says when there is something to see. It is a hint: the tags decide.
WM_FN bool seems_ready(wm_consumer& c) {
#if defined(__CUDA_ARCH__)
    (void)c;
    return true;
#else
    if (c.write_seen == c.read_idx)
        c.write_seen = load_relaxed(write_idx_of(c.mailbox), c.mailbox.scope);
    return c.write_seen != c.read_idx;
#endif
}

// Pushes one record. WM_OK, WM_FULL, WM_BAD_LENGTH, WM_BAD_ARGUMENT (src null with a length). Costs one slot of stores.
// Ordering: with order::ordered everything the calling lanes wrote before is visible to whoever pops the record.
template <order O = order::ordered, class L>
WM_FN wm_status try_push(L lanes, wm_producer& p, const void* src, u32 len, u32 type) {
    const slot_shape shape(p.mailbox.record_stride);
    if (len > shape.payload_bytes())
        return WM_BAD_LENGTH;
    if (len != 0 && src == nullptr)
        return WM_BAD_ARGUMENT;
    if (free_slots(lanes, p, 1) == 0)
        return WM_FULL;
    write_slot<O>(lanes, slot_at(p.mailbox, p.write_idx), shape, lap_tag(p.write_idx, p.mailbox.slots_log2), src, len,
                  type, p.mailbox.scope);
    p.write_idx++;
    if (lanes.rank() == 0)
        publish_written(p);
    return WM_OK;
}

// Pops one record into dst. WM_OK, WM_EMPTY, WM_TOO_SMALL (the record stays, len says what it needs), WM_BAD_LENGTH
// (the slot's length cannot be; the record is dropped). dst is unspecified unless WM_OK.
template <order O = order::ordered, class L>
WM_FN wm_status try_pop(L lanes, wm_consumer& c, void* dst, u32 dst_bytes, u32& len, u32& type) {
    const slot_shape shape(c.mailbox.record_stride);
    if (dst == nullptr && dst_bytes != 0)
        return WM_BAD_ARGUMENT;
    u32 l = 0, t = 0;
    if (!seems_ready(c) ||
        !read_slot<O>(lanes, slot_at(c.mailbox, c.read_idx), shape, lap_tag(c.read_idx, c.mailbox.slots_log2), dst,
                      dst_bytes, l, t, c.mailbox.scope))
        return WM_EMPTY;
    len = l;
    type = t;
    if (l <= shape.payload_bytes() && l > dst_bytes)
        return WM_TOO_SMALL;
    c.read_idx++;
    lanes.sync(); // every lane has taken its words and sees those of the others
    if (lanes.rank() == 0)
        publish_read(c);
    return l > shape.payload_bytes() ? WM_BAD_LENGTH : WM_OK;
}

// Prepares a ring, empty, whose first record has index `start`: for tests that force a wrap, and for recovery. Nobody
// else may touch the mailbox meanwhile.
WM_FN void clear_mailbox(const wm_mailbox& m, u64 start) {
    const slot_shape shape(m.record_stride);
    for (u64 i = 0; i < slot_count(m); i++)
        clear_slot(slot_at(m, start + i), shape, lap_tag(start + i, m.slots_log2), m.scope);
    store_relaxed(write_idx_of(m), start, m.scope);
    store_relaxed(read_idx_of(m), start, m.scope);
    if (m.written)
        store_relaxed(at<u64>(m.written), start, m.scope);
    if (m.consumed)
        store_relaxed(at<u64>(m.consumed), start, m.scope);
}

} // namespace warpmail

#endif
