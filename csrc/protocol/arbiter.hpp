// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What the arbiter knows, and the rules it decides by: readiness, firing rules, credit. Ordinary inline functions over
// the tables, shared word for word by the persistent kernel and the CPU twin.
//
// Working memory (`arbiter`) is shared memory on the device and heap memory on the twin. One writer per word:
//   written[m]   resident producer: the server that runs it; else the scan of the producer's side
//   consumed[m]  resident consumer: the server that runs it; else the scan of the consumer's side
//   followed[m], tapped[m]   the role that follows the mailbox; where there is none, the server that runs the module
//   grants[s], granted[s], standing[s]   server s         flags[...]   see the flag_ constants
// but for `look` and `owned`, sets of bits that anybody changes by read-modify-writes.
//
// There is no separate decider: an idle server takes the next module itself (claim.hpp). Handing a decision from warp
// to warp costs more than deciding.
//
// What the arbiter knows goes on over launches: the working memory is copied to an image in device memory when a launch
// ends and taken up by the next one (begin.hpp).
//
// A module runs on one server at a time, and what a server wrote reaches the next server of the same module through
// RELEASE of the owned bit -> ACQUIRE by the next claim.
//
// No wake-up inside the arbiter is lost: whoever changes something that a firing rule or a credit depends on stores it
// first and sets the module's look bit then; only the server that owns the module clears the bit, and it evaluates
// afterwards; a bit that is set while a module is owned stays, and is seen when the module is free again. The last
// record of a step is told of when the step has ended, unless its server takes the module that it is for (chain.hpp).
#ifndef WARPMAIL_PROTOCOL_ARBITER_HPP
#define WARPMAIL_PROTOCOL_ARBITER_HPP

#include "protocol/ring.hpp"
#include "protocol/wait.hpp"

