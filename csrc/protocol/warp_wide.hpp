// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Batches of a warp's ends (warp_ends.hpp) with 16 bytes a lane: half a warp has a group of a record, so one
// instruction moves two records of 256 bytes, or 512 bytes of a larger one. The bytes are those of mailbox.hpp; either
// side may use either. For whoever moves many records: a single one crosses sooner by `push` and `wait`.
//
//   wide_producer<> p(attach_producer(mailbox));
//   p.try_push_wide<order::self_contained, 32>([&](u32 i, u32 group, wide_fragment& f, u32& len, u32& type) {...});
//
//   wide_consumer<> c(attach_consumer(mailbox));
//   c.try_pop_wide<order::self_contained, 32>([&](u32 i, u32 group, const wide_fragment& f, wide_meta meta) {...});
//
// The mailbox lies on a border of 16 bytes, as all do that warpmail makes. Each lane learns which record and which of
// its groups is its half's. The halves call together, also where the second has no record, which is then `wide_none`.
#ifndef WARPMAIL_PROTOCOL_WARP_WIDE_HPP
#define WARPMAIL_PROTOCOL_WARP_WIDE_HPP

#include "protocol/slot_wide.hpp"
#include "protocol/warp_ends.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

constexpr u32 wide_none = ~0u;

// A lane's share of a group: payload words 2 * column - 1 and 2 * column of it, `column` being the lane's place in its
// half of the warp. Column 0 has only the second.
struct wide_fragment {
    u64 word[2];
};

// Length and type of a record that was read, still in one lane's register. All lanes ask together.
class wide_meta {
public:
    WM_DEV wide_meta(u64 head, u32 lane) : low_(static_cast<u32>(head)), lane_(lane) {}
    WM_DEV u32 len() const {
        return warp_lanes{}.broadcast(low_, lane_) & 0xFFFFu;
    }
    WM_DEV u32 type() const {
        return warp_lanes{}.broadcast(low_, lane_) >> WM_HEAD_TYPE_SHIFT;
    }

private:
    u32 low_, lane_;
};

// What one instruction moves of N records of a stride: which record and group are this lane's in unit u.
template <u32 Stride, u32 N> struct wide_shape {
    static_assert(Stride == WM_STRIDE_DEFAULT || Stride % wide_bytes == 0, "whole groups, two at a time");
    static_assert(N * Stride % wide_bytes == 0 && N * Stride / wide_bytes <= 16, "the words stay in registers");
    static constexpr bool pairs = Stride < wide_bytes;
    static constexpr u32 units = N * Stride / wide_bytes, per_record = pairs ? 1 : Stride / wide_bytes;

    WM_DEV static u32 record(u32 u) {
        return pairs ? 2 * u + wide_half(warp_lanes{}) : u / per_record;
    }
    WM_DEV static u32 group(u32 u) {
        return pairs ? 0 : 2 * (u % per_record) + wide_half(warp_lanes{});
    }
    // This lane's words of unit u, from its word of a record that warp_cursor gives.
    template <class T> WM_DEV static T* words(T* lane_word, u32 u) {
        const warp_lanes lanes;
        return lane_word - lanes.rank() + wide_half(lanes) * WM_GROUP_WORDS + 2 * wide_column(lanes) +
               u * (wide_bytes / 8);
    }
};

template <class F = default_form> class wide_producer : public warp_producer<F> {
    using end = warp_producer<F>;

public:
    using warp_producer<F>::warp_producer;

    // Up to N records, one fence and one publication: make(record, group, fragment&, len&, type&) for each group;
    // length and type matter for group 0. Returns their number; fewer than N when the ring is nearly full or about to
    // wrap. A length beyond the payload ends the batch before it.
    template <order O, u32 N, class Make> WM_DEV u32 try_push_wide(Make&& make) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        lanes.check();
        u32 n = this->reserve(N);
        if (n == 0)
            return 0;
        if (releases(O))
            this->fence();
        // All votes before the first store; else each store would wait for its own vote.
        wide_word word[shape::units];
        n = n == N ? make_units<N>(N, make, word) : make_units<N>(n, make, word);
        u64* const to = shape::words(this->next_, 0);
        if (n == N) {
#pragma unroll
            for (u32 u = 0; u < shape::units; u++)
                store_relaxed_wide(to + u * (wide_bytes / 8), word[u], F::scope());
        } else {
#pragma unroll
            for (u32 u = 0; u < shape::units; u++) {
                if (shape::record(u) < n)
                    store_relaxed_wide(to + u * (wide_bytes / 8), word[u], F::scope());
            }
        }
        if (n)
            this->commit(n);
        return n;
    }

