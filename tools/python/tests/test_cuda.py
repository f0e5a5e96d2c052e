"""CUDA tensors of PyTorch between two streams, by pointer. Waived without PyTorch and a GPU that can be used."""

import contextlib

import pytest

import warpmail

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    warpmail.probe()["best"] != "cuda" or not torch.cuda.is_available(), reason="waived: no GPU that can be used"
)


@contextlib.contextmanager
def tensors():
    torch.cuda.init()
    graph = warpmail.Builder("cuda")
    pool = graph.pool(1 << 24)
    host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
    there, back = graph.mailbox(host, relay), graph.mailbox(relay, host)
    with graph.build() as runtime:
        yield pool, runtime.sender(there), runtime.receiver(back)


def copies(profile):
    """Names of copies between host and device that the profiler saw."""
    names = [event.key for event in profile.key_averages()]
    return [name for name in names if "Memcpy" in name and ("HtoD" in name or "DtoH" in name)]


@contextlib.contextmanager
def ends(slots=16, limit=1 << 24):
    """A mailbox between two host modules: its records are there at once."""
    torch.cuda.init()
    graph = warpmail.Builder("cuda")
    pool = graph.pool(limit)
    mailbox = graph.mailbox(graph.host("a"), graph.host("b"), slots=slots)
    runtime = graph.build()
    yield pool, runtime.sender(mailbox), runtime.receiver(mailbox)


def test_between_two_streams_by_pointer():
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode(), tensors() as (pool, sender, receiver):
        with torch.cuda.stream(one):
            source = torch.full((1 << 20,), 3.0, device="cuda")
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(10):
                with torch.cuda.stream(one):
                    source += 1
                    sender.post(source, timeout=20)
                with torch.cuda.stream(two):
                    taken = torch.from_dlpack(receiver.take(timeout=20).tensor)
                    assert taken.data_ptr() == source.data_ptr()
                    double = taken * 2
                del taken
                two.synchronize()
                pool.collect()
        assert profile.key_averages(), "the profiler saw nothing"
        assert copies(profile) == []
        assert torch.all(double == 26).item()
        assert pool.stats()["open"] == 0


SLEEP = 60_000_000  # cycles: about 30 ms, so that what does not wait is seen


