/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The C API: C11 and C++17. This file is the truth; the library is checked against it when it is compiled.
 * docs/c-api.md has the rules in prose, examples/02_relay.c a whole program.
 *
 * Statuses. Every function that can fail returns a warpmail_status: 0 is success, positive is "not now", negative is a
 * refusal or a failure. warpmail_last_error() then says what happened, why, and what to do, for the calling thread.
 * What a function would have given (*out) is unchanged unless it says otherwise.
 *
 * Handles are ids in the shape of pointers: never dereferenced, looked up in a table of those alive. A null, foreign,
 * wrong or already destroyed handle is WARPMAIL_BAD_HANDLE or WARPMAIL_STALE_HANDLE, never undefined behaviour. Each
 * is destroyed once by its own function, in any order: what is still needed lives on.
 *
 * Threads, by handle:
 *   device, image, pool         any number of threads at the same time
 *   tensor, lease               one thread at a time, as a builder
 *   builder, sender, receiver   one thread at a time; a second at the same moment gets WARPMAIL_BUSY and changes
 * nothing runtime                     state, failure, statistics and warpmail_handle: at any time. The others: one
 * thread at a time; calls with a bound wait for their turn within it, those without get WARPMAIL_BUSY
 *
 * Waiting. Every wait takes a bound in nanoseconds, at most WARPMAIL_BOUND_MAX_NS; a longer one is refused.
 *
 * Strings are UTF-8 and end with a zero byte. Nothing here may be called from a signal handler, or with a handle from
 * before a fork. Callbacks must return: they must not throw, longjmp or end the thread.
 */
#ifndef WARPMAIL_WARPMAIL_H
#define WARPMAIL_WARPMAIL_H

#include "warpmail/abi.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by any change of this file that an older program could notice. */
#define WARPMAIL_API_VERSION 8u

/* Statuses: those of wm_status in abi.h, and these. */
typedef wm_status warpmail_status;
#define WARPMAIL_BAD_HANDLE (-32)   /* null, no handle of this library, or a handle of another kind */
#define WARPMAIL_STALE_HANDLE (-33) /* destroyed before */
#define WARPMAIL_BUSY (-34)         /* another thread is inside a call with this handle */
#define WARPMAIL_BAD_STRUCT (-35)   /* struct_size, or a byte that must be zero */
#define WARPMAIL_REFUSED (-36)      /* a module graph or an option breaks a rule */
#define WARPMAIL_UNAVAILABLE (-37)  /* this machine, or this build, cannot do it */
#define WARPMAIL_DRIVER (-38)       /* a driver call failed */
#define WARPMAIL_FAILED (-39)       /* the runtime has failed, and stays so */
#define WARPMAIL_STUCK (-40)        /* the arbiter did not leave within the bound */
#define WARPMAIL_BAD_STATE (-41)    /* the call does not fit the runtime's state */
#define WARPMAIL_BAD_MAILBOX (-42)  /* a mailbox header that cannot be trusted */
#define WARPMAIL_INTERNAL (-43)     /* a fault of the library, caught at its border: report it */
#define WARPMAIL_POOL_FULL (-45)    /* a pool has no room: the message says who holds what */
#define WARPMAIL_JOURNAL (-44)      /* a file of the journal: it failed, is damaged, foreign, or has a writer already */

/* The longest bound of a wait: a day. */
#define WARPMAIL_BOUND_MAX_NS 86400000000000u
/* The most records that one batch pop takes. */
#define WARPMAIL_POP_BATCH_MAX 64u
/* For warpmail_budget: as many servers as fit the device. */
#define WARPMAIL_SERVERS_DEFAULT 0xFFFFFFFFu
/* For warpmail_budget: idle_spin_ns is as long as being woken costs on this device, measured at the first build. */
#define WARPMAIL_IDLE_SPIN_BREAK_EVEN UINT64_MAX

/* Handlers of the library's own image, for warpmail_module_options. */
#define WARPMAIL_HANDLER_RELAY 0u   /* takes what waits at each input, gives it to every output */
#define WARPMAIL_HANDLER_DISCARD 1u /* takes what waits at each input */

/* Who arbitrates: the same module graph runs in both modes. docs/arbitration.md tells when which is the better choice.
 */
#define WARPMAIL_MODE_DEVICE 0u /* the persistent kernel, which runs the handlers itself */
#define WARPMAIL_MODE_CPU 1u    /* a thread of the host, which gives each grant to the device as a short launch */

/* Where a runtime is in its life. */
#define WARPMAIL_STATE_READY 0u   /* built, not started */
#define WARPMAIL_STATE_RUNNING 1u /* the arbiter runs */
#define WARPMAIL_STATE_QUIET 2u   /* inside a quiesce: the arbiter is away */
#define WARPMAIL_STATE_STOPPED 3u /* for good */
#define WARPMAIL_STATE_FAILED 4u  /* warpmail_runtime_failure says why */
#define WARPMAIL_STATE_WAITING 5u /* started; no SM has room for the arbiter, or another process holds the device */

typedef struct warpmail_device warpmail_device;
typedef struct warpmail_image warpmail_image;
typedef struct warpmail_builder warpmail_builder;
typedef struct warpmail_runtime warpmail_runtime;
typedef struct warpmail_sender warpmail_sender;
typedef struct warpmail_receiver warpmail_receiver;
typedef struct warpmail_pool warpmail_pool;
typedef struct warpmail_step warpmail_step;
typedef struct warpmail_tensor warpmail_tensor;
typedef struct warpmail_lease warpmail_lease;

