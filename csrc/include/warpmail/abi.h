/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The bytes that two sides share. Every struct here is read and written by at least two of: the arbiter kernel, a
 * user's own kernel, the CPU twin, the Rust host. It is plain C11 and C++17; integers only, atomics belong to the
 * access site (csrc/protocol/atomics.hpp). Addresses are 64-bit integers. Nothing inside a struct depends on the
 * compiler.
 *
 * Words (docs/words.md): a mailbox is a single-producer single-consumer ring of slots; write_idx and read_idx are
 * monotonic 64-bit record counts; a lap is how often the ring has wrapped.
 */
#ifndef WARPMAIL_ABI_H
#define WARPMAIL_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define WM_ABI_MAGIC 0x4C4D5057u /* "WPML", little endian */
#define WM_ABI_VERSION 13u       /* raised by any change of a struct below; checked where two sides meet */

/* Limits. */
#define WM_LINE_BYTES 128u     /* a word that one side spins on stands alone on such a line */
#define WM_STRIDE_MIN 64u      /* bytes per slot, smallest */
#define WM_STRIDE_MAX 4096u    /* bytes per slot, largest */
#define WM_STRIDE_STEP 64u     /* a stride is a multiple of this */
#define WM_STRIDE_DEFAULT 256u /* 248 payload bytes */
#define WM_GROUP_WORDS 32u     /* 8-byte words that share one head word inside a slot */
#define WM_SLOTS_LOG2_MAX 24u  /* at most 2^24 slots a mailbox */
#define WM_MAX_MAILBOXES 4096u /* rows of the mailbox table */
#define WM_MAX_MODULES 4096u   /* rows of the module table */
#define WM_MAX_INPUTS 8u       /* inputs of one module */
#define WM_MAX_OUTPUTS 8u      /* outputs of one module */
#define WM_MAX_ENDS 16u        /* inputs and outputs of one module */
#define WM_MAX_SERVERS 9u      /* serving warps (twin: threads) of one arbiter */
#define WM_MAX_SCANNERS 4u     /* scanning warps of one arbiter */
#define WM_MAX_WARPS 12u       /* of the arbiter's block, of all its roles; bounds its registers */
#define WM_MAX_CARRIERS 3u     /* blocks of the arbiter's launch beside its first, which carry records for that */
#define WM_RING_STEP 64u       /* bytes of a journal ring's slot are a multiple of this */
#define WM_MAX_DIMS 8u         /* dimensions of a tensor descriptor */
#define WM_MAX_SHARES 8u       /* readers of one lease */
#define WM_REJECT_REASONS 8u   /* see WM_REJECT_* */
#define WM_PRIORITIES 4u       /* priority classes; 0 is the most urgent */
#define WM_DOORS 16u           /* doors that the arbiter's credits use in turn */
#define WM_ARBITER_PARTS 26u   /* of an arbiter's working memory */
#define WM_FAIR_TURNS 16u      /* every so many grants of a server the search begins at another class in turn */

/* What a call returned. Zero is success, positive is "not now", negative is a refusal. */
typedef int32_t wm_status;
#define WM_OK 0
#define WM_EMPTY 1           /* no record is ready */
#define WM_FULL 2            /* no free slot */
#define WM_TIMEOUT 3         /* the budget of a bounded wait is spent */
#define WM_STOPPING 4        /* the arbiter is leaving; try again after its next launch */
#define WM_BAD_LENGTH (-1)   /* len is larger than the payload of a slot */
#define WM_BAD_TYPE (-2)     /* a message type that the receiver does not know */
#define WM_BAD_ARGUMENT (-3) /* a null pointer, or an index that does not exist */
#define WM_TOO_SMALL (-4)    /* the destination cannot hold the record; it stays in the mailbox */
#define WM_BAD_MAGIC (-5)    /* the header is not a mailbox header */
#define WM_BAD_VERSION (-6)  /* the header was made by another version of this file */
#define WM_BAD_STRIDE (-7)   /* stride or capacity break the rules below */
#define WM_BAD_INDEX (-8)    /* write_idx and read_idx are further apart than the ring is long */
#define WM_BAD_CONTENT (-9)  /* the payload contradicts itself; for handlers */
#define WM_STALE_LEASE                                                                                                 \
    (-10) /* the right to use the memory has ended: released before, or the memory is another's by now */
#define WM_POISONED (-11) /* memory that nobody has written since it was freed; debug mode of a pool */

#define WM_NOT_DURABLE (-12) /* the journal has failed: what is not on disk yet never will be */

/* Message types from here on up are warpmail's own; the others are the caller's. */
#define WM_TYPE_OWN 0xFF00u
#define WM_TYPE_TENSOR 0xFF01u /* the payload begins with a wm_tensor; what follows is the caller's */

/* Why a record was dropped or a mailbox quarantined: index of a counter. */
#define WM_REJECT_LENGTH 0u
#define WM_REJECT_TYPE 1u
#define WM_REJECT_CONTENT 2u
#define WM_REJECT_HEADER 3u
#define WM_REJECT_INDEX 4u
#define WM_REJECT_NO_PROGRESS 5u /* a step that moved no record although its rule had fired */
#define WM_REJECT_LEASE 6u       /* a tensor whose lease had ended, a lease released twice, or poison read */

/* Where an end of a mailbox lives. */
#define WM_SIDE_RESIDENT 0u /* a handler run by the arbiter itself */
#define WM_SIDE_DEVICE 1u   /* another kernel on the same device (a stream module, a user's kernel) */
#define WM_SIDE_HOST 2u     /* a thread of the host */

/* Scope of the mailbox's memory orders. */
#define WM_SCOPE_GPU 0u /* both ends inside one device */
#define WM_SCOPE_SYS 1u /* an end is the host or another device */

