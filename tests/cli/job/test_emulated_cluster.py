#!/usr/bin/python3
"""Hosts that exist only in network namespaces: a run over them gives the same bytes, and leaves nothing."""

import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import MPI_LEAKS, PATIENCE, PTRT, ROOT, CliTest, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

CLUSTER = ROOT / "perf" / "emulated_cluster" / "cluster.py"


def on_cluster(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(CLUSTER), *map(str, words)], capture_output=True, text=True, timeout=PATIENCE,
                          env={**os.environ, **MPI_LEAKS})


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout


class EmulatedCluster(CliTest):
    def setUp(self) -> None:
        found = on_cluster("--nodes", 1, "--", "true")
        if found.returncode == 2:
            self.skipTest(f"no network namespaces here: {found.stderr.strip()}")
        self.assertEqual(found.returncode, 0, found.stderr)

    def test_a_run_over_two_hosts(self) -> None:
        config = make_config(tracks=4, layers=4, sync_layers=[2, 4])
        model = write_random(self.fresh(".h5"), config, 41)
        rows = [{"tokens": [1, 2, 3, 4], "max_tokens": 12}, {"tokens": [7, 8], "max_tokens": 5},
                {"tokens": [n * n % 200 for n in range(110)], "max_tokens": 3}]  # this prefill runs in halves
        want = self.batch("generate", model, rows)
        before = namespaces()
        for delay, options in ((0, ()), (300, ("--ranks-per-node", 2))):
            results = self.fresh(".jsonl")
            done = on_cluster("--nodes", 2, "--delay-us", delay, *options, "--", PTRT, "generate", model,
                              write_requests(self.fresh(".jsonl"), rows), "-o", results, "--threads", 1)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(results.read_bytes(), want)
        self.assertEqual(namespaces(), before, "hosts were left behind")
        done = on_cluster("--nodes", 2, "--", "env", "PTRT_FAULT=rank=1,at=sync,after=1", PTRT, "generate", model,
                          write_requests(self.fresh(".jsonl"), rows[2:]), "-o", self.fresh(".jsonl"), "--threads", 1)
        self.assertEqual(done.returncode, 1, "a failure while a sum is in flight" + done.stderr)
        self.assertRegex(done.stderr, r"rank 1\b.*sync")

    def test_the_doctor_of_two_hosts(self) -> None:
        done = on_cluster("--nodes", 2, "--ranks-per-node", 2, "--", PTRT, "doctor", "--threads", 1)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"ranks +4 on 2 hosts\n.*: ranks 0-1 \(local 0-1\)\n.*: ranks 2-3 \(local 0-1\)")
        self.assertRegex(done.stdout, r"(?m)^all-reduce +over all ranks, in two levels, .*: 4.0 KiB \d+ us")

    def test_a_failing_command_leaves_nothing(self) -> None:
        before = namespaces()
        self.assertNotEqual(on_cluster("--nodes", 2, "--", "false").returncode, 0)
        self.assertEqual(namespaces(), before)


if __name__ == "__main__":
    unittest.main(verbosity=1)
