#!/usr/bin/python3
"""`ptrt score`: continuations after a context, and the perplexity of a text by sliding window, against float64."""

import json
import os
import signal
import sys
import time
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Outcome, Running, error_code, ptrt, write_requests  # noqa: E402
import pt_reference as ref  # noqa: E402
from model_maker import make_config, table_config, table_tensors, write_model, write_random  # noqa: E402

BOS, VOCAB = 256, 260
TOLERANCE = 1e-3
PRECISE = ("--compute", "float32")


def pairs(count: int, longest: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations of token ids, of many lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        first = 1 + index * 13 % (longest - 12)
        made.append((rng.integers(0, 256, first).tolist(), rng.integers(0, 256, 1 + index * 5 % 11).tolist()))
    return made


def windows(tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, end and first scored token of each, by the loop of Hugging Face's guide."""
    found, previous = [], 1
    for begin in range(0, tokens, stride):
        end = min(begin + window, tokens)
        found.append((begin, end, previous))
        previous = end
        if end == tokens:
            break
    return found


class Score(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=4, heads=4, kv_heads=2, head_dim=8, hidden_size=32, ffn_size=64,
                                 vocab_size=VOCAB, max_context=96, bos_token_id=BOS, eos_token_ids=[257])
        cls.model = write_random(cls.fresh("-four.h5"), cls.config, 3, tokenizer="bytes")
        cls.reference = ref.load(cls.model)

    def check(self, line: dict, context: list[int], continuation: list[int], model: ref.Model | None = None) -> None:
        self.assertEqual(set(line), {"id", "tokens", "logprobs", "sum_logprob", "is_greedy"}, line)
        self.assertEqual(line["tokens"], continuation)
        table = ref.log_probs(model or self.reference, context + continuation)[len(context) - 1:-1]
        want = table[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(line["logprobs"], want, atol=TOLERANCE)
        self.assertAlmostEqual(line["sum_logprob"], sum(line["logprobs"]), delta=1e-5)
        two = np.sort(table, axis=1)[:, -2:]
        if (two[:, 1] - two[:, 0]).min() > TOLERANCE:
            self.assertEqual(line["is_greedy"], bool((table.argmax(axis=1) == continuation).all()))

    def test_token_ids(self) -> None:
        both = pairs(12, 80, 1)
        rows = [{"id": f"n{i}", "context": a, "continuation": b} for i, (a, b) in enumerate(both)]
        for index, (line, (a, b)) in enumerate(zip(self.lines("score", self.model, rows, *PRECISE), both)):
            with self.subTest(index):
                self.assertEqual(line["id"], f"n{index}")
                self.check(line, a, b)

    def test_text_is_encoded_joined(self) -> None:
        rows = [{"context": "The sky", "continuation": " is blü"}, {"context": "", "continuation": "a"},
                {"context": "ab", "continuation": "c", "temperature": "hot", "stop": 5},
                {"custom_id": "o", "method": "POST", "url": "/v1/completions",
                 "body": {"context": "ab", "continuation": "c"}}]
        lines = self.lines("score", self.model, rows, *PRECISE)
        self.check(lines[0], [BOS, *b"The sky"], [*" is blü".encode()])
        self.check(lines[1], [BOS], [*b"a"])
        self.check(lines[2], [BOS, *b"ab"], [*b"c"])
        self.assertEqual(lines[3]["logprobs"], lines[2]["logprobs"])

    def test_greedy(self) -> None:
        """What generate gives is greedy; with one other token it is not; of equal logits the lower id is."""
        rows = [{"tokens": a, "max_tokens": 9, "logprobs": True} for a, _ in pairs(6, 60, 2)]
        made = self.lines("generate", self.model, rows, *PRECISE)
        asked = []
        for row, line in zip(rows, made):
            for place in (None, 0, len(line["tokens"]) - 1):
                changed = list(line["tokens"])
                if place is not None:
                    changed[place] ^= 1
                asked.append({"context": row["tokens"], "continuation": changed})
        for index, line in enumerate(self.lines("score", self.model, asked, *PRECISE)):
            self.assertEqual(line["is_greedy"], index % 3 == 0, asked[index])
            if index % 3 == 0:
                self.assertEqual(line["logprobs"], made[index // 3]["logprobs"], "as generate has them")
        table = np.zeros((VOCAB, VOCAB))
        table[:, [200, 40, 41, 259]] = 7.0
        config = table_config(VOCAB, tracks=2, bos_token_id=BOS, max_context=32)
        tied = write_model(self.fresh("-tied.h5"), config, table_tensors(config, table))
        asked = [{"context": [9], "continuation": b} for b in ([40, 40], [41], [40, 259], [200], [3])]
        self.assertEqual([line["is_greedy"] for line in self.lines("score", tied, asked)], [True] + [False] * 4)

    def test_bits_are_those_of_the_whole_text(self) -> None:
        both = pairs(8, 80, 4)
        whole = self.lines("score", self.model, [{"tokens": a + b} for a, b in both])
        parts = self.lines("score", self.model, [{"context": a, "continuation": b} for a, b in both])
        for (a, _), line, part in zip(both, whole, parts):
            self.assertEqual(part["logprobs"], line["logprobs"][len(a):])

    def test_same_bytes_however_it_runs(self) -> None:
        rows: list = [{"context": a, "continuation": b} for a, b in pairs(14, 80, 5)]
        rows.insert(3, {"context": [1], "continuation": "x"})
        rows.insert(5, {"prompt": "plain", "id": "plain"})
        want = self.batch("score", self.model, rows)
        for ranks, options in ((None, "--threads 2 --max-step-tokens 7 --max-batch 3"), (2, ""), (4, ""),
                               (4, "--vocab-head split"), (4, "--replicas 2"), (8, "--max-batch 2"),
                               (2, "--replicas 2 --vocab-head whole")):
            with self.subTest(ranks=ranks, options=options):
                self.assertEqual(self.batch("score", self.model, rows, *options.split(), ranks=ranks), want)

    def test_tensor_parallel(self) -> None:
        both = pairs(6, 80, 6)
        rows = [{"context": a, "continuation": b} for a, b in both]
        for options in ("", "--vocab-head split"):
            lines = self.lines("score", self.model, rows, *PRECISE, "--tensor-parallel", "2", *options.split(), ranks=8)
            for line, (a, b) in zip(lines, both):
                self.check(line, a, b)

    def test_bad_lines(self) -> None:
        bad = [({"context": "a"}, "continuation"), ({"continuation": "a"}, "context"),
               ({"context": "a", "continuation": "b", "prompt": "c"}, "either"),
               ({"context": "a", "continuation": "b", "tokens": [1]}, "either"),
               ({"context": "a", "continuation": [1]}, "both be text"), ({"context": 3, "continuation": 4}, "both be"),
               ({"context": "a", "continuation": ""}, "adds no token"), ({"context": [], "continuation": [1]}, "empty"),
               ({"context": [1], "continuation": []}, "empty"), ({"context": [1], "continuation": [VOCAB]}, str(VOCAB)),
               ({"context": [1] * 90, "continuation": [1] * 7}, "max_context")]
        rows = [{"context": [1], "continuation": [2]}, *(row for row, _ in bad)]
        lines = self.lines("score", self.model, rows)
        self.assertFalse(error_code(lines[0]))
        for line, (row, word) in zip(lines[1:], bad):
            self.assertTrue(error_code(line), row)
            self.assertIn(word, line["error"]["message"])
        bare = write_random(self.fresh("-bare.h5"), self.config | {"bos_token_id": None}, 3, tokenizer=None)
        text, ids = self.lines("score", bare, [{"context": "a", "continuation": "b"},
                                               {"context": [1], "continuation": [2]}])
        self.assertEqual(error_code(text), "no_tokenizer")
        self.assertFalse(error_code(ids))

    def test_resume(self) -> None:
        rows = [{"context": a, "continuation": b} for a, b in pairs(40, 80, 7)]
        want = self.batch("score", self.model, rows)
        requests, results = write_requests(self.fresh(".jsonl"), rows), self.fresh("-out.jsonl")
        command = ["score", self.model, requests, "-o", results, "--max-batch", "1", "--max-step-tokens", "8"]
        killed = ptrt(*command, env={"PTRT_FAULT": "rank=0,at=step,after=30"})
        self.assertNotEqual(killed.status, 0)
        self.assertFalse(results.exists())
        self.assert_done(ptrt(*command, "--resume"))
        self.assertEqual(results.read_bytes(), want)


class Text(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.config = make_config(tracks=2, hidden_size=32, ffn_size=64, vocab_size=VOCAB, max_context=64,
                                 bos_token_id=BOS, eos_token_ids=[257])
        cls.model = write_random(cls.fresh("-two.h5"), cls.config, 9, tokenizer="bytes")
        cls.reference = ref.load(cls.model)
        rng = np.random.default_rng(11)
        cls.bytes = "".join(chr(int(c)) for c in rng.integers(97, 123, 190)).encode() + " grün.\n".encode()
        cls.text = cls.fresh("-text.txt")
        cls.text.write_bytes(cls.bytes)

    def perplexity(self, *options, text: Path | None = None, model: Path | None = None, **keywords) -> dict:
        outcome = ptrt("score", model or self.model, "--text", text or self.text, "--quiet", *options, **keywords)
        self.assert_done(outcome)
        self.last_stdout = outcome.stdout
        return json.loads(outcome.stdout)

    def test_against_float64(self) -> None:
        tokens = [BOS, *self.bytes]
        for window, stride in ((64, 32), (64, 63), (16, 1), (50, 7), (2, 1)):
            with self.subTest(window=window, stride=stride):
                got = self.perplexity("--window", window, "--stride", stride, *PRECISE)
                want, scored = 0.0, 0
                for begin, end, first in windows(len(tokens), window, stride):
                    chances = ref.score(self.reference, tokens[begin:end])  # of tokens 1 …
                    want += float(np.sum(chances[first - begin - 1:]))
                    scored += end - first
                self.assertEqual(list(got), ["tokens", "sum_logprob", "perplexity", "window", "stride"])
                self.assertEqual((got["tokens"], got["window"], got["stride"]), (scored, window, stride))
                self.assertEqual(scored, len(self.bytes), "every token once")
                self.assertAlmostEqual(got["sum_logprob"], want, delta=TOLERANCE * scored / 10)
                self.assertAlmostEqual(got["perplexity"], np.exp(-got["sum_logprob"] / scored), delta=1e-6)

    def test_short_texts_and_defaults(self) -> None:
        short = self.fresh(".txt")
        short.write_text("abc")
        line = self.lines("score", self.model, [{"prompt": "abc"}])[0]
        got = self.perplexity(text=short)
        self.assertEqual(got, {"tokens": 3, "sum_logprob": line["sum_logprob"], "perplexity": line["perplexity"],
                               "window": 64, "stride": 32})

    def test_without_bos(self) -> None:
        model = write_random(self.fresh(".h5"), self.config | {"bos_token_id": None}, 9, tokenizer="bytes")
        self.assertEqual(self.perplexity(model=model)["tokens"], len(self.bytes) - 1)

    def test_same_bytes_however_it_runs(self) -> None:
        options = ("--window", "20", "--stride", "3")
        self.perplexity(*options)
        want = self.last_stdout
        for ranks, more in ((None, "--threads 2 --max-batch 3 --max-step-tokens 7"), (2, ""), (2, "--replicas 2"),
                            (4, ""), (2, "--vocab-head split"), (8, "")):
            with self.subTest(ranks=ranks, options=more):
                self.perplexity(*options, *more.split(), ranks=ranks)
                self.assertEqual(self.last_stdout, want)
        short = self.fresh(".txt")
        short.write_text("fewer windows than replicas")
        self.assertEqual(self.perplexity(text=short, ranks=8), self.perplexity(text=short))

    def test_output(self) -> None:
        out = self.fresh(".json")
        told = ptrt("score", self.model, "--text", self.text, "-o", out)
        self.assert_done(told)
        self.assertEqual(told.stdout, "")
        self.assertIn("perplexity", told.stderr)
        self.assertEqual(json.loads(out.read_text()), self.perplexity())

    def refused(self, *arguments, status: int = 2) -> Outcome:
        outcome = ptrt("score", self.model, *arguments)
        self.assertEqual(outcome.status, status, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        self.assertEqual(outcome.stdout, "")
        return outcome

    def test_bad_values(self) -> None:
        requests = write_requests(self.fresh(".jsonl"), [{"prompt": "a"}])
        out, text = self.fresh(".out"), ("--text", self.text)
        for arguments, word in (
                ((*text, "--window", "65"), "max_context is 64"), ((*text, "--window", "0"), "1\\.\\."),
                ((*text, "--window", "9", "--stride", "9"), "below --window"), ((*text, "--stride", "64"), "below"),
                ((*text, "--stride", "-1"), "stride"), ((*text, "--window", "1"), "below --window"),
                ((*text, "--window", "8.5"), "8.5"), (("--text", ""), "text"), (("--text", self.fresh("")), "cannot read"),
                ((*text, "-o", self.text), "would overwrite"), ((*text, "-o", "/dev/null"), "not a regular file"), ((*text, "-o", self.model), "would overwrite"),
                ((*text, "--resume"), "output"), ((requests, *text), "REQUESTS"), ((), "REQUESTS or --text"),
                ((requests,), "output"), ((requests, "-o", out, "--window", "8"), "--text"),
                ((requests, "-o", out, "--stride", "8"), "--text"), ((*text, "--kv-cache-bytes", "20K"), "KV cache")):
            with self.subTest(arguments=arguments):
                self.assertRegex(self.refused(*arguments).output, word)
        self.assertFalse(out.exists())

    def test_bad_texts(self) -> None:
        for content, word in ((b"", "empty"), (b"ab\xffcd", "byte 2 \\(0xff\\)"), (b"\xc3", "byte 0"),
                              (b"\xef\xbf\xbd\xed\xa0\x80", "byte 3")):
            path = self.fresh(".txt")
            path.write_bytes(content)
            with self.subTest(content=content):
                self.assertRegex(self.refused("--text", path).output, word)
        replaced = self.fresh(".txt")
        replaced.write_text("\N{REPLACEMENT CHARACTER} is a character")
        self.perplexity(text=replaced)
        config = self.config | {"bos_token_id": None}
        one = self.fresh(".txt")
        one.write_text("a")
        nothing = write_random(self.fresh(".h5"), config, 9, tokenizer="bytes")
        self.assertRegex(ptrt("score", nothing, "--text", one).output, "nothing to score")
        bare = write_random(self.fresh(".h5"), config, 9, tokenizer=None)
        outcome = ptrt("score", bare, "--text", self.text)
        self.assertEqual((outcome.status, len(outcome.errors)), (2, 1))
        self.assertRegex(outcome.output, "tokenizer")

    def long_text(self) -> Path:
        path = self.fresh(".txt")
        path.write_text("abcdefgh" * 500)
        return path

    def signalled(self, *command, ranks: int | None = None) -> Outcome:
        """A run that gets a SIGUSR1 on every rank while it scores; slow enough to be stopped."""
        running = Running(["score", self.model, *command, "--max-batch", "1"], ranks,
                          env={"PTRT_FAULT": "rank=0,at=step,after=20,pause_ms=20"})
        try:
            while "tracks" not in running.stderr_so_far() and running.process.poll() is None:
                time.sleep(0.05)
            time.sleep(0.5)
            for process in running.ranks():
                os.kill(process, signal.SIGUSR1)
        finally:
            outcome = running.finish()
        return outcome

    def test_a_signal_ends_it(self) -> None:
        outcome = self.signalled("--text", self.long_text(), "--stride", "1")
        self.assertEqual(outcome.status, 1, outcome.output)
        self.assertRegex(outcome.output, "stopped by a signal")

    def test_resume(self) -> None:
        """After a signal and after a failure --resume gives the bytes of a run that was never stopped, on other ranks too."""
        text, options = self.long_text(), ("--window", "24", "--stride", "9")
        want = self.fresh(".json")
        self.assert_done(ptrt("score", self.model, "--text", text, *options, "-o", want))
        for ranks in (None, 4):
            with self.subTest(ranks=ranks):
                out = self.fresh(".json")
                command = ("--text", text, *options, "-o", out)
                stopped = self.signalled(*command, ranks=ranks)
                self.assertEqual(stopped.status, 75, stopped.output)
                self.assertRegex(stopped.output, "windows in .*--resume")
                self.assertFalse(out.exists())
                self.assertRegex(self.refused(*command).output, "--resume")
                self.assertRegex(self.refused(*command[:2], "-o", out, "--resume").output, "another run")
                failed = ptrt("score", self.model, *command, "--resume", ranks=2,
                              env={"PTRT_FAULT": "rank=1,at=step,after=3"})
                self.assertEqual(failed.status, 1, failed.output)
                self.assert_done(ptrt("score", self.model, *command, "--resume", ranks=2))
                self.assertEqual(out.read_bytes(), want.read_bytes())
                self.assertFalse(Path(f"{out}.partial").exists())
                again = ptrt("score", self.model, *command, "--resume")
                self.assert_done(again)
                self.assertRegex(again.output, "is complete")


if __name__ == "__main__":
    unittest.main(verbosity=1)
