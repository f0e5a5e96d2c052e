// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The kernels around a stream module's body, a warp each but the copy. Linked with the device runtime, for the
// conditional node.
#include <cuda_device_runtime_api.h>

#include "protocol/deliver.hpp"
#include "protocol/gate_begin.hpp"
#include "protocol/gate_end.hpp"

extern "C" __global__ void __launch_bounds__(32) warpmail_gate_begin(const __grid_constant__ wm_gate_args args) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_begin<false>(warpmail::warp_lanes{}, args);
}

// The same where the inputs are plain; the host chooses.
extern "C" __global__ void __launch_bounds__(32) warpmail_gate_begin_plain(const __grid_constant__ wm_gate_args args) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_begin<true>(warpmail::warp_lanes{}, args);
}

// Decides on the conditional node that holds a body. Not the gate itself: graphs with a conditional node run one after
// the other on a device, so that one whose gate waits would keep those of other modules waiting.
extern "C" __global__ void __launch_bounds__(32)
    warpmail_gate_decide(const __grid_constant__ wm_gate_args args, cudaGraphConditionalHandle handle) {
    if (threadIdx.x == 0)
        cudaGraphSetConditional(handle, warpmail::at<const wm_gate_state>(args.state)->live != 0 ? 1u : 0u);
}

// Between gate and body, as many blocks as the copy is worth.
extern "C" __global__ void __launch_bounds__(256, 3)
    warpmail_gate_deliver(const __grid_constant__ wm_gate_args args, const __grid_constant__ wm_delivery delivery) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_deliver(warpmail::block_lanes{}, blockIdx.x, gridDim.x, args, delivery);
}

extern "C" __global__ void __launch_bounds__(32) warpmail_gate_end(const __grid_constant__ wm_gate_args args) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_end<false>(warpmail::warp_lanes{}, args);
}

// The same where the outputs are plain.
extern "C" __global__ void __launch_bounds__(32) warpmail_gate_end_plain(const __grid_constant__ wm_gate_args args) {
    if (warpmail::gate_is_valid(args))
        warpmail::gate_end<true>(warpmail::warp_lanes{}, args);
}
