// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The kernels embedded in the library: the arbiter with the built-in handlers, and their steps for an arbiter on the
// CPU.
#include "device/arbiter_kernel.cuh"
#include "device/step_kernel.cuh"
#include "protocol/builtin.hpp"

extern "C" __global__ void __launch_bounds__(warpmail::arbiter_max_threads, 1)
    warpmail_builtin_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<warpmail::builtin_handlers>(args);
}

extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
    warpmail_builtin_arbiter_step(const __grid_constant__ wm_step_args args) {
    warpmail::step_kernel<warpmail::builtin_handlers>(args);
}
