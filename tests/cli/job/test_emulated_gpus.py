#!/usr/bin/python3
"""Ranks on GPUs, each a process with an emulated device: how they start and how they fail.

The program under test is build/tests/cuda_emulation/ptrt_emulated. Its ranks add through the hosts (--fusion staged):
the emulation of NCCL works between threads alone. Its libnccl.so.2 has only NCCL's functions.
"""

import json
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Outcome, Running, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

ON_GPUS = ("--backend", "cuda", "--fusion", "staged")


class EmulatedGpus(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, max_context=256)
        cls.model = write_random(cls.dir / "model.h5", config, 71)
        cls.requests = write_requests(cls.dir / "requests.jsonl",
                                      [{"tokens": [i, 2, 3], "max_tokens": 12} for i in range(4)])

    def generate(self, ranks: int, fault: str = "") -> tuple[Path, Outcome]:
        results = self.fresh(".jsonl")
        arguments = ["generate", self.model, self.requests, "-o", results, *ON_GPUS[:2 if ranks == 1 else 4]]
        return results, ptrt(*arguments, ranks=ranks, env={"PTRT_FAULT": fault})

    def doctor(self, rank_env: dict[int, dict[str, str]]) -> Outcome:
        return Running(["doctor", self.model, "--backend", "cuda"], ranks=2, rank_env=rank_env).finish()

    def test_two_ranks_have_the_results_of_one(self) -> None:
        one, alone = self.generate(1)
        two, both = self.generate(2)
        for outcome in (alone, both):
            self.assertEqual(outcome.status, 0, outcome.output)
        self.assertIn("bfloat16 products", both.output)
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_files_with_8_bits(self) -> None:
        """One or two ranks, with `auto` too; what is to be quantised at load stays the CPU's."""
        for weights, name in (("int8", "int8"), ("fp8_e4m3", "float8_e4m3fn")):
            small = self.fresh(".h5")
            self.assert_done(ptrt("quantize", self.model, "-o", small, "--weights", weights))
            results = []
            for ranks, options in ((1, ("--backend", "auto")), (2, ON_GPUS)):
                results.append(self.fresh(".jsonl"))
                outcome = ptrt("generate", small, self.requests, "-o", results[-1], *options, ranks=ranks)
                self.assertEqual(outcome.status, 0, outcome.output)
                self.assertRegex(outcome.output,
                                 f"device memory: .*matrices are .*{name}, activations, keys and values bfloat16")
            self.assertEqual(results[0].read_bytes(), results[1].read_bytes())
        outcome = ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), "--backend", "cuda", "--weights",
                       "int8")
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertIn("not --weights int8", outcome.output)

    def test_a_head_is_split_between_devices(self) -> None:
        """Where the ranks exchange through the hosts, `auto` leaves it whole and asking for it is an error."""
        outcome = ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), *ON_GPUS, "--vocab-head",
                       "split", ranks=2)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertIn("--vocab-head split: these GPUs exchange through the hosts", outcome.output)
        report = self.fresh(".json")
        outcome = ptrt("bench", self.model, "--backend", "cuda", "--emulate-ranks", "2", "--link-latency-us", "10",
                       "--link-gb-per-s", "50", "--vocab-head", "split", "--input-len", "4",
                       "--output-len", "4", "--requests", "1", "--json", report, "--quiet")
        self.assertEqual(outcome.status, 0, outcome.output)
        self.assertEqual(json.loads(report.read_text(encoding="utf-8"))["head_exchanges_per_forward"], 1)

    def test_a_rank_that_fails(self) -> None:
        """While the other waits for it: one message, and nothing waits for the device's end."""
        for at in ("load", "step,after=5", "sync,after=9"):
            with self.subTest(at=at):
                _, outcome = self.generate(2, f"rank=1,at={at}")
                self.assertFalse(outcome.timed_out, outcome.output)
                self.assertEqual(outcome.status, 1, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertIn("rank 1 of 2", outcome.errors[0])
                self.assertIn(f"injected fault at '{at.split(',')[0]}'", outcome.errors[0])

    def test_a_rank_that_is_killed(self) -> None:
        running = Running(["generate", self.model, self.requests, "-o", self.fresh(".jsonl"), *ON_GPUS], ranks=2,
                          env={"PTRT_FAULT": "rank=1,at=step,after=5,signal=9"})
        outcome = running.finish()
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertNotEqual(outcome.status, 0, outcome.output)
        self.assertEqual(running.ranks(), [], "no rank is left")

    def test_the_doctor_tells_of_nccl(self) -> None:
        """What the environment says is read before NCCL is loaded, which changes it."""
        for more, windows, note in (({}, "not used", True), ({"NCCL_WIN_ENABLE": "0"}, "off", False)):
            outcome = self.doctor({rank: {"FAKE_NCCL_VERSION": "22809", **more} for rank in (0, 1)})
            self.assertEqual(outcome.status, 0, outcome.output)
            self.assertIn(f"NCCL 2.28.9, symmetric windows {windows}", outcome.stdout)
            self.assertEqual("does without symmetric windows" in outcome.output, note, outcome.output)
        outcome = self.doctor({0: {"FAKE_NCCL_VERSION": "22707"}, 1: {"FAKE_NCCL_VERSION": "23007"}})
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertIn("different versions of NCCL: 2.27.7 on rank 0", outcome.output)


if __name__ == "__main__":
    unittest.main(verbosity=2)
