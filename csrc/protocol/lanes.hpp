// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Who executes a call together. Handlers and the arbiter are written once against these: `warp_lanes` is a converged
// warp of 32 threads on the device, `block_lanes` a whole block, `one_lane` a single thread anywhere. A loop over data
// reads
//     for (u32 i = lanes.rank(); i < n; i += lanes.width()) ...
// and a reduction gives every lane the same value. Integer reductions are exact, so both give identical results.
#ifndef WARPMAIL_PROTOCOL_LANES_HPP
#define WARPMAIL_PROTOCOL_LANES_HPP

#include "protocol/atomics.hpp"

// Whether the code of warps is compiled: on the device, and for the CPU in tests (lanes_host.hpp).
#if defined(__CUDACC__) || defined(WARPMAIL_HOST_WARPS)
#define WM_HAS_WARPS 1
#endif
#if defined(WARPMAIL_HOST_WARPS) && !defined(__CUDACC__)
#include "protocol/lanes_host.hpp"
#endif

namespace warpmail {

// One thread.
struct one_lane {
    WM_FN void check() const {}
    // Whether several threads act as one.
    WM_FN static constexpr bool is_group() {
        return false;
    }
    WM_FN u32 rank() const {
        return 0;
    }
    WM_FN static constexpr u32 width() {
        return 1;
    }
    // Orders memory among the lanes: trivially true for one.
    WM_FN void sync() const {}
    WM_FN u32 ballot(bool p) const {
        return p ? 1u : 0u;
    }
    WM_FN bool any(bool p) const {
        return p;
    }
    WM_FN bool all(bool p) const {
        return p;
    }
    // Bits that lanes saw in one word, the same for all lanes.
    WM_FN u32 agree(u32 v) const {
        return v;
    }
    template <class T> WM_FN T broadcast(T v, u32 /*from*/) const {
        return v;
    }
    template <class T> WM_FN T sum(T v) const {
        return v;
    }
    template <class T> WM_FN T min(T v) const {
        return v;
    }
    template <class T> WM_FN T max(T v) const {
        return v;
    }
};

#if defined(__CUDACC__)
// A converged warp: all 32 threads must make every call. The host bodies exist only so that templates over lanes can be
// marked for both sides; a warp is never run there.
struct warp_lanes {
    WM_FN static constexpr bool is_group() {
        return true;
    }
    // Debug builds (WARPMAIL_DEBUG) stop a kernel whose warp is not converged here.
    WM_FN void check() const {
#if defined(__CUDA_ARCH__) && defined(WARPMAIL_DEBUG)
        if (__activemask() != ~0u)
            __trap();
#endif
    }
    WM_FN u32 rank() const {
#if defined(__CUDA_ARCH__)
        return threadIdx.x & 31u;
#else
        return 0;
#endif
    }
    WM_FN static constexpr u32 width() {
        return 32;
    }
    // Which warp of its one-dimensional block this is, asked by all lanes; for choosing what a warp does. threadIdx.x /
    // 32 is the same number, but the compiler does not know that it is the same for all lanes: behind a branch on it
    // each shuffle and vote asks first whether the warp is still whole, which took a third to a half of the speed of
    // pushing and popping in batches.
    WM_FN u32 in_block() const {
#if defined(__CUDA_ARCH__)
        return broadcast(threadIdx.x / 32, 0);
#else
        return 0;
#endif
    }
    WM_FN void sync() const {
#if defined(__CUDA_ARCH__)
        __syncwarp();
#endif
    }
    WM_FN u32 ballot(bool p) const {
#if defined(__CUDA_ARCH__)
        return __ballot_sync(~0u, p);
#else
        return p;
#endif
    }
    WM_FN bool any(bool p) const {
#if defined(__CUDA_ARCH__)
        return __any_sync(~0u, p) != 0;
#else
        return p;
#endif
    }
    WM_FN bool all(bool p) const {
#if defined(__CUDA_ARCH__)
        return __all_sync(~0u, p) != 0;
#else
        return p;
#endif
    }
    // Lane i's word decides bit i.
    WM_FN u32 agree(u32 v) const {
        return ballot((v >> rank() & 1u) != 0);
    }
    // The bits that are set in every lane's v.
    WM_FN u32 common_bits(u32 v) const {
#if defined(__CUDA_ARCH__)
        return __reduce_and_sync(~0u, v);
#else
        return v;
#endif
    }
    template <class T> WM_FN T broadcast(T v, u32 from) const {
#if defined(__CUDA_ARCH__)
        return __shfl_sync(~0u, v, static_cast<int>(from));
#else
        (void)from;
        return v;
#endif
    }
    template <class T> WM_FN T sum(T v) const {
        for (int d = 16; d; d >>= 1)
            v += exchange(v, d);
        return v;
    }
    template <class T> WM_FN T min(T v) const {
        for (int d = 16; d; d >>= 1) {
            T o = exchange(v, d);
            v = o < v ? o : v;
        }
        return v;
    }
    // One instruction each for 32 bits.
    WM_FN u32 sum(u32 v) const {
#if defined(__CUDA_ARCH__)
        return __reduce_add_sync(~0u, v);
#else
        return v;
#endif
    }
    WM_FN u32 min(u32 v) const {
#if defined(__CUDA_ARCH__)
        return __reduce_min_sync(~0u, v);
#else
        return v;
#endif
    }
    template <class T> WM_FN T max(T v) const {
        for (int d = 16; d; d >>= 1) {
            T o = exchange(v, d);
            v = v < o ? o : v;
        }
        return v;
    }

private:
    template <class T> WM_FN static T exchange(T v, int distance) {
#if defined(__CUDA_ARCH__)
        return __shfl_xor_sync(~0u, v, distance);
#else
        (void)distance;
        return v;
#endif
    }
};

// All threads of a one-dimensional block whose size is a multiple of 32; all of them must make every call.
struct block_lanes {
    WM_FN static constexpr bool is_group() {
        return true;
    }
    WM_FN void check() const {
#if defined(__CUDA_ARCH__) && defined(WARPMAIL_DEBUG)
        if (__activemask() != ~0u || blockDim.x % 32 != 0 || blockDim.y * blockDim.z != 1)
            __trap();
#endif
    }
    WM_FN u32 rank() const {
#if defined(__CUDA_ARCH__)
        return threadIdx.x;
#else
        return 0;
#endif
    }
    WM_FN u32 width() const {
#if defined(__CUDA_ARCH__)
        return blockDim.x;
#else
        return 1;
#endif
    }
    WM_FN void sync() const {
#if defined(__CUDA_ARCH__)
        __syncthreads();
#endif
    }
    WM_FN bool any(bool p) const {
#if defined(__CUDA_ARCH__)
        return __syncthreads_or(p) != 0;
#else
        return p;
#endif
    }
    WM_FN bool all(bool p) const {
#if defined(__CUDA_ARCH__)
        return __syncthreads_and(p) != 0;
#else
        return p;
#endif
    }
    // Through shared memory, between two barriers.
    template <class T> WM_FN T broadcast(T v, u32 from) const {
#if defined(__CUDA_ARCH__)
        __shared__ T box;
        if (threadIdx.x == from)
            box = v;
        __syncthreads();
        v = box;
        __syncthreads();
#else
        (void)from;
#endif
        return v;
    }
};
#endif

// Index of the lowest set bit; v is not 0.
WM_FN u32 lowest_bit(u32 v) {
#if defined(__CUDA_ARCH__)
    return static_cast<u32>(__ffs(static_cast<int>(v)) - 1);
#else
    return static_cast<u32>(__builtin_ctz(v));
#endif
}

} // namespace warpmail

#endif
