// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The bytes of one slot, see abi.h. The ready tag travels inside every 8-byte word, so a record needs no second flag
// and no fence between payload and flag: a word that carries the tag of the expected lap *is* the data of that lap.
//
// Invariants
//   S1  A slot goes from lap n only to lap n+1: the producer writes lap n+1 only after read_idx said that lap n was
//       popped. So the parity of the lap tells fresh words from stale ones.
//   S2  Every write writes every word of the slot, whatever the length; otherwise a word would keep a tag two laps old,
//       which has the parity of the next lap.
//   S3  A reader takes a payload word only when that word itself carries the expected tag; so nothing is torn, whatever
//       order the words arrive in.
//   S4  In the ordered form the store of the first head word is a release; the reader loads it with acquire. One thread
//       stores it last; a warp or block stores all words at once, behind a fence.
//
// Who moves the words: slot_thread.hpp (one thread), slot_warp.hpp (a warp or a block).
#ifndef WARPMAIL_PROTOCOL_SLOT_HPP
#define WARPMAIL_PROTOCOL_SLOT_HPP

#include "protocol/lanes.hpp"

namespace warpmail {

// What a push orders before what the pop of the same record sees.
enum class order : u32 {
    ordered,        // everything the producer wrote before: a pointer inside the record is safe to follow
    self_contained, // the record's own bytes only
    fenced,         // as ordered, for what the producer wrote before its last `fence`: the push itself has none
};
WM_FN constexpr bool releases(order o) {
    return o == order::ordered;
}
WM_FN constexpr bool acquires(order o) {
    return o != order::self_contained;
}

constexpr u64 tag_mask = 1ull << WM_TAG_SHIFT;

// Tag of the record with index idx. Zeroed memory carries the tag before lap 0, so lap 0 is tagged with a one.
WM_FN u64 lap_tag(u64 idx, u32 slots_log2) {
    return ((idx >> slots_log2) & 1u) ? 0 : tag_mask;
}

WM_FN constexpr bool stride_is_valid(u32 stride) {
    return stride >= WM_STRIDE_MIN && stride <= WM_STRIDE_MAX && stride % WM_STRIDE_STEP == 0;
}

// Stride and scope of a mailbox as a call knows them: at run time, or at compile time, which saves most of the
// instructions around the slot's own words.
class any_form {
public:
    WM_FN explicit any_form(const wm_mailbox& m) : stride_(m.record_stride), scope_(m.scope) {}
    WM_FN explicit any_form(u32 stride, u32 scope) : stride_(stride), scope_(scope) {}
    WM_FN u32 stride() const {
        return stride_;
    }
    WM_FN u32 scope() const {
        return scope_;
    }

private:
    u32 stride_, scope_;
};
template <u32 Stride, u32 Scope> class fixed_form {
    static_assert(stride_is_valid(Stride), "a stride is a multiple of WM_STRIDE_STEP from WM_STRIDE_MIN to _MAX");

public:
    WM_FN constexpr fixed_form() {}
    WM_FN explicit constexpr fixed_form(const wm_mailbox&) {}
    WM_FN static constexpr u32 stride() {
        return Stride;
    }
    WM_FN static constexpr u32 scope() {
        return Scope;
    }
};

// Shape of a slot: 8-byte words, in groups of WM_GROUP_WORDS of which the last may be shorter; payload bytes: every
// word but the head of each group.
WM_FN constexpr u32 words_in(u32 stride) {
    return stride / 8;
}
WM_FN constexpr u32 groups_in(u32 stride) {
    return (words_in(stride) + WM_GROUP_WORDS - 1) / WM_GROUP_WORDS;
}
WM_FN constexpr u32 payload_in(u32 stride) {
    return (words_in(stride) - groups_in(stride)) * 8;
}
WM_FN constexpr u32 group_words(u32 stride, u32 group) {
    return words_in(stride) - group * WM_GROUP_WORDS < WM_GROUP_WORDS ? words_in(stride) - group * WM_GROUP_WORDS
                                                                      : WM_GROUP_WORDS;
}

WM_FN u64 pack_meta(u32 len, u32 type) {
    return static_cast<u64>(len) << WM_HEAD_LEN_SHIFT | static_cast<u64>(type & 0xFFFFu) << WM_HEAD_TYPE_SHIFT;
}
WM_FN u32 meta_len(u64 head) {
    return static_cast<u32>(head >> WM_HEAD_LEN_SHIFT) & 0xFFFFu;
}
WM_FN u32 meta_type(u64 head) {
    return static_cast<u32>(head >> WM_HEAD_TYPE_SHIFT) & 0xFFFFu;
}

// Payload word `w` of a record of `len` bytes at `src`; bytes behind the end read as zero. `wide` says that src is
// aligned to 8.
WM_FN u64 load_payload(const u8* src, u32 len, u32 w, bool wide) {
    u32 begin = w * 8;
    if (begin >= len)
        return 0;
    if (wide && begin + 8 <= len)
        return *reinterpret_cast<const u64*>(src + begin);
    u32 n = len - begin < 8 ? len - begin : 8;
    u64 v = 0;
    WM_ROLLED
    for (u32 i = 0; i < n; i++)
        v |= static_cast<u64>(src[begin + i]) << (8 * i);
    return v;
}

// The inverse: writes the bytes of payload word `w` that lie inside `len`.
WM_FN void store_payload(u8* dst, u32 len, u32 w, u64 v, bool wide) {
    u32 begin = w * 8;
    if (begin >= len)
        return;
    if (wide && begin + 8 <= len) {
        *reinterpret_cast<u64*>(dst + begin) = v;
        return;
    }
    u32 n = len - begin < 8 ? len - begin : 8;
    WM_ROLLED
    for (u32 i = 0; i < n; i++)
        dst[begin + i] = static_cast<u8>(v >> (8 * i));
}

WM_FN bool is_wide(const void* p) {
    return (reinterpret_cast<uintptr_t>(p) & 7u) == 0;
}

// The first head word is the slot's synchronisation word.
// RELEASE here, ACQUIRE in load_head.
template <order O> WM_FN void store_head(u64* word, u64 v, u32 scope) {
    if (releases(O)) {
        store_release(word, v, scope);
    } else {
        store_relaxed(word, v, scope);
    }
}
template <order O> WM_FN u64 load_head(const u64* word, u32 scope) {
    return acquires(O) ? load_acquire(word, scope) : load_relaxed(word, scope);
}

// Fills a slot with the tag that the record before `idx` would have left there, so that a ring can start at any index.
WM_FN void clear_slot(u64* slot, any_form form, u64 tag) {
    for (u32 i = 0; i < words_in(form.stride()); i++)
        store_relaxed(slot + i, tag ^ tag_mask, form.scope());
}

} // namespace warpmail

#endif
