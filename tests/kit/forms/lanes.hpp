// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What a thread of a block does in a trial. Block 0 pushes, block 1 pops; of each block one thread, one warp or all
// take part. On the device, and lane by lane on the CPU.
#ifndef WARPMAIL_FORMS_LANES_HPP
#define WARPMAIL_FORMS_LANES_HPP

#include "forms/forms.hpp"

namespace forms {

using warpmail::block_lanes;
using warpmail::fragment;
using warpmail::fragment_meta;
using warpmail::u32;
using warpmail::u64;
using warpmail::warp_lanes;
using warpmail::wide_fragment;
using warpmail::wide_meta;

// As in src/forms.rs.
constexpr u64 lanes_one = 0, lanes_block = 2;             // 1: a warp
constexpr u64 order_self_contained = 1, order_fenced = 2; // 0: ordered

// ---------------------------------------------------------------- warp ends
// Slot word s of record n: payload word s - 1; the head has none.
WM_DEV u64 slot_word_of(const task& t, u64 n, u32 s) {
    const u32 len = length_of(t, n), begin = s == 0 ? len : (s - 1) * 8;
    u64 v = 0;
    for (u32 i = 0; i < 8 && begin + i < len; i++)
        v |= static_cast<u64>(byte_of(t, n, begin + i)) << (8 * i);
    return v;
}
// The bits of that word that are the record's.
WM_DEV u64 slot_mask_of(const task& t, u64 n, u32 s) {
    const u32 len = length_of(t, n), have = s == 0 || (s - 1) * 8 >= len ? 0 : len - (s - 1) * 8;
    return have >= 8 ? ~0ull : (1ull << (8 * have)) - 1;
}
WM_DEV fragment<1> fragment_of(const task& t, u64 n) {
    return {{slot_word_of(t, n, warp_lanes{}.rank())}};
}

template <order O> WM_DEV void produce_by_end(const task& t) {
    worker<warp_lanes> w(t, t.push, {});
    warpmail::warp_producer<> p(warpmail::attach_producer(t.mailbox));
    const auto outside = [&](u64 n) {
        if (w.lanes.rank() == 31)
            *outside_of(t, n) = outside_value(t, n);
    };
    while (w.r.fault == fine && w.r.done < t.records) {
        const u64 n = w.r.done;
        if (t.push.form == form_end) {
            outside(n);
            if (O == order::fenced)
                p.fence();
            const wm_status s = p.push<O>(fragment_of(t, n), length_of(t, n), type_of(t, n), t.budget_ns);
            w.r.done += s == WM_OK || w.fail_status(s);
            continue;
        }
        const u64 left = t.records - n;
        for (u64 i = 0; i < batch_most; i++)
            outside(n + i);
        if (O == order::fenced)
            p.fence();
        // The last batch may be short: a length beyond the payload ends it.
        const u32 done = p.try_push_batch<O, batch_most>([&](u32 i, fragment<1>& f, u32& len, u32& type) {
            f = fragment_of(t, n + i);
            len = i < left ? length_of(t, n + i) : 0xFFFF;
            type = type_of(t, n + i);
        });
        w.r.done += done;
        if (done == 0 && w.late())
            w.fail(timeout, 1, 0);
    }
    w.finish(0);
}

template <order O> WM_DEV bool check_fragment(worker<warp_lanes>& w, u64 n, const fragment<1>& f, fragment_meta meta) {
    const u32 len = meta.len(), type = meta.type();
    if (len != length_of(w.t, n))
        return w.fail(length, length_of(w.t, n), len);
    if (type != type_of(w.t, n))
        return w.fail(fault::type, type_of(w.t, n), type);
    const u64 mask = slot_mask_of(w.t, n, w.lanes.rank());
    if (w.lanes.any((f.word[0] & mask) != (fragment_of(w.t, n).word[0] & mask)))
        return w.fail(bytes, 1, 0);
    const u64 seen = *outside_of(w.t, n);
    if (O != order::self_contained && w.lanes.any(seen != outside_value(w.t, n)))
        return w.fail(ordering, outside_value(w.t, n), seen);
    return true;
}

template <order O> WM_DEV void consume_by_end(const task& t) {
    worker<warp_lanes> w(t, t.pop, {});
    warpmail::warp_consumer<> c(warpmail::attach_consumer(t.mailbox));
    while (w.r.fault == fine && w.r.done < t.records) {
        if (t.pop.form == form_end) {
            fragment<1> f;
            fragment_meta meta;
            const wm_status s = c.wait<O>(f, meta, t.budget_ns);
            if (s != WM_OK)
                w.fail_status(s);
            else if (check_fragment<O>(w, w.r.done, f, meta)) {
                c.release(1);
                w.r.done++;
            }
            continue;
        }
        // Records are used before their slots are given back; what a fault says of them stays.
        const u64 n = w.r.done;
        const u32 got = c.try_pop_batch<O, batch_most>([&](u32 i, const fragment<1>& f, fragment_meta meta) {
            if (w.r.fault == fine && check_fragment<O>(w, n + i, f, meta))
                w.r.done++;
        });
        if (got == 0 && w.late())
            w.fail(timeout, 1, 0);
    }
    w.finish(1);
}

// ---------------------------------------------------------------- wide ends
template <order O> WM_DEV void produce_wide(const task& t) {
    worker<warp_lanes> w(t, t.push, {});
    warpmail::wide_producer<> p(warpmail::attach_producer(t.mailbox));
    const u32 first = 2 * warpmail::wide_column(w.lanes);
    while (w.r.fault == fine && w.r.done < t.records) {
        const u64 n = w.r.done, left = t.records - n;
        for (u64 i = 0; i < batch_most; i++) {
            if (w.lanes.rank() == 31)
                *outside_of(t, n + i) = outside_value(t, n + i);
        }
        if (O == order::fenced)
            p.fence();
        // The last batch may be short: a length beyond the payload ends it.
        const u32 done = p.try_push_wide<O, batch_most>([&](u32 i, u32, wide_fragment& f, u32& len, u32& type) {
            if (i == warpmail::wide_none)
                return;
            f = {{slot_word_of(t, n + i, first), slot_word_of(t, n + i, first + 1)}};
            len = i < left ? length_of(t, n + i) : 0xFFFF;
            type = type_of(t, n + i);
        });
        w.r.done += done;
        if (done == 0 && w.late())
            w.fail(timeout, 1, 0);
    }
    w.finish(0);
}

// The halves of the warp have a record each; all lanes say together whether both are right.
template <order O>
WM_DEV void check_wide(worker<warp_lanes>& w, u64 n, u32 i, const wide_fragment& f, const wide_meta& meta) {
    const u32 len = meta.len(), type = meta.type(), first = 2 * warpmail::wide_column(w.lanes);
    const bool none = i == warpmail::wide_none;
    n = none ? n : n + i;
    bool same = true;
    for (u32 k = 0; k < 2; k++)
        same = same && ((f.word[k] ^ slot_word_of(w.t, n, first + k)) & slot_mask_of(w.t, n, first + k)) == 0;
    const bool in_order = O == order::self_contained || *outside_of(w.t, n) == outside_value(w.t, n);
    if (w.r.fault != fine)
        return;
    if (w.lanes.any(!none && (len != length_of(w.t, n) || type != type_of(w.t, n))))
        w.fail(length, 1, 0);
    else if (w.lanes.any(!none && !same))
        w.fail(bytes, 1, 0);
    else if (w.lanes.any(!none && !in_order))
        w.fail(ordering, 1, 0);
}

template <order O> WM_DEV void consume_wide(const task& t) {
    worker<warp_lanes> w(t, t.pop, {});
    warpmail::wide_consumer<> c(warpmail::attach_consumer(t.mailbox));
    // Records are numbered within their batch.
    const auto use = [&](u32 i, u32, const wide_fragment& f, const wide_meta& meta) {
        check_wide<O>(w, w.r.done, i, f, meta);
    };
    if (t.pop.form == form_end_ahead) {
        const u64 done = c.pop_wide<O, batch_most>(t.records, t.budget_ns, use, [&](u32 n) { w.r.done += n; });
        if (w.r.fault == fine && done != t.records)
            w.fail(timeout, t.records, done);
    }
    while (t.pop.form == form_end_wide && w.r.fault == fine && w.r.done < t.records) {
        const u32 n = c.try_pop_wide<O, batch_most>(use);
        w.r.done += n;
        if (n == 0 && w.late())
            w.fail(timeout, 1, 0);
    }
    w.finish(1);
}

// ---------------------------------------------------------------- who, in what order
template <order O, class L> WM_DEV void either(const task& t, L lanes, u32 block) {
    if (block == 0)
        produce<O>(t, lanes);
    else
        consume<O>(t, lanes);
}
template <order O> WM_DEV void either_warp(const task& t, const side& s, u32 block) {
    if (s.form < form_end)
        either<O>(t, warp_lanes{}, block);
    else if (block == 0)
        s.form >= form_end_wide ? produce_wide<O>(t) : produce_by_end<O>(t);
    else
        s.form >= form_end_wide ? consume_wide<O>(t) : consume_by_end<O>(t);
}

// What thread `thread` of block `block` does.
WM_DEV void run_thread(const task& t, u32 block, u32 thread) {
    const side& s = block == 0 ? t.push : t.pop;
    if (s.lanes == lanes_one) {
        if (thread == 0)
            s.order == order_self_contained ? either<order::self_contained>(t, one_lane{}, block)
                                            : either<order::ordered>(t, one_lane{}, block);
    } else if (s.lanes == lanes_block) {
        s.order == order_self_contained ? either<order::self_contained>(t, block_lanes{}, block)
                                        : either<order::ordered>(t, block_lanes{}, block);
    } else if (thread < 32) {
        if (s.order == order_self_contained)
            either_warp<order::self_contained>(t, s, block);
        else if (s.order == order_fenced)
            either_warp<order::fenced>(t, s, block);
        else
            either_warp<order::ordered>(t, s, block);
    }
}
WM_DEV void misuse_thread(const task& t, u32 thread) {
    if (t.push.lanes == lanes_one) {
        if (thread == 0)
            misuse(t, one_lane{});
    } else if (t.push.lanes == lanes_block)
        misuse(t, block_lanes{});
    else if (thread < 32)
        misuse(t, warp_lanes{});
}

} // namespace forms

#endif
