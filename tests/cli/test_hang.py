#!/usr/bin/python3
"""If one rank fails or is stuck, the whole job ends soon, names the rank, and does not report success.

PTRT_FAULT="rank=R,at=POINT[,after=STEPS]" makes the program throw on that rank at that point.
"""

import os
import signal
import time
import unittest
from pathlib import Path

from ptrt_cli import SLOWNESS, CliTest, Outcome, Running, ptrt, read_results, write_requests

from model_maker import make_config, write_random

RANKS = 8
SECONDS = 10 * SLOWNESS
REQUESTS = 20
TIMEOUT = SLOWNESS  # seconds of --step-timeout


def is_running(process: int) -> bool:
    """A process that has ended keeps its entry in /proc until its parent waits for it. mpirun exits before that, so the
    parent is the machine's first process, which may take seconds or, in some containers, never waits."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class NoRankHangs(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=8, layers=2, sync_layers=[1, 2], hidden_size=32, max_context=512)
        cls.model = write_random(cls.dir / "model.h5", config, 51)
        rows = [{"tokens": [index, 2, 3], "max_tokens": 40} for index in range(REQUESTS)]
        cls.requests = write_requests(cls.dir / "requests.jsonl", rows)
        # Enough work for a run of several seconds.
        rows = [{"tokens": [index % 256, 2, 3], "max_tokens": 500} for index in range(4000)]
        cls.endless = write_requests(cls.dir / "endless.jsonl", rows)

    def assert_ended(self, outcome: Outcome) -> None:
        self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
        self.assertNotEqual(outcome.status, 0, outcome.output)
        self.assertLess(outcome.seconds, SECONDS, outcome.output)

    def check_fault(self, fault: str, rank: int, ranks: int | None = RANKS) -> None:
        results = self.fresh("-results.jsonl")
        outcome = ptrt("generate", self.model, self.requests, "-o", results, ranks=ranks,
                       env={"PTRT_FAULT": fault}, timeout=20)
        self.assert_ended(outcome)
        self.assertGreaterEqual(len(outcome.errors), 1, f"no message:\n{outcome.output}")
        if ranks is not None:
            self.assertRegex(outcome.errors[0], rf"rank {rank}\b")
        self.assertEqual(len(outcome.errors), 1, f"more than the one message:\n{outcome.output}")
        if results.exists():  # a rank may fail after the last result is written
            self.assertEqual(len(read_results(results)), REQUESTS)

    def test_exception_on_one_rank(self) -> None:
        for point in ("load", "step", "sync", "finish"):
            for rank in (0, 5):
                with self.subTest(point=point, rank=rank):
                    self.check_fault(f"rank={rank},at={point}", rank)

    def test_exception_amid_work(self) -> None:
        for point, rank in (("step", 7), ("sync", 3)):
            with self.subTest(point=point, rank=rank):
                self.check_fault(f"rank={rank},at={point},after=25", rank)

    def test_exception_in_one_replica(self) -> None:
        self.check_fault("rank=3,at=sync,after=5", 3, ranks=16)

    def test_exception_alone(self) -> None:
        for point in ("load", "step", "sync", "finish"):
            with self.subTest(point=point):
                self.check_fault(f"rank=0,at={point}", 0, ranks=None)

    def test_more_threads_than_cores(self) -> None:
        """Threads that the operating system wakes late must neither be lost nor take work of a later job."""
        rows = [{"tokens": [index, 2, 3], "max_tokens": 60} for index in range(120)]
        requests = write_requests(self.dir / "many.jsonl", rows)
        for _ in range(4):
            results = self.fresh("-results.jsonl")
            self.assert_done(ptrt("generate", self.model, requests, "-o", results, "--threads", "8",
                                  "--max-batch", "7", timeout=20))

    def test_fault_on_no_rank(self) -> None:
        """The injection itself must not end a job that it does not name."""
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), ranks=2,
                              env={"PTRT_FAULT": "rank=7,at=step"}))

    def check_timeout(self, fault: str, words: list[str], ranks: int = 4) -> None:
        """A rank that is stuck ends the job with one message."""
        results = self.fresh("-results.jsonl")
        outcome = ptrt("generate", self.model, self.requests, "-o", results, "--step-timeout", TIMEOUT, ranks=ranks,
                       env={"PTRT_FAULT": fault}, timeout=20 * SLOWNESS)
        self.assert_ended(outcome)
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertEqual(len(outcome.errors), 1, f"more or less than the one message:\n{outcome.output}")
        for word in words:
            self.assertRegex(outcome.errors[0], word)

    def test_stuck_rank(self) -> None:
        for point, rank in (("sync", 2), ("step", 0)):
            with self.subTest(point=point, rank=rank):
                self.check_timeout(f"rank={rank},at={point},after=5,pause_ms=60000",
                                   [rf"rank {rank} of 4", r"step \d+: stuck for", "--step-timeout"])

    def test_slow_rank_is_not_stuck(self) -> None:
        results = self.fresh("-results.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--step-timeout", 2 * SLOWNESS,
                              ranks=2, env={"PTRT_FAULT": "rank=1,at=step,after=118,pause_ms=500"}, timeout=40))

    def test_stopped_rank(self) -> None:
        """A stopped rank cannot report; the ranks that wait for it do."""
        running = Running(["generate", self.model, self.endless, "-o", self.fresh("-results.jsonl"),
                           "--step-timeout", TIMEOUT], ranks=4)
        deadline = time.monotonic() + 15 * SLOWNESS
        while len(running.ranks()) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2 * SLOWNESS)
        os.kill(running.ranks()[2], signal.SIGSTOP)  # mpirun starts them in their order
        outcome = running.finish(timeout=20 * SLOWNESS)
        self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
        self.assertNotEqual(outcome.status, 0, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertRegex(outcome.errors[0], r"rank [013] of 4.*no word from ranks? [0-3, ]*\b2\b")

    def test_killed_rank(self) -> None:
        results = self.fresh("-results.jsonl")
        running = Running(["generate", self.model, self.endless, "-o", results], ranks=RANKS)
        deadline = time.monotonic() + 15 * SLOWNESS
        journal = results.with_name(results.name + ".partial")
        while (len(running.ranks()) < RANKS or not journal.exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        ranks = running.ranks()
        try:
            self.assertEqual(len(ranks), RANKS, "the job did not come to work")
            os.kill(ranks[5], signal.SIGKILL)
            killed = time.monotonic()
        finally:
            outcome = running.finish(timeout=20)
        self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
        self.assertLess(time.monotonic() - killed, SECONDS)
        self.assertNotEqual(outcome.status, 0, outcome.output)
        deadline = time.monotonic() + 5 * SLOWNESS
        while (left := [rank for rank in ranks if is_running(rank)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.assertEqual(left, [], "ranks outlive their job")
        self.assertFalse(results.exists())


if __name__ == "__main__":
    unittest.main(verbosity=1)
