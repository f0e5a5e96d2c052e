#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Is the arbiter a good neighbour of PyTorch in the same process?

With the arbiter absent, hot (it never parks), parked and flapping (parked, and woken every 300 us), PyTorch does what
libraries do that wait for other people's kernels: frees, synchronises, loads kernels lazily, captures graphs in the
default mode, retries after running out of memory, compiles Triton kernels, profiles. Every operation must return. Beyond
what it takes with the arbiter absent, each call in it that waits for everything may take `max_wait` + 1 ms beside a parked
arbiter, and two residencies + 1 ms beside a hot one (the running launch and the next). Then matched pairs measure what a
parked and a hot arbiter cost a matrix product, a copy and a decode-like chain of small kernels.

  python3 neighbour.py --library libwarpmail.so [--json FILE] [--max-wait-ms MS] [--pairs N] [--skip-compile]

Exit code 0: everything returned in time. 1: something was late or failed. 77: waived (no PyTorch with CUDA here).
"""
import argparse
import ctypes as c
import faulthandler
import json
import os
import statistics
import sys
import threading
import time

NS = 1_000_000_000
RESIDENCY_MS = 2


class ModuleOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("handler", c.c_uint32), ("rule", c.c_uint32), ("batch", c.c_uint32),
                ("out_records", c.c_uint32), ("priority", c.c_uint32), ("state", c.c_void_p), ("state_bytes", c.c_uint64)]


class Budget(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("servers", c.c_uint32), ("residency_ns", c.c_uint64),
                ("idle_spin_ns", c.c_uint64), ("max_wait_ns", c.c_uint64), ("sm_share", c.c_double)]


class Record(c.Structure):
    _fields_ = [("len", c.c_uint32), ("msg_type", c.c_uint16), ("reserved", c.c_uint16)]


class Library:
    """The few functions of the C API that are needed; a status that is not 0 raises with the library's own words."""

    def __init__(self, path):
        self.so = c.CDLL(path)
        self.so.warpmail_last_error.restype = c.c_char_p

    def __getattr__(self, name):
        function = getattr(self.so, "warpmail_" + name)

        def call(*args):
            status = function(*args)
            if status != 0:
                raise RuntimeError(f"warpmail_{name}: {self.so.warpmail_last_error().decode()}")
        return call


class Arbiter:
    """A host module, a relay and an arbiter; `echo` sends a record round."""

    def __init__(self, library, idle_spin_ns, max_wait_ns):
        self.library = library
        device, graph, image = c.c_void_p(), c.c_void_p(), c.c_void_p()
        self.runtime, self.sender, self.receiver = c.c_void_p(), c.c_void_p(), c.c_void_p()
        host, relay, there, back = c.c_uint32(), c.c_uint32(), c.c_uint32(), c.c_uint32()
        library.device_cuda(0, c.byref(device))
        library.builder_new(device, c.byref(graph))
        budget = Budget(c.sizeof(Budget), 6, RESIDENCY_MS * 1_000_000, idle_spin_ns, max_wait_ns, 1.0)
        library.builder_budget(graph, c.byref(budget))
        library.builder_beside(graph, c.c_uint64(0))  # the legacy default stream, which is PyTorch's
        library.builder_host(graph, b"host", c.byref(host))
        options = ModuleOptions(c.sizeof(ModuleOptions), 0, 0, 32, 0, 0, None, 0)
        library.builder_resident(graph, b"relay", c.byref(options), c.byref(relay))
        library.builder_mailbox(graph, host, relay, None, c.byref(there))
        library.builder_mailbox(graph, relay, host, None, c.byref(back))
        library.image_builtin(c.byref(image))
        library.builder_build(graph, image, c.byref(self.runtime))
        library.runtime_sender(self.runtime, there, c.byref(self.sender))
        library.runtime_receiver(self.runtime, back, c.byref(self.receiver))
        library.runtime_start(self.runtime)
        library.image_destroy(image)
        library.builder_destroy(graph)
        library.device_destroy(device)
        self.echoes, self.buffer = 0, c.create_string_buffer(256)

    def echo(self):
        payload = self.echoes.to_bytes(8, "little")
        self.library.sender_push(self.sender, c.c_uint16(1), payload, c.c_size_t(8), c.c_uint64(30 * NS))
        record = Record()
        self.library.receiver_pop(self.receiver, self.buffer, c.c_size_t(256), c.byref(record), c.c_uint64(30 * NS))
        if self.buffer.raw[:8] != payload:
            raise RuntimeError(f"record {self.echoes} came back changed")
        self.echoes += 1

    def close(self):
        self.library.runtime_stop(self.runtime, c.c_uint64(10 * NS))
        self.library.sender_destroy(self.sender)
        self.library.receiver_destroy(self.receiver)
        self.library.runtime_destroy(self.runtime)


