"""Stream modules from Python, on the twin."""

import contextlib
import gc
import sys
import time

import numpy
import pytest

import warpmail


@contextlib.contextmanager
def steps(body=None, **options):
    """host -> steps -> host; `body` makes the keywords of Runtime.body from the two buffers."""
    graph = warpmail.Builder("twin")
    host, model = graph.host("host"), graph.steps("model", **options)
    there, back = graph.mailbox(host, model), graph.mailbox(model, host)
    runtime = graph.build()
    source, target = runtime.step_input(model), runtime.step_output(model)
    runtime.body(model, **body(source, target))
    with runtime:
        yield runtime, runtime.sender(there), runtime.receiver(back), model


def doubled(source, target):
    source, target = numpy.asarray(source), numpy.asarray(target)

    def call():
        target[:16] = source[:16] * 2

    return {"call": call}


def test_a_body_computes_between_its_buffers():
    with steps(doubled, pushes=[(16, 9)]) as (runtime, sender, receiver, _):
        for n in range(200):
            sender.post(bytes([n % 100] * 16), timeout=20)
            record = receiver.take(timeout=20)
            assert (record.msg_type, record.payload) == (9, bytes([n % 100 * 2] * 16))
        runtime.drain(timeout=20)
        (model,) = [m for m in runtime.stats()["modules"] if m["name"] == "model"]
        assert model["records_in"] == model["records_out"] == 200


def test_what_a_body_raises_names_the_module():
    def fails(_source, _target):
        def call():
            raise ValueError("not today")

        return {"call": call}

    with pytest.raises(warpmail.Error), steps(fails) as (runtime, sender, receiver, _):
        sender.post(b"x", timeout=20)
        until = time.monotonic() + 20
        while runtime.state != "failed" and time.monotonic() < until:
            time.sleep(0.01)
        assert runtime.state == "failed"
        receiver.take(timeout=0.1)


def test_a_closed_module_answers_no_more():
    with steps(doubled, pushes=[(16, 9)]) as (runtime, sender, receiver, model):
        sender.post(bytes(16), timeout=20)
        receiver.take(timeout=20)
        runtime.close(model, timeout=20)
        sender.post(bytes(16), timeout=20)
        with pytest.raises(warpmail.Timeout):
            receiver.take(timeout=0.05)


def test_buffers_outlive_the_name_of_their_runtime():
    graph = warpmail.Builder("twin")
    host, model = graph.host("host"), graph.steps("model")
    graph.mailbox(host, model)
    array = numpy.asarray(graph.build().step_input(model))
    gc.collect()
    assert array.nbytes == 248 and not array.any()


def test_mistakes_are_refused():
    graph = warpmail.Builder("twin")
    with pytest.raises(warpmail.Refused, match="rule"):
        graph.steps("a", rule="some")
    with pytest.raises(warpmail.Refused, match="1 to 12"):
        graph.steps("a", ahead=99)
    with pytest.raises(TypeError, match="stream"):
        graph.steps("a", stream="mine")
    host, model, resident = graph.host("host"), graph.steps("model"), graph.resident("relay", warpmail.RELAY)
    graph.mailbox(host, model)
    graph.mailbox(host, resident)
    runtime = graph.build()
    with pytest.raises(warpmail.Refused, match="one of graph="):
        runtime.body(model)
    with pytest.raises(warpmail.Refused, match="twin"):
        runtime.body(model, graph=7)
    with pytest.raises(warpmail.Refused, match="Builder::steps"):
        runtime.body(resident, call=lambda: None)
    with pytest.raises(warpmail.Refused, match="it has 0"):
        runtime.step_output(model)
    assert not hasattr(runtime.step_input(model), "__cuda_array_interface__")
    with pytest.raises(warpmail.StateError, match="has no body"):
        runtime.start()


def delivering(target, body):
    """host -> steps -> host, and what is posted is delivered to `target`, or refused."""
    graph = warpmail.Builder("twin")
    pool = graph.pool(1 << 20)
    host, model = graph.host("host"), graph.steps("model", pushes=[(16, 9)])
    there, back = graph.mailbox(host, model), graph.mailbox(model, host)
    runtime = graph.build()
    runtime.deliver(model, target)
    runtime.body(model, call=body(numpy.asarray(runtime.step_output(model))))
    return runtime, pool, runtime.sender(there), runtime.receiver(back)


def test_tensors_are_delivered_to_where_a_body_looks():
    target = numpy.zeros((2, 2), numpy.int32)

    def doubled_target(output):
        def call():
            output[:16] = (target * 2).reshape(-1).view(numpy.uint8)

        return call

    runtime, pool, sender, receiver = delivering(target, doubled_target)
    with runtime:
        for n in range(50):
            rows = numpy.arange(8, dtype=numpy.int32).reshape(4, 2) + n
            sent = rows[::2].T if n % 2 else numpy.ascontiguousarray(rows[:2])
            sender.post(sent, timeout=20)
            wanted = (sent * 2).tobytes()
            assert receiver.take(timeout=20).payload == wanted
            # Another shape, another type: counted, and the step pushes nothing.
            sender.post(rows, timeout=20)
            sender.post(rows[:2].astype(numpy.float32), timeout=20)
        runtime.drain(timeout=20)
        (model,) = [m for m in runtime.stats()["modules"] if m["name"] == "model"]
        assert (model["steps"], model["records_out"], model["rejects"]["content"]) == (150, 50, 100)
    pool.collect()
    assert pool.stats()["open"] == 0


def test_what_cannot_be_delivered_to_is_refused():
    graph = warpmail.Builder("twin")
    host, model = graph.host("host"), graph.steps("model")
    graph.mailbox(host, model)
    runtime = graph.build()
    frozen = numpy.zeros(4)
    frozen.flags.writeable = False
    for target in [frozen, numpy.zeros((4, 4))[:, ::2]]:
        with pytest.raises((warpmail.Refused, BufferError)):
            runtime.deliver(model, target)
    with pytest.raises(warpmail.Refused, match="input 3"):
        runtime.deliver(model, numpy.zeros(4), input=3)
    with pytest.raises(warpmail.Refused, match="Builder::steps"):
        runtime.deliver(host, numpy.zeros(4))
    with pytest.raises((TypeError, AttributeError, warpmail.Refused)):
        runtime.deliver(model, b"bytes")
    target = numpy.zeros(4)
    runtime.deliver(model, target)
    with pytest.raises(warpmail.Refused, match="second delivery"):
        runtime.deliver(model, target)


def test_a_runtime_keeps_what_is_delivered_to():
    target = numpy.zeros(4)
    graph = warpmail.Builder("twin")
    host, model = graph.host("host"), graph.steps("model")
    graph.mailbox(host, model)
    runtime = graph.build()
    before = sys.getrefcount(target)
    runtime.deliver(model, target)
    assert sys.getrefcount(target) > before
    refused = sys.getrefcount(target)
    with pytest.raises(warpmail.Refused, match="second delivery"):
        runtime.deliver(model, target)
    assert sys.getrefcount(target) == refused
    # A quiesce has the runtime, which is used until that ends.
    runtime.body(model, call=lambda: None)
    runtime.start()
    quiet = runtime.quiesce()
    quiet.__enter__()
    del runtime
    gc.collect()
    assert sys.getrefcount(target) > before
    quiet.__exit__(None, None, None)
    del quiet
    gc.collect()
    warpmail.Builder("twin").pool(1 << 20).collect()
    assert sys.getrefcount(target) == before
