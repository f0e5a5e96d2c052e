// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The persistent kernel's first block, a role per warp, and the others, which help its journal with long records: on
// the device, and in tests lane by lane on the CPU (protocol/lanes_host.hpp).
//   warp 0  keep        warp 1  inbox      then args.servers warps serve, args.scanners scan, and args.journal_roles
//   are the journal's
#ifndef WARPMAIL_DEVICE_ARBITER_BLOCK_HPP
#define WARPMAIL_DEVICE_ARBITER_BLOCK_HPP

#include "protocol/roles.hpp"

#if defined(WM_HAS_WARPS)

namespace warpmail {

constexpr u32 first_server_warp = 2;
// Between two turns of the keeper, whose instructions the others would wait for.
constexpr u32 keeper_doze_ns = 200;

WM_FN u32 block_warps(const wm_arbiter_args& args) {
    return first_server_warp + args.servers + args.scanners + args.journal_roles;
}

// A server until it leaves.
template <class Handlers, taps Taps> WM_INLINED void serve_all(arbiter& a, u32 server) {
    const warp_lanes lanes;
    serve_state state = serve_begin(lanes, a, server);
    linger_state at;
    for (served what = served::grant; what != served::left;) {
        what = serve_turn<Handlers, Taps>(lanes, a, server, state, at);
        if (what == served::nothing && at.module == no_module)
            await_look(lanes, a);
    }
}

// Somebody may be waiting for a launch that goes on, and those before it had the same arguments. If not, the host made
// these arguments; it sees that launches_ended did not move.
WM_FN bool block_is_valid(const wm_arbiter_args& args) {
    const bool same = args.magic == WM_ABI_MAGIC && args.resume != 0;
    return same || (args_are_valid(args) && args.plan == 0 && args.servers >= 1 && args.scanners >= 1 &&
                    block_lanes{}.width() == block_warps(args) * 32);
}

// Called by all threads of block 1 + `helper` of the launch.
WM_INLINED void carrier_block(const wm_arbiter_args& args, u32 helper) {
    const warp_lanes lanes;
    const u32 role = lanes.in_block();
    if (!block_is_valid(args) || helper >= args.carriers || role >= args.journal_roles)
        return;
    carrier c = carry_begin(lanes, args, server_count(args) + role, helper);
    while (carry_turn(lanes, args, c)) {
    }
}

// Called by all threads of a block of as many warps, with wm_host_shared_bytes(args) of
// working memory at `memory`, 16-byte aligned.
template <class Handlers> WM_INLINED void arbiter_block(const wm_arbiter_args& args, u8* memory) {
    const u64 begin_ns = now_ns();
    arbiter a(args);
    const block_lanes block;
    const warp_lanes lanes;
    const u32 warp = lanes.in_block();
    const u32 first_scanner_warp = first_server_warp + args.servers, journal_warp = first_scanner_warp + args.scanners;
    if (!block_is_valid(args))
        return;
    const resumed_image<block_lanes> image(block, args);
    const u32 part = warp - first_scanner_warp;
    scan_state scanner{};
    if (warp >= first_scanner_warp && warp < journal_warp)
        scanner = scan_ahead(lanes, args, part, args.scanners);
    u64 kept_bytes;
    place<true>(a, memory, kept_bytes);
    begin(block, a, memory, begin_ns, image);

    if (warp == 0) {
        keep_state k = keep_begin(lanes, a, begin_ns);
        while (keep_turn(lanes, a, k))
            doze(keeper_doze_ns);
        carry_end(lanes, args);
    } else if (warp == 1) {
        inbox_state b = inbox_begin(lanes, a);
        while (inbox_turn(lanes, a, b)) {
        }
    } else if (warp >= journal_warp) {
        journal_state j = journal_begin(lanes, a, warp - journal_warp);
        while (journal_turn(lanes, a, j)) {
        }
    } else if (warp >= first_scanner_warp) {
        while (scan_turn(lanes, a, part, args.scanners, scanner)) {
        }
    } else if (args.journals == 0) {
        serve_all<Handlers, no_taps>(a, warp - first_server_warp);
    } else if (args.journal_ahead == 0) {
        serve_all<Handlers, followed_taps>(a, warp - first_server_warp);
    } else {
        serve_all<Handlers, all_taps>(a, warp - first_server_warp);
    }
    block.sync();
    leave_image(block, a, memory);
}

} // namespace warpmail

#endif
#endif
