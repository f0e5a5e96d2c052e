// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Handlers that follow leased tensors. A tensor of theirs is words, word i of number n; the number stands behind the
// descriptor in the record.
#ifndef WARPMAIL_KIT_LEASES_HPP
#define WARPMAIL_KIT_LEASES_HPP

#include "protocol/context.hpp"

namespace kit {

using warpmail::u32;
using warpmail::u64;

// Word i of record n.
WM_FN u64 word_of(u64 n, u32 i) {
    u64 x = (n + 1) * 0x9E3779B97F4A7C15ull + i * 0xD6E8FEB86659FD93ull;
    x ^= x >> 29;
    return x * 0xBF58476D1CE4E5B9ull;
}

// A record with a tensor, as it stands in scratch memory or in a state.
struct leased {
    wm_tensor tensor;
    u64 number;
};

// Words of the tensor that are not those of its number, and those that are poison.
template <class C> WM_FN void wrong_words(C& c, const leased& l, u32& wrong, u32& poison) {
    const u64* data = warpmail::at<const u64>(l.tensor.data + l.tensor.byte_offset);
    wrong = poison = 0;
    for (u32 i = c.lanes.rank(); i < l.tensor.shape[0]; i += c.lanes.width()) {
        wrong += data[i] != word_of(l.number, i);
        poison += data[i] == warpmail::poison_word;
    }
    wrong = c.lanes.sum(wrong);
    poison = c.lanes.sum(poison);
}

// Follows tensors and checks them.
//   state  0 tensors followed   1 of those, wrong   2 mode   3 refused by the check   4 releases refused
//          5 tensors kept   6 poison words read   7 tensors released   then the kept ones
//   mode   0 releases at once   1 hands on to output 0 instead   2 releases twice
//          3 keeps some, and releases one of them when it has no room; all at a record of type 1, which it hands on
struct lease_reader {
    static constexpr u32 room = 4;
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        leased* l = reinterpret_cast<leased*>(c.scratch());
        u32 len = 0, type = 0;
        if (c.pop(0, l, c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u64 mode = s[2];
        if (type != WM_TYPE_TENSOR || len < sizeof(leased)) {
            while (mode == 3 && s[5] > 0)
                give(c, s, 0);
            if (c.outputs() > 0)
                c.push(0, l, len, type);
            return;
        }
        if (!follow(c, s, *l))
            return;
        if (mode == 1)
            c.push(0, l, len, type);
        else if (mode == 3)
            keep(c, s, *l);
        else
            release(c, s, l->tensor);
        if (mode == 2)
            release(c, s, l->tensor);
    }

private:
    template <class C> WM_FN static leased* kept(u64* s) {
        return reinterpret_cast<leased*>(s + 8);
    }
    template <class C> WM_FN static bool follow(C& c, u64* s, const leased& l) {
        const bool live = c.lease_check(l.tensor) == WM_OK;
        u32 wrong = 0, poison = 0;
        if (live)
            wrong_words(c, l, wrong, poison);
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            s[live ? 0 : 3]++;
            s[1] += wrong != 0;
            s[6] += poison;
        }
        c.lanes.sync();
        return live;
    }
    template <class C> WM_FN static void release(C& c, u64* s, const wm_tensor& t) {
        const bool refused = c.lease_release(t) != WM_OK;
        if (c.lanes.rank() == 0)
            s[refused ? 4 : 7]++;
        c.lanes.sync();
    }
    template <class C> WM_FN static void keep(C& c, u64* s, const leased& l) {
        if (s[5] == room)
            give(c, s, static_cast<u32>(word_of(s[0], 7) % room));
        if (c.lanes.rank() == 0) {
            kept<C>(s)[s[5]] = l;
            s[5]++;
        }
        c.lanes.sync();
    }
    // Follows a kept tensor once more, and releases it.
    template <class C> WM_FN static void give(C& c, u64* s, u32 i) {
        leased* all = kept<C>(s);
        if (follow(c, s, all[i]))
            release(c, s, all[i].tensor);
        if (c.lanes.rank() == 0) {
            s[5]--;
            all[i] = all[s[5]];
        }
        c.lanes.sync();
    }
};

// Writes the words of a tensor's number into it, and hands it to its readers: one share to each output in turn. Other
// records go to every output.
//   state  0 tensors written   1 pushes refused   3 refused by the check
struct lease_writer {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        leased* l = reinterpret_cast<leased*>(c.scratch());
        leased* one = l + 2;
        u32 len = 0, type = 0, refused = 0;
        if (c.pop(0, l, 512, len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type != WM_TYPE_TENSOR || len < sizeof(leased)) {
            for (u32 o = 0; o < c.outputs(); o++)
                c.push(o, l, len, type);
            return;
        }
        const bool live = c.lease_check(l->tensor) == WM_OK;
        u64* data = warpmail::at<u64>(l->tensor.data + l->tensor.byte_offset);
        for (u32 i = c.lanes.rank(); live && i < l->tensor.shape[0]; i += c.lanes.width())
            data[i] = word_of(l->number, i);
        c.lanes.sync();
        for (u32 i = 0; live && i < l->tensor.shares; i++) {
            if (c.lanes.rank() == 0)
                *one = {warpmail::tensor_part(l->tensor, i), l->number};
            c.lanes.sync();
            refused += c.push(i % c.outputs(), one, sizeof(leased), WM_TYPE_TENSOR) != WM_OK;
            c.lanes.sync();
        }
        if (c.lanes.rank() == 0) {
            s[live ? 0 : 3]++;
            s[1] += refused;
        }
        c.lanes.sync();
    }
};

} // namespace kit

#endif
