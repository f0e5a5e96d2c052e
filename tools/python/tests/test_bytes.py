"""Records of bytes through mailboxes, on the twin."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import echo

import warpmail


def test_probe_says_what_is_there():
    probe = warpmail.probe()
    assert probe["best"] in ("cuda", "twin") and probe["host_threads"] >= 1
    assert probe["version"] == warpmail.__version__


def test_a_record_comes_back(ring):
    _, sender, receiver = ring
    sender.post(b"hello", 7, timeout=60)
    record = receiver.take(timeout=60)
    assert (record.msg_type, record.payload) == (7, b"hello")
    assert (sender.posted, receiver.taken, sender.payload_bytes) == (1, 1, 248)


def test_order_and_content_of_many():
    with echo(stride=64, slots=8) as (_, sender, receiver):
        for i in range(500):
            sender.post(i.to_bytes(4, "little"), i % 100, timeout=20)
            if i >= 4:
                record = receiver.take(timeout=20)
                assert (int.from_bytes(record.payload, "little"), record.msg_type) == (i - 4, (i - 4) % 100)


def test_batches():
    with echo(slots=64) as (_, sender, receiver):
        assert sender.try_post_batch(b"aabbcc", 2, 3) == 3
        got = []
        until = time.monotonic() + 20
        while len(got) < 3 and time.monotonic() < until:
            got += receiver.try_take_batch(2)
        assert [(r.payload, r.msg_type) for r in got] == [(b"aa", 3), (b"bb", 3), (b"cc", 3)]
        assert receiver.try_take_batch() == []
        with pytest.raises(warpmail.Refused, match="whole number"):
            sender.try_post_batch(b"abc", 2)


def test_full_empty_timeout_too_long():
    graph = warpmail.Builder("twin")
    host, other = graph.host("host"), graph.resident("sink", warpmail.RELAY)
    there = graph.mailbox(host, other, slots=2)
    back = graph.mailbox(other, host, slots=2)
    runtime = graph.build()  # never started: nobody takes
    sender, receiver = runtime.sender(there), runtime.receiver(back)
    sender.try_post(b"1")
    sender.try_post(b"2")
    with pytest.raises(warpmail.Full):
        sender.try_post(b"3")
    with pytest.raises(warpmail.Timeout, match="host->sink"):
        sender.post(b"3", timeout=0.05)
    with pytest.raises(warpmail.Empty):
        receiver.try_take()
    with pytest.raises(warpmail.Timeout, match="sink->host"):
        receiver.take(timeout=0)
    with pytest.raises(warpmail.PayloadTooLong, match="carry 248"):
        sender.try_post(bytes(249))
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(warpmail.Refused, match="timeout"):
            receiver.take(timeout=bad)
    assert issubclass(warpmail.Full, warpmail.Error)


def test_bad_graphs_are_refused_by_name():
    graph = warpmail.Builder("twin")
    host = graph.host("host")
    with pytest.raises(warpmail.Refused, match="taken"):
        graph.host("host")
    with pytest.raises(warpmail.Refused, match="priority 9"):
        graph.resident("r", warpmail.RELAY, priority=9)
    with pytest.raises(warpmail.Refused, match="RELAY"):
        graph.resident("r", 99)
    relay = graph.resident("relay", warpmail.RELAY)
    with pytest.raises(warpmail.Refused, match="stride 100"):
        graph.mailbox(host, relay, stride=100)
    with pytest.raises(warpmail.Refused, match="power of two"):
        graph.mailbox(host, relay, slots=3)
    with pytest.raises(warpmail.Refused, match="another graph"):
        warpmail.Builder("twin").mailbox(host, relay)
    with pytest.raises(warpmail.Refused, match="device"):
        warpmail.Builder("tpu")
    with pytest.raises(warpmail.Refused, match="residency"):
        graph.budget(residency=5.0)
    with pytest.raises(warpmail.Refused, match="sms 2"):
        graph.budget(sms=2)
    graph.budget(sms=1)
    graph.mailbox(host, relay)
    graph.build()
    with pytest.raises(warpmail.StateError, match="built"):
        graph.host("late")


def test_one_end_each_and_no_foreign_mailbox(ring):
    runtime, _, _ = ring
    graph = warpmail.Builder("twin")
    a, b = graph.host("a"), graph.host("b")
    mailbox = graph.mailbox(a, b)
    with pytest.raises(warpmail.Refused, match="another graph"):
        runtime.sender(mailbox)
    other = graph.build()
    other.sender(mailbox)
    with pytest.raises(warpmail.Error):
        other.sender(mailbox)


def test_stats_drain_and_states(ring):
    runtime, sender, receiver = ring
    assert runtime.state == "running" and runtime.device["backend"] == "twin"
    for _ in range(3):
        sender.post(b"x")
    runtime.drain(20)
    assert [m["name"] for m in runtime.stats()["mailboxes"]] == ["host->relay", "relay->host"]
    for _ in range(3):
        receiver.take()
    runtime.stop()
    runtime.stop()
    assert runtime.state == "stopped"
    with pytest.raises(warpmail.StateError):
        runtime.start()


def test_quiesce(ring):
    runtime, sender, receiver = ring
    with runtime.quiesce():
        assert runtime.state == "quiet"
        sender.post(b"waits")
        with pytest.raises(warpmail.StateError, match="quiesced"):
            runtime.stats()
        with pytest.raises(warpmail.Timeout):
            receiver.take(timeout=0.05)
    assert receiver.take(timeout=20).payload == b"waits"
    with pytest.raises(ZeroDivisionError):
        with runtime.quiesce():
            raise ZeroDivisionError
    assert runtime.state == "running"
    runtime.stop()
    with pytest.raises(warpmail.StateError):
        with runtime.quiesce():
            pass
    assert runtime.state == "stopped"


def test_journal_and_checkpoint(tmp_path):
    def graph():
        graph = warpmail.Builder("twin")
        host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
        there = graph.mailbox(host, relay, tap="block")
        back = graph.mailbox(relay, host)
        return graph.build(), there, back

    runtime, there, back = graph()
    runtime.journal(tmp_path)
    sender, receiver = runtime.sender(there), runtime.receiver(back)
    with runtime:
        sender.post(b"kept")
        assert receiver.take(timeout=20).payload == b"kept"
        assert runtime.checkpoint(tmp_path)["mailboxes"][0]["taken"] == 1
    assert graph()[0].restore(tmp_path)["mailboxes"][0]["taken"] == 1
    with pytest.raises(warpmail.Refused, match="no checkpoint"):
        graph()[0].restore(tmp_path / "..")


def test_a_tap_of_one_type(tmp_path):
    graph = warpmail.Builder("twin")
    host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
    with pytest.raises(warpmail.Refused, match="tap_type: its records are not tapped"):
        graph.mailbox(host, relay, tap_type=3)
    there, back = graph.mailbox(host, relay, tap="block", tap_type=3), graph.mailbox(relay, host)
    runtime = graph.build()
    runtime.journal(tmp_path)
    sender, receiver = runtime.sender(there), runtime.receiver(back)
    with runtime:
        for n in range(12):
            sender.post(bytes([n]), n % 4, timeout=20)
            assert receiver.take(timeout=20).msg_type == n % 4
    stats = runtime.journal_stats()
    assert (stats["accepted"], stats["taps"][0]["msg_type"]) == (3, 3)
    assert [r.payload for r in warpmail.JournalReader(tmp_path)] == [b"\x03", b"\x07", b"\x0b"]


def test_waits_let_other_threads_run(ring):
    _, sender, receiver = ring
    answer = []
    thread = threading.Thread(target=lambda: answer.append(receiver.take(timeout=30).payload))
    thread.start()
    until = time.monotonic() + 20
    busy = None
    while busy is None and time.monotonic() < until:
        try:
            receiver.try_take()
        except warpmail.StateError as error:  # the thread is inside its wait
            busy = error
        except warpmail.Empty:
            time.sleep(0.001)
    assert "another thread" in str(busy)
    sender.post(b"late")
    thread.join(30)
    assert answer == [b"late"]


def run(code, **options):
    folder = str(pathlib.Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_ctrl_c_ends_a_wait():
    code = """
