// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Memory orders, scopes, inline PTX, clocks and pauses: the only file that has any. Order and scope are in the name of
// the function. On the host, `cta`, `gpu` and `sys` are the same: threads of one process.
//
// Every access is to an aligned 8-byte (or 4-byte) word, or to two neighbouring words at once, each of which PTX and
// the host promise to be single-copy atomic. One word, one writer: read-modify-writes exist only on the arbiter's
// working memory (`_cta`) and its own device counters (`_gpu`), never on memory that host and device share.
//
// Pairs (the table in docs/ordering.md lists them by name):
//   store_release_* of a slot's first head word  ->  load_acquire_* of the same word by the consumer
//   fence_release before a slot's words          ->  fence_acquire after the head was seen by a warp
//   or_release_cta of a look word                ->  clear_acquire_cta by the server that claims the module
//   clear_release_cta of an owned bit            ->  or_acquire_cta by the next server of the module
//   store_release_cta of a grant that says `left` ->  load_acquire_cta by the keeper
//   store_release_cta of flag_leave              ->  load_acquire_cta by the scans
//   store_release_cta of what a scan has seen    ->  load_acquire_cta by the keeper that parks
//   store_release_cta of a ring's index in working memory -> load_acquire_cta by the journal's role
//   store_release_cta of flag_left, of a role's word -> load_acquire_cta by the journal's roles, by the keeper
//   fence_release before the state of a line     ->  fence_acquire after it was seen, and back (carry.hpp)
//   store_release_sys of a ring's write_idx      ->  load_acquire_sys of the same word by the host's drain, and of
//                                                    read_idx the other way round
//   store_release_sys of a share's mail          ->  load_acquire_sys of the same word by the lease's owner
//   store_release_sys of a lease's state         ->  the push of the record with the next lease on the memory
//   fence_sc_sys between a store and a load      ->  fence_sc_sys between the other side's (bell.hpp, park.hpp)
//   fence_sc_cta between a store and a load      ->  fence_sc_cta between the other side's (has_room, journal.hpp)
#ifndef WARPMAIL_PROTOCOL_ATOMICS_HPP
#define WARPMAIL_PROTOCOL_ATOMICS_HPP

#include "warpmail/abi.h"

#if defined(__CUDACC__)
#define WM_FN __host__ __device__ inline
#define WM_DEV __device__ inline
#else
#define WM_FN inline
#define WM_DEV inline
#endif

// Of a function on a server's way through a grant: a call would save and restore what the server keeps in registers.
#if defined(__CUDACC__)
#define WM_INLINED __host__ __device__ __forceinline__
#else
#define WM_INLINED inline
#endif

// Of a function that is rarely called: on the host it stays out of the way of those that call it.
#if defined(__CUDACC__)
#define WM_COLD WM_FN
#else
#define WM_COLD __attribute__((noinline, cold)) WM_FN
#endif

// Before a loop, where the device's compiler is asked: as many copies of it as rounds, or one, where a kernel's code
// would grow.
#if defined(__CUDA_ARCH__)
#define WM_UNROLLED _Pragma("unroll")
#define WM_ROLLED _Pragma("unroll 1")
#else
#define WM_UNROLLED
#define WM_ROLLED
#endif

#if !defined(__CUDA_ARCH__)
#include <sched.h>
#include <time.h>
#endif
#if defined(__x86_64__) && !defined(__CUDACC__)
#include <cpuid.h>
#endif

