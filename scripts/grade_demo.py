#!/usr/bin/env python3
"""Grades results of `ptrt generate` against the right answers, by exact match of the text.

    python scripts/grade_demo.py RESULTS.jsonl [--answers FILE] [--min PERCENT]

Prints the share of right answers per task (the part of the id before its number) and in total. A
question without a result, or with an error instead of one, counts as wrong. Exit status: 0, or 1 if the
total is below --min, or 2 if a file cannot be used.
"""

import argparse
import json
import sys
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="a results file; ids without an answer are ignored")
    parser.add_argument("--answers", default=DEMO / "answers.jsonl", help="default: the demo's")
    parser.add_argument("--min", type=float, default=0.0, metavar="PERCENT", help="exit 1 below this total")
    parser.add_argument("--show", type=int, default=5, metavar="N", help="wrong answers to print (default 5)")
    args = parser.parse_args()
    try:
        texts = {line["id"]: line.get("text") for line in read_lines(args.results)}
        answers = {line["id"]: line["answer"] for line in read_lines(args.answers)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"grade_demo: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if not answers:
        print(f"grade_demo: no answers in {args.answers}", file=sys.stderr)
        return 2
    tasks, wrong = {}, []
    for key, answer in answers.items():
        right = texts.get(key) == answer
        tasks.setdefault(key.rpartition("-")[0], []).append(right)
        if not right:
            wrong.append(key)
    for key in wrong[:args.show]:
        print(f"wrong: {key}: {texts.get(key)!r}, right is {answers[key]!r}")
    for task, flags in tasks.items():
        print(f"{task:10} {sum(flags):4} of {len(flags):4}  {100 * sum(flags) / len(flags):6.2f} %")
    total = len(answers) - len(wrong)
    percent = 100 * total / len(answers)
    print(f"{'total':10} {total:4} of {len(answers):4}  {percent:6.2f} %")
    return 1 if percent < args.min else 0


if __name__ == "__main__":
    sys.exit(main())
