// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "twin/host.h"

#include "protocol/ahead.hpp"
#include "protocol/builtin.hpp"
#include "protocol/deliver.hpp"
#include "protocol/gate_begin.hpp"
#include "protocol/gate_end.hpp"
#include "twin/twin_arbiter.hpp"

using namespace warpmail;

uint32_t wm_host_payload_bytes(uint32_t stride) {
    return stride_is_valid(stride) && stride <= WM_STRIDE_MAX ? payload_in(stride) : 0;
}

uint64_t wm_host_shared_bytes(const wm_arbiter_args* args) {
    arbiter a(*args);
    u64 kept_bytes;
    return place(a, nullptr, kept_bytes);
}

void wm_host_lay_out(wm_arbiter_args* args) {
    arbiter a(*args);
    u64 kept_bytes;
    u32 parts[WM_ARBITER_PARTS];
    place(a, nullptr, kept_bytes, parts);
    for (u32 i = 0; i < WM_ARBITER_PARTS; i++)
        args->parts[i] = parts[i];
    args->image_bytes = static_cast<u32>(kept_bytes);
}

wm_status wm_host_check_header(const wm_mailbox* mailbox) {
    return check_header(*mailbox);
}

void wm_host_clear_mailbox(const wm_mailbox* mailbox, uint64_t start) {
    clear_mailbox(*mailbox, start);
}

wm_producer wm_host_attach_producer(const wm_mailbox* mailbox) {
    return attach_producer(*mailbox);
}

wm_consumer wm_host_attach_consumer(const wm_mailbox* mailbox) {
    return attach_consumer(*mailbox);
}

// A call from another language for each record: inside, nothing is to be called in its turn but what is compiled for
// other processors.
#define WM_FLAT [[gnu::flatten]]

WM_FLAT wm_status wm_host_try_push(wm_producer* producer, const void* src, uint32_t len, uint32_t type) {
    return try_push(one_lane{}, *producer, src, len, type);
}

WM_FLAT wm_status wm_host_try_pop(wm_consumer* consumer, void* dst, uint32_t dst_bytes, uint32_t* len, uint32_t* type) {
    return try_pop(one_lane{}, *consumer, dst, dst_bytes, *len, *type);
}

WM_FLAT wm_status wm_host_try_push_batch(wm_producer* producer, const void* src, uint32_t len, uint32_t type,
                                         uint32_t n, uint32_t* pushed) {
    return try_push_batch(one_lane{}, *producer, src, len, len, type, n, *pushed);
}

WM_FLAT wm_status wm_host_try_pop_batch(wm_consumer* consumer, void* dst, uint64_t step, uint32_t* lens,
                                        uint32_t* types, uint32_t n, uint32_t* popped) {
    return try_pop_batch(one_lane{}, *consumer, dst, step, static_cast<u32>(step), lens, types, n, *popped);
}

uint64_t wm_host_load_acquire(const uint64_t* word) {
    return load_acquire_sys(word);
}

void wm_host_store_release(uint64_t* word, uint64_t value) {
    store_release_sys(word, value);
}

uint64_t wm_host_now_ns(void) {
    return now_ns();
}

void wm_host_fence(void) {
    fence_sc_sys();
}

uint64_t wm_host_lease_open(const wm_leases* leases, uint32_t row, uint64_t base, uint64_t bytes) {
    return lease_open(*leases, row, base, bytes);
}

uint64_t wm_host_lease_released(const wm_leases* leases, uint32_t row) {
    return lease_released(*leases, row);
}

wm_status wm_host_lease_give_back(const wm_leases* leases, uint32_t row, uint64_t epoch, uint64_t shares) {
    return lease_give_back(*leases, row, epoch, shares);
}

void wm_host_lease_close(const wm_leases* leases, uint32_t row) {
    lease_close(*leases, row);
}

wm_status wm_host_lease_check(const wm_leases* leases, const wm_tensor* tensor) {
    return lease_check(one_lane{}, *leases, *tensor);
}

wm_status wm_host_lease_release(const wm_leases* leases, const wm_tensor* tensor) {
    return lease_release(one_lane{}, *leases, *tensor);
}

int32_t wm_host_gate_begin(const wm_gate_args* args) {
    return gate_is_valid(*args) && gate_begin<false>(one_lane{}, *args);
}

void wm_host_gate_end(const wm_gate_args* args) {
    if (gate_is_valid(*args))
        gate_end<false>(one_lane{}, *args);
}

int32_t wm_host_gate_deliver(const wm_gate_args* args, const wm_delivery* delivery) {
    if (!gate_is_valid(*args))
        return 0;
    gate_deliver(one_lane{}, 0, 1, *args, *delivery);
    return at<const wm_gate_state>(args->state)->live != 0;
}

uint32_t wm_host_launches_ahead(const wm_ahead* now) {
    return launches_ahead(*now);
}

int wm_builtin_twin(const wm_arbiter_args* args) {
    return twin_arbiter<builtin_handlers>(args);
}

namespace {

// The table of functions as `cpu_arbiter` takes it.
struct step_calls {
    const wm_steps& calls;
    bool launch(u32 server, const wm_step_args& args, u32 after) {
        return calls.launch(calls.context, server, &args, after) != 0;
    }
    int done(u32 server) {
        return calls.done(calls.context, server);
    }
};

} // namespace

int wm_host_cpu_arbiter(const wm_arbiter_args* args, const wm_steps* steps) {
    step_calls calls{*steps};
    return cpu_arbiter(args, calls, false);
}

uint64_t wm_host_step_bytes(const wm_arbiter_args* args) {
    wm_step_args s = {};
    s.scratch_bytes = args->scratch_bytes;
    s.journal_stage_bytes = args->journal_stage_bytes;
    s.journal.header = args->journals;
    const wm_arbiter_args table = step_table(s);
    arbiter a(table);
    u64 kept_bytes;
    return place(a, nullptr, kept_bytes);
}
