// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The beginning of a launch. The first one, and one after the host may have changed something, fills working memory
// from the tables and takes the mailboxes up where their headers say they were left; a mailbox whose header cannot be
// trusted is quarantined, and the others go on. Every other launch takes up the image that the one before left: one
// copy inside device memory, so that a parked arbiter is awake soon.
#ifndef WARPMAIL_PROTOCOL_BEGIN_HPP
#define WARPMAIL_PROTOCOL_BEGIN_HPP

#include "protocol/carry.hpp"
#include "protocol/grant.hpp"

namespace warpmail {

// Has every resident module looked at once.
template <class L> WM_FN void look_at_all(L lanes, arbiter& a) {
    for (u32 w = lanes.rank(); w < words_for(a.args.n_modules); w += lanes.width()) {
        for (u32 i = w * 32; i < w * 32 + 32 && i < a.args.n_modules; i++) {
            if (a.modules[i].n_inputs != 0)
                *look_word(a, i) |= 1u << (i % 32);
        }
    }
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
        to.priority = static_cast<u8>(from.priority < WM_PRIORITIES ? from.priority : WM_PRIORITIES - 1);
        to.granted = 0;
        to.ahead = 0;
        for (u32 k = 0; k < WM_MAX_INPUTS; k++)
            to.inputs[k] = static_cast<uint16_t>(from.inputs[k]);
        for (u32 k = 0; k < WM_MAX_OUTPUTS; k++)
            to.outputs[k] = static_cast<uint16_t>(from.outputs[k]);
    }
    for (u32 w = lanes.rank(); w < WM_PRIORITIES * words_for(a.args.n_modules); w += lanes.width())
        a.look[w] = 0;
    // Whose turn it is goes on where the last launch left off: launches may be short and modules many.
    const wm_telemetry* t = at<const wm_telemetry>(a.args.telemetry);
    for (u32 c = lanes.rank(); c < WM_PRIORITIES; c += lanes.width()) {
        const u64 next = load_relaxed_sys(&t->cursor[c]);
        a.cursor[c] = next < a.args.n_modules ? static_cast<u32>(next) : 0;
    }
    lanes.sync();
    look_at_all(lanes, a);
    u64 classes = 1;
    for (u32 i = 0; i < a.args.n_modules && lanes.rank() == 0; i++)
        classes = a.modules[i].priority + 1u > classes ? a.modules[i].priority + 1u : classes;
    if (lanes.rank() == 0)
        a.kept[kept_classes] = classes;
}

// Notes which index the readiness word at `address` stands for, and takes it up at `value`.
WM_FN void begin_watch(const watch_list& w, u64 address, u32 what, u64 value) {
    const u64 i = (address - reinterpret_cast<uintptr_t>(w.words)) / 8;
    if (address == 0 || i >= w.n)
        return;
    w.what[i] = static_cast<uint16_t>(what);
    w.seen[i] = folded(index_in(w.scope == WM_SCOPE_GPU ? device_word(value) : value, w.scope));
}

// Index up to which the records of a mailbox have been taken: its header's, or what its consumer has told, whichever is
// further. One on the host tells first, and may be kept from its core before it stores the other.
WM_FN u64 begin_consumed(const arbiter& a, const wm_mailbox& box) {
    const u64 read = load_relaxed(read_idx_of(box), box.scope);
    if (box.consumed == 0 || (box.consumer_side != WM_SIDE_HOST && a.args.plan == 0))
        return read;
    const u64 told = load_relaxed_sys(at<const u64>(box.consumed));
    return static_cast<int64_t>(told - read) > 0 ? told : read;
}

template <class L> WM_FN void begin_mailboxes(L lanes, arbiter& a) {
    const wm_mailbox* table = at<const wm_mailbox>(a.args.mailboxes);
    // Words that belong to no end are zeros and stay so: never news.
    for (u32 i = lanes.rank(); i < a.device_side.n; i += lanes.width()) {
        a.device_side.what[i] = 0;
        a.device_side.seen[i] = 0;
    }
    for (u32 i = lanes.rank(); i < a.host_side.n; i += lanes.width()) {
        a.host_side.what[i] = 0;
        a.host_side.seen[i] = 0;
    }
    lanes.sync();
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        const wm_mailbox& box = table[m];
        if (a.rows != table)
            const_cast<wm_mailbox*>(a.rows)[m] = box;
        a.boxes[m] = brief_of(a, box);
        wm_status s = check_header(box);
        a.quarantined[m] = 0;
        a.written[m] = a.consumed[m] = 0;
        if (s == WM_OK || s == WM_BAD_INDEX) {
            const u64 consumed = begin_consumed(a, box), written = load_relaxed(write_idx_of(box), box.scope);
            s = is_depth(static_cast<int64_t>(written - consumed), box.slots_log2) ? WM_OK : WM_BAD_INDEX;
            if (s == WM_OK) {
                a.written[m] = written;
                a.consumed[m] = consumed;
            }
        }
        a.depth_max[m] = static_cast<u32>(pending(a, m));
        if (s != WM_OK)
            quarantine(a, m, s == WM_BAD_INDEX ? WM_REJECT_INDEX : WM_REJECT_HEADER);
        // An arbiter on the CPU runs no handlers: every end is outside, and its word in pinned memory.
        const bool host_producer = box.producer_side == WM_SIDE_HOST || a.args.plan != 0;
        const bool host_consumer = box.consumer_side == WM_SIDE_HOST || a.args.plan != 0;
        // Not `? :`, which would make the compiler keep both lists in memory.
        if (host_producer)
            begin_watch(a.host_side, box.written, m * 2, a.written[m]);
        else
            begin_watch(a.device_side, box.written, m * 2, a.written[m]);
        if (host_consumer)
            begin_watch(a.host_side, box.consumed, m * 2 + 1, a.consumed[m]);
        else
            begin_watch(a.device_side, box.consumed, m * 2 + 1, a.consumed[m]);
    }
}

