"""Trains the HRM on 4x4 Sudokus and prints how many held-out puzzles it solves: python3 examples/python/flagship/train.py

The puzzles held out are those of 58 of the 288 solved grids: training never sees these grids. A minute on one GPU.
"""

import argparse
import pathlib
import time

import torch
import torch.nn.functional as F

from hrm import HRM, grids, is_solved, puzzles

WEIGHTS = pathlib.Path(__file__).with_name("hrm.pt")
HELD_OUT = 58


def split(device):
    """All solved grids, those to learn from, and those held out: always the same."""
    every = grids()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(4))
    return every.to(device), every[order[HELD_OUT:]].to(device), every[order[:HELD_OUT]].to(device)


@torch.inference_mode()
def accuracy(model, count=20000, device="cpu", seed=1):
    """The share of held-out puzzles that are solved wholly, and how many were tried."""
    every, _, held = split(device)
    cells, _ = puzzles(held, every, count, torch.Generator(device).manual_seed(seed))
    return is_solved(model(cells), cells).float().mean().item(), len(cells)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=60, help="how long to train")
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--out", type=pathlib.Path, default=WEIGHTS)
    options.add_argument("--check", action="store_true", help="only says how good the kept weights are")
    options = options.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(7)
    model = HRM().to(device)
    if options.check:
        model.load_state_dict({k: v.float() for k, v in torch.load(options.out, map_location=device).items()})
        print("held out: {:.2%} of {} puzzles solved".format(*accuracy(model, device=device)))
        return
    every, known, _ = split(device)
    generator = torch.Generator(device).manual_seed(8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    begin, shown, batches = time.monotonic(), 0.0, 0
    while (spent := time.monotonic() - begin) < options.seconds:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (batches + 1) / 200) * max(0.02, 1 - spent / options.seconds)
        cells, answers = puzzles(known, every, options.batch, generator)
        slow, fast = model.initial(len(cells))
        for _ in range(model.segments):
            logits, slow, fast = model.segment(cells, slow.detach(), fast.detach())
            loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten() - 1)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        batches += 1
        if spent - shown > options.seconds / 8:
            shown = spent
            print("{:4.0f} s, {} batches, loss {:.4f}, held out {:.2%} of {}".format(
                spent, batches, loss.item(), *accuracy(model, 4000, device)), flush=True)
    # What is kept is what is measured: 16 bits.
    half = {k: v.half() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.float() for k, v in half.items()})
    solved, count = accuracy(model, device=device)
    torch.save(half, options.out)
    print(f"{batches} batches; held out: {solved:.2%} of {count} puzzles solved; {options.out}, "
          f"{options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
