// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// `hop.*`: one record from SM to SM and back; `grant.*`: through the arbiter and back.
#ifndef WARPMAIL_BENCH_HOP_CUH
#define WARPMAIL_BENCH_HOP_CUH

#include "bench_kernels/common.cuh"

namespace bench {

// How one side sends record n and how it waits for it. Every kind carries 248 payload bytes but the raw flag; a lane
// has its word of the payload in a register, as a module that computed it would.
enum kind : u32 {
    raw_flag,
    flag_after_payload,
    flag_release,
    tag_b128,
    ours_self_contained,
    ours_ordered,    // the fence stands behind the tensor, long before the push
    ours_fence_each, // a fence in every push
    ours_bytes       // the general form: any stride, scope and length known at run time, payload in shared memory
};

struct channel {
    u64* words; // one slot of 256 bytes, then a flag on its own line, for the baselines
    wm_mailbox mailbox;
    u64* tensor; // 64 KiB that the sender fills once
};
constexpr u32 tensor_words = 8192;

WM_DEV bool is_payload_lane() {
    return threadIdx.x != 0;
}

template <kind K> struct sender {
    channel c;
    warp_producer<> fast;
    wm_producer general;
    u64* staged;
    WM_DEV sender(const channel& ch, u64* shared)
        : c(ch), fast(attach_producer(ch.mailbox)), general(attach_producer(ch.mailbox)), staged(shared) {}
    WM_DEV void send(u64 n, u64 word) {
        const u32 lane = threadIdx.x;
        if (K == raw_flag) {
            if (lane == 0)
                store_relaxed_gpu(c.words + 64, n + 1);
        } else if (K == flag_after_payload || K == flag_release) {
            if (is_payload_lane())
                c.words[lane] = word;
            __syncwarp();
            if (lane == 0) {
                if (K == flag_after_payload)
                    __threadfence();
                if (K == flag_after_payload)
                    store_relaxed_gpu(c.words + 64, n + 1);
                else
                    store_release_gpu(c.words + 64, n + 1);
            }
        } else if (K == tag_b128) {
            // 16 chunks of 16 bytes, the upper 4 of each a tag.
            const u64 upper = __shfl_down_sync(~0u, word, 16);
            if (lane < 16) {
                const u64 b = (upper & 0xFFFFFFFFull) | (n + 1) << 32;
                asm volatile("{ .reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v; }" ::"l"(
                                 c.words + lane * 2),
                             "l"(word), "l"(b)
                             : "memory");
            }
        } else if (K == ours_bytes) {
            if (is_payload_lane())
                staged[lane - 1] = word;
            __syncwarp();
            try_push<order::self_contained>(warp_lanes{}, general, staged, payload_words * 8, 1);
        } else {
            constexpr order o = K == ours_ordered      ? order::fenced
                                : K == ours_fence_each ? order::ordered
                                                       : order::self_contained;
            fragment<1> f{{word}};
            fast.try_push<o>(f, payload_words * 8, 1);
        }
    }
};

template <kind K> struct receiver {
    channel c;
    warp_consumer<> fast;
    wm_consumer general;
    arrival<1> came;
    u64* staged;
    WM_DEV receiver(const channel& ch, u64* shared)
        : c(ch), fast(attach_consumer(ch.mailbox)), general(attach_consumer(ch.mailbox)), staged(shared) {}
    // False: gave up.
    WM_DEV bool receive(u64 n, u64& word) {
        const u32 lane = threadIdx.x;
        u32 looks = 0;
        if (K == raw_flag) {
            while (load_relaxed_gpu(c.words + 64) != n + 1) {
                if (++looks > give_up)
                    return false;
            }
        } else if (K == flag_after_payload || K == flag_release) {
            while (__any_sync(~0u, load_acquire_gpu(c.words + 64) != n + 1)) {
                if (++looks > give_up)
                    return false;
            }
            __syncwarp();
            word = *static_cast<volatile u64*>(c.words + lane);
        } else if (K == tag_b128) {
            u64 a = 0, b = 0;
            do {
                if (lane < 16)
                    asm volatile("{ .reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v; }"
                                 : "=l"(a), "=l"(b)
                                 : "l"(c.words + lane * 2)
                                 : "memory");
                if (++looks > give_up)
                    return false;
            } while (!__all_sync(~0u, lane >= 16 || (b >> 32) == ((n + 1) & 0xFFFFFFFFull)));
            word = lane < 16 ? a : 0;
        } else if (K == ours_bytes) {
            u32 len = 0, type = 0;
            while (try_pop<order::self_contained>(warp_lanes{}, general, staged, payload_words * 8, len, type) !=
                   WM_OK) {
                if (++looks > give_up)
                    return false;
            }
            word = staged[lane ? lane - 1 : 0];
        } else {
            constexpr order o = K == ours_self_contained ? order::self_contained : order::ordered;
            return fast.wait<o>(came, give_up_ns) == WM_OK;
        }
        return true;
    }
    // What came is used, and its slot goes back.
    WM_DEV void done(u64& word) {
        if (K == ours_self_contained || K == ours_ordered || K == ours_fence_each) {
            word = came.payload().word[0];
            fast.release(1);
        }
    }
    WM_DEV static bool carries(u32 lane) {
        return K == raw_flag ? false : K == tag_b128 ? lane != 0 && lane < 16 : lane != 0;
    }
};

// One warp on SM `ping_sm` sends record n and waits for its echo from a warp on SM `pong_sm`; times[n] is the round
// trip. Each side has written a tensor long before. `faults` counts words that are not what they should be and waits
// that gave up.
template <kind K>
WM_DEV void ping_pong(u32 ping_sm, u32 pong_sm, const channel& there, const channel& back, u32 rounds, u64* times,
                      u64* faults) {
    __shared__ u64 staged[2][32];
    const u32 role = sm_id() == ping_sm ? 1u : sm_id() == pong_sm ? 2u : 0u;
    const u32 lane = threadIdx.x;
    if (role == 0)
        return;
    const channel &to = role == 1 ? there : back, &from = role == 1 ? back : there;
    for (u32 i = lane; i < tensor_words; i += 32)
        to.tensor[i] = word_of(role, i);
    sender<K> tx(to, staged[0]);
    receiver<K> rx(from, staged[1]);
    if (K == ours_ordered)
        tx.fast.fence();
    u64 wrong = 0, word = 0;
    for (u32 n = 0; n < rounds; n++) {
        const u64 mine = word_of(n, lane);
        const u64 begin = cycles();
        if (role == 1)
            tx.send(n, mine);
        if (!rx.receive(n, word)) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        if (role == 2)
            tx.send(n, mine);
        const u64 end = cycles();
        rx.done(word);
        wrong += rx.carries(lane) && word != mine;
        if (role == 1 && lane == 0)
            times[n] = end - begin;
        if (n == 0 && (K == ours_ordered || K == ours_fence_each)) {
            // What the other side wrote before its push is visible by plain loads.
            for (u32 i = lane; i < tensor_words; i += 32)
                wrong += from.tensor[i] != word_of(3 - role, i);
        }
        __syncwarp();
    }
    report(faults, wrong);
}

#define HOP(name, K)                                                                                                   \
    extern "C" __global__ void name(u32 ping, u32 pong, const __grid_constant__ channel there,                         \
                                    const __grid_constant__ channel back, u32 rounds, u64* times, u64* faults) {       \
        ping_pong<K>(ping, pong, there, back, rounds, times, faults);                                                  \
    }
HOP(hop_raw_flag, raw_flag)
HOP(hop_flag_after_payload, flag_after_payload)
HOP(hop_flag_release, flag_release)
HOP(hop_tag_b128, tag_b128)
HOP(hop_ours_self_contained, ours_self_contained)
HOP(hop_ours_ordered, ours_ordered)
HOP(hop_ours_fence_each, ours_fence_each)
HOP(hop_ours_bytes, ours_bytes)
#undef HOP

// Keeps device memory busy until `stop` is set, or for `limit_ns`; adds to `moved` the bytes that it read and wrote.
extern "C" __global__ void saturate(const uint4* from, uint4* to, u64 n, const u64* stop, u64 limit_ns, u64* moved) {
    const u64 begin = now_ns();
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    while (load_relaxed_sys(stop) == 0 && now_ns() - begin < limit_ns) {
        u64 copied = 0;
        for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step, copied++)
            to[i] = from[i];
        copied = warp_lanes{}.sum(copied);
        if (threadIdx.x % 32 == 0)
            add_relaxed_gpu(moved, copied * 2 * sizeof(uint4));
    }
}

