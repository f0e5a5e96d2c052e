// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Leases: the right of up to WM_MAX_SHARES readers to use memory that a tensor descriptor points to, until each of them
// has released it. The bytes are wm_lease_row, the marks and wm_lease_mail in abi.h.
//
// The owner (the host's pool) opens a lease: its epoch becomes the next odd number. Each reader has a share. When all
// shares are back the owner closes the lease: the epoch becomes even, and only then may the memory be used again. So a
// descriptor whose epoch is not the row's is stale, however often row and memory were used since.
//
// Host and device share no read-modify-write, so every word has one side:
//   row.state      the host: epoch, and the shares that hosts have released
//   marks[row]     the device, by compare-and-swap: epoch, and the shares that readers on the device have released.
//                  What decides about a release on the device: of two that release a share, one is refused.
//   mail[row][s]   the device, after the mark: the epoch, for the owner to find. Late or out of order, because two
//                  readers made the same mistake at the same time, it leaves the lease open and never ends another;
//                  the owner reads the marks themselves before it says that memory is short or was leaked.
//
// Invariants. L1: no share counts as released but at the row's epoch. L2: a lease is closed only when every share was
// released at its epoch. L3: a mark never goes back: its epoch rises, and within one only bits are added.
#ifndef WARPMAIL_PROTOCOL_LEASE_HPP
#define WARPMAIL_PROTOCOL_LEASE_HPP

#include "protocol/lanes.hpp"

