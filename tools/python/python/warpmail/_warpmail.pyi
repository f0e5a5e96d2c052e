"""The compiled part of the package; import `warpmail`."""

import os
from types import TracebackType
from typing import Any, Callable, Dict, List, Literal, Optional, Protocol, Sequence, Tuple, Type, Union

__version__: str
RELAY: int
"""Built-in handler: passes every record on to all outputs."""
DISCARD: int
"""Built-in handler: takes every record and drops it."""
TENSOR: int
"""Message type of records that carry a tensor."""
TENSOR_BYTES: int
"""Bytes of the descriptor that such a record begins with; its first two words are address and byte offset."""
NOTHING: int
"""Length in the head of a step's buffer: there is no record, or none is pushed."""

class Error(Exception): ...
class Full(Error): ...
class Empty(Error): ...
class Timeout(Error): ...
class PayloadTooLong(Error): ...
class BadMailbox(Error): ...
class Refused(Error): ...
class Unavailable(Error): ...
class DriverError(Error): ...
class Failed(Error): ...
class Stuck(Error): ...
class JournalError(Error): ...
class PoolFull(Error): ...
class StaleLease(Error): ...
class StateError(Error): ...

def probe() -> Dict[str, Any]:
    """What this machine can do, and why not. Creates no CUDA context and launches nothing."""

class Module:
    """A module of one graph."""

    @property
    def name(self) -> str: ...

class Mailbox:
    """A mailbox of one graph."""

    @property
    def name(self) -> str: ...
    @property
    def payload_bytes(self) -> int:
        """Payload bytes that one record carries."""

class Builder:
    """Collects modules and mailboxes, checks them, and makes a `Runtime`."""

    def __init__(
        self,
        device: str = "best",
        *,
        mode: Optional[Literal["device", "cpu"]] = None,
        static_order: bool = False,
        beside: Any = None,
        journal_blocks: int = 0,
    ) -> None:
        """`device`: 'best' (a GPU if it can be used, else the twin), 'twin', 'cuda' or 'cuda:N'.

        `mode`: who arbitrates; unless given, what WARPMAIL_MODE says, or 'device'.
        `static_order`: the steps of all stream modules run in passes, one captured graph for all, with mode 'cpu' alone; a graph
        whose order is not fixed is refused with the module and the rule. See docs/arbitration.md.
        `beside`: a torch.cuda.Stream, or a CUstream as a number (0: the legacy default stream), whose small kernels are to notice
        nothing of a parked arbiter: `build` finds out where it waits, by a few milliseconds of launches on that stream, which exists
        until then, and which nobody may capture meanwhile. See docs/parking.md.
        `journal_blocks`: further blocks of the arbiter's launch, 0 to 3, that help to bring long records to the journal; each holds
        an SM. See docs/journal.md."""

    def budget(
        self,
        *,
        idle_spin: Union[None, float, str] = None,
        adaptive: Optional[bool] = None,
        sm_share: Optional[float] = None,
        max_wait: Optional[float] = None,
        residency: Optional[float] = None,
        servers: Optional[int] = None,
        sms: Optional[int] = None,
    ) -> None:
        """Limits on the arbiter; times are seconds. What is not named stays as it is. See docs/parking.md.

        `idle_spin`: also "never", "break-even" (as long as being woken costs here: the default), or a word like "20us"."""

    def pool(self, limit: int = 1 << 28, *, leases: int = 4096, poison: bool = False) -> Pool:
        """Gives the graph a pool for the tensors of its records: at most `limit` bytes of its own, adopted ones not counted.

        `leases` may be open at the same time; `poison`: debug mode, slow. See docs/tensors.md."""

    def host(self, name: str) -> Module:
        """A host module: its ends are a `Sender` and a `Receiver`."""

    def resident(
        self,
        name: str,
        handler: int,
        *,
        priority: int = 0,
        batch: int = 32,
        out_records: int = 0,
        rule: Literal["any", "all"] = "any",
    ) -> Module:
        """A module that the arbiter itself runs, with a built-in handler: `RELAY` or `DISCARD`."""

    def steps(
        self,
        name: str,
        *,
        rule: Literal["any", "all"] = "any",
        priority: int = 0,
        spin: Optional[float] = 20e-6,
        ahead: int = 4,
        pushes: Sequence[Tuple[int, int]] = (),
        stream: Any = None,
    ) -> Module:
        """A stream module: work on a CUDA stream in steps that the arbiter grants; `Runtime.body` says what a step does.

        `spin`: seconds that a gate polls before the module parks; None: it never parks. `pushes`: what a step pushes, by
        output, as (bytes, message type); nothing for outputs that are not named. `stream`: a `torch.cuda.Stream`, or a
        CUstream as a number, to run on; it must outlive the runtime.
        """

    def mailbox(
        self,
        producer: Module,
        consumer: Module,
        *,
        stride: int = 256,
        slots: int = 64,
        tap: Optional[Literal["drop", "block"]] = None,
        tap_type: Optional[int] = None,
        tap_tensors: bool = False,
    ) -> Mailbox:
        """A mailbox from its one producer to its one consumer.

        `stride`: bytes of a slot, a multiple of 64 up to 4096; `slots`: a power of two; `tap`: its records go to the
        journal, and are dropped or waited for when that cannot keep up; `tap_type`: only those of this type do;
        `tap_tensors`: so do the tensors that they point to, with their bytes as they are when the record passes (the graph
        needs a `pool`)."""

    def build(self) -> Runtime:
        """Checks the graph as a whole and makes the runtime. The builder is used up."""

