// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The role of an arbiter on the CPU that takes the place of serving: it claims as a server does, hands the grant to
// somebody who runs it, and takes the module back when told that the grant is done. `Steps` is who runs them:
//     bool launch(u32 server, const wm_step_args& args, u32 after)   begins one, behind the grant that server `after`
//                                                                    holds unless that is no_server; false: it cannot
//     int done(u32 server)                                           1: it has ended; 0: not yet; negative: an error
// A server is a place for one grant under way. All of this is one thread.
#ifndef WARPMAIL_PROTOCOL_HAND_HPP
#define WARPMAIL_PROTOCOL_HAND_HPP

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 no_server = ~0u;

// What a server holds.
struct handed {
    serve_state state;
    u32 module; // no_module: nothing
    u64 moved;  // own_indices when it was granted
    bool left;
};

// The indices that only the module's own steps move: records taken and given so far.
WM_FN u64 own_indices(const arbiter& a, const module_brief& mod) {
    u64 sum = 0;
    for (u32 i = 0; i < mod.n_inputs; i++)
        sum += load_relaxed_cta(&a.consumed[mod.inputs[i]]);
    for (u32 o = 0; o < mod.n_outputs; o++)
        sum += load_relaxed_cta(&a.written[mod.outputs[o]]);
    return sum;
}

WM_FN void fill_end(const arbiter& a, wm_step_args& s, u32 row, u32 m) {
    s.ends[row] = at<const wm_mailbox>(at<const wm_step_plan>(a.args.plan)->mailboxes)[m];
    s.written[row] = load_relaxed_cta(&a.written[m]);
    s.consumed[row] = load_relaxed_cta(&a.consumed[m]);
    // A record is journalled once: where a resident module takes it, else where one gives it.
    if (row >= WM_MAX_INPUTS && a.boxes[m].consumer_side == WM_SIDE_RESIDENT)
        s.ends[row].tap = WM_TAP_NONE;
}

// The arguments of a grant of `module` on `server`; `behind` as in wm_step_args.
WM_FN void fill_step(const arbiter& a, wm_step_args& s, u32 server, u32 module, u32 behind) {
    const wm_step_plan& plan = *at<const wm_step_plan>(a.args.plan);
    const module_brief& mod = a.modules[module];
    s.magic = WM_ABI_MAGIC;
    s.version = WM_ABI_VERSION;
    s.module_stats = plan.module_stats + module * sizeof(wm_module_stats);
    s.module_stats_out = plan.module_stats_out + module * sizeof(wm_module_stats);
    s.tap_counts = plan.tap_counts;
    s.durable = plan.durable;
    s.module = at<const wm_module>(a.args.modules)[module];
    for (u32 i = 0; i < mod.n_inputs; i++)
        fill_end(a, s, i, mod.inputs[i]);
    for (u32 o = 0; o < mod.n_outputs; o++)
        fill_end(a, s, WM_MAX_INPUTS + o, mod.outputs[o]);
    s.journal.header = 0;
    if (plan.journals)
        s.journal = at<const wm_ring>(plan.journals)[server];
    s.scratch_bytes = a.args.scratch_bytes;
    s.journal_stage_bytes = a.args.journal_stage_bytes;
    s.journal_need = a.args.journal_need;
    s.behind = behind;
    s.leases = a.args.leases;
}

WM_FN handed hand_begin(const arbiter& a, u32 server) {
    return {serve_begin(one_lane{}, a, server), no_module, 0, false};
}

WM_FN wm_server_mark* mark_of(const arbiter& a, u32 server) {
    const u64 marks = at<const wm_step_plan>(a.args.plan)->marks;
    return marks ? at<wm_server_mark>(marks) + server : nullptr;
}

// A grant has been launched: says so to whoever enqueues behind it, and what it may give: a record a step to each
// output, for as many steps as there seem to be records, or one step where it was granted ahead. Guesses: see
// ahead.hpp.
WM_FN void tell_of(const arbiter& a, const handed& h, u32 server) {
    wm_server_mark* mark = mark_of(a, server);
    if (mark == nullptr)
        return;
    const module_brief& mod = a.modules[h.module];
    u64 sum = 0, least = ~u64{0};
    for (u32 i = 0; i < mod.n_inputs; i++) {
        const u64 waiting = pending(a, mod.inputs[i]);
        sum += waiting;
        least = waiting < least ? waiting : least;
    }
    u64 steps = mod.rule == WM_RULE_ANY ? sum : least;
    steps = steps == 0 ? 1 : steps > mod.batch ? mod.batch : steps;
    store_relaxed_sys(&mark->holds, u64{0});
    fence_release(WM_SCOPE_SYS); // RELEASE, acquired where `until` is read: `holds` is then another
    for (u32 o = 0; o < mod.n_outputs; o++)
        store_relaxed_sys(&mark->until[o], load_relaxed_cta(&a.written[mod.outputs[o]]) + steps);
    store_release_sys(&mark->holds, (h.state.turns << 32) | (u64{h.module} + 1)); // RELEASE, likewise
}

