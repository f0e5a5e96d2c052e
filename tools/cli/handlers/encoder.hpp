// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// encoder: takes the parts of lines, gives a feature tensor and band keys for each line.
//   inputs  0 lines (reader)   1 tensors given back (sidecar)      rule: any      outputs  0 features (sidecar)
//
// It never waits for a tensor: those not free are in `features` (at most its slots), with the sidecar (one), or in the
// mailbox of tensors given back. When that mailbox is empty at least ND_TENSORS - slots - 1 are free, and the program
// makes `features` with fewer slots than that. So either there is a tensor to take back or one to use.
#ifndef NEARDUP_ENCODER_HPP
#define NEARDUP_ENCODER_HPP

#include "handlers/features.hpp"
#include "protocol/context.hpp"

namespace neardup {

struct encoder {
    // Counts the n-grams of text bytes [0, n): lane by lane into scratch, then each lane into the bins and minima it
    // owns.
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

    // A text byte by its place behind what was carried over.
    WM_FN static u32 text(const nd_encoder_state& s, u32 carried, const u8* bytes, u32 i) {
        return i < carried ? s.carry[i] : lower(bytes[i - carried]);
    }

    // Takes in one part of a line.
    template <class C> WM_FN static void take(C& c, nd_encoder_state& s, const nd_line& part, const u8* bytes, u32 n) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        u32* hashes = reinterpret_cast<u32*>(c.scratch() + 512);
        if (part.offset == 0) {
            for (u32 d = rank; d < ND_DIMS; d += width)
                s.bins[d] = 0;
            for (u32 k = rank; k < ND_MINIMA; k += width)
                s.minima[k] = ~0u;
        }
        const u32 carried = part.offset == 0 ? 0 : s.carried, have = carried + n;
        const u32 grams = have >= 3 ? have - 2 : 0;
        for (u32 i = rank; i < grams; i += width)
            hashes[i] = mix(text(s, carried, bytes, i) | text(s, carried, bytes, i + 1) << 8 |
                            text(s, carried, bytes, i + 2) << 16);
        const bool is_short = part.total < 3 && part.offset + n == part.total;
        if (is_short && rank == 0) {
            u32 whole = part.total << 24;
            for (u32 i = 0; i < have; i++)
                whole |= text(s, carried, bytes, i) << (8 * i);
            hashes[0] = mix(whole);
        }
        c.lanes.sync();
        count(c, s, hashes, is_short ? 1 : grams);
        if (rank == 0) {
            const u32 keep = have < 2 ? have : 2;
            const u32 first = text(s, carried, bytes, have - keep), second = text(s, carried, bytes, have - 1);
            s.carry[0] = static_cast<u8>(first);
            s.carry[1] = static_cast<u8>(second);
            s.carried = keep;
            s.line = part.line;
            s.total = part.total;
            s.received = part.offset + n;
        }
        c.lanes.sync();
    }

    // Writes the vector into a free tensor and hands it on.
    template <class C> WM_FN static void finish(C& c, nd_encoder_state& s) {
        const u32 rank = c.lanes.rank(), width = c.lanes.width();
        u64 square = 0;
        for (u32 d = rank; d < ND_DIMS; d += width)
            square += static_cast<u64>(static_cast<int64_t>(s.bins[d]) * s.bins[d]);
        const u32 length = square_root(c.lanes.sum(square) * 65536);
        const u32 tensor = s.free_list[s.free_count - 1];
        int16_t* vector = warpmail::at<int16_t>(s.tensors) + static_cast<u64>(tensor) * ND_DIMS;
        for (u32 d = rank; d < ND_DIMS; d += width)
            vector[d] = scaled(s.bins[d], length);
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
            out->vector.dtype_bits = 16; // code 0: signed integer
            out->vector.dtype_lanes = 1;
            out->line = s.line;
            out->tensor = tensor;
            s.free_count--;
            s.total = s.received = 0;
        }
        c.lanes.sync();
        c.push(0, out, sizeof(nd_features), ND_FEATURES);
    }

    // Whether a part is the one that must come next.
    WM_FN static bool follows(const nd_encoder_state& s, const nd_line& part, u32 n) {
        if (part.total == 0 || n == 0 || n > ND_PART_BYTES || part.offset + n > part.total || part.offset + n < n)
            return false;
        return part.offset == 0 || (part.line == s.line && part.total == s.total && part.offset == s.received);
    }

    template <class C> WM_FN static void lines(C& c, nd_encoder_state& s) {
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), 512, len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type == ND_END && len == sizeof(nd_end)) {
            c.push(0, c.scratch(), len, type);
            return;
        }
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
        if (s.received == s.total)
            finish(c, s);
    }

    template <class C> WM_FN static void tensors(C& c, nd_encoder_state& s) {
        u32 len = 0, type = 0;
        if (c.pop(1, c.scratch(), 512, len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u32 tensor = reinterpret_cast<const nd_tensor*>(c.scratch())->tensor;
        if (type != ND_TENSOR || len != sizeof(nd_tensor) || tensor >= ND_TENSORS || s.free_count >= ND_TENSORS) {
            c.reject(type != ND_TENSOR ? WM_REJECT_TYPE : WM_REJECT_CONTENT);
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
