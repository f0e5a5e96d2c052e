// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// sidecar: a memory of vectors with a banded index. For each line it compares the candidates of the index exactly,
// tells the planner the best, and remembers the line. A line costs a bounded number of looks however many are known:
// ND_BANDS buckets of ND_BUCKET places. The newest entry of a bucket pushes out the oldest; when the memory is full the
// newest line overwrites the oldest, whose places in buckets then lead to the new line and are compared as such.
//   inputs  0 features (encoder)      rule: any      outputs  0 matches (planner)   1 tensors given back (encoder)
#ifndef NEARDUP_SIDECAR_HPP
#define NEARDUP_SIDECAR_HPP

#include "handlers/features.hpp"
#include "protocol/context.hpp"

namespace neardup {

struct sidecar {
    static constexpr u32 most = ND_BANDS * ND_BUCKET;
    // Scratch: the record, the candidates, the records to push.
    static constexpr u32 record_bytes = 320, found_at = 320, match_at = found_at + 4 * most, tensor_at = match_at + 64;
    static_assert(tensor_at + sizeof(nd_tensor) <= 1024, "scratch has at least a kilobyte");

    WM_FN static u64* bucket(const nd_sidecar_state& s, u32 band, u32 key) {
        const u64 b = static_cast<u64>(band) * s.bucket_count + (key & (s.bucket_count - 1));
        return warpmail::at<u64>(s.buckets) + b * ND_BUCKET;
    }
    WM_FN static const nd_entry& entry(const nd_sidecar_state& s, u32 entry_plus_one) {
        return warpmail::at<const nd_entry>(s.entries)[entry_plus_one - 1];
    }

    // Writes the entries whose key agrees in some band to `found`, entry + 1, each once, in the order of bands and
    // places. Returns how many.
    template <class C> WM_FN static u32 candidates(C& c, const nd_sidecar_state& s, const u32* keys, u32* found) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        u32 hits = 0;
        for (u32 b = rank; b < ND_BANDS; b += width)
            ask_for(bucket(s, b, keys[b]), ND_BUCKET * 8);
        for (u32 base = 0; base < most; base += width) { // ND_BUCKET lanes a band
            const u32 i = base + rank, key = keys[i / ND_BUCKET];
            const u64 e = bucket(s, i / ND_BUCKET, key)[i % ND_BUCKET];
            const bool hit = static_cast<u32>(e) != 0 && (e >> 32) == key;
            const u32 ballot = c.lanes.ballot(hit);
            if (hit)
                found[hits + lanes_before(c.lanes, ballot)] = static_cast<u32>(e);
            hits += lanes_in(c.lanes, ballot);
        }
        c.lanes.sync();
        u32 n = 0; // places [0, n) hold each entry once; n never passes i
        for (u32 i = 0; i < hits; i++) {
            const u32 e = found[i];
            bool known = false;
            for (u32 k = rank; k < n; k += width)
                known = known || found[k] == e;
            if (c.lanes.any(known))
                continue;
            c.lanes.sync(); // every lane has read what the next line overwrites
            if (rank == 0)
                found[n] = e;
            n++;
            c.lanes.sync();
        }
        return n;
    }

