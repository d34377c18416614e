#!/usr/bin/env python3
"""What int8 and float8 matrices do to a model: log-probabilities and the demo's grade beside those of the model as given.

    perf/weight_accuracy.py examples/demo/demo.h5 --answers --out FILE.json           the demo's held-out questions
    perf/weight_accuracy.py MODEL.h5 --text README.md docs/SPEC.md --out FILE.json    text files, in pieces

`ptrt quantize` makes the other files; `ptrt score` gives the log-probability of every token of the texts but each first.
Differences are from the model as given. With --answers the texts are the demo's questions with their answers; `of_answers`
are the tokens of the answers alone, as the numbers and names of the questions cannot be known. `ptrt generate` answers the
questions too, and scripts/grade_demo.py's rule counts what is right.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

DEMO = ROOT / "examples" / "demo"
NARROW = ("int8", "fp8_e4m3")


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def pieces(paths, size):
    """Runs of whole lines of the files, of about `size` characters."""
    for path in paths:
        piece = ""
        for line in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
            piece += line
            if len(piece) >= size:
                yield piece
                piece = ""
        if len(piece) > size // 4:
            yield piece


class Measurement:
    def __init__(self, args, folder):
        self.args, self.folder = args, Path(folder)
        self.answers = {line["id"]: line["answer"] for line in lines(DEMO / "answers.jsonl")} if args.answers else {}
        self.questions = lines(DEMO / "heldout.jsonl") if args.answers else []
        texts = [question["prompt"] + self.answers[question["id"]] for question in self.questions]
        texts += pieces(args.text, args.size)
        if not texts:
            raise SystemExit("weight_accuracy: no texts: give --text or --answers")
        self.texts = [{"id": str(number), "prompt": text} for number, text in enumerate(texts)]

    def run(self, command, model, rows, options):
        requests, results = self.folder / "requests.jsonl", self.folder / "results.jsonl"
        requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        subprocess.run([self.args.ptrt, command, model, requests, "-o", results, "--quiet", *options], check=True)
        return lines(results)

    def files(self):
        """The model's own matrices, then the others, with the name of what they are."""
        yield "as given", Path(self.args.model)
        for weights in NARROW:
            path = self.folder / f"{weights}.h5"
            subprocess.run([self.args.ptrt, "quantize", self.args.model, "-o", path, "--weights", weights], check=True,
                           stdout=subprocess.DEVNULL)
            yield weights, path

    def log_probs(self, model):
        """Of all tokens but each text's first; and of those of answers, which the demo reads as bytes."""
        found = self.run("score", model, self.texts, ["--compute", self.args.compute])
        lengths = [len(self.answers[question["id"]].encode()) for question in self.questions]
        return ([value for line in found for value in line["logprobs"][1:]],
                [value for line, length in zip(found, lengths) for value in line["logprobs"][-length:]])

    def right(self, model):
        found = self.run("generate", model, self.questions, ["--compute", self.args.compute])
        return sum(line.get("text") == self.answers[line["id"]] for line in found)


def weights_of(args, path):
    told = subprocess.run([args.ptrt, "inspect", path, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    return found["bytes"]["total"], found["datasets"]["by_type"]


def compared(values, base):
    away = [abs(a - b) for a, b in zip(values, base, strict=True)]
    return {"tokens": len(values), "mean_difference": sum(away) / len(away), "max_difference": max(away),
            "perplexity": math.exp(-sum(values) / len(values))}


def measure(args):
    with tempfile.TemporaryDirectory() as folder:
        measurement, rows, base = Measurement(args, folder), {}, {}
        for weights, path in measurement.files():
            total, types = weights_of(args, path)
            row = rows[weights] = {"bytes": total, "datasets": types}
            values, of_answers = measurement.log_probs(path)
            row |= compared(values, base.setdefault("all", values))
            if args.answers:
                row["of_answers"] = compared(of_answers, base.setdefault("of_answers", of_answers))
                row["right"] = measurement.right(path)
            print(f"{weights:9} {json.dumps(row)}", flush=True)
        return rows, len(measurement.questions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--answers", action="store_true", help="the demo's held-out questions and answers")
    parser.add_argument("--text", nargs="+", default=[], help="text files")
    parser.add_argument("--size", type=int, default=2000, help="characters of a piece of text (default 2000)")
    parser.add_argument("--compute", default="float32", help="as of ptrt (default float32: the weights alone differ)")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rows, questions = measure(args)
    command = ["perf/weight_accuracy.py", Path(args.model).name, "--compute", args.compute, *(["--answers"] if args.answers else []),
               *(["--text", *args.text] if args.text else [])]
    result = {"machine": machine(), "commit": commit(), "command": " ".join(command),
              **({"questions": questions} if args.answers else {}), "weights": rows}
    Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