class Runtime:
    """Modules and mailboxes with their arbiter. `with runtime:` starts it (once) and stops it."""

    @property
    def state(self) -> Literal["ready", "running", "waiting", "quiet", "stopped", "failed"]: ...
    @property
    def device(self) -> Dict[str, Any]: ...
    def sender(self, mailbox: Mailbox) -> Sender:
        """The producer's end of a mailbox whose producer is a host module. There is one: a second call is refused."""

    def receiver(self, mailbox: Mailbox) -> Receiver:
        """The consumer's end of a mailbox whose consumer is a host module. There is one: a second call is refused."""

    def journal(self, dir: "os.PathLike[str] | str") -> None:
        """Sends the records of tapped mailboxes to the log in a directory. Before the start."""

    def body(
        self,
        module: Module,
        *,
        graph: Any = None,
        enqueue: Optional[Callable[[Optional[int]], None]] = None,
        call: Optional[Callable[[], None]] = None,
        always: bool = False,
    ) -> None:
        """What the steps of a stream module do: one of three. Once for each module, before the start.

        `graph`: a captured `torch.cuda.CUDAGraph(keep_graph=True)`, or a CUgraph as a number; it is copied, and the memory
        that it uses must stay. Launches without records skip it, or with `always` run it over what is in the buffers;
        nothing is pushed then. `enqueue(stream)`: called for every step, ahead of its grant, on a thread of the runtime's,
        with the CUstream (None on the twin). `call()`: a function of the host that runs once a step, in the stream's
        order, and calls nothing of CUDA.
        """

    def deliver(self, module: Module, target: Any, input: int = 0) -> None:
        """Has the tensor that each record of a stream module's input points to copied into `target` before the body runs, and
        its lease released. Before the body.

        `target`: an object with `__dlpack__` on the runtime's device, without gaps; only tensors of its type and shape are
        delivered. Others are counted (`stats()`), and their steps push nothing. Nobody but the body uses the target while
        steps run; what a stream still writes there is waited for before the start. The runtime keeps the memory
        as long as it, its senders and its receivers are there, and until the next call into this package.
        """

    def step_input(self, module: Module, input: int = 0) -> StepBuffer:
        """Where the records of a stream module's input are delivered to."""

    def step_output(self, module: Module, output: int = 0) -> StepBuffer:
        """Where a stream module's steps leave what is pushed to an output."""

    def step_live(self, module: Module) -> StepBuffer:
        """A word of 64 bits that is not 0 while the launch has records: what a body with `always=True` looks at before it
        changes anything but its outputs."""

    def close(self, module: Module, timeout: float = 10.0) -> None:
        """Ends the steps of one stream module for good; its records wait in its mailboxes."""

    def start(self) -> None:
        """Starts the arbiter."""

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the arbiter. Records still in mailboxes are left there. A second stop does nothing."""

    def drain(self, timeout: float = 10.0) -> None:
        """Waits until every record has been taken from every mailbox that a resident module consumes."""

    def stats(self) -> Dict[str, Any]:
        """Counters of the arbiter, the modules and the mailboxes. No driver call."""

    def journal_stats(self) -> Optional[Dict[str, Any]]:
        """What became of the records that taps saw (docs/journal.md), in all and of each tapped mailbox; `None` without a
        journal."""

    def quiesce(self, timeout: float = 10.0) -> Quiesce:
        """`with runtime.quiesce():` the arbiter is away, records wait where they are, other calls raise `StateError`."""

    def checkpoint(self, dir: "os.PathLike[str] | str", timeout: float = 10.0) -> Dict[str, Any]:
        """Writes what modules know to one crash-safe file in `dir`; says what is in it."""

    def restore(self, dir: "os.PathLike[str] | str") -> Dict[str, Any]:
        """Puts a checkpoint of the same graph into this runtime, before its start."""

    def __enter__(self) -> Runtime: ...
    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...

class StepBuffer:
    """The buffer of one end of a stream module, always at the same address: `torch.as_tensor(buffer, device="cuda")` on a
    GPU, `numpy.asarray(buffer)` on the twin, both of bytes and without a copy."""

    @property
    def address(self) -> int:
        """Address of the payload."""

    @property
    def head(self) -> int:
        """Address of the head in front of it: length and message type, 32 bits each, then the number of the step."""

    @property
    def header(self) -> StepBuffer:
        """The head as a buffer of its own. A body tells by an input's length (`NOTHING`: none) which of its inputs the record
        came from, and sets that of an output."""

    @property
    def nbytes(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]: ...
    @property
    def __array_interface__(self) -> Dict[str, Any]: ...

class JournalRecord:
    """A record of a journal."""

    @property
    def sequence(self) -> int:
        """Its number in the log, from 1."""

    @property
    def mailbox(self) -> int:
        """Which mailbox, by the order in which the graph got them, from 0."""

    @property
    def msg_type(self) -> int: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def tensor(self) -> bytes:
        """The bytes of the tensor that went with it; empty if there is none."""

    @property
    def producer_ns(self) -> int:
        """The producer's clock, nanoseconds."""

