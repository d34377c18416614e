#!/usr/bin/python3
"""Sampling: it follows the requested distribution, and depends only on seed and position in the output."""

import math
import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest  # noqa: E402
from model_maker import table_config, table_tensors, write_model  # noqa: E402
from pt_reference import log_softmax  # noqa: E402

VOCAB = 67
DRAWS = 4000
# Seeds are fixed, so a passing build keeps passing; a right sampler meets such a value once in 10^6 cases.
LARGEST_Z = 5.0


def expected(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, then top_k, then top_p, in this order."""
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")
    keep = order[:top_k] if top_k else order
    chances = np.exp(scaled[keep] - scaled[keep[0]])
    chances /= chances.sum()
    if top_p < 1:
        before = np.cumsum(chances) - chances
        if np.min(np.abs(np.cumsum(chances) - top_p)) < 1e-4:
            raise ValueError("top_p lies on an edge")
        keep, chances = keep[before < top_p], chances[before < top_p]
        chances = chances / chances.sum()
    out = np.zeros(len(logits))
    out[keep] = chances
    return out


def chi_square_z(counts: np.ndarray, chances: np.ndarray) -> float:
    """How many standard deviations a chi-square statistic lies above its mean (Wilson and Hilferty)."""
    total = counts.sum()
    common = chances * total >= 5
    seen = np.append(counts[common], counts[~common].sum()).astype(float)
    wanted = np.append(chances[common] * total, chances[~common].sum() * total)
    if wanted[-1] < 1:  # too rare for the chi-square test; impossible ones are checked elsewhere
        seen, wanted = seen[:-1], wanted[:-1]
    freedom = len(seen) - 1
    if freedom == 0:
        return 0.0
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


class Sampling(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        rng = np.random.default_rng(9)
        cls.row = rng.standard_normal(VOCAB) * 1.5
        # The same distribution after every token: draws at all positions have it.
        config = table_config(VOCAB, max_context=256)
        flat = table_tensors(config, np.tile(cls.row, (VOCAB, 1)))
        cls.flat = write_model(cls.dir / "flat.h5", config, flat, tokenizer=None)
        cls.table = rng.standard_normal((VOCAB, VOCAB)) * 1.5
        varied = table_tensors(config, cls.table)
        cls.varied = write_model(cls.dir / "varied.h5", config, varied, tokenizer=None)

    def draw(self, rows: list[dict], *options) -> list[list[int]]:
        return [line["tokens"] for line in self.lines("generate", self.flat, rows, *options)]

    def check(self, tokens: list[int], chances: np.ndarray, what: str) -> None:
        counts = np.bincount(tokens, minlength=VOCAB)
        self.assertEqual(counts[chances == 0].sum(), 0, f"{what}: tokens that were ruled out")
        self.assertLess(chi_square_z(counts, chances), LARGEST_Z, what)

    def test_frequencies(self) -> None:
        settings = [(1.0, 0, 1.0), (0.6, 0, 1.0), (2.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8),
                    (1.5, 12, 0.75), (0.7, 200, 0.5), (1.0, 0, 0.01)]
        rows = [{"id": f"{case}-{seed}", "tokens": [3], "max_tokens": 1, "seed": seed,
                 "temperature": temperature, "top_k": top_k, "top_p": top_p}
                for case, (temperature, top_k, top_p) in enumerate(settings) for seed in range(DRAWS)]
        tokens = [row[0] for row in self.draw(rows)]
        for case, setting in enumerate(settings):
            with self.subTest(setting=setting):
                ours = tokens[case * DRAWS:(case + 1) * DRAWS]
                self.check(ours, expected(self.row, *setting), str(setting))

    def test_the_order_of_cuts_shows(self) -> None:
        """Checks the test above: another order of temperature, top_k and top_p would keep other tokens."""
        kept = expected(self.row, 1.5, 12, 0.75) > 0
        cold_first = expected(self.row, 1.0, 12, 0.75) > 0
        nucleus_of_all = expected(self.row, 1.5, 0, 0.75) > 0
        self.assertNotEqual(kept.sum(), cold_first.sum())
        self.assertNotEqual(kept.sum(), min(12, nucleus_of_all.sum()))

    def test_positions(self) -> None:
        """Draws along an output are as independent as draws of many outputs."""
        rows = [{"tokens": [3], "max_tokens": 200, "seed": seed, "temperature": 1} for seed in range(40)]
        outputs = self.draw(rows)
        chances = expected(self.row, 1.0, 0, 1.0)
        self.check([token for row in outputs for token in row], chances, "all positions")
        pairs = [a * VOCAB + b for row in outputs for a, b in zip(row, row[1:])]
        counts = np.bincount(pairs, minlength=VOCAB * VOCAB)
        both = np.outer(chances, chances).ravel()
        self.assertLess(chi_square_z(counts, both), LARGEST_Z, "neighbouring positions")

    def test_seeds_alone_decide(self) -> None:
        rows = [{"id": "a", "tokens": [1, 2, 3], "seed": 5, "temperature": 1, "max_tokens": 30},
                {"id": "b", "tokens": [60] * 20, "seed": 5, "temperature": 1, "max_tokens": 30},
                {"id": "c", "tokens": [1, 2, 3], "seed": 6, "temperature": 1, "max_tokens": 30},
                {"id": "d", "tokens": [1, 2, 3], "seed": 5, "temperature": 1, "max_tokens": 12}]
        a, b, c, d = self.draw(rows)
        self.assertEqual(a, b, "randomness depends on seed and position alone")
        self.assertNotEqual(a, c)
        self.assertEqual(a[:12], d)
        alone = [self.draw([row])[0] for row in rows]
        self.assertEqual(alone, [a, b, c, d], "neighbours change nothing")

    def test_no_seed_comes_from_the_id(self) -> None:
        def row(name: str) -> dict:
            return {"id": name, "tokens": [1], "temperature": 1, "max_tokens": 30}

        x, y, z = self.draw([row("x"), row("y"), row("z")])
        self.assertNotEqual(x, y)
        self.assertNotEqual(y, z)
        self.assertEqual(self.draw([row("z"), row("x")]), [z, x], "the place in the file changes nothing")

    def test_one_choice_is_greedy(self) -> None:
        best = int(np.argmax(self.row))
        rows = [{"tokens": [1], "temperature": 5, "top_k": 1, "seed": 3},
                {"tokens": [1], "temperature": 1e-9},
                {"tokens": [1], "temperature": 3, "top_p": 1e-9}, {"tokens": [1], "temperature": 1e-300},
                {"tokens": [1], "top_k": 50, "top_p": 0.9}]
        for tokens in self.draw(rows):
            self.assertEqual(tokens, [best] * 16)

    def test_logprobs_come_before_temperature(self) -> None:
        rows = [{"tokens": [start], "temperature": temperature, "top_k": top_k, "seed": start,
                 "logprobs": True}
                for start, (temperature, top_k) in enumerate([(0, 0), (0.5, 0), (2.0, 3), (1.0, 1)])]
        chances = log_softmax(self.table)
        for row, line in zip(rows, self.lines("generate", self.varied, rows)):
            path = row["tokens"] + line["tokens"]
            want = [chances[a, b] for a, b in zip(path, path[1:])]
            np.testing.assert_allclose(line["logprobs"], want, atol=1e-3)


if __name__ == "__main__":
    unittest.main(verbosity=1)
