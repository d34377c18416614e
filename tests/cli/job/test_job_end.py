#!/usr/bin/python3
"""How a process begins and ends: its standard streams, crashes, signals, and processes that MPI does not join."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, SANITIZERS, SLOWNESS, CliTest, Outcome, Running, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

STOPPED = 75
SLOW = "at=step,pause_ms=20"


def redirected(redirections: str, *arguments, cwd: Path | None = None) -> Outcome:
    """Runs the program with redirections of the shell, such as `>&-`."""
    command = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", str(PTRT), *map(str, arguments)]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOWNESS, check=False, cwd=cwd)
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


class JobEnd(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, max_context=256)
        cls.model = write_random(cls.dir / "model.h5", cls.config, 71)
        cls.config_file = cls.dir / "config.json"
        cls.config_file.write_text(json.dumps(cls.config))
        cls.requests = write_requests(cls.dir / "requests.jsonl",
                                      [{"tokens": [i, 2, 3], "max_tokens": 6} for i in range(5)])
        cls.long = write_requests(cls.dir / "long.jsonl",
                                  [{"tokens": [i % 200, 2], "max_tokens": 1 + 9 * i} for i in range(20)])
        cls.want = cls.dir / "want.jsonl"
        outcome = ptrt("generate", cls.model, cls.requests, "-o", cls.want)
        assert outcome.status == 0, outcome.output


class StandardStreams(JobEnd):
    def test_closed_ones_get_no_other_file(self) -> None:
        """The next file that is opened would otherwise have the number of a closed stream."""
        for closed in ("<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
            for command, model in (("generate", self.model), ("score", self.model)):
                with self.subTest(closed=closed, command=command):
                    results = self.fresh(".jsonl")
                    outcome = redirected(closed, command, model, self.requests, "-o", results)
                    self.assertEqual(outcome.status, 0, outcome.output)
                    self.assertEqual(len(read_results(results)), 5)
                    if command == "generate":
                        self.assertEqual(results.read_bytes(), self.want.read_bytes())

    def commands_that_print(self) -> list[tuple]:
        return [("--help",), ("--version",), ("inspect", self.model), ("inspect", self.model, "--json"),
                ("inspect", self.model, "--verify"), ("plan", self.config_file, "--gpus", "2"),
                ("init", self.config_file, "-o", self.fresh(".h5")), ("pack", self.model, "-o", self.fresh(".h5")),
                ("quantize", self.model, "-o", self.fresh(".h5"), "--weights", "int8"),
                ("bench", self.model, "--input-len", "4", "--output-len", "2", "--requests", "1")]

    def test_what_cannot_be_printed_is_a_failure(self) -> None:
        for redirection, reason in ((">/dev/full", "No space left"), (">&-", "Bad file descriptor")):
            for command in self.commands_that_print():
                with self.subTest(redirection=redirection, command=command[0]):
                    outcome = redirected(redirection, *command)
                    self.assertEqual(outcome.status, 1, outcome.output)
                    self.assertEqual(len(outcome.errors), 1, outcome.output)
                    self.assertRegex(outcome.errors[0], f"cannot write to standard output: {reason}")

    def test_a_limit_on_file_size_is_a_message(self) -> None:
        """Not an end by SIGXFSZ."""
        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        big = write_requests(self.fresh(".jsonl"), [{"tokens": [1], "max_tokens": 200} for _ in range(40)])
        for command in (("init", self.config_file, "-o", self.fresh(".h5")),
                        ("generate", self.model, big, "-o", self.fresh(".jsonl")),
                        ("pack", self.model, "-o", self.fresh(".h5"))):
            with self.subTest(command=command[0]):
                done = subprocess.run([str(PTRT), *map(str, command)], capture_output=True, text=True, check=False,
                                      preexec_fn=limited, timeout=60 * SLOWNESS)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr, "ptrt: error: .*File too large")


class Crashes(JobEnd):
    NAMES = {signal.SIGSEGV: "segmentation fault", signal.SIGFPE: "arithmetic exception",
             signal.SIGILL: "illegal instruction", signal.SIGABRT: "aborted"}

    def crash(self, number: int, rank: int, ranks: int | None) -> Outcome:
        return ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), ranks=ranks,
                    env={"PTRT_FAULT": f"rank={rank},at=step,signal={int(number)}"})

    def test_one_line_and_the_usual_status(self) -> None:
        if SANITIZERS:
            self.skipTest("the sanitizer reports crashes")
        for number, name in self.NAMES.items():
            with self.subTest(name=name):
                outcome = self.crash(number, 0, None)
                self.assertEqual(outcome.status, -number, outcome.output)
                self.assertEqual(outcome.stderr.splitlines()[-1],
                                 f"ptrt: error: crashed: {name} (signal {int(number)})")

    def test_rank_and_host_are_named(self) -> None:
        """MPI's own handlers, which may hang in a crashed process, are not installed."""
        if SANITIZERS:
            self.skipTest("the sanitizer reports crashes")
        for number, name in self.NAMES.items():
            with self.subTest(name=name):
                outcome = self.crash(number, 1, 2)
                self.assertNotEqual(outcome.status, 0)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertIn(f"rank 1 of 2 ({os.uname().nodename}): error: crashed: {name}", outcome.errors[0])
                self.assertNotIn("Process received signal", outcome.output)

    def test_before_mpi_has_started(self) -> None:
        if SANITIZERS:
            self.skipTest("the sanitizer reports crashes")
        outcome = ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), ranks=2,
                       env={"PTRT_FAULT": "rank=1,at=start,signal=11"})
        self.assertRegex(outcome.output, r"ptrt: rank 1 of 2 \(.*\): error: crashed: segmentation fault")


