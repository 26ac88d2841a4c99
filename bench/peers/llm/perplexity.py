#!/usr/bin/env python3
"""What llama.cpp makes of a fixed text and of fixed prompts: the figures that the tests of our forward pass are held against.

    pip install xllamacpp
    python3 bench/peers/llm/perplexity.py > inference/worker/tests/data/llama_cpp.json

The text is inference/worker/tests/data/harbour.txt, written for this purpose and free of rights. It is computed as one
sequence from its first token, without a begin token; the perplexity is exp of the mean negative log-likelihood of every token
but the first. Each prompt is continued greedily, 48 tokens; beside each token stands how far its logit was above the second
likeliest one's, because where two are as good as equal, either is right.
"""

import json
import math

from llama_cpp import Llama
from models import ROOT, model_path

TEXT = "inference/worker/tests/data/harbour.txt"
DRAWN = 48
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, there was a little girl named",
    "1, 2, 3, 4, 5, 6, 7,",
    "def add(a, b):\n    return",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "Monday, Tuesday, Wednesday,",
    "Photosynthesis is the process by which",
]


def main():
    llama = Llama(model_path(), threads=1, tokens=2048)
    text = (ROOT / TEXT).read_text()
    tokens = llama.tokenize(text)
    llama.step([(0, at, token, True) for at, token in enumerate(tokens)])
    likelihoods = [log_likelihood(llama.logits(at), tokens[at + 1]) for at in range(len(tokens) - 1)]
    mean = -sum(likelihoods) / len(likelihoods)
    greedy = [{"prompt": prompt, **continued(llama, prompt)} for prompt in PROMPTS]
    answer = {
        "made_by": f"bench/peers/llm/perplexity.py with xllamacpp {llama.version}",
        "model": "smollm2-135m, Q4_1",
        "text": TEXT,
        "tokens": tokens,
        "mean_negative_log_likelihood": round(mean, 6),
        "perplexity": round(math.exp(mean), 4),
        "greedy": greedy,
    }
    print("{")
    for n, (key, value) in enumerate(answer.items()):
        last = n + 1 == len(answer)
        if key == "greedy":
            print('  "greedy": [\n    ' + ",\n    ".join(json.dumps(item) for item in value) + "\n  ]")
        else:
            print(f"  {json.dumps(key)}: {json.dumps(value)}{'' if last else ','}")
    print("}")


def log_likelihood(logits, token):
    values = list(logits)
    most = max(values)
    return values[token] - most - math.log(math.fsum(math.exp(value - most) for value in values))


def continued(llama, prompt):
    llama.forget()
    tokens = llama.tokenize(prompt)
    rows = [(0, at, token, at + 1 == len(tokens)) for at, token in enumerate(tokens)]
    drawn, margins = [], []
    while len(drawn) < DRAWN:
        llama.step(rows)
        values = list(llama.logits(len(rows) - 1))
        best = max(range(len(values)), key=values.__getitem__)
        first, second = values[best], max(value for at, value in enumerate(values) if at != best)
        drawn.append(best)
        margins.append(round(first - second, 3))
        rows = [(0, len(tokens) + len(drawn) - 1, best, True)]
    return {"prompt_tokens": tokens, "tokens": drawn, "margins": margins}


if __name__ == "__main__":
    main()
