// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Kernels of `warpmail bench hop` and `throughput`. The product's own device API beside named baselines; each kernel
// checks what it receives and counts what is wrong.
#include "protocol/wait.hpp"

using namespace warpmail;

namespace {

constexpr u32 payload_words = 31;

WM_DEV u32 sm_id() {
    u32 id;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
    return id;
}
WM_DEV u64 cycles() {
    u64 c;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(c)::"memory");
    return c;
}

// Word i of record n: all bits vary, the top one too.
WM_DEV u64 word_of(u64 n, u32 i) {
    return (n + 1) * 0x9E3779B97F4A7C15ull ^ (static_cast<u64>(i) << 57);
}

// How one side sends record n and how it waits for it. Every kind carries 248 payload bytes but the raw flag.
enum kind : u32 {
    raw_flag,
    flag_after_payload,
    flag_release,
    tag_b128,
    ours_self_contained,
    ours_ordered,
    fence_after_pop
};

struct channel {
    u64* words; // one slot of 256 bytes, then a flag on its own line, for the baselines
    wm_mailbox mailbox;
};

// A wait that cannot hang: gives up after about four seconds of cycles.
constexpr u64 give_up = 8000000000ull;

template <kind K> struct sender {
    channel c;
    wm_producer p;
    WM_DEV void begin() {
        if (K >= ours_self_contained)
            p = attach_producer(c.mailbox);
    }
    WM_DEV void send(u64 n, const u64* payload) {
        const u32 lane = threadIdx.x;
        if (K == raw_flag) {
            if (lane == 0)
                store_relaxed_gpu(c.words + 64, n + 1);
        } else if (K == flag_after_payload || K == flag_release) {
            if (lane < payload_words)
                c.words[lane] = payload[lane];
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
            // 16 chunks of 16 bytes: 15 payload bytes' worth is not needed here, a 4-byte tag in each.
            if (lane < 16) {
                const u64 a = payload[lane * 2 < payload_words ? lane * 2 : 0];
                const u64 b = (payload[lane * 2 + 1 < payload_words ? lane * 2 + 1 : 0] & 0xFFFFFFFFull) | (n + 1)
                                                                                                               << 32;
                asm volatile("{ .reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed.gpu.global.b128 [%0], v; }" ::"l"(
                                 c.words + lane * 2),
                             "l"(a), "l"(b)
                             : "memory");
            }
        } else if (K == ours_self_contained) {
            try_push<order::self_contained>(warp_lanes{}, p, payload, payload_words * 8, 1);
        } else {
            try_push<order::ordered>(warp_lanes{}, p, payload, payload_words * 8, 1);
        }
    }
};

template <kind K> struct receiver {
    channel c;
    wm_consumer k;
    WM_DEV void begin() {
        if (K >= ours_self_contained)
            k = attach_consumer(c.mailbox);
    }
    // False: gave up.
    WM_DEV bool receive(u64 n, u64* into) {
        const u32 lane = threadIdx.x;
        const u64 start = cycles();
        if (K == raw_flag) {
            while (load_relaxed_gpu(c.words + 64) != n + 1) {
                if (cycles() - start > give_up)
                    return false;
            }
        } else if (K == flag_after_payload || K == flag_release) {
            while (__any_sync(~0u, load_acquire_gpu(c.words + 64) != n + 1)) {
                if (__any_sync(~0u, cycles() - start > give_up))
                    return false;
            }
            __syncwarp();
            if (lane < payload_words)
                into[lane] = *static_cast<volatile u64*>(c.words + lane);
        } else if (K == tag_b128) {
            u64 a = 0, b = 0;
            do {
                if (lane < 16)
                    asm volatile("{ .reg .b128 v; ld.relaxed.gpu.global.b128 v, [%2]; mov.b128 {%0, %1}, v; }"
                                 : "=l"(a), "=l"(b)
                                 : "l"(c.words + lane * 2)
                                 : "memory");
                if (__any_sync(~0u, cycles() - start > give_up))
                    return false;
            } while (!__all_sync(~0u, lane >= 16 || (b >> 32) == ((n + 1) & 0xFFFFFFFFull)));
            if (lane < 16) {
                into[lane * 2 < payload_words ? lane * 2 : 0] = a;
            }
        } else {
            u32 len = 0, type = 0;
            while ((K == ours_self_contained || K == fence_after_pop
                        ? try_pop<order::self_contained>(warp_lanes{}, k, into, payload_words * 8, len, type)
                        : try_pop<order::ordered>(warp_lanes{}, k, into, payload_words * 8, len, type)) != WM_OK) {
                if (__any_sync(~0u, cycles() - start > give_up))
                    return false;
            }
            if (K == fence_after_pop)
                fence_release(WM_SCOPE_GPU); // an acquire fence is the same instruction
        }
        __syncwarp();
        return true;
    }
};

