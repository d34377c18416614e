#!/usr/bin/env python3
"""Lines to copy and to edit: what the model of perf/bench_speculation.py learns, and prompts that it has not seen.

    perf/copy_text.py train --out text.txt              examples to train on, for scripts/train_pt.py
    perf/copy_text.py prompts --out requests.jsonl      held-out requests, for ptrt

An example is a line of 64 characters and the result: the same line, or one with every "e" as "a". Words to train on are made of
random letters; those of held-out requests are English words, none of which is trained on. All lines are of one length so that
a few hundred steps of training are enough: the model learns how far back to look.
"""
import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import demo_tasks  # noqa: E402

LETTERS = "abcdeefghijklmnopqrstuvwxyz"
HELD_OUT = demo_tasks.GRADED_WORDS
WIDTH = 64


def made_word(rng):
    """A word to train on."""
    while True:
        word = "".join(rng.choices(LETTERS, k=rng.randint(2, 7)))
        if word not in HELD_OUT:
            return word


def line_of(rng, word):
    """Words, the last of which is cut; `word` makes them."""
    line = word(rng)
    while len(line) < WIDTH:
        line += " " + word(rng)
    return line[:WIDTH]


def example(rng, word):
    """The task, and its result without the end of the line."""
    line = line_of(rng, word)
    if rng.random() < 0.5:
        return f"copy: {line}\n=", line
    return f"edit: {line}\n=", line.replace("e", "a")


def training_text(count, seed=1):
    rng = random.Random(f"train {seed}")
    return "".join("".join(example(rng, made_word)) + "\n" for _ in range(count))


def prompts(count, seed=1):
    """Requests of held-out words. Their results, in `metadata`, end with the end of the line."""
    rng = random.Random(f"prompts {seed}")
    requests = []
    for number in range(count):
        task, result = example(rng, lambda r: r.choice(HELD_OUT))
        requests.append({"id": str(number), "prompt": task, "metadata": {"expected": result + "\n"}, "max_tokens": len(result) + 1})
    return requests


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "prompts"))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--examples", type=int, help="default: 20000 to train on, 24 prompts")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.what == "train":
        text = training_text(args.examples or 20000, args.seed)
    else:
        text = "".join(json.dumps(request) + "\n" for request in prompts(args.examples or 24, args.seed))
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