/* Whether the records of a mailbox go to the journal, and what happens when the journal is full. */
#define WM_TAP_NONE 0u
#define WM_TAP_DROP 1u  /* the record is not journalled, and counted */
#define WM_TAP_BLOCK 2u /* it waits, in its slot, until there is room, or who journals it runs no step until then */
/* In the word of a mailbox, beside the policy: only records of one type go, which is in the upper half. */
#define WM_TAP_POLICY 3u
#define WM_TAP_TYPED_BIT 2u
#define WM_TAP_TENSORS_BIT 3u /* in the arbiter's table: the tensors that records point to are wanted, too */
#define WM_TAP_TYPE_SHIFT 16u

/* Module kinds and firing rules. */
#define WM_KIND_RESIDENT 0u
#define WM_KIND_STREAM 1u
#define WM_KIND_HOST 2u
#define WM_RULE_ANY 0u /* fires when at least one input has a record */
#define WM_RULE_ALL 1u /* fires when every input has a record */

/* Why a launch of the arbiter ended. */
#define WM_EXIT_NONE 0u
#define WM_EXIT_STOP 1u
#define WM_EXIT_RESIDENCY 2u
#define WM_EXIT_BAD_ARGS 3u
#define WM_EXIT_PARK 4u   /* nothing to do; the next launch waits for its door */
#define WM_EXIT_NEWS 5u   /* it was about to park when there was something to do; the next launch begins at once */
#define WM_EXIT_CLOSED 6u /* sm_share was overdrawn; the next launch begins when it allows it, whoever has news */

/* Calls that an end of a mailbox refused, by reason; the end alone writes it (csrc/protocol/refuse.hpp). */
typedef struct wm_refusals {
    uint64_t all;
    uint64_t length;   /* a record longer than a slot carries: to be pushed, or found in a slot */
    uint64_t argument; /* a null pointer for bytes */
    uint64_t header;   /* the handle is of another mailbox, or of another shape, than the header */
    uint64_t index;    /* write_idx and read_idx further apart than the ring is long */
    uint64_t reserved[3];
} wm_refusals;
#define WM_END_PRODUCER 0u
#define WM_END_CONSUMER 1u

/*
 * Mailbox header. The slots follow at WM_HEADER_BYTES. Zero-filled slots and indices are a valid empty mailbox.
 * Invariant: write_idx - read_idx (modulo 2^64) is at most the number of slots.
 */
typedef struct wm_mailbox_header {
    uint32_t magic;          /* WM_ABI_MAGIC */
    uint32_t version;        /* WM_ABI_VERSION */
    uint64_t capacity_bytes; /* stride times slots */
    uint32_t record_stride;  /* bytes from one slot to the next */
    uint32_t producer_id;    /* module that pushes, exactly one */
    uint32_t consumer_id;    /* module that pops, exactly one */
    uint32_t mailbox_id;     /* row of the mailbox table */
    uint32_t slots_log2;     /* the ring has 2^slots_log2 slots */
    uint32_t scope;          /* WM_SCOPE_* */
    uint32_t device;         /* ordinal of the device that owns the memory */
    uint8_t pad0[WM_LINE_BYTES - 44];
    uint64_t write_idx; /* records pushed so far; the producer alone writes it */
    uint8_t pad1[WM_LINE_BYTES - 8];
    uint64_t read_idx; /* records popped so far; the consumer alone writes it */
    uint8_t pad2[WM_LINE_BYTES - 8];
    wm_refusals refused[2]; /* by the producer's end, by the consumer's: WM_END_* */
} wm_mailbox_header;
#define WM_HEADER_BYTES 512u

/*
 * A slot is record_stride bytes of 8-byte words. Bit 63 of every word is the ready tag: the parity of the lap. A slot
 * only ever goes from one lap to the next, so one bit tells fresh from stale, and zeroed memory reads as empty. Words
 * come in groups of 32; the first word of a group is its head and carries in bits 32..62 the bits that the tag
 * displaced from the 31 words behind it. The head of the first group also carries the message type in bits 16..31 and
 * the payload length in bytes in bits 0..15. csrc/protocol/slot.hpp is the only reader and writer.
 */
#define WM_HEAD_LEN_SHIFT 0u
#define WM_HEAD_TYPE_SHIFT 16u
#define WM_HEAD_BITS_SHIFT 32u
#define WM_TAG_SHIFT 63u

/*
 * Readiness words. In pinned memory, for an end on the host: the index. In device memory: the index shifted left by
 * one, with a bit below it that a parking arbiter sets and the end's next publication takes away
 * (csrc/protocol/bell.hpp).
 */
#define WM_PARK_BIT 1u

/* Handle of a mailbox and row of the mailbox table: a plain struct, passed by value. */
typedef struct wm_mailbox {
    uint64_t header;        /* address of the wm_mailbox_header */
    uint64_t bell;          /* address of the wm_bell of an arbiter that may park; 0: there is none */
    uint64_t written;       /* address of the producer's readiness word: write_idx for the arbiter; 0: direct mailbox */
    uint64_t consumed;      /* address of the consumer's readiness word: read_idx for the arbiter; 0: direct mailbox */
    uint32_t mailbox_id;    /* row of the mailbox table */
    uint32_t record_stride; /* as in the header */
    uint32_t slots_log2;    /* as in the header */
    uint32_t scope;         /* WM_SCOPE_* */
    uint32_t producer_id;
    uint32_t consumer_id;
    uint16_t producer_side; /* WM_SIDE_* */
    uint16_t consumer_side; /* WM_SIDE_* */
    uint32_t tap;           /* WM_TAP_*: policy, and which records */
} wm_mailbox;