namespace warpmail {

using u8 = uint8_t;
using u32 = uint32_t;
using u64 = uint64_t;

// An address from the ABI as a typed pointer.
template <class T> WM_FN T* at(u64 address) {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

#if defined(__CUDA_ARCH__)

// `_gpu` and `_sys` are for device and mapped host memory, `_cta` for the arbiter's working memory, which is shared
// memory: naming the space saves the hardware from finding it out. An acquire or a release has the clobber that keeps
// the compiler from moving plain accesses across; a relaxed access orders nothing, here as in C++, and has none.
#define WM_LOAD(name, op, ...)                                                                                         \
    WM_FN u64 name(const u64* p) {                                                                                     \
        u64 v;                                                                                                         \
        asm volatile(op ".global.u64 %0, [%1];" : "=l"(v) : "l"(p) : __VA_ARGS__);                                     \
        return v;                                                                                                      \
    }
#define WM_STORE(name, op, ...)                                                                                        \
    WM_FN void name(u64* p, u64 v) {                                                                                   \
        asm volatile(op ".global.u64 [%0], %1;" ::"l"(p), "l"(v) : __VA_ARGS__);                                       \
    }
#define WM_LOAD_SHARED(name, op, type, reg, ...)                                                                       \
    WM_FN type name(const type* p) {                                                                                   \
        type v;                                                                                                        \
        asm volatile(op " %0, [%1];" : "=" reg(v) : "r"(shared_address(p)) : __VA_ARGS__);                             \
        return v;                                                                                                      \
    }
#define WM_STORE_SHARED(name, op, type, reg, ...)                                                                      \
    WM_FN void name(type* p, type v) {                                                                                 \
        asm volatile(op " [%0], %1;" ::"r"(shared_address(p)), reg(v) : __VA_ARGS__);                                  \
    }
WM_FN u32 shared_address(const void* p) {
    return static_cast<u32>(__cvta_generic_to_shared(p));
}
WM_LOAD(load_relaxed_gpu, "ld.relaxed.gpu", )
WM_LOAD(load_relaxed_sys, "ld.relaxed.sys", )
WM_LOAD(load_acquire_gpu, "ld.acquire.gpu", "memory")
WM_LOAD(load_acquire_sys, "ld.acquire.sys", "memory")
WM_STORE(store_relaxed_gpu, "st.relaxed.gpu", )
WM_STORE(store_relaxed_sys, "st.relaxed.sys", )
WM_STORE(store_release_gpu, "st.release.gpu", "memory")
WM_STORE(store_release_sys, "st.release.sys", "memory")
WM_LOAD_SHARED(load_relaxed_cta, "ld.relaxed.cta.shared.u64", u64, "l", )
WM_LOAD_SHARED(load_acquire_cta, "ld.acquire.cta.shared.u64", u64, "l", "memory")
WM_LOAD_SHARED(load_relaxed_cta, "ld.relaxed.cta.shared.u32", u32, "r", )
WM_LOAD_SHARED(load_acquire_cta, "ld.acquire.cta.shared.u32", u32, "r", "memory")
WM_STORE_SHARED(store_relaxed_cta, "st.relaxed.cta.shared.u64", u64, "l", )
WM_STORE_SHARED(store_release_cta, "st.release.cta.shared.u64", u64, "l", "memory")
WM_STORE_SHARED(store_relaxed_cta, "st.relaxed.cta.shared.u32", u32, "r", )
WM_STORE_SHARED(store_release_cta, "st.release.cta.shared.u32", u32, "r", "memory")
#undef WM_LOAD
#undef WM_STORE
#undef WM_LOAD_SHARED
#undef WM_STORE_SHARED

// Two neighbouring words, aligned to 16 bytes, in one access.
struct wide_word {
    u64 low, high;
};
#define WM_WIDE(scope)                                                                                                 \
    WM_FN wide_word load_relaxed_wide_##scope(const u64* p) {                                                          \
        wide_word v;                                                                                                   \
        asm volatile("{ .reg .b128 v; ld.relaxed." #scope ".global.b128 v, [%2]; mov.b128 {%0, %1}, v; }"              \
                     : "=l"(v.low), "=l"(v.high)                                                                       \
                     : "l"(p));                                                                                        \
        return v;                                                                                                      \
    }                                                                                                                  \
    WM_FN void store_relaxed_wide_##scope(u64* p, wide_word v) {                                                       \
        asm volatile("{ .reg .b128 v; mov.b128 v, {%1, %2}; st.relaxed." #scope ".global.b128 [%0], v; }" ::"l"(p),    \
                     "l"(v.low), "l"(v.high));                                                                         \
    }
WM_WIDE(gpu)
WM_WIDE(sys)
#undef WM_WIDE