class State:
    """The arbiter in one state while a `with` block lasts."""

    def __init__(self, library, name, max_wait_ns):
        self.library, self.name, self.max_wait_ns = library, name, max_wait_ns
        self.arbiter, self.thread, self.stop, self.fault = None, None, threading.Event(), None

    def __enter__(self):
        if self.name != "absent":
            self.arbiter = Arbiter(self.library, 0 if self.name == "hot" else 5_000, self.max_wait_ns)
            self.arbiter.echo()
        if self.name == "flapping":
            self.thread = threading.Thread(target=self.flap)
            self.thread.start()
        time.sleep(0.02)
        return self

    def flap(self):
        try:
            while not self.stop.is_set():
                self.arbiter.echo()
                time.sleep(0.0003)
        except Exception as error:  # told by __exit__
            self.fault = error

    def __exit__(self, *_):
        self.stop.set()
        if self.thread:
            self.thread.join()
        if self.arbiter:
            self.arbiter.close()
        if self.fault:
            raise self.fault


def operations(torch, skip_compile):
    """(name, how often, function of the round, calls in it that may wait for everything)"""
    gpu = torch.device("cuda")
    # Each pair is a kernel of its own, loaded at its first use.
    kinds = [torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
    lazy = iter([(op, kind) for op in (torch.cumprod, torch.cummax, torch.cummin) for kind in kinds])
    small = torch.rand(1 << 16, device=gpu)

    def free_and_empty(_):
        block = torch.empty(256 << 20, dtype=torch.uint8, device=gpu)
        del block
        torch.cuda.empty_cache()  # cudaFree

    def first_use(_):
        op, kind = next(lazy)
        op(small.to(kind), 0)
        torch.cuda.current_stream().synchronize()

    def capture(i):
        graph, at = torch.cuda.CUDAGraph(), torch.ones(1024, device=gpu)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):  # the default, global capture mode
            out = at * (i + 2) + 1
        for _ in range(3):
            graph.replay()
        assert out.sum().item() == 1024 * (i + 3)

    def out_of_memory(_):
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((4 << 30) / total)
        try:
            kept = torch.empty(2 << 30, dtype=torch.uint8, device=gpu)
            del kept  # cached; the next one fits only after the allocator gave it back
            other = torch.empty(3 << 30, dtype=torch.uint8, device=gpu)
            del other
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()

    def pin(_):
        block = torch.empty(64 << 20, dtype=torch.uint8).pin_memory()
        del block
        getattr(torch._C, "_host_emptyCache", lambda: None)()  # cudaFreeHost

    def streams(_):
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            (small * 2).sum()
            event.record()
        event.synchronize()

    def profile(_):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
            (small * 3).sum().item()

    ops = [
        ("synchronize", 10, lambda _: torch.cuda.synchronize(), 1),
        ("free (empty_cache)", 10, free_and_empty, 2),
        ("first use of a kernel", 4, first_use, 2),
        ("pageable copy to the device", 10, lambda _: torch.rand(1 << 20).to(gpu), 1),
        ("copy to the host", 10, lambda _: small.cpu(), 1),
        ("stream and event", 10, streams, 1),
        ("graph capture and replay", 5, capture, 6),
        ("out-of-memory retry", 3, out_of_memory, 6),
        ("pin_memory and its free", 5, pin, 2),
        ("matrix product (cuBLAS)", 5, lambda i: (torch.rand(256 + i, 256, device=gpu) @ torch.rand(256, 64, device=gpu)).sum().item(), 2),
        ("sort and softmax", 5, lambda i: torch.rand(999 + i, device=gpu).sort()[0].softmax(0).sum().item(), 2),
        ("profiler session", 2, profile, 4),
    ]
    if not skip_compile:
        import triton
        import triton.language as tl

        sources = []

        def compile_triton(i):
            # A new constant is a new kernel: compiled, loaded and launched.
            sources.append(len(sources) + 1)
            out = torch.empty(1024, device=gpu)
            add_constant[(8,)](small, out, sources[-1], BLOCK=128)
            assert torch.allclose(out, small[:1024] + sources[-1])

        @triton.jit
        def add_constant(from_ptr, to_ptr, VALUE: tl.constexpr, BLOCK: tl.constexpr):
            at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(to_ptr + at, tl.load(from_ptr + at) + VALUE)

        globals().update(tl=tl)
        compiled = []

        def compile_torch(_):
            compiled.append(len(compiled) + 1)
            shift = compiled[-1]
            torch._dynamo.reset()
            function = torch.compile(lambda x: torch.sin(x) * shift + torch.cos(x))
            assert torch.allclose(function(small), torch.sin(small) * shift + torch.cos(small), atol=1e-5)

        ops += [("Triton: compile, load, launch", 2, compile_triton, 4), ("torch.compile", 1, compile_torch, 8)]
    return ops


def longest(torch, operation, rounds):
    times = []
    for i in range(rounds):
        begin = time.perf_counter()
        operation(i)
        times.append((time.perf_counter() - begin) * 1e3)
    torch.cuda.synchronize()
    return max(times)


