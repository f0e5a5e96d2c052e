/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A C11 program: records round a relay, statistics that add up, and everything that can be passed wrongly. */
#include "check.h"

enum { RECORDS = 20000, WINDOW = 24 };

typedef struct {
    warpmail_device* device;
    warpmail_image* image;
    warpmail_builder* builder;
    warpmail_runtime* runtime;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    uint32_t relay, there, back;
} graph;

static graph make(void) {
    graph g;
    uint32_t host;
    warpmail_module_options module = WARPMAIL_MODULE_OPTIONS_INIT;
    warpmail_mailbox_options shape = WARPMAIL_MAILBOX_OPTIONS_INIT;
    warpmail_budget budget = WARPMAIL_BUDGET_INIT;
    module.handler = WARPMAIL_HANDLER_RELAY;
    module.state_bytes = 24;
    shape.slots = 16;
    shape.stride = 512;
    OK(warpmail_device_twin(&g.device));
    OK(warpmail_image_builtin(&g.image));
    OK(warpmail_builder_new(g.device, &g.builder));
    OK(warpmail_builder_budget(g.builder, &budget));
    OK(warpmail_builder_host(g.builder, "host", &host));
    OK(warpmail_builder_resident(g.builder, "relay", &module, &g.relay));
    OK(warpmail_builder_mailbox(g.builder, host, g.relay, &shape, &g.there));
    OK(warpmail_builder_mailbox(g.builder, g.relay, host, &shape, &g.back));
    OK(warpmail_builder_build(g.builder, g.image, &g.runtime));
    OK(warpmail_runtime_sender(g.runtime, g.there, &g.sender));
    OK(warpmail_runtime_receiver(g.runtime, g.back, &g.receiver));
    return g;
}

/* Random contents and lengths, many under way; they come back in order and whole. */
static void round_trip(graph* g) {
    unsigned char out[496], in[496], expected[496];
    uint64_t sent = 0, got = 0, bytes = 0;
    size_t payload;
    OK(warpmail_sender_payload_bytes(g->sender, &payload));
    CHECK(payload == sizeof out);
    while (got < RECORDS) {
        warpmail_record record;
        size_t len;
        if (sent < RECORDS && sent - got < WINDOW) {
            len = check_fill(sent, out, sizeof out);
            OK(warpmail_sender_push(g->sender, (uint16_t)check_random(sent), out, len, BOUND_NS));
            sent++;
            continue;
        }
        OK(warpmail_receiver_pop(g->receiver, in, sizeof in, &record, BOUND_NS));
        len = check_fill(got, expected, sizeof expected);
        CHECK(record.len == len && record.msg_type == (uint16_t)check_random(got));
        CHECK(memcmp(in, expected, len) == 0);
        bytes += len;
        got++;
    }
    printf("c11: %u records, %llu bytes\n", (unsigned)RECORDS, (unsigned long long)bytes);
}

static void statistics(graph* g) {
    warpmail_stats all = WARPMAIL_STATS_INIT;
    warpmail_module_stats module = WARPMAIL_MODULE_STATS_INIT;
    warpmail_mailbox_stats box = WARPMAIL_MAILBOX_STATS_INIT;
    char text[8192];
    size_t needed = 0;
    OK(warpmail_runtime_stats(g->runtime, &all));
    CHECK(all.modules == 2 && all.mailboxes == 2 && all.launches == all.launches_ended && all.grants > 0);
    OK(warpmail_runtime_module_stats(g->runtime, g->relay, &module));
    CHECK(module.records_in == RECORDS && module.records_out == RECORDS && module.no_progress == 0);
    OK(warpmail_runtime_mailbox_stats(g->runtime, g->there, &box));
    CHECK(box.written == RECORDS && box.consumed == RECORDS && !box.quarantined && box.depth_max <= 16);
    OK(warpmail_runtime_mailbox_stats(g->runtime, g->back, &box));
    CHECK(box.written == RECORDS && box.consumed == RECORDS && !box.quarantined);
    IS(warpmail_runtime_stats_json(g->runtime, text, 10, &needed), WM_TOO_SMALL);
    OK(warpmail_runtime_stats_json(g->runtime, text, sizeof text, &needed));
    CHECK(strlen(text) + 1 == needed && strstr(text, "\"relay\"") != NULL);
    OK(warpmail_probe_json(text, sizeof text, NULL));
    CHECK(strstr(text, "\"abi_version\":") != NULL);
}

