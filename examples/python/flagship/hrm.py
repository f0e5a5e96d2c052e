"""A hierarchical reasoning model for 4x4 Sudokus: a slow and a fast recurrent module over sixteen cells, and its puzzles."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

CELLS, DIGITS = 16, 4


def grids():
    """All 288 solved grids, as a tensor [288, 16] of 1 to 4."""
    rows = list(itertools.permutations(range(1, 5)))
    found = []
    for four in itertools.product(rows, repeat=4):
        if all(len({r[c] for r in four}) == 4 for c in range(4)):
            boxes = ({four[r + i][c + j] for i in (0, 1) for j in (0, 1)} for r in (0, 2) for c in (0, 2))
            if all(len(box) == 4 for box in boxes):
                found.append(sum(four, ()))
    return torch.tensor(found)


def puzzles(solved, every, count, generator, clues=(4, 11)):
    """Random puzzles of the grids `solved`, each with exactly one solution among `every` grid: cells (0: open) and answers."""
    device = solved.device
    answers = solved[torch.randint(len(solved), (count,), generator=generator, device=device)]
    shown = torch.randint(*clues, (count, 1), generator=generator, device=device)
    rank = torch.rand(count, CELLS, generator=generator, device=device).argsort(-1)
    cells = torch.where(rank < shown, answers, 0)
    fits = ((every[None] == cells[:, None]) | (cells[:, None] == 0)).all(-1).sum(-1)
    return cells[fits == 1], answers[fits == 1]


def is_solved(answer, cells):
    """Whether each answer [n, 16] keeps the clues and has every digit once in each row, column and box."""
    grid = answer.view(-1, 4, 4)
    boxes = grid.view(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)
    groups = torch.cat([grid, grid.transpose(1, 2), boxes], 1)
    digits = torch.arange(1, 5, device=answer.device)
    whole = (groups[..., None] == digits).any(2).all(-1).all(-1)
    return whole & ((answer == cells) | (cells == 0)).all(-1)


class Block(nn.Module):
    """Attention among the cells, then a gated product of each."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x):
        n, cells, dim = x.shape
        q, k, v = self.qkv(x).view(n, cells, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, cells, dim)
        x = F.rms_norm(x + self.out(mixed), (dim,))
        gate, up = self.gate_up(x).chunk(2, -1)
        return F.rms_norm(x + self.down(F.silu(gate) * up), (dim,))


class HRM(nn.Module):
    """`segments` times: `cycles` of the slow module, each after `steps` of the fast one. Both see the other's state, the fast
    one the puzzle too. Training learns after each segment and lets only its last steps have gradients."""

    def __init__(self, dim=128, heads=4, cycles=2, steps=3, segments=4):
        super().__init__()
        self.cycles, self.steps, self.segments = cycles, steps, segments
        self.cell, self.place = nn.Embedding(DIGITS + 1, dim), nn.Parameter(torch.randn(CELLS, dim) * 0.3)
        self.slow = nn.ModuleList(Block(dim, heads) for _ in range(2))
        self.fast = nn.ModuleList(Block(dim, heads) for _ in range(2))
        self.head = nn.Linear(dim, DIGITS)
        self.register_buffer("start", torch.randn(2, 1, CELLS, dim))

    def initial(self, n):
        return self.start[0].expand(n, -1, -1), self.start[1].expand(n, -1, -1)

    def segment(self, cells, slow, fast):
        given = self.cell(cells) + self.place
        total = self.cycles * self.steps
        for step in range(total):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step == total - 1):
                x = fast + slow + given
                for block in self.fast:
                    x = block(x)
                fast = x
                if (step + 1) % self.steps == 0:
                    x = slow + fast
                    for block in self.slow:
                        x = block(x)
                    slow = x
        return self.head(slow), slow, fast

    def forward(self, cells):
        """Cells [n, 16] of 0 to 4 -> answers [n, 16] of 1 to 4."""
        slow, fast = self.initial(len(cells))
        for _ in range(self.segments):
            logits, slow, fast = self.segment(cells, slow, fast)
        return logits.argmax(-1) + 1
