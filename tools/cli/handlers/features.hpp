// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Features of a line: hashed byte 3-grams. Integer arithmetic only, so that a warp, a thread and a reference agree
// exactly.
//   text      the line, ASCII letters lower-cased
//   n-gram    three neighbouring bytes; a shorter line is one n-gram, with its length in the fourth byte
//   vector    bins[hash mod 256] += +1 or -1 by the hash's top bit (feature hashing, Weinberger et al. 2009), scaled to
//             length ND_SCALE
//   minima    MinHash (Broder 1997) with 48 linear permutations; three of them make a band's key
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

WM_FN u32 mix(u32 x) {
    x *= 0x9E3779B1u;
    x ^= x >> 15;
    x *= 0x2C1B3C6Du;
    x ^= x >> 12;
    return x;
}

// The k-th permutation of 32-bit hashes.
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

// count * ND_SCALE / length, rounded to zero; `length` is 256 times the vector's.
WM_FN int16_t scaled(int32_t count, u32 length) {
    return static_cast<int16_t>(static_cast<int64_t>(count) * (ND_SCALE * 256) /
                                static_cast<int64_t>(length ? length : 1));
}

// The cosine of two vectors of length ND_SCALE from their dot product, in ND_ONE, from 0 up.
WM_FN u32 similarity(int64_t dot) {
    const int64_t s = dot * ND_ONE / (static_cast<int64_t>(ND_SCALE) * ND_SCALE);
    return s < 0 ? 0u : s > ND_ONE ? ND_ONE : static_cast<u32>(s);
}

} // namespace neardup

#endif