/* The near side of a mailbox's producer: its own index and what it last saw of the far one. */
typedef struct wm_producer {
    wm_mailbox mailbox;
    uint64_t write_idx; /* next record to write */
    uint64_t read_seen; /* read_idx when it was last refreshed; never ahead of the truth */
    uint64_t looked;    /* host ends: when it last looked in vain, in cycles; 0: it did not */
} wm_producer;

/* The near side of a mailbox's consumer. */
typedef struct wm_consumer {
    wm_mailbox mailbox;
    uint64_t read_idx;   /* next record to read */
    uint64_t write_seen; /* host ends: write_idx when it was last looked at */
    uint64_t looked;     /* host ends: when it last looked in vain, in cycles; 0: it did not */
} wm_consumer;

/*
 * Row of the module table. A resident module has its inputs and outputs, and so has a stream module whose steps the
 * arbiter grants; the others have none here.
 */
typedef struct wm_module {
    uint32_t module_id;
    uint32_t kind;        /* WM_KIND_* */
    uint32_t rule;        /* WM_RULE_* */
    uint32_t handler;     /* number that the handler set's step() switches on */
    uint32_t n_inputs;    /* at most WM_MAX_INPUTS */
    uint32_t n_outputs;   /* at most WM_MAX_OUTPUTS */
    uint32_t batch;       /* steps one grant may run while the rule still holds, at least 1 */
    uint32_t out_records; /* free slots every output must have before a step is granted */
    uint32_t inputs[WM_MAX_INPUTS];
    uint32_t outputs[WM_MAX_OUTPUTS];
    uint64_t state;       /* address of the module's own memory, or 0; stream: of the word for steps granted */
    uint64_t state_bytes; /* its size; stream: address of the wm_bell of its steps, as the arbiter sees it */
    uint32_t priority;    /* below WM_PRIORITIES */
    uint8_t reserved[12];
} wm_module;

/* Tensor descriptor, carried in a record of type WM_TYPE_TENSOR: fits one 256-byte slot beside 72 bytes of the
 * caller's. Types as in DLPack. */
typedef struct wm_tensor {
    uint64_t data;        /* device address */
    uint64_t byte_offset; /* from data to the first element */
    int64_t shape[WM_MAX_DIMS];
    int64_t strides[WM_MAX_DIMS]; /* in elements */
    uint8_t dtype_code;           /* DLDataTypeCode */
    uint8_t dtype_bits;
    uint16_t dtype_lanes;
    uint8_t ndim;  /* at most WM_MAX_DIMS */
    uint8_t flags; /* WM_TENSOR_* */
    uint16_t reserved0;
    uint32_t device_type; /* DLDeviceType */
    uint32_t device_id;
    uint32_t lease; /* 1 + row of the lease table; 0: owned by the module graph, nothing to check or release */
    uint8_t share;  /* the first of the lease's readers that this descriptor stands for */
    uint8_t shares; /* how many readers it stands for, 1 to WM_MAX_SHARES; 0 without a lease */
    uint16_t reserved1;
    uint64_t epoch; /* incarnation of the lease, odd */
} wm_tensor;
#define WM_TENSOR_READ_ONLY 1u /* readers must not write */
#define WM_DEVICE_CPU 1u       /* kDLCPU: the twin's memory */
#define WM_DEVICE_CUDA 2u      /* kDLCUDA */

/*
 * The lease table. A lease is the right of up to WM_MAX_SHARES readers to use some memory until each has released it.
 * Three parts, so that every word has one side that writes it (csrc/protocol/lease.hpp):
 *   rows   pinned; the owner on the host writes, readers on the device look
 *   marks  device memory; readers on the device change them by compare-and-swap: the truth about their releases
 *   mail   pinned; a reader on the device that has marked a release stores it here for the owner, each share its word
 * Zero-filled memory is a valid table without leases.
 */
typedef struct wm_lease_row {
    uint64_t state; /* epoch << WM_LEASE_EPOCH_SHIFT | shares that the host has released; an even epoch: no lease */
    uint64_t base;  /* the memory: first byte */
    uint64_t bytes; /* and size */
    uint64_t reserved;
} wm_lease_row;
#define WM_LEASE_EPOCH_SHIFT 8u

typedef struct wm_lease_mail {
    uint64_t released[WM_MAX_SHARES]; /* epoch at which a reader on the device released the share */
} wm_lease_mail;

/* Handle of a lease table: a plain struct, passed by value. */
typedef struct wm_leases {
    uint64_t rows;   /* wm_lease_row[n_rows] */
    uint64_t marks;  /* uint64_t[n_rows]: as wm_lease_row.state, of the shares released by readers on the device */
    uint64_t mail;   /* wm_lease_mail[n_rows] */
    uint32_t n_rows; /* 0: there is no table, and every lease is stale */
    uint32_t flags;  /* WM_LEASES_* */
} wm_leases;
#define WM_LEASES_POISON 1u /* freed memory is filled with WM_POISON_BYTE, and readers look for it */
#define WM_POISON_BYTE 0xDBu

/* A doorbell: a word whose only job is to say "look now". One writer; alone on its line. */
typedef struct wm_doorbell {
    uint64_t rung; /* not zero: look */
    uint8_t pad0[WM_LINE_BYTES - 8];
} wm_doorbell;

/*
 * What an end that has news needs to know of an arbiter that may be parked. One in device memory for device ends, one
 * in pinned memory for host ends; `parked` is written by the arbiter alone. The host copies within the last 32 bytes.
 */
typedef struct wm_bell {
    uint64_t parked; /* 0: it runs; else 1 + the number of the credit whose door is to be opened */
    uint64_t doors;  /* address of wm_doorbell[WM_DOORS], in pinned memory, as this side sees it */
    uint8_t pad0[WM_LINE_BYTES - 16];
} wm_bell;

