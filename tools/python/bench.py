"""What one post and one take cost the host, in µs: python3 tools/python/bench.py [--json] [--rounds N]

Ends of a mailbox between two host modules, so that no arbiter is in the way: a batch is posted, then taken. Prints the
median and the 99th percentile of batches of 50 messages, each divided by 50. What the loop itself costs is in them, and is said.
"""

import argparse
import json
import time

import warpmail

BATCH = 50


def figures(name, times, own):
    times = sorted(t / BATCH / 1000 for t in times)
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return {"name": name, "unit": "us", "p50": round(p50, 3), "p99": round(p99, 3), "loop": round(own, 3)}


def timed(call):
    begin = time.perf_counter_ns()
    for _ in range(BATCH):
        call()
    return time.perf_counter_ns() - begin


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="a JSON object a line")
    options.add_argument("--rounds", type=int, default=2000)
    options = options.parse_args()
    graph = warpmail.Builder()
    pool = graph.pool(1 << 20)
    a, b = graph.host("a"), graph.host("b")
    mailbox = graph.mailbox(a, b)
    runtime = graph.build()
    sender, receiver, tensor = runtime.sender(mailbox), runtime.receiver(mailbox), pool.alloc((256,))
    own = sorted(timed(lambda: None) for _ in range(options.rounds))[options.rounds // 2] / BATCH / 1000
    payload = bytes(64)
    for name, what in [("py", payload), ("py.tensor", tensor)]:
        posts, takes = [], []
        for _ in range(options.rounds):
            posts.append(timed(lambda: sender.post(what)))
            takes.append(timed(receiver.take))
        for row in (figures(f"{name}.post", posts, own), figures(f"{name}.take", takes, own)):
            row["device"] = runtime.device["name"]
            print(json.dumps(row) if options.json else "{name:<16} {p50:>7} µs median, {p99:>7} µs p99, of which the loop {loop} µs".format(**row))


if __name__ == "__main__":
    main()