// Sets bits. RELEASE: what the thread wrote before is seen by whoever takes the bits.
WM_FN void or_release_cta(u32* p, u32 bits) {
    asm volatile("red.release.cta.shared.or.b32 [%0], %1;" ::"r"(shared_address(p)), "r"(bits) : "memory");
}
// Clears bits. RELEASE, as or_release_cta.
WM_FN void clear_release_cta(u32* p, u32 bits) {
    asm volatile("red.release.cta.shared.and.b32 [%0], %1;" ::"r"(shared_address(p)), "r"(~bits) : "memory");
}
// Set or clear bits and say what was there. ACQUIRE of the two above.
WM_FN u32 or_acquire_cta(u32* p, u32 bits) {
    u32 old;
    asm volatile("atom.acquire.cta.shared.or.b32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(shared_address(p)), "r"(bits)
                 : "memory");
    return old;
}
WM_FN u32 clear_acquire_cta(u32* p, u32 bits) {
    u32 old;
    asm volatile("atom.acquire.cta.shared.and.b32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(shared_address(p)), "r"(~bits)
                 : "memory");
    return old;
}
// Adds to a counter in device memory; nothing waits for it.
WM_FN void add_relaxed_gpu(u64* p, u64 n) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(n));
}

// Put a word into a readiness word, or a bit to it, and say what was there. Relaxed: all that matters is who came
// first.
WM_FN u64 exchange_relaxed_gpu(u64* p, u64 v) {
    u64 old;
    asm volatile("atom.relaxed.gpu.global.exch.b64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(v));
    return old;
}
WM_FN u64 or_relaxed_gpu(u64* p, u64 bits) {
    u64 old;
    asm volatile("atom.relaxed.gpu.global.or.b64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(bits));
    return old;
}

// Stores `wanted` if the word is `seen`, and says what was there. Device memory only. Relaxed, as above.
WM_FN u64 cas_relaxed_gpu(u64* p, u64 seen, u64 wanted) {
    u64 old;
    asm volatile("atom.relaxed.gpu.global.cas.b64 %0, [%1], %2, %3;" : "=l"(old) : "l"(p), "l"(seen), "l"(wanted));
    return old;
}

// Adds to a word in device memory and says what was there. RELEASE and ACQUIRE: whoever adds after sees what whoever
// added before had written, or had seen by a barrier.
WM_FN u64 add_ordered_gpu(u64* p, u64 n) {
    u64 old;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(n) : "memory");
    return old;
}

// Makes relaxed stores that follow releases: what the thread wrote before, and what it saw by a barrier, is seen by
// whoever acquires such a store. Waits for what was written; L1 is left alone.
WM_FN void fence_release(u32 scope) {
    if (scope == WM_SCOPE_GPU)
        asm volatile("fence.release.gpu;" ::: "memory");
    else
        asm volatile("fence.release.sys;" ::: "memory");
}
// The same towards other threads of the block, which share its L1: they need not wait until anybody else sees it.
WM_FN void fence_release_cta() {
    asm volatile("fence.acq_rel.cta;" ::: "memory");
}
// Makes relaxed loads that came before it acquires of what they saw. Drops L1; waits for nothing, so a poll is relaxed
// and this follows when it has found something.
WM_FN void fence_acquire(u32 scope) {
    if (scope == WM_SCOPE_GPU)
        asm volatile("fence.acquire.gpu;" ::: "memory");
    else
        asm volatile("fence.acquire.sys;" ::: "memory");
}

// All fences of this kind have one order: of two threads that each store, fence and then load what the other stores, at
// least one sees the other's store.
WM_FN void fence_sc_sys() {
    asm volatile("fence.sc.sys;" ::: "memory");
}
WM_FN void fence_sc_cta() {
    asm volatile("fence.sc.cta;" ::: "memory");
}

// Programmatic dependent launch, for kernels of a warp between others of one stream. The first lets a kernel behind
// this one begin, if that was launched so that it may; the second waits until the kernels before this one have ended
// and what they wrote is visible. Where there is no such launch they do nothing.
WM_FN void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
WM_FN void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The upper half of a word. In PTX, because the compiler would otherwise make a comparison of it one of all 64 bits.
WM_FN u32 upper_half(u64 v) {
    u32 high;
    asm("{ .reg .b32 low; mov.b64 {low, %0}, %1; }" : "=r"(high) : "l"(v));
    return high;
}

// The same word with another upper half.
WM_FN u64 with_upper_half(u64 v, u32 high) {
    u64 word;
    asm("{ .reg .b32 low, old; mov.b64 {low, old}, %1; mov.b64 %0, {low, %2}; }" : "=l"(word) : "l"(v), "r"(high));
    return word;
}
// The bits of `a` where `mask` has ones, of `b` elsewhere, in one instruction.
WM_FN u32 select_bits(u32 mask, u32 a, u32 b) {
    u32 v;
    asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(v) : "r"(mask), "r"(a), "r"(b));
    return v;
}
// By n modulo 32.
WM_FN u32 rotated_left(u32 v, u32 n) {
    return __funnelshift_l(v, v, n);
}
// The same value, of which the compiler knows nothing: what follows from it is reckoned anew behind this.
WM_FN u32 forgotten(u32 v) {
    asm volatile("" : "+r"(v));
    return v;
}
template <class T> WM_FN T* forgotten(T* p) {
    asm volatile("" : "+l"(p));
    return p;
}

