#!/usr/bin/python3
"""If one rank fails, is stuck or stopped, the whole job ends soon, names the rank, and does not report success.

PTRT_FAULT (runtime/job/fault.h) makes one rank throw, sleep or stop at a point. Times count from the first message
about the fault, and the message says how long the fault lasted: how long mpirun takes to start is of no account.
"""

import os
import re
import signal
import sys
import time
import unittest
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import MPI_LEAKS, PTRT, ROOT, SLOWNESS, CliTest, Outcome, Running, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

RANKS = 8
SECONDS = 30 * SLOWNESS  # from a fault to the end of a job; an idle machine needs two or three
START = 120 * SLOWNESS  # for mpirun and all the rest
REQUESTS = 20
TIMEOUT = 2 * SLOWNESS  # of --step-timeout
NEVER = 3600  # seconds of --step-timeout, where it must not be what ends the job


def state_of(process: int) -> str:
    """A letter, as ps shows it; X also where there is no such process."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_running(process: int) -> bool:
    """A process that has ended keeps its entry in /proc until its parent waits for it. mpirun exits before that, so the
    parent is the machine's first process, which may take seconds or, in some containers, never waits."""
    return state_of(process) not in "ZX"


def run_to_message(*arguments: object, ranks: int | None, env: dict[str, str]) -> tuple[Outcome, float]:
    """The finished run, and the seconds from its first message to its end."""
    running = Running(list(arguments), ranks=ranks, env=env)
    told = None
    deadline = time.monotonic() + START
    while running.process.poll() is None and time.monotonic() < (told + SECONDS if told else deadline):
        if told is None and "error" in running.stderr_so_far():
            told = time.monotonic()
        time.sleep(0.02)
    outcome = running.finish(timeout=0)
    return outcome, time.monotonic() - told if told else 0.0


class Job(CliTest):
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

    def wait_for_work(self, running: Running, results: Path, ranks: int) -> list[int]:
        """Process ids of the ranks, in their order, once results come."""
        journal, deadline = Path(f"{results}.partial"), time.monotonic() + START
        while time.monotonic() < deadline and running.process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 2:
                found = running.ranks()
                self.assertEqual(len(found), ranks)
                return found
            time.sleep(0.02)
        self.fail(f"the job did not come to work:\n{running.finish(timeout=0).output}")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def assert_gone(self, ranks: list[int], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while (left := [rank for rank in ranks if is_running(rank)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(left, [], "ranks outlive their job")

    def assert_ended(self, outcome: Outcome) -> None:
        self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
        self.assertNotEqual(outcome.status, 0, outcome.output)
        self.assertEqual(len(outcome.errors), 1, f"more or less than the one message:\n{outcome.output}")


class NoRankHangs(Job):
    def check_fault(self, fault: str, rank: int, ranks: int | None = RANKS) -> None:
        results = self.fresh("-results.jsonl")
        outcome, _ = run_to_message("generate", self.model, self.requests, "-o", results, ranks=ranks,
                                    env={"PTRT_FAULT": fault})
        self.assert_ended(outcome)
        if ranks is not None:
            self.assertRegex(outcome.errors[0], rf"rank {rank}\b")
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
                                  "--max-batch", "7", timeout=START))

    def test_fault_on_no_rank(self) -> None:
        """The injection itself must not end a job that it does not name."""
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), ranks=2,
                              env={"PTRT_FAULT": "rank=7,at=step"}, timeout=START))

    def test_slow_rank_is_not_stuck(self) -> None:
        results = self.fresh("-results.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--step-timeout", 5 * SLOWNESS,
                              ranks=2, env={"PTRT_FAULT": "rank=1,at=step,after=110,pause_ms=500"}, timeout=START))

    def test_killed_rank(self) -> None:
        results = self.fresh("-results.jsonl")
        running = Running(["generate", self.model, self.endless, "-o", results], ranks=RANKS)
        ranks = self.wait_for_work(running, results, RANKS)
        os.kill(ranks[5], signal.SIGKILL)
        outcome = running.finish(timeout=SECONDS)
        self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
        self.assertNotEqual(outcome.status, 0, outcome.output)
        self.assert_gone(ranks)
        self.assertFalse(results.exists())


