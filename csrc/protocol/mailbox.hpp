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
// All calls are made by all lanes with the same arguments: one_lane, a converged warp_lanes, or block_lanes. They never
// wait; wait.hpp has the forms that do. A warp that moves many records keeps its end in registers: warp_ends.hpp.
//
// What a call refuses is counted in the header (refuse.hpp).
//
//   whole records   try_push, try_pop, and try_push_batch, try_pop_batch (one publication for the batch)
//   in place        reserve - put - commit, and peek - get - release: a record is written straight into its slot and
//                   read straight from it, and the index is published once, when the caller says so
#ifndef WARPMAIL_PROTOCOL_MAILBOX_HPP
#define WARPMAIL_PROTOCOL_MAILBOX_HPP

#include "protocol/bell.hpp"
#include "protocol/handle.hpp"
#include "protocol/slot_thread.hpp"
#include "protocol/slot_warp.hpp"

namespace warpmail {

// Whether the two indices cannot both be. The consumer may be ahead: it goes by the tags.
WM_FN bool is_torn(const wm_producer& p) {
    const u64 slots = slot_count(p.mailbox);
    return p.write_idx - p.read_seen + slots > 2 * slots;
}

// Free slots as last seen; refreshes when fewer than `want` seem free. None if the far index cannot be.
template <class L> WM_FN u64 free_slots(L lanes, wm_producer& p, u64 want) {
    const u64 slots = slot_count(p.mailbox);
    u64 used = p.write_idx - p.read_seen;
    if (want > slots || used > slots - want) {
#if !defined(__CUDA_ARCH__)
        if (!L::is_group())
            breathe_since(p.looked);
#endif
        // Lanes may load at different moments: lane 0's value is the warp's.
        const u64 read = lanes.broadcast(load_relaxed(read_idx_of(p.mailbox), p.mailbox.scope), 0);
        // A producer that goes by credit may know of slots whose consumer has yet to tell the header (publish_read).
        const u64 behind = p.read_seen - read;
        p.read_seen = behind - 1 < slots ? p.read_seen : read;
        used = p.write_idx - p.read_seen;
        if (is_torn(p))
            return 0;
#if !defined(__CUDA_ARCH__)
        if (!L::is_group())
            p.looked = used > slots - want ? looked_in_vain() : 0;
#endif
    }
    return slots - used;
}

// Makes the records pushed so far visible to scans, monitors and credits; the consumer does not wait for it.
WM_FN void publish_written(const wm_producer& p) {
    store_relaxed(write_idx_of(p.mailbox), p.write_idx, p.mailbox.scope);
    if (p.mailbox.written)
        publish(at<u64>(p.mailbox.written), p.write_idx, p.mailbox.bell, p.mailbox.producer_side);
}
// Slots given back. An arbiter that cannot look at the header is told first: a producer fills the slots as soon as it
// sees `read_idx`, and who stands between the two stores may be kept from the second for long.
WM_FN void publish_read(const wm_consumer& c) {
    const bool told_first = c.mailbox.consumed && c.mailbox.consumer_side == WM_SIDE_HOST;
    if (told_first)
        publish(at<u64>(c.mailbox.consumed), c.read_idx, c.mailbox.bell, WM_SIDE_HOST);
    store_relaxed(read_idx_of(c.mailbox), c.read_idx, c.mailbox.scope);
    if (c.mailbox.consumed && !told_first)
        publish(at<u64>(c.mailbox.consumed), c.read_idx, c.mailbox.bell, c.mailbox.consumer_side);
}

// Whether it is worth looking at the next slot. On the host a look at a slot takes its line away from the producer that
// is filling it; write_idx, stored once a record, says when there is something to see. It is a hint: the tags decide.
// A warp does not ask: its lanes would look at different moments.
template <class L> WM_FN bool seems_ready(L, wm_consumer& c) {
#if defined(__CUDA_ARCH__)
    (void)c;
    return true;
#else
    if (L::is_group())
        return true;
    if (c.write_seen != c.read_idx)
        return true;
    breathe_since(c.looked);
    c.write_seen = load_relaxed(write_idx_of(c.mailbox), c.mailbox.scope);
    const bool ready = c.write_seen != c.read_idx;
    c.looked = ready ? 0 : looked_in_vain();
    return ready;
#endif
}

// The form of nearly all slots, known while compiling. The host has one scope, whatever a mailbox's is.
#if defined(__CUDA_ARCH__)
constexpr bool has_one_scope = false;
#else
constexpr bool has_one_scope = true;
#endif
using default_form = fixed_form<WM_STRIDE_DEFAULT, WM_SCOPE_GPU>;

// A thread of the host has the slot behind the next one brought near, if that is free, or ready, as far as it knows:
// what another core had last takes about as long to come as a record takes to be moved. Of long slots the first lines;
// the processor sees for itself how those go on.
#if !defined(__CUDA_ARCH__)
constexpr u64 slots_ahead = 2;
WM_FN u32 words_ahead(const wm_mailbox& m) {
    const u32 words = words_in(m.record_stride);
    return words < WM_GROUP_WORDS ? words : WM_GROUP_WORDS;
}
template <class L> WM_FN void bring_free_near(L, const wm_producer& p, u64 idx) {
    const u64 next = idx + slots_ahead;
    if (L::is_group() || next - p.read_seen >= slot_count(p.mailbox))
        return;
    for (u32 i = 0; i < words_ahead(p.mailbox); i += 8)
        prefetch_line_to_write(slot_at(p.mailbox, next) + i);
}
template <class L> WM_FN void bring_ready_near(L, const wm_consumer& c) {
    if (L::is_group() || c.write_seen - c.read_idx - 1 < slots_ahead)
        return;
    for (u32 i = 0; i < words_ahead(c.mailbox); i += 8)
        prefetch_line(slot_at(c.mailbox, c.read_idx + slots_ahead) + i);
}
#else
template <class L> WM_FN void bring_free_near(L, const wm_producer&, u64) {}
template <class L> WM_FN void bring_ready_near(L, const wm_consumer&) {}
#endif

// Free slots, counted up to `want`; looks at the far index only when fewer than that seem free. Reserving is
// looking: the slots stay the producer's until it commits.
template <class L> WM_FN u64 reserve(L lanes, wm_producer& p, u64 want) {
    const u64 n = free_slots(lanes, p, want);
    return n < want ? n : want;
}

// For order::fenced: everything the calling lanes wrote before it is visible to whoever pops a record that is pushed
// after it. One fence then serves any number of pushes, and is paid where nobody waits for it.
template <class L> WM_FN void fence(L lanes, const wm_producer& p) {
    lanes.sync();
    if (lanes.rank() == 0)
        fence_release(p.mailbox.scope);
}

// Writes record `i` of those reserved, in place. WM_OK, WM_BAD_LENGTH, WM_BAD_ARGUMENT (src null with a length). The
// consumer may take it at once; write_idx says so after `commit`. A slot that was put must be committed.
// Ordering: with order::ordered everything the calling lanes wrote before is visible to whoever pops the record.
template <order O = order::ordered, class L>
WM_FN wm_status put(L lanes, const wm_producer& p, u64 i, const void* src, u32 len, u32 type) {
    lanes.check();
    if (len > payload_bytes(p.mailbox))
        return refused(lanes, p.mailbox.header, p.mailbox.scope, WM_END_PRODUCER, refusal::length, WM_BAD_LENGTH);
    if (len != 0 && src == nullptr)
        return refused(lanes, p.mailbox.header, p.mailbox.scope, WM_END_PRODUCER, refusal::argument, WM_BAD_ARGUMENT);
    const u64 idx = p.write_idx + i;
    const u64 tag = lap_tag(idx, p.mailbox.slots_log2);
    bring_free_near(lanes, p, idx);
    if (p.mailbox.record_stride == WM_STRIDE_DEFAULT && (has_one_scope || p.mailbox.scope == WM_SCOPE_GPU))
        write_slot<O>(lanes, slot_at(p.mailbox, idx), default_form{}, tag, src, len, type);
    else
        write_slot<O>(lanes, slot_at(p.mailbox, idx), any_form(p.mailbox), tag, src, len, type);
    return WM_OK;
}

// Publishes the first n of the reserved records.
template <class L> WM_FN void commit(L lanes, wm_producer& p, u64 n) {
    p.write_idx += n;
    if (lanes.rank() == 0)
        publish_written(p);
}

// Why a push finds no room.
template <class L> WM_FN wm_status no_room(L lanes, const wm_producer& p, u32 len) {
    if (is_torn(p))
        return refused(lanes, p.mailbox.header, p.mailbox.scope, WM_END_PRODUCER, refusal::index, WM_BAD_INDEX);
    if (len > payload_bytes(p.mailbox))
        return refused(lanes, p.mailbox.header, p.mailbox.scope, WM_END_PRODUCER, refusal::length, WM_BAD_LENGTH);
    return WM_FULL;
}

// Pushes one record. WM_OK, WM_FULL, WM_BAD_LENGTH, WM_BAD_ARGUMENT, WM_BAD_INDEX (read_idx cannot be). Costs one slot
// of stores; ordering as `put`.
template <order O = order::ordered, class L>
WM_FN wm_status try_push(L lanes, wm_producer& p, const void* src, u32 len, u32 type) {
    if (reserve(lanes, p, 1) == 0)
        return no_room(lanes, p, len);
    const wm_status s = put<O>(lanes, p, 0, src, len, type);
    if (s == WM_OK)
        commit(lanes, p, 1);
    return s;
}

// Pushes up to n records of one length and type that lie `src_step` bytes apart; the number pushed is in `pushed`, 0
// with WM_FULL. One fence, one publication.
template <order O = order::ordered, class L>
WM_FN wm_status try_push_batch(L lanes, wm_producer& p, const void* src, u64 src_step, u32 len, u32 type, u32 n,
                               u32& pushed) {
    pushed = 0;
    const u32 room = static_cast<u32>(reserve(lanes, p, n));
    if (room == 0)
        return n == 0 ? WM_OK : no_room(lanes, p, len);
    wm_status s = put<O>(lanes, p, 0, src, len, type);
    if (s != WM_OK)
        return s;
    // What was written before the batch is behind the first record's fence, for these too; a single thread's release is
    // in each head's own store.
    constexpr order rest = L::is_group() ? order::self_contained : O;
    for (u32 i = 1; i < room; i++)
        put<rest>(lanes, p, i, static_cast<const u8*>(src) + i * src_step, len, type);
    commit(lanes, p, room);
    pushed = room;
    return WM_OK;
}

// Looks at the next record and leaves it there. WM_OK, WM_EMPTY, WM_BAD_LENGTH (the length cannot be: release it).
// Ordering: with order::ordered what its producer wrote before the push is visible from here on.
template <order O = order::ordered, class L> WM_FN wm_status peek(L lanes, wm_consumer& c, u32& len, u32& type) {
    lanes.check();
    if (!seems_ready(lanes, c) || !peek_slot<O>(lanes, slot_at(c.mailbox, c.read_idx), any_form(c.mailbox),
                                                lap_tag(c.read_idx, c.mailbox.slots_log2), len, type))
        return WM_EMPTY;
    if (len > payload_bytes(c.mailbox))
        return refused(lanes, c.mailbox.header, c.mailbox.scope, WM_END_CONSUMER, refusal::length, WM_BAD_LENGTH);
    return WM_OK;
}

// Copies the next record out and leaves it there. WM_OK, WM_EMPTY, WM_TOO_SMALL (len says what it needs),
// WM_BAD_LENGTH, WM_BAD_ARGUMENT. dst is unspecified unless WM_OK.
template <order O = order::ordered, class L>
WM_FN wm_status get(L lanes, wm_consumer& c, void* dst, u32 dst_bytes, u32& len, u32& type) {
    lanes.check();
    if (dst == nullptr && dst_bytes != 0)
        return refused(lanes, c.mailbox.header, c.mailbox.scope, WM_END_CONSUMER, refusal::argument, WM_BAD_ARGUMENT);
    if (!seems_ready(lanes, c))
        return WM_EMPTY;
    bring_ready_near(lanes, c);
    const u64* slot = slot_at(c.mailbox, c.read_idx);
    const u64 tag = lap_tag(c.read_idx, c.mailbox.slots_log2);
    u32 l = 0, t = 0;
    const bool fresh =
        c.mailbox.record_stride == WM_STRIDE_DEFAULT && (has_one_scope || c.mailbox.scope == WM_SCOPE_GPU)
            ? read_slot<O>(lanes, slot, default_form{}, tag, dst, dst_bytes, l, t)
            : read_slot<O>(lanes, slot, any_form(c.mailbox), tag, dst, dst_bytes, l, t);
    if (!fresh)
        return WM_EMPTY;
    len = l;
    type = t;
    if (l > payload_bytes(c.mailbox))
        return refused(lanes, c.mailbox.header, c.mailbox.scope, WM_END_CONSUMER, refusal::length, WM_BAD_LENGTH);
    return l > dst_bytes ? WM_TOO_SMALL : WM_OK;
}

// Gives the slots of the next n records back to the producer. Precondition: peek or get said that they are there.
template <class L> WM_FN void release(L lanes, wm_consumer& c, u64 n) {
    c.read_idx += n;
    lanes.sync(); // every lane has taken its words and sees those of the others
    if (lanes.rank() == 0)
        publish_read(c);
}

// Pops one record into dst: get, and release unless it was too large for dst. An impossible record is dropped.
template <order O = order::ordered, class L>
WM_FN wm_status try_pop(L lanes, wm_consumer& c, void* dst, u32 dst_bytes, u32& len, u32& type) {
    const wm_status s = get<O>(lanes, c, dst, dst_bytes, len, type);
    if (s == WM_OK || s == WM_BAD_LENGTH)
        release(lanes, c, 1);
    return s;
}

// Pops up to n records to places `dst_step` bytes apart, each of at most dst_bytes; lens and types (n each) may be
// null. WM_OK with the number in `popped`, WM_EMPTY, or what the first record was refused for. One publication.
template <order O = order::ordered, class L>
WM_FN wm_status try_pop_batch(L lanes, wm_consumer& c, void* dst, u64 dst_step, u32 dst_bytes, u32* lens, u32* types,
                              u32 n, u32& popped) {
    wm_consumer ahead = c;
    wm_status s = WM_EMPTY;
    for (popped = 0; popped < n; popped++, ahead.read_idx++) {
        u32 len = 0, type = 0;
        s = get<O>(lanes, ahead, static_cast<u8*>(dst) + popped * dst_step, dst_bytes, len, type);
        if (s != WM_OK)
            break;
        if (lens && lanes.rank() == 0)
            lens[popped] = len;
        if (types && lanes.rank() == 0)
            types[popped] = type;
    }
    c.write_seen = ahead.write_seen;
    if (popped)
        release(lanes, c, popped);
    else if (s == WM_BAD_LENGTH)
        release(lanes, c, 1);
    return popped ? WM_OK : s;
}

// Prepares a ring, empty, whose first record has index `start`: for tests that force a wrap, and for recovery. Nobody
// else may touch the mailbox meanwhile.
WM_FN void clear_mailbox(const wm_mailbox& m, u64 start) {
    for (u64 i = 0; i < slot_count(m); i++)
        clear_slot(slot_at(m, start + i), any_form(m), lap_tag(start + i, m.slots_log2));
    store_relaxed(write_idx_of(m), start, m.scope);
    store_relaxed(read_idx_of(m), start, m.scope);
    if (m.written)
        publish(at<u64>(m.written), start, 0, m.producer_side);
    if (m.consumed)
        publish(at<u64>(m.consumed), start, 0, m.consumer_side);
}

} // namespace warpmail

#endif