class Singletons(JobEnd):
    LAUNCHERS = ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "{}"}, {"PMI_SIZE": "4", "PMI_RANK": "{}"},
                 {"SLURM_STEP_NUM_TASKS": "4", "PMIX_RANK": "{}", "SLURM_PROCID": "{}"},
                 {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "{}"},
                 {"MPI_LOCALNRANKS": "4", "PMI_RANK": "{}"})

    def run_task(self, variables: dict[str, str], task: int, *options, command: str = "generate") -> Outcome:
        env = {name: value.format(task) for name, value in variables.items()}
        if command == "bench":
            return ptrt("bench", self.model, "--input-len", "4", "--output-len", "2", "--requests", "1", *options,
                        env=env)
        return ptrt(command, self.model, self.requests, "-o", self.fresh(".jsonl"), *options, env=env)

    def test_refused_with_one_message(self) -> None:
        for variables in self.LAUNCHERS:
            with self.subTest(variables=variables):
                first, other = self.run_task(variables, 0), self.run_task(variables, 3)
                self.assertEqual((first.status, other.status), (2, 2), first.output)
                self.assertRegex(first.errors[0], "MPI sees one process only.*launcher started 4.*mpirun -n 4.*"
                                                  "--mpi=pmix.*--allow-singleton")
                self.assertEqual((len(first.errors), other.errors), (1, []))

    def test_every_command_that_runs_a_model(self) -> None:
        for command in ("score", "bench"):
            self.assertEqual(self.run_task(self.LAUNCHERS[0], 0, command=command).status, 2)
            self.assert_done(self.run_task(self.LAUNCHERS[0], 0, "--allow-singleton", command=command))
        outcome = ptrt("inspect", self.model, env={"SLURM_STEP_NUM_TASKS": "4"})
        self.assertEqual(outcome.status, 0, outcome.output)

    def test_no_ground(self) -> None:
        """A batch script has the number of tasks of its allocation; mpirun's ranks inherit their step's."""
        for variables in ({"SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0"},
                          {"SLURM_STEP_NUM_TASKS": "1"}, {"PMI_SIZE": "1", "PMI_RANK": "0"}):
            with self.subTest(variables=variables):
                self.assert_done(self.run_task(variables, 0))
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), ranks=2,
                              env={"SLURM_STEP_NUM_TASKS": "3"}))


class Stopped(JobEnd):
    def started(self, ranks: int | None, results: Path, *options) -> Running:
        running = Running(["generate", self.model, self.long, "-o", results, *options], ranks=ranks,
                          env={"PTRT_FAULT": f"rank=0,{SLOW}"})
        journal, deadline = Path(f"{results}.partial"), time.monotonic() + 60 * SLOWNESS
        while time.monotonic() < deadline and running.process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > 2:
                return running
            time.sleep(0.02)
        self.fail(f"no result in time\n{running.finish(1).output}")

    def test_generate_with_a_journal(self) -> None:
        for ranks in (None, 2):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                with self.subTest(ranks=ranks, number=number.name):
                    results = self.fresh(".jsonl")
                    running = self.started(ranks, results)
                    for process in [running.process.pid] if ranks is None else running.ranks():
                        os.kill(process, number)
                    outcome = running.finish(timeout=60)
                    self.assertEqual(outcome.status, STOPPED, outcome.output)
                    self.assertEqual(len(outcome.errors), 1, outcome.output)
                    self.assertIn("--resume", outcome.errors[0])
                    self.assertFalse(results.exists())
        self.assert_done(ptrt("generate", self.model, self.long, "-o", results, "--resume", ranks=2))
        self.assertEqual(len(read_results(results)), 20)

    def test_signal_while_loading(self) -> None:
        """The journal is opened and the run stops before its first step, on every rank."""
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                results = self.fresh(".jsonl")
                outcome = ptrt("generate", self.model, self.long, "-o", results, ranks=ranks,
                               env={"PTRT_FAULT": "rank=0,at=load,signal=15"})
                self.assertEqual(outcome.status, STOPPED, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertTrue(Path(f"{results}.partial").exists())

    def test_bench(self) -> None:
        for ranks in (None, 2):
            outcome = ptrt("bench", self.model, "--input-len", "4", "--output-len", "50", "--requests", "2", ranks=ranks,
                           env={"PTRT_FAULT": "rank=0,at=step,after=3,signal=15"})
            self.assertEqual(outcome.status, 1, outcome.output)
            self.assertIn("stopped by a signal", outcome.errors[0])


if __name__ == "__main__":
    unittest.main(verbosity=1)
