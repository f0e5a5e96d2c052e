// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A whole group of a slot by one x86 thread, a cache line at a time: what slot_thread.hpp does with pairs of words,
// where the processor has AVX-512. The same bytes. A group is four lines; payload word i is slot word i + 1, so what is
// moved is shifted by a word.
#ifndef WARPMAIL_PROTOCOL_SLOT_LINES_HPP
#define WARPMAIL_PROTOCOL_SLOT_LINES_HPP

#include "protocol/slot.hpp"

#if defined(WM_HOST_PAIRS)
#include <emmintrin.h>

namespace warpmail {

// One word, and two, each loaded on its own. A caller has mostly just written them: a load of more than what one store
// wrote waits until that has left the store buffer, behind the stores to the ring, for longer than a record takes.
WM_FN __m128i load_one(const u64* from) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
}
WM_FN __m128i load_two(const u64* from) {
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(load_one(from)), reinterpret_cast<const __m64*>(from + 1)));
}

} // namespace warpmail
#endif

#if defined(WM_HOST_LINES)
#include <immintrin.h>

namespace warpmail {

// The last seven words of a line whose first is `v`: each loaded on its own, see load_two.
WM_LINES __m512i load_seven(__m512i v, const u64* from) {
    v = _mm512_mask_broadcastq_epi64(v, 1u << 1, load_one(from));
    v = _mm512_mask_broadcastq_epi64(v, 1u << 2, load_one(from + 1));
    v = _mm512_mask_broadcastq_epi64(v, 1u << 3, load_one(from + 2));
    v = _mm512_mask_broadcastq_epi64(v, 1u << 4, load_one(from + 3));
    v = _mm512_mask_broadcastq_epi64(v, 1u << 5, load_one(from + 4));
    v = _mm512_mask_broadcastq_epi64(v, 1u << 6, load_one(from + 5));
    return _mm512_mask_broadcastq_epi64(v, 1u << 7, load_one(from + 6));
}
// Line `i` of the slot, but for tags and head: payload words from 8 * i - 1 on.
WM_LINES __m512i load_line(const u64* from, u32 i) {
    const __m512i first =
        i == 0 ? _mm512_setzero_si512() : _mm512_maskz_broadcastq_epi64(1, load_one(from + 8 * i - 1));
    return load_seven(first, from + 8 * i);
}
WM_LINES u64 tops(__m512i v) {
    return static_cast<u64>(_cvtmask8_u32(_mm512_movepi64_mask(v)));
}
// Words [n, n + 8) of the sixteen. With a mask of all, because what the header of some compilers does without one they
// warn of themselves.
template <int N> WM_LINES __m512i shifted(__m512i low, __m512i high) {
    return _mm512_maskz_alignr_epi64(0xFF, high, low, N);
}
// A line of the slot, each word with the tag.
WM_LINES word_line tagged_line(__m512i v, __m512i tags) {
    const __m512i keep = _mm512_set1_epi64(static_cast<long long>(~tag_mask));
    constexpr int keep_or_tag = 0xEA; // (word & keep) | tags
    return word_line(_mm512_ternarylogic_epi64(v, keep, tags, keep_or_tag));
}
// Eight payload words: the last seven of `low`, then the first of `high`. The tag of each is taken away, and its own
// bit, which stands in the head, put in its place.
WM_LINES __m512i restored_line(__m512i low, __m512i high, u64 bits) {
    const __m512i top = _mm512_set1_epi64(static_cast<long long>(tag_mask));
    const __m512i v = shifted<1>(low, high) & ~top;
    return _mm512_mask_or_epi64(v, _cvtu32_mask8(static_cast<u32>(bits) & 0xFFu), v, top);
}

// Writes the group with `meta` in its head; the line with the head last, as in write_group_pairs.
WM_LINES void write_group_lines(u64* group, u64 tag, const u64* from, u64 meta) {
    const __m512i tags = _mm512_set1_epi64(static_cast<long long>(tag));
    const __m512i v0 = load_line(from, 0), v1 = load_line(from, 1), v2 = load_line(from, 2), v3 = load_line(from, 3);
    const u64 displaced = (tops(v0) | tops(v1) << 8 | tops(v2) << 16 | tops(v3) << 24) >> 1;
    const u64 head = displaced << WM_HEAD_BITS_SHIFT | meta;
    store_relaxed_line(group + 24, tagged_line(v3, tags));
    store_relaxed_line(group + 16, tagged_line(v2, tags));
    store_relaxed_line(group + 8, tagged_line(v1, tags));
    store_release_line(group, tagged_line(_mm512_mask_set1_epi64(v0, 1, static_cast<long long>(head)), tags));
}

// Reads the group behind its head, whose word was loaded before. Whether every word carried the tag.
WM_LINES bool read_group_lines(const u64* group, u64 tag, u64 head, u64* to) {
    const __m512i tags = _mm512_set1_epi64(static_cast<long long>(tag));
    const u64 bits = head >> WM_HEAD_BITS_SHIFT;
    const __m512i l0 = __m512i(load_relaxed_line(group)), l1 = __m512i(load_relaxed_line(group + 8)),
                  l2 = __m512i(load_relaxed_line(group + 16)), l3 = __m512i(load_relaxed_line(group + 24));
    const __m512i differs = (l0 ^ tags) | (l1 ^ tags) | (l2 ^ tags) | (l3 ^ tags);
    _mm512_storeu_si512(to, restored_line(l0, l1, bits));
    _mm512_storeu_si512(to + 8, restored_line(l1, l2, bits >> 8));
    _mm512_storeu_si512(to + 16, restored_line(l2, l3, bits >> 16));
    const __m512i last = restored_line(l3, l3, bits >> 24); // seven words
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 24), _mm512_maskz_extracti64x4_epi64(0xF, last, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 28), _mm512_maskz_extracti64x2_epi64(3, last, 2));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 30), _mm512_maskz_extracti64x2_epi64(3, last, 3));
    return tops(differs) == 0;
}

} // namespace warpmail
#endif

#endif
