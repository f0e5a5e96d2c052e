// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Batches of long records that several warps carry to a ring. One block does not store as much as the bus
// takes, so the arbiter's launch may have further ones, carriers: a warp of each helps one role. The role cuts a
// batch into parts, one behind the other, hands all but the first to its helpers by way of a line each (wm_carry_line),
// carries the first, and then goes through the others in their order: what is claimed it waits for; what nobody has
// claimed it takes back, and the batch ends there. So it never waits for a block that is not there. Numbers, indices
// and places are those that the role alone would give, and all records of a batch pass at one time. One that has not
// wholly arrived ends the batch, too: what was carried behind the end does not count, and is carried again.
//
// Memory order. The role's line: RELEASE of `posted`, acquired by the helper before it looks at the rest of the line
// or stores into the ring, whose slots the role has seen the host give back. The helper's stores: RELEASE of `done`,
// acquired by the role, then on as if they were its own (journal.hpp). Who has a part is settled by a
// compare-and-swap of the state, which says of which batch it is: one of an earlier batch is never mistaken for it.
//
// How long it takes. Between `claimed` and `done` a helper waits for nobody: it loads and stores a batch at most. A
// role waits carry_wait_ns for that, and then gives the helper up: the batch ends before its part. It may store into
// that part's slots still, so the role's ring takes nothing more in this launch: it looks full. A launch ends when
// all of its warps have, so in the next one there is no such helper.
//
// A helper leaves when its launch's keeper says that all servers have, and by itself when the residency is over: what
// is posted then is taken back. Which launch it is neither has to be told: each block runs once in every launch, so
// each counts its own.
#ifndef WARPMAIL_PROTOCOL_CARRY_HPP
#define WARPMAIL_PROTOCOL_CARRY_HPP

#include "protocol/pass.hpp"

