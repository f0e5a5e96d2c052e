"""Tensors through mailboxes against the frameworks that are installed, with each other; what is missing is waived.

Each array goes from one framework by pointer into another, which must see the same values at the same address.
"""

import pytest

import warpmail

np = pytest.importorskip("numpy")

SHAPES = [(7,), (2, 3, 4), (1, 5), (3, 1, 2, 1)]
DTYPES = ["float32", "float16", "int32", "uint8", "int64"]


def on_gpu():
    return warpmail.probe()["best"] == "cuda"


class Numpy:
    device = "twin"
    make = staticmethod(lambda array: array)
    take = staticmethod(np.from_dlpack)
    values = staticmethod(np.asarray)
    address = staticmethod(lambda array: array.ctypes.data)


class Torch:
    def __init__(self, device):
        self.torch = pytest.importorskip("torch", reason="waived: no PyTorch")
        self.device, self.where = device, "cuda" if device == "cuda" else "cpu"
        if device == "cuda" and not (on_gpu() and self.torch.cuda.is_available()):
            pytest.skip("waived: no GPU that can be used")

    def make(self, array):
        return self.torch.from_numpy(array.copy()).to(self.where)

    def take(self, tensor):
        return self.torch.from_dlpack(tensor)

    def values(self, tensor):
        return tensor.cpu().numpy()

    def address(self, tensor):
        return tensor.data_ptr()


class CuPy:
    device = "cuda"

    def __init__(self):
        self.cupy = pytest.importorskip("cupy", reason="waived: no CuPy")
        if not on_gpu():
            pytest.skip("waived: no GPU that can be used")

    def make(self, array):
        return self.cupy.asarray(array)

    def take(self, tensor):
        return self.cupy.from_dlpack(tensor)

    def values(self, array):
        return self.cupy.asnumpy(array)

    def address(self, array):
        return array.data.ptr


class Jax:
    def __init__(self, device):
        self.jax = pytest.importorskip("jax", reason="waived: no JAX")
        self.device = device
        if device == "cuda" and not (on_gpu() and any(d.platform == "gpu" for d in self.jax.devices())):
            pytest.skip("waived: JAX has no GPU here")
        self.where = self.jax.devices("gpu" if device == "cuda" else "cpu")[0]

    def make(self, array):
        return self.jax.block_until_ready(self.jax.device_put(array, self.where))

    def take(self, tensor):
        return self.jax.dlpack.from_dlpack(tensor)

    def values(self, array):
        return np.asarray(array)

    def address(self, array):
        return array.unsafe_buffer_pointer()


FRAMEWORKS = {
    "numpy": Numpy,
    "torch": lambda: Torch("twin"),
    "jax": lambda: Jax("twin"),
    "torch.cuda": lambda: Torch("cuda"),
    "cupy": CuPy,
    "jax.cuda": lambda: Jax("cuda"),
}
PAIRS = [(a, b) for a in FRAMEWORKS for b in FRAMEWORKS if ("cu" in a) == ("cu" in b)]


@pytest.mark.parametrize("one, other", PAIRS)
def test_one_framework_gives_and_another_takes(one, other, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    giver, taker = FRAMEWORKS[one](), FRAMEWORKS[other]()
    graph = warpmail.Builder(giver.device)
    pool = graph.pool(1 << 20)
    mailbox = graph.mailbox(graph.host("a"), graph.host("b"))
    runtime = graph.build()
    sender, receiver = runtime.sender(mailbox), runtime.receiver(mailbox)
    for dtype in DTYPES:
        if dtype == "int64" and "jax" in one + other:
            continue  # 32 bits there, unless it is told otherwise
        for shape in SHAPES:
            array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
            given = giver.make(array)
            sender.post(given, timeout=20)
            tensor = receiver.take(timeout=20).tensor
            tensor.wait()
            assert (tensor.shape, tensor.dtype, tensor.address) == (shape, dtype, giver.address(given))
            taken = taker.take(tensor)
            # JAX copies what is not aligned for it in host memory.
            assert "jax" in other or taker.address(taken) == giver.address(given)
            np.testing.assert_array_equal(taker.values(taken), array)
            tensor.release()
            del taken, tensor, given
    pool.collect()
    assert pool.stats()["stale"] == 0
