#!/usr/bin/env python3
"""What llama.cpp makes of the small models that the tests of our architectures write: their figures are held against these.

    pip install xllamacpp
    THALWEG_SMALL_MODELS=/tmp/small cargo test --profile ci -p thalweg-worker --test architectures
    python3 bench/peers/llm/architectures.py /tmp/small > inference/worker/tests/data/llama_cpp_small.json

The models have random weights and a small vocabulary each. Of each: the tokens of TEXTS, control tokens taken for text, and the
log-likelihood of every token but the first of a sequence that is a function of positions alone. Both are as in
inference/worker/tests/architectures.rs and its folder small/, from whose source the texts are read.
"""

import ast
import json
import math
import pathlib
import re
import sys

from llama_cpp import Llama
from models import ROOT

SOURCE = ROOT / "inference/worker/tests/small/mod.rs"
ARCHITECTURES = ["llama", "qwen2", "qwen3"]
STORY = [(n * n * 7 + n * 31) % 250 for n in range(90)]


def texts():
    body = re.search(r"const TEXTS: &\[&str\] = &\[\n(.*?)\n\];", SOURCE.read_text(), re.S).group(1)
    unescaped = lambda text: ast.literal_eval(re.sub(r"\\u\{([0-9a-f]+)\}", lambda m: f"\\U{m[1]:0>8}", text))
    return [unescaped(line.strip().rstrip(",")) for line in body.splitlines()]


def log_likelihood(logits, token):
    values = list(logits)
    most = max(values)
    return values[token] - most - math.log(math.fsum(math.exp(value - most) for value in values))


def main():
    folder = pathlib.Path(sys.argv[1])
    models, version = [], None
    for architecture in ARCHITECTURES:
        llama = Llama(str(folder / f"{architecture}.gguf"), threads=1, tokens=256)
        version = llama.version
        llama.step([(0, at, token, True) for at, token in enumerate(STORY)])
        likelihoods = [round(log_likelihood(llama.logits(at), STORY[at + 1]), 5) for at in range(len(STORY) - 1)]
        tokens = [llama.tokenize(text) for text in texts()]
        models.append({"architecture": architecture, "texts": tokens, "log_likelihoods": likelihoods})
    print("{")
    print(f'  "made_by": "bench/peers/llm/architectures.py with xllamacpp {version}",')
    print('  "models": [\n    ' + ",\n    ".join(json.dumps(model) for model in models) + "\n  ]\n}")


if __name__ == "__main__":
    main()
