"""Several ranks under mpirun, each with its own tracks, against the float64 reference and against ptrt."""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import engines
import pt_reference as ref
from model_grid import GRID, prompts
from model_maker import write_random

# Four tracks a rank and one; split files; delta sum, mean and sum; mixtures; biases; norms that scale first.
TWO_RANKS = (0, 1, 4, 7, 12, 16, 18, 20)
FOUR_RANKS = (18,)
PATIENCE = 600  # for an engine, which takes a minute on a loaded machine


def run_ranks(folder: Path, ranks: int, jobs: list[dict], **variables: str) -> tuple[list, str]:
    """What the ranks found, and what they printed."""
    asked = Path(tempfile.mkdtemp(dir=folder)) / "jobs.json"
    asked.write_text(json.dumps(jobs))
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **variables}
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), sys.executable,
               Path(__file__).parent / "ranks_worker.py", asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE * len(jobs))
    if done.returncode:
        raise AssertionError(f"the ranks ended with {done.returncode}:\n{(done.stdout + done.stderr)[-8000:]}")
    return json.loads(Path(f"{asked}.found").read_text()), done.stdout + done.stderr


class Ranks(unittest.TestCase):

    def run_models(self, ranks: int, indices) -> str:
        with tempfile.TemporaryDirectory() as folder:
            models = [GRID[index] for index in indices]
            jobs = [{"model": str(engines.write_grid_model(Path(folder), model)), "prompts": prompts(model), "max_tokens": 16,
                     "options": {"skip_tokenizer_init": True}} for model in models]
            found, printed = run_ranks(Path(folder), ranks, jobs)
            for model, job, answers in zip(models, jobs, found, strict=True):
                with self.subTest(model.name):
                    worst = engines.check(self, ref.load(job["model"]), job["prompts"], answers)
                    print(f"{ranks} ranks, {model.name}: largest difference of a log-probability {worst:.1e}", flush=True)
        return printed

    def test_two(self) -> None:
        printed = self.run_models(2, TWO_RANKS)
        # A rank reads what is shared and its own tracks.
        loaded = re.findall(r"Tracks (\d+) to (\d+): (\d+) datasets", printed)
        for index, model in enumerate(GRID[index] for index in TWO_RANKS):
            half = model.config["tracks"] // 2
            for rank in range(2):
                self.assertIn((str(rank * half), str(rank * half + half - 1)), [(first, last) for first, last, _ in loaded])
        self.assertEqual(len(loaded), 2 * len(TWO_RANKS))

    def test_four(self) -> None:
        self.run_models(4, FOUR_RANKS)

    def test_demo(self) -> None:
        """Greedy tokens of the demo model are ptrt's, eager, in chunks, and compiled."""
        from ptrt_torch.tokenizer import hf_tokenizer

        encode = hf_tokenizer(engines.DEMO).encode
        asked = [encode(request["prompt"]) for request in engines.demo_requests()]
        job = {"model": str(engines.DEMO), "prompts": asked, "max_tokens": engines.demo_requests()[0]["max_tokens"]}
        jobs = [{**job, "options": options} for options in ({}, {"max_num_batched_tokens": 64, "max_num_seqs": 8},
                                                            {"enforce_eager": False})]
        with tempfile.TemporaryDirectory() as folder:
            found, _ = run_ranks(Path(folder), 2, jobs)
        for options, answers in zip(jobs, found, strict=True):
            with self.subTest(options["options"]):
                self.assertEqual([tokens for tokens, _ in answers], engines.demo_answers())

class CompileCache(unittest.TestCase):
    """Compiled models as vLLM keeps them for the next start, which the other tests switch off."""

    def test_another_model_at_the_same_path(self) -> None:
        """Of equal shape: what is kept of the first holds none of its weights."""
        model = GRID[17]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path, rows = folder / "model.h5", prompts(model)[:4]
            variables = {"VLLM_DISABLE_COMPILE_CACHE": "0", "VLLM_CACHE_ROOT": str(folder / "cache")}
            job = {"model": str(path), "prompts": rows, "max_tokens": 16,
                   "options": {"skip_tokenizer_init": True, "enforce_eager": False}}
            for seed in (model.seed, model.seed + 100):
                with self.subTest(seed):
                    write_random(path, model.config, seed, dtype=model.dtype)
                    (answers,), _ = run_ranks(folder, 1, [job], **variables)
                    engines.check(self, ref.load(path), rows, answers)
                self.assertTrue(any((folder / "cache" / "torch_compile_cache").rglob("*")), "nothing was kept")


if __name__ == "__main__":
    unittest.main(verbosity=1)
