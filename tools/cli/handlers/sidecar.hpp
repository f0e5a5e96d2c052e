// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// sidecar: a memory of vectors with a banded index. For each line it compares the candidates of the index exactly,
// tells the planner the best, and remembers the line. A line costs a bounded number of looks however many it knows:
// ND_BANDS buckets of ND_BUCKET entries; the newest entry of a bucket pushes out the oldest, the newest line overwrites
// the oldest when the memory is full.
//   inputs  0 features (encoder)      rule: any      outputs  0 matches (planner)   1 tensors given back (encoder)
#ifndef NEARDUP_SIDECAR_HPP
#define NEARDUP_SIDECAR_HPP

#include "handlers/features.hpp"
#include "protocol/context.hpp"

namespace neardup {

struct sidecar {
    static constexpr u32 most = ND_BANDS * ND_BUCKET;

    WM_FN static u64* bucket(const nd_sidecar_state& s, u32 band, u32 key) {
        const u64 b = static_cast<u64>(band) * s.bucket_count + (key & (s.bucket_count - 1));
        return warpmail::at<u64>(s.buckets) + b * ND_BUCKET;
    }

    // Entries whose key agrees in some band, entry + 1 each or 0, one place for each bucket entry; without repetitions.
    template <class C> WM_FN static void candidates(C& c, const nd_sidecar_state& s, const u32* keys, u32* found) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        for (u32 i = rank; i < most; i += width) {
            const u32 key = keys[i / ND_BUCKET];
            const u64 e = bucket(s, i / ND_BUCKET, key)[i % ND_BUCKET];
            found[i] = (e >> 32) == key ? static_cast<u32>(e) : 0;
        }
        c.lanes.sync();
        u32 repeated = 0; // bit: of this lane's places
        for (u32 i = rank, k = 0; i < most; i += width, k++) {
            bool again = false;
            for (u32 j = 0; j < i && found[i] != 0; j++)
                again |= found[j] == found[i];
            if (width == 1 && again)
                found[i] = 0; // one lane goes in order: nothing behind i matters to those before
            else
                repeated |= static_cast<u32>(again) << k;
        }
        c.lanes.sync();
        for (u32 i = rank, k = 0; width > 1 && i < most; i += width, k++) {
            if (repeated >> k & 1)
                found[i] = 0;
        }
        c.lanes.sync();
    }

    template <class C> WM_FN static u32 compare(C& c, const int16_t* a, const int16_t* b) {
        int32_t dot = 0; // vectors of length ND_SCALE: every partial sum is at most ND_SCALE^2
        for (u32 d = c.lanes.rank(); d < ND_DIMS; d += c.lanes.width())
            dot += static_cast<int32_t>(a[d]) * b[d];
        return similarity(c.lanes.sum(dot));
    }

    // The most similar candidate; of equals the earliest line.
    template <class C>
    WM_FN static nd_match best(C& c, const nd_sidecar_state& s, const nd_features& f, const u32* found) {
        nd_match m = {f.line, ~0ull, 0, 0, 0, 0};
        const int16_t* vector = warpmail::at<const int16_t>(f.vector.data + f.vector.byte_offset);
        for (u32 i = 0; i < most; i++) {
            if (found[i] == 0)
                continue;
            const u64 entry = found[i] - 1;
            const u32 sim = compare(c, vector, warpmail::at<const int16_t>(s.vectors) + entry * ND_DIMS);
            const u64 line = warpmail::at<const u64>(s.lines)[entry];
            if (m.candidates == 0 || sim > m.similarity || (sim == m.similarity && line < m.of)) {
                m.similarity = sim;
                m.of = line;
            }
            m.candidates++;
        }
        return m;
    }

    template <class C> WM_FN static void remember(C& c, nd_sidecar_state& s, const nd_features& f) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        const u64 entry = s.inserted % s.capacity;
        const int16_t* from = warpmail::at<const int16_t>(f.vector.data + f.vector.byte_offset);
        int16_t* to = warpmail::at<int16_t>(s.vectors) + entry * ND_DIMS;
        for (u32 d = rank; d < ND_DIMS; d += width)
            to[d] = from[d];
        for (u32 b = rank; b < ND_BANDS; b += width) {
            u64* e = bucket(s, b, f.keys[b]);
            for (u32 i = ND_BUCKET - 1; i > 0; i--)
                e[i] = e[i - 1];
            e[0] = static_cast<u64>(f.keys[b]) << 32 | (entry + 1);
        }
        c.lanes.sync();
        if (rank == 0) {
            warpmail::at<u64>(s.lines)[entry] = f.line;
            s.inserted++;
        }
        c.lanes.sync();
    }

    WM_FN static bool is_expected(const wm_tensor& t) {
        return t.data != 0 && t.ndim == 1 && t.shape[0] == ND_DIMS && t.strides[0] == 1 && t.dtype_code == 0 &&
               t.dtype_bits == 16;
    }

    template <class C> WM_FN static void step(C& c) {
        nd_sidecar_state* s = c.template state<nd_sidecar_state>();
        u32 len = 0, type = 0;
        if (s == nullptr || c.pop(0, c.scratch(), 512, len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type == ND_END && len == sizeof(nd_end)) {
            c.push(0, c.scratch(), len, type);
            return;
        }
        const nd_features* f = reinterpret_cast<const nd_features*>(c.scratch());
        if (type != ND_FEATURES || len != sizeof(nd_features) || !is_expected(f->vector)) {
            c.reject(type != ND_FEATURES ? WM_REJECT_TYPE : WM_REJECT_CONTENT);
            return;
        }
        u32* found = reinterpret_cast<u32*>(c.scratch() + 512);
        candidates(c, *s, f->keys, found);
        const nd_match m = best(c, *s, *f, found);
        remember(c, *s, *f);
        nd_match* out = reinterpret_cast<nd_match*>(c.scratch() + 1024);
        nd_tensor* back = reinterpret_cast<nd_tensor*>(c.scratch() + 1152);
        if (c.lanes.rank() == 0) {
            *out = m;
            *back = {f->tensor, 0};
        }
        c.lanes.sync();
        c.push(1, back, sizeof(nd_tensor), ND_TENSOR);
        c.push(0, out, sizeof(nd_match), ND_MATCH);
    }
};

} // namespace neardup

#endif
