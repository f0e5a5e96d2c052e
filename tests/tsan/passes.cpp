// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Batches out of tapped mailboxes as a server's warp makes them, lane by lane on the CPU (protocol/lanes_host.hpp):
// long slots by way of registers, others by way of working memory, several at once of the usual one. Mailboxes of many
// strides; records of any length, and one behind them of which some words have arrived; mailboxes and rings that come
// round, rings with little room or none. What is in the ring must be the records, every byte, all that had arrived and
// found room, and no other.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "batches.hpp"

using namespace warpmail;

namespace {

u64 seed = 1;
u32 below(u32 n) {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<u32>(seed >> 33) % n;
}

// Zeroed memory that begins on a border of 128 bytes.
struct memory {
    std::vector<u8> bytes;
    explicit memory(u64 n) : bytes(n + 128) {}
    u8* begin() {
        return reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(bytes.data()) + 127) & ~uintptr_t{127});
    }
};
u64 address(const void* p) {
    return static_cast<u64>(reinterpret_cast<uintptr_t>(p));
}

constexpr u32 ring_log2 = 4, most_taken = 20, mailbox_id = 0;

struct made {
    std::vector<u8> bytes;
    u32 type;
};

// A mailbox, its producer, the server's warp and the ring's reader, in turns.
class trial {
public:
    trial(u32 stride, u32 slots_log2, u32 scope)
        : slots_(WM_HEADER_BYTES + (u64{stride} << slots_log2)),
          ring_(WM_RING_HEADER_BYTES + (u64{slot_bytes(stride)} << ring_log2)), a_(args_) {
        box_.header = address(slots_.begin());
        box_.record_stride = stride;
        box_.slots_log2 = slots_log2;
        box_.scope = scope;
        box_.mailbox_id = mailbox_id;
        handle_ = {address(ring_.begin()), slot_bytes(stride), ring_log2};
        args_.n_mailboxes = args_.servers = 1;
        args_.mailboxes = address(&box_);
        args_.journals = address(&handle_);
        args_.journal_stage_bytes = stride < 2048 ? 2048 : stride;
        args_.journal_roles = 1;
        u64 kept_bytes;
        working_ = memory(place(a_, nullptr, kept_bytes));
        place(a_, working_.begin(), kept_bytes);
        std::memcpy(const_cast<wm_mailbox*>(a_.rows), &box_, sizeof(box_));
        first_ = made_ = below(100);
        a_.followed[0] = first_;
        wm_ring_header* const h = ring_header(handle_);
        h->write_idx = h->read_idx = wrote_ = read_ = below(100);
        a_.journals[0] = attach_ring(handle_);
        a_.journals[0].batch_ns = 1;
        for (u32 i = 0; i < 1u << slots_log2; i++)
            clear_slot(slot_at(box_, first_ + i), any_form(box_), lap_tag(first_ + i, slots_log2));
    }

    // Null, or what was wrong.
    const char* run(u32 rounds) {
        for (u32 i = 0; i < rounds; i++) {
            produce();
            if (const char* what = take())
                return what;
            read_ += below(static_cast<u32>(wrote_ - read_) + 1);
            store_release_sys(&ring_header(handle_)->read_idx, read_);
        }
        return nullptr;
    }

private:
    static u32 slot_bytes(u32 stride) {
        return (static_cast<u32>(sizeof(wm_journal_head)) + payload_in(stride) + WM_RING_STEP - 1) / WM_RING_STEP *
               WM_RING_STEP;
    }
    u32 room() const {
        return (1u << box_.slots_log2) - static_cast<u32>(made_ - a_.followed[0]);
    }
    // Ends the record that has arrived in part, makes some more, and begins another.
    void produce() {
        if (!rest_.empty()) {
            store(rest_.size());
            made_++;
        }
        for (u32 n = below(room() + 1); n != 0; n--) {
            prepare();
            store(rest_.size());
            made_++;
        }
        if (room() != 0) {
            prepare();
            const u32 words = words_in(box_.record_stride);
            store(below(2) ? below(words) : words - 1);
        }
    }
    // The next record: its slot's words, in a random order in which they arrive.
    void prepare() {
        const u32 most = payload_in(box_.record_stride);
        made record{std::vector<u8>(below(3) ? below(most + 1) : most), below(5) ? 1 + below(1000) : WM_TYPE_TENSOR};
        for (u8& b : record.bytes)
            b = static_cast<u8>(below(256));
        std::vector<u64> words(words_in(box_.record_stride));
        write_slot<order::self_contained>(one_lane{}, words.data(), any_form(box_), lap_tag(made_, box_.slots_log2),
                                          record.bytes.data(), static_cast<u32>(record.bytes.size()), record.type);
        for (u32 i = 0; i < words.size(); i++)
            rest_.push_back({i, words[i]});
        for (u32 i = static_cast<u32>(rest_.size()); i > 1; i--)
            std::swap(rest_[i - 1], rest_[below(i)]);
        records_.push_back(record);
    }
    void store(u64 n) {
        for (; n != 0; n--) {
            store_relaxed_sys(slot_at(box_, made_) + rest_.back().at, rest_.back().word);
            rest_.pop_back();
        }
    }