// Nanoseconds of the device-wide timer. Its tick is coarse (32 ns to about 1 µs, by device).
WM_FN u64 now_ns() {
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
}

// A breath between two polls of memory: on the device the way to L2 is breath enough.
WM_FN void pause() {}
WM_FN void pause_after(u32 /*looks*/) {}
// Leaves the SM to its other warps for about so long.
WM_FN void doze(u32 ns) {
    asm volatile("nanosleep.u32 %0;" ::"r"(ns));
}

#else // host

// Only so that templates for a warp can be marked for both sides.
struct wide_word {
    u64 low, high;
};

WM_FN u64 load_relaxed_cta(const u64* p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
WM_FN u64 load_acquire_cta(const u64* p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
WM_FN void store_relaxed_cta(u64* p, u64 v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
WM_FN void store_release_cta(u64* p, u64 v) {
#if defined(WARPMAIL_PLANT_RACE)
    __atomic_store_n(p, v, __ATOMIC_RELAXED); // planted for the sanitizer's own test: the release is missing
#else
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
#endif
}
WM_FN u32 load_relaxed_cta(const u32* p) {
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}
WM_FN void store_relaxed_cta(u32* p, u32 v) {
    __atomic_store_n(p, v, __ATOMIC_RELAXED);
}
WM_FN u32 load_acquire_cta(const u32* p) {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
WM_FN void store_release_cta(u32* p, u32 v) {
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}
WM_FN u64 exchange_relaxed_gpu(u64* p, u64 v) {
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
WM_FN u64 or_relaxed_gpu(u64* p, u64 bits) {
    return __atomic_fetch_or(p, bits, __ATOMIC_RELAXED);
}
WM_FN u64 cas_relaxed_gpu(u64* p, u64 seen, u64 wanted) {
    __atomic_compare_exchange_n(p, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return seen;
}
WM_FN void or_release_cta(u32* p, u32 bits) {
    __atomic_fetch_or(p, bits, __ATOMIC_RELEASE);
}
WM_FN void clear_release_cta(u32* p, u32 bits) {
    __atomic_fetch_and(p, ~bits, __ATOMIC_RELEASE);
}
WM_FN u32 or_acquire_cta(u32* p, u32 bits) {
    return __atomic_fetch_or(p, bits, __ATOMIC_ACQUIRE);
}
WM_FN u32 clear_acquire_cta(u32* p, u32 bits) {
    return __atomic_fetch_and(p, ~bits, __ATOMIC_ACQUIRE);
}
WM_FN void add_relaxed_gpu(u64* p, u64 n) {
    __atomic_fetch_add(p, n, __ATOMIC_RELAXED);
}
WM_FN u64 add_ordered_gpu(u64* p, u64 n) {
    return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL);
}

WM_FN u64 load_relaxed_gpu(const u64* p) {
    return load_relaxed_cta(p);
}
WM_FN u64 load_relaxed_sys(const u64* p) {
    return load_relaxed_cta(p);
}
WM_FN u64 load_acquire_gpu(const u64* p) {
    return load_acquire_cta(p);
}
WM_FN u64 load_acquire_sys(const u64* p) {
    return load_acquire_cta(p);
}
WM_FN void store_relaxed_gpu(u64* p, u64 v) {
    store_relaxed_cta(p, v);
}
WM_FN void store_relaxed_sys(u64* p, u64 v) {
    store_relaxed_cta(p, v);
}
WM_FN void store_release_gpu(u64* p, u64 v) {
    store_release_cta(p, v);
}
WM_FN void store_release_sys(u64* p, u64 v) {
    store_release_cta(p, v);
}

// ThreadSanitizer does not know fences. A read-modify-write of one word by all is at least as strong on the hosts that
// it runs on, and what these fences order are atomic words, of which it has no complaint.
#if defined(__SANITIZE_THREAD__)
inline u64 fence_word = 0;
WM_FN void fence_sc_sys() {
    __atomic_fetch_add(&fence_word, 0, __ATOMIC_SEQ_CST);
}
WM_FN void fence_acquire(u32 /*scope*/) {
    fence_sc_sys();
}
WM_FN void fence_release(u32 /*scope*/) {
    fence_sc_sys();
}
#else
WM_FN void fence_sc_sys() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
WM_FN void fence_acquire(u32 /*scope*/) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}
WM_FN void fence_release(u32 /*scope*/) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
}
#endif
WM_FN void fence_release_cta() {
    fence_release(WM_SCOPE_GPU);
}
WM_FN void fence_sc_cta() {
    fence_sc_sys();
}

WM_FN void let_next_begin() {}
WM_FN void wait_for_previous() {}

WM_FN u32 upper_half(u64 v) {
    return static_cast<u32>(v >> 32);
}
WM_FN u64 with_upper_half(u64 v, u32 high) {
    return static_cast<u64>(high) << 32 | static_cast<u32>(v);
}
WM_FN u32 select_bits(u32 mask, u32 a, u32 b) {
    return (mask & a) | (~mask & b);
}
WM_FN u32 rotated_left(u32 v, u32 n) {
    return v << (n & 31) | v >> (-n & 31);
}
template <class T> WM_FN T forgotten(T v) {
    return v;
}

WM_FN u64 now_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<u64>(t.tv_sec) * 1000000000ull + static_cast<u64>(t.tv_nsec);
}

WM_FN void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield" ::: "memory");
#endif
}
// A look at a word that another thread of the host writes takes the word's line away from it, so that looks in vain,
// one right behind the other, make the other slow. When one was in vain, in cycles; and, ahead of the next, a breath
// until a tenth of a microsecond has passed since then, or none if it has. 0: there was none.
constexpr u64 breath_cycles = 512;
WM_FN u64 looked_in_vain() {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc() | 1;
#else
    return 0;
#endif
}
WM_FN void breathe_since(u64 looked) {
#if defined(__x86_64__)
    while (looked != 0 && __builtin_ia32_rdtsc() - looked < breath_cycles)
        pause();
#else
    (void)looked;
#endif
}
// Has the cache line at p brought near, to be read; or to be written, which takes it from whoever has it. Orders
// nothing. The builtin, unless told of the processor, reads in both cases.
WM_FN void prefetch_line(const void* p) {
    __builtin_prefetch(p);
}
WM_FN void prefetch_line_to_write(const void* p) {
#if defined(__x86_64__) && !defined(__CUDACC__)
    asm volatile("prefetchw %0" ::"m"(*static_cast<const char*>(p)));
#else
    __builtin_prefetch(p, 1);
#endif
}
// Between the looks of a wait: who has looked in vain that often lets others have the core, perhaps the one it waits
// for.
WM_FN void doze(u32 /*ns*/) {
    sched_yield();
}
WM_FN void pause_after(u32 looks) {
    if (looks < 256)
        pause();
    else
        sched_yield();
}

#endif

#if defined(__SSE2__) && !defined(__CUDACC__) && !defined(__SANITIZE_THREAD__)
// Two neighbouring words at once, on x86 hosts. Each of the two is single-copy atomic: the architecture promises it for
// an aligned 8-byte part of a vector access, and orders such loads (stores) among each other. The language knows no
// such access, so the sanitizer's build leaves it out and uses words.
#define WM_HOST_PAIRS 1
typedef long long word_pair __attribute__((vector_size(16)));
WM_FN word_pair load_relaxed_pair(const u64* p) {
    word_pair v = *reinterpret_cast<const volatile word_pair*>(p);
    return v;
}
WM_FN void store_relaxed_pair(u64* p, word_pair v) {
    *reinterpret_cast<volatile word_pair*>(p) = v;
}
// x86 keeps the order of stores; the compiler is told to.
WM_FN void store_release_pair(u64* p, word_pair v) {
    asm volatile("" ::: "memory");
    *reinterpret_cast<volatile word_pair*>(p) = v;
}
#if defined(__x86_64__)
// Eight neighbouring words at once, a cache line, where the processor has AVX-512; each word as above. Such functions
// are called by others of their kind alone, behind a look at `has_lines`.
#define WM_HOST_LINES 1
#define WM_LINES __attribute__((target("avx512f,avx512dq"))) inline
typedef long long word_line __attribute__((vector_size(64), aligned(8), may_alias));
WM_LINES word_line load_relaxed_line(const u64* p) {
    return *reinterpret_cast<const volatile word_line*>(p);
}
WM_LINES void store_relaxed_line(u64* p, word_line v) {
    *reinterpret_cast<volatile word_line*>(p) = v;
}
WM_LINES void store_release_line(u64* p, word_line v) {
    asm volatile("" ::: "memory");
    *reinterpret_cast<volatile word_line*>(p) = v;
}
// By cpuid, and xgetbv: whether the system keeps the registers.
inline bool find_lines() {
    u32 a = 0, b = 0, c = 0, d = 0;
    constexpr u32 osxsave = 1u << 27, f_and_dq = 1u << 16 | 1u << 17, saved = 0xE6;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & osxsave) == 0)
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & f_and_dq) != f_and_dq)
        return false;
    u32 low = 0, high = 0;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & saved) == saved;
}
inline const bool has_lines = find_lines();
#endif
#endif

