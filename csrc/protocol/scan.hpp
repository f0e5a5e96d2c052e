// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Looking at the readiness lines: the index words that ends outside the arbiter store after each push or pop. Dense
// lines of 8-byte words, a lane a word, several words under way before the first is used; only a word that differs from
// what was last seen costs more than a comparison.
#ifndef WARPMAIL_PROTOCOL_SCAN_HPP
#define WARPMAIL_PROTOCOL_SCAN_HPP

#include "protocol/arbiter.hpp"

namespace warpmail {

// A whole index from the low 63 bits of it that a device word has: rings are short, so it is near the last one known.
WM_FN u64 near(u64 low, u64 last) {
    return last + static_cast<u64>(static_cast<int64_t>((low - last) << 1) >> 1);
}

// The same for an arbiter on the CPU, which cannot look into device memory: the far ends' words arrive in any order, so
// one that says something impossible is given time for the other to follow, as long as whoever stores it may be kept
// from its core.
constexpr u64 settle_ns = 100000000;
WM_FN bool settles(const arbiter& a, u32 m, bool of_producer, u64 seen) {
    const int64_t slots = int64_t{1} << a.boxes[m].slots_log2;
    const u64 begin = now_ns();
    do {
        const u64 other = load_relaxed_sys(at<const u64>(of_producer ? a.rows[m].consumed : a.rows[m].written));
        const int64_t depth = static_cast<int64_t>(of_producer ? seen - other : other - seen);
        if (depth <= slots && depth >= -slots)
            return true;
        pause();
    } while (now_ns() - begin < settle_ns);
    return false;
}

// Once more, with the other index as the header has it: that of a producer is never behind what is noted, and a
// consumer's is what those go by who do not go by credit.
template <class L> WM_FN bool is_depth_by_header(L, const wm_mailbox* row, bool of_producer, u64 seen) {
    fence_acquire(WM_SCOPE_SYS); // `seen` was loaded before what follows
    const u64 other = load_relaxed(of_producer ? read_idx_of(*row) : write_idx_of(*row), row->scope);
    return is_depth(static_cast<int64_t>(of_producer ? seen - other : other - seen), row->slots_log2);
}

// Whether two indices of mailbox m, one of them just loaded from its far end, can both be. The other one may have been
// noted long ago, or not yet by a server that is between two stores; so before this says no it looks at the header.
WM_FN bool is_plausible(const arbiter& a, u32 m, bool of_producer, u64 seen, u64 other) {
    const u32 slots_log2 = brief_in(a.boxes, m).slots_log2;
    if (is_depth(static_cast<int64_t>(of_producer ? seen - other : other - seen), slots_log2))
        return true;
#if !defined(__CUDA_ARCH__)
    if (a.args.plan != 0)
        return settles(a, m, of_producer, seen);
#endif
    return is_depth_by_header(one_lane{}, &a.rows[m], of_producer, seen);
}

// What a far end says of its index: news are stored and made known; an index that cannot be quarantines the mailbox,
// and the others go on.
WM_FN void take_news(arbiter& a, u32 what, u64 word, u32 scope) {
    const u32 m = what / 2;
    const bool of_producer = what % 2 == 0;
    if (is_quarantined(a, m))
        return;
    u64* const mine = of_producer ? a.written : a.consumed;
    u64* const others = of_producer ? a.consumed : a.written;
    u64 seen = index_in(word, scope);
    if (scope == WM_SCOPE_GPU)
        seen = near(seen, load_relaxed_cta(&mine[m]));
    if (!is_plausible(a, m, of_producer, seen, load_relaxed_cta(&others[m]))) {
        quarantine(a, m, WM_REJECT_INDEX);
        return mark_consumer(a, brief_in(a.boxes, m)); // the gates of a stream module are told
    }
    // A word that was loaded before a header, in which the index stands sooner: credit goes by what is noted, and that
    // never goes back.
    if (static_cast<int64_t>(seen - load_relaxed_cta(&mine[m])) < 0)
        return;
    store_relaxed_cta(&mine[m], seen);
    const mailbox_brief box = brief_in(a.boxes, m);
    if (!of_producer)
        mark_producer(a, box);
    else if (box.consumer_side != WM_SIDE_RESIDENT || pending(a, m) > 0)
        mark_consumer(a, box); // unless a server that lingers has taken it already
}

// A lane's word that was loaded before it was known what for.
struct early_word {
    u64 word = 0;
    bool is_there = false;
};

// Looks at words [first, first + Ahead * lanes) of a list; at `early` instead, if it is there and one each is looked
// at.
template <u32 Ahead, class L>
WM_FN void scan_words(L lanes, arbiter& a, const watch_list& w, u32 first, early_word early = {}) {
    u64 now[Ahead];
    u32 news = 0;
    for (u32 k = 0; k < Ahead; k++) {
        const u32 i = first + k * lanes.width() + lanes.rank();
        if (Ahead == 1 && early.is_there)
            now[k] = early.word;
        else
            now[k] = i < w.n ? load_relaxed(w.words + i, w.scope) : 0;
    }
    for (u32 k = 0; k < Ahead; k++) {
        const u32 i = first + k * lanes.width() + lanes.rank();
        news |= static_cast<u32>(i < w.n && w.seen[i] != folded(index_in(now[k], w.scope))) << k;
    }
    if (!lanes.any(news != 0))
        return;
    // News is rare, and one copy of what follows is short. The lanes go round together.
    WM_ROLLED
    for (; Ahead == 1 || lanes.any(news != 0); news &= news - 1) {
        if (news != 0) {
            const u32 k = Ahead == 1 ? 0 : lowest_bit(news), i = first + k * lanes.width() + lanes.rank();
            u64 word = now[0];
            WM_UNROLLED
            for (u32 j = 1; j < Ahead; j++)
                word = j == k ? now[j] : word;
            take_news(a, w.what[i], word, w.scope);
            // RELEASE, acquired in `park`: who sees that this was seen sees the look bit too.
            store_release_cta(&w.seen[i], folded(index_in(word, w.scope)));
        }
        if (Ahead == 1)
            return;
    }
}

// Whether the share of each of so many scanners is a word a lane.
template <class L> WM_FN bool is_word_each(L lanes, u32 n, u32 parts) {
    return n <= lanes.width() * parts;
}

// One look at the share of scanner `part` of `parts`. `w.seen` of a share has one writer. `early`: as in scan_words.
template <class L>
WM_FN void scan(L lanes, arbiter& a, const watch_list& w, u32 part, u32 parts, early_word early = {}) {
    constexpr u32 ahead = 8;
    const u32 step = lanes.width();
    if (is_word_each(lanes, w.n, parts))
        return scan_words<1>(lanes, a, w, part * step, early);
    for (u32 first = part * step * ahead; first < w.n; first += parts * step * ahead)
        scan_words<ahead>(lanes, a, w, first);
}

} // namespace warpmail

#endif
