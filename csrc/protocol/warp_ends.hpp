// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The ends of a mailbox for a warp that moves many records: index, tag and this lane's address of the next slot stay in
// registers, stride and scope are known at compile time, and the payload goes from registers to the slot and back
// without a detour through memory. The bytes are those of mailbox.hpp; either side may use either.
//
//   warp_producer<> p(attach_producer(mailbox));
//   p.fence();                                      // what the warp wrote so far: tensors
//   fragment<1> f{{my_word}};                       // lane l of 32: payload word l - 1; lane 0 has none
//   p.push<order::fenced>(f, 248, type, budget_ns);
//
//   warp_consumer<> c(attach_consumer(mailbox));
//   c.wait<order::ordered>(f, meta, budget_ns);
//   ...                                             // the slot is still the consumer's
//   c.release(1);
//
// Every call is made by a converged warp. An end is attached once and dropped when done: the header has the indices.
// Batches of 16 bytes a lane: warp_wide.hpp.
#ifndef WARPMAIL_PROTOCOL_WARP_ENDS_HPP
#define WARPMAIL_PROTOCOL_WARP_ENDS_HPP

#include "protocol/wait.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

// A lane's share of a record: payload word 31 * g + lane - 1 of each group g. What lane 0 holds does not matter.
template <u32 Groups = 1> struct fragment {
    u64 word[Groups];
};

// Length and type of a record that was read, still in lane 0's register.
class fragment_meta {
public:
    WM_DEV fragment_meta() : low_(0) {}
    WM_DEV explicit fragment_meta(u64 lane_word) : low_(static_cast<u32>(lane_word)) {}
    // Payload bytes; for all lanes. A consumer that trusts no one compares it with the slot's payload.
    WM_DEV u32 len() const {
        return warp_lanes{}.broadcast(low_, 0) & 0xFFFFu;
    }
    WM_DEV u32 type() const {
        return warp_lanes{}.broadcast(low_, 0) >> WM_HEAD_TYPE_SHIFT;
    }

private:
    u32 low_;
};

// A record that has come, as it stands in the lanes' registers: the words as they were in the slot, and the heads,
// which are on their way to every lane. Its words cost three instructions each where they are first used, which need
// not be before what others wait for.
template <u32 Groups> class arrival {
public:
    WM_DEV arrival() : word_(), head_() {}
    // The lane's slot words. By all lanes.
    WM_DEV explicit arrival(const u64 (&word)[Groups]) {
#pragma unroll
        for (u32 g = 0; g < Groups; g++) {
            word_[g] = word[g];
            head_[g] = warp_lanes{}.broadcast(static_cast<u32>(word[g] >> WM_HEAD_BITS_SHIFT), 0);
        }
    }
    WM_DEV fragment<Groups> payload() const {
        fragment<Groups> f;
#pragma unroll
        for (u32 g = 0; g < Groups; g++)
            f.word[g] = restored(warp_lanes{}, word_[g], head_[g]);
        return f;
    }
    WM_DEV fragment_meta meta() const {
        return fragment_meta(word_[0]);
    }

private:
    u64 word_[Groups];
    u32 head_[Groups];
};

// A lane's share of `len` bytes at src, and the way back. `Groups` as in the mailbox's slots.
template <u32 Groups> WM_DEV fragment<Groups> load_fragment(const void* src, u32 len) {
    const u32 lane = warp_lanes{}.rank();
    const bool even = is_wide(src) && len % 8 == 0;
    fragment<Groups> f;
    for (u32 g = 0; g < Groups; g++)
        f.word[g] =
            lane == 0 ? 0 : lane_load(static_cast<const u8*>(src), len, g * (WM_GROUP_WORDS - 1) + lane - 1, even);
    return f;
}
template <u32 Groups> WM_DEV void store_fragment(const fragment<Groups>& f, void* dst, u32 len) {
    const u32 lane = warp_lanes{}.rank();
    const bool even = is_wide(dst) && len % 8 == 0;
    for (u32 g = 0; g < Groups; g++) {
        if (lane != 0)
            lane_store(static_cast<u8*>(dst), len, g * (WM_GROUP_WORDS - 1) + lane - 1, f.word[g], even);
    }
}

