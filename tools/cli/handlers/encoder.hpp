// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// encoder: takes the parts of lines, gives a feature tensor and band keys for each line.
//   inputs  0 lines (reader)   1 tensors given back (sidecar)      rule: any      outputs  0 features (sidecar)
//
// It cannot run out of tensors. Each of the ND_TENSORS is free, in `features` (at most 64 slots: pipeline.rs), with the
// sidecar (one), or on its way back. A step that sees no tensor on its way back has at least ND_TENSORS - 64 - 1 free;
// one that sees any takes one first. Nor can the two modules wait for each other: the way back has ND_TENSORS slots, so
// the sidecar always has credit there.
#ifndef NEARDUP_ENCODER_HPP
#define NEARDUP_ENCODER_HPP

#include "handlers/features.hpp"
#include "protocol/context.hpp"

namespace neardup {

struct encoder {
    // Scratch: the record, behind it the text to compare, behind that the hashes of some of its n-grams.
    static constexpr u32 record_bytes = 256, text_at = 256, hashes_at = 512, most_hashes = 128;
    static_assert(2 + 1 + ND_PART_BYTES <= hashes_at - text_at, "what was carried, a space, and a part");
    static_assert(sizeof(nd_features) <= 512, "written over record and text");

    // Writes the text to compare of n bytes behind the `have` that were carried: ASCII letters lower-cased, a run of
    // white space as one space, none at either end of the line. Returns how many bytes there are now.
    template <class C> WM_FN static u32 fold(C& c, nd_encoder_state& s, const u8* bytes, u32 n, u8* text, u32 have) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        for (u32 i = rank; i < have; i += width)
            text[i] = s.carry[i];
        const bool gap_before = s.gap != 0;
        bool begun = have != 0;
        u32 end = have;
        for (u32 base = 0; base < n; base += width) {
            const u32 i = base + rank;
            const bool solid = i < n && !is_space(bytes[i]);
            const bool gap = solid && (i == 0 ? gap_before : is_space(bytes[i - 1]));
            const u32 solids = c.lanes.ballot(solid);
            // A space stands before a byte only if text came before it.
            const bool spaced = gap && (begun || lanes_before(c.lanes, solids) != 0);
            const u32 spaces = c.lanes.ballot(spaced);
            const u32 at = end + lanes_before(c.lanes, solids) + lanes_before(c.lanes, spaces);
            if (spaced)
                text[at] = ' ';
            if (solid)
                text[at + spaced] = static_cast<u8>(lower(bytes[i]));
            end += lanes_in(c.lanes, solids) + lanes_in(c.lanes, spaces);
            begun = begun || solids != 0;
        }
        c.lanes.sync();
        return end;
    }