class JournalReader:
    """Reads the records of a journal's directory in order, each checked, also while it is written: the iteration stops where
    nothing more is there, and goes on later."""

    def __init__(self, dir: "os.PathLike[str] | str", first: int = 0) -> None:
        """`first`: the sequence to begin with; 0: the oldest kept."""

    def __iter__(self) -> JournalReader: ...
    def __next__(self) -> JournalRecord: ...

class Quiesce:
    """The context manager of `Runtime.quiesce`."""

    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...

class Record:
    """A record that was taken."""

    @property
    def msg_type(self) -> int: ...
    @property
    def payload(self) -> bytes:
        """Its bytes; with a tensor, the note that was posted with it."""

    @property
    def tensor(self) -> Optional[Tensor]:
        """Its tensor, if it carries one and the graph has a pool."""

class Pool:
    """Memory for tensors, and the leases on it. Any thread may use it."""

    def alloc(self, shape: Sequence[int], dtype: str = "float32", *, label: str = "python") -> Tensor:
        """Memory for a tensor, row-major without gaps, with any content. `PoolFull` says who holds what."""

    def collect(self) -> int:
        """Collects what readers have released, and gives adopted tensors back to their owners. How many blocks came free."""

    def stats(self) -> Dict[str, Any]:
        """What it has, and what became of its leases."""

    def holders(self) -> List[Dict[str, Any]]:
        """Who holds what."""

