"""Tensors by pointer through mailboxes and DLPack, on the twin, against NumPy."""

import contextlib
import gc
import subprocess
import sys

import pytest

import warpmail

np = pytest.importorskip("numpy")


@contextlib.contextmanager
def tensors(slots=64, **options):
    graph = warpmail.Builder("twin")
    pool = graph.pool(1 << 20, **options)
    host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
    there, back = graph.mailbox(host, relay, slots=slots), graph.mailbox(relay, host, slots=slots)
    with graph.build() as runtime:
        yield pool, runtime.sender(there), runtime.receiver(back)


DTYPES = ["u1", "i1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", "?", "c8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_goes_round_by_pointer(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    with tensors() as (_, sender, receiver):
        sender.post(array, note=b"step 7")
        record = receiver.take(timeout=20)
        assert record.payload == b"step 7"
        assert (record.tensor.shape, record.tensor.address) == (array.shape, array.ctypes.data)
        again = np.from_dlpack(record.tensor)
        assert again.dtype == array.dtype and again.ctypes.data == array.ctypes.data
        np.testing.assert_array_equal(again, array)


def test_strides_offsets_scalars():
    base = np.arange(60.0).reshape(6, 10)
    for view in (base[1:5:2, 3:9:3], base.T, base[2], base[3, 4:5], np.array(7.5)):
        with tensors() as (_, sender, receiver):
            sender.post(view)
            tensor = receiver.take(timeout=20).tensor
            again = np.from_dlpack(tensor)
            assert (again.shape, again.ctypes.data) == (view.shape, view.ctypes.data)
            np.testing.assert_array_equal(again, view)


def test_read_only_stays_read_only():
    array = np.ones(4)
    array.flags.writeable = False
    with tensors() as (_, sender, receiver):
        sender.post(array)
        tensor = receiver.take(timeout=20).tensor
        assert tensor.read_only and not np.from_dlpack(tensor).flags.writeable
        with pytest.raises(BufferError, match="read-only"):
            tensor.__dlpack__()


def test_a_posted_tensor_is_held_until_it_is_released():
    array = np.ones(100)
    before = sys.getrefcount(array)
    with tensors() as (pool, sender, receiver):
        sender.post(array)
        assert sys.getrefcount(array) == before + 1
        tensor = receiver.take(timeout=20).tensor
        view = np.from_dlpack(tensor)
        tensor.release()
        pool.collect()
        assert sys.getrefcount(array) == before + 1, "what was made of it still has it"
        del view
        gc.collect()
        pool.collect()
        assert sys.getrefcount(array) == before
        assert pool.stats()["open"] == 0
        with pytest.raises(warpmail.StateError, match="released before"):
            tensor.release()
        with pytest.raises(warpmail.StateError, match="released"):
            tensor.__dlpack__()
        with pytest.raises(warpmail.StateError, match="released"):
            sender.post(tensor)


def test_many_rounds_leak_nothing():
    array = np.zeros(16)
    before = sys.getrefcount(array)
    with tensors(leases=64) as (pool, sender, receiver):
        for i in range(1000):
            array[0] = i
            sender.post(array, timeout=20)
            assert np.from_dlpack(receiver.take(timeout=20).tensor)[0] == i
        pool.collect()
        assert (pool.stats()["open"], pool.stats()["adopted"]) == (0, 0)
        assert sys.getrefcount(array) == before


def test_a_pool_lends_and_refuses():
    with tensors() as (pool, sender, receiver):
        tensor = pool.alloc((4, 5), "int32", label="mine")
        np.from_dlpack(tensor)[:] = 3
        sender.post(tensor)
        with receiver.take(timeout=20).tensor as taken:
            assert np.from_dlpack(taken).sum() == 60 and taken.address == tensor.address
        with pytest.raises(warpmail.PoolFull, match="mine"):
            pool.alloc((1 << 20,), "float64")
        assert pool.holders()[0]["label"] == "mine"
        with pytest.raises(warpmail.Refused, match="dtype"):
            pool.alloc((1,), "float7")


def test_capsules_of_both_kinds_are_consumed_or_dropped():
    with tensors() as (pool, _, _):
        tensor = pool.alloc((3,))
        assert "dltensor_versioned" in repr(tensor.__dlpack__(max_version=(1, 0)))
        assert '"dltensor"' in repr(tensor.__dlpack__()) and '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
        pool.collect()
        assert pool.stats()["open"] == 0, "capsules that nobody consumed gave back their leases"
        with pytest.raises(BufferError, match="stream"):
            tensor.__dlpack__(stream=1)
        with pytest.raises(BufferError, match="copy"):
            tensor.__dlpack__(copy=True)
        with pytest.raises(BufferError, match="device"):
            tensor.__dlpack__(dl_device=(2, 0))


class Producer:
    """An array with something wrong about it."""

    def __init__(self, array, device=None, **attributes):
        self.array, self.device, self.capsule = array, device, None
        self.__dict__.update(attributes)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        self.capsule = self.capsule or self.array.__dlpack__(**options)
        return self.capsule


class Legacy(Producer):
    """A producer from before version 1."""

    def __dlpack__(self, stream=None):
        return self.array.__dlpack__()


BAD = {
    "without elements": lambda: np.zeros((2, 0)),
    "9 dimensions": lambda: np.zeros((1,) * 9),
    "negative strides": lambda: np.arange(4)[::-1],
    "CUDA device 0": lambda: Producer(np.ones(2), (2, 0)),
    "pinned": lambda: Producer(np.ones(2), (3, 0)),
    "ROCm": lambda: Producer(np.ones(2), (10, 1)),
    "requires grad": lambda: Producer(np.ones(2), requires_grad=True),
    "sparse": lambda: Producer(np.ones(2), is_sparse=True),
    "quantised": lambda: Producer(np.ones(2), is_quantized=True),
    "conjugate": lambda: Producer(np.ones(2), is_conj=lambda: True),
    "negative bit": lambda: Producer(np.ones(2), is_neg=lambda: True),
    "does not give": lambda: np.array(["text"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_tensors_are_refused_by_name(what):
    with tensors() as (pool, sender, _):
        array = BAD[what]()
        with pytest.raises(warpmail.Refused, match=what):
            sender.post(array)
        assert (sender.posted, pool.stats()["open"]) == (0, 0)


class Stream:
    """What frameworks give."""

    def __init__(self, cuda_stream):
        self.cuda_stream = cuda_stream


def test_host_memory_has_no_stream():
    with tensors() as (pool, sender, receiver):
        tensor = pool.alloc([2])
        for stream in (-1, 0, 1, 2, 7, -5, Stream(0), Stream(7)):
            for what in (np.ones(2), tensor, b"bytes"):
                with pytest.raises(warpmail.Refused, match="stream"):
                    sender.post(what, stream=stream)
            with pytest.raises(warpmail.Refused, match="stream"):
                tensor.wait_on(stream)
            if isinstance(stream, int):
                with pytest.raises(BufferError, match="None"):
                    tensor.__dlpack__(stream=stream)
        sender.post(tensor, stream=None)
        taken = receiver.take(timeout=20).tensor
        taken.wait()
        taken.release()
        for call in (taken.wait, lambda: taken.wait_on(1)):
            with pytest.raises(warpmail.Error):
                call()


def test_a_capsule_is_consumed_once_and_old_producers_do():
    with tensors() as (_, sender, receiver):
        producer = Producer(np.ones(2))
        sender.post(producer)
        with pytest.raises(warpmail.Refused, match="consumed"):
            sender.post(producer)
        sender.post(Legacy(np.full(3, 9)))
        receiver.take(timeout=20)
        assert list(np.from_dlpack(receiver.take(timeout=20).tensor)) == [9, 9, 9]
        not_one = Producer(np.ones(2))
        not_one.capsule = object()
        with pytest.raises(warpmail.Refused, match="no DLPack capsule"):
            sender.post(not_one)


def test_bytes_and_tensors_are_told_apart():
    with tensors() as (_, sender, receiver):
        with pytest.raises(TypeError, match="neither bytes nor a tensor"):
            sender.post("text")
        with pytest.raises(warpmail.Refused, match="note"):
            sender.post(b"x", note=b"y")
        with pytest.raises(warpmail.PayloadTooLong):
            sender.post(np.ones(2), note=bytes(200))
        sender.post(b"x", 3)
        assert receiver.take(timeout=20).tensor is None
    graph = warpmail.Builder("twin")
    a, b = graph.host("a"), graph.host("b")
    mailbox = graph.mailbox(a, b)
    sender = graph.build().sender(mailbox)
    with pytest.raises(warpmail.StateError, match="no pool"):
        sender.post(np.ones(2))


def test_a_full_mailbox_gives_the_tensor_back():
    graph = warpmail.Builder("twin")
    pool = graph.pool(1 << 16)
    a, b = graph.host("a"), graph.host("b")
    mailbox = graph.mailbox(a, b, slots=1)
    runtime = graph.build()
    sender, array = runtime.sender(mailbox), np.ones(3)
    before = sys.getrefcount(array)
    sender.try_post(array)
    with pytest.raises(warpmail.Full):
        sender.try_post(array)
    with pytest.raises(warpmail.Timeout):
        sender.post(array, timeout=0.05)
    pool.collect()
    assert sys.getrefcount(array) == before + 1


def test_a_tensor_outlives_its_runtime():
    with tensors() as (pool, sender, receiver):
        sender.post(np.arange(5))
        tensor = receiver.take(timeout=20).tensor
    del sender, receiver, pool
    gc.collect()
    assert list(np.from_dlpack(tensor)) == [0, 1, 2, 3, 4]


class Unwilling(Producer):
    """One that cannot say where its tensor is."""

    def __dlpack_device__(self):
        raise ValueError("nowhere that has a name")


def test_a_producer_without_a_device_is_refused():
    with tensors() as (pool, sender, _):
        with pytest.raises(warpmail.Refused, match="does not give the tensor: nowhere that has a name"):
            sender.post(Unwilling(np.ones(2)))
        assert (sender.posted, pool.stats()["open"]) == (0, 0)


def test_torch_on_the_host():
    torch = pytest.importorskip("torch")
    with torch.inference_mode(), tensors() as (_, sender, receiver):
        tensor = torch.arange(12.0, dtype=torch.bfloat16).reshape(3, 4).T
        sender.post(tensor)
        again = torch.from_dlpack(receiver.take(timeout=20).tensor)
        assert again.data_ptr() == tensor.data_ptr() and torch.equal(again, tensor)
    with tensors() as (_, sender, _):
        for bad, word in [
            (torch.ones(2, requires_grad=True), "grad"),
            (torch.eye(3).to_sparse(), "sparse"),
            (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
            (torch.ones(2, dtype=torch.complex64).conj().imag, "negative bit"),
            (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantised"),
            (torch.eye(4).to_sparse_csc(), "layout"),
            (torch.ones(2, device="meta"), "no memory"),
            (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
            *([(torch.ones(4).to_mkldnn(), "MKL-DNN")] if torch.backends.mkldnn.is_available() else []),
        ]:
            with pytest.raises(warpmail.Refused, match=word):
                sender.post(bad)


def test_tensors_reach_a_journal(tmp_path):
    graph = warpmail.Builder("twin")
    graph.pool(1 << 20)
    host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
    with pytest.raises(warpmail.Refused, match="not tapped"):
        graph.mailbox(host, relay, tap_tensors=True)
    there = graph.mailbox(host, relay, tap="block", tap_tensors=True)
    back = graph.mailbox(relay, host)
    runtime = graph.build()
    assert runtime.journal_stats() is None
    runtime.journal(tmp_path)
    array = np.arange(24, dtype="f4").reshape(4, 6)
    with runtime:
        sender, receiver = runtime.sender(there), runtime.receiver(back)
        for _ in range(3):
            sender.post(array)
            receiver.take(timeout=20).tensor.release()
    journal = runtime.journal_stats()
    assert (journal["tensors"], journal["tensors_missed"], journal["tensor_bytes"]) == (3, 0, 3 * array.nbytes)
    log = b"".join(segment.read_bytes() for segment in tmp_path.glob("*.wmlog"))
    assert log.count(array.tobytes()) == 3


def test_what_the_producer_drops_before_the_take_stays():
    with tensors() as (pool, sender, receiver):
        array = np.arange(1000.0)
        address = array.ctypes.data
        sender.post(array)
        del array
        gc.collect()
        others = [np.full(1000, -1.0) for _ in range(50)]  # memory of that size is asked for again
        tensor = receiver.take(timeout=20).tensor
        assert tensor.address == address and np.from_dlpack(tensor).sum() == 499500 and len(others) == 50
        own = pool.alloc((8,), "int32")
        np.from_dlpack(own)[:] = 4
        sender.post(own)
        own.release()
        assert np.from_dlpack(receiver.take(timeout=20).tensor).sum() == 32


def forwarded_twice(released_between):
    """A step that sends a letter to both of its outputs: two records with one share."""
    graph = warpmail.Builder("twin")
    pool = graph.pool(1 << 16)
    host = graph.host("host")
    letter = (warpmail.TENSOR_BYTES, warpmail.TENSOR)
    model = graph.steps("model", pushes=[letter, letter])
    there, one, two = graph.mailbox(host, model), graph.mailbox(model, host), graph.mailbox(model, host)
    runtime = graph.build()
    source = np.asarray(runtime.step_input(model))
    targets = [np.asarray(runtime.step_output(model, n)) for n in range(2)]

    def call():
        for target in targets:
            target[: warpmail.TENSOR_BYTES] = source[: warpmail.TENSOR_BYTES]

    runtime.body(model, call=call)
    with runtime:
        runtime.sender(there).post(np.ones(3), timeout=20)
        first = runtime.receiver(one).take(timeout=20).tensor
        if released_between:
            first.release()
            pool.collect()
        with pytest.raises(warpmail.Error) as refused:
            runtime.receiver(two).take(timeout=20)
        del first
        pool.collect()
        return refused.value, pool.stats()


def test_taken_twice_is_refused():
    error, stats = forwarded_twice(released_between=False)
    assert isinstance(error, (warpmail.StaleLease, warpmail.Refused)), repr(error)
    error, stats = forwarded_twice(released_between=True)
    assert isinstance(error, warpmail.StaleLease), repr(error)
    assert stats["open"] == 0 and stats["opened"] == 1


def test_a_dead_runtime_takes_and_gives_no_tensors():
    array = np.ones(3)
    before = sys.getrefcount(array)
    with tensors() as (pool, sender, receiver):
        pass
    for call in (lambda: sender.post(array, timeout=0.2), lambda: receiver.take(timeout=0.2)):
        with contextlib.suppress(warpmail.Error):
            call()
    with pytest.raises(warpmail.Error):
        receiver.take(timeout=0.1)
    tensor = pool.alloc((2,))  # the pool lives as long as its names
    assert np.from_dlpack(tensor).shape == (2,)
    del sender, receiver, tensor
    gc.collect()
    pool.collect()
    assert sys.getrefcount(array) <= before + 1


def test_an_interpreter_ends_with_tensors_in_flight():
    code = """
import numpy, warpmail
graph = warpmail.Builder("twin")
pool = graph.pool(1 << 20)
host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
there, back = graph.mailbox(host, relay), graph.mailbox(relay, host)
runtime = graph.build()
runtime.start()
sender, receiver = runtime.sender(there), runtime.receiver(back)
for n in range(20):
    sender.post(numpy.full(1000, n), timeout=20)
kept = numpy.from_dlpack(receiver.take(timeout=20).tensor)
capsule = receiver.take(timeout=20).tensor.__dlpack__(max_version=(1, 0))
print("done", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.strip()) == (0, "done"), ended.stderr


def test_heads_and_the_live_word_are_arrays():
    graph = warpmail.Builder("twin")
    host, model = graph.host("host"), graph.steps("model", pushes=[(4, 7)])
    there, back = graph.mailbox(host, model), graph.mailbox(model, host)
    runtime = graph.build()
    source, target = runtime.step_input(model), runtime.step_output(model)
    head, answer = np.asarray(source.header).view("u4"), np.asarray(target.header).view("u4")
    live, seen = np.asarray(runtime.step_live(model)).view("u8"), []
    assert (source.header.address, source.header.nbytes) == (source.head, 16)
    with pytest.raises(AttributeError, match="no head"):
        _ = source.header.head

    def call():
        seen.append((int(head[0]), int(head[1]), int(live[0])))
        if head[0] == 1:
            answer[0] = warpmail.NOTHING
        else:
            answer[:2] = (2, 9)

    runtime.body(model, call=call)
    with runtime:
        sender, receiver = runtime.sender(there), runtime.receiver(back)
        sender.post(b"x", 3, timeout=20)
        sender.post(b"yes", 4, timeout=20)
        record = receiver.take(timeout=20)
        assert (len(record.payload), record.msg_type) == (2, 9)
    assert seen == [(1, 3, 1), (3, 4, 1)]
