"""Figures: how they are counted, and how they are shown."""

import ctypes
import math
import os
import statistics
import sys

import torch


def bytes_by_pointer(pipeline, before, after):
    """What the letters between two looks at the counters pointed to."""
    layout, total = pipeline.setting.desk.layout, 0
    count = lambda stats, box: next(m["written"] for m in stats["mailboxes"] if m["name"] == box)
    for box, part in pipeline.boxes:
        _, size = layout.parts[part] if part else (0, layout.words)
        total += 4 * size * (count(after, box) - count(before, box))
    return total


def talk_us(before, after):
    """What a talker's step took in the mean, between two looks at the counters: microseconds."""
    total = lambda stats, field: sum(m[field] for m in stats["modules"] if m["name"].endswith(".talk"))
    return (total(after, "busy_ns") - total(before, "busy_ns")) / max(1, total(after, "steps") - total(before, "steps")) / 1e3


def nodes(graph):
    """Of a captured graph: how many kernels, copies and fills it has."""
    cuda, handle, count, kind = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t(), ctypes.c_int()
    cuda.cuGraphGetNodes(handle, None, ctypes.byref(count))
    all_nodes = (ctypes.c_void_p * count.value)()
    cuda.cuGraphGetNodes(handle, all_nodes, ctypes.byref(count))
    kinds = []
    for node in all_nodes:
        cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
        kinds.append(kind.value)
    return [kinds.count(of) for of in range(3)]  # CU_GRAPH_NODE_TYPE_KERNEL, _MEMCPY, _MEMSET


def interval(values):
    """The middle of all, and within which two of them the median lies with at least 95 %, whatever the distribution: by how often
    so many of n would fall on one side of it. Of fewer than six no two say that; then the outermost."""
    values, n = sorted(values), len(values)
    at_most = lambda k: sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    k = max([0, *(k for k in range(1, n // 2) if at_most(k) <= 0.025)])
    return statistics.median(values), values[k], values[n - 1 - k]


def figures(setting, runs, median):
    import warpmail

    probe = warpmail.probe()
    cuda = setting.device == "cuda"
    rate = {name: median(run["tokens"] / s for s in run["seconds"]) for name, run in runs.items()}
    common = {
        "backend": "cuda" if cuda else "twin",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "driver": probe["driver"].get("Ok"),
        "commit": os.environ.get("WARPMAIL_COMMIT", probe["commit"]),
        "command": " ".join(["python3 examples/python/flagship", *sys.argv[1:]]),
    }
    rows = []

    def row(name, value, unit, floor=None, spread=(), within=None):
        spread = sorted(spread)
        at = lambda q: spread[min(len(spread) - 1, int(q * len(spread)))] if spread else None
        rows.append({"id": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor if floor else None,
                     "p50": at(0.5), "p99": at(0.99), "p999": None, "within": within, **common})  # fmt: skip

    for name, run in runs.items():
        floor = median(run["tokens"] / s for s in run["beside"]) if "beside" in run else None
        row(f"flagship.tokens.{name}", rate[name], "tokens/s", floor, [run["tokens"] / s for s in run["seconds"]])
    for name, end in [("device", ""), ("device_always", ".always"), ("device_skips", ".skips"), ("device_parking", ".parking")]:
        if cuda and name in runs:
            # Of matched pairs, so that what drifts is in both.
            pairs = [b / s for b, s in zip(runs[name]["beside"], runs[name]["seconds"])]
            middle, *within = interval(pairs)
            row(f"flagship.tokens_ratio{end}", middle, "ratio", spread=pairs, within=within)
    if cuda:
        for kind, of in zip(("kernels", "copies", "fills"), runs["device"]["nodes"]):
            row(f"flagship.talk.{kind}", of, "nodes")
        row("flagship.tokens_ratio.waits", rate["device"] / rate["plain_waits"], "ratio")
        for name, run in runs.items():
            if "talk_us" in run:
                row(f"flagship.talk.{name}", run["talk_us"], "us", runs["plain"]["talk_us"])
    for name in ("device", "device_always", "device_skips", "device_parking", "cpu"):
        if name not in runs:
            continue
        run = runs[name]
        if setting.rows == 1:
            row(f"flagship.hop.{name}", median(run["hops"]), "us", None, run["hops"])
        row(f"flagship.steps.{name}", run["steps"], "steps")
        row(f"flagship.pointer_bytes.{name}", run["by_pointer"], "bytes")
    if cuda:
        row("flagship.host_bytes", runs["device"]["host_bytes"], "bytes")
        row("flagship.host_bytes.cpu", runs["cpu"]["host_bytes"], "bytes")
        row("flagship.host_bytes.plain", runs["plain"]["host_bytes"], "bytes")
    return rows


def table(rows, runs):
    print()
    for row in rows:
        ratio = f"   {row['ratio']:.3f} of plain PyTorch" if row["ratio"] is not None else ""
        value = f"{row['value']:.3f}" if isinstance(row["value"], float) else row["value"]
        within = f"   {row['within'][0]:.3f} to {row['within'][1]:.3f} with 95 %" if row["within"] else ""
        print(f"{row['id']:<32} {value:>12} {row['unit']}{ratio}{within}")
    print(f"{runs['device']['journal']} records went to the journal, {runs['device']['tokens']} tokens were said in each round")
