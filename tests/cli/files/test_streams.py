#!/usr/bin/python3
"""Requests from standard input, pipes, several and compressed files; results to standard output and compressed files."""

import ctypes
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import _MPI_ENV, MPI_LEAKS, PATIENCE, PTRT, SLOWNESS, CliTest, error_code, ptrt, under_mpirun, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

ROWS: list = [{"tokens": [index % 250, 7], "max_tokens": 2 + 9 * (index % 5), "temperature": index % 2}
              for index in range(40)]
ROWS[3] = ""
ROWS[7] = {"id": "5", "tokens": [1]}
ROWS[11] = "no json"

_zstd = ctypes.CDLL("libzstd.so.1")
_zstd.ZSTD_compressBound.restype = _zstd.ZSTD_compress.restype = _zstd.ZSTD_decompress.restype = ctypes.c_size_t


def zstd(data: bytes) -> bytes:
    room = ctypes.create_string_buffer(_zstd.ZSTD_compressBound(ctypes.c_size_t(len(data))))
    size = _zstd.ZSTD_compress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 3)
    return room.raw[:size]


def unzstd(data: bytes) -> bytes:
    """Of up to a MiB."""
    room = ctypes.create_string_buffer(1 << 20)
    size = _zstd.ZSTD_decompress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)))
    assert size <= len(room), "not one zstd frame"
    return room.raw[:size]


