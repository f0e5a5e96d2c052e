"""The modules as stream modules of warpmail: pages go from mailbox to mailbox by pointer, and the arbiter wakes the readers.

The host posts each page once, and takes it when its conversation has ended. What is said leaves through the journal.
"""

import struct
import tempfile
import time

import numpy
import torch

import warpmail
from page import RECORD

SAID_TYPE = 1
LETTER = warpmail.TENSOR_BYTES


class End:
    """One end of a module as tensors: its head's length, and what its records carry."""

    def __init__(self, buffer, words):
        self.length = array(buffer.header)[:4].view(torch.int32)
        self.words = array(buffer)[: words.itemsize * words.count].view(words.dtype)


class Words:
    def __init__(self, dtype, itemsize, count):
        self.dtype, self.itemsize, self.count = dtype, itemsize, count


LETTERS, RECORDS = Words(torch.int64, 8, LETTER // 8), Words(torch.int32, 4, RECORD)


def array(buffer):
    """A step's buffer as a tensor of bytes."""
    if hasattr(buffer, "__cuda_array_interface__"):
        return torch.as_tensor(buffer, device="cuda")
    return torch.from_numpy(numpy.asarray(buffer))


class Step:
    """A module between its ends."""

    def __init__(self, module, desk, ins, outs, journal):
        self.module, self.desk, self.ins, self.outs, self.journal = module, desk, ins, outs, journal

    def __call__(self):
        lengths = torch.cat([end.length for end in self.ins])
        which = (lengths == LETTER).int().argmax()  # the other inputs have nothing
        letter = torch.stack([end.words for end in self.ins]).index_select(0, which[None])[0]
        live = (lengths == LETTER).any()  # not while it is captured
        row = self.desk.row_of(letter, live)
        page = self.desk.open(row)
        where, record = self.module.step(page, live)
        page.write()
        for n, (end, part) in enumerate(zip(self.outs, self.module.letters)):
            end.words.copy_(self.desk.part(letter, row, part))
            end.length.copy_(torch.where(where == n, LETTER, -1).int()[None])
        if record is not None:
            words, wanted = record
            self.journal.words.copy_(words)
            self.journal.length.copy_(torch.where(wanted, 4 * RECORD, -1).int()[None])


class Pipeline:
    def __init__(self, setting, mode="device", parks=False):
        """`parks`: the arbiter leaves its SM while the models compute, and each letter wakes it; else it waits there."""
        self.setting = setting
        self.graph = graph = warpmail.Builder("cuda" if setting.device == "cuda" else "twin", mode=mode)
        graph.budget(max_wait=0.1, idle_spin="never" if setting.device == "cuda" and not parks else None)
        self.pool = graph.pool(1 << 20)
        self.host, scribe = graph.host("you"), graph.resident("scribe", warpmail.DISCARD)
        nodes, outs, journals = {None: self.host}, {}, {}
        for name, module in setting.modules.items():
            letters = [(LETTER, warpmail.TENSOR)] * len(module.letters)
            says = [] if name.endswith("read") else [(4 * RECORD, SAID_TYPE)]
            nodes[name] = graph.steps(name, pushes=letters + says)
        counts = {name: 1 if name == "ada.read" else 0 for name in nodes}
        self.boxes = []  # mailboxes between modules, and which part of a page their letters are about
        opening = graph.mailbox(self.host, nodes["ada.read"])
        for name, ways in setting.ways.items():
            outs[name], module_letters = [], setting.modules[name].letters
            for n, way in enumerate(ways):
                box = graph.mailbox(nodes[name], nodes[way])
                self.boxes.append((box.name, module_letters[n]))
                if way is None:
                    home = box
                counts[way] += 1
                outs[name].append(n)
            if not name.endswith("read"):
                graph.mailbox(nodes[name], scribe, stride=512, tap="block")
                journals[name] = len(ways)
        self.runtime = runtime = graph.build()
        self.dir = tempfile.TemporaryDirectory()
        runtime.journal(self.dir.name)
        self.sender, self.receiver = runtime.sender(opening), runtime.receiver(home)
        self.steps = {}
        for name, module in setting.modules.items():
            node = nodes[name]
            ins = [End(runtime.step_input(node, n), LETTERS) for n in range(counts[name])]
            ends = [End(runtime.step_output(node, n), LETTERS) for n in outs[name]]
            journal = End(runtime.step_output(node, journals[name]), RECORDS) if name in journals else None
            self.steps[name] = Step(module, setting.desk, ins, ends, journal)
            self.give(node, self.steps[name])

    def give(self, node, step):
        """The body: on a GPU what the step does, captured once; on the twin the step itself."""
        if self.setting.device != "cuda":

            def call():
                with torch.inference_mode():
                    step()

            self.runtime.body(node, call=call)
            return
        step.graph = captured(step)
        self.runtime.body(node, graph=step.graph[0])

    def converse(self, turn=0, timeout=120.0):
        """One conversation a page, from the first letter to the last page home: seconds."""
        self.setting.open(turn)
        return self.letters(timeout)

    def letters(self, timeout=120.0):
        """The same with the pages that are there."""
        setting, begin = self.setting, time.perf_counter()
        for row in range(setting.rows):
            self.sender.post(setting.desk.words[row], timeout=timeout)
        for _ in range(setting.rows):
            self.receiver.take(timeout=timeout).tensor.release()
        return time.perf_counter() - begin

    def work(self):
        """Steps so far, and the time in them in nanoseconds."""
        time.sleep(0.02)  # the last step says that it has ended when its letter has gone out
        modules = [m for m in self.runtime.stats()["modules"] if m["name"] in self.steps]
        return sum(m["steps"] for m in modules), sum(m["busy_ns"] for m in modules)

    def said(self, skip=0):
        """What the journal has, in its order: (conversation, turn, who, tokens)."""
        self.runtime.drain()
        until = time.monotonic() + 10
        while (stats := self.runtime.journal_stats())["durable"] < stats["accepted"] and time.monotonic() < until:
            time.sleep(0.01)
        records = [r for r in warpmail.JournalReader(self.dir.name) if r.msg_type == SAID_TYPE]
        return [self.setting.said(struct.unpack(f"{RECORD}i", r.payload)) for r in records[skip:]]


def captured(function, keep=True):
    """A CUDA graph of what a function enqueues, on a stream of its own: library work space is a stream's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=keep)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
    return graph, stream
