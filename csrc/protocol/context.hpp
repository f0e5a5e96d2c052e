// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What a resident handler sees while it runs a step: its inputs, outputs, state, scratch memory and lanes. A handler
// set is a struct with
//     template <class C> WM_FN static void step(C& c, warpmail::u32 handler);
// called once per firing of the module's rule, by all lanes together. A step must end by itself; it pops at most one
// record from each input and gives at most `out_records` to each output, and then never meets a full mailbox.
#ifndef WARPMAIL_PROTOCOL_CONTEXT_HPP
#define WARPMAIL_PROTOCOL_CONTEXT_HPP

#include "protocol/journal.hpp"
#include "protocol/lease.hpp"
#include "protocol/record.hpp"

namespace warpmail {

template <class L, taps Taps = all_taps> class context {
public:
    using held = record<L>; // what `take` takes
    L lanes;

    // `found`: what the server has found at an input already.
    WM_FN context(L l, arbiter& a, u32 server, u32 module, const found_records<L>& found)
        : lanes(l), arbiter_(a), module_(a.modules[module]), index_(module), server_(server), found_(found) {}

    WM_FN u32 inputs() const {
        return module_.n_inputs;
    }
    WM_FN u32 outputs() const {
        return module_.n_outputs;
    }
    // Records known to wait at an input.
    WM_FN u64 waiting(u32 input) const {
        u64 known = input < module_.n_inputs ? pending(arbiter_, module_.inputs[input]) : 0;
        known -= known != 0 && is_owed(module_.inputs[input]);
        return known == 0 && input < WM_MAX_INPUTS ? found_.bits >> input & 1 : known;
    }
    // The inputs at which a record is known to wait, a bit each; the same for all lanes.
    WM_FN u32 ready() const {
        if (found_.whole)
            return found_.bits;
        if (module_.n_inputs == 1)
            return lanes.any(waiting(0) > 0);
        u32 bits = 0;
        if (lanes.width() >= WM_MAX_INPUTS) // a lane an input
            return lanes.ballot(lanes.rank() < module_.n_inputs && waiting(lanes.rank()) > 0);
        for (u32 i = lanes.rank(); i < module_.n_inputs; i += lanes.width())
            bits |= static_cast<u32>(waiting(i) > 0) << i;
        return lanes.agree(bits);
    }
    // The module's own memory, zero-filled or as the host wrote it; kept between steps and launches. Null if it is
    // smaller than a T.
    template <class T> WM_FN T* state() const {
        return module_.state_bytes >= sizeof(T) ? at<T>(module_.state) : nullptr;
    }
    WM_FN u64 state_bytes() const {
        return module_.state_bytes;
    }
    // Memory of this server, shared by its lanes, 16-byte aligned; unspecified at the start of a step.
    WM_FN u8* scratch() const {
        return arbiter_.scratch + static_cast<u64>(server_) * arbiter_.args.scratch_bytes;
    }
    WM_FN u32 scratch_bytes() const {
        return arbiter_.args.scratch_bytes;
    }

    // Pops one record of an input into dst. See try_pop. A record with an impossible length is counted and dropped.
    template <order O = order::ordered> WM_FN wm_status pop(u32 input, void* dst, u32 dst_bytes, u32& len, u32& type) {
        if (input >= module_.n_inputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.inputs[input];
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (box.flags & brief_plain_in) {
                fragment<1> f;
                return take_plain<O, true>(input, m, box, f, dst, dst_bytes, len, type);
            }
        }
#endif
        return pop_general<O>(input, m, box, dst, dst_bytes, len, type);
    }
    // Takes one record of an input in hand, to give it to outputs unchanged: it may stay in registers all the way. One
    // at a time: to take the next ends the last, and so does writing to `scratch`. As pop.
    template <order O = order::ordered> WM_FN wm_status take(u32 input, record<L>& r) {
        if (input >= module_.n_inputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.inputs[input];
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (box.flags & brief_plain_in) {
                r.staged = false;
                return take_plain<O, false>(input, m, box, r.words, nullptr, warp_consumer<>::payload, r.len, r.type);
            }
            r.staged = true;
        }
#endif
        return pop_general<O>(input, m, box, scratch(), scratch_bytes(), r.len, r.type);
    }

    // Takes up to `most` records of an input that have arrived, unseen, and gives their number: for a handler that has
    // no use for them. A tapped input's go to the journal, together. 0: `pop` may still get one.
    WM_FN u32 skip(u32 input, u32 most) {
        if (input >= module_.n_inputs)
            return 0;
        tell();
        give_back();
        const u32 m = module_.inputs[input];
        const u64 known = lanes.broadcast(waiting(input), 0);
        most = known < most ? static_cast<u32>(known) : most;
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
        if (is_tapped(box) && (is_typed(box) || (box.tap & tap_ahead) != 0)) // each has to be looked at
            return 0;
        const u64 idx = load_relaxed_cta(&arbiter_.consumed[m]);
        u32 n = 0;
        if (is_behind_in(box) && (Taps != all_taps || (box.tap & tap_by_role) != 0)) {
            n = ready_heads(lanes, arbiter_.rows[m], idx, most); // the journal looks at the rest
        } else {
            if (is_behind_in(box))
                most = journal_spare(lanes, arbiter_, server_, skipped_, most);
            n = ready_records(lanes, arbiter_.rows[m], idx, most);
            skipped_ += n;
        }
        if (n == 0)
            return 0;
        note_due(box, tap_behind_in);
        lanes.sync(); // every lane has seen its words
        if (lanes.rank() == 0)
            give_back(module_.inputs[input], n); // read again: a register less meanwhile
        lanes.sync();
        forget(input);
        records_in_ += n;
        return n;
    }

    // Pushes one record to an output. See try_push. The bytes at src are those that any lane wrote before the call and
    // a `lanes.sync()`.
    template <order O = order::ordered> WM_FN wm_status push(u32 output, const void* src, u32 len, u32 type) {
        if (output >= module_.n_outputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.outputs[output];
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (box.flags & brief_plain_out) {
                if (len > warp_producer<>::payload)
                    return refuse_output(m, refusal::length, WM_BAD_LENGTH);
                if (src == nullptr && len != 0)
                    return refuse_output(m, refusal::argument, WM_BAD_ARGUMENT);
                return put<O>(m, box, load_share(src, len), len, type);
            }
        }
#endif
        return push_general<O>(m, box, src, len, type);
    }
    // Pushes a record that was taken. As push.
    template <order O = order::ordered> WM_FN wm_status give(u32 output, const record<L>& r) {
        if (output >= module_.n_outputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.outputs[output];
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (!r.staged && (box.flags & brief_plain_out))
                return put<O>(m, box, r.words, r.len, r.type);
            if (!r.staged) {
                lanes.sync();
                store_share(r.words, scratch(), r.len);
            }
        }
#endif
        lanes.sync();
        return push_general<O>(m, box, scratch(), r.len, r.type);
    }

    // Records of a tapped output (input) that are on disk, counted from the first that was journalled: a handler that
    // remembers how many it has given (taken) knows whether one of them is durable, and steps again later if not: those
    // of this step go to the journal behind it. By any lane.
    WM_FN u64 durable_outputs(u32 output) const {
        return output < module_.n_outputs ? durable_of(arbiter_, module_.outputs[output]) : 0;
    }
    WM_FN u64 durable_inputs(u32 input) const {
        return input < module_.n_inputs ? durable_of(arbiter_, module_.inputs[input]) : 0;
    }

    // Whether the tensor of a record may be followed; if not it is counted (WM_REJECT_LEASE), and to be left alone. See
    // warpmail::lease_check.
    WM_FN wm_status lease_check(const wm_tensor& t) {
        return judged(warpmail::lease_check(lanes, arbiter_.args.leases, t));
    }
    // Gives a tensor's shares back, once for each; a second time is refused and counted. A handler that hands a tensor
    // on does not release it: the next reader does. See warpmail::lease_release.
    WM_FN wm_status lease_release(const wm_tensor& t) {
        return judged(warpmail::lease_release(lanes, arbiter_.args.leases, t));
    }

    // Counts a record that the handler refuses: WM_REJECT_*.
    WM_FN void reject(u32 reason) {
        if (lanes.rank() == 0 && reason < WM_REJECT_REASONS)
            add_relaxed_gpu(&stats()->rejects[reason], 1);
    }

    // Lets the arbiter know of the last record that was given to a resident module. It does so by itself at the next
    // one to such a module, and when the step has ended: until then only this server knows, and it goes on with that
    // record if nothing else waits (chain.hpp). For a handler that works on after it has given. By all lanes.
    WM_FN void tell() {
        if (given_.mailbox == no_mailbox)
            return;
        if (lanes.rank() == 0)
            mark_consumer(arbiter_, brief_in(arbiter_.boxes, given_.mailbox));
        given_.mailbox = no_mailbox;
        lanes.sync();
    }
    // What `tell` would tell of.
    WM_FN const given_record<L>& given() const {
        return given_;
    }

    // Gives back the slots that were taken; done behind every step.
    WM_FN void flush() {
        give_back();
    }

    // When this launch of the arbiter began, when it had taken up what it knows, and when this step's grant was given.
    WM_FN u64 launch_began_ns() const {
        return load_relaxed_cta(&arbiter_.kept[kept_begin_ns]);
    }
    WM_FN u64 launch_ready_ns() const {
        return load_relaxed_cta(&arbiter_.kept[kept_begun_ns]);
    }
    WM_FN u64 granted_ns() const {
        return load_relaxed_cta(&arbiter_.grants[server_].since_ns);
    }

    // Gives back the slots of what was taken, and tells of what was given, without waiting for the end of the step. The
    // journal's role may follow from here on.
    WM_FN void hurry() {
        tell();
        flush();
    }

    // Between two steps, and behind the last: what this server is to journal of what was moved, and, if there is
    // another `next`, of what it may take.
    WM_FN void journal(bool next) {
        if constexpr (Taps == all_taps) {
            const bool ahead = next && arbiter_.args.journal_ahead != 0;
            if (!due_ && !ahead)
                return;
            due_ = false;
            skipped_ = 0;
            journal_ends(lanes, arbiter_, server_, module_, ahead);
        }
    }

    WM_FN u32 moved() const {
        return records_in_ + records_out_;
    }
    WM_FN void add_to(tally& t) const {
        t.records_in += records_in_;
        t.records_out += records_out_;
    }

private:
    WM_FN static bool is_tapped(mailbox_brief box) {
        return Taps != no_taps && box.tap != WM_TAP_NONE;
    }
    // Whether slots of an input are given back behind the journal.
    WM_FN static bool is_behind_in(mailbox_brief box) {
        return Taps != no_taps && (box.tap & tap_behind_in) != 0;
    }
    // Whether this server is to journal what the step moves.
    WM_FN void note_due(mailbox_brief box, u32 behind) {
        due_ = due_ || (Taps == all_taps && (box.tap & (behind | tap_by_role)) == behind);
    }
    // Whether the next record of an input is not to be taken yet: it was not journalled.
    WM_FN bool is_ahead_of_journal(u32 m, mailbox_brief box, u64 idx) const {
        return Taps == all_taps && (box.tap & tap_ahead) != 0 &&
               lanes.any(static_cast<int64_t>(load_relaxed_cta(&arbiter_.followed[m]) - idx) <= 0);
    }
    // Slots of an output that are not free. They may be in the journal's hands, whatever the header says: a producer's
    // end looks there when it finds no room.
    WM_FN u32 used_slots(u32 m, mailbox_brief box) const {
        return occupied<Taps>(arbiter_, m, box);
    }
    WM_FN bool is_held_full(mailbox_brief box, u32 used) const {
        return Taps != no_taps && (box.tap & tap_behind_out) != 0 && lanes.any(used >= 1u << box.slots_log2);
    }
    // What was found at an input is taken, or not the next record any more.
    WM_FN void forget(u32 input) {
        found_.bits &= ~(1u << input);
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group())
            found_.held = input == found_.held ? no_input : found_.held;
#endif
    }
    template <order O>
    WM_FN wm_status pop_general(u32 input, u32 m, mailbox_brief box, void* dst, u32 dst_bytes, u32& len, u32& type) {
        const u64 idx = load_relaxed_cta(&arbiter_.consumed[m]), written = load_relaxed_cta(&arbiter_.written[m]);
        if (is_ahead_of_journal(m, box, idx))
            return WM_EMPTY;
        const u64 outcome = pop_any<O>(lanes, &arbiter_.rows[m], idx, written, lanes.any(waiting(input) > 0),
                                       is_behind_in(box), dst, dst_bytes);
        const wm_status s = outcome_status(outcome);
        if (s != WM_EMPTY && s != WM_TIMEOUT) {
            len = outcome_len(outcome);
            type = outcome_type(outcome);
        }
        if (s == WM_OK || s == WM_BAD_LENGTH) {
            forget(input);
            note_taken(m, box, idx + 1, s);
            note_due(box, tap_behind_in);
        }
        return s;
    }
    template <order O> WM_FN wm_status push_general(u32 m, mailbox_brief box, const void* src, u32 len, u32 type) {
        const u64 idx = load_relaxed_cta(&arbiter_.written[m]);
        const u32 used = used_slots(m, box);
        lanes.sync();
        if (is_held_full(box, used))
            return WM_FULL;
        const wm_status s = push_any<O>(lanes, &arbiter_.rows[m], idx, idx - used, src, len, type);
        if (s != WM_OK)
            return s;
        note_given(m, box, idx + 1);
        note_due(box, tap_behind_out);
        return s;
    }
    // Whether the slot of the last record taken from mailbox m is still to be given back.
    WM_FN bool is_owed(u32 m) const {
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group())
            return m == owed_;
#endif
        (void)m;
        return false;
    }
    // Gives it back: not before what the record was taken for has been done, so that nobody waits for it, a fence least
    // of all.
    WM_FN void give_back() {
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (owed_ == no_mailbox)
                return;
            const u32 m = owed_;
            const mailbox_brief box = brief_in(arbiter_.boxes, m);
            const u64 idx = load_relaxed_cta(&arbiter_.consumed[m]) + 1;
            owed_ = no_mailbox;
            lanes.sync(); // every lane has read the index, and sees the others' words
            if (lanes.rank() == 0) {
                if (!is_behind_in(box))
                    store_relaxed_gpu(&at<wm_mailbox_header>(arbiter_.rows[m].header)->read_idx, idx);
                note_consumed(m, box, idx);
            }
            lanes.sync();
        }
