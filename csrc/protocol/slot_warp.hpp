// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A warp or a block writes or reads a slot: a word a lane, a group at a time, coalesced.
#ifndef WARPMAIL_PROTOCOL_SLOT_WARP_HPP
#define WARPMAIL_PROTOCOL_SLOT_WARP_HPP

#include "protocol/slot.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

// A lane's payload word `w`; `even` says that src is aligned and len a multiple of 8, the same for all lanes.
WM_FN u64 lane_load(const u8* src, u32 len, u32 w, bool even) {
    if (even)
        return w * 8 < len ? *reinterpret_cast<const u64*>(src + w * 8) : 0;
    return load_payload(src, len, w, is_wide(src));
}
WM_FN void lane_store(u8* dst, u32 len, u32 w, u64 v, bool even) {
    if (!even)
        store_payload(dst, len, w, v, is_wide(dst));
    else if (w * 8 < len)
        *reinterpret_cast<u64*>(dst + w * 8) = v;
}

// The lane's slot word for its payload word `v`, of one group; what lane 0 passes does not matter, its word is the
// head, with `meta`.
WM_FN u64 tagged(warp_lanes lanes, u64 v, u64 tag, u64 meta) {
    u32 high = upper_half(v), low = static_cast<u32>(v);
    const u32 displaced = lanes.ballot(static_cast<int32_t>(high) < 0) >> 1;
    high = lanes.rank() == 0 ? displaced : high & 0x7FFFFFFFu;
    low = lanes.rank() == 0 ? static_cast<u32>(meta) : low;
    return static_cast<u64>(high | upper_half(tag)) << 32 | low;
}

// Whether the lane's slot word carries the tag.
WM_FN bool is_fresh(u64 v, u64 tag) {
    return static_cast<int32_t>(upper_half(v) ^ upper_half(tag)) >= 0;
}

// The payload word that the lane's slot word stands for; `head` is the upper half of the group's head. Lanes from 1 on.
WM_FN u64 restored(warp_lanes lanes, u64 v, u32 head) {
    const u32 bit = head << ((WM_HEAD_BITS_SHIFT - lanes.rank()) & 31u) & 0x80000000u;
    return (v & ~tag_mask) | static_cast<u64>(bit) << 32;
}

// The release of S4 by a warp's or block's lane 0: the barrier hands it what the other lanes wrote before; the fence
// stands before the slot's own words, so it waits for nothing that was not written before the push.
template <order O, class L> WM_FN void release_slot(L lanes, u32 scope) {
    if (!releases(O))
        return;
    lanes.sync();
    if (lanes.rank() == 0)
        fence_release(scope);
}

// The acquire of S4, once the words are seen to be fresh: by every lane, whether it loaded the head itself or learned
// of it from lane 0.
template <order O, class L> WM_FN void acquire_slot(L lanes, u32 scope) {
    if (!acquires(O))
        return;
    fence_acquire(scope);
    lanes.sync();
}

// The groups from `first` on, `step` apart, by one warp; `v` are their payload words in the caller's memory.
template <class F>
WM_FN void write_groups(warp_lanes lanes, u64* slot, F form, u64 tag, const u8* src, u32 len, u64 meta, u32 first,
                        u32 step) {
    const bool even = is_wide(src) && len % 8 == 0;
    const u32 lane = lanes.rank();
    for (u32 g = first; g < groups_in(form.stride()); g += step) {
        const u64 v = lane == 0 ? 0 : lane_load(src, len, g * (WM_GROUP_WORDS - 1) + lane - 1, even);
        const u64 word = tagged(lanes, v, tag, g == 0 ? meta : 0);
        if (lane < group_words(form.stride(), g))
            store_relaxed(slot + g * WM_GROUP_WORDS + lane, word, form.scope());
    }
}

// Reads those groups into dst; whether every word carried the tag. Dst may have been written in part if not.
template <class F>
WM_FN bool read_groups(warp_lanes lanes, const u64* slot, F form, u64 tag, u8* dst, u32 dst_bytes, u32& len, u32& type,
                       u32 first, u32 step) {
    const u32 lane = lanes.rank();
    u32 copy = 0;
    bool even = false;
    for (u32 g = first; g < groups_in(form.stride()); g += step) {
        const u32 n = group_words(form.stride(), g);
        const u64* word = slot + g * WM_GROUP_WORDS + lane;
        const u64 v = lane >= n ? tag : load_relaxed(word, form.scope());
        if (!lanes.all(is_fresh(v, tag)))
            return false;
        const u64 head = lanes.broadcast(v, 0);
        if (g == first) {
            if (g == 0) {
                len = meta_len(head);
                type = meta_type(head);
            }
            copy = len <= dst_bytes && len <= payload_in(form.stride()) ? len : 0;
            even = is_wide(dst) && copy % 8 == 0;
        }
        if (lane != 0 && lane < n)
            lane_store(dst, copy, g * (WM_GROUP_WORDS - 1) + lane - 1,
                       restored(lanes, v, static_cast<u32>(head >> WM_HEAD_BITS_SHIFT)), even);
    }
    return true;
}

