// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What an end of a mailbox refuses is counted in the mailbox's header, by the end itself: each end has words of its own
// there, so these too have one writer. It stands in the branch that gives the status, off the way of every record, and
// orders nothing. Who reads it: the arbiter's telemetry for mailboxes in device memory, the host for the others.
//
// A header whose magic or version is another has no such words that could be trusted: whoever finds one is told by the
// status alone. If the mailbox is in an arbiter's table, the arbiter finds it too, and quarantines it.
#ifndef WARPMAIL_PROTOCOL_REFUSE_HPP
#define WARPMAIL_PROTOCOL_REFUSE_HPP

#include "protocol/lanes.hpp"

namespace warpmail {

// Word of wm_refusals.
enum class refusal : u32 {
    length = offsetof(wm_refusals, length) / 8,
    argument = offsetof(wm_refusals, argument) / 8,
    header = offsetof(wm_refusals, header) / 8,
    index = offsetof(wm_refusals, index) / 8,
};
constexpr u32 refusal_words = offsetof(wm_refusals, reserved) / 8;

WM_COLD void count_refusal(u64 header, u32 scope, u32 end, refusal why) {
    u64* words = reinterpret_cast<u64*>(&at<wm_mailbox_header>(header)->refused[end]);
    u64* reason = words + static_cast<u32>(why);
    store_relaxed(words, load_relaxed(words, scope) + 1, scope);
    store_relaxed(reason, load_relaxed(reason, scope) + 1, scope);
}

// Counts a refusal of an end (WM_END_*) and gives its status back. By all lanes.
template <class L> WM_FN wm_status refused(L lanes, u64 header, u32 scope, u32 end, refusal why, wm_status s) {
    if (lanes.rank() == 0)
        count_refusal(header, scope, end, why);
    return s;
}

} // namespace warpmail

#endif
