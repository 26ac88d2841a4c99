#!/usr/bin/env python3
"""llama.cpp's server beside our node: same GGUF, threads, prompts and generator, one after the other in every round.

    pip install xllamacpp                        # llama.cpp's server, prebuilt
    cargo build --release && cargo build --release -p thalweg-load --example bench
    python3 bench/peers/llm/serve.py [--threads 1 2] [--concurrency 1 8 16 32] [--rounds 3] [--words 64] [--length 64]

Contestants: `http`, our node through `/v1/completions`; `quic`, the same node through QUIC; and `llama.cpp`, its own server (of
C++, in a process of its own) through `/v1/completions`. All are asked raw prompts of made-up words, greedily, with the tokens
that end a text forbidden, so that every answer has all its tokens. Every reader asks --asks questions, one after the other.
No prompt comes twice to one process, so that no cache helps.

Every server may use CPUs 0 and 1 (our node puts its one core on the first and its inference on the second; llama.cpp's threads
are placed by the kernel), and computes with as many threads as --threads says; the generator runs on CPU 0. llama.cpp has as
many slots as questions come at a time, each of --context tokens.
Prints a markdown table of medians over the rounds.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys

from models import RELEASE, ROOT, model_path, table

WORK = ROOT / "target" / "peers" / "llm"
CONTESTANTS = ("http", "quic", "llama.cpp")
# Tokens that end a text of SmolLM2.
ENDS = (0, 2)


class Process:
    """A server, until the end of the `with`; `found` is what its ready line says."""

    def __init__(self, command, ready, name):
        self.log = WORK / f"{name}.log"
        with open(self.log, "w") as log:
            command = ["taskset", "-c", "0,1", *map(str, command)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        found = (re.search(ready, line) for line in self.process.stdout)
        self.found = next((match for match in found if match), None)
        if not self.found:
            sys.exit(f"{name} ended before it was ready; see {self.log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def generate(options, program, concurrency, seed, arguments):
    command = ["taskset", "-c", "0", *program, "tokens", "--json", "--raw", "-c", concurrency]
    command += ["--asks", concurrency * options.asks, "--prompt-words", options.words, "--length", options.length]
    command += ["--seed", seed, "--patience", "300s", *arguments]
    for end in ENDS:
        command += ["--never", end]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the generator failed: {done.stderr}")
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    first, between = rows["first_token"], rows["inter_token"]
    if first["answers_shorter_than_asked"]:
        print(f"{first['answers_shorter_than_asked']} answers were shorter than asked", file=sys.stderr)
    return {
        "tokens_per_s": between["tokens_per_s"],
        "first_p50_ms": first["p50_us"] / 1e3,
        "first_p99_ms": first["p99_us"] / 1e3,
        "between_p50_ms": between["p50_us"] / 1e3,
        "between_p99_ms": between["p99_us"] / 1e3,
    }


def ours(options, threads, concurrency, number):
    data = WORK / "data"
    shutil.rmtree(data, ignore_errors=True)
    command = [options.thalweg, "serve", "--cores", 1, "--inference-threads", threads, "--data", data]
    command += ["--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    program = [options.thalweg, "bench", "--data", data]
    samples = {}
    with Process(command, r"^ready .*http=(\S+)", "thalweg") as server:
        ways = {"http": ["--http", server.found.group(1), "--model", options.model], "quic": []}
        for n, (way, arguments) in enumerate(ways.items()):
            if way in options.only:
                samples[way] = generate(options, program, concurrency, 2 * number + n + 1, arguments)
    return samples


def llama_cpp(options, threads, concurrency, number):
    if "llama.cpp" not in options.only:
        return {}
    script = pathlib.Path(__file__).with_name("llama_server.py")
    command = [sys.executable, script, model_path(), threads, concurrency, options.context]
    with Process(command, r"^ready http=(\S+)", "llama_cpp") as server:
        arguments = ["--http", server.found.group(1), "--model", options.model]
        return {"llama.cpp": generate(options, [options.generator], concurrency, 2 * number + 1, arguments)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--asks", type=int, default=3, help="questions of each reader, one after the other")
    parser.add_argument("--words", type=int, default=64, help="of a prompt")
    parser.add_argument("--length", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a slot of llama.cpp's")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--thalweg", default=os.environ.get("THALWEG", RELEASE / "thalweg"))
    parser.add_argument("--generator", default=RELEASE / "examples" / "bench")
    parser.add_argument("--json", action="store_true", help="an object a line instead of a table")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows = []
    for threads in options.threads:
        for concurrency in options.concurrency:
            samples = {name: [] for name in CONTESTANTS if name in options.only}
            for number in range(options.rounds):
                print(f"{threads} threads, {concurrency} at a time: round {number + 1}", file=sys.stderr)
                # Who begins alternates.
                for run in (ours, llama_cpp) if number % 2 == 0 else (llama_cpp, ours):
                    for name, sample in run(options, threads, concurrency, number).items():
                        samples[name].append(sample)
            for name, all_of in samples.items():
                figures = {figure: statistics.median(sample[figure] for sample in all_of) for figure in all_of[0]}
                if options.json:
                    row = {"threads": threads, "concurrency": concurrency, "name": name, "rounds": options.rounds, **figures}
                    print(json.dumps(row), flush=True)
                rows.append([threads, concurrency, name, *(f"{value:,.1f}" for value in figures.values())])
    if not options.json:
        print(f"\nprompts of {options.words} words, answers of {options.length} tokens, medians of {options.rounds} rounds")
        head = ["threads", "at a time", "server", "tokens/s", "first token p50 ms", "p99 ms", "next token p50 ms", "p99 ms"]
        table(head, rows)


if __name__ == "__main__":
    main()
