// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "bench_kernels/echo.hpp"

extern "C" __global__ void __launch_bounds__(warpmail::arbiter_max_threads, 1)
    echo_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<bench::echo_handlers>(args);
}

extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
    echo_arbiter_step(const __grid_constant__ wm_step_args args) {
    warpmail::step_kernel<bench::echo_handlers>(args);
}
