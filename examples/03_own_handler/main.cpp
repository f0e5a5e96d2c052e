// A program with a resident handler of its own: it shouts back whatever it is sent. C++17 on the C API.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <warpmail/warpmail.h>

extern "C" int own_twin(const wm_arbiter_args* args);
#ifdef OWN_FATBIN
extern "C" const unsigned char own_fatbin[], own_fatbin_end[];
#endif

static void check(warpmail_status status, const char* what) {
    if (status != WM_OK) {
        std::fprintf(stderr, "%s: %s: %s\n", what, warpmail_status_name(status), warpmail_last_error());
        std::exit(1);
    }
}
#define CHECK(call) check(call, #call)

int main(int argc, char** argv) {
    // 1. Both halves of the handler set, and the version of the headers that they were compiled with.
    warpmail_image_options set = WARPMAIL_IMAGE_OPTIONS_INIT;
    set.name = "shout";
    set.twin = own_twin;
#ifdef OWN_FATBIN
    set.fatbin = own_fatbin;
    set.fatbin_bytes = static_cast<uint64_t>(own_fatbin_end - own_fatbin);
    set.kernel = "own_arbiter";
#endif
    warpmail_image* image;
    CHECK(warpmail_image_new(&set, &image));

    // 2. A device that the set runs on: without a fatbin that is the twin.
    const bool twin = set.fatbin == nullptr || (argc > 1 && std::strcmp(argv[1], "twin") == 0);
    warpmail_device* device;
    CHECK(twin ? warpmail_device_twin(&device) : warpmail_device_best(&device));

    // 3. The graph: the module has eight bytes of its own, zero at first.
    warpmail_builder* graph;
    uint32_t host, shout, there, back;
    warpmail_module_options options = WARPMAIL_MODULE_OPTIONS_INIT;
    options.state_bytes = sizeof(uint64_t);
    CHECK(warpmail_builder_new(device, &graph));
    CHECK(warpmail_builder_host(graph, "host", &host));
    CHECK(warpmail_builder_resident(graph, "shout", &options, &shout));
    CHECK(warpmail_builder_mailbox(graph, host, shout, nullptr, &there));
    CHECK(warpmail_builder_mailbox(graph, shout, host, nullptr, &back));

    warpmail_runtime* runtime;
    warpmail_sender* sender;
    warpmail_receiver* receiver;
    CHECK(warpmail_builder_build(graph, image, &runtime));
    CHECK(warpmail_runtime_sender(runtime, there, &sender));
    CHECK(warpmail_runtime_receiver(runtime, back, &receiver));
    CHECK(warpmail_runtime_start(runtime));

    // 4. Words there, shouts back.
    const uint64_t bound = 5'000'000'000;
    uint64_t sent = 0;
    const char* const words[] = {"hello", "from", "the", "arbiter"};
    for (const char* word : words) {
        char answer[248];
        warpmail_record record;
        CHECK(warpmail_sender_push(sender, 1, word, std::strlen(word), bound));
        CHECK(warpmail_receiver_pop(receiver, answer, sizeof answer, &record, bound));
        std::printf("%s -> %.*s\n", word, static_cast<int>(record.len), answer);
        sent += record.len;
    }

    // 5. A module's memory can be read while the arbiter is away: here, for good.
    uint64_t seen = 0;
    CHECK(warpmail_runtime_stop(runtime, bound));
    CHECK(warpmail_runtime_read_state(runtime, shout, &seen, sizeof seen));
    std::printf("the handler saw %llu bytes of %llu\n", static_cast<unsigned long long>(seen),
                static_cast<unsigned long long>(sent));

    CHECK(warpmail_runtime_destroy(runtime));
    CHECK(warpmail_sender_destroy(sender));
    CHECK(warpmail_receiver_destroy(receiver));
    CHECK(warpmail_builder_destroy(graph));
    CHECK(warpmail_device_destroy(device));
    CHECK(warpmail_image_destroy(image));
    return seen == sent ? 0 : 1;
}