/*
 * Host to arbiter, in pinned memory. The host alone writes it. Launch n of the arbiter uses credit n, which waits for
 * door n % WM_DOORS. Doors are words of their own: anybody opens one by storing 1, only the launcher clears it.
 */
typedef struct wm_control {
    uint32_t magic;
    uint32_t version;
    uint8_t pad0[WM_LINE_BYTES - 8];
    wm_doorbell stop;  /* asks the running launch to leave: the nanoseconds that the journal may wait for room then */
    uint64_t credits;  /* credits whose doors have been cleared: they may be rung for */
    uint64_t enqueued; /* credits that the driver has been asked to enqueue; published before it is */
    uint8_t pad1[WM_LINE_BYTES - 16];
} wm_control;

/*
 * A grant: the right of one serving warp to run one module for a step or a batch of them. In the arbiter's working
 * memory, one a server, written by that server; the telemetry has a copy for the host.
 */
typedef struct wm_grant {
    uint64_t since_ns;        /* %globaltimer (twin: CLOCK_MONOTONIC) when it was given */
    uint64_t module_plus_one; /* 0: none; WM_GRANT_LEFT: the server has left */
} wm_grant;
#define WM_GRANT_LEFT 0xFFFFFFFFu

/*
 * How the spin budget was kept, by the keeper. A limit is missed when it is missed by more than a tenth; `_ns` says by
 * how much, all cases together.
 */
typedef struct wm_budget_counts {
    uint64_t residency_ends; /* launches that ended because their residency was over */
    uint64_t closings;       /* launches that ended overdrawn, WM_EXIT_CLOSED */
    uint64_t over_residency; /* launches that stayed longer: steps that they had granted took so long */
    uint64_t over_residency_ns;
    uint64_t over_spin; /* spells of polling without work longer than idle_spin */
    uint64_t over_spin_ns;
    uint64_t over_share; /* seconds in which idle polling took more than sm_share */
    uint64_t over_share_ns;
} wm_budget_counts;

/* Arbiter to host, in pinned memory; written by the arbiter alone, about every WM_TELEMETRY_NS and when it leaves. */
#define WM_TELEMETRY_NS 100000u
typedef struct wm_telemetry {
    uint32_t magic;
    uint32_t version;
    uint64_t heartbeat_ns;   /* clock of the arbiter when it last wrote here */
    uint64_t launches;       /* launches that have begun */
    uint64_t launches_ended; /* launches that have ended in order */
    uint64_t exit_reason;    /* WM_EXIT_* of the last launch that ended */
    uint64_t rounds;         /* turns of the keeper */
    uint64_t grants;         /* grants given */
    uint64_t work_ns;        /* time with a grant outstanding, or a module that is to be looked at */
    uint64_t idle_poll_ns;   /* other time resident: polling, beginning, leaving */
    uint64_t quarantined;    /* mailboxes that the arbiter refuses to touch */
    uint64_t wanted;         /* credits below this one may begin without a ring */
    uint64_t parks;          /* launches that ended parked */
    uint64_t parked_ns;      /* time between such an end and the next beginning */
    uint64_t allowance;      /* idle polling that sm_share allows, in millionths of a nanosecond; signed */
    uint64_t ahead;          /* of the grants, those that an arbiter on the CPU gave before the rule held */
    uint64_t due;            /* the credit below this one may begin closed_ns from now; nobody rings for it */
    uint64_t closed_ns;      /* written before `due` */
    wm_budget_counts budget;
    uint8_t pad0[2 * WM_LINE_BYTES - 200];
    wm_grant grants_held[16]; /* one a server */
    uint64_t turns[16];       /* grants that each server has given, over all launches: fairness goes on over them */
    uint64_t cursor[WM_PRIORITIES]; /* the module with which the next search of a class begins */
    uint8_t pad1[WM_LINE_BYTES - 8 * WM_PRIORITIES];
} wm_telemetry;

/* Per mailbox; a copy for the host. */
typedef struct wm_mailbox_stats {
    uint64_t written;
    uint64_t consumed;
    uint64_t quarantine; /* 0, or 1 + WM_REJECT_* */
    uint64_t depth_max;  /* largest number of records in the ring that the arbiter saw */
    uint64_t behind; /* when a launch has ended, else 0: of a tapped mailbox, records that its resident end is done with
                        and that are in their slots still, not journalled */
    wm_refusals refused; /* by both ends together; of mailboxes in device memory, the others' headers are the host's */
} wm_mailbox_stats;

/*
 * A record on its way to the journal: this head, then the payload, in a slot of the ring of the server that saw it
 * pass.
 */
typedef struct wm_journal_head {
    uint64_t number;  /* from 1, consecutive in the mailbox: servers take turns, and this restores the order */
    uint64_t index;   /* of the record in the mailbox */
    uint64_t time_ns; /* clock of the arbiter when it passed */
    uint32_t mailbox_id;
    uint16_t len; /* payload bytes */
    uint16_t type;
} wm_journal_head;

/*
 * A journal ring, in pinned memory: one server of the arbiter, or its journal's role, fills it, the host reads it. Its
 * bytes are the records' own, without tags: a record is there when write_idx says so, which is stored with release
 * behind it. The slots follow at WM_RING_HEADER_BYTES. Zero-filled indices are a valid empty ring.
 * csrc/protocol/ring.hpp writes it, src/journal/ring.rs reads it.
 */
typedef struct wm_ring_header {
    uint64_t write_idx; /* records that are there; a role of the arbiter's journal writes it, or whoever runs a step */
    uint64_t announced; /* up to this one there are descriptors of tensors that are there, or about to be; the server */
    uint8_t pad0[WM_LINE_BYTES - 16];
    uint64_t read_idx; /* slots given back so far; the host alone writes it */
    uint8_t pad1[WM_LINE_BYTES - 8];
} wm_ring_header;
#define WM_RING_HEADER_BYTES 256u

