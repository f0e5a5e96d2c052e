"""What the host does while stream modules run: python3 tools/python/trace_arbitration.py [--seconds S] [--events N] [--json FILE]

A GPU and PyTorch are needed. Two stream modules, captured graphs on streams of their own, send one record to each other; the host
posts it once and takes it at the end. Meanwhile the profiler watches: `arb.host_copies` is how often the host copied memory, had
it copied, or waited for the device, and is to be 0. What else it called is listed by thread, and what CUPTI calls a sync and took no
longer than a look, which is what it makes of a question whether a stream is well: each is asked 20 times a second.

It is one trace without a gap, and some seconds go by for every hundred thousand events in it until it has been written and read. So
short traces come first, and the bodies are made as long as it takes for the whole to have at most so many events.
"""

import argparse
import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
# The flagship's folder, in the repository and in the bundle.
sys.path[:0] = [str(folder) for folder in (HERE.parents[1] / "examples/python/flagship", HERE / "flagship") if folder.is_dir()]

from bench_tensors import Ring, import_torch
from profiled import events_of, summary

STEP_CYCLES = 4_000_000  # some 2 ms
# Launches without records run the bodies too: they are let through so seldom that they are few.
MAX_WAIT = 1.0
PROBE_SECONDS, PROBES = 2.0, 8  # what is noted once, when it begins, is little beside two seconds
LEAST_HOPS = 10


def counted(found):
    """The row's value: copies and waits of the host, however they were asked for. A copy is seen twice, as a call and on the
    device: that only counts where there is one."""
    return found["host_copies"] + found["copy_calls"] + found["waits"]


def say(what):
    print(f"trace_arbitration: {what}", file=sys.stderr, flush=True)


def take(receiver, seconds):
    """The record, however long it takes within reason; says now and then that it is being waited for."""
    import warpmail

    begin = time.monotonic()
    while True:
        try:
            return receiver.take(timeout=10)
        except warpmail.Timeout:
            waited = time.monotonic() - begin
            if waited > 30 + 2 * seconds:
                raise
            say(f"{waited:.0f} of {seconds:.0f} s")


def traced(ring, seconds):
    """The trace of so many seconds of a ring that runs, and the hops in it."""
    hops = max(LEAST_HOPS, int(seconds * 1e6 / ring(20))) // 2 * 2  # what is done once has been done in these 20

    def run():
        ring.sender.post(bytes(24) + hops.to_bytes(8, "little"))
        take(ring.receiver, seconds)

    return events_of(run), hops


def longer(cycles, seconds, most, probed):
    """How long a body is to be so that `seconds` of them are `most` events at most, by a trace of (seconds, events)."""
    expected = probed[1] / probed[0] * seconds
    return cycles if expected <= most else int(cycles * 1.2 * expected / most)


def steady(torch, seconds, most):
    """A summary of so many seconds, and the hops in them."""
    cycles = STEP_CYCLES
    for _ in range(PROBES):
        ring = Ring(torch, None, work=lambda: torch.cuda._sleep(cycles), max_wait=MAX_WAIT)
        with ring.runtime:
            events, hops = traced(ring, PROBE_SECONDS)
            probe = summary(events)["seconds"], len(events)
            say(f"{hops} hops in {probe[0]:.1f} s are {probe[1]} events")
            again = longer(cycles, seconds, most, probe)
            if again == cycles:
                say(f"watching for {seconds:.0f} s")
                events, hops = traced(ring, seconds)
                say(f"{len(events)} events have been read")
                return {**summary(events), "events": len(events)}, hops
        cycles = again
    sys.exit(f"trace_arbitration: {probe[1]} events in {probe[0]:.1f} s, however long the bodies are: fewer --seconds, or more --events")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60, help="to watch (default 60)")
    options.add_argument("--events", type=int, default=500_000, help="in the trace, at most (default 500000)")
    options.add_argument("--json", metavar="FILE", help="also write the row there, as `warpmail bench` does, with the summary")
    options = options.parse_args()
    torch = import_torch("trace_arbitration")
    import warpmail

    with torch.inference_mode():
        found, hops = steady(torch, options.seconds, options.events)
    value, probe = counted(found), warpmail.probe()
    row = {
        "id": "arb.host_copies", "value": value, "unit": "calls", "floor": None, "ratio": None, "p50": None, "p99": None,
        "p999": None, "backend": "cuda", "device": torch.cuda.get_device_name(), "driver": probe["driver"].get("Ok"),
        "commit": os.environ.get("WARPMAIL_COMMIT", probe["commit"]), "command": "python3 tools/python/trace_arbitration.py",
        "trace": {**found, "hops": hops},
    }  # fmt: skip
    print(f"arb.host_copies {value} calls in {found['seconds']:.1f} s, {hops} hops, {found['kernels']} kernels, {found['events']} events")
    for name, times in found["calls"].items():
        print(f"  thread {name} {times}")
    for name, times in found["others"].items():
        print(f"  on the device: {name} {times}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([row], file, indent=1)
            file.write("\n")
    if found["kernels"] < hops:
        sys.exit(f"trace_arbitration: {found['kernels']} kernels in {hops} hops: the profiler did not see them, so it proves nothing")
    sys.exit(1 if value else 0)


if __name__ == "__main__":
    main()