def co_runners(torch):
    """(name, function that enqueues a measurement's worth of work)"""
    gpu = torch.device("cuda")
    a, b = (torch.rand(8192, 8192, device=gpu).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device=gpu).random_() for _ in range(2))
    x = torch.rand(1, 4096, device=gpu, dtype=torch.float16)
    weights = [torch.rand(4096, 4096, device=gpu, dtype=torch.float16) / 64 for _ in range(8)]

    def step():
        y = x
        for w in weights * 4:
            y = torch.nn.functional.silu(y @ w) * 0.1
        return y
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def repeat(times, work):
        def run():
            for _ in range(times):
                work()
        return run
    return [("gemm", repeat(20, lambda: torch.matmul(a, b, out=out))),
            ("stream", repeat(20, lambda: target.copy_(source))),
            ("decode", repeat(40, graph.replay))]


def timed(torch, work):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    work()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="path of libwarpmail.so")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--max-wait-ms", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=20, help="matched pairs of each co-runner; 0: none")
    parser.add_argument("--skip-compile", action="store_true", help="leave Triton and torch.compile out")
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("waived: PyTorch is not installed")
        return 77
    if not torch.cuda.is_available():
        print("waived: PyTorch sees no CUDA device")
        return 77
    faulthandler.dump_traceback_later(240, exit=True)  # a hang is a failure with a trace, not a hang
    library = Library(os.path.abspath(args.library))
    library.so.warpmail_version.restype = c.c_char_p
    max_wait_ns = int(args.max_wait_ms * 1e6)
    rows = []

    def row(name, value, unit, floor=None):
        rows.append({"id": name, "value": value, "unit": unit, "floor": floor,
                     "ratio": value / floor if floor else None, "p50": None, "p99": None, "p999": None,
                     "backend": "cuda", "device": torch.cuda.get_device_name(0), "driver": torch.version.cuda,
                     "commit": os.environ.get("WARPMAIL_COMMIT", library.so.warpmail_version().decode()),
                     "command": "neighbour.py " + " ".join(sys.argv[1:])})

    ops = operations(torch, args.skip_compile)
    for _, _, operation, _ in ops:  # contexts, caches, first compilations
        operation(0)
    print(f"longest of each operation in ms; excess beyond absent, for each call that may wait for everything, beside\n"
          f"parked and flapping (max_wait {args.max_wait_ms} ms) and beside hot (two residencies: 4 ms)\n"
          f"{'':32}{'absent':>9}{'hot':>9}{'parked':>9}{'flapping':>9}{'calls':>7}{'parked':>9}{'hot':>7}")
    late, worst = 0, {"parked": 0.0, "hot": 0.0}
    for name, rounds, operation, calls in ops:
        times = {}
        for state in ("absent", "hot", "parked", "flapping"):
            with State(library, state, max_wait_ns):
                times[state] = longest(torch, operation, rounds)
        own = times["absent"] * (1.5 if times["absent"] > 20 else 1)  # what takes long varies by itself
        excess = {"parked": (max(times["parked"], times["flapping"]) - own) / calls, "hot": (times["hot"] - own) / calls}
        worst = {k: max(worst[k], excess[k]) for k in worst}
        is_late = excess["parked"] > args.max_wait_ms + 1 or excess["hot"] > 2 * RESIDENCY_MS + 1
        late += is_late
        print(f"{name:32}" + "".join(f"{times[s]:9.2f}" for s in times) + f"{calls:7}{excess['parked']:9.2f}{excess['hot']:7.2f}"
              + ("  LATE" if is_late else ""), flush=True)
    row("park.blocking", worst["parked"], "ms", args.max_wait_ms)
    row("park.blocking.hot", worst["hot"], "ms", 2 * RESIDENCY_MS)
    if args.pairs:
        print(f"\nmatched pairs ({args.pairs}), medians in ms")
        for name, work in co_runners(torch):
            timed(torch, work)
            for state in ("parked", "hot"):
                ratios, alone, beside = [], [], []
                for i in range(args.pairs):
                    # Both come after the same pause, and in turns, so that clocks and heat are the same.
                    for is_beside in (i % 2 == 0, i % 2 == 1):
                        if is_beside:
                            with State(library, state, max_wait_ns):
                                beside.append(timed(torch, work))
                        else:
                            with State(library, state, max_wait_ns):
                                pass
                            with State(library, "absent", max_wait_ns):
                                alone.append(timed(torch, work))
                    ratios.append(beside[-1] / alone[-1])
                name_of = f"park.corun.{name}" + ("" if state == "parked" else ".hot")
                row(name_of, statistics.median(beside), "ms", statistics.median(beside) / statistics.median(ratios))
                print(f"{name_of:28}{statistics.median(alone):10.3f} alone{statistics.median(beside):10.3f} beside, "
                      f"ratio {statistics.median(ratios):.4f}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=2)
            file.write("\n")
    print(f"\n{late} operations were late" if late else "\nevery operation returned in time")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
