// The device's half: nvcc compiles it to a fatbin, which the program carries and hands to the runtime.
#include "handlers.hpp"

extern "C" __global__ void own_arbiter(const __grid_constant__ wm_arbiter_args args) {
    warpmail::arbiter_kernel<own_handlers>(args);
}
