"""What the host does while stream modules run: python3 tools/python/trace_arbitration.py [--seconds S] [--json FILE]

A GPU and PyTorch are needed. Two stream modules, captured graphs on streams of their own, send one record to each other; the host
posts it once and takes it at the end. Meanwhile the profiler watches: `arb.host_copies` is how often the host copied memory, had
it copied, or waited for the device, and is to be 0. What else it called is listed by thread, and what CUPTI calls a sync and took no
longer than a look, which is what it makes of a question whether a stream is well: each is asked 20 times a second.
"""

import argparse
import json
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# The flagship's folder, in the repository and in the bundle.
sys.path[:0] = [str(folder) for folder in (HERE.parents[1] / "examples/python/flagship", HERE / "flagship") if folder.is_dir()]

from bench_tensors import Ring, import_torch
from profiled import events_of, summary

STEP_CYCLES = 16_000_000  # some 8 ms: of a minute with 2 ms a step the profiler had not made a file after another
LEAST_HOPS = 10


def counted(found):
    """The row's value: copies and waits of the host, however they were asked for. A copy is seen twice, as a call and on the
    device: that only counts where there is one."""
    return found["host_copies"] + found["copy_calls"] + found["waits"]


def steady(torch, seconds):
    """A summary of so many seconds, and the hops in them."""
    ring = Ring(torch, None, work=lambda: torch.cuda._sleep(STEP_CYCLES))
    with ring.runtime:
        each = ring(20)  # microseconds; what is done once has been done
        hops = max(LEAST_HOPS, int(seconds * 1e6 / each)) // 2 * 2

        def run():
            ring.sender.post(bytes(24) + hops.to_bytes(8, "little"))
            ring.receiver.take(timeout=30 + 3 * seconds)

        found = summary(events_of(run))
    return found, hops


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60, help="to watch (default 60)")
    options.add_argument("--json", metavar="FILE", help="also write the row there, as `warpmail bench` does, with the summary")
    options = options.parse_args()
    torch = import_torch("trace_arbitration")
    import warpmail

    with torch.inference_mode():
        found, hops = steady(torch, options.seconds)
    value, probe = counted(found), warpmail.probe()
    row = {
        "id": "arb.host_copies", "value": value, "unit": "calls", "floor": None, "ratio": None, "p50": None, "p99": None,
        "p999": None, "backend": "cuda", "device": torch.cuda.get_device_name(), "driver": probe["driver"].get("Ok"),
        "commit": os.environ.get("WARPMAIL_COMMIT", probe["commit"]), "command": "python3 tools/python/trace_arbitration.py",
        "trace": {**found, "hops": hops},
    }  # fmt: skip
    print(f"arb.host_copies {value} calls in {found['seconds']:.1f} s, {hops} hops, {found['kernels']} kernels")
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