class Tensor:
    """Memory of a pool, by pointer. Gives it back when it is dropped, released, or its `with` ends.

    `numpy.from_dlpack(tensor)` and `torch.from_dlpack(tensor)` make arrays of it without a copy; each keeps the memory."""

    @property
    def shape(self) -> Tuple[int, ...]: ...
    @property
    def strides(self) -> Tuple[int, ...]:
        """In elements."""

    @property
    def dtype(self) -> str: ...
    @property
    def address(self) -> int:
        """Of the first element."""

    @property
    def read_only(self) -> bool: ...
    def wait_on(self, stream: Union[int, SupportsCudaStream]) -> None:
        """What is enqueued on `stream` from now on comes after the work that has still to write the tensor. `from_dlpack` does
        that for the framework's current stream."""

    def wait(self, *, timeout: float = 10.0) -> None:
        """Waits, up to `timeout` seconds, until the work is done that has still to write the tensor."""

    def release(self) -> None:
        """Gives the memory back now; what was made of it with `__dlpack__` keeps it on. `StateError` the second time."""

    def __enter__(self) -> Tensor: ...
    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None: ...
    def __dlpack_device__(self) -> Tuple[int, int]: ...
    def __dlpack__(
        self,
        *,
        stream: Optional[int] = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """A capsule, versioned if `max_version` is 1 or more. The memory is used again after what `stream` has to do."""

class SupportsCudaStream(Protocol):
    """`torch.cuda.Stream` and its like."""

    @property
    def cuda_stream(self) -> int: ...

class SupportsDLPack(Protocol):
    def __dlpack__(self, *, stream: Optional[int] = None) -> Any: ...
    def __dlpack_device__(self) -> Tuple[int, int]: ...

class Sender:
    """The one producer's end of a mailbox. One thread at a time may use it; a second one gets a `StateError`."""

    @property
    def payload_bytes(self) -> int: ...
    @property
    def posted(self) -> int: ...
    def post(
        self,
        payload: Union[bytes, Tensor, SupportsDLPack],
        msg_type: int = 0,
        *,
        note: Optional[bytes] = None,
        stream: Union[int, SupportsCudaStream, None] = None,
        timeout: float = 10.0,
    ) -> None:
        """Posts one record, waiting up to `timeout` seconds for a free slot.

        A tensor goes by pointer, with a `note` of up to 72 bytes, and is held until its reader has released it. `stream`, on a
        GPU: whose work so far writes it, which its reader comes after; -1: none. Nothing said: what the framework says by
        DLPack; for a tensor of the pool, none."""

    def try_post(
        self,
        payload: Union[bytes, Tensor, SupportsDLPack],
        msg_type: int = 0,
        *,
        note: Optional[bytes] = None,
        stream: Union[int, SupportsCudaStream, None] = None,
    ) -> None:
        """The same at once, or `Full`."""

    def try_post_batch(self, payloads: bytes, length: int, msg_type: int = 0) -> int:
        """Posts as many of the records as there is room for, each `length` bytes of `payloads`; says how many."""

class Receiver:
    """The one consumer's end of a mailbox. One thread at a time may use it; a second one gets a `StateError`."""

    @property
    def taken(self) -> int: ...
    def take(self, *, timeout: float = 10.0) -> Record:
        """Takes the next record, waiting up to `timeout` seconds for one."""

    def try_take(self) -> Record:
        """The same at once, or `Empty`."""

    def try_take_batch(self, limit: int = 64) -> List[Record]:
        """Takes what is there, up to `limit` records (1 to 64), and gives their slots back together."""
