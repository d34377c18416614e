#!/usr/bin/python3
"""--speculate changes no byte of the results, however the requests are placed, batched, paged and resumed."""

import json
import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402


def requests(count: int) -> list[dict]:
    """Prompts that repeat themselves; random weights do so too when they are greedy."""
    rng = np.random.default_rng(5)
    rows: list[dict] = []
    for index in range(count):
        part = [int(token) for token in rng.integers(0, 256, size=3 + index % 9)]
        row: dict = {"tokens": part * 3, "max_tokens": (40, 1, 17, 64)[index % 4], "logprobs": index % 2 == 0}
        if index % 3 == 1:
            row |= {"temperature": 0.3, "seed": index, "top_k": 5}
        if index % 5 == 3:
            row["stop"] = [chr(c) for c in range(97, 123)]
        rows.append(row)
    return rows


class Speculate(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=4, sync_layers=[2, 4], hidden_size=32, ffn_size=64, heads=2, max_context=128,
                             eos_token_ids=[257, 7, 90])
        cls.model = write_random(cls.fresh(".h5"), config, 3)
        cls.rows = requests(20)

    def test_same_bytes(self) -> None:
        want = self.batch("generate", self.model, self.rows)
        self.assertNotIn("speculation", self.last_outcome.output)
        # Pages for the longest request and one more: sequences give up their pages.
        few = f"--kv-cache-bytes {8 * 16 * 2 * 4 * 2 * 2 * 16 * 4}"
        for ranks, options in ((None, "--speculate ngram"), (None, "--speculate ngram:31 --max-batch 1"),
                               (None, f"--speculate ngram:3 {few}"), (2, "--speculate ngram --vocab-head split"),
                               (4, "--speculate ngram:5"), (2, "--speculate ngram --max-step-tokens 12 --max-batch 8"),
                               (None, "--speculate off")):
            with self.subTest(ranks=ranks, options=options):
                self.assertEqual(self.batch("generate", self.model, self.rows, *options.split(), ranks=ranks), want)
                told = self.last_outcome.output
                self.assertIn("  an output token", told)
                self.assertEqual("tokens drafted" in told, "ngram" in options, told)
                self.assertEqual("preemptions" in told, "kv-cache" in options, told)

    def test_tensor_parallel(self) -> None:
        split = ("--tensor-parallel", "2")
        want = self.batch("generate", self.model, self.rows, *split, ranks=4)
        self.assertEqual(self.batch("generate", self.model, self.rows, *split, "--speculate", "ngram", ranks=4), want)

    def test_resume(self) -> None:
        """A run is continued with or without drafts: the journal is the same."""
        want = self.batch("generate", self.model, self.rows)
        file, results = write_requests(self.fresh(".jsonl"), self.rows), self.fresh("-results.jsonl")
        words = ("generate", self.model, file, "-o", results, "--max-batch", 2, "--quiet")
        failed = ptrt(*words, "--speculate", "ngram", env={"PTRT_FAULT": "rank=0,at=step,after=30"})
        self.assertEqual(failed.status, 1, failed.output)
        self.assert_done(ptrt(*words, "--resume"))
        self.assertEqual(results.read_bytes(), want)

    def test_figures(self) -> None:
        """What a bench tells: with drafts of known outputs, as many are right as it was told to make."""
        file = write_requests(self.fresh(".jsonl"), [{"tokens": [i, 2, 3], "max_tokens": 60} for i in range(4)])
        found = {}
        for options in ("", "--speculate ngram:4 --force-acceptance 0", "--speculate ngram:4 --force-acceptance 1"):
            out, metrics = self.fresh(".json"), self.fresh(".prom")
            self.assert_done(ptrt("bench", self.model, "--dataset", file, "--max-batch", 1, "--warmup", 0, "--quiet",
                                  "--json", out, "--metrics", metrics, *options.split()))
            found[options] = json.loads(out.read_text())
            self.assertIn(f"ptrt_accepted_tokens_total{{replica=\"0\"}} {found[options]['accepted_tokens']}\n",
                          metrics.read_text().replace(".0\n", "\n"))
        off, wrong, right = found.values()
        self.assertEqual((off["drafted_tokens"], off["acceptance"], off["drafts"]), (0, None, 0))
        self.assertEqual((wrong["accepted_tokens"], wrong["acceptance"], wrong["forced_acceptance"]), (0, 0, 0))
        self.assertGreater(wrong["drafted_tokens"], 200)
        self.assertEqual(right["acceptance"], 1)
        # The first token is the prefill's; the other 59 come five a step, where one is left for the last.
        self.assertEqual(right["accepted_tokens"], 4 * 47)
        self.assertAlmostEqual(off["sync_points_per_output_token"], 2)
        self.assertAlmostEqual(right["sync_points_per_output_token"], 2 * 13 / 60)

    def test_bad_options(self) -> None:
        file = write_requests(self.fresh(".jsonl"), [{"tokens": [1]}])
        for value in ("ngram:0", "ngram:32", "ngram:", "ngram:x", "ngrams", "on", ""):
            with self.subTest(value=value):
                outcome = ptrt("generate", self.model, file, "-o", self.fresh(".jsonl"), "--speculate", value)
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertIn("expected off, ngram or ngram:K, K in 1..31", outcome.output)
        outcome = ptrt("score", self.model, file, "-o", self.fresh(".jsonl"), "--speculate", "ngram")
        self.assertEqual(outcome.status, 2, outcome.output)
        outcome = ptrt("bench", self.model, "--force-acceptance", "0.5")
        self.assertEqual(outcome.status, 2, outcome.output)


if __name__ == "__main__":
    unittest.main()
