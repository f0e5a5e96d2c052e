"""What is counted of a trace: of recorded events, so that neither a GPU nor PyTorch is needed."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve()
# In the repository, and in the bundle.
FOLDERS = [HERE.parents[3] / "examples/python/flagship", HERE.parents[1] / "flagship"]
sys.path[:0] = [str(folder) for folder in (*FOLDERS, HERE.parents[1]) if folder.is_dir()]

from profiled import STEADY, summary


def event(cat, name, ts, **more):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": 1} | more


RANGE = event("user_annotation", STEADY, 100) | {"dur": 1000}
RUN = [
    event("cuda_runtime", "cudaDeviceSynchronize", 50, tid=1),  # before
    RANGE,
    event("cuda_driver", "cuLaunchKernelEx", 110, tid=2),
    event("cuda_driver", "cuLaunchKernelEx", 120, tid=2),
    event("cuda_runtime", "cudaGraphLaunch", 130, tid=2),
    event("kernel", "warpmail_gate_begin", 140),
    event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 150, args={"bytes": 32}),
    event("cuda_sync", "Stream Wait Event", 160),
    event("cuda_sync", "Stream Sync", 170, dur=20),  # a look whether it is done
    {"ph": "M", "name": "process_name"},
    # What the profiler does for itself: during, and when it gathers what the device noted.
    event("overhead", "Activity Buffer Request", 180, tid=2),
    event("overhead", "Buffer Flush", 400, dur=500),
    event("cuda_sync", "Context Sync", 1100, dur=900),
    event("cuda_runtime", "cudaDeviceSynchronize", 1100, tid=1),  # after
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 1200, args={"bytes": 8}),
]


def counted(events):
    import trace_arbitration

    return trace_arbitration.counted(summary(events))


def test_launches_are_no_copies():
    found = summary(RUN)
    assert (found["kernels"], found["host_copies"], found["device_copies"]) == (1, 0, 1)
    assert (found["copy_calls"], found["waits"], found["looks"]) == (0, 0, 1)
    assert found["calls"] == {"2: cuLaunchKernelEx": 2, "2: cudaGraphLaunch": 1}
    assert found["others"] == {"Memcpy DtoD (Device -> Device)": 1, "Stream Wait Event": 1, "Stream Sync": 1}
    assert counted(RUN) == 0


@pytest.mark.parametrize(
    "cat, name",
    [
        ("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)"),
        ("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)"),
        ("cuda_runtime", "cudaMemcpyAsync"),
        ("cuda_driver", "cuMemcpyDtoHAsync_v2"),
        ("cuda_runtime", "cudaStreamSynchronize"),
        ("cuda_driver", "cuEventSynchronize"),
        ("cuda_sync", "Context Sync"),
    ],
)
def test_copies_and_waits_are_counted(cat, name):
    assert counted([*RUN, event(cat, name, 500, tid=2, dur=300, args={"bytes": 4})]) == 1


def test_a_trace_without_a_range_proves_nothing():
    with pytest.raises(ValueError):
        summary(RUN[2:])


def test_bodies_are_as_long_as_the_events_allow():
    from trace_arbitration import longer

    assert longer(4000, 60, 200_000, (1.0, 3000)) == 4000  # few as it is
    cycles, per_body = 4000, 80_000_000  # events a second: so many, by the length of a body
    for _ in range(2):
        cycles = longer(cycles, 60, 200_000, (2.0, 2 * per_body / cycles))
    assert cycles != 4000 and 150_000 < 60 * per_body / cycles <= 200_000