private:
    // The first n records, tagged; how many of them have a length that can be.
    template <u32 N, class Make> WM_DEV u32 make_units(u32 n, Make& make, wide_word* word) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        u32 refused = wide_none, meta[shape::units];
        wide_tagger<shape::units> tagger;
#pragma unroll
        for (u32 u = 0; u < shape::units; u++) {
            const u32 i = shape::record(u) < n ? shape::record(u) : wide_none, group = shape::group(u);
            wide_fragment f{};
            u32 len = 0, type = 0;
            make(i, group, f, len, type);
            const bool too_long = i != wide_none && group == 0 && len > end::payload;
            refused = too_long && refused == wide_none ? i : refused;
            meta[u] = group == 0 ? static_cast<u32>(pack_meta(len, type)) : 0;
            word[u] = {f.word[0], f.word[1]};
            tagger.add(u, word[u]);
        }
        tagger.exchange(lanes);
#pragma unroll
        for (u32 u = 0; u < shape::units; u++)
            word[u] = tagger.tagged(lanes, u, word[u], this->tag_, meta[u]);
        if (lanes.any(refused != wide_none))
            refused = lanes.min(refused);
        return refused < n ? refused : n;
    }
};

template <class F = default_form> class wide_consumer : public warp_consumer<F> {
public:
    using warp_consumer<F>::warp_consumer;

    // Up to N records that are ready, and not more than `most`, up to the end of the ring, one publication: use(record,
    // group, const fragment&, meta) for each group. Returns their number. All slots are asked for at once.
    template <order O, u32 N, class Use> WM_DEV u32 try_pop_wide(Use&& use, u32 most = N) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        lanes.check();
        wide_word v[shape::units];
        most = most < N ? most : N;
        const u32 limit = this->straight() < most ? this->straight() : most;
        u32 n = N;
        if (limit == N) {
            ask<N>(0, v);
            if (!all_fresh<N>(v))
                n = ready<N>(v, N);
        } else {
            const u64* const from = shape::words(this->next_, 0);
#pragma unroll
            for (u32 u = 0; u < shape::units; u++)
                v[u] = load_relaxed_wide(shape::record(u) < limit ? from + u * (wide_bytes / 8) : from, F::scope());
            n = ready<N>(v, limit);
        }
        if (n == 0)
            return 0;
        acquire_slot<O>(lanes, F::scope()); // once for the batch
        if (n == N)
            use_units<N>(N, v, use);
        else
            use_units<N>(n, v, use);
        this->release(n);
        return n;
    }

    // `records` records in batches of N, the next ones asked for while these are used: `use` as above, with the
    // record's number in its batch, then after(n) for each batch of n. Waits up to budget_ns for a batch, and takes
    // what there is of one that does not come whole. Returns the number of records, fewer when none came in time. Some
    // 200 registers where N records are 8 KiB.
    template <order O, u32 N, class Use, class After>
    WM_DEV u64 pop_wide(u64 records, u64 budget_ns, Use&& use, After&& after) {
        warp_lanes{}.check();
        u64 done = 0;
        // What is asked for ahead is less than a lap away: its parity would mean another one.
        const bool whole = this->mask_ + 1 >= 2 * N;
        while (done < records) {
            const u32 behind = static_cast<u32>(this->idx_) % N; // of where batches begin
            if (whole && behind == 0 && records - done >= N)
                done += pop_batches<O, N>(records - done, budget_ns, use, after);
            const u64 left = records - done, most = left < N - behind ? left : N - behind;
            u32 n = 0;
            if (left != 0)
                wait_until(warp_lanes{}, budget_ns, [&] {
                    n = try_pop_wide<O, N>(use, static_cast<u32>(most));
                    return n != 0;
                });
            if (n == 0)
                break;
            after(n);
            done += n;
        }
        return done;
    }

