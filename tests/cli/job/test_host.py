#!/usr/bin/python3
"""How the program uses its host: instruction sets that differ between ranks, threads, cores."""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, PTRT, ROOT, SANITIZERS, CliTest, ptrt  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

BENCH = ("--input-len", "4", "--output-len", "2", "--requests", "1", "--warmup", "0")


def instruction_sets() -> list[str]:
    """Those of this machine, best first, as the message about an unknown one lists them."""
    outcome = ptrt("bench", "--random-weights", "none.json", env={"PTRT_SIMD_TARGET": "no-such-set"})
    return outcome.errors[0].split(" runs ")[1].split(", ")


class Host(CliTest):
    model: Path

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=72, head_dim=18, ffn_size=100)
        cls.model = write_random(cls.fresh(".h5"), config, 31, dtype="bfloat16")

    def bench(self, *options, **keywords) -> dict:
        figures = self.fresh(".json")
        self.assert_done(ptrt("bench", self.model, *BENCH, "--json", figures, *options, **keywords))
        return json.loads(figures.read_text())

    def rows(self) -> list[dict]:
        rng = np.random.default_rng(5)
        return [{"tokens": [int(token) for token in rng.integers(0, 250, size=length)], "max_tokens": 20,
                 "logprobs": True} for length in (3, 20, 40)]


class InstructionSets(Host):
    def test_ranks_take_the_best_that_all_have(self) -> None:
        names = instruction_sets()
        if len(names) < 2:
            self.skipTest(f"this machine has {names} alone")
        best = self.batch("generate", self.model, self.rows(), "--compute", "bfloat16")
        for name in dict.fromkeys((names[1], "AVX2", names[-1])):
            if name not in names[1:]:  # the best one is no limit
                continue
            with self.subTest(name=name):
                limit = {"PTRT_SIMD_TARGET": name}
                alone = self.batch("generate", self.model, self.rows(), "--compute", "bfloat16", env=limit)
                self.assertNotEqual(alone, best, "the limit changed nothing")
                for limited in ({0: limit}, {1: limit}):
                    mixed = self.batch("generate", self.model, self.rows(), "--compute", "bfloat16", ranks=2,
                                       rank_env=limited)
                    self.assertEqual(mixed, alone)

    def test_a_report_names_the_processor(self) -> None:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        figures = self.bench(ranks=1)
        if names:
            self.assertEqual(figures["processor"], names[0])
        else:  # Arm's numbers
            self.assertIn("part", figures["processor"])
        self.assertEqual(figures["instruction_set"], instruction_sets()[0])

    def test_products_are_chosen_after_the_agreement(self) -> None:
        names = instruction_sets()
        if not names[0].endswith("+BF16"):
            self.skipTest(f"{names[0]} has no bfloat16 products")
        figures = self.bench(ranks=2)
        self.assertEqual((figures["compute"], figures["instruction_set"]), ("bfloat16", names[0]))
        figures = self.bench(ranks=2, rank_env={1: {"PTRT_SIMD_TARGET": names[1]}})
        self.assertEqual((figures["compute"], figures["instruction_set"]), ("float32", names[1]))

    def test_an_unknown_name_is_refused_with_those_there_are(self) -> None:
        for ranks in (None, 2):
            outcome = ptrt("bench", self.model, *BENCH, ranks=ranks, env={"PTRT_SIMD_TARGET": "AVX9"})
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertEqual(len(outcome.errors), 1, outcome.output)
            self.assertIn("PTRT_SIMD_TARGET=AVX9", outcome.errors[0])


class Cores(Host):
    def test_threads_are_the_cores_that_are_allowed(self) -> None:
        allowed = os.sched_getaffinity(0)
        self.assertLessEqual(self.bench()["threads"], len(allowed))
        one = sorted(allowed)[0]
        figures = self.fresh(".json")
        subprocess.run(["taskset", "-c", str(one), PTRT, "bench", self.model, *BENCH, "--json", figures],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE)
        found = json.loads(figures.read_text())
        self.assertEqual((found["threads"], found["oversubscribed"]), (1, False))

    def test_more_ranks_than_cores_are_not_bound(self) -> None:
        ranks = 2 * (len(os.sched_getaffinity(0)) // 2 + 1)
        if ranks > 16:
            self.skipTest(f"{ranks} ranks are too many for a quick test")
        figures = self.bench("--replicas", str(ranks // 2), ranks=ranks)
        self.assertEqual((figures["threads"], figures["binding"], figures["oversubscribed"]), (1, "none", True))

    def test_a_core_a_rank(self) -> None:
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("one core")
        outcome = ptrt("bench", self.model, *BENCH, "--threads", "1", ranks=2)
        self.assert_done(outcome)
        self.assertRegex(outcome.output, r"cpu x 1 thread \((bound to cores|not bound: not permitted), ")
        for figures in (self.bench("--threads", "1", "--bind", "none", ranks=2), self.bench()):
            self.assertEqual((figures["binding"], figures["oversubscribed"]), ("none", False))
        self.assertEqual(ptrt("bench", self.model, *BENCH, "--bind", "tight").status, 2)

    def test_bytes_do_not_hang_on_binding(self) -> None:
        want = self.batch("generate", self.model, self.rows(), "--threads", "1")
        for options in (("--bind", "auto"), ("--bind", "none"), ("--threads", "5"), ("--threads", "1", "--bind", "none")):
            for ranks in (None, 2):
                with self.subTest(options=options, ranks=ranks):
                    self.assertEqual(self.batch("generate", self.model, self.rows(), *options, ranks=ranks), want)


class Leaks(Host):
    def test_ranks_free_what_they_allocate(self) -> None:
        """MPI's own leaks are recognised by the libraries on whole stacks, hence the slow unwinder."""
        if "address" not in SANITIZERS:
            self.skipTest("built without AddressSanitizer")
        env = {"LSAN_OPTIONS": f"suppressions={ROOT}/tests/lsan.supp:print_suppressions=0",
               "ASAN_OPTIONS": "fast_unwind_on_malloc=0"}
        self.batch("generate", self.model, self.rows(), ranks=2, env=env)
        self.assertEqual(ptrt("bench", "missing.h5", *BENCH, ranks=2, env=env).status, 2, "an end in error too")


if __name__ == "__main__":
    unittest.main(verbosity=1)
