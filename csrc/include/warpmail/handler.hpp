// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Writing your own resident handlers. A handler set is a struct:
//
//   struct my_handlers {
//       template <class C> WM_FN static void step(C& c, warpmail::u32 handler) {
//           u32 len, type;
//           if (c.pop(0, c.scratch(), c.scratch_bytes(), len, type) != WM_OK) return;
//           ...                                  // c.lanes.rank() / width(): one source for a warp and for one thread
//           c.push(0, c.scratch(), len, type);
//       }
//   };
//
// In a .cu, compiled to a fatbin that the runtime loads:
//   extern "C" __global__ void __launch_bounds__(warpmail::arbiter_max_threads, 1)
//       my_arbiter(const __grid_constant__ wm_arbiter_args args) {
//       warpmail::arbiter_kernel<my_handlers>(args);
//   }
// and, for the arbiter on the CPU (docs/arbitration.md), a kernel of the same name with _step behind it:
//   extern "C" __global__ void __launch_bounds__(warpmail::step_threads, 1)
//       my_arbiter_step(const __grid_constant__ wm_step_args args) {
//       warpmail::step_kernel<my_handlers>(args);
//   }
// In a .cpp, linked into the program, for machines without a GPU:
//   extern "C" int my_twin(const wm_arbiter_args* args) { return warpmail::twin_arbiter<my_handlers>(args); }
//
// A record that a step gives to another resident module is told of when the step has ended, because the same server
// goes on with it then: a handler that works on after it has given calls c.tell().
//
// Variables outside of functions (__device__, and those of the .cpp) are the process's: runtimes with the same handlers
// share them, and the next one finds what the last one left. What belongs to a runtime goes into its modules' state.
#ifndef WARPMAIL_HANDLER_HPP
#define WARPMAIL_HANDLER_HPP

#include "protocol/roles.hpp"

#if defined(__CUDACC__)
#include "device/arbiter_kernel.cuh"
#include "device/step_kernel.cuh"
#else
#include "twin/twin_arbiter.hpp"
#endif

#endif
