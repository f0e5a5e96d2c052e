"""What the modules do in a step. All of it is tensors, so it captures: nothing here waits for the host or decides there.

Each `step(page, live)` changes a page and returns which of the module's letters goes out, by number, and a record for
the journal with whether to write it. `live` is false where there is no page to work on: then nothing may change.
"""

import torch

from page import CELLS, ENTRIES, NOTE, RECORD, SAID, concat
from weights import PIECES

ADA, BEN, REASONER, MEMORY, OPENING = range(5)
NAMES = ["Ada", "Ben", "HRM", "memory", "you"]
WIDTH = 176  # tokens that a talker reads in one step
CONTEXT = 1024

PERSONAS = [
    "You are Ada, a cheerful teacher. You answer in one short sentence.",
    "You are Ben, a curious student. You answer in one short sentence and ask about what your friend remembers.",
]


def record(page, kind, tokens, count, row):
    """For the journal: conversation, turn, who, how many tokens, tokens."""
    head = torch.stack([row, page.scalar("turn"), kind, count])
    tail = torch.zeros(RECORD - 4 - len(tokens), dtype=torch.int64, device=tokens.device)
    return torch.cat([head, tokens, tail])


class Reader:
    """Reads what was said and remembered into a talker's cache; its hidden state is the letter to the talker."""

    letters = ["hidden"]

    def __init__(self, models, who):
        self.model, self.who, device = models.talkers[who], who, models.device
        tokens = lambda text: (torch.tensor(models.text.encode(text), device=device), len(models.text.encode(text)))
        self.persona = tokens(f"<|im_start|>system\n{PERSONAS[who]}<|im_end|>\n<|im_start|>user\n")
        self.again = tokens("<|im_end|>\n<|im_start|>user\n")
        self.close = tokens("<|im_end|>\n<|im_start|>assistant\n")

    def step(self, page, live):
        at = page["positions"]
        first = at[self.who] == 0
        parts = [
            (self.persona[0], torch.where(first, self.persona[1], 0)),
            (self.again[0], torch.where(first, 0, self.again[1])),
            (page["note"], page.scalar("note_n")),
            (page["said"], page.scalar("said_n")),
            self.close,
        ]
        tokens, count = concat(parts, WIDTH)
        hidden = self.model.forward(tokens, page._row.clamp(max=page._desk.shape[0] - 2), at[self.who], live)
        mine = torch.arange(2, device=at.device) == self.who
        page["positions"] = torch.where(mine, at + count, at)
        page["hidden"] = hidden.index_select(0, (count - 1)[None])
        page["said_n"], page["note_n"] = torch.zeros_like(count), torch.zeros_like(count)
        page["speaker"], page["phase"] = torch.full_like(count, self.who), torch.ones_like(count)
        return torch.zeros_like(count), None


class Talker:
    """Says `chunk` tokens a step, and sends its page to itself until it has said all."""

    letters = ["hidden", "said"]
    ON, DONE = 0, 1

    def __init__(self, models, who, chunk):
        self.model, self.who, self.chunk, self.end = models.talkers[who], who, chunk, models.end
        device, vocabulary = models.device, len(self.model.embed)
        generator = torch.Generator().manual_seed(11 + who)
        noise = torch.rand(vocabulary + 8192, generator=generator)
        self.noise = (-torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))).to(device)
        self.ids = torch.arange(vocabulary, device=device)
        self.places = torch.arange(SAID, device=device)

    def choose(self, hidden, said, count, turn):
        """One token: what was said before is less likely; the same in every run, so that runs can be compared."""
        logits = self.model.logits(hidden.to(self.model.embed.dtype))
        known = torch.where(self.places < count, -1.5, 0.0)
        logits = logits.index_add_(0, said, known)
        window = (turn * 2657 + count * 613) % 8192
        return (logits + 0.6 * self.noise.index_select(0, window + self.ids)).argmax()

    def step(self, page, live):
        said, count, at = page["said"], page.scalar("said_n"), page["positions"]
        hidden, position, turn = page["hidden"], at[self.who], page.scalar("turn")
        row = page._row.clamp(max=page._desk.shape[0] - 2)
        going = live
        for _ in range(self.chunk):
            token = self.choose(hidden, said, count, turn)
            more = going & (token != self.end)
            said = torch.where(more & (self.places == count), token, said)
            count = count + more
            after = self.model.forward(token[None], row, position, more)[0]
            hidden = torch.where(more, after.float(), hidden)
            position = position + more
            going = more & (count < SAID)
        mine = torch.arange(2, device=at.device) == self.who
        page["said"], page["said_n"], page["hidden"] = said, count, hidden
        page["positions"] = torch.where(mine, position, at)
        page["phase"] = going
        done = (~going).long()
        who = torch.full_like(count, self.who)
        return done, (record(page, who, said, count, page._row), ~going)


