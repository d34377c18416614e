#!/usr/bin/python3
"""The error of rounded products: the demo model's held-out text with bfloat16 and int8 products, against the float64
reference on the same stored weights."""

import json
import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import ROOT, CliTest, ptrt  # noqa: E402
import pt_reference as ref  # noqa: E402

DEMO = ROOT / "examples" / "demo"
TEXTS = 50  # of the 500, every task among them
LARGEST_MEAN = {"bfloat16": 2e-2, "int8": 5e-2}  # of |difference of log-probabilities|, over tokens


def lines_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


class Products(CliTest):
    def mean_error(self, model: Path, compute: str) -> float:
        answers = {line["id"]: line["answer"] for line in lines_of("answers.jsonl")}
        asked = lines_of("heldout.jsonl")
        rows = [{"prompt": row["prompt"] + answers[row["id"]]} for row in asked[::len(asked) // TEXTS]]
        reference = ref.load(model)
        errors = []
        for line in self.lines("score", model, rows, "--compute", compute, "--quiet"):
            tokens = line["tokens"]
            table = ref.log_probs(reference, tokens)
            want = table[np.arange(len(tokens) - 1), tokens[1:]]
            errors.append(np.abs(np.array(line["logprobs"][1:], dtype=float) - want))
        return float(np.concatenate(errors).mean())

    def right_answers(self, model: Path, compute: str) -> float:
        answers = {line["id"]: line["answer"] for line in lines_of("answers.jsonl")}
        asked = lines_of("heldout.jsonl")
        results = self.lines("generate", model, asked, "--compute", compute, "--quiet")
        return 100 * sum(answers[line["id"]] == line["text"] for line in results) / len(asked)

    def check(self, model: Path, compute: str) -> None:
        error = self.mean_error(model, compute)
        self.assertLessEqual(error, LARGEST_MEAN[compute])
        self.assertGreater(error, 1e-6, "nothing was rounded")
        exact = self.right_answers(DEMO / "demo.h5", "float32")
        rounded = self.right_answers(model, compute)
        print(f"{compute}: mean |difference| {error:.2e}; right answers {rounded:.1f} %, float32 {exact:.1f} %")
        self.assertGreaterEqual(rounded, exact - 1)

    def test_bfloat16(self) -> None:
        self.check(DEMO / "demo.h5", "bfloat16")

    def test_int8(self) -> None:
        quantised = self.fresh(".h5")
        self.assert_done(ptrt("quantize", DEMO / "demo.h5", "-o", quantised, "--weights", "int8"))
        self.check(quantised, "int8")


if __name__ == "__main__":
    unittest.main(verbosity=1)
