// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What warps of the arbiter do for the journal, by threads in the place of lanes, under ThreadSanitizer: a server's
// warp takes records one by one, which the journal's role follows, and skips others, which it journals itself, out of
// mailboxes of several strides; gives some, which are followed too; and journals some before it takes them, as those
// that point to tensors are. Helpers carry parts of batches of long records. A thread of the host reads both rings.
// Every byte and every number is checked, and what is dropped is counted. A barrier between lanes that is missing is a
// reported race, as a missing release is.
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "protocol/journal.hpp"

using namespace warpmail;

namespace {

constexpr u32 width = 8;
constexpr u64 wait_ns = 60000000000ull;

[[noreturn]] void fail(const char* what) {
    std::printf("failed: %s\n", what);
    std::exit(2);
}

// Threads that act as one.
struct crew {
    pthread_barrier_t barrier;
    u64 words[width] = {};
    crew() {
        pthread_barrier_init(&barrier, nullptr, width);
    }
    ~crew() {
        pthread_barrier_destroy(&barrier);
    }
};

// One of them: lanes.hpp's interface.
struct thread_lanes {
    crew* all_lanes;
    u32 lane;
    static constexpr bool is_group() {
        return true;
    }
    static constexpr u32 width() {
        return ::width;
    }
    u32 rank() const {
        return lane;
    }
    void sync() const {
        pthread_barrier_wait(&all_lanes->barrier);
    }
    template <class F> u64 gather(u64 v, F&& of) const {
        sync();
        all_lanes->words[lane] = v;
        sync();
        return of(all_lanes->words);
    }
    u32 ballot(bool p) const {
        return static_cast<u32>(gather(p, [](const u64* w) {
            u64 bits = 0;
            for (u32 i = 0; i < ::width; i++)
                bits |= w[i] << i;
            return bits;
        }));
    }
    bool any(bool p) const {
        return ballot(p) != 0;
    }
    bool all(bool p) const {
        return ballot(p) == (1u << ::width) - 1;
    }
    template <class T> T broadcast(T v, u32 from) const {
        return static_cast<T>(gather(v, [from](const u64* w) { return w[from]; }));
    }
};

u64 next(u64& seed) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return seed >> 33;
}

u8 byte_of(u64 serial, u32 i) {
    return static_cast<u8>(serial * 31 + i * 7 + (i >> 8));
}
// A record that says which one it is.
void make(u8* to, u32 len, u64 serial) {
    for (u32 i = 0; i < len; i++)
        to[i] = i < 8 ? static_cast<u8>(serial >> (8 * i)) : byte_of(serial, i);
}

constexpr u32 boxes = 6, rings = 2;
constexpr u32 given = 4; // the server gives its records; of those before it, it takes them
constexpr u32 ahead = 5; // its records are journalled one by one, by the server, before it takes them
constexpr u32 strides[boxes] = {64, 256, 4096, 640, 256, 4096};
constexpr u32 chosen_type = 1;
constexpr u32 taps[boxes] = {
    WM_TAP_BLOCK | tap_behind_in | tap_by_role,  WM_TAP_DROP | tap_behind_in | tap_by_role,
    WM_TAP_BLOCK | tap_behind_in | tap_by_role,  WM_TAP_BLOCK | 1u << WM_TAP_TYPED_BIT | tap_behind_in | tap_by_role,
    WM_TAP_BLOCK | tap_behind_out | tap_by_role, WM_TAP_DROP | 1u << WM_TAP_TENSORS_BIT | tap_ahead};
constexpr u32 slots_log2 = 3, ring_log2 = 4, carriers = 2;

constexpr bool is_typed_box(u32 m) {
    return (taps[m] >> WM_TAP_TYPED_BIT & 1) != 0;
}
u32 type_of(u64 n) {
    return n % 5 ? chosen_type : WM_TYPE_TENSOR;
}

struct scene {
    std::vector<u64> memory[boxes], ring_memory[rings], working;
    wm_mailbox rows[boxes] = {};
    wm_ring ring[rings];
    wm_carry_line lines[rings * carriers] = {};
    wm_arbiter_args args = {};
    arbiter a;
    u64 records;
    u64 passed[boxes] = {}, dropped = 0, skipped = 0; // what the server did

