"""The modules as stream modules of warpmail: pages go from mailbox to mailbox by pointer, and the arbiter wakes the readers.

The host posts each page once, and takes it when its conversation has ended. What is said leaves through the journal.
"""

import struct
import tempfile
import time

import numpy
import torch

import warpmail
from page import RECORD, Letters

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
    """A module between its ends. What is here is done in each step beside the module's own work, so it is little: what of the
    letters is known is reckoned before, and everything is written straight to where it goes."""

    def __init__(self, module, desk, live, ins, outs, journal):
        self.module, self.desk, self.live, self.ins, self.outs, self.journal = module, desk, live, ins, outs, journal
        self.letters = Letters(desk, module.letters, LETTER // 8)
        length = lambda n: torch.full((1,), n, dtype=torch.int32, device=desk.words.device)
        self.sends, self.says, self.nothing = length(LETTER), length(4 * RECORD), length(-1)

    def __call__(self):
        letter = self.ins[0].words
        for end in self.ins[1:]:  # one of them has a letter
            letter = torch.where(end.length == LETTER, end.words, letter)
        live = self.live[0] != 0  # not in a launch without a record, nor while it is captured
        row = self.desk.row_of(letter, live)
        page = self.desk.open(row)
        where, record = self.module.step(page, live)
        page.write()
        for n, (end, write) in enumerate(zip(self.outs, self.desk.parts(letter, row, self.letters))):
            write(end.words)
            torch.where(where == n, self.sends, self.nothing, out=end.length)
        if record is not None:
            words, wanted = record
            self.journal.words.copy_(words)
            torch.where(wanted, self.says, self.nothing, out=self.journal.length)


class Pipeline:
    def __init__(self, setting, mode="device", parks=False, always=False):
        """`parks`: the arbiter leaves its SM while the models compute, and so do the gates of modules that wait; each letter
        wakes them. Else they wait where they are, a warp each. `always`: bodies are no conditional nodes and run in launches
        without a letter too, which changes nothing; for that these must be rare, so it is for gates that do not park."""
        self.setting, self.always = setting, always
        self.graph = graph = warpmail.Builder("cuda" if setting.device == "cuda" else "twin", mode=mode)
        stays = setting.device == "cuda" and mode == "device" and not parks
        graph.budget(max_wait=0.1, idle_spin="never" if setting.device == "cuda" and not parks else None)
        options = {}
        if stays:  # a gate looks for as long as a launch of the arbiter stays
            graph.budget(residency=0.5)
            options = {"spin": None, "ahead": 1}
        self.pool = graph.pool(1 << 20)
        self.host, scribe = graph.host("you"), graph.resident("scribe", warpmail.DISCARD)
        nodes, outs, journals = {None: self.host}, {}, {}
        for name, module in setting.modules.items():
            letters = [(LETTER, warpmail.TENSOR)] * len(module.letters)
            says = [] if name.endswith("read") else [(4 * RECORD, SAID_TYPE)]
            nodes[name] = graph.steps(name, pushes=letters + says, **options)
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
            live = array(runtime.step_live(node)).view(torch.int64)
            self.steps[name] = Step(module, setting.desk, live, ins, ends, journal)
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
        self.runtime.body(node, graph=step.graph[0], always=self.always)

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