    // Counts n-grams by their hashes: each lane looks after its own bins and minima.
    template <class C> WM_FN static void count(C& c, nd_encoder_state& s, const u32* hashes, u32 n) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        for (u32 i = 0; i < n; i++) {
            const u32 bin = hashes[i] % ND_DIMS;
            if (bin % width == rank)
                s.bins[bin] += hashes[i] >> 31 ? -1 : 1;
        }
        for (u32 k = rank; k < ND_MINIMA; k += width) {
            u32 least = s.minima[k];
            for (u32 i = 0; i < n; i++) {
                const u32 h = permute(hashes[i], k);
                least = h < least ? h : least;
            }
            s.minima[k] = least;
        }
        c.lanes.sync();
    }

    // Takes in one part of a line.
    template <class C> WM_FN static void take(C& c, nd_encoder_state& s, const nd_line& part, const u8* bytes, u32 n) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        if (part.offset == 0) {
            for (u32 d = rank; d < ND_DIMS; d += width)
                s.bins[d] = 0;
            for (u32 k = rank; k < ND_MINIMA; k += width)
                s.minima[k] = ~0u;
            if (rank == 0)
                s.carried = s.gap = s.grams = 0;
            c.lanes.sync();
        }
        u8* text = c.scratch() + text_at;
        u32* hashes = reinterpret_cast<u32*>(c.scratch() + hashes_at);
        const u32 end = fold(c, s, bytes, n, text, s.carried);
        const u32 grams = end >= 3 ? end - 2 : 0;
        for (u32 base = 0; base < grams; base += most_hashes) {
            const u32 some = grams - base < most_hashes ? grams - base : most_hashes;
            for (u32 i = rank; i < some; i += width) {
                const u8* t = text + base + i;
                hashes[i] = mix(t[0] | t[1] << 8 | t[2] << 16);
            }
            c.lanes.sync();
            count(c, s, hashes, some);
        }
        if (rank == 0) {
            const u32 keep = end < 2 ? end : 2;
            for (u32 i = 0; i < keep; i++)
                s.carry[i] = text[end - keep + i];
            s.carried = keep;
            s.gap = is_space(bytes[n - 1]);
            s.grams += grams;
            s.line = part.line;
            s.total = part.total;
            s.received = part.offset + n;
        }
        c.lanes.sync();
    }

    // A text of fewer than three bytes is one n-gram, with its length in the fourth byte.
    template <class C> WM_FN static void take_short(C& c, nd_encoder_state& s) {
        u32* hashes = reinterpret_cast<u32*>(c.scratch() + hashes_at);
        if (c.lanes.rank() == 0) {
            u32 whole = s.carried << 24;
            for (u32 i = 0; i < s.carried; i++)
                whole |= static_cast<u32>(s.carry[i]) << (8 * i);
            hashes[0] = mix(whole);
        }
        c.lanes.sync();
        count(c, s, hashes, 1);
    }

    // Writes the vector; returns its squared length, the same to every lane.
    template <class C> WM_FN static u32 scale(C& c, nd_encoder_state& s, int8_t* vector) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        u64 square = 0;
        for (u32 d = rank; d < ND_DIMS; d += width)
            square += static_cast<u64>(static_cast<int64_t>(s.bins[d]) * s.bins[d]);
        square = c.lanes.sum(square);
        if (square == 0) { // all counts cancelled out: a vector has a length all the same
            if (rank == 0)
                s.bins[0] = 1;
            square = 1;
            c.lanes.sync();
        }
        const u64 factor = scale_for(length_of(square));
        u32 sum = 0;
        for (u32 d = rank; d < ND_DIMS; d += width) {
            const int32_t v = scaled(s.bins[d], factor);
            vector[d] = static_cast<int8_t>(v);
            sum += static_cast<u32>(v * v);
        }
        return c.lanes.sum(sum);
    }

    // Writes the vector into a free tensor and hands it on.
    template <class C> WM_FN static void finish(C& c, nd_encoder_state& s) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        const u32 tensor = s.free_list[s.free_count - 1];
        int8_t* vector = warpmail::at<int8_t>(s.tensors) + static_cast<u64>(tensor) * ND_DIMS;
        const u32 square = scale(c, s, vector);
        nd_features* out = reinterpret_cast<nd_features*>(c.scratch());
        u64* words = reinterpret_cast<u64*>(out);
        for (u32 i = rank; i < sizeof(nd_features) / 8; i += width)
            words[i] = 0;
        c.lanes.sync();
        for (u32 b = rank; b < ND_BANDS; b += width)
            out->keys[b] = band_key(s.minima, b);
        if (rank == 0) {
            out->vector.data = reinterpret_cast<uintptr_t>(vector);
            out->vector.ndim = 1;
            out->vector.shape[0] = ND_DIMS;
            out->vector.strides[0] = 1;
            out->vector.dtype_bits = 8; // code 0: signed integer
            out->vector.dtype_lanes = 1;
            out->line = s.line;
            out->tensor = tensor;
            out->inverse = inverse_of(square);
            s.free_count--;
            s.total = s.received = 0;
        }
        c.lanes.sync();
        c.push(0, out, sizeof(nd_features), ND_FEATURES);
    }

    // Whether a part is the one that must come next.
    WM_FN static bool follows(const nd_encoder_state& s, const nd_line& part, u32 n) {
        if (part.total == 0 || n == 0 || n > ND_PART_BYTES || part.offset > part.total || n > part.total - part.offset)
            return false;
        return part.offset == 0 || (part.line == s.line && part.total == s.total && part.offset == s.received);
    }

    template <class C> WM_FN static void lines(C& c, nd_encoder_state& s) {
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), record_bytes, len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type == ND_END && len == sizeof(nd_end)) {
            c.push(0, c.scratch(), len, type);
            return;
        }
        if (type == ND_FILE || type == ND_BEGIN) // the journal's tap has seen it
            return;
        if (type != ND_LINE || len < sizeof(nd_line)) {
            c.reject(type == ND_LINE || type == ND_END ? WM_REJECT_LENGTH : WM_REJECT_TYPE);
            return;
        }
        const nd_line part = *reinterpret_cast<const nd_line*>(c.scratch());
        const u32 n = len - static_cast<u32>(sizeof(nd_line));
        if (!follows(s, part, n) || s.free_count == 0) {
            c.reject(WM_REJECT_CONTENT);
            return;
        }
        take(c, s, part, c.scratch() + sizeof(nd_line), n);
        if (s.received != s.total)
            return;
        if (s.grams == 0)
            take_short(c, s);
        finish(c, s);
    }

    template <class C> WM_FN static void tensors(C& c, nd_encoder_state& s) {
        u32 len = 0, type = 0;
        if (c.pop(1, c.scratch(), record_bytes, len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u32 tensor = reinterpret_cast<const nd_tensor*>(c.scratch())->tensor;
        if (type != ND_TENSOR || len != sizeof(nd_tensor)) {
            c.reject(type != ND_TENSOR ? WM_REJECT_TYPE : WM_REJECT_LENGTH);
            return;
        }
        if (tensor >= ND_TENSORS || s.free_count >= ND_TENSORS) {
            c.reject(WM_REJECT_CONTENT);
            return;
        }
        c.lanes.sync();
        if (c.lanes.rank() == 0)
            s.free_list[s.free_count++] = tensor;
        c.lanes.sync();
    }

    template <class C> WM_FN static void step(C& c) {
        nd_encoder_state* s = c.template state<nd_encoder_state>();
        if (s == nullptr)
            return;
        // One lane's look decides for all.
        if (c.lanes.broadcast(static_cast<u32>(c.waiting(1) > 0), 0))
            tensors(c, *s);
        if (c.lanes.broadcast(static_cast<u32>(c.waiting(0) > 0), 0))
            lines(c, *s);
    }
};

} // namespace neardup

#endif
