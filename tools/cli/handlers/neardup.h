/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the modules of `warpmail run` say to each other, and what they keep. Plain C; src/run/records.rs mirrors it and
 * a test compares every size, offset and number. */
#ifndef NEARDUP_H
#define NEARDUP_H

#include "warpmail/abi.h"

#define ND_DIMS 256u       /* bins of the feature vector */
#define ND_LENGTH 127u     /* length that a feature vector is scaled to */
#define ND_BANDS 16u       /* bands of the index */
#define ND_ROWS 5u         /* minima that make one band's key */
#define ND_MINIMA 80u      /* ND_BANDS * ND_ROWS */
#define ND_BUCKET 4u       /* places of a bucket */
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
#define ND_FILE 7u  /* reader -> encoder, for the journal alone: a part of a file's name, as an nd_line */
#define ND_BEGIN 8u /* reader -> encoder, for the journal alone: a run begins */

/* Handlers. */
#define ND_ENCODER 0u
#define ND_SIDECAR 1u
#define ND_PLANNER 2u

/* reader -> encoder: a part of a line; the text follows. Parts of a line come in order. */
typedef struct nd_line {
    uint64_t line;   /* number of the line over all inputs; of a file, that of its first line */
    uint32_t total;  /* bytes of the whole line, not 0 */
    uint32_t offset; /* of this part */
} nd_line;

/* The first record of a run. */
typedef struct nd_begin {
    uint64_t first;    /* number of its first line */
    uint32_t resumed;  /* 0: it knows nothing of the runs before */
    uint32_t capacity; /* lines that the sidecar remembers */
} nd_begin;

/* The last record of a run, handed on by every module. */
typedef struct nd_end {
    uint64_t lines; /* lines posted */
    uint64_t novel;
    uint64_t duplicates;
} nd_end;

/* encoder -> sidecar: the feature vector by pointer, the band keys by value. */
typedef struct nd_features {
    wm_tensor vector; /* int8 [ND_DIMS] */
    uint64_t line;
    uint32_t tensor;  /* number of the tensor, to be given back */
    uint32_t inverse; /* 2^24 / length of the vector, rounded */
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
    uint64_t tensors; /* int8 [ND_TENSORS][ND_DIMS] */
    uint64_t line;    /* the line that is being taken in */
    uint32_t total;
    uint32_t received;
    uint32_t grams;   /* n-grams counted so far */
    uint32_t carried; /* bytes of text kept for the n-grams over the next boundary */
    uint32_t gap;     /* 1: white space since the last byte of text */
    uint32_t free_count;
    uint8_t carry[8];
    uint32_t free_list[ND_TENSORS];
    int32_t bins[ND_DIMS];
    uint32_t minima[ND_MINIMA];
} nd_encoder_state;

/* One remembered line. */
typedef struct nd_entry {
    uint64_t line;
    uint32_t inverse;
    uint32_t reserved;
    int8_t vector[ND_DIMS];
} nd_entry;

typedef struct nd_sidecar_state {
    uint64_t entries;  /* nd_entry [capacity] */
    uint64_t buckets;  /* uint64 [ND_BANDS][bucket_count][ND_BUCKET]: key << 32 | entry + 1 */
    uint64_t inserted; /* lines remembered so far, those forgotten since among them */
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
WM_STATIC_ASSERT(sizeof(nd_features) <= 304, "fits a 320-byte slot");
WM_STATIC_ASSERT(sizeof(nd_match) <= 56 && sizeof(nd_end) <= 56, "fits a 64-byte slot");
WM_STATIC_ASSERT(offsetof(nd_entry, vector) % 8 == 0 && sizeof(nd_entry) % 8 == 0, "vectors are read in 8-byte words");
WM_STATIC_ASSERT(ND_MINIMA == ND_BANDS * ND_ROWS, "every minimum belongs to a band");

#endif
