// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The persistent kernel: one block, a role per warp.
//   warp 0  keep        warp 1  inbox      then args.servers warps serve, and args.scanners scan
// Launch with (2 + args.servers + args.scanners) * 32 threads, one block, and wm_host_shared_bytes(args) of dynamic
// shared memory.
#ifndef WARPMAIL_DEVICE_ARBITER_KERNEL_CUH
#define WARPMAIL_DEVICE_ARBITER_KERNEL_CUH

#include "protocol/roles.hpp"

namespace warpmail {

constexpr u32 first_server_warp = 2;
// For __launch_bounds__ of a kernel that is an arbiter: its registers must do for the largest block.
constexpr u32 arbiter_max_threads = WM_MAX_WARPS * 32;

template <class Handlers> WM_DEV void arbiter_kernel(const wm_arbiter_args& args) {
    extern __shared__ __align__(16) unsigned char warpmail_shared[];
    const u64 begin_ns = now_ns();
    arbiter a(args);
    const warp_lanes lanes;
    const u32 warp = threadIdx.x / 32;
    const u32 first_scanner_warp = first_server_warp + args.servers;
    const bool valid = args_are_valid(args) && args.plan == 0 && args.servers >= 1 && args.scanners >= 1 &&
                       blockDim.x == (first_scanner_warp + args.scanners) * 32;
    if (!valid)
        return; // the host made these arguments; it sees that launches_ended did not move
    const resumed_image<block_lanes> image(block_lanes{}, args);
    u64 kept_bytes;
    place(a, warpmail_shared, kept_bytes);
    begin(block_lanes{}, a, warpmail_shared, begin_ns, image);

    if (warp == 0) {
        keep_state k = keep_begin(lanes, a, begin_ns);
        while (keep_turn(lanes, a, k)) {
        }
    } else if (warp == 1) {
        inbox_state b = inbox_begin(lanes, a);
        while (inbox_turn(lanes, a, b)) {
        }
    } else if (warp >= first_scanner_warp) {
        scan_begin(lanes, a, warp - first_scanner_warp, args.scanners);
        while (scan_turn(lanes, a, warp - first_scanner_warp, args.scanners)) {
        }
    } else {
        const u32 server = warp - first_server_warp;
        serve_state state = serve_begin(lanes, a, server);
        while (serve_turn<Handlers>(lanes, a, server, state) != served::left) {
        }
    }
    __syncthreads();
    leave_image(block_lanes{}, a, warpmail_shared);
}

} // namespace warpmail

#endif