private:
    // Asks for the N records that are `ahead` behind the next one, which do not straddle the end of the ring.
    template <u32 N> WM_DEV const u64* place(u32 ahead) const {
        const u32 slot = (static_cast<u32>(this->idx_) + ahead) & this->mask_;
        return wide_shape<F::stride(), N>::words(this->lane_words_ + static_cast<size_t>(slot) * this->words, 0);
    }
    template <u32 N> WM_DEV void ask(u32 ahead, wide_word* v) const {
        const u64* const from = place<N>(ahead);
#pragma unroll
        for (u32 u = 0; u < wide_shape<F::stride(), N>::units; u++)
            v[u] = load_relaxed_wide(from + u * (wide_bytes / 8), F::scope());
    }
    // In four chains: one would be as long as the way to L2.
    template <u32 N> WM_DEV bool all_fresh(const wide_word* v) const {
        u32 stale[4] = {};
#pragma unroll
        for (u32 u = 0; u < wide_shape<F::stride(), N>::units; u++)
            stale[u % 4] |= wide_stale(v[u], this->tag_);
        return warp_lanes{}.all(static_cast<int32_t>(stale[0] | stale[1] | stale[2] | stale[3]) >= 0);
    }
    // Whole batches, up to `records`, until one does not come whole.
    template <order O, u32 N, class Use, class After>
    WM_DEV u64 pop_batches(u64 records, u64 budget_ns, Use& use, After& after) {
        wide_word v[2][wide_shape<F::stride(), N>::units];
        u64 done = 0;
        ask<N>(0, v[0]);
        ask<N>(N, v[1]);
        while (records - done >= N && take_batch<O, N>(v[0], budget_ns, use)) {
            after(N);
            done += N;
            if (records - done < N || !take_batch<O, N>(v[1], budget_ns, use))
                break;
            after(N);
            done += N;
        }
        return done;
    }
    // Waits for the batch that was asked for, uses it, and asks for the next but one. False: it did not come whole.
    template <order O, u32 N, class Use> WM_DEV bool take_batch(wide_word* v, u64 budget_ns, Use& use) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        if (!all_fresh<N>(v)) {
            const bool came = wait_until(lanes, budget_ns, [&] {
                ask<N>(0, v);
                return all_fresh<N>(v);
            });
            if (!came)
                return false;
        }
        acquire_slot<O>(lanes, F::scope());
        // All heads before the next load: what is handed round queues behind loads.
        u32 head[shape::units];
#pragma unroll
        for (u32 u = 0; u < shape::units; u++)
            head[u] = wide_head(lanes, v[u]);
        const u64* const next = place<N>(2 * N);
        this->release(N);
#pragma unroll
        for (u32 u = 0; u < shape::units; u++) {
            const wide_word w = wide_restored(lanes, v[u], head[u]);
            use(shape::record(u), shape::group(u), wide_fragment{{w.low, w.high}}, meta_of<N>(v, u));
            if (shape::per_record == 1)
                v[u] = load_relaxed_wide(next + u * (wide_bytes / 8), F::scope());
        }
        if (shape::per_record != 1) {
#pragma unroll
            for (u32 u = 0; u < shape::units; u++)
                v[u] = load_relaxed_wide(next + u * (wide_bytes / 8), F::scope());
        }
        return true;
    }
    template <u32 N> WM_DEV static wide_meta meta_of(const wide_word* v, u32 u) {
        using shape = wide_shape<F::stride(), N>;
        return wide_meta(v[u / shape::per_record * shape::per_record].low,
                         shape::pairs ? warp_lanes{}.rank() & 16u : 0);
    }
    // How many records are there, one behind the other, up to `limit`.
    template <u32 N> WM_DEV u32 ready(const wide_word* v, u32 limit) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        u32 first = N; // the first that is not
#pragma unroll
        for (u32 u = shape::units; u-- > 0;) {
            const u32 fresh = lanes.ballot(is_wide_fresh(v[u], this->tag_));
            if (!shape::pairs)
                first = fresh != ~0u ? u / shape::per_record : first;
            else if ((fresh & 0xFFFFu) != 0xFFFFu)
                first = 2 * u;
            else
                first = fresh != ~0u ? 2 * u + 1 : first;
        }
        return first < limit ? first : limit;
    }
    template <u32 N, class Use> WM_DEV static void use_units(u32 n, const wide_word* v, Use& use) {
        using shape = wide_shape<F::stride(), N>;
        const warp_lanes lanes;
        // Heads four at a time: none waits for another's use.
        constexpr u32 ahead = shape::units < 4 ? shape::units : 4;
#pragma unroll
        for (u32 begin = 0; begin < shape::units; begin += ahead) {
            u32 head[ahead];
#pragma unroll
            for (u32 k = 0; k < ahead; k++)
                head[k] = wide_head(lanes, v[begin + k]);
#pragma unroll
            for (u32 k = 0; k < ahead; k++) {
                const u32 u = begin + k;
                const u32 i = shape::record(u) < n ? shape::record(u) : wide_none;
                if (!shape::pairs && i == wide_none)
                    continue;
                const wide_word w = wide_restored(lanes, v[u], head[k]);
                use(i, shape::group(u), wide_fragment{{w.low, w.high}}, meta_of<N>(v, u));
            }
        }
    }
};

} // namespace warpmail

#endif
#endif