namespace warpmail {

constexpr u64 lease_share_bits = (1ull << WM_LEASE_EPOCH_SHIFT) - 1;
constexpr u64 poison_word = 0x0101010101010101ull * WM_POISON_BYTE;
static_assert(WM_MAX_SHARES <= WM_LEASE_EPOCH_SHIFT, "a bit for every share below the epoch");

WM_FN u64 epoch_in(u64 state) {
    return state >> WM_LEASE_EPOCH_SHIFT;
}
WM_FN u64 lease_state(u64 epoch, u64 shares) {
    return epoch << WM_LEASE_EPOCH_SHIFT | shares;
}
// The shares that a descriptor stands for.
WM_FN u64 shares_of(const wm_tensor& t) {
    return ((1ull << t.shares) - 1) << t.share;
}
WM_FN wm_lease_row* lease_row(const wm_leases& l, u32 row) {
    return at<wm_lease_row>(l.rows) + row;
}
WM_FN u64* lease_mark(const wm_leases& l, u32 row) {
    return at<u64>(l.marks) + row;
}
WM_FN u64* lease_mail(const wm_leases& l, u32 row, u32 share) {
    return &(at<wm_lease_mail>(l.mail) + row)->released[share];
}

// Whether a descriptor can name a lease of this table at all.
WM_FN bool names_a_lease(const wm_leases& l, const wm_tensor& t) {
    return t.lease <= l.n_rows && t.shares >= 1 && t.share + t.shares <= WM_MAX_SHARES && (t.epoch & 1) != 0 &&
           t.epoch >> (64 - WM_LEASE_EPOCH_SHIFT) == 0;
}

// One reader's view of a lease: WM_OK, WM_STALE_LEASE, or WM_BAD_CONTENT for a descriptor that was never given out, or
// whose elements, `reach` bytes from the first one on, are not all inside the lease's memory. `held`: the lease is
// open, and the shares have not been released.
WM_FN wm_status lease_check_one(const wm_leases& l, const wm_tensor& t, u64 reach, bool& held) {
    held = false;
    if (t.lease == 0)
        return WM_OK;
    if (!names_a_lease(l, t))
        return WM_BAD_CONTENT;
    const wm_lease_row* row = lease_row(l, t.lease - 1);
    const u64 shares = shares_of(t), current = lease_state(t.epoch, 0);
    // All four are under way at once: three of them come over the bus.
    const u64 mark = load_relaxed_gpu(lease_mark(l, t.lease - 1));
    const u64 state = load_relaxed_sys(&row->state);
    const u64 base = load_relaxed_sys(&row->base), bytes = load_relaxed_sys(&row->bytes);
    if (epoch_in(mark) > t.epoch || (epoch_in(mark) == t.epoch && (mark & shares) != 0))
        return WM_STALE_LEASE;
    if ((state & ~lease_share_bits) != current || (state & shares) != 0)
        return WM_STALE_LEASE;
    // After the mailbox's acquire these are at least as new as the lease; were they newer, the state would be, too.
    const u64 first = t.data + t.byte_offset - base;
    held = true;
    return first < bytes && reach <= bytes - first ? WM_OK : WM_BAD_CONTENT;
}

// In a pool's debug mode: whether a tensor begins with what freed memory is filled with.
WM_FN bool is_poisoned(const wm_leases& l, const wm_tensor& t) {
    if ((l.flags & WM_LEASES_POISON) == 0 || t.lease == 0)
        return false;
    const u64 first = (t.data + t.byte_offset + 7) & ~7ull;
    const wm_lease_row* row = lease_row(l, t.lease - 1);
    if (first + 8 > load_relaxed_sys(&row->base) + load_relaxed_sys(&row->bytes))
        return false;
    return *at<const u64>(first) == poison_word;
}

// Whether a tensor may be followed: call it before, and never follow one after another answer than WM_OK. All lanes get
// the same. WM_STALE_LEASE: released, by this share or all, or ended by the owner. WM_BAD_CONTENT: no lease of this
// table, or an address outside its memory. WM_POISONED (debug mode): nobody has written it since it was freed.
// On the device it waits for one load over the bus, about a microsecond.
template <class L> WM_FN wm_status lease_check(L lanes, const wm_leases& l, const wm_tensor& t) {
    u32 status = WM_OK;
    if (lanes.rank() == 0) {
        bool held;
        wm_status s = lease_check_one(l, t, 1, held);
        if (s == WM_OK && is_poisoned(l, t))
            s = WM_POISONED;
        status = static_cast<u32>(s);
    }
    return static_cast<wm_status>(lanes.broadcast(status, 0));
}

// Marks shares as released by a reader on the device, exactly once.
WM_FN wm_status mark_released(u64* mark, u64 epoch, u64 shares) {
    u64 seen = load_relaxed_gpu(mark);
    // Every turn that fails saw the mark rise, which it does at most once for a share of this epoch.
    for (u32 turn = 0; turn < 64; turn++) {
        if (epoch_in(seen) > epoch || (epoch_in(seen) == epoch && (seen & shares) != 0))
            return WM_STALE_LEASE;
        const u64 wanted = epoch_in(seen) == epoch ? seen | shares : lease_state(epoch, shares); // L3
        const u64 before = cas_relaxed_gpu(mark, seen, wanted);
        if (before == seen)
            return WM_OK;
        seen = before;
    }
    return WM_TIMEOUT;
}

// A reader on the device has done with its shares: all that its lanes read and wrote before is done when the owner sees
// it. The descriptor should have passed lease_check. WM_STALE_LEASE: released before, nothing was done.
template <class L> WM_FN wm_status lease_release(L lanes, const wm_leases& l, const wm_tensor& t) {
    if (t.lease == 0)
        return WM_OK;
    lanes.sync();
    u32 status = WM_OK;
    if (lanes.rank() == 0) {
        wm_status s = names_a_lease(l, t) ? WM_OK : WM_BAD_CONTENT;
        if (s == WM_OK)
            s = mark_released(lease_mark(l, t.lease - 1), t.epoch, shares_of(t));
        for (u32 share = t.share; s == WM_OK && share < u32{t.share} + t.shares; share++)
            store_release_sys(lease_mail(l, t.lease - 1, share), t.epoch); // RELEASE; ACQUIRE: lease_released
        status = static_cast<u32>(s);
    }
    return static_cast<wm_status>(lanes.broadcast(status, 0));
}

// Reader number i's part of a descriptor that stands for several, to hand on and to release by itself. i < t.shares.
WM_FN wm_tensor tensor_part(wm_tensor t, u32 i) {
    if (t.lease != 0) {
        t.share = static_cast<u8>(t.share + i);
        t.shares = 1;
    }
    return t;
}

// The owner's side: on the host, one thread at a time.

// Opens a lease in a row without one; its epoch. Readers learn of it by a record, whose push releases these stores.
WM_FN u64 lease_open(const wm_leases& l, u32 row, u64 base, u64 bytes) {
    wm_lease_row* r = lease_row(l, row);
    const u64 epoch = (epoch_in(load_relaxed_sys(&r->state)) + 1) | 1;
    store_relaxed_sys(&r->base, base);
    store_relaxed_sys(&r->bytes, bytes);
    store_relaxed_sys(&r->state, lease_state(epoch, 0));
    return epoch;
}

// The shares of the row's lease that are back, from either side. ACQUIRE of lease_release.
WM_FN u64 lease_released(const wm_leases& l, u32 row) {
    const u64 state = load_relaxed_sys(&lease_row(l, row)->state);
    u64 shares = state & lease_share_bits;
    for (u32 share = 0; share < WM_MAX_SHARES; share++)
        shares |= u64{load_acquire_sys(lease_mail(l, row, share)) == epoch_in(state)} << share; // L1
    return shares;
}

// A reader on the host has done with its shares. WM_STALE_LEASE: the lease has ended, or they were released before, and
// nothing was done.
WM_FN wm_status lease_give_back(const wm_leases& l, u32 row, u64 epoch, u64 shares) {
    u64* word = &lease_row(l, row)->state;
    const u64 state = load_relaxed_sys(word);
    if (epoch_in(state) != epoch || (lease_released(l, row) & shares) != 0)
        return WM_STALE_LEASE;
    store_relaxed_sys(word, state | shares);
    return WM_OK;
}

// Ends the row's lease. Only when all its shares are back (L2), or when no reader can run any more. Whoever uses the
// memory next learns of it by a record that is pushed after.
WM_FN void lease_close(const wm_leases& l, u32 row) {
    u64* word = &lease_row(l, row)->state;
    store_release_sys(word, lease_state(epoch_in(load_relaxed_sys(word)) + 1, 0));
}

} // namespace warpmail

#endif