// What both ends keep: where this lane's word of the next slot is, and the tag it will carry.
template <class F> class warp_cursor {
public:
    static constexpr u32 words = words_in(F::stride());
    static constexpr u32 groups = groups_in(F::stride());

protected:
    WM_DEV warp_cursor(const wm_mailbox& m, u64 idx)
        : lane_words_(at<u64>(m.header + WM_HEADER_BYTES) + warp_lanes{}.rank()), idx_(idx),
          mask_((1u << m.slots_log2) - 1), log2_(m.slots_log2) {
        locate();
    }
    WM_DEV void advance(u32 n) {
        idx_ += n;
        locate();
    }
    // Slots from here to the end of the ring.
    WM_DEV u32 straight() const {
        return mask_ + 1 - (static_cast<u32>(idx_) & mask_);
    }
    // Has the slot that is `ahead` behind the next one brought to L2, from where whoever else uses the GPU may have
    // pushed it out since the last lap: the first look at it would take the way to memory.
    WM_DEV void bring_near(u32 ahead) const {
        const u32 slot = (static_cast<u32>(idx_) + ahead) & mask_;
        prefetch_l2(lane_words_ + static_cast<size_t>(slot) * words);
    }
    WM_DEV static bool has_word(u32 group) {
        return group_words(F::stride(), group) == WM_GROUP_WORDS ||
               warp_lanes{}.rank() < group_words(F::stride(), group);
    }

    u64* next_; // this lane's word of the next slot
    u64* lane_words_;
    u64 idx_;
    u64 tag_;
    u32 mask_, log2_;

private:
    WM_DEV void locate() {
        next_ = lane_words_ + static_cast<size_t>(static_cast<u32>(idx_) & mask_) * words;
        tag_ = lap_tag(idx_, log2_);
    }
};

// The producer's end. Form: stride and scope of the mailbox; `matches` says whether they are.
template <class F = default_form> class warp_producer : protected warp_cursor<F> {
    using cursor = warp_cursor<F>;

public:
    using cursor::groups;
    static constexpr u32 payload = payload_in(F::stride());

    WM_DEV explicit warp_producer(const wm_producer& p)
        : cursor(p.mailbox, p.write_idx), write_idx_(write_idx_of(p.mailbox)), read_idx_(read_idx_of(p.mailbox)),
          written_(at<u64>(p.mailbox.written)), bell_(p.mailbox.bell), read_seen_(p.read_seen) {
        count_room();
    }
    WM_DEV static bool matches(const wm_mailbox& m) {
        return m.record_stride == F::stride() && m.scope == F::scope();
    }

    // Free slots up to the end of the ring, counted up to `want`; looks at the far index only when it must.
    WM_DEV u32 reserve(u32 want) {
        if (room_ < want && room_ < this->straight()) {
            read_seen_ = warp_lanes{}.broadcast(load_relaxed(read_idx_, F::scope()), 0);
            count_room();
        }
        return room_ < want ? room_ : want;
    }
    // Orders what the warp wrote before it before the records that are put after it, however many: order::fenced.
    WM_DEV void fence() {
        release_slot<order::ordered>(warp_lanes{}, F::scope());
    }
    // Writes record i of those reserved. Self-contained unless `fence` came before.
    WM_DEV void put(u32 i, const fragment<groups>& f, u32 len, u32 type) {
        warp_lanes{}.check();
        u64 word[groups];
        tag(f, len, type, word);
        store(i, word);
    }
    // Publishes the first n of the reserved records.
    WM_DEV void commit(u32 n) {
        this->advance(n);
        if (warp_lanes{}.rank() == 0) {
            store_relaxed(write_idx_, this->idx_, F::scope());
            if (written_)
                publish_from_device(written_, this->idx_, bell_);
        }
        count_room();
    }
    // One record: WM_OK, WM_FULL, WM_BAD_LENGTH.
    template <order O> WM_DEV wm_status try_push(const fragment<groups>& f, u32 len, u32 type) {
        if (len > payload)
            return refused(warp_lanes{}, header(), F::scope(), WM_END_PRODUCER, refusal::length, WM_BAD_LENGTH);
        u64 word[groups];
        tag(f, len, type, word); // its votes are under way while the room is looked at
        if (room_ == 0 && reserve(1) == 0)
            return WM_FULL;
        if (releases(O))
            fence();
        store(0, word);
        commit(1);
        return WM_OK;
    }
    // The same, waiting for a free slot up to budget_ns: WM_OK, WM_TIMEOUT, WM_BAD_LENGTH.
    template <order O> WM_DEV wm_status push(const fragment<groups>& f, u32 len, u32 type, u64 budget_ns) {
        wm_status s = WM_FULL;
        wait_until(warp_lanes{}, budget_ns, [&] {
            s = try_push<O>(f, len, type);
            return s != WM_FULL;
        });
        return s == WM_FULL ? WM_TIMEOUT : s;
    }
    // Up to N records (of at most 32 groups in all), one fence and one publication: make(i, fragment&, len&, type&) for
    // each. Returns their number; fewer than N when the ring is nearly full or about to wrap. A length beyond the
    // payload ends the batch before it.
    template <order O, u32 N, class Make> WM_DEV u32 try_push_batch(Make&& make) {
        static_assert(N * groups <= 32, "the words of a batch stay in registers");
        const u32 n = reserve(N);
        if (n == 0)
            return 0;
        if (releases(O))
            fence();
        u32 done = 0;
        if (n == N) {
            // All votes before the first store; else each store would wait for its own vote.
            u64 word[N][groups];
#pragma unroll
            for (u32 i = 0; i < N; i++)
                done += done == i && make_one(i, make, word[i]);
#pragma unroll
            for (u32 i = 0; i < N; i++) {
                if (i < done)
                    store(i, word[i]);
            }
        } else {
#pragma unroll 1
            for (; done < n; done++) {
                u64 word[groups];
                if (!make_one(done, make, word))
                    break;
                store(done, word);
            }
        }
        if (done)
            commit(done);
        return done;
    }

private:
    WM_DEV u64 header() const {
        return reinterpret_cast<uintptr_t>(write_idx_) - offsetof(wm_mailbox_header, write_idx);
    }
    // Off the way of a record: the next one finds the answer ready.
    WM_DEV void count_room() {
        const u32 free = this->mask_ + 1 - static_cast<u32>(this->idx_ - read_seen_);
        room_ = free < this->straight() ? free : this->straight();
    }
    template <class Make> WM_DEV bool make_one(u32 i, Make& make, u64 (&word)[groups]) {
        fragment<groups> f;
        u32 len = 0, type = 0;
        make(i, f, len, type);
        tag(f, len, type, word);
        return len <= payload;
    }
    WM_DEV void tag(const fragment<groups>& f, u32 len, u32 type, u64 (&word)[groups]) const {
        const warp_lanes lanes;
#pragma unroll
        for (u32 g = 0; g < groups; g++)
            word[g] = tagged(lanes, f.word[g], this->tag_, g == 0 ? pack_meta(len, type) : 0);
    }
    WM_DEV void store(u32 i, const u64 (&word)[groups]) {
        u64* to = this->next_ + i * cursor::words;
#pragma unroll
        for (u32 g = 0; g < groups; g++) {
            if (cursor::has_word(g))
                store_relaxed(to + g * WM_GROUP_WORDS, word[g], F::scope());
        }
    }

    u64* write_idx_;
    const u64* read_idx_;
    u64* written_;
    u64 bell_;
    u64 read_seen_;
    u32 room_; // free slots up to the end of the ring, as far as read_seen_ says
};

