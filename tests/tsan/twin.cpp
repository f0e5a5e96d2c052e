// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The twin under ThreadSanitizer: (1) a record hands over plain memory by pointer, through the ring alone; (2) the same
// through the whole arbiter, with two servers, short launches and plain module state; (3) the same through an arbiter
// that parks all the time and is woken by nobody but its ends, on the host's side and on the device's; (4) leases:
// memory that is written again when all its readers have released it; (5) the gates of two stream modules in a row that
// step ahead of their grants, with nothing but the mailbox between them; (6) all that passes an arbiter, whichever,
// goes to journal rings of plain memory, a few slots each, that another thread reads. Any missing order is a reported
// race, a lost wake-up is a record that does not arrive.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "protocol/builtin.hpp"
#include "protocol/gate_begin.hpp"
#include "protocol/gate_end.hpp"
#include "protocol/lease.hpp"
#include "twin/twin_arbiter.hpp"

using namespace warpmail;

namespace {

constexpr u64 wait_ns = 20000000000ull;

struct box {
    std::vector<u64> memory;
    wm_mailbox handle{};
    box(u32 id, u32 slots_log2, u32 producer_side, u32 consumer_side, u64* words)
        : memory(WM_HEADER_BYTES / 8 + (32u << slots_log2)) {
        auto* h = reinterpret_cast<wm_mailbox_header*>(memory.data());
        h->magic = WM_ABI_MAGIC;
        h->version = WM_ABI_VERSION;
        h->record_stride = 256;
        h->slots_log2 = slots_log2;
        h->capacity_bytes = 256ull << slots_log2;
        h->mailbox_id = id;
        handle.header = reinterpret_cast<uintptr_t>(h);
        handle.mailbox_id = id;
        handle.record_stride = 256;
        handle.slots_log2 = slots_log2;
        handle.producer_side = static_cast<uint16_t>(producer_side);
        handle.consumer_side = static_cast<uint16_t>(consumer_side);
        handle.written = words && producer_side != WM_SIDE_RESIDENT ? reinterpret_cast<uintptr_t>(words) : 0;
        handle.consumed = words && consumer_side != WM_SIDE_RESIDENT ? reinterpret_cast<uintptr_t>(words + 3) : 0;
    }
};

struct item {
    u64 content[8];
};

[[noreturn]] void fail(const char* what) {
    std::printf("failed: %s\n", what);
    std::exit(2);
}

// Waits up to `most` turns between records, differently each time.
void produce(wm_producer p, u64 records, std::vector<item>& items, u64 most = 0) {
    u64 seed = 1;
    for (u64 n = 0; n < records; n++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        for (u64 i = 0; most && i < (seed >> 33) % most; i++)
            pause();
        item* it = &items[n];
        for (u64 i = 0; i < 8; i++)
            it->content[i] = n * 8 + i; // plain stores
        if (push(one_lane{}, p, &it, sizeof(it), 1, wait_ns) != WM_OK)
            fail("push");
    }
}

void consume(wm_consumer c, u64 records) {
    for (u64 n = 0; n < records; n++) {
        item* it = nullptr;
        u32 len = 0, type = 0;
        if (pop(one_lane{}, c, &it, sizeof(it), len, type, wait_ns) != WM_OK || len != sizeof(it))
            fail("pop");
        for (u64 i = 0; i < 8; i++) {
            if (it->content[i] != n * 8 + i) // plain loads
                fail("content");
        }
    }
}

void ring_alone(u64 records) {
    box b(0, 4, WM_SIDE_HOST, WM_SIDE_HOST, nullptr);
    std::vector<item> items(records);
    std::thread producer([&] { produce(attach_producer(b.handle), records, items); });
    consume(attach_consumer(b.handle), records);
    producer.join();
}

// Counts in plain memory, so that its passing from server to server is judged too.
struct counting_relay {
    template <class C> static void step(C& c, u32 handler) {
        ++*c.template state<u64>();
        builtin_handlers::step(c, handler);
    }
};

// One launch after the other until the stop doorbell rings: the launcher of the model, whose steps these are.
void launch_all(wm_arbiter_args args, wm_control& control, const wm_telemetry& telemetry, wm_doorbell* doors) {
    u64 next = 0;
    for (u64 n = 0; load_acquire_sys(&control.stop.rung) == 0; n++) {
        args.resume = n > 0;
        for (; args.idle_spin_ns && next < n + 2; next++) {
            store_release_sys(&doors[next % WM_DOORS].rung, 0); // C1
            store_release_sys(&control.credits, next + 1);      // C2
            fence_sc_sys();                                     // C3
            if (next == 0 || load_relaxed_sys(&telemetry.wanted) > next)
                store_release_sys(&doors[next % WM_DOORS].rung, 1); // C4
            store_release_sys(&control.enqueued, next + 1);         // Q1
        }
        while (args.idle_spin_ns && load_acquire_sys(&doors[n % WM_DOORS].rung) == 0 &&
               load_acquire_sys(&telemetry.due) != n + 1 && // D2
               load_acquire_sys(&control.stop.rung) == 0)
            std::this_thread::yield();
        if (twin_arbiter<counting_relay>(&args) != WM_OK)
            fail("launch");
    }
}

// A handle for an end that tells an arbiter on the CPU of its index, and the arbiter's own row of the same mailbox.
wm_mailbox far_end(const box& b, u64* word, wm_mailbox& row) {
    wm_mailbox end = b.handle;
    end.written = row.written = reinterpret_cast<uintptr_t>(word);
    end.consumed = row.consumed = reinterpret_cast<uintptr_t>(word + 3);
    end.producer_side = end.consumer_side = WM_SIDE_HOST;
    return end;
}

// Journal rings, one a server, and the thread that empties them.
struct tapped_rings {
    static constexpr u32 slots_log2 = 2, slot_bytes = 320, boxes = 3;
    u64 ring_bytes = WM_RING_HEADER_BYTES + (slot_bytes << slots_log2);
    std::vector<u64> memory;
    std::vector<wm_ring> rings;
    wm_tap_counts counts[boxes] = {};
    u64 taken[boxes] = {};

