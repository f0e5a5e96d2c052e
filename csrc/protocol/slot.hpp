// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The bytes of one slot, see abi.h. The ready tag travels inside every 8-byte word, so a record needs no second flag
// and no fence between payload and flag: a word that carries the tag of the expected lap *is* the data of that lap.
//
// Invariants
//   S1  A slot goes from lap n only to lap n+1: the producer writes lap n+1 only after read_idx said that lap n was
//       popped. So the parity of the lap tells fresh words from stale ones.
//   S2  Every write writes every word of the slot, whatever the length; otherwise a word would keep a tag two laps old,
//       which has the parity of the next lap.
//   S3  A reader takes a payload word only when that word itself carries the expected tag; so nothing is torn, whatever
//       order the words arrive in.
//   S4  In the ordered form the store of the first head word is a release; the reader loads it with acquire. One thread
//       stores it last; a warp stores all words at once, behind a fence.
#ifndef WARPMAIL_PROTOCOL_SLOT_HPP
#define WARPMAIL_PROTOCOL_SLOT_HPP

#include "protocol/lanes.hpp"

#if defined(WM_HOST_PAIRS)
#include <emmintrin.h>
#endif

namespace warpmail {

// What a push orders before what the pop of the same record sees.
enum class order : u32 {
    ordered,        // everything the producer wrote before: a pointer inside the record is safe to follow
    self_contained, // the record's own bytes only
};

constexpr u64 tag_mask = 1ull << WM_TAG_SHIFT;

// Tag of the record with index idx. Zeroed memory carries the tag before lap 0, so lap 0 is tagged with a one.
WM_FN u64 lap_tag(u64 idx, u32 slots_log2) {
    return ((idx >> slots_log2) & 1u) ? 0 : tag_mask;
}

// Shape of a slot.
struct slot_shape {
    u32 words;  // 8-byte words in the slot
    u32 groups; // groups of WM_GROUP_WORDS, the last may be shorter
    WM_FN explicit slot_shape(u32 stride)
        : words(stride / 8), groups((stride / 8 + WM_GROUP_WORDS - 1) / WM_GROUP_WORDS) {}
    // Bytes of payload that fit: every word but the head of each group.
    WM_FN u32 payload_bytes() const {
        return (words - groups) * 8;
    }
    WM_FN u32 group_words(u32 group) const {
        u32 left = words - group * WM_GROUP_WORDS;
        return left < WM_GROUP_WORDS ? left : WM_GROUP_WORDS;
    }
};

WM_FN bool stride_is_valid(u32 stride) {
    return stride >= WM_STRIDE_MIN && stride <= WM_STRIDE_MAX && stride % WM_STRIDE_STEP == 0;
}

WM_FN u64 pack_meta(u32 len, u32 type) {
    return static_cast<u64>(len) << WM_HEAD_LEN_SHIFT | static_cast<u64>(type & 0xFFFFu) << WM_HEAD_TYPE_SHIFT;
}
WM_FN u32 meta_len(u64 head) {
    return static_cast<u32>(head >> WM_HEAD_LEN_SHIFT) & 0xFFFFu;
}
WM_FN u32 meta_type(u64 head) {
    return static_cast<u32>(head >> WM_HEAD_TYPE_SHIFT) & 0xFFFFu;
}

// Payload word `w` of a record of `len` bytes at `src`; bytes behind the end read as zero. `wide` says that src is
// aligned to 8.
WM_FN u64 load_payload(const u8* src, u32 len, u32 w, bool wide) {
    u32 begin = w * 8;
    if (begin >= len)
        return 0;
    if (wide && begin + 8 <= len)
        return *reinterpret_cast<const u64*>(src + begin);
    u32 n = len - begin < 8 ? len - begin : 8;
    u64 v = 0;
    for (u32 i = 0; i < n; i++)
        v |= static_cast<u64>(src[begin + i]) << (8 * i);
    return v;
}

// The inverse: writes the bytes of payload word `w` that lie inside `len`.
WM_FN void store_payload(u8* dst, u32 len, u32 w, u64 v, bool wide) {
    u32 begin = w * 8;
    if (begin >= len)
        return;
    if (wide && begin + 8 <= len) {
        *reinterpret_cast<u64*>(dst + begin) = v;
        return;
    }
    u32 n = len - begin < 8 ? len - begin : 8;
    for (u32 i = 0; i < n; i++)
        dst[begin + i] = static_cast<u8>(v >> (8 * i));
}

WM_FN bool is_wide(const void* p) {
    return (reinterpret_cast<uintptr_t>(p) & 7u) == 0;
}

// The first head word is the slot's synchronisation word.
// RELEASE here, ACQUIRE in load_head.
template <order O> WM_FN void store_head(u64* word, u64 v, u32 scope) {
    if (O == order::ordered) {
        store_release(word, v, scope);
    } else {
        store_relaxed(word, v, scope);
    }
}
template <order O> WM_FN u64 load_head(const u64* word, u32 scope) {
    return O == order::ordered ? load_acquire(word, scope) : load_relaxed(word, scope);
}

#if defined(WM_HOST_PAIRS)
// A whole group by one x86 thread, two words at a time: one instruction gathers two displaced bits. `from` and `to` are
// the 31 payload words, of any alignment. The same bytes as write_group and read_group.
WM_FN u64 write_group_pairs(u64* group, u64 tag, const u64* from, u32 scope) {
    const __m128i tags = _mm_set1_epi64x(static_cast<long long>(tag));
    const __m128i keep = _mm_set1_epi64x(static_cast<long long>(~tag_mask));
    u64 displaced = from[0] >> WM_TAG_SHIFT;
    // Backwards: a consumer that polls the head gets its cache line only when the rest is there.
#pragma GCC unroll 15
    for (u32 i = WM_GROUP_WORDS - 2; i >= 2; i -= 2) {
        const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i - 1));
        displaced |= static_cast<u64>(_mm_movemask_pd(_mm_castsi128_pd(v))) << (i - 1);
        store_relaxed_pair(group + i, word_pair(_mm_or_si128(_mm_and_si128(v, keep), tags)));
    }
    store_relaxed(group + 1, (from[0] & ~tag_mask) | tag, scope);
    return displaced << WM_HEAD_BITS_SHIFT;
}
WM_FN bool read_group_pairs(const u64* group, u64 tag, u64 head, u64* to, u32 scope) {
    const __m128i tags = _mm_set1_epi64x(static_cast<long long>(tag));
    const __m128i keep = _mm_set1_epi64x(static_cast<long long>(~tag_mask));
    const u64 first = load_relaxed(group + 1, scope);
    to[0] = (first & ~tag_mask) | ((head << (WM_HEAD_BITS_SHIFT - 1)) & tag_mask);
    __m128i differs = _mm_set1_epi64x(static_cast<long long>(first ^ tag));
    // The bit of word i + 1 stands one place above that of word i: with the head one place apart, one shift serves
    // both.
    const __m128i heads = _mm_set_epi64x(static_cast<long long>(head), static_cast<long long>(head << 1));
#pragma GCC unroll 15
    for (u32 i = 2; i < WM_GROUP_WORDS; i += 2) {
        const __m128i v = __m128i(load_relaxed_pair(group + i));
        const __m128i bits = _mm_slli_epi64(heads, static_cast<int>(WM_HEAD_BITS_SHIFT - i - 1));
        differs = _mm_or_si128(differs, _mm_xor_si128(v, tags));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i - 1),
                         _mm_or_si128(_mm_and_si128(v, keep), _mm_andnot_si128(keep, bits)));
    }
    return _mm_movemask_pd(_mm_castsi128_pd(differs)) == 0;
}
#endif