/* Handle of a journal ring. */
typedef struct wm_ring {
    uint64_t header;     /* address of the wm_ring_header */
    uint32_t slot_bytes; /* a multiple of WM_RING_STEP */
    uint32_t slots_log2; /* the ring has 2^slots_log2 slots */
} wm_ring;

/*
 * Where a role of the journal's hands a warp of another block of the arbiter's launch some records of a batch, to be
 * carried to the role's ring: one for each ring and such block, in device memory (csrc/protocol/carry.hpp). In `state`,
 * from bit 0 on: WM_CARRY_*; whether there are descriptors of tensors among what was carried; how many are to be
 * carried, or were; which batch, modulo 2^32. Zero-filled it is one without records.
 */
typedef struct wm_carry_line {
    uint64_t state;  /* the role and who carries, in turns */
    uint64_t ended;  /* launches that the first block has left; its keeper */
    uint64_t begun;  /* launches in which the warp that carries has run; it */
    uint64_t tensor; /* 1 + place of the last descriptor among them; it */
    uint64_t header; /* of the mailbox; this and the next ones: the role */
    uint32_t record_stride;
    uint32_t slots_log2;
    uint32_t mailbox_id;
    uint32_t scope;
    uint64_t index;   /* of the first record in the mailbox */
    uint64_t place;   /* in the ring */
    uint64_t number;  /* in the journal */
    uint64_t time_ns; /* when they pass */
    uint8_t pad0[WM_LINE_BYTES - 88];
} wm_carry_line;
#define WM_CARRY_NONE 0u    /* nothing, or the role carries them itself */
#define WM_CARRY_POSTED 1u  /* they wait for whoever comes first */
#define WM_CARRY_CLAIMED 2u /* they are being carried */
#define WM_CARRY_DONE 3u    /* as many as it says are in the ring */
#define WM_CARRY_TENSOR_BIT 2u
#define WM_CARRY_COUNT_SHIFT 3u
#define WM_CARRY_BATCH_SHIFT 32u

/* Per mailbox; written by the arbiter alone, and what it begins the next launch with; or by the steps that tap it. */
typedef struct wm_tap_counts {
    uint64_t taken;   /* records put into journal rings */
    uint64_t dropped; /* records that found them full */
    uint64_t ahead;   /* 1: the next record that a module will take is counted already */
} wm_tap_counts;

/*
 * How many records of a tapped mailbox are known to be on disk, for whoever pushes into it: a plain struct, passed by
 * value. The word lies in pinned memory and the host alone writes it.
 */
typedef struct wm_durable {
    uint64_t word;       /* its address as the device sees it: the count, and WM_DURABLE_ENDED_BIT */
    uint32_t mailbox_id; /* row of the mailbox table */
    uint32_t reserved;
} wm_durable;
#define WM_DURABLE_ENDED_BIT 63u /* set beside the count: the journal has failed, and it stays as it is */

/* Per module; written by whoever serves the module, copied for the host. */
typedef struct wm_module_stats {
    uint64_t steps;
    uint64_t records_in;
    uint64_t records_out;
    uint64_t busy_ns;
    uint64_t rejects[WM_REJECT_REASONS];
} wm_module_stats;

/*
 * What an arbiter on the CPU needs to have its grants run by others: addresses as they see them, in host memory.
 */
typedef struct wm_step_plan {
    uint64_t mailboxes;        /* wm_mailbox[n_mailboxes], host memory: the handles that steps use */
    uint64_t journals;         /* wm_ring[servers], host memory: likewise; 0: servers tap nothing */
    uint64_t module_stats;     /* wm_module_stats[n_modules], device memory */
    uint64_t module_stats_out; /* wm_module_stats[n_modules], pinned */
    uint64_t tap_counts;       /* wm_tap_counts[n_mailboxes], pinned */
    uint64_t durable;          /* uint64_t[n_mailboxes], pinned; 0: servers tap nothing */
    uint64_t marks;            /* wm_server_mark[servers], pinned; 0: nobody enqueues behind grants */
    uint64_t only_due;         /* not 0: a grant is given when its records are there, and never behind another */
} wm_step_plan;

/*
 * What a server of an arbiter on the CPU has under way, for whoever enqueues steps of stream modules behind it. Written
 * by the arbiter's thread, `holds` last; on the twin `done` by the thread that stands for the server.
 */
typedef struct wm_server_mark {
    uint64_t holds; /* module + 1 in the low half, above it which grant of the server, modulo 2^32; 0: nothing */
    uint64_t given; /* twin: grants that the server has been given */
    uint64_t done;  /* twin: those that have ended */
    uint64_t until[WM_MAX_OUTPUTS]; /* of each output, the `written` that the grant may bring it to */
    uint8_t pad0[WM_LINE_BYTES - 8 * (3 + WM_MAX_OUTPUTS)];
} wm_server_mark;

/*
 * One grant of an arbiter on the CPU, for a short launch that runs it; passed by value. The ends of the module are rows
 * of their own here: input i is row i, output o is row WM_MAX_INPUTS + o.
 */
