// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Deliveries as the blocks of a grid make them, lane by lane (protocol/lanes_host.hpp) and one block after the other,
// in any order: the copy against one that is too simple to be wrong, who releases, and what is refused. Not under the
// sanitizer, which knows no fibers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "protocol/deliver.hpp"

using namespace warpmail;

namespace {

[[noreturn]] void fail(const char* what, u64 n = 0) {
    std::printf("failed: %s, %llu\n", what, static_cast<unsigned long long>(n));
    std::exit(2);
}

u64 address(const void* p) {
    return static_cast<u64>(reinterpret_cast<uintptr_t>(p));
}

u64 random_below(u64 n) {
    static u64 x = 88172645463325252ull; // xorshift64, Marsaglia
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (x >> 11) % n;
}

// A gate's state behind a record, and a table of one lease on `memory`.
struct step {
    static constexpr u32 room = 1 << 16;
    alignas(16) u8 memory[room];
    alignas(16) u8 target[room];
    alignas(16) u8 buffer[WM_STEP_HEAD_BYTES + 256] = {};
    wm_gate_state state = {};
    wm_gate_report report = {};
    wm_module_stats stats = {};
    wm_lease_row row = {};
    wm_lease_mail mail = {};
    u64 mark = 0;
    wm_gate_args args = {};
    wm_delivery delivery = {};

