#!/usr/bin/python3
"""Structured output through the program: what comes out has the form that was asked for, and is the same everywhere."""

import json
import os
import re
import subprocess
import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import ROOT, CliTest, error_code  # noqa: E402
from model_maker import make_config, table_config, table_tensors, write_model, write_random  # noqa: E402

# An interpreter that has outlines_core; tests that need one are skipped without it.
OUTLINES = os.environ.get("PTRT_OUTLINES_PYTHON", sys.executable)
HAS_OUTLINES = subprocess.run([OUTLINES, "-c", "import outlines_core"], capture_output=True, check=False).returncode == 0
SCHEMA = {"type": "object", "required": ["name", "age"], "properties": {
    "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}, "ok": {"type": "boolean"},
    "tags": {"type": "array", "items": {"enum": ["a", "bé"]}, "maxItems": 2}}}
REGEX = r"(?:[a-c]{2,4}|é\d*)!"


def chat_of(extra: dict) -> dict:
    return {"custom_id": "openai", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", **extra}}


class Structured(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # Random, but texts are likely to end within some dozens of tokens.
        table = np.random.default_rng(1).normal(0, 1, (259, 259))
        table[:, list(b'"}]!')] += 4.0
        config = table_config(259, bos_token_id=256, eos_token_ids=[257], max_context=400)
        cls.model = write_model(cls.dir / "table.h5", config, table_tensors(config, table))

    def outputs(self, constraint: dict, count: int = 12, **keywords) -> list[str]:
        rows = [{"prompt": f"{i}", "max_tokens": 390, "temperature": 1.0, "seed": i, **constraint} for i in range(count)]
        lines = self.lines("generate", self.model, rows, **keywords)
        self.assertEqual({error_code(line) for line in lines}, {""}, lines)
        done = [line["text"] for line in lines if line["finish_reason"] == "stop"]
        self.assertGreater(len(done), count // 2, lines)
        return done

    def test_regex_and_choice(self) -> None:
        for constraint in ({"structured_outputs": {"regex": REGEX}}, {"guided_regex": REGEX}):
            for text in self.outputs(constraint):
                self.assertTrue(re.fullmatch(REGEX, text, re.ASCII), text)
        choice = ["yes", "no", "ye", "漢字"]
        for constraint in ({"structured_outputs": {"choice": choice}}, {"guided_choice": choice}):
            texts = self.outputs(constraint)
            self.assertLessEqual(set(texts), set(choice))
        self.assertGreater(len(set(texts)), 1)

    def test_json_object(self) -> None:
        for text in self.outputs({"response_format": {"type": "json_object"}}):
            self.assertIsInstance(json.loads(text), dict)

    def test_the_same_everywhere(self) -> None:
        model = write_random(self.dir / "tracks.h5", make_config(
            tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, ffn_size=32, max_context=128), 5)
        sampling = {"max_tokens": 40, "temperature": 1.0, "logprobs": True}
        rows = [{"prompt": "a" * (i + 1), **sampling, "structured_outputs": {"regex": r"\{(a|é|[0-9]+,)*\}[^x]{3,9}"}}
                for i in range(6)] + [{"prompt": "free", **sampling}]
        rows.append(chat_of({"max_tokens": 8, "response_format": {"type": "json_object"}}))
        whole = self.batch("generate", model, rows)
        for options, ranks in (((), 2), (("--max-batch", "2"), 4), (("--kv-cache-bytes", "48K", "--max-batch", "7"), None)):
            self.assertEqual(self.batch("generate", model, rows, *options, ranks=ranks), whole, options)

    def test_a_trained_model_answers_within_it(self) -> None:
        demo = ROOT / "examples" / "demo" / "demo.h5"
        rows = [{"prompt": "What is 40 + 17?\n", "max_tokens": 8, "structured_outputs": {"regex": regex}}
                for regex in (r"\d+", r"[1-4]+0", r" *\d\d")]
        texts = [line["text"] for line in self.lines("generate", demo, rows)]
        self.assertEqual(texts[0], "57")
        self.assertRegex(texts[1], r"^[1-4]+0?$")

    def test_what_cannot_be(self) -> None:
        cases = [
            ({"structured_outputs": {"regex": "("}}, "invalid_request", "regular expression"),
            ({"structured_outputs": {"regex": r"(a)\1"}}, "unsupported", "groupref"),
            ({"structured_outputs": {"regex": r"a(?=b)"}}, "unsupported", "assert"),
            ({"structured_outputs": {"regex": r"(?i)a"}}, "unsupported", "flags"),
            ({"structured_outputs": {"regex": r"[^\x00-\U0010ffff]"}}, "invalid_request", "no text"),
            ({"structured_outputs": {"regex": r"(a{1000}){1000}"}}, "unsupported", "too large"),
            ({"structured_outputs": {"regex": 5}}, "invalid_request", "'regex'"),
            ({"structured_outputs": {"choice": []}}, "invalid_request", "'choice'"),
            ({"structured_outputs": {"grammar": "x"}}, "unsupported", "'grammar'"),
            ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "invalid_request", "more than one"),
            ({"response_format": {"type": "xml"}}, "invalid_request", "'response_format'"),
            ({"response_format": {"type": "json_schema"}}, "invalid_request", "'json_schema'"),
            ({"structured_outputs": {"json": {"type": "integer", "minimum": 1}}}, "unsupported", "'minimum'"),
            ({"guided_regex": "a", "ignore_eos": True}, "invalid_request", "'ignore_eos'"),
            ({"guided_regex": "a", "allowed_token_ids": [98]}, "no_token_allowed", ""),
        ]
        lines = self.lines("generate", self.model, [{"prompt": "a", **extra} for extra, _, _ in cases])
        for line, (extra, code, words) in zip(lines, cases):
            with self.subTest(extra=extra):
                if code != "no_token_allowed":
                    self.assertEqual(error_code(line), code, line)
                self.assertIn(words, line["error"]["message"])
        plain = self.lines("generate", self.model, [{"prompt": "a", "response_format": {"type": "text"}}, {"prompt": "a", "id": "0 "}])
        self.assertEqual(plain[0]["tokens"], plain[1]["tokens"])

    def test_a_schema_without_the_library_is_an_error_line(self) -> None:
        bare = self.dir / "python3"
        bare.write_text("#!/bin/sh\nexec /usr/bin/python3 -S \"$@\"\n")  # without packages
        bare.chmod(0o755)
        line, = self.lines("generate", self.model, [{"prompt": "a", "guided_json": SCHEMA}], env={"PTRT_PYTHON": str(bare)})
        self.assertEqual(error_code(line), "structured_output_unavailable")
        self.assertIn("pip install outlines_core", line["error"]["message"])

    @unittest.skipUnless(HAS_OUTLINES, f"{OUTLINES} has no outlines_core; PTRT_OUTLINES_PYTHON may name another python3")
    def test_json_schema(self) -> None:
        constraints = ({"guided_json": SCHEMA}, {"structured_outputs": {"json": json.dumps(SCHEMA)}},
                       {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}})
        for constraint in constraints:
            for text in self.outputs(constraint, env={"PTRT_PYTHON": OUTLINES}):
                value = json.loads(text)
                self.assertLessEqual({"name", "age"}, value.keys())
                self.assertLessEqual(value.keys(), SCHEMA["properties"].keys())
                self.assertIsInstance(value["age"], int)
                self.assertLessEqual(len(value["name"]), 12)
                self.assertIn(value.get("ok", True), (True, False))
                self.assertLessEqual(set(value.get("tags", [])), {"a", "bé"})


if __name__ == "__main__":
    unittest.main()
