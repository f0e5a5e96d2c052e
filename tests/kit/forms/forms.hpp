// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Every form of the device API, tried with random records: one side pushes records 0, 1, 2 ... in one form, the other
// takes them in another and checks each byte. Record n is a function of n and a seed, so both sides know it. Before a
// push the producer writes a word of memory that the record does not carry; where the order promises it, the consumer
// must find it. src/forms.rs has the same structs and numbers.
#ifndef WARPMAIL_FORMS_HPP
#define WARPMAIL_FORMS_HPP

#include "warpmail/device.hpp"

namespace forms {

using warpmail::one_lane;
using warpmail::order;
using warpmail::u32;
using warpmail::u64;
using warpmail::u8;

// How records are moved.
constexpr u32 form_try = 0;       // try_push, try_pop
constexpr u32 form_wait = 1;      // push, pop
constexpr u32 form_place = 2;     // reserve - put - commit, peek - get - release
constexpr u32 form_batch = 3;     // try_push_batch, try_pop_batch
constexpr u32 form_end = 4;       // warp_producer, warp_consumer
constexpr u32 form_end_all = 5;   // their batches
constexpr u32 form_end_wide = 6;  // wide_producer, wide_consumer
constexpr u32 form_end_ahead = 7; // the same; the consumer asks ahead

// Records of one batch have one length and type; and the most that one call moves.
constexpr u32 batch_most = 8;

// What went wrong, with the record at which it did.
enum fault : u64 { fine, status, timeout, length, type, bytes, ordering, beyond };

struct side {
    u64 scratch; // batch_most * 4096 bytes and 64 more, of this side only
    u64 form, lanes, order;
};
struct task {
    wm_mailbox mailbox;
    u64 seed, records, budget_ns;
    u64 outside; // 2^outside_log2 words that no record carries
    u64 outside_log2;
    u64 group; // records that share a length and a type
    side push, pop;
    u64 report; // report[2]: the producer's, the consumer's
};
struct report {
    u64 done, fault, expected, found;
};

WM_FN u64 mix(u64 x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}
WM_FN u32 length_of(const task& t, u64 n) {
    const u64 r = mix(t.seed ^ mix(n / t.group));
    const u32 payload = warpmail::payload_bytes(t.mailbox);
    return r % 8 == 0 ? payload : static_cast<u32>((r >> 8) % (payload + 1)); // full ones more often
}
WM_FN u32 type_of(const task& t, u64 n) {
    return static_cast<u32>(mix(t.seed + 1 + n / t.group)) & 0xFFFFu;
}
WM_FN u64 word_of(const task& t, u64 n, u32 w) {
    return mix(t.seed ^ n * 0x10001 ^ static_cast<u64>(w) << 48);
}
WM_FN u8 byte_of(const task& t, u64 n, u32 i) {
    return static_cast<u8>(word_of(t, n, i / 8) >> (8 * (i % 8)));
}
WM_FN u64* outside_of(const task& t, u64 n) {
    return warpmail::at<u64>(t.outside) + (n & ((1ull << t.outside_log2) - 1));
}
WM_FN u64 outside_value(const task& t, u64 n) {
    return mix(n + t.seed * 3);
}

// One side at work: where it is, what it found, when it must be done.
template <class L> struct worker {
    const task& t;
    const side& s;
    L lanes;
    report r{};
    u64 until = 0;

    WM_FN worker(const task& task_, const side& side_, L lanes_) : t(task_), s(side_), lanes(lanes_) {
        until = warpmail::now_ns() + t.budget_ns;
    }
    WM_FN u8* scratch(u64 n) const { // anywhere between two aligned words, differently for each record
        return warpmail::at<u8>(s.scratch) + mix(n) % 16;
    }
    // Lanes may see different moments: all leave together.
    WM_FN bool late() const {
        if (lanes.rank() == 0)
            warpmail::pause_after(~0u);
        return lanes.any(warpmail::now_ns() > until);
    }
    WM_FN bool fail(u64 what, u64 expected, u64 found) {
        r.fault = what;
        r.expected = expected;
        r.found = found;
        return false;
    }
    // A call that should have ended well; one that found nothing until it was late says so.
    WM_FN bool fail_status(wm_status found) {
        const bool nothing = found == WM_FULL || found == WM_EMPTY || found == WM_TIMEOUT;
        return fail(nothing ? timeout : status, WM_OK, static_cast<u64>(found));
    }
    WM_FN void finish(u32 which) {
        lanes.sync();
        if (lanes.rank() == 0)
            warpmail::at<report>(t.report)[which] = r;
    }
};

// ---------------------------------------------------------------- the producer
// Writes the memory outside and the bytes of record n; all lanes have, when it returns.
template <class L> WM_FN void make(worker<L>& w, u64 n, u8* to) {
    if (w.lanes.rank() == w.lanes.width() - 1)
        *outside_of(w.t, n) = outside_value(w.t, n);
    const u32 len = length_of(w.t, n);
    for (u32 i = w.lanes.rank(); i < len; i += w.lanes.width())
        to[i] = byte_of(w.t, n, i);
    w.lanes.sync();
}

template <order O, class L> WM_FN void fence_if(worker<L>& w, const wm_producer& p) {
    if (O == order::fenced)
        warpmail::fence(w.lanes, p);
}

template <order O, class L> WM_FN bool push_one(worker<L>& w, wm_producer& p, u64 n) {
    u8* from = w.scratch(n);
    const u32 len = length_of(w.t, n), type = type_of(w.t, n);
    make(w, n, from);
    fence_if<O>(w, p);
    wm_status s = WM_FULL;
    if (w.s.form == form_wait)
        s = warpmail::push<O>(w.lanes, p, from, len, type, w.t.budget_ns);
    else
        while ((s = warpmail::try_push<O>(w.lanes, p, from, len, type)) == WM_FULL && !w.late()) {
        }
    return s == WM_OK || w.fail_status(s);
}

// Some records put in place, fewer of them committed than there is room for; 0 when it gave up.
template <order O, class L> WM_FN u64 push_in_place(worker<L>& w, wm_producer& p, u64 n) {
    u64 want = 1 + mix(n) % batch_most;
    want = want < w.t.records - n ? want : w.t.records - n;
    u64 room = 0;
    while ((room = warpmail::reserve(w.lanes, p, want)) == 0 && !w.late()) {
    }
    for (u64 i = 0; i < room; i++) {
        u8* from = w.scratch(n + i);
        make(w, n + i, from);
        fence_if<O>(w, p);
        const wm_status s = warpmail::put<O>(w.lanes, p, i, from, length_of(w.t, n + i), type_of(w.t, n + i));
        w.lanes.sync(); // the next record uses the same bytes
        if (s != WM_OK)
            return w.fail_status(s);
    }
    if (room == 0)
        return w.fail(timeout, 1, 0);
    warpmail::commit(w.lanes, p, room);
    return room;
}

template <order O, class L> WM_FN u64 push_batch(worker<L>& w, wm_producer& p, u64 n) {
    u64 want = w.t.group - n % w.t.group;
    want = want < w.t.records - n ? want : w.t.records - n;
    const u64 step = warpmail::payload_bytes(w.t.mailbox) + 3;
    u8* from = w.scratch(n);
    for (u64 i = 0; i < want; i++)
        make(w, n + i, from + i * step);
    fence_if<O>(w, p);
    u32 pushed = 0;
    wm_status s = WM_FULL;
    while ((s = warpmail::try_push_batch<O>(w.lanes, p, from, step, length_of(w.t, n), type_of(w.t, n),
                                            static_cast<u32>(want), pushed)) == WM_FULL &&
           !w.late()) {
    }
    w.lanes.sync();
    if (s != WM_OK)
        return w.fail_status(s);
    return pushed;
}

template <order O, class L> WM_FN void produce(const task& t, L lanes) {
    worker<L> w(t, t.push, lanes);
    wm_producer p = warpmail::attach_producer(t.mailbox);
    while (w.r.fault == fine && w.r.done < t.records) {
        const u64 n = w.r.done;
        if (t.push.form == form_place)
            w.r.done += push_in_place<O>(w, p, n);
        else if (t.push.form == form_batch)
            w.r.done += push_batch<O>(w, p, n);
        else
            w.r.done += push_one<O>(w, p, n) ? 1 : 0;
    }
    w.finish(0);
}

// ---------------------------------------------------------------- the consumer
template <order O, class L> WM_FN bool check(worker<L>& w, u64 n, const u8* got, u32 len, u32 type) {
    if (len != length_of(w.t, n))
        return w.fail(length, length_of(w.t, n), len);
    if (type != type_of(w.t, n))
        return w.fail(fault::type, type_of(w.t, n), type);
    w.lanes.sync(); // what the lanes copied out is seen by all
    bool same = true;
    for (u32 i = w.lanes.rank(); i < len; i += w.lanes.width())
        same = same && got[i] == byte_of(w.t, n, i);
    if (w.lanes.any(!same))
        return w.fail(bytes, 1, 0);
    const u64 seen = *outside_of(w.t, n);
    if (O != order::self_contained && w.lanes.any(seen != outside_value(w.t, n)))
        return w.fail(ordering, outside_value(w.t, n), seen);
    w.lanes.sync(); // before the next record takes the place
    return true;
}

// A byte behind the room that a pop is given: it must stay as it is.
constexpr u8 guard = 0xA7;
template <class L> WM_FN void set_guard(worker<L>& w, u8* end) {
    if (w.lanes.rank() == 0)
        *end = guard;
    w.lanes.sync();
}

template <order O, class L> WM_FN bool pop_one(worker<L>& w, wm_consumer& c, u64 n) {
    const u32 room = length_of(w.t, n); // just enough
    u8* to = w.scratch(n);
    u32 len = 0, type = 0;
    set_guard(w, to + room);
    wm_status s = WM_EMPTY;
    if (w.s.form == form_wait)
        s = warpmail::pop<O>(w.lanes, c, to, room, len, type, w.t.budget_ns);
    else
        while ((s = warpmail::try_pop<O>(w.lanes, c, to, room, len, type)) == WM_EMPTY && !w.late()) {
        }
    if (s != WM_OK)
        return w.fail_status(s);
    w.lanes.sync();
    if (to[room] != guard)
        return w.fail(beyond, guard, to[room]);
    return check<O>(w, n, to, len, type);
}

template <order O, class L> WM_FN bool pop_in_place(worker<L>& w, wm_consumer& c, u64 n) {
    u32 len = 0, type = 0;
    wm_status s = WM_EMPTY;
    while ((s = warpmail::peek<O>(w.lanes, c, len, type)) == WM_EMPTY && !w.late()) {
    }
    if (s != WM_OK)
        return w.fail_status(s);
    if (len != length_of(w.t, n) || type != type_of(w.t, n))
        return w.fail(length, length_of(w.t, n), len);
    u8* to = w.scratch(n);
    u32 again = 0, type_again = 0;
    if (len > 0) { // a place that is too small: the record stays
        s = warpmail::get<O>(w.lanes, c, to, len - 1, again, type_again);
        if (s != WM_TOO_SMALL || again != len)
            return w.fail(status, static_cast<u64>(WM_TOO_SMALL), static_cast<u64>(s));
    }
    s = warpmail::get<O>(w.lanes, c, to, len, again, type_again);
    if (s != WM_OK)
        return w.fail_status(s);
    if (!check<O>(w, n, to, again, type_again))
        return false;
    warpmail::release(w.lanes, c, 1);
    return true;
}

template <order O, class L> WM_FN u64 pop_batch(worker<L>& w, wm_consumer& c, u64 n) {
    const u32 room = warpmail::payload_bytes(w.t.mailbox);
    const u64 step = room + 5;
    u8* to = w.scratch(n);
    // Lengths and types stand behind the records.
    u32* lens = warpmail::at<u32>(w.s.scratch + batch_most * 4096 + 64);
    u32* types = lens + batch_most;
    u32 popped = 0;
    wm_status s = WM_EMPTY;
    while ((s = warpmail::try_pop_batch<O>(w.lanes, c, to, step, room, lens, types, batch_most, popped)) == WM_EMPTY &&
           !w.late()) {
    }
    if (s != WM_OK)
        return w.fail_status(s);
    w.lanes.sync();
    for (u32 i = 0; i < popped; i++) {
        if (!check<O>(w, n + i, to + i * step, lens[i], types[i]))
            return 0;
    }
    return popped;
}

template <order O, class L> WM_FN void consume(const task& t, L lanes) {
    worker<L> w(t, t.pop, lanes);
    wm_consumer c = warpmail::attach_consumer(t.mailbox);
    while (w.r.fault == fine && w.r.done < t.records) {
        const u64 n = w.r.done;
        if (t.pop.form == form_place)
            w.r.done += pop_in_place<O>(w, c, n) ? 1 : 0;
        else if (t.pop.form == form_batch)
            w.r.done += pop_batch<O>(w, c, n);
        else
            w.r.done += pop_one<O>(w, c, n) ? 1 : 0;
    }
    w.finish(1);
}

// ---------------------------------------------------------------- calls that must be refused
// The mailbox has one slot of the default stride. One call a line, in order, with the status that it must give.
enum call : u32 { call_attach, call_try_push, call_push, call_push_batch, call_try_pop, call_pop };
struct attempt {
    call what;
    bool null;
    int more; // than the payload, of length or room
    wm_status expected;
};
constexpr u32 attempts = 12;
WM_FN attempt attempt_at(u32 k) {
    constexpr attempt table[attempts] = {
        {call_attach, false, 0, WM_OK},
        {call_try_push, false, 1, WM_BAD_LENGTH},
        {call_try_push, true, 0, WM_BAD_ARGUMENT},
        {call_try_pop, false, 0, WM_EMPTY},
        {call_pop, false, 0, WM_TIMEOUT},
        {call_try_push, false, 0, WM_OK},
        {call_try_push, false, -1, WM_FULL},
        {call_push, false, 0, WM_TIMEOUT},
        {call_push_batch, false, 0, WM_FULL},
        {call_try_pop, true, 0, WM_BAD_ARGUMENT},
        {call_try_pop, false, -1, WM_TOO_SMALL},
        {call_try_pop, false, 0, WM_OK}, // it was still there
    };
    return table[k];
}

// Takes up both ends of a handle that may be wrong; they must agree.
template <class L> WM_FN wm_status attach_both(L lanes, const wm_mailbox& m) {
    wm_producer p;
    wm_consumer c;
    const wm_status s = warpmail::try_attach(lanes, m, p);
    return warpmail::try_attach(lanes, m, c) == s ? s : WM_BAD_CONTENT;
}

// Writes pairs of words, the status found and the status expected, to the report.
template <class L> WM_FN void misuse(const task& t, L lanes) {
    wm_producer p = warpmail::attach_producer(t.mailbox);
    wm_consumer c = warpmail::attach_consumer(t.mailbox);
    constexpr u64 moment_ns = 2000;
    for (u32 k = 0; k < attempts; k++) {
        const attempt a = attempt_at(k);
        u8* bytes = a.null ? nullptr : warpmail::at<u8>(t.push.scratch);
        const u32 size = static_cast<u32>(static_cast<int>(warpmail::payload_bytes(t.mailbox)) + a.more);
        u32 len = 0, type = 0, moved = 0;
        wm_status found = WM_OK;
        if (a.what == call_attach)
            found = attach_both(lanes, t.mailbox);
        else if (a.what == call_try_push)
            found = warpmail::try_push(lanes, p, bytes, size, 1);
        else if (a.what == call_push)
            found = warpmail::push(lanes, p, bytes, size, 1, moment_ns);
        else if (a.what == call_push_batch)
            found = warpmail::try_push_batch(lanes, p, bytes, 8, 8, 1, 4, moved);
        else if (a.what == call_try_pop)
            found = warpmail::try_pop(lanes, c, bytes, size, len, type);
        else
            found = warpmail::pop(lanes, c, bytes, size, len, type, moment_ns);
        lanes.sync();
        if (lanes.rank() == 0) {
            warpmail::at<int>(t.report)[2 * k] = found;
            warpmail::at<int>(t.report)[2 * k + 1] = a.expected;
        }
    }
}

// Pushes records into a tapped mailbox, each when the one before is durable. A status that ends it is told negated.
struct durable_task {
    wm_mailbox mailbox;
    wm_durable durable;
    u64 records, budget_ns;
    u64 report;
};
template <class L> WM_FN void push_durably(const durable_task& t, L lanes) {
    wm_producer p = warpmail::attach_producer(t.mailbox);
    report r{0, fine, 0, 0};
    while (r.done < t.records && r.fault == fine) {
        u64 n = r.done;
        wm_status s = warpmail::push(lanes, p, &n, 8, 1, t.budget_ns);
        if (s == WM_OK)
            s = warpmail::wait_durable(lanes, t.durable, p.write_idx, t.budget_ns);
        if (s == WM_OK && warpmail::durable_records(t.durable) < p.write_idx)
            r = {r.done, ordering, p.write_idx, warpmail::durable_records(t.durable)};
        else if (s == WM_OK)
            r.done++;
        else
            r = {r.done, status, 0, static_cast<u64>(-s)};
    }
    if (lanes.rank() == 0)
        *warpmail::at<report>(t.report) = r;
}

} // namespace forms

#endif