// The words of one group behind its head, by one thread. `N` is the group's size when it is known at compile time, else
// 0; `whole` says that src (dst) is aligned and covers every word of the group, which needs no care for the end.
// Writing returns the displaced bits in place; reading returns whether every word carried the tag.
template <u32 N>
WM_FN u64 write_group(u64* group, u32 words, u64 tag, const u8* src, u32 len, u32 first, bool whole, u32 scope) {
    const u32 n = N ? N : words;
    u64 displaced = 0;
    if (whole) {
        const u64* from = reinterpret_cast<const u64*>(src) + first;
#if defined(WM_HOST_PAIRS)
        if (N == WM_GROUP_WORDS)
            return write_group_pairs(group, tag, from, scope);
#endif
        for (u32 i = 1; i < n; i++) {
            const u64 v = from[i - 1];
            displaced = displaced >> 1 | (v & tag_mask);
            store_relaxed(group + i, (v & ~tag_mask) | tag, scope);
        }
    } else {
        const bool wide = is_wide(src);
        for (u32 i = 1; i < n; i++) {
            const u64 v = load_payload(src, len, first + i - 1, wide);
            displaced = displaced >> 1 | (v & tag_mask);
            store_relaxed(group + i, (v & ~tag_mask) | tag, scope);
        }
    }
    return displaced >> (WM_GROUP_WORDS + 1 - n);
}
template <u32 N>
WM_FN bool read_group(const u64* group, u32 words, u64 tag, u64 head, u8* dst, u32 len, u32 first, bool whole,
                      u32 scope) {
    const u32 n = N ? N : words;
    u64 differs = 0;
    if (whole) {
        u64* to = reinterpret_cast<u64*>(dst) + first;
#if defined(WM_HOST_PAIRS)
        if (N == WM_GROUP_WORDS)
            return read_group_pairs(group, tag, head, to, scope);
#endif
        for (u32 i = 1; i < n; i++) {
            const u64 v = load_relaxed(group + i, scope);
            differs |= v ^ tag;
            to[i - 1] = (v & ~tag_mask) | ((head << (WM_HEAD_BITS_SHIFT - i)) & tag_mask);
        }
    } else {
        const bool wide = is_wide(dst);
        for (u32 i = 1; i < n; i++) {
            const u64 v = load_relaxed(group + i, scope);
            differs |= v ^ tag;
            const u64 restored = (v & ~tag_mask) | ((head << (WM_HEAD_BITS_SHIFT - i)) & tag_mask);
            store_payload(dst, len, first + i - 1, restored, wide);
        }
    }
    return (differs & tag_mask) == 0;
}

