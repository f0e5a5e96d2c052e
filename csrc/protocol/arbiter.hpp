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
// but for `look`, a set of bits that everybody may set and the decider takes.
//
// A module runs on one server at a time, and what a server wrote reaches the next server of the same module through
// RELEASE done[s] -> ACQUIRE by the decider -> RELEASE grant[t] -> ACQUIRE by server t.
//
// No wake-up inside the arbiter is lost: whoever changes something that a firing rule or a credit depends on stores it
// first and sets the module's look bit then; the decider takes the bit first and evaluates then; a module that is owned
// at that moment is looked at again when its grant is collected.
#ifndef WARPMAIL_PROTOCOL_ARBITER_HPP
#define WARPMAIL_PROTOCOL_ARBITER_HPP

#include "protocol/wait.hpp"

namespace warpmail {

constexpr u32 no_module = ~0u;
constexpr u64 leave_word = ~0ull;           // a grant word that says: return
constexpr u32 rows_in_working_memory = 512; // tables up to this size are copied whole

// What the arbiter needs of a mailbox all the time.
struct mailbox_brief {
    u8 slots_log2;
    u8 producer_side;
    u8 consumer_side;
    u8 reserved;
    uint16_t producer;
    uint16_t consumer;
};

// What the arbiter needs of a module all the time.
struct module_brief {
    u64 state;
    u64 state_bytes;
    u32 handler;
    u32 batch;
    u32 out_records;
    u8 kind;
    u8 rule;
    u8 n_inputs;
    u8 n_outputs;
    uint16_t inputs[WM_MAX_INPUTS];
    uint16_t outputs[WM_MAX_OUTPUTS];
};

struct arbiter {
    wm_arbiter_args args;
    const wm_mailbox* rows; // the mailbox table, or its copy in working memory
    mailbox_brief* boxes;
    module_brief* modules;
    u32* far_ends; // [side - 1][written, consumed][chunk]: which of 32 mailboxes have such an end on that side
    u32* look;     // a bit a module: its rule or credit may have changed
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
constexpr u32 flag_leave = 1;  // decider -> scans: all servers are done; the WM_EXIT_* reason
constexpr u32 flag_rounds = 2; // decider
constexpr u32 flag_grants = 3; // decider
constexpr u32 flag_work = 4;   // decider: ns
constexpr u32 flag_idle = 5;   // decider: ns
constexpr u32 flag_count = 8;

WM_FN u64 align16(u64 n) {
    return (n + 15) & ~15ull;
}
WM_FN u32 chunks_of(u32 n) {
    return (n + 31) / 32;
}

// The twin that serves on its own thread still has one server.
WM_FN u32 server_count(const wm_arbiter_args& args) {
    return args.servers ? args.servers : 1;
}

// Places the working memory at `base` (16-byte aligned) and returns its size in bytes; with base null only the size.
WM_FN u64 place(arbiter& a, const wm_arbiter_args& args, u8* base) {
    const u64 mailboxes = args.n_mailboxes, servers = server_count(args);
    u64 at_byte = 0;
    auto take = [&](u64 bytes) {
        u8* p = base ? base + at_byte : nullptr;
        at_byte = align16(at_byte + bytes);
        return p;
    };
    auto words = [&](u64 n) { return reinterpret_cast<u64*>(take(8 * n)); };
    a.args = args;
    const bool copied = mailboxes <= rows_in_working_memory;
    const u8* rows = take(copied ? mailboxes * sizeof(wm_mailbox) : 0);
    a.rows = copied ? reinterpret_cast<const wm_mailbox*>(rows) : at<const wm_mailbox>(args.mailboxes);
    a.boxes = reinterpret_cast<mailbox_brief*>(take(mailboxes * sizeof(mailbox_brief)));
    a.modules = reinterpret_cast<module_brief*>(take(args.n_modules * sizeof(module_brief)));
    a.far_ends = reinterpret_cast<u32*>(take(4 * 4 * chunks_of(args.n_mailboxes)));
    a.look = reinterpret_cast<u32*>(take(4 * chunks_of(args.n_modules)));
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
    a.owned = take(args.n_modules);
    a.scratch = take(servers * args.scratch_bytes);
    return at_byte;
}

// Records waiting in mailbox m as far as the arbiter has seen. A consumer that takes records by their tag can be ahead
// of the `written` it was told: that counts as none.
WM_FN u64 pending(const arbiter& a, u32 m) {
    int64_t d = static_cast<int64_t>(load_relaxed_cta(&a.written[m]) - load_relaxed_cta(&a.consumed[m]));
    return d > 0 ? static_cast<u64>(d) : 0;
}
WM_FN u64 credit(const arbiter& a, u32 m) {
    u64 slots = 1ull << a.boxes[m].slots_log2, used = pending(a, m);
    return used < slots ? slots - used : 0;
}
WM_FN bool is_quarantined(const arbiter& a, u32 m) {
    return load_relaxed_cta(&a.quarantined[m]) != 0;
}

// The firing rule.
WM_FN bool fires(const arbiter& a, const module_brief& mod) {
    u32 ready = 0;
    for (u32 i = 0; i < mod.n_inputs; i++) {
        const u32 m = mod.inputs[i];
        ready += pending(a, m) > 0 && !is_quarantined(a, m);
    }
    return mod.rule == WM_RULE_ALL ? ready == mod.n_inputs && ready > 0 : ready > 0;
}

// Room for what one step may push: a granted handler never finds its output full.
WM_FN bool has_credit(const arbiter& a, const module_brief& mod) {
    for (u32 i = 0; i < mod.n_outputs; i++) {
        const u32 m = mod.outputs[i];
        if (credit(a, m) < mod.out_records || is_quarantined(a, m))
            return false;
    }
    return true;
}

WM_FN bool may_step(const arbiter& a, const module_brief& mod) {
    return mod.kind == WM_KIND_RESIDENT && fires(a, mod) && has_credit(a, mod);
}

// Asks the decider to look at a module. RELEASE, acquired in take_look.
WM_FN void mark(arbiter& a, u32 module) {
    or_release_cta(&a.look[module / 32], 1u << (module % 32));
}

// Makes news of mailbox m known to the modules that it concerns.
WM_FN void mark_consumer(arbiter& a, u32 m) {
    if (a.boxes[m].consumer_side == WM_SIDE_RESIDENT)
        mark(a, a.boxes[m].consumer);
}
WM_FN void mark_producer(arbiter& a, u32 m) {
    if (a.boxes[m].producer_side == WM_SIDE_RESIDENT)
        mark(a, a.boxes[m].producer);
}

template <class L> WM_FN void begin_modules(L lanes, arbiter& a) {
    const wm_module* table = at<const wm_module>(a.args.modules);
    for (u32 i = lanes.rank(); i < a.args.n_modules; i += lanes.width()) {
        const wm_module& from = table[i];
        module_brief& to = a.modules[i];
        to.state = from.state;
        to.state_bytes = from.state_bytes;
        to.handler = from.handler;
        to.batch = from.batch;
        to.out_records = from.out_records;
        to.kind = static_cast<u8>(from.kind);
        to.rule = static_cast<u8>(from.rule);
        to.n_inputs = static_cast<u8>(from.n_inputs);
        to.n_outputs = static_cast<u8>(from.n_outputs);
        for (u32 k = 0; k < WM_MAX_INPUTS; k++)
            to.inputs[k] = static_cast<uint16_t>(from.inputs[k]);
        for (u32 k = 0; k < WM_MAX_OUTPUTS; k++)
            to.outputs[k] = static_cast<uint16_t>(from.outputs[k]);
        a.owned[i] = 0;
    }
    for (u32 w = lanes.rank(); w < chunks_of(a.args.n_modules); w += lanes.width()) {
        const u32 left = a.args.n_modules - w * 32;
        a.look[w] = left >= 32 ? ~0u : (1u << left) - 1;
    }
}

template <class L> WM_FN void begin_mailboxes(L lanes, arbiter& a) {
    const wm_mailbox* table = at<const wm_mailbox>(a.args.mailboxes);
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        const wm_mailbox& box = table[m];
        if (a.rows != table)
            const_cast<wm_mailbox*>(a.rows)[m] = box;
        a.boxes[m] = {static_cast<u8>(box.slots_log2 & 63),   static_cast<u8>(box.producer_side),
                      static_cast<u8>(box.consumer_side),     0,
                      static_cast<uint16_t>(box.producer_id), static_cast<uint16_t>(box.consumer_id)};
        const wm_status s = check_header(box);
        const bool ok = s == WM_OK;
        a.quarantined[m] = ok ? 0 : 1 + (s == WM_BAD_INDEX ? WM_REJECT_INDEX : WM_REJECT_HEADER);
        a.written[m] = ok ? load_relaxed(write_idx_of(box), box.scope) : 0;
        a.consumed[m] = ok ? load_relaxed(read_idx_of(box), box.scope) : 0;
        a.depth_max[m] = ok ? a.written[m] - a.consumed[m] : 0;
    }
    lanes.sync();
    const u32 chunks = chunks_of(a.args.n_mailboxes);
    for (u32 c = lanes.rank(); c < chunks; c += lanes.width()) {
        u32 sets[4] = {0, 0, 0, 0};
        for (u32 b = 0; b < 32 && c * 32 + b < a.args.n_mailboxes; b++) {
            const mailbox_brief& box = a.boxes[c * 32 + b];
            sets[0] |= static_cast<u32>(box.producer_side == WM_SIDE_DEVICE) << b;
            sets[1] |= static_cast<u32>(box.consumer_side == WM_SIDE_DEVICE) << b;
            sets[2] |= static_cast<u32>(box.producer_side == WM_SIDE_HOST) << b;
            sets[3] |= static_cast<u32>(box.consumer_side == WM_SIDE_HOST) << b;
        }
        for (u32 k = 0; k < 4; k++)
            a.far_ends[k * chunks + c] = sets[k];
    }
}

// Takes the tables up where the headers say they were left; refuses mailboxes whose header cannot be trusted.
template <class L> WM_FN void begin(L lanes, arbiter& a) {
    begin_modules(lanes, a);
    begin_mailboxes(lanes, a);
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width())
        a.grant[s] = a.done[s] = a.sequence[s] = a.since[s] = a.module_of[s] = 0;
    for (u32 f = lanes.rank(); f < flag_count; f += lanes.width())
        a.flags[f] = 0;
    lanes.sync();
}

