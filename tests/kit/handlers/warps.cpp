// SPDX-License-Identifier: Apache-2.0 OR MIT
// The arbiter's block as it is on the device, lane by lane on the CPU, in place of the twin.
#include <new>
#include <vector>

#include "device/arbiter_block.hpp"
#include "handlers/kit.hpp"

extern "C" int kit_warps(const wm_arbiter_args* given) {
    using namespace warpmail;
    if (given == nullptr || !args_are_valid(*given) || given->plan != 0)
        return WM_BAD_ARGUMENT;
    // The twin may serve on the thread of its other roles; a block has a warp for it. Their memory is the same.
    wm_arbiter_args args = *given;
    args.servers = server_count(*given);
    try {
        arbiter a(args);
        u64 kept_bytes;
        std::vector<u64> memory(place(a, nullptr, kept_bytes) / 8 + 2, 0xA5A5A5A5A5A5A5A5ull); // what was there before
        u8* const base = reinterpret_cast<u8*>(align16(reinterpret_cast<uintptr_t>(memory.data())));
        host::run_block(block_warps(args) * 32, [&](u32) { arbiter_block<kit::handlers>(args, base); });
        return WM_OK;
    } catch (const std::bad_alloc&) {
        return WM_FULL;
    }
}
