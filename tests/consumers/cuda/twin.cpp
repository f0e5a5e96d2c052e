// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "own.hpp"

extern "C" int own_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<own_handlers>(args);
}
