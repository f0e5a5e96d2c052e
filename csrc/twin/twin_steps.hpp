// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Who runs the grants of an arbiter on the CPU when there is no GPU: a thread for each server, which stands for its
// stream. It is given one grant at a time and says when that is done, as an event would.
#ifndef WARPMAIL_TWIN_TWIN_STEPS_HPP
#define WARPMAIL_TWIN_TWIN_STEPS_HPP

#include <memory>
#include <vector>

#include "protocol/step.hpp"
#include "twin/idle.hpp"

namespace warpmail {

// Counts of grants: given by the arbiter's thread, done by the worker's. Each is written by its own side.
struct twin_worker {
    alignas(WM_LINE_BYTES) u64 given = 0;
    u64 leave = 0;
    wm_step_args args = {};
    wm_server_mark* mark = nullptr; // where others see both counts, which go on over launches
    twin_worker* after = nullptr;   // and how many of its grants must be done before this one begins
    u64 after_done = 0;
    alignas(WM_LINE_BYTES) u64 done = 0;
    std::thread thread;
};

template <class Handlers> class twin_steps {
public:
    // Throws what std::thread and memory throw.
    twin_steps(u32 servers, const wm_step_plan& plan) {
        try {
            for (u32 s = 0; s < servers; s++) {
                workers_.push_back(std::make_unique<twin_worker>());
                twin_worker& w = *workers_.back();
                w.mark = plan.marks ? at<wm_server_mark>(plan.marks) + s : nullptr;
                w.given = w.done = w.mark ? load_relaxed_sys(&w.mark->given) : 0;
                workers_.back()->thread = std::thread([w = workers_.back().get()] { work(*w); });
            }
        } catch (...) {
            leave();
            throw;
        }
    }
    ~twin_steps() {
        leave();
    }
    twin_steps(const twin_steps&) = delete;
    twin_steps& operator=(const twin_steps&) = delete;

    bool launch(u32 server, const wm_step_args& args, u32 after) {
        twin_worker& w = *workers_[server];
        w.args = args;
        w.after = after < workers_.size() ? workers_[after].get() : nullptr;
        w.after_done = w.after ? load_relaxed_cta(&w.after->given) : 0;
        const u64 given = load_relaxed_cta(&w.given) + 1;
        if (w.mark)
            store_relaxed_sys(&w.mark->given, given);
        store_release_cta(&w.given, given); // RELEASE, acquired in work
        return true;
    }
    int done(u32 server) {
        const twin_worker& w = *workers_[server];
        return load_acquire_cta(&w.done) == load_relaxed_cta(&w.given); // ACQUIRE of work
    }

private:
    static void work(twin_worker& w) {
        idle_backoff idle(true);
        std::vector<u64> memory;
        for (u64 n = load_relaxed_cta(&w.done);;) {
            if (load_acquire_cta(&w.given) == n) { // ACQUIRE of launch
                if (load_acquire_cta(&w.leave))
                    return;
                idle.wait();
                continue;
            }
            while (w.after && load_acquire_cta(&w.after->done) < w.after_done)
                idle.wait();
            run(w.args, memory);
            idle.reset();
            n++;
            if (w.mark)
                store_release_sys(&w.mark->done, n); // RELEASE, acquired by who waits to come behind
            store_release_cta(&w.done, n);           // RELEASE, acquired in done
        }
    }
    static void run(const wm_step_args& args, std::vector<u64>& memory) {
        if (!step_is_valid(args))
            return;
        wm_arbiter_args table = step_table(args);
        arbiter a(table);
        u64 kept_bytes;
        memory.resize(place(a, nullptr, kept_bytes) / 8 + 2); // the same for every grant of a graph
        u8* const base = reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(memory.data())));
        run_step<Handlers>(one_lane{}, args, table, base);
    }
    void leave() {
        for (auto& w : workers_)
            store_release_cta(&w->leave, u64{1});
        for (auto& w : workers_) {
            if (w->thread.joinable())
                w->thread.join();
        }
    }

    std::vector<std::unique_ptr<twin_worker>> workers_;
};

} // namespace warpmail

#endif
