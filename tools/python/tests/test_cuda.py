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
