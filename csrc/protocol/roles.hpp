// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The turns that the arbiter's roles take. The persistent kernel gives each role its warps; the twin gives each its
// threads, or composes them on one.
//   keep     keeps the spin budget, the stop doorbell and the clock; ends the launch, parks
//   scan     looks at the device side: readiness lines in device memory
//   inbox    looks at the host side (pinned memory is slow to read, so it has its own warp) and writes telemetry
//   serve    claims modules and runs resident handlers
//   journal  follows the servers along tapped mailboxes, copies their records to its ring, and tells the host of what
//   is
//            in all rings (journal.hpp)
#ifndef WARPMAIL_PROTOCOL_ROLES_HPP
#define WARPMAIL_PROTOCOL_ROLES_HPP

#include "protocol/begin.hpp"
#include "protocol/budget.hpp"
#include "protocol/chain.hpp"
#include "protocol/run.hpp"
#include "protocol/park.hpp"
#include "protocol/scan.hpp"
#include "protocol/telemetry.hpp"

namespace warpmail {

WM_FN bool args_are_valid(const wm_arbiter_args& args) {
    return args.magic == WM_ABI_MAGIC && args.version == WM_ABI_VERSION && args.n_mailboxes <= WM_MAX_MAILBOXES &&
           args.n_modules <= WM_MAX_MODULES && args.servers <= WM_MAX_SERVERS && args.scanners <= WM_MAX_SCANNERS &&
           args.carriers <= WM_MAX_CARRIERS && (args.carriers == 0 || (args.carry_lines != 0 && args.journals != 0)) &&
           2 + args.servers + args.scanners + args.journal_roles <= WM_MAX_WARPS &&
           args.n_device_words <= 2 * WM_MAX_MAILBOXES && args.n_host_words <= 2 * WM_MAX_MAILBOXES &&
           args.scratch_bytes % 16 == 0 && args.journal_stage_bytes % 16 == 0 && args.residency_ns != 0 &&
           args.image != 0 && args.image_bytes % 16 == 0 && (args.plan == 0 || args.n_device_words == 0) &&
           (args.idle_spin_ns == 0 || (args.doors != 0 && args.device_bell != 0 && args.host_bell != 0));
}

// The keeper's own state.
struct keep_state {
    u32 reason; // WM_EXIT_* once it has begun to close
    u64 begin_ns;
    u64 now_ns;
    u64 idle_since_ns;
    u64 granted;         // by all servers, when it last looked
    u64 granted_before;  // by earlier launches
    int64_t allowance;   // as in wm_telemetry
    u64 beginning_ns;    // until the first turn
    u64 overhead_ns;     // what the launch before took to leave
    u64 spell_ns;        // since when it polls without work
    u64 gap_ns;          // see kept_gap_ns
    u64 worked_ns;       // when there was last work, in this launch or an earlier one; 0: never
    bool was_idle;       // at the last turn
    bool continues_work; // the launch before left only because its residency was over
};

// Grants given by all servers, over all launches.
template <class L> WM_FN u64 granted_so_far(L lanes, const arbiter& a) {
    u64 granted = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width())
        granted += load_relaxed_cta(&a.granted[s]);
    return lanes.sum(granted);
}

// `begin_ns`: when the launch began.
template <class L> WM_FN keep_state keep_begin(L lanes, arbiter& a, u64 begin_ns) {
    const u64 begin = lanes.broadcast(begin_ns, 0); // what follows from it must be the same for all lanes
    keep_state k{};
    k.reason = WM_EXIT_NONE;
    k.begin_ns = k.now_ns = k.idle_since_ns = k.spell_ns = begin;
    k.gap_ns = load_relaxed_cta(&a.kept[kept_gap_ns]);
    k.worked_ns = load_relaxed_cta(&a.kept[kept_worked_ns]);
    k.was_idle = true;
    k.granted = k.granted_before = granted_so_far(lanes, a);
    if (was_away(a))
        k.idle_since_ns = begin - a.args.idle_spin_ns; // it was idle before, too
    // What the launch before took to leave, after its keeper's last turn.
    const u64 accounted = load_relaxed_cta(&a.kept[kept_accounted_ns]), left = load_relaxed_cta(&a.kept[kept_left_ns]);
    const u64 leaving = a.args.resume && left > accounted ? left - accounted : 0;
    k.continues_work = load_relaxed_cta(&a.kept[kept_left_working]) != 0;
    k.overhead_ns = leaving;
    const int64_t kept = static_cast<int64_t>(load_relaxed_cta(&a.kept[kept_allowance]));
    k.allowance =
        allowance_after(a.args, kept, begin > accounted ? begin - accounted : 0, k.continues_work ? 0 : leaving);
    if (lanes.rank() == 0)
        add_kept(a, k.continues_work ? kept_work_ns : kept_idle_ns, leaving);
    return k;
}

