#!/usr/bin/python3
"""When the batch scripts of scripts/slurm ask Slurm to start their job again, with stand-ins for Slurm's commands."""
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.sbatch") if path.name != "merge.sbatch")
# A run that adds $GROWTH bytes to the journal of its `-o` and ends with $STATUS.
RUN = """#!/bin/bash
while [ "$1" != -o ]; do shift; done
head -c "$GROWTH" /dev/zero >> "$2.partial"
exit "$STATUS"
"""
# The I-th answer of $STATES; "-" stands for none.
SQUEUE = """#!/bin/bash
echo squeue >> asked
state=$(cut -d ' ' -f "$(wc -l < asked)" <<< "$STATES")
[ "$state" != - ] || { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
echo "$state"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then
  echo "$2" >> requeued
else
  echo "JobId=7 JobName=ptrt"
  echo "   StartTime=2026-03-01T10:00:00 EndTime=2026-03-01T22:00:00 Deadline=N/A"
  echo "   PreemptEligibleTime=2026-03-01T10:00:00 PreemptTime=$PREEMPTED"
fi
"""
QUIET = "#!/bin/bash\n"
SLURM = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0",
         "SLURM_ARRAY_TASK_STEP": "1", "SLURM_CPUS_PER_TASK": "1", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "n[1-2]",
         "GROWTH": "0", "STATES": "RUNNING RUNNING", "PREEMPTED": "None"}
SIGNALLED = {"mpirun.sbatch": 138}  # 143 under srun


class Requeue(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="ptrt-requeue-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        commands = {"srun": RUN, "mpirun": RUN, "squeue": SQUEUE, "scontrol": SCONTROL, "sinfo": QUIET, "sleep": QUIET}
        for name, text in commands.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def run_script(self, script, status, **environment):
        """Its exit status, whether it asked for another start, and what it printed."""
        for left in ("requeued", "asked"):
            (self.folder / left).unlink(missing_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        done = subprocess.run(["bash", SCRIPTS / script, "m.h5", "in.jsonl", "out.jsonl"], cwd=self.folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
                              env={**inherited, **SLURM, "PATH": f"{self.folder}:{os.environ['PATH']}",
                                   "STATUS": str(status), **environment})
        requeued = self.folder / "requeued"
        if requeued.exists():
            self.assertEqual(requeued.read_text(), "6_1\n" if script == "array.sbatch" else "7\n")
        return done.returncode, requeued.exists(), done.stdout

    def check(self, script, status, ends, requeues, **environment):
        with self.subTest(script, status=status, **environment):
            found, requeued, text = self.run_script(script, status, **environment)
            self.assertEqual((found, requeued), (ends, requeues), text)
            return text
        return ""

    def test_a_stop_goes_on_while_there_are_new_results(self):
        self.assertEqual(len(NAMES), 7)
        for script in NAMES:
            for status in (75, SIGNALLED.get(script, 143)):
                self.check(script, status, status, True)
                self.check(script, status, status, True, SLURM_RESTART_COUNT="9")
                text = self.check(script, status, 1, False, SLURM_RESTART_COUNT="10")
                self.assertIn("stopped without a new result after 10 restarts (RESTARTS=10)", text)
            self.check(script, 75, 75, True, SLURM_RESTART_COUNT="10", GROWTH="1")
            self.check(script, 75, 75, True, SLURM_RESTART_COUNT="10", RESTARTS="11")
            self.check(script, 75, 1, False, SLURM_RESTART_COUNT="2", RESTARTS="2")
            self.check(script, 2, 2, False)

    def test_slurmctld_may_miss_a_question(self):
        for script in NAMES:
            self.check(script, 75, 75, True, STATES="- RUNNING")
            self.check(script, 75, 75, False, STATES="- -")
            self.check(script, 75, 75, False, STATES="COMPLETING RUNNING")  # it was cancelled

    def test_a_preemption_counts_in_its_own_run(self):
        self.check("mpirun.sbatch", 205, 205, False)
        self.check("mpirun.sbatch", 205, 205, False, PREEMPTED="2026-03-01T09:59:59")
        self.check("mpirun.sbatch", 205, 205, True, PREEMPTED="2026-03-01T10:00:01")
        self.check("mpirun.sbatch", 0, 0, False, PREEMPTED="2026-03-01T10:00:01")


if __name__ == "__main__":
    unittest.main(verbosity=1)
