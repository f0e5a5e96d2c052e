// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A server whose batches of long records are carried in part by helpers on other blocks (protocol/carry.hpp): as warps
// run it, lane by lane, a thread of the host for each; and by threads under ThreadSanitizer, a thread a warp. Launches
// follow one another; helpers come late, after their launch has ended, or leave early; mailboxes have records of which
// some words have arrived; the ring is small and its reader slow. Every record is in the ring once, every byte, in the
// order of its mailbox, and none goes back in time. A helper that does not end is given up, and its server's ring
// closed.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "batches.hpp"

using namespace warpmail;

namespace {

#if defined(WARPMAIL_HOST_WARPS)
using lanes_type = warp_lanes;
template <class F> void run_warp(F f) {
    host::run_block(32, [&f](u32) { f(warp_lanes{}); });
}
#else
using lanes_type = one_lane;
template <class F> void run_warp(F f) {
    f(one_lane{});
}
#endif

constexpr u64 wait_ns = 60000000000ull;
constexpr u32 boxes = 4, strides[boxes] = {512, 1024, 1600, 4096};
constexpr u32 slots_log2 = 5, ring_log2 = 5, records = 1500;

[[noreturn]] void fail(const char* what) {
    std::printf("failed: %s\n", what);
    std::exit(2);
}

u64 next(u64& seed) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return seed >> 33;
}
u8 byte_of(u64 serial, u32 i) {
    return static_cast<u8>(serial * 31 + i * 7 + (i >> 8));
}
u64 address(const void* p) {
    return static_cast<u64>(reinterpret_cast<uintptr_t>(p));
}
void nap() {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
}
bool is_tensor(u64 serial) {
    return serial % 11 == 3;
}

struct scene {
    std::vector<u64> memory[boxes], ring_memory, working;
    std::vector<wm_carry_line> lines;
    wm_mailbox rows[boxes] = {};
    wm_ring ring;
    wm_arbiter_args args = {};
    arbiter a;
    u64 passed[boxes] = {}, helped = 0, taken_back = 0;

    explicit scene(u32 carriers) : lines(carriers + 1), a(args) {
        const u32 slot_bytes = (32 + payload_in(WM_STRIDE_MAX) + WM_RING_STEP - 1) / WM_RING_STEP * WM_RING_STEP;
        ring_memory.resize((WM_RING_HEADER_BYTES + (u64{slot_bytes} << ring_log2)) / 8 + 8);
        ring = {align16(address(ring_memory.data())), slot_bytes, ring_log2};
        for (u32 m = 0; m < boxes; m++) {
            memory[m].resize((WM_HEADER_BYTES + (strides[m] << slots_log2)) / 8 + 8);
            rows[m].header = align16(address(memory[m].data()));
            rows[m].mailbox_id = m;
            rows[m].record_stride = strides[m];
            rows[m].slots_log2 = slots_log2;
        }
        args.n_mailboxes = boxes;
        args.servers = 0; // the only ring is that of a role
        args.mailboxes = address(rows);
        args.journals = address(&ring);
        args.carry_lines = address(lines.data());
        args.carriers = carriers;
        args.journal_stage_bytes = 2048;
        args.residency_ns = wait_ns;
        u64 kept_bytes;
        working.resize(place(a, nullptr, kept_bytes) / 8 + 2);
        place(a, reinterpret_cast<u8*>(align16(address(working.data()))), kept_bytes);
        std::memcpy(const_cast<wm_mailbox*>(a.rows), rows, sizeof(rows));
        begin_anew();
    }
    // As begin.hpp does.
    void begin_anew() {
        a.journals[0] = attach_ring(ring);
        a.journals[0].batches = batches_carried(args, 0);
    }

