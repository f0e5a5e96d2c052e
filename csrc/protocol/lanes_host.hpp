// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Warps and blocks on the CPU, for tests: WARPMAIL_HOST_WARPS. The code of warps is compiled as it stands and run lane
// by lane: a block is one thread of the host, each of its lanes a fiber with a stack of its own, and a lane goes on
// until a call that all lanes must make, where it waits for the others. So lanes are never in step between two such
// calls, which is what the device promises too, and a call that not all lanes of a warp make, or in which they call
// different things, ends the process with a word about it.
//
// What this is not: a model of the device's memory. Lanes of one block never run at the same moment; blocks are threads
// of the host and race as those do.
#ifndef WARPMAIL_PROTOCOL_LANES_HOST_HPP
#define WARPMAIL_PROTOCOL_LANES_HOST_HPP

#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <memory>
#include <vector>

#include "protocol/atomics.hpp"

namespace warpmail {
namespace host {

constexpr u32 stack_bytes = 64 * 1024;

// Lanes that make calls together: a warp's, or a block's. Round n of a lane is its n-th call; who is in round n + 1 has
// seen all others reach round n, so two rows of values are enough.
struct group {
    explicit group(u32 n) : calls(n), value{std::vector<u64>(n), std::vector<u64>(n)}, kind{calls, calls} {}
    std::vector<u32> calls;
    u64 total = 0;
    std::vector<u64> value[2];
    std::vector<u32> kind[2];
    bool ended = false; // a lane has left for good
};

struct fiber {
    jmp_buf at;
    ucontext_t context;
    std::unique_ptr<u8[]> stack{new u8[stack_bytes]};
    bool started = false, done = false;
};

class block {
public:
    using body = void (*)(void*, u32);

    // Runs `run(arg, rank)` for each of `threads` lanes, a multiple of 32, on this thread; returns when all have.
    static void run(u32 threads, body run_lane, void* arg) {
        block b(threads, run_lane, arg);
        block* const outer = here();
        here() = &b;
        b.go();
        here() = outer;
    }
    static block& current() {
        return *here();
    }
    u32 rank() const {
        return now_;
    }
    u32 threads() const {
        return static_cast<u32>(fibers_.size());
    }
    // What every lane of the warp (block) passed to this call, by lane.
    const u64* gather_warp(u64 v, u32 kind) {
        return gather(*warps_[now_ / 32], now_ % 32, 32, v, kind);
    }
    const u64* gather_block(u64 v, u32 kind) {
        return gather(all_, now_, threads(), v, kind);
    }

private:
    block(u32 threads, body run_lane, void* arg) : fibers_(threads), all_(threads), run_(run_lane), arg_(arg) {
        for (u32 w = 0; w < threads / 32; w++)
            warps_.emplace_back(new group(32));
    }
    static block*& here() {
        static thread_local block* b = nullptr;
        return b;
    }
    static void die(const char* why) {
        fprintf(stderr, "warps on the host: %s\n", why);
        abort();
    }

    void go() {
        left_ = threads();
        if (left_ != 0 && _setjmp(home_) == 0)
            resume(0);
    }
    void resume(u32 next) {
        now_ = next;
        fiber& f = fibers_[next];
        if (f.started)
            _longjmp(f.at, 1);
        f.started = true;
        if (getcontext(&f.context) != 0)
            die("getcontext failed");
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = stack_bytes;
        f.context.uc_link = nullptr;
        makecontext(&f.context, &block::enter, 0);
        setcontext(&f.context);
        die("setcontext failed");
    }
    static void enter() {
        block& b = current();
        b.run_(b.arg_, b.now_);
        b.fibers_[b.now_].done = true;
        b.warps_[b.now_ / 32]->ended = b.all_.ended = true;
        if (--b.left_ == 0)
            _longjmp(b.home_, 1);
        b.resume(b.next());
    }
    u32 next() const {
        u32 n = now_;
        do
            n = n + 1 == threads() ? 0 : n + 1;
        while (fibers_[n].done);
        return n;
    }
    void yield() {
        const u32 n = next();
        // All of its lanes wait, perhaps for another thread. Not often: on a busy machine it gives the core away for
        // long.
        if (n <= now_ && ++rounds_ % 1024 == 0)
            sched_yield();
        if (n != now_ && _setjmp(fibers_[now_].at) == 0)
            resume(n);
    }
    const u64* gather(group& g, u32 lane, u32 lanes, u64 v, u32 kind) {
        const u32 round = ++g.calls[lane];
        g.value[round & 1][lane] = v;
        g.kind[round & 1][lane] = kind;
        g.total++;
        while (g.total < static_cast<u64>(round) * lanes) {
            if (g.ended)
                die("a lane has left while others wait for it");
            yield();
        }
        if (g.kind[round & 1][lane == 0 ? lanes - 1 : 0] != kind)
            die("lanes make different calls");
        return g.value[round & 1].data();
    }