static void wrong_handles(graph* g) {
    int local = 0;
    warpmail_sender* foreign = (warpmail_sender*)&local;
    IS(warpmail_sender_try_push(NULL, 0, "x", 1), WARPMAIL_BAD_HANDLE);
    IS(warpmail_sender_try_push(foreign, 0, "x", 1), WARPMAIL_BAD_HANDLE);
    IS(warpmail_sender_try_push((warpmail_sender*)g->receiver, 0, "x", 1), WARPMAIL_BAD_HANDLE);
    CHECK(strstr(warpmail_last_error(), "warpmail_receiver") != NULL);
    IS(warpmail_runtime_start((warpmail_runtime*)g->device), WARPMAIL_BAD_HANDLE);
    IS(warpmail_device_destroy(NULL), WARPMAIL_BAD_HANDLE);
    IS(warpmail_builder_build(g->builder, (warpmail_image*)g->builder, &g->runtime), WARPMAIL_BAD_HANDLE);
}

static void wrong_arguments(graph* g) {
    static const unsigned char bytes[512];
    unsigned char in[8];
    warpmail_record record;
    uint32_t id;
    struct {
        warpmail_mailbox_options now;
        uint32_t later[4];
    } newer = {WARPMAIL_MAILBOX_OPTIONS_INIT, {0, 0, 0, 0}};
    warpmail_module_options module = WARPMAIL_MODULE_OPTIONS_INIT;
    warpmail_stats stats = WARPMAIL_STATS_INIT;
    warpmail_image_options image = WARPMAIL_IMAGE_OPTIONS_INIT;
    warpmail_image* out = NULL;

    IS(warpmail_sender_try_push(g->sender, 0, bytes, 497), WM_BAD_LENGTH);
    IS(warpmail_sender_try_push(g->sender, 0, NULL, 1), WM_BAD_ARGUMENT);
    IS(warpmail_receiver_try_pop(g->receiver, in, sizeof in, NULL), WM_BAD_ARGUMENT);
    IS(warpmail_receiver_pop(g->receiver, in, sizeof in, &record, UINT64_MAX), WM_BAD_ARGUMENT);
    IS(warpmail_receiver_pop(g->receiver, in, sizeof in, &record, 1000000), WM_TIMEOUT);
    CHECK(warpmail_receiver_try_pop(g->receiver, in, sizeof in, &record) == WM_EMPTY);
    IS(warpmail_runtime_sender(g->runtime, g->there, &g->sender), WARPMAIL_REFUSED);
    IS(warpmail_runtime_sender(g->runtime, 99, &g->sender), WARPMAIL_REFUSED);

    newer.now.struct_size = sizeof newer;
    OK(warpmail_builder_mailbox(g->builder, 0, 1, &newer.now, &id));
    newer.later[3] = 1;
    IS(warpmail_builder_mailbox(g->builder, 0, 1, &newer.now, &id), WARPMAIL_BAD_STRUCT);
    module.struct_size = 0;
    IS(warpmail_builder_resident(g->builder, "m", &module, &id), WARPMAIL_BAD_STRUCT);
    module.struct_size = 8;
    IS(warpmail_builder_resident(g->builder, "m", &module, &id), WARPMAIL_BAD_STRUCT);
    stats.struct_size = 4;
    IS(warpmail_runtime_stats(g->runtime, &stats), WARPMAIL_BAD_STRUCT);
    image.name = "none";
    IS(warpmail_image_new(&image, &out), WARPMAIL_REFUSED);
    image.abi_version++;
    IS(warpmail_image_new(&image, &out), WM_BAD_VERSION);
    CHECK(out == NULL);
    IS(warpmail_check_abi(WM_ABI_VERSION + 1, WARPMAIL_API_VERSION), WM_BAD_VERSION);
    CHECK(strcmp(warpmail_status_name(WARPMAIL_BAD_STRUCT), "WARPMAIL_BAD_STRUCT") == 0);
}

