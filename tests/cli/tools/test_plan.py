#!/usr/bin/python3
"""`ptrt plan`, and perf/calibrate_plan.py, which describes machines to it."""
from __future__ import annotations

import json
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, PTRT, ROOT, CliTest, ptrt  # noqa: E402
from model_maker import make_config  # noqa: E402


class PlanTest(CliTest):
    def test_plan(self) -> None:
        text, table = self.fresh("-config.json"), self.fresh(".json")
        text.write_text(json.dumps(make_config(tracks=4, layers=8, sync_layers=[4, 8], heads=4, kv_heads=2)))
        told = ptrt("plan", text, "--gpus", "4,8", "--gpu", "h200", "--link", "ib", "--json", table)
        self.assert_done(told)
        self.assertIn("PREDICTED", told.stdout)
        rows = json.loads(table.read_text())["runs"]
        self.assertEqual({row["gpus"] for row in rows}, {4, 8})
        tracks = next(row for row in rows if row["layout"] == "PT 4 ranks" and row["gpus"] == 4)
        shared = next(row for row in rows if row["layout"] == "TP 4" and row["gpus"] == 4)
        self.assertEqual((tracks["sync_points_per_forward"], shared["sync_points_per_forward"]), (2, 16))
        self.assertLess(tracks["tpot_ms"], shared["tpot_ms"])
        self.assertAlmostEqual(tracks["waits"], 2 * 2)
        self.assertAlmostEqual(shared["waits"], 8 * 2 ** 0.5)
        for options, words in ((("--gpu", "h1000"), "h1000"), (("--gpus", "0"), "gpus"), (("--link", text), "unknown key"),
                               (("--gpus", "3", "--link", "nvlink"), None)):
            outcome = ptrt("plan", text, *options)
            self.assertEqual(outcome.status, 0 if words is None else 2, outcome.output)
            self.assertIn(words or "replicas", outcome.output)

    def calibrate(self, *options: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, ROOT / "perf" / "calibrate_plan.py", "--ptrt", PTRT, *map(str, options)],
                              capture_output=True, text=True, timeout=PATIENCE)

    def known_times(self, config: Path, machine: Path, link: Path, batch: int, length: int) -> dict:
        """The times of a described machine for four ranks."""
        table = self.fresh(".json")
        self.assert_done(ptrt("plan", config, "--gpus", "4", "--gpu", machine, "--link", link, "--input-len", length,
                              "--output-len", "32", "--batch", batch, "--max-step-tokens", "512", "--json", table))
        return next(row for row in json.loads(table.read_text())["runs"] if row["layout"] == "PT 4 ranks")

    def known_machine(self) -> Path:
        machine = self.fresh(".json")
        machine.write_text(json.dumps({"memory_gib": 8, "memory_gb_per_s": 20, "gemm_tflops": 0.3, "bandwidth_efficiency": 1,
                                       "gemm_efficiency": 1, "decode_gemm_efficiency": 0.4, "kv_bandwidth_efficiency": 0.3,
                                       "layer_overhead_us": 0, "wait_layers": 0.5}))
        return machine

    def known_cells(self) -> list[dict]:
        machine, link, cells = self.known_machine(), self.fresh(".json"), []
        for delay in (50, 100, 200):
            link.write_text(json.dumps({"latency_us": 150 + 0.5 * delay, "gb_per_s": 0.4, "ranks": 0, "two_step_bytes": 1,
                                        "shared": 1}))
            for depth in (2, 4):
                config = self.fresh("-config.json")
                config.write_text(json.dumps(make_config(tracks=4, layers=8, hidden_size=256, ffn_size=512,
                                                         sync_layers=list(range(depth, 9, depth)))))
                for batch, length in ((1, 128), (1, 256), (16, 128), (16, 256)):
                    row = self.known_times(config, machine, link, batch, length)
                    cells.append({"place": f"{delay} us, 10 Gbit/s", "model": f"PT D={depth}", "batch": batch,
                                  "input_len": length, "output_len": 32, "command": f"ptrt bench --random-weights {config}",
                                  "median": {"itl_ms": row["tpot_ms"], "ttft_ms": row["ttft_ms"], "max_step_tokens": 512,
                                             "output_tokens_per_s": row["output_tokens_per_s"]}})
        return cells

    def assert_known(self, out: Path, link: str) -> None:
        found = json.loads((out / "machine.json").read_text())
        for key, value in (("memory_gb_per_s", 20), ("gemm_tflops", 0.3), ("decode_gemm_efficiency", 0.4),
                           ("kv_bandwidth_efficiency", 0.3), ("wait_layers", 0.5)):
            self.assertAlmostEqual(found[key] / value, 1, delta=2e-3, msg=key)
        self.assertAlmostEqual(json.loads((out / link).read_text())["latency_us"], 200, delta=0.4)

    def test_calibrated_plan(self) -> None:
        """From times of a known machine, the fit recovers that machine, also for runs that were held out."""
        cells, measured, out = self.known_cells(), self.fresh(".json"), self.fresh("-calibration")
        options = (measured, "--hold-out", "100 us", "--shared", "--out", out)

        def calibrate() -> subprocess.CompletedProcess:
            measured.write_text(json.dumps({"ranks": 4, "commit": "none", "cells": cells}))
            return self.calibrate(*options)
        told = calibrate()
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assert_known(out, "link_100_us_10_Gbit_s.json")
        check = json.loads((out / "check.json").read_text())
        self.assertLess(check["largest_errors"]["held out"], 1e-3)
        self.assertLess(check["largest_errors"]["never fitted"], 1e-3)
        self.assertEqual(sum(point["use"] == "held out" for point in check["points"]), 12)
        cells[-1]["median"]["itl_ms"] *= 2  # times that the model cannot explain appear in the check
        calibrate()
        self.assertGreater(json.loads((out / "check.json").read_text())["largest_errors"]["fitted"], 0.1)
        for cells, words in ((cells[:1], "measured times for"), ([{"place": "x"}], "no file of"), ([], "no measured runs")):
            told = calibrate()
            self.assertEqual(told.returncode, 1, told.stderr)
            self.assertIn(words, told.stderr)
            self.assertNotIn("Traceback", told.stderr)

    def bench_file(self, cell: dict, noise: float) -> Path:
        """The output of `ptrt bench --json` for such a run."""
        path, median = self.fresh(".json"), cell["median"]
        config = json.loads(Path(cell["command"].split()[-1]).read_text())
        path.write_text(json.dumps({
            "model": cell["model"], "config": config, "world_size": 8, "replicas": 2, "tensor_parallel": 1, "emulated": False,
            "requests": 2 * cell["batch"], "max_batch": 64, "request_rate": "inf", "input_len": cell["input_len"],
            "output_len": cell["output_len"], "itl_ms": {"p50": noise * median["itl_ms"]},
            "ttft_ms": {"p50": noise * median["ttft_ms"]}, "max_step_tokens": 512, "threads": 1, "compute": "bfloat16",
            "kv_dtype": "bfloat16",
            "output_tokens_per_s": 2 * median["output_tokens_per_s"] / noise}))
        return path

    def test_plan_calibrated_by_bench_files(self) -> None:
        """Files of one place each, in rounds: the median round counts; two replicas equal one with half the requests."""
        out, options = self.fresh("-calibration"), []
        cells = self.known_cells()
        for place in ("50 us", "100 us", "200 us"):
            files = [self.bench_file(cell, noise) for noise in (1.2, 1, 0.7) for cell in cells if cell["place"].startswith(place)]
            options += ["--bench", place, *files]
        told = self.calibrate("--shared", "--hold-out", "100 us", "--out", out, *options)
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assert_known(out, "link_100_us.json")
        self.assertLess(json.loads((out / "check.json").read_text())["largest_errors"]["held out"], 1e-3)

        self.assertNotIn("warning", told.stderr)
        for name, value in (("threads", 2), ("compute", "float32"), ("kv_dtype", "float32"), ("max_step_tokens", 256)):
            other = self.fresh(".json")  # not a round
            other.write_text(json.dumps({**json.loads(files[0].read_text()), name: value}))
            told = self.calibrate("--out", out, "--bench", "50 us", files[0], other)
            self.assertEqual(told.returncode, 1, told.stderr)
            self.assertIn(f"{other}: ", told.stderr)
            self.assertIn(f"{name} is {value}, in a file before", told.stderr)

        report = self.fresh(".json")  # a real one is read, but does not suffice
        config = self.fresh("-config.json")
        config.write_text(json.dumps(make_config(tracks=2, layers=2, sync_layers=[1, 2])))
        self.assert_done(ptrt("bench", "--random-weights", config, "--requests", "1", "--input-len", "4", "--output-len", "3",
                              "--json", report))
        told = self.calibrate("--out", out, "--bench", "here", report)
        self.assertIn("measured times for", told.stderr)
        self.assertNotIn("warning", told.stderr)
        found = json.loads(report.read_text())
        self.assertEqual(found["config"]["sync_layers"], [1, 2])
        for change, words in (({"request_rate": "2"}, "all arrive at the start"), ({"itl_ms": None}, "no files of")):
            report.write_text(json.dumps({**found, **change}))
            told = self.calibrate("--out", out, "--bench", "here", report)
            self.assertEqual(told.returncode, 1, told.stderr)
            self.assertIn(words, told.stderr)
            self.assertNotIn("Traceback", told.stderr)
        report.write_text(json.dumps({**found, "requests": 16, "max_batch": 16, "input_len": 70, "max_step_tokens": 512}))
        told = self.calibrate("--out", out, "--bench", "here", report)  # three steps of prompts, three tokens
        self.assertRegex(told.stderr, "warning: .*the prompts take 3 steps of 512 rows")


if __name__ == "__main__":
    unittest.main()
