// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The handle of a mailbox: where its parts are, whether the header behind it is what it says, and taking up an end.
#ifndef WARPMAIL_PROTOCOL_HANDLE_HPP
#define WARPMAIL_PROTOCOL_HANDLE_HPP

#include "protocol/refuse.hpp"
#include "protocol/slot.hpp"

namespace warpmail {

WM_FN u64 slot_count(const wm_mailbox& m) {
    return 1ull << m.slots_log2;
}
WM_FN u32 payload_bytes(const wm_mailbox& m) {
    return payload_in(m.record_stride);
}
WM_FN u64* slot_at(const wm_mailbox& m, u64 idx) {
    return at<u64>(m.header + WM_HEADER_BYTES + (idx & (slot_count(m) - 1)) * m.record_stride);
}
WM_FN u64* write_idx_of(const wm_mailbox& m) {
    return &at<wm_mailbox_header>(m.header)->write_idx;
}
WM_FN u64* read_idx_of(const wm_mailbox& m) {
    return &at<wm_mailbox_header>(m.header)->read_idx;
}

// Whether the header behind a handle is what the handle says it is. Never writes.
WM_FN wm_status check_header(const wm_mailbox& m) {
    if (m.header == 0 || m.header % 16 != 0)
        return WM_BAD_ARGUMENT;
    const wm_mailbox_header* h = at<const wm_mailbox_header>(m.header);
    if (h->magic != WM_ABI_MAGIC)
        return WM_BAD_MAGIC;
    if (h->version != WM_ABI_VERSION)
        return WM_BAD_VERSION;
    if (!stride_is_valid(h->record_stride) || h->record_stride != m.record_stride ||
        h->slots_log2 > WM_SLOTS_LOG2_MAX || h->slots_log2 != m.slots_log2 ||
        h->capacity_bytes != static_cast<u64>(h->record_stride) << h->slots_log2)
        return WM_BAD_STRIDE;
    if (h->mailbox_id != m.mailbox_id || h->producer_id != m.producer_id || h->consumer_id != m.consumer_id)
        return WM_BAD_ARGUMENT;
    if (load_relaxed(&h->write_idx, m.scope) - load_relaxed(&h->read_idx, m.scope) > slot_count(m))
        return WM_BAD_INDEX;
    return WM_OK;
}

// The producer's end, taken up where the header says it was left. The handle is taken for what it says it is.
WM_FN wm_producer attach_producer(const wm_mailbox& m) {
    wm_producer p;
    p.mailbox = m;
    p.write_idx = load_relaxed(write_idx_of(m), m.scope);
    p.read_seen = load_relaxed(read_idx_of(m), m.scope);
    p.looked = 0;
    return p;
}

// The consumer's end, taken up where the header says it was left.
WM_FN wm_consumer attach_consumer(const wm_mailbox& m) {
    wm_consumer c;
    c.mailbox = m;
    c.read_idx = c.write_seen = load_relaxed(read_idx_of(m), m.scope);
    c.looked = 0;
    return c;
}

// Why a handle is refused, counted at that end if the header is one of this version at all. By all lanes.
template <class L> WM_FN wm_status checked(L lanes, const wm_mailbox& m, u32 end) {
    const wm_status s = lanes.broadcast(check_header(m), 0); // lanes may see different indices
    const bool is_header = m.header != 0 && m.header % 16 == 0 && s != WM_BAD_MAGIC && s != WM_BAD_VERSION;
    if (s != WM_OK && is_header)
        refused(lanes, m.header, m.scope, end, s == WM_BAD_INDEX ? refusal::index : refusal::header, s);
    return s;
}

// The same for a handle that comes from elsewhere: WM_OK, or why the end cannot be taken up, which is then unspecified.
// WM_BAD_ARGUMENT (null or misaligned, or the header has other ends), WM_BAD_MAGIC, WM_BAD_VERSION, WM_BAD_STRIDE,
// WM_BAD_INDEX. The address must be one that may be read. Costs one load of the header.
template <class L> WM_FN wm_status try_attach(L lanes, const wm_mailbox& m, wm_producer& p) {
    const wm_status s = checked(lanes, m, WM_END_PRODUCER);
    if (s == WM_OK)
        p = attach_producer(m);
    return s;
}
template <class L> WM_FN wm_status try_attach(L lanes, const wm_mailbox& m, wm_consumer& c) {
    const wm_status s = checked(lanes, m, WM_END_CONSUMER);
    if (s == WM_OK)
        c = attach_consumer(m);
    return s;
}

} // namespace warpmail

#endif
