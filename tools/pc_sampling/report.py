#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR MIT
"""Adds up what pc_sampling.cpp wrote, by source line: where a kernel's warps stood, and why.

    nvcc -std=c++17 -O3 -cubin -lineinfo -arch=sm_90 -Icsrc/include -Icsrc -Itools/cli \\
        -o echo.cubin tools/cli/bench_kernels/echo.cu
    nvdisasm -c -gi echo.cubin > echo.txt
    python3 tools/pc_sampling/report.py samples.csv echo_arbiter echo.txt --depth 3

The listing must be of the code that ran: the same source, compiler and architecture (-lineinfo changes no instruction).
A line of the report: share of the kernel's samples, instructions that were seen there, the source lines from the
outermost call inwards, and the most frequent reasons (Nsight Compute's documentation explains them).
"""

import argparse
import collections
import re


def listing(path, kernel):
    """Source lines, outermost first, of each instruction of a kernel, by its byte."""
    lines, stack, fresh, inside = {}, [], False, False
    for text in open(path):
        if text.startswith(".text."):
            inside = text.strip() == f".text.{kernel}:"
        elif inside and text.startswith("\t.section"):
            inside = False
        elif inside and (at := re.match(r'\s*//## File "([^"]+)", line (\d+)', text)):
            stack = stack if fresh else []
            fresh = True
            stack.append(f"{at[1].rsplit('/', 1)[-1]}:{at[2]}")
        elif inside and (code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s", text)):
            fresh = False
            lines[int(code[1], 16)] = stack[::-1]
    return lines


def samples(path, kernel, begin, end):
    found = collections.defaultdict(collections.Counter)
    for text in open(path):
        when, name, place, reason, n = text.rstrip("\n").split(",")
        # What was not issued is counted once more under its own name.
        if name == kernel and begin <= float(when) <= end and not reason.endswith("_not_issued"):
            found[int(place, 16)][reason.rsplit("stalled_", 1)[-1]] += int(n)
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("samples")
    options.add_argument("kernel")
    options.add_argument("listing")
    options.add_argument("--depth", type=int, default=3, help="calls to tell apart (default 3)")
    options.add_argument("--skip", type=int, default=2, help="outermost lines to leave out (default 2)")
    options.add_argument("--from", dest="begin", type=float, default=0, help="seconds; see the first column")
    options.add_argument("--to", type=float, default=float("inf"))
    options.add_argument("--least", type=float, default=0.5, help="percent; less is left out (default 0.5)")
    options = options.parse_args()
    lines = listing(options.listing, options.kernel)
    found = samples(options.samples, options.kernel, options.begin, options.to)
    strange = set(found) - set(lines)
    if not found or strange:
        raise SystemExit("no samples of this kernel" if not found else "the listing is not of the code that ran: "
                         f"{len(strange)} of {len(found)} places are not in it")
    rows = collections.defaultdict(lambda: [0, collections.Counter()])
    for place, reasons in found.items():
        path = " > ".join(lines[place][options.skip : options.skip + options.depth]) or "the kernel's own"
        rows[path][0] += 1
        rows[path][1].update(reasons)
    total = sum(sum(reasons.values()) for _, reasons in rows.values())
    for path, (places, reasons) in sorted(rows.items(), key=lambda row: -sum(row[1][1].values())):
        share = 100 * sum(reasons.values()) / total
        if share >= options.least:
            why = ", ".join(f"{name} {100 * n / total:.1f}" for name, n in reasons.most_common(4))
            print(f"{share:6.2f} % {places:5}  {path}  ({why})")


if __name__ == "__main__":
    main()