def another_than(rank: int) -> str:
    """Whichever of four ranks is first to report: on a loaded machine not always the one whose turn it is."""
    return f"rank [{''.join(str(other) for other in range(4) if other != rank)}] of 4"


class StuckRank(Job):
    """--step-timeout holds from the start of MPI to the end of the job, with one message that names the rank."""

    def check(self, fault: str, words: list[str], *options: object, ranks: int = 4) -> None:
        results = self.fresh("-results.jsonl")
        outcome, seconds = run_to_message("generate", self.model, self.requests, "-o", results, "--step-timeout",
                                          TIMEOUT, *options, ranks=ranks, env={"PTRT_FAULT": fault})
        self.assert_ended(outcome)
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertLess(seconds, SECONDS, outcome.output)
        for word in [*words, "--step-timeout"]:
            self.assertRegex(outcome.errors[0], word)
        lasted = float(re.search(r"for ([\d.]+) s", outcome.errors[0])[1])
        self.assertLess(lasted, TIMEOUT + 5 * SLOWNESS, outcome.errors[0])

    def test_asleep(self) -> None:
        """The process lives, and its watchdog reports itself."""
        for point, rank, where in (("sync", 2, r"step \d+"), ("step", 0, r"step \d+"), ("load", 3, "loading"),
                                   ("publish", 0, "publishing the results"), ("finish", 0, "after the last step")):
            with self.subTest(point=point, rank=rank):
                after = ",after=5" if point in ("sync", "step") else ""
                self.check(f"rank={rank},at={point}{after},pause_ms=600000",
                           [rf"rank {rank} of 4", rf"{where}: stuck"])

    def test_results_are_not_stored(self) -> None:
        """The engine has nothing left to do, and rank 0's other thread deals no more requests."""
        self.check("rank=0,at=store,pause_ms=600000", [r"rank 0 of 4", r"step \d+: stuck"], "--max-batch", "1")

    def test_stopped(self) -> None:
        """The process is stopped (SIGSTOP), and the others report it."""
        host = re.escape(os.uname().nodename)
        for point, rank in (("load", 2), ("load", 0), ("step", 2), ("sync", 1), ("finish", 2), ("publish", 0),
                            ("end", 3), ("end", 0)):
            with self.subTest(point=point, rank=rank):
                self.check(f"rank={rank},at={point},signal={int(signal.SIGSTOP)}",
                           [rf"{another_than(rank)} \({host}\)", rf"no sign of life from rank {rank} \({host}\)"])

    def test_one_message_where_the_launcher_is_slow(self) -> None:
        """Several ranks see the fault before the launcher, here stopped for a while, ends them."""
        for point, rank in (("start", 2), ("load", 0), ("step", 2)):
            with self.subTest(point=point, rank=rank):
                said = self.fresh(".stderr")  # of the ranks: a launcher that ends them may drop their last words
                command = ["sh", "-c", 'exec "$@" 2>> "$0"', str(said), str(PTRT), "generate", str(self.model),
                           str(self.requests), "-o", str(self.fresh(".jsonl")), "--step-timeout", str(TIMEOUT)]
                running = Running([], ranks=4, command=command,
                                  env={"PTRT_FAULT": f"rank={rank},at={point},signal={int(signal.SIGSTOP)}"})
                self.wait_until(lambda: any(state_of(process) == "T" for process in running.ranks()))
                running.process.send_signal(signal.SIGSTOP)
                self.wait_until(lambda: "error" in said.read_text())
                time.sleep(2 * SLOWNESS)  # the last of the ranks would report 1.4 s after the first
                running.process.send_signal(signal.SIGCONT)
                outcome = running.finish(timeout=SECONDS)
                self.assertFalse(outcome.timed_out, f"the job hangs:\n{outcome.output}")
                self.assertNotEqual(outcome.status, 0, outcome.output)
                errors = [line for line in said.read_text().splitlines() if "error" in line]
                self.assertEqual(len(errors), 1, errors)

    def test_stopped_while_mpi_starts(self) -> None:
        self.check(f"rank=2,at=start,signal={int(signal.SIGSTOP)}",
                   [another_than(2), r"starting MPI: no word from rank 2 \(.*\), which is stopped"])

    def test_replicas_of_one_rank(self) -> None:
        for point, rank in (("load", 1), ("step", 2), ("finish", 1)):
            with self.subTest(point=point, rank=rank):
                self.check(f"rank={rank},at={point},signal={int(signal.SIGSTOP)}",
                           [rf"no sign of life from rank {rank}\b"], "--replicas", "4")
        self.check("rank=3,at=step,after=5,pause_ms=600000", [r"rank 3 of 4.*step \d+: stuck"], "--replicas", "4")

    def test_waiting_for_a_slow_replica_is_not_stuck(self) -> None:
        """Replica 0 waits much longer than the limit, and replica 1 works."""
        rows = [{"tokens": [1, 2], "max_tokens": 2}, {"tokens": [3], "max_tokens": 30}]
        requests = write_requests(self.fresh(".jsonl"), rows)
        self.assert_done(ptrt("generate", self.model, requests, "-o", self.fresh(".jsonl"), "--replicas", "2",
                              "--step-timeout", TIMEOUT, ranks=2, timeout=START,
                              env={"PTRT_FAULT": f"rank=1,at=step,pause_ms={SLOWNESS * 200}"}))

    def test_no_timeout(self) -> None:
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), "--step-timeout", 0,
                              ranks=4, timeout=START))

    def test_a_signal_ends_the_wait_for_a_stopped_rank(self) -> None:
        results = self.fresh("-results.jsonl")
        running = Running(["generate", self.model, self.endless, "-o", results, "--step-timeout", NEVER], ranks=4)
        ranks = self.wait_for_work(running, results, 4)
        os.kill(ranks[2], signal.SIGSTOP)
        time.sleep(6)
        for rank in ranks:
            os.kill(rank, signal.SIGTERM)
        outcome = running.finish(timeout=SECONDS)
        self.assert_ended(outcome)
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertRegex(outcome.errors[0], r"rank 0 of 4.*stopped by a signal, but rank 2 \(.*no sign of life")
        self.assert_gone(ranks)

    def test_a_job_that_was_suspended_continues(self) -> None:
        results = self.fresh("-results.jsonl")
        requests = write_requests(self.fresh(".jsonl"), [{"tokens": [i], "max_tokens": 1 + 5 * i} for i in range(20)])
        running = Running(["generate", self.model, requests, "-o", results, "--step-timeout", TIMEOUT], ranks=2,
                          env={"PTRT_FAULT": "rank=0,at=step,pause_ms=20"})
        ranks = self.wait_for_work(running, results, 2)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                os.kill(rank, number)
            time.sleep(TIMEOUT + 2)
        self.assert_done(running.finish(timeout=START))


