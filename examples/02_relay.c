/* A host thread sends records to a resident handler and gets them back: examples/01_relay.rs in C11.
 *
 *   tools/install.sh --prefix DIR
 *   export PKG_CONFIG_PATH=DIR/lib/pkgconfig
 *   cc -std=c11 -O2 examples/02_relay.c $(pkg-config --cflags --libs warpmail-static) -o 02_relay && ./02_relay [twin]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <warpmail/warpmail.h>

/* Every call returns a status; the message behind it says what happened, why, and what to do. */
static void check(warpmail_status status, const char* what) {
    if (status != WM_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, warpmail_status_name(status), warpmail_last_error());
        exit(1);
    }
}
#define CHECK(call) check(call, #call)

int main(int argc, char** argv) {
    /* 0. Header and library fit together. */
    CHECK(WARPMAIL_CHECK_ABI());

    /* 1. A device: the first GPU if it can be used, else CPU threads running the same protocol. */
    warpmail_device* device;
    int twin = argc > 1 && strcmp(argv[1], "twin") == 0;
    CHECK(twin ? warpmail_device_twin(&device) : warpmail_device_best(&device));
    char text[4096];
    CHECK(warpmail_device_json(device, text, sizeof text, NULL));
    printf("running on %s\n", text);

    /* 2. A graph: two modules, a mailbox each way. */
    warpmail_builder* graph;
    uint32_t host, relay, there, back;
    warpmail_module_options options = WARPMAIL_MODULE_OPTIONS_INIT;
    options.handler = WARPMAIL_HANDLER_RELAY;
    CHECK(warpmail_builder_new(device, &graph));
    CHECK(warpmail_builder_host(graph, "host", &host));
    CHECK(warpmail_builder_resident(graph, "relay", &options, &relay));
    CHECK(warpmail_builder_mailbox(graph, host, relay, NULL, &there)); /* NULL: 64 slots of 256 bytes */
    CHECK(warpmail_builder_mailbox(graph, relay, host, NULL, &back));

    /* 3. A runtime with the library's own handlers; the host's ends; go. */
    warpmail_image* image;
    warpmail_runtime* runtime;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    CHECK(warpmail_image_builtin(&image));
    CHECK(warpmail_builder_build(graph, image, &runtime));
    CHECK(warpmail_runtime_sender(runtime, there, &sender));
    CHECK(warpmail_runtime_receiver(runtime, back, &receiver));
    CHECK(warpmail_runtime_start(runtime));

    /* 4. Records there and back. Every wait has a bound, in nanoseconds. */
    const uint64_t bound = 5000000000u;
    for (uint32_t i = 0; i < 10000; i++) {
        uint32_t answer[62] = {0};
        warpmail_record record;
        CHECK(warpmail_sender_push(sender, 1, &i, sizeof i, bound));
        CHECK(warpmail_receiver_pop(receiver, answer, sizeof answer, &record, bound));
        if (record.len != sizeof i || answer[0] != i) {
            fprintf(stderr, "record %u came back as %u\n", i, answer[0]);
            return 1;
        }
    }

    /* 5. The arbiter's own account of it. After the stop the counters are final. */
    CHECK(warpmail_runtime_stop(runtime, bound));
    warpmail_module_stats stats = WARPMAIL_MODULE_STATS_INIT;
    CHECK(warpmail_runtime_module_stats(runtime, relay, &stats));
    printf("the relay took %llu records in %llu steps\n", (unsigned long long)stats.records_in,
           (unsigned long long)stats.steps);

    /* 6. Handles end in any order. */
    CHECK(warpmail_runtime_destroy(runtime));
    CHECK(warpmail_sender_destroy(sender));
    CHECK(warpmail_receiver_destroy(receiver));
    CHECK(warpmail_builder_destroy(graph));
    CHECK(warpmail_image_destroy(image));
    CHECK(warpmail_device_destroy(device));
    return 0;
}
