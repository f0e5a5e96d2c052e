// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Lingering: a server that has run a resident module keeps it for a while and waits for the module's next record
// itself, at the slot, where it can be seen first: no readiness word, scan, look bit and claim stand between the record
// and the step. It is an idle server that happens to own a module. So the keeper does not see it, and nobody loses by
// it:
//
//   whose turn it is  while a module waits that no searching server is about to take, the first of those that linger
//                     gives its own up and searches: at its next look at bits, of which each turn in vain has some, or
//                     after linger_checks grants without one. Whoever searches goes by claim.hpp, and a module that is
//                     lingered at uses up none of its fair turns.
//   news              it clears the module's look bit only to evaluate afterwards, as in a claim; whatever it leaves
//                     without looking at is in `look`, or in a readiness word that no scan has seen yet: what keeps
//                     the arbiter from parking (park.hpp).
//   closing, journal  it gives the module up.
//
// What it finds at a slot is a record that the scan may not have told of yet: `consumed` is then ahead of `written` for
// a moment (see pending). When the scan tells, the look bit leads to an evaluation that finds nothing.
#ifndef WARPMAIL_PROTOCOL_LINGER_HPP
#define WARPMAIL_PROTOCOL_LINGER_HPP

#include "protocol/claim.hpp"
#include "protocol/record.hpp"

namespace warpmail {

constexpr u32 linger_looks = 16;     // in one turn
constexpr int32_t linger_turns = 16; // in vain, one after the other, before the module is given up
constexpr u32 linger_bits = 8;       // looks at bits alone for one at slots
constexpr u32 linger_own = 4;        // looks at slots for one at bits, where they say all that the module waits for
constexpr int32_t linger_checks =
    8; // grants, without a look in vain between them, until it finds out whether it may go on
constexpr u32 linger_steps = 256; // at most so many are tallied before they are counted

enum class lingering : u32 { on, step, over };

// A server's own state beside serve_state.
struct linger_state {
    u32 module = no_module;
    u32 input = 0;      // the one that had the last record
    int32_t streak = 0; // grants without a look in vain between them; below 0: turns in vain
    u32 credit = 0;     // steps for whose records the outputs are known to have room
    tally moved;
};

// Whether a module waits that no server that searches, or gives up its module sooner, will take. Lane s looks at
// server s.
template <class L> WM_FN bool is_wanted(L lanes, const arbiter& a, u32 server) {
    u32 others = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        const u32 stands = load_relaxed_cta(&a.standing[s]);
        others |= s != server && (stands == stands_searching || (stands == stands_lingering && s < server));
    }
    return !lanes.any(others != 0);
}

// Whether a server may go on lingering: the launch goes on, and no module waits for it. Lane w looks at word w.
template <class L> WM_FN bool may_linger(L lanes, const arbiter& a, u32 server) {
    const u32 words = words_for(a.args.n_modules), classes = classes_of(a);
    u32 waiting = 0;
    for (u32 w = lanes.rank(); w < words; w += lanes.width()) {
        u32 looks = load_relaxed_cta(&a.look[w]);
        WM_ROLLED
        for (u32 c = 1; c < classes; c++)
            looks |= load_relaxed_cta(&a.look[c * words + w]);
        waiting |= looks & ~load_relaxed_cta(&a.owned[w]);
    }
    const bool closing = load_relaxed_cta(&a.flags[flag_closing]) != 0;
    if (!lanes.any(closing || waiting != 0))
        return true;
    return !lanes.any(closing) && !is_wanted(lanes, a, server);
}

// Whether a server that has run a module should begin to linger at it. Of several servers one goes on searching.
template <class L> WM_FN bool should_linger(L lanes, const arbiter& a, u32 server, u32 module) {
    if (a.args.linger == 0 || a.args.servers == 0 || a.modules[module].kind != WM_KIND_RESIDENT ||
        a.modules[module].n_inputs == 0)
        return false;
    u32 others = 0;
    for (u32 s = lanes.rank(); s < a.args.servers; s += lanes.width())
        others |= s != server && load_relaxed_cta(&a.standing[s]) == stands_searching;
    return a.args.servers == 1 || lanes.any(others != 0);
}

