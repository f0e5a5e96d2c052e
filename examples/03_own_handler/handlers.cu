// The device's half: nvcc compiles it to a fatbin, which the program carries and hands to the runtime.
#include "handlers.hpp"

extern "C" __global__ void own_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<own_handlers>(args);
}

extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
    own_arbiter_step(const __grid_constant__ wm_step_args args) {
    warpmail::step_kernel<own_handlers>(args);
}