// Two neighbouring words, aligned to 16 bytes, with one instruction on the device. Each is an access of its own.
WM_FN void load_relaxed_two_sys(const u64* p, u64* v) {
#if defined(__CUDA_ARCH__)
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(v[0]), "=l"(v[1]) : "l"(p));
#else
    v[0] = load_relaxed_sys(p);
    v[1] = load_relaxed_sys(p + 1);
#endif
}

// The scope is a property of the mailbox, known at run time and the same for all lanes: the branch is uniform.
WM_FN u64 load_relaxed(const u64* p, u32 scope) {
    return scope == WM_SCOPE_GPU ? load_relaxed_gpu(p) : load_relaxed_sys(p);
}
WM_FN u64 load_acquire(const u64* p, u32 scope) {
    return scope == WM_SCOPE_GPU ? load_acquire_gpu(p) : load_acquire_sys(p);
}
WM_FN void store_relaxed(u64* p, u64 v, u32 scope) {
    if (scope == WM_SCOPE_GPU) {
        store_relaxed_gpu(p, v);
    } else {
        store_relaxed_sys(p, v);
    }
}
WM_FN void store_release(u64* p, u64 v, u32 scope) {
    if (scope == WM_SCOPE_GPU) {
        store_release_gpu(p, v);
    } else {
        store_release_sys(p, v);
    }
}
// Has the sector at p brought to L2; orders nothing.
WM_FN void prefetch_l2(const void* p) {
#if defined(__CUDA_ARCH__)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
    (void)p;
#endif
}
#if defined(__CUDA_ARCH__)
WM_FN wide_word load_relaxed_wide(const u64* p, u32 scope) {
    return scope == WM_SCOPE_GPU ? load_relaxed_wide_gpu(p) : load_relaxed_wide_sys(p);
}
WM_FN void store_relaxed_wide(u64* p, wide_word v, u32 scope) {
    if (scope == WM_SCOPE_GPU) {
        store_relaxed_wide_gpu(p, v);
    } else {
        store_relaxed_wide_sys(p, v);
    }
}
#else
WM_FN wide_word load_relaxed_wide(const u64* p, u32 scope) {
    return {load_relaxed(p, scope), load_relaxed(p + 1, scope)};
}
WM_FN void store_relaxed_wide(u64* p, wide_word v, u32 scope) {
    store_relaxed(p, v.low, scope);
    store_relaxed(p + 1, v.high, scope);
}
#endif

} // namespace warpmail

#endif