// How long news has kept the arbiter waiting of late, now that it waited from k.worked_ns on: an eighth of the way to
// the newest. What lies beyond eight times the spin counts as that, so that a long night is soon forgotten; what was
// over within a moment says nothing.
WM_FN u64 gap_after(const wm_arbiter_args& args, const keep_state& k) {
    const u64 most = 8 * args.idle_spin_ns, waited = k.now_ns - k.worked_ns, newest = waited < most ? waited : most;
    return waited < moment_ns ? k.gap_ns : k.gap_ns - k.gap_ns / 8 + newest / 8;
}

// How long to poll for news. Polling pays if the news comes before it has cost as much as leaving and being woken;
// where news has been coming later than that, it is given up after a moment.
WM_FN u64 spin_for(const wm_arbiter_args& args, const keep_state& k) {
    const bool in_vain = args.adaptive != 0 && k.gap_ns > args.idle_spin_ns && args.idle_spin_ns > moment_ns;
    return in_vain ? moment_ns : args.idle_spin_ns;
}

// Why this launch should end now, if it should. `idle`: there is nothing to do at this moment.
template <class L> WM_FN u32 reason_to_leave(L lanes, const arbiter& a, const keep_state& k, bool looked, bool idle) {
    if (lanes.broadcast(load_relaxed_cta(&a.flags[flag_stop]), 0) != 0)
        return WM_EXIT_STOP;
    if (k.now_ns - k.begin_ns >= a.args.residency_ns)
        return WM_EXIT_RESIDENCY;
    if (!can_park(a.args) || !idle)
        return WM_EXIT_NONE;
    const bool shared = is_shared(a.args), overdrawn = shared && k.allowance < 0;
    // What leaving and coming once more will cost is left in the bucket, so that whoever has news may ring.
    const u64 cost = load_relaxed_cta(&a.kept[kept_launch_cost_ns]);
    const bool spent = shared && k.allowance < static_cast<int64_t>(cost * whole_share);
    if (!(k.now_ns - k.idle_since_ns >= spin_for(a.args, k) || spent))
        return WM_EXIT_NONE;
    // Without a next launch behind its door a wake-up would be late: where there was work, more is to be expected soon.
    const bool wait_for_backing = k.granted != k.granted_before && !spent;
    const bool may = looked && (overdrawn || (may_park(a) && (!wait_for_backing || is_backed(a))));
    if (lanes.broadcast(may ? 1u : 0u, 0) == 0)
        return WM_EXIT_NONE;
    return overdrawn ? WM_EXIT_CLOSED : WM_EXIT_PARK;
}

// The launch's accounts, all but what park and whatever follows will take: the next launch adds that.
template <class L> WM_FN void keep_end(L lanes, arbiter& a, keep_state& k, bool worked) {
    const bool is_work = k.continues_work && worked;
    k.allowance = allowance_after(a.args, k.allowance, k.beginning_ns, is_work ? 0 : k.beginning_ns);
    const u64 cost =
        launch_cost_after(a.args, load_relaxed_cta(&a.kept[kept_launch_cost_ns]), k.beginning_ns + k.overhead_ns);
    lanes.sync(); // every lane has read what lane 0 now changes
    if (lanes.rank() == 0) {
        add_kept(a, is_work ? kept_work_ns : kept_idle_ns, k.beginning_ns);
        store_relaxed_cta(&a.kept[kept_allowance], static_cast<u64>(k.allowance));
        store_relaxed_cta(&a.kept[kept_gap_ns], k.gap_ns);
        store_relaxed_cta(&a.kept[kept_worked_ns], k.worked_ns);
        store_relaxed_cta(&a.kept[kept_launch_cost_ns], cost);
        store_relaxed_cta(&a.kept[kept_accounted_ns], k.now_ns);
        store_relaxed_cta(&a.kept[kept_left_working], u64{worked && k.reason == WM_EXIT_RESIDENCY});
        if (k.was_idle)
            count_spell(a, k.now_ns - k.spell_ns);
        count_launch(a, k.begin_ns, k.now_ns, k.reason);
    }
    lanes.sync();
}