// A module outside the arbiter: sends a record to a resident module and waits for its answer.
template <order O>
WM_DEV void grant_ping(const wm_mailbox& there, const wm_mailbox& back, u32 rounds, u64* times, u64* faults) {
    warp_producer<> p(attach_producer(there));
    warp_consumer<> c(attach_consumer(back));
    const u32 lane = threadIdx.x;
    for (u32 n = 0; n < rounds; n++) {
        const u64 mine = word_of(n, lane);
        fragment<1> f{{mine}};
        fragment_meta meta;
        const u64 begin = cycles();
        wm_status s = p.try_push<O>(f, payload_bytes_256, 1);
        s = s == WM_OK ? c.wait<O>(f, meta, give_up_ns) : s;
        const u64 end = cycles();
        if (s != WM_OK || __any_sync(~0u, lane != 0 && f.word[0] != mine) || meta.len() != payload_bytes_256) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        c.release(1);
        if (lane == 0)
            times[n] = end - begin;
    }
}
extern "C" __global__ void grant_ping_self_contained(wm_mailbox there, wm_mailbox back, u32 rounds, u64* times,
                                                     u64* faults) {
    grant_ping<order::self_contained>(there, back, rounds, times, faults);
}
extern "C" __global__ void grant_ping_ordered(wm_mailbox there, wm_mailbox back, u32 rounds, u64* times, u64* faults) {
    grant_ping<order::ordered>(there, back, rounds, times, faults);
}