// Whether payload words [first, first + n) lie inside an aligned buffer of len bytes.
WM_FN bool is_whole(const void* p, u32 len, u32 first, u32 n) {
    return is_wide(p) && (first + n) * 8 <= len;
}

// One thread writes the slot. Precondition (S1): the slot is free.
template <order O>
WM_FN void write_slot(one_lane, u64* slot, slot_shape shape, u64 tag, const void* src, u32 len, u32 type, u32 scope) {
    const u8* bytes = static_cast<const u8*>(src);
    u64 first_head = 0;
    for (u32 g = 0; g < shape.groups; g++) {
        u64* group = slot + g * WM_GROUP_WORDS;
        const u32 n = shape.group_words(g), first = g * (WM_GROUP_WORDS - 1);
        const bool whole = is_whole(bytes, len, first, n - 1);
        const u64 displaced = n == WM_GROUP_WORDS
                                  ? write_group<WM_GROUP_WORDS>(group, n, tag, bytes, len, first, whole, scope)
                                  : write_group<0>(group, n, tag, bytes, len, first, whole, scope);
        if (g == 0) {
            first_head = displaced;
        } else {
            store_relaxed(group, displaced | tag, scope);
        }
    }
    store_head<O>(slot, first_head | pack_meta(len, type) | tag, scope);
}

// One thread reads the slot. False: not every word carries the tag yet; dst may have been written in part.
// `len` and `type` come from the head; a len beyond `dst_bytes` copies nothing and returns true, so that the caller can
// refuse it.
template <order O>
WM_FN bool read_slot(one_lane, const u64* slot, slot_shape shape, u64 tag, void* dst, u32 dst_bytes, u32& len,
                     u32& type, u32 scope) {
    u64 head = load_head<O>(slot, scope);
    if ((head & tag_mask) != tag)
        return false;
    len = meta_len(head);
    type = meta_type(head);
    u8* bytes = static_cast<u8*>(dst);
    const u32 copy = len <= dst_bytes && len <= shape.payload_bytes() ? len : 0;
    for (u32 g = 0; g < shape.groups; g++) {
        const u64* group = slot + g * WM_GROUP_WORDS;
        const u32 n = shape.group_words(g), first = g * (WM_GROUP_WORDS - 1);
        if (g != 0) {
            head = load_relaxed(group, scope);
            if ((head & tag_mask) != tag)
                return false;
        }
        const bool whole = is_whole(bytes, copy, first, n - 1);
        const bool fresh = n == WM_GROUP_WORDS
                               ? read_group<WM_GROUP_WORDS>(group, n, tag, head, bytes, copy, first, whole, scope)
                               : read_group<0>(group, n, tag, head, bytes, copy, first, whole, scope);
        if (!fresh)
            return false;
    }
    return true;
}

#if defined(__CUDACC__)
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