// One turn: how the time since the last was spent, by whether a grant is held now; whether it is time to leave. Returns
// false when every server has left.
template <class L> WM_FN bool keep_turn(L lanes, arbiter& a, keep_state& k) {
    bool busy = false, here = false;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        const u64 module = load_acquire_cta(&a.grants[s].module_plus_one); // ACQUIRE of serve_turn
        busy = busy || (module != 0 && module != WM_GRANT_LEFT);
        here = here || module != WM_GRANT_LEFT;
    }
    busy = lanes.any(busy);
    // Before has_looks: what the first look found is seen there. Until then bits may be no more than what is expected.
    const bool looked = lanes.broadcast(has_looked(a) ? 1u : 0u, 0) != 0;
    const bool looks = has_looks(lanes, a) && looked;
    const u64 granted = granted_so_far(lanes, a);
    const u64 now = lanes.broadcast(now_ns(), 0);
    // To leave in the middle of work, because the residency is over, and to come back to it, is part of that work.
    const bool worked = granted != k.granted_before, leaving = k.reason == WM_EXIT_RESIDENCY && worked;
    const bool idle = !busy && granted == k.granted && !leaving && !looks && !is_behind(lanes, a);
    u64 spent = now - k.now_ns;
    if (k.beginning_ns == 0 && k.now_ns == k.begin_ns) {
        k.beginning_ns = spent; // accounted for when it is known what for
        spent = 0;
    }
    k.now_ns = now;
    k.granted = granted;
    if (lanes.rank() == 0 && !idle && k.was_idle)
        count_spell(a, now - k.spell_ns);
    if (!idle || !looked)
        k.spell_ns = now;
    if (!idle) {
        if (a.args.adaptive && k.worked_ns != 0 && k.was_idle)
            k.gap_ns = gap_after(a.args, k);
        k.idle_since_ns = k.worked_ns = now;
    }
    k.was_idle = idle;
    k.allowance = allowance_after(a.args, k.allowance, spent, idle ? spent : 0);
    if (k.reason == WM_EXIT_NONE) {
        k.reason = reason_to_leave(lanes, a, k, looked, idle);
        if (k.reason != WM_EXIT_NONE && lanes.rank() == 0)
            store_relaxed_cta(&a.flags[flag_closing], u64{1});
    }
    if (lanes.rank() == 0) {
        add_kept(a, idle ? kept_idle_ns : kept_work_ns, spent);
        add_kept(a, kept_rounds, 1);
    }
    if (lanes.any(here) || !has_followed(lanes, a, k.reason))
        return true;
    keep_end(lanes, a, k, worked);
    if (k.reason == WM_EXIT_PARK && (is_behind(lanes, a) || !park(lanes, a)))
        k.reason = WM_EXIT_NEWS;
    if (k.reason == WM_EXIT_PARK)
        expect_again(lanes, a);
    if (can_park(a.args) && (k.reason == WM_EXIT_NEWS || k.reason == WM_EXIT_RESIDENCY))
        leave_wanted(lanes, a);
    if (k.reason == WM_EXIT_CLOSED)
        leave_closed(lanes, a, closed_for(a.args, k.allowance, load_relaxed_cta(&a.kept[kept_launch_cost_ns])));
    if (lanes.rank() == 0)
        store_release_cta(&a.flags[flag_leave], u64{k.reason}); // RELEASE, acquired in inbox_turn and scan_turn
    return false;
}