    explicit scene(u64 n) : a(args), records(n) {
        constexpr u32 slot_bytes = 32 + 3968;
        for (u32 r = 0; r < rings; r++) {
            ring_memory[r].resize((WM_RING_HEADER_BYTES + ((slot_bytes + 32u) << ring_log2)) / 8 + 8);
            ring[r] = {align16(reinterpret_cast<uintptr_t>(ring_memory[r].data())), (slot_bytes + 63) / 64 * 64,
                       ring_log2};
        }
        for (u32 m = 0; m < boxes; m++) {
            memory[m].resize((WM_HEADER_BYTES + (strides[m] << slots_log2)) / 8 + 8);
            rows[m].header = align16(reinterpret_cast<uintptr_t>(memory[m].data()));
            rows[m].mailbox_id = m;
            rows[m].record_stride = strides[m];
            rows[m].slots_log2 = slots_log2;
            rows[m].tap = (taps[m] & 15u) | chosen_type << WM_TAP_TYPE_SHIFT;
        }
        args.n_mailboxes = boxes;
        args.n_modules = args.servers = 1;
        args.mailboxes = reinterpret_cast<uintptr_t>(rows);
        args.journals = reinterpret_cast<uintptr_t>(ring);
        args.journal_stage_bytes = WM_STRIDE_MAX;
        args.journal_roles = args.journal_ahead = 1;
        args.carry_lines = reinterpret_cast<uintptr_t>(lines);
        args.carriers = carriers;
        args.residency_ns = wait_ns;
        u64 kept_bytes;
        working.resize(place(a, nullptr, kept_bytes) / 8 + 2);
        place(a, reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(working.data()))), kept_bytes);
        std::memcpy(const_cast<wm_mailbox*>(a.rows), rows, sizeof(rows));
        for (u32 m = 0; m < boxes; m++)
            a.boxes[m] = {static_cast<u8>(slots_log2), 0, static_cast<u8>(taps[m]), 0, 0, 0};
        a.modules[0].kind = static_cast<u8>(WM_KIND_RESIDENT);
        a.modules[0].out_records = 1;
        for (u32 r = 0; r < rings; r++)
            a.journals[r] = attach_ring(ring[r]);
    }

    // As a warp on another SM may be seen to do it: the words of a slot in any order, the head among the first.
    static void push_scattered(wm_producer& p, const u8* bytes, u32 len, u32 type, u64& seed) {
        if (!wait_until(one_lane{}, wait_ns, [&] { return free_slots(one_lane{}, p, 1) != 0; }))
            fail("room");
        const wm_mailbox& m = p.mailbox;
        std::vector<u64> words(words_in(m.record_stride));
        write_slot<order::self_contained>(one_lane{}, words.data(), any_form(m), lap_tag(p.write_idx, m.slots_log2),
                                          bytes, len, type);
        const u32 n = words_in(m.record_stride), begin = next(seed) % n;
        u64* const slot = slot_at(m, p.write_idx);
        store_relaxed_sys(slot, words[0]);
        for (u32 i = 0; i < n; i++) {
            if (i % (n / 4) == 0)
                std::this_thread::yield();
            store_relaxed_sys(slot + (begin + i) % n, words[(begin + i) % n]);
        }
        p.write_idx++;
        publish_written(p);
    }

    // Records of mailbox m, in order, of all lengths.
    void produce(u32 m) {
        wm_producer p = attach_producer(rows[m]);
        std::vector<u8> bytes(payload_in(strides[m]));
        u64 seed = m;
        for (u64 n = 0; n < records; n++) {
            const u32 most = payload_in(strides[m]), len = next(seed) % 3 ? 8 + next(seed) % (most - 7) : most;
            make(bytes.data(), len, n);
            const u32 type = type_of(n);
            if (next(seed) % 2)
                push_scattered(p, bytes.data(), len, type, seed);
            else if (push(one_lane{}, p, bytes.data(), len, type, wait_ns) != WM_OK)
                fail("push");
        }
    }

    // Records of the mailbox that the server fills, in order.
    void consume() {
        wm_consumer c = attach_consumer(rows[given]);
        std::vector<u8> bytes(payload_in(strides[given]));
        for (u64 n = 0; n < records; n++) {
            u32 len = 0, type = 0;
            u64 serial = 0;
            if (pop(one_lane{}, c, bytes.data(), static_cast<u32>(bytes.size()), len, type, wait_ns) != WM_OK)
                fail("pop");
            std::memcpy(&serial, bytes.data(), 8);
            if (serial != n)
                fail("what was given");
        }
    }

    // One lane of the server's warp: as many records of each mailbox, in turns that all lanes choose alike.
    void serve(thread_lanes lanes, u8* payload) {
        u64 seed = 99, left = boxes * records;
        while (left != 0) {
            const u32 m = next(seed) % boxes;
            const u64 done = passed[m];
            lanes.sync(); // all have read it
            if (done == records)
                continue;
            u32 n = 0;
            if (m == given)
                n = give_one(lanes, payload, done, seed);
            else if (m == ahead || is_typed_box(m) || next(seed) % 3 == 0)
                n = take_one(lanes, m, done);
            else
                n = skip_some(lanes, m, done, seed);
            if (lanes.rank() == 0)
                passed[m] = done + n;
            left -= n;
            lanes.sync();
            std::this_thread::yield();
        }
    }
    // As context::pop does: what is taken is the role's to give back.
    u32 take_one(thread_lanes lanes, u32 m, u64 done) {
        if (m == ahead) {
            journal_end(lanes, a, 0, m, a.boxes[m]);
            if (lanes.any(a.followed[m] == done))
                return 0;
        }
        u32 len = 0, type = 0;
        const u64* const slot = slot_at(rows[m], done);
        if (!lanes.all(peek_slot<order::self_contained>(one_lane{}, slot, any_form(rows[m]), lap_tag(done, slots_log2),
                                                        len, type)))
            return 0;
        if (lanes.rank() == 0) {
            store_relaxed_cta(&a.consumed[m], done + 1);
            if (m == ahead)
                store_relaxed_sys(read_idx_of(rows[m]), done + 1);
        }
        return 1;
    }
    // As context::skip does.
    u32 skip_some(thread_lanes lanes, u32 m, u64 done, u64& seed) {
        const u32 n = ready_heads(lanes, rows[m], done, 1 + next(seed) % 6);
        lanes.sync();
        if (n != 0 && lanes.rank() == 0) {
            store_relaxed_cta(&a.consumed[m], done + n);
            skipped += n;
        }
        return n;
    }
    // As a step that is granted when there is room, also in the journal's eyes, and a scan that looks at the consumer.
    u32 give_one(thread_lanes lanes, u8* payload, u64 done, u64& seed) {
        const u32 len = 8 + next(seed) % (payload_in(strides[given]) - 7);
        if (lanes.rank() == 0)
            store_relaxed_cta(&a.consumed[given], load_relaxed_sys(read_idx_of(rows[given])));
        lanes.sync();
        if (!lanes.all(has_room(a, given, 1)))
            return 0;
        if (lanes.rank() == 0) {
            make(payload, len, done);
            wm_producer p = {};
            p.mailbox = rows[given];
            p.write_idx = done;
            p.read_seen = done - occupied<all_taps>(a, given, a.boxes[given]);
            if (try_push(one_lane{}, p, payload, len, type_of(done)) != WM_OK)
                fail("room for what is given");
            store_relaxed_cta(&a.written[given], done + 1);
        }
        return 1;
    }
    void help(u32 helper) {
        carrier c = carry_begin(one_lane{}, args, 1, helper); // of the role
        while (carry_turn(one_lane{}, args, c)) {
        }
    }

    u64 numbers[boxes] = {}, serials[boxes] = {}, gaps = 0;

    // Whether the record is its mailbox's next one.
    bool take(const wm_journal_head* head) {
        const u8* bytes = reinterpret_cast<const u8*>(head + 1);
        const u32 m = head->mailbox_id;
        if (m >= boxes || head->len < 8 || head->len > payload_in(strides[m]) || head->number <= numbers[m])
            fail("a head");
        if (head->number != numbers[m] + 1)
            return false; // that is in another ring
        numbers[m]++;
        u64 serial;
        std::memcpy(&serial, bytes, 8);
        while (is_typed_box(m) && type_of(serials[m]) != chosen_type)
            serials[m]++; // that is not journalled
        if (serial != head->index || serial < serials[m] || serial >= records)
            fail("a record's place");
        gaps += serial - serials[m]; // dropped
        if ((taps[m] & WM_TAP_POLICY) != WM_TAP_DROP && serial != serials[m])
            fail("a record is missing");
        serials[m] = serial + 1;
        for (u32 i = 8; i < head->len; i++) {
            if (bytes[i] != byte_of(serial, i))
                fail("a byte");
        }
        return true;
    }
    void drain() {
        u64 idx[rings] = {};
        const u64 since = now_ns();
        for (bool more = true; more;) {
            const bool last = (load_acquire_cta(&a.roles[0]) & role_done) != 0;
            more = !last;
            for (u32 r = 0; r < rings; r++) {
                wm_ring_header* const h = ring_header(ring[r]);
                const u64 wrote = load_acquire_sys(&h->write_idx);
                while (idx[r] != wrote && take(reinterpret_cast<const wm_journal_head*>(ring_slot(ring[r], idx[r])))) {
                    store_release_sys(&h->read_idx, ++idx[r]);
                    more = true;
                }
            }
            if (now_ns() - since > wait_ns)
                fail("the drain");
            std::this_thread::yield();
        }
        u64 taken = 0, chosen = 0;
        for (u32 m = 0; m < boxes; m++) {
            for (u64 n = 0; n < records; n++)
                chosen += !is_typed_box(m) || type_of(n) == chosen_type;
            for (; serials[m] < records; serials[m]++)
                gaps += !is_typed_box(m) || type_of(serials[m]) == chosen_type;
            taken += numbers[m];
            dropped += a.tapped[m].dropped;
            if (numbers[m] != a.tapped[m].taken)
                fail("a mailbox's counter");
            if (a.tapped[m].dropped != 0 && (taps[m] & WM_TAP_POLICY) != WM_TAP_DROP)
                fail("a drop");
        }
        if (gaps != dropped || taken + dropped != chosen)
            fail("what was dropped");
        const u64 announced = load_acquire_sys(&ring_header(ring[0])->announced);
        if (announced == 0 || announced > idx[0])
            fail("tensors announced");
    }
};