    step() {
        args.state = address(&state);
        args.report = address(&report);
        args.stats = address(&stats);
        args.buffers[0] = address(buffer);
        delivery.leases = {address(&row), address(&mark), address(&mail), 1, 0};
    }
    wm_tensor& tensor() {
        return *reinterpret_cast<wm_tensor*>(buffer + WM_STEP_HEAD_BYTES);
    }
    // A record that points to a new lease on `bytes` bytes of the memory.
    void open(u64 bytes) {
        if (row.state != 0)
            lease_close(delivery.leases, 0);
        wm_tensor& t = tensor();
        t.data = address(memory);
        t.lease = 1;
        t.shares = 1;
        t.epoch = lease_open(delivery.leases, 0, address(memory), bytes);
        *reinterpret_cast<wm_step_head*>(buffer) = {sizeof(wm_tensor), WM_TYPE_TENSOR, 0};
        state.took = state.live = 1;
    }
    // By `parts` blocks, those from `first` on first.
    void deliver(u32 threads, u32 parts, u32 first) {
        for (u32 i = 0; i < parts; i++) {
            if (i + 1 < parts && lease_released(delivery.leases, 0) != 0)
                fail("released before the last part had read", i);
            const u32 part = (first + i) % parts;
            host::run_block(threads, [&](u32) { gate_deliver(block_lanes{}, part, parts, args, delivery); });
        }
        if (state.delivered != 0)
            fail("the count of parts is left", state.delivered);
    }
};

// Element n of the tensor in row-major order, by the definition of strides.
u64 offset_of(const wm_tensor& t, u64 n) {
    u64 at = 0;
    for (u32 d = t.ndim; d-- > 0;) {
        at += n % static_cast<u64>(t.shape[d]) * static_cast<u64>(t.strides[d]);
        n /= static_cast<u64>(t.shape[d]);
    }
    return at;
}

void copies() {
    static step s;
    std::vector<u8> wanted(step::room);
    for (u32 n = 0; n < 400; n++) {
        wm_tensor& t = s.tensor();
        t = {};
        const u32 bits[] = {8, 16, 32, 64, 24, 128};
        t.dtype_code = 1;
        t.dtype_bits = static_cast<u8>(bits[random_below(6)]);
        t.dtype_lanes = static_cast<uint16_t>(1 + random_below(3));
        t.ndim = static_cast<u8>(random_below(WM_MAX_DIMS + 1));
        const u64 element = u64{t.dtype_bits} / 8 * t.dtype_lanes;
        u64 elements = 1, next = 1, reach = 1;
        for (u32 d = t.ndim; d-- > 0;) { // from the innermost on; now and then with a gap, or one element repeated
            t.shape[d] = 1 + static_cast<int64_t>(random_below(t.ndim < 4 ? 9 : 3));
            t.strides[d] = static_cast<int64_t>(random_below(10) == 0 ? 0 : next);
            const u64 size = static_cast<u64>(t.shape[d]);
            reach += (size - 1) * static_cast<u64>(t.strides[d]);
            next = next * size + (random_below(4) == 0 ? random_below(3) : 0);
            elements *= size;
        }
        t.byte_offset = random_below(64);
        if (t.byte_offset + reach * element > step::room)
            continue;
        const u64 shift = random_below(20), bytes = elements * element;
        for (u8& b : s.memory)
            b = static_cast<u8>(random_below(256));
        std::memset(s.target, 0xEE, step::room);
        std::memset(wanted.data(), 0xEE, step::room);
        for (u64 e = 0; e < elements; e++)
            std::memcpy(&wanted[shift + e * element], s.memory + t.byte_offset + offset_of(t, e) * element, element);
        s.open(t.byte_offset + reach * element);
        s.delivery.to = address(s.target) + shift;
        s.delivery.bytes = bytes;
        const u32 parts = 1 + static_cast<u32>(random_below(5));
        s.deliver(32 * (1 + static_cast<u32>(random_below(4))), parts, static_cast<u32>(random_below(parts)));
        if (std::memcmp(s.target, wanted.data(), step::room) != 0)
            fail("other bytes", n);
        if (s.state.live == 0 || lease_released(s.delivery.leases, 0) != 1)
            fail("it is not live, or not released", n);
    }
}

void refusals() {
    static step s;
    u64 counted[WM_REJECT_REASONS] = {};
    auto refused = [&](u32 reason, bool released, auto spoil) {
        wm_tensor& t = s.tensor();
        t = {};
        t.dtype_bits = 32;
        t.dtype_lanes = 1;
        t.ndim = 2;
        t.shape[0] = t.shape[1] = 8;
        t.strides[0] = 8;
        t.strides[1] = 1;
        s.delivery.to = address(s.target);
        s.delivery.bytes = 256;
        s.open(256);
        spoil(t);
        std::memset(s.target, 0xEE, step::room);
        s.deliver(64, 3, 1);
        for (u8 b : s.target) {
            if (b != 0xEE)
                fail("what was refused was copied", reason);
        }
        counted[reason]++;
        if (s.state.live != 0 || std::memcmp(counted, s.stats.rejects, sizeof counted) != 0)
            fail("it is live, or not counted once", reason);
        if ((lease_released(s.delivery.leases, 0) == 1) != released)
            fail("released or not", reason);
    };
    auto* head = reinterpret_cast<wm_step_head*>(s.buffer);
    refused(WM_REJECT_TYPE, false, [&](wm_tensor&) { head->type = 5; });
    refused(WM_REJECT_CONTENT, false, [&](wm_tensor&) { head->len = sizeof(wm_tensor) - 1; });
    refused(WM_REJECT_LEASE, false, [&](wm_tensor& t) { t.epoch += 2; });
    refused(WM_REJECT_CONTENT, false, [&](wm_tensor& t) { t.lease = 2; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor&) { s.delivery.bytes = 255; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.strides[0] = 9; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.byte_offset = 1; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.ndim = WM_MAX_DIMS + 1; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.shape[0] = 0; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.strides[0] = INT64_MAX; });
    refused(WM_REJECT_CONTENT, true, [&](wm_tensor& t) { t.dtype_bits = 4; });
    // A host that ends the lease while it is copied: the last part finds what the others did not.
    s.open(256);
    s.delivery.bytes = 256;
    wm_tensor& t = s.tensor();
    t.shape[0] = t.strides[0] = 8;
    t.dtype_bits = 32;
    for (u32 part = 0; part < 2; part++) {
        host::run_block(32, [&](u32) { gate_deliver(block_lanes{}, part, 2, s.args, s.delivery); });
        if (part == 0)
            lease_give_back(s.delivery.leases, 0, t.epoch, 1);
    }
    counted[WM_REJECT_LEASE]++;
    if (s.state.live != 0 || std::memcmp(counted, s.stats.rejects, sizeof counted) != 0)
        fail("a lease that ended under the copy");
    // What is poison to the first part and not to the last: none of it counts as delivered.
    s.open(256);
    s.delivery.leases.flags = WM_LEASES_POISON;
    std::memset(s.memory, WM_POISON_BYTE, 8);
    for (u32 part = 0; part < 2; part++) {
        host::run_block(32, [&](u32) { gate_deliver(block_lanes{}, part, 2, s.args, s.delivery); });
        s.memory[0] = 0;
    }
    s.delivery.leases.flags = 0;
    counted[WM_REJECT_LEASE]++;
    if (s.state.live != 0 || std::memcmp(counted, s.stats.rejects, sizeof counted) != 0 ||
        lease_released(s.delivery.leases, 0) != 1)
        fail("poison that one part saw");
    // A launch without records, and one whose record is another input's: nothing at all.
    for (u32 i = 0; i < 2; i++) {
        s.open(256);
        s.state.took = i;
        head->len = i ? WM_STEP_NOTHING : sizeof(wm_tensor);
        s.deliver(32, 2, 0);
        if (lease_released(s.delivery.leases, 0) != 0 || std::memcmp(counted, s.stats.rejects, sizeof counted) != 0)
            fail("a delivery without a record", i);
    }
}

} // namespace

int main() {
    copies();
    refusals();
    std::puts("deliveries by blocks brought every tensor, and refused what they should");
    return 0;
}
