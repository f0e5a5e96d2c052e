// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Records of long slots, copied to a journal ring by way of registers. A warp makes a record in lines of 32 words, one
// a lane, which are whole sectors of the ring's memory, and asks for a line of the next record as soon as it has stored
// that of the present one: so a slot's worth of loads is always under way, and none waits for the bus.
//
// Word 32 * j + l of a ring's slot, the l-th lane's in line j, is a word of the head for the first four, and behind
// them payload word 32 * j + l - 4. That lies in the mailbox's slot behind the head of its group, which holds the bit
// that its tag displaces:
//
//   line j     lanes       group      word of the slot
//   any        to 34 - j   j          33 * j + l - 3
//              from 35 - j j + 1      one more: a head lies between
//   below 4    to 3 - j    j - 1      one less
//
// Only ordinary loads are used. PTX has cp.async and cp.async.bulk as weak operations, and says that to write to what
// one copies before it has ended is undefined: a slot that is polled may be written to at any time.
//
// Lane g has the head of group g, if there is one.
#ifndef WARPMAIL_PROTOCOL_PASS_LINES_HPP
#define WARPMAIL_PROTOCOL_PASS_LINES_HPP

#include "protocol/passing.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

constexpr u32 line_words = 32, head_words = sizeof(wm_journal_head) / 8;
constexpr u32 most_lines = (payload_in(WM_STRIDE_MAX) / 8 + head_words + line_words - 1) / line_words;
static_assert(most_lines == 16 && groups_in(WM_STRIDE_MAX) <= line_words, "the words of a record stay in registers");
static_assert(WM_GROUP_WORDS == line_words && head_words == 4, "what the table above says");
// How many lines are asked for ahead: as many as leave the rest of a role its registers, which depends on the device.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr u32 lines_ahead = 8;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr u32 lines_ahead = 8;
#else
constexpr u32 lines_ahead = 16;
#endif
// Lane l's bit g is lane g's bit l. `lane` is the caller's.
WM_FN u32 transposed(warp_lanes lanes, u32 lane, u32 bits) {
    u32 low = 0x0000FFFFu; // the lower half of each block of 2 * d
    WM_UNROLLED
    for (u32 d = 16; d != 0; d >>= 1) {
        const u32 other = lanes.broadcast(bits, lane ^ d);
        const bool upper = (lane & d) != 0;
        bits = select_bits(upper ? ~low : low, bits, rotated_left(other, upper ? 32 - d : d));
        low ^= low << (d / 2);
    }
    return bits;
}

