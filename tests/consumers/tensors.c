/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A C11 program that lends tensors through the installed library: between two ends without an arbiter, with memory of
 * its own, and with what a C program can get wrong.  tensors [twin] */
#include "check.h"

#include <stdio.h>
#include <string.h>

#define SHAPE_4X8 ((const int64_t[]){4, 8})

static void count(void* user) {
    ++*(int*)user;
}

int main(void) {
    warpmail_device* device;
    warpmail_pool* pool;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    warpmail_tensor *tensor, *theirs;
    warpmail_lease *lease, *other, *taken;
    warpmail_pool_options limits = WARPMAIL_POOL_OPTIONS_INIT;
    warpmail_tensor_options shape = WARPMAIL_TENSOR_OPTIONS_INIT;
    warpmail_pool_stats stats = WARPMAIL_POOL_STATS_INIT;
    float content[32], back[32];
    static float own[32];
    wm_tensor raw;
    char note[72], text[2048];
    size_t i, len;
    int told = 0;

    OK(WARPMAIL_CHECK_ABI());
    OK(warpmail_device_twin(&device));
    limits.limit_bytes = 4096;
    OK(warpmail_pool_new(device, &limits, &pool));
    OK(warpmail_direct_mailbox(device, NULL, &sender, &receiver));
    OK(warpmail_receiver_attach_pool(receiver, pool));
    shape.ndim = 2;
    shape.shape = SHAPE_4X8;
    shape.dtype_code = 2; /* kDLFloat */
    shape.dtype_bits = 32;
    OK(warpmail_pool_alloc(pool, "numbers", &shape, 0, &tensor));
    for (i = 0; i < 32; i++)
        content[i] = (float)i / 3;
    OK(warpmail_tensor_upload(tensor, content, sizeof content));

    /* Two readers: one gets a record, the other's share is given back here. */
    OK(warpmail_tensor_lease(tensor, 2, &lease));
    OK(warpmail_lease_part(lease, 1, &other));
    OK(warpmail_sender_post(sender, lease, "hello", 6, BOUND_NS));
    IS(warpmail_lease_destroy(lease), WARPMAIL_STALE_HANDLE);
    OK(warpmail_lease_release(other));
    OK(warpmail_receiver_take(receiver, note, sizeof note, &len, BOUND_NS, &taken));
    CHECK(len == 6 && strcmp(note, "hello") == 0);
    OK(warpmail_lease_descriptor(taken, &raw));
    CHECK(raw.ndim == 2 && raw.shape[1] == 8 && raw.strides[0] == 8 && raw.dtype_bits == 32 && (raw.epoch & 1) == 1);
    OK(warpmail_lease_download(taken, back, sizeof back));
    CHECK(memcmp(back, content, sizeof back) == 0);

    /* Its descriptor again: held already, then ended. */
    IS(warpmail_pool_claim(pool, &raw, &other), WM_STALE_LEASE);
    OK(warpmail_lease_destroy(taken));
    OK(warpmail_pool_collect(pool, NULL));
    IS(warpmail_pool_claim(pool, &raw, &other), WM_STALE_LEASE);
    CHECK(strstr(warpmail_last_error(), "has ended") != NULL);

    /* Memory of this program, which is told when nobody holds it. */
    OK(warpmail_pool_adopt(pool, "own", (uint64_t)(uintptr_t)own, &shape, count, &told, &theirs));
    OK(warpmail_tensor_destroy(theirs));
    CHECK(told == 0);
    OK(warpmail_pool_collect(pool, NULL));
    CHECK(told == 1);

    /* No more than the limit, and who has it. */
    shape.shape = (const int64_t[]){40, 25};
    IS(warpmail_pool_alloc(pool, "too much", &shape, 0, &theirs), WARPMAIL_POOL_FULL);
    CHECK(strstr(warpmail_last_error(), "numbers (256 bytes") != NULL);
    OK(warpmail_pool_holders_json(pool, text, sizeof text, NULL));
    CHECK(strstr(text, "\"numbers\"") != NULL);

    OK(warpmail_tensor_destroy(tensor));
    OK(warpmail_pool_collect(pool, NULL));
    OK(warpmail_pool_stats_get(pool, &stats));
    CHECK(stats.open == 0 && stats.used == 0 && stats.opened == 1 && stats.closed == 1 && stats.stale == 2);
    OK(warpmail_sender_destroy(sender));
    OK(warpmail_receiver_destroy(receiver));
    OK(warpmail_pool_destroy(pool));
    IS(warpmail_pool_collect(pool, NULL), WARPMAIL_STALE_HANDLE);
    OK(warpmail_device_destroy(device));
    puts("tensors: all checks passed");
    return 0;
}
