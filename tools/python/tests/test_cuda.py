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


def test_between_two_streams_by_pointer():
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode(), tensors() as (pool, sender, receiver):
        with torch.cuda.stream(one):
            source = torch.full((1 << 20,), 3.0, device="cuda")
        one.synchronize()
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(10):
                with torch.cuda.stream(one):
                    source += 1
                one.synchronize()
                sender.post(source, stream=-1, timeout=20)
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
        with pytest.raises(warpmail.Refused, match="stream"):
            sender.post(torch.ones(2, device="cuda"))
        with pytest.raises(warpmail.Refused, match="grad"):
            sender.post(torch.ones(2, device="cuda", requires_grad=True), stream=-1)


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