/*
 * Options. The first member is the size of the struct as the caller was compiled: start from the _INIT macro. A struct
 * of an older version of this file is accepted, its missing members take their defaults; one of a newer version is
 * accepted if the bytes this library does not know are zero. Members named `reserved` must be zero.
 */

/* Shape of a mailbox. */
typedef struct warpmail_mailbox_options {
    uint32_t struct_size;
    uint32_t stride; /* bytes from slot to slot: a multiple of 64 from 64 to 4096; 8 of every 256 are the slot's own */
    uint32_t slots;  /* a power of two, up to 2^24 */
    uint32_t reserved;
} warpmail_mailbox_options;
#define WARPMAIL_MAILBOX_OPTIONS_INIT {sizeof(warpmail_mailbox_options), WM_STRIDE_DEFAULT, 64, 0}

/* How a resident module is run. */
typedef struct warpmail_module_options {
    uint32_t struct_size;
    uint32_t handler;     /* the number that the handler set's step() switches on */
    uint32_t rule;        /* WM_RULE_ANY or WM_RULE_ALL */
    uint32_t batch;       /* steps one grant may run while the rule holds, at least 1 */
    uint32_t out_records; /* the most records one step may push to one output; 0: the number of inputs */
    uint32_t priority;    /* 0 (most urgent) to 3 */
    const void* state;    /* the module's own memory before the first step, copied; null: zeroes */
    uint64_t state_bytes; /* its size */
} warpmail_module_options;
#define WARPMAIL_MODULE_OPTIONS_INIT {sizeof(warpmail_module_options), 0, WM_RULE_ANY, 32, 0, 0, NULL, 0}

/* How the steps of a stream module run; docs/stream-modules.md. */
typedef struct warpmail_step_options {
    uint32_t struct_size;
    uint32_t rule; /* WM_RULE_ALL: a step takes a record from every input; WM_RULE_ANY: from one of them, in turns */
    uint32_t priority; /* 0 (most urgent) to 3, of steps that wait for their grant */
    uint32_t ahead;    /* steps that stand in the stream ahead of need, 1 to 12 */
    uint64_t
        spin_ns; /* its gate polls so long, then it parks: 1 us to less than the budget's residency; 0: never parks */
    uint64_t stream; /* a CUstream of the caller's, which outlives the runtime; 0: one of the module's own */
    const wm_step_head* outputs; /* what a step pushes to each output unless its body says otherwise: type, and length
                                    or WM_STEP_NOTHING, which it is for outputs not named here; copied */
    uint64_t n_outputs;          /* how many */
} warpmail_step_options;
#define WARPMAIL_STEP_OPTIONS_INIT {sizeof(warpmail_step_options), WM_RULE_ANY, 0, 4, 20000, 0, NULL, 0}

/* How a body is enqueued. */
#define WARPMAIL_BODY_CAPTURED 0u  /* once, captured as a CUDA graph, which steps without records skip */
#define WARPMAIL_BODY_ALWAYS 1u    /* the same, but those run it over the buffers as they were: faster */
#define WARPMAIL_BODY_EACH_STEP 2u /* for every step, ahead; steps without records run it too */

/* Limits on the time the arbiter may hold an SM. docs/parking.md tells what it does while it has nothing to do. */
typedef struct warpmail_budget {
    uint32_t struct_size;
    uint32_t servers;      /* warps (twin: threads) that run handlers, 1 to 9; the twin takes 0 too */
    uint64_t residency_ns; /* the longest one launch stays: 100 us to 1 s */
    uint64_t idle_spin_ns; /* polls so long without work, then parks: 1 us to less than residency_ns; 0: never parks */
    uint64_t max_wait_ns;  /* the longest that a parked arbiter's stream waits for news: 100 us to 1 s */
    double sm_share;       /* limit on an SM's time held without work, as a share: above 0, up to 1; 20 us a max_wait */
    uint32_t
        adaptive; /* not 0: idle_spin_ns is what polling may cost at most; it parks at once where that is in vain */
    uint32_t sms; /* how many SMs the arbiter may occupy: 1, it is one block; 0 stands for that */
} warpmail_budget;
#define WARPMAIL_BUDGET_INIT                                                                                           \
    {sizeof(warpmail_budget), WARPMAIL_SERVERS_DEFAULT, 2000000, WARPMAIL_IDLE_SPIN_BREAK_EVEN, 10000000, 1.0, 0, 1}

/* The twin's entry point of a handler set: warpmail::twin_arbiter<handlers>, see warpmail/handler.hpp. */
typedef int (*warpmail_twin_entry)(const wm_arbiter_args* args);

/* A handler set of one's own: the same handlers compiled for the device and for the twin, by the headers of this
 * version. What is pointed to is copied. */
typedef struct warpmail_image_options {
    uint32_t struct_size;
    uint32_t abi_version;     /* WM_ABI_VERSION of the headers that both were compiled with */
    const char* name;         /* for errors and traces */
    const void* fatbin;       /* the compiled .cu; null: the set runs on the twin only */
    uint64_t fatbin_bytes;    /* its size */
    const char* kernel;       /* name of its extern "C" __global__ function; null without a fatbin */
    warpmail_twin_entry twin; /* required */
} warpmail_image_options;
#define WARPMAIL_IMAGE_OPTIONS_INIT {sizeof(warpmail_image_options), WM_ABI_VERSION, NULL, NULL, 0, NULL, NULL}

