// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Chaining: a server that has run a resident module goes on with the one that the module gave its last record to, so
// that a record passes through a row of modules without a look bit, a claim, and a wait for L2 between two of them.
// `push` leaves that one record untold of until the step has ended (context::tell). Nobody else waits for it:
//
//   whose turn it is  it is done only while no module waits that no searching server is about to take, the one just run
//                     among them, and not where the next search would begin at another class (claim.hpp), so a row that
//                     never ends, a ring, gives way every WM_FAIR_TURNS-th grant. A server by itself hardly ever goes
//                     on: to take a record is news for whoever gave it, and nobody searches.
//   who owns it       the owned bit is taken as in a claim. The look bit stays as it is: nothing is cleared, so nothing
//                     can be missed, and the rule is evaluated behind the index of the record.
//   closing           ends it. What is left is told of, by the look bit, and goes on with the next launch.
#ifndef WARPMAIL_PROTOCOL_CHAIN_HPP
#define WARPMAIL_PROTOCOL_CHAIN_HPP

#include "protocol/linger.hpp"

namespace warpmail {

// Whether nobody has to wait because this server goes on with a module of its own choice: as may_linger, of which this
// is the usual case in a few instructions.
template <class L> WM_FN bool may_go_on(L lanes, const arbiter& a, u32 server) {
    if (a.args.n_modules <= 32 && lanes.width() >= WM_PRIORITIES) { // the classes' words are side by side
        const u32 waiting = load_relaxed_cta(&a.look[lanes.rank() % WM_PRIORITIES]) & ~load_relaxed_cta(&a.owned[0]);
        if (!lanes.any((waiting | static_cast<u32>(load_relaxed_cta(&a.flags[flag_closing]))) != 0))
            return true;
    }
    return may_linger(lanes, a, server);
}

// A module of the usual shape, with one input and at most one output, as it stood before it was owned: what its rule
// asks for is on its way then while it is found out whether it may be run at all.
struct ready_look {
    bool is_usual = false, room = true;
    u32 output = no_mailbox;
    u64 written = 0; // of the output, which only the module's owner moves
};
template <taps Taps> WM_FN ready_look look_ahead(const arbiter& a, const module_brief& mod) {
    const module_shape shape = shape_of(mod);
    ready_look r;
    r.is_usual = shape.n_inputs == 1 && shape.n_outputs <= 1;
    if (r.is_usual && shape.n_outputs == 1) {
        r.output = mod.outputs[0];
        r.written = load_relaxed_cta(&a.written[r.output]);
        r.room = has_room<Taps>(a, r.output, mod.out_records);
    }
    return r;
}

// Whether the module, which this server owns now, may take the record given at once: it is the next one at its only
// input, this server has it in registers, and nobody has run the module since the look ahead. One thread finds the
// record in its slot, by the rule. It counts as all that the module has: whoever gives it another while it is owned
// sets its look bit, which chaining leaves alone, so there is nothing to look for behind the step.
template <class L>
WM_FN bool take_over(L, const arbiter&, const given_record<L>&, const ready_look&, found_records<L>&) {
    return false;
}
#if defined(WM_HAS_WARPS)
WM_DEV bool take_over(warp_lanes lanes, const arbiter& a, const given_record<warp_lanes>& given, const ready_look& r,
                      found_records<warp_lanes>& found) {
    const bool is_next = static_cast<u32>(load_relaxed_cta(&a.consumed[given.mailbox])) == given.idx;
    const bool same = r.output == no_mailbox || load_relaxed_cta(&a.written[r.output]) == r.written;
    if (!lanes.all(given.held && r.is_usual && r.room && is_next && same))
        return false;
    found.words = given.words;
    found.meta = fragment_meta(given.meta);
    found.held = 0;
    found.bits = 1;
    found.whole = true;
    return true;
}
#endif

// A server that goes on with another module asks for it first, and looks at the answer when it is done with the one
// before. `may`: whether it is to try at all; if it does not, whoever the record concerns is told.
struct chain_asked {
    bool asked = false;
    u32 owned = 0; // what the word of owned bits was before, in lane 0
    ready_look before;
};
template <taps Taps, class L>
WM_FN chain_asked chain_ask(L lanes, arbiter& a, u32 server, const serve_state& state, const given_record<L>& given,
                            bool may) {
    chain_asked c;
    const bool is_fair_turn = static_cast<u32>((state.turns + 1) / WM_FAIR_TURNS) != state.fair;
    if (L::is_group())
        c.before = look_ahead<Taps>(a, a.modules[given.module]);
    if (!may || is_fair_turn || !may_go_on(lanes, a, server)) {
        if (lanes.rank() == 0)
            mark_consumer(a, brief_in(a.boxes, given.mailbox));
        return c;
    }
    c.asked = true;
    if (lanes.rank() == 0)
        c.owned = or_acquire_cta(&a.owned[given.module / 32], 1u << (given.module % 32)); // ACQUIRE of disown
    return c;
}

// The module that takes the record `given`, for this server to run next, owned by it, and `found` at its input; or
// no_module, and whoever it concerns has been told.
template <taps Taps, class L>
WM_FN u32 chain_take(L lanes, arbiter& a, const given_record<L>& given, const chain_asked& c, found_records<L>& found) {
    if (!c.asked)
        return no_module;
    const u32 module = given.module, bit = 1u << (module % 32);
    if ((lanes.broadcast(c.owned, 0) & bit) != 0) {
        if (lanes.rank() == 0)
            mark_consumer(a, brief_in(a.boxes, given.mailbox));
        return no_module;
    }
    lanes.sync();
    if (take_over(lanes, a, given, c.before, found) || may_step<Taps>(lanes, a, a.modules[module]))
        return module;
    if (lanes.rank() == 0)
        clear_release_cta(&a.owned[module / 32], bit);
    return no_module;
}

} // namespace warpmail

#endif