// A converged warp writes the slot. Precondition (S1): the slot is free.
template <order O, class F>
WM_FN void write_slot(warp_lanes lanes, u64* slot, F form, u64 tag, const void* src, u32 len, u32 type) {
    release_slot<O>(lanes, form.scope());
    write_groups(lanes, slot, form, tag, static_cast<const u8*>(src), len, pack_meta(len, type), 0, 1);
}

// A converged warp reads the slot; every lane gets the same result. See read_slot of one thread.
template <order O, class F>
WM_FN bool read_slot(warp_lanes lanes, const u64* slot, F form, u64 tag, void* dst, u32 dst_bytes, u32& len,
                     u32& type) {
    if (!read_groups(lanes, slot, form, tag, static_cast<u8*>(dst), dst_bytes, len, type, 0, 1))
        return false;
    acquire_slot<O>(lanes, form.scope());
    return true;
}

// Whether every word of the slot carries the tag; length and type from its head.
template <order O, class F>
WM_FN bool peek_slot(warp_lanes lanes, const u64* slot, F form, u64 tag, u32& len, u32& type) {
    // Half of the longest slot is asked for at once, two words a lane with each load.
    constexpr u32 at_once = 4, step = 2 * warp_lanes::width();
    const u32 words = words_in(form.stride());
    u32 head = 0, stale = 0;
    WM_ROLLED
    for (u32 first = 2 * lanes.rank(); first < words; first += at_once * step) {
        u64 v[at_once][2];
        WM_UNROLLED
        for (u32 i = 0; i < at_once; i++) {
            v[i][0] = v[i][1] = tag;
            if (first + i * step < words)
                load_relaxed_two_sys(slot + first + i * step, v[i]); // whichever scope it is
        }
        WM_UNROLLED
        for (u32 i = 0; i < at_once; i++)
            stale |= (upper_half(v[i][0]) ^ upper_half(tag)) | (upper_half(v[i][1]) ^ upper_half(tag));
        head = first == 0 ? static_cast<u32>(v[0][0]) : head;
    }
    head = lanes.broadcast(head, 0);
    len = meta_len(head);
    type = meta_type(head);
    if (!lanes.all((stale & 0x80000000u) == 0))
        return false;
    acquire_slot<O>(lanes, form.scope());
    return true;
}

// A block writes the slot: warp w of W the groups w, w + W, ...; group 0, whose head is the release, belongs to warp 0.
template <order O, class F>
WM_FN void write_slot(block_lanes lanes, u64* slot, F form, u64 tag, const void* src, u32 len, u32 type) {
    release_slot<O>(lanes, form.scope());
    write_groups(warp_lanes{}, slot, form, tag, static_cast<const u8*>(src), len, pack_meta(len, type),
                 lanes.rank() / 32, lanes.width() / 32);
    lanes.sync(); // src may be used again when the call returns, whichever warp read it
}

// A block reads the slot. Every thread looks at the first head, for the length and the acquire.
template <order O, class F>
WM_FN bool read_slot(block_lanes lanes, const u64* slot, F form, u64 tag, void* dst, u32 dst_bytes, u32& len,
                     u32& type) {
    const u64 head = load_relaxed(slot, form.scope());
    bool fresh = warp_lanes{}.all(is_fresh(head, tag));
    if (fresh) {
        len = meta_len(head);
        type = meta_type(head);
        fresh = read_groups(warp_lanes{}, slot, form, tag, static_cast<u8*>(dst), dst_bytes, len, type,
                            lanes.rank() / 32, lanes.width() / 32);
    }
    if (!lanes.all(fresh))
        return false;
    acquire_slot<O>(lanes, form.scope());
    return true;
}

template <order O, class F>
WM_FN bool peek_slot(block_lanes lanes, const u64* slot, F form, u64 tag, u32& len, u32& type) {
    const bool fresh = peek_slot<order::self_contained>(warp_lanes{}, slot, form, tag, len, type);
    if (!lanes.all(fresh))
        return false;
    acquire_slot<O>(lanes, form.scope()); // every warp has looked at the head
    return true;
}

} // namespace warpmail

#endif
#endif