class Piped:
    """A run whose standard input and output are pipes of the test."""

    def __init__(self, *arguments, ranks: int | None = None):
        command = [str(PTRT), *map(str, arguments)]
        if ranks is not None:
            command = under_mpirun(command, ranks, {})
        self._err = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._err,
                                        env={**os.environ, **_MPI_ENV, **MPI_LEAKS}, start_new_session=True)
        self._timer = threading.Timer(PATIENCE * SLOWNESS, self.process.kill)
        self._timer.start()

    def give(self, *rows) -> None:
        for row in rows:
            self.process.stdin.write((row if isinstance(row, str) else json.dumps(row)).encode() + b"\n")
        self.process.stdin.flush()

    def take(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def finish(self) -> tuple[int, bytes, str]:
        """Closes the input; status, what is left of the output, and what was said."""
        self.process.stdin.close()
        rest = self.process.stdout.read()
        self.process.stdout.close()
        return self.wait(), rest, self.said()

    def wait(self) -> int:
        self.process.wait()
        self._timer.cancel()
        self._said = self.said()
        self._err.close()
        return self.process.returncode

    def said(self) -> str:
        if self._err.closed:
            return self._said
        return os.pread(self._err.fileno(), 1 << 20, 0).decode(errors="replace")


def without_places(results: bytes) -> bytes:
    """Of several files, error messages begin with the line's place."""
    return re.sub(rb'("message":")line \d+ of [^ ]+\.(jsonl|gz|zst):? ', rb"\1", results)


class Streams(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, heads=2, kv_heads=1, ffn_size=32)
        cls.model = write_random(cls.dir / "model.h5", config, 1)
        cls.requests = write_requests(cls.dir / "requests.jsonl", ROWS)
        cls.text = cls.requests.read_bytes()
        cls.whole_path = cls.dir / "whole.jsonl"
        done = ptrt("generate", cls.model, cls.requests, "-o", cls.whole_path, "--quiet")
        assert done.status == 0, done.output
        cls.whole = cls.whole_path.read_bytes()

    def write(self, suffix: str, data: bytes) -> Path:
        path = self.fresh(suffix)
        path.write_bytes(data)
        return path

    def generate(self, *arguments, **keywords):
        return ptrt("generate", self.model, *arguments, **keywords)

    def check_refused(self, outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertIn(word, outcome.output)

    # Files

    def test_compressed_files_and_several(self) -> None:
        lines = self.text.splitlines(keepends=True)
        first, rest = b"".join(lines[:17]), b"".join(lines[17:])
        inputs = {
            "gzip": [self.write(".jsonl.gz", gzip.compress(self.text))],
            "zstd": [self.write(".jsonl.zst", zstd(self.text))],
            "members": [self.write(".jsonl.gz", gzip.compress(first[:50]) + gzip.compress(first[50:] + rest))],
            "three files": [self.write(".jsonl", first.rstrip(b"\n")), self.write(".jsonl.gz", gzip.compress(b"")),
                            self.write(".jsonl.zst", zstd(rest))],
        }
        for name, paths in inputs.items():
            with self.subTest(name):
                results = self.fresh(".jsonl")
                self.assert_done(self.generate(*paths, "-o", results))
                found = results.read_bytes()
                self.assertEqual(without_places(found).replace(b"is not valid", b"line 12 is not valid")
                                 if len(paths) > 1 else found, self.whole)
        # The order of the files counts, and so do their bytes.
        for other in (inputs["three files"][::-1], inputs["gzip"]):
            self.check_refused(self.generate(*other, "-o", results, "--resume"), "another run")
        self.assert_done(self.generate(*inputs["three files"], "-o", results, "--resume"))

    def test_damaged_files(self) -> None:
        packed = gzip.compress(self.text)
        for suffix, data, words in ((".jsonl.gz", packed[:-1], "cut off"), (".jsonl.gz", self.text, "not gzip"),
                                    (".jsonl.zst", zstd(self.text)[:40], "cut off"), (".jsonl.zst", packed, "not zstd"),
                                    (".jsonl", packed, "does not end in .gz"),
                                    (".jsonl.gz", packed[:60] + b"x" + packed[61:], "damaged")):
            with self.subTest(words):
                path, results = self.write(suffix, data), self.fresh(".jsonl")
                self.check_refused(self.generate(path, "-o", results, ranks=2 if words == "damaged" else None),
                                   str(path), words)
                self.assertEqual(list(self.dir.glob(f"{results.name}*")), [])

    def test_compressed_results(self) -> None:
        for suffix, unpack in ((".jsonl.gz", gzip.decompress), (".jsonl.zst", unzstd)):
            with self.subTest(suffix):
                results = self.fresh(suffix)
                stopped = self.generate(self.requests, "-o", results, "--max-batch", "2",
                                        env={"PTRT_FAULT": "rank=0,at=step,after=9"})
                self.assertEqual(stopped.status, 1, stopped.output)
                self.assertTrue(Path(f"{results}.partial").read_bytes().startswith(b'{"ptrt_journal"'))
                self.assert_done(self.generate(self.requests, "-o", results, "--resume"))
                data = results.read_bytes()
                self.assertEqual(unpack(data), self.whole)
                self.assertIn("is complete", self.generate(self.requests, "-o", results, "--resume").output)
                # The same bytes from shards, of whatever compression.
                shards = [self.fresh(f"-{index}.jsonl{end}") for index, end in enumerate(("", ".gz", ".zst"))]
                for index, shard in enumerate(shards):
                    self.assert_done(self.generate(self.requests, "-o", shard, "--shard", f"{index}/3"))
                merged = self.fresh(suffix)
                self.assert_done(ptrt("merge", merged, *shards))
                self.assertEqual(merged.read_bytes(), data)
                shards[1].write_bytes(gzip.compress(gzip.decompress(shards[1].read_bytes()), 1))
                self.check_refused(ptrt("merge", self.fresh(".jsonl"), *shards), "was changed")

    def test_error_lines_name_the_file(self) -> None:
        first = self.write(".jsonl", b'{"id": "a", "tokens": [1]}\n')
        second = self.write(".jsonl", b'\n[1]\n{"id": "a", "tokens": [1]}\n')
        results = self.fresh(".jsonl")
        self.assert_done(self.generate(first, second, "-o", results))
        lines = [json.loads(line) for line in results.read_bytes().splitlines()]
        self.assertEqual([error_code(line) for line in lines], ["", "invalid_json", "duplicate_id"])
        self.assertIn(f"line 2 of {second}", lines[1]["error"]["message"])

    # Streams

    def test_each_result_comes_while_the_writer_waits(self) -> None:
        for ranks in (None, 2):
            with self.subTest(ranks=ranks):
                # The writer is silent for longer than a rank may be stuck.
                run = Piped("generate", self.model, "-", "-o", "-", "--step-timeout", "3", ranks=ranks)
                run.give({"id": "a", "tokens": [1, 2]})
                self.assertEqual(run.take()["id"], "a")
                time.sleep(5 if ranks else 0.5)
                run.give("", {"tokens": [3]}, {"id": "a", "tokens": [4]}, "?")
                self.assertEqual(run.take()["id"], "2")
                self.assertEqual([error_code(run.take()) for _ in range(2)], ["duplicate_id", "invalid_json"])
                status, rest, said = run.finish()
                self.assertEqual((status, rest), (0, b""), said)
                self.assertIn("4 done", said)

    def test_results_are_those_of_a_file(self) -> None:
        for options, ranks in (((), None), (("--replicas", "2", "--max-batch", "2"), 2)):
            run = Piped("generate", self.model, "-", "-o", "-", "--quiet", *options, ranks=ranks)
            run.process.stdin.write(self.text)
            status, results, said = run.finish()
            self.assertEqual(status, 0, said)
            self.assertEqual(results, self.whole)
        done = self.generate(self.requests, "-o", "-", "--quiet")
        self.assertEqual((done.status, done.stdout.encode()), (0, self.whole), done.stderr)

    def test_a_named_pipe(self) -> None:
        for suffix, pack in (("", bytes), (".gz", gzip.compress)):
            pipe, results = self.fresh(f".jsonl{suffix}"), self.fresh(f".jsonl{suffix}")
            os.mkfifo(pipe)
            writer = threading.Thread(target=lambda: pipe.write_bytes(pack(self.text)))
            writer.start()
            self.assert_done(self.generate(pipe, "-o", results))
            writer.join()
            data = results.read_bytes()
            self.assertEqual(gzip.decompress(data) if suffix else data, self.whole)
            self.assertEqual(list(self.dir.glob(f"{results.name}.*")), [], "no journal, no .done")

    def test_a_long_request_holds_back_the_others_unless_unordered(self) -> None:
        rows = [{"id": "long", "tokens": [1], "max_tokens": 200}, {"id": "short", "tokens": [2], "max_tokens": 1}]
        for options, order in (((), ["long", "short"]), (("--unordered",), ["short", "long"])):
            run = Piped("generate", self.model, "-", "-o", "-", "--quiet", *options)
            run.give(*rows)
            self.assertEqual([run.take()["id"] for _ in rows], order)
            self.assertEqual(run.finish()[0], 0)

    def test_a_stop_keeps_what_is_finished(self) -> None:
        results = self.fresh(".jsonl.gz")
        run = Piped("generate", self.model, "-", "-o", results, "--log-every", "0")
        run.give({"id": "a", "tokens": [1]}, {"id": "b", "tokens": [1]})
        while "2 done" not in run.said():
            time.sleep(0.02)
        run.process.send_signal(signal.SIGTERM)
        self.assertEqual(run.wait(), 1, run.said())
        self.assertIn("stopped by a signal", run.said())
        self.assertFalse(results.exists())
        kept, = self.dir.glob(f"{results.name}.*")
        self.assertIn(f"2 results were finished: they are in {kept}", run.said())
        self.assertEqual([json.loads(line)["id"] for line in kept.read_bytes().splitlines()], ["a", "b"])
        run.process.stdin.close()
        run.process.stdout.close()

    def test_nobody_reads_the_results(self) -> None:
        run = Piped("generate", self.model, "-", "-o", "-", "--quiet")
        run.give({"tokens": [1]})
        run.take()
        run.process.stdout.close()
        run.give({"tokens": [1]})
        self.assertEqual(run.wait(), 1, run.said())
        self.assertIn("standard output", run.said())
        run.process.stdin.close()

    def test_a_reader_that_is_slow(self) -> None:
        """More results than a pipe holds: the run waits, and no result is lost."""
        rows = [{"tokens": [index % 250], "max_tokens": 60, "logprobs": True} for index in range(300)]
        run = Piped("generate", self.model, write_requests(self.fresh(".jsonl"), rows), "-o", "-", "--quiet")
        time.sleep(2)
        self.assertIsNone(run.process.poll())
        status, results, said = run.finish()
        self.assertEqual(status, 0, said)
        self.assertEqual(len(results.splitlines()), len(rows))

    def test_what_needs_a_journal_is_refused(self) -> None:
        results = self.fresh(".jsonl")
        self.check_refused(self.generate("-", "-o", results, "--resume"), "--resume", "standard input")
        self.check_refused(self.generate("-", "-o", results, "--shard", "0/2"), "--shard", "standard input")
        self.check_refused(self.generate(self.requests, "-o", "-", "--resume"), "--resume", "standard output")
        self.check_refused(self.generate("-", "-", "-o", results), "only once")
        self.check_refused(self.generate("-", "-o", results), "empty")  # the tests' standard input
        # A journal that stands there is not touched.
        journal = Path(f"{results}.partial")
        journal.write_bytes(b'{"ptrt_journal":2}\n')
        self.check_refused(self.generate("-", "-o", results), "journal of an earlier run")
        self.assertEqual(journal.read_bytes(), b'{"ptrt_journal":2}\n')

    def test_standard_input_is_not_overwritten(self) -> None:
        requests = self.write(".jsonl", self.text)
        for output in (requests, self.fresh(".link")):
            if output != requests:
                output.symlink_to(requests)
            with requests.open("rb") as file:
                done = subprocess.run([str(PTRT), "generate", str(self.model), "-", "-o", str(output)], stdin=file,
                                      env={**os.environ, **_MPI_ENV}, capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn("would overwrite the requests /dev/stdin", done.stderr)
        self.assertEqual(requests.read_bytes(), self.text)

    def test_a_stream_that_breaks_ends_the_run(self) -> None:
        results, pipe = self.fresh(".jsonl"), self.fresh(".jsonl.gz")
        os.mkfifo(pipe)
        lines = b"".join(b'{"tokens": [%d], "max_tokens": 1}\n' % (index % 250) for index in range(20000))
        packed = gzip.compress(lines)
        writer = threading.Thread(target=lambda: pipe.write_bytes(packed[:-5]))
        writer.start()
        outcome = self.generate(pipe, "-o", results, "--quiet")
        writer.join()
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertIn("cut off", outcome.output)
        self.assertIn("results were finished: they are in", outcome.output)

    # --timings

    def test_timings(self) -> None:
        results = self.fresh(".jsonl")
        self.assert_done(self.generate(self.requests, "-o", results, "--timings", "--max-batch", "1"))
        text = results.read_bytes()
        self.assertEqual(re.sub(rb',"timings":{[^}]*}', b"", text), self.whole)
        lines = [json.loads(line) for line in text.splitlines()]
        timings = [line["timings"] for line in lines if not error_code(line)]
        self.assertEqual(len(timings), 37)
        for entry in timings:
            self.assertEqual(list(entry), ["queue_ms", "ttft_ms", "tpot_ms", "cached_tokens"])
            self.assertTrue(0 <= entry["queue_ms"] <= entry["ttft_ms"], entry)
            self.assertTrue(entry["tpot_ms"] > 0, entry)
        self.assertIn("is complete", self.generate(self.requests, "-o", results, "--timings", "--resume").output)
        self.check_refused(self.generate(self.requests, "-o", results, "--resume"), "another run")
        chat = [{"custom_id": "o", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}},
                {"tokens": [5], "max_tokens": 1}, {"tokens": [1], "max_tokens": 100000}]
        lines = self.lines("generate", self.model, chat, "--timings")
        self.assertLess(0, lines[0]["response"]["body"]["timings"]["ttft_ms"])
        self.assertIsNone(lines[1]["timings"]["tpot_ms"])
        self.assertNotIn("timings", lines[2])
        scores = self.lines("score", self.model, [{"tokens": [1, 2, 3]}, {"tokens": [1]}], "--timings", ranks=2)
        chat[0]["body"]["logprobs"] = 1
        scores += self.lines("score", self.model, chat[:1], "--timings")
        for line in scores:
            self.assertLessEqual(line["timings"]["queue_ms"], line["timings"]["ttft_ms"])

    # --unordered

    def test_unordered(self) -> None:
        results = self.fresh(".jsonl")
        stopped = self.generate(self.requests, "-o", results, "--unordered", "--max-batch", "4",
                                env={"PTRT_FAULT": "rank=0,at=step,after=15"})
        self.assertEqual(stopped.status, 1, stopped.output)
        self.check_refused(self.generate(self.requests, "-o", results, "--resume"), "another run")
        self.assert_done(self.generate(self.requests, "-o", results, "--unordered", "--max-batch", "4", "--resume"))
        lines = results.read_bytes().splitlines()
        self.assertEqual(sorted(lines), sorted(self.whole.splitlines()))
        self.assertNotEqual(lines, self.whole.splitlines())
        self.assertIn("is complete", self.generate(self.requests, "-o", results, "--unordered", "--resume").output)
        shards = [self.fresh(f"-{index}.jsonl") for index in range(2)]
        for index, shard in enumerate(shards):
            self.assert_done(self.generate(self.requests, "-o", shard, "--unordered", "--shard", f"{index}/2"))
        self.check_refused(ptrt("merge", self.fresh(".jsonl"), *shards), "--unordered", str(shards[0]))


if __name__ == "__main__":
    unittest.main()
