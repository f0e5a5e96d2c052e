// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The gates of stream modules as warps run them, lane by lane (protocol/lanes_host.hpp): modules that step ahead of
// their grants, and ones that wait for them; plain ends, longer slots, and two inputs under both rules; taps, whose
// rings are emptied meanwhile. Streams are threads; each takes what the one before left. Not under the sanitizer, which
// knows no fibers.
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "protocol/gate_begin.hpp"
#include "protocol/gate_end.hpp"

using namespace warpmail;

namespace {

// How long a step may be without progress before the test gives up. Nothing takes long, but the machine may.
constexpr u64 wait_ns = 40000000000ull;

void print_states(); // of the modules that are running
[[noreturn]] void fail(const char* what, u64 n = 0) {
    std::printf("failed: %s, %llu\n", what, static_cast<unsigned long long>(n));
    print_states();
    std::fflush(stdout);
    std::_Exit(2); // other threads still run, and read what an orderly exit would destroy
}

u64 address(const void* p) {
    return static_cast<u64>(reinterpret_cast<uintptr_t>(p));
}

struct box {
    std::vector<u64> memory;
    u64 words[2] = {};
    wm_mailbox handle{};
    box(u32 stride, u32 slots_log2) : memory((WM_HEADER_BYTES + (static_cast<u64>(stride) << slots_log2)) / 8 + 2) {
        auto* h = reinterpret_cast<wm_mailbox_header*>((address(memory.data()) + 15) & ~15ull);
        h->record_stride = handle.record_stride = stride;
        h->slots_log2 = handle.slots_log2 = slots_log2;
        handle.header = address(h);
        handle.written = address(&words[0]);
        handle.consumed = address(&words[1]);
        handle.producer_side = handle.consumer_side = WM_SIDE_DEVICE;
    }
};

constexpr u32 mailboxes = 4;

// A ring to the journal, and who empties it: each record once, in its mailbox's order, as it was sent.
struct journal {
    std::vector<u64> memory;
    wm_ring ring{};
    wm_tap_counts counts[mailboxes] = {};
    u64 seen[mailboxes] = {};
    journal(u32 slots_log2) : memory((WM_RING_HEADER_BYTES + (u64{4096 + 64} << slots_log2)) / 8 + 64) {
        ring = {(address(memory.data()) + 63) & ~63ull, 4096 + 64, slots_log2};
    }
    void check(const u8* slot, u64 (*content)(u64, u32)) {
        wm_journal_head head;
        std::memcpy(&head, slot, sizeof head);
        if (head.mailbox_id >= mailboxes)
            fail("journalled of no mailbox", head.mailbox_id);
        const u64 number = ++seen[head.mailbox_id];
        if (head.number != number || head.index + 1 != number || head.time_ns == 0)
            fail("journalled out of order", head.number);
        u64 n;
        std::memcpy(&n, slot + sizeof head, 8);
        for (u32 i = 8; i < head.len; i++) {
            if (slot[sizeof head + i] != static_cast<u8>(content(n, i)))
                fail("journalled content", n);
        }
        if (head.type < 5)
            fail("journalled type", head.type);
    }
    // Until there are so many; slowly now and then, so that steps find it full.
    void empty(u64 records, u64 (*content)(u64, u32)) {
        wm_ring_header* header = ring_header(ring);
        u64 late = now_ns() + wait_ns;
        for (u64 idx = 0; idx < records;) {
            const u64 wrote = load_acquire_sys(&header->write_idx);
            if (wrote != idx)
                late = now_ns() + wait_ns;
            if (wrote - idx > ring_slots(ring))
                fail("a slot was filled before it was given back", idx);
            for (; idx < wrote; idx++)
                check(ring_slot(ring, idx), content);
            if (idx % 16 < 2)
                std::this_thread::sleep_for(std::chrono::microseconds(300));
            store_release_sys(&header->read_idx, idx);
            if (now_ns() > late)
                fail("records did not reach the journal", idx);
            std::this_thread::yield();
        }
    }
};

// A stream module whose body gives what it took, of its first input that has a record, to every output.
struct stream_module {
    wm_gate_state state = {};
    wm_gate_report report = {};
    wm_control control = {};
    wm_module_stats stats = {};
    wm_bell bell = {};
    u64 grants = 0;
    std::vector<std::vector<u64>> buffers;
    wm_gate_args args = {};
    bool plain;

