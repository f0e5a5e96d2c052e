// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Taps: records of chosen mailboxes are copied into rings in pinned memory as they pass the arbiter, for the host to
// drain. A record passes where a resident module takes it, or, when its consumer is not resident, where a resident
// module gives it.
//
// Whoever waits for what a step gives shall not wait for the journal, and least of all for the bus: a fence of a warp
// that has stored over it takes as long as the way there and back. So while a step runs a server does nothing for a
// tap. A role, a warp of its own, follows `consumed`, or `written`, of each tapped mailbox and copies the records from
// their slots, which are only then given back (`followed`): it has the part of a second consumer. Where its ring is
// full the records stay where they are, and whoever fills the mailbox waits; or they are dropped, as the tap says.
//
//   several roles  As many as there are warps for, up to one for each mailbox; each follows mailboxes of its own, into
//   a
//                  ring of its own, so none waits for another. Further blocks of the launch may help them (carry.hpp).
//   tensors        Where a tap wants the tensors, too, the server journals a record ahead of the step that may take it:
//                  whoever learns of it from that step may end its lease (R3). What a step gives to somebody outside it
//                  journals behind the step. For this each server has a ring.
//   no role        A step that runs in a launch of its own journals what it moves behind it, and publishes it.
//
// A server has one place for this, between two steps (journal_ends), and little code, so that none of it is in the way
// of a step.
//
// The number in the head, consecutive in each mailbox, is taken by whoever journals the record, in the order of that
// one's ring; it restores the order of a mailbox whose module several servers run. A record that is dropped takes none.
#ifndef WARPMAIL_PROTOCOL_JOURNAL_HPP
#define WARPMAIL_PROTOCOL_JOURNAL_HPP

#include "protocol/carry.hpp"
#include "protocol/durable.hpp"
#include "protocol/record.hpp"

