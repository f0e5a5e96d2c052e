// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// `throughput.*`: how many records pairs of warps move, beside a copy through L2 and a ring with a fence and an index.
#ifndef WARPMAIL_BENCH_THROUGHPUT_CUH
#define WARPMAIL_BENCH_THROUGHPUT_CUH

#include "bench_kernels/common.cuh"

namespace bench {

// The payload words of consecutive records of one pair: each lane's word goes on by a constant, and every bit varies.
struct words {
    u64 next;
    WM_DEV words(u32 pair, u32 lane) : next((pair * 64ull + lane + 1) * 0xD6E8FEB86659FD93ull) {}
    WM_DEV u64 take() {
        const u64 w = next;
        next += 0x9E3779B97F4A7C15ull;
        return w;
    }
};

// When a warp began and ended, nanoseconds.
WM_DEV void stamp(u64* spans, u32 warp, u64 begin) {
    if (threadIdx.x % 32 == 0) {
        spans[2 * warp] = begin;
        spans[2 * warp + 1] = now_ns();
    }
}

// The same for a warp that moves two groups at a time: this lane's two words of group q of all that the pair moves,
// `q` less the lane's half of the warp. The words are those of `words`.
struct wide_words {
    static constexpr u64 step = 0x9E3779B97F4A7C15ull;
    u64 low, high;
    u32 half;
    WM_DEV explicit wide_words(u32 pair)
        : low((pair * 64ull + 2 * wide_column(warp_lanes{}) + 1) * 0xD6E8FEB86659FD93ull),
          high(low + 0xD6E8FEB86659FD93ull), half(wide_half(warp_lanes{})) {
        advance(half);
    }
    WM_DEV void advance(u64 groups) {
        low += groups * step;
        high += groups * step;
    }
    WM_DEV wide_fragment at(u32 q) const {
        const u64 on = static_cast<u64>(q - half) * step;
        return {{low + on, high + on}};
    }
};

// Which pair a warp belongs to and on which side: producers are the first half of each block's warps, and a pair's ends
// are `apart` blocks apart.
struct place_in_grid {
    u32 pair, warp;
    bool producer;
    WM_DEV place_in_grid(u32 per_block, u32 apart) {
        const u32 w = warp_lanes{}.in_block();
        producer = w < per_block;
        const u32 block = producer ? blockIdx.x : (blockIdx.x + gridDim.x - apart) % gridDim.x;
        pair = block * per_block + (producer ? w : w - per_block);
        warp = blockIdx.x * 2 * per_block + w;
    }
};

// Each pair moves `records`, in batches of up to N, over its own mailbox, with a word a lane.
template <class F, order O, u32 N>
WM_DEV void move(const wm_mailbox* boxes, u32 pairs, u32 per_block, u32 apart, u64 records, u64* spans, u64* faults) {
    const place_in_grid here(per_block, apart);
    if (here.pair >= pairs)
        return;
    constexpr u32 groups = groups_in(F::stride());
    words next(here.pair, threadIdx.x % 32);
    u64 done = 0, wrong = 0;
    u32 looks = 0;
    const u64 begin = now_ns();
    if (here.producer) {
        warp_producer<F> p(attach_producer(boxes[here.pair]));
        while (done < records && looks < give_up) {
            const u32 n = p.template try_push_batch<O, N>([&](u32, fragment<groups>& f, u32& len, u32& type) {
                for (u32 g = 0; g < groups; g++)
                    f.word[g] = next.take();
                len = warp_producer<F>::payload;
                type = 1;
            });
            done += n;
            looks = n ? 0 : looks + 1;
        }
    } else {
        warp_consumer<F> c(attach_consumer(boxes[here.pair]));
        while (done < records && looks < give_up) {
            const u32 n = c.template try_pop_batch<O, N>([&](u32, const fragment<groups>& f, fragment_meta) {
                for (u32 g = 0; g < groups; g++)
                    wrong |= f.word[g] ^ next.take();
            });
            done += n;
            looks = n ? 0 : looks + 1;
        }
    }
    stamp(spans, here.warp, begin);
    report(faults, static_cast<u64>(threadIdx.x % 32 != 0 && wrong != 0) + (done < records));
}

// How a producer writes: a word a lane, or 16 bytes.
enum class writes : u32 { words, wide };

// The same with 16 bytes a lane where records are taken. `Ahead`: the next batch is asked for while one is used.
template <class F, order O, u32 N, bool Ahead, writes W>
WM_DEV void move_wide(const wm_mailbox* boxes, u32 pairs, u32 per_block, u32 apart, u64 records, u64* spans,
                      u64* faults) {
    const place_in_grid here(per_block, apart);
    if (here.pair >= pairs)
        return;
    constexpr u32 groups = groups_in(F::stride());
    wide_words next(here.pair);
    u64 done = 0, wrong_low = 0, wrong_high = 0;
    u32 looks = 0;
    const u64 begin = now_ns();
    if (here.producer && W == writes::words) {
        warp_producer<F> p(attach_producer(boxes[here.pair]));
        words mine(here.pair, threadIdx.x % 32);
        while (done < records && looks < give_up) {
            const u32 n = p.template try_push_batch<O, N>([&](u32, fragment<groups>& f, u32& len, u32& type) {
                for (u32 g = 0; g < groups; g++)
                    f.word[g] = mine.take();
                len = warp_producer<F>::payload;
                type = 1;
            });
            done += n;
            looks = n ? 0 : looks + 1;
        }
    } else if (here.producer) {
        wide_producer<F> p(attach_producer(boxes[here.pair]));
        while (done < records && looks < give_up) {
            const u32 n = p.template try_push_wide<O, N>([&](u32 i, u32 g, wide_fragment& f, u32& len, u32& type) {
                f = next.at(i * groups + g);
                len = warp_producer<F>::payload;
                type = 1;
            });
            done += n;
            next.advance(n * groups);
            looks = n ? 0 : looks + 1;
        }
    } else {
        wide_consumer<F> c(attach_consumer(boxes[here.pair]));
        const auto check = [&](u32 i, u32 g, const wide_fragment& f, wide_meta) {
            const wide_fragment expected = next.at(i * groups + g);
            wrong_low |= i == wide_none ? 0 : f.word[0] ^ expected.word[0];
            wrong_high |= i == wide_none ? 0 : f.word[1] ^ expected.word[1];
        };
        while (done < records && looks < give_up) {
            u64 n = 0;
            if (Ahead) {
                n = c.template pop_wide<O, N>(records - done, give_up_ns, check,
                                              [&](u32 took) { next.advance(took * groups); });
            } else {
                n = c.template try_pop_wide<O, N>(check);
                next.advance(n * groups);
            }
            done += n;
            looks = n ? 0 : looks + 1;
        }
    }
    stamp(spans, here.warp, begin);
    const u64 wrong = wrong_high | (wide_column(warp_lanes{}) == 0 ? 0 : wrong_low);
    report(faults, static_cast<u64>(wrong != 0) + (done < records));
}

#define MOVE(name, Call)                                                                                               \
    extern "C" __global__ void name(const wm_mailbox* boxes, u32 pairs, u32 per_block, u32 apart, u64 records,         \
                                    u64* spans, u64* faults) {                                                         \
        Call(boxes, pairs, per_block, apart, records, spans, faults);                                                  \
    }
using form_256 = fixed_form<256, WM_SCOPE_GPU>;
using form_4096 = fixed_form<4096, WM_SCOPE_GPU>;
using form_host = fixed_form<256, WM_SCOPE_SYS>;
MOVE(move_256, (move_wide<form_256, order::self_contained, 32, true, writes::words>))
MOVE(move_256_ordered, (move_wide<form_256, order::ordered, 32, true, writes::words>))
MOVE(move_256_wide, (move_wide<form_256, order::self_contained, 32, true, writes::wide>))
MOVE(move_256_batches, (move_wide<form_256, order::self_contained, 32, false, writes::words>))
MOVE(move_256_words, (move<form_256, order::self_contained, 32>))
MOVE(move_256_single, (move<form_256, order::self_contained, 1>))
MOVE(move_4096, (move_wide<form_4096, order::self_contained, 1, false, writes::wide>))
MOVE(move_4096_two, (move_wide<form_4096, order::self_contained, 2, false, writes::wide>))
#undef MOVE

// One warp to or from a mailbox in pinned memory.
extern "C" __global__ void to_host(wm_mailbox box, u64 records, u64* faults) {
    warp_producer<form_host> p(attach_producer(box));
    words next(0, threadIdx.x);
    u64 done = 0;
    u32 looks = 0;
    while (done < records && looks < give_up) {
        const u32 n = p.try_push_batch<order::self_contained, 32>([&](u32, fragment<1>& f, u32& len, u32& type) {
            f.word[0] = next.take();
            len = payload_bytes_256;
            type = 1;
        });
        done += n;
        looks = n ? 0 : looks + 1;
    }
    report(faults, done < records);
}
extern "C" __global__ void from_host(wm_mailbox box, u64 records, u64* faults) {
    warp_consumer<form_host> c(attach_consumer(box));
    words next(0, threadIdx.x);
    u64 done = 0, wrong = 0;
    u32 looks = 0;
    while (done < records && looks < give_up) {
        const u32 n = c.try_pop_batch<order::self_contained, 32>(
            [&](u32, const fragment<1>& f, fragment_meta) { wrong |= f.word[0] ^ next.take(); });
        done += n;
        looks = n ? 0 : looks + 1;
    }
    report(faults, static_cast<u64>(threadIdx.x != 0 && wrong != 0) + (done < records));
}

// The ring that one writes first: payload, fence, index; one record at a time.
extern "C" __global__ void move_naive(u64* slots, u32 mask, u64* write_idx, u64* read_idx, u32 per_block, u64 records,
                                      u64* spans, u64* faults) {
    const place_in_grid here(per_block, gridDim.x / 2);
    if (here.pair >= 1)
        return;
    const u32 lane = threadIdx.x % 32;
    words next(0, lane);
    u64 wrong = 0, n = 0;
    const u64 begin = now_ns();
    for (bool gave_up = false; n < records && !gave_up; n += !gave_up) {
        u64* slot = slots + (n & mask) * 32;
        u32 looks = 0;
        if (here.producer) {
            while (n - __shfl_sync(~0u, load_acquire_gpu(read_idx), 0) > mask && !gave_up)
                gave_up = ++looks > give_up;
            slot[lane] = next.take();
            __syncwarp();
            __threadfence();
            if (lane == 0)
                store_relaxed_gpu(write_idx, n + 1);
        } else {
            while (__shfl_sync(~0u, load_acquire_gpu(write_idx), 0) <= n && !gave_up)
                gave_up = ++looks > give_up;
            wrong |= *static_cast<volatile u64*>(slot + lane) ^ next.take();
            __syncwarp();
            if (lane == 0)
                store_release_gpu(read_idx, n + 1);
        }
    }
    stamp(spans, here.warp, begin);
    report(faults, static_cast<u64>(wrong != 0) + (n < records));
}

// Copies n 16-byte chunks `times` times, past L1.
extern "C" __global__ void copy_l2(const uint4* from, uint4* to, u32 n, u32 times, u64* spans) {
    const u64 begin = now_ns();
    const u32 step = gridDim.x * blockDim.x;
    for (u32 t = 0; t < times; t++) {
#pragma unroll 4
        for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
            __stcg(to + i, __ldcg(from + i));
    }
    __syncthreads();
    if (threadIdx.x == 0)
        stamp(spans, blockIdx.x, begin);
}

} // namespace bench

#endif
