/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the modules of `warpmail run` say to each other, and their states. Plain C; src/run/records.rs mirrors it and a
 * test compares every size and offset. */
#ifndef NEARDUP_H
#define NEARDUP_H

#include "warpmail/abi.h"

#define ND_DIMS 256u       /* bins of the feature vector */
#define ND_BANDS 16u       /* bands of the index */
#define ND_ROWS 3u         /* minima that make one band's key */
#define ND_MINIMA 48u      /* ND_BANDS * ND_ROWS */
#define ND_BUCKET 4u       /* entries of a bucket */
#define ND_SCALE 4096u     /* length of a feature vector */
#define ND_ONE 10000u      /* similarity 1.0 */
#define ND_PART_BYTES 232u /* text bytes that one record carries */
#define ND_TENSORS 128u    /* feature tensors in circulation */

/* Message types. */
#define ND_LINE 1u
#define ND_END 2u
#define ND_FEATURES 3u
#define ND_MATCH 4u
#define ND_RESULT 5u
#define ND_TENSOR 6u

/* Handlers. */
#define ND_ENCODER 0u
#define ND_SIDECAR 1u
#define ND_PLANNER 2u

/* reader -> encoder: a part of a line; the text follows. Parts of a line come in order. */
typedef struct nd_line {
    uint64_t line;   /* number of the line over all inputs */
    uint32_t total;  /* bytes of the whole line, not 0 */
    uint32_t offset; /* of this part */
} nd_line;

/* The last record of a run, handed on by every module. */
typedef struct nd_end {
    uint64_t lines; /* lines with text */
    uint64_t novel;
    uint64_t duplicates;
} nd_end;

/* encoder -> sidecar: the feature vector by pointer, the band keys by value. */
typedef struct nd_features {
    wm_tensor vector; /* int16 [ND_DIMS], length ND_SCALE */
    uint64_t line;
    uint32_t tensor; /* number of the tensor, to be given back */
    uint32_t reserved;
    uint32_t keys[ND_BANDS];
} nd_features;

/* sidecar -> encoder: the tensor may be used again. */
typedef struct nd_tensor {
    uint32_t tensor;
    uint32_t reserved;
} nd_tensor;

/* sidecar -> planner: the most similar earlier line that the index found. planner -> sink: the verdict. */
typedef struct nd_match {
    uint64_t line;
    uint64_t of;         /* ~0: none */
    uint32_t similarity; /* cosine, in ND_ONE */
    uint32_t candidates; /* vectors compared */
    uint32_t duplicate;  /* set by the planner */
    uint32_t reserved;
} nd_match;

typedef struct nd_encoder_state {
    uint64_t tensors; /* int16 [ND_TENSORS][ND_DIMS] */
    uint64_t line;    /* the line that is being taken in */
    uint32_t total;
    uint32_t received;
    uint32_t free_count;
    uint32_t carried; /* bytes of text kept for the n-grams over the next boundary */
    uint8_t carry[8];
    uint32_t free_list[ND_TENSORS];
    int32_t bins[ND_DIMS];
    uint32_t minima[ND_MINIMA];
} nd_encoder_state;

typedef struct nd_sidecar_state {
    uint64_t vectors; /* int16 [capacity][ND_DIMS] */
    uint64_t lines;   /* uint64 [capacity] */
    uint64_t buckets; /* uint64 [ND_BANDS][bucket_count][ND_BUCKET]: key << 32 | entry + 1 */
    uint64_t inserted;
    uint32_t capacity;
    uint32_t bucket_count; /* a power of two */
} nd_sidecar_state;

typedef struct nd_planner_state {
    uint32_t threshold; /* in ND_ONE */
    uint32_t emit_all;
    uint64_t novel;
    uint64_t duplicates;
} nd_planner_state;

WM_STATIC_ASSERT(sizeof(nd_line) + ND_PART_BYTES == 248, "a part fills a 256-byte slot");
WM_STATIC_ASSERT(sizeof(nd_features) <= 496, "fits a 512-byte slot");
WM_STATIC_ASSERT(ND_MINIMA == ND_BANDS * ND_ROWS, "every minimum belongs to a band");

#endif
