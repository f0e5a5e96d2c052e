"""What handing a tensor from one PyTorch stream to another costs: python3 tools/python/bench_tensors.py [--json FILE]

A GPU and PyTorch are needed. Each hop is from work on one stream to work on another that needs it, back and forth many times, so
that every hop waits for the one before; microseconds a hop, the work included (a kernel that changes the tensor's first
element), for tensors of 1 KiB to 1 GiB, each beside the same with a bare record of 32 bytes:

  ends     the host posts with stream=one and takes on the other, through a mailbox between two host modules
  relay    the same through a resident module, that is, through the arbiter; .cpu: the CPU's
  steps    two stream modules, captured graphs, send it to each other; the host does nothing; .cpu: arbitrated by the CPU
  event    torch.cuda.Event and wait_event, nothing handed
  copy     the same with a copy of the tensor in device memory
  queue    torch.multiprocessing queues to another process and back, half of it
  deliver  the host posts it to a stream module that has it copied to a fixed address (Runtime.deliver), and takes the
           answer: the whole way there and back; beside a copy of the tensor, by events on the device
"""

import argparse
import json
import os
import struct
import sys
import time

# Streams share the process's connections to the device, and one that waits holds up its neighbours: docs/stream-modules.md.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import warpmail

SIZES = {"1KiB": 1 << 10, "1MiB": 1 << 20, "1GiB": 1 << 30}
ROUNDS = 15


def import_torch(program="bench_tensors"):
    """PyTorch with a GPU; else the program ends as waived."""
    why = "no PyTorch"
    try:
        import torch

        why = "no GPU that can be used"
        if warpmail.probe()["best"] == "cuda" and torch.cuda.is_available():
            return torch
    except ImportError:
        pass
    print(f"{program}: waived: there is {why} here", file=sys.stderr)
    sys.exit(77)


