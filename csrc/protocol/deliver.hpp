// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Between a stream module's gate and its body: the tensor that an input's record points to is copied to an address that
// never changes, row-major without gaps, and the step's shares of its lease are released. So a body that knows nothing
// of mailboxes, descriptors and leases finds its operand where it was captured with it.
//
// By the blocks of a grid, a part of the copy each; the last of them to have done (D3) releases. A tensor that cannot
// be delivered (D1) is counted in wm_module_stats.rejects, and released if that can be. The step is void from there on:
// a body that looks at `live` is skipped, nothing is pushed, and the slots of its records go back as always.
#ifndef WARPMAIL_PROTOCOL_DELIVER_HPP
#define WARPMAIL_PROTOCOL_DELIVER_HPP

#include "protocol/gate.hpp"
#include "protocol/lease.hpp"

namespace warpmail {

constexpr u64 delivery_max = 1ull << 62; // bytes and distances stay below it, so that none overflows

// A tensor as a copy reads it: runs of bytes without gaps, and the dimensions that say where a run begins.
struct tensor_runs {
    u64 from;  // address of the first element
    u64 bytes; // of all elements
    u64 reach; // from the first element's first byte to the last one's end
    u64 run;   // bytes that lie together
    u32 outer; // dimensions [0, outer) are outside a run
    u32 unit;  // bytes of an access: a power of two up to 16 that divides runs, distances and both addresses
};

WM_FN bool multiply(u64& n, u64 by) {
    const bool fits = n == 0 || by <= delivery_max / n;
    n = fits ? n * by : n;
    return fits;
}

// False: no tensor is like that, or its end cannot be counted.
WM_FN bool runs_of(const wm_tensor& t, u64 to, tensor_runs& r) {
    const u64 element = u64{t.dtype_bits} / 8 * t.dtype_lanes;
    if (element == 0 || t.dtype_bits % 8 != 0 || t.ndim > WM_MAX_DIMS)
        return false;
    r = {t.data + t.byte_offset, element, element, element, t.ndim, 0};
    for (u32 d = 0; d < t.ndim; d++) {
        u64 distance = t.shape[d] == 1 ? 0 : static_cast<u64>(t.strides[d]); // nothing lies one further
        if (t.shape[d] <= 0 || t.strides[d] < 0 || !multiply(r.bytes, static_cast<u64>(t.shape[d])) ||
            !multiply(distance, element) || !multiply(distance, static_cast<u64>(t.shape[d]) - 1))
            return false;
        r.reach += distance; // at most 8 of them, each below 2^62: looked at below
        if (r.reach > delivery_max)
            return false;
    }
    for (; r.outer > 0; r.outer--) {
        const u32 d = r.outer - 1;
        if (t.shape[d] != 1 && static_cast<u64>(t.strides[d]) * element != r.run)
            break;
        r.run *= static_cast<u64>(t.shape[d]);
    }
    u64 divides = r.from | to | 16;
    for (u32 d = 0; d < r.outer; d++)
        divides |= r.run | (t.shape[d] == 1 ? 0 : static_cast<u64>(t.strides[d]) * element);
    r.unit = static_cast<u32>(divides & (~divides + 1));
    return true;
}

// Where byte `at_byte` of the elements in their order lies.
WM_FN u64 address_in(const wm_tensor& t, const tensor_runs& r, u64 at_byte) {
    if (r.outer == 0)
        return r.from + at_byte;
    const u64 element = u64{t.dtype_bits} / 8 * t.dtype_lanes;
    u64 n = at_byte / r.run, address = r.from + (at_byte - n * r.run);
    WM_ROLLED
    for (u32 d = r.outer; d-- > 0;) {
        const u64 size = static_cast<u64>(t.shape[d]), above = n / size;
        address += (n - above * size) * static_cast<u64>(t.strides[d]) * element;
        n = above;
    }
    return address;
}

struct alignas(16) sixteen_bytes {
    u64 low, high;
};

template <class T> WM_FN T load_unit(const wm_tensor& t, const tensor_runs& r, u64 unit) {
    return *at<const T>(address_in(t, r, unit * sizeof(T)));
}

// The units from `begin` on, `step` apart. Four loads are under way together.
template <class T> WM_FN void copy_units(const wm_tensor& t, const tensor_runs& r, u64 to, u64 begin, u64 step) {
    T* const out = at<T>(to);
    const u64 units = r.bytes / sizeof(T);
    u64 u = begin;
    for (; u + 3 * step < units; u += 4 * step) {
        const T v[4] = {load_unit<T>(t, r, u), load_unit<T>(t, r, u + step), load_unit<T>(t, r, u + 2 * step),
                        load_unit<T>(t, r, u + 3 * step)};
        WM_UNROLLED
        for (u32 i = 0; i < 4; i++)
            out[u + i * step] = v[i];
    }
    for (; u < units; u += step)
        out[u] = load_unit<T>(t, r, u);
    // What is left of one run whose length no unit divides.
    for (u64 b = units * sizeof(T) + begin; b < r.bytes; b += step)
        *at<u8>(to + b) = *at<const u8>(address_in(t, r, b));
}

WM_FN void copy_part(const wm_tensor& t, const tensor_runs& r, u64 to, u64 begin, u64 step) {
    if (r.unit == 16)
        copy_units<sixteen_bytes>(t, r, to, begin, step);
    else if (r.unit == 8)
        copy_units<u64>(t, r, to, begin, step);
    else if (r.unit == 4)
        copy_units<u32>(t, r, to, begin, step);
    else if (r.unit == 2)
        copy_units<uint16_t>(t, r, to, begin, step);
    else
        copy_units<u8>(t, r, to, begin, step);
}

WM_FN bool is_wanted(const wm_tensor& t, const tensor_runs& r, const wm_delivery& d) {
    if (r.bytes > d.bytes)
        return false;
    if (!d.exact)
        return true;
    bool same = t.dtype_code == d.dtype_code && t.dtype_bits == d.dtype_bits && t.dtype_lanes == d.dtype_lanes &&
                t.ndim == d.ndim;
    for (u32 i = 0; i < WM_MAX_DIMS; i++)
        same = same && (i >= d.ndim || t.shape[i] == d.shape[i]);
    return same;
}

constexpr u32 delivery_fine = WM_REJECT_REASONS;

// D1: delivery_fine, or WM_REJECT_*, why it cannot be; the same to all lanes. `held`: shares that are to be released.
// Lane 0 asks for the lease, over the bus.
template <class L>
WM_FN u32 delivery_check(L lanes, const wm_step_head& head, const wm_tensor& t, const wm_delivery& d, tensor_runs& r,
                         bool& held) {
    held = false;
    if (head.type != WM_TYPE_TENSOR)
        return WM_REJECT_TYPE;
    if (head.len < sizeof(wm_tensor))
        return WM_REJECT_CONTENT;
    const bool counts = runs_of(t, d.to, r);
    u32 outcome = delivery_fine;
    if (lanes.rank() == 0) {
        const wm_status s = lease_check_one(d.leases, t, counts ? r.reach : 1, held);
        if (s != WM_OK)
            outcome = s == WM_BAD_CONTENT ? WM_REJECT_CONTENT : WM_REJECT_LEASE;
        else if (is_poisoned(d.leases, t))
            outcome = WM_REJECT_LEASE;
    }
    outcome = lanes.broadcast(outcome, 0);
    return outcome == delivery_fine && !(counts && is_wanted(t, r, d)) ? WM_REJECT_CONTENT : outcome;
}

constexpr u64 verdict_given = 1ull << 63, verdict_held = 1ull << 62;
constexpr u64 verdict_ns = 1000000000; // longest wait for it

// The same for several parts, of which the first to ask finds out and the others wait for it: it is running, whichever
// of them are. Loads of one word over the bus from many SMs come one after the other, a microsecond each.
template <class L>
WM_FN u32 delivery_verdict(L lanes, wm_gate_state& s, const wm_step_head& head, const wm_tensor& t,
                           const wm_delivery& d, tensor_runs& r, bool& held) {
    const u32 asked = lanes.broadcast(lanes.rank() == 0 ? static_cast<u32>(add_ordered_gpu(&s.asked, 1)) : 0, 0);
    if (asked == 0) {
        const u32 outcome = delivery_check(lanes, head, t, d, r, held);
        if (lanes.rank() == 0) // RELEASE, acquired by the other parts
            store_release_gpu(&s.verdict, verdict_given | (held ? verdict_held : 0) | outcome);
        return outcome;
    }
    u32 outcome = WM_REJECT_LEASE;
    if (lanes.rank() == 0) {
        u64 word = 0;
        wait_until(one_lane{}, verdict_ns, [&] {
            word = load_acquire_gpu(&s.verdict);
            return word != 0;
        });
        held = (word & verdict_held) != 0;
        outcome = word != 0 ? static_cast<u32>(word) : outcome;
    }
    outcome = lanes.broadcast(outcome, 0);
    return outcome == delivery_fine && !runs_of(t, d.to, r) ? WM_REJECT_CONTENT : outcome;
}

// Part `part` of `parts`, by all lanes of one. Ordering: the body, which comes behind it on the stream, sees the copy;
// the memory that the tensor lay in is used again only after all parts have read it.
template <class L> WM_FN void gate_deliver(L lanes, u32 part, u32 parts, const wm_gate_args& g, const wm_delivery& d) {
    wm_gate_state& s = *at<wm_gate_state>(g.state);
    const wm_step_head head = *buffer_of(g, d.input);
    if ((s.took >> d.input & 1) == 0 || head.len == WM_STEP_NOTHING)
        return; // a launch without records, or the record is another input's
    const wm_tensor& t = *reinterpret_cast<const wm_tensor*>(payload_of(buffer_of(g, d.input)));
    tensor_runs runs = {};
    bool held = false;
    u32 outcome =
        parts == 1 ? delivery_check(lanes, head, t, d, runs, held) : delivery_verdict(lanes, s, head, t, d, runs, held);
    if (outcome == delivery_fine)
        copy_part(t, runs, d.to, u64{part} * lanes.width() + lanes.rank(), u64{parts} * lanes.width()); // D2
    lanes.sync();
    if (lanes.rank() != 0)
        return;
    // D3. RELEASE of this part's reading, ACQUIRE of the others'.
    const u64 one = 1 | u64{outcome != delivery_fine} << WM_DELIVERY_SHIFT;
    const u64 done = add_ordered_gpu(&s.delivered, one) + one;
    if (static_cast<u32>(done) != parts)
        return;
    s.delivered = s.asked = s.verdict = 0;
    // A lease that a host has ended under the copy, or parts that did not learn of the verdict.
    bool still;
    if (outcome == delivery_fine &&
        (done >> WM_DELIVERY_SHIFT != 0 || (parts != 1 && lease_check_one(d.leases, t, runs.reach, still) != WM_OK)))
        outcome = WM_REJECT_LEASE;
    if (held && lease_release(one_lane{}, d.leases, t) != WM_OK && outcome == delivery_fine) // D4
        outcome = WM_REJECT_LEASE;
    if (outcome == delivery_fine)
        return;
    add_relaxed_gpu(&at<wm_module_stats>(g.stats)->rejects[outcome], 1);
    s.live = 0; // D5
    if (g.calls)
        store_relaxed_sys(&at<wm_gate_report>(g.report)->live_ns, u64{0});
}

} // namespace warpmail

#endif
