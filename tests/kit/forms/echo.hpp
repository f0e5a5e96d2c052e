// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The outer ends of a graph's relays: pushes numbered records into one mailbox of a runtime, takes them back from
// another and checks every byte; on the device a warp of a kernel for each relay, on the twin a thread. It rests now
// and then, until the arbiter is parked or for some time, and may do damage on purpose. Every wait is bounded.
// src/echo.rs has the same structs and numbers.
#ifndef WARPMAIL_FORMS_ECHO_HPP
#define WARPMAIL_FORMS_ECHO_HPP

#include <type_traits>

#include "forms/forms.hpp"

namespace forms {

// What it spoils.
constexpr u64 spoil_nothing = 0;
constexpr u64 spoil_lengths = 1;   // between its records it writes slots with a length that cannot be
constexpr u64 spoil_index = 2;     // behind its records it says that it had pushed far more than fit
constexpr u64 spoil_none_take = 3; // behind its records it pushes some more that nobody is to take

constexpr u64 spoil_every = 50;
constexpr u64 wild_index = 1ull << 40;
constexpr u64 records_behind = 4;

struct echo_report {
    u64 got; // records that came back; written as they come, for those that wait for it
    u64 fault, expected, found;
    u64 sent;
    u64 spoilt;
    u64 parked; // rests that ended when the arbiter was seen parked
    u64 reserved;
};
struct echo_task {
    wm_mailbox there, back;
    u64 seed;
    u64 records;     // at least
    u64 until;       // address of another's `got`, up to which it goes on; 0: none
    u64 until_count; // what that must have reached
    u64 ahead;       // at most so many under way
    u64 rest_ns; // with none under way, of three: one at once, one after up to this, one when it is parked; 0: all at
                 // once
    u64 spoil;   // spoil_*
    u64 by_registers; // not 0: with a warp's ends
    u64 budget_ns;    // for all of it
    u64 scratch;      // 512 bytes
    u64 report;
};
constexpr u64 echoes_most = 8;
struct echo_tasks {
    echo_task task[echoes_most];
};

WM_FN u32 echo_length(const echo_task& t, u64 n) {
    const u64 r = mix(t.seed ^ mix(n));
    const u32 payload = warpmail::payload_bytes(t.there);
    return r % 4 == 0 ? payload : static_cast<u32>((r >> 8) % (payload + 1));
}
WM_FN u32 echo_type(const echo_task& t, u64 n) {
    return static_cast<u32>(mix(t.seed + 1 + n)) & 0x7FFFu;
}
WM_FN u8 echo_byte(const echo_task& t, u64 n, u32 i) {
    return static_cast<u8>(mix(t.seed ^ n * 0x10001 ^ static_cast<u64>(i / 8) << 48) >> (8 * (i % 8)));
}

// The ends as anybody has them.
template <class L> struct general_ends {
    L lanes;
    wm_producer p;
    wm_consumer c;
    WM_FN general_ends(L l, const echo_task& t)
        : lanes(l), p(warpmail::attach_producer(t.there)), c(warpmail::attach_consumer(t.back)) {}
    WM_FN wm_status push(const u8* src, u32 len, u32 type) {
        return warpmail::try_push(lanes, p, src, len, type);
    }
    WM_FN wm_status pop(u8* dst, u32 room, u32& len, u32& type) {
        return warpmail::try_pop(lanes, c, dst, room, len, type);
    }
};
#if defined(WM_HAS_WARPS)
// A warp's own, whose records pass in registers.
struct register_ends {
    warpmail::warp_producer<> p;
    warpmail::warp_consumer<> c;
    WM_DEV register_ends(warpmail::warp_lanes, const echo_task& t)
        : p(warpmail::attach_producer(t.there)), c(warpmail::attach_consumer(t.back)) {}
    WM_DEV wm_status push(const u8* src, u32 len, u32 type) {
        return p.try_push<order::ordered>(warpmail::load_fragment<1>(src, len), len, type);
    }
    WM_DEV wm_status pop(u8* dst, u32 room, u32& len, u32& type) {
        warpmail::fragment<1> f;
        warpmail::fragment_meta meta;
        const wm_status s = c.try_pop<order::ordered>(f, meta);
        if (s != WM_OK)
            return s;
        len = meta.len();
        type = meta.type();
        if (len > room)
            return WM_BAD_LENGTH;
        warpmail::store_fragment(f, dst, len);
        return WM_OK;
    }
};
#endif

template <class L> struct echoer {
    const echo_task& t;
    L lanes;
    echo_report r{};
    u64 until;
    u32 looks = 0;

    WM_FN echoer(const echo_task& task, L l) : t(task), lanes(l), until(warpmail::now_ns() + task.budget_ns) {}

    WM_FN echo_report* report() const {
        return warpmail::at<echo_report>(t.report);
    }
    WM_FN void fail(u64 what, u64 expected, u64 found) {
        r.fault = what;
        r.expected = expected;
        r.found = found;
    }
    WM_FN bool is_over() const {
        return lanes.any(warpmail::now_ns() > until);
    }
    // After something that was in vain; all lanes leave together.
    WM_FN bool late() {
        if (lanes.rank() == 0)
            warpmail::pause_after(looks++);
        return is_over();
    }
    // Whether there is another record to send.
    WM_FN bool wants_more() const {
        if (r.sent < t.records)
            return true;
        if (t.until == 0)
            return false;
        return lanes.broadcast(warpmail::load_relaxed_gpu(warpmail::at<const u64>(t.until)), 0) < t.until_count;
    }
    WM_FN void rest() {
        if (t.rest_ns == 0 || r.sent % 3 == 0)
            return;
        const u64 begin = lanes.broadcast(warpmail::now_ns(), 0);
        if (r.sent % 3 == 1) {
            const u64 most = mix(t.seed ^ r.sent) % t.rest_ns;
            while (lanes.any(warpmail::now_ns() - begin < most) && !late()) {
            }
            return;
        }
        const wm_bell* bell = warpmail::at<const wm_bell>(t.there.bell);
        while (!lanes.any(warpmail::load_relaxed_gpu(&bell->parked) != 0)) {
            if (late())
                return fail(timeout, 1, 0);
        }
        r.parked++;
    }
    WM_FN u8* outgoing() const {
        return warpmail::at<u8>(t.scratch);
    }
    WM_FN u8* incoming() const {
        return warpmail::at<u8>(t.scratch) + 256;
    }
    WM_FN void make(u64 n) {
        const u32 len = echo_length(t, n);
        for (u32 i = lanes.rank(); i < len; i += lanes.width())
            outgoing()[i] = echo_byte(t, n, i);
        lanes.sync();
    }
    // What came is the next record, byte by byte.
    WM_FN void check(u32 len, u32 type) {
        const u64 n = r.got;
        lanes.sync(); // what the lanes copied out is seen by all
        if (len != echo_length(t, n))
            return fail(length, echo_length(t, n), len);
        if (type != echo_type(t, n))
            return fail(fault::type, echo_type(t, n), type);
        bool same = true;
        for (u32 i = lanes.rank(); i < len; i += lanes.width())
            same = same && incoming()[i] == echo_byte(t, n, i);
        if (lanes.any(!same))
            return fail(bytes, n, 0);
        lanes.sync(); // before the next one takes the place
        r.got++;
        if (lanes.rank() == 0)
            warpmail::store_relaxed_gpu(&report()->got, r.got);
    }
    WM_FN void finish() {
        lanes.sync();
        if (lanes.rank() == 0)
            *report() = r;
    }
};

// A slot with a length that no slot has; everything else is right. False: the mailbox is full.
template <class L> WM_FN bool push_impossible(L lanes, wm_producer& p) {
    if (warpmail::reserve(lanes, p, 1) == 0)
        return false;
    u64* slot = warpmail::slot_at(p.mailbox, p.write_idx);
    const u64 tag = warpmail::lap_tag(p.write_idx, p.mailbox.slots_log2);
    lanes.sync();
    for (u32 i = lanes.rank(); i < warpmail::words_in(p.mailbox.record_stride); i += lanes.width())
        warpmail::store_relaxed(slot + i, tag | (i == 0 ? warpmail::pack_meta(0xFFFF, 1) : 0), p.mailbox.scope);
    warpmail::commit(lanes, p, 1);
    return true;
}

template <class E, class L> WM_FN void exchange(echoer<L>& e, E& ends) {
    const echo_task& t = e.t;
    for (u32 turn = 0; e.r.fault == fine; turn++) {
        const bool more = e.wants_more();
        if (!more && e.r.got == e.r.sent)
            return;
        bool moved = false;
        if (more && e.r.sent - e.r.got < t.ahead) {
            if (e.r.sent == e.r.got)
                e.rest();
            e.make(e.r.sent);
            const wm_status s = ends.push(e.outgoing(), echo_length(t, e.r.sent), echo_type(t, e.r.sent));
            e.lanes.sync(); // before the next one takes the place
            if (s != WM_OK && s != WM_FULL)
                return e.fail(status, 0, static_cast<u64>(s));
            moved = s == WM_OK;
            e.r.sent += moved;
        }
        if constexpr (std::is_same<E, general_ends<L>>::value) {
            if (moved && t.spoil == spoil_lengths && e.r.sent % spoil_every == 0)
                e.r.spoilt += push_impossible(e.lanes, ends.p);
        }
        u32 len = 0, type = 0;
        const wm_status s = ends.pop(e.incoming(), warpmail::payload_bytes(t.back), len, type);
        if (s == WM_OK)
            e.check(len, type);
        else if (s != WM_EMPTY)
            return e.fail(status, 0, static_cast<u64>(s));
        moved = moved || s == WM_OK;
        e.looks = moved ? 0 : e.looks;
        if (moved ? turn % 64 == 0 && e.is_over() : e.late())
            return e.fail(timeout, e.r.sent, e.r.got);
    }
}

// What it does behind its records.
template <class L> WM_FN void spoil_at_the_end(echoer<L>& e, wm_producer& p) {
    const echo_task& t = e.t;
    if (t.spoil == spoil_index) {
        if (e.lanes.rank() == 0)
            warpmail::store_relaxed_gpu(warpmail::at<u64>(p.mailbox.written), warpmail::device_word(wild_index));
        e.r.spoilt++;
    }
    for (u64 i = 0; t.spoil == spoil_none_take && i < records_behind; i++) {
        e.make(e.r.sent + i);
        e.r.spoilt += warpmail::try_push(e.lanes, p, e.outgoing(), echo_length(t, e.r.sent + i), 1) == WM_OK;
        e.lanes.sync();
    }
}

template <class L> WM_FN void echo(const echo_task& t, L lanes) {
    echoer<L> e(t, lanes);
#if defined(WM_HAS_WARPS)
    if constexpr (std::is_same<L, warpmail::warp_lanes>::value) {
        if (t.by_registers) {
            register_ends ends(lanes, t);
            exchange(e, ends);
            return e.finish();
        }
    }
#endif
    general_ends<L> ends(lanes, t);
    exchange(e, ends);
    if (e.r.fault == fine)
        spoil_at_the_end(e, ends.p);
    e.finish();
}

} // namespace forms

#endif
