#!/usr/bin/python3
"""ptrt doctor on a good launch and on bad ones: a table, a line for each problem, and an exit status."""

import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, CliTest, Outcome, Running, ptrt  # noqa: E402
from test_agreement import Together  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402


class Doctor(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.model = write_random(cls.dir / "model.h5", make_config(tracks=2, layers=2, sync_layers=[1, 2]), 81)

    def check_good(self, outcome: Outcome, ranks: int) -> None:
        self.assert_done(outcome)
        self.assertNotIn("problem:", outcome.stdout)
        self.assertRegex(outcome.stdout, rf"(?m)^verdict: a job of {ranks} ranks? like this can run")

    def check_bad(self, outcome: Outcome, *problems: str) -> None:
        """One line a problem, each with what to change."""
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertIn("would fail", outcome.errors[0])
        found = [line for line in outcome.stdout.splitlines() if line.startswith("problem: ")]
        self.assertEqual(len(found), len(problems), outcome.output)
        for line, words in zip(found, problems):
            self.assertRegex(line, words)
            self.assertRegex(line, r" / change: \w")

    def rows(self, outcome: Outcome) -> dict[str, str]:
        return {line[:14].strip(): line[15:] for line in outcome.stdout.splitlines() if line[:1] not in (" ", "")}

    def test_alone(self) -> None:
        outcome = ptrt("doctor")
        self.check_good(outcome, 1)
        self.assertNotIn("model", self.rows(outcome))
        outcome = ptrt("doctor", self.model, "-o", self.dir / "results.jsonl")
        self.check_good(outcome, 1)
        self.assertIn("2 tracks a rank, 1 replica", self.rows(outcome)["a job"])
        self.assertIn("locks: kept", self.rows(outcome)["results"])

    def test_a_good_launch(self) -> None:
        before = sorted(self.dir.iterdir())
        outcome = ptrt("doctor", self.model, "--output", self.dir, "--threads", "1", ranks=2)
        self.check_good(outcome, 2)
        rows = self.rows(outcome)
        self.assertEqual(rows["ranks"], "2 on 1 host")
        self.assertRegex(rows["started by"], "^mpirun")
        self.assertRegex(rows["MPI"], "^Open MPI [0-9.]+, MPI_THREAD_MULTIPLE$")
        self.assertIn(subprocess.run([PTRT, "--version"], capture_output=True, text=True, check=True).stdout.strip(),
                      rows["program"])
        self.assertRegex(rows["HDF5"], r"^1\.\d+\.\d+$")
        self.assertRegex(rows["memory"], r"^[0-9.]+ [GM]iB a rank \(")
        self.assertIn("units " + ranges(os.sched_getaffinity(0)) + " of the host", rows["cores"])
        self.assertRegex(rows["model"], "model.h5: 2 tracks x 2 layers, 2 sync points$")
        self.assertRegex(rows["results"], r"free; locks: kept$")
        self.assertRegex(rows["clocks"], r"^within \d+\.\d ms of rank 0's$")
        self.assertRegex(rows["all-reduce"], r"in shared memory: 4.0 KiB \d+ us, 64.0 KiB \d+ us, 1.0 MiB \d+ us$")
        self.assertRegex(rows["a job"], r"^1 track a rank, 1 replica, \w+ products on the \w+; .*a KV cache of \d+ tokens")
        self.assertEqual(sorted(self.dir.iterdir()), before, "nothing is left behind")

    def test_no_gpu(self) -> None:
        outcome = ptrt("doctor", "--backend", "cuda", ranks=2, env={"PTRT_PLUGIN_DIR": "/none"})
        self.check_bad(outcome, "ranks 0-1 .*--backend cuda, but there is no /none/libptrt_cuda.so")
        self.check_good(ptrt("doctor", "--backend", "cpu", env={"PTRT_PLUGIN_DIR": "/none"}), 1)

    def test_a_model_that_a_rank_does_not_see(self) -> None:
        bad = self.fresh(".h5")
        bad.write_bytes(self.model.read_bytes()[:3000])
        for path, why in ((self.dir / "none.h5", "No such file"), (bad, bad.name)):
            outcome = Together([[PTRT, "doctor", self.model], [PTRT, "doctor", path]]).finish()
            self.check_bad(outcome, rf"rank 1 \(host .*\) cannot read the model: .*{why}")
            self.assertRegex(outcome.stdout, "(?m)^model +rank 0: .*2 tracks")
        self.check_bad(ptrt("doctor", self.dir / "none.h5", ranks=2), "no rank can read the model")

    def test_too_little_memory(self) -> None:
        limit = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "100"}
        outcome = ptrt("doctor", self.model, ranks=2, env=limit)
        self.check_bad(outcome, "not enough memory: SLURM_MEM_PER_NODE leaves this rank 50.0 MiB.* / change: .*--mem")
        self.assertIn("limit: SLURM_MEM_PER_NODE", self.rows(outcome)["memory"])

    def test_ranks_that_do_not_fit(self) -> None:
        outcome = ptrt("doctor", self.model, ranks=3)
        self.check_bad(outcome, "3 ranks do not fit 2 tracks")
        self.check_bad(ptrt("doctor", self.model, "--tensor-parallel", "3", ranks=2), "tensor-parallel")

    def test_another_build(self) -> None:
        other, build = self.another_build()
        outcome = Together([[PTRT, "doctor", self.model], [other, "doctor", self.model]]).finish()
        self.check_bad(outcome, rf"different programs: .*build {build}\) on rank 0 .* on rank 1 ")

    def test_processors_that_differ(self) -> None:
        outcome = ptrt("doctor", self.model, ranks=2, rank_env={1: {"PTRT_SIMD_TARGET": "SSE4"}})
        self.check_good(outcome, 2)
        self.assertRegex(outcome.stdout, "(?m)^note: processors differ, so all ranks compute with SSE4.* / change: ")
        outcome = ptrt("doctor", ranks=2, rank_env={1: {"PTRT_SIMD_TARGET": "AVX9"}})
        self.check_bad(outcome, "rank 1 .*PTRT_SIMD_TARGET=AVX9")

    def test_more_ranks_than_cores(self) -> None:
        ranks = 2 * (len(os.sched_getaffinity(0)) // 2 + 1)
        shm = os.statvfs("/dev/shm")
        if ranks > 16 or shm.f_blocks * shm.f_frsize < ranks * (6 << 20):
            self.skipTest(f"{ranks} ranks are too many for a quick test")
        outcome = ptrt("doctor", ranks=ranks)
        self.check_good(outcome, ranks)
        self.assertRegex(outcome.stdout, "(?m)^note: ranks .*more threads than processing units.* / change: start at most")

    def test_a_folder_without_permission(self) -> None:
        self.check_bad(ptrt("doctor", "-o", self.dir / "none" / "results.jsonl", ranks=2),
                       "rank 0 cannot write results to .*No such file")

    def test_processes_that_mpi_does_not_join(self) -> None:
        step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}
        outcome = ptrt("doctor", env=step)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertRegex(outcome.errors[0], "the launcher started 4")
        outcome = ptrt("doctor", "--allow-singleton", env=step)
        self.check_good(outcome, 1)
        self.assertRegex(outcome.stdout, "(?m)^note: the launcher started 4 processes and MPI joins none of them")

    def test_little_shared_memory(self) -> None:
        """A /dev/shm in which MPI's own exchange would stop: the doctor does not try it."""
        self.check_bad(self.with_shm("2m"), "/dev/shm has 2.0 MiB, and its 2 ranks need 12.0 MiB.* / change: .*--shm-size")

    def test_shared_memory_without_a_limit(self) -> None:
        self.check_bad(self.with_shm("0"), "/dev/shm has no limit, which Open MPI takes for no space.*OMPI_MCA_shmem=posix")
        outcome = self.with_shm("0", "--mca", "shmem", "posix")
        self.check_good(outcome, 2)
        self.assertEqual(self.rows(outcome)["/dev/shm"], "no limit")

    def with_shm(self, size: str, *options: str) -> Outcome:
        command = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" "$@"']
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("no mount namespaces here")
        running = Running([], command=[*command, "mpirun", "--oversubscribe", "--bind-to", "none", *options, "-n", "2",
                                       str(PTRT), "doctor", str(self.model), "--step-timeout", "60"])
        return running.finish()

    def test_a_rank_that_is_stopped(self) -> None:
        """Never a hang: the watchdog names it, as in a job."""
        running = Running(["doctor", self.model, "--step-timeout", "3"], ranks=2,
                          env={"PTRT_FAULT": "rank=1,at=sync,pause_ms=600000"})
        self.addCleanup(running.stop)
        outcome = running.finish()
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertRegex(outcome.errors[0], "measuring the exchange")


def ranges(numbers: set[int]) -> str:
    """"0-3,8" as the table has it."""
    texts: list[str] = []
    run: list[int] = []
    for number in [*sorted(numbers), None]:
        if run and number != run[-1] + 1:
            texts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
            run = []
        if number is not None:
            run.append(number)
    return ", ".join(texts)


if __name__ == "__main__":
    unittest.main(verbosity=1)
