// The twin's half: the same handlers for machines without a GPU.
#include "handlers.hpp"

extern "C" int own_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<own_handlers>(args);
}
