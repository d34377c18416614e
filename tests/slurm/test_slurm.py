#!/usr/bin/python3
"""The batch scripts of scripts/slurm on a real Slurm of two nodes: as they are, and through preemption, time limit,
scancel and the loss of a node. Whatever happens to a job, its results are the bytes of one plain run.

What the jobs printed and Slurm's logs are left in $PTRT_BUILD_DIR/slurm_test.log.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from slurm_cluster import NODES, ROOT, CannotEmulate, SlurmCluster, ended_by_signals

PTRT = Path(os.environ.get("PTRT_BIN", ROOT / "build" / "ptrt")).resolve()
LOG = Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build")) / "slurm_test.log"
SCRIPTS = ROOT / "scripts" / "slurm"
DEMO = ROOT / "examples" / "demo"
# Seconds that a job may take after what the test did to it; only a hang takes so long.
PATIENCE = 240
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}
# A rank waits in each step, so that a job lasts; but not once Slurm has started it again, and of an array only in task 2.
SLOW = """#!/bin/sh
[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] && [ "${{SLURM_ARRAY_TASK_ID:-2}}" = 2 ] &&
  export PTRT_FAULT="rank=0,at=step,pause_ms=${{PAUSE_MS:-400}}"
exec {ptrt} "$@"
"""
LATE = """#!/bin/bash
[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] && echo not ready && sleep 300
exec {ptrt} "$@"
"""
ONE_RANK = ("--ntasks=1", "--cpus-per-task=1")
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")


class Job:
    def __init__(self, test, script, name, options=(), more=(), requests=None, program=PTRT, arguments=None, env=None):
        self.slurm, self.name = test.slurm, name
        self.results = test.folder / f"{name}.jsonl"
        self.output = test.folder / f"{name}.out"
        arguments = arguments or [DEMO / "demo.h5", requests or test.requests, self.results, *more]
        self.id = self.slurm.client("sbatch", "--parsable", "-J", name, "-o", self.output, "-D", test.folder, *options,
                                    SCRIPTS / script, *arguments, env={"PTRT": str(program), **(env or {})})

    def states(self):
        return set(self.slurm.client("squeue", "-h", "-t", "all", "-j", self.id, "-o", "%T", check=False).split())

    def has_ended(self):
        states = self.states()  # none: Slurm did not answer
        return bool(states) and states <= ENDED

    def restarts(self, task=""):
        shown = self.slurm.client("scontrol", "show", "job", f"{self.id}{task}")
        return int(shown.split("Restarts=")[1].split()[0])

    def finished(self, task=""):
        """Results in the journal."""
        try:
            return max(0, Path(f"{self.results}{task}.partial").read_bytes().count(b"\n") - 1)
        except FileNotFoundError:
            return 0

    def text(self):
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait(self, until, what):
        end = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f"{self.name}: not {what} after {PATIENCE} s: {self.states()}\n{self.text()}")
            time.sleep(0.3)

    def wait_for_results(self, count):
        self.wait(lambda: self.finished() >= count or self.has_ended(), f"at {count} results")

    def wait_for_end(self):
        self.wait(self.has_ended, "ended")
        return self.states()


class Slurm(unittest.TestCase):
    """One cluster for all tests, which run in the order of their names."""

    slurm: SlurmCluster
    times: list[str] = []

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="ptrt-slurm-test-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.slow = cls.folder / "slow"
        cls.slow.write_text(SLOW.format(ptrt=PTRT))
        cls.slow.chmod(0o755)
        cls.late = cls.folder / "late"
        cls.late.write_text(LATE.format(ptrt=PTRT))
        cls.late.chmod(0o755)
        cls.requests = cls.folder / "requests.jsonl"
        cls.requests.write_text("".join((DEMO / "heldout.jsonl").read_text().splitlines(keepends=True)[:60]))
        cls.want = cls.plain(cls.requests)
        # The minute that Slurm's time limits have at least passes while the first test runs.
        cls.limited = [cls.lasting("cpu_one_node.sbatch", "limit-srun", *ONE_RANK, "--time=1", "--signal=TERM@20"),
                       cls.lasting("mpirun.sbatch", "limit-mpirun", *TWO_NODES, "--time=1", "--signal=B:TERM@20")]

    @classmethod
    def tearDownClass(cls):
        outputs = "".join(f"== {path.name}\n{path.read_text(errors='replace')}"
                          for path in sorted(cls.folder.glob("*.out")))
        LOG.write_text("".join(cls.times) + outputs + cls.slurm.log())

    def setUp(self):
        self.start = time.monotonic()

    def tearDown(self):
        self.times.append(f"{time.monotonic() - self.start:6.1f} s  {self.id().rsplit('.')[-1]}\n")

    @classmethod
    def plain(cls, requests):
        results = cls.folder / f"plain-{requests.name}"
        subprocess.run([PTRT, "generate", DEMO / "demo.h5", requests, "-o", results, "--quiet"], check=True)
        return results.read_bytes()

    @classmethod
    def lasting(cls, script, name, *options, more=(), env=None):
        """A job that takes a minute, unless it is started again."""
        return Job(cls, script, name, options, ["--max-batch", "2", "--log-every", "5", *more], program=cls.slow, env=env)

    def assert_same(self, job, want=None):
        self.assertEqual(job.wait_for_end(), {"COMPLETED"}, job.text())
        self.assertEqual(job.results.read_bytes(), want or self.want, job.name)
        self.assertFalse(Path(f"{job.results}.partial").exists())

    def assert_went_on(self, job, finished):
        """The job was started again, and no result that was in its journal was computed twice."""
        self.assert_same(job)
        self.assertEqual(job.restarts(), 1)
        kept = [int(line.split()[0]) for line in job.text().splitlines() if line.endswith("are from an earlier run")]
        self.assertEqual(len(kept), 1, job.text())
        self.assertGreaterEqual(kept[0], finished)

    def test_1_the_files_as_they_are(self):
        prompts = DEMO / "prompts.jsonl"
        want = self.plain(prompts)
        jobs = [Job(self, f"{name}.sbatch", name, requests=prompts)
                for name in ("cpu_one_node", "cpu_many_nodes", "replicas", "mpirun")]
        # Slurm hands out devices here that are no GPUs; ranks see their numbers, and compute on the CPU.
        seen = self.folder / "seen"
        seen.write_text(f'#!/bin/sh\necho "rank $SLURM_PROCID sees $CUDA_VISIBLE_DEVICES"\nexec {PTRT} "$@"\n')
        seen.chmod(0o755)
        gpu, all_gpus = [Job(self, f"{name}.sbatch", name, requests=prompts, env={"BACKEND": "cpu"}, program=seen)
                         for name in ("gpu", "gpu_all_visible")]
        jobs += [gpu, all_gpus]
        for job in jobs:
            with self.subTest(job.name):
                self.assert_same(job, want)
                self.assertIn("requests                           12 done", job.text())
        for rank in range(8):
            self.assertRegex(gpu.text(), rf"rank {rank} sees \d\n")
            self.assertIn(f"rank {rank} sees 0,1,2,3,4,5,6,7\n", all_gpus.text())

    def test_1_the_tasks_of_an_array_and_their_merge(self):
        job = self.lasting("array.sbatch", "array")
        merge = Job(self, "merge.sbatch", "merge", [f"--dependency=afterok:{job.id}"], arguments=[job.results, 4])
        job.wait(lambda: job.finished(".2") > 0, "at a result of task 2")
        self.slurm.client("scancel", "--signal=TERM", f"{job.id}_2")  # to its ranks, as before a time limit
        self.assertEqual(merge.wait_for_end(), {"COMPLETED"}, merge.text() + job.text())
        self.assertEqual(job.states(), {"COMPLETED"})
        self.assertEqual([job.restarts(f"_{task}") for task in range(4)], [0, 0, 1, 0])
        self.assertEqual(job.results.read_bytes(), self.want)

    def test_1_what_fails_is_not_started_again(self):
        few = {"array.sbatch": (*ONE_RANK, "--array=0"), "cpu_one_node.sbatch": ONE_RANK, "gpu.sbatch": ONE_RANK}
        scripts = sorted(path.name for path in SCRIPTS.glob("*.sbatch") if path.name != "merge.sbatch")
        self.assertEqual(len(scripts), 7)
        jobs = [Job(self, script, f"no-model-{script}", few.get(script, ("--ntasks-per-node=1", "--cpus-per-task=1")),
                    arguments=[self.folder / "absent.h5", self.requests, self.folder / f"absent-{script}.jsonl"])
                for script in scripts]
        for job in jobs:
            with self.subTest(job.name):
                self.assertEqual(job.wait_for_end(), {"FAILED"}, job.text())
                self.assertEqual(job.restarts(), 0)
                self.assertIn("absent.h5", job.text())

    def test_2_time_limit(self):
        for job in self.limited:
            with self.subTest(job.name):
                self.assert_went_on(job, 1)
                self.assertIn("stopped by a signal", job.text())

    def test_3_preemption(self):
        jobs = [self.lasting("cpu_many_nodes.sbatch", "preempted-srun", *TWO_NODES),
                self.lasting("mpirun.sbatch", "preempted-mpirun", *TWO_NODES),
                self.lasting("cpu_many_nodes.sbatch", "preempted-without-grace", *TWO_NODES, "-p", "rude")]
        for job in jobs:
            job.wait_for_results(2)
        early = Job(self, "cpu_many_nodes.sbatch", "preempted-before-it-was-ready", TWO_NODES, program=self.late)
        early.wait(lambda: "not ready" in early.text(), "started")
        finished = [job.finished() for job in jobs]
        high = self.slurm.client("sbatch", "--parsable", "-p", "high", "-N", NODES, "--exclusive", "-D", self.folder,
                                 "-o", self.folder / "high.out", "--wrap", "sleep 1")
        for job, count in zip(jobs, finished):
            with self.subTest(job.name):
                self.assert_went_on(job, count)
        self.assertIn("COMPLETED", self.slurm.client("scontrol", "show", "job", high))
        self.assert_same(early)
        self.assertEqual(early.restarts(), 1)
        self.assertIn("stopped by a signal", jobs[0].text())

    def test_4_a_cancelled_job_goes_on_with_other_ranks(self):
        """A job of Slurm's each: two ranks, two replicas of two ranks on two nodes, then one rank."""
        name = "elastic"
        for script, options, more in (("cpu_one_node.sbatch", ("--ntasks=2", "--cpus-per-task=1"), ()),
                                      ("replicas.sbatch", ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"), ())):
            job = self.lasting(script, name, *options, more=more)
            before = job.finished()
            job.wait_for_results(before + 2)
            self.slurm.client("scancel", job.id)
            self.assertEqual(job.wait_for_end(), {"CANCELLED"}, job.text())
            self.assertEqual(job.restarts(), 0)
            self.assertFalse(job.results.exists())
            self.assertGreaterEqual(job.finished(), before + 2)
            finished = job.finished()
        last = Job(self, "cpu_one_node.sbatch", name, ONE_RANK)
        self.assert_same(last)
        self.assertIn(f"{finished} results are from an earlier run", last.text())
        self.assertIn("cpu x 1 thread ", last.text(), "SLURM_CPUS_PER_TASK is 1")

    def test_5_processes_that_mpi_does_not_join(self):
        for plugin, status, message in (("none", 2, "MPI sees one process only, although the launcher started 2"),
                                        ("pmi2", 1, "OMPI was not built with SLURM's PMI support")):
            step = ["srun", f"--mpi={plugin}", "-N2", "-n2", PTRT, "generate", DEMO / "demo.h5", self.requests, "-o",
                    self.folder / f"{plugin}.jsonl"]
            done = subprocess.run([*self.slurm.enter(1), "timeout", str(PATIENCE), *step], capture_output=True,
                                  text=True, env=self.slurm.environment())
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn(message, done.stderr)
            self.assertFalse((self.folder / f"{plugin}.jsonl").exists())

    def test_6_a_lost_node(self):
        jobs = [self.lasting(script, f"lost-{name}", *TWO_NODES, more=["--step-timeout", "8"])
                for script, name in (("cpu_many_nodes.sbatch", "srun"), ("mpirun.sbatch", "mpirun"))]
        # The cut-off node knows nothing of it, so its job must last until Slurm finds out.
        jobs.append(self.lasting("cpu_one_node.sbatch", "lost-script", *ONE_RANK, "-w", self.slurm.hosts.host(2),
                                 env={"PAUSE_MS": "1500"}))
        for job in jobs:
            job.wait_for_results(2)
        finished = [job.finished() for job in jobs]
        self.slurm.cut_cable(2)
        for job in jobs:
            job.wait(lambda: "PENDING" in job.states() or job.has_ended(), "requeued")
        self.slurm.replace_node(2)
        for job, count in zip(jobs, finished):
            with self.subTest(job.name):
                self.assert_went_on(job, count)
        for job in jobs[:2]:
            self.assertIn("no sign of life from rank 1", job.text())


def main():
    if os.environ.get("PTRT_TEST_SLURM") != "1":
        print("skipped: it takes minutes, root and the packages of tests/slurm/install.sh (PTRT_TEST_SLURM=1, "
              "make test-slurm)")
        return 77
    try:
        with ended_by_signals(), SlurmCluster() as Slurm.slurm:
            return 0 if unittest.main(verbosity=1, exit=False).result.wasSuccessful() else 1
    except CannotEmulate as why:
        print(f"skipped: no Slurm can be started here: {why}")
        return 77
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
