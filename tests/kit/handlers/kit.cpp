// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "handlers/kit.hpp"

extern "C" int kit_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<kit::handlers>(args);
}