class Memory:
    """Turns what was said into a vector, finds the nearest memory that this conversation has not had, and decides where the
    page goes: to the reasoner if that memory is a puzzle, else to the other talker, or home."""

    letters = ["note", "note", "puzzle", None]
    HRM, HOME = 2, 3

    def __init__(self, models, entries, turns):
        """`entries`: (text, cells of a puzzle or None). `turns`: after how many a conversation ends."""
        self.models, self.turns, device = models, turns, models.device
        tokens = [models.text.encode(text)[:NOTE] for text, _ in entries]
        self.lengths = torch.tensor([len(t) for t in tokens], device=device)
        self.tokens = torch.tensor([t + [0] * (NOTE - len(t)) for t in tokens], device=device)
        self.puzzles = torch.tensor([cells or [0] * CELLS for _, cells in entries], device=device)
        self.is_puzzle = torch.tensor([cells is not None for _, cells in entries], device=device)
        self.vectors = torch.stack([self.embed(self.tokens[n], self.lengths[n]) for n in range(len(entries))])
        self.missing = torch.zeros(ENTRIES, device=device)
        self.missing[len(entries) :] = 100

    def embed(self, tokens, count):
        m = self.models
        pieces, counts = m.pieces.index_select(0, tokens), m.counts.index_select(0, tokens)
        said = torch.arange(len(tokens), device=tokens.device) < count
        meant = torch.arange(pieces.shape[1], device=tokens.device) < torch.where(said, counts, 0)[:, None]
        place = meant.flatten().cumsum(0)
        place = torch.where(meant.flatten(), place, PIECES).clamp(max=PIECES)
        out = torch.zeros(PIECES + 1, dtype=torch.int64, device=tokens.device).scatter_(0, place, pieces.flatten())[:PIECES]
        total = meant.sum().clamp(max=PIECES - 2) + 1
        spot = torch.arange(PIECES, device=tokens.device)
        out = torch.where(spot == 0, m.brackets[0], torch.where(spot == total, m.brackets[1], out))
        return m.minilm.forward(out, total + 1)

    def step(self, page, live):
        said, count, turn = page["said"], page.scalar("said_n"), page.scalar("turn") + 1
        vector = self.embed(said, count)
        near = torch.mv(self.vectors, vector)
        near = torch.cat([near, near.new_zeros(ENTRIES - len(near))]) - self.missing - 10.0 * page["used"]
        entry = near.argmax().clamp(max=len(self.vectors) - 1)
        page["used"] = page["used"] | (torch.arange(ENTRIES, device=entry.device) == entry)
        page["embedding"], page["entry"], page["turn"] = vector, entry, turn
        note = self.tokens.index_select(0, entry[None])[0]
        length = self.lengths.index_select(0, entry[None])[0]
        page["note"], page["note_n"] = note, length
        page["puzzle"] = self.puzzles.index_select(0, entry[None])[0]
        full = (page["positions"] > CONTEXT - WIDTH - SAID).any() | (turn >= self.turns)
        puzzle = self.is_puzzle.index_select(0, entry[None])[0]
        other = 1 - page.scalar("speaker")
        where = torch.where(full, self.HOME, torch.where(puzzle, self.HRM, other))
        kind = torch.full_like(count, MEMORY)
        return where, (record(page, kind, note, length, page._row), ~full)


class Reasoner:
    """Solves the puzzle on the page and says so in the talkers' tokens."""

    letters = ["note", "note"]

    def __init__(self, models):
        self.model, device = models.hrm, models.device
        encode = models.text.encode
        rows = ", ".join(" ".join("0" * 4) for _ in range(4))
        tokens = encode(f" The solution of the Sudoku, row by row, is {rows}.")
        zero = encode("0")[0]
        places = [n for n, token in enumerate(tokens) if token == zero]
        if len(places) != CELLS:
            raise ValueError(f"{len(places)} digits in the reasoner's sentence")
        at = lambda n: places.index(n) if n in places else 0
        self.cell_of = torch.tensor([at(n) for n in range(NOTE)], device=device)
        self.is_digit = torch.tensor([n in places for n in range(NOTE)], device=device)
        self.digits = torch.tensor([encode(str(n))[0] for n in range(10)], device=device)
        pad = lambda t: torch.tensor(t + [0] * (NOTE - len(t)), device=device)
        self.sentence, self.length = pad(tokens), len(tokens)
        sorry = encode(" The Sudoku has no solution that I can find.")
        self.sorry, self.sorry_length = pad(sorry), len(sorry)

    def step(self, page, live):
        from hrm import is_solved

        cells = page["puzzle"]
        answer = self.model(cells[None])[0]
        solved = is_solved(answer[None], cells[None])[0]
        said = torch.where(self.is_digit, self.digits.index_select(0, answer.index_select(0, self.cell_of)), self.sentence)
        note = torch.where(solved, said, self.sorry)
        count = torch.where(solved, self.length, self.sorry_length)
        page["solution"], page["note"], page["note_n"] = answer, note, count
        kind = torch.full_like(count, REASONER)
        other = 1 - page.scalar("speaker")
        return other, (record(page, kind, note, count, page._row), torch.ones_like(solved))