namespace warpmail {

constexpr u32 carry_least = 4;             // records of a batch that is cut
constexpr u64 carry_wait_ns = 1000000000;  // for a part that a helper has claimed
constexpr u64 carry_margin_ns = 1000000;   // beyond the residency
constexpr u32 carry_looks = 32;            // in vain, before a helper dozes between two
constexpr u32 carry_doze_ns = 2000;        // at most
constexpr u32 unclaimed = ~0u, lost = ~1u; // instead of a number of records
constexpr u64 carry_alone = 4;             // of so many batches behind one with which nobody helped the last is cut

WM_FN wm_carry_line* carry_line(const wm_arbiter_args& args, u32 ring, u32 carrier) {
    return at<wm_carry_line>(args.carry_lines) + ring * args.carriers + carrier;
}
// record_stride and slots_log2; and, behind it, mailbox_id and scope.
WM_FN u64* carry_shape(wm_carry_line* line) {
    return reinterpret_cast<u64*>(&line->header) + 1;
}
static_assert(offsetof(wm_carry_line, record_stride) == offsetof(wm_carry_line, header) + 8 &&
                  offsetof(wm_carry_line, scope) == offsetof(wm_carry_line, header) + 20,
              "two words");
WM_FN u64 carry_state(u64 batch, u32 count, u32 stage) {
    return batch << WM_CARRY_BATCH_SHIFT | u64{count} << WM_CARRY_COUNT_SHIFT | stage;
}
WM_FN u32 carry_stage(u64 state) {
    return static_cast<u32>(state) & ((1u << WM_CARRY_TENSOR_BIT) - 1);
}
WM_FN u32 carry_count(u64 state) {
    return static_cast<u32>(state) >> WM_CARRY_COUNT_SHIFT;
}
WM_FN bool carry_tensors(u64 state) {
    return (state >> WM_CARRY_TENSOR_BIT & 1) != 0;
}
// Batches that the role has cut in launches that have ended.
WM_FN u64 batches_carried(const wm_arbiter_args& args, u32 ring) {
    return args.carriers ? load_relaxed_gpu(&carry_line(args, ring, 0)->state) >> WM_CARRY_BATCH_SHIFT : 0;
}

// A role begins a launch: whom it had given up in the one before is gone.
template <class L> WM_FN void carry_serve(L lanes, const arbiter& a, u32 ring) {
    if (lanes.rank() == 0)
        store_relaxed_cta(&a.journals[ring].lost, u64{0});
    lanes.sync();
}

// Records of a helper's part of the role's present batch.
WM_FN u32 carry_each(const ring_end& end) {
    return static_cast<u32>(load_relaxed_cta(&end.each));
}

// Whether a batch of `most` records is cut.
WM_FN bool should_cut(const passing_records& r, u32 most) {
    return r.a.args.carriers != 0 && r.server >= r.a.args.servers && most >= carry_least &&
           r.box().record_stride >= long_stride && load_relaxed_cta(&r.a.journals[r.server].alone) == 0;
}

// Hands parts of a batch of `most` records to the helpers, and gives how many records that are.
template <class L> WM_FN u32 carry_post(L lanes, const passing_records& r, u32 most) {
    ring_end& end = r.a.journals[r.server];
    const u32 carriers = r.a.args.carriers, each = most / (carriers + 1);
    const u64 batch = load_relaxed_cta(&end.batches) + 1;
    for (u32 h = lanes.rank(); h < carriers; h += lanes.width()) {
        wm_carry_line* const line = carry_line(r.a.args, r.server, h);
        const u32 first = most - (carriers - h) * each;
        store_relaxed_gpu(&line->header, r.box().header);
        store_relaxed_gpu(carry_shape(line), r.box().record_stride | u64{r.box().slots_log2} << 32);
        store_relaxed_gpu(carry_shape(line) + 1, r.box().mailbox_id | u64{r.box().scope} << 32);
        store_relaxed_gpu(&line->index, r.index(first));
        store_relaxed_gpu(&line->place, r.place(first));
        store_relaxed_gpu(&line->number, r.count(true, first));
        store_relaxed_gpu(&line->time_ns, r.time_ns());
        fence_release(WM_SCOPE_GPU); // RELEASE, acquired in carry_turn
        store_relaxed_gpu(&line->state, carry_state(batch, each, WM_CARRY_POSTED));
    }
    lanes.sync(); // all have read it
    if (lanes.rank() == 0) {
        store_relaxed_cta(&end.batches, batch);
        store_relaxed_cta(&end.each, u64{each});
    }
    lanes.sync();
    return carriers * each;
}

// How many records a helper has carried of its part; `unclaimed`: none, and it will not; `lost`: nobody knows. Their
// descriptors are announced if they count: all before them are in the ring.
template <class L> WM_FN u32 carry_join(L lanes, const passing_records& r, u32 helper, bool counts) {
    const u64 batch = load_relaxed_cta(&r.a.journals[r.server].batches);
    wm_carry_line* const line = carry_line(r.a.args, r.server, helper);
    const u32 each = carry_each(r.a.journals[r.server]);
    const u64 posted = carry_state(batch, each, WM_CARRY_POSTED);
    u64 was = 0;
    if (lanes.rank() == 0)
        was = cas_relaxed_gpu(&line->state, posted, carry_state(batch, each, WM_CARRY_NONE));
    if (lanes.broadcast(was, 0) == posted)
        return unclaimed;
    const u64 since = now_ns();
    for (u32 looks = 0;; looks++) {
        const u64 state = load_relaxed_gpu(&line->state);
        if (lanes.all(carry_stage(state) == WM_CARRY_DONE)) {
            fence_acquire(WM_SCOPE_GPU); // ACQUIRE of carry_turn
            if (counts && carry_tensors(state) && lanes.rank() == 0)
                announce_tensor(r.a, r.server, load_relaxed_gpu(&line->tensor) - 1);
            return carry_count(state);
        }
        if (lanes.any(now_ns() - since >= carry_wait_ns))
            return lost;
        pause_after(looks);
    }
}

// The ring takes nothing more in this launch, behind record n of the batch.
template <class L> WM_FN void carry_lost(L lanes, const passing_records& r, u32 n) {
    ring_end& end = r.a.journals[r.server];
    lanes.sync();
    if (lanes.rank() == 0) {
        store_relaxed_cta(&end.lost, u64{1});
        store_relaxed_cta(&end.read_seen, r.place(n) - ring_slots(end.ring));
    }
    lanes.sync();
}

// Adds to the n records of the batch that the role has carried, of `most` that were its own, those that helpers have
// behind them. All helpers have done then, or have nothing.
template <class L> WM_FN u32 carry_gather(L lanes, const passing_records& r, u32 n, u32 most) {
    bool whole = n == most, helped = false;
    WM_ROLLED
    for (u32 h = 0; h < r.a.args.carriers; h++) {
        const u32 got = carry_join(lanes, r, h, whole);
        helped = helped || got != unclaimed;
        if (got == lost)
            carry_lost(lanes, r, n);
        whole = whole && got < lost;
        n += whole ? got : 0;
        whole = whole && got == carry_each(r.a.journals[r.server]);
    }
    if (!helped && lanes.rank() == 0)
        store_relaxed_cta(&r.a.journals[r.server].alone, carry_alone);
    lanes.sync();
    return n;
}

// Copies up to `most` records to the ring, as pass_ready does, and gives their number. Long ones with what help there
// is: a part that finds none is left for the next batch.
template <class L> WM_FN u32 carry_ready(L lanes, const passing_records& r, u32 most) {
    ring_end& end = r.a.journals[r.server];
    begin_batch(lanes, r.a, r.server);
    if (lanes.rank() == 0) {
        const u64 alone = load_relaxed_cta(&end.alone);
        store_relaxed_cta(&end.alone, alone - (alone != 0));
    }
    lanes.sync();
    const bool cut = should_cut(r, most);
    if (cut)
        most -= carry_post(lanes, r, most);
    const u32 n = pass_ready(lanes, r, most);
    return cut ? carry_gather(lanes, r, n, most) : n;
}

// The helper's side.

// Records that it carries: what it was told of them.
struct carried_records {
    wm_mailbox row;
    wm_ring ring;
    u64 first, first_place, first_number, passed_ns;
    u64 tensor; // as in wm_carry_line; or 0

