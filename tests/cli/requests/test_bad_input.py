#!/usr/bin/python3
"""Bad usage, request files and single requests: right exit status, clear message, no harm to other requests.

Messages are matched by their essential words (regular expressions, any case), not by their wording.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Outcome, error_code, ptrt, read_results, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

MAX_CONTEXT = 64


def good(name: str, **fields) -> dict:
    return {"id": name, "tokens": [5, 6, 7], "max_tokens": 4, **fields}


def openai(custom_id, **changes) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions",
            "body": {"prompt": "abc", "max_tokens": 3}, **changes}


GOOD: list[dict] = [
    good("plain"), good("sampled", temperature=1.0, seed=7, logprobs=True),
    good("text", tokens=[65], stop=["q"]),
    {"id": "from text", "prompt": "hello", "max_tokens": 5}, openai("batch"),
    good("to the brim", tokens=[1] * 60, max_tokens=MAX_CONTEXT - 60),
    good("high seed", seed=2 ** 53, temperature=2),
]

# Case, line, expected code (None: any), words of the message.
BAD: list[tuple[str, object, str | None, list[str]]] = [
    ("cut off", '{"id": "x", "tokens": [1, 2', None, []),
    ("no JSON", "hello there", None, []),
    ("two objects", '{"tokens": [1]} {"tokens": [2]}', None, []),
    ("a list", "[1, 2, 3]", None, ["object"]),
    ("a number", "5", None, ["object"]),
    ("null", "null", None, ["object"]),
    ("a string", '"prompt"', None, ["object"]),
    ("not UTF-8", b'{"id": "\xff\xfe", "tokens": [1]}', None, []),
    ("deep brackets", "[" * 200000, None, []),
    ("not a number", '{"tokens": [1], "temperature": NaN}', None, []),
    ("nothing asked", {}, None, ["prompt", "tokens"]),
    ("both forms", {"prompt": "a", "tokens": [1]}, None, ["prompt", "tokens"]),
    ("tokens as text", {"tokens": "1 2 3"}, None, ["tokens"]),
    ("text among tokens", {"tokens": [1, "2"]}, None, ["tokens"]),
    ("fraction among tokens", {"tokens": [1, 2.5]}, None, ["tokens"]),
    ("list among tokens", {"tokens": [[1]]}, None, ["tokens"]),
    ("no tokens at all", {"tokens": []}, None, ["tokens"]),
    ("negative token", {"tokens": [3, -1]}, None, ["-1"]),
    ("token just out of range", {"tokens": [3, 259]}, None, ["259"]),
    ("token far out of range", {"tokens": [3, 2 ** 40 + 1]}, None, [str(2 ** 40 + 1)]),
    ("token beyond 64 bits", {"tokens": [3, 2 ** 70]}, None, ["tokens"]),
    ("prompt as number", {"prompt": 5}, None, ["prompt"]),
    ("prompt as null", {"prompt": None}, None, ["prompt"]),
    ("prompt as list", {"prompt": ["a"]}, None, ["prompt"]),
    ("no output", good("no output", max_tokens=0), None, ["max_tokens"]),
    ("negative output", good("negative output", max_tokens=-1), None, ["max_tokens"]),
    ("max_tokens as text", good("output as text", max_tokens="5"), None, ["max_tokens"]),
    ("fraction of a token", good("fraction", max_tokens=1.5), None, ["max_tokens"]),
    ("temperature as text", {"tokens": [1], "temperature": "hot"}, None, ["temperature"]),
    ("negative temperature", {"tokens": [1], "temperature": -1}, None, ["temperature"]),
    ("top_k as fraction", {"tokens": [1], "top_k": 1.5}, None, ["top_k"]),
    ("top_p above 1", {"tokens": [1], "top_p": 1.5}, None, ["top_p"]),
    ("negative top_p", {"tokens": [1], "top_p": -0.1}, None, ["top_p"]),
    ("top_p as text", {"tokens": [1], "top_p": "most"}, None, ["top_p"]),
    ("seed as text", {"tokens": [1], "seed": "x"}, None, ["seed"]),
    ("seed as fraction", {"tokens": [1], "seed": 0.5}, None, ["seed"]),
    ("stop as number", {"tokens": [1], "stop": 5}, None, ["stop"]),
    ("number in stop", {"tokens": [1], "stop": ["a", 5]}, None, ["stop"]),
    ("logprobs as text", {"tokens": [1], "logprobs": "yes"}, None, ["logprobs"]),
    ("id as number", {"id": 7, "tokens": [1]}, None, [r"\bid\b"]),
    ("id as list", {"id": ["a"], "tokens": [1]}, None, [r"\bid\b"]),
    ("prompt too long", good("too long", tokens=[1] * MAX_CONTEXT, max_tokens=1), "context_length_exceeded",
     [rf"\b{MAX_CONTEXT}\b"]),
    ("long text", {"id": "long text", "prompt": "a" * 1000}, "context_length_exceeded", []),
    ("output too long", good("out too long", max_tokens=MAX_CONTEXT - 2), "context_length_exceeded", []),
    ("output beyond measure", good("beyond", max_tokens=2 ** 62), "context_length_exceeded", []),
    ("id of another", good("plain"), None, ["plain"]),
    ("id of another once more", good("plain", max_tokens=2), None, ["plain"]),
    ("other url", openai("o1", url="/v1/chat/completions"), None, ["/v1/chat/completions"]),
    ("no body", {"custom_id": "o2", "method": "POST", "url": "/v1/completions"}, None, ["body"]),
    ("body as text", openai("o3", body="abc"), None, ["body"]),
    ("nothing in the body", openai("o4", body={}), None, ["prompt"]),
    ("type in the body", openai("o5", body={"prompt": "a", "max_tokens": "3"}), None, ["max_tokens"]),
    ("custom_id as number", openai(5), None, ["custom_id"]),
    ("custom_id of another", openai("batch"), None, ["batch"]),
    ("too long in the body", openai("o6", body={"prompt": "a" * 100, "max_tokens": 3}),
     "context_length_exceeded", []),
]


class BadInput(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, max_context=MAX_CONTEXT, bos_token_id=256, eos_token_ids=[257])
        cls.model = write_random(cls.dir / "model.h5", config, 41)
        cls.bare = write_random(cls.dir / "bare.h5", config, 41, tokenizer=None)
        cls.requests = write_requests(cls.dir / "requests.jsonl", [good("a")])

    def assert_refused(self, outcome: Outcome, words: list[str], statuses: tuple[int, ...] = (2,)) -> None:
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertIn(outcome.status, statuses, outcome.output)
        self.assertNotRegex(outcome.output, r"filesystem error|json\.exception|bad_alloc|std::|internal error")
        for word in words:
            self.assertRegex(outcome.output, f"(?i){word}")

    def message(self, line: dict) -> str:
        return json.dumps(line.get("error") or line["response"])

    def test_bad_request_harms_no_neighbour(self) -> None:
        alone = self.batch("generate", self.model, GOOD).decode().splitlines()
        mixed: list = list(GOOD[:2])
        for index, row in enumerate(BAD):
            mixed.append(row[1])
            if index % 10 == 9 and 2 + index // 10 < len(GOOD):
                mixed.append(GOOD[2 + index // 10])
        self.assertEqual(sum(row in mixed for row in GOOD), len(GOOD))
        for options in ((), ("--max-batch", "1")):
            together = self.batch("generate", self.model, mixed, *options).decode().splitlines()
            self.assertEqual(len(together), len(mixed))
            kept = [line for line in together if not error_code(json.loads(line))]
            ours = [json.loads(line) for line in alone]
            theirs = [json.loads(line) for line in kept]
            for line in ours + theirs:  # the id of an OpenAI line may come from its number in the file
                if "custom_id" in line:
                    line.pop("id")
                    line["response"].pop("request_id")
                    line["response"]["body"].pop("id")
            self.assertEqual(theirs, ours)
            self.assertEqual([line for line in kept if "custom_id" not in line],
                             [line for line in alone if "custom_id" not in line])

    def test_bad_requests(self) -> None:
        first = [GOOD[0], GOOD[4]]
        lines = self.lines("generate", self.model, first + [row[1] for row in BAD])
        self.assertEqual([error_code(line) for line in lines[:2]], ["", ""])
        for number, ((what, request, code, words), line) in enumerate(zip(BAD, lines[2:]), start=2):
            with self.subTest(what):
                self.assertTrue(error_code(line), f"no error: {line}")
                if code:
                    self.assertEqual(error_code(line), code)
                for word in words:
                    self.assertRegex(self.message(line), f"(?i){word}")
                if isinstance(request, dict) and isinstance(request.get("custom_id"), str):
                    self.assertEqual(line["custom_id"], request["custom_id"])
                elif isinstance(request, dict) and "custom_id" not in request:
                    name = request.get("id")
                    self.assertEqual(line["id"], name if isinstance(name, str) else str(number))

    def test_bad_requests_to_score(self) -> None:
        kinds = ("cut off", "a list", "no tokens at all", "negative token", "token just out of range",
                 "prompt as number", "nothing asked")
        wrong = [row for row in BAD if row[0] in kinds]
        self.assertEqual(len(wrong), len(kinds))
        rows = [{"id": "good", "tokens": [1, 2, 3]}, {"id": "long", "tokens": [1] * (MAX_CONTEXT + 1)},
                {"id": "brim", "tokens": [1] * MAX_CONTEXT, "max_tokens": 50}, *(row[1] for row in wrong)]
        lines = self.lines("score", self.model, rows)
        self.assertNotIn("error", lines[0])
        self.assertEqual(error_code(lines[1]), "context_length_exceeded")
        self.assertNotIn("error", lines[2], "keys of generation are ignored")
        for line, row in zip(lines[3:], wrong):
            self.assertTrue(error_code(line), row[0])

    def test_without_tokenizer(self) -> None:
        lines = self.lines("generate", self.bare, [
            {"id": "text", "prompt": "a"}, {"id": "stop", "tokens": [1], "stop": ["a"]},
            {"id": "ids", "tokens": [1]}])
        for line in lines[:2]:
            self.assertTrue(error_code(line), line)
        self.assertNotIn("error", lines[2])

    def test_only_bad_requests(self) -> None:
        lines = self.lines("generate", self.model, ["nonsense", {"tokens": [-5]}])
        self.assertTrue(all(error_code(line) for line in lines))

    def test_default_id_taken(self) -> None:
        lines = self.lines("generate", self.model, [{"tokens": [1]}, {"id": "0", "tokens": [2]}])
        self.assertNotIn("error", lines[0])
        self.assertTrue(error_code(lines[1]), "line 0 has the id 0 already")

    def test_cache_too_small(self) -> None:
        # Three pages of 16 tokens, each with 2 tracks, 2 layers, keys and values, 2 heads of 16 floats.
        pages = 3 * 16 * 2 * 2 * 2 * 2 * 16 * 4
        rows = [good("small", tokens=[1, 2], max_tokens=8), good("large", tokens=[1] * 50, max_tokens=10),
                good("small too", tokens=[1] * 20, max_tokens=8)]
        want = self.batch("generate", self.model, [rows[0], rows[2]]).decode().splitlines()
        self.batch("generate", self.model, rows, "--kv-cache-bytes", str(pages))
        got = self.last_results.read_text().splitlines()
        self.assertEqual([got[0], got[2]], want)
        self.assertEqual(json.loads(got[1])["id"], "large")
        self.assertEqual(error_code(json.loads(got[1])), "kv_cache_exceeded")

    def test_usage(self) -> None:
        out = self.dir / "unused.jsonl"
        missing = self.dir / "none.jsonl"
        generate = ["generate", self.model, self.requests, "-o", out]
        rows: list[tuple[str, list, list[str]]] = [
            ("nothing", [], []), ("unknown command", ["generat"], ["generat"]),
            ("unknown option", [*generate, "--speed", "9"], ["--speed"]),
            ("no output", generate[:3], ["-o"]), ("no requests", ["generate", self.model, "-o", out], []),
            ("one too many", [*generate, "more"], ["more"]),
            ("no threads", [*generate, "--threads", "0"], ["threads"]),
            ("negative threads", [*generate, "--threads", "-2"], ["threads"]),
            ("threads in words", [*generate, "--threads", "two"], ["threads"]),
            ("no batch", [*generate, "--max-batch", "0"], ["max-batch"]),
            ("cache in words", [*generate, "--kv-cache-bytes", "lots"], ["kv-cache-bytes"]),
            ("cache of unknown unit", [*generate, "--kv-cache-bytes", "4X"], ["kv-cache-bytes"]),
            ("negative cache", [*generate, "--kv-cache-bytes", "-5"], ["kv-cache-bytes"]),
            ("cache beyond 64 bits", [*generate, "--kv-cache-bytes", "9" * 20 + "G"], ["kv-cache-bytes"]),
            ("unknown backend", [*generate, "--backend", "abacus"], ["backend", "abacus|cpu"]),
            ("unknown type", [*generate, "--compute", "float8"], ["compute", "float8|bfloat16"]),
            ("no replicas", [*generate, "--replicas", "0"], ["replicas"]),
            ("two replicas on one rank", [*generate, "--replicas", "2"], ["replicas"]),
            ("no tensor parallelism", [*generate, "--tensor-parallel", "0"], ["tensor-parallel"]),
            ("split tracks on one rank", [*generate, "--tensor-parallel", "2"], ["ranks"]),
            ("tracks that cannot be split", [*generate, "--tensor-parallel", "3"], ["tensor-parallel|ranks"]),
            ("missing requests", ["generate", self.model, missing, "-o", out], [missing.name]),
            ("folder of requests", ["generate", self.model, self.dir, "-o", out], [self.dir.name]),
            ("score without requests", ["score", self.model, missing, "-o", out], [missing.name]),
            ("init without config", ["init", "-o", out], []),
            ("init of no file", ["init", self.dir / "none.json", "-o", out], ["none.json"]),
            ("init of other JSON", ["init", self.requests, "-o", out], []),
            ("init of unknown type", ["init", self.requests, "-o", out, "--dtype", "int4"],
             ["dtype", "int4|float32"]),
            ("inspect of no file", ["inspect", self.dir / "none.h5"], ["none.h5"]),
            ("inspect of other file", ["inspect", self.requests], ["requests.jsonl"]),
            ("bench of no file", ["bench", self.dir / "none.h5", "--input-len", "4", "--output-len", "4",
                                  "--requests", "1"], ["none.h5"]),
            ("bench beyond the context", ["bench", self.model, "--input-len", "60", "--output-len", "60",
                                          "--requests", "1"], [rf"\b{MAX_CONTEXT}\b"]),
        ]
        for what, arguments, words in rows:
            with self.subTest(what):
                self.assert_refused(ptrt(*arguments), words)
                self.assertFalse(out.exists())

    def test_json_that_is_none(self) -> None:
        """Of a configuration and of the files of `ptrt plan`: in words of our own, exit status 2."""
        config = json.dumps(make_config(tracks=2))
        gpu = json.dumps({"memory_gib": 8, "memory_gb_per_s": 20, "gemm_tflops": 1, "bandwidth_efficiency": 1,
                          "gemm_efficiency": 1, "layer_overhead_us": 1})
        link = json.dumps({"latency_us": 5, "gb_per_s": 1, "ranks": 0})
        path, good_config = self.dir / "case.json", self.dir / "good.json"
        good_config.write_text(config)
        commands = [(config, "norm_eps", ["init", path, "-o", self.dir / "case.h5"]),
                    (config, "norm_eps", ["plan", path]),
                    (config, "norm_eps", ["bench", "--random-weights", path]),
                    (gpu, "memory_gib", ["plan", good_config, "--gpu", path]),
                    (link, "gb_per_s", ["plan", good_config, "--link", path])]
        for text, key, command in commands:
            number = re.search(rf'"{key}": ([^,}}]+)', text).group(0)
            wrong = [number.split(":")[0] + ": " + value
                     for value in ("1e999", "-1e999", "NaN", "Infinity", "-1", "null", '"1"', "[1]", "0x10", "1" + "0" * 400)]
            texts = [text.replace(number, other) for other in wrong]
            texts += ["", "{", "[]", "5", '"text"', "null", text + "x", "\xff", text[:-1], "[" * 100000,
                      text[:-1] + ", " + number + "}", text.replace(key, "\xfe\xff")]
            for case in texts:
                with self.subTest(command=str(command[0]), case=case[:60]):
                    path.write_bytes(case.encode("latin-1"))
                    outcome = ptrt(*command)
                    self.assert_refused(outcome, [path.name])
                    self.assertEqual(len(outcome.errors), 1, outcome.output)

    def test_names_that_are_no_text(self) -> None:
        """Names of files are bytes; reports are UTF-8."""
        folder = self.fresh("-names")
        folder.mkdir()
        odd = os.fsencode(folder) + b"/\xff\xfe"
        shutil.copy(self.model, odd + b".h5")
        shutil.copy(self.requests, odd + b".jsonl")
        told = ptrt("inspect", os.fsdecode(odd + b".h5"), "--json")
        self.assert_done(told)
        json.loads(told.stdout)
        self.assert_done(ptrt("generate", os.fsdecode(odd + b".h5"), os.fsdecode(odd + b".jsonl"), "-o",
                              os.fsdecode(odd + b".out")))
        report = folder / "bench.json"
        self.assert_done(ptrt("bench", os.fsdecode(odd + b".h5"), "--dataset", os.fsdecode(odd + b".jsonl"),
                              "--json", report, "--csv", os.fsdecode(odd + b".csv")))
        json.loads(report.read_text(encoding="utf-8"))
        outcome = ptrt("bench", os.fsdecode(odd + b".none"), "--input-len", "4")
        self.assertEqual(outcome.status, 2, outcome.output)

    def test_cuda_where_there_is_none(self) -> None:
        if Path("/dev/nvidia0").exists():
            self.skipTest("there is a GPU here")
        out = self.dir / "cuda.jsonl"
        outcome = ptrt("generate", self.model, self.requests, "-o", out, "--backend", "cuda")
        self.assert_refused(outcome, ["--backend cuda", "libptrt_cuda.so|driver|device"])
        outcome = ptrt("generate", self.model, self.requests, "-o", out, "--backend", "cuda", ranks=2)
        self.assert_refused(outcome, ["--backend cuda", "libptrt_cuda.so|driver|device"])
        self.assertEqual(len(outcome.errors), 1, outcome.output)

    def test_fusion_of_gpus_on_the_cpu(self) -> None:
        out = self.dir / "fusion.jsonl"
        for fusion in ("tree", "nccl", "staged"):
            outcome = ptrt("generate", self.model, self.requests, "-o", out, "--backend", "cpu", "--fusion", fusion)
            self.assert_refused(outcome, [f"--fusion {fusion}", "CPU"])

    def test_cuda_says_what_is_missing(self) -> None:
        out = self.dir / "cuda.jsonl"
        rows = [
            ("no plug-in", [], ["libptrt_cuda.so"]),
            ("products in float32", ["--compute", "float32"], ["--compute float32"]),
            ("int8 weights", ["--weights", "int8"], ["int8"]),
            ("exact keys and values", ["--kv-dtype", "float32"], ["--kv-dtype float32"]),
        ]
        for what, arguments, words in rows:
            with self.subTest(what):
                outcome = ptrt("generate", self.model, self.requests, "-o", out, "--backend", "cuda", *arguments,
                               env={"PTRT_PLUGIN_DIR": str(self.dir)})
                self.assert_refused(outcome, ["--backend cuda", *words])
        with self.subTest("auto does without"):
            outcome = ptrt("generate", self.model, self.requests, "-o", out, "--quiet",
                           env={"PTRT_PLUGIN_DIR": str(self.dir)})
            self.assertEqual((outcome.status, outcome.output), (0, ""))

    def test_empty_request_file(self) -> None:
        empty = write_requests(self.dir / "empty.jsonl", [])
        for ranks in (None, 2):
            outcome = ptrt("generate", self.model, empty, "-o", self.dir / "empty-results.jsonl", ranks=ranks)
            self.assert_refused(outcome, ["empty.jsonl", "empty|no request"])
            self.assertEqual(len(outcome.errors), 1, outcome.output)

    def test_unwritable_output(self) -> None:
        folder = self.dir / "a-folder"
        folder.mkdir()
        for path in (self.dir / "nowhere" / "r.jsonl", folder, "/proc/r.jsonl"):
            for ranks in (None, 2):
                with self.subTest(path=str(path), ranks=ranks):
                    outcome = ptrt("generate", self.model, self.requests, "-o", path, ranks=ranks)
                    self.assert_refused(outcome, [str(path)], statuses=(1, 2))
                    self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertTrue(folder.is_dir())

    def test_output_directory_full(self) -> None:
        place = self.fresh("-small-disk")
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
        if (os.geteuid() != 0 or shutil.which("mount") is None
                or subprocess.run(mount, capture_output=True).returncode != 0):
            self.skipTest("needs the right to mount a small file system")
        try:
            rows = [{"id": f"request {index} " + "x" * 200, "tokens": [index % 256] * 9, "max_tokens": 50}
                    for index in range(300)]
            requests = write_requests(self.dir / "many.jsonl", rows)
            for ranks in (None, 2):
                with self.subTest(ranks=ranks):
                    results = place / f"results{ranks}.jsonl"
                    outcome = ptrt("generate", self.model, requests, "-o", results, ranks=ranks)
                    self.assert_refused(outcome, [results.name, "space|full"], statuses=(1,))
                    self.assertEqual(len(outcome.errors), 1, outcome.output)
                    self.assertFalse(results.exists(), "a results file that is not whole")
                    Path(f"{results}.partial").unlink(missing_ok=True)
            config = self.dir / "config.json"
            config.write_text(json.dumps(make_config(tracks=2)))
            outcome = ptrt("init", config, "-o", place / "model.h5")
            self.assert_refused(outcome, ["model.h5"], statuses=(1, 2))
        finally:
            subprocess.run(["umount", place], check=True)

    def test_messages_come_once_under_mpirun(self) -> None:
        out = self.dir / "once.jsonl"
        for word, arguments in (
                ("none.jsonl", ["generate", self.model, self.dir / "none.jsonl", "-o", out]),
                ("--speed", ["generate", self.model, self.requests, "-o", out, "--speed", "9"])):
            outcome = ptrt(*arguments, ranks=2)
            self.assert_refused(outcome, [word])
            named = [line for line in outcome.output.splitlines() if word in line]
            self.assertEqual(len(named), 1, outcome.output)

    def test_line_ends(self) -> None:
        """A last line without a newline and lines with Windows line ends are valid."""
        path = self.dir / "ends.jsonl"
        path.write_bytes(b'{"id": "a", "tokens": [1]}\r\n{"id": "b", "tokens": [2]}')
        results = self.dir / "ends-results.jsonl"
        self.assert_done(ptrt("generate", self.model, path, "-o", results))
        self.assertEqual([line["id"] for line in read_results(results) if not error_code(line)], ["a", "b"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
