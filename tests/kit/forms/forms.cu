// SPDX-License-Identifier: Apache-2.0 OR MIT
// The forms on the device.
#include "forms/echo.hpp"
#include "forms/lanes.hpp"

extern "C" __global__ void forms_run(const __grid_constant__ forms::task t) {
    forms::run_thread(t, blockIdx.x, threadIdx.x);
}

extern "C" __global__ void forms_push_durably(const __grid_constant__ forms::durable_task t) {
    if (threadIdx.x < 32 && blockIdx.x == 0)
        forms::push_durably(t, warpmail::warp_lanes{});
}

extern "C" __global__ void forms_misuse(const __grid_constant__ forms::task t) {
    forms::misuse_thread(t, threadIdx.x);
}

extern "C" __global__ void forms_clear(const __grid_constant__ forms::task t, warpmail::u64 start) {
    if (threadIdx.x == 0 && blockIdx.x == 0)
        warpmail::clear_mailbox(t.mailbox, start);
}

// A block of one warp for each relay.
extern "C" __global__ void forms_echo(const __grid_constant__ forms::echo_tasks tasks) {
    if (threadIdx.x < 32)
        forms::echo(tasks.task[blockIdx.x], warpmail::warp_lanes{});
}
