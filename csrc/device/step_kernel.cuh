// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// A grant of an arbiter on the CPU as a short launch: one block of one warp, with wm_host_step_bytes(args) of dynamic
// shared memory.
#ifndef WARPMAIL_DEVICE_STEP_KERNEL_CUH
#define WARPMAIL_DEVICE_STEP_KERNEL_CUH

#include "protocol/step.hpp"

namespace warpmail {

constexpr u32 step_threads = 32;

template <class Handlers> __device__ __forceinline__ void step_kernel(const wm_step_args& args) {
    extern __shared__ __align__(16) unsigned char warpmail_shared[];
    __shared__ wm_arbiter_args table;
    if (!step_is_valid(args) || blockDim.x != step_threads)
        return; // the host made these arguments; it sees that nothing moved
    run_step<Handlers>(warp_lanes{}, args, table, warpmail_shared);
}

} // namespace warpmail

#endif
