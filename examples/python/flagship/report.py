"""Figures: how they are counted, and how they are shown."""

import os
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

    def row(name, value, unit, floor=None, spread=()):
        spread = sorted(spread)
        at = lambda q: spread[min(len(spread) - 1, int(q * len(spread)))] if spread else None
        rows.append({"id": name, "value": value, "unit": unit, "floor": floor, "ratio": value / floor if floor else None,
                     "p50": at(0.5), "p99": at(0.99), "p999": None, **common})  # fmt: skip

    for name, run in runs.items():
        floor = median(run["tokens"] / s for s in run["beside"]) if "beside" in run else None
        row(f"flagship.tokens.{name}", rate[name], "tokens/s", floor, [run["tokens"] / s for s in run["seconds"]])
    if cuda:
        # Of matched rounds, so that what drifts is in both.
        pairs = [b / s for b, s in zip(runs["device"]["beside"], runs["device"]["seconds"])]
        row("flagship.tokens_ratio", median(pairs), "ratio", spread=pairs)
        row("flagship.tokens_ratio.waits", rate["device"] / rate["plain_waits"], "ratio")
    for name in ("device", "device_parking", "cpu"):
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
        print(f"{row['id']:<32} {value:>12} {row['unit']}{ratio}")
    print(f"{runs['device']['journal']} records went to the journal, {runs['device']['tokens']} tokens were said in each round")
