#!/usr/bin/env python3
"""integrations/ptrt_torch against the float64 reference and the program: models, reading, tokenizers. Needs torch."""

import json
import sys
import threading
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integrations"), str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "convert")]
import with_torch  # noqa: E402

with_torch.need("torch", "h5py")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ptrt_cli import CliTest, ptrt, read_results  # noqa: E402
from ptrt_torch import FoldedModel, ShardReader, tracks_of_rank  # noqa: E402
from ptrt_torch.parts import TrackExperts  # noqa: E402
from stand_in_attention import Engine  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID, prompts  # noqa: E402
from model_maker import write_random  # noqa: E402

CLOSE = 1e-3
EXACT = 1e-11  # in float64
DEMO = ROOT / "examples" / "demo"
torch.set_num_threads(1)


def engine(path, tracks: range | None = None, **parts) -> Engine:
    """A rank's model, filled."""
    with ShardReader(path, tracks or range(ref.load(path).config["tracks"])) as reader:
        made = Engine(lambda attention: FoldedModel(reader.config, reader.tracks, attention=attention, **parts))
        made.model.load(reader)
    return made


def of_type(dtype: torch.dtype):
    """Within it models have weights of this type."""
    class Of:
        def __enter__(self):
            self.before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)

        def __exit__(self, *error):
            torch.set_default_dtype(self.before)
    return Of()


class Ranks:
    """Ranks of one model as threads of this process; their all_reduce adds what each gives."""

    def __init__(self, path, config: dict, ranks: int):
        self.meet, self.parts, self.rounds = threading.Barrier(ranks, timeout=60), [None] * ranks, 0
        self.engines = [engine(path, tracks_of_rank(config, ranks, rank), all_reduce=lambda x, rank=rank: self.sum(rank, x))
                        for rank in range(ranks)]

    def sum(self, rank: int, x: torch.Tensor) -> torch.Tensor:
        self.parts[rank] = x.clone()
        self.meet.wait()
        total = sum(self.parts)
        self.rounds += rank == 0
        self.meet.wait()
        return x.copy_(total)  # in place, as the all-reduce of an engine may be

    def each(self, work) -> list:
        """What work(engine) gives on every rank."""
        results: list = [None] * len(self.engines)

        def run(rank: int) -> None:
            try:
                results[rank] = work(self.engines[rank])
            except BaseException as error:
                results[rank] = error
                self.meet.abort()
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(self.engines))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


class Model(CliTest):

    def model(self, grid) -> tuple[Path, ref.Model]:
        path = write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=grid.dtype, **grid.file_options)
        return path, ref.load(path)

    def far(self, got: torch.Tensor, want: np.ndarray, most: float, name: str) -> float:
        difference = float(np.abs(got.numpy() - want).max())
        self.assertLessEqual(difference, most, name)
        return difference

    def test_every_option_agrees_with_the_reference(self) -> None:
        largest = {}
        for dtype, most in ((torch.float32, CLOSE), (torch.float64, EXACT)):
            with of_type(dtype):
                for grid in GRID:
                    path, reference = self.model(grid)
                    made = engine(path)
                    for text in prompts(grid)[1:6]:
                        found = self.far(made.score(text), ref.log_probs(reference, text), most, grid.name)
                        largest[dtype] = max(largest.get(dtype, 0.0), found)
        print(", ".join(f"{dtype}: {value:.1e}" for dtype, value in largest.items()), "at most from float64")

    def test_chunks_and_decoding(self) -> None:
        for grid in GRID:
            path, reference = self.model(grid)
            made, text = engine(path), prompts(grid)[5]
            want = ref.log_probs(reference, text)
            for chunk in (7, 64):
                self.far(made.score(text, chunk), want, CLOSE, f"{grid.name}, {chunk} tokens a step")
            self.assertEqual(made.greedy(text[:17], 8), ref.greedy(reference, text[:17], 8), grid.name)
            # Two sequences in one step, one of them in decode.
            other = prompts(grid)[4]
            for layer in made.layers:
                layer.cache.clear()
            made.run({"a": text[:40]})
            both = made.run({"b": other, "a": text[40:41]})
            self.far(both[:-1], ref.log_probs(reference, other), CLOSE, grid.name)
            self.far(both[-1], want[40], CLOSE, grid.name)

    def test_tracks_on_several_ranks(self) -> None:
        for grid in GRID:
            tracks, text = grid.config["tracks"], prompts(grid)[4]
            path, reference = self.model(grid)
            want = ref.log_probs(reference, text)
            for ranks in {number for number in (2, 3, tracks) if tracks % number == 0 and number > 1}:
                shared = Ranks(path, grid.config, ranks)
                for got in shared.each(lambda made: made.score(text)):
                    self.far(got, want, CLOSE, f"{grid.name}, {ranks} ranks")
                self.assertEqual(shared.rounds, len(grid.config["sync_layers"]), "one all-reduce a sync layer")

    def test_both_forms_of_mixtures_and_compiled_models(self) -> None:
        mixtures = [grid for grid in GRID if grid.config["moe"]]
        self.assertGreater(len(mixtures), 4)
        for grid in mixtures:
            path, reference = self.model(grid)
            made, text = engine(path), prompts(grid)[4]
            for part in made.model.modules():
                if isinstance(part, TrackExperts):
                    part.static = True
            self.far(made.score(text), ref.log_probs(reference, text), CLOSE, grid.name)
        for grid in (GRID[1], GRID[7], GRID[18]):  # Dynamo alone, which refuses what it cannot trace; Inductor takes minutes
            path, reference = self.model(grid)
            made = engine(path)
            made.model.fuse = torch.compile(made.model.fuse, backend="eager", fullgraph=True)
            for layer in made.model.layers:
                layer.ffn = torch.compile(layer.ffn, backend="eager", fullgraph=True)
                layer.attend = torch._dynamo.disable(layer.attend)
                layer.attention = torch.compile(layer.attention, backend="eager")
            for text in prompts(grid)[3:5]:
                self.far(made.score(text), ref.log_probs(reference, text), CLOSE, grid.name)

    def test_the_demo_answers_as_the_program(self) -> None:
        from ptrt_torch.tokenizer import hf_tokenizer
        out = self.fresh(".jsonl")
        self.assert_done(ptrt("generate", DEMO / "demo.h5", DEMO / "prompts.jsonl", "-o", out, "--compute", "float32", "--quiet"))
        made, tokenizer = engine(DEMO / "demo.h5"), hf_tokenizer(DEMO / "demo.h5")
        for line, result in zip((DEMO / "prompts.jsonl").read_text().splitlines(), read_results(out)):
            prompt = tokenizer.encode(json.loads(line)["prompt"])
            tokens = made.greedy(prompt, 16)
            self.assertEqual(tokens, result["tokens"])
            self.assertEqual(tokenizer.decode(tokens, skip_special_tokens=True), result["text"])


if __name__ == "__main__":
    unittest.main()