// `Ahead` lines are asked for ahead, `AtOnce` of them are dealt with together. `Records`: which they are, and where
// they go.
template <u32 Ahead, u32 AtOnce, class Records = passing_records> class line_copier {
    static_assert(most_lines % Ahead == 0 && Ahead % AtOnce == 0 && AtOnce >= 1, "whole turns");

public:
    WM_FN line_copier(warp_lanes lanes, const Records& records) : lanes_(lanes), r_(records), lane_(lanes.rank()) {}

    // Copies up to `most` records, as many as have wholly arrived; gives their number. The slots of the ring behind
    // them, up to `most`, may have been written to.
    WM_FN u32 copy(u32 most) {
        if (most == 0)
            return 0;
        begin();
        u32 n = 0;
        WM_ROLLED
        while (n < most && copy_one(n, n + 1 < most))
            n++;
        return n;
    }
    WM_FN const Records& records() const {
        return r_;
    }

private:
    WM_FN u32 words() const {
        return payload_bytes(r_.box()) / 8;
    }
    // Lanes beyond the others of their line.
    WM_FN bool is_behind(u32 line) const {
        return lane_ >= 35 - line;
    }
    WM_FN bool is_before(u32 line) const {
        return line < head_words && lane_ < head_words - line;
    }
    // Whether this lane has a word of the payload there, whatever the record's length.
    WM_FN bool has_word(u32 line) const {
        return line_words * line + lane_ < words() + head_words && (line != 0 || lane_ >= head_words);
    }
    WM_FN const u64* slot(u32 n) const {
        return slot_at(r_.box(), r_.index(n));
    }

    // Asks for a line, of which every lane has a word if it is `Whole`; and for the heads. A word that is not there is
    // not stale.
    template <bool Whole> WM_FN void ask(const u64* slot, u32 line, u32 tag_high) {
        const u32 word = lane_ + is_behind(line) - is_before(line);
        const u64* const from = slot - 3;
        u64& v = v_[line % Ahead];
        if ((Whole && line != 0) || has_word(line)) // in 32 bits where it may be -1
            v = load_relaxed_sys(line < head_words ? from + (33 * line + word) : from + 33 * line + word);
        else
            v = static_cast<u64>(tag_high) << 32;
    }
    WM_FN void ask_heads(const u64* slot) {
        const u32 group = lane_ < groups_in(r_.box().record_stride) ? lane_ : 0;
        heads_ = load_relaxed_sys(slot + group * WM_GROUP_WORDS);
    }
    WM_FN u32 tag_of(u32 n) const {
        return upper_half(lap_tag(r_.index(n), r_.box().slots_log2));
    }
    WM_FN void begin() {
        const u64* const first = slot(0);
        ask_heads(first);
        WM_UNROLLED
        for (u32 j = 0; j < Ahead; j++)
            ask<false>(first, j, tag_of(0));
    }
    // What lanes 0 to 3 store of record n's head.
    WM_FN u64 head_word(u32 n, u32 len, u32 type) const {
        if (lane_ < 2)
            return r_.count(lane_ == 0, n);
        return lane_ == 2 ? r_.time_ns() : journal_head_end(r_.box().mailbox_id, len, type);
    }
    // Bit j: the one that the tag of this lane's word of line j displaces.
    WM_FN u32 displaced() const {
        // A row for each group, turned so that a lane's words are all in the lane's column; then a row for each lane.
        u32 bits = rotated_left(upper_half(heads_), head_words - lane_);
        bits = transposed(lanes_, lane_, bits);
        // Lines of which the lane's word is in group j - 1, then j; or j, then j + 1.
        const bool first_lanes = lane_ < head_words;
        bits = first_lanes ? bits << 1 : bits;
        return select_bits((1u << ((first_lanes ? head_words : 35) - lane_)) - 1, bits, bits >> 1);
    }

    // A record on its way.
    struct passage {
        const u64* from; // its slot
        const u64* next; // the slot behind it, or null
        u64* to;         // the lane's first word in the ring
        u32 tag_high, next_tag_high;
        u32 limit; // words to store, with the head's
        u32 bits;  // see displaced
    };
    // Stores lines of the record and asks for those `Ahead` of them. `Whole`: every lane has a word in each, and stores
    // it.
    template <bool Whole> WM_FN void copy_lines(const passage& p, u32 first, u32& stale) {
        WM_UNROLLED
        for (u32 j = first; j < first + AtOnce; j++) {
            const u64 v = v_[j % Ahead];
            stale |= upper_half(v) ^ p.tag_high;
            const u32 high = select_bits(0x7FFFFFFFu, upper_half(v), p.bits << (31 - j));
            if ((Whole || line_words * j + lane_ < p.limit) && (j != 0 || lane_ >= head_words))
                p.to[line_words * j] = with_upper_half(v, high);
        }
        const bool of_next = first + Ahead >= most_lines;
        if (of_next && p.next == nullptr)
            return;
        WM_UNROLLED
        for (u32 j = first + Ahead; j < first + Ahead + AtOnce; j++) {
            if (of_next) // its line j is as this one's, which is whole
                ask<Whole && Ahead == most_lines>(p.next, j - most_lines, p.next_tag_high);
            else
                ask<false>(p.from, j, p.tag_high);
        }
    }

    // Record n, whose words were asked for; asks for those of the next if there are to be `more`. False: it has not
    // wholly arrived, or cannot be.
    WM_FN bool copy_one(u32 n, bool more) {
        // Else what follows from them would be kept for every line and record, in more registers than there are.
        lane_ = forgotten(lane_);
        r_.forget();
        const u32 meta = lanes_.broadcast(static_cast<u32>(heads_), 0), len = meta_len(meta), type = meta_type(meta);
        if (len > words() * 8)
            return false;
        passage p;
        p.bits = displaced();
        p.tag_high = tag_of(n);
        p.next_tag_high = tag_of(n + 1);
        u32 stale = upper_half(heads_) ^ p.tag_high;
        p.from = Ahead == most_lines ? nullptr : slot(n);
        p.next = more ? forgotten(slot(n + 1)) : nullptr;
        if (more)
            ask_heads(p.next);
        p.to = forgotten(reinterpret_cast<u64*>(r_.slot(n)) + lane_);
        if (lane_ < head_words)
            *p.to = head_word(n, len, type);
        const u32 all = words() + head_words, in_ring = 2 * ring_chunks(len);
        p.limit = in_ring < all ? in_ring : all;
        // Where a place serves two lines, one that the record does not have asks for the next's all the same.
        WM_UNROLLED
        for (u32 first = 0; first < most_lines; first += AtOnce) {
            if (line_words * (first + AtOnce) <= p.limit)
                copy_lines<true>(p, first, stale);
            else if (Ahead != most_lines || line_words * first < all)
                copy_lines<false>(p, first, stale);
        }
        // All of it was looked at (M2 of mailbox.hpp).
        if (!lanes_.all((stale & 0x80000000u) == 0))
            return false;
        if (type == WM_TYPE_TENSOR)
            pass_descriptor(lanes_, r_, n);
        return true;
    }

    warp_lanes lanes_;
    Records r_;
    u32 lane_;
    u64 heads_ = 0;
    u64 v_[Ahead];
};

} // namespace warpmail

#endif
#endif
