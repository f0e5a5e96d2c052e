// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The kernels around a stream module's body, a warp each but the copy, and two that find out where a stream waits.
// Linked with the device runtime, for the conditional node.
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

// These two tell how soon a stored word lets a launch in: the one behind it says when it began ...
extern "C" __global__ void warpmail_answer(uint64_t* began) {
    if (threadIdx.x == 0)
        warpmail::store_relaxed_gpu(began, warpmail::now_ns());
}

// ... and the one in front stores `turn` at `door` when `settle_ns` have passed, and says how long that took:
// nanoseconds, at most `late_ns`, below the turn in `took`.
extern "C" __global__ void warpmail_ask(uint64_t* door, uint64_t* began, uint64_t* took, uint64_t turn,
                                        uint64_t settle_ns, uint64_t late_ns) {
    if (threadIdx.x != 0)
        return;
    warpmail::store_relaxed_gpu(began, uint64_t{0});
    const uint64_t until = warpmail::now_ns() + settle_ns;
    while (warpmail::now_ns() < until) {
    }
    const uint64_t stored = warpmail::now_ns();
    warpmail::store_relaxed_sys(door, turn);
    uint64_t then = 0;
    while ((then = warpmail::load_relaxed_gpu(began)) == 0 && warpmail::now_ns() < stored + late_ns) {
    }
    const uint64_t ns = then == 0 || then < stored ? late_ns : then - stored;
    warpmail::store_relaxed_sys(took, turn << 32 | (ns < late_ns ? ns : late_ns));
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
