// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "handlers/kit.hpp"

extern "C" __global__ void __launch_bounds__(warpmail::arbiter_max_threads, 1)
    kit_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<kit::handlers>(args);
}

extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
    kit_arbiter_step(const __grid_constant__ wm_step_args args) {
    warpmail::step_kernel<kit::handlers>(args);
}
