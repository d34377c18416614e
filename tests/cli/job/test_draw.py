#!/usr/bin/python3
"""Replicas that draw requests: the same results from any number of them, slow ones, stopped ones, after a resume."""

import json
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Running, error_code, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

PAUSE = "at=step,pause_ms="


def rows_of(count: int) -> list:
    """Prompts and outputs of many lengths; some lines are errors, one is blank, an id comes twice."""
    rows: list = [{"tokens": [index % 250] * (1 + index % 7), "max_tokens": 1 + index % 5, "temperature": index % 2}
                  for index in range(count)]
    rows[5] = {"id": "3", "tokens": [1]}
    rows[7] = "not json"
    rows[count // 2] = ""
    rows[-2] = {"id": "4", "tokens": [1]}
    rows[-1] = {"custom_id": "o", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2}}
    return rows


class Draw(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, heads=2, kv_heads=1, ffn_size=32)
        cls.model = write_random(cls.dir / "model.h5", config, 1)
        # More than are dealt as one window.
        cls.requests = write_requests(cls.dir / "requests.jsonl", rows_of(3000))
        whole = cls.dir / "whole.jsonl"
        done = ptrt("generate", cls.model, cls.requests, "-o", whole, "--quiet")
        assert done.status == 0, done.output
        cls.whole = whole.read_bytes()

    def generate(self, results: Path, *options, **keywords):
        return ptrt("generate", self.model, self.requests, "-o", results, *options, **keywords)

    def check(self, *options, **keywords) -> Path:
        results = self.fresh("-results.jsonl")
        self.assert_done(self.generate(results, *options, **keywords))
        self.assertEqual(results.read_bytes(), self.whole)
        return results

    def test_bad_lines_are_errors(self) -> None:
        lines = [json.loads(line) for line in self.whole.splitlines()]
        self.assertEqual(len(lines), 2999)
        lines.insert(1500, {})  # the blank line
        codes = {number: error_code(line) for number, line in enumerate(lines) if error_code(line)}
        self.assertEqual(codes, {5: "duplicate_id", 7: "invalid_json", 2998: "duplicate_id"})

    def test_any_number_of_replicas(self) -> None:
        for ranks, options in ((2, ["--replicas", "2"]), (4, []), (3, ["--replicas", "3", "--max-batch", "2"])):
            with self.subTest(ranks=ranks):
                self.check(*options, ranks=ranks)

    def test_a_slow_replica(self) -> None:
        """It does a few requests; the others do the rest meanwhile."""
        results = self.fresh("-results.jsonl")
        start = time.monotonic()
        run = Running(["generate", self.model, self.requests, "-o", results, "--replicas", "2", "--max-batch", "4"], 2,
                      {"PTRT_FAULT": f"rank=1,{PAUSE}400"})
        self.assert_done(run.finish())
        self.assertEqual(results.read_bytes(), self.whole)
        # Half of the steps would take 3,000 * 3 / 2 / 4 * 0.4 s.
        self.assertLess(time.monotonic() - start, 150)

    def test_resume_with_other_replicas(self) -> None:
        results = self.fresh("-results.jsonl")
        counts = [1]  # lines of the journal, its header included
        for ranks in (4, 2):
            # Nothing is dealt once rank 0 fails.
            ended = self.generate(results, "--replicas", str(ranks), "--max-batch", "1", "--resume", ranks=ranks,
                                  env={"PTRT_FAULT": "rank=0,at=step,after=40"})
            self.assertEqual(ended.status, 1, ended.output)
            self.assertEqual(len(ended.errors), 1, ended.output)
            counts.append(Path(f"{results}.partial").read_bytes().count(b"\n"))
        self.assertLess(counts[0], counts[1])
        self.assertLess(counts[1], counts[2])
        self.assertLess(counts[2], 3000)
        self.assert_done(self.generate(results, "--resume", ranks=4))
        self.assertEqual(results.read_bytes(), self.whole)

    def test_a_signal_to_one_replica_stops_the_job(self) -> None:
        for rank in (0, 1):
            with self.subTest(rank=rank):
                results = self.fresh("-results.jsonl")
                run = Running(["generate", self.model, self.requests, "-o", results, "--replicas", "2", "--max-batch", "2"],
                              2, {"PTRT_FAULT": f"rank={rank},at=step,after=30,signal={int(signal.SIGTERM)}"})
                stopped = run.finish()
                self.assertEqual(stopped.status, 75, stopped.output)
                self.assertRegex(stopped.output, r"stopped by a signal with \d+ of 2999 results")
                self.assert_done(self.generate(results, "--resume", ranks=4))
                self.assertEqual(results.read_bytes(), self.whole)

    def test_requests_that_change_meanwhile(self) -> None:
        requests = write_requests(self.fresh(".jsonl"), [{"id": f"{index:0400}", "tokens": [1]} for index in range(2000)])
        results = self.fresh("-results.jsonl")
        run = Running(["generate", self.model, requests, "-o", results, "--max-batch", "4"],
                      env={"PTRT_FAULT": f"rank=0,{PAUSE}1"})
        partial = Path(f"{results}.partial")
        end = time.monotonic() + 120
        while not partial.exists() and time.monotonic() < end:
            time.sleep(0.01)
        with requests.open("r+b") as file:
            file.seek(-4, 2)
            file.write(b" }}\n")
        ended = run.finish()
        self.assertEqual(ended.status, 1, ended.output)
        self.assertEqual(len(ended.errors), 1, ended.output)
        self.assertIn("was changed while this run was going", ended.errors[0])
        self.assertFalse(results.exists())

    def test_a_larger_cache_gives_results(self) -> None:
        """Lines that did not fit the cache are looked at again; a finished job that has such lines is not taken as done."""
        requests = write_requests(self.fresh(".jsonl"),
                                  [{"tokens": [index] * 40, "max_tokens": 9 if index % 3 else 60} for index in range(30)])
        generate = ["generate", self.model, requests, "-o"]
        small, whole, results = ["--kv-cache-bytes", "32K"], self.fresh("-whole.jsonl"), self.fresh("-results.jsonl")
        self.assert_done(ptrt(*generate, whole))
        ended = ptrt(*generate, results, *small, env={"PTRT_FAULT": "rank=0,at=publish"})
        self.assertEqual(ended.status, 1, ended.output)
        self.assertEqual(Path(f"{results}.partial").read_text().count("kv_cache_exceeded"), 10)
        self.assert_done(ptrt(*generate, results, "--resume", ranks=2))
        self.assertEqual(results.read_bytes(), whole.read_bytes())

        few = self.fresh("-few.jsonl")
        self.assert_done(ptrt(*generate, few, *small))
        self.assertEqual([error_code(line) for line in read_results(few)].count("kv_cache_exceeded"), 10)
        self.assertIn("is complete", ptrt(*generate, few, *small, "--resume").output)
        before = few.read_bytes()
        refused = ptrt(*generate, few, "--resume")
        self.assertEqual(refused.status, 2, refused.output)
        self.assertIn("too small for some requests", refused.errors[0])
        self.assertEqual(few.read_bytes(), before)


if __name__ == "__main__":
    unittest.main()
