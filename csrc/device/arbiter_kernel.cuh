// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The persistent kernel. Launch with as many warps as block_warps (arbiter_block.hpp) says, one block and args.carriers
// more, and wm_host_shared_bytes(args) of dynamic shared memory.
#ifndef WARPMAIL_DEVICE_ARBITER_KERNEL_CUH
#define WARPMAIL_DEVICE_ARBITER_KERNEL_CUH

#include "device/arbiter_block.hpp"

namespace warpmail {

// For __launch_bounds__ of a kernel that is an arbiter: its registers must do for the largest block.
constexpr u32 arbiter_max_threads = WM_MAX_WARPS * 32;

// Inlined, as is all on the way there: a kernel's own arguments are operands of its instructions, and behind a pointer
// they would be loads from memory.
template <class Handlers> __device__ __forceinline__ void arbiter_kernel(const wm_arbiter_args& args) {
    extern __shared__ __align__(16) unsigned char warpmail_shared[];
    if (blockIdx.x != 0)
        carrier_block(args, blockIdx.x - 1);
    else
        arbiter_block<Handlers>(args, warpmail_shared);
}

} // namespace warpmail

#endif
