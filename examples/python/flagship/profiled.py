"""What the profiler saw while a function ran, and what of it is a copy, a wait or a launch."""

import collections
import json
import os
import sys
import tempfile

# Categories of a trace's events: calls of the host, and what the device or the profiler itself notes.
CALLS = ("cuda_runtime", "cuda_driver")
STEADY = "steady"
# A question whether a stream is done (cuStreamQuery) is noted as an end of a wait, too: it takes some 20 microseconds at most. What takes
# longer than this has waited.
LOOK_US = 200


def events_of(function):
    """Runs a function under the profiler: the trace's events. What the function itself did lies in the range of the event STEADY;
    the waits around it are the profiler's."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    options = {}
    try:  # also waits that are called through the driver's API
        options["experimental_config"] = torch.profiler._ExperimentalConfig(enable_cuda_sync_events=True)
    except (AttributeError, TypeError):
        pass
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, **options) as profile:
        with torch.profiler.record_function(STEADY):
            function()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profile.export_chrome_trace(path)
        with open(path) as file:
            events = json.load(file)["traceEvents"]
    if not any(event.get("cat") == "kernel" for event in events):
        sys.exit("the profiler saw no kernels, so it proves nothing")
    return events


def is_host_copy(event):
    return event.get("cat") == "gpu_memcpy" and ("HtoD" in event["name"] or "DtoH" in event["name"])


def host_bytes(function):
    """Bytes that were copied between host and device, either way, while a function ran."""
    return sum(int(event["args"]["bytes"]) for event in events_of(function) if is_host_copy(event))


def summary(events):
    """What began in the range STEADY: kernels, copies by direction, memory copies and waits that the host called for, how
    often it looked whether a stream was done, and its calls by thread and name."""
    range_ = next((e for e in events if e.get("name") == STEADY and e.get("cat") == "user_annotation"), None)
    if range_ is None:
        raise ValueError("the trace has no range to look at")
    begin, end = range_["ts"], range_["ts"] + range_["dur"]
    found = {"seconds": range_["dur"] / 1e6, "kernels": 0, "host_copies": 0, "device_copies": 0, "copy_calls": 0, "waits": 0, "looks": 0}
    calls, on_the_gpu = collections.Counter(), collections.Counter()
    for event in events:
        kind, name = event.get("cat"), event.get("name", "")
        if not begin <= event.get("ts", -1) < end:
            continue
        if kind == "kernel":
            found["kernels"] += 1
        elif kind == "gpu_memcpy":
            found["host_copies" if is_host_copy(event) else "device_copies"] += 1
            on_the_gpu[name] += 1
        elif kind == "cuda_sync":
            if "stream wait" not in name.lower():  # that one is of a stream for an event
                found["waits" if event.get("dur", LOOK_US) >= LOOK_US else "looks"] += 1
            on_the_gpu[name] += 1
        elif kind in CALLS:
            found["copy_calls"] += "memcpy" in name.lower()
            found["waits"] += "synchronize" in name.lower()
            calls[f"{event.get('tid')}: {name}"] += 1
    return {**found, "calls": dict(calls.most_common()), "others": dict(on_the_gpu.most_common())}