// Steps for whose records every output has room.
template <taps Taps, class L> WM_FN u32 steps_of_credit(L lanes, const arbiter& a, const module_brief& mod) {
    u32 least = ~0u;
    for (u32 o = lanes.rank(); o < mod.n_outputs; o += lanes.width()) {
        const u32 m = mod.outputs[o],
                  free = (1u << brief_in(a.boxes, m).slots_log2) - occupied<Taps>(a, m, brief_in(a.boxes, m));
        const u32 steps = is_quarantined(a, m) ? 0 : free / (mod.out_records ? mod.out_records : 1);
        least = steps < least ? steps : least;
    }
    return lanes.min(least);
}

// Whether the slots of an input are worth looking at: its records come from outside.
WM_FN bool is_watched(const arbiter& a, u32 m, mailbox_brief box) {
    return (box.flags & brief_outside) != 0 && !is_quarantined(a, m);
}

// Where a module's next records will be seen. One thread looks at each input in turn.
template <class L> struct slot_watch {
    bool is_open = false; // there is anything to look at
    bool is_all = false;  // and nothing else

    WM_FN void set(L, const arbiter& a, const module_brief& mod, u32 /*input*/) {
        is_open = false;
        is_all = true;
        for (u32 i = 0; i < mod.n_inputs; i++) {
            const bool watched = is_watched(a, mod.inputs[i], brief_in(a.boxes, mod.inputs[i]));
            is_open = is_open || watched;
            is_all = is_all && watched;
        }
    }
    WM_FN bool look(L lanes, const arbiter& a, const module_brief& mod, found_records<L>& found) const {
        for (u32 i = 0; i < mod.n_inputs; i++) {
            const u32 m = mod.inputs[i];
            const u64 idx = load_relaxed_cta(&a.consumed[m]);
            u32 len = 0, type = 0;
            if (is_watched(a, m, brief_in(a.boxes, m)) &&
                peek_slot<order::self_contained>(lanes, slot_at(a.rows[m], idx), any_form(a.rows[m]),
                                                 lap_tag(idx, a.rows[m].slots_log2), len, type))
                found.bits |= 1u << i;
        }
        return found.bits != 0;
    }
};

#if defined(WM_HAS_WARPS)
// A warp: the whole slot of the input that had the last record, into registers; of each other the first word, a lane an
// input, which says that there is one.
template <> struct slot_watch<warp_lanes> {
    bool is_open = false;
    bool is_all = false;

    WM_DEV void set(warp_lanes lanes, const arbiter& a, const module_brief& mod, u32 input) {
        const u32 m = mod.inputs[input];
        const mailbox_brief box = brief_in(a.boxes, m);
        const u64 idx = load_relaxed_cta(&a.consumed[m]);
        next_ = at<const u64>(a.rows[m].header);
        idx_ = idx;
        slots_log2_ = box.slots_log2;
        // Somebody may quarantine it while lanes look, each at its moment.
        input_ = lanes.all(is_watched(a, m, box) && (box.flags & brief_plain_in) != 0) ? input : no_input;
        first_ = nullptr;
        is_open = is_all = input_ != no_input;
        others_ = false;
        if (mod.n_inputs > 1 || !is_open)
            set_others(lanes, a, mod);
    }
    WM_DEV bool look(warp_lanes lanes, const arbiter&, const module_brief&, found_records<warp_lanes>& found) const {
        u64 word = 0;
        if (others_ && first_ != nullptr)
            word = load_relaxed_gpu(first_);
        if (input_ != no_input) {
            warp_consumer<> end = plain_consumer(reinterpret_cast<uintptr_t>(next_), slots_log2_, idx_);
            if (end.peek<order::self_contained>(found.words, found.meta) == WM_OK) {
                found.held = input_;
                found.bits = 1u << input_;
            }
        }
        if (others_)
            found.bits |= lanes.ballot(first_ != nullptr && is_fresh(word, static_cast<u64>(tag_) << 32));
        return found.bits != 0;
    }

private:
    WM_DEV void set_others(warp_lanes lanes, const arbiter& a, const module_brief& mod) {
        const bool is_input = lanes.rank() < mod.n_inputs;
        const u32 m = mod.inputs[is_input ? lanes.rank() : 0];
        const mailbox_brief box = brief_in(a.boxes, m);
        const u64 idx = load_relaxed_cta(&a.consumed[m]);
        const bool watched = is_input && is_watched(a, m, box);
        first_ = watched && lanes.rank() != input_ ? slot_at(a.rows[m], idx) : nullptr;
        tag_ = upper_half(lap_tag(idx, box.slots_log2));
        others_ = lanes.any(first_ != nullptr);
        is_open = is_open || others_;
        is_all = !lanes.any(is_input && !watched);
    }

    u32 input_; // looked at as a whole, or no_input
    u32 slots_log2_;
    const u64* next_;
    u64 idx_;
    const u64* first_; // of the lane's input
    u32 tag_ = 0;      // upper half
    bool others_;
};
#endif