    explicit tapped_rings(u32 n) : memory(n * ring_bytes / 8) {
        for (u32 s = 0; s < n; s++)
            rings.push_back({reinterpret_cast<uintptr_t>(memory.data()) + s * ring_bytes, slot_bytes, slots_log2});
    }
    // Until all `records` of each mailbox have come: in any order over the rings, with what they point to.
    void drain(u64 records) {
        const u64 since = now_ns();
        for (u64 left = boxes * records; left != 0;) {
            for (const wm_ring& ring : rings) {
                wm_ring_header* const h = ring_header(ring);
                const u64 wrote = load_acquire_sys(&h->write_idx);
                for (u64 idx = h->read_idx; idx != wrote; idx++, left--) {
                    const auto* head = reinterpret_cast<const wm_journal_head*>(ring_slot(ring, idx)); // plain loads
                    const item* it = *reinterpret_cast<const item* const*>(head + 1);
                    if (head->mailbox_id >= boxes || head->len != sizeof(it) || it->content[7] != head->index * 8 + 7 ||
                        head->number != head->index + 1)
                        fail("a journalled record");
                    taken[head->mailbox_id]++;
                    store_release_sys(&h->read_idx, idx + 1);
                }
            }
            if (now_ns() - since > wait_ns)
                fail("the journal");
            std::this_thread::yield();
        }
        for (u64 n : taken) {
            if (n != records)
                fail("records of a mailbox in the journal");
        }
    }
};

// Through two relays, with the outer ends on `side`; arbitrated by the twin of the persistent kernel, or, with
// `on_cpu`, by the arbiter on the CPU, which has threads run its grants.
u64 whole_arbiter(u64 records, u32 side, u32 servers, u64 idle_spin_ns, bool on_cpu = false, bool tapped = false) {
    tapped_rings journal((servers ? servers : 1) + !on_cpu); // the last one is the role's
    u64 words[8] = {}, state[2] = {};
    wm_doorbell doors[WM_DOORS] = {};
    wm_bell bells[2] = {};
    bells[0].doors = bells[1].doors = reinterpret_cast<uintptr_t>(doors);
    // Readiness words: `written` of the three mailboxes, then `consumed`.
    box boxes[3] = {{0, 3, side, WM_SIDE_RESIDENT, words},
                    {1, 3, WM_SIDE_RESIDENT, WM_SIDE_RESIDENT, words + 1},
                    {2, 3, WM_SIDE_RESIDENT, side, words + 2}};
    for (box& b : boxes)
        b.handle.tap = tapped ? WM_TAP_BLOCK : WM_TAP_NONE;
    for (box& b : boxes)
        b.handle.bell = idle_spin_ns ? reinterpret_cast<uintptr_t>(&bells[side == WM_SIDE_HOST]) : 0;
    wm_mailbox table[3] = {boxes[0].handle, boxes[1].handle, boxes[2].handle};
    wm_module modules[2] = {};
    for (u32 i = 0; i < 2; i++) {
        table[i].consumer_id = table[i + 1].producer_id = i;
        at<wm_mailbox_header>(table[i].header)->consumer_id = at<wm_mailbox_header>(table[i + 1].header)->producer_id =
            i;
        modules[i].module_id = i;
        modules[i].n_inputs = modules[i].n_outputs = modules[i].batch = modules[i].out_records = 1;
        modules[i].inputs[0] = i;
        modules[i].outputs[0] = i + 1;
        modules[i].state = reinterpret_cast<uintptr_t>(&state[i]);
        modules[i].state_bytes = sizeof(u64);
    }
    wm_mailbox ends[3] = {};
    for (u32 i = 0; on_cpu && i < 3; i++) {
        ends[i] = far_end(boxes[i], words + i, table[i]);
        ends[i].producer_id = table[i].producer_id;
        ends[i].consumer_id = table[i].consumer_id;
    }
    wm_control control = {};
    wm_telemetry telemetry = {};
    wm_module_stats stats[2] = {}, stats_out[2] = {};
    wm_mailbox_stats mailbox_stats[3] = {};
    const auto address = [](void* p) { return static_cast<u64>(reinterpret_cast<uintptr_t>(p)); };
    wm_arbiter_args args = {};
    args.magic = WM_ABI_MAGIC;
    args.version = WM_ABI_VERSION;
    args.n_mailboxes = 3;
    args.n_modules = 2;
    args.mailboxes = address(table);
    args.modules = address(modules);
    args.module_stats = address(stats);
    args.control = address(&control);
    args.telemetry = address(&telemetry);
    args.mailbox_stats_out = address(mailbox_stats);
    args.module_stats_out = address(stats_out);
    args.device_words = args.host_words = address(words);
    (side == WM_SIDE_HOST || on_cpu ? args.n_host_words : args.n_device_words) = 6;
    wm_mailbox given[3] = {ends[0], ends[1], ends[2]}; // while a grant is out nobody rings
    for (wm_mailbox& m : given)
        m.bell = 0;
    const u64 rings = tapped ? address(journal.rings.data()) : 0;
    wm_step_plan plan = {address(given), rings, address(stats), address(stats_out), address(journal.counts), 0, 0};
    args.journals = rings;
    args.tap_counts = address(journal.counts);
    args.journal_roles = tapped && !on_cpu;
    args.journal_need = tapped && on_cpu ? 2 : 0;
    args.journal_stage_bytes = 256;
    args.plan = on_cpu ? address(&plan) : 0;
    args.residency_ns = 2000000;
    args.device_bell = address(&bells[0]);
    args.host_bell = address(&bells[1]);
    args.doors = address(doors);
    args.idle_spin_ns = idle_spin_ns;
    args.sm_share_ppm = 1000000;
    args.servers = servers;
    args.linger = side == WM_SIDE_DEVICE; // its ends are the ones that servers wait for at the slot
    args.scratch_bytes = 2048;
    u64 kept_bytes;
    arbiter measured(args);
    place(measured, nullptr, kept_bytes);
    std::vector<u64> image(kept_bytes / 8 + 2);
    args.image = align16(address(image.data()));
    args.image_bytes = static_cast<u32>(kept_bytes);
    std::vector<item> items(records);
    std::thread arbiter_thread([&] { launch_all(args, control, telemetry, doors); });
    const wm_mailbox outer[2] = {on_cpu ? ends[0] : table[0], on_cpu ? ends[2] : table[2]};
    std::thread producer([&] { produce(attach_producer(outer[0]), records, items, idle_spin_ns); });
    std::thread drain([&] {
        if (tapped)
            journal.drain(records);
    });
    consume(attach_consumer(outer[1]), records);
    producer.join();
    drain.join();
    // Nothing is left to do: one that may park does.
    for (const u64 late = now_ns() + wait_ns; idle_spin_ns && load_relaxed_sys(&telemetry.parks) == 0;) {
        if (now_ns() > late)
            fail("it never parked");
        std::this_thread::yield();
    }
    store_release_sys(&control.stop.rung, 1);
    arbiter_thread.join();
    if (state[0] != records || state[1] != records)
        fail("steps");
    std::printf("%llu launches, %llu of them parked\n", static_cast<unsigned long long>(telemetry.launches),
                static_cast<unsigned long long>(telemetry.parks));
    return telemetry.parks; // how often it parked
}

// Some blocks of plain memory go round between an owner and readers, each with a share of every lease.
constexpr u32 lease_readers = 3, lease_rows = 4;

struct lent {
    wm_tensor tensor;
    u64 number;
};

void read_leased(wm_consumer c, const wm_leases& leases, u64 records) {
    for (u64 n = 0; n < records; n++) {
        lent l;
        u32 len = 0, type = 0;
        if (pop(one_lane{}, c, &l, sizeof(l), len, type, wait_ns) != WM_OK || len != sizeof(l))
            fail("pop of a lease");
        if (lease_check(one_lane{}, leases, l.tensor) != WM_OK)
            fail("a live lease");
        for (u64 i = 0; i < 8; i++) {
            if (at<const item>(l.tensor.data)->content[i] != l.number * 8 + i) // plain loads
                fail("leased content");
        }
        if (lease_release(one_lane{}, leases, l.tensor) != WM_OK)
            fail("release");
        if (lease_release(one_lane{}, leases, l.tensor) != WM_STALE_LEASE)
            fail("a second release");
    }
}

void leases_go_round(u64 records) {
    wm_lease_row rows[lease_rows] = {};
    wm_lease_mail mail[lease_rows] = {};
    u64 marks[lease_rows] = {}, open = 0;
    item items[lease_rows];
    const auto address = [](void* p) { return static_cast<u64>(reinterpret_cast<uintptr_t>(p)); };
    const wm_leases leases = {address(rows), address(marks), address(mail), lease_rows, 0};
    box boxes[lease_readers] = {{0, 1, WM_SIDE_HOST, WM_SIDE_HOST, nullptr},
                                {1, 1, WM_SIDE_HOST, WM_SIDE_HOST, nullptr},
                                {2, 1, WM_SIDE_HOST, WM_SIDE_HOST, nullptr}};
    std::vector<std::thread> readers;
    std::vector<wm_producer> ends;
    for (box& b : boxes) {
        ends.push_back(attach_producer(b.handle));
        readers.emplace_back([&] { read_leased(attach_consumer(b.handle), leases, records); });
    }
    constexpr u64 all = (1u << lease_readers) - 1;
    for (u64 n = 0; n < records; n++) {
        const u32 row = static_cast<u32>(n % lease_rows);
        if (open & (1u << row)) {
            if (!wait_until(one_lane{}, wait_ns, [&] { return lease_released(leases, row) == all; }))
                fail("a lease that does not end");
            lease_close(leases, row);
        }
        for (u64 i = 0; i < 8; i++)
            items[row].content[i] = n * 8 + i; // plain stores
        lent l = {};
        l.number = n;
        l.tensor.data = address(&items[row]);
        l.tensor.lease = row + 1;
        l.tensor.epoch = lease_open(leases, row, l.tensor.data, sizeof(item));
        l.tensor.shares = lease_readers;
        open |= 1u << row;
        for (u32 i = 0; i < lease_readers; i++) {
            const lent one = {tensor_part(l.tensor, i), n};
            if (push(one_lane{}, ends[i], &one, sizeof(one), WM_TYPE_TENSOR, wait_ns) != WM_OK)
                fail("push of a lease");
        }
    }
    for (std::thread& reader : readers)
        reader.join();
}

// The words and buffers of one stream module; its stream is a thread.
struct stream_module {
    wm_gate_state state = {};
    wm_gate_report report = {};
    wm_control control = {};
    wm_module_stats stats = {};
    u64 grants = device_word(u64{1} << WM_GRANT_AHEAD_BIT); // none, and it may step ahead
    alignas(16) u8 buffers[2][WM_STEP_HEAD_BYTES + 248] = {};
    wm_gate_args args = {};

