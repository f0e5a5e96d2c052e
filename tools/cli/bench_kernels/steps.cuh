// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The bodies of `arb.*` that run on streams, one warp each: the same work as handler 3 of echo.hpp, between the bound
// buffers of a stream module; and the same without mailboxes, for streams whose order is made in advance.
#ifndef WARPMAIL_BENCH_STEPS_CUH
#define WARPMAIL_BENCH_STEPS_CUH

#include "bench_kernels/common.cuh"

namespace bench {

constexpr warpmail::u32 step_ends = 4;

struct step_work {
    warpmail::u64 inputs[step_ends]; // wm_step_head and payload
    warpmail::u64 outputs[step_ends];
    warpmail::u64 n_inputs;
    warpmail::u64 n_outputs;
    warpmail::u64 work_ns;
    warpmail::u64 early;        // not 0: takes part in programmatic dependent launch, in front of it and behind
    warpmail::u64 leaves_after; // hops after which a record leaves by the last output alone; 0: it goes to all
};

WM_DEV void work_for(warpmail::u64 began, warpmail::u64 ns) {
    while (warpmail::now_ns() - began < ns)
        warpmail::pause();
}

WM_DEV warpmail::u64* words_of(warpmail::u64 buffer) {
    return warpmail::at<warpmail::u64>(buffer + WM_STEP_HEAD_BYTES);
}

} // namespace bench

// Everything but the stamp of its end is in the output buffers before that is taken: what comes after it is the hop.
extern "C" __global__ void __launch_bounds__(32) step_work(const bench::step_work w) {
    using warpmail::u32;
    using warpmail::u64;
    if (w.early != 0)
        warpmail::let_next_begin();
    warpmail::wait_for_previous();
    const u64 began = warpmail::now_ns();
    const u64* record = nullptr;
    u64 latest = 0; // end of the step before; of several, the latest
    u32 type = 0;
    for (u64 i = 0; i < w.n_inputs; i++) {
        const wm_step_head* head = warpmail::at<wm_step_head>(w.inputs[i]);
        if (head->len == WM_STEP_NOTHING)
            continue;
        const u64* const words = bench::words_of(w.inputs[i]);
        const u64 end = words[1 + 2 * words[1]];
        latest = end > latest ? end : latest;
        type = head->type;
        record = record ? record : words;
    }
    if (record == nullptr)
        return;
    const u64 hops = record[1], first = w.leaves_after != 0 && hops + 1 >= w.leaves_after ? w.n_outputs - 1 : 0;
    const u64 last = w.leaves_after != 0 ? first + 1 : w.n_outputs, lane = threadIdx.x;
    if (lane < 3 + 2 * hops) {
        u64 word = record[lane];
        word = lane == 1 ? hops + 1 : hops != 0 && lane == 1 + 2 * hops ? latest : lane == 2 + 2 * hops ? began : word;
        for (u64 o = first; o < last; o++)
            bench::words_of(w.outputs[o])[lane] = word;
    }
    if (lane != 0)
        return;
    for (u64 o = first; o < last; o++)
        *warpmail::at<wm_step_head>(w.outputs[o]) = {248, type, 0};
    bench::work_for(began, w.work_ns);
    const u64 ended = warpmail::now_ns();
    for (u64 o = first; o < last; o++)
        bench::words_of(w.outputs[o])[3 + 2 * hops] = ended;
}

// One hop of a chain whose order is made in advance: {began, ended} at `stamps`.
extern "C" __global__ void __launch_bounds__(32) queued_work(warpmail::u64* stamps, warpmail::u64 work_ns) {
    if (threadIdx.x != 0)
        return;
    const warpmail::u64 began = warpmail::now_ns();
    bench::work_for(began, work_ns);
    stamps[0] = began;
    stamps[1] = warpmail::now_ns();
}

#endif
