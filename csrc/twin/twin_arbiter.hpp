// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The arbiter as CPU threads: the same tables, roles and handlers. The calling thread decides, scans and is the inbox;
// each of args.servers threads serves; with none, the calling thread serves too. One call is one launch: it returns
// when the stop doorbell rings or the residency is over.
#ifndef WARPMAIL_TWIN_TWIN_ARBITER_HPP
#define WARPMAIL_TWIN_TWIN_ARBITER_HPP

#include <chrono>
#include <new>
#include <thread>
#include <vector>

#include "protocol/roles.hpp"

namespace warpmail {

// Idle threads of the twin share their cores with the program's own: they spin briefly, then yield, then sleep.
class idle_backoff {
public:
    void reset() {
        turns_ = 0;
    }
    void wait() {
        turns_++;
        if (turns_ < 32) {
            pause();
        } else if (turns_ < 256) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }

private:
    unsigned turns_ = 0;
};

template <class Handlers> void twin_serve(arbiter& a, u32 server) {
    u64 seen = 0;
    idle_backoff idle;
    for (;;) {
        const u32 outcome = serve_turn<Handlers>(one_lane{}, a, server, seen);
        if (outcome == 0)
            return;
        if (outcome == 2)
            idle.reset();
        else
            idle.wait();
    }
}

// Returns 0, or WM_BAD_ARGUMENT when the arguments cannot be, or WM_FULL when memory or threads are short.
template <class Handlers> int twin_arbiter(const wm_arbiter_args* args) noexcept {
    if (args == nullptr || !args_are_valid(*args))
        return WM_BAD_ARGUMENT;
    const one_lane lanes;
    arbiter a;
    std::vector<std::thread> servers;
    try {
        std::vector<u64> memory(place(a, *args, nullptr) / 8 + 2);
        place(a, *args, reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(memory.data()))));
        begin(lanes, a);
        servers.reserve(args->servers);
        try {
            for (u32 s = 0; s < args->servers; s++)
                servers.emplace_back([&a, s] { twin_serve<Handlers>(a, s); });
        } catch (...) {
            for (u32 s = 0; s < args->servers; s++)
                store_release_cta(&a.grant[s], leave_word);
            for (auto& t : servers)
                t.join();
            return WM_FULL;
        }
        decide_state d = decide_begin();
        inbox_state b = inbox_begin(lanes, a);
        u64 seen = 0;
        bool deciding = true;
        idle_backoff idle;
        while (inbox_turn(lanes, a, b)) {
            u32 progress = 1;
            if (deciding) {
                scan(lanes, a, WM_SIDE_DEVICE, 0, 1);
                progress = decide_turn(lanes, a, d);
                deciding = progress != 0;
            }
            if (args->servers == 0) {
                // Nobody else could say so while the handler runs.
                if (progress > 1)
                    telemetry_serving(lanes, a);
                if (serve_turn<Handlers>(lanes, a, 0, seen) == 2)
                    progress = 2;
            }
            if (progress > 1 || d.reason != WM_EXIT_NONE)
                idle.reset();
            else
                idle.wait();
        }
        for (auto& t : servers)
            t.join();
        return WM_OK;
    } catch (const std::bad_alloc&) {
        return WM_FULL;
    }
}

} // namespace warpmail

#endif
