// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Taps: records of chosen mailboxes are copied into a ring in pinned memory as they pass a server, for the host to
// drain. A record passes where a resident module takes it, or, when its consumer is not resident, where a resident
// module gives it.
//
// Each server has a ring of its own, so none waits for another; the number in the head, consecutive in each mailbox,
// restores the order of a mailbox whose module was run by several servers. A record that is dropped takes no number.
//
// Whoever waits for what a step gives shall not wait for the bus: a fence of a warp that has stored over it takes as
// long as the way there and back. So a record that a handler takes or gives is copied to a place in working memory, is
// counted when the step has ended, and brought to the ring by a role of its own, which also tells the host
// (journal_turn). Batches that no handler looks at go to the ring at once, and so does what finds no place.
// Where a step runs in a launch of its own there is no such role: its records go to the ring, and it publishes them.
#ifndef WARPMAIL_PROTOCOL_JOURNAL_HPP
#define WARPMAIL_PROTOCOL_JOURNAL_HPP

#include "protocol/carry.hpp"
#include "protocol/durable.hpp"
#include "protocol/record.hpp"

namespace warpmail {

// Whether a tap takes records of this type; there is a tap.
WM_FN bool is_chosen(const arbiter& a, mailbox_brief box, u32 m, u32 type) {
    return (box.tap >> WM_TAP_TYPED_BIT & 1) == 0 || a.rows[m].tap >> WM_TAP_TYPE_SHIFT == type;
}

// Whether a step of any module can be journalled without waiting. Looks over the bus only when the ring seems full.
template <class L> WM_FN bool journal_has_room(L lanes, arbiter& a, u32 server) {
    if (a.args.journal_need == 0)
        return true;
    return ring_room(lanes, a.journals[server], a.args.journal_need) >= a.args.journal_need;
}

constexpr u64 not_in_ring = ~0ull; // a place whose record found the ring full

// The n-th record's of a server; meaningless where there are no places.
WM_FN journal_place* place_at(const arbiter& a, u32 server, u64 n) {
    const u64 nth = n & (a.args.journal_places - 1u);
    return reinterpret_cast<journal_place*>(stage_of(a, server) + a.args.journal_stage_bytes +
                                            nth * place_bytes(a.args));
}

// n more records of mailbox m, of which `number` were journalled before, are in the server's ring, or have their place
// in it; by lane 0, when all lanes have stored theirs and met. RELEASE, acquired in journal_turn.
WM_FN void count_journalled(arbiter& a, u32 server, u32 m, u64 number, u32 n) {
    ring_end& end = a.journals[server];
    store_relaxed_cta(&a.tapped[m].taken, number + n);
    store_release_cta(&end.write_idx, load_relaxed_cta(&end.write_idx) + n);
}
WM_FN void count_dropped(arbiter& a, u32 m) {
    store_relaxed_cta(&a.tapped[m].dropped, load_relaxed_cta(&a.tapped[m].dropped) + 1);
}
// Tells the host of the first `wrote` records of a server's ring. By one thread, the only one that does so for this
// ring, and that has seen all of them.
WM_FN void publish_ring(arbiter& a, u32 server, u64 wrote) {
    if (wrote == a.journals[server].published)
        return;
    store_release_sys(&ring_header(a.journals[server].ring)->write_idx, wrote); // R1
    a.journals[server].published = wrote;
}

// Gives the records of this step that have a place their numbers, and their slots in the ring.
template <class L> WM_FN void commit_staged(L lanes, arbiter& a, u32 server, u32 staged) {
    if (staged == 0)
        return;
    ring_end& end = a.journals[server];
    ring_room(lanes, end, staged); // looks at the far index if it may be needed
    lanes.sync();                  // the places are written
    if (lanes.rank() == 0) {
        const u64 first = load_relaxed_cta(&a.journals[server].staged), read = load_relaxed_cta(&end.read_seen);
        u64 idx = load_relaxed_cta(&end.write_idx);
        for (u32 i = 0; i < staged; i++) {
            journal_place* const place = place_at(a, server, first + i);
            const u32 m = place->mailbox;
            if (idx - read >= ring_slots(end.ring)) {
                place->idx = not_in_ring;
                count_dropped(a, m);
                continue;
            }
            const u64 number = load_relaxed_cta(&a.tapped[m].taken) + 1;
            reinterpret_cast<wm_journal_head*>(place + 1)->number = number;
            store_relaxed_cta(&a.tapped[m].taken, number);
            place->idx = idx++;
        }
        store_release_cta(&a.journals[server].staged, first + staged); // RELEASE, acquired in journal_turn
        store_release_cta(&end.write_idx, idx);                        // likewise, and only then
    }
    lanes.sync();
}

// Lets what is committed go to the host now, rather than when the places are needed.
template <class L> WM_FN void hurry_journal(L lanes, arbiter& a, u32 server) {
    if (a.args.journals == 0 || lanes.rank() != 0)
        return;
    if (has_journal_role(a.args))
        store_relaxed_cta(&a.journals[server].asked, load_relaxed_cta(&a.journals[server].staged));
    else
        publish_ring(a, server, load_relaxed_cta(&a.journals[server].write_idx));
}

// Journals a record of mailbox m whose payload lies at `from`, by the server that owns the module at hand: `staged` of
// this step have a place, and that many on return. The caller's lanes have seen the payload, which is theirs again
// then. A descriptor goes to the ring at once: its lease may end as soon as somebody learns of it from this step (R3).
template <class L>
WM_FN u32 journal(L lanes, arbiter& a, u32 server, u32 m, u64 index, const void* from, u32 len, u32 type, u32 staged) {
    const u64 n = load_relaxed_cta(&a.journals[server].staged) + staged;
    // ACQUIRE of unstage: the place is free. There are none without a role that empties them.
    const u64 waiting = n - load_acquire_cta(&a.journals[server].unstaged);
    const bool waits = lanes.all(type != WM_TYPE_TENSOR && waiting < a.args.journal_places);
    if (!waits) {
        commit_staged(lanes, a, server, staged);
        staged = 0;
    }
    ring_end& end = a.journals[server];
    const bool room = waits || ring_room(lanes, end, 1) != 0;
    journal_place* const place = place_at(a, server, n);
    u8* const to = waits ? reinterpret_cast<u8*>(place + 1) : ring_slot(end.ring, load_relaxed_cta(&end.write_idx));
    u32 chunks = 0;
    if (room)
        chunks = fill_slot(
            lanes, to,
            {0, index, now_ns(), a.rows[m].mailbox_id, static_cast<uint16_t>(len), static_cast<uint16_t>(type)}, from,
            len);
    lanes.sync(); // all is stored, and what lane 0 changes now was read
    if (lanes.rank() == 0) {
        if (waits) {
            place->mailbox = m;
            place->chunks = chunks;
        } else if (room) {
            const u64 number = load_relaxed_cta(&a.tapped[m].taken);
            reinterpret_cast<wm_journal_head*>(to)->number = number + 1;
            count_journalled(a, server, m, number, 1);
        } else {
            count_dropped(a, m);
        }
        if (room && type == WM_TYPE_TENSOR)
            announce_tensor(a, server, load_relaxed_cta(&end.write_idx) - 1);
    }
    lanes.sync();
    return waits ? staged + 1 : 0;
}

// The last records of a grant that are to be journalled and are in its lanes' registers, up to two: of most steps one
// that was taken and one that was given. Their numbers are taken while the module is owned, and they are brought to
// their places when others may have the module again (finish_grant). One thread keeps none.
template <class L> struct kept_records {};

#if defined(WM_HAS_WARPS)
struct kept_record {
    enum : u32 { none, new_one, numbered } stage = none;
    fragment<1> words;
    u32 meta;    // length and type
    u32 mailbox; // this and the index until it is numbered: its place has them then
    u64 index;
};
template <> struct kept_records<warp_lanes> {
    kept_record first, second; // none, or as far along as the first

    WM_DEV u32 count() const {
        return (first.stage != first.none) + (second.stage != second.none);
    }
    WM_DEV void add(const kept_record& k) {
        if (first.stage == first.none)
            first = k;
        else
            second = k;
    }
};

// Whether one more record in a warp's registers would find a place beside those kept.
WM_DEV bool has_place(warp_lanes lanes, const arbiter& a, u32 server, u32 type, u32 kept) {
    const ring_end& end = a.journals[server];
    // ACQUIRE of unstage
    const u64 waiting = load_relaxed_cta(&end.staged) + kept - load_acquire_cta(&end.unstaged);
    return lanes.all(type != WM_TYPE_TENSOR && waiting < a.args.journal_places);
}
// Gives the record kept its number, which its place keeps, or drops it where the ring has no room. `before`: records
// kept that have theirs. By the owner of the module.
WM_DEV void number_one(warp_lanes lanes, arbiter& a, u32 server, kept_record& k, u32 before) {
    if (k.stage != k.new_one)
        return;
    ring_end& end = a.journals[server];
    const bool room = ring_room(lanes, end, 1 + before) > before;
    if (lanes.rank() == 0) {
        journal_place* const place = place_at(a, server, load_relaxed_cta(&end.staged) + before);
        const u64 number = load_relaxed_cta(&a.tapped[k.mailbox].taken) + 1;
        place->mailbox = k.mailbox;
        reinterpret_cast<wm_journal_head*>(place + 1)->number = number;
        reinterpret_cast<wm_journal_head*>(place + 1)->index = k.index;
        if (room)
            store_relaxed_cta(&a.tapped[k.mailbox].taken, number);
        else
            count_dropped(a, k.mailbox);
    }
    k.stage = room ? k.numbered : k.none;
}
WM_DEV void number_kept(warp_lanes lanes, arbiter& a, u32 server, kept_records<warp_lanes>& kept) {
    number_one(lanes, a, server, kept.first, 0);
    number_one(lanes, a, server, kept.second, kept.first.stage == kept.first.numbered);
    if (kept.first.stage == kept.first.none) {
        kept.first = kept.second;
        kept.second.stage = kept.second.none;
    }
}
// Brings one that has its number to its place: the same as `journal` and `commit_staged` for a record of the usual
// form, where nothing is staged.
WM_DEV void settle_one(warp_lanes lanes, arbiter& a, u32 server, const kept_record& k) {
    ring_end& end = a.journals[server];
    const u64 n = load_relaxed_cta(&end.staged);
    journal_place* const place = place_at(a, server, n);
    wm_journal_head* const head = reinterpret_cast<wm_journal_head*>(place + 1);
    const u32 lane = lanes.rank(), len = meta_len(k.meta), begin = 8 * (lane - 1); // lane 0 has no word
    const u32 have = begin < len ? len - begin : 0;
    const u64 word = have >= 8 ? k.words.word[0] : k.words.word[0] & ((u64{1} << (8 * have)) - 1);
    // Lane 0's lies behind the others: the rest of the last sector.
    reinterpret_cast<u64*>(head + 1)[(lane - 1) & (WM_GROUP_WORDS - 1)] = lane == 0 ? 0 : word;
    lanes.sync(); // the words are there, and all have read what lane 0 now changes
    if (lane == 0) {
        const u64 idx = load_relaxed_cta(&end.write_idx);
        head->time_ns = now_ns();
        head->mailbox_id = a.rows[place->mailbox].mailbox_id;
        head->len = static_cast<uint16_t>(len);
        head->type = static_cast<uint16_t>(meta_type(k.meta));
        place->idx = idx;
        place->chunks = ring_chunks(len);
        store_release_cta(&end.staged, n + 1);      // RELEASE, acquired in journal_turn
        store_release_cta(&end.write_idx, idx + 1); // likewise, and only then
    }
    lanes.sync();
}
WM_DEV void settle_kept(warp_lanes lanes, arbiter& a, u32 server, kept_records<warp_lanes>& kept) {
    number_kept(lanes, a, server, kept);
    WM_ROLLED
    while (kept.first.stage != kept.first.none) {
        settle_one(lanes, a, server, kept.first);
        kept.first = kept.second;
        kept.second.stage = kept.second.none;
    }
}
#endif
template <class L> WM_FN void settle_kept(L, arbiter&, u32 /*server*/, kept_records<L>&) {}
template <class L> WM_FN void number_kept(L, arbiter&, u32 /*server*/, kept_records<L>&) {}

// What is left of a grant of a table with taps when its module has been given back, or is kept for another: its last
// records go to their places, and all on their way to the host.
template <class L> WM_FN void finish_grant(L lanes, arbiter& a, u32 server, kept_records<L>& kept) {
    settle_kept(lanes, a, server, kept);
    hurry_journal(lanes, a, server);
}

// Journals up to `most` records that wait in mailbox m; gives their number, and the caller releases them. In a ring
// that is nearly full it leaves what a step needs. Nothing is staged.
template <class L> WM_FN u32 journal_ready(L lanes, arbiter& a, u32 server, u32 m, u32 most) {
    ring_end& end = a.journals[server];
    const u64 spare = a.args.journal_need ? a.args.journal_need - 1 : 0;
    const u64 room = ring_room(lanes, end, most + spare);
    const u32 limit = room <= spare ? 0 : room - spare < most ? static_cast<u32>(room - spare) : most;
    const passing_records r{a, server, m};
    const u32 n = carry_ready(lanes, r, limit);
    lanes.sync(); // all is stored, and what lane 0 changes now was read
    if (n != 0 && lanes.rank() == 0)
        count_journalled(a, server, m, load_relaxed_cta(&a.tapped[m].taken), n);
    lanes.sync();
    return n;
}

// Brings what waits in a server's places to its ring, up to the `staged`-th record; the places are free then.
template <class L> WM_FN void unstage(L lanes, arbiter& a, u32 server, u64 staged) {
    ring_end& end = a.journals[server];
    for (u64 n = load_relaxed_cta(&end.unstaged); n != staged; n++) {
        const journal_place* const place = place_at(a, server, n);
        const ring_chunk* const from = reinterpret_cast<const ring_chunk*>(place + 1);
        if (place->idx == not_in_ring)
            continue;
        ring_chunk* const to = reinterpret_cast<ring_chunk*>(ring_slot(a.journals[server].ring, place->idx));
        for (u32 c = lanes.rank(); c < place->chunks; c += lanes.width())
            to[c] = from[c];
    }
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_cta(&end.unstaged, staged); // RELEASE, acquired in journal
}

// Whether what waits in places is to go to the ring now.
WM_FN bool is_due(const arbiter& a, u32 server, u64 staged, bool leaving) {
    const ring_end& end = a.journals[server];
    const u64 unstaged = load_relaxed_cta(&end.unstaged);
    return leaving || staged - unstaged >= a.args.journal_places ||
           static_cast<int64_t>(load_relaxed_cta(&end.asked) - unstaged) > 0;
}

// One turn of the journal's role. False when the servers have left and all of theirs is published.
template <class L> WM_FN bool journal_turn(L lanes, arbiter& a) {
    const bool leaving = lanes.any(load_acquire_cta(&a.flags[flag_leave]) != WM_EXIT_NONE); // ACQUIRE of keep_turn
    for (u32 first = 0; first < server_count(a.args); first += lanes.width()) {
        const u32 s = first + lanes.rank(); // a lane a server
        u64 wrote = 0, staged = 0;
        bool news = false, waits = false;
        if (s < server_count(a.args)) {
            wrote = load_acquire_cta(&a.journals[s].write_idx); // first: then all that it covers is among `staged`
            staged = load_acquire_cta(&a.journals[s].staged);
            waits = staged != load_relaxed_cta(&a.journals[s].unstaged);
            const bool due = !waits || is_due(a, s, staged, leaving);
            news = due && wrote != a.journals[s].published;
            waits = due && waits;
        }
        for (u32 bits = lanes.ballot(waits); bits != 0; bits &= bits - 1)
            unstage(lanes, a, first + lowest_bit(bits), lanes.broadcast(staged, lowest_bit(bits)));
        lanes.sync();
        if (news)
            publish_ring(a, s, wrote);
    }
    lanes.sync();
    if (!leaving)
        return true;
    if (lanes.rank() == 0)
        store_release_cta(&a.flags[flag_journalled], u64{1}); // RELEASE, acquired in inbox_turn
    return false;
}

// Records of mailbox m that the host knows to be on disk, of those journalled.
WM_FN u64 durable_of(const arbiter& a, u32 m) {
    return a.args.durable ? load_relaxed_sys(at<const u64>(a.args.durable) + a.rows[m].mailbox_id) & ~durable_ended : 0;
}

} // namespace warpmail

#endif
