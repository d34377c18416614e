#!/usr/bin/python3
"""Results of generate and score, on models whose next token depends only on the last one."""

import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, error_code, ptrt, write_requests  # noqa: E402
from model_maker import table_config, table_tensors, write_model  # noqa: E402

BOS, EOS, EOS_TOO, VOCAB = 256, 257, 258, 260
NAMELESS = 259  # a special token that ends nothing


def chain_table(followers: dict[int, int]) -> np.ndarray:
    """Logits that make each token's successor near certain; by default it is the next byte."""
    table = np.zeros((VOCAB, VOCAB))
    for token in range(VOCAB):
        table[token, followers.get(token, (token + 1) % 256)] = 25.0
    return table


class Generate(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.alphabet = cls.make({BOS: ord("a"), ord("z"): EOS, ord("Z"): EOS_TOO, ord("9"): NAMELESS,
                                 NAMELESS: ord("0")})

    @classmethod
    def make(cls, followers: dict[int, int], tokenizer: str | None = "bytes", table: np.ndarray | None = None,
             **changes) -> Path:
        config = table_config(VOCAB, **{"tracks": 2, "bos_token_id": BOS, "eos_token_ids": [EOS, EOS_TOO],
                                        "max_context": 128, **changes})
        table = chain_table(followers) if table is None else table
        return write_model(cls.fresh("-chain.h5"), config, table_tensors(config, table), tokenizer=tokenizer)

    def one(self, row: dict, model: Path | None = None) -> dict:
        line = self.lines("generate", model or self.alphabet, [row])[0]
        self.assertFalse(error_code(line), line)
        return line

    def test_whole_line(self) -> None:
        line = self.one({"id": "a", "prompt": "lm", "max_tokens": 64})
        self.assertEqual(line, {
            "id": "a", "text": "nopqrstuvwxyz", "tokens": [*b"nopqrstuvwxyz", EOS], "finish_reason": "stop",
            "usage": {"prompt_tokens": 3, "completion_tokens": 14}})

    def test_defaults(self) -> None:
        line = self.one({"prompt": "a"})
        self.assertEqual(line, {
            "id": "0", "text": "bcdefghijklmnopq", "tokens": list(b"bcdefghijklmnopq"),
            "finish_reason": "length", "usage": {"prompt_tokens": 2, "completion_tokens": 16}})

    def test_token_ids_stand_as_they_are(self) -> None:
        line = self.one({"tokens": [EOS, 100, 101], "max_tokens": 2})
        self.assertEqual(line["tokens"], [102, 103])
        self.assertEqual(line["usage"], {"prompt_tokens": 3, "completion_tokens": 2})

    def test_empty_prompt_after_bos(self) -> None:
        self.assertEqual(self.one({"prompt": "", "max_tokens": 3})["text"], "abc")

    def test_empty_prompt_without_bos(self) -> None:
        model = self.make({}, bos_token_id=None)
        rows = [{"prompt": "", "max_tokens": 3}, {"prompt": "é", "max_tokens": 3}]
        lines = self.lines("generate", model, rows)
        self.assertTrue(error_code(lines[0]), lines[0])
        self.assertEqual(lines[1]["usage"]["prompt_tokens"], 2, "no bos is put where there is none")

    def test_every_eos_ends(self) -> None:
        line = self.one({"prompt": "X"})
        self.assertEqual((line["text"], line["tokens"]), ("YZ", [89, 90, EOS_TOO]))
        self.assertEqual(line["finish_reason"], "stop")

    def test_special_tokens_have_no_text(self) -> None:
        line = self.one({"prompt": "7", "max_tokens": 5})
        self.assertEqual((line["text"], line["tokens"]), ("8901", [*b"89", NAMELESS, *b"01"]))

    def test_stop_strings(self) -> None:
        cases = [
            (["ghi"], "bcdef", "bcdefghi", "stop"),
            (["xyz", "ghi", "h"], "bcdefg", "bcdefgh", "stop"),
            (["fgh", "def"], "bc", "bcdef", "stop"),
            (["ef", "def", "f"], "bc", "bcdef", "stop"),  # all end at the same place: the one that starts first counts
            (["b"], "", "b", "stop"),
            (["ab"], "bcdefghijklmnopq", "bcdefghijklmnopq", "length"),  # the prompt is not searched
            (["pqx"], "bcdefghijklmnopq", "bcdefghijklmnopq", "length"),  # started, not completed
            (["opq"], "bcdefghijklmn", "bcdefghijklmnopq", "stop"),  # ends with the last token allowed
            ([], "bcdefghijklmnopq", "bcdefghijklmnopq", "length"),
        ]
        rows = [{"prompt": "a", "stop": stop} for stop, _, _, _ in cases]
        for line, (stop, text, tokens, reason) in zip(self.lines("generate", self.alphabet, rows), cases):
            with self.subTest(stop=stop):
                self.assertEqual((line["text"], bytes(line["tokens"]).decode(), line["finish_reason"]),
                                 (text, tokens, reason))
                self.assertEqual(line["usage"]["completion_tokens"], len(tokens))

    def test_characters_of_many_bytes(self) -> None:
        model = self.make({ord("a"): 0xC3, 0xC3: 0xA9, 0xA9: ord("b"), ord("k"): 0xF0, 0xF0: 0x9F, 0x9F: 0x8C,
                           0x8C: 0xB3, 0xB3: ord("l")})
        rows = [{"prompt": "a", "max_tokens": 4}, {"prompt": "a", "max_tokens": 4, "stop": ["é"]},
                {"prompt": "a", "max_tokens": 4, "stop": ["éb"]}, {"prompt": "k", "max_tokens": 5},
                {"prompt": "k", "max_tokens": 9, "stop": ["l"]}, {"prompt": "naïve 🌳 a", "max_tokens": 2}]
        texts = [line["text"] for line in self.lines("generate", model, rows)]
        self.assertEqual(texts, ["ébc", "", "", "🌳l", "🌳", "é"])

    def test_invalid_utf8(self) -> None:
        model = self.make({ord("a"): 0xFF, 0xFF: ord("b"), ord("c"): 0xC3, 0xC3: ord("d"), ord("e"): 0xE2,
                           0xE2: 0x82, 0x82: ord("f"), ord("g"): 0xC0, 0xC0: 0xAF, 0xAF: ord("h")})
        rows = [{"prompt": "a", "max_tokens": 2}, {"prompt": "c", "max_tokens": 1},
                {"prompt": "c", "max_tokens": 2}, {"prompt": "e", "max_tokens": 3},
                {"prompt": "g", "max_tokens": 3}, {"prompt": "a", "max_tokens": 2, "stop": ["b"]}]
        lines = self.lines("generate", model, rows)
        for line, pattern in zip(lines, ("^�b$", "^�$", "^�d$", "^�{1,2}f$", "^�{1,2}h$", "^�$")):
            self.assertRegex(line["text"], pattern)
        self.assertEqual(lines[3]["tokens"], [0xE2, 0x82, ord("f")])

    def test_order_and_ids(self) -> None:
        names = ["ä", "", "b c", "10", "9"]
        rows = [{"id": name, "prompt": "a", "max_tokens": 40 - index * 7} for index, name in enumerate(names)]
        rows += [{"prompt": "a", "max_tokens": 1}]
        for options in ((), ("--max-batch", "2")):
            lines = self.lines("generate", self.alphabet, rows, *options)
            self.assertEqual([line["id"] for line in lines], names + ["5"])

    def test_openai_lines(self) -> None:
        body = {"prompt": "u", "max_tokens": 3}
        row = {"method": "POST", "url": "/v1/completions"}
        lines = self.lines("generate", self.alphabet, [
            {"custom_id": "first", **row, "body": body}, {"id": "plain", "prompt": "a", "max_tokens": 2},
            {"custom_id": "second", **row, "body": {"model": "any", "prompt": "u", "max_tokens": 30,
                                                    "temperature": 0, "stop": ["xy"]}},
            {"custom_id": "third", **row, "url": "/v1/embeddings", "body": body}])
        first, plain, second, third = lines
        for line, name, text, reason, completion_tokens in (
                (first, "first", "vwx", "length", 3), (second, "second", "vw", "stop", 4)):
            self.assertEqual(line["custom_id"], name)
            self.assertIsNone(line["error"])
            self.assertIsInstance(line["id"], str)
            response = line["response"]
            self.assertEqual(response["status_code"], 200)
            self.assertIsInstance(response["request_id"], str)
            body_out = response["body"]
            self.assertEqual(body_out["object"], "text_completion")
            self.assertEqual(body_out["created"], 0)
            self.assertEqual(len(body_out["choices"]), 1)
            choice = body_out["choices"][0]
            self.assertEqual((choice["index"], choice["text"], choice["finish_reason"]), (0, text, reason))
            self.assertEqual(body_out["usage"], {"prompt_tokens": 2, "completion_tokens": completion_tokens,
                                                 "total_tokens": 2 + completion_tokens})
        self.assertNotEqual(first["id"], second["id"])
        self.assertNotEqual(first["response"]["request_id"], second["response"]["request_id"])
        self.assertEqual(plain["text"], "bc")
        self.assertEqual(third["custom_id"], "third")
        self.assertTrue(error_code(third))

    def test_without_tokenizer(self) -> None:
        model = self.make({}, tokenizer=None)
        line = self.one({"tokens": [5], "max_tokens": 3}, model)
        self.assertEqual(line, {"id": "0", "tokens": [6, 7, 8], "finish_reason": "length",
                                "usage": {"prompt_tokens": 1, "completion_tokens": 3}})

    def test_greedy_tie_goes_to_the_lower_id(self) -> None:
        table = np.zeros((VOCAB, VOCAB))
        table[:, [200, 40, 41, 259]] = 7.0
        line = self.one({"tokens": [9], "max_tokens": 3}, self.make({}, table=table))
        self.assertEqual(line["tokens"], [40, 40, 40])

    def test_scores(self) -> None:
        rng = np.random.default_rng(5)
        table = rng.standard_normal((VOCAB, VOCAB)) * 3
        model = self.make({}, table=table)
        chances = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
        lines = self.lines("score", model, [
            {"id": "text", "prompt": "abc"}, {"tokens": [3, 255, 0, 0]}, {"tokens": [7]}, {"prompt": ""},
            {"tokens": [1, 2], "max_tokens": 0, "temperature": "hot", "stop": 5}])
        for number, (line, name, tokens) in enumerate(zip(
                lines, ("text", "1", "2", "3", "4"), ([BOS, *b"abc"], [3, 255, 0, 0], [7], [BOS], [1, 2]))):
            with self.subTest(number):
                self.assertEqual(set(line), {"id", "tokens", "logprobs", "sum_logprob", "perplexity"}, line)
                self.assertEqual((line["id"], line["tokens"]), (name, tokens))
                want = [chances[a, b] for a, b in zip(tokens, tokens[1:])]
                self.assertIsNone(line["logprobs"][0])
                np.testing.assert_allclose(line["logprobs"][1:], want, atol=1e-3)
                self.assertAlmostEqual(line["sum_logprob"], sum(want), delta=1e-3)
                if want:
                    self.assertAlmostEqual(line["perplexity"] / np.exp(-np.mean(want)), 1, delta=2e-3)
                else:
                    self.assertIsNone(line["perplexity"])

    def test_logprobs_only_where_asked(self) -> None:
        rows = [{"prompt": "a", "logprobs": True, "max_tokens": 5}, {"prompt": "a", "logprobs": False}]
        with_them, without = self.lines("generate", self.alphabet, rows)
        self.assertEqual(len(with_them["logprobs"]), 5)
        self.assertNotIn("logprobs", without)

    def test_streams(self) -> None:
        """A run prints its figures; a quiet one prints nothing; no control characters without a terminal."""
        requests = write_requests(self.fresh(".jsonl"), [{"prompt": "a"}] * 3)
        for ranks in (None, 2):
            told = ptrt("generate", self.alphabet, requests, "-o", self.fresh(".jsonl"), ranks=ranks)
            self.assert_done(told)
            for word in ("TTFT", "TPOT", "p50", "p90", "p99", "sync", "tokens"):
                self.assertRegex(told.output, f"(?i){word}")
            self.assertEqual(told.output.count("TTFT"), 1, "the table comes from one rank")
            self.assertNotRegex(told.output, "[\r\x1b]")
            quiet = ptrt("generate", self.alphabet, requests, "-o", self.fresh(".jsonl"), "--quiet",
                         ranks=ranks)
            self.assert_done(quiet)
            self.assertEqual(quiet.output, "")


if __name__ == "__main__":
    unittest.main(verbosity=1)
