// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "bench_kernels/echo.hpp"

extern "C" int echo_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<bench::echo_handlers>(args);
}