from conftest import echo
with echo() as (runtime, sender, receiver):
    try:
        print("waiting", flush=True)
        receiver.take(timeout=60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    child = run(code)
    try:
        assert child.stdout.readline() == "waiting\n"
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=50)
    finally:
        child.kill()
    assert (out, child.returncode) == ("interrupted\n", 0), err


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "import gc; gc.collect()"])
def test_an_interpreter_ends_with_messages_in_flight(end):
    code = f"""
import threading, warpmail
graph = warpmail.Builder("twin")
host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
there, back = graph.mailbox(host, relay, slots=4), graph.mailbox(relay, host, slots=4)
runtime = graph.build()
sender, receiver = runtime.sender(there), runtime.receiver(back)
runtime.start()
for i in range(3):
    sender.post(b"in flight")
def wait():
    while True:
        receiver.take(timeout=60)
threading.Thread(target=wait, daemon=True).start()
{end}
"""
    child = run(code)
    try:
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, err) == (0, ""), (out, err)


def test_a_journal_is_read_back(tmp_path):
    graph = warpmail.Builder("twin")
    host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
    there, back = graph.mailbox(host, relay), graph.mailbox(relay, host, tap="block")
    runtime = graph.build()
    with pytest.raises(warpmail.Error, match="no log"):
        warpmail.JournalReader(tmp_path)
    runtime.journal(tmp_path)
    with runtime:
        sender, receiver = runtime.sender(there), runtime.receiver(back)
        for n in range(20):
            sender.post(bytes([n] * n), n, timeout=20)
            receiver.take(timeout=20)
    reader = warpmail.JournalReader(tmp_path)
    found = list(reader)
    assert [r.sequence for r in found] == list(range(1, 21))
    assert [(r.mailbox, r.msg_type, r.payload, r.tensor) for r in found] == [(1, n, bytes([n] * n), b"") for n in range(20)]
    assert all(r.producer_ns > 0 for r in found) and list(reader) == []
    assert [r.msg_type for r in warpmail.JournalReader(tmp_path, 15)] == list(range(14, 20))