// The same with another mailbox each time, at random: `there[i]` is an input of the module that answers in `back[i]`.
extern "C" __global__ void grant_ping_random(const wm_mailbox* there, const wm_mailbox* back, u32 mailboxes, u32 rounds,
                                             u64* times, u64* faults) {
    const u32 lane = threadIdx.x;
    for (u32 n = 0; n < rounds; n++) {
        const u32 i = static_cast<u32>(word_of(n, 0) >> 32) % mailboxes;
        warp_producer<> p(attach_producer(there[i]));
        warp_consumer<> c(attach_consumer(back[i]));
        const u64 mine = word_of(n, lane);
        fragment<1> f{{mine}};
        fragment_meta meta;
        __syncwarp();
        const u64 begin = cycles();
        wm_status s = p.try_push<order::self_contained>(f, payload_bytes_256, 1);
        s = s == WM_OK ? c.wait<order::self_contained>(f, meta, give_up_ns) : s;
        const u64 end = cycles();
        if (s != WM_OK || __any_sync(~0u, lane != 0 && f.word[0] != mine) || meta.len() != payload_bytes_256) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        c.release(1);
        if (lane == 0)
            times[n] = end - begin;
        fence_acquire(WM_SCOPE_GPU); // the indices that lane 0 has stored
        __syncwarp();
    }
}

// A module outside the arbiter that has something for a resident module every now and then: waits `idle_ns`, pushes,
// and waits for the answer, whose payload words say when the handler began, and what came before it (echo.hpp). In
// times[5 * n] is how long it took until the answer was here, in nanoseconds of the device's clock; then until the
// handler began, the launch began, the launch was ready, the grant was given. A launch that ran already began before.
extern "C" __global__ void wake_ping(wm_mailbox there, wm_mailbox back, u32 rounds, u64 idle_ns, u64* times,
                                     u64* faults) {
    warp_producer<> p(attach_producer(there));
    warp_consumer<> c(attach_consumer(back));
    const u32 lane = threadIdx.x;
    for (u32 n = 0; n < rounds; n++) {
        // Not in step with anything else that has a period.
        const u64 until = warp_lanes{}.broadcast(now_ns(), 0) + idle_ns + word_of(n, 0) % (idle_ns / 4 + 1);
        while (warp_lanes{}.any(now_ns() < until)) {
        }
        fragment<1> f{{word_of(n, lane)}};
        fragment_meta meta;
        const u64 begin = now_ns();
        wm_status s = p.try_push<order::self_contained>(f, payload_bytes_256, 1);
        s = s == WM_OK ? c.wait<order::self_contained>(f, meta, give_up_ns) : s;
        const u64 end = now_ns();
        if (s != WM_OK || __any_sync(~0u, lane > 5 && f.word[0] != word_of(n, lane))) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        c.release(1);
        if (lane >= 2 && lane <= 5) // payload words 1 to 4
            times[5 * n + lane - 1] = f.word[0] - begin;
        if (lane == 0)
            times[5 * n] = end - begin;
        __syncwarp();
    }
}

// The floor of a wake-up: rings the door of a stream's wait and waits for the one warp behind it, which says when it
// began.
extern "C" __global__ void door_ping(u64* door, const u64* answer, u64 idle_ns, u64* times, u64* faults) {
    const u64 until = now_ns() + idle_ns;
    while (now_ns() < until) {
    }
    const u64 begin = now_ns();
    store_relaxed_sys(door, 1);
    u64 began = 0;
    while (began == 0 && now_ns() - begin < give_up_ns)
        began = load_relaxed_gpu(answer);
    times[0] = began - begin;
    *faults += began == 0;
}
extern "C" __global__ void door_answer(u64* answer) {
    if (threadIdx.x == 0)
        store_relaxed_gpu(answer, now_ns());
}

// Clock calibration: cycles and nanoseconds over about `ns`; then the cycles of 64 readings of each clock.
extern "C" __global__ void clock_rate(u64 ns, u64* out) {
    const u64 t0 = now_ns(), c0 = cycles();
    while (now_ns() - t0 < ns) {
    }
    out[0] = cycles() - c0;
    out[1] = now_ns() - t0;
    // A chain: each reading waits for the one before.
    u64 sum = 0;
    const u64 c1 = cycles();
    for (u32 i = 0; i < 64; i++)
        sum += now_ns() & (sum | ~0ull);
    out[2] = cycles() - c1;
    out[3] = sum;
    const u64 c2 = cycles();
    u64 last = c2;
    for (u32 i = 0; i < 64; i++)
        last = cycles();
    out[4] = last - c2;
}

} // namespace bench

#endif
