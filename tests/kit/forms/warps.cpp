// SPDX-License-Identifier: Apache-2.0 OR MIT
// The forms of warps and blocks on the CPU, lane by lane (protocol/lanes_host.hpp).
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "forms/lanes.hpp"

namespace {

// What lanes must not do, and what running them in turns has to find.
void mistake(warpmail::u32 which, warpmail::u32 thread) {
    const warpmail::warp_lanes lanes;
    if (which == 0 && thread == 5)
        return; // leaves before a call that all make
    if (which == 1 && thread % 2 == 0)
        lanes.any(true); // makes another call than the rest
    else if (which == 2 && thread < 32)
        warpmail::block_lanes{}.sync(); // a barrier of the block, by one warp
    else if (which < 3)
        lanes.sync();
}

} // namespace

// Whether mistake `which` ends the process, tried in one of its own. 3: none, it must not.
extern "C" int forms_mistake_is_found(warpmail::u32 which) {
    const pid_t child = fork();
    if (child == 0) {
        (void)!freopen("/dev/null", "w", stderr);
        warpmail::host::run_block(64, [which](warpmail::u32 thread) { mistake(which, thread); });
        _exit(0);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

extern "C" void forms_run_block(const forms::task* t, warpmail::u32 block, warpmail::u32 threads) {
    warpmail::host::run_block(threads, [t, block](warpmail::u32 thread) { forms::run_thread(*t, block, thread); });
}
extern "C" void forms_misuse_block(const forms::task* t, warpmail::u32 threads) {
    warpmail::host::run_block(threads, [t](warpmail::u32 thread) { forms::misuse_thread(*t, thread); });
}