// The consumer's end.
template <class F = default_form> class warp_consumer : protected warp_cursor<F> {
    using cursor = warp_cursor<F>;

public:
    using cursor::groups;
    static constexpr u32 payload = payload_in(F::stride());

    WM_DEV explicit warp_consumer(const wm_consumer& c)
        : cursor(c.mailbox, c.read_idx), read_idx_(read_idx_of(c.mailbox)), consumed_(at<u64>(c.mailbox.consumed)),
          bell_(c.mailbox.bell) {}
    WM_DEV static bool matches(const wm_mailbox& m) {
        return m.record_stride == F::stride() && m.scope == F::scope();
    }

    // The next record's payload, left in its slot. WM_OK, WM_EMPTY.
    template <order O> WM_DEV wm_status peek(fragment<groups>& f, fragment_meta& meta) {
        const warp_lanes lanes;
        lanes.check();
        u64 v[groups];
        load(0, v);
        if (!lanes.all(all_fresh(v)))
            return WM_EMPTY;
        acquire_slot<O>(lanes, F::scope());
        const arrival<groups> a(v);
        f = a.payload();
        meta = a.meta();
        return WM_OK;
    }
    // The same, waiting up to budget_ns: WM_OK, WM_TIMEOUT. The clock is read every 64 looks. What is given back on a
    // timeout means nothing.
    template <order O> WM_DEV wm_status wait(arrival<groups>& a, u64 budget_ns) {
        const warp_lanes lanes;
        lanes.check();
        u64 v[groups];
        const bool came = poll(v, budget_ns);
        if (came)
            acquire_slot<O>(lanes, F::scope());
        a = arrival<groups>(v);
        return came ? WM_OK : WM_TIMEOUT;
    }
    template <order O> WM_DEV wm_status wait(fragment<groups>& f, fragment_meta& meta, u64 budget_ns) {
        arrival<groups> a;
        const wm_status s = wait<O>(a, budget_ns);
        f = a.payload();
        meta = a.meta();
        return s;
    }
    // Gives n slots back. Precondition: peek saw them.
    WM_DEV void release(u32 n) {
        this->advance(n);
        if (warp_lanes{}.rank() == 0) {
            store_relaxed(read_idx_, this->idx_, F::scope());
            if (consumed_)
                publish_from_device(consumed_, this->idx_, bell_);
        }
        if (n == 1 && F::scope() == WM_SCOPE_GPU)
            this->bring_near(2);
    }
    template <order O> WM_DEV wm_status try_pop(fragment<groups>& f, fragment_meta& meta) {
        const wm_status s = peek<O>(f, meta);
        if (s == WM_OK)
            release(1);
        return s;
    }
    template <order O> WM_DEV wm_status pop(fragment<groups>& f, fragment_meta& meta, u64 budget_ns) {
        const wm_status s = wait<O>(f, meta, budget_ns);
        if (s == WM_OK)
            release(1);
        return s;
    }
    // Up to N records that are ready, up to the end of the ring, one publication: use(i, const fragment&, meta) for
    // each. Returns their number. All N slots are asked for at once.
    template <order O, u32 N, class Use> WM_DEV u32 try_pop_batch(Use&& use) {
        static_assert(N * groups <= 32, "the words of a batch stay in registers");
        const warp_lanes lanes;
        lanes.check();
        const u32 limit = this->straight() < N ? this->straight() : N;
        u64 v[N][groups];
        if (limit == N) {
#pragma unroll
            for (u32 i = 0; i < N; i++)
                load(i, v[i]);
        } else {
#pragma unroll
            for (u32 i = 0; i < N; i++)
                load(i < limit ? i : 0, v[i]); // the ring ends before
        }
        const u32 n = ready(v, limit);
        if (n == 0)
            return 0;
        acquire_slot<O>(lanes, F::scope()); // once for the batch
        u32 head[N][groups];
        if (n == N) { // all heads first: none waits for another's use
#pragma unroll
            for (u32 i = 0; i < N; i++)
                heads(v[i], head[i]);
#pragma unroll
            for (u32 i = 0; i < N; i++)
                use_one(i, v[i], head[i], use);
            release(N);
            return N;
        }
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            if (i < n) {
                heads(v[i], head[i]);
                use_one(i, v[i], head[i], use);
            }
        }
        release(n);
        return n;
    }