// One warp on SM `ping_sm` sends record n and waits for its echo from a warp on SM `pong_sm`; cycles[n] is the round
// trip. `faults` counts words that are not what they should be and waits that gave up.
template <kind K>
WM_DEV void ping_pong(u32 ping_sm, u32 pong_sm, channel there, channel back, u32 rounds, u64* times, u64* faults) {
    __shared__ u64 out[32], in[32];
    __shared__ u32 role;
    if (threadIdx.x == 0)
        role = sm_id() == ping_sm ? 1u : sm_id() == pong_sm ? 2u : 0u;
    __syncthreads();
    const u32 lane = threadIdx.x;
    if (role == 0)
        return;
    sender<K> tx;
    receiver<K> rx;
    tx.c = role == 1 ? there : back;
    rx.c = role == 1 ? back : there;
    tx.begin();
    rx.begin();
    u64 wrong = 0;
    for (u32 n = 0; n < rounds; n++) {
        out[lane] = word_of(n, lane);
        __syncwarp();
        const u64 begin = cycles();
        if (role == 1)
            tx.send(n, out);
        if (!rx.receive(n, in)) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        if (role == 2)
            tx.send(n, out);
        const u64 end = cycles();
        if (K >= ours_self_contained || K == flag_release || K == flag_after_payload)
            wrong += lane < payload_words && in[lane] != word_of(n, lane);
        if (role == 1 && lane == 0)
            times[n] = end - begin;
        __syncwarp();
    }
    wrong = warp_lanes{}.sum(wrong);
    if (lane == 0 && wrong)
        *faults += wrong;
}

} // namespace

#define HOP(name, K)                                                                                                   \
    extern "C" __global__ void name(u32 ping, u32 pong, channel there, channel back, u32 rounds, u64* times,           \
                                    u64* faults) {                                                                     \
        ping_pong<K>(ping, pong, there, back, rounds, times, faults);                                                  \
    }
HOP(hop_raw_flag, raw_flag)
HOP(hop_flag_after_payload, flag_after_payload)
HOP(hop_flag_release, flag_release)
HOP(hop_tag_b128, tag_b128)
HOP(hop_ours_self_contained, ours_self_contained)
HOP(hop_ours_ordered, ours_ordered)
HOP(hop_fence_after_pop, fence_after_pop)
#undef HOP

// Keeps device memory busy until `stop` is set, or for `limit_ns`.
extern "C" __global__ void saturate(const uint4* from, uint4* to, u64 n, const u64* stop, u64 limit_ns) {
    const u64 begin = now_ns();
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    while (load_relaxed_sys(stop) == 0 && now_ns() - begin < limit_ns) {
        for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step)
            to[i] = from[i];
    }
}

// A module outside the arbiter: sends a record to a resident relay and waits for its answer.
extern "C" __global__ void grant_ping(wm_mailbox there, wm_mailbox back, u32 rounds, u64* times, u64* faults) {
    __shared__ u64 out[32], in[32];
    const u32 lane = threadIdx.x;
    wm_producer p = attach_producer(there);
    wm_consumer c = attach_consumer(back);
    for (u32 n = 0; n < rounds; n++) {
        out[lane] = word_of(n, lane);
        __syncwarp();
        const u64 begin = cycles();
        u32 len = 0, type = 0;
        wm_status s = try_push(warp_lanes{}, p, out, payload_words * 8, 1);
        if (s == WM_OK)
            s = pop(warp_lanes{}, c, in, payload_words * 8, len, type, 100000000);
        if (s != WM_OK || __any_sync(~0u, lane < payload_words && in[lane] != word_of(n, lane))) {
            if (lane == 0)
                *faults += 1;
            return;
        }
        if (lane == 0)
            times[n] = cycles() - begin;
        __syncwarp();
    }
}

// Clock calibration: cycles and nanoseconds over about `ns`.
extern "C" __global__ void clock_rate(u64 ns, u64* out) {
    const u64 t0 = now_ns(), c0 = cycles();
    while (now_ns() - t0 < ns) {
    }
    out[0] = cycles() - c0;
    out[1] = now_ns() - t0;
    const u64 c1 = cycles();
    for (u32 i = 0; i < 64; i++)
        now_ns();
    out[2] = (cycles() - c1) / 64;
}