// What a far end says of its index: news are stored and made known; an index that cannot be quarantines the mailbox,
// and the others go on.
WM_FN void take_news(arbiter& a, u32 m, u64 seen, bool of_producer) {
    u64* known = of_producer ? &a.written[m] : &a.consumed[m];
    if (seen == load_relaxed_cta(known) || is_quarantined(a, m))
        return;
    const u64 written = of_producer ? seen : load_relaxed_cta(&a.written[m]);
    const u64 consumed = of_producer ? load_relaxed_cta(&a.consumed[m]) : seen;
    const int64_t depth = static_cast<int64_t>(written - consumed), slots = int64_t{1} << a.boxes[m].slots_log2;
    if (depth > slots || depth < -slots) {
        store_relaxed_cta(&a.quarantined[m], 1 + WM_REJECT_INDEX);
        return;
    }
    store_relaxed_cta(known, seen);
    if (of_producer)
        mark_consumer(a, m);
    else
        mark_producer(a, m);
}

// Looks at the far ends on one side (WM_SIDE_*): a lane a mailbox, lines of words, several lines under way before the
// first is used. Scanner `part` of `parts` looks at its share.
template <class L> WM_FN void scan(L lanes, arbiter& a, u32 side, u32 part, u32 parts) {
    constexpr u32 ahead = 4;
    const u32 n = a.args.n_mailboxes, chunks = chunks_of(n);
    const u64* words = at<const u64>(side == WM_SIDE_HOST ? a.args.host_words : a.args.device_words);
    const u32* ends = a.far_ends + (side - 1) * 2 * chunks;
    const u32 scope = side == WM_SIDE_HOST ? WM_SCOPE_SYS : WM_SCOPE_GPU;
    for (u32 base = part * ahead; base < chunks; base += parts * ahead) {
        for (u32 b = lanes.rank(); b < 32; b += lanes.width()) {
            bool has[2 * ahead];
            u64 seen[2 * ahead];
            for (u32 k = 0; k < 2 * ahead; k++) {
                const u32 c = base + k / 2, which = k % 2;
                has[k] = c < chunks && (ends[which * chunks + (c < chunks ? c : 0)] >> b & 1);
                seen[k] = has[k] ? load_relaxed(words + which * n + c * 32 + b, scope) : 0;
            }
            for (u32 k = 0; k < 2 * ahead; k++) {
                if (has[k])
                    take_news(a, (base + k / 2) * 32 + b, seen[k], k % 2 == 0);
            }
        }
    }
    lanes.sync();
}

