#!/usr/bin/env python3
"""What tracing costs: nodes with tracing off, at 1 % and at 100 %, in alternation on this machine.

The node runs on CPU 0 with one core, the generator on CPU 1, and so does a collector that takes everything and looks at
nothing. A round runs each of the three once, in an order that changes from round to round, so that noise that lasts longer
than a round meets all of them alike. The table holds medians over the rounds, and their ratio to the run without tracing.

    cargo build --release
    python3 bench/trace_overhead.py [--rounds 5] [--seconds 8] [--thalweg PATH]
"""

import argparse
import http.server
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODES = [("off", None), ("1 %", "0.01"), ("100 %", "1")]
# Name, arguments of `thalweg bench`, the row and the figure to compare, and whether more of it is better.
BENCHES = [
    ("append, saturated", "append --saturate --durability memory", "append", "rate", True),
    ("append, synced", "append --saturate --durability disk", "append", "rate", True),
    ("fan-out 1 to 100, saturated", "fanout --subscribers 100 --saturate", "fanout_deliver", "deliveries_per_s", True),
    ("ping, p50 µs", "ping --closed", "ping", "p50_us", False),
]


class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        left = int(self.headers["content-length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def collect(port):
    os.sched_setaffinity(0, [1])
    server = http.server.HTTPServer(("127.0.0.1", 0), Sink)
    port.send(server.server_address[1])
    server.serve_forever()


class Node:
    """A node on CPU 0, until the end of the `with`."""

    def __init__(self, thalweg, data, endpoint, ratio):
        self.command = ["taskset", "-c", "0", thalweg, "serve", "--data", data, "--quic", "127.0.0.1:0", "--http", "off"]
        self.command += ["--no-model", "--cores", "1"]
        self.environment = dict(os.environ)
        if ratio is not None:
            self.environment |= {"THALWEG_TRACE_ENDPOINT": endpoint, "THALWEG_TRACE_RATIO": ratio}

    def __enter__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=self.environment
        )
        if not self.process.stdout.readline().startswith("ready "):
            sys.exit("the node did not come up: " + " ".join(self.command))
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)


def bench(thalweg, data, arguments, seconds):
    command = ["taskset", "-c", "1", thalweg, "bench", *arguments.split(), "--data", data, "--json"]
    command += ["--duration", f"{seconds}s", "--warmup", "2s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def counters(thalweg, data):
    done = subprocess.run([thalweg, "admin", "stats", "--data", data, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["counters"]


def measure(options, endpoint, ratio):
    """Every figure of one mode, and what became of its spans."""
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as data:
        os.chmod(data, 0o700)
        with Node(options.thalweg, data, endpoint, ratio):
            figures = {}
            for name, arguments, row, figure, _ in BENCHES:
                rows = bench(options.thalweg, data, arguments, options.seconds)
                figures[name] = next(r for r in rows if r["name"].startswith(row))[figure]
            return figures, {k: v for k, v in counters(options.thalweg, data).items() if k.startswith(("span", "trace"))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--thalweg", default=os.environ.get("THALWEG", str(ROOT / "target/release/thalweg")))
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    sink = multiprocessing.Process(target=collect, args=(theirs,), daemon=True)
    sink.start()
    endpoint = f"http://127.0.0.1:{ours.recv()}"
    figures = {mode: [] for mode, _ in MODES}
    spans = {}
    for at in range(options.rounds):
        for mode, ratio in MODES[at % 3 :] + MODES[: at % 3]:
            one, spans[mode] = measure(options, endpoint, ratio)
            figures[mode].append(one)
            print(f"round {at + 1}, {mode}: {one}", file=sys.stderr)
    print(f"{'':30}" + "".join(f"{mode:>22}" for mode, _ in MODES))
    for name, *_, more in BENCHES:
        median = {mode: statistics.median(one[name] for one in figures[mode]) for mode, _ in MODES}
        cells = [f"{median[mode]:,.1f} ({100 * (median[mode] / median['off'] - 1):+.1f} %)" for mode, _ in MODES]
        print(f"{name:30}" + "".join(f"{cell:>22}" for cell in cells) + ("" if more else "   (less is better)"))
    for mode, _ in MODES[1:]:
        print(f"spans at {mode}, last round: {json.dumps(spans[mode])}")
    sink.terminate()


if __name__ == "__main__":
    main()