@pytest.mark.parametrize("how", ["object", "number", "unsaid", "legacy", "per thread"])
@pytest.mark.parametrize("reader", ["host", "resident"])
def test_posts_and_takes_are_in_the_order_of_their_streams(how, reader):
    one = torch.cuda.default_stream() if how == "legacy" else torch.cuda.Stream()
    if how == "per thread":
        one = torch.cuda.ExternalStream(2)
    two = torch.cuda.Stream()
    stream = {"object": one, "number": one.cuda_stream, "unsaid": None, "legacy": 1, "per thread": 2}[how]
    ahead = 0
    with ends() if reader == "host" else tensors() as (pool, sender, receiver):
        source = torch.zeros(1 << 20, device="cuda")
        torch.cuda.synchronize()
        for n in range(1, 6):
            with torch.cuda.stream(one):
                torch.cuda._sleep(SLEEP)
                source.fill_(n)
                sender.post(source, stream=stream, timeout=20)
            record = receiver.take(timeout=20)
            ahead += not one.query()
            with torch.cuda.stream(two):
                taken = torch.from_dlpack(record.tensor)
                torch.cuda._sleep(SLEEP // 4)
                total = taken.sum()
            record.tensor.release()
            del taken, record
            # The reader is not done, so the producer's next writing has to wait for it: it does so on the device.
            one.wait_stream(two)
            two.synchronize()
            assert total.item() == n * source.numel()
        assert reader == "resident" or ahead > 0, "nobody waited on the host"
        pool.collect()
        assert pool.stats()["open"] == 0


def test_memory_waits_for_the_streams_that_use_it():
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    with ends(limit=4 << 20) as (pool, sender, receiver):
        tensor = pool.alloc((1 << 20,), "float32")
        with torch.cuda.stream(one):
            view = torch.from_dlpack(tensor)
            torch.cuda._sleep(SLEEP)
            view.fill_(5)
            sender.post(tensor, stream=one)
            del view, tensor
        record = receiver.take(timeout=20)
        record.tensor.wait_on(two)
        with torch.cuda.stream(two):
            total = torch.from_dlpack(record.tensor).sum()
            torch.cuda._sleep(SLEEP)
        del record
        pool.collect()
        if not two.query():
            with pytest.raises(warpmail.PoolFull):
                pool.alloc((1 << 20,), "float32")
        two.synchronize()
        one.synchronize()
        pool.collect()
        assert pool.alloc((1 << 20,), "float32") and total.item() == 5 * (1 << 20)


def test_a_host_can_wait_for_what_was_posted():
    one = torch.cuda.Stream()
    with ends() as (_, sender, receiver):
        with torch.cuda.stream(one):
            torch.cuda._sleep(SLEEP)
            source = torch.full((1024,), 9.0, device="cuda")
            sender.post(source)
        tensor = receiver.take(timeout=20).tensor
        with pytest.raises(warpmail.Timeout):
            tensor.wait(timeout=0)
        tensor.wait(timeout=20)
        assert one.query()
        # Nothing is left to wait for: no order need be asked for.
        capsule = tensor.__dlpack__(stream=-1, max_version=(1, 0))
        assert torch.from_dlpack(capsule).sum().item() == 9 * 1024


def test_streams_are_named_as_dlpack_says():
    with ends() as (pool, sender, receiver):
        tensor, source = pool.alloc((4,)), torch.ones(4, device="cuda")
        for bad, word in [(0, "ambiguous"), (-2, "must be -1"), (-77, "must be -1")]:
            for what in (tensor, source):
                with pytest.raises(warpmail.Refused, match=word):
                    sender.post(what, stream=bad)
            with pytest.raises(BufferError, match=word):
                tensor.__dlpack__(stream=bad)
            with pytest.raises(warpmail.Refused, match=word):
                tensor.wait_on(bad)
        with pytest.raises(TypeError, match="stream"):
            sender.post(source, stream="one")
        for good in (-1, 1, 2, torch.cuda.default_stream(), torch.cuda.Stream(), None):
            sender.post(source, stream=good)
            receiver.take().tensor.release()
        captured, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        sender.post(source)
        taken = receiver.take().tensor
        with torch.cuda.graph(graph, stream=captured):
            source.add_(1)
            for call in (lambda: sender.post(source, stream=captured), lambda: taken.wait_on(captured)):
                with pytest.raises(warpmail.StateError, match="captured"):
                    call()
        graph.replay()
        torch.cuda.synchronize()
        assert source.sum().item() == 8, "the capture is whole"


def test_a_tensor_of_the_pool_is_torchs():
    with tensors() as (pool, sender, receiver):
        tensor = pool.alloc((256,), "float32")
        torch.from_dlpack(tensor).fill_(7)
        torch.cuda.synchronize()
        sender.post(tensor, timeout=20)
        assert torch.from_dlpack(receiver.take(timeout=20).tensor).sum().item() == 7 * 256


def test_what_is_not_the_pools_is_refused():
    with tensors() as (_, sender, _):
        with pytest.raises(warpmail.Refused, match="host memory"):
            sender.post(torch.ones(2), stream=-1)
        with pytest.raises(warpmail.Refused, match="grad"):
            sender.post(torch.ones(2, device="cuda", requires_grad=True))
        bad = torch.ones(2, dtype=torch.complex64, device="cuda")
        for wrong, word in [(bad.conj(), "conjugate"), (bad.conj().imag, "negative bit")]:
            with pytest.raises(warpmail.Refused, match=word):
                sender.post(wrong)
        with pytest.raises(warpmail.Refused, match="sparse"):
            sender.post(torch.eye(3, device="cuda").to_sparse())
        with pytest.raises(warpmail.Refused, match="quantised"):
            sender.post(torch.quantize_per_tensor(torch.ones(2, device="cuda"), 0.1, 0, torch.qint8))


def model(always, stream=None):
    """host -> a captured graph of PyTorch's -> host: eight float32, doubled, and one added."""
    graph = warpmail.Builder("cuda")
    host = graph.host("host")
    steps = graph.steps("model", pushes=[(32, 5)], stream=stream)
    there, back = graph.mailbox(host, steps), graph.mailbox(steps, host)
    runtime = graph.build()
    source = torch.as_tensor(runtime.step_input(steps), device="cuda")[:32].view(torch.float32)
    target = torch.as_tensor(runtime.step_output(steps), device="cuda")[:32].view(torch.float32)
    captured = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(captured):
        target.copy_(source * 2 + 1)
    runtime.body(steps, graph=captured, always=always)
    return runtime, runtime.sender(there), runtime.receiver(back), captured


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_captured_graph_is_a_body(always, own):
    stream = torch.cuda.Stream() if own else None
    runtime, sender, receiver, captured = model(always, stream)
    with runtime:
        for n in range(500):
            sender.post(torch.full((8,), float(n)).numpy().tobytes(), timeout=20)
            record = receiver.take(timeout=20)
            answer = torch.frombuffer(bytearray(record.payload), dtype=torch.float32)
            assert record.msg_type == 5 and bool((answer == 2 * n + 1).all())
            if n % 100 == 0:
                torch.cuda.synchronize()  # bounded by max_wait, whatever the module waits for
    del captured


def test_streams_that_cannot_carry_steps_are_refused():
    torch.cuda.init()
    for stream, word in [(torch.cuda.default_stream(), "default streams"), (1, "default streams")]:
        graph = warpmail.Builder("cuda")
        host, steps = graph.host("host"), graph.steps("model", stream=stream)
        graph.mailbox(host, steps)
        runtime = graph.build()
        with pytest.raises(warpmail.Refused, match=word):
            runtime.body(steps, call=lambda: None)
