#!/usr/bin/python3
"""--shard and merge: several jobs share a request file, and their results together are those of one job."""

import os
import re
import resource
import shutil
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, CliTest, Outcome, ptrt, read_results, write_requests  # noqa: E402
from test_outputs import run_command  # noqa: E402
from crc32c import crc32c  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

ROWS: list = [
    {"prompt": "one", "temperature": 0.8},  # a seed derived from the id, which is the line number
    {"id": "a", "prompt": "two", "max_tokens": 5, "temperature": 1.0},
    "",
    {"tokens": [5, 6, 7], "logprobs": True},
    {"id": "a", "prompt": "an id of an earlier line, in every shard"},
    {"custom_id": "batch", "method": "POST", "url": "/v1/completions", "body": {"prompt": "openai", "temperature": 1}},
    "no json",
    {"id": "1", "prompt": "an id that no earlier line has: line 1 has one of its own"},
    {"id": "9", "prompt": "an id that the next line has by its number"},
    {"prompt": "id 9", "seed": 3},
    {"custom_id": "bad", "method": "GET", "url": "/v1/completions", "body": {"prompt": "openai"}},
    {"prompt": "too long", "max_tokens": 5000},
    {"prompt": "last", "temperature": 0.5, "top_k": 20, "max_tokens": 20},
]
TEXTS: list = [{"prompt": f"text {index}"} for index in range(4)] + [{"context": "a b", "continuation": " c"}, "?"]
ARRAY = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "3",
         "SLURM_ARRAY_TASK_COUNT": "3"}