typedef struct wm_step_args {
    uint32_t magic;
    uint32_t version;
    uint64_t module_stats;     /* wm_module_stats of the module, device memory */
    uint64_t module_stats_out; /* the same, pinned */
    uint64_t tap_counts;       /* wm_tap_counts of all mailboxes, pinned */
    uint64_t durable;          /* as in wm_arbiter_args */
    wm_module module;
    wm_mailbox ends[WM_MAX_ENDS];
    uint64_t written[WM_MAX_ENDS];  /* indices when it was granted */
    uint64_t consumed[WM_MAX_ENDS]; /* likewise */
    wm_ring journal;                /* ring of the server that was granted it; header 0: servers tap nothing */
    uint32_t scratch_bytes;         /* a multiple of 16 */
    uint32_t journal_stage_bytes;   /* a multiple of 16 */
    uint32_t journal_need;          /* as in wm_arbiter_args */
    uint32_t behind;  /* a bit a row: its far end moved meanwhile; the index is in the header, and nothing is sure */
    wm_leases leases; /* as in wm_arbiter_args */
} wm_step_args;

/*
 * Stream modules. A step is a launch that waits for its door, then a gate (csrc/protocol/gate.hpp), the module's body,
 * and the gate's end, all on one stream. The gate waits for a grant, takes the records into bound buffers, and says
 * whether the body has something to do; its end pushes what the body left in the output buffers. Launches, credits and
 * doors are as those of an arbiter that parks.
 */
#define WM_STEP_HEAD_BYTES 16u      /* of a bound buffer; the payload follows */
#define WM_STEP_NOTHING 0xFFFFFFFFu /* wm_step_head.len: there is no record */

/*
 * The index of the readiness word of a stream module's grants: in its low half the steps granted, modulo 2^32, and this
 * bit, which the arbiter sets once it has checked the module's mailboxes and takes away when it quarantines one. Gates
 * that may (wm_gate_args.ahead) take steps ahead of their grants only while it is set.
 */
#define WM_GRANT_AHEAD_BIT 62u

/* Head of a bound buffer. In: written by the gate. Out: set by the gate to what was agreed on, changed by the body. */
typedef struct wm_step_head {
    uint32_t len;  /* payload bytes, or WM_STEP_NOTHING */
    uint32_t type; /* message type */
    uint64_t step; /* number of the step, from 0 */
} wm_step_head;

/* What a stream module's steps keep between two of them; device memory that they alone write. */
typedef struct wm_gate_state {
    uint64_t launches;                  /* launches that have ended, void ones too: the number of the running one */
    uint64_t taken;                     /* steps that have been taken up, each for one grant */
    uint64_t live;                      /* not 0: the running launch has records, which are the body's business */
    uint64_t begin_ns;                  /* when it found them */
    uint64_t cursor;                    /* WM_RULE_ANY: the input to look at first */
    uint64_t took;                      /* a bit an input: the slot of its record is to be given back */
    uint64_t credits;                   /* of wm_control, as it was last seen */
    uint64_t spun_ns;                   /* time that gates have polled */
    uint64_t parked;                    /* whether the running launch has announced that the module parks */
    uint64_t parks;                     /* launches that did */
    uint64_t read_idx[WM_MAX_INPUTS];   /* of the inputs, as the running launch found them */
    uint64_t write_idx[WM_MAX_OUTPUTS]; /* of the outputs, likewise */
    uint64_t read_seen[WM_MAX_OUTPUTS]; /* and how far their consumers were */
    uint64_t delivered;                 /* blocks of the running delivery that have done, and above WM_DELIVERY_SHIFT
                                           those of them that could not */
    uint64_t asked;                     /* of the same delivery: blocks that have asked whether it can be made */
    uint64_t verdict;                   /* and the answer, which the first of them has found; 0: it has not yet */
    uint64_t journalled;                /* records put into the module's ring */
    uint64_t journal_read;              /* read_idx of the ring when it was last looked at */
    wm_tap_counts tapped[WM_MAX_ENDS];  /* of the ends that are tapped here; the same in wm_gate_args.tap_counts */
    uint8_t pad0[5 * WM_LINE_BYTES - 568];
} wm_gate_state;
#define WM_DELIVERY_SHIFT 32u

/* A stream module's steps to the host, in pinned memory; written by the steps alone. */
typedef struct wm_gate_report {
    uint64_t begun;   /* launches that have begun */
    uint64_t ended;   /* launches that have ended */
    uint64_t wanted;  /* credits below this one may begin without a ring */
    uint64_t live_ns; /* when the running launch found its records; 0: it has none. Where the body calls the host */
    uint64_t steps;   /* launches that had records */
    uint64_t parks;   /* launches that ended parked */
    uint64_t spun_ns; /* time that gates have polled */
    uint8_t pad0[WM_LINE_BYTES - 56];
} wm_gate_report;

/* What a launch of a stream module's steps is given, by value; the same for all of them. */
typedef struct wm_gate_args {
    uint32_t magic;
    uint32_t version;
    uint32_t n_inputs;
    uint32_t n_outputs;
    uint32_t rule;      /* WM_RULE_* */
    uint32_t scope;     /* WM_SCOPE_GPU: the arbiter is a kernel; WM_SCOPE_SYS: it is on the CPU */
    uint32_t parks;     /* 0: the next launch never waits for a ring */
    uint32_t calls;     /* not 0: the body calls functions of the host, which look at live_ns */
    uint32_t ahead;     /* not 0: it need not wait for a grant where it sees for itself that its rule and credit hold */
    uint32_t out_scope; /* WM_SCOPE_*: widest of the outputs' */
    uint64_t word;      /* WM_GRANT_AHEAD_BIT and steps granted: a readiness word whose far end is the arbiter */
    uint64_t bell;      /* wm_bell that the arbiter rings at */
    uint64_t control;   /* wm_control, pinned */
    uint64_t report;    /* wm_gate_report, pinned */
    uint64_t doors;     /* wm_doorbell[WM_DOORS], pinned; 0: launches wait for none, and are enqueued when it is time */
    uint64_t state;     /* wm_gate_state, device memory */
    uint64_t stats;     /* wm_module_stats of the module, device memory */
    uint64_t stats_out; /* the same, pinned, where the steps are to copy it; 0: the arbiter does */
    uint64_t spin_ns;   /* longest polling of one launch */
    uint64_t arrival_ns;            /* longest wait for the bytes of a record that was announced */
    wm_mailbox ends[WM_MAX_ENDS];   /* input i is row i, output o is row WM_MAX_INPUTS + o */
    uint64_t buffers[WM_MAX_ENDS];  /* the bound buffer of each: a wm_step_head and as much as a slot carries */
    uint32_t lens[WM_MAX_OUTPUTS];  /* what a step pushes unless its body says otherwise: bytes, or WM_STEP_NOTHING */
    uint32_t types[WM_MAX_OUTPUTS]; /* and the message type */
    uint64_t
        wakes[WM_MAX_OUTPUTS]; /* wm_bell of the stream module that a record there is for, if it may park; else 0 */
    wm_ring journal;           /* of the ends whose handles have a `tap`; header 0: there are none */
    uint64_t tap_counts;       /* wm_tap_counts of all mailboxes, pinned */
    uint32_t journal_need;     /* free slots that a step needs in the ring; 0: no tap holds it back */
    uint32_t reserved0;
} wm_gate_args;

