// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What the arbiter knows and decides: readiness, firing rules, credit, whose turn it is. Ordinary inline functions over
// the mailbox and module tables, shared word for word by the persistent kernel and the CPU twin.
//
// Working memory (`arbiter`) is shared memory on the device and heap memory on the twin. One writer per word:
//   written[m]   resident producer: the server that runs it; else the scan of the producer's side
//   consumed[m]  resident consumer: the server that runs it; else the scan of the consumer's side
//   grant[s]     the decider            done[s]     server s
//   everything marked "decider" below   the decider
// A module runs on one server at a time, and what a server wrote reaches the next server of the same module through
// RELEASE done[s] -> ACQUIRE by the decider -> RELEASE grant[t] -> ACQUIRE by server t.
#ifndef WARPMAIL_PROTOCOL_ARBITER_HPP
#define WARPMAIL_PROTOCOL_ARBITER_HPP

#include "protocol/wait.hpp"

namespace warpmail {

constexpr u32 no_module = ~0u;
constexpr u64 leave_word = ~0ull; // a grant word that says: return

struct arbiter {
    wm_arbiter_args args;
    u64* written;
    u64* consumed;
    u64* quarantined; // 0, or 1 + WM_REJECT_*; set once
    u64* depth_max;   // inbox
    u64* grant;       // sequence << 32 | module + 1, or leave_word
    u64* done;        // sequence
    u64* sequence;    // decider
    u64* since;       // decider: when the outstanding grant was given; 0 none
    u64* module_of;   // decider: module + 1 of the outstanding grant; 0 none
    u64* flags;       // see the flag_ constants
    u8* owned;        // decider: [n_modules] 1 while a grant is outstanding
    u8* scratch;      // [servers][scratch_bytes]
};

constexpr u32 flag_stop = 0;   // scan of the host side -> decider: the stop doorbell was rung
constexpr u32 flag_leave = 1;  // decider -> scan of the host side: all servers are done; the WM_EXIT_* reason
constexpr u32 flag_rounds = 2; // decider
constexpr u32 flag_grants = 3; // decider
constexpr u32 flag_work = 4;   // decider: ns
constexpr u32 flag_idle = 5;   // decider: ns
constexpr u32 flag_count = 8;

WM_FN u64 align16(u64 n) {
    return (n + 15) & ~15ull;
}

// The twin that serves on its own thread still has one server.
WM_FN u32 server_count(const wm_arbiter_args& args) {
    return args.servers ? args.servers : 1;
}

// Places the working memory at `base` (16-byte aligned) and returns its size in bytes; with base null only the size.
WM_FN u64 place(arbiter& a, const wm_arbiter_args& args, u8* base) {
    const u64 mailboxes = args.n_mailboxes, servers = server_count(args);
    u64 at_byte = 0;
    auto words = [&](u64 n) {
        u64* p = base ? reinterpret_cast<u64*>(base + at_byte) : nullptr;
        at_byte = align16(at_byte + 8 * n);
        return p;
    };
    a.args = args;
    a.written = words(mailboxes);
    a.consumed = words(mailboxes);
    a.quarantined = words(mailboxes);
    a.depth_max = words(mailboxes);
    a.grant = words(servers);
    a.done = words(servers);
    a.sequence = words(servers);
    a.since = words(servers);
    a.module_of = words(servers);
    a.flags = words(flag_count);
    a.owned = reinterpret_cast<u8*>(words((args.n_modules + 7) / 8));
    a.scratch = base ? base + at_byte : nullptr;
    return at_byte + servers * args.scratch_bytes;
}

WM_FN const wm_mailbox& mailbox_of(const arbiter& a, u32 m) {
    return at<const wm_mailbox>(a.args.mailboxes)[m];
}
WM_FN const wm_module& module_of(const arbiter& a, u32 i) {
    return at<const wm_module>(a.args.modules)[i];
}

// Records waiting in mailbox m as far as the arbiter has seen. A consumer that takes records by their tag can be ahead
// of the `written` it was told: that counts as none.
WM_FN u64 pending(const arbiter& a, u32 m) {
    int64_t d = static_cast<int64_t>(load_relaxed_cta(&a.written[m]) - load_relaxed_cta(&a.consumed[m]));
    return d > 0 ? static_cast<u64>(d) : 0;
}
WM_FN u64 credit(const arbiter& a, u32 m) {
    u64 slots = slot_count(mailbox_of(a, m)), used = pending(a, m);
    return used < slots ? slots - used : 0;
}
WM_FN bool is_quarantined(const arbiter& a, u32 m) {
    return load_relaxed_cta(&a.quarantined[m]) != 0;
}

// The firing rule.
WM_FN bool fires(const arbiter& a, const wm_module& mod) {
    u32 ready = 0;
    for (u32 i = 0; i < mod.n_inputs; i++) {
        const u32 m = mod.inputs[i];
        ready += !is_quarantined(a, m) && pending(a, m) > 0;
    }
    return mod.rule == WM_RULE_ALL ? ready == mod.n_inputs && ready > 0 : ready > 0;
}

// Room for what one step may push: a granted handler never finds its output full.
WM_FN bool has_credit(const arbiter& a, const wm_module& mod) {
    for (u32 i = 0; i < mod.n_outputs; i++) {
        const u32 m = mod.outputs[i];
        if (is_quarantined(a, m) || credit(a, m) < mod.out_records)
            return false;
    }
    return true;
}

WM_FN bool may_step(const arbiter& a, const wm_module& mod) {
    return mod.kind == WM_KIND_RESIDENT && fires(a, mod) && has_credit(a, mod);
}

// Takes the tables up where the headers say they were left; refuses mailboxes whose header cannot be trusted.
template <class L> WM_FN void begin(L lanes, arbiter& a) {
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        const wm_mailbox& box = mailbox_of(a, m);
        const wm_status s = check_header(box);
        const bool ok = s == WM_OK;
        a.quarantined[m] = ok ? 0 : 1 + (s == WM_BAD_INDEX ? WM_REJECT_INDEX : WM_REJECT_HEADER);
        a.written[m] = ok ? load_relaxed(write_idx_of(box), box.scope) : 0;
        a.consumed[m] = ok ? load_relaxed(read_idx_of(box), box.scope) : 0;
        a.depth_max[m] = ok ? a.written[m] - a.consumed[m] : 0;
    }
    for (u32 i = lanes.rank(); i < a.args.n_modules; i += lanes.width())
        a.owned[i] = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width())
        a.grant[s] = a.done[s] = a.sequence[s] = a.since[s] = a.module_of[s] = 0;
    for (u32 f = lanes.rank(); f < flag_count; f += lanes.width())
        a.flags[f] = 0;
    lanes.sync();
}

