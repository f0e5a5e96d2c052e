// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// What the bench kernels share: where a block runs, cycles, payload words.
#ifndef WARPMAIL_BENCH_COMMON_CUH
#define WARPMAIL_BENCH_COMMON_CUH

#include "warpmail/device.hpp"

namespace bench {

using namespace warpmail;

constexpr u32 payload_words = 31;
constexpr u32 payload_bytes_256 = payload_words * 8;

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

// Gives up a wait after that many looks, some seconds.
constexpr u32 give_up = 1u << 24;
constexpr u64 give_up_ns = 2000000000;

WM_DEV void report(u64* faults, u64 wrong) {
    wrong = warp_lanes{}.sum(wrong);
    if (threadIdx.x % 32 == 0 && wrong)
        add_relaxed_gpu(faults, wrong);
}

} // namespace bench

#endif
