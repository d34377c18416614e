#!/usr/bin/python3
"""Log-probabilities and greedy tokens against the float64 reference, over the grid of models."""

import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest  # noqa: E402
import pt_reference as ref  # noqa: E402
from model_grid import GRID, GridModel, prompts  # noqa: E402
from model_maker import write_random  # noqa: E402

TOLERANCE = 1e-3
# Two logits or router scores closer than this may change order in float32; no model here needs it often.
SAFE_MARGIN = 1e-5
NEW_TOKENS = 24


class Accuracy(CliTest):
    """A table holds the reference's log-probabilities [n, V] after each token of a text."""

    def check_score(self, table: np.ndarray, tokens: list[int], line: dict) -> None:
        self.assertEqual(line["tokens"], tokens)
        self.assertEqual(len(line["logprobs"]), len(tokens))
        self.assertIsNone(line["logprobs"][0])
        if len(tokens) == 1:
            self.assertIsNone(line["perplexity"])
            return
        want = table[np.arange(len(tokens) - 1), tokens[1:]]
        got = np.array(line["logprobs"][1:], dtype=float)
        error = np.abs(got - want)
        at = int(error.argmax())
        self.assertLessEqual(error[at], TOLERANCE,
                             f"position {at + 1} of {len(tokens)} is {got[at]}, should be {want[at]}")
        self.assertAlmostEqual(line["sum_logprob"], got.sum(), delta=1e-4 * len(tokens))
        perplexity = np.exp(-got.mean())
        self.assertAlmostEqual(line["perplexity"] / perplexity, 1.0, delta=1e-4)

    def check_greedy(self, table: np.ndarray, eos: list[int], prompt: list[int], line: dict) -> None:
        tokens, chances = line["tokens"], line["logprobs"]
        self.assertEqual(len(tokens), len(chances))
        self.assertEqual(line["usage"], {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)})
        stopped = tokens[-1] in eos
        self.assertEqual(line["finish_reason"], "stop" if stopped else "length")
        self.assertTrue(stopped or len(tokens) == NEW_TOKENS)
        self.assertFalse(set(tokens[:-1]) & set(eos), "went on after the end of the sequence")
        for place, (row, token, chance) in enumerate(zip(table[len(prompt) - 1:], tokens, chances)):
            second, first = np.argsort(row)[-2:]
            if row[first] - row[second] > TOLERANCE:
                self.assertEqual(token, first, f"output token {place} is not the likeliest")
            self.assertAlmostEqual(chance, row[token], delta=TOLERANCE)

    def run_model(self, grid_model: GridModel) -> None:
        path = write_random(self.fresh(".h5"), grid_model.config, grid_model.seed, dtype=grid_model.dtype,
                            **grid_model.file_options)
        model = ref.load(path)
        rows = prompts(grid_model)
        precise = ("--compute", "float32", "--quiet")
        scored = self.lines("score", path, [{"tokens": row} for row in rows], *precise)
        asked = [{"tokens": row, "max_tokens": NEW_TOKENS, "logprobs": True} for row in rows]
        generated = self.lines("generate", path, asked, *precise)
        whole = [row + line["tokens"] for row, line in zip(rows, generated)]
        for row, tokens, score_line, line in zip(rows, whole, scored, generated):
            table = ref.log_probs(model, tokens)
            self.check_score(table, row, score_line)
            self.check_greedy(table, grid_model.config["eos_token_ids"], row, line)
        self.assertGreater(model.router_margin, SAFE_MARGIN, "choose another seed: experts nearly tie")

        # Prefill of the whole text gives what decode gave token by token from the cache.
        again = self.lines("score", path, [{"tokens": tokens} for tokens in whole], *precise)
        for row, line, scored_line in zip(rows, generated, again):
            self.assertEqual(line["logprobs"], scored_line["logprobs"][len(row):],
                             "decode and prefill differ")


def _add_tests() -> None:
    for index, grid_model in enumerate(GRID):
        def test(self: Accuracy, grid_model: GridModel = grid_model) -> None:
            self.run_model(grid_model)
        words = grid_model.name.replace(",", "").replace(" ", "_")
        setattr(Accuracy, f"test_{index:02d}_{words}", test)


_add_tests()

if __name__ == "__main__":
    unittest.main(verbosity=1)
