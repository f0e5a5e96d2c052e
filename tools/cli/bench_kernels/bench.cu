// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The kernels of `warpmail bench`, one image. The product's own device API beside named baselines; each kernel checks
// what it receives and counts what is wrong, and no wait in it is without a bound.
#include "bench_kernels/common.cuh"
#include "bench_kernels/corun.cuh"
#include "bench_kernels/drain.cuh"
#include "bench_kernels/hop.cuh"
#include "bench_kernels/steps.cuh"
#include "bench_kernels/throughput.cuh"
