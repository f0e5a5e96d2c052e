"""A page: what is handed from module to module. It lies in device memory, goes by pointer, and is never copied.

Its records are *letters*: a tensor's descriptor and nothing else. A module finds the page by the address in the letter,
and sends the letter on with the part of the page that its reader is meant to look at.
"""

import torch

SAID, NOTE, ENTRIES, CELLS = 48, 64, 32, 16  # tokens, tokens, memories, cells
RECORD = 4 + NOTE  # words of a record to the journal


class Layout:
    """Where things stand in a page, in words of 32 bits."""

    def __init__(self, dim, memory_dim):
        sizes = {
            "turn": 1, "speaker": 1, "said_n": 1, "note_n": 1, "entry": 1, "phase": 1, "positions": 2,
            "said": SAID, "note": NOTE, "used": ENTRIES, "puzzle": CELLS, "solution": CELLS,
            "hidden": dim, "embedding": memory_dim,
        }  # fmt: skip
        self.parts, at = {}, 0
        for name, size in sizes.items():
            self.parts[name] = (at, size)
            at += size
        self.words = -(-at // 64) * 64
        self.floats = {"hidden", "embedding"}


class Page:
    """A page in a body: read at once, changed by setting parts, written back at once."""

    def __init__(self, desk, row, layout):
        self._desk, self._row, self._layout = desk, row, layout
        self._words = desk.index_select(0, row[None])[0]
        self._set = {}

    def __getitem__(self, name):
        at, size = self._layout.parts[name]
        part = self._words[at : at + size]
        return part.view(torch.float32) if name in self._layout.floats else part.long()

    def scalar(self, name):
        return self[name][0]

    def __setitem__(self, name, value):
        at, size = self._layout.parts[name]
        value = value.reshape(-1)
        value = value.float().view(torch.int32) if name in self._layout.floats else value.int()
        self._set[at] = value.expand(size)

    def write(self):
        parts, at = [], 0
        for begin in sorted(self._set):
            parts += [self._words[at:begin], self._set[begin]]
            at = begin + len(self._set[begin])
        words = torch.cat([part for part in [*parts, self._words[at:]] if len(part)])
        self._desk.index_copy_(0, self._row[None], words[None])


class Desk:
    """All pages, a row each. The last row is nobody's: what has no page writes there."""

    def __init__(self, rows, layout, device):
        self.rows, self.layout = rows, layout
        self.words = torch.zeros(rows + 1, layout.words, dtype=torch.int32, device=device)
        self.base, self.stride = self.words.data_ptr(), layout.words * 4

    def open(self, row):
        return Page(self.words, row, self.layout)

    def row_of(self, letter, live):
        """Follows a letter's pointer: the row of the page that it is in."""
        row = torch.div(letter[0] + letter[1] - self.base, self.stride, rounding_mode="floor")
        return torch.where(live & (row == row.clamp(0, self.rows - 1)), row, self.rows)

    def parts(self, letter, row, letters):
        """The same letter about other parts of the page, each as a function that writes it somewhere: `wm_tensor` of abi.h, of
        which byte offset (word 1), first extent (2) and type code (the low byte of 18) change."""
        common = letter & letters.kept
        shift = row * self.stride - letter[0]
        return [
            lambda to, change=change: torch.addcmul(common + change, letters.offset, shift, out=to) for change in letters.changes
        ]


class Letters:
    """What is different in letters about some parts of a page; all that a step need not reckon."""

    def __init__(self, desk, names, words):
        device = desk.words.device
        self.offset, self.kept, self.changes = torch.zeros(words, dtype=torch.int64), torch.full((words,), -1), []
        self.offset[1], self.kept[1], self.kept[2], self.kept[18] = 1, 0, 0, ~255
        for name in names:
            at, size = desk.layout.parts[name] if name else (0, desk.layout.words)
            change = torch.zeros(words, dtype=torch.int64)
            change[1], change[2] = desk.base + 4 * at, size
            change[18] = 2 if name in desk.layout.floats else 0  # DLPack's float, int; all have 32 bits
            self.changes.append(change.to(device))
        self.offset, self.kept = self.offset.to(device), self.kept.to(device)


def concat(parts, width, fill=0):
    """The first n values of each (values, n) behind one another, in `width` places; and how many there are."""
    place = torch.arange(width, device=parts[0][0].device)
    out, begin = torch.full_like(place, fill), torch.zeros_like(place[0])
    for values, count in parts:
        at = place - begin
        out = torch.where((at >= 0) & (at < count), values.index_select(0, at.clamp(0, len(values) - 1)), out)
        begin = begin + count
    return out, begin
