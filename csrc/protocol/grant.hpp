// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Granting steps to stream modules: work on a CUDA stream that the host has enqueued ahead and that waits, step by
// step, for the arbiter (gate.hpp is the other side). A grant is a count: each step takes exactly one record from every
// input (WM_RULE_ALL) or from one of them (WM_RULE_ANY), so the indices of the inputs say how many steps there are to
// grant, and as many as there are can be granted at once. Each step gives at most one record to each output, so credit
// is a count too.
//
// A step gives its input slots back when it has pushed: `consumed` of the inputs says how many steps have ended, and
// what those pushed is in `written` of the outputs, which is loaded after it (ACQUIRE of gate_end's fence).
//
// Gates may take steps ahead of their grants (gate.hpp; ahead.hpp has who lets them where the arbiter is on the CPU),
// so the steps that have ended can be more than those granted. Steps are taken in order and a grant is a count of all
// of them: credit is worked out for the last one granted, no matter which of them have begun, and grants catch up with
// what has been taken. The model tests/model/credit.pml is this, with the gate and a consumer.
#ifndef WARPMAIL_PROTOCOL_GRANT_HPP
#define WARPMAIL_PROTOCOL_GRANT_HPP

#include "protocol/arbiter.hpp"

namespace warpmail {

// The index in the readiness word at `address`, as it is now, modulo 2^32.
WM_FN u32 count_at(const arbiter& a, u64 address) {
    const u32 scope = a.args.plan != 0 ? WM_SCOPE_SYS : WM_SCOPE_GPU;
    return static_cast<u32>(index_in(load_relaxed(at<const u64>(address), scope), scope));
}
// The readiness word of an end as the arbiter sees it: that of an end on the host, or of any end where the arbiter is
// on the CPU, is the index itself.
WM_FN u32 written_now(const arbiter& a, u32 m) {
    return count_at(a, a.rows[m].written);
}
WM_FN u32 consumed_now(const arbiter& a, u32 m) {
    return count_at(a, a.rows[m].consumed);
}

// The firing rule of a module whose steps take one record each: how many steps its inputs make. A lane's share of the
// inputs; `so_far`: steps that are spoken for. Indices modulo 2^32, of which one may be behind another.
struct rule_sum {
    u32 sum, least;
};
WM_FN u32 at_least_none(u32 difference) {
    return static_cast<int32_t>(difference) > 0 ? difference : 0;
}
WM_FN void add_input(rule_sum& r, u32 written, u32 so_far) {
    r.sum += written;
    const u32 waiting = at_least_none(written - so_far);
    r.least = waiting < r.least ? waiting : r.least;
}
template <class L> WM_FN u32 steps_of(L lanes, u32 rule, const rule_sum& r, u32 so_far) {
    return rule == WM_RULE_ANY ? at_least_none(lanes.sum(r.sum) - so_far) : lanes.min(r.least);
}

// Steps of a module that its inputs have records for, beyond those granted; 0 if an input is not sound, but
// quarantined.
template <class L> WM_FN u32 fireable(L lanes, const arbiter& a, const module_brief& mod, bool& sound) {
    rule_sum r{0, ~0u};
    u32 bad = 0;
    for (u32 i = lanes.rank(); i < mod.n_inputs; i += lanes.width()) {
        const u32 m = mod.inputs[i];
        bad |= is_quarantined(a, m);
        add_input(r, static_cast<u32>(load_relaxed_cta(&a.written[m])), mod.granted);
    }
    sound = !lanes.any(bad != 0);
    return sound ? steps_of(lanes, mod.rule, r, mod.granted) : 0;
}

// Steps that the outputs have room for. `settled`: of the steps granted, those whose records are counted in `written`;
// each of the others may still push one. `fresh`: looks at `written` where its end keeps it.
template <class L>
WM_FN u32 credit_of(L lanes, const arbiter& a, const module_brief& mod, u32 settled, bool fresh, bool& caught_up) {
    u32 least = ~0u, behind = 0;
    for (u32 o = lanes.rank(); o < mod.n_outputs; o += lanes.width()) {
        const u32 m = mod.outputs[o], slots = 1u << a.boxes[m].slots_log2;
        const u32 known = static_cast<u32>(load_relaxed_cta(&a.written[m])),
                  written = fresh ? written_now(a, m) : known;
        // A consumer can be ahead of the `written` that is known: that counts as none.
        const mailbox_brief box = brief_in(a.boxes, m);
        int32_t waiting = static_cast<int32_t>(written - static_cast<u32>(load_relaxed_cta(&a.consumed[m])));
        if (is_followed(box)) {
            const int32_t held = static_cast<int32_t>(written - static_cast<u32>(load_relaxed_cta(&a.followed[m])));
            waiting = held > waiting ? held : waiting;
        }
        // Below zero: steps that were taken ahead, of which the record is counted and the grant is still to come.
        const int32_t used = (waiting > 0 ? waiting : 0) + static_cast<int32_t>(mod.granted - settled);
        const u32 room = used < static_cast<int32_t>(slots) && !is_quarantined(a, m)
                             ? static_cast<u32>(static_cast<int32_t>(slots) - used)
                             : 0;
        least = room < least ? room : least;
        behind |= written != known;
    }
    caught_up = !lanes.any(behind != 0);
    return lanes.min(least);
}

// Steps of a module that have ended, modulo 2^32.
template <class L> WM_FN u32 steps_ended(L lanes, const arbiter& a, const module_brief& mod) {
    u32 sum = 0, first = 0;
    for (u32 i = lanes.rank(); i < mod.n_inputs; i += lanes.width()) {
        const u32 consumed = consumed_now(a, mod.inputs[i]);
        sum += consumed;
        first = i == 0 ? consumed : first;
    }
    return mod.rule == WM_RULE_ANY ? lanes.sum(sum) : lanes.broadcast(first, 0);
}

// Steps that may be granted to a stream module now. By whoever owns it.
template <class L> WM_FN u32 grantable(L lanes, arbiter& a, module_brief& mod, bool& sound) {
    const u32 wanted = fireable(lanes, a, mod, sound);
    if (wanted == 0 || mod.n_outputs == 0)
        return wanted;
    bool caught_up;
    u32 credit = credit_of(lanes, a, mod, mod.handler, false, caught_up);
    if ((credit == 0 && mod.handler != mod.granted) || (credit < wanted && mod.ahead != 0)) {
        const u32 settled = steps_ended(lanes, a, mod);
        fence_acquire(a.args.plan != 0 ? WM_SCOPE_SYS : WM_SCOPE_GPU); // ACQUIRE of gate_end
        credit = credit_of(lanes, a, mod, settled, true, caught_up);
        // Noted only when the scan knows of what these steps pushed, too: it never goes back behind that.
        lanes.sync();
        if (caught_up && lanes.rank() == 0)
            mod.handler = settled;
        lanes.sync();
    }
    return credit < wanted ? credit : wanted;
}

// Whether a module may run, or be granted steps, now; or whether its gates are to be told that they may step ahead no
// more. By whoever owns it. `found` as in may_step.
template <taps Taps, class L> WM_FN bool may_be_granted(L lanes, arbiter& a, module_brief& mod, bool found) {
    if (mod.kind != WM_KIND_STREAM)
        return may_step<Taps>(lanes, a, mod, found);
    bool sound;
    return grantable(lanes, a, mod, sound) != 0 || (!sound && mod.ahead != 0);
}

// By one thread: the word of a module's grants as it is to be now.
WM_FN void publish_grants(const arbiter& a, const module_brief& mod) {
    const u64 ahead = static_cast<u64>(mod.ahead) << WM_GRANT_AHEAD_BIT;
    publish(at<u64>(mod.state), ahead | mod.granted, mod.state_bytes, a.args.plan != 0 ? WM_SIDE_HOST : WM_SIDE_DEVICE);
}

// Grants as many steps as there may be, with one publication.
template <class L> WM_FN void grant_steps(L lanes, arbiter& a, u32 module) {
    module_brief& mod = a.modules[module];
    bool sound;
    const u32 granted = mod.granted + grantable(lanes, a, mod, sound);
    lanes.sync();
    if (lanes.rank() == 0) {
        mod.granted = granted;
        mod.ahead = sound ? mod.ahead : 0;
        publish_grants(a, mod);
    }
    lanes.sync();
}

// The beginning, where nothing is taken up from an image, of one thread: what was granted stands in the word. Steps
// that were granted before may go on meanwhile: of none is it known yet that what it pushed is counted in `written`.
WM_FN void begin_steps(const arbiter& a, module_brief& mod) {
    if (mod.kind != WM_KIND_STREAM || mod.n_inputs == 0)
        return;
    mod.granted = count_at(a, mod.state);
    mod.handler = mod.granted - (1u << 30); // no credit until `grantable` has looked
    bool sound;
    fireable(one_lane{}, a, mod, sound);
    mod.ahead = sound;
    publish_grants(a, mod);
}

} // namespace warpmail

#endif