class CutHost(Job):
    # A busy machine runs both hosts and the wire between them, which then drops packets: TCP sends them again after
    # seconds.
    TIMEOUT = 20 * SLOWNESS

    def test_a_cable_is_cut(self) -> None:
        """Each side of the cut ends by itself; mpirun hears only what is on its own side."""
        sys.path.insert(0, str(ROOT / "perf" / "emulated_cluster"))
        from cluster import CannotEmulate, Cluster, call
        try:
            cluster = Cluster(2, 0, 10, "c").__enter__()
        except CannotEmulate as why:
            self.skipTest(f"no network namespaces here: {why}")
        try:
            results = self.fresh("-results.jsonl")
            command = cluster.mpirun(1, [str(PTRT), "generate", str(self.model), str(self.endless), "-o", str(results),
                                         "--step-timeout", str(self.TIMEOUT), "--threads", "1"])
            running = Running([], env=MPI_LEAKS, command=command)
            ranks = self.wait_for_work(running, results, 2)
            call("ip", "-n", cluster.host(2), "link", "set", "eth0", "down")
            self.assert_gone(ranks, self.TIMEOUT + 10 * SLOWNESS)
            running.stop()
            outcome = running.finish(timeout=1)
            self.assertEqual(len(outcome.errors), 1, outcome.output)
            self.assertRegex(outcome.errors[0], rf"rank 0 of 2.*rank 1 \({cluster.host(2)}\)")
        finally:
            cluster.__exit__()


if __name__ == "__main__":
    unittest.main(verbosity=1)
