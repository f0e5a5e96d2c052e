"""The same modules with plain PyTorch: streams, events, and a host that reads each module's decision and launches the next.

This is what the pipeline is measured against, so it is as quick as it can be made without hurting readability: everything is
captured, the host polls and never sleeps, and with `ahead` a talker's next step is enqueued before the last one's decision is known.
"""

import time

import torch

from page import RECORD
from pipeline import captured


class Plain:
    def __init__(self, setting, ahead=True):
        self.setting, self.ahead = setting, ahead
        self.streams, self.steps = {}, {}
        for name, module in setting.modules.items():
            for row in range(setting.rows):
                for turn in range(2 if name.endswith("talk") else 1):
                    self.steps[name, row, turn] = PlainStep(self, name, module, row)
        self.copied = 0

    def converse(self, turn=0):
        """One conversation a page: seconds, and what was said."""
        setting = self.setting
        setting.open(turn)
        said, queues = [], {}
        begin = time.perf_counter()
        for row in range(setting.rows):
            queues[row] = [self.launch("ada.read", row, 0)]
        while queues:
            for row, queue in list(queues.items()):
                step = queue[0]
                if not step.ready():
                    continue
                queue.pop(0)
                where = int(step.where)
                if step.wanted is not None and int(step.wanted):
                    said.append(setting.said(step.words.tolist()))
                self.copied += 16 + (4 * RECORD if step.wanted is not None else 0)
                way = setting.ways[step.name][where]
                if way is None:
                    del queues[row]
                    continue
                if way == step.name:  # goes on: its next step is under way if it was enqueued ahead
                    if not queue:
                        queue.append(self.launch(way, row, 1 - step.turn))
                else:
                    queue[:] = [self.launch(way, row, 0, after=step)]
                if self.ahead and way.endswith("talk") and len(queue) == 1:
                    queue.append(self.launch(way, row, 1 - queue[0].turn))
        spent = time.perf_counter() - begin
        for stream in self.streams.values():  # a step that was enqueued ahead in vain is nobody else's to pay
            stream.synchronize()
        return spent, said

    def talk_us(self, times=20):
        """What a talker's graph takes by itself, one behind the other: microseconds. What it says then is nobody's."""
        self.setting.open()
        spent = []
        for name in ("ada.talk", "ben.talk"):
            step, ends = self.steps[name, 0, 0], [torch.cuda.Event(enable_timing=True) for _ in "be"]
            with torch.cuda.stream(step.stream):
                step.graph.replay()
                ends[0].record()
                for _ in range(times):
                    step.graph.replay()
                ends[1].record()
            ends[1].synchronize()
            spent.append(1e3 * ends[0].elapsed_time(ends[1]) / times)
        return sum(spent) / len(spent)

    def launch(self, name, row, turn, after=None):
        step = self.steps[name, row, turn]
        step.turn = turn
        step.launch(after)
        return step


class PlainStep:
    """One module's step on one page, captured; what it decides is copied to the host."""

    def __init__(self, plain, name, module, row):
        setting = plain.setting
        self.name, self.module, self.desk, self.turn = name, module, setting.desk, 0
        self.cuda = setting.device == "cuda"
        host = lambda n, dtype: torch.zeros(n, dtype=dtype, pin_memory=self.cuda)
        self.where = host(1, torch.int64)
        records = not name.endswith("read")
        self.wanted, self.words = (host(1, torch.int64), host(RECORD, torch.int32)) if records else (None, None)
        device = setting.device
        self.row, self.nobody = torch.tensor(row, device=device), torch.tensor(setting.rows, device=device)
        if self.cuda:
            self.graph, own = captured(self.enqueue, keep=False)
            self.stream = plain.streams.setdefault((name, row), own)
            self.event = torch.cuda.Event()

    def enqueue(self):
        """A talker's step that was enqueued ahead finds that its utterance has ended, and changes nothing."""
        page = self.desk.open(self.row)
        live = torch.ones_like(self.row, dtype=torch.bool)
        if self.name.endswith("talk"):
            live = (page.scalar("phase") == 1) & (page.scalar("speaker") == self.module.who)
            page = self.desk.open(torch.where(live, self.row, self.nobody))
        where, record = self.module.step(page, live)
        page.write()
        self.where.copy_(where[None], non_blocking=True)
        if record is not None:
            self.words.copy_(record[0].int(), non_blocking=True)
            self.wanted.copy_(record[1][None], non_blocking=True)

    def launch(self, after):
        if not self.cuda:
            with torch.inference_mode():
                self.enqueue()
            return
        with torch.cuda.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after.event)
            self.graph.replay()
            self.event.record()

    def ready(self):
        return not self.cuda or self.event.query()
