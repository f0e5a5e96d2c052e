// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Features of a line, as docs/near-duplicates.md defines them. Integer arithmetic only, so that a warp, a thread and
// the tests' reference agree exactly.
#ifndef NEARDUP_FEATURES_HPP
#define NEARDUP_FEATURES_HPP

#include "handlers/neardup.h"
#include "protocol/lanes.hpp"

namespace neardup {

using warpmail::u32;
using warpmail::u64;
using warpmail::u8;

WM_FN u32 lower(u8 c) {
    return c >= 'A' && c <= 'Z' ? c + 32u : c;
}

WM_FN bool is_space(u8 c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r';
}

// A permutation of 32-bit words with good avalanche: "lowbias32" of C. Wellons' hash prospector (public domain).
WM_FN u32 mix(u32 x) {
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    return x;
}

// The k-th order of the n-grams, for the k-th minimum.
WM_FN u32 permute(u32 hash, u32 k) {
    return hash * (mix(2 * k + 1) | 1u) + mix(2 * k + 2);
}

WM_FN u32 band_key(const u32* minima, u32 band) {
    u32 key = band + 1;
    for (u32 r = 0; r < ND_ROWS; r++)
        key = mix(key ^ minima[band * ND_ROWS + r]) + r;
    return key;
}

// Largest r with r * r <= v.
WM_FN u32 square_root(u64 v) {
    u64 r = 0;
    for (u64 bit = 1ull << 31; bit; bit >>= 1)
        r |= (r | bit) * (r | bit) <= v ? bit : 0;
    return static_cast<u32>(r);
}

// 2^16 times the square root, for v below 2^62; exact to the last bit up to 2^32, to 2^-16 of the root beyond.
WM_FN u64 length_of(u64 square) {
    return square >> 32 ? static_cast<u64>(square_root(square)) << 16 : square_root(square << 32);
}

// What one count becomes is count * scale / 2^32, rounded: `length` as from length_of, not 0.
WM_FN u64 scale_for(u64 length) {
    return (static_cast<u64>(ND_LENGTH) << 48) / length;
}
WM_FN int32_t scaled(int32_t count, u64 scale) {
    const u64 size = static_cast<u64>(count < 0 ? -static_cast<int64_t>(count) : count);
    const int32_t v = static_cast<int32_t>((size * scale + (1ull << 31)) >> 32);
    return count < 0 ? -v : v;
}

// 2^24 / length, rounded.
WM_FN u32 inverse_of(u32 square) {
    const u64 length = length_of(square);
    return static_cast<u32>(((1ull << 40) + length / 2) / length);
}

// The cosine from 0 up, in ND_ONE, rounded. dot * inverse * inverse is at most about 2^48 (Cauchy-Schwarz), so nothing
// overflows; the inverses are exact to 2^-18, so a vector is exactly 1.0 similar to itself.
WM_FN u32 similarity(int32_t dot, u32 inverse_a, u32 inverse_b) {
    if (dot <= 0)
        return 0;
    const u64 s = (static_cast<u64>(dot) * inverse_a * inverse_b * ND_ONE + (1ull << 47)) >> 48;
    return s > ND_ONE ? ND_ONE : static_cast<u32>(s);
}

// Asks for memory that will be read soon. A warp gains nothing by it: its lanes have their loads under way together.
WM_FN void ask_for(const void* p, u32 bytes) {
#if !defined(__CUDA_ARCH__)
    for (u32 i = 0; i < bytes; i += 64)
        __builtin_prefetch(static_cast<const u8*>(p) + i);
#else
    (void)p;
    (void)bytes;
#endif
}

// This lane's share of the dot product of two vectors of ND_DIMS bytes, 8-byte aligned.
template <class L> WM_FN int32_t dot_share(L lanes, const int8_t* a, const int8_t* b) {
    int32_t dot = 0;
#if defined(__CUDA_ARCH__)
    const int2* x = reinterpret_cast<const int2*>(a);
    const int2* y = reinterpret_cast<const int2*>(b);
    for (u32 i = lanes.rank(); i < ND_DIMS / 8; i += lanes.width())
        dot = __dp4a(x[i].y, y[i].y, __dp4a(x[i].x, y[i].x, dot));
#else
    for (u32 i = lanes.rank(); i < ND_DIMS; i += lanes.width())
        dot += a[i] * b[i];
#endif
    return dot;
}

WM_FN u32 bits(u32 v) {
#if defined(__CUDA_ARCH__)
    return static_cast<u32>(__popc(v));
#else
    return static_cast<u32>(__builtin_popcount(v));
#endif
}

// How many lanes, and how many before this one, have a bit in a ballot: where this lane's item goes when those lanes
// put theirs one after the other.
template <class L> WM_FN u32 lanes_in(L, u32 ballot) {
    return L::width() == 1 ? ballot : bits(ballot);
}
template <class L> WM_FN u32 lanes_before(L lanes, u32 ballot) {
    return L::width() == 1 ? 0 : bits(ballot & ((1u << lanes.rank()) - 1));
}

} // namespace neardup

#endif