// Takes back the grants that are done. Returns whether any grant is outstanding.
template <class L> WM_FN bool collect(L lanes, arbiter& a) {
    bool outstanding = false;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        if (a.module_of[s] == 0)
            continue;
        if (load_acquire_cta(&a.done[s]) == a.sequence[s]) { // ACQUIRE of finish_grant
            const u32 module = static_cast<u32>(a.module_of[s]) - 1;
            a.owned[module] = 0;
            mark(a, module); // what happened to it meanwhile was not looked at
            store_relaxed_cta(&a.since[s], 0);
            store_relaxed_cta(&a.module_of[s], 0);
        } else {
            outstanding = true;
        }
    }
    lanes.sync();
    return lanes.any(outstanding);
}

// Takes word w of the look bits and evaluates its modules, a lane a module; the bits of those that may step.
template <class L> WM_FN u32 take_look(L lanes, arbiter& a, u32 w) {
    const u32 bits = lanes.broadcast(lanes.rank() == 0 ? exchange_acquire_cta(&a.look[w], 0) : 0, 0); // ACQUIRE of mark
    lanes.sync();
    u32 ready = 0;
    for (u32 b = lanes.rank(); b < 32; b += lanes.width()) {
        const u32 i = w * 32 + b;
        const bool ok = (bits >> b & 1) && a.owned[i] == 0 && may_step(a, a.modules[i]);
        ready |= lanes.width() == 1 ? static_cast<u32>(ok) << b : lanes.ballot(ok);
    }
    return ready;
}

