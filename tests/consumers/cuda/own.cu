// SPDX-License-Identifier: Apache-2.0 OR MIT
// The arbiter with a handler set of the program's own, and a kernel of its own that pushes through the device API.
#include <warpmail/device.hpp>

#include "own.hpp"

extern "C" __global__ void own_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<own_handlers>(args);
}

extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
    own_arbiter_step(const __grid_constant__ wm_step_args args) {
    warpmail::step_kernel<own_handlers>(args);
}

extern "C" __global__ void own_producer(wm_mailbox mailbox, const unsigned char* bytes, uint32_t len, int* status) {
    wm_producer producer = warpmail::attach_producer(mailbox);
    *status = warpmail::try_push(warpmail::warp_lanes{}, producer, bytes, len, 1);
}
