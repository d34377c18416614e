#!/usr/bin/python3
"""Replicas of one host that have one copy of their weights."""

import re
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Running, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402


def shared_blocks(process: int) -> set:
    """The inodes of the shared blocks that a process has mapped."""
    blocks = set()
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if found := re.search(r" (\d+)\s+/memfd:ptrt weights", line):
            blocks.add(found[1])
    return blocks


class ShareWeights(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, heads=2, kv_heads=2, ffn_size=64)
        cls.model = write_random(cls.dir / "model.h5", config, 1)
        cls.requests = write_requests(
            cls.dir / "requests.jsonl",
            [{"tokens": [index % 250] * (1 + index % 7), "max_tokens": 6, "temperature": index % 2}
             for index in range(60)])
        whole = cls.dir / "whole.jsonl"
        done = ptrt("generate", cls.model, cls.requests, "-o", whole, "--quiet")
        assert done.status == 0, done.output
        cls.whole = whole.read_bytes()

    def check(self, *options, ranks: int, expected: str = "", environment: dict | None = None) -> None:
        results = self.fresh("-results.jsonl")
        done = ptrt("generate", self.model, self.requests, "-o", results, *options, ranks=ranks)
        self.assert_done(done)
        self.assertEqual(results.read_bytes(), self.whole)
        self.assertIn(expected, done.output)

    def test_results_are_the_same(self) -> None:
        for ranks, replicas, option in ((2, 2, "off"), (4, 2, "on"), (3, 3, "on")):
            with self.subTest(ranks=ranks, replicas=replicas, option=option):
                expected = f"one copy for {replicas} ranks" if option == "on" else "MiB weights, "
                self.check("--replicas", replicas, "--share-weights", option, ranks=ranks, expected=expected)

    def test_parts_of_a_track(self) -> None:
        one, two = self.fresh("-one.jsonl"), self.fresh("-two.jsonl")
        for results, options, ranks in ((one, [], 4), (two, ["--replicas", 2, "--share-weights", "on"], 8)):
            self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--tensor-parallel", 2, *options,
                                  ranks=ranks))
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_types_that_are_made_at_load(self) -> None:
        one = self.fresh("-one.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", one, "--weights", "int8"))
        two = self.fresh("-two.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", two, "--weights", "int8", "--replicas", 2,
                              "--share-weights", "on", ranks=2))
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_packed(self) -> None:
        packed = self.dir / "packed.h5"
        self.assert_done(ptrt("pack", self.model, "-o", packed))
        results = self.fresh("-results.jsonl")
        self.assert_done(ptrt("generate", packed, self.requests, "-o", results, "--replicas", 2, "--share-weights", "on",
                              ranks=2))
        self.assertEqual(results.read_bytes(), self.whole)

    def test_the_copy_is_one(self) -> None:
        results = self.fresh("-results.jsonl")
        running = Running(["generate", self.model, self.requests, "-o", results, "--replicas", 2, "--share-weights", "on"],
                          ranks=2, env={"PTRT_FAULT": "rank=1,at=step,pause_ms=8000"})
        try:
            end = time.monotonic() + 60
            mapped: list = []
            while time.monotonic() < end:
                mapped = [blocks for process in running.ranks() if (blocks := shared_blocks(process))]
                if len(mapped) == 2:
                    break
                time.sleep(0.05)
            self.assertEqual(len(mapped), 2, "two ranks map shared weights")
            self.assertEqual(mapped[0], mapped[1])
        finally:
            done = running.finish()
        self.assertEqual(done.status, 0, done.output)
        self.assertEqual(results.read_bytes(), self.whole)

    def test_a_bad_file_is_one_message(self) -> None:
        broken = self.dir / "broken.h5"
        data = bytearray(self.model.read_bytes())
        data[len(data) // 2] ^= 0x10
        broken.write_bytes(data)
        alone = ptrt("generate", broken, self.requests, "-o", self.fresh("-a.jsonl"))
        self.assertEqual(alone.status, 2, alone.output)
        done = ptrt("generate", broken, self.requests, "-o", self.fresh("-b.jsonl"), "--replicas", 2,
                    "--share-weights", "on", ranks=2)
        self.assertEqual(done.status, 2, done.output)
        self.assertEqual(len(re.findall(r"^ptrt: .*error: ", done.output, re.M)), 1, done.output)


if __name__ == "__main__":
    unittest.main()
