// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Handlers that try the arbiter. Their states are arrays of 64-bit words, named below; src/lib.rs has the same numbers.
#ifndef WARPMAIL_KIT_HPP
#define WARPMAIL_KIT_HPP

#include "handlers/leases.hpp"
#include "protocol/builtin.hpp"

namespace kit {

constexpr u32 handler_ring = 0, handler_join = 1, handler_stuck = 2, handler_idle = 3, handler_strict = 4,
              handler_tensor_writer = 5, handler_tensor_reader = 6, handler_witness = 7, handler_durable = 8,
              handler_ledger = 9, handler_lease_reader = 10, handler_lease_writer = 11, handler_relay = 12,
              handler_early = 13;

// Length of record n: 16 bytes up to the whole payload, every length in turn.
WM_FN u32 length_of(u64 n, u32 payload) {
    return 16 + static_cast<u32>(n * 37 % (payload - 15));
}

// A circle of modules that pass records on. Record n is {n, hops left, filler bytes}; it must arrive in order, whole,
// with its length and type; the module whose `last` word is set takes a hop off, and drops the record when none is
// left.
//   state  0 next n expected   1 records that circulate   2 faults   3 records seen   4 is last   5 payload bytes
//          6 records that left
struct ring {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u32 len = 0, type = 0;
        // The last input brings the records in; they all wait there before the start.
        const u32 door = c.inputs() - 1;
        const u32 from = c.lanes.broadcast(static_cast<u32>(c.waiting(door) > 0), 0) ? door : 0;
        if (c.pop(from, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        u64* record = reinterpret_cast<u64*>(c.scratch());
        const u64 n = record[0], hops = record[1];
        u32 wrong = 0;
        for (u32 i = 16 + c.lanes.rank(); i < len; i += c.lanes.width())
            wrong += c.scratch()[i] != static_cast<warpmail::u8>(word_of(n, i / 8) >> (8 * (i % 8)));
        const u32 payload = static_cast<u32>(s[5]);
        wrong = c.lanes.sum(wrong) + (n != s[0]) + (len != length_of(n, payload)) + (type != (n & 0x7FFF));
        const bool leaves = s[4] != 0 && hops == 1;
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            s[0] = n + 1 == s[1] ? 0 : n + 1;
            s[2] += wrong != 0;
            s[3]++;
            s[6] += leaves;
            if (s[4])
                record[1] = hops - 1;
        }
        c.lanes.sync();
        if (!leaves)
            c.push(0, record, len, type);
    }
};

// Takes one record of each input (rule: all); they must carry the same number. state: 0 joined   1 faults
struct join {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u64* first = reinterpret_cast<u64*>(c.scratch());
        u64* other = first + 64;
        u32 len = 0, type = 0, wrong = c.pop(0, first, 512, len, type) != WM_OK;
        for (u32 i = 1; i < c.inputs(); i++) {
            wrong += c.pop(i, other, 512, len, type) != WM_OK;
            c.lanes.sync();
            wrong += *other != *first;
            c.lanes.sync();
        }
        if (c.lanes.rank() == 0) {
            s[0]++;
            s[1] += wrong != 0;
        }
        c.lanes.sync();
    }
};

// Takes a record and does not return for s[0] nanoseconds.
struct stuck {
    template <class C> WM_FN static void step(C& c) {
        const u64 ns = *c.template state<u64>(), begin = warpmail::now_ns();
        u32 len = 0, type = 0;
        c.pop(0, c.scratch(), c.scratch_bytes(), len, type);
        while (c.lanes.any(warpmail::now_ns() - begin < ns))
            warpmail::pause();
    }
};

// Takes only records of type 1 and length 8, and sends them on.
struct strict {
    template <class C> WM_FN static void step(C& c) {
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (type != 1)
            c.reject(WM_REJECT_TYPE);
        else if (len != 8)
            c.reject(WM_REJECT_LENGTH);
        else
            c.push(0, c.scratch(), len, type);
    }
};

// Fills the tensor that comes back to it with plain stores, and hands it on by pointer.
//   inputs 0 ticks   1 tensors given back      state: 0 number of the next tensor
struct tensor_writer {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u32 len = 0, type = 0;
        wm_tensor* t = reinterpret_cast<wm_tensor*>(c.scratch() + 256);
        c.pop(0, c.scratch(), 256, len, type);
        if (c.pop(1, t, sizeof(wm_tensor), len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u64 n = *s;
        u64* data = warpmail::at<u64>(t->data);
        for (u32 i = c.lanes.rank(); i < t->shape[0]; i += c.lanes.width())
            data[i] = word_of(n, i);
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            t->epoch = n;
            *s = n + 1;
        }
        c.lanes.sync();
        c.push(0, t, sizeof(wm_tensor), 2);
    }
};

