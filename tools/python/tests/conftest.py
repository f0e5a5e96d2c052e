import contextlib

import pytest

import warpmail


@contextlib.contextmanager
def echo(**options):
    """A host module that posts to a relay and takes from it: a runtime that runs, its sender, its receiver."""
    graph = warpmail.Builder("twin")
    host = graph.host("host")
    relay = graph.resident("relay", warpmail.RELAY)
    there = graph.mailbox(host, relay, **options)
    back = graph.mailbox(relay, host, **options)
    with graph.build() as runtime:
        yield runtime, runtime.sender(there), runtime.receiver(back)


@pytest.fixture
def ring():
    with echo() as parts:
        yield parts