// The first look of scanner `part` of `parts`.
template <class L> WM_FN void scan_begin(L lanes, arbiter& a, u32 part, u32 parts) {
    scan(lanes, a, a.device_side, part, parts);
    lanes.sync();
    if (lanes.rank() == 0)
        or_release_cta(a.looked, 2u << part);
}

// A scanner's own state. Somebody may be waiting for a launch that has just begun, so its words are asked for before it
// has taken up what it knows; that they are looked at again counts as the first look.
struct scan_state {
    u64 word;
    enum : u32 { early, first, steady } stage;
};
template <class L> WM_FN scan_state scan_ahead(L lanes, const wm_arbiter_args& args, u32 part, u32 parts) {
    const u32 i = part * lanes.width() + lanes.rank();
    if (!is_word_each(lanes, args.n_device_words, parts))
        return {0, scan_state::first};
    return {i < args.n_device_words ? load_relaxed_gpu(at<const u64>(args.device_words) + i) : 0, scan_state::early};
}

// One turn of scanner `part` of `parts`. False when the launch is over.
template <class L> WM_FN bool scan_turn(L lanes, arbiter& a, u32 part, u32 parts, scan_state& s) {
    scan(lanes, a, a.device_side, part, parts, {s.word, s.stage == scan_state::early});
    if (s.stage == scan_state::first) {
        lanes.sync();
        if (lanes.rank() == 0)
            or_release_cta(a.looked, 2u << part);
    }
    s.stage = s.stage == scan_state::early ? scan_state::first : scan_state::steady;
    return lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0) == WM_EXIT_NONE; // ACQUIRE of keep_turn
}

struct inbox_state {
    u64 written_ns; // when telemetry was last written
    bool looked;    // at all its words, once
};

template <class L> WM_FN inbox_state inbox_begin(L lanes, arbiter& a) {
    const u64 now = lanes.broadcast(now_ns(), 0);
    telemetry_begin(lanes, a, now);
    return {now, false};
}

// One turn. False when the launch is over and the last telemetry is written.
template <class L> WM_FN bool inbox_turn(L lanes, arbiter& a, inbox_state& b) {
    const u64 reason = lanes.broadcast(load_acquire_cta(&a.flags[flag_leave]), 0); // ACQUIRE of keep_turn
    const u64 now = lanes.broadcast(now_ns(), 0);
    if (reason != WM_EXIT_NONE) {
        telemetry_end(lanes, a, now, reason);
        return false;
    }
    if (now - b.written_ns >= WM_TELEMETRY_NS) {
        telemetry_write(lanes, a, now);
        b.written_ns = now;
    }
    // Used after the scan, so that its way over the bus overlaps with the scan's.
    const u64 stop = load_relaxed_sys(&at<wm_control>(a.args.control)->stop.rung);
    scan(lanes, a, a.host_side, 0, 1);
    if (stop && lanes.rank() == 0)
        store_relaxed_cta(&a.flags[flag_stop], stop);
    lanes.sync();
    if (!b.looked && lanes.rank() == 0)
        or_release_cta(a.looked, 1u);
    b.looked = true;
    return true;
}

enum class served : u32 { left, nothing, grant };

template <class L> WM_FN serve_state serve_begin(L lanes, const arbiter& a, u32 server) {
    const u64 turns = lanes.broadcast(load_relaxed_cta(&a.granted[server]), 0);
    return {turns, static_cast<u32>(turns / WM_FAIR_TURNS)};
}

// Says what the server does now.
template <class L> WM_FN void stand(L lanes, const arbiter& a, u32 server, u32 what) {
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.standing[server], what);
}

