#!/usr/bin/env python3
"""The GPU check script and its reports, as far as they work without a GPU."""

import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "perf"))
sys.path.insert(0, str(ROOT / "scripts" / "gpu"))
import compare_demo  # noqa: E402
import cuda_report  # noqa: E402

CONFIG = json.loads((ROOT / "perf" / "configs" / "dense_8b.json").read_text())


def check(*arguments, path=None):
    env = dict(os.environ, **({"PATH": path} if path else {}))
    return subprocess.run([shutil.which("bash"), str(ROOT / "scripts" / "gpu_check.sh"), *map(str, arguments)],
                          capture_output=True, text=True, env=env, check=False)


class GpuCheck(CliTest):
    def test_dry_run_names_every_stage(self) -> None:
        told = check("--dry-run")
        self.assertEqual(told.returncode, 0, told.stderr)
        names = [line.split()[0] for line in told.stdout.splitlines()]
        self.assertEqual(names, ["build", "op_tests", "model_tests", "demo", "bench_ops", "bench_shard", "bench_8b", "bench_8b_128", "hf",
                                 "memcheck", "racecheck", "report"])

    def test_without_a_gpu(self) -> None:
        tools = self.fresh("-bin")  # no nvidia-smi among them
        tools.mkdir()
        for tool in ("dirname", "git", "grep"):
            (tools / tool).symlink_to(shutil.which(tool))
        out = self.fresh("-out")
        told = check(out, path=str(tools))
        self.assertEqual(told.returncode, 2, told.stdout + told.stderr)
        self.assertIn("no GPU here", told.stderr)
        self.assertFalse(out.exists(), "nothing was run")

    def test_bad_calls(self) -> None:
        for arguments, words in ((("--fast",), "unknown option"), (("--build",), "needs a value"),
                                 (("--prebuilt", self.fresh("-none")), "no bundle"), (("--time-limit", "soon"), "seconds"),
                                 (("--build", "a", "--prebuilt", "b"), "exclude")):
            told = check(*arguments)
            self.assertEqual(told.returncode, 2, told.stderr)
            self.assertIn(words, told.stderr)

    def test_a_bundle_tells_that_nccl_is_missing(self) -> None:
        """No program is linked with it, so ldd alone would not know."""
        build, bundle = self.fresh("-build"), self.fresh("-bundle")
        build.mkdir()
        for program in ("ptrt", "libptrt_cuda.so", "cuda_gpu_tests", "cuda_gpu_model_tests", "bench_cuda"):
            shutil.copy(shutil.which("true"), build / program)
        made = check("--bundle", bundle, "--build", build)
        self.assertEqual(made.returncode, 0, made.stderr)
        run = [bundle / "run", "--missing"]
        library = bundle / "lib" / "libnccl.so.2"  # found before any other
        library.write_bytes(b"")
        told = subprocess.run(run, capture_output=True, text=True, check=False)
        self.assertEqual((told.returncode, told.stdout.split()), (1, ["libnccl.so.2", "=>", "not", "found"]), told.stderr)
        subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", library], check=True)
        told = subprocess.run(run, capture_output=True, text=True, check=False)
        self.assertEqual((told.returncode, told.stdout), (0, ""), told.stderr)

    def test_a_stage_reports_its_failure(self) -> None:
        told = subprocess.run(["bash", str(ROOT / "scripts" / "gpu" / "stages.sh"), "gpu_tests", "cuda_gpu_tests"], cwd=ROOT,
                              env=dict(os.environ, PROGRAMS=str(self.dir), OUT=str(self.dir)), capture_output=True, check=False)
        self.assertNotEqual(told.returncode, 0)

    def test_scores_are_compared(self) -> None:
        one = [{"id": "a", "tokens": [1, 2, 3], "logprobs": [None, -1.0, -2.0]}]
        other = [{"id": "a", "tokens": [1, 2, 3], "logprobs": [None, -1.5, -2.25]}]
        self.assertAlmostEqual(compare_demo.mean_difference(one, other), 0.375)
        self.assertRaises(ValueError, compare_demo.mean_difference, one, [])
        self.assertRaises(ValueError, compare_demo.mean_difference, one, [{**other[0], "tokens": [1, 2, 4]}])

    def test_demo_passes_only_with_equal_answers(self) -> None:
        folder = self.fresh("-demo")
        folder.mkdir()
        answers = [{"id": line["id"], "text": line["answer"]} for line in compare_demo.lines(compare_demo.DEMO / "answers.jsonl")]
        score = json.dumps({"id": "a", "tokens": [1, 2], "logprobs": [None, -1.0]}) + "\n"
        wrong = [{**answers[0], "text": "no"}, *answers[1:]]
        for cuda, status in ((answers, 0), (wrong, 1)):
            for device, results in (("cpu", answers), ("cuda", cuda)):
                (folder / f"answers_{device}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
                (folder / f"scores_{device}.jsonl").write_text(score)
            self.assertEqual(compare_demo.compare(folder), status)

    def test_report_counts(self) -> None:
        # 8 billion parameters by hand, norms aside: a layer's matrices, both vocabulary matrices.
        layer = 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
        self.assertEqual(cuda_report.layer_elements(CONFIG), layer)
        weights = 2 * (32 * layer + 2 * 128256 * 4096)
        run = {"input_len": 128, "output_len": 128, "requests": 64, "max_batch": 128, "weight_bytes": weights,
               "itl_ms": {"p50": 8.0}}
        step = cuda_report.decode_step(CONFIG, run, 4000.0)
        size = 2 * (32 * layer + 128256 * 4096) + 64 * 192 * 131072
        self.assertEqual((step["batch"], step["bytes"]), (64, size))
        self.assertAlmostEqual(step["share"], size / 8e-3 / 4e12)
        self.assertAlmostEqual(step["tokens_per_s"], 8000)
        prefill = cuda_report.prefill(CONFIG, {"input_len": 2, "ttft_ms": {"p50": 1.0}}, 800.0)
        operations = 2 * 2 * 32 * layer + 2 * 128256 * 4096 + 4 * 32 * 4096 * 3
        self.assertAlmostEqual(prefill["tflops"], operations / 1e-3 / 1e12)

    def test_report_accounts_for_a_layer(self) -> None:
        ceilings = {"copy_gb_per_s": 3900.0, "read_gb_per_s": 4000.0, "gemm_tflops": 700.0}
        times = {"q, k and v": 6.0, "wo": 5.0, "gate, up and SwiGLU": 18.0, "down": 9.0, "add and norm": 2.0,
                 "rope and append": 1.5, "decode attention over 192": 3.0}
        ops = [{"op": name, "rows": rows, "us": us * rows, "bytes": 1.0} for name, us in times.items() for rows in (1, 8)]
        ops += [{"op": "layer over 192", "rows": 1, "us": 40.0, "bytes": 100e6},
                {"op": "layer over 192, int8 weights", "rows": 1, "us": 25.0, "bytes": 53e6},
                {"op": "layer over 192", "rows": 16, "us": 90.0, "bytes": 120e6}]
        one, sixteen = cuda_report.layer_accounts({"ceilings": ceilings, "ops": ops})
        # By hand: 100 MB at 4 TB/s are 25 µs; the ops one by one, the norm twice, take 46.5.
        self.assertEqual({key: value and round(value, 6) for key, value in one.items()},
                         {"rows": 1, "layer_us": 40.0, "bytes_us": 25.0, "ops_beyond_bytes_us": 21.5, "unexplained_us": -6.5,
                          "fp32_output_us": None, "int8_us": 25.0, "float8_us": None})
        self.assertEqual((sixteen["rows"], sixteen["bytes_us"], sixteen["ops_beyond_bytes_us"], sixteen["unexplained_us"]),
                         (16, 30.0, None, None), "ops of 16 rows were not measured")
        folder = self.fresh("-shard")
        folder.mkdir()
        (folder / "stages.jsonl").write_text("")
        (folder / "ops_a_shard.json").write_text(json.dumps({"ceilings": ceilings, "ops": ops, "shape": {"tracks": 1}}))
        told = subprocess.run([sys.executable, str(ROOT / "perf" / "cuda_report.py"), str(folder)], capture_output=True,
                              text=True, check=False)
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertIn("A layer of a_shard, 1 of its tracks", told.stdout)
        self.assertIn("| 1 | 40.0 | 25.0 | 21.5 | -6.5 | – | 25.0 | – |", told.stdout)

    def test_report_of_what_was_not_measured(self) -> None:
        folder = self.fresh("-report")
        folder.mkdir()
        (folder / "stages.jsonl").write_text('{"stage": "op_tests", "status": 1, "seconds": 2, "what": "gpu_tests"}\n')
        (folder / "ops.json").write_text('{"ceilings": {"read')  # of a stage that was stopped while it wrote
        told = subprocess.run([sys.executable, str(ROOT / "perf" / "cuda_report.py"), str(folder), "--commit", "abc", "--json",
                               str(folder / "cuda.json")], capture_output=True, text=True, check=False)
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertIn("FAILED (1)", told.stdout)
        self.assertIn("ops.json is left out", told.stderr)
        self.assertEqual(told.stdout.count("not measured"), 7)
        found = json.loads((folder / "cuda.json").read_text())
        self.assertEqual(found["commit"], "abc")
        self.assertTrue(all(goal["met"] is None for goal in found["goals"]))


if __name__ == "__main__":
    unittest.main(verbosity=1)