// Looks at the far ends on one side (WM_SIDE_*): a lane a mailbox, two words each. An index that cannot be quarantines
// its mailbox; the others go on.
template <class L> WM_FN void scan(L lanes, arbiter& a, u32 side) {
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        const wm_mailbox& box = mailbox_of(a, m);
        if ((box.producer_side != side && box.consumer_side != side) || is_quarantined(a, m))
            continue;
        // Both loads are under way before either is used: pinned words are a round trip over the bus away.
        const bool consumes = box.consumer_side == side, produces = box.producer_side == side;
        u64 read = load_relaxed_cta(&a.consumed[m]), written = load_relaxed_cta(&a.written[m]);
        if (consumes)
            read = load_relaxed(at<u64>(box.consumed), box.scope);
        if (produces)
            written = load_relaxed(at<u64>(box.written), box.scope);
        if (consumes)
            store_relaxed_cta(&a.consumed[m], read);
        if (produces)
            store_relaxed_cta(&a.written[m], written);
        const int64_t depth = static_cast<int64_t>(written - read);
        const int64_t slots = static_cast<int64_t>(slot_count(box));
        if (depth > slots || depth < -slots)
            store_relaxed_cta(&a.quarantined[m], 1 + WM_REJECT_INDEX);
    }
}

// Takes back the grants that are done. Returns whether any grant is outstanding.
template <class L> WM_FN bool collect(L lanes, arbiter& a) {
    bool outstanding = false;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        if (a.module_of[s] == 0)
            continue;
        if (load_acquire_cta(&a.done[s]) == a.sequence[s]) { // ACQUIRE of finish_grant
            a.owned[a.module_of[s] - 1] = 0;
            store_relaxed_cta(&a.since[s], 0);
            store_relaxed_cta(&a.module_of[s], 0);
        } else {
            outstanding = true;
        }
    }
    lanes.sync();
    return lanes.any(outstanding);
}

// The next module to run, round robin from `cursor`: between two grants of a module that stays ready, every other
// module is granted at most once.
template <class L> WM_FN u32 next_module(L lanes, arbiter& a, u32& cursor) {
    const u32 n = a.args.n_modules;
    for (u32 base = 0; base < n; base += lanes.width()) {
        const u32 k = base + lanes.rank();
        u32 i = cursor + k;
        i -= i >= n ? n : 0;
        const u32 ready = lanes.ballot(k < n && a.owned[i] == 0 && may_step(a, module_of(a, i)));
        if (ready == 0)
            continue;
        u32 chosen = cursor + base + lowest_bit(ready);
        chosen -= chosen >= n ? n : 0;
        cursor = chosen + 1 == n ? 0 : chosen + 1;
        return chosen;
    }
    return no_module;
}

// Gives every idle server a module, while there are any to run. Returns the number of grants.
template <class L> WM_FN u32 decide(L lanes, arbiter& a, u32& cursor, u64 now) {
    const u32 servers = server_count(a.args);
    u32 granted = 0;
    for (u32 base = 0; base < servers; base += lanes.width()) {
        const u32 s_lane = base + lanes.rank();
        u32 idle = lanes.ballot(s_lane < servers && a.module_of[s_lane < servers ? s_lane : 0] == 0);
        for (; idle; idle &= idle - 1) {
            const u32 s = base + lowest_bit(idle), i = next_module(lanes, a, cursor);
            if (i == no_module)
                return granted;
            if (lanes.rank() == 0) {
                a.owned[i] = 1;
                a.sequence[s] = (a.sequence[s] + 1) & 0x7FFFFFFFu;
                store_relaxed_cta(&a.since[s], now);
                store_relaxed_cta(&a.module_of[s], i + 1);
                store_release_cta(&a.grant[s], a.sequence[s] << 32 | (i + 1)); // RELEASE, acquired in take_grant
            }
            granted++;
            lanes.sync();
        }
    }
    return granted;
}

// Server side of a grant: the module to run, or no_module when there is nothing new; `left` says to return.
template <class L> WM_FN u32 take_grant(L lanes, arbiter& a, u32 server, u64& seen, bool& left) {
    const u64 g = lanes.broadcast(lanes.rank() == 0 ? load_acquire_cta(&a.grant[server]) : 0, 0); // ACQUIRE of decide
    lanes.sync();
    left = g == leave_word;
    if (left || (g >> 32) == seen)
        return no_module;
    seen = g >> 32;
    return static_cast<u32>(g) - 1;
}
template <class L> WM_FN void finish_grant(L lanes, arbiter& a, u32 server, u64 seen) {
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_cta(&a.done[server], seen); // RELEASE, acquired in collect
}

} // namespace warpmail

#endif