/* What a pool may use. */
typedef struct warpmail_pool_options {
    uint32_t struct_size;
    uint32_t leases;      /* that may be open at the same time: 1 to 2^20 */
    uint64_t limit_bytes; /* of device memory, above 0; adopted memory is not counted */
    uint32_t poison;      /* 1: debug mode, freed memory is filled with WM_POISON_BYTE and watched; slow */
    uint32_t reserved;
} warpmail_pool_options;
#define WARPMAIL_POOL_OPTIONS_INIT {sizeof(warpmail_pool_options), 4096, 0, 0, 0}

/* What a tensor is. Types are those of DLPack; the initial one is a byte. */
typedef struct warpmail_tensor_options {
    uint32_t struct_size;
    uint32_t ndim;          /* at most WM_MAX_DIMS */
    const int64_t* shape;   /* ndim of them, none 0; null with ndim 0: a scalar */
    const int64_t* strides; /* ndim of them, in elements, none negative; null: row-major without gaps */
    uint64_t byte_offset;   /* from the memory's address to the first element */
    uint8_t dtype_code;     /* DLDataTypeCode */
    uint8_t dtype_bits;     /* a multiple of 8 */
    uint16_t dtype_lanes;
    uint32_t flags; /* WM_TENSOR_READ_ONLY or 0 */
} warpmail_tensor_options;
#define WARPMAIL_TENSOR_OPTIONS_INIT {sizeof(warpmail_tensor_options), 0, NULL, NULL, 0, 1, 8, 1, 0}

/*
 * Statistics, filled by the library. The caller sets struct_size to the size it was compiled with; the library sets it
 * to the bytes that it has filled, which are fewer when the library is the older.
 */