// What a look in vain sees in shared memory besides: the look bits, a word a lane as far as they go, and whether the
// launch closes.
struct bit_watch {
    const u32* looks;
    const u32* owners;
    u32 own; // the module's own bit, in the word that has it

    template <class L> WM_FN void set(L lanes, const arbiter& a, u32 module) {
        const u32 words = words_for(a.args.n_modules), classes = classes_of(a);
        const u32 mine = a.modules[module].priority * words + module / 32;
        const u32 w = lanes.width() > 1 && lanes.rank() < classes * words ? lanes.rank() : mine;
        looks = a.look + w;
        owners = a.owned + (words == 1 ? 0 : w % words);
        own = w == mine ? 1u << (module % 32) : 0;
    }
    // Bits of modules that wait, in some lanes; the module's own among them.
    WM_FN u32 waiting() const {
        return load_relaxed_cta(looks) & (~load_relaxed_cta(owners) | own);
    }
};

// One turn of a server that lingers at `s.module`.
template <taps Taps, class L>
WM_FN lingering linger(L lanes, arbiter& a, u32 server, linger_state& s, found_records<L>& found) {
    const module_brief& mod = a.modules[s.module];
    bit_watch bits;
    bits.set(lanes, a, s.module);
    slot_watch<L> slots;
    slots.set(lanes, a, mod, s.input);
    if (s.credit == 0)
        s.credit = steps_of_credit<Taps>(lanes, a, mod);
    const bool watches = slots.is_open && s.credit != 0 && (mod.rule == WM_RULE_ANY || mod.n_inputs == 1);
    const bool sees_all = watches && slots.is_all;
    // A look at bits alone takes no way to L2.
    const u32 looks = watches ? linger_looks : linger_looks * linger_bits;
    WM_ROLLED
    for (u32 k = 0; k < looks; k++) {
        if (watches && slots.look(lanes, a, mod, found)) {
            s.streak = s.streak < 0 ? 1 : s.streak + 1;
            if (s.streak >= linger_checks) {
                if (!may_linger(lanes, a, server))
                    return lingering::over;
                s.streak = 0;
            }
            s.credit--;
            s.input = lowest_bit(found.bits);
            found.whole = slots.is_all;
            return lingering::step;
        }
        s.streak = s.streak > 0 ? 0 : s.streak;
        // All that the module's own bit can say is that there is a record, which its slots say sooner, or room for
        // more than is needed now; and most other modules' are somebody else's.
        if (sees_all && k % linger_own != linger_own - 1)
            continue;
        const u32 waiting = bits.waiting();
        if (!lanes.any(waiting != 0 || load_relaxed_cta(&a.flags[flag_closing]) != 0))
            continue;
        if (!may_linger(lanes, a, server))
            return lingering::over;
        if (!lanes.any((waiting & bits.own) != 0))
            continue;
        if (lanes.rank() == 0)
            clear_acquire_cta(look_word(a, s.module), 1u << (s.module % 32)); // ACQUIRE of mark
        lanes.sync();
        if (sees_all)
            continue; // it has looked, and will
        s.credit = 0; // there may be more now
        if (!may_step<Taps>(lanes, a, mod))
            return lingering::on;
        s.streak = 0;
        return lingering::step;
    }
    s.streak--;
    return s.streak > -linger_turns && may_linger(lanes, a, server) ? lingering::on : lingering::over;
}

} // namespace warpmail

#endif