class Shards(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, ffn_size=32)
        cls.model = write_random(cls.dir / "model.h5", cls.config, 5)
        cls.requests = write_requests(cls.dir / "requests.jsonl", ROWS)
        cls.whole = cls.run_batch(cls.dir / "whole.jsonl")
        # Shards of three that many tests read.
        cls.three = [cls.dir / f"three-{index}.jsonl" for index in range(3)]
        for index, results in enumerate(cls.three):
            cls.run_batch(results, "--shard", f"{index}/3")

    @classmethod
    def run_batch(cls, results: Path, *options, command: str = "generate", requests: Path | None = None,
                  model: Path | None = None, **keywords) -> bytes:
        outcome = ptrt(command, model or cls.model, requests or cls.requests, "-o", results, "--quiet", *options,
                       **keywords)
        assert outcome.status == 0, outcome.output
        return results.read_bytes()

    def of_shard(self, index: int, count: int) -> list[bytes]:
        """Its results: a blank line has a number, but no result."""
        numbers = [number for number, row in enumerate(ROWS) if row != ""]
        return [line for number, line in zip(numbers, self.whole.splitlines()) if number % count == index]

    def merge(self, *shards: Path, out: Path | None = None, **keywords) -> Outcome:
        self.out = out or self.fresh("-merged.jsonl")
        return ptrt("merge", self.out, *shards, **keywords)

    def check_refused(self, outcome: Outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertIn(word, outcome.output)

    def check_not_merged(self, *shards: Path, words: tuple = ()) -> None:
        self.check_refused(self.merge(*shards), *words)
        self.assertEqual(list(self.dir.glob(f"{self.out.name}*")), [])

    def copies(self) -> list[Path]:
        """The three shards in a folder of their own."""
        folder = self.fresh("-copies")
        folder.mkdir()
        for results in self.three:
            for path in self.dir.glob(f"{results.name}*"):
                shutil.copy(path, folder)
        return [folder / results.name for results in self.three]

    def test_the_bytes_of_one_job(self) -> None:
        self.assertEqual(len(self.whole.splitlines()), len(ROWS) - 1)
        for count in (1, 4, 20):  # of 20 several have no line
            shards = [self.fresh(f"-{index}.jsonl") for index in range(count)]
            for index, results in enumerate(shards):
                self.run_batch(results, "--shard", f"{index}/{count}", ranks=2 if index == 2 and count == 4 else None)
                self.assertEqual(results.read_bytes().splitlines(), self.of_shard(index, count))
            with self.subTest(shards=count):
                self.assert_done(self.merge(*reversed(shards)))
                self.assertEqual(self.out.read_bytes(), self.whole)
                for path in shards:
                    path.unlink()  # what is merged needs them no more

    def test_scores(self) -> None:
        requests = write_requests(self.fresh(".jsonl"), TEXTS)
        whole = self.run_batch(self.fresh(".jsonl"), command="score", requests=requests)
        shards = [self.fresh(f"-{index}.jsonl") for index in range(2)]
        for index, results in enumerate(shards):
            self.run_batch(results, "--shard", f"{index}/2", command="score", requests=requests)
        self.assert_done(self.merge(*shards, ranks=2))
        self.assertEqual(self.out.read_bytes(), whole)
        self.check_not_merged(shards[0], self.three[1], words=("different runs",))

    def test_what_is_merged_is_finished(self) -> None:
        outcome = self.merge(*self.three)
        self.assert_done(outcome)
        self.assertIn(f"{len(ROWS) - 1} results of 3 shards", outcome.output)
        outcome = ptrt("generate", self.model, self.requests, "-o", self.out, "--resume")
        self.assert_done(outcome)
        self.assertIn("is complete", outcome.output)
        # Merging again, over it.
        self.assert_done(self.merge(*self.three, out=self.out))
        self.assertEqual(self.out.read_bytes(), self.whole)

    def test_other_shards_are_refused(self) -> None:
        zero, one, two = self.three
        self.check_not_merged(zero, two, words=("1/3 missing",))
        self.check_not_merged(one, words=("0/3, 2/3 missing",))
        self.check_not_merged(zero, one, two, one, words=("both shard 1/3", one.name))
        copy = self.copies()[1]
        self.check_not_merged(zero, one, copy, two, words=("both shard 1/3",))
        other = self.fresh("-other.jsonl")
        self.run_batch(other, "--shard", "1/4")
        self.check_not_merged(zero, other, two, words=("no shards of one division",))
        self.run_batch(other, "--shard", "1/3", requests=write_requests(self.fresh(".jsonl"), [*ROWS[:-1], "other"]))
        self.check_not_merged(zero, other, two, words=("different runs",))
        self.run_batch(other, "--shard", "1/3", model=write_random(self.fresh(".h5"), self.config, 6))
        self.check_not_merged(zero, other, two, words=("different runs",))
        self.run_batch(other, "--shard", "1/3", "--compute", "bfloat16")
        self.check_not_merged(zero, other, two, words=("different runs",))
        whole = self.fresh("-whole.jsonl")
        self.run_batch(whole)
        self.check_not_merged(whole, words=("no result of a --shard run", f"{whole.name}.shard"))
        self.check_not_merged(zero, one, self.dir / "none.jsonl", words=("none.jsonl",))

    def test_changed_results_are_refused(self) -> None:
        changes = {"a byte": lambda text: text.replace(b"t", b"T", 1), "a line less": lambda text: text[text.find(b"\n") + 1:],
                   "a line more": lambda text: text + b"{}\n", "no last line break": lambda text: text[:-1],
                   "two lines in turn": lambda text: b"".join(reversed(text.splitlines(True))), "nothing": lambda _: b""}
        for name, change in changes.items():
            with self.subTest(name):
                shards = self.copies()
                shards[1].write_bytes(change(shards[1].read_bytes()))
                self.check_not_merged(*shards, words=("was changed after its run", shards[1].name))
        shards = self.copies()
        record = Path(f"{shards[0]}.shard")
        text = record.read_text()
        for bad in (text.replace('"index":0', '"index":1'), text[:-2], ""):
            record.write_text(bad)
            self.check_not_merged(*shards, words=(record.name, "not as this program writes it"))
        record.unlink()
        self.check_not_merged(*shards, words=(record.name,))

    def test_a_shard_is_resumed(self) -> None:
        results = self.fresh("-results.jsonl")
        stopped = ptrt("generate", self.model, self.requests, "-o", results, "--shard", "0/2", "--max-batch", "1",
                       env={"PTRT_FAULT": "rank=0,at=step,after=9"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.assertTrue(Path(f"{results}.partial").exists())
        self.check_not_merged(results, words=("is not finished", "--resume"))
        for other in (["--shard", "1/2"], ["--shard", "0/3"], []):
            self.check_refused(ptrt("generate", self.model, self.requests, "-o", results, "--resume", *other),
                               "belongs to another run")
        self.run_batch(results, "--shard", "0/2", "--resume")
        self.assertEqual(results.read_bytes().splitlines(), self.of_shard(0, 2))
        self.assertFalse(Path(f"{results}.partial").exists())
        record = Path(f"{results}.shard")
        text = record.read_bytes()
        record.unlink()
        done = ptrt("generate", self.model, self.requests, "-o", results, "--shard", "0/2", "--resume")
        self.assert_done(done)
        self.assertIn("is complete", done.output)
        self.assertEqual(record.read_bytes(), text)
        self.check_refused(ptrt("generate", self.model, self.requests, "-o", results, "--shard", "1/2", "--resume"),
                           "another run")

    def test_a_full_disk_keeps_the_results(self) -> None:
        """What ends while it is published continues with --resume."""
        results = self.fresh("-results.jsonl")
        stopped = ptrt("generate", self.model, self.requests, "-o", results, "--shard", "1/2",
                       env={"PTRT_FAULT": "rank=0,at=publish"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.assertFalse(results.exists())
        self.run_batch(results, "--shard", "1/2", "--resume")
        self.assertEqual(results.read_bytes().splitlines(), self.of_shard(1, 2))

    def test_pools_of_different_sizes(self) -> None:
        """A line that fits one shard's pool and not another's: no single job gives such results."""
        rows = [{"prompt": "x", "max_tokens": 100} for _ in range(4)]
        requests = write_requests(self.fresh(".jsonl"), rows)
        small = ("--kv-cache-bytes", "64K")
        shards = [self.fresh(f"-{index}.jsonl") for index in range(2)]
        self.run_batch(shards[0], "--shard", "0/2", *small, requests=requests)
        self.assertEqual(read_results(shards[0])[0]["error"]["code"], "kv_cache_exceeded")
        self.run_batch(shards[1], "--shard", "1/2", requests=requests)
        self.check_not_merged(*shards, words=("line 1 did not fit the KV cache", "--kv-cache-bytes"))
        self.run_batch(shards[1], "--shard", "1/2", *small, requests=requests)
        self.assert_done(self.merge(*shards))
        whole = self.fresh(".jsonl")
        self.assertEqual(self.out.read_bytes(), self.run_batch(whole, *small, requests=requests))
        outcome = ptrt("generate", self.model, requests, "-o", self.out, "--resume", *small)
        self.assertIn("is complete", outcome.output)

    def test_lines_that_ran_with_a_larger_pool(self) -> None:
        """A shard that was continued, or only recorded again, with a smaller pool than its lines ran with."""
        rows = [{"prompt": "x", "max_tokens": count} for count in (60, 100, 10, 10)]
        requests = write_requests(self.fresh(".jsonl"), rows)
        small = ("--kv-cache-bytes", "16K")
        shards = [self.fresh(f"-{index}.jsonl") for index in range(2)]
        self.run_batch(shards[1], "--shard", "1/2", *small, requests=requests)
        words = ("line 2 did not fit the KV cache", f"{shards[0].name} (shard 0/2) has a result that needed")
        stopped = ptrt("generate", self.model, requests, "-o", shards[0], "--shard", "0/2", "--max-batch", "1",
                       env={"PTRT_FAULT": "rank=0,at=step,after=65"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.assertEqual(Path(f"{shards[0]}.partial").read_text().count('"line":'), 1, "the first line alone has ended")
        self.run_batch(shards[0], "--shard", "0/2", "--resume", *small, requests=requests)
        self.check_not_merged(*shards, words=words)
        record = Path(f"{shards[0]}.shard")
        text = record.read_bytes()
        self.run_batch(shards[0], "--shard", "0/2", requests=requests)
        self.assertEqual(record.read_bytes(), text)
        record.unlink()
        self.run_batch(shards[0], "--shard", "0/2", "--resume", *small, requests=requests)
        self.assertEqual(record.read_bytes(), text)
        self.check_not_merged(*shards, words=words)
        # With the larger pool for all there is one job that has these results.
        self.run_batch(shards[1], "--shard", "1/2", requests=requests)
        self.assert_done(self.merge(*shards))
        self.assertEqual(self.out.read_bytes(), self.run_batch(self.fresh(".jsonl"), requests=requests))

    def test_a_note_of_an_older_program(self) -> None:
        """Of what it does not tell no record is made."""
        results = self.fresh("-results.jsonl")
        self.run_batch(results, "--shard", "1/3")
        done, record = Path(f"{results}.done"), Path(f"{results}.shard")
        body = re.sub(r',"most_tokens":\d+,"crc32c".*', "", done.read_text().strip())
        done.write_text(f'{body},"crc32c":"{crc32c(body.encode()):08x}"}}\n')
        record.unlink()
        self.check_refused(ptrt("generate", self.model, self.requests, "-o", results, "--shard", "1/3", "--resume"),
                           done.name, "does not say", "without --resume")
        self.assertFalse(record.exists())
        self.run_batch(results, "--shard", "1/3")
        self.assertEqual(record.read_bytes(), Path(f"{self.three[1]}.shard").read_bytes())

    def test_slurm(self) -> None:
        results = self.fresh("-results.jsonl")
        for task, ranks in (("1", None), ("7", 2)):
            self.run_batch(results, "--shard", "slurm", env={**ARRAY, "SLURM_ARRAY_TASK_ID": task}, ranks=ranks)
            self.assertEqual(results.read_bytes(), self.three[int(task) // 3].read_bytes())
            self.assertEqual(Path(f"{results}.shard").read_bytes(),
                             Path(f"{self.three[int(task) // 3]}.shard").read_bytes())
        # Without the option the variables change nothing.
        self.assertEqual(self.run_batch(self.fresh(".jsonl"), env={**ARRAY, "SLURM_ARRAY_TASK_ID": "4"}), self.whole)
        refused = [{}, ARRAY, {**ARRAY, "SLURM_ARRAY_TASK_ID": "2"}, {**ARRAY, "SLURM_ARRAY_TASK_ID": "10"},
                   {**ARRAY, "SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_MAX": "9"}]
        for variables in refused:
            with self.subTest(variables):
                self.check_refused(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), "--shard",
                                        "slurm", env=variables), "--shard slurm")
        self.check_refused(ptrt("generate", self.model, self.requests, "-o", self.fresh(".jsonl"), "--shard", "slurm",
                                ranks=2), "--shard slurm", "SLURM_ARRAY_TASK_ID is not set")

    def test_no_output_is_an_input(self) -> None:
        shards = self.copies()
        folder = shards[0].parent
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        (folder / "link").symlink_to(f"{shards[1].name}.shard")
        os.link(shards[2], folder / "out.done")
        os.link(shards[2], folder / "there.partial")
        for out in (*shards, Path(f"{shards[0]}.shard"), folder / "link", folder / "out", folder / "there"):
            with self.subTest(out=out.name):
                self.check_refused(self.merge(*shards, out=out), "would overwrite")
        # A shard's run writes OUT.shard, OUT.done and OUT.partial.
        for name in ("requests", "model"):
            taken = folder / "results.shard"
            shutil.copy(getattr(self, name), taken)
            words = [taken if name == "model" else self.model, taken if name == "requests" else self.requests]
            self.check_refused(ptrt("generate", *words, "-o", folder / "results", "--shard", "0/3"), "would overwrite")
            taken.unlink()
        # One that is not ours is not replaced; a run without --shard does not look at it.
        note = folder / "results.shard"
        note.write_text("mine")
        self.check_refused(ptrt("generate", self.model, self.requests, "-o", folder / "results", "--shard", "0/3"),
                           "results.shard")
        self.run_batch(folder / "results")
        self.assertEqual(note.read_text(), "mine")
        self.assertEqual({name: (folder / name).read_bytes() for name in before}, before)
        for out in (folder, folder / "none" / "out", Path("/dev/null")):
            self.check_refused(self.merge(*shards, out=out), "cannot write")
        self.check_refused(self.merge(*shards, out="-"), "standard output")

    def test_the_merged_file_appears_when_it_is_whole(self) -> None:
        folder = self.fresh("-out")
        folder.mkdir()
        (folder / "link").symlink_to("far")
        (folder / "far").write_text("old")
        limited = run_command([PTRT, "merge", folder / "link", *self.three], folder, {resource.RLIMIT_FSIZE: 300})
        self.assertEqual(limited.status, 1, limited.output)
        self.assertIn("File too large", limited.output)
        self.assertEqual((folder / "far").read_text(), "old")
        self.assertEqual({path.name for path in folder.iterdir()}, {"link", "far"})
        self.assert_done(self.merge(*self.three, out=folder / "link"))
        self.assertTrue((folder / "link").is_symlink())
        self.assertEqual((folder / "far").read_bytes(), self.whole)
        self.assertEqual({path.name for path in folder.iterdir()}, {"link", "far", "link.done"})

    def test_a_run_that_is_going_is_not_merged_over(self) -> None:
        out = self.fresh("-out.jsonl")
        stopped = ptrt("generate", self.model, self.requests, "-o", out, "--max-batch", "1",
                       env={"PTRT_FAULT": "rank=0,at=step,after=3"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.check_refused(self.merge(*self.three, out=out), f"{out.name}.partial")


if __name__ == "__main__":
    unittest.main(verbosity=1)