/* What the arbiter said of itself when it last wrote its telemetry, about every 100 us. */
typedef struct warpmail_stats {
    uint32_t struct_size;
    uint32_t modules;        /* ids are 0 to modules - 1 */
    uint32_t mailboxes;      /* ids are 0 to mailboxes - 1 */
    uint32_t serving;        /* handlers running */
    uint64_t heartbeat_ns;   /* clock of the arbiter */
    uint64_t launches;       /* begun */
    uint64_t launches_ended; /* ended in order */
    uint64_t rounds;         /* turns of the decide loop */
    uint64_t grants;
    uint64_t work_ns;      /* with a grant outstanding */
    uint64_t idle_poll_ns; /* resident without one */
    uint64_t parks;        /* launches that ended parked */
    uint64_t parked_ns;    /* parked; a wait that has not ended yet is not in it */
    uint32_t parked;       /* 1: it was parked when last seen */
    uint32_t closed;       /* 1: it was away until sm_share allows its next launch */
    /* How the budget was kept. A limit counts as missed where it was missed by more than a tenth. */
    int64_t allowance_ns;       /* idle polling that sm_share allows; negative: overdrawn */
    uint64_t residency_ends;    /* launches that ended because their residency was over */
    uint64_t closings;          /* launches that ended overdrawn */
    uint64_t over_residency;    /* launches that stayed longer than residency_ns */
    uint64_t over_residency_ns; /* by how much, all together */
    uint64_t over_spin;         /* spells of polling longer than idle_spin_ns */
    uint64_t over_spin_ns;
    uint64_t over_share; /* seconds in which idle polling took more than sm_share */
    uint64_t over_share_ns;
} warpmail_stats;
#define WARPMAIL_STATS_INIT                                                                                            \
    {sizeof(warpmail_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct warpmail_module_stats {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t steps;
    uint64_t records_in;
    uint64_t records_out;
    uint64_t busy_ns;          /* in the handler */
    uint64_t rejected_length;  /* records dropped: a length that cannot be */
    uint64_t rejected_type;    /* a type that the handler does not know */
    uint64_t rejected_content; /* content that contradicts itself */
    uint64_t no_progress;      /* steps that moved no record although their rule had fired */
    uint64_t rejected_lease;   /* tensors that were not followed, or released twice: their leases had ended */
} warpmail_module_stats;
#define WARPMAIL_MODULE_STATS_INIT {sizeof(warpmail_module_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct warpmail_mailbox_stats {
    uint32_t struct_size;
    uint32_t quarantined; /* not 0: the arbiter leaves it alone; the JSON text says why */
    uint64_t written;
    uint64_t consumed;
    uint64_t depth_max;        /* the most records that the arbiter saw waiting */
    uint64_t refused_length;   /* calls that an end refused: a record longer than a slot carries */
    uint64_t refused_argument; /* a null pointer for bytes */
    uint64_t refused_header;   /* a handle of another mailbox, or of another shape, than the header */
    uint64_t refused_index;    /* indices further apart than the ring is long */
} warpmail_mailbox_stats;
#define WARPMAIL_MAILBOX_STATS_INIT {sizeof(warpmail_mailbox_stats), 0, 0, 0, 0, 0, 0, 0, 0}

typedef struct warpmail_pool_stats {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t limit;          /* bytes that the pool may use */
    uint64_t used;           /* of them, in blocks that something holds */
    uint64_t peak;           /* the most that was */
    uint64_t kept;           /* in free blocks, for later */
    uint64_t adopted;        /* bytes of others' memory */
    uint64_t open;           /* leases now */
    uint64_t opened;         /* since the beginning */
    uint64_t closed;         /* of those, ended */
    uint64_t released_twice; /* releases of this process that were refused */
    uint64_t stale;          /* descriptors that were refused here */
    uint64_t refused;        /* allocations for which there was no room */
} warpmail_pool_stats;
#define WARPMAIL_POOL_STATS_INIT {sizeof(warpmail_pool_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* What a pop reports; the payload is in the caller's buffer. */
typedef struct warpmail_record {
    uint32_t len;      /* payload bytes; after WM_TOO_SMALL, the bytes that the buffer needs */
    uint16_t msg_type; /* the sender's */
    uint16_t reserved;
} warpmail_record;

/* Versions and errors. */

/* Version of the library as text, such as "0.1.0". */
const char* warpmail_version(void);
/* WM_ABI_VERSION of the library. */
uint32_t warpmail_abi_version(void);
/* Whether a program compiled with these versions can use this library, or WM_BAD_VERSION with the reason. */
warpmail_status warpmail_check_abi(uint32_t abi_version, uint32_t api_version);
#define WARPMAIL_CHECK_ABI() warpmail_check_abi(WM_ABI_VERSION, WARPMAIL_API_VERSION)
/* Name of a status, such as "WARPMAIL_BUSY"; "unknown status" for another number. Never null. */
const char* warpmail_status_name(warpmail_status status);
/* Message of the last call of this thread that returned a negative status or WM_TIMEOUT; empty before the first. Never
 * null; valid until this thread's next such call. */
const char* warpmail_last_error(void);

/* What this machine can do, and why not. Creates no CUDA context. Text functions copy at most `size` bytes with the
 * zero; *needed (may be null) is the size with the zero, set even when WM_TOO_SMALL says that nothing was copied. */
warpmail_status warpmail_probe_json(char* text, size_t size, size_t* needed);

/* Devices. */

/* CUDA device 0 if it can be used, else the twin. */
warpmail_status warpmail_device_best(warpmail_device** out);
/* The CPU twin: always there. */
warpmail_status warpmail_device_twin(warpmail_device** out);
/* The CUDA device with this ordinal, or WARPMAIL_UNAVAILABLE with the reason. */
warpmail_status warpmail_device_cuda(uint32_t ordinal, warpmail_device** out);
/* What it is: backend ("cuda" or "twin"), ordinal, name and so on. A text function, as warpmail_probe_json. */
warpmail_status warpmail_device_json(warpmail_device* device, char* text, size_t size, size_t* needed);
warpmail_status warpmail_device_destroy(warpmail_device* device);

/* Handler sets. */

/* The handlers that come with the library: WARPMAIL_HANDLER_*. */
warpmail_status warpmail_image_builtin(warpmail_image** out);
/* A handler set of the caller's. The kernel and the twin entry must be what the options say they are: that alone
 * cannot be checked. */
warpmail_status warpmail_image_new(const warpmail_image_options* options, warpmail_image** out);
warpmail_status warpmail_image_destroy(warpmail_image* image);

/* Module graphs. Module and mailbox ids are rows of the graph's tables, counted from 0 in the order of adding. */

warpmail_status warpmail_builder_new(warpmail_device* device, warpmail_builder** out);
/* A module whose handler the arbiter itself runs. Names are unique in a graph. */
warpmail_status warpmail_builder_resident(warpmail_builder* builder, const char* name,
                                          const warpmail_module_options* options, uint32_t* module);
/* A module on the host: its ends are senders and receivers. */
warpmail_status warpmail_builder_host(warpmail_builder* builder, const char* name, uint32_t* module);
/* A module on the device that is not resident: kernels of the caller's, with the handles of warpmail_handle. */
warpmail_status warpmail_builder_stream(warpmail_builder* builder, const char* name, uint32_t* module);
/* A stream module: work on a CUDA stream, in steps that the arbiter grants. Null options: the defaults. Its body is
 * given to the runtime, with warpmail_runtime_body. */
warpmail_status warpmail_builder_steps(warpmail_builder* builder, const char* name,
                                       const warpmail_step_options* options, uint32_t* module);
/* A mailbox from its one producer to its one consumer: the next output of the one and the next input of the other.
 * Null options: the defaults. */
warpmail_status warpmail_builder_mailbox(warpmail_builder* builder, uint32_t from, uint32_t to,
                                         const warpmail_mailbox_options* options, uint32_t* mailbox);
/* Sends the records of a mailbox to the journal: WM_TAP_DROP, WM_TAP_BLOCK, or WM_TAP_NONE. An end of it is a resident
 * module or one of warpmail_builder_steps; any other is refused. */
warpmail_status warpmail_builder_tap(warpmail_builder* builder, uint32_t mailbox, uint32_t tap);
/* The same for records of one message type only; and for every mailbox that there is so far and can be tapped. */
warpmail_status warpmail_builder_tap_type(warpmail_builder* builder, uint32_t mailbox, uint32_t tap, uint16_t type);
warpmail_status warpmail_builder_tap_all(warpmail_builder* builder, uint32_t tap);
/* Lets the journal also take the tensors that records of a tapped mailbox (warpmail_builder_tap comes first) point to,
 * with their bytes as they are when the record passes. The graph needs a pool (warpmail_builder_pool). */
warpmail_status warpmail_builder_tap_tensors(warpmail_builder* builder, uint32_t mailbox);
/* Further blocks of the arbiter's launch, 0 (unless set) to WM_MAX_CARRIERS, that help to bring long records to the
 * journal. Each holds an SM as long as a launch stays; docs/journal.md. Without effect on the twin and
 * where the CPU arbitrates. */
warpmail_status warpmail_builder_journal_blocks(warpmail_builder* builder, uint32_t blocks);
/* Makes device memory of the caller's (on the twin: memory of this process) a part of a module's state, which
 * checkpoints save and restore; *memory is its number in this graph. It stays allocated as long as a runtime built from
 * this builder lives, and nobody but modules uses it during a checkpoint or a restore. */
warpmail_status warpmail_builder_state_memory(warpmail_builder* builder, uint32_t module, const char* name,
                                              uint64_t address, uint64_t bytes, uint32_t* memory);
/* Says that the 8 bytes at `offset` of a module's state hold an address in such memory, or 0: checkpoints keep it as a
 * distance. The caller fills it in. */
warpmail_status warpmail_builder_pointer(warpmail_builder* builder, uint32_t module, uint64_t offset, uint32_t memory);
/* Says who arbitrates: WARPMAIL_MODE_*. Unless it is called: what the environment variable WARPMAIL_MODE says, `device`
 * or `cpu`, or the device without it. */
warpmail_status warpmail_builder_mode(warpmail_builder* builder, uint32_t mode);
/* 1: has the steps of all stream modules run in passes, in an order that is fixed when the graph is built: on a GPU one
 * CUDA graph for all, launched again for each record; in CPU-arbitrated mode only. A build refuses a graph whose order
 * is not fixed with the name of the module and the rule; docs/arbitration.md has them. 0: not, as before any call. */
warpmail_status warpmail_builder_static_order(warpmail_builder* builder, uint32_t on);
/* Names a stream (a CUstream; 0: the legacy default stream) whose kernels are to notice nothing of a parked arbiter,
 * also where they are small and launched one by one: the front end has sides, and the arbiter then waits on another
 * (docs/parking.md). A build finds out where this stream is by about sixteen launches of a fifth of a millisecond on
 * it, if it has no other work and nobody captures it. It is one of the device's primary context and exists until the
 * last build; during a build nobody begins to capture it, and no work on it waits for what is enqueued there later (for
 * the legacy default stream: nor on any blocking stream). Unless it is called the side is left to chance. */
warpmail_status warpmail_builder_beside(warpmail_builder* builder, uint64_t stream);
/* Sets the limits on the arbiter. */
warpmail_status warpmail_builder_budget(warpmail_builder* builder, const warpmail_budget* budget);
/* Checks the graph as a whole, allocates, loads the handler set. Nothing runs yet. The builder stays as it is: it may
 * build another runtime, and the caller destroys it. */
warpmail_status warpmail_builder_build(warpmail_builder* builder, warpmail_image* image, warpmail_runtime** out);
warpmail_status warpmail_builder_destroy(warpmail_builder* builder);

/* Running a graph. */

/* Where the records of tapped mailboxes go: a log in a directory, made if it is not there, recovered if a crash left
 * it. Before the start. Records are durable at the latest `sync_every_ns` after they were drained; 0: with every batch.
 * warpmail_runtime_stop drains the rest, makes it durable and closes the log. */
warpmail_status warpmail_runtime_journal(warpmail_runtime* runtime, const char* directory, uint64_t sync_every_ns);
/* What became of the records that taps saw, as JSON: accepted = durable + in_flight + dropped + lost. See
 * warpmail_probe_json for `text`, `size` and `needed`. */
warpmail_status warpmail_runtime_journal_json(warpmail_runtime* runtime, char* text, size_t size, size_t* needed);
/* Enqueues what a step does and returns, without waiting for the stream; not WM_OK: it could not. `step` is its own
 * until it returns, on the thread that it is called on. A body that is captured is called inside warpmail_runtime_body,
 * once, or a second time if the driver refuses what the first captured; one for each step by a thread of the runtime's,
 * until the runtime is stopped. `user` must be good for that. */
typedef warpmail_status (*warpmail_body_fn)(warpmail_step* step, void* user);
/* Says what the steps of a stream module do: once for each, before the start. `kind`: WARPMAIL_BODY_*. */
warpmail_status warpmail_runtime_body(warpmail_runtime* runtime, uint32_t module, uint32_t kind, warpmail_body_fn body,
                                      void* user);
/* The same with a CUgraph of the caller's, which is copied: WARPMAIL_BODY_CAPTURED or _ALWAYS. The memory that its
 * nodes use stays until the runtime has stopped. */
warpmail_status warpmail_runtime_body_graph(warpmail_runtime* runtime, uint32_t module, uint32_t kind, uint64_t graph);
/* Before the body: has the tensor that each record of an input points to copied to device memory at `to`, of `bytes`
 * bytes, row-major without gaps, and the step's shares of its lease released. Null options: any tensor that fits; else
 * only those of that type and shape. The memory stays until the runtime has stopped, and nobody but the body uses it
 * while steps run. A step whose tensor cannot be delivered is counted (warpmail_module_stats), and pushes nothing. */
warpmail_status warpmail_runtime_deliver(warpmail_runtime* runtime, uint32_t module, uint32_t input, uint64_t to,
                                         uint64_t bytes, const warpmail_tensor_options* options);
/* Where the records of a stream module's inputs are delivered, and what it pushes is taken from: device address of a
 * wm_step_head, behind which the payload follows at WM_STEP_HEAD_BYTES, and how many bytes of that fit (may be null).
 * The same for every step, as long as the runtime lives. */
warpmail_status warpmail_runtime_step_input(warpmail_runtime* runtime, uint32_t module, uint32_t input, uint64_t* head,
                                            uint64_t* bytes);
warpmail_status warpmail_runtime_step_output(warpmail_runtime* runtime, uint32_t module, uint32_t output,
                                             uint64_t* head, uint64_t* bytes);
/* Ends the steps of one stream module for good; those under way come to their end. Its records wait in its mailboxes.
 */
warpmail_status warpmail_runtime_close(warpmail_runtime* runtime, uint32_t module, uint64_t bound_ns);
/* Inside a body: the CUstream to enqueue kernels and library calls into. WARPMAIL_UNAVAILABLE on the twin. */
warpmail_status warpmail_step_stream(warpmail_step* step, uint64_t* stream);
/* Device address of a word that is not 0 while the step has records, for kernels that skip their work otherwise. */
warpmail_status warpmail_step_live(warpmail_step* step, uint64_t* address);
/* The buffers, as warpmail_runtime_step_input and _output. */
warpmail_status warpmail_step_input(warpmail_step* step, uint32_t input, uint64_t* head, uint64_t* bytes);
warpmail_status warpmail_step_output(warpmail_step* step, uint32_t output, uint64_t* head, uint64_t* bytes);
/* Enqueues a copy inside device memory (on the twin: memory of this process), both of which stay until the runtime has
 * stopped. */
warpmail_status warpmail_step_copy(warpmail_step* step, uint64_t to, uint64_t from, uint64_t bytes);
/* Enqueues a copy of a whole record from an input to an output. */
warpmail_status warpmail_step_forward(warpmail_step* step, uint32_t input, uint32_t output);
/* Enqueues a call of a function of the host's, in the stream's order, on another thread; left out by steps without
 * records. Short, and without CUDA calls. Not where the body is captured. On the twin this is how a body computes. */
typedef void (*warpmail_call_fn)(void* user);
warpmail_status warpmail_step_call(warpmail_step* step, warpmail_call_fn call, void* user);
/* Starts the arbiter: once in a runtime's life. */
warpmail_status warpmail_runtime_start(warpmail_runtime* runtime);
/* Ends the arbiter. Returns within about `bound_ns` whatever the handlers do; WARPMAIL_STUCK names one that does not
 * return, and the memory that it may touch is kept. Records stay in their mailboxes. A second stop does nothing. */
warpmail_status warpmail_runtime_stop(warpmail_runtime* runtime, uint64_t bound_ns);
/* Waits until every record has been taken that a resident module consumes, and no handler runs. */
warpmail_status warpmail_runtime_drain(warpmail_runtime* runtime, uint64_t bound_ns);
/* Called inside a quiesce, on the calling thread. May read and write states and statistics, free memory, load
 * modules; other calls with this runtime are WARPMAIL_BAD_STATE. What it returns, the quiesce returns. */
typedef warpmail_status (*warpmail_quiet_fn)(warpmail_runtime* runtime, void* user);
/* Lets the arbiter leave the device, calls `quiet`, and starts the arbiter again. `bound_ns` limits the wait for the
 * arbiter to leave; WARPMAIL_STUCK names who does not. */
warpmail_status warpmail_runtime_quiesce(warpmail_runtime* runtime, uint64_t bound_ns, warpmail_quiet_fn quiet,
                                         void* user);
/* Writes what the modules know to the checkpoint in a directory, made if it is not there; an older one stays valid
 * until then. While it runs: waits for a moment without records between resident modules, for which the producers may
 * have to be held back, lets the arbiter leave, makes the journal durable, copies, and lets it go on before it writes.
 * Or after the stop. `note` is the caller's, kept in the same file; null with 0 bytes: none. WM_TIMEOUT says what did
 * not happen. */
warpmail_status warpmail_runtime_checkpoint(warpmail_runtime* runtime, const char* directory, const void* note,
                                            size_t note_bytes, uint64_t bound_ns);
/* Puts the states of the checkpoint in a directory into the modules of the same graph, before the start. All of it is
 * checked before anything is changed. *next_sequence (may be null): the first sequence of the journal's log that the
 * states do not know, 0 if there was no journal. */
warpmail_status warpmail_runtime_restore(warpmail_runtime* runtime, const char* directory, uint64_t* next_sequence);
/* What the checkpoint in a directory says of itself; null in JSON if there is none. A text function, as
 * warpmail_probe_json. */
warpmail_status warpmail_checkpoint_json(const char* directory, char* text, size_t size, size_t* needed);
/* The note in it: copies it if it fits `size` bytes, else WM_TOO_SMALL; *needed (may be null) is its length in any
 * case. */
warpmail_status warpmail_checkpoint_note(const char* directory, void* into, size_t size, size_t* needed);
/* WARPMAIL_MODE_*: who arbitrates. */
warpmail_status warpmail_runtime_mode(warpmail_runtime* runtime, uint32_t* mode);
/* WARPMAIL_STATE_*. */
warpmail_status warpmail_runtime_state(warpmail_runtime* runtime, uint32_t* state);
/* Why it failed, empty if it has not. A text function, as warpmail_probe_json. */
warpmail_status warpmail_runtime_failure(warpmail_runtime* runtime, char* text, size_t size, size_t* needed);
/* The handle of a mailbox as the caller's own kernels use it, see warpmail/device.hpp. Valid while the runtime, or an
 * end of one of its mailboxes, lives. */
warpmail_status warpmail_handle(warpmail_runtime* runtime, uint32_t mailbox, wm_mailbox* out);
/* Where the caller's own kernels find how many records of a tapped mailbox are on disk, for wait_durable of
 * warpmail/device.hpp. Valid while the runtime lives. Refused for a mailbox whose tap does not keep all records. */
warpmail_status warpmail_durable(warpmail_runtime* runtime, uint32_t mailbox, wm_durable* out);
/* A module's state; only while nothing runs: before the start, after the stop, or inside a quiesce. */
warpmail_status warpmail_runtime_read_state(warpmail_runtime* runtime, uint32_t module, void* into, size_t bytes);
warpmail_status warpmail_runtime_write_state(warpmail_runtime* runtime, uint32_t module, const void* from,
                                             size_t bytes);
/* Stops, waiting at most two seconds, and reports how that went; the handle is gone in any case but WARPMAIL_BUSY and
 * WARPMAIL_BAD_STATE. Senders and receivers stay usable, without an arbiter. */
warpmail_status warpmail_runtime_destroy(warpmail_runtime* runtime);

/* Statistics: read from mapped memory, no driver call. After a stop they are final. */

warpmail_status warpmail_runtime_stats(warpmail_runtime* runtime, warpmail_stats* stats);
warpmail_status warpmail_runtime_module_stats(warpmail_runtime* runtime, uint32_t module, warpmail_module_stats* stats);
warpmail_status warpmail_runtime_mailbox_stats(warpmail_runtime* runtime, uint32_t mailbox,
                                               warpmail_mailbox_stats* stats);
/* All of them with names, as JSON. A text function, as warpmail_probe_json. */
warpmail_status warpmail_runtime_stats_json(warpmail_runtime* runtime, char* text, size_t size, size_t* needed);

/* The host's ends. What a thread wrote before a push is visible to whoever popped that record. */

/* The one producer's end of a mailbox whose producer is a host module; a second is refused, even if the first has been
 * destroyed. */
warpmail_status warpmail_runtime_sender(warpmail_runtime* runtime, uint32_t mailbox, warpmail_sender** out);
/* The one consumer's end, likewise. */
warpmail_status warpmail_runtime_receiver(warpmail_runtime* runtime, uint32_t mailbox, warpmail_receiver** out);
/* Both ends of a mailbox between two threads of the host, with no arbiter. Null options: the defaults. */
warpmail_status warpmail_direct_mailbox(warpmail_device* device, const warpmail_mailbox_options* options,
                                        warpmail_sender** sender, warpmail_receiver** receiver);

/* Pushes one record, or WM_FULL at once. WM_BAD_LENGTH: longer than warpmail_sender_payload_bytes. */
warpmail_status warpmail_sender_try_push(warpmail_sender* sender, uint16_t msg_type, const void* payload, size_t len);
/* The same, waiting for a free slot; WM_TIMEOUT after the bound. */
warpmail_status warpmail_sender_push(warpmail_sender* sender, uint16_t msg_type, const void* payload, size_t len,
                                     uint64_t bound_ns);
/* Pushes as many as there is room for of `count` records of `len` bytes each, one behind the other, and publishes them
 * together. *pushed is their number, 0 with WM_FULL. */
warpmail_status warpmail_sender_try_push_batch(warpmail_sender* sender, uint16_t msg_type, const void* payloads,
                                               size_t len, size_t count, size_t* pushed);
/* Payload bytes that one record carries. */
warpmail_status warpmail_sender_payload_bytes(warpmail_sender* sender, size_t* bytes);
/* Records pushed so far. */
warpmail_status warpmail_sender_pushed(warpmail_sender* sender, uint64_t* records);
warpmail_status warpmail_sender_destroy(warpmail_sender* sender);

/* Pops the next record, or WM_EMPTY at once. WM_TOO_SMALL leaves the record where it is and sets record->len. Bytes of
 * the buffer behind the record are unspecified. */
warpmail_status warpmail_receiver_try_pop(warpmail_receiver* receiver, void* buffer, size_t size,
                                          warpmail_record* record);
/* The same, waiting for a record; WM_TIMEOUT after the bound. */
warpmail_status warpmail_receiver_pop(warpmail_receiver* receiver, void* buffer, size_t size, warpmail_record* record,
                                      uint64_t bound_ns);
/* Pops as many records as are there into `count` places of `step` bytes each, WARPMAIL_POP_BATCH_MAX at the most.
 * *popped is their number, 0 with WM_EMPTY. A record that does not fit a place ends the batch before it; if it is the
 * first, that is the status, and records[0].len its length. */
warpmail_status warpmail_receiver_try_pop_batch(warpmail_receiver* receiver, void* buffer, size_t step, size_t count,
                                                warpmail_record* records, size_t* popped);
/* Whether the next record has begun to arrive: *ready is 0 or 1. */
warpmail_status warpmail_receiver_is_ready(warpmail_receiver* receiver, int32_t* ready);
/* Records popped so far. */
warpmail_status warpmail_receiver_popped(warpmail_receiver* receiver, uint64_t* records);
warpmail_status warpmail_receiver_destroy(warpmail_receiver* receiver);

/*
 * Tensors by pointer: docs/tensors.md. A tensor is a hold on memory of a pool; a lease is the right of 1 to
 * WM_MAX_SHARES readers to use it until each has released it. Handles end with their destroy, which only notes it: what
 * came free is collected by the next call with any pool of the process, and that call also calls the callbacks of
 * adopted memory, on its own thread.
 */

/* A pool of device memory; nothing is taken yet. */
warpmail_status warpmail_pool_new(warpmail_device* device, const warpmail_pool_options* options, warpmail_pool** out);
/* Memory for a tensor, with any content, waiting up to `bound_ns` for room. WARPMAIL_POOL_FULL: the message says who
 * holds what, by the labels. */
warpmail_status warpmail_pool_alloc(warpmail_pool* pool, const char* label, const warpmail_tensor_options* options,
                                    uint64_t bound_ns, warpmail_tensor** out);
/* Called once when no tensor and no lease holds adopted memory any more, inside a later call with a pool. */
typedef void (*warpmail_released_fn)(void* user);
/* Takes in memory of the caller's: it stays as it is until `released` (may be null: then for good) is called. On a GPU
 * it must be memory of the pool's device, else WARPMAIL_REFUSED. */
warpmail_status warpmail_pool_adopt(warpmail_pool* pool, const char* label, uint64_t address,
                                    const warpmail_tensor_options* options, warpmail_released_fn released, void* user,
                                    warpmail_tensor** out);
/* Collects all that came free; *freed (may be null) is the number of blocks. */
warpmail_status warpmail_pool_collect(warpmail_pool* pool, uint64_t* freed);
/* Collects, and gives the memory that is kept for later back to the device. */
warpmail_status warpmail_pool_trim(warpmail_pool* pool);
/* The lease table as kernels use it, see warpmail/device.hpp. Valid while the pool, or a tensor or lease of it, lives.
 */
warpmail_status warpmail_pool_leases(warpmail_pool* pool, wm_leases* out);
/* The lease of a descriptor that came by another way than a take. WM_STALE_LEASE: released, ended, or held by this
 * process already. */
warpmail_status warpmail_pool_claim(warpmail_pool* pool, const wm_tensor* descriptor, warpmail_lease** out);
warpmail_status warpmail_pool_stats_get(warpmail_pool* pool, warpmail_pool_stats* stats);
/* Who holds what, the largest first, as JSON. A text function, as warpmail_probe_json. */
warpmail_status warpmail_pool_holders_json(warpmail_pool* pool, char* text, size_t size, size_t* needed);
/* The memory lives on while a tensor, a lease or a runtime needs it. */
warpmail_status warpmail_pool_destroy(warpmail_pool* pool);

/* The pool of a graph's tensors: its handlers check and release leases of it, its ends post and take them. */
warpmail_status warpmail_builder_pool(warpmail_builder* builder, warpmail_pool* pool);
/* The same for the ends of a mailbox without an arbiter. */
warpmail_status warpmail_sender_attach_pool(warpmail_sender* sender, warpmail_pool* pool);
warpmail_status warpmail_receiver_attach_pool(warpmail_receiver* receiver, warpmail_pool* pool);
/* After the stop: gives back the leases of records that nobody took, and those that handlers had not released; *leases
 * (may be null) is their number. */
warpmail_status warpmail_runtime_recall_tensors(warpmail_runtime* runtime, uint64_t* leases);

/* What and where it is; names no lease. */
warpmail_status warpmail_tensor_descriptor(warpmail_tensor* tensor, wm_tensor* out);
/* Copies exactly the tensor's bytes in, or out; for tensors without gaps that nobody else uses meanwhile. */
warpmail_status warpmail_tensor_upload(warpmail_tensor* tensor, const void* from, size_t bytes);
warpmail_status warpmail_tensor_download(warpmail_tensor* tensor, void* into, size_t bytes);
/* Opens a lease for 1 to WM_MAX_SHARES readers. Each must release once. */
warpmail_status warpmail_tensor_lease(warpmail_tensor* tensor, uint32_t readers, warpmail_lease** out);
warpmail_status warpmail_tensor_destroy(warpmail_tensor* tensor);

/* What, where, and which lease. */
warpmail_status warpmail_lease_descriptor(warpmail_lease* lease, wm_tensor* out);
/* As for tensors; an upload into a read-only one is refused. */
warpmail_status warpmail_lease_upload(warpmail_lease* lease, const void* from, size_t bytes);
warpmail_status warpmail_lease_download(warpmail_lease* lease, void* into, size_t bytes);
/* Takes some of its readers off, at least one and not all, as a lease of their own. */
warpmail_status warpmail_lease_part(warpmail_lease* lease, uint32_t readers, warpmail_lease** out);
/* A tensor over the same memory, which keeps it beyond the lease. */
warpmail_status warpmail_lease_tensor(warpmail_lease* lease, warpmail_tensor** out);
/* These four end the handle. A destroy gives the shares back at the next collect; release does it now, and is
 * WM_STALE_LEASE if a reader on the device had released them: the handle is gone then, too. release_on gives them back
 * when `stream` (a CUstream; 0 on the twin) has done what is on it at the next collect, until which it must live.
 * into_raw leaves them to kernels of the caller's, which call lease_release. */
warpmail_status warpmail_lease_destroy(warpmail_lease* lease);
warpmail_status warpmail_lease_release(warpmail_lease* lease);
warpmail_status warpmail_lease_release_on(warpmail_lease* lease, uint64_t stream);
warpmail_status warpmail_lease_into_raw(warpmail_lease* lease, wm_tensor* out);

/* Posts a lease: a record of type WM_TYPE_TENSOR with the descriptor, and `len` bytes of the caller's behind it. After
 * WM_OK the handle is gone, and the reader has to release; after anything else it is as it was. WM_FULL with a bound of
 * 0, else WM_TIMEOUT. */
warpmail_status warpmail_sender_post(warpmail_sender* sender, warpmail_lease* lease, const void* note, size_t len,
                                     uint64_t bound_ns);
/* Takes the next record, which must carry a tensor: its lease, and the bytes behind the descriptor into `note`. Leave
 * the record where it is: WM_EMPTY with a bound of 0, else WM_TIMEOUT; WM_BAD_TYPE, no tensor; WM_TOO_SMALL,
 * *note_bytes says what `note` must hold. Drop it: WM_STALE_LEASE, WARPMAIL_REFUSED and WM_BAD_LENGTH, a descriptor
 * that cannot be. */
warpmail_status warpmail_receiver_take(warpmail_receiver* receiver, void* note, size_t size, size_t* note_bytes,
                                       uint64_t bound_ns, warpmail_lease** out);

#ifdef __cplusplus
}
#endif
#endif /* WARPMAIL_WARPMAIL_H */
