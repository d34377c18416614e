#!/usr/bin/python3
"""The journal: an interrupted run continues where it stopped and ends with the same bytes."""

import shutil
import signal
import time
import unittest
from pathlib import Path

from ptrt_cli import SANITIZERS, SLOWNESS, CliTest, Running, ptrt, write_requests

from model_maker import make_config, write_random

REQUESTS = 60 if SANITIZERS else 240
# An interrupted run takes seconds on any machine: its first rank is slow.
SLOW = {"PTRT_FAULT": "rank=0,at=step,pause_ms=3"}


def rows() -> list:
    """Enough work to be interrupted, including a bad line."""
    made: list = [{"id": f"r{index}", "tokens": [index % 250, 3, 9], "max_tokens": 30 + index % 40,
                   "temperature": index % 3 * 0.5, "seed": index, "logprobs": index % 4 == 0}
                  for index in range(REQUESTS - 1)]
    made.insert(7, "no request")
    return made


class Journal(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=4, layers=4, sync_layers=[2, 4], hidden_size=192, ffn_size=768)
        cls.model = write_random(cls.dir / "model.h5", cls.config, 61)
        cls.requests = write_requests(cls.dir / "requests.jsonl", rows())
        cls.whole = cls.dir / "whole.jsonl"
        outcome = ptrt("generate", cls.model, cls.requests, "-o", cls.whole, timeout=120)
        if outcome.status != 0:
            raise RuntimeError(outcome.output)
        # One interrupted run serves many tests.
        cls.cut_off = cls.interrupt(signal.SIGKILL, None)

    @classmethod
    def interrupt(cls, how: signal.Signals, ranks: int | None) -> Path:
        """Starts a run, ends it when a few results are in the journal, and returns the journal."""
        results = cls.fresh("-cut.jsonl")
        journal = Path(f"{results}.partial")
        running = Running(["generate", cls.model, cls.requests, "-o", results, "--max-batch", "4"], ranks, SLOW)
        deadline = time.monotonic() + 60 * SLOWNESS
        while time.monotonic() < deadline and running.process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 12:
                break
            time.sleep(0.01)
        running.process.send_signal(how)
        outcome = running.finish(timeout=15)
        if outcome.timed_out or outcome.status == 0 or results.exists() or not journal.exists():
            raise AssertionError(f"the run was not cut off: status {outcome.status}\n{outcome.output}")
        return journal

    def resume(self, journal: bytes, *options, ranks: int | None = None, requests: Path | None = None,
               model: Path | None = None, command: str = "generate"):
        """Puts a journal in place for a new run and resumes from it."""
        results = self.fresh("-resumed.jsonl")
        self.partial = Path(f"{results}.partial")
        self.partial.write_bytes(journal)
        outcome = ptrt(command, model or self.model, requests or self.requests, "-o", results, *options,
                       ranks=ranks, timeout=120)
        return outcome, results

    def check_resumed(self, journal: bytes, *options, ranks: int | None = None) -> None:
        outcome, results = self.resume(journal, "--resume", *options, ranks=ranks)
        self.assert_done(outcome)
        self.assertEqual(results.read_bytes(), self.whole.read_bytes())
        self.assertFalse(self.partial.exists(), "the journal is done with")

    def test_after_a_kill(self) -> None:
        journal = self.cut_off.read_bytes()
        self.assertLess(journal.count(b"\n"), REQUESTS, "nothing was left to do")
        self.check_resumed(journal)

    def test_with_other_ranks_and_batches(self) -> None:
        """What does not change results may change between the two runs."""
        self.check_resumed(self.cut_off.read_bytes(), "--max-batch", "7", "--threads", "2", ranks=2)

    def test_after_a_polite_end(self) -> None:
        for ranks in (None, 4):
            with self.subTest(ranks=ranks):
                self.check_resumed(self.interrupt(signal.SIGTERM, ranks).read_bytes())

    def test_torn_last_line(self) -> None:
        journal = self.cut_off.read_bytes()
        last = journal.rstrip(b"\n").rfind(b"\n") + 1
        for end in (last + 1, (last + len(journal)) // 2, len(journal) - 2):
            with self.subTest(kept=end - last):
                self.check_resumed(journal[:end])

    def test_torn_first_line(self) -> None:
        header = self.cut_off.read_bytes().split(b"\n")[0]
        for kept in (0, len(header) // 2):
            with self.subTest(kept=kept):
                self.check_resumed(header[:kept])

    def test_twice_cut_off(self) -> None:
        """A run that was resumed can be interrupted and resumed again."""
        results = self.fresh("-twice.jsonl")
        partial = Path(f"{results}.partial")
        shutil.copy(self.cut_off, partial)
        before = partial.read_bytes().count(b"\n")
        running = Running(["generate", self.model, self.requests, "-o", results, "--resume",
                           "--max-batch", "4"], env=SLOW)
        while running.process.poll() is None and partial.read_bytes().count(b"\n") < before + 10:
            time.sleep(0.01)
        running.process.kill()
        running.finish(timeout=15)
        self.assertFalse(results.exists())
        self.check_resumed(partial.read_bytes())

    def test_resume_of_nothing(self) -> None:
        results = self.fresh("-new.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--resume", timeout=120))
        self.assertEqual(results.read_bytes(), self.whole.read_bytes())

    def check_refused(self, journal: bytes, *options, **keywords) -> None:
        outcome, results = self.resume(journal, *options, **keywords)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertIn(self.partial.name, outcome.output)
        self.assertFalse(results.exists())
        self.assertEqual(self.partial.read_bytes(), journal, "a journal refused is left as it was")

    def test_journal_in_the_way(self) -> None:
        self.check_refused(self.cut_off.read_bytes())
        self.check_refused(self.cut_off.read_bytes(), ranks=2)

    def test_journal_of_other_work(self) -> None:
        journal = self.cut_off.read_bytes()
        with self.subTest("other requests"):
            changed = rows()
            changed[50] = {**changed[50], "max_tokens": 5}
            self.check_refused(journal, "--resume", requests=write_requests(self.fresh(".jsonl"), changed))
        with self.subTest("other weights"):
            self.check_refused(journal, "--resume", model=write_random(self.fresh(".h5"), self.config, 62))
        with self.subTest("other command"):
            self.check_refused(journal, "--resume", command="score")
        with self.subTest("another type of keys and values"):
            self.check_refused(journal, "--resume", "--kv-dtype", "bfloat16")
        with self.subTest("no journal at all"):
            self.check_refused(b"once upon a time\n" * 5, "--resume")


if __name__ == "__main__":
    unittest.main(verbosity=1)
