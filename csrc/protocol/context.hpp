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

namespace warpmail {

// How long a handler's pop waits for a record whose index was announced but whose bytes have not all arrived.
constexpr u64 arrival_ns = 100000;

template <class L> class context {
public:
    L lanes;

    WM_FN context(L l, arbiter& a, u32 server, u32 module)
        : lanes(l), arbiter_(a), module_(a.modules[module]), index_(module), server_(server),
          scratch_(a.scratch + static_cast<u64>(server) * a.args.scratch_bytes) {}

    WM_FN u32 inputs() const {
        return module_.n_inputs;
    }
    WM_FN u32 outputs() const {
        return module_.n_outputs;
    }
    // Records known to wait at an input.
    WM_FN u64 waiting(u32 input) const {
        return input < module_.n_inputs ? pending(arbiter_, module_.inputs[input]) : 0;
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
        return scratch_;
    }
    WM_FN u32 scratch_bytes() const {
        return arbiter_.args.scratch_bytes;
    }

    // Pops one record of an input into dst. See try_pop. A record with an impossible length is counted and dropped.
    template <order O = order::ordered> WM_FN wm_status pop(u32 input, void* dst, u32 dst_bytes, u32& len, u32& type) {
        if (input >= module_.n_inputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.inputs[input];
        wm_consumer c;
        c.mailbox = arbiter_.rows[m];
        c.read_idx = load_relaxed_cta(&arbiter_.consumed[m]);
        c.write_seen = load_relaxed_cta(&arbiter_.written[m]);
        wm_status s = try_pop<O>(lanes, c, dst, dst_bytes, len, type);
        if (s == WM_EMPTY && lanes.any(pending(arbiter_, m) > 0))
            s = warpmail::pop<O>(lanes, c, dst, dst_bytes, len, type, arrival_ns);
        if (s == WM_OK || s == WM_BAD_LENGTH) {
            if (lanes.rank() == 0) {
                store_relaxed_cta(&arbiter_.consumed[m], c.read_idx);
                mark_producer(arbiter_, m);
            }
            lanes.sync();
            records_in_++;
        }
        if (s == WM_BAD_LENGTH)
            reject(WM_REJECT_LENGTH);
        if (s == WM_OK && arbiter_.boxes[m].tap != WM_TAP_NONE)
            staged_ = journal(lanes, arbiter_, server_, m, c.read_idx - 1, dst, len, type, staged_);
        return s;
    }

    // Takes up to `most` records of an input that have arrived, unseen, and gives their number: for a handler that has
    // no use for them. A tapped input's go to the journal, together. 0: `pop` may still get one.
    WM_FN u32 skip(u32 input, u32 most) {
        if (input >= module_.n_inputs)
            return 0;
        const u32 m = module_.inputs[input];
        const u64 waiting = lanes.broadcast(pending(arbiter_, m), 0);
        most = waiting < most ? static_cast<u32>(waiting) : most;
        const u64 from = load_relaxed_cta(&arbiter_.consumed[m]);
        hurry();
        const u32 n = arbiter_.boxes[m].tap != WM_TAP_NONE ? journal_ready(lanes, arbiter_, server_, m, most)
                                                           : ready_records(lanes, arbiter_.rows[m], from, most);
        if (n == 0)
            return 0;
        lanes.sync(); // every lane has seen its words
        if (lanes.rank() == 0) {
            wm_consumer c;
            c.mailbox = arbiter_.rows[m];
            c.read_idx = from + n;
            publish_read(c);
            store_relaxed_cta(&arbiter_.consumed[m], c.read_idx);
            mark_producer(arbiter_, m);
        }
        lanes.sync();
        records_in_ += n;
        return n;
    }

    // Pushes one record to an output. See try_push. The bytes at src are those that any lane wrote before the call and
    // a `lanes.sync()`.
    template <order O = order::ordered> WM_FN wm_status push(u32 output, const void* src, u32 len, u32 type) {
        if (output >= module_.n_outputs)
            return WM_BAD_ARGUMENT;
        const u32 m = module_.outputs[output];
        wm_producer p;
        p.mailbox = arbiter_.rows[m];
        p.write_idx = load_relaxed_cta(&arbiter_.written[m]);
        p.read_seen = load_relaxed_cta(&arbiter_.consumed[m]);
        lanes.sync();
        const wm_status s = try_push<O>(lanes, p, src, len, type);
        if (s == WM_OK) {
            if (lanes.rank() == 0) {
                store_relaxed_cta(&arbiter_.written[m], p.write_idx);
                mark_consumer(arbiter_, m);
            }
            lanes.sync();
            records_out_++;
            if (arbiter_.boxes[m].tap != WM_TAP_NONE && arbiter_.boxes[m].consumer_side != WM_SIDE_RESIDENT)
                staged_ = journal(lanes, arbiter_, server_, m, p.write_idx - 1, src, len, type, staged_);
        }
        return s;
    }

    // Records of a tapped output (input) that are on disk, counted from the first that was journalled: a handler that
    // remembers how many it has given (taken) knows whether one of them is durable, and steps again later if not: those
    // of this step go to the journal when it has ended. By any lane.
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

    // Counts the records that this step has journalled so far; done behind every step.
    WM_FN void flush() {
        commit_staged(lanes, arbiter_, server_, staged_);
        staged_ = 0;
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

    // Lets what was journalled so far go to the host without waiting for the end of the step.
    WM_FN void hurry() {
        flush();
        hurry_journal(lanes, arbiter_, server_);
    }

    WM_FN u64 moved() const {
        return u64{records_in_} + records_out_;
    }

    // Adds this grant to the module's counters.
    WM_FN void count(u64 steps, u64 busy_ns) {
        if (lanes.rank() != 0)
            return;
        wm_module_stats* s = stats();
        add_relaxed_gpu(&s->steps, steps);
        add_relaxed_gpu(&s->records_in, records_in_);
        add_relaxed_gpu(&s->records_out, records_out_);
        add_relaxed_gpu(&s->busy_ns, busy_ns);
    }

private:
    // How many of the next records have arrived, up to `most`; one that cannot be ends it.
    WM_FN static u32 ready_records(L lanes, const wm_mailbox& box, u64 from, u32 most) {
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
    u8* scratch_;
    u32 records_in_ = 0; // in this grant
    u32 records_out_ = 0;
    u32 staged_ = 0; // records of this step that have a place and are not counted yet
};

// Runs one grant: at least one step, then more while the rule still holds, up to the module's batch. The module is
// owned by this server, since begin_ns.
template <class H, class L> WM_FN void run_grant(L lanes, arbiter& a, u32 server, u32 module, u64 begin_ns) {
    const module_brief& mod = a.modules[module];
    context<L> c(lanes, a, server, module);
    u64 steps = 0;
    for (bool more = true; more;) {
        const u64 before = c.moved();
        H::step(c, mod.handler);
        lanes.sync();
        c.flush();
        steps++;
        const bool moved = c.moved() != before;
        if (!moved)
            c.reject(WM_REJECT_NO_PROGRESS);
        more = moved && may_step(lanes, a, mod);
        if (steps >= mod.batch || !moved || !journal_has_room(lanes, a, server)) {
            // What is left is somebody else's turn first; without progress, only news are worth another look.
            if (more && lanes.rank() == 0)
                mark(a, module);
            break;
        }
    }
    c.hurry();
    c.count(steps, now_ns() - begin_ns);
}

} // namespace warpmail

#endif
