// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// `park.corun.*`: what the neighbours of an arbiter do. None of these kernels knows of warpmail.
#ifndef WARPMAIL_BENCH_CORUN_CUH
#define WARPMAIL_BENCH_CORUN_CUH

#include "bench_kernels/common.cuh"

namespace bench {

// Numbers from 0 to 1, as bf16 and as f32 pairs of it: a matrix product of zeroes would draw less power.
extern "C" __global__ void corun_fill(u64* to, u64 n) {
    for (u64 i = blockIdx.x * u64{blockDim.x} + threadIdx.x; i < n; i += u64{gridDim.x} * blockDim.x)
        to[i] = word_of(i, 3) & 0x3F7F3F7F3F7F3F7Full;
}

// A copy through device memory.
extern "C" __global__ void corun_stream(const uint4* __restrict__ from, uint4* __restrict__ to, u64 n) {
    for (u64 i = blockIdx.x * u64{blockDim.x} + threadIdx.x; i < n; i += u64{gridDim.x} * blockDim.x)
        to[i] = from[i];
}

// One layer of a step that makes one token: a matrix of rows * columns times a vector, a row to each warp.
extern "C" __global__ void corun_decode(const float4* __restrict__ weights, const float4* __restrict__ x, float* y,
                                        u32 columns) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const float4* w = weights + u64{row} * (columns / 4);
    float sum = 0;
    for (u32 c = lane; c < columns / 4; c += 32) {
        const float4 a = w[c], b = x[c];
        sum += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
    }
    for (u32 step = 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0)
        y[row] = sum / (1 + fabsf(sum));
}

// Stays on its SM until the word is set, and no longer than `ns`.
extern "C" __global__ void corun_resident(const u64* word, u64 ns) {
    const u64 begin = now_ns();
    while (load_relaxed_sys(word) == 0 && now_ns() - begin < ns) {
    }
}

} // namespace bench

#endif