    const char* take() {
        const u32 most = below(most_taken), free = (1u << ring_log2) - static_cast<u32>(wrote_ - read_);
        u32 expected = static_cast<u32>(made_ - a_.followed[0]), taken[32];
        expected = expected < most ? expected : most;
        expected = expected < free ? expected : free;
        if (box_.record_stride >= long_stride) {
            // The way of devices that ask for fewer lines ahead; it counts nothing.
            const u32 limit = most < free ? most : free;
            host::run_block(32, [&](u32 lane) {
                taken[lane] = line_copier<8, 4>(warp_lanes{}, passing_records{a_, 0, 0}).copy(limit);
            });
            if (const char* what = check(taken, expected))
                return what;
            for (u32 i = 0; i < expected; i++)
                std::memset(ring_slot(handle_, wrote_ + i), 0xEE, handle_.slot_bytes);
        }
        host::run_block(32, [&](u32 lane) { taken[lane] = journal_batch(warp_lanes{}, a_, 0, 0, most); });
        if (const char* what = check(taken, expected))
            return what;
        wrote_ += expected;
        a_.followed[0] += expected;
        if (a_.journals[0].write_idx != wrote_ || a_.tapped[0].taken != a_.followed[0] - first_)
            return "what was counted";
        return ring_header(handle_)->announced == announced_ ? nullptr : "what was announced";
    }
    // What all lanes said, and the records.
    const char* check(const u32 (&taken)[32], u32 expected) {
        for (u32 n : taken) {
            if (n != expected)
                return "another number of records";
        }
        for (u32 i = 0; i < expected; i++) {
            if (const char* what = check_record(a_.followed[0] + i, wrote_ + i))
                return what;
        }
        return nullptr;
    }
    // Record `idx` of the mailbox, at `place` in the ring.
    const char* check_record(u64 idx, u64 place) {
        const made& record = records_[idx - first_];
        wm_journal_head head;
        const u8* const slot = ring_slot(handle_, place);
        std::memcpy(&head, slot, sizeof(head));
        const u32 len = static_cast<u32>(record.bytes.size());
        if (head.number != idx - first_ + 1 || head.index != idx || head.mailbox_id != mailbox_id || head.len != len ||
            head.type != record.type || head.time_ns == 0)
            return "a head";
        if (std::memcmp(slot + sizeof(head), record.bytes.data(), len) != 0)
            return "a byte";
        announced_ = record.type == WM_TYPE_TENSOR ? place + 1 : announced_;
        return nullptr;
    }

    struct late_word {
        u32 at;
        u64 word;
    };

    memory slots_, ring_, working_{0};
    wm_mailbox box_ = {};
    wm_ring handle_ = {};
    wm_arbiter_args args_ = {};
    arbiter a_;
    u64 first_ = 0, made_ = 0;    // indices of the mailbox
    u64 wrote_ = 0, read_ = 0;    // of the ring
    u64 announced_ = 0;           // as the ring's header should have it
    std::vector<made> records_;   // from index first_ on
    std::vector<late_word> rest_; // of the slot behind those that were made
};

} // namespace

int main() {
    u32 trials = 0;
    for (u32 stride = WM_STRIDE_MIN; stride <= WM_STRIDE_MAX; stride += WM_STRIDE_STEP) {
        for (u32 i = 0; i < 8; i++, trials++) {
            trial t(stride, i % 5, i % 3 ? WM_SCOPE_GPU : WM_SCOPE_SYS);
            if (const char* what = t.run(12)) {
                std::printf("failed: %s; stride %u, trial %u\n", what, stride, i);
                return 2;
            }
        }
    }
    std::printf("%u mailboxes, every byte of all that arrived\n", trials);
    return 0;
}
