// SPDX-License-Identifier: Apache-2.0 OR MIT
// A C++17 program: two threads over a direct mailbox, threads that misuse a sender, and the device API on the host.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include <warpmail/device.hpp>

#include "check.h"

// Two threads, an end each: every record of random content and length arrives whole, in order.
static void two_threads(warpmail_device* device) {
    constexpr uint64_t records = 50000;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    warpmail_mailbox_options shape = WARPMAIL_MAILBOX_OPTIONS_INIT;
    shape.slots = 32;
    OK(warpmail_direct_mailbox(device, &shape, &sender, &receiver));
    std::thread producer([&] {
        unsigned char bytes[248];
        for (uint64_t n = 0; n < records; n++) {
            const size_t len = check_fill(n, bytes, sizeof bytes);
            OK(warpmail_sender_push(sender, static_cast<uint16_t>(n), bytes, len, BOUND_NS));
        }
    });
    std::vector<unsigned char> in(WARPMAIL_POP_BATCH_MAX * 248);
    std::vector<warpmail_record> got(WARPMAIL_POP_BATCH_MAX);
    unsigned char expected[248];
    for (uint64_t n = 0; n < records;) {
        size_t popped = 0;
        const warpmail_status s =
            warpmail_receiver_try_pop_batch(receiver, in.data(), 248, got.size(), got.data(), &popped);
        CHECK(s == WM_OK || s == WM_EMPTY);
        for (size_t i = 0; i < popped; i++, n++) {
            const size_t len = check_fill(n, expected, sizeof expected);
            CHECK(got[i].len == len && got[i].msg_type == static_cast<uint16_t>(n));
            CHECK(std::memcmp(&in[i * 248], expected, len) == 0);
        }
        if (popped == 0)
            std::this_thread::yield();
    }
    producer.join();
    uint64_t pushed = 0, taken = 0;
    OK(warpmail_sender_pushed(sender, &pushed));
    OK(warpmail_receiver_popped(receiver, &taken));
    CHECK(pushed == records && taken == records);
    OK(warpmail_sender_destroy(sender));
    OK(warpmail_receiver_destroy(receiver));
}

// Misuse by many threads is a status, and loses nothing.
static void misuse(warpmail_device* device) {
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    warpmail_mailbox_options shape = WARPMAIL_MAILBOX_OPTIONS_INIT;
    shape.slots = 8192;
    OK(warpmail_direct_mailbox(device, &shape, &sender, &receiver));
    std::atomic<uint64_t> pushed{0}, busy{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&] {
            for (int n = 0; n < 2000; n++) {
                const warpmail_status s = warpmail_sender_try_push(sender, 0, "x", 1);
                CHECK(s == WM_OK || s == WARPMAIL_BUSY);
                (s == WM_OK ? pushed : busy)++;
            }
        });
    for (auto& t : threads)
        t.join();
    uint64_t counted = 0;
    OK(warpmail_sender_pushed(sender, &counted));
    CHECK(counted == pushed && counted + busy == 8000);
    OK(warpmail_sender_destroy(sender));
    OK(warpmail_receiver_destroy(receiver));
}

// The installed device API on the handle that the runtime gives: on the twin a kernel is a function of the host.
static void own_kernel(warpmail_device* device) {
    warpmail_builder* builder;
    warpmail_image* image;
    warpmail_runtime* runtime;
    warpmail_receiver* receiver;
    uint32_t kernel, host, relay, in, out;
    warpmail_module_options options = WARPMAIL_MODULE_OPTIONS_INIT;
    OK(warpmail_builder_new(device, &builder));
    OK(warpmail_builder_stream(builder, "kernel", &kernel));
    OK(warpmail_builder_host(builder, "host", &host));
    OK(warpmail_builder_resident(builder, "relay", &options, &relay));
    OK(warpmail_builder_mailbox(builder, kernel, relay, nullptr, &in));
    OK(warpmail_builder_mailbox(builder, relay, host, nullptr, &out));
    OK(warpmail_image_builtin(&image));
    OK(warpmail_builder_build(builder, image, &runtime));
    OK(warpmail_runtime_receiver(runtime, out, &receiver));
    OK(warpmail_runtime_start(runtime));
    wm_mailbox mailbox;
    OK(warpmail_handle(runtime, in, &mailbox));
    CHECK(mailbox.mailbox_id == in && mailbox.producer_side == WM_SIDE_DEVICE);
    wm_producer producer = warpmail::attach_producer(mailbox);
    for (uint64_t n = 0; n < 2000; n++) {
        unsigned char bytes[248], back[248];
        warpmail_record record;
        const size_t len = check_fill(n, bytes, sizeof bytes);
        CHECK(warpmail::try_push(warpmail::one_lane{}, producer, bytes, static_cast<uint32_t>(len), 5) == WM_OK);
        OK(warpmail_receiver_pop(receiver, back, sizeof back, &record, BOUND_NS));
        CHECK(record.len == len && record.msg_type == 5 && std::memcmp(back, bytes, len) == 0);
    }
    OK(warpmail_runtime_destroy(runtime));
    OK(warpmail_receiver_destroy(receiver));
    OK(warpmail_image_destroy(image));
    OK(warpmail_builder_destroy(builder));
}

int main() {
    warpmail_device* device;
    OK(WARPMAIL_CHECK_ABI());
    OK(warpmail_device_twin(&device));
    two_threads(device);
    misuse(device);
    own_kernel(device);
    OK(warpmail_device_destroy(device));
    IS(warpmail_device_destroy(device), WARPMAIL_STALE_HANDLE);
    std::puts("cxx17: all checks passed");
}