namespace warpmail {

constexpr u32 no_module = ~0u;
constexpr u32 rows_in_working_memory = 512; // tables up to this size are copied whole

// What the arbiter needs of a mailbox all the time.
struct alignas(8) mailbox_brief {
    u8 slots_log2;
    u8 consumer_side;
    u8 tap;   // WM_TAP_*, without the type, and tap_*
    u8 flags; // brief_*
    uint16_t producer;
    uint16_t consumer;
};
// Who is told of news: a record concerns the module that takes it, a slot given back the one that gives, and the steps
// of a stream module that took it.
constexpr u32 brief_written_consumer = 1, brief_consumed_producer = 2, brief_consumed_consumer = 4;
// The resident end needs nothing but the slot and the index: default form, no readiness word.
constexpr u32 brief_plain_in = 8, brief_plain_out = 16;
constexpr u32 brief_outside = 128;   // the producer is outside the arbiter and inside the device
constexpr u32 brief_class_shift = 5; // the consumer's priority class, 2 bits
// How the records of a tapped mailbox are journalled (journal.hpp): behind a resident consumer, or else behind a
// resident producer, out of their slots, which are free only then; or ahead of the consumer, where tensors are wanted.
// By the journal's role, or by the server that runs the module.
constexpr u32 tap_behind_in = 16, tap_behind_out = 32, tap_ahead = 64, tap_by_role = 128;

// A row by one load.
WM_FN mailbox_brief brief_in(const mailbox_brief* rows, u32 m) {
    const u64 word = load_relaxed_cta(reinterpret_cast<const u64*>(rows + m));
    return {static_cast<u8>(word),       static_cast<u8>(word >> 8),        static_cast<u8>(word >> 16),
            static_cast<u8>(word >> 24), static_cast<uint16_t>(word >> 32), static_cast<uint16_t>(word >> 48)};
}

// What the arbiter needs of a module all the time.
struct module_brief {
    u64 state;       // of a stream module: its word for steps granted
    u64 state_bytes; // of a stream module: the bell of its steps
    u32 handler;     // of a stream module: see grant.hpp, `settled`
    u32 batch;
    u32 out_records;
    u8 kind;
    u8 rule;
    u8 n_inputs;
    u8 n_outputs;
    u8 priority;
    u8 ahead; // of a stream module: its gates may step ahead of their grants; whoever owns the module
    u8 reserved[2];
    uint16_t inputs[WM_MAX_INPUTS]; // then, in one row with them for a warp's lanes:
    uint16_t outputs[WM_MAX_OUTPUTS];
    u32 granted; // of a stream module: steps granted, modulo 2^32; whoever owns the module
};

// How many ends a module has, and what it is, by one load.
struct module_shape {
    u8 kind, rule, n_inputs, n_outputs;
};
WM_FN module_shape shape_of(const module_brief& mod) {
    const u32 word = load_relaxed_cta(reinterpret_cast<const u32*>(&mod.kind));
    return {static_cast<u8>(word), static_cast<u8>(word >> 8), static_cast<u8>(word >> 16),
            static_cast<u8>(word >> 24)};
}
static_assert(offsetof(module_brief, kind) % 4 == 0 &&
                  offsetof(module_brief, n_outputs) == offsetof(module_brief, kind) + 3,
              "what shape_of loads");

// The readiness lines of one side: a word for each index that an end outside the arbiter keeps, dense, so that a scan
// reads whole lines of them.
struct watch_list {
    const u64* words;
    uint16_t* what; // mailbox * 2 + (0: `written`, 1: `consumed`)
    u32* seen;      // the word when it was last taken note of, folded to 32 bits
    u32 n;
    u32 scope;
};

// Where the parts of the working memory are: the same for every lane, each of which keeps its own copy, in registers as
// far as it needs it. The arguments stay where they are: on the device in constant memory.
struct arbiter {
    WM_FN explicit arbiter(const wm_arbiter_args& from) : args(from) {}
    const wm_arbiter_args& args;
    const wm_mailbox* rows; // the mailbox table, or its copy in working memory
    mailbox_brief* boxes;
    module_brief* modules;
    watch_list device_side, host_side;
    u32* look;  // [WM_PRIORITIES][words of modules]: a bit a module: its rule or credit may have changed
    u32* owned; // [words of modules]: a bit a module: a server runs it, lingers at it, or finds out whether it may run
    u32* standing; // [servers]: see the stands_ constants; each server's own word
    u32* cursor;   // [WM_PRIORITIES]: the module to begin the next search with; any server, a hint
    u64* written;
    u64* consumed;
    u32* quarantined; // 0, or 1 + WM_REJECT_*; set once
    u32* depth_max;   // inbox
    wm_grant* grants; // [servers]
    u64* granted;     // [servers]: grants so far, those of earlier launches too
    u64* flags;
    u64* kept;             // see the kept_ constants
    u32* looked;           // a bit for the inbox and one for each scanner: it has looked at all its words once
    ring_end* journals;    // [ring_count]: each server's end of its journal ring, then the role's
    wm_tap_counts* tapped; // per mailbox; the role that follows it, or who runs the module that taps it
    u64* followed;         // per mailbox: its records up to here are journalled, or dropped; likewise
    u32* roles;            // [journal_roles]: role_* of each; its own word
    u8* stage;             // [ring_count]: journal_stage_bytes
    u8* scratch;           // [servers][scratch_bytes]
};

// What a server does at this moment.
constexpr u32 stands_searching = 0; // it takes the next module that there is a look bit for
constexpr u32 stands_granted = 1;   // it runs a module, or has left
constexpr u32 stands_lingering =
    2; // it owns a module and waits for the module's next record: an idle server (linger.hpp)

constexpr u32 flag_stop = 0;    // scan of the host side -> keeper: the stop doorbell was rung
constexpr u32 flag_closing = 1; // keeper -> servers: take no more grants
constexpr u32 flag_leave = 2;   // keeper -> scans: all servers have left; the WM_EXIT_* reason
constexpr u32 flag_left = 3;    // keeper -> the journal's roles: all servers have left; the WM_EXIT_* reason
constexpr u32 flag_count = 4;

// What a role of the journal's says.
constexpr u32 role_behind = 1; // there are records left that it was to follow
constexpr u32 role_done = 2;   // the servers have left, and it has followed them as far as it can

// What goes on over launches; the names are those of wm_telemetry. The keeper's:
constexpr u32 kept_launch = 0;  // number of this launch, and of its credit; whoever begins anew, then the inbox
constexpr u32 kept_classes = 1; // priority classes in use; whoever begins
constexpr u32 kept_rounds = 2;
constexpr u32 kept_work_ns = 3;
constexpr u32 kept_idle_ns = 4;
constexpr u32 kept_allowance = 5;
// The inbox's:
constexpr u32 kept_exit = 6; // WM_EXIT_* of the launch before, and when it was
constexpr u32 kept_end_ns = 7;
constexpr u32 kept_parks = 8;
constexpr u32 kept_parked_ns = 9;
constexpr u32 kept_gap_ns = 10;    // how long it had no work before news came, of late; adaptive budgets only
constexpr u32 kept_worked_ns = 11; // when it last had work
// Of an arbiter on the CPU:
constexpr u32 kept_ahead = 12;
// The keeper's again, of its budget (budget.hpp):
constexpr u32 kept_launch_cost_ns = 13; // what a launch costs besides work, of late
constexpr u32 kept_accounted_ns = 14;   // up to when the time of the launch before is accounted for
constexpr u32 kept_left_ns = 15;        // when it had left; written into the image alone (begin.hpp)
constexpr u32 kept_left_working = 16;   // not 0: it left only because its residency was over
constexpr u32 kept_window_ns = 17;      // since when idle polling is compared with sm_share, and how much it was then
constexpr u32 kept_window_idle_ns = 18;
constexpr u32 kept_begin_ns = 19; // when this launch began, and when it had taken up what it knows; whoever begins
constexpr u32 kept_begun_ns = 20;
constexpr u32 kept_refused = 21; // the mailbox whose refusals the inbox copies next
constexpr u32 kept_budget = 22;  // wm_budget_counts
constexpr u32 kept_count = kept_budget + sizeof(wm_budget_counts) / 8;

// Words of wm_budget_counts; each `over` is followed by its nanoseconds.
constexpr u32 budget_residency_ends = offsetof(wm_budget_counts, residency_ends) / 8;
constexpr u32 budget_closings = offsetof(wm_budget_counts, closings) / 8;
constexpr u32 budget_over_residency = offsetof(wm_budget_counts, over_residency) / 8;
constexpr u32 budget_over_spin = offsetof(wm_budget_counts, over_spin) / 8;
constexpr u32 budget_over_share = offsetof(wm_budget_counts, over_share) / 8;
constexpr u32 budget_words = sizeof(wm_budget_counts) / 8;

WM_FN u64 align16(u64 n) {
    return (n + 15) & ~15ull;
}
// An index as 32 bits: a ring is far shorter than 2^32, so no two indices it can show meanwhile are mistaken for each
// other; the upper half is in it for the sake of indices that cannot be.
WM_FN u32 folded(u64 idx) {
    return static_cast<u32>(idx) ^ static_cast<u32>(idx >> 32);
}
// 32-bit words for a bit each.
WM_FN u32 words_for(u32 n) {
    return (n + 31) / 32;
}

// Whether there is a role of the journal's beside the servers.
WM_FN bool has_journal_role(const wm_arbiter_args& args) {
    return args.journal_roles != 0;
}

// The twin that serves on its own thread still has one server.
WM_FN u32 server_count(const wm_arbiter_args& args) {
    return args.servers ? args.servers : 1;
}
// Journal rings, where there are any: one for each server, then one for each of the journal's roles.
WM_FN u32 ring_count(const wm_arbiter_args& args) {
    return server_count(args) + args.journal_roles;
}

// Places the working memory at `base` (16-byte aligned) and returns its size in bytes; with base null only the size.
// `kept_bytes`: how much of it goes on over launches, from the beginning. `Given`: the arguments say where each part
// begins (`parts`, of WM_ARBITER_PARTS, which are written if that is not null), and the size is not worked out: every
// launch does this again, and somebody may be waiting for it.
template <bool Given = false> WM_FN u64 place(arbiter& a, u8* base, u64& kept_bytes, u32* parts = nullptr) {
    const wm_arbiter_args& args = a.args;
    u32 part = 0;
    // In 32 bits, which hold the largest tables.
    const u32 mailboxes = args.n_mailboxes, servers = server_count(args);
    u32 at_byte = 0;
    auto take = [&](u64 bytes) {
        // By way of the pointer, from which the device's compiler knows that this is shared memory.
        const u32 begin = Given ? args.parts[part] : at_byte;
        u8* const p = base == nullptr ? nullptr : base + begin;
        if (parts != nullptr)
            parts[part] = begin;
        part++;
        at_byte = (at_byte + static_cast<u32>(bytes) + 15) & ~15u;
        return p;
    };
    auto wide = [&](u32 n) { return reinterpret_cast<u64*>(take(8 * n)); };
    auto narrow = [&](u32 n) { return reinterpret_cast<u32*>(take(4 * n)); };
    auto watch = [&](u64 words, u32 n, u32 scope) {
        watch_list w;
        w.words = at<const u64>(words);
        w.what = reinterpret_cast<uint16_t*>(take(2 * n));
        w.seen = narrow(n);
        w.n = n;
        w.scope = scope;
        return w;
    };
    const bool copied = mailboxes <= rows_in_working_memory;
    const u8* rows = take(copied ? mailboxes * sizeof(wm_mailbox) : 0);
    a.rows = copied ? reinterpret_cast<const wm_mailbox*>(rows) : at<const wm_mailbox>(args.mailboxes);
    a.boxes = reinterpret_cast<mailbox_brief*>(take(mailboxes * sizeof(mailbox_brief)));
    a.modules = reinterpret_cast<module_brief*>(take(args.n_modules * sizeof(module_brief)));
    a.device_side = watch(args.device_words, args.n_device_words, WM_SCOPE_GPU);
    a.host_side = watch(args.host_words, args.n_host_words, WM_SCOPE_SYS);
    a.look = narrow(WM_PRIORITIES * words_for(args.n_modules));
    a.cursor = narrow(WM_PRIORITIES);
    a.written = wide(mailboxes);
    a.consumed = wide(mailboxes);
    a.quarantined = narrow(mailboxes);
    a.depth_max = narrow(mailboxes);
    a.granted = wide(servers);
    a.kept = wide(kept_count);
    const u32 journals = args.journals ? ring_count(args) : 0;
    a.journals = reinterpret_cast<ring_end*>(take(journals * sizeof(ring_end)));
    a.tapped = reinterpret_cast<wm_tap_counts*>(take(args.journals ? mailboxes * sizeof(wm_tap_counts) : 0));
    a.followed = wide(args.journals ? mailboxes : 0);
    kept_bytes = at_byte; // each launch begins the rest anew, or it means nothing between two steps
    a.owned = narrow(words_for(args.n_modules));
    a.roles = narrow(args.journal_roles);
    a.standing = narrow(servers);
    a.grants = reinterpret_cast<wm_grant*>(take(servers * sizeof(wm_grant)));
    a.flags = wide(flag_count);
    a.looked = narrow(1);
    a.stage = take(journals * args.journal_stage_bytes);
    a.scratch = take(servers * args.scratch_bytes);
    return at_byte;
}

WM_FN u32 classes_of(const arbiter& a) {
    return static_cast<u32>(load_relaxed_cta(&a.kept[kept_classes]));
}
// Number of this launch, and of its credit.
WM_FN u64 launch_of(const arbiter& a) {
    return load_relaxed_cta(&a.kept[kept_launch]);
}
// By the word's one writer.
WM_FN void add_kept(arbiter& a, u32 which, u64 n) {
    store_relaxed_cta(&a.kept[which], load_relaxed_cta(&a.kept[which]) + n);
}

// Records waiting in mailbox m as far as the arbiter has seen. A consumer that takes records by their tag can be ahead
// of the `written` it was told: that counts as none.
WM_FN u64 pending(const arbiter& a, u32 m) {
    const int64_t d = static_cast<int64_t>(load_relaxed_cta(&a.written[m]) - load_relaxed_cta(&a.consumed[m]));
    return d > 0 ? static_cast<u64>(d) : 0;
}
// What of the code for taps a table needs: none; what its servers must know of the journal's roles that follow them; or
// all, where they journal some records themselves. What a step costs is mostly what its instructions cost to fetch, and
// code that is not run stands among them: an arbiter runs the shortest that will do.
enum taps : u32 { no_taps, followed_taps, all_taps };

// Whether slots are given back behind the journal, whoever that is.
WM_FN bool is_followed(mailbox_brief box) {
    return (box.tap & (tap_behind_in | tap_behind_out)) != 0;
}
// Records of a tapped mailbox that are to be journalled now: those that its resident end is done with, or, ahead, the
// one that its next step may take.
WM_FN u64 to_follow(const arbiter& a, u32 m, mailbox_brief box) {
    const u64 end = load_relaxed_cta((box.tap & tap_behind_out) != 0 ? &a.written[m] : &a.consumed[m]);
    const int64_t d = static_cast<int64_t>(end + ((box.tap & tap_ahead) != 0) - load_relaxed_cta(&a.followed[m]));
    return d > 0 && !((box.tap & tap_ahead) != 0 && load_relaxed_cta(&a.quarantined[m]) != 0) ? static_cast<u64>(d) : 0;
}
// 1: the next record of a mailbox that is journalled ahead is so already.
WM_FN u64 is_ahead(const arbiter& a, u32 m) {
    return (a.boxes[m].tap & tap_ahead) != 0 && load_relaxed_cta(&a.followed[m]) != load_relaxed_cta(&a.consumed[m]);
}
// Slots of mailbox m that are not free for its producer, as far as the arbiter has seen: of records that wait, or that
// wait for the journal. In 32 bits: a ring is far shorter.
template <taps Taps> WM_FN u32 occupied(const arbiter& a, u32 m, mailbox_brief box) {
    const u32 written = static_cast<u32>(load_relaxed_cta(&a.written[m]));
    int32_t used = static_cast<int32_t>(written - static_cast<u32>(load_relaxed_cta(&a.consumed[m])));
    if (Taps != no_taps && is_followed(box)) {
        const int32_t held = static_cast<int32_t>(written - static_cast<u32>(load_relaxed_cta(&a.followed[m])));
        used = held > used ? held : used;
    }
    return used > 0 ? static_cast<u32>(used) : 0;
}
// Whether two indices that many apart can be those of one mailbox. A consumer may be ahead of `write_idx`: it goes by
// the tags.
WM_FN bool is_depth(int64_t depth, u32 slots_log2) {
    const int64_t slots = int64_t{1} << slots_log2;
    return depth <= slots && depth >= -slots;
}
WM_FN bool is_quarantined(const arbiter& a, u32 m) {
    return load_relaxed_cta(&a.quarantined[m]) != 0;
}
WM_FN void quarantine(arbiter& a, u32 m, u32 reason) {
    store_relaxed_cta(&a.quarantined[m], 1 + reason);
}

// Whether input m has a record, and whether output m has room for what one step may push: a granted handler never finds
// its output full.
WM_FN bool has_record(const arbiter& a, u32 m) {
    return pending(a, m) > 0 && !is_quarantined(a, m);
}
template <taps Taps = all_taps> WM_FN bool has_room(const arbiter& a, u32 m, u32 records) {
    const mailbox_brief box = brief_in(a.boxes, m);
    bool room = u64{occupied<Taps>(a, m, box)} + records <= 1ull << box.slots_log2;
    if (Taps != no_taps && !room && is_followed(box)) {
        fence_sc_cta(); // pairs with that of note_followed: this sees what is free now, or that how full it was
        room = u64{occupied<Taps>(a, m, box)} + records <= 1ull << box.slots_log2;
    }
    return room && !is_quarantined(a, m);
}

// The firing rule, and credit. All lanes get the same answer: lane i < WM_MAX_INPUTS looks at input i, the next ones at
// the outputs. `found`: the module has one input, and a record is known to be there.
template <taps Taps = all_taps, class L>
WM_FN bool may_step(L lanes, const arbiter& a, const module_brief& mod, bool found = false) {
    const module_shape shape = shape_of(mod);
    if (shape.kind != WM_KIND_RESIDENT)
        return false;
    // Most modules are of this shape, and this is on the way of every record: a few loads, the same for all lanes.
    if (shape.n_inputs == 1 && shape.n_outputs <= 1) {
        const u32 in = mod.inputs[0];
        if (!found && !lanes.any(pending(a, in) > 0))
            return false; // mostly, when a step has ended
        return lanes.any(!is_quarantined(a, in) &&
                         (shape.n_outputs == 0 || has_room<Taps>(a, mod.outputs[0], mod.out_records)));
    }
    u32 ready = 0, lacking = 0;
    for (u32 i = lanes.rank(); i < WM_MAX_INPUTS + WM_MAX_OUTPUTS; i += lanes.width()) {
        const u32 o = i - WM_MAX_INPUTS;
        if (i < mod.n_inputs)
            ready += found ? !is_quarantined(a, mod.inputs[i]) : has_record(a, mod.inputs[i]);
        else if (i >= WM_MAX_INPUTS && o < mod.n_outputs)
            lacking += !has_room<Taps>(a, mod.outputs[o], mod.out_records);
    }
    if (lanes.any(lacking != 0))
        return false;
    if (mod.rule == WM_RULE_ANY)
        return lanes.any(ready != 0);
    // One lane of one thread looks at all inputs, a lane of a warp at one.
    const u32 wanted = lanes.width() == 1 ? mod.n_inputs : lanes.rank() < mod.n_inputs;
    return mod.n_inputs > 0 && lanes.all(ready == wanted);
}

WM_FN u32* look_word(const arbiter& a, u32 module, u32 priority) {
    return a.look + priority * words_for(a.args.n_modules) + module / 32;
}
WM_FN u32* look_word(const arbiter& a, u32 module) {
    return look_word(a, module, a.modules[module].priority);
}

// Asks the servers to look at a module. RELEASE, acquired in claim and in linger.
WM_FN void mark(const arbiter& a, u32 module) {
    or_release_cta(look_word(a, module), 1u << (module % 32));
}

// Whether the arbiter grants steps to the module at an end.
WM_FN bool is_granted(const arbiter& a, u32 side, u32 module) {
    return side == WM_SIDE_RESIDENT || (side == WM_SIDE_DEVICE && a.modules[module].n_inputs != 0);
}

// The tap_* bits of a mailbox with a resident end; 0 if there is none, or no tap.
WM_FN u32 how_journalled(u32 tap, bool resident_consumer, bool resident_producer, bool has_role) {
    const bool tensors = (tap >> WM_TAP_TENSORS_BIT & 1) != 0;
    if (tap == WM_TAP_NONE || !(resident_consumer || resident_producer))
        return 0;
    if (resident_consumer && tensors) // a lease may end as soon as its record is taken
        return tap_ahead;
    return (resident_consumer ? tap_behind_in : tap_behind_out) | (has_role && !tensors ? tap_by_role : 0u);
}

// The brief of a row; the modules are filled already.
WM_FN mailbox_brief brief_of(const arbiter& a, const wm_mailbox& box) {
    const bool gives = is_granted(a, box.producer_side, box.producer_id);
    const bool takes = is_granted(a, box.consumer_side, box.consumer_id);
    const bool plain = box.record_stride == WM_STRIDE_DEFAULT && box.scope == WM_SCOPE_GPU;
    u32 flags = takes ? brief_written_consumer | a.modules[box.consumer_id].priority << brief_class_shift : 0u;
    flags |= gives ? brief_consumed_producer : 0u;
    flags |= takes && box.consumer_side == WM_SIDE_DEVICE ? brief_consumed_consumer : 0u;
    flags |= plain && box.consumed == 0 ? brief_plain_in : 0u;
    flags |= plain && box.written == 0 ? brief_plain_out : 0u;
    flags |= box.producer_side == WM_SIDE_DEVICE && box.scope == WM_SCOPE_GPU ? brief_outside : 0u;
    u32 tap = box.tap & 15u;
    if (a.args.journals != 0 && a.args.plan == 0) // an arbiter on the CPU leaves it to the steps
        tap |= how_journalled(box.tap, box.consumer_side == WM_SIDE_RESIDENT, box.producer_side == WM_SIDE_RESIDENT,
                              has_journal_role(a.args));
    return {static_cast<u8>(box.slots_log2 & 63),
            static_cast<u8>(box.consumer_side),
            static_cast<u8>(tap),
            static_cast<u8>(flags),
            static_cast<uint16_t>(box.producer_id),
            static_cast<uint16_t>(box.consumer_id)};
}

// Makes news of a mailbox known to the modules that it concerns: a record.
WM_FN void mark_consumer(const arbiter& a, const mailbox_brief& box) {
    if (box.flags & brief_written_consumer)
        or_release_cta(look_word(a, box.consumer, box.flags >> brief_class_shift & 3), 1u << (box.consumer % 32));
}
// A slot given back. A stream module's own progress is news for itself: its steps give slots back when they end.
WM_FN void mark_producer(const arbiter& a, const mailbox_brief& box) {
    if (box.flags & brief_consumed_producer)
        mark(a, box.producer);
    if (box.flags & brief_consumed_consumer)
        mark(a, box.consumer);
}

} // namespace warpmail

#endif
