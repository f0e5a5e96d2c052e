// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A warp moves two groups with one instruction, 16 bytes a lane: half a warp a group. A warp's path to L2 takes about
// as long for 512 bytes in this way as for 256 in words. The bytes are those of slot.hpp; each word still carries its
// own tag, so nothing is asked of an access of 16 bytes but that each of its words is whole.
#ifndef WARPMAIL_PROTOCOL_SLOT_WIDE_HPP
#define WARPMAIL_PROTOCOL_SLOT_WIDE_HPP

#include "protocol/slot.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

constexpr u32 wide_bytes = 512; // of slots, in one instruction

// Where a lane is: its half of the warp has a group, of which it has the words 2 * column and 2 * column + 1.
WM_FN u32 wide_half(warp_lanes lanes) {
    return lanes.rank() >> 4;
}
WM_FN u32 wide_column(warp_lanes lanes) {
    return lanes.rank() & 15u;
}

// Bit 31 says that a word does not carry the tag; the other bits mean nothing.
WM_FN u32 wide_stale(wide_word v, u64 tag) {
    return (upper_half(v.low) ^ upper_half(tag)) | (upper_half(v.high) ^ upper_half(tag));
}
WM_FN bool is_wide_fresh(wide_word v, u64 tag) {
    return static_cast<int32_t>(wide_stale(v, tag)) >= 0;
}

// The payload words of up to 16 units become slot words. The bits that the tags displace are gathered for all units at
// once: each lane packs those of its words, hands them to the lane that has that word's number, and a vote for each
// group gives them in the order of the words.
template <u32 Units> class wide_tagger {
    static_assert(Units <= 16, "two bits a unit");

public:
    // Unit u; what column 0 passes in `low` does not matter, that word is the head.
    WM_FN void add(u32 u, wide_word v) {
        const u32 two = (upper_half(v.high) >> 30 & 2u) | upper_half(v.low) >> 31;
        mine_ |= two << (2 * u);
    }
    // All units have been added.
    WM_FN void exchange(warp_lanes lanes) {
        for (u32 h = 0; h < 2; h++)
            of_word_[h] = lanes.broadcast(mine_, 16 * h + lanes.rank() / 2) >> (lanes.rank() & 1u);
    }
    // The slot words of unit u for its payload words; `meta` for the head.
    WM_FN wide_word tagged(warp_lanes lanes, u32 u, wide_word v, u64 tag, u32 meta) const {
        const u32 head[2] = {lanes.ballot((of_word_[0] >> (2 * u) & 1u) != 0) >> 1,
                             lanes.ballot((of_word_[1] >> (2 * u) & 1u) != 0) >> 1};
        const bool is_head = wide_column(lanes) == 0;
        const u32 low = is_head ? (wide_half(lanes) ? head[1] : head[0]) : upper_half(v.low) & 0x7FFFFFFFu;
        const u32 lowest = is_head ? meta : static_cast<u32>(v.low);
        return {static_cast<u64>(low | upper_half(tag)) << 32 | lowest,
                static_cast<u64>((upper_half(v.high) & 0x7FFFFFFFu) | upper_half(tag)) << 32 |
                    static_cast<u32>(v.high)};
    }

private:
    u32 mine_ = 0, of_word_[2] = {};
};

// The head's upper half, for the lanes of its group.
WM_FN u32 wide_head(warp_lanes lanes, wide_word v) {
    return lanes.broadcast(upper_half(v.low), lanes.rank() & 16u);
}
// The payload words that the lane's slot words stand for; column 0 has none in `low`.
WM_FN wide_word wide_restored(warp_lanes lanes, wide_word v, u32 head) {
    const u32 column = wide_column(lanes);
    const u32 low = head << ((32 - 2 * column) & 31u), high = head << (31 - 2 * column);
    return {static_cast<u64>((upper_half(v.low) & 0x7FFFFFFFu) | (low & 0x80000000u)) << 32 | static_cast<u32>(v.low),
            static_cast<u64>((upper_half(v.high) & 0x7FFFFFFFu) | (high & 0x80000000u)) << 32 |
                static_cast<u32>(v.high)};
}

} // namespace warpmail

#endif
#endif