private:
    // Looks at the next slot until it is ready. Nothing but the vote stands between two looks: what else would be done
    // beside it, or a second look under way, makes them rarer or the way out longer.
    WM_DEV bool poll(u64 (&v)[groups], u64 budget_ns) const {
        const warp_lanes lanes;
        u64 begin = 0;
        for (;;) {
#pragma unroll 16 // a jump at every look would make looks rarer
            for (u32 k = 0; k < 64; k++) {
                load(0, v);
                if (lanes.all(all_fresh(v)))
                    return true;
            }
            const u64 now = lanes.broadcast(now_ns(), 0);
            begin = begin ? begin : now;
            if (now - begin >= budget_ns)
                return false;
        }
    }
    // This lane's words of slot i from here.
    WM_DEV void load(u32 i, u64 (&v)[groups]) const {
        const u64* from = this->next_ + i * cursor::words;
#pragma unroll
        for (u32 g = 0; g < groups; g++)
            v[g] = cursor::has_word(g) ? load_relaxed(from + g * WM_GROUP_WORDS, F::scope()) : this->tag_;
    }
    WM_DEV bool all_fresh(const u64 (&v)[groups]) const {
        bool fresh = true;
#pragma unroll
        for (u32 g = 0; g < groups; g++)
            fresh = fresh && is_fresh(v[g], this->tag_);
        return fresh;
    }
    // How many of the first `limit` slots are ready, one behind the other.
    template <u32 N> WM_DEV u32 ready(const u64 (&v)[N][groups], u32 limit) const {
        const warp_lanes lanes;
        bool all = limit == N;
#pragma unroll
        for (u32 i = 0; i < N; i++)
            all = all && all_fresh(v[i]);
        if (lanes.all(all))
            return N;
        u32 fresh = 0;
#pragma unroll
        for (u32 i = 0; i < N; i++)
            fresh |= static_cast<u32>(all_fresh(v[i])) << i;
        fresh = lanes.common_bits(fresh);
        const u32 first = fresh == ~0u ? 32 : lowest_bit(~fresh);
        return first < limit ? first : limit;
    }
    WM_DEV static void heads(const u64 (&v)[groups], u32 (&head)[groups]) {
#pragma unroll
        for (u32 g = 0; g < groups; g++)
            head[g] = warp_lanes{}.broadcast(static_cast<u32>(v[g] >> WM_HEAD_BITS_SHIFT), 0);
    }
    template <class Use>
    WM_DEV static void use_one(u32 i, const u64 (&v)[groups], const u32 (&head)[groups], Use& use) {
        fragment<groups> f;
#pragma unroll
        for (u32 g = 0; g < groups; g++)
            f.word[g] = restored(warp_lanes{}, v[g], head[g]);
        use(i, f, fragment_meta(v[0]));
    }

    u64* read_idx_;
    u64* consumed_;
    u64 bell_;
};

} // namespace warpmail

#endif
#endif