// The first word from `from` on, round the end, with a look bit set; or the number of words if there is none.
template <class L> WM_FN u32 next_look(L lanes, arbiter& a, u32 from) {
    const u32 words = chunks_of(a.args.n_modules);
    for (u32 base = 0; base < words; base += lanes.width()) {
        const u32 k = base + lanes.rank();
        const u32 w = from + k < words ? from + k : from + k - words;
        const u32 found = lanes.ballot(k < words && load_relaxed_cta(&a.look[k < words ? w : 0]) != 0);
        if (found) {
            const u32 first = from + base + lowest_bit(found);
            return first < words ? first : first - words;
        }
    }
    return words;
}

template <class L> WM_FN void give_grant(L lanes, arbiter& a, u32 s, u32 module, u64 now) {
    if (lanes.rank() == 0) {
        a.owned[module] = 1;
        a.sequence[s] = (a.sequence[s] + 1) & 0x7FFFFFFFu;
        store_relaxed_cta(&a.since[s], now);
        store_relaxed_cta(&a.module_of[s], module + 1);
        store_release_cta(&a.grant[s], a.sequence[s] << 32 | (module + 1)); // RELEASE, acquired in take_grant
    }
    lanes.sync();
}

// Gives every idle server a module, while there are any to run. Returns the number of grants. Round robin: `cursor` is
// the module to begin with, so that between two grants of a module that stays ready every other is granted at most
// once.
template <class L> WM_FN u32 decide(L lanes, arbiter& a, u32& cursor, u64 now) {
    const u32 servers = server_count(a.args), words = chunks_of(a.args.n_modules);
    u32 idle = 0;
    for (u32 base = 0; base < servers; base += lanes.width()) {
        const u32 s = base + lanes.rank();
        idle |= lanes.ballot(s < servers && a.module_of[s < servers ? s : 0] == 0) << base;
    }
    u32 granted = 0;
    // At most one look at each word, and a second at the first for the modules before the cursor.
    for (u32 looks = 0; idle && looks <= words; looks++) {
        const u32 w = next_look(lanes, a, cursor / 32);
        if (w == words)
            break;
        const u32 ready = take_look(lanes, a, w);
        const u32 skipped = w == cursor / 32 && looks == 0 ? ready & ((1u << (cursor % 32)) - 1) : 0;
        u32 turn = ready & ~skipped;
        for (; turn && idle; turn &= turn - 1, idle &= idle - 1) {
            const u32 module = w * 32 + lowest_bit(turn);
            give_grant(lanes, a, lowest_bit(idle), module, now);
            cursor = module + 1 < a.args.n_modules ? module + 1 : 0;
            granted++;
        }
        // Those that must wait for a server, or for the cursor to come round, are looked at again.
        if ((turn | skipped) && lanes.rank() == 0)
            or_release_cta(&a.look[w], turn | skipped);
        if (!turn && cursor / 32 == w)
            cursor = w + 1 < words ? (w + 1) * 32 : 0;
        lanes.sync();
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
