"""What both programs run: models, modules, desk, and the opening of each conversation."""

import torch

from modules import ADA, BEN, CONTEXT, WIDTH, Memory, Reader, Reasoner, Talker
from page import SAID, Desk, Layout
from weights import Models

ENTRIES = [
    ("(I remember: the newspaper has a small Sudoku puzzle today.)", "0 2 0 4 0 0 1 0 0 1 0 0 4 0 2 0"),
    ("(I remember: there was a hard number puzzle, a Sudoku, on the train.)", "0 0 3 0 4 0 0 0 0 0 0 1 0 4 0 0"),
    ("(I remember: the school's puzzle club plays Sudoku with four rows on Fridays.)", "1 0 0 0 0 0 0 3 0 0 4 0 0 2 0 0"),
    ("(I remember: plants make sugar from light, water and air.)", None),
    ("(I remember: the moon is about 384,000 kilometres away.)", None),
    ("(I remember: Paris is the capital of France, and the Seine runs through it.)", None),
    ("(I remember: bees tell each other by a dance where flowers are.)", None),
    ("(I remember: water boils at a lower temperature on a mountain.)", None),
    ("(I remember: the first computers filled a whole room.)", None),
    ("(I remember: practice a little every day and you learn faster.)", None),
    ("(I remember: a logic puzzle has one answer that you can prove.)", None),
    ("(I remember: music and mathematics both live from patterns.)", None),
    ("(I remember: bread rises because yeast makes gas.)", None),
    ("(I remember: the sea is salty because rivers carry minerals into it.)", None),
    ("(I remember: the library closes at six in the evening.)", None),
    ("(I remember: a good question is half of the answer.)", None),
]
OPENINGS = [
    "Good morning! Shall we solve the small Sudoku puzzle in the newspaper together?",
    "Hello! Can you tell me how plants live from light, and then do a puzzle with me?",
    "Hi! Why is the sea salty, and what else do you know about water?",
    "Hello! I have a hard number puzzle with four rows. Can you help?",
]


class Setting:
    def __init__(self, device, tiny, rows, chunk, turns):
        self.device, self.rows, self.turns = device, rows, turns
        self.models = models = Models(device, rows, CONTEXT, WIDTH, tiny)
        entries = [(text, cells and [int(c) for c in cells.split()]) for text, cells in ENTRIES]
        self.modules = {
            "ada.read": Reader(models, ADA), "ada.talk": Talker(models, ADA, chunk),
            "ben.read": Reader(models, BEN), "ben.talk": Talker(models, BEN, chunk),
            "memory": Memory(models, entries, turns), "hrm": Reasoner(models),
        }  # fmt: skip
        # Where each module's letters go, by number; None: home.
        readers = ["ada.read", "ben.read"]
        self.ways = {
            "ada.read": ["ada.talk"], "ada.talk": ["ada.talk", "memory"],
            "ben.read": ["ben.talk"], "ben.talk": ["ben.talk", "memory"],
            "memory": [*readers, "hrm", None], "hrm": readers,
        }  # fmt: skip
        self.desk = Desk(rows, Layout(models.talkers[0].dim, models.minilm.dim), device)

    @torch.inference_mode()
    def open(self, turn=0):
        """Fresh pages with what is said first, and empty caches. The only time that something goes from host to device."""
        layout, pages = self.desk.layout, torch.zeros(self.rows + 1, self.desk.layout.words, dtype=torch.int32)
        for row in range(self.rows):
            tokens = self.models.text.encode(self.opening(row))[:SAID]
            for name, value in [("said", tokens), ("said_n", [len(tokens)]), ("turn", [turn])]:
                at, _ = layout.parts[name]
                pages[row, at : at + len(value)] = torch.tensor(value, dtype=torch.int32)
        self.desk.words.copy_(pages)
        for talker in self.models.talkers:
            talker.keys.zero_(), talker.values.zero_()
        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()  # not of the device: modules that wait for a letter are on it

    def opening(self, row):
        return OPENINGS[row % len(OPENINGS)]

    def said(self, words):
        """A record of the journal: (conversation, turn, who, tokens)."""
        row, turn, who, count = words[:4]
        return row, turn, who, list(words[4 : 4 + count])
