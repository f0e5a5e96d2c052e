// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Steps of a stream module ahead of their grants, where the arbiter is on the CPU. There no gate stands in the stream
// and polls: a launch is enqueued when it is time. While the work that may give a module its records is still under
// way, launches are enqueued behind it, in the device's own order, so that no trip to the host is between the two.
// Their gates look whether the rule holds when they begin (gate_begin.hpp): one that was given nothing is void.
//
// Whether to enqueue is a guess, and so is what it goes by: the words of the ends, and what producers may still give. A
// guess that is wrong costs a void launch, or the trip to the host.
#ifndef WARPMAIL_PROTOCOL_AHEAD_HPP
#define WARPMAIL_PROTOCOL_AHEAD_HPP

#include "protocol/grant.hpp"

namespace warpmail {

// Launches to enqueue beyond those under way, if all that may be given is given: by the firing rule, and by the room in
// the outputs, as in `grantable`.
WM_FN u32 launches_ahead(const wm_ahead& now) {
    rule_sum r{0, ~0u};
    for (u32 i = 0; i < now.n_inputs; i++)
        add_input(r, now.given[i], now.taken);
    u32 steps = steps_of(one_lane{}, now.rule, r, now.taken);
    for (u32 o = 0; o < now.n_outputs; o++)
        steps = now.room[o] < steps ? now.room[o] : steps;
    return at_least_none(steps - now.under_way);
}

} // namespace warpmail

#endif