    WM_FN const wm_mailbox& box() const {
        return row;
    }
    WM_FN u64 index(u32 n) const {
        return first + n;
    }
    WM_FN u64 count(bool number, u32 n) const {
        return (number ? first_number : first) + n;
    }
    WM_FN u64 time_ns() const {
        return passed_ns;
    }
    WM_FN u64 place(u32 n) const {
        return first_place + n;
    }
    WM_FN u8* slot(u32 n) const {
        return ring_slot(ring, place(n));
    }
    WM_FN wm_journal_head head(u32 n, u32 len, u32 type, u64 time_ns) const {
        return {
            count(true, n), index(n), time_ns, row.mailbox_id, static_cast<uint16_t>(len), static_cast<uint16_t>(type)};
    }
    // The role does, in the order of the ring.
    WM_FN void announce(u32 n) {
        tensor = place(n) + 1;
    }
    WM_FN void forget() {}
};

struct carrier {
    wm_carry_line* line;
    wm_ring ring;
    u64 launch; // how many of its launches came before this one
    u64 begin_ns;
    u32 looks; // in vain
};

template <class L> WM_FN carrier carry_begin(L lanes, const wm_arbiter_args& args, u32 ring, u32 helper) {
    carrier c;
    c.line = carry_line(args, ring, helper);
    c.ring = at<const wm_ring>(args.journals)[ring];
    c.launch = lanes.broadcast(load_relaxed_gpu(&c.line->begun), 0);
    c.begin_ns = now_ns();
    c.looks = 0;
    lanes.sync();
    if (lanes.rank() == 0)
        store_relaxed_gpu(&c.line->begun, c.launch + 1);
    return c;
}

// By the keeper, when all servers have left.
template <class L> WM_FN void carry_end(L lanes, const wm_arbiter_args& args) {
    for (u32 i = lanes.rank(); i < ring_count(args) * args.carriers; i += lanes.width()) {
        u64* const ended = &at<wm_carry_line>(args.carry_lines)[i].ended;
        store_relaxed_gpu(ended, load_relaxed_gpu(ended) + 1);
    }
}

// Carries them, as many as have wholly arrived; gives their number.
WM_FN u32 carry_part(one_lane lanes, carried_records& r, u32 n) {
    return pass_each(lanes, r, n);
}
#if defined(WM_HAS_WARPS)
WM_DEV u32 carry_part(warp_lanes lanes, carried_records& r, u32 n) {
    line_copier<lines_ahead, 4, carried_records> copier(lanes, r);
    const u32 good = copier.copy(n);
    r.tensor = copier.records().tensor;
    return good;
}
#endif

// One turn. False when the launch is over.
template <class L> WM_FN bool carry_turn(L lanes, const wm_arbiter_args& args, carrier& c) {
    const u64 seen = load_relaxed_gpu(&c.line->state), ended = load_relaxed_gpu(&c.line->ended);
    const u64 posted = lanes.broadcast(seen, 0);
    if (!lanes.all(seen == posted && carry_stage(posted) == WM_CARRY_POSTED)) {
        if (lanes.any(ended != c.launch || now_ns() - c.begin_ns >= args.residency_ns + carry_margin_ns))
            return false;
        c.looks++;
        if (c.looks > carry_looks)
            doze((c.looks - carry_looks) * 64 < carry_doze_ns ? (c.looks - carry_looks) * 64 : carry_doze_ns);
        return true;
    }
    c.looks = 0;
    fence_acquire(WM_SCOPE_GPU); // ACQUIRE of carry_post
    u64 was = 0;
    if (lanes.rank() == 0)
        was = cas_relaxed_gpu(&c.line->state, posted, posted - WM_CARRY_POSTED + WM_CARRY_CLAIMED);
    // Under way meanwhile. If the part is this helper's the role has changed none of it since it was posted.
    carried_records r = {};
    r.row.header = load_relaxed_gpu(&c.line->header);
    const u64 shape = load_relaxed_gpu(carry_shape(c.line)), whose = load_relaxed_gpu(carry_shape(c.line) + 1);
    r.first = load_relaxed_gpu(&c.line->index);
    r.first_place = load_relaxed_gpu(&c.line->place);
    r.first_number = load_relaxed_gpu(&c.line->number);
    r.passed_ns = load_relaxed_gpu(&c.line->time_ns);
    if (lanes.broadcast(was, 0) != posted)
        return true;
    r.row.record_stride = static_cast<u32>(shape);
    r.row.slots_log2 = static_cast<u32>(shape >> 32);
    r.row.mailbox_id = static_cast<u32>(whose);
    r.row.scope = static_cast<u32>(whose >> 32);
    r.ring = c.ring;
    const u32 good = carry_part(lanes, r, carry_count(posted));
    lanes.sync(); // all is stored, and all have seen their words
    if (lanes.rank() == 0) {
        if (r.tensor != 0)
            store_relaxed_gpu(&c.line->tensor, r.tensor);
        fence_release(WM_SCOPE_GPU); // RELEASE, acquired in carry_join
        store_relaxed_gpu(&c.line->state, carry_state(posted >> WM_CARRY_BATCH_SHIFT, good, WM_CARRY_DONE) |
                                              u64{r.tensor != 0} << WM_CARRY_TENSOR_BIT);
    }
    lanes.sync();
    return true;
}

} // namespace warpmail

#endif