    stream_module(const std::vector<wm_mailbox>& from, const std::vector<wm_mailbox>& to, u32 rule, bool ahead)
        : plain(from.size() == 1 && to.size() == 1 && from[0].record_stride == WM_STRIDE_DEFAULT &&
                to[0].record_stride == WM_STRIDE_DEFAULT) {
        args.magic = WM_ABI_MAGIC;
        args.version = WM_ABI_VERSION;
        args.n_inputs = static_cast<u32>(from.size());
        args.n_outputs = static_cast<u32>(to.size());
        args.rule = rule;
        args.ahead = ahead;
        args.word = address(&grants);
        args.bell = address(&bell);
        args.control = address(&control);
        args.report = address(&report);
        args.state = address(&state);
        args.stats = address(&stats);
        args.spin_ns = 1000000;
        args.arrival_ns = wait_ns;
        grants = device_word(u64{ahead} << WM_GRANT_AHEAD_BIT);
        for (u32 row = 0; row < WM_MAX_ENDS; row++) {
            const u32 o = row - WM_MAX_INPUTS;
            const bool in = row < from.size(), out = row >= WM_MAX_INPUTS && o < to.size();
            buffers.emplace_back((in || out ? 4096 : 0) / 8 + 2);
            if (in || out) {
                args.ends[row] = in ? from[row] : to[o];
                args.buffers[row] = (address(buffers.back().data()) + 15) & ~15ull;
            }
        }
        for (u32 o = 0; o < WM_MAX_OUTPUTS; o++)
            args.lens[o] = WM_STEP_NOTHING;
    }
    void body() {
        for (u32 i = 0; i < args.n_inputs; i++) {
            const wm_step_head* head = at<wm_step_head>(args.buffers[i]);
            if (head->len == WM_STEP_NOTHING)
                continue;
            for (u32 o = 0; o < args.n_outputs; o++) {
                wm_step_head* to = at<wm_step_head>(args.buffers[WM_MAX_INPUTS + o]);
                std::memcpy(to, head, WM_STEP_HEAD_BYTES + head->len);
                to->len = head->len;
                to->type = head->type + 1 + 16 * o;
            }
            return;
        }
        fail("a live step without a record");
    }
    void tap(u32 row, journal& to) {
        args.ends[row].tap = WM_TAP_BLOCK;
        args.journal = to.ring;
        args.tap_counts = address(to.counts);
        args.journal_need++;
        plain = false;
    }
    // A grant is credit too.
    bool has_room() const {
        for (u32 o = 0; o < args.n_outputs; o++) {
            const wm_producer p = attach_producer(args.ends[WM_MAX_INPUTS + o]);
            if (p.write_idx - p.read_seen >= slot_count(p.mailbox))
                return false;
        }
        return true;
    }
    // Grants one step after the other, where nobody steps ahead.
    void run(u64 steps, u64 spread) {
        u64 late = now_ns() + wait_ns, before = state.taken;
        while (state.taken < steps && now_ns() < late) {
            if (state.taken != before) {
                before = state.taken;
                late = now_ns() + wait_ns;
            }
            if (args.ahead == 0 && state.launches % (spread + 1) == spread && has_room())
                store_relaxed_gpu(&grants, device_word(state.taken + 1));
            bool live = false;
            host::run_block(32, [&](u32) {
                live = plain ? gate_begin<true>(warp_lanes{}, args) : gate_begin<false>(warp_lanes{}, args);
            });
            if (live)
                body();
            host::run_block(
                32, [&](u32) { plain ? gate_end<true>(warp_lanes{}, args) : gate_end<false>(warp_lanes{}, args); });
        }
        if (state.taken != steps || stats.steps != steps)
            fail("steps", state.taken);
    }
    // Read while the module runs: what a stuck one waits for does not change.
    void print(const char* name) const {
        const auto n = [](u64 v) { return static_cast<unsigned long long>(v); };
        std::printf("%s: %llu launches, %llu steps taken, %llu counted, word of grants %llx\n", name, n(state.launches),
                    n(state.taken), n(stats.steps), n(load_relaxed_gpu(&grants)));
        for (u32 row = 0; row < WM_MAX_ENDS; row++) {
            const wm_mailbox& m = args.ends[row];
            if (m.header == 0)
                continue;
            const u64 next = row < WM_MAX_INPUTS ? state.read_idx[row] : state.write_idx[row - WM_MAX_INPUTS];
            std::printf("  end %u: at %llu; written %llu, read %llu; words of that slot with the tag:", row, n(next),
                        n(load_relaxed(write_idx_of(m), m.scope)), n(load_relaxed(read_idx_of(m), m.scope)));
            u32 fresh = 0;
            for (u32 i = 0; i < words_in(m.record_stride); i++)
                fresh += ((load_relaxed(slot_at(m, next) + i, m.scope) ^ lap_tag(next, m.slots_log2)) & tag_mask) == 0;
            std::printf(" %u of %u\n", fresh, words_in(m.record_stride));
        }
    }
};

const stream_module* running[2];
void print_states() {
    for (u32 i = 0; i < 2; i++) {
        if (running[i] != nullptr)
            running[i]->print(i == 0 ? "first" : "second");
    }
}

u32 length_of(u64 n, u32 most) {
    return 8 + static_cast<u32>(n * 2654435761u % (most - 7));
}

u64 content_of(u64 n, u32 i) {
    return n * 31 + i;
}

void produce(const wm_mailbox& m, u64 records) {
    wm_producer p = attach_producer(m);
    std::vector<u8> payload(payload_bytes(m));
    for (u64 n = 0; n < records; n++) {
        const u32 len = length_of(n, payload_bytes(m));
        for (u32 i = 0; i < len; i++)
            payload[i] = static_cast<u8>(content_of(n, i));
        std::memcpy(payload.data(), &n, 8);
        if (push(one_lane{}, p, payload.data(), len, 5, wait_ns) != WM_OK)
            fail("push", n);
    }
}

// Each record once, or, with `twice`, once by each of the two ways, whose records come in their own order.
void consume(const wm_mailbox& m, u64 records, bool twice) {
    wm_consumer c = attach_consumer(m);
    std::vector<u8> payload(payload_bytes(m));
    u64 next[2] = {};
    while (next[0] < records || (twice && next[1] < records)) {
        u32 len = 0, type = 0;
        if (pop(one_lane{}, c, payload.data(), payload_bytes(m), len, type, wait_ns) != WM_OK)
            fail("pop", next[0]);
        const u32 way = type / 16;
        if (way > twice || type % 16 != 7)
            fail("type", type);
        u64 number, n = next[way]++;
        std::memcpy(&number, payload.data(), 8);
        if (number != n || len != length_of(n, payload_bytes(m)))
            fail("a record came changed, lost or twice", n);
        for (u32 i = 8; i < len; i++) {
            if (payload[i] != static_cast<u8>(content_of(n, i)))
                fail("content", n);
        }
    }
}

// producer -> first -> second -> consumer; with two mailboxes between the two modules if `both`. `taps`: all of them
// are journalled, in rings of so many slots.
void in_a_row(u64 records, u32 stride, u32 slots_log2, bool both, u32 rule, bool ahead, u32 taps = 0) {
    box there(stride, slots_log2), a(stride, slots_log2), b(stride, slots_log2), back(stride, slots_log2);
    for (u32 m = 0; m < mailboxes; m++)
        std::array{&there, &a, &b, &back}[m]->handle.mailbox_id = m;
    const std::vector<wm_mailbox> one{a.handle}, two{a.handle, b.handle};
    stream_module first({there.handle}, both ? two : one, WM_RULE_ANY, ahead);
    stream_module second(both ? two : one, {back.handle}, rule, ahead);
    running[0] = &first;
    running[1] = &second;
    const bool twice = both && rule == WM_RULE_ANY;
    journal rings[] = {{taps}, {taps}};
    if (taps != 0) {
        first.tap(0, rings[0]);
        for (u32 o = 0; o < first.args.n_outputs; o++)
            first.tap(WM_MAX_INPUTS + o, rings[0]);
        second.tap(WM_MAX_INPUTS, rings[1]);
    }
    const u64 given = twice ? 2 * records : records, all[] = {(both ? 3 : 2) * records, given};
    std::thread drains[2];
    for (u32 r = 0; taps != 0 && r < 2; r++)
        drains[r] = std::thread([&, r] { rings[r].empty(all[r], content_of); });
    std::thread threads[] = {std::thread([&] { produce(there.handle, records); }),
                             std::thread([&] { first.run(records, 0); }), std::thread([&] { second.run(given, 1); })};
    consume(back.handle, records, twice);
    for (std::thread& thread : threads)
        thread.join();
    for (u32 r = 0; taps != 0 && r < 2; r++) {
        drains[r].join();
        for (u32 m = 0; m < mailboxes; m++) {
            if (rings[r].counts[m].taken != rings[r].seen[m] || rings[r].counts[m].dropped != 0)
                fail("counted", rings[r].counts[m].taken);
        }
    }
    running[0] = running[1] = nullptr;
}

} // namespace

int main() {
    for (bool ahead : {true, false}) {
        in_a_row(600, 256, 3, false, WM_RULE_ANY, ahead);
        in_a_row(300, 256, 0, false, WM_RULE_ANY, ahead);
        in_a_row(200, 1024, 1, false, WM_RULE_ALL, ahead);
        in_a_row(300, 256, 2, true, WM_RULE_ALL, ahead);
        in_a_row(300, 512, 1, true, WM_RULE_ANY, ahead);
        in_a_row(80, 256, 2, false, WM_RULE_ANY, ahead, 1);
        in_a_row(60, 256, 3, true, WM_RULE_ALL, ahead, 2);
        in_a_row(30, 4096, 1, true, WM_RULE_ANY, ahead, 3);
    }
    std::puts("the gates of warps carried every record");
    return 0;
}