    // Records of mailbox m, in order, the words of a slot in any.
    void produce(u32 m) {
        wm_producer p = attach_producer(rows[m]);
        const u32 most = payload_in(strides[m]), n = words_in(strides[m]);
        std::vector<u8> bytes(most);
        std::vector<u64> words(n);
        u64 seed = m;
        for (u64 serial = 0; serial < records; serial++) {
            const u32 len = next(seed) % 3 ? 8 + next(seed) % (most - 7) : most;
            for (u32 i = 0; i < len; i++)
                bytes[i] = byte_of(serial, i);
            // Others need the processors.
            for (const u64 since = now_ns(); free_slots(one_lane{}, p, 1) == 0; nap()) {
                if (now_ns() - since > wait_ns)
                    fail("room");
            }
            write_slot<order::self_contained>(one_lane{}, words.data(), any_form(rows[m]),
                                              lap_tag(p.write_idx, slots_log2), bytes.data(), len,
                                              is_tensor(serial) ? WM_TYPE_TENSOR : 1);
            const u32 begin = next(seed) % n;
            for (u32 i = 0; i < n; i++) {
                if (i % (n / 2) == 0 && next(seed) % 32 == 0)
                    nap();
                store_relaxed_sys(slot_at(rows[m], p.write_idx) + (begin + i) % n, words[(begin + i) % n]);
            }
            p.write_idx++;
            publish_written(p);
        }
    }

    // One launch's server: so many batches, in turns that all lanes choose alike. True: all have passed.
    bool serve(lanes_type lanes, u64 seed, u32 batches) {
        carry_serve(lanes, a, 0);
        bool all = true;
        for (u32 b = 0; b < batches; b++) {
            all = true;
            for (u32 m = 0; m < boxes; m++)
                all = all && passed[m] == records;
            lanes.sync(); // all have read it
            if (all)
                break;
            const u32 m = next(seed) % boxes, most = 1 + next(seed) % 20;
            const u64 left = records - passed[m];
            if (lanes.rank() == 0 && b % 8 != 0)
                store_relaxed_cta(&a.journals[0].alone, u64{0}); // else it would mostly go alone here
            lanes.sync();
            // As many as are there, or more.
            const u32 n = journal_batch(lanes, a, 0, m, left < most ? static_cast<u32>(left) : most);
            if (n > most)
                fail("more records than were asked for");
            if (lanes.rank() == 0) {
                publish_ring(a, 0, load_relaxed_cta(&a.journals[0].write_idx));
                store_relaxed_cta(&a.followed[m], passed[m] + n);
                store_relaxed_sys(read_idx_of(rows[m]), passed[m] + n);
                passed[m] += n;
                for (u32 h = 0; h < args.carriers; h++) {
                    const u32 stage = carry_stage(load_relaxed_gpu(&lines[h].state));
                    if (stage != WM_CARRY_DONE && stage != WM_CARRY_NONE)
                        fail("a part that is not settled");
                    helped += stage == WM_CARRY_DONE;
                    taken_back += stage == WM_CARRY_NONE;
                }
            }
            lanes.sync();
            if (n == 0)
                nap();
        }
        return all;
    }

    // One launch's helper, which may be late.
    void help(u32 helper, u32 late_us, bool early) {
        if (late_us != 0)
            std::this_thread::sleep_for(std::chrono::microseconds(late_us));
        run_warp([&](lanes_type lanes) {
            carrier c = carry_begin(lanes, args, 0, helper);
            for (u32 turns = 0; !(early && turns == 50) && carry_turn(lanes, args, c); turns++) {
            }
        });
    }

    void drain() {
        wm_ring_header* const h = ring_header(ring);
        u64 numbers[boxes] = {}, last_ns[boxes] = {}, seed = 5, announced = 0;
        const u64 since = now_ns();
        for (u64 idx = 0; idx != boxes * u64{records};) {
            const u64 wrote = load_acquire_sys(&h->write_idx);
            for (; idx != wrote; idx++) {
                const auto* head = reinterpret_cast<const wm_journal_head*>(ring_slot(ring, idx));
                const u8* bytes = reinterpret_cast<const u8*>(head + 1);
                const u32 m = head->mailbox_id;
                if (m >= boxes || head->len < 8 || head->len > payload_in(strides[m]))
                    fail("a head");
                const u64 serial = numbers[m]++;
                if (head->number != serial + 1 || head->index != serial ||
                    head->type != (is_tensor(serial) ? WM_TYPE_TENSOR : 1))
                    fail("a record's place");
                if (head->time_ns < last_ns[m])
                    fail("a record that went back in time");
                last_ns[m] = head->time_ns;
                for (u32 i = 0; i < head->len; i++) {
                    if (bytes[i] != byte_of(serial, i))
                        fail("a byte");
                }
                announced = is_tensor(serial) ? idx + 1 : announced;
                if (load_relaxed_sys(&h->announced) < announced)
                    fail("a tensor that was not announced");
                if (next(seed) % 64 == 0)
                    nap();
                store_release_sys(&h->read_idx, idx + 1);
            }
            if (now_ns() - since > wait_ns)
                fail("the drain");
            nap();
        }
        if (h->announced != announced)
            fail("tensors announced");
    }
};

