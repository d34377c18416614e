#!/usr/bin/python3
"""Ranks with files or options of their own: all the same, or one message before they work, never a mixture."""

import json
import shutil
import sys
import unittest
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, CliTest, Outcome, Running, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

PROMPTS = [{"prompt": "hello", "max_tokens": 8}, {"tokens": [1, 2, 3], "max_tokens": 40}]


class Together(Running):
    """A job whose ranks have command lines of their own."""

    def __init__(self, commands: list[list]):
        ranks = [["-n", "1", *map(str, command)] for command in commands]
        line = [word for rank in ranks for word in [":", *rank]][1:]
        super().__init__([], command=["mpirun", "--oversubscribe", "--bind-to", "none", *line])


class Agreement(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=2, layers=2, sync_layers=[1, 2], eos_token_ids=[257])
        cls.model = write_random(cls.dir / "a.h5", cls.config, 71)
        cls.requests = write_requests(cls.dir / "requests.jsonl", PROMPTS)

    def copy(self, change=None) -> Path:
        path = self.fresh(".h5")
        shutil.copy(self.model, path)
        if change:
            with h5py.File(path, "r+") as file:
                change(file)
        return path

    def changed_config(self, **changes) -> Path:
        def change(file: h5py.File) -> None:
            file.attrs["config"] = json.dumps({**json.loads(file.attrs["config"]), **changes})
        return self.copy(change)

    def run_each(self, models: list[Path], *, options: dict[int, list[str]] | None = None, program: Path = PTRT,
                 timeout: float = 60) -> Outcome:
        """generate on one rank a model; `options` of single ranks."""
        self.results = self.fresh(".out")
        commands = [[PTRT if rank == 0 else program, "generate", model, self.requests, "-o", self.results, "--quiet",
                     *(options or {}).get(rank, [])] for rank, model in enumerate(models)]
        outcome = Together(commands).finish(timeout)
        self.assertFalse(outcome.timed_out, outcome.output)
        return outcome

    def assert_refused(self, outcome: Outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertIn(word, outcome.errors[0])
        self.assertFalse(self.results.exists())

    def test_copies_are_the_same_model(self) -> None:
        alone = self.batch("generate", self.model, PROMPTS)
        outcome = self.run_each([self.model, self.copy()], options={1: ["--threads", "2", "--max-batch", "32"]})
        self.assert_done(outcome)
        self.assertEqual(self.results.read_bytes(), alone)

    def test_configuration(self) -> None:
        outcome = self.run_each([self.model, self.changed_config(rope_theta=500000.0)])
        self.assert_refused(outcome, "rope_theta: 10000.0 on rank 0 (", "500000.0 on rank 1 (")
        self.assertNotIn("hidden_size", outcome.errors[0])
        outcome = self.run_each([self.model, self.changed_config(eos_token_ids=[3], max_context=256)])
        self.assert_refused(outcome, "eos_token_ids: [257] on rank 0 (", "[3] on rank 1 (", "max_context")

    def test_another_number_of_tracks(self) -> None:
        other = write_random(self.fresh(".h5"), make_config(tracks=4), 71)
        self.assert_refused(self.run_each([self.model, other]), "tracks: 2 on rank 0 (", "4 on rank 1 (")

    def test_tokenizer(self) -> None:
        def drop(file: h5py.File) -> None:
            del file["tokenizer"]
        self.assert_refused(self.run_each([self.copy(drop), self.model]), 'tokenizer: "", 0 bytes', '"bytes", 0 bytes')

    def flipped(self, dataset: str, checksum: str) -> Path:
        """A copy with another byte in a dataset; `checksum`: "other", or "none" and then the original gets none too."""
        path = self.copy()
        with h5py.File(path, "r+") as file:
            values = file[dataset][...]
            values.reshape(-1)[5] += 1
            file[dataset][...] = values
            if checksum == "other":
                file[dataset].attrs["crc32c"] = file[dataset].attrs["crc32c"] ^ 1
            elif "crc32c" in file[dataset].attrs:
                del file[dataset].attrs["crc32c"]
        return path

    def without_checksum(self, dataset: str) -> Path:
        def drop(file: h5py.File) -> None:
            del file[dataset].attrs["crc32c"]
        return self.copy(drop)

    def test_shared_weights(self) -> None:
        name = "/shared/embedding"
        self.assert_refused(self.run_each([self.model, self.flipped(name, "other")]), name, "crc32c", "rank 1 (")
        self.assert_refused(self.run_each([self.without_checksum(name), self.flipped(name, "none")]), name,
                            "rank 0 (", "rank 1 (", "read different content")
        self.assert_refused(self.run_each([self.model, self.without_checksum(name)]), name, "without crc32c on rank 1")

    def test_a_track_of_replicas(self) -> None:
        name = "/tracks/01/layers/000/wo"
        good, bare = self.model, self.without_checksum(name)
        self.assert_refused(self.run_each([good, good, good, self.flipped(name, "other")]), name, "rank 3 (")
        self.assert_refused(self.run_each([bare, bare, bare, self.flipped(name, "none")]), name, "rank 1 (", "rank 3 (")

    def test_a_track_of_others_may_differ(self) -> None:
        """Each rank has its own track alone, as on nodes with a part of the model."""
        self.assert_done(self.run_each([self.flipped("/tracks/01/layers/000/wo", "none"),
                                        self.flipped("/tracks/00/layers/000/wo", "none")]))

    def test_options(self) -> None:
        outcome = self.run_each([self.model] * 2, options={1: ["--max-step-tokens", "64"]})
        self.assert_refused(outcome, "--max-step-tokens: 512 on rank 0 (", "64 on rank 1 (")
        outcome = self.run_each([self.model] * 2, options={0: ["--compute", "float32"]})
        self.assert_refused(outcome, "--compute: float32 on rank 0 (", "auto on rank 1 (")
        self.assert_refused(self.run_each([self.model] * 2, options={1: ["--no-such"]}), "command")

    def test_commands(self) -> None:
        self.results = self.fresh(".out")
        rest = [self.model, self.requests, "-o", self.results]
        self.assert_refused(Together([[PTRT, "generate", *rest], [PTRT, "score", *rest]]).finish(60),
                            "command: generate on rank 0 (", "score on rank 1 (")
        self.assert_refused(Together([[PTRT, "generate", *rest], [PTRT, "inspect", self.model]]).finish(60),
                            "command: generate on rank 0 (", "inspect on rank 1 (")

    def test_another_build(self) -> None:
        other, build = self.another_build()
        self.assert_refused(self.run_each([self.model] * 2, program=other), "version:", build, "rank 1 (")


class SharedTracks(CliTest):
    """With --tensor-parallel each rank reads its parts; together they know the content."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=1, layers=1, heads=4, kv_heads=1, tie_embeddings=False)
        cls.model = write_random(cls.dir / "m.h5", config, 72)
        cls.requests = write_requests(cls.dir / "r.jsonl", [{"tokens": [1, 2], "max_tokens": 400}] * 8)

    def generate(self, model: Path, results: Path, *options, fault: str = "") -> Outcome:
        return ptrt("generate", model, self.requests, "-o", results, "--quiet", "--tensor-parallel", "2",
                    "--vocab-head", "split", *options, ranks=2, env={"PTRT_FAULT": fault} if fault else None)

    def flip(self, model: Path, name: str, index: tuple, drop: bool) -> Path:
        path = self.fresh(".h5")
        shutil.copy(model, path)
        with h5py.File(path, "r+") as file:
            if drop:
                del file[name].attrs["crc32c"]
            file[name][index] = file[name][index] + 1
        return path

    def test_damage_is_found_in_every_part(self) -> None:
        for name in ("wq", "wk", "wo", "w_up", "w_down"):
            path = f"/tracks/00/layers/000/{name}"
            for index in ((0, 0), (-1, -1), (0, -1)):
                outcome = self.generate(self.flip(self.model, path, index, False), self.fresh(".out"))
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)
                self.assertIn(f"{path}", outcome.errors[0])
                self.assertIn("damaged", outcome.errors[0])
        outcome = self.generate(self.flip(self.model, "/shared/lm_head", (-1, -1), False), self.fresh(".out"))
        self.assertEqual((outcome.status, len(outcome.errors)), (2, 1), outcome.output)

    def test_resume_knows_the_content(self) -> None:
        name = "/tracks/00/layers/000/wo"
        bare = self.fresh(".h5")
        shutil.copy(self.model, bare)
        with h5py.File(bare, "r+") as file:
            for path in (name, "/shared/lm_head"):
                del file[path].attrs["crc32c"]
        results = self.fresh(".out")
        # Ends in the middle, with a journal.
        self.assertNotEqual(self.generate(bare, results, "--max-batch", "2", fault="rank=0,at=step,after=500").status, 0)
        journal = Path(f"{results}.partial")
        before = journal.read_bytes()
        self.assertGreater(before.count(b"\n"), 1)
        for path in (name, "/shared/lm_head"):
            for index in ((0, 0), (-1, -1)):
                other = self.fresh(".h5")
                shutil.copy(bare, other)
                with h5py.File(other, "r+") as file:
                    file[path][index] = file[path][index] + 1
                outcome = self.generate(other, results, "--resume")
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertEqual(journal.read_bytes(), before)
                self.assertFalse(results.exists())
        self.assert_done(self.generate(bare, results, "--resume"))
        self.assertEqual(len(read_results(results)), 8)


if __name__ == "__main__":
    unittest.main(verbosity=1)