// A grant of `module`, which this server owns. Whether it moved a record of a resident module. The server holds a grant
// until end_grant.
template <class H, taps Taps, class L>
WM_INLINED bool serve(L lanes, arbiter& a, u32 server, serve_state& state, u32 module, const found_records<L>& found,
                      given_record<L>& given, tally& t) {
    const u64 begin_ns = now_ns();
    if (lanes.rank() == 0) {
        store_relaxed_cta(&a.standing[server], stands_granted);
        store_relaxed_cta(&a.grants[server].since_ns, begin_ns);
        store_relaxed_cta(&a.grants[server].module_plus_one, u64{module} + 1);
    }
    if (a.args.servers == 0)
        telemetry_grants(lanes, a); // this thread is the inbox too: nobody else could say so meanwhile
    bool moved = false;
    if (a.modules[module].kind == WM_KIND_STREAM)
        grant_steps(lanes, a, module);
    else
        moved = run_grant<H, Taps>(lanes, a, server, module, found, given, t);
    state.turns++;
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.granted[server], state.turns);
    return moved;
}

// This server holds no grant any more.
template <class L> WM_FN void end_grant(L lanes, const arbiter& a, u32 server, u32 stands) {
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.grants[server].module_plus_one, u64{0});
    stand(lanes, a, server, stands);
}

// The module that this server is to run now, owned by it: the one that it lingers at, or one that it has claimed; or
// no_module.
template <taps Taps, class L>
WM_FN u32 next_grant(L lanes, arbiter& a, u32 server, serve_state& state, linger_state& at, found_records<L>& found) {
    const bool room = Taps != all_taps || journal_has_room(lanes, a, server);
    if (at.module == no_module) {
        if (Taps == all_taps && a.args.journal_need != 0)
            stand(lanes, a, server, room ? stands_searching : stands_granted);
        return room ? claim<Taps>(lanes, a, state, found) : no_module;
    }
    const lingering what = room ? linger<Taps>(lanes, a, server, at, found) : lingering::over;
    if (what == lingering::step)
        return at.module;
    if ((what == lingering::over || at.streak < 0) && at.moved.steps != 0)
        count(lanes, a, at.module, at.moved, 0);
    if (what == lingering::over) {
        disown(lanes, a, at.module);
        stand(lanes, a, server, stands_searching);
        at.module = no_module;
    }
    return no_module;
}

// One turn.
template <class H, taps Taps = all_taps, class L>
WM_INLINED served serve_turn(L lanes, arbiter& a, u32 server, serve_state& state, linger_state& at) {
    if (at.module == no_module && lanes.any(load_relaxed_cta(&a.flags[flag_closing]) != 0)) {
        stand(lanes, a, server, stands_granted);
        lanes.sync();
        if (lanes.rank() == 0)
            store_release_cta(&a.grants[server].module_plus_one, u64{WM_GRANT_LEFT}); // RELEASE, acquired in keep_turn
        return served::left;
    }
    found_records<L> found;
    u32 module = next_grant<Taps>(lanes, a, server, state, at, found);
    if (module == no_module)
        return served::nothing;
    for (;;) {
        given_record<L> given;
        const bool moved = serve<H, Taps>(lanes, a, server, state, module, found, given, at.moved);
        // Without progress there is nothing to wait for at its slots: what lies there lies there still.
        const bool lingers =
            a.args.linger != 0 && moved &&
            (at.module == module || (should_linger(lanes, a, server, module) && may_linger(lanes, a, server)));
        const u64 busy_ns = held_ns(a, server);
        if (!lingers) {
            disown(lanes, a, module);
            at.module = no_module;
        } else if (at.module == no_module) {
            at.module = module;
            at.input = at.credit = 0;
            at.streak = 0;
        }
        chain_asked asked; // behind `disown`: the module itself may have to wait for a turn
        if (given.mailbox != no_mailbox)
            asked = chain_ask<Taps>(lanes, a, server, state, given,
                                    !lingers && (Taps != all_taps || journal_has_room(lanes, a, server)));
        // While it lingers the sum is in registers, but for times, which would take up two more. A stream module counts
        // its steps itself.
        if (lingers && at.moved.steps < linger_steps) {
            tally none;
            count(lanes, a, module, none, busy_ns);
        } else if (at.moved.steps != 0) {
            count(lanes, a, module, at.moved, busy_ns);
        }
        found = {};
        module = chain_take<Taps>(lanes, a, given, asked, found);
        if (module == no_module) {
            end_grant(lanes, a, server, lingers ? stands_lingering : stands_searching);
            return served::grant;
        }
    }
}

} // namespace warpmail

#endif