    stream_module(const wm_mailbox& from, const wm_mailbox& to) {
        const auto address = [](void* p) { return static_cast<u64>(reinterpret_cast<uintptr_t>(p)); };
        args.magic = WM_ABI_MAGIC;
        args.version = WM_ABI_VERSION;
        args.n_inputs = args.n_outputs = args.ahead = 1;
        args.word = address(&grants);
        args.control = address(&control);
        args.report = address(&report);
        args.state = address(&state);
        args.stats = address(&stats);
        args.spin_ns = 1000000;
        args.arrival_ns = wait_ns;
        args.ends[0] = from;
        args.ends[WM_MAX_INPUTS] = to;
        args.buffers[0] = address(buffers[0]);
        args.buffers[WM_MAX_INPUTS] = address(buffers[1]);
    }
    void run(u64 records) {
        const u64 late = now_ns() + wait_ns;
        while (state.taken < records && now_ns() < late) {
            if (gate_begin<true>(one_lane{}, args))
                std::memcpy(buffers[1], buffers[0], sizeof buffers[0]); // the body
            gate_end<true>(one_lane{}, args);
        }
    }
};

void gates_in_a_row(u64 records) {
    u64 words[8] = {};
    box boxes[3] = {{0, 3, WM_SIDE_DEVICE, WM_SIDE_DEVICE, words},
                    {1, 0, WM_SIDE_DEVICE, WM_SIDE_DEVICE, words + 1},
                    {2, 2, WM_SIDE_DEVICE, WM_SIDE_DEVICE, words + 2}};
    std::vector<item> items(records);
    stream_module first(boxes[0].handle, boxes[1].handle), second(boxes[1].handle, boxes[2].handle);
    std::thread producer([&] { produce(attach_producer(boxes[0].handle), records, items, 200); });
    std::thread streams[2] = {std::thread([&] { first.run(records); }), std::thread([&] { second.run(records); })};
    consume(attach_consumer(boxes[2].handle), records);
    producer.join();
    for (std::thread& stream : streams)
        stream.join();
    if (first.state.taken != records || second.state.taken != records || first.stats.records_out != records)
        fail("steps of stream modules");
}

} // namespace

int main() {
    ring_alone(50000);
    gates_in_a_row(4000);
    leases_go_round(20000);
    whole_arbiter(4000, WM_SIDE_HOST, 2, 0);
    whole_arbiter(4000, WM_SIDE_DEVICE, 2, 0);
    u64 parks = 0; // on a busy machine one of them may find no moment for it
    for (u32 side : {WM_SIDE_HOST, WM_SIDE_DEVICE}) {
        parks += whole_arbiter(4000, side, 0, 2000);
        parks += whole_arbiter(2000, side, 1, 2000);
    }
    whole_arbiter(2000, WM_SIDE_HOST, 1, 0, true);
    whole_arbiter(2000, WM_SIDE_HOST, 3, 0, true);
    parks += whole_arbiter(1000, WM_SIDE_DEVICE, 2, 2000, true);
    for (bool on_cpu : {false, true}) {
        whole_arbiter(2000, WM_SIDE_HOST, 2, 0, on_cpu, true);
        parks += whole_arbiter(1000, WM_SIDE_DEVICE, on_cpu ? 1 : 0, 2000, on_cpu, true);
    }
    if (parks == 0)
        fail("none of them ever parked");
    std::puts("every record arrived");
    return 0;
}
