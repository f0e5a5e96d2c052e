// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The handler set of `warpmail run`.
#ifndef NEARDUP_HPP
#define NEARDUP_HPP

#include "handlers/encoder.hpp"
#include "handlers/sidecar.hpp"

namespace neardup {

// planner: novel or near-duplicate; sends on what was asked for.
//   inputs  0 matches (sidecar)      rule: any      outputs  0 results (sink)
struct planner {
    template <class C> WM_FN static void step(C& c) {
        nd_planner_state* s = c.template state<nd_planner_state>();
        u32 len = 0, type = 0;
        if (s == nullptr || c.pop(0, c.scratch(), 256, len, type) != WM_OK)
            return;
        c.lanes.sync();
        const bool is_end = type == ND_END && len == sizeof(nd_end);
        if (!is_end && (type != ND_MATCH || len != sizeof(nd_match))) {
            c.reject(type == ND_MATCH || type == ND_END ? WM_REJECT_LENGTH : WM_REJECT_TYPE);
            return;
        }
        nd_match* m = reinterpret_cast<nd_match*>(c.scratch());
        const bool duplicate = !is_end && m->of != ~0ull && m->similarity >= s->threshold;
        const bool emit = is_end || duplicate || s->emit_all;
        c.lanes.sync();
        if (c.lanes.rank() == 0) {
            if (is_end) {
                nd_end* end = reinterpret_cast<nd_end*>(c.scratch());
                end->novel = s->novel;
                end->duplicates = s->duplicates;
            } else {
                m->duplicate = duplicate;
                s->novel += !duplicate;
                s->duplicates += duplicate;
            }
        }
        c.lanes.sync();
        if (emit)
            c.push(0, c.scratch(), len, is_end ? ND_END : ND_RESULT);
    }
};

struct handlers {
    template <class C> WM_FN static void step(C& c, u32 handler) {
        if (handler == ND_ENCODER)
            encoder::step(c);
        else if (handler == ND_SIDECAR)
            sidecar::step(c);
        else
            planner::step(c);
    }
};

} // namespace neardup

#endif