#endif
    }
    // By lane 0.
    WM_FN void note_consumed(u32 m, mailbox_brief box, u64 idx) {
        store_relaxed_cta(&arbiter_.consumed[m], idx);
        if (!is_behind_in(box))
            mark_producer(arbiter_, box);
    }
    // Index `idx` of mailbox m is this module's: everybody in the arbiter learns of it.
    WM_FN void note_taken(u32 m, mailbox_brief box, u64 idx, wm_status s) {
        if (lanes.rank() == 0)
            note_consumed(m, box, idx);
        lanes.sync();
        records_in_++;
        if (s == WM_BAD_LENGTH)
            reject(WM_REJECT_LENGTH);
    }
    WM_FN void note_given(u32 m, mailbox_brief box, u64 idx) {
        if (is_inner(box) && arbiter_.args.servers != 0)
            return note_inner(m, box, idx);
        if (lanes.rank() == 0) {
            store_relaxed_cta(&arbiter_.written[m], idx);
            mark_consumer(arbiter_, box);
        }
        lanes.sync();
        records_out_++;
    }
    // The same of a record that is to be told of later.
    WM_FN void note_inner(u32 m, mailbox_brief box, u64 idx) {
        tell();
        given_ = {};
        given_.mailbox = m;
        given_.module = box.consumer;
        if (lanes.rank() == 0)
            store_relaxed_cta(&arbiter_.written[m], idx);
        lanes.sync();
        records_out_++;
    }
    // Whether the other end is this block's, too. A step that runs in a launch of its own has no such outputs.
    WM_FN static bool is_inner(mailbox_brief box) {
        return box.consumer_side == WM_SIDE_RESIDENT;
    }
