/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Checks for the consumers: the first that fails ends the program with 1. C11 and C++17. */
#ifndef WARPMAIL_CONSUMERS_CHECK_H
#define WARPMAIL_CONSUMERS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <warpmail/warpmail.h>

#define BOUND_NS 30000000000u

static inline void check_fail(const char* file, int line, const char* what) {
    fprintf(stderr, "%s:%d: %s\n  last error: %s\n", file, line, what, warpmail_last_error());
    exit(1);
}
#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, #condition))
#define OK(call) CHECK((call) == WM_OK)
/* The call reports this status, with a message. */
#define IS(call, status) CHECK((call) == (status) && warpmail_last_error()[0] != 0)

/* Bytes that depend on the record's number alone. */
static inline uint64_t check_random(uint64_t n) {
    n = (n + 1) * 0x9E3779B97F4A7C15u;
    n ^= n >> 29;
    n *= 0xBF58476D1CE4E5B9u;
    return n ^ n >> 32;
}
/* Fills record n and returns its length, 0 to `room`. */
static inline size_t check_fill(uint64_t n, unsigned char* bytes, size_t room) {
    size_t i, len = (size_t)(check_random(n) % (room + 1));
    for (i = 0; i < len; i++)
        bytes[i] = (unsigned char)(check_random(n * 4099 + i) >> 7);
    return len;
}

#endif
