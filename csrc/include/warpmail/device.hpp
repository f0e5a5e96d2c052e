// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The device API: header-only C++17, the same source for nvcc, g++ and clang++ (host compilation is the CPU twin).
// Compile with -I<warpmail>/csrc/include -I<warpmail>/csrc, or, once installed, with what pkg-config says.
//
//   wm_producer p = warpmail::attach_producer(mailbox);       // once, by the one producer
//   warpmail::try_push(warpmail::warp_lanes{}, p, src, len, type);
//   wm_consumer c = warpmail::attach_consumer(mailbox);       // once, by the one consumer
//   warpmail::try_pop(warpmail::warp_lanes{}, c, dst, dst_bytes, len, type);
//   warpmail::wait_durable(warpmail::warp_lanes{}, d, p.write_idx, 5000000); // a tapped mailbox: on disk within 5 ms?
//   warpmail::pop(warpmail::one_lane{}, c, dst, dst_bytes, len, type, 1000000); // waits at most a millisecond
//   warpmail::lease_check(lanes, leases, tensor), lease_release(...), tensor_part(...)  // tensors by pointer:
//   lease.hpp
//
// Where the warps of a block do different things, choose by warp_lanes{}.in_block() and not by threadIdx.x / 32, of
// which the compiler does not know that it is the same for all lanes of a warp (lanes.hpp has what that costs).
//
// A handler set for the arbiter is a struct with a static `step`; see warpmail/handler.hpp.
#ifndef WARPMAIL_DEVICE_HPP
#define WARPMAIL_DEVICE_HPP

#include "protocol/durable.hpp"
#include "protocol/lease.hpp"
#include "protocol/wait.hpp"
#include "protocol/warp_ends.hpp"
#include "protocol/warp_wide.hpp"

#endif
