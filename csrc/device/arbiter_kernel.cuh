// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The persistent kernel: one block, a role per warp.
//   warp 0  decide      warp 1  inbox      warps 2..  serve
// Launch with (2 + args.servers) * 32 threads, one block, and wm_arbiter_shared_bytes(args) of dynamic shared memory.
#ifndef WARPMAIL_DEVICE_ARBITER_KERNEL_CUH
#define WARPMAIL_DEVICE_ARBITER_KERNEL_CUH

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 first_server_warp = 2;

template <class Handlers> WM_DEV void arbiter_kernel(const wm_arbiter_args& args) {
    extern __shared__ __align__(16) unsigned char warpmail_shared[];
    __shared__ arbiter a;
    const warp_lanes lanes;
    const u32 warp = threadIdx.x / 32;
    const bool valid =
        args_are_valid(args) && args.servers >= 1 && blockDim.x == (first_server_warp + args.servers) * 32;
    if (!valid)
        return; // the host made these arguments; it sees that launches_ended did not move
    if (threadIdx.x == 0)
        place(a, args, warpmail_shared);
    __syncthreads();
    if (warp == 0)
        begin(lanes, a);
    __syncthreads();

    if (warp == 0) {
        decide_state d = decide_begin();
        while (decide_turn(lanes, a, d) != 0) {
        }
    } else if (warp == 1) {
        inbox_state b = inbox_begin(lanes, a);
        while (inbox_turn(lanes, a, b)) {
        }
    } else {
        u64 seen = 0;
        while (serve_turn<Handlers>(lanes, a, warp - first_server_warp, seen) != 0) {
        }
    }
}

} // namespace warpmail

#endif