/* Where the tensor that an input's record points to is copied before the body runs; the same for every step. */
typedef struct wm_delivery {
    uint64_t to;      /* device memory */
    uint64_t bytes;   /* that fit there */
    wm_leases leases; /* as in wm_arbiter_args */
    int64_t shape[WM_MAX_DIMS];
    uint8_t dtype_code; /* type and shape as in wm_tensor, if `exact` */
    uint8_t dtype_bits;
    uint16_t dtype_lanes;
    uint8_t ndim;
    uint8_t exact; /* not 0: no other tensor is delivered; 0: any that fits */
    uint16_t reserved0;
    uint32_t input;
    uint32_t reserved1;
} wm_delivery;

/*
 * What the host knows of a stream module when it asks whether to enqueue launches ahead (csrc/protocol/ahead.hpp).
 * Counts modulo 2^32.
 */
typedef struct wm_ahead {
    uint32_t rule; /* WM_RULE_* */
    uint32_t n_inputs;
    uint32_t n_outputs;
    uint32_t taken;                /* steps taken by launches that have ended */
    uint32_t under_way;            /* launches that have not */
    uint32_t given[WM_MAX_INPUTS]; /* what `written` of each input is, or may soon be */
    uint32_t room[WM_MAX_OUTPUTS]; /* free slots of each output */
} wm_ahead;

/* Arguments of one launch of the arbiter, passed by value. */
typedef struct wm_arbiter_args {
    uint32_t magic;
    uint32_t version;
    uint32_t n_mailboxes;
    uint32_t n_modules;
    uint64_t mailboxes;         /* wm_mailbox[n_mailboxes], device memory */
    uint64_t modules;           /* wm_module[n_modules], device memory */
    uint64_t module_stats;      /* wm_module_stats[n_modules], device memory */
    uint64_t control;           /* wm_control, pinned */
    uint64_t telemetry;         /* wm_telemetry, pinned */
    uint64_t mailbox_stats_out; /* wm_mailbox_stats[n_mailboxes], pinned */
    uint64_t module_stats_out;  /* wm_module_stats[n_modules], pinned */
    uint64_t device_words;      /* uint64_t[n_device_words], device memory: readiness lines of device ends */
    uint64_t host_words;        /* uint64_t[n_host_words], pinned: the same of host ends */
    uint64_t device_bell;       /* wm_bell, device memory */
    uint64_t host_bell;         /* wm_bell, pinned */
    uint64_t doors;             /* wm_doorbell[WM_DOORS], pinned */
    uint64_t journals;          /* wm_ring[servers + journal_roles], device memory; 0: servers tap nothing */
    uint64_t carry_lines;       /* wm_carry_line[rings][carriers], device memory */
    uint64_t tap_counts;        /* wm_tap_counts[n_mailboxes], pinned */
    uint64_t durable;           /* uint64_t[n_mailboxes], pinned: see wm_durable */
    uint64_t image;             /* device memory for what the arbiter knows, between two launches; wm_host_lay_out */
    uint64_t idle_spin_ns;      /* polling without work before it parks; 0: it never parks, and launches need no door */
    uint64_t residency_ns;      /* longest stay of this launch; it then finishes the steps it has granted and leaves */
    uint32_t servers;           /* serving warps or threads; 0 (twin only): the arbiter's own thread serves */
    uint32_t scanners;          /* warps that look at the device side, at least 1; the twin needs none */
    uint32_t scratch_bytes;     /* scratch memory of each server, a multiple of 16 */
    uint32_t n_device_words;    /* a word for each `written` and `consumed` of a mailbox with an end outside */
    uint32_t n_host_words;
    uint32_t sm_share_ppm; /* idle polling allowed in the long run, in millionths of the time */
    uint32_t
        journal_stage_bytes; /* of each server, for batches of records on their way to its ring; a multiple of 16 */
    uint32_t journal_need;   /* free slots that a step needs in its server's ring; 0: none blocks */
    uint32_t resume;         /* not 0: the launch before left its image, and nobody but the modules changed anything */
    uint32_t image_bytes;    /* a multiple of 16 */
    uint32_t adaptive;       /* not 0: it parks at once where news has been coming later than after idle_spin_ns */
    uint16_t journal_roles;  /* warps that journal what the servers are done with, each with a ring behind the servers';
                                0: whoever runs a step journals what that moves, and publishes it */
    uint16_t journal_ahead;  /* not 0: some taps want tensors, whose records are journalled before a step takes them */
    uint32_t linger;   /* not 0: servers keep the module they have run, and wait for its next record at the slot */
    uint32_t carriers; /* blocks of the launch that carry records for its first one: its grid has one more */
    wm_leases leases;  /* of the pool that the graph's tensors come from */
    uint64_t plan; /* wm_step_plan, host memory: the arbiter is on the CPU and others run its grants; 0: it runs them */
    uint32_t parts[WM_ARBITER_PARTS]; /* where the parts of the working memory begin; wm_host_lay_out */
} wm_arbiter_args;