namespace warpmail {

// Records of a mailbox that the role follows before it looks at others.
constexpr u32 follow_at_once = 64;
// The role goes along the mailboxes at once when nothing has come for as long, and else so often: what it does keeps
// the servers beside it from their instructions, and a fence of theirs from its end while stores are on the bus.
constexpr u64 follow_every_ns = 20000;
// Between two looks of the role in vain.
constexpr u32 follow_doze_ns = 200;

// Whether a tap takes only some records.
WM_FN bool is_typed(mailbox_brief box) {
    return (box.tap >> WM_TAP_TYPED_BIT & 1) != 0;
}
// Whether it takes records of this type; there is a tap.
WM_FN bool is_chosen(const arbiter& a, mailbox_brief box, u32 m, u32 type) {
    return !is_typed(box) || a.rows[m].tap >> WM_TAP_TYPE_SHIFT == type;
}

// Whether a step of any module can be journalled without waiting. Looks over the bus only when the ring seems full.
template <class L> WM_FN bool journal_has_room(L lanes, arbiter& a, u32 server) {
    if (a.args.journal_need == 0)
        return true;
    return ring_room(lanes, a.journals[server], a.args.journal_need) >= a.args.journal_need;
}

// n more records of mailbox m are in a ring; by lane 0 of who filled it, when all lanes have stored theirs and met.
// RELEASE, acquired in journal_turn.
WM_FN void count_journalled(arbiter& a, u32 ring, u32 m, u32 n) {
    ring_end& end = a.journals[ring];
    store_relaxed_cta(&a.tapped[m].taken, load_relaxed_cta(&a.tapped[m].taken) + n);
    store_release_cta(&end.write_idx, load_relaxed_cta(&end.write_idx) + n);
}
WM_FN void count_dropped(arbiter& a, u32 m, u32 n) {
    store_relaxed_cta(&a.tapped[m].dropped, load_relaxed_cta(&a.tapped[m].dropped) + n);
}
// Tells the host of the first `wrote` records of a ring. By one thread, the only one that does so for this ring, and
// that has seen all of them.
WM_FN void publish_ring(arbiter& a, u32 ring, u64 wrote) {
    if (wrote == a.journals[ring].published)
        return;
    store_release_sys(&ring_header(a.journals[ring].ring)->write_idx, wrote); // R1
    a.journals[ring].published = wrote;
}

// Lets what is journalled go to the host now; the role does that by itself.
template <class L> WM_FN void hurry_journal(L lanes, arbiter& a, u32 server) {
    if (a.args.journals != 0 && !has_journal_role(a.args) && lanes.rank() == 0)
        publish_ring(a, server, load_relaxed_cta(&a.journals[server].write_idx));
}

// The records of mailbox m before `idx` are journalled, and were only up to `before`; by lane 0. What follows its
// resident end gives the slots back: a resident producer is told if it may have found no room, others each time.
WM_FN void note_followed(arbiter& a, u32 m, mailbox_brief box, u64 before, u64 idx) {
    store_release_cta(&a.followed[m], idx);
    if ((box.tap & tap_ahead) != 0)
        return;
    if ((box.tap & tap_behind_in) != 0) {
        wm_consumer c;
        c.mailbox = a.rows[m];
        c.read_idx = idx;
        publish_read(c);
        if ((box.flags & brief_consumed_producer) == 0)
            return;
    }
    fence_sc_cta(); // pairs with that of has_room
    const module_brief& mod = a.modules[box.producer];
    const u64 used = load_relaxed_cta(&a.written[m]) - before;
    if (mod.kind != WM_KIND_RESIDENT || used + mod.out_records > 1ull << box.slots_log2)
        mark(a, box.producer);
}

// What the record with index `idx` is, by its head, if that is there.
template <class L> WM_FN bool peek_followed(L lanes, const arbiter& a, u32 m, u64 idx, u32& len, u32& type) {
    const wm_mailbox& row = a.rows[m];
    const u64 head = load_relaxed(slot_at(row, idx), row.scope);
    len = meta_len(head);
    type = meta_type(head);
    return lanes.all(((head ^ lap_tag(idx, row.slots_log2)) & tag_mask) == 0);
}
// How many records from `idx` on, up to `most`, have a head that is there and a length that can be: a lane a record.
template <class L> WM_FN u32 ready_heads(L lanes, const wm_mailbox& row, u64 idx, u32 most) {
    const u32 all = L::width() < 32 ? (1u << (L::width() % 32)) - 1 : ~0u;
    u32 n = 0;
    for (u32 run = L::width(); n < most && run == L::width(); n += run) {
        const u64 mine = idx + n + lanes.rank();
        const u64 head = n + lanes.rank() < most ? load_relaxed(slot_at(row, mine), row.scope) : 0;
        const bool good = n + lanes.rank() < most && ((head ^ lap_tag(mine, row.slots_log2)) & tag_mask) == 0 &&
                          meta_len(head) <= payload_bytes(row);
        const u32 bits = lanes.ballot(good);
        run = bits == all ? L::width() : lowest_bit(~bits);
    }
    return n < most ? n : most;
}

// Journals some of the records that are due of mailbox m, into `ring`, or drops them. False: the ring has no room, or
// they cannot be seen yet, and they are to stay. By the one who journals them. `Role`: the quickest way, with the help
// that there is; else the shortest.
template <bool Role, class L> WM_FN bool follow_some(L lanes, arbiter& a, u32 ring, u32 m, mailbox_brief box) {
    const u64 from = lanes.broadcast(load_relaxed_cta(&a.followed[m]), 0);
    const u64 due = lanes.broadcast(to_follow(a, m, box), 0);
    u32 n = due < follow_at_once ? static_cast<u32>(due) : follow_at_once;
    if (n == 0)
        return true;
    u32 len = 0, type = 0, passed = 0, dropped = 0;
    bool chosen = true, seen = true;
    if (is_typed(box)) { // one by one, as each has to be looked at
        seen = peek_followed(lanes, a, m, from, len, type);
        chosen = is_chosen(a, box, m, type);
        n = 1;
    }
    if (chosen && seen) {
        const u64 room = ring_room(lanes, a.journals[ring], n);
        if (room == 0 && (box.tap & WM_TAP_POLICY) != WM_TAP_DROP)
            return false;
        if (room == 0) { // not what is still to come
            dropped = (box.tap & tap_ahead) == 0 || peek_followed(lanes, a, m, from, len, type) ? n : 0;
            if (dropped == 0)
                return false;
        } else {
            n = room < n ? static_cast<u32>(room) : n;
            const passing_records r{a, ring, m};
            if constexpr (Role) {
                passed = carry_ready(lanes, r, n);
            } else {
                begin_batch(lanes, a, ring);
                passed = pass_by_stage(lanes, r, n);
            }
            // What its consumer refuses is not journalled; what else is not to be seen yet, is soon.
            seen = passed != 0 || (peek_followed(lanes, a, m, from, len, type) && len > payload_bytes(a.rows[m]));
            n = passed == 0 ? 1 : passed;
        }
    }
    if (!seen) { // nor ever, if whoever fills the mailbox went beyond its bounds
        if (!lanes.any(is_quarantined(a, m)))
            return false;
        dropped = n;
    }
    lanes.sync(); // all is stored, and what lane 0 changes now was read
    if (lanes.rank() == 0) {
        if (passed != 0)
            count_journalled(a, ring, m, passed);
        if (dropped != 0)
            count_dropped(a, m, dropped);
        note_followed(a, m, box, from, from + n);
    }
    lanes.sync();
    return true;
}

// Records that a server may take many at a time of an input and journal behind the step: what its ring has room for
// beside what a step needs, and what it has `skipped` already, as there is nobody else to do it.
template <class L> WM_FN u32 journal_spare(L lanes, arbiter& a, u32 server, u32 skipped, u32 most) {
    const u64 spare = skipped + (a.args.journal_need ? a.args.journal_need - 1 : 0);
    const u64 room = ring_room(lanes, a.journals[server], most + spare);
    return room <= spare ? 0 : room - spare < most ? static_cast<u32>(room - spare) : most;
}

// What this server is to journal at an end of its module: behind a step, or ahead of one.
template <class L> WM_FN void journal_end(L lanes, arbiter& a, u32 server, u32 m, mailbox_brief box) {
    const u64 begin = lanes.broadcast(now_ns(), 0);
    WM_ROLLED
    for (u32 looks = 0; lanes.any(to_follow(a, m, box) != 0);) {
        if (follow_some<false>(lanes, a, server, m, box))
            continue;
        // What is known to be there is waited for, as nobody else journals it.
        const bool expected = (box.tap & tap_ahead) == 0 || pending(a, m) != 0;
        if (!lanes.any(expected) || lanes.broadcast(now_ns(), 0) - begin > arrival_ns)
            break;
        pause_after(looks++);
    }
}
// Between two steps of a module: what the one before has left to its server, and then, if there is to be another, what
// that may take where tensors are wanted. The ring has room for the first in any case.
template <class L> WM_FN void journal_ends(L lanes, arbiter& a, u32 server, const module_brief& mod, bool ahead) {
    const u32 inputs = mod.n_inputs, ends = inputs + mod.n_outputs;
    WM_ROLLED
    for (u32 i = 0; i < (ahead ? 2 * ends : ends); i++) {
        const u32 end = i < ends ? i : i - ends, behind = end < inputs ? tap_behind_in : tap_behind_out;
        const u32 m = end < inputs ? mod.inputs[end] : mod.outputs[end - inputs];
        const mailbox_brief box = brief_in(a.boxes, m);
        const u32 what = i < ends ? behind : end < inputs ? tap_ahead : 0u;
        if ((box.tap & what) != 0 && (box.tap & tap_by_role) == 0)
            journal_end(lanes, a, server, m, box);
    }
}

// A role's own state, beside what its ring's end has.
struct journal_state {
    u32 part; // which of the roles it is: it follows every journal_roles-th mailbox from that one on
    bool pressing;
    bool over;
};
template <class L> WM_FN journal_state journal_begin(L lanes, const arbiter& a, u32 part) {
    ring_end& end = a.journals[server_count(a.args) + part];
    carry_serve(lanes, a, server_count(a.args) + part);
    if (lanes.rank() == 0) {
        end.followed_ns = 0;
        end.moved_ns = end.moved_ns == 0 ? now_ns() : end.moved_ns;
    }
    lanes.sync();
    return {part, false, false};
}

// Whether a mailbox can wait no longer: half of its slots, or as many records as are followed at once.
WM_FN bool is_pressing(mailbox_brief box, u64 due) {
    return due >= follow_at_once || due >= (1ull << box.slots_log2) / 2;
}

// Tells the host of what is in the rings from `first` to before `end`: a lane a ring.
template <class L> WM_FN void publish_rings(L lanes, arbiter& a, u32 first, u32 end) {
    for (u32 ring = first + lanes.rank(); ring < end; ring += lanes.width())
        publish_ring(a, ring, load_acquire_cta(&a.journals[ring].write_idx)); // ACQUIRE of count_journalled
    lanes.sync();
}

// One turn of a role of the journal's. False when the servers have left and all of theirs is published: what finds no
// room stays in its mailbox for the next launch, if there is to be one soon.
template <class L> WM_FN bool journal_turn(L lanes, arbiter& a, journal_state& s) {
    const u64 left = lanes.broadcast(load_acquire_cta(&a.flags[flag_left]), 0); // ACQUIRE of has_followed
    const u32 roles = a.args.journal_roles, own = server_count(a.args) + s.part;
    const u64 now = lanes.broadcast(now_ns(), 0);
    const bool late = left != WM_EXIT_NONE || now - load_relaxed_cta(&a.journals[own].followed_ns) >= follow_every_ns;
    bool behind = false, moved = false, pressing = false;
    for (u32 first = s.part; first < a.args.n_mailboxes; first += lanes.width() * roles) {
        const u32 mine = first + lanes.rank() * roles; // a lane a mailbox
        u64 due = 0;
        bool presses = false;
        if (mine < a.args.n_mailboxes) {
            const mailbox_brief box = brief_in(a.boxes, mine);
            due = (box.tap & tap_by_role) != 0 ? to_follow(a, mine, box) : 0;
            presses = due != 0 && is_pressing(box, due);
        }
        const u32 waiting = lanes.ballot(due != 0);
        behind = behind || waiting != 0;
        pressing = pressing || s.pressing || lanes.any(presses);
        for (u32 bits = late || pressing ? waiting : 0; bits != 0; bits &= bits - 1) {
            const u32 m = first + lowest_bit(bits) * roles;
            moved = follow_some<true>(lanes, a, own, m, brief_in(a.boxes, m)) || moved;
        }
    }
    s.pressing = pressing && !s.pressing; // then all mailboxes are looked at once more, those before it too
    // As long as the stop says it waits for room in a ring; over launches, so that those that come behind it do not
    // wait again.
    const u64 patience = lanes.broadcast(load_relaxed_cta(&a.flags[flag_stop]), 0);
    const u64 stood_ns = lanes.broadcast(now_ns() - load_relaxed_cta(&a.journals[own].moved_ns), 0);
    lanes.sync(); // all have read both
    if (lanes.rank() == 0) {
        if (moved && (late || !s.pressing))
            store_relaxed_cta(&a.journals[own].followed_ns, now_ns());
        if (moved || !behind)
            store_relaxed_cta(&a.journals[own].moved_ns, now_ns());
    }
    publish_rings(lanes, a, own, own + 1);
    if (s.part == 0)
        publish_rings(lanes, a, 0, server_count(a.args));
    if (left == WM_EXIT_NONE) {
        if (lanes.rank() == 0)
            store_relaxed_cta(&a.roles[s.part], behind ? role_behind : 0);
        lanes.sync();
        if (L::is_group() && !moved)
            doze(follow_doze_ns);
        return true;
    }
    if (behind && (moved || (left == WM_EXIT_STOP && stood_ns < patience)))
        return true;
    lanes.sync();
    if (lanes.rank() == 0)
        store_release_cta(&a.roles[s.part],
                          role_done | (behind ? role_behind : 0)); // RELEASE, acquired in has_followed
    s.over = true;
    return false;
}

// Whether there are records that a role has to follow, and it has seen them; else it may be about to.
template <class L> WM_FN bool is_behind(L lanes, const arbiter& a) {
    u32 said = 0;
    for (u32 r = lanes.rank(); r < a.args.journal_roles; r += lanes.width())
        said |= load_relaxed_cta(&a.roles[r]);
    return a.args.journal_roles != 0 && lanes.any((said & role_behind) != 0);
}
// Whether all roles have come to their end; tells them why the servers have left.
template <class L> WM_FN bool has_followed(L lanes, arbiter& a, u32 reason) {
    if (a.args.journal_roles == 0)
        return true;
    u32 waits = 0;
    for (u32 r = lanes.rank(); r < a.args.journal_roles; r += lanes.width())
        waits |= (load_acquire_cta(&a.roles[r]) & role_done) == 0; // ACQUIRE of journal_turn
    if (!lanes.any(waits != 0))
        return true;
    if (lanes.rank() == 0)
        store_release_cta(&a.flags[flag_left], u64{reason}); // RELEASE, acquired in journal_turn
    lanes.sync();
    return false;
}

// Records of mailbox m that the host knows to be on disk, of those journalled.
WM_FN u64 durable_of(const arbiter& a, u32 m) {
    return a.args.durable ? load_relaxed_sys(at<const u64>(a.args.durable) + a.rows[m].mailbox_id) & ~durable_ended : 0;
}

} // namespace warpmail

#endif