    // The most similar candidate; of equals the earliest line.
    template <class C>
    WM_FN static nd_match best(C& c, const nd_sidecar_state& s, const nd_features& f, const u32* found, u32 n) {
        // A warp has the vectors of several candidates under way at once; a thread's caches do that for it.
        constexpr u32 group = decltype(c.lanes)::width() == 1 ? 1 : 4;
        nd_match m = {f.line, ~0ull, 0, n, 0, 0};
        const int8_t* vector = warpmail::at<const int8_t>(f.vector.data + f.vector.byte_offset);
        for (u32 i = c.lanes.rank(); i < n; i += c.lanes.width())
            ask_for(&entry(s, found[i]), sizeof(nd_entry));
        for (u32 base = 0; base < n; base += group) {
            const nd_entry* entries[group];
            int32_t dots[group];
            for (u32 j = 0; j < group; j++) {
                entries[j] = &entry(s, found[base + j < n ? base + j : n - 1]);
                dots[j] = dot_share(c.lanes, vector, entries[j]->vector);
            }
            for (u32 j = 0; j < group; j++) { // the last group may see its last candidate again: no harm
                const u32 sim = similarity(c.lanes.sum(dots[j]), f.inverse, entries[j]->inverse);
                const u64 line = entries[j]->line;
                if (m.of == ~0ull || sim > m.similarity || (sim == m.similarity && line < m.of)) {
                    m.similarity = sim;
                    m.of = line;
                }
            }
        }
        return m;
    }

    template <class C> WM_FN static void remember(C& c, nd_sidecar_state& s, const nd_features& f) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        const u32 place = static_cast<u32>(s.inserted % s.capacity);
        nd_entry* to = warpmail::at<nd_entry>(s.entries) + place;
        const u64* from = warpmail::at<const u64>(f.vector.data + f.vector.byte_offset);
        u64* words = reinterpret_cast<u64*>(to->vector);
        c.lanes.sync(); // every lane has read what is overwritten here
        for (u32 i = rank; i < ND_DIMS / 8; i += width)
            words[i] = from[i];
        for (u32 b = rank; b < ND_BANDS; b += width) {
            u64* e = bucket(s, b, f.keys[b]);
            for (u32 i = ND_BUCKET - 1; i > 0; i--)
                e[i] = e[i - 1];
            e[0] = static_cast<u64>(f.keys[b]) << 32 | (place + 1);
        }
        c.lanes.sync();
        if (rank == 0) {
            to->line = f.line;
            to->inverse = f.inverse;
            s.inserted++;
        }
        c.lanes.sync();
    }

    WM_FN static bool is_expected(const wm_tensor& t) {
        return t.data != 0 && (t.data + t.byte_offset) % 8 == 0 && t.ndim == 1 && t.shape[0] == ND_DIMS &&
               t.strides[0] == 1 && t.dtype_code == 0 && t.dtype_bits == 8 && t.dtype_lanes == 1;
    }

    template <class C> WM_FN static void step(C& c) {
        nd_sidecar_state* s = c.template state<nd_sidecar_state>();
        u32 len = 0, type = 0;
        if (s == nullptr || c.pop(0, c.scratch(), record_bytes, len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type == ND_END && len == sizeof(nd_end)) {
            c.push(0, c.scratch(), len, type);
            return;
        }
        if (type != ND_FEATURES || len != sizeof(nd_features)) {
            c.reject(type == ND_FEATURES || type == ND_END ? WM_REJECT_LENGTH : WM_REJECT_TYPE);
            return;
        }
        const nd_features& f = *reinterpret_cast<const nd_features*>(c.scratch());
        if (!is_expected(f.vector)) {
            c.reject(WM_REJECT_CONTENT);
            return;
        }
        u32* found = reinterpret_cast<u32*>(c.scratch() + found_at);
        const u32 n = candidates(c, *s, f.keys, found);
        const nd_match m = best(c, *s, f, found, n);
        // A line that is known exactly stays known by its first occurrence: repeats neither fill the memory nor push
        // others out of their buckets.
        if (m.similarity != ND_ONE)
            remember(c, *s, f);
        nd_match* out = reinterpret_cast<nd_match*>(c.scratch() + match_at);
        nd_tensor* back = reinterpret_cast<nd_tensor*>(c.scratch() + tensor_at);
        if (c.lanes.rank() == 0) {
            *out = m;
            *back = {f.tensor, 0};
        }
        c.lanes.sync();
        c.push(1, back, sizeof(nd_tensor), ND_TENSOR);
        c.push(0, out, sizeof(nd_match), ND_MATCH);
    }
};

} // namespace neardup

#endif
