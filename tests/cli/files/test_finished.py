#!/usr/bin/python3
"""--resume of a finished job, and outputs that would be inputs."""

import os
import re
import shutil
import sys
import unittest
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402


class Finished(CliTest):
    """--resume of a job that is finished."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(hidden_size=32, heads=2, kv_heads=1, ffn_size=32)
        cls.model = write_random(cls.dir / "model.h5", cls.config, 1)
        cls.rows = [{"tokens": [index, 3, 9], "max_tokens": 4} for index in range(20)]
        cls.requests = write_requests(cls.dir / "requests.jsonl", cls.rows)

    def finished(self) -> Path:
        results = self.fresh("-results.jsonl")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", results, "--quiet"))
        return results

    def resume(self, results: Path, *options, model: Path | None = None, requests: Path | None = None, **keywords):
        return ptrt("generate", model or self.model, requests or self.requests, "-o", results, "--resume", *options,
                    **keywords)

    def state(self, results: Path) -> list[tuple]:
        return sorted((path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in self.dir.glob(f"{results.name}*"))

    def test_nothing_is_left_to_do(self) -> None:
        results = self.finished()
        before = self.state(results)
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                # The digest is known before the model is loaded.
                outcome = self.resume(results, ranks=ranks, env={"PTRT_FAULT": "rank=0,at=load"})
                self.assert_done(outcome)
                self.assertEqual(outcome.output, f"{results} is complete: 20 results of an earlier run with the same "
                                 "requests, model and options\n")
                self.assertEqual(self.state(results), before)

    def test_model_without_checksums(self) -> None:
        results = self.finished()
        with h5py.File(self.model, "r+") as file:
            file.visititems(lambda _, item: item.attrs.pop("crc32c", None))
        self.addCleanup(write_random, self.model, self.config, 1)
        outcome = self.resume(results)
        self.assert_done(outcome)
        self.assertIn("is complete", outcome.output)

    def check_refused(self, results: Path, **keywords) -> None:
        before = self.state(results)
        outcome = self.resume(results, **keywords)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertIn(results.name, outcome.errors[0])
        self.assertEqual(self.state(results), before)

    def test_another_job(self) -> None:
        results = self.finished()
        with self.subTest("other requests"):
            self.check_refused(results, requests=write_requests(self.fresh(".jsonl"), self.rows[:-1]))
        with self.subTest("another model"):
            self.check_refused(results, model=write_random(self.fresh(".h5"), self.config, 2))

    def test_other_results(self) -> None:
        for name, change in {"no word of the run": lambda path: Path(f"{path}.done").unlink(),
                             "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
                             "another byte": lambda path: path.write_bytes(path.read_bytes().replace(b"r", b"R", 1)),
                             "a damaged note": lambda path: Path(f"{path}.done").write_bytes(b"done\n")}.items():
            with self.subTest(name):
                results = self.finished()
                change(results)
                self.check_refused(results)

    def test_a_new_run_replaces_both(self) -> None:
        results = self.finished()
        fewer = write_requests(self.fresh(".jsonl"), self.rows[:-1])
        self.assert_done(ptrt("generate", self.model, fewer, "-o", results))
        self.assert_done(self.resume(results, requests=fewer))
        self.check_refused(results)

    def test_results_gone(self) -> None:
        results = self.finished()
        text = results.read_bytes()
        results.unlink()
        self.assert_done(self.resume(results))
        self.assertEqual(results.read_bytes(), text)

    def test_an_unknown_note_is_not_replaced(self) -> None:
        results = self.fresh("-results.jsonl")
        note = Path(f"{results}.done")
        note.write_text("ours\n")
        outcome = ptrt("generate", self.model, self.requests, "-o", results)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(note.read_text(), "ours\n")

    def test_rates_count_the_whole_time(self) -> None:
        many = write_requests(self.dir / "many.jsonl", [{"tokens": [index % 250, 3], "max_tokens": 1}
                                                        for index in range(6000)])
        for ranks in (None, 4):
            with self.subTest(ranks=ranks):
                outcome = ptrt("generate", self.model, many, "-o", self.fresh("-many.jsonl"), ranks=ranks, timeout=120)
                self.assert_done(outcome)
                seconds = float(re.search(r"from requests to last result +([\d.]+) s", outcome.output).group(1))
                rate = float(re.search(r"([\d.]+) requests/s", outcome.output).group(1))
                # Seconds are rounded to two places.
                self.assertLess(seconds - 0.006, 6000 / rate)
                self.assertGreater(seconds + 0.006, 6000 / rate)
                self.assertLess(seconds, outcome.seconds)
                self.assertGreater(seconds, 0.01)


class OutputsAndInputs(CliTest):
    """No output is a file that is read, or one that this run did not make."""

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.source = write_random(cls.dir / "source.h5", make_config(hidden_size=32, heads=2, kv_heads=1, ffn_size=32), 1)
        cls.rows = [{"tokens": [index, 3, 9], "max_tokens": 4} for index in range(3)]

    def setUp(self) -> None:
        self.folder = self.fresh("")
        self.folder.mkdir()
        self.model = Path(shutil.copy(self.source, self.folder / "model.h5"))
        self.requests = write_requests(self.folder / "requests", self.rows)

    def check_refused(self, output: Path, *, requests: Path | None = None, model: Path | None = None) -> None:
        before = {path: path.read_bytes() for path in self.folder.iterdir()}
        for options in ([], ["--resume"]):
            outcome = ptrt("generate", model or self.model, requests or self.requests, "-o", output, *options)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertEqual(len(outcome.errors), 1, outcome.output)
            self.assertNotIn("remove", outcome.output)
            self.assertEqual({path: path.read_bytes() for path in self.folder.iterdir()}, before)

    def test_names_of_our_own_files(self) -> None:
        for suffix in (".partial", ".done"):
            for name in ("requests", "model"):
                with self.subTest(suffix=suffix, name=name):
                    file = getattr(self, name)
                    taken = file.rename(self.folder / f"out{suffix}")
                    self.check_refused(self.folder / "out", **{name: taken})
                    taken.rename(file)

    def test_links(self) -> None:
        for name in ("requests", "model"):
            for how in (os.link, os.symlink):
                for suffix in ("", ".partial", ".done"):
                    with self.subTest(name=name, how=how.__name__, suffix=suffix):
                        link = self.folder / f"out{suffix}"
                        how(getattr(self, name), link)
                        self.check_refused(self.folder / "out")
                        link.unlink()

    def test_shards(self) -> None:
        with h5py.File(self.model, "r") as whole, h5py.File(self.folder / "shard.h5", "w") as shard:
            whole.copy("/tracks/00", shard, name="track")
        with h5py.File(self.model, "r+") as main:
            del main["/tracks/00"]
            main["/tracks/00"] = h5py.ExternalLink("shard.h5", "/track")
        self.check_refused(self.folder / "shard.h5")
        os.link(self.folder / "shard.h5", self.folder / "out.partial")
        self.check_refused(self.folder / "out")

    def test_former_temporary_name(self) -> None:
        taken = self.requests.rename(self.folder / "results.tmp")
        before = taken.read_bytes()
        self.assert_done(ptrt("generate", self.model, taken, "-o", self.folder / "results"))
        self.assertEqual(taken.read_bytes(), before)
        self.assertEqual({path.name for path in self.folder.iterdir()},
                         {"model.h5", "results", "results.done", "results.tmp"})

    def test_a_link_stays(self) -> None:
        (self.folder / "far").mkdir()
        (self.folder / "far" / "r").write_text("old")
        link = self.folder / "results"
        link.symlink_to("far/r")
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", link))
        self.assertTrue(link.is_symlink())
        self.assertEqual((self.folder / "far" / "r").read_bytes().count(b"\n"), 3)
        self.assert_done(ptrt("generate", self.model, self.requests, "-o", link, "--resume"))


if __name__ == "__main__":
    unittest.main(verbosity=1)
