#!/usr/bin/env python3
"""The forward pass alone: tokens per second of ours beside llama.cpp's batch API. Same GGUF, shapes and threads.

    pip install xllamacpp                        # llama.cpp, prebuilt
    python3 bench/peers/llm/raw.py [--threads 1 2] [--rounds 7] [--only decode/b1,decode/b16] [--bench PATH]

Shapes as in bench/micro/benches/decode.rs: prefill/N computes a prompt of N tokens and its first logits; decode/bN takes N
sequences of 64 tokens 32 tokens further and looks at the logits of every one of them. The tokens are the same numbers on both
sides. llama.cpp is called in this process by its C interface, without server and sampler; looking for the likeliest token is
left out of its time, and is part of ours.
With one thread both are pinned to CPU 1, with two to CPUs 0 and 1. Every round measures each shape on both, one after the
other, so that other load falls on both. Prints the medians of all rounds, and the ratio ours / llama.cpp.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from llama_cpp import Llama
from models import ROOT, model_path, table

SHAPES = ["prefill/38", "prefill/128", "prefill/512", "decode/b1", "decode/b8", "decode/b16", "decode/b32"]
KNOWN, DRAWN, SEQUENCES = 64, 32, 32
TARGETS = {"prefill/128": 0.9, "prefill/512": 0.9, "decode/b1": 1.0, "decode/b8": 1.4, "decode/b16": 1.5}


def token(sequence, position):
    """As in bench/micro/benches/decode.rs: depends on its place only."""
    return (sequence * 7919 + position * 104_729) % 40_000 + 100


def theirs(llama, shape):
    kind, size = shape.split("/")
    llama.forget()
    if kind == "prefill":
        size = int(size)
        rows = [(0, at, token(0, at), at + 1 == size) for at in range(size)]
        start = time.perf_counter()
        llama.step(rows)
        llama.logits(size - 1)
        return size / (time.perf_counter() - start)
    size = int(size[1:])
    for sequence in range(size):
        llama.step([(sequence, at, token(sequence, at), at + 1 == KNOWN) for at in range(KNOWN)])
        llama.logits(KNOWN - 1)
    took = 0.0
    for at in range(KNOWN, KNOWN + DRAWN):
        rows = [(sequence, at, token(sequence, at), True) for sequence in range(size)]
        start = time.perf_counter()
        llama.step(rows)
        for n in range(size):
            llama.logits(n)
        took += time.perf_counter() - start
    return size * DRAWN / took


def ours(bench, shape, threads, cpus):
    command = ["taskset", "-c", cpus, bench, "--bench", "--rounds", "1", "--only", shape, "--threads", str(threads)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in output.splitlines() if line.startswith(shape)]
    if not lines:
        sys.exit(f"{bench} said nothing about {shape}: {output!r}")
    return float(lines[0][1])


def build():
    command = ["cargo", "bench", "-p", "thalweg-micro", "--bench", "decode", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "decode")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="shapes, separated by commas")
    parser.add_argument("--bench", help="our bench binary, if it is built already")
    parser.add_argument("--json", action="store_true", help="an object a line instead of a table")
    options = parser.parse_args()
    path, bench = model_path(), options.bench or build()
    shapes = options.only.split(",") if options.only else SHAPES
    for threads in options.threads:
        cpus = "1" if threads == 1 else f"0-{threads - 1}"
        os.sched_setaffinity(0, {1} if threads == 1 else set(range(threads)))
        llama = Llama(path, threads, SEQUENCES)
        rates = {shape: ([], []) for shape in shapes}
        # What is done once (pages touched, caches of the library filled) is no round.
        for shape in shapes:
            theirs(llama, shape)
        for number in range(options.rounds):
            print(f"{threads} threads: round {number + 1} of {options.rounds}", file=sys.stderr)
            for shape, (mine, other) in rates.items():
                mine.append(ours(bench, shape, threads, cpus))
                other.append(theirs(llama, shape))
        rows = []
        for shape, (mine, other) in rates.items():
            a, b = statistics.median(mine), statistics.median(other)
            target = TARGETS.get(shape)
            verdict = "" if target is None else f">= {target} {'held' if a / b >= target else 'missed'}"
            rows.append((shape, f"{a:.1f}", f"{b:.1f}", f"{a / b:.2f}", verdict))
            if options.json:
                figures = {"name": shape, "threads": threads, "ours": a, "llama_cpp": b, "ratio": a / b}
                print(json.dumps(figures), flush=True)
        if not options.json:
            print(f"\n{threads} thread{'s' if threads > 1 else ''}, tokens/s, medians of {options.rounds}; llama.cpp {llama.version}")
            table(["shape", "ours", "llama.cpp", "ratio", "target"], rows)


if __name__ == "__main__":
    main()
