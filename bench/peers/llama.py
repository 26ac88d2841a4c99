#!/usr/bin/env python3
"""Tokens per second of our forward pass beside llama.cpp: same GGUF, same shapes, one thread, in alternation.

    pip install xllamacpp            # llama.cpp, prebuilt
    python3 bench/peers/llama.py [--rounds 7] [--only decode/b1,decode/b16] [--bench PATH]

Shapes as in bench/micro/benches/decode.rs: prefill/N computes a prompt of N tokens; decode/bN takes N sequences of 64 tokens
32 tokens further, greedily. A batch of llama.cpp is timed as the difference of N concurrent requests for 33 tokens and for 1,
so that its prefill and its HTTP drop out. Prints the medians of all rounds, and the ratio ours / llama.cpp.
Both run pinned to the CPU given by --cpu (default 1); their rounds alternate, so that other load falls on both.
"""
import argparse, concurrent.futures, json, os, pathlib, statistics, subprocess, sys, time, urllib.request

SHAPES = ["prefill/38", "prefill/128", "prefill/512", "decode/b1", "decode/b8", "decode/b16"]
KNOWN, DRAWN = 64, 32


def model_path():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    models = pathlib.Path(os.environ.get("THALWEG_MODELS") or cache / "thalweg/models")
    path = models / "smollm2-135m/model.gguf"
    if not path.is_file():
        sys.exit(f"{path} is missing: run `cargo run --release -- models pull smollm2-135m` first")
    return path


class Llama:
    """llama.cpp's server in this process, one thread for everything it computes."""

    def __init__(self, path):
        try:
            import xllamacpp
        except ImportError:
            sys.exit("xllamacpp is missing: pip install xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.cache_ram_mib = 16 * 1024, 16, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)
        self.url = self.server.listening_address + "/completion"
        self.asked = 0

    def ask(self, prompt_tokens, tokens, seed):
        prompt = [(seed * 7919 + n * 104729) % 40000 + 100 for n in range(prompt_tokens)]
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))["timings"]

    def batch(self, size, tokens):
        self.asked += size
        with concurrent.futures.ThreadPoolExecutor(size) as pool:
            start = time.perf_counter()
            list(pool.map(lambda n: self.ask(KNOWN, tokens, self.asked + n), range(size)))
            return time.perf_counter() - start

    def rate(self, shape):
        kind, size = shape.split("/")
        if kind == "prefill":
            self.asked += 1
            return self.ask(int(size), 1, self.asked)["prompt_per_second"]
        size = int(size[1:])
        short = self.batch(size, 1)
        return size * DRAWN / (self.batch(size, 1 + DRAWN) - short)


def ours(bench, shape):
    output = subprocess.run([bench, "--bench", "--rounds", "1", "--only", shape], capture_output=True, text=True, check=True)
    return float(output.stdout.split()[-1])


def build():
    command = ["cargo", "bench", "-p", "thalweg-micro", "--bench", "decode", "--no-run", "--message-format", "json"]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return next(m["executable"] for m in found if m.get("executable") and m["target"]["name"] == "decode")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="shapes, separated by commas")
    parser.add_argument("--bench", help="our bench binary, if it is built already")
    parser.add_argument("--cpu", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    path, bench = model_path(), options.bench or build()
    os.sched_setaffinity(0, {options.cpu})
    llama = Llama(path)
    rates = {shape: ([], []) for shape in (options.only.split(",") if options.only else SHAPES)}
    for _ in range(options.rounds):
        for shape, (mine, theirs) in rates.items():
            mine.append(ours(bench, shape))
            theirs.append(llama.rate(shape))
    print(f"{'tokens/s, medians':<18}{'ours':>9}{'llama.cpp':>11}{'ratio':>8}")
    for shape, (mine, theirs) in rates.items():
        a, b = statistics.median(mine), statistics.median(theirs)
        if options.json:
            print(json.dumps({"name": shape, "ours": a, "llama_cpp": b, "ratio": a / b}))
        else:
            print(f"{shape:<18}{a:>9.1f}{b:>11.1f}{a / b:>8.2f}")


main()
