// SPDX-License-Identifier: Apache-2.0 OR MIT
#include "warpmail/handler.hpp"

#include "handlers/neardup.hpp"

extern "C" int neardup_twin(const wm_arbiter_args* args) {
    return warpmail::twin_arbiter<neardup::handlers>(args);
}

// The layout as C++ sees it, for the test that compares it with Rust's: sizes, then offsets.
extern "C" const uint64_t* neardup_layout(uint64_t* count) {
    static const uint64_t layout[] = {
        sizeof(nd_line),
        sizeof(nd_end),
        sizeof(nd_features),
        sizeof(nd_tensor),
        sizeof(nd_match),
        sizeof(nd_encoder_state),
        sizeof(nd_sidecar_state),
        sizeof(nd_planner_state),
        offsetof(nd_line, offset),
        offsetof(nd_end, duplicates),
        offsetof(nd_features, tensor),
        offsetof(nd_features, keys),
        offsetof(nd_match, similarity),
        offsetof(nd_match, duplicate),
        offsetof(nd_encoder_state, free_count),
        offsetof(nd_encoder_state, free_list),
        offsetof(nd_encoder_state, bins),
        offsetof(nd_encoder_state, minima),
        offsetof(nd_sidecar_state, inserted),
        offsetof(nd_sidecar_state, bucket_count),
        offsetof(nd_planner_state, emit_all),
        ND_DIMS,
        ND_BANDS,
        ND_TENSORS,
        ND_PART_BYTES,
    };
    *count = sizeof(layout) / sizeof(layout[0]);
    return layout;
}