template <class Steps>
bool hand_over(arbiter& a, Steps& steps, handed& h, u32 server, u32 module, u32 after, u32 behind) {
    wm_step_args s = {};
    fill_step(a, s, server, module, behind);
    h.module = module;
    h.moved = own_indices(a, a.modules[module]);
    store_relaxed_cta(&a.grants[server].since_ns, now_ns());
    store_relaxed_cta(&a.grants[server].module_plus_one, u64{module} + 1);
    if (!steps.launch(server, s, after))
        return false;
    tell_of(a, h, server);
    return true;
}

// A grant has ended: what it stored is seen before the module may be claimed again.
WM_FN void take_back(arbiter& a, handed& h, u32 server) {
    const one_lane lanes;
    scan(lanes, a, a.host_side, 0, 1);
    if (a.args.journals)
        a.journals[server].write_idx = load_relaxed_sys(&ring_header(a.journals[server].ring)->write_idx);
    // What is left is somebody else's turn first; without progress, only news are worth another look.
    if (own_indices(a, a.modules[h.module]) != h.moved)
        mark(a, h.module);
    disown(lanes, a, h.module);
    if (wm_server_mark* mark = mark_of(a, server))
        store_relaxed_sys(&mark->holds, u64{0});
    h.module = no_module;
    h.state.turns++;
    store_relaxed_cta(&a.granted[server], h.state.turns);
    store_relaxed_cta(&a.grants[server].module_plus_one, u64{0});
}

// Whether module i waits for nothing but a record of mailbox m.
WM_FN bool waits_only_for(const arbiter& a, u32 i, u32 m) {
    const module_brief& mod = a.modules[i];
    for (u32 o = 0; o < mod.n_outputs; o++) {
        if (!has_room(a, mod.outputs[o], mod.out_records))
            return false;
    }
    u32 ready = 0;
    for (u32 k = 0; k < mod.n_inputs; k++) {
        if (mod.inputs[k] == m && (has_record(a, m) || is_quarantined(a, m)))
            return false;
        ready += has_record(a, mod.inputs[k]);
    }
    return mod.rule == WM_RULE_ANY ? ready == 0 : ready + 1 == mod.n_inputs;
}

// The row of mailbox m among the inputs of module i.
WM_FN u32 input_row(const arbiter& a, u32 i, u32 m) {
    u32 row = 0;
    while (row + 1 < a.modules[i].n_inputs && a.modules[i].inputs[row] != m)
        row++;
    return row;
}

WM_FN u32 free_server(arbiter& a, const handed* servers) {
    for (u32 s = 0; s < server_count(a.args); s++) {
        if (servers[s].module == no_module && !servers[s].left && journal_has_room(one_lane{}, a, s))
            return s;
    }
    return no_server;
}

// While nobody waits for a server: grants ahead the modules that wait for nothing but what the grant of `server` may
// give, behind it in the device's own order, and so on along the chain. The step looks again whether its rule holds
// then, so one that was given nothing does nothing. It saves the trip to the host and back between two modules.
template <class Steps> bool hand_ahead(arbiter& a, Steps& steps, handed* servers, u32 server) {
    const module_brief& mod = a.modules[servers[server].module];
    if (at<const wm_step_plan>(a.args.plan)->only_due != 0)
        return true;
    for (u32 o = 0; o < mod.n_outputs; o++) {
        const u32 m = mod.outputs[o], next = a.boxes[m].consumer;
        if (a.boxes[m].consumer_side != WM_SIDE_RESIDENT || !waits_only_for(a, next, m))
            continue;
        const u32 free = free_server(a, servers), bit = 1u << (next % 32);
        if (free == no_server || has_looks(one_lane{}, a))
            return true;
        if ((or_acquire_cta(&a.owned[next / 32], bit) & bit) != 0)
            continue;
        add_kept(a, kept_ahead, 1);
        if (!hand_over(a, steps, servers[free], free, next, server, 1u << input_row(a, next, m)) ||
            !hand_ahead(a, steps, servers, free))
            return false;
    }
    return true;
}

// One turn of a server. False: whoever runs the grants has failed.
template <class Steps> bool hand_turn(arbiter& a, Steps& steps, handed* servers, u32 server) {
    handed& h = servers[server];
    if (h.left)
        return true;
    if (h.module != no_module) {
        const int done = steps.done(server);
        if (done <= 0)
            return done == 0;
        take_back(a, h, server);
    }
    if (load_relaxed_cta(&a.flags[flag_closing]) != 0) {
        h.left = true;
        store_release_cta(&a.grants[server].module_plus_one, u64{WM_GRANT_LEFT});
        return true;
    }
    if (!journal_has_room(one_lane{}, a, server))
        return true;
    found_records<one_lane> found;
    const u32 module = claim(one_lane{}, a, h.state, found);
    if (module != no_module && a.modules[module].kind == WM_KIND_STREAM) {
        grant_steps(one_lane{}, a, module); // its own stream runs them, no server
        disown(one_lane{}, a, module);
        h.state.turns++;
        store_relaxed_cta(&a.granted[server], h.state.turns);
        return true;
    }
    return module == no_module ||
           (hand_over(a, steps, h, server, module, no_server, 0) && hand_ahead(a, steps, servers, server));
}

} // namespace warpmail

#endif