def test_blocks_help_a_journal(tmp_path):
    with pytest.raises(warpmail.Refused, match="4 blocks for the journal: at most 3"):
        warpmail.Builder("twin", journal_blocks=4)
    graph = warpmail.Builder("twin", journal_blocks=2)
    host, sink = graph.host("host"), graph.resident("sink", warpmail.DISCARD)
    there = graph.mailbox(host, sink, stride=4096, slots=8, tap="block")
    runtime = graph.build()
    runtime.journal(tmp_path)
    with runtime:
        runtime.sender(there).post(bytes(3000), 7, timeout=60)
        runtime.drain(timeout=60)
    assert [len(r.payload) for r in warpmail.JournalReader(tmp_path)] == [3000]


def test_a_neighbour_is_named_by_its_stream():
    class Stream:
        cuda_stream = 0

    for beside in (0, Stream()):
        graph = warpmail.Builder("twin", beside=beside)
        host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
        there, back = graph.mailbox(host, relay), graph.mailbox(relay, host)
        with graph.build() as runtime:
            runtime.sender(there).post(b"hello", 7, timeout=60)
            assert runtime.receiver(back).take(timeout=60).payload == b"hello"
    with pytest.raises(TypeError, match="stream"):
        warpmail.Builder("twin", beside="the default one")
