#!/usr/bin/python3
"""The journal: an interrupted run continues where it stopped and ends with the same bytes."""

import os
import shutil
import signal
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, SANITIZERS, SLOWNESS, CliTest, Running, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

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
        outcome = ptrt("generate", cls.model, cls.requests, "-o", cls.whole)
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
        deadline = time.monotonic() + PATIENCE * SLOWNESS
        while time.monotonic() < deadline and running.process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 12:
                break
            time.sleep(0.01)
        running.process.send_signal(how)
        outcome = running.finish()
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
                       ranks=ranks)
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
        running.finish()
        self.assertFalse(results.exists())
        self.check_resumed(partial.read_bytes())

    def test_resume_of_nothing(self) -> None:
        results = self.fresh("-new.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--resume"))
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
        with self.subTest("a journal of an older version"):
            self.check_refused(b'{"ptrt_journal":1,"digest":"generate","requests":240}\n', "--resume")

    def test_damaged_journal(self) -> None:
        """tests/campaign/journal_mutations.py has many more."""
        journal = self.cut_off.read_bytes()
        lines = journal.splitlines(keepends=True)
        text = journal.index(b'"text"', len(journal) // 2)
        for name, damaged in {
            "a flipped bit": journal[:text + 9] + bytes([journal[text + 9] ^ 1]) + journal[text + 10:],
            "CR LF": journal.replace(b"\n", b"\r\n"),
            "zeros": journal[:text] + bytes(300) + journal[text + 300:],
            "a line twice": b"".join([*lines[:5], lines[4], *lines[5:]]),
            "two lines in one": b"".join([*lines[:4], lines[4][:-1], *lines[5:]]),
            "an edited header": lines[0].replace(b'"requests":2', b'"requests":3') + b"".join(lines[1:]),
        }.items():
            with self.subTest(name):
                self.check_refused(damaged, "--resume")

    def running_slowly(self, *options) -> tuple[Running, Path, Path]:
        """A run that has a few results in its journal and takes seconds more."""
        results = self.fresh("-slow.jsonl")
        journal = Path(f"{results}.partial")
        running = Running(["generate", self.model, self.requests, "-o", results, "--max-batch", "4", *options], env=SLOW)
        while running.process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 5:
                break
            time.sleep(0.01)
        return running, results, journal

    def test_journal_changed_during_the_run(self) -> None:
        kept = self.dir / "kept.partial"
        for name, meddle, left in (
            ("truncated", lambda journal: os.truncate(journal, 100), True),
            ("emptied", lambda journal: os.truncate(journal, 0), True),
            ("written to", lambda journal: journal.write_bytes(journal.read_bytes() + b"x\n"), True),
            ("removed", lambda journal: journal.unlink(), False),
            ("renamed", lambda journal: journal.rename(kept), False),
            ("replaced", lambda journal: shutil.copy(self.requests, f"{journal}.new") and
             os.replace(f"{journal}.new", journal), True),
        ):
            with self.subTest(name):
                running, results, journal = self.running_slowly()
                meddle(journal)
                outcome = running.finish(timeout=60)
                self.assertEqual(outcome.status, 1, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertIn(journal.name, outcome.errors[0])
                self.assertFalse(results.exists())
                self.assertEqual(journal.exists(), left)
        self.check_resumed(kept.read_bytes())

    def test_one_run_at_a_time(self) -> None:
        running, results, _ = self.running_slowly()
        for options in ([], ["--resume"]):
            outcome = ptrt("generate", self.model, self.requests, "-o", results, *options)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn("in use by a run that is still going", outcome.output)
            self.assertNotIn("remove", outcome.output)
        outcome = running.finish(timeout=120)
        self.assert_done(outcome)
        self.assertEqual(results.read_bytes(), self.whole.read_bytes())

    def test_a_failure_loses_no_result(self) -> None:
        """What the engine has delivered is in the journal, however far the collector had come."""
        for ranks, faulty, least in ((None, 0, REQUESTS), (2, 0, REQUESTS // 2), (2, 1, REQUESTS // 2)):
            with self.subTest(ranks=ranks, faulty=faulty):
                results = self.fresh("-faulty.jsonl")
                replicas = ["--replicas", "2"] if ranks == 2 else []
                outcome = ptrt("generate", self.model, self.requests, "-o", results, *replicas, ranks=ranks,
                               env={"PTRT_FAULT": f"rank={faulty},at=finish"}, timeout=120)
                self.assertEqual(outcome.status, 1, outcome.output)
                journal = Path(f"{results}.partial").read_bytes()
                self.assertGreaterEqual(journal.count(b"\n"), least + 1)
                self.check_resumed(journal)


if __name__ == "__main__":
    unittest.main(verbosity=1)
