// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The persistent kernel: one block, a role per warp.
//   warp 0  decide      warp 1  inbox      then args.servers warps serve, and args.scanners scan
// Launch with (2 + args.servers + args.scanners) * 32 threads, one block, and wm_host_shared_bytes(args) of dynamic
// shared memory.
#ifndef WARPMAIL_DEVICE_ARBITER_KERNEL_CUH
#define WARPMAIL_DEVICE_ARBITER_KERNEL_CUH

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 first_server_warp = 2;

// All threads of the block, for what is done once before the roles part.
struct block_lanes {
    WM_FN u32 rank() const {
#if defined(__CUDA_ARCH__)
        return threadIdx.x;
#else
        return 0;
#endif
    }
    WM_FN u32 width() const {
#if defined(__CUDA_ARCH__)
        return blockDim.x;
#else
        return 1;
#endif
    }
    WM_FN void sync() const {
#if defined(__CUDA_ARCH__)
        __syncthreads();
#endif
    }
};

template <class Handlers> WM_DEV void arbiter_kernel(const wm_arbiter_args& args) {
    extern __shared__ __align__(16) unsigned char warpmail_shared[];
    __shared__ arbiter a;
    const warp_lanes lanes;
    const u32 warp = threadIdx.x / 32;
    const u32 first_scanner_warp = first_server_warp + args.servers;
    const bool valid = args_are_valid(args) && args.servers >= 1 && args.scanners >= 1 &&
                       blockDim.x == (first_scanner_warp + args.scanners) * 32;
    if (!valid)
        return; // the host made these arguments; it sees that launches_ended did not move
    if (threadIdx.x == 0)
        place(a, args, warpmail_shared);
    __syncthreads();
    begin(block_lanes{}, a);

    if (warp == 0) {
        decide_state d = decide_begin();
        while (decide_turn(lanes, a, d) != 0) {
        }
    } else if (warp == 1) {
        inbox_state b = inbox_begin(lanes, a);
        while (inbox_turn(lanes, a, b)) {
        }
    } else if (warp >= first_scanner_warp) {
        while (scan_turn(lanes, a, warp - first_scanner_warp, args.scanners)) {
        }
    } else {
        u64 seen = 0;
        while (serve_turn<Handlers>(lanes, a, warp - first_server_warp, seen) != 0) {
        }
    }
}

} // namespace warpmail

#endif