// One group of `n` words by a warp: a word a lane, one coalesced store. `v` is the lane's payload word, 0 in lane 0,
// whose word becomes the head with `meta`.
WM_FN void write_group(warp_lanes lanes, u64* group, u32 n, u64 tag, u64 v, u64 meta, u32 scope) {
    const u64 displaced = static_cast<u64>(lanes.ballot(static_cast<int64_t>(v) < 0) >> 1) << WM_HEAD_BITS_SHIFT;
    v = (v & ~tag_mask) | tag;
    if (lanes.rank() == 0)
        v |= displaced | meta;
    if (lanes.rank() < n)
        store_relaxed(group + lanes.rank(), v, scope);
}

// The lane's word of a group as it is now; with the tag where the group has no word for it.
template <order O> WM_FN u64 peek_group(warp_lanes lanes, const u64* group, u32 n, u64 tag, u32 scope) {
    return lanes.rank() < n ? load_head<O>(group + lanes.rank(), scope) : tag;
}

// The payload word that `v` stands for.
WM_FN u64 restored(warp_lanes lanes, u64 v, u64 head) {
    return (v & ~tag_mask) | ((head << (WM_HEAD_BITS_SHIFT - lanes.rank())) & tag_mask);
}

// A converged warp writes the slot. Precondition (S1): the slot is free. The ordered form makes lane 0's store of the
// head a release: the barrier hands it what the other lanes wrote before, the fence stands before the slot's own words,
// so it waits for nothing that was not written before the push.
template <order O>
WM_FN void write_slot(warp_lanes lanes, u64* slot, slot_shape shape, u64 tag, const void* src, u32 len, u32 type,
                      u32 scope) {
    const u8* bytes = static_cast<const u8*>(src);
    const bool even = is_wide(src) && len % 8 == 0;
    const u32 lane = lanes.rank();
    const u64 meta = pack_meta(len, type);
    if (O == order::ordered) {
        lanes.sync();
        if (lane == 0)
            fence_release(scope);
    }
    if (shape.groups == 1) {
        const u64 v = lane == 0 ? 0 : lane_load(bytes, len, lane - 1, even);
        write_group(lanes, slot, shape.words, tag, v, meta, scope);
        return;
    }
    for (u32 g = shape.groups; g-- > 0;) {
        const u64 v = lane == 0 ? 0 : lane_load(bytes, len, g * (WM_GROUP_WORDS - 1) + lane - 1, even);
        write_group(lanes, slot + g * WM_GROUP_WORDS, shape.group_words(g), tag, v, g == 0 ? meta : 0, scope);
    }
}

// A converged warp reads the slot; every lane gets the same result.
template <order O>
WM_FN bool read_slot(warp_lanes lanes, const u64* slot, slot_shape shape, u64 tag, void* dst, u32 dst_bytes, u32& len,
                     u32& type, u32 scope) {
    const u32 lane = lanes.rank();
    u64 v = peek_group<O>(lanes, slot, shape.group_words(0), tag, scope);
    if (!lanes.all(static_cast<int64_t>(v ^ tag) >= 0))
        return false;
    u64 head = lanes.broadcast(v, 0);
    // The acquire of lane 0 happens before what the other lanes read from here on.
    if (O == order::ordered)
        lanes.sync();
    len = meta_len(head);
    type = meta_type(head);
    u8* bytes = static_cast<u8*>(dst);
    const u32 copy = len <= dst_bytes && len <= shape.payload_bytes() ? len : 0;
    const bool even = is_wide(dst) && copy % 8 == 0;
    if (lane != 0 && lane < shape.group_words(0))
        lane_store(bytes, copy, lane - 1, restored(lanes, v, head), even);
    for (u32 g = 1; g < shape.groups; g++) {
        const u32 n = shape.group_words(g);
        v = peek_group<order::self_contained>(lanes, slot + g * WM_GROUP_WORDS, n, tag, scope);
        if (!lanes.all(static_cast<int64_t>(v ^ tag) >= 0))
            return false;
        head = lanes.broadcast(v, 0);
        if (lane != 0 && lane < n)
            lane_store(bytes, copy, g * (WM_GROUP_WORDS - 1) + lane - 1, restored(lanes, v, head), even);
    }
    return true;
}
#endif

// Fills a slot with the tag that the record before `idx` would have left there, so that a ring can start at any index.
WM_FN void clear_slot(u64* slot, slot_shape shape, u64 tag, u32 scope) {
    for (u32 i = 0; i < shape.words; i++)
        store_relaxed(slot + i, tag ^ tag_mask, scope);
}

} // namespace warpmail

#endif
