// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The kernels around a stream module's body, a warp each. Linked with the device runtime, for the conditional node.
#include <cuda_device_runtime_api.h>

#include "protocol/gate.hpp"

// `handle`: of the conditional node that holds the body; 0: there is none, and the body runs whatever the gate says.
extern "C" __global__ void __launch_bounds__(32)
    warpmail_gate_begin(const __grid_constant__ wm_gate_args args, cudaGraphConditionalHandle handle) {
    const warpmail::warp_lanes lanes;
    const bool live = warpmail::gate_is_valid(args) && warpmail::gate_begin(lanes, args);
    if (handle != 0 && threadIdx.x == 0)
        cudaGraphSetConditional(handle, live ? 1u : 0u);
}

extern "C" __global__ void __launch_bounds__(32) warpmail_gate_end(const __grid_constant__ wm_gate_args args) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_end(warpmail::warp_lanes{}, args);
}
