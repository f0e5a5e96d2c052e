// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "handlers/neardup.hpp"

extern "C" int neardup_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<neardup::handlers>(args);
}

// Every size, offset and number as C++ sees them, for the test that compares them with Rust's.
extern "C" const uint64_t* neardup_layout(uint64_t* count) {
    static const uint64_t layout[] = {
        sizeof(nd_line), offsetof(nd_line, line), offsetof(nd_line, total), offsetof(nd_line, offset),
        //
        sizeof(nd_begin), offsetof(nd_begin, first), offsetof(nd_begin, resumed), offsetof(nd_begin, capacity),
        //
        sizeof(nd_end), offsetof(nd_end, lines), offsetof(nd_end, novel), offsetof(nd_end, duplicates),
        //
        sizeof(nd_features), offsetof(nd_features, vector), offsetof(nd_features, line), offsetof(nd_features, tensor),
        offsetof(nd_features, inverse), offsetof(nd_features, keys),
        //
        sizeof(nd_tensor), offsetof(nd_tensor, tensor), offsetof(nd_tensor, reserved),
        //
        sizeof(nd_match), offsetof(nd_match, line), offsetof(nd_match, of), offsetof(nd_match, similarity),
        offsetof(nd_match, candidates), offsetof(nd_match, duplicate), offsetof(nd_match, reserved),
        //
        sizeof(nd_encoder_state), offsetof(nd_encoder_state, tensors), offsetof(nd_encoder_state, line),
        offsetof(nd_encoder_state, total), offsetof(nd_encoder_state, received), offsetof(nd_encoder_state, grams),
        offsetof(nd_encoder_state, carried), offsetof(nd_encoder_state, gap), offsetof(nd_encoder_state, free_count),
        offsetof(nd_encoder_state, carry), offsetof(nd_encoder_state, free_list), offsetof(nd_encoder_state, bins),
        offsetof(nd_encoder_state, minima),
        //
        sizeof(nd_entry), offsetof(nd_entry, line), offsetof(nd_entry, inverse), offsetof(nd_entry, reserved),
        offsetof(nd_entry, vector),
        //
        sizeof(nd_sidecar_state), offsetof(nd_sidecar_state, entries), offsetof(nd_sidecar_state, buckets),
        offsetof(nd_sidecar_state, inserted), offsetof(nd_sidecar_state, capacity),
        offsetof(nd_sidecar_state, bucket_count),
        //
        sizeof(nd_planner_state), offsetof(nd_planner_state, threshold), offsetof(nd_planner_state, emit_all),
        offsetof(nd_planner_state, novel), offsetof(nd_planner_state, duplicates),
        //
        ND_DIMS, ND_LENGTH, ND_BANDS, ND_ROWS, ND_BUCKET, ND_ONE, ND_PART_BYTES, ND_TENSORS,
        //
        ND_LINE, ND_END, ND_RESULT, ND_FILE, ND_BEGIN, ND_ENCODER, ND_SIDECAR, ND_PLANNER};
    *count = sizeof(layout) / sizeof(layout[0]);
    return layout;
}