#if defined(WM_HAS_WARPS)
    // The next record of a plain input into registers, if it has arrived; it stays the next one.
    template <order O>
    WM_DEV wm_status fetch(u32 input, u32 m, mailbox_brief box, u64 idx, u32 room, fragment<1>& f, u32& len,
                           u32& type) {
        fragment_meta meta = found_.meta;
        f = found_.words;
        if (input != found_.held) {
            warp_consumer<> end = plain_consumer(arbiter_.rows[m].header, box.slots_log2, idx);
            wm_status s = end.template peek<order::self_contained>(f, meta);
            if (s == WM_EMPTY && lanes.any(waiting(input) > 0))
                s = plain_wait(end, f, meta);
            if (s != WM_OK)
                return s;
        }
        acquire_slot<O>(lanes, WM_SCOPE_GPU);
        len = meta.len();
        type = meta.type();
        return len > warp_consumer<>::payload ? WM_BAD_LENGTH : len > room ? WM_TOO_SMALL : WM_OK;
    }
    template <order O, bool Copy>
    WM_DEV wm_status take_plain(u32 input, u32 m, mailbox_brief box, fragment<1>& f, void* dst, u32 room, u32& len,
                                u32& type) {
        give_back(); // of the record before
        const u64 idx = load_relaxed_cta(&arbiter_.consumed[m]);
        if (is_ahead_of_journal(m, box, idx))
            return WM_EMPTY;
        const wm_status s = fetch<O>(input, m, box, idx, room, f, len, type);
        if (Copy && s == WM_OK)
            store_share(f, dst, len);
        if (s != WM_OK && s != WM_BAD_LENGTH)
            return s;
        forget(input);
        owed_ = m;
        records_in_++;
        note_due(box, tap_behind_in);
        // Who has the bytes may be about to work on them for long; what is taken in hand is given on at once.
        if (Copy || s == WM_BAD_LENGTH)
            give_back();
        if (s == WM_BAD_LENGTH) {
            reject(WM_REJECT_LENGTH);
            return refused(lanes, arbiter_.rows[m].header, WM_SCOPE_GPU, WM_END_CONSUMER, refusal::length, s);
        }
        return s;
    }
    WM_DEV wm_status refuse_output(u32 m, refusal why, wm_status s) {
        return refused(lanes, arbiter_.rows[m].header, WM_SCOPE_GPU, WM_END_PRODUCER, why, s);
    }
    template <order O> WM_DEV wm_status put(u32 m, mailbox_brief box, const fragment<1>& f, u32 len, u32 type) {
        wm_producer p;
        p.mailbox = plain_row(arbiter_.rows[m].header, box.slots_log2);
        p.write_idx = load_relaxed_cta(&arbiter_.written[m]);
        const u32 used = used_slots(m, box);
        p.read_seen = p.write_idx - used;
        const u64 idx = p.write_idx + 1;
        if (is_held_full(box, used))
            return WM_FULL;
        lanes.sync();      // every lane has read the indices, and lane 0 sees what the others wrote
        if (releases(O)) { // RELEASE, as release_slot's
            if (is_inner(box))
                fence_release_cta();
            else if (lanes.rank() == 0)
                fence_release(WM_SCOPE_GPU);
        }
        const wm_status s = warp_producer<>(p).template try_push<order::self_contained>(f, len, type);
        if (s != WM_OK)
            return s;
        note_given(m, box, idx);
        if (given_.mailbox == m) {
            given_.held = true;
            given_.idx = static_cast<u32>(idx) - 1;
            given_.meta = static_cast<u32>(pack_meta(len, type));
            given_.words = f;
        }
        note_due(box, tap_behind_out);
        return s;
    }
