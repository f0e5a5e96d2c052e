// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// `drain.*`: kernels that make records for tapped mailboxes, and the ceiling of stores into pinned memory.
#ifndef WARPMAIL_BENCH_DRAIN_CUH
#define WARPMAIL_BENCH_DRAIN_CUH

#include "bench_kernels/common.cuh"
#include "bench_kernels/throughput.cuh"

namespace bench {

// Block b, one warp, pushes into mailbox b for about `ns`, as fast as there is room; adds to `pushed` what it pushed.
template <class F, u32 N> WM_DEV void flood(const wm_mailbox* boxes, u64 ns, u64* pushed) {
    const warp_lanes lanes;
    warp_producer<F> p(attach_producer(boxes[blockIdx.x]));
    words next(blockIdx.x, threadIdx.x);
    const u64 begin = now_ns();
    u64 done = 0;
    while (lanes.all(now_ns() - begin < ns)) {
        for (u32 i = 0; i < 8; i++) // the clock is slow
            done += p.template try_push_batch<order::self_contained, N>(
                [&](u32, fragment<groups_in(F::stride())>& f, u32& len, u32& type) {
                    for (u32 g = 0; g < groups_in(F::stride()); g++)
                        f.word[g] = next.take();
                    len = warp_producer<F>::payload;
                    type = 1;
                });
    }
    if (threadIdx.x == 0)
        add_relaxed_gpu(pushed, done);
}
extern "C" __global__ void flood_256(const wm_mailbox* boxes, u64 ns, u64* pushed) {
    flood<fixed_form<256, WM_SCOPE_GPU>, 32>(boxes, ns, pushed);
}
extern "C" __global__ void flood_4096(const wm_mailbox* boxes, u64 ns, u64* pushed) {
    flood<fixed_form<4096, WM_SCOPE_GPU>, 1>(boxes, ns, pushed);
}

// Stores `words` into pinned memory, `times` times over: each warp whole lines, a word a lane, as the journal does.
extern "C" __global__ void store_host(u64* to, u64 words, u32 times) {
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (u32 t = 0; t < times; t++)
#pragma unroll 4
        for (u64 i = first; i < words; i += step)
            store_relaxed_sys(to + i, i ^ t);
}

// Carries `words` from device memory into pinned memory, `times` times over: what a tap must do at the least, by one
// SM.
extern "C" __global__ void carry_host(u64* to, const u64* from, u64 from_words, u64 words, u32 times) {
    constexpr u32 ahead = 8;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    const u64 first = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (u32 t = 0; t < times; t++) {
        for (u64 i = first; i < words; i += ahead * step) {
            u64 v[ahead];
#pragma unroll
            for (u32 k = 0; k < ahead; k++)
                v[k] = load_relaxed_gpu(from + (i + k * step) % from_words);
#pragma unroll
            for (u32 k = 0; k < ahead; k++) {
                if (i + k * step < words)
                    to[i + k * step] = v[k];
            }
        }
    }
}

} // namespace bench

#endif