// The journal's rings and counters go on where the last launch left them.
template <class L> WM_FN void begin_journal(L lanes, arbiter& a) {
    if (a.args.journals == 0)
        return;
    for (u32 s = lanes.rank(); s < ring_count(a.args); s += lanes.width()) {
        a.journals[s] = attach_ring(at<const wm_ring>(a.args.journals)[s]);
        a.journals[s].batches = batches_carried(a.args, s);
    }
    const wm_tap_counts* counts = at<const wm_tap_counts>(a.args.tap_counts);
    const wm_mailbox_stats* stats = at<const wm_mailbox_stats>(a.args.mailbox_stats_out);
    for (u32 m = lanes.rank(); m < a.args.n_mailboxes; m += lanes.width()) {
        a.tapped[m] = {load_relaxed_sys(&counts[m].taken), load_relaxed_sys(&counts[m].dropped),
                       load_relaxed_sys(&counts[m].ahead)};
        const bool in = (a.boxes[m].tap & tap_behind_out) == 0;
        const u64 left = is_followed(a.boxes[m]) ? load_relaxed_sys(&stats[m].behind) : 0;
        const u64 behind = left <= 1ull << a.boxes[m].slots_log2 && !is_quarantined(a, m) ? left : 0;
        // Slots are given back behind what was followed: the header says how far that was, not what was taken.
        a.followed[m] = in ? a.consumed[m] : a.written[m] - behind;
        a.followed[m] += (a.boxes[m].tap & tap_ahead) != 0 ? a.tapped[m].ahead : 0;
        a.consumed[m] += in ? behind : 0;
    }
}

// What goes on over launches, from the telemetry that the last one wrote.
template <class L> WM_FN void begin_kept(L lanes, arbiter& a) {
    const wm_telemetry* t = at<const wm_telemetry>(a.args.telemetry);
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width())
        a.granted[s] = load_relaxed_sys(&t->turns[s]);
    if (lanes.rank() != 0)
        return;
    a.kept[kept_launch] = load_relaxed_sys(&t->launches);
    a.kept[kept_rounds] = load_relaxed_sys(&t->rounds);
    a.kept[kept_work_ns] = load_relaxed_sys(&t->work_ns);
    a.kept[kept_idle_ns] = load_relaxed_sys(&t->idle_poll_ns);
    a.kept[kept_allowance] = load_relaxed_sys(&t->allowance);
    a.kept[kept_parks] = load_relaxed_sys(&t->parks);
    a.kept[kept_parked_ns] = load_relaxed_sys(&t->parked_ns);
    a.kept[kept_exit] = load_relaxed_sys(&t->exit_reason);
    a.kept[kept_end_ns] = load_relaxed_sys(&t->heartbeat_ns);
    a.kept[kept_refused] = 0;
    a.kept[kept_gap_ns] = 0;
    a.kept[kept_worked_ns] = 0;
    a.kept[kept_launch_cost_ns] = a.kept[kept_left_ns] = a.kept[kept_left_working] = 0;
    a.kept[kept_accounted_ns] = a.kept[kept_end_ns];
    a.kept[kept_window_ns] = a.kept[kept_window_idle_ns] = 0;
    const u64* counts = reinterpret_cast<const u64*>(&t->budget);
    for (u32 i = 0; i < budget_words; i++)
        a.kept[kept_budget + i] = load_relaxed_sys(counts + i);
    a.kept[kept_ahead] = load_relaxed_sys(&t->ahead);
}

