// SPDX-License-Identifier: Apache-2.0 OR MIT
// A program with a resident handler of its own, on the static library. Runs on the twin, or with "cuda" on device 0.
#include <cstdio>
#include <cstring>

#include "../check.h"

#include "own.hpp"

extern "C" int own_twin(const wm_arbiter_args* args);
extern "C" const unsigned char own_fatbin[], own_fatbin_end[];

int main(int argc, char** argv) {
    const bool cuda = argc > 1 && std::strcmp(argv[1], "cuda") == 0;
    const uint64_t records = 20000;
    warpmail_device* device;
    warpmail_image* image;
    warpmail_builder* builder;
    warpmail_runtime* runtime;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    uint32_t host, own, there, back;

    warpmail_image_options set = WARPMAIL_IMAGE_OPTIONS_INIT;
    set.name = "own";
    set.twin = own_twin;
    set.fatbin = own_fatbin;
    set.fatbin_bytes = static_cast<uint64_t>(own_fatbin_end - own_fatbin);
    CHECK(set.fatbin_bytes > 1000);
    IS(warpmail_image_new(&set, &image), WM_BAD_ARGUMENT); // no kernel is named
    set.kernel = "own_arbiter";
    OK(warpmail_image_new(&set, &image));
    OK(cuda ? warpmail_device_cuda(0, &device) : warpmail_device_twin(&device));

    warpmail_module_options options = WARPMAIL_MODULE_OPTIONS_INIT;
    const uint64_t before = 1000;
    options.handler = own_sum;
    options.state = &before;
    options.state_bytes = sizeof before;
    OK(warpmail_builder_new(device, &builder));
    OK(warpmail_builder_host(builder, "host", &host));
    OK(warpmail_builder_resident(builder, "own", &options, &own));
    OK(warpmail_builder_mailbox(builder, host, own, nullptr, &there));
    OK(warpmail_builder_mailbox(builder, own, host, nullptr, &back));
    OK(warpmail_builder_build(builder, image, &runtime));
    OK(warpmail_runtime_sender(runtime, there, &sender));
    OK(warpmail_runtime_receiver(runtime, back, &receiver));
    OK(warpmail_runtime_start(runtime));
    for (uint64_t n = 0; n < records; n++) {
        unsigned char bytes[248];
        own_answer answer[10];
        warpmail_record record;
        const size_t len = check_fill(n, bytes, sizeof bytes);
        uint64_t sum = 0;
        for (size_t i = 0; i < len; i++)
            sum += bytes[i];
        OK(warpmail_sender_push(sender, static_cast<uint16_t>(n), bytes, len, BOUND_NS));
        OK(warpmail_receiver_pop(receiver, answer, sizeof answer, &record, BOUND_NS));
        CHECK(record.len == sizeof(own_answer) && record.msg_type == static_cast<uint16_t>(n));
        CHECK(answer->len == len && answer->sum == sum && answer->seen == before + n + 1);
    }
    OK(warpmail_runtime_stop(runtime, BOUND_NS));
    uint64_t seen = 0;
    OK(warpmail_runtime_read_state(runtime, own, &seen, sizeof seen));
    CHECK(seen == before + records);
    warpmail_module_stats stats = WARPMAIL_MODULE_STATS_INIT;
    OK(warpmail_runtime_module_stats(runtime, own, &stats));
    CHECK(stats.records_in == records && stats.records_out == records);
    OK(warpmail_runtime_destroy(runtime));
    OK(warpmail_sender_destroy(sender));
    OK(warpmail_receiver_destroy(receiver));
    OK(warpmail_builder_destroy(builder));
    OK(warpmail_image_destroy(image));
    OK(warpmail_device_destroy(device));
    std::printf("own: all checks passed on %s\n", cuda ? "the GPU" : "the twin");
}
