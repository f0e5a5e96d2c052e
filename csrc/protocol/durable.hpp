// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What a producer outside the arbiter can know of its records in the journal: how many of a tapped mailbox are on disk.
// The journal's writer stores the count into mapped memory when `fdatasync` has returned; a look at it is one load over
// the bus. It orders nothing: what it tells of is on the disk.
//
//   try_push(lanes, p, src, len, type);                            // p: wm_producer
//   wait_durable(lanes, d, p.write_idx, 5000000);                  // all that p has pushed is on disk: WM_OK
#ifndef WARPMAIL_PROTOCOL_DURABLE_HPP
#define WARPMAIL_PROTOCOL_DURABLE_HPP

#include "protocol/wait.hpp"

namespace warpmail {

constexpr u64 durable_ended = 1ull << WM_DURABLE_ENDED_BIT;

// Records of the mailbox that are on disk: the first so many, as none of this mailbox is ever left out.
WM_FN u64 durable_records(const wm_durable& d) {
    return load_relaxed_sys(at<const u64>(d.word)) & ~durable_ended;
}

// Waits until the first `records` records of the mailbox are on disk, up to budget_ns. A record gets there when its
// consumer has taken it and the journal has synced: a wait on a record that nobody takes runs into its budget.
// WM_OK; WM_TIMEOUT; WM_NOT_DURABLE: they are not, and the journal has failed, so that they never will be.
template <class L> WM_FN wm_status wait_durable(L lanes, const wm_durable& d, u64 records, u64 budget_ns) {
    wm_status s = WM_TIMEOUT;
    wait_until(lanes, budget_ns, [&] {
        const u64 word = lanes.broadcast(load_relaxed_sys(at<const u64>(d.word)), 0);
        if ((word & ~durable_ended) >= records)
            s = WM_OK;
        else if (word & durable_ended)
            s = WM_NOT_DURABLE;
        return s != WM_TIMEOUT;
    });
    return s;
}

} // namespace warpmail

#endif