void run(u64 records) {
    scene s(records);
    crew server, role;
    std::vector<u8> payload(4096 + 16);
    std::vector<std::thread> servers, others;
    for (u32 m = 0; m < boxes; m++) {
        if (m != given)
            others.emplace_back([&s, m] { s.produce(m); });
    }
    others.emplace_back([&s] { s.consume(); });
    others.emplace_back([&s] { s.drain(); });
    for (u32 h = 0; h < carriers; h++)
        others.emplace_back([&s, h] { s.help(h); });
    for (u32 lane = 0; lane < width; lane++) {
        servers.emplace_back([&, lane] { s.serve({&server, lane}, payload.data()); });
        others.emplace_back([&, lane] {
            journal_state state = journal_begin(thread_lanes{&role, lane}, s.a, 0);
            while (journal_turn(thread_lanes{&role, lane}, s.a, state))
                std::this_thread::yield();
        });
    }
    for (auto& t : servers)
        t.join();
    carry_end(one_lane{}, s.args);
    store_relaxed_cta(&s.a.flags[flag_stop], wait_ns);
    store_release_cta(&s.a.flags[flag_left], u64{WM_EXIT_STOP});
    for (auto& t : others)
        t.join();
    if (s.skipped == 0)
        fail("nothing was skipped");
    std::printf("%llu records, %llu of them dropped, %llu skipped\n", static_cast<unsigned long long>(boxes * records),
                static_cast<unsigned long long>(s.dropped), static_cast<unsigned long long>(s.skipped));
}

} // namespace

int main() {
    run(800);
    std::puts("every byte arrived");
    return 0;
}
