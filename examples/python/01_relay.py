"""A record through a resident relay and back. python3 examples/python/01_relay.py"""

import warpmail

graph = warpmail.Builder()  # a GPU if it can be used, else the twin
host, relay = graph.host("host"), graph.resident("relay", warpmail.RELAY)
there, back = graph.mailbox(host, relay), graph.mailbox(relay, host)
with graph.build() as runtime:
    sender, receiver = runtime.sender(there), runtime.receiver(back)
    sender.post(b"hello", 7, timeout=5)  # every wait has a bound, in seconds
    record = receiver.take(timeout=5)
    print(record.payload.decode(), "of type", record.msg_type, "through", runtime.device["backend"])