#endif
    // How many of the next records have arrived, up to `most`; one that cannot be ends it.
    WM_FN static u32 ready_records(L lanes, const wm_mailbox& box, u64 from, u32 most) {
#if defined(WM_HAS_WARPS)
        if constexpr (L::is_group()) {
            if (box.record_stride == WM_STRIDE_DEFAULT && box.scope == WM_SCOPE_GPU)
                return plain_ready(box.header, box.slots_log2, from, most);
        }
#endif
        u32 n = 0, len = 0, type = 0;
        for (; n < most; n++) {
            const u64 idx = from + n;
            if (!peek_slot<order::self_contained>(lanes, slot_at(box, idx), any_form(box), lap_tag(idx, box.slots_log2),
                                                  len, type) ||
                len > payload_bytes(box))
                break;
        }
        return n;
    }
    // Ends what `skip` took; by lane 0.
    WM_FN void give_back(u32 m, u32 n) {
        wm_consumer c;
        c.mailbox = arbiter_.rows[m];
        c.read_idx = load_relaxed_cta(&arbiter_.consumed[m]) + n;
        const mailbox_brief box = brief_in(arbiter_.boxes, m);
        if (!is_behind_in(box))
            publish_read(c);
        note_consumed(m, box, c.read_idx);
    }
    WM_FN wm_status judged(wm_status s) {
        if (s != WM_OK)
            reject(WM_REJECT_LEASE);
        return s;
    }
    WM_FN wm_module_stats* stats() const {
        return at<wm_module_stats>(arbiter_.args.module_stats) + index_;
    }

    arbiter& arbiter_;
    const module_brief& module_;
    u32 index_;
    u32 server_;
    found_records<L> found_;
    u32 records_in_ = 0; // in this grant
    u32 records_out_ = 0;
    bool due_ = false; // this server is to journal some of what was moved
    u32 skipped_ = 0;  // records of this step that were skipped, and are not the roles' to journal
    given_record<L> given_;
#if defined(WM_HAS_WARPS)
    u32 owed_ = no_mailbox; // whose slot is still to be given back
#endif
};

} // namespace warpmail

#endif