    std::vector<fiber> fibers_;
    std::vector<std::unique_ptr<group>> warps_;
    group all_;
    body run_;
    void* arg_;
    jmp_buf home_;
    u32 now_ = 0, left_ = 0, rounds_ = 0;
};

// Runs f(rank) for each lane of a block.
template <class F> void run_block(u32 threads, F f) {
    block::run(threads, [](void* arg, u32 rank) { (*static_cast<F*>(arg))(rank); }, &f);
}

enum kind : u32 { barrier = 1, votes, values, reduction };

template <class T> u64 packed(T v) {
    static_assert(sizeof(T) <= 8, "a register");
    u64 word = 0;
    memcpy(&word, &v, sizeof v);
    return word;
}
template <class T> T unpacked(u64 word) {
    T v;
    memcpy(&v, &word, sizeof v);
    return v;
}

} // namespace host

// As on the device: see lanes.hpp.
struct warp_lanes {
    static constexpr bool is_group() {
        return true;
    }
    void check() const {}
    u32 rank() const {
        return host::block::current().rank() % 32;
    }
    static constexpr u32 width() {
        return 32;
    }
    u32 in_block() const {
        return host::block::current().rank() / 32;
    }
    void sync() const {
        host::block::current().gather_warp(0, host::barrier);
    }
    u32 ballot(bool p) const {
        const u64* seen = host::block::current().gather_warp(p, host::votes);
        u32 bits = 0;
        for (u32 i = 0; i < 32; i++)
            bits |= static_cast<u32>(seen[i]) << i;
        return bits;
    }
    bool any(bool p) const {
        return ballot(p) != 0;
    }
    bool all(bool p) const {
        return ballot(p) == ~0u;
    }
    u32 agree(u32 v) const {
        return ballot((v >> rank() & 1u) != 0);
    }
    u32 common_bits(u32 v) const {
        return reduce(v, [](u32 a, u32 b) { return a & b; });
    }
    template <class T> T broadcast(T v, u32 from) const {
        return host::unpacked<T>(host::block::current().gather_warp(host::packed(v), host::values)[from % 32]);
    }
    template <class T> T sum(T v) const {
        return reduce(v, [](T a, T b) { return static_cast<T>(a + b); });
    }
    template <class T> T min(T v) const {
        return reduce(v, [](T a, T b) { return b < a ? b : a; });
    }
    template <class T> T max(T v) const {
        return reduce(v, [](T a, T b) { return a < b ? b : a; });
    }

private:
    template <class T, class F> static T reduce(T v, F f) {
        const u64* seen = host::block::current().gather_warp(host::packed(v), host::reduction);
        T result = host::unpacked<T>(seen[0]);
        for (u32 i = 1; i < 32; i++)
            result = f(result, host::unpacked<T>(seen[i]));
        return result;
    }
};

struct block_lanes {
    static constexpr bool is_group() {
        return true;
    }
    void check() const {}
    u32 rank() const {
        return host::block::current().rank();
    }
    u32 width() const {
        return host::block::current().threads();
    }
    void sync() const {
        host::block::current().gather_block(0, host::barrier);
    }
    bool any(bool p) const {
        return votes(p) != 0;
    }
    bool all(bool p) const {
        return votes(p) == width();
    }
    template <class T> T broadcast(T v, u32 from) const {
        return host::unpacked<T>(host::block::current().gather_block(host::packed(v), host::values)[from]);
    }

private:
    u32 votes(bool p) const {
        const u64* seen = host::block::current().gather_block(p, host::votes);
        u32 n = 0;
        for (u32 i = 0; i < width(); i++)
            n += seen[i] != 0;
        return n;
    }
};

} // namespace warpmail

#endif
