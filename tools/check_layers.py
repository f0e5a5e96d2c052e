#!/usr/bin/env python3
"""Checks the layers of csrc: headers include downward only; orders, scopes and inline PTX live in one file.

usage: tools/check_layers.py [--self-test] [CSRC]
"""

import pathlib
import re
import shutil
import sys
import tempfile

# Low to high. A file may include what stands before it; files of one row are independent of each other.
LAYERS = [
    ["include/warpmail/abi.h"],
    ["protocol/atomics.hpp", "include/warpmail/warpmail.h"],
    ["protocol/lanes_host.hpp"],
    ["protocol/lanes.hpp", "protocol/bell.hpp"],
    ["protocol/slot.hpp", "protocol/lease.hpp", "protocol/ring.hpp", "protocol/refuse.hpp"],
    ["protocol/slot_lines.hpp"],
    ["protocol/slot_thread.hpp", "protocol/slot_warp.hpp", "protocol/slot_wide.hpp"],
    ["protocol/handle.hpp"],
    ["protocol/mailbox.hpp"],
    ["protocol/wait.hpp"],
    ["protocol/warp_ends.hpp", "protocol/durable.hpp"],
    ["protocol/warp_wide.hpp"],
    ["include/warpmail/device.hpp", "protocol/arbiter.hpp", "protocol/gate.hpp"],
    ["protocol/gate_tap.hpp"],
    ["protocol/gate_begin.hpp", "protocol/gate_end.hpp", "protocol/deliver.hpp", "protocol/record.hpp"],
    ["protocol/grant.hpp", "protocol/passing.hpp"],
    ["protocol/pass_lines.hpp"],
    ["protocol/pass.hpp"],
    ["protocol/carry.hpp"],
    ["protocol/ahead.hpp", "protocol/begin.hpp", "protocol/scan.hpp", "protocol/claim.hpp", "protocol/journal.hpp", "protocol/telemetry.hpp",
     "protocol/park.hpp", "protocol/budget.hpp"],
    ["protocol/context.hpp", "protocol/linger.hpp"],
    ["protocol/run.hpp", "protocol/chain.hpp"],
    ["protocol/roles.hpp", "protocol/step.hpp"],
    ["protocol/hand.hpp", "protocol/builtin.hpp", "twin/idle.hpp"],
    ["device/arbiter_block.hpp"],
    ["device/arbiter_kernel.cuh", "device/step_kernel.cuh", "twin/cpu_arbiter.hpp", "twin/twin_steps.hpp"],
    ["twin/twin_arbiter.hpp"],
    ["include/warpmail/handler.hpp", "twin/host.h"],
    ["device/warpmail.cu", "device/gates.cu", "twin/host.cpp"],
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
ORDERS_LIVE_IN = "protocol/atomics.hpp"
ORDER_WORDS = re.compile(r"\basm\b|memory_order|__atomic_|__threadfence|\bvolatile\b|%globaltimer;|__nanosleep")


def without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)


def resolve(csrc, name):
    for candidate in (name, "include/" + name):
        if (csrc / candidate).is_file():
            return candidate
    return None


def check(csrc):
    faults = []
    files = [p for p in sorted(csrc.rglob("*")) if p.suffix in (".h", ".hpp", ".cuh", ".cu", ".cpp")]
    for path in files:
        name = path.relative_to(csrc).as_posix()
        if name not in RANK:
            faults.append(f"{name}: stands in no layer; give it one in tools/check_layers.py")
            continue
        text = without_comments(path.read_text())
        for quote, included in re.findall(r'^\s*#\s*include\s+(["<])([^">]+)[">]', text, flags=re.M):
            target = resolve(csrc, included)
            if target is None:
                if quote == '"':
                    faults.append(f"{name}: includes {included}, which is not in csrc")
            elif target not in RANK:
                faults.append(f"{name}: includes {target}, which stands in no layer")
            elif RANK[target] >= RANK[name]:
                faults.append(f"{name}: includes {target}, which is not below it")
        if name != ORDERS_LIVE_IN:
            for number, line in enumerate(text.splitlines(), 1):
                if ORDER_WORDS.search(line):
                    faults.append(f"{name}:{number}: memory orders and PTX belong in {ORDERS_LIVE_IN}: {line.strip()}")
    return faults


def self_test(csrc):
    """Plants one violation of each kind in a copy; each must be found."""
    plants = {
        "protocol/slot.hpp": '#include "protocol/arbiter.hpp"\n',
        "protocol/mailbox.hpp": 'inline void f() { asm volatile("" ::: "memory"); }\n',
        "protocol/new_file.hpp": "\n",
        "protocol/wait.hpp": "#include <protocol/roles.hpp>\n",
    }
    for name, text in plants.items():
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "csrc"
            shutil.copytree(csrc, copy)
            with open(copy / name, "a") as file:
                file.write(text)
            if not any(fault.startswith(name) for fault in check(copy)):
                sys.exit(f"check_layers: a violation planted in {name} was not found")
    print(f"check_layers: all {len(plants)} planted violations were found")


def main():
    words = [w for w in sys.argv[1:] if not w.startswith("-")]
    csrc = pathlib.Path(words[0] if words else pathlib.Path(__file__).resolve().parent.parent / "csrc")
    faults = check(csrc)
    print("\n".join(faults) or "check_layers: every include goes down, and orders live in one file")
    if faults:
        sys.exit(1)
    if "--self-test" in sys.argv:
        self_test(csrc)


if __name__ == "__main__":
    main()
