#!/usr/bin/env python3
"""Compares the demo model on the GPU with the CPU.

    scripts/gpu/compare_demo.py texts FILE      writes the held-out questions with their answers, to be scored
    scripts/gpu/compare_demo.py compare FOLDER  compares scores_cpu.jsonl with scores_cuda.jsonl, and answers_*.jsonl

Passes when log-probabilities differ by at most 0.03 a token in the mean and as many answers are right. FOLDER/demo.json
has the figures. Exit status: 0, 1 if the comparison fails, 2 if the files do not match.
"""
import json
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent.parent / "examples" / "demo"
LIMIT = 3e-2


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_texts(path):
    answers = {line["id"]: line["answer"] for line in lines(DEMO / "answers.jsonl")}
    with open(path, "w", encoding="utf-8") as file:
        for line in lines(DEMO / "heldout.jsonl"):
            file.write(json.dumps({"id": line["id"], "prompt": line["prompt"] + answers[line["id"]]}) + "\n")
    return 0


def mean_difference(cpu, cuda):
    """Over all tokens but each text's first, which has no log-probability."""
    total, count = 0.0, 0
    if len(cpu) != len(cuda) or not cpu:
        raise ValueError(f"{len(cpu)} and {len(cuda)} scores")
    for one, other in zip(cpu, cuda):
        if one["id"] != other["id"] or one.get("tokens") != other.get("tokens"):
            raise ValueError(f"scores of {one['id']} and {other['id']} are of different texts")
        for a, b in zip(one["logprobs"][1:], other["logprobs"][1:]):
            total += abs(a - b)
            count += 1
    return total / count


def right(results):
    answers = {line["id"]: line["answer"] for line in lines(DEMO / "answers.jsonl")}
    return sum(line.get("text") == answers.get(line["id"]) for line in results)


def compare(folder):
    difference = mean_difference(lines(folder / "scores_cpu.jsonl"), lines(folder / "scores_cuda.jsonl"))
    right_cpu, right_cuda = (right(lines(folder / f"answers_{device}.jsonl")) for device in ("cpu", "cuda"))
    passed = difference <= LIMIT and right_cpu == right_cuda
    figures = {"mean_difference": difference, "limit": LIMIT, "right_cpu": right_cpu, "right_cuda": right_cuda,
               "passed": passed}
    (folder / "demo.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(f"mean |difference| of a log-probability {difference:.2e} (limit {LIMIT}); right answers {right_cpu} on the CPU, "
          f"{right_cuda} on the GPU")
    return 0 if passed else 1


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("texts", "compare"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return write_texts(sys.argv[2]) if sys.argv[1] == "texts" else compare(Path(sys.argv[2]))
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        print(f"compare_demo: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
