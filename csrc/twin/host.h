/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The protocol's host side as C functions, for the Rust library: thin calls of csrc/protocol. Internal; not installed.
 */
#ifndef WARPMAIL_TWIN_HOST_H
#define WARPMAIL_TWIN_HOST_H

#include "warpmail/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

uint32_t wm_host_payload_bytes(uint32_t stride); /* 0: the stride cannot be */
uint64_t wm_host_shared_bytes(const wm_arbiter_args* args);
void wm_host_lay_out(wm_arbiter_args* args);
wm_status wm_host_check_header(const wm_mailbox* mailbox);
void wm_host_clear_mailbox(const wm_mailbox* mailbox, uint64_t start);
wm_producer wm_host_attach_producer(const wm_mailbox* mailbox);
wm_consumer wm_host_attach_consumer(const wm_mailbox* mailbox);
wm_status wm_host_try_push(wm_producer* producer, const void* src, uint32_t len, uint32_t type);
wm_status wm_host_try_pop(wm_consumer* consumer, void* dst, uint32_t dst_bytes, uint32_t* len, uint32_t* type);
wm_status wm_host_try_push_batch(wm_producer* producer, const void* src, uint32_t len, uint32_t type, uint32_t n,
                                 uint32_t* pushed);
wm_status wm_host_try_pop_batch(wm_consumer* consumer, void* dst, uint64_t step, uint32_t* lens, uint32_t* types,
                                uint32_t n, uint32_t* popped);
uint64_t wm_host_load_acquire(const uint64_t* word);
void wm_host_store_release(uint64_t* word, uint64_t value);
uint64_t wm_host_now_ns(void);
void wm_host_fence(void); /* fence_sc_sys */

/* protocol/lease.hpp: the owner's side. */
uint64_t wm_host_lease_open(const wm_leases* leases, uint32_t row, uint64_t base, uint64_t bytes);
uint64_t wm_host_lease_released(const wm_leases* leases, uint32_t row);
wm_status wm_host_lease_give_back(const wm_leases* leases, uint32_t row, uint64_t epoch, uint64_t shares);
void wm_host_lease_close(const wm_leases* leases, uint32_t row);
/* A reader's side, as one thread of the twin's device. */
wm_status wm_host_lease_check(const wm_leases* leases, const wm_tensor* tensor);
wm_status wm_host_lease_release(const wm_leases* leases, const wm_tensor* tensor);

/* protocol/gate.hpp, as one thread that stands for the module's stream. 1: the launch is live. */
int32_t wm_host_gate_begin(const wm_gate_args* args);
void wm_host_gate_end(const wm_gate_args* args);
/* protocol/deliver.hpp, likewise; between the two. 1: the launch is live, still. */
int32_t wm_host_gate_deliver(const wm_gate_args* args, const wm_delivery* delivery);

/* protocol/ahead.hpp */
uint32_t wm_host_launches_ahead(const wm_ahead* now);

int wm_builtin_twin(const wm_arbiter_args* args);

/* Who runs the grants of an arbiter on the CPU: see csrc/protocol/hand.hpp. */
typedef struct wm_steps {
    void* context;
    int32_t (*launch)(void* context, uint32_t server, const wm_step_args* args,
                      uint32_t after);               /* 1, or 0: it cannot */
    int32_t (*done)(void* context, uint32_t server); /* 1, 0: not yet, negative: it failed */
} wm_steps;
/* One launch of the arbiter on the calling thread. 0, or why not: see csrc/twin/cpu_arbiter.hpp. */
int wm_host_cpu_arbiter(const wm_arbiter_args* args, const wm_steps* steps);
/* Dynamic shared memory of a step of a graph with these arguments, bytes. */
uint64_t wm_host_step_bytes(const wm_arbiter_args* args);

#ifdef __cplusplus
}
#endif
#endif
