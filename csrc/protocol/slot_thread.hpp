// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// One thread writes or reads a slot: on the host, and on the device for callers that are a single thread.
#ifndef WARPMAIL_PROTOCOL_SLOT_THREAD_HPP
#define WARPMAIL_PROTOCOL_SLOT_THREAD_HPP

#include "protocol/slot_lines.hpp"

namespace warpmail {

#if defined(WM_HOST_PAIRS)
// A whole group by one x86 thread, two words at a time: one instruction gathers two displaced bits. `from` and `to` are
// the 31 payload words, of any alignment. The same bytes as write_group and read_group.
//
// Payload word i is slot word i + 1, so a pair of the slot straddles two pairs of the payload, which is stored in pairs
// from its own beginning.
WM_FN word_pair straddle(__m128i low, __m128i high) {
    return word_pair(_mm_castpd_si128(_mm_shuffle_pd(_mm_castsi128_pd(low), _mm_castsi128_pd(high), 1)));
}
WM_FN u64 top_bits(__m128i v) {
    return static_cast<u64>(_mm_movemask_pd(_mm_castsi128_pd(v)));
}
// Writes the group with `meta` in its head. The pair with the head is stored last: x86 keeps the order of stores, which
// makes it a release, and a consumer that polls the head gets its cache line only when the rest is there.
WM_FN void write_group_pairs(u64* group, u64 tag, const u64* from, u64 meta) {
    const __m128i tags = _mm_set1_epi64x(static_cast<long long>(tag));
    const __m128i keep = _mm_set1_epi64x(static_cast<long long>(~tag_mask));
    __m128i high = load_one(from + WM_GROUP_WORDS - 2);
    u64 displaced = (from[WM_GROUP_WORDS - 2] >> WM_TAG_SHIFT) << (WM_GROUP_WORDS - 2);
#pragma GCC unroll 15
    for (u32 i = WM_GROUP_WORDS - 2; i >= 2; i -= 2) {
        const __m128i low = load_two(from + i - 2);
        displaced |= top_bits(low) << (i - 2);
        const __m128i v = __m128i(straddle(low, high));
        store_relaxed_pair(group + i, word_pair(_mm_or_si128(_mm_and_si128(v, keep), tags)));
        high = low;
    }
    const __m128i head = _mm_cvtsi64_si128(static_cast<long long>(displaced << WM_HEAD_BITS_SHIFT | meta));
    const __m128i first = _mm_unpacklo_epi64(head, _mm_and_si128(high, keep));
    store_release_pair(group, word_pair(_mm_or_si128(first, tags)));
}
// Reads the group behind its head, whose word was loaded before.
WM_FN bool read_group_pairs(const u64* group, u64 tag, u64 head, u64* to) {
    const __m128i tags = _mm_set1_epi64x(static_cast<long long>(tag));
    const __m128i keep = _mm_set1_epi64x(static_cast<long long>(~tag_mask));
    // The bit of word i + 1 stands one place above that of word i: with the head one place apart, one shift serves
    // both.
    const __m128i heads = _mm_set_epi64x(static_cast<long long>(head >> 1), static_cast<long long>(head));
    __m128i low = __m128i(load_relaxed_pair(group));
    __m128i differs = _mm_unpackhi_epi64(_mm_xor_si128(low, tags), _mm_setzero_si128());
#pragma GCC unroll 15
    for (u32 i = 0; i < WM_GROUP_WORDS - 2; i += 2) {
        const __m128i high = __m128i(load_relaxed_pair(group + i + 2));
        differs = _mm_or_si128(differs, _mm_xor_si128(high, tags));
        const __m128i bits = _mm_slli_epi64(heads, static_cast<int>(WM_HEAD_BITS_SHIFT - 1 - i));
        const __m128i v = _mm_and_si128(__m128i(straddle(low, high)), keep);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm_or_si128(v, _mm_andnot_si128(keep, bits)));
        low = high;
    }
    const u64 last = static_cast<u64>(_mm_cvtsi128_si64(_mm_unpackhi_epi64(low, low)));
    to[WM_GROUP_WORDS - 2] = (last & ~tag_mask) | ((head << 1) & tag_mask);
    return (top_bits(differs)) == 0;
}
#endif