// Follows the pointer with plain loads and gives the tensor back. state: 0 tensors seen   1 faults
struct tensor_reader {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        wm_tensor* t = reinterpret_cast<wm_tensor*>(c.scratch());
        u32 len = 0, type = 0, wrong = 0;
        if (c.pop(0, t, sizeof(wm_tensor), len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u64* data = warpmail::at<const u64>(t->data);
        for (u32 i = c.lanes.rank(); i < t->shape[0]; i += c.lanes.width())
            wrong += data[i] != word_of(t->epoch, i);
        wrong = c.lanes.sum(wrong) + (t->epoch != s[0]);
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            s[0]++;
            s[1] += wrong != 0;
        }
        c.lanes.sync();
        c.push(0, t, sizeof(wm_tensor), 2);
    }
};

// Takes a record, spends s[2] nanoseconds and notes its own number in a log that all witnesses share: {entries, number,
// number, ...}. For one server.   state: 0 address of the log   1 own number   2 nanoseconds
struct witness {
    template <class C> WM_FN static void step(C& c) {
        const u64* s = c.template state<u64>();
        const u64 begin = warpmail::now_ns();
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        while (c.lanes.any(warpmail::now_ns() - begin < s[2]))
            warpmail::pause();
        if (c.lanes.rank() == 0) {
            u64* log = warpmail::at<u64>(s[0]);
            log[++log[0]] = s[1];
        }
        c.lanes.sync();
    }
};

// Takes records from input 0; answers a question at input 1 with {records of input 0 taken, of those durable}.
//   state: 0 records taken
struct durable {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u32 len = 0, type = 0;
        const u32 asked = c.lanes.broadcast(static_cast<u32>(c.waiting(1) > 0), 0);
        const u32 given = c.lanes.broadcast(static_cast<u32>(c.waiting(0) > 0), 0);
        if (given && c.pop(0, c.scratch(), c.scratch_bytes(), len, type) == WM_OK && c.lanes.rank() == 0)
            (*s)++;
        c.lanes.sync();
        if (!asked || c.pop(1, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            reinterpret_cast<u64*>(c.scratch())[0] = *s;
            reinterpret_cast<u64*>(c.scratch())[1] = c.durable_inputs(0);
        }
        c.lanes.sync();
        c.push(0, c.scratch(), 16, 1);
    }
};

// Notes the first word of every record in a ledger, one behind the other, and sends the record on.
//   state: 0 address of the ledger   1 its entries   2 records taken
struct ledger {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            warpmail::store_relaxed_gpu(warpmail::at<u64>(s[0]) + s[2] % s[1], *reinterpret_cast<u64*>(c.scratch()));
            s[2]++;
        }
        c.lanes.sync();
        c.push(0, c.scratch(), len, type);
    }
};

// Gives each record to a ledger, lets the arbiter know, and works on until it stands in the ledger.
//   state: 0 address of the ledger   1 its entries   2 records taken   3 of those seen there   4 nanoseconds to look
struct early {
    template <class C> WM_FN static void step(C& c) {
        u64* s = c.template state<u64>();
        u32 len = 0, type = 0;
        if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK)
            return;
        c.lanes.sync();
        const u64 first = *reinterpret_cast<u64*>(c.scratch()), taken = s[2];
        const u64* entry = warpmail::at<u64>(s[0]) + taken % s[1];
        c.push(0, c.scratch(), len, type);
        c.tell();
        const u64 begin = warpmail::now_ns();
        bool seen = false;
        while (!seen && !c.lanes.any(warpmail::now_ns() - begin >= s[4])) {
            seen = c.lanes.all(warpmail::load_relaxed_gpu(entry) == first);
            warpmail::pause();
        }
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            s[2] = taken + 1;
            s[3] += seen;
        }
    }
};

struct handlers {
    template <class C> WM_FN static void step(C& c, u32 handler) {
        if (handler == handler_relay)
            return warpmail::builtin_handlers::step(c, warpmail::builtin_relay);
        if (c.state_bytes() < 64 && handler != handler_idle && handler != handler_strict)
            return;
        switch (handler) {
        case handler_ring:
            return ring::step(c);
        case handler_join:
            return join::step(c);
        case handler_stuck:
            return stuck::step(c);
        case handler_strict:
            return strict::step(c);
        case handler_tensor_writer:
            return tensor_writer::step(c);
        case handler_tensor_reader:
            return tensor_reader::step(c);
        case handler_witness:
            return witness::step(c);
        case handler_durable:
            return durable::step(c);
        case handler_early:
            return early::step(c);
        case handler_ledger:
            return ledger::step(c);
        case handler_lease_reader:
            return lease_reader::step(c);
        case handler_lease_writer:
            return lease_writer::step(c);
        default: // handler_idle takes nothing
            return;
        }
    }
};

} // namespace kit

#endif
