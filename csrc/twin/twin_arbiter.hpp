// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The arbiter as CPU threads: the same tables, roles and handlers. The calling thread keeps, scans and is the inbox;
// each of args.servers threads serves; with none, the calling thread serves too. One call is one launch: it returns
// when the stop doorbell rings or the residency is over. With a plan (wm_step_plan) the calling thread serves nothing:
// it is an arbiter on the CPU, and the threads stand for the GPU.
#ifndef WARPMAIL_TWIN_TWIN_ARBITER_HPP
#define WARPMAIL_TWIN_TWIN_ARBITER_HPP

#include <system_error>

#include "twin/cpu_arbiter.hpp"
#include "twin/twin_steps.hpp"

namespace warpmail {

template <class Handlers, taps Taps> void twin_serve(arbiter& a, u32 server) {
    idle_backoff idle(!can_park(a.args));
    serve_state state = serve_begin(one_lane{}, a, server);
    linger_state at;
    for (;;) {
        const served outcome = serve_turn<Handlers, Taps>(one_lane{}, a, server, state, at);
        if (outcome == served::left)
            return;
        if (outcome == served::grant)
            idle.reset();
        else
            idle.wait();
    }
}

template <class Handlers> int twin_cpu_arbiter(const wm_arbiter_args& args) noexcept {
    try {
        twin_steps<Handlers> steps(server_count(args), *at<const wm_step_plan>(args.plan));
        return cpu_arbiter(&args, steps, true);
    } catch (const std::bad_alloc&) {
        return WM_FULL;
    } catch (const std::system_error&) {
        return WM_FULL;
    }
}

// Returns 0, or WM_BAD_ARGUMENT when the arguments cannot be, or WM_FULL when memory or threads are short.
template <class Handlers> int twin_arbiter(const wm_arbiter_args* args) noexcept {
    if (args == nullptr || !args_are_valid(*args))
        return WM_BAD_ARGUMENT;
    if (args->plan)
        return twin_cpu_arbiter<Handlers>(*args);
    const one_lane lanes;
    arbiter a(*args);
    std::vector<std::thread> servers;
    try {
        const u64 begin_ns = now_ns();
        u64 kept_bytes;
        // Not zeros: a GPU's working memory holds what the kernel before left there.
        std::vector<u64> memory(place(a, nullptr, kept_bytes) / 8 + 2, 0xA5A5A5A5A5A5A5A5ull);
        u8* const base = reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(memory.data())));
        place(a, base, kept_bytes);
        begin(lanes, a, base, begin_ns, {lanes, a.args});
        servers.reserve(args->servers);
        try {
            for (u32 s = 0; s < args->servers; s++)
                servers.emplace_back([&a, s] {
                    if (a.args.journals == 0)
                        twin_serve<Handlers, no_taps>(a, s);
                    else if (a.args.journal_ahead == 0)
                        twin_serve<Handlers, followed_taps>(a, s);
                    else
                        twin_serve<Handlers, all_taps>(a, s);
                });
        } catch (...) {
            store_relaxed_cta(&a.flags[flag_closing], u64{1});
            for (auto& t : servers)
                t.join();
            return WM_FULL;
        }
        keep_state k = keep_begin(lanes, a, begin_ns);
        inbox_state b = inbox_begin(lanes, a);
        serve_state own = serve_begin(lanes, a, 0);
        linger_state own_at;
        std::vector<journal_state> roles;
        for (u32 r = 0; r < args->journal_roles; r++)
            roles.push_back(journal_begin(lanes, a, r));
        bool keeping = true, serving = args->servers == 0;
        u64 granted = 0;
        idle_backoff idle(!can_park(*args));
        const u32 parts = args->scanners ? args->scanners : 1;
        for (u32 part = 0; part < parts; part++)
            scan_begin(lanes, a, part, parts);
        while (inbox_turn(lanes, a, b)) {
            scan(lanes, a, a.device_side, 0, 1);
            if (serving)
                serving = serve_turn<Handlers>(lanes, a, 0, own, own_at) != served::left;
            if (keeping)
                keeping = keep_turn(lanes, a, k);
            for (journal_state& role : roles) {
                if (!role.over)
                    journal_turn(lanes, a, role);
            }
            u64 now_granted = 0;
            for (u32 s = 0; s < server_count(*args); s++)
                now_granted += load_relaxed_cta(&a.granted[s]);
            if (k.reason != WM_EXIT_NONE)
                std::this_thread::yield(); // the servers need the core to leave
            else if (now_granted != granted)
                idle.reset();
            else
                idle.wait();
            granted = now_granted;
        }
        for (auto& t : servers)
            t.join();
        leave_image(lanes, a, base);
        return WM_OK;
    } catch (const std::bad_alloc&) {
        return WM_FULL;
    }
}

} // namespace warpmail

#endif