#ifdef __cplusplus
#define WM_STATIC_ASSERT(cond, why) static_assert(cond, why)
#else
#define WM_STATIC_ASSERT(cond, why) _Static_assert(cond, why)
#endif

WM_STATIC_ASSERT(sizeof(wm_mailbox_header) == WM_HEADER_BYTES, "slots start right behind the header");
WM_STATIC_ASSERT(offsetof(wm_mailbox_header, write_idx) == WM_LINE_BYTES, "write_idx stands alone on its line");
WM_STATIC_ASSERT(offsetof(wm_mailbox_header, read_idx) == 2 * WM_LINE_BYTES, "read_idx stands alone on its line");
WM_STATIC_ASSERT(sizeof(wm_refusals) == WM_LINE_BYTES / 2, "those of both ends fill a line of the header");
WM_STATIC_ASSERT(offsetof(wm_mailbox_header, refused) == 3 * WM_LINE_BYTES, "apart from what anybody polls");
WM_STATIC_ASSERT(WM_HEADER_BYTES % 256 == 0, "slots keep the alignment of the header");
WM_STATIC_ASSERT(sizeof(wm_mailbox) == 64, "a lane reads a whole row with four 16-byte loads");
WM_STATIC_ASSERT(sizeof(wm_producer) == 88, "passed by value to kernels");
WM_STATIC_ASSERT(sizeof(wm_consumer) == 88, "passed by value to kernels");
WM_STATIC_ASSERT(sizeof(wm_module) == 128, "one line a module");
WM_STATIC_ASSERT(sizeof(wm_tensor) == 176, "a descriptor and 72 bytes of the caller's fit one 248-byte payload");
WM_STATIC_ASSERT(sizeof(wm_lease_row) == 32, "a check on the device reads a row within one 32-byte sector");
WM_STATIC_ASSERT(sizeof(wm_lease_mail) == 64, "the shares of a lease are collected from one line of the host");
WM_STATIC_ASSERT(sizeof(wm_leases) == 32, "passed by value to kernels");
WM_STATIC_ASSERT(sizeof(wm_control) == 3 * WM_LINE_BYTES, "the stop doorbell and credits stand alone on their lines");
WM_STATIC_ASSERT(sizeof(wm_bell) == WM_LINE_BYTES, "read by every end that finds its park bit");
WM_STATIC_ASSERT(sizeof(wm_doorbell) == WM_LINE_BYTES, "a word that is spun on stands alone on its line");
WM_STATIC_ASSERT(sizeof(wm_grant) == 16, "read by others while its server writes: two aligned words");
WM_STATIC_ASSERT(sizeof(wm_budget_counts) == 64, "copied word by word");
WM_STATIC_ASSERT(sizeof(wm_telemetry) == 6 * WM_LINE_BYTES, "mapped and read by monitors of the same version");
WM_STATIC_ASSERT(sizeof(wm_mailbox_stats) == 104, "copied word by word");
WM_STATIC_ASSERT(sizeof(wm_journal_head) == 32, "the payload behind it begins a sector of its own");
WM_STATIC_ASSERT(sizeof(wm_ring_header) == WM_RING_HEADER_BYTES, "slots start right behind the header");
WM_STATIC_ASSERT(offsetof(wm_ring_header, read_idx) == WM_LINE_BYTES, "each side writes lines of its own");
WM_STATIC_ASSERT(sizeof(wm_ring) == 16, "read at once");
WM_STATIC_ASSERT(sizeof(wm_durable) == 16, "passed by value to kernels");
WM_STATIC_ASSERT(sizeof(wm_carry_line) == WM_LINE_BYTES, "polled by one warp, and written by another");
WM_STATIC_ASSERT(sizeof(wm_tap_counts) == 24, "copied word by word");
WM_STATIC_ASSERT(sizeof(wm_module_stats) == 32 + 8 * WM_REJECT_REASONS, "copied word by word");
WM_STATIC_ASSERT(WM_MAX_ENDS == WM_MAX_INPUTS + WM_MAX_OUTPUTS, "a row for each end");
WM_STATIC_ASSERT(sizeof(wm_server_mark) == WM_LINE_BYTES, "a line of the server's own");
WM_STATIC_ASSERT(sizeof(wm_step_args) == 1512, "a kernel argument without padding, well below 4 KiB");
WM_STATIC_ASSERT(sizeof(wm_step_head) == WM_STEP_HEAD_BYTES, "the payload behind it is aligned for 16-byte accesses");
WM_STATIC_ASSERT(sizeof(wm_gate_state) == 6 * WM_LINE_BYTES, "lines of the module's own");
WM_STATIC_ASSERT(sizeof(wm_gate_report) == WM_LINE_BYTES, "a line of the module's own");
WM_STATIC_ASSERT(sizeof(wm_gate_args) == 1432, "a kernel argument without padding, well below 4 KiB");
WM_STATIC_ASSERT(sizeof(wm_delivery) == 128, "a kernel argument without padding, beside wm_gate_args");
WM_STATIC_ASSERT(sizeof(wm_arbiter_args) == 264 + 4 * WM_ARBITER_PARTS,
                 "a kernel argument has no padding that two compilers could lay differently");

#endif /* WARPMAIL_ABI_H */
