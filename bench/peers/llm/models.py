"""Where things lie, and tables."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
RELEASE = ROOT / "target" / "release"


def model_path():
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    models = pathlib.Path(os.environ.get("THALWEG_MODELS") or cache / "thalweg/models")
    path = models / "smollm2-135m/model.gguf"
    if not path.is_file():
        sys.exit(f"{path} is missing: run `cargo run --release -- models pull smollm2-135m` first")
    return path


def table(head, rows):
    """A markdown table; the first column is text, the others are numbers or text that is as good as one."""
    print("| " + " | ".join(head) + " |")
    print("|---" + "|--:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)
