#!/usr/bin/env python3
"""How long chats are: makes bench/load/src/tokens/chat_lengths.rs.

    pip download --no-deps chitchat-dataset==0.9.0 && unzip chitchat_dataset-0.9.0-py3-none-any.whl
    python3 bench/load/chat_lengths.py chitchat_dataset/dataset.json > bench/load/src/tokens/chat_lengths.rs

The data are 7,168 open-domain conversations of students who met on a site of the BYU PCC lab (MIT licence). For every turn
but the first of a conversation: the words of all that was said before, which is what a model is given, and the words of the
turn itself, which stands for the answer. People answer each other in fewer words than models answer people.
"""

import json
import random
import sys

PAIRS, SEED, WORDS_MAX = 256, 1, 600


def words(turn):
    return sum(len(message["text"].split()) for message in turn)


def main():
    conversations = json.load(open(sys.argv[1]))
    pairs = []
    for name in sorted(conversations):
        lengths = [words(turn) for turn in conversations[name]["messages"]]
        for at in range(1, len(lengths)):
            before = sum(lengths[:at])
            if 0 < before <= WORDS_MAX and lengths[at] > 0:
                pairs.append((before, lengths[at]))
    chosen = random.Random(SEED).sample(pairs, PAIRS)
    print(f"//! Lengths of real chats: {PAIRS} of {len(pairs):,} turns of the PyPI package `chitchat-dataset` 0.9.0 (MIT), drawn by seed.")
    print("//! Made by bench/load/chat_lengths.py, which says what they are; not to be edited.\n")
    print("/// Words said before a turn, and words of the turn.")
    print("#[rustfmt::skip]")
    print(f"pub(super) const TURNS: [(u16, u16); {PAIRS}] = [")
    for at in range(0, PAIRS, 12):
        print("    " + " ".join(f"({before}, {answer})," for before, answer in chosen[at : at + 12]))
    print("];")


if __name__ == "__main__":
    main()