void run(u32 carriers) {
    scene s(carriers);
    std::vector<std::thread> others;
    for (u32 m = 0; m < boxes; m++)
        others.emplace_back([&s, m] { s.produce(m); });
    others.emplace_back([&s] { s.drain(); });
    u64 seed = carriers;
    u32 launches = 0;
    for (bool all = false; !all; launches++) {
        std::vector<std::thread> helpers;
        for (u32 h = 0; h < carriers; h++) {
            const u32 late_us = next(seed) % 3 ? 0 : next(seed) % 3000;
            helpers.emplace_back([&s, h, late_us, early = next(seed) % 4 == 0] { s.help(h, late_us, early); });
        }
        const u64 turns = next(seed);
        const u32 batches = 1 + next(seed) % 80;
        run_warp([&](lanes_type lanes) {
            const bool done = s.serve(lanes, turns, batches);
            if (lanes.rank() == 0)
                all = done;
            carry_end(lanes, s.args);
        });
        for (auto& t : helpers)
            t.join();
        for (u32 h = 0; h < carriers; h++) {
            if (s.lines[h].begun != launches + 1u || s.lines[h].ended != launches + 1u)
                fail("a count of launches");
        }
        if (next(seed) % 3 == 0)
            s.begin_anew();
    }
    for (auto& t : others)
        t.join();
    for (u32 m = 0; m < boxes; m++) {
        if (s.a.tapped[m].taken != records || s.a.tapped[m].dropped != 0)
            fail("a mailbox's counter");
    }
    std::printf("%u helpers, %u launches: parts carried %llu, taken back %llu\n", carriers, launches,
                static_cast<unsigned long long>(s.helped), static_cast<unsigned long long>(s.taken_back));
}

// A helper that claims its part and does not end in time.
void run_lost() {
    scene s(1);
    constexpr u32 m = boxes - 1, most = 8;
    wm_producer p = attach_producer(s.rows[m]);
    const std::vector<u8> bytes(3000, 7);
    for (u32 i = 0; i < 2 * most; i++) {
        if (push(one_lane{}, p, bytes.data(), 3000, 1, wait_ns) != WM_OK)
            fail("push");
    }
    const passing_records r{s.a, 0, m};
    u64* const state = &s.lines[0].state;
    run_warp([&](lanes_type lanes) { carry_post(lanes, r, most); });
    const u64 posted = load_relaxed_gpu(state);
    if (carry_stage(posted) != WM_CARRY_POSTED || carry_count(posted) != most / 2)
        fail("a part to be claimed");
    store_relaxed_gpu(state, posted - WM_CARRY_POSTED + WM_CARRY_CLAIMED);
    u32 got[3] = {};
    run_warp([&](lanes_type lanes) {
        const u32 n = pass_ready(lanes, r, most / 2), joined = carry_join(lanes, r, 0, true);
        carry_lost(lanes, r, n);
        const u32 then = journal_batch(lanes, s.a, 0, m, most);
        if (lanes.rank() == 0) {
            got[0] = joined;
            got[1] = then;
        }
    });
    if (got[0] != lost || got[1] != 0)
        fail("a ring that is not closed");
    // The launch ends with the helper, and the next one begins.
    store_relaxed_gpu(state, posted - WM_CARRY_POSTED + WM_CARRY_DONE);
    run_warp([&](lanes_type lanes) {
        carry_serve(lanes, s.a, 0);
        const u32 then = journal_batch(lanes, s.a, 0, m, most);
        if (lanes.rank() == 0)
            got[2] = then;
    });
    if (got[2] != most / 2) // nobody helps
        fail("a ring that stays closed");
    std::puts("a helper that does not end is given up");
}

} // namespace

int main() {
    for (u32 carriers = 0; carriers <= WM_MAX_CARRIERS; carriers++)
        run(carriers);
    run_lost();
    return 0;
}