// One group. `N` is its size when it is known at compile time, else 0; `whole` says that src (dst) is aligned and
// covers every word of the group, which needs no care for the end. `first` is the group's first payload word.
template <u32 N, order O>
WM_FN void write_group(u64* group, u32 words, u64 tag, const u8* src, u32 len, u32 first, bool whole, u64 meta,
                       u32 scope) {
    const u32 n = N ? N : words;
    u64 displaced = 0;
    if (whole) {
        const u64* from = reinterpret_cast<const u64*>(src) + first;
#if defined(WM_HOST_PAIRS)
#if defined(WM_HOST_LINES)
        if (N == WM_GROUP_WORDS && has_lines)
            return write_group_lines(group, tag, from, meta);
#endif
        if (N == WM_GROUP_WORDS)
            return write_group_pairs(group, tag, from, meta);
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
    store_head<O>(group, displaced >> (WM_GROUP_WORDS + 1 - n) | meta | tag, scope);
}

// The words of one group behind its head; whether every one carried the tag.
template <u32 N>
WM_FN bool read_group(const u64* group, u32 words, u64 tag, u64 head, u8* dst, u32 len, u32 first, bool whole,
                      u32 scope) {
    const u32 n = N ? N : words;
    u64 differs = 0;
    if (whole) {
        u64* to = reinterpret_cast<u64*>(dst) + first;
#if defined(WM_HOST_PAIRS)
#if defined(WM_HOST_LINES)
        if (N == WM_GROUP_WORDS && has_lines)
            return read_group_lines(group, tag, head, to);
#endif
        if (N == WM_GROUP_WORDS)
            return read_group_pairs(group, tag, head, to);
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

// Writes the slot. Precondition (S1): the slot is free. Backwards: the first head comes last.
template <order O, class F>
WM_FN void write_slot(one_lane, u64* slot, F form, u64 tag, const void* src, u32 len, u32 type) {
    const u8* bytes = static_cast<const u8*>(src);
    for (u32 g = groups_in(form.stride()); g-- > 0;) {
        u64* group = slot + g * WM_GROUP_WORDS;
        const u32 n = group_words(form.stride(), g), first = g * (WM_GROUP_WORDS - 1);
        const bool whole = is_whole(bytes, len, first, n - 1);
        if (g != 0 && n == WM_GROUP_WORDS)
            write_group<WM_GROUP_WORDS, order::self_contained>(group, n, tag, bytes, len, first, whole, 0,
                                                               form.scope());
        else if (g != 0)
            write_group<0, order::self_contained>(group, n, tag, bytes, len, first, whole, 0, form.scope());
        else if (n == WM_GROUP_WORDS)
            write_group<WM_GROUP_WORDS, O>(group, n, tag, bytes, len, first, whole, pack_meta(len, type), form.scope());
        else
            write_group<0, O>(group, n, tag, bytes, len, first, whole, pack_meta(len, type), form.scope());
    }
}

// Whether every word of the slot carries the tag; length and type from its head. The acquire of S4.
template <order O, class F> WM_FN bool peek_slot(one_lane, const u64* slot, F form, u64 tag, u32& len, u32& type) {
    const u64 head = load_head<O>(slot, form.scope());
    u64 differs = head ^ tag;
    if (differs & tag_mask)
        return false;
    for (u32 i = 1; i < words_in(form.stride()); i++)
        differs |= load_relaxed(slot + i, form.scope()) ^ tag;
    len = meta_len(head);
    type = meta_type(head);
    return (differs & tag_mask) == 0;
}

// Reads the slot. False: not every word carries the tag yet; dst may have been written in part. `len` and `type` come
// from the head; a len beyond `dst_bytes` copies nothing and returns true, so that the caller can refuse it.
template <order O, class F>
WM_FN bool read_slot(one_lane, const u64* slot, F form, u64 tag, void* dst, u32 dst_bytes, u32& len, u32& type) {
    u64 head = load_head<O>(slot, form.scope());
    if ((head ^ tag) & tag_mask)
        return false;
    len = meta_len(head);
    type = meta_type(head);
    u8* bytes = static_cast<u8*>(dst);
    const u32 copy = len <= dst_bytes && len <= payload_in(form.stride()) ? len : 0;
    for (u32 g = 0; g < groups_in(form.stride()); g++) {
        const u64* group = slot + g * WM_GROUP_WORDS;
        const u32 n = group_words(form.stride(), g), first = g * (WM_GROUP_WORDS - 1);
        if (g != 0) {
            head = load_relaxed(group, form.scope());
            if ((head ^ tag) & tag_mask)
                return false;
        }
        const bool whole = is_whole(bytes, copy, first, n - 1);
        const bool fresh =
            n == WM_GROUP_WORDS
                ? read_group<WM_GROUP_WORDS>(group, n, tag, head, bytes, copy, first, whole, form.scope())
                : read_group<0>(group, n, tag, head, bytes, copy, first, whole, form.scope());
        if (!fresh)
            return false;
    }
    return true;
}

} // namespace warpmail

#endif
