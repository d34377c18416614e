#!/usr/bin/python3
"""The prefix cache: the same bytes with and without it, however the job runs, and its counts."""

import json
import random
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402


def requests_of(families: int, count: int, score: bool) -> list[dict]:
    """Families whose prompts begin with 100 tokens of their own, dealt in turns; a few that share nothing."""
    source = random.Random(3)
    prefixes = [[source.randrange(250) for _ in range(100)] for _ in range(families)]
    rows: list[dict] = []
    for index in range(count):
        prefix = prefixes[index % families] if index % 9 else []
        own = [source.randrange(250) for _ in range(1 + index % 20)]
        if score:
            rows.append({"context": prefix + own, "continuation": own[:3]} if index % 5 else {"tokens": prefix + own})
        else:
            rows.append({"tokens": prefix + own, "max_tokens": 1 + index % 6, "temperature": index % 2,
                         "logprobs": index % 3 == 0})
    return rows


def samples_of(families: int, count: int) -> list[dict]:
    rows = requests_of(families, count, False)
    return [{**row, "temperature": 1.5, "n": 1 + index % 7, "max_tokens": 8} for index, row in enumerate(rows)]


class Prefix(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=3, sync_layers=[1, 3], hidden_size=64, heads=4, kv_heads=2, ffn_size=64,
                             attention_pattern=["global_rope", "local_rope"], attention_window=40, max_context=256)
        cls.model = write_random(cls.dir / "model.h5", config, 1)
        cls.files = {"generate": write_requests(cls.dir / "generate.jsonl", requests_of(5, 90, False)),
                     "score": write_requests(cls.dir / "score.jsonl", requests_of(5, 90, True)),
                     "samples": write_requests(cls.dir / "samples.jsonl", samples_of(5, 24))}

    def results(self, command: str, *options, ranks: int | None = None) -> tuple[bytes, str]:
        out = self.fresh(".jsonl")
        file = self.files[command]
        command = "generate" if command == "samples" else command
        done = ptrt(command, self.model, file, "-o", out, *map(str, options), ranks=ranks)
        self.assert_done(done)
        return out.read_bytes(), done.output

    def reused(self, output: str) -> int:
        found = re.search(r"prompt tokens in the prefix cache +(\d+)", output)
        return int(found[1]) if found else 0

    # A page of a rank that holds both tracks: 2 tracks x 3 layers x 2 x 2 heads x 16 x 16 tokens x 4 bytes.
    SMALL = ["--kv-cache-bytes", str(24 * 24576)]

    def test_the_same_bytes(self) -> None:
        for command in ("generate", "score"):
            expected, output = self.results(command, "--prefix-cache", "off")
            self.assertEqual(self.reused(output), 0)
            ways = [([], None), (["--max-batch", 3, *self.SMALL], None), (["--max-step-tokens", 40], 2),
                    (["--replicas", 2], 4)]
            for options, ranks in ways:
                with self.subTest(command=command, options=options, ranks=ranks):
                    actual, output = self.results(command, *options, ranks=ranks)
                    self.assertEqual(actual, expected)
                    self.assertGreater(self.reused(output), 500)

    def test_other_types_and_split_tracks(self) -> None:
        for options, ranks in ((["--weights", "int8"], None), (["--kv-dtype", "bfloat16"], None),
                               (["--tensor-parallel", 2], 4)):
            with self.subTest(options=options):
                expected, _ = self.results("generate", *options, "--prefix-cache", "off", ranks=ranks)
                actual, output = self.results("generate", *options, ranks=ranks)
                self.assertEqual(actual, expected)
                self.assertGreater(self.reused(output), 500)

    def test_alike_lines_meet(self) -> None:
        """A KV cache that holds one prefix of five: lines in turns are run family by family, in the order of the file."""
        _, output = self.results("generate", "--max-batch", 1, "--kv-cache-bytes", str(9 * 24576))
        # In the order of the file every line would find the prefix of another family.
        self.assertGreater(self.reused(output), 60 * 96)

    def test_samples(self) -> None:
        """They share their prompt with the cache and without, and do not depend on how the job runs."""
        expected, output = self.results("samples", "--prefix-cache", "off")
        rows = samples_of(5, 24)
        for line, row in zip(map(json.loads, expected.splitlines()), rows):
            outputs = line["choices"] if row["n"] > 1 else [line]
            self.assertEqual(len(outputs), row["n"])
            if row["n"] > 3:
                self.assertGreater(len({str(one["tokens"]) for one in outputs}), 1)
        self.assertEqual(self.reused(output), sum((row["n"] - 1) * ((len(row["tokens"]) - 1) // 16 * 16) for row in rows))
        for options, ranks in (([], None), (["--max-batch", 2, *self.SMALL], None), (["--replicas", 2], 4)):
            with self.subTest(options=options, ranks=ranks):
                actual, _ = self.results("samples", *options, ranks=ranks)
                self.assertEqual(actual, expected)

    def test_counts(self) -> None:
        _, output = self.results("score")
        lengths = [(len(row.get("context", [0])), len(row.get("tokens", row.get("context", []) + [0, 0, 0])))
                   for row in requests_of(5, 90, True)]
        count = sum(first <= 16 and tokens > 17 for first, tokens in lengths)
        self.assertIn(f"; {count} requests may reuse none", output)
        metrics = self.dir / "metrics.prom"
        _, output = self.results("generate", "--metrics", metrics)
        self.assertIn(f'ptrt_reused_tokens_total{{replica="0"}} {self.reused(output)}', metrics.read_text())


if __name__ == "__main__":
    unittest.main()