// A first launch, or one after the host may have changed something: from the tables.
template <class L> WM_FN void begin_anew(L lanes, arbiter& a) {
    begin_modules(lanes, a);
    begin_mailboxes(lanes, a);
    lanes.sync();
    for (u32 i = lanes.rank(); i < a.args.n_modules; i += lanes.width())
        begin_steps(a, a.modules[i]);
    begin_kept(lanes, a);
    begin_journal(lanes, a);
}

// What is copied at once.
struct alignas(16) image_chunk {
    u64 words[2];
};

constexpr u32 image_ahead = 4;

// Up to `image_ahead` chunks a lane, the first of them number `first`: loads that are under way at once.
WM_FN void load_chunks(image_chunk (&c)[image_ahead], const image_chunk* from, u32 first, u32 step, u32 n) {
    for (u32 k = 0; k < image_ahead; k++)
        c[k] = from[first + k * step < n ? first + k * step : 0];
}
WM_FN void store_chunks(image_chunk* to, const image_chunk (&c)[image_ahead], u32 first, u32 step, u32 n) {
    for (u32 k = 0; k < image_ahead; k++) {
        if (first + k * step < n)
            to[first + k * step] = c[k];
    }
}

template <class L> WM_FN void copy_image(L lanes, void* to, const void* from, u32 bytes, u32 done = 0) {
    image_chunk* t = static_cast<image_chunk*>(to);
    const image_chunk* f = static_cast<const image_chunk*>(from);
    const u32 n = bytes / sizeof(image_chunk), step = lanes.width();
    for (u32 first = done + lanes.rank(); first < n; first += image_ahead * step) {
        image_chunk c[image_ahead];
        load_chunks(c, f, first, step, n);
        store_chunks(t, c, first, step, n);
    }
}

// The working memory as the launch before left it, asked for as soon as a launch begins and taken up when there is a
// place for it. The stream's order is what makes that launch's image visible: it has ended.
template <class L> class resumed_image {
public:
    WM_FN resumed_image(L lanes, const wm_arbiter_args& args) : lanes_(lanes), args_(args) {
        if (args.resume)
            load_chunks(front_, at<const image_chunk>(args.image), lanes.rank(), lanes.width(), count());
    }
    WM_FN void put(u8* base) const {
        if (!args_.resume)
            return;
        store_chunks(reinterpret_cast<image_chunk*>(base), front_, lanes_.rank(), lanes_.width(), count());
        copy_image(lanes_, base, at<const u8>(args_.image), args_.image_bytes, image_ahead * lanes_.width());
    }

private:
    WM_FN u32 count() const {
        return args_.image_bytes / sizeof(image_chunk);
    }
    L lanes_;
    const wm_arbiter_args& args_;
    image_chunk front_[image_ahead];
};
// Leaves it for the next launch, and says when that was done. By all lanes, when every role has returned.
template <class L> WM_FN void leave_image(L lanes, const arbiter& a, const u8* base) {
    u8* image = at<u8>(a.args.image);
    copy_image(lanes, image, base, a.args.image_bytes);
    lanes.sync();
    if (lanes.rank() == 0)
        *reinterpret_cast<u64*>(image + (reinterpret_cast<const u8*>(a.kept + kept_left_ns) - base)) = now_ns();
}

// The beginning of a launch at `begin_ns`, after `place`. Somebody waits for one that news has woken: it has a single
// barrier, behind its image and what is not in it.
template <class L> WM_FN void begin(L lanes, arbiter& a, u8* base, u64 begin_ns, const resumed_image<L>& image) {
    image.put(base);
    for (u32 w = lanes.rank(); w < words_for(a.args.n_modules); w += lanes.width())
        a.owned[w] = 0;
    for (u32 r = lanes.rank(); r < a.args.journal_roles; r += lanes.width())
        a.roles[r] = 0;
    for (u32 s = lanes.rank(); s < server_count(a.args); s += lanes.width()) {
        a.grants[s] = {0, 0};
        a.standing[s] = stands_searching;
    }
    for (u32 f = lanes.rank(); f < flag_count; f += lanes.width())
        a.flags[f] = 0;
    if (lanes.rank() == 0) {
        *a.looked = 0;
        if (a.args.idle_spin_ns) { // R0 of the model: awake
            store_relaxed_gpu(&at<wm_bell>(a.args.device_bell)->parked, u64{0});
            store_relaxed_sys(&at<wm_bell>(a.args.host_bell)->parked, u64{0});
        }
    }
    lanes.sync();
    if (!a.args.resume || a.args.journals) {
        if (!a.args.resume)
            begin_anew(lanes, a);
        else
            look_at_all(lanes, a); // some may wait for their records to be durable, of which there is no other news
        lanes.sync();
    }
    if (lanes.rank() == 0) {
        store_relaxed_cta(&a.kept[kept_begin_ns], begin_ns);
        store_relaxed_cta(&a.kept[kept_begun_ns], now_ns());
    }
}

} // namespace warpmail

#endif
