#!/usr/bin/python3
"""Ranks that share tracks: right against the float64 reference, the same bytes for every placement of the parts."""

import json
import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, ptrt, write_requests  # noqa: E402
import pt_reference as ref  # noqa: E402
from model_grid import GRID, GridModel, prompts  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402
from test_reproducible import generate_requests  # noqa: E402

TOLERANCE = 1e-3


def fits(config: dict, split: int) -> bool:
    widths = {"dense": config["ffn_size"], "moe": (config["moe"] or {}).get("ffn_size")}
    kv = config["kv_heads"]
    return (config["heads"] % split == 0 and (kv % split == 0 or split % kv == 0)
            and all(widths[kind] % split == 0 for kind in config["ffn_pattern"]))


class TensorParallel(CliTest):
    def check(self, grid_model: GridModel, split: int) -> None:
        path = write_random(self.fresh(".h5"), grid_model.config, grid_model.seed, dtype=grid_model.dtype,
                            **grid_model.file_options)
        model = ref.load(path)
        rows = prompts(grid_model)[2:6]
        lines = self.lines("score", path, [{"tokens": row} for row in rows], "--compute", "float32", "--quiet",
                           "--tensor-parallel", str(split), "--replicas", "1", ranks=split)
        for row, line in zip(rows, lines):
            table = ref.log_probs(model, row)
            want = table[np.arange(len(row) - 1), row[1:]]
            error = np.abs(np.array(line["logprobs"][1:], dtype=float) - want)
            self.assertLessEqual(error.max(), TOLERANCE, f"{split} ranks, prompt of {len(row)}")

    def test_models_against_the_reference(self) -> None:
        tried = set()
        for grid_model in GRID:
            for split in (2, 4):
                if fits(grid_model.config, split):
                    with self.subTest(model=grid_model.name, split=split):
                        self.check(grid_model, split)
                        tried.add((split, *grid_model.config["ffn_pattern"]))
                        tried |= {(split, f"b{name}") for name in grid_model.config.get("attention_bias") or []}
        self.assertTrue({(2, "dense"), (4, "dense"), (2, "moe"), (2, "bq"), (4, "bk"), (4, "bv"), (2, "bo")} <= tried,
                        f"the grid has too few models: {tried}")

    def test_the_same_bytes_on_every_placement(self) -> None:
        config = make_config(tracks=2, layers=4, sync_layers=[2, 4], heads=4, kv_heads=2, max_context=256,
                             tie_embeddings=False, bos_token_id=256, eos_token_ids=[257],
                             attention_bias=["q", "k", "v", "o"])
        model = write_random(self.fresh(".h5"), config, 31, dtype="bfloat16")
        rows = generate_requests(config["vocab_size"], 14)
        for split in (2, 4):
            common = ("--tensor-parallel", str(split))
            want = self.batch("generate", model, rows, *common, "--replicas", "1", ranks=split)
            self.assertNotIn('"error"', want.decode())
            for ranks, options in ((2 * split, ""), (2 * split, "--replicas 2"), (split, "--replicas 1 --threads 2"),
                                   (split, "--replicas 1 --max-batch 1"), (2 * split, "--vocab-head split"),
                                   (2 * split, "--max-step-tokens 32")):
                with self.subTest(split=split, ranks=ranks, options=options):
                    got = self.batch("generate", model, rows, *common, *options.split(), ranks=ranks)
                    self.assertEqual(got, want)

    def test_sync_points_are_counted_by_kind(self) -> None:
        config = make_config(tracks=2, layers=4, sync_layers=[2, 4], heads=4, kv_heads=2)
        model = write_random(self.fresh(".h5"), config, 32)
        for ranks, split, fusions, sums in ((1, 1, 2, 0), (2, 1, 2, 0), (2, 2, 2, 8), (4, 2, 2, 8), (4, 4, 2, 8)):
            report = self.fresh(".json")
            self.assert_done(ptrt("bench", model, "--input-len", "8", "--output-len", "4", "--requests", "2",
                                  "--tensor-parallel", str(split), "--replicas", "1", "--quiet", "--json", report,
                                  ranks=ranks))
            found = json.loads(report.read_text())
            self.assertEqual((found["fusions_per_forward"], found["track_sums_per_forward"],
                              found["sync_points_per_forward"]), (fusions, sums, fusions + sums), f"{ranks} ranks")
            self.assertAlmostEqual(found["sync_wait_fraction"] + found["sync_move_fraction"],
                                   found["sync_time_fraction"], delta=1e-9)

    def test_what_does_not_divide(self) -> None:
        config = make_config(heads=6, kv_heads=3, ffn_size=48)
        model = write_random(self.fresh(".h5"), config, 33)
        requests = write_requests(self.fresh(".jsonl"), [{"tokens": [1]}])
        outcome = ptrt("generate", model, requests, "-o", self.fresh(".out"), "--tensor-parallel", "2", ranks=2)
        self.assertEqual(outcome.status, 2)
        self.assertIn("6 heads, 3 KV heads", outcome.stderr)
        self.assertIn("one of 1, 3, 6 ranks", outcome.stderr)

    def test_int8_splits_on_groups(self) -> None:
        for ffn_size, good in ((128, True), (96, False)):  # halves of 64, and of 48
            config = make_config(heads=4, kv_heads=2, head_dim=16, ffn_size=ffn_size)
            model = write_random(self.fresh(".h5"), config, 34)
            small = self.fresh(".h5")
            self.assert_done(ptrt("quantize", model, "-o", small, "--weights", "int8"))
            requests = write_requests(self.fresh(".jsonl"), [{"tokens": [1, 2, 3]}])
            outcome = ptrt("score", small, requests, "-o", self.fresh(".out"), "--tensor-parallel", "2", "--quiet",
                           ranks=2)
            self.assertEqual(outcome.status, 0 if good else 2, outcome.stderr)
            if not good:
                self.assertIn("groups of 32", outcome.stderr)

    def test_int8_rows_may_end_within_a_group(self) -> None:
        """Ranks that share a track have whole rows of most matrices, which need not fill their last group."""
        config = make_config(hidden_size=72, heads=4, kv_heads=2, head_dim=16, ffn_size=128)
        model, small = write_random(self.fresh(".h5"), config, 35), self.fresh(".h5")
        self.assert_done(ptrt("quantize", model, "-o", small, "--weights", "int8"))
        packed = self.fresh(".h5")
        self.assert_done(ptrt("pack", small, "-o", packed))
        rows = [{"tokens": [7 * index % 250 for index in range(length)]} for length in (5, 40)]
        alone = self.lines("score", small, rows, "--compute", "float32")
        for path in (small, packed):
            shared = self.lines("score", path, rows, "--compute", "float32", "--tensor-parallel", "2", ranks=2)
            for one, other in zip(alone, shared, strict=True):
                np.testing.assert_allclose(np.array(other["logprobs"][1:], dtype=float),
                                           np.array(one["logprobs"][1:], dtype=float), atol=1e-4)


if __name__ == "__main__":
    unittest.main(verbosity=1)
