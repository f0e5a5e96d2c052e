// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// How threads of the protocol wait when there is nothing to do.
#ifndef WARPMAIL_TWIN_IDLE_HPP
#define WARPMAIL_TWIN_IDLE_HPP

#include <chrono>
#include <thread>

#include "protocol/atomics.hpp"

namespace warpmail {

// Idle threads share their cores with the program's own: they spin briefly, then yield, then sleep; one that keeps its
// time, or whose work is waited for by a GPU, does not sleep.
class idle_backoff {
public:
    explicit idle_backoff(bool sleeps) : sleeps_(sleeps) {}
    void reset() {
        turns_ = 0;
    }
    void wait() {
        turns_++;
        if (turns_ < 32) {
            pause();
        } else if (turns_ < 256 || !sleeps_) {
            std::this_thread::yield();
        } else {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }

private:
    const bool sleeps_;
    unsigned turns_ = 0;
};

} // namespace warpmail

#endif
