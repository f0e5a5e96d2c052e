// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Whose turn it is. An idle server looks for a module whose look bit is set, takes it, and evaluates its rule and its
// credit; if they hold, that is a grant.
//
// Priority: the classes are searched from the most urgent on. Fairness: within a class round robin from a cursor; and
// the search of every WM_FAIR_TURNS-th grant of a server begins at another class, each in its turn; if it lingers just
// then (linger.hpp), the next search does. So a module that
// stays ready is granted a step before one server has given classes * WM_FAIR_TURNS * (modules of its class) others
// one, whatever the more urgent do. Grants without a search (chain.hpp) are among those WM_FAIR_TURNS.
#ifndef WARPMAIL_PROTOCOL_CLAIM_HPP
#define WARPMAIL_PROTOCOL_CLAIM_HPP

#include "protocol/grant.hpp"
#include "protocol/record.hpp"

namespace warpmail {

// A server's own state.
struct serve_state {
    u64 turns; // grants it has given, over all launches
    u32 fair;  // WM_FAIR_TURNS of them whose search at another class has been, modulo 2^32
};

// The module with a look bit and without an owner that comes first from `from` on, round the end, or no_module.
template <class L> WM_FN u32 next_look_of_many(L lanes, const arbiter& a, const u32* look, u32 from) {
    const u32 words = words_for(a.args.n_modules), first = from / 32;
    // One turn more than there are words: the first word is looked at from `from` on, and at the end from its
    // beginning.
    for (u32 turn = 0; turn <= words; turn += lanes.width()) {
        const u32 t = turn + lanes.rank();
        u32 w = first + t, bits = 0;
        w = w >= words ? w - words : w;
        if (t <= words && w < words)
            bits = load_relaxed_cta(&look[w]) & ~load_relaxed_cta(&a.owned[w]);
        if (t == 0)
            bits &= ~0u << (from % 32);
        const u32 found = lanes.ballot(bits != 0);
        if (found == 0)
            continue;
        const u32 lane = lowest_bit(found);
        const u32 module = w * 32 + lowest_bit(bits | (bits == 0));
        return lanes.broadcast(module, lane);
    }
    return no_module;
}

// The same from a class's cursor on. Small graphs have one word, and mostly one module in it.
template <class L> WM_FN u32 next_look(L lanes, const arbiter& a, const u32* look, const u32* cursor) {
    if (a.args.n_modules > 32)
        return next_look_of_many(lanes, a, look, lanes.broadcast(load_relaxed_cta(cursor), 0));
    const u32 looks = load_relaxed_cta(look), owned = load_relaxed_cta(a.owned);
    const u32 found = lanes.agree(looks & ~owned);
    if ((found & (found - 1)) == 0)
        return found ? lowest_bit(found) : no_module;
    const u32 from = lanes.broadcast(load_relaxed_cta(cursor), 0), behind = found & ~0u << (from % 32);
    return lowest_bit(behind ? behind : found);
}

// Looks at the look bits for a while, until there is one for this server to try, or the launch closes. Idle servers are
// most of the arbiter's warps: in a loop this short they leave the SM's instruction caches to those that work, and see
// a bit soon, with one jump at each look.
#if defined(__CUDACC__)
constexpr u32 idle_looks = 1024;
#else
constexpr u32 idle_looks = 2; // lanes that take turns on one thread
#endif
template <class L> WM_FN void await_look(L lanes, const arbiter& a) {
    const u32 words = words_for(a.args.n_modules), all = classes_of(a) * words, mine = lanes.rank();
    const u32* const look = a.look + (mine < all ? mine : 0);
    const u32* const owned = a.owned + (words > 1 && mine < all ? mine % words : 0);
    const auto news = [&] {
        const u32 closing = static_cast<u32>(load_relaxed_cta(&a.flags[flag_closing]));
        return (load_relaxed_cta(look) & ~load_relaxed_cta(owned)) | closing;
    };
    if (all <= lanes.width()) {
        WM_ROLLED
        for (u32 k = 0; k < idle_looks && !lanes.any(news() != 0); k++) {
        }
        return;
    }
    WM_ROLLED
    for (u32 k = 0; k < idle_looks; k++) {
        u32 found = news();
        WM_ROLLED
        for (u32 w = mine + lanes.width(); w < all; w += lanes.width())
            found |= load_relaxed_cta(&a.look[w]) & ~load_relaxed_cta(&a.owned[w % words]);
        if (lanes.any(found != 0))
            return;
    }
}

// Takes module `i` for this server if its rule and credit hold: sets its owned bit, clears its look bit, evaluates. A
// record that is seen at its input counts even if it has not been told of: a launch that news has woken need not wait
// for its scan.
template <taps Taps, class L>
WM_FN bool try_own(L lanes, arbiter& a, u32* look, u32 i, const glance<L>& at_input, found_records<L>& found) {
    const u32 bit = 1u << (i % 32);
    u32 got = 0;
    if (lanes.rank() == 0 && (or_acquire_cta(&a.owned[i / 32], bit) & bit) == 0) { // ACQUIRE of disown
        got = 1;
        clear_acquire_cta(&look[i / 32], bit); // ACQUIRE of mark
    }
    if (lanes.broadcast(got, 0) == 0)
        return false;
    lanes.sync();
    if (may_be_granted<Taps>(lanes, a, a.modules[i], at_input.take(lanes, a, i, found)))
        return true;
    found = {};
    if (lanes.rank() == 0)
        clear_release_cta(&a.owned[i / 32], bit);
    return false;
}

// Gives a module back. RELEASE, acquired by the next claim: what this server wrote is the next one's to see.
template <class L> WM_FN void disown(L lanes, arbiter& a, u32 i) {
    lanes.sync();
    if (lanes.rank() == 0)
        clear_release_cta(&a.owned[i / 32], 1u << (i % 32));
}

// A module for this server to run, owned by it, or no_module; `found` at its input, if it has one alone.
template <taps Taps = all_taps, class L>
WM_FN u32 claim(L lanes, arbiter& a, serve_state& state, found_records<L>& found) {
    const u32 words = words_for(a.args.n_modules), classes = classes_of(a);
    const u32 fair = static_cast<u32>((state.turns + 1) / WM_FAIR_TURNS);
    u32 c = 0;
    if (classes > 1 && fair != state.fair)
        c = (fair - 1) % classes;
    // A look costs a bit, so each class comes to its end; the bound is for bits that come back meanwhile.
    for (u32 searched = 0, tries = 0;;) {
        u32* const look = a.look + c * words;
        const u32 i = tries <= a.args.n_modules ? next_look(lanes, a, look, &a.cursor[c]) : no_module;
        if (i == no_module) {
            if (++searched >= classes)
                return no_module;
            c = c + 1 < classes ? c + 1 : 0;
            tries = 0;
            continue;
        }
        tries++;
        if (lanes.rank() == 0)
            store_relaxed_cta(&a.cursor[c], i + 1 < a.args.n_modules ? i + 1 : 0);
        const glance<L> at_input(lanes, a, i); // its way to L2 is that of what follows
        if (try_own<Taps>(lanes, a, look, i, at_input, found)) {
            state.fair = fair;
            return i;
        }
    }
}

} // namespace warpmail

#endif