class Streams:
    """Two streams, and tensors of all sizes."""

    def __init__(self, torch):
        self.torch, self.both = torch, (torch.cuda.Stream(), torch.cuda.Stream())
        self.tensors = {name: torch.zeros(size // 4, device="cuda") for name, size in SIZES.items()}
        self.events = [torch.cuda.Event() for _ in range(2)]
        torch.cuda.synchronize()

    def back_and_forth(self, hops, hand):
        """`hand(stream, next)` once a hop, with `stream` PyTorch's current one; microseconds a hop."""
        self.torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        for n in range(hops):
            one, two = self.both[n % 2], self.both[1 - n % 2]
            hand(one, two, n % 2)
        self.torch.cuda.synchronize()
        return (time.perf_counter_ns() - begin) / hops / 1000

    def event(self, tensor):
        def hand(one, two, n):
            with self.torch.cuda.stream(one):
                tensor[:1].add_(1)
                self.events[n].record()
            two.wait_event(self.events[n])

        return hand

    def copy(self, tensor):
        other = self.torch.empty_like(tensor)

        def hand(one, two, n):
            with self.torch.cuda.stream(one):
                tensor[:1].add_(1)
                other.copy_(tensor)
                self.events[n].record()
            two.wait_event(self.events[n])

        return hand

    def mail(self, sender, receiver, tensor):
        def hand(one, two, n):
            with self.torch.cuda.stream(one):
                tensor[:1].add_(1)
                sender.post(tensor, stream=one)
            receiver.take().tensor.wait_on(two)

        return hand

    def records(self, sender, receiver, tensor):
        payload = bytes(32)

        def hand(one, two, n):
            with self.torch.cuda.stream(one):
                tensor[:1].add_(1)
                self.events[n].record()
            sender.post(payload)
            receiver.take()
            two.wait_event(self.events[n])

        return hand


def host_graph(relay, mode=None):
    graph = warpmail.Builder("cuda", mode=mode)
    pool, a, b = graph.pool(1 << 20), graph.host("a"), graph.host("b")
    if relay:
        middle = graph.resident("relay", warpmail.RELAY)
        there, back = graph.mailbox(a, middle), graph.mailbox(middle, b)
    else:
        there = back = graph.mailbox(a, b)
    runtime = graph.build()
    return runtime, runtime.sender(there), runtime.receiver(back), pool


class Ring:
    """host -> one <-> two -> host: captured graphs that send what they got to each other until its count is up."""

    def __init__(self, torch, tensor, mode=None, work=None, **budget):
        """`tensor`: handed by pointer and changed through it; None: a bare record. `work`: what else each step enqueues.
        `budget`: what else is said of the spin budget."""
        self.torch, self.tensor, self.work = torch, tensor, work
        graph = warpmail.Builder("cuda", mode=mode)
        graph.budget(idle_spin="never", **budget)
        self.pool = graph.pool(1 << 20)
        # The count of hops that are left goes along: a note behind the descriptor, or the record's last word.
        self.bytes, kind = (warpmail.TENSOR_BYTES + 8, warpmail.TENSOR) if tensor is not None else (32, 5)
        host = graph.host("host")
        names = [graph.steps(name, pushes=[(self.bytes, kind)] * 2) for name in ("one", "two")]
        there = graph.mailbox(host, names[0])
        graph.mailbox(names[0], names[1])
        spare = graph.mailbox(names[0], host)
        graph.mailbox(names[1], names[0])
        back = graph.mailbox(names[1], host)
        self.runtime = graph.build()
        self.graphs = [self.step(name, inputs) for name, inputs in zip(names, (2, 1))]
        self.sender, self.receiver = self.runtime.sender(there), self.runtime.receiver(back)
        self.spare = self.runtime.receiver(spare)

    def step(self, name, inputs):
        torch, runtime = self.torch, self.runtime
        view = lambda buffer, n, dtype: torch.as_tensor(buffer, device="cuda")[:n].view(dtype)
        ins = [runtime.step_input(name, n) for n in range(inputs)]
        outs = [runtime.step_output(name, n) for n in range(2)]
        live = view(runtime.step_live(name), 8, torch.int64)
        length = view(ins[0].header, 4, torch.int32)
        letters = [view(end, self.bytes, torch.int64) for end in ins]
        targets = [(view(end, self.bytes, torch.int64), view(end.header, 4, torch.int32)) for end in outs]
        last = torch.zeros(self.bytes // 8, dtype=torch.int64, device="cuda")
        last[-1] = 1
        end = self.tensor.numel() - 1 if self.tensor is not None else 0

        def body():
            if self.work is not None:
                self.work()
            letter = torch.where(length == self.bytes, letters[0], letters[1]) if inputs > 1 else letters[0]
            if self.tensor is not None:  # through the pointer, to the tensor's first element; without records to its last
                at = (letter[:1] + letter[1:2] - self.tensor.data_ptr()) // 4
                at = torch.where((live != 0) & (at >= 0) & (at < end), at, end)
                self.tensor.index_add_(0, at, one)
            letter = letter - last
            for (target, says), ends in zip(targets, (False, True)):
                target.copy_(letter)
                says.copy_(torch.where((letter[-1:] <= 0) == ends, self.bytes, -1).int())

        one = torch.ones(1, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            body()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            body()
        runtime.body(name, graph=graph, always=True)
        return graph

    def __call__(self, hops):
        """Microseconds a hop; an even number of them, so that the second module ends it."""
        if self.tensor is not None:
            self.tensor[:1].zero_()
        self.torch.cuda.synchronize()
        count = hops.to_bytes(8, "little")
        begin = time.perf_counter_ns()
        if self.tensor is not None:
            self.sender.post(self.tensor, note=count, stream=-1)
        else:
            self.sender.post(bytes(24) + count)
        record = self.receiver.take(timeout=30)
        spent = (time.perf_counter_ns() - begin) / hops / 1000
        if self.tensor is not None:
            record.tensor.release()
            if self.tensor[:1].item() != hops:
                sys.exit(f"bench_tensors: {hops} hops changed the tensor {self.tensor[:1].item()} times")
        return spent


def other_process(inbox, outbox):
    import torch

    while (tensor := inbox.get()) is not None:
        tensor[:1].add_(1)
        torch.cuda.synchronize()
        outbox.put(True)
        del tensor


def queues(torch, tensors, rounds=60):
    """Microseconds from one process to the other, by size."""
    context = torch.multiprocessing.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    child = context.Process(target=other_process, args=(there, back), daemon=True)
    child.start()
    found = {}
    try:
        for name, tensor in tensors.items():
            times = []
            for _ in range(rounds):
                begin = time.perf_counter_ns()
                tensor[:1].add_(1)
                torch.cuda.synchronize()
                there.put(tensor)
                back.get(timeout=60)
                times.append((time.perf_counter_ns() - begin) / 2000)
            found[name] = times[rounds // 3 :]
    finally:
        there.put(None)
        child.join(20)
        if child.is_alive():
            child.kill()
    return found


def deliveries(torch, tensor, rounds=60):
    """Microseconds from posting a tensor to the answer of a step that it was delivered to; and of a copy of it alone."""
    graph = warpmail.Builder("cuda")
    graph.budget(idle_spin="never")
    pool, host = graph.pool(1 << 20), graph.host("host")
    model = graph.steps("model", pushes=[(4, 9)], spin=None)
    there, back = graph.mailbox(host, model), graph.mailbox(model, host)
    runtime = graph.build()
    target = torch.zeros_like(tensor)
    runtime.deliver(model, target)
    answer = torch.as_tensor(runtime.step_output(model), device="cuda")[:4].view(torch.float32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        answer.copy_(target[-1:])
    stream.synchronize()
    body = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(body, stream=stream, capture_error_mode="thread_local"):
        answer.copy_(target[-1:])
    runtime.body(model, graph=body, always=True)
    sender, receiver = runtime.sender(there), runtime.receiver(back)
    found, copies = [], []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for n in range(20):
        with torch.cuda.stream(stream):
            begin.record()
            target.copy_(tensor)
            end.record()
        end.synchronize()
        copies.append(begin.elapsed_time(end) * 1000)
    with runtime:
        for n in range(rounds):
            tensor.fill_(n + 1)
            torch.cuda.synchronize()
            since = time.perf_counter_ns()
            sender.post(tensor, stream=-1)
            record = receiver.take(timeout=30)
            found.append((time.perf_counter_ns() - since) / 1000)
            if record.payload != struct.pack("f", n + 1):
                sys.exit(f"bench_tensors: delivery {n} gave {record.payload!r}")
    if not torch.equal(target, tensor):
        sys.exit("bench_tensors: what was delivered is not the tensor")
    pool.collect()
    return found[rounds // 3 :], copies[5:]


def measure(torch):
    """Times of each thing: {(way, what): [us]}, rounds in turns so that all see the same machine."""
    streams = Streams(torch)
    tensors, small = streams.tensors, streams.tensors["1KiB"]
    graphs = {"ends": host_graph(False), "relay": host_graph(True), "relay.cpu": host_graph(True, "cpu")}
    times, runs = {}, {}
    for way, (_, sender, receiver, _) in graphs.items():
        hops = 400 if way == "ends" else 200
        for name, tensor in tensors.items():
            runs[way, name] = lambda s=sender, r=receiver, t=tensor, h=hops: streams.back_and_forth(h, streams.mail(s, r, t))
        runs[way, "record"] = lambda s=sender, r=receiver, h=hops: streams.back_and_forth(h, streams.records(s, r, small))
    for name, tensor in tensors.items():
        runs["event", name] = lambda t=tensor: streams.back_and_forth(400, streams.event(t))
        runs["copy", name] = lambda t=tensor: streams.back_and_forth(20 if t.numel() > 1 << 24 else 400, streams.copy(t))
    batch(runs, times, [graphs["ends"], graphs["relay"]], skip="relay.cpu")
    batch({k: v for k, v in runs.items() if k[0] == "relay.cpu"}, times, [graphs["relay.cpu"]])
    # Forth and back: what drifts is in all of them.
    for mode, order in [(None, 1), (None, -1), ("cpu", 1)]:
        for name, tensor in [*tensors.items(), ("record", None)][::order]:
            ring = Ring(torch, tensor, mode)
            with ring.runtime:
                ring(100)
                times.setdefault(("steps.cpu" if mode else "steps", name), []).extend(ring(400) for _ in range(ROUNDS))
            del ring
    for name, tensor in tensors.items():
        times["deliver", name], times["deliver.copy", name] = deliveries(torch, tensor)
    for name, found in queues(torch, tensors).items():
        times["queue", name] = found
    return times


def batch(runs, times, graphs, skip=None):
    started = [runtime for runtime, *_ in graphs]
    for runtime in started:
        runtime.start()
    try:
        for _ in range(ROUNDS + 1):
            for key, run in runs.items():
                if key[0] != skip:
                    times.setdefault(key, []).append(run())
    finally:
        for runtime in started:
            runtime.stop()
    for key in runs:
        if key[0] != skip:
            del times[key][0]


def rows_of(times, common):
    at = lambda found, q: sorted(found)[min(len(found) - 1, int(q * len(found)))]
    median = {key: at(found, 0.5) for key, found in times.items()}
    rows = []

    def row(name, value, unit, floor=None, found=None):
        rows.append({"id": name, "value": round(value, 4), "unit": unit, "floor": floor and round(floor, 4),
                     "ratio": round(value / floor, 4) if floor else None, "p50": found and round(at(found, 0.5), 4),
                     "p99": found and round(at(found, 0.99), 4), "p999": None, **common})  # fmt: skip

    for (way, what), found in times.items():
        floor = median.get((f"{way}.copy", what)) or median.get((way, "record"))
        row(f"tensor.{way}.{what}", median[way, what], "us", floor, found)
    for way in ("ends", "relay", "steps", "relay.cpu", "steps.cpu"):
        row(f"tensor.size_ratio.{way}", median[way, "1GiB"] / median[way, "1KiB"], "ratio")
        row(f"tensor.hop_ratio.{way}", median[way, "1GiB"] / median[way, "record"], "ratio")
    gigabytes = lambda us: SIZES["1GiB"] / us / 1000  # what the way there and back takes by itself is the short one's
    spent, copied = (median[way, "1GiB"] - median[way, "1KiB"] for way in ("deliver", "deliver.copy"))
    row("tensor.deliver.rate", gigabytes(spent), "GB/s", gigabytes(copied))
    ours = ("ends", "relay", "steps")
    row("tensor.size_ratio", max(median[way, "1GiB"] / median[way, "1KiB"] for way in ours), "ratio")
    row("tensor.hop_ratio", max(median[way, "1GiB"] / median[way, "record"] for way in ours), "ratio")
    return rows


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", metavar="FILE", help="also write the rows there, as `warpmail bench` does")
    options = options.parse_args()
    torch = import_torch()
    with torch.inference_mode():
        times = measure(torch)
    probe = warpmail.probe()
    common = {
        "backend": "cuda", "device": torch.cuda.get_device_name(), "driver": probe["driver"].get("Ok"),
        "commit": os.environ.get("WARPMAIL_COMMIT", probe["commit"]),
        "command": "python3 tools/python/bench_tensors.py",
    }  # fmt: skip
    rows = rows_of(times, common)
    for r in rows:
        floor = "copy's" if ".deliver." in r["id"] else "record's"
        beside = f"{r['ratio']:>8.3f} of the {floor}" if r["ratio"] is not None else ""
        print(f"{r['id']:<28} {r['value']:>10.2f} {r['unit']:<6}{beside}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