static warpmail_status look(warpmail_runtime* runtime, void* user) {
    uint32_t state = 99;
    OK(warpmail_runtime_read_state(runtime, *(uint32_t*)user, (uint64_t[3]){0}, 24));
    OK(warpmail_runtime_state(runtime, &state));
    CHECK(state == WARPMAIL_STATE_QUIET);
    IS(warpmail_runtime_stop(runtime, BOUND_NS), WARPMAIL_BAD_STATE);
    return WM_OK;
}

/* With too little memory for it, a graph of 8 GiB is refused: no abort. */
static int hungry(void) {
    warpmail_device* device;
    warpmail_image* image;
    warpmail_builder* builder;
    warpmail_runtime* runtime;
    uint32_t host, a, b, id;
    warpmail_module_options module = WARPMAIL_MODULE_OPTIONS_INIT;
    warpmail_mailbox_options shape = {sizeof shape, 4096, 1u << 21, 0};
    OK(warpmail_device_twin(&device));
    OK(warpmail_image_builtin(&image));
    OK(warpmail_builder_new(device, &builder));
    OK(warpmail_builder_host(builder, "host", &host));
    OK(warpmail_builder_resident(builder, "a", &module, &a));
    OK(warpmail_builder_resident(builder, "b", &module, &b));
    OK(warpmail_builder_mailbox(builder, host, a, NULL, &id));
    OK(warpmail_builder_mailbox(builder, a, b, &shape, &id));
    IS(warpmail_builder_build(builder, image, &runtime), WARPMAIL_UNAVAILABLE);
    printf("c11: %s\n", warpmail_last_error());
    return 0;
}

int main(int argc, char** argv) {
    graph g;
    uint32_t state = 99;
    if (argc > 1 && strcmp(argv[1], "hungry") == 0)
        return hungry();
    g = make();
    OK(WARPMAIL_CHECK_ABI());
    CHECK(warpmail_abi_version() == WM_ABI_VERSION && warpmail_version()[0] != 0);
    wrong_handles(&g);
    OK(warpmail_runtime_start(g.runtime));
    round_trip(&g);
    IS(warpmail_runtime_read_state(g.runtime, g.relay, NULL, 0), WARPMAIL_BAD_STATE);
    OK(warpmail_runtime_quiesce(g.runtime, BOUND_NS, look, &g.relay));
    OK(warpmail_runtime_drain(g.runtime, BOUND_NS));
    OK(warpmail_runtime_stop(g.runtime, BOUND_NS));
    OK(warpmail_runtime_state(g.runtime, &state));
    CHECK(state == WARPMAIL_STATE_STOPPED);
    statistics(&g);
    wrong_arguments(&g);

    OK(warpmail_runtime_destroy(g.runtime));
    IS(warpmail_runtime_destroy(g.runtime), WARPMAIL_STALE_HANDLE);
    IS(warpmail_runtime_state(g.runtime, &state), WARPMAIL_STALE_HANDLE);
    OK(warpmail_sender_destroy(g.sender));
    IS(warpmail_sender_try_push(g.sender, 0, "x", 1), WARPMAIL_STALE_HANDLE);
    IS(warpmail_sender_destroy(g.sender), WARPMAIL_STALE_HANDLE);
    OK(warpmail_receiver_destroy(g.receiver));
    OK(warpmail_builder_destroy(g.builder));
    OK(warpmail_image_destroy(g.image));
    OK(warpmail_device_destroy(g.device));
    puts("c11: all checks passed");
    return 0;
}
