// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// One record of a resident module's end, moved by all lanes together. The usual way, a warp at a plain end (default
// form, no readiness word; see brief_plain_in): the record goes from the slot to registers and back. Every other way is
// mailbox.hpp's, of which a kernel has one copy: what is rarely run must not push the usual way out of the instruction
// cache.
#ifndef WARPMAIL_PROTOCOL_RECORD_HPP
#define WARPMAIL_PROTOCOL_RECORD_HPP

#include "protocol/arbiter.hpp"
#include "protocol/warp_ends.hpp"

namespace warpmail {

// How long a handler's pop waits for a record whose index was announced but whose bytes have not all arrived.
constexpr u64 arrival_ns = 100000;

constexpr u32 no_input = ~0u;

// What grants of a module have moved that its counters don't say yet.
struct tally {
    u32 steps = 0, records_in = 0, records_out = 0;
};

// A record in a handler's hands. One thread has its bytes in the server's scratch memory, one at a time.
template <class L> struct record {
    u32 len = 0;
    u32 type = 0;
};
// What a server has found at the slots of its module's inputs before the step begins, whatever `written` says.
template <class L> struct found_records {
    u32 bits = 0;       // inputs with a record, a bit each
    bool whole = false; // and no other has one, as far as anybody can know
};

// The last record that a step gave to another module of this block, of which nobody has been told yet (chain.hpp).
// `mailbox` is no_mailbox if there is none. One thread looks for it in its slot.
constexpr u32 no_mailbox = ~0u;
template <class L> struct given_record {
    u32 mailbox = no_mailbox;
    u32 module = no_module; // its consumer
};

// A look at the input of a module that has one alone, asked for before it is known whether this server gets the module.
// One thread has no use for it.
template <class L> struct glance {
    WM_FN glance(L, const arbiter&, u32 /*module*/) {}
    // Whether there is a record, and it counts although no scan may have told of it: one from outside the arbiter.
    WM_FN bool take(L, const arbiter&, u32 /*module*/, found_records<L>&) const {
        return false;
    }
};

// Status, length and type in one word: what a called function returns without a place in memory.
WM_FN u64 pack_outcome(wm_status s, u32 len, u32 type) {
    return static_cast<u32>(s) | static_cast<u64>(len & 0xFFFFu) << 32 | static_cast<u64>(type) << 48;
}
WM_FN wm_status outcome_status(u64 v) {
    return static_cast<wm_status>(static_cast<u32>(v));
}
WM_FN u32 outcome_len(u64 v) {
    return static_cast<u32>(v >> 32) & 0xFFFFu;
}
WM_FN u32 outcome_type(u64 v) {
    return static_cast<u32>(v >> 48);
}

// Pops the record with index `idx`; see try_pop. `expected`: it is known to be there, so its bytes are waited for.
// `keeps`: somebody else gives the slot back.
template <order O, class L>
WM_FN u64 pop_any(L lanes, const wm_mailbox* row, u64 idx, u64 written, bool expected, bool keeps, void* dst,
                  u32 dst_bytes) {
    wm_consumer c;
    c.mailbox = *row;
    c.read_idx = idx;
    c.write_seen = written;
    c.looked = 0;
    u32 len = 0, type = 0;
    wm_status s = WM_EMPTY;
    u64 begin = 0;
    for (u32 looks = 0;; looks++) {
        s = get<O>(lanes, c, dst, dst_bytes, len, type);
        if (s != WM_EMPTY || !expected)
            break;
        const u64 now = lanes.broadcast(now_ns(), 0);
        begin = looks == 0 ? now : begin;
        if (now - begin >= arrival_ns) {
            s = WM_TIMEOUT;
            break;
        }
        pause_after(looks);
    }
    if (!keeps && (s == WM_OK || s == WM_BAD_LENGTH))
        release(lanes, c, 1);
    else
        lanes.sync(); // every lane has taken its words
    return pack_outcome(s, len, type);
}

// Pushes a record; see try_push.
template <order O, class L>
WM_FN wm_status push_any(L lanes, const wm_mailbox* row, u64 written, u64 consumed, const void* src, u32 len,
                         u32 type) {
    wm_producer p;
    p.mailbox = *row;
    p.write_idx = written;
    p.read_seen = consumed;
    p.looked = 0;
    return try_push<O>(lanes, p, src, len, type);
}

#if defined(WM_HAS_WARPS)
template <> struct record<warp_lanes> {
    u32 len = 0;
    u32 type = 0;
    bool staged = false; // in the server's scratch memory, not in registers
    fragment<1> words;
};
template <> struct found_records<warp_lanes> {
    u32 bits = 0;
    bool whole = false;
    u32 held = no_input; // of this input, which is plain, the record is in registers
    fragment<1> words;
    fragment_meta meta;
};

// A warp has it in registers still, if the way was the usual one.
template <> struct given_record<warp_lanes> {
    u32 mailbox = no_mailbox;
    u32 module = no_module;
    bool held = false;
    u32 idx = 0;  // its index, modulo 2^32
    u32 meta = 0; // length and type
    fragment<1> words;
};

// A handle with what a plain end needs.
WM_DEV wm_mailbox plain_row(u64 header, u32 slots_log2) {
    wm_mailbox m = {};
    m.header = header;
    m.slots_log2 = slots_log2;
    m.record_stride = WM_STRIDE_DEFAULT;
    m.scope = WM_SCOPE_GPU;
    return m;
}
WM_DEV warp_consumer<> plain_consumer(u64 header, u32 slots_log2, u64 idx) {
    wm_consumer c;
    c.mailbox = plain_row(header, slots_log2);
    c.read_idx = c.write_seen = idx;
    return warp_consumer<>(c);
}

// Waits for the bytes of a record that is known to be there.
WM_DEV wm_status plain_wait(warp_consumer<>& end, fragment<1>& f, fragment_meta& meta) {
    u64 begin = 0;
    for (u32 looks = 0;; looks++) {
        const wm_status s = end.peek<order::self_contained>(f, meta);
        if (s != WM_EMPTY)
            return s;
        const u64 now = warp_lanes{}.broadcast(now_ns(), 0);
        begin = looks == 0 ? now : begin;
        if (now - begin >= arrival_ns)
            return WM_TIMEOUT;
    }
}

template <> struct glance<warp_lanes> {
    WM_DEV glance(warp_lanes lanes, const arbiter& a, u32 module)
        : word_(0), idx_(0), slots_log2_(0), open_(false), outside_(false) {
        const module_brief& mod = a.modules[module];
        const u32 m = mod.inputs[0];
        const mailbox_brief box = brief_in(a.boxes, m);
        open_ = mod.kind == WM_KIND_RESIDENT && mod.n_inputs == 1 && (box.flags & brief_plain_in) != 0;
        if (!open_)
            return;
        outside_ = (box.flags & brief_outside) != 0;
        slots_log2_ = box.slots_log2;
        idx_ = load_relaxed_cta(&a.consumed[m]);
        word_ = load_relaxed_gpu(slot_at(plain_row(a.rows[m].header, slots_log2_), idx_) + lanes.rank());
    }
    // By the module's owner. What was loaded before that is the next record if its index still is, and its tags.
    WM_DEV bool take(warp_lanes lanes, const arbiter& a, u32 module, found_records<warp_lanes>& found) const {
        if (!open_)
            return false;
        const u64 idx = load_relaxed_cta(&a.consumed[a.modules[module].inputs[0]]);
        if (!lanes.all(idx == idx_ && is_fresh(word_, lap_tag(idx, slots_log2_))))
            return false;
        const u64 word[1] = {word_};
        const arrival<1> record(word);
        found.words = record.payload();
        found.meta = record.meta();
        found.held = 0;
        found.bits = 1;
        return outside_;
    }

private:
    u64 word_, idx_;
    u32 slots_log2_;
    bool open_, outside_;
};

// The lane's words of the slots from index `from` on, all asked for at once: one by one, each would take a way to L2.
// Returns how many have arrived, one behind the other and with lengths that can be.
template <u32 N> WM_DEV u32 ask_plain(warp_lanes lanes, const wm_mailbox& box, u64 from, u64 (&v)[N]) {
    static_assert(N < 32, "a bit each");
    WM_UNROLLED
    for (u32 i = 0; i < N; i++)
        v[i] = load_relaxed_gpu(slot_at(box, from + i) + lanes.rank());
    u32 good = 0;
    WM_UNROLLED
    for (u32 i = 0; i < N; i++) {
        const bool fits = lanes.rank() != 0 || meta_len(static_cast<u32>(v[i])) <= warp_consumer<>::payload;
        good |= static_cast<u32>(fits && is_fresh(v[i], lap_tag(from + i, box.slots_log2))) << i;
    }
    return lowest_bit(~lanes.common_bits(good));
}
// How many of the next records of a plain input have arrived, up to `most`.
WM_DEV u32 plain_ready(u64 header, u32 slots_log2, u64 from, u32 most) {
    constexpr u32 at_once = 8;
    const wm_mailbox box = plain_row(header, slots_log2);
    u32 n = 0;
    for (u32 fresh = at_once; n < most && fresh == at_once; n += fresh) {
        u64 v[at_once];
        fresh = ask_plain(warp_lanes{}, box, from + n, v);
    }
    return n < most ? n : most;
}

// A lane's share of `len` bytes, to memory and from it: whole words of aligned memory, or any bytes.
WM_DEV bool is_whole_words(const void* p, u32 len) {
    return is_wide(p) && len % 8 == 0;
}
WM_DEV void store_share(const fragment<1>& f, void* dst, u32 len) {
    if (!is_whole_words(dst, len))
        return store_fragment(f, dst, len);
    const u32 w = warp_lanes{}.rank() - 1; // lane 0 has none
    if (w < len / 8)
        static_cast<u64*>(dst)[w] = f.word[0];
}
WM_DEV fragment<1> load_share(const void* src, u32 len) {
    if (!is_whole_words(src, len))
        return load_fragment<1>(src, len);
    const u32 w = warp_lanes{}.rank() - 1;
    return {{w < len / 8 ? static_cast<const u64*>(src)[w] : 0}};
}
#endif

} // namespace warpmail

#endif
