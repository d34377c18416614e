#!/usr/bin/python3
"""Penalties, biases, masks, min_p and alternatives, against a numpy computation of the whole sampling from the logits
of the float64 reference; and that results do not depend on how they are computed."""

import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, error_code, ptrt, write_requests  # noqa: E402
import pt_reference  # noqa: E402
from model_maker import make_config, random_tensors, write_model  # noqa: E402

VOCAB = 259
EOS = [257, 40]  # the second is an ordinary byte, so that outputs end
ALL_TOKENS = range(VOCAB)


def uniform_draw(seed: int, position: int) -> float:
    """Philox 4x32-10 of counter (position, 0) and the seed as its key: the upper 53 of the first 64 bits."""
    counter = [position & 0xFFFFFFFF, position >> 32, 0, 0]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        product = [0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]]
        counter = [product[1] >> 32 ^ counter[1] ^ key[0], product[1] & 0xFFFFFFFF,
                   product[0] >> 32 ^ counter[3] ^ key[1], product[0] & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return ((counter[1] << 32 | counter[0]) >> 11) / 2.0 ** 53


def edited(raw: np.ndarray, row: dict, output: list[int]) -> np.ndarray:
    """The logits that a token is chosen from; -infinity: it may not come."""
    x = raw.copy()
    if "allowed_token_ids" in row:
        x[[token for token in ALL_TOKENS if token not in row["allowed_token_ids"]]] = -np.inf
    for word in row.get("bad_words", []):
        *before, last = word.encode()
        if not before or output[-len(before):] == before:
            x[last] = -np.inf
    if len(output) < row.get("min_tokens", 0):
        x[EOS + row.get("stop_token_ids", [])] = -np.inf
    for token, bias in row.get("logit_bias", {}).items():
        x[int(token)] += bias
    for token in {*row["tokens"], *output}:
        penalty = row.get("repetition_penalty", 1.0)
        x[token] = x[token] / penalty if x[token] > 0 else x[token] * penalty
    for token in set(output):
        x[token] -= row.get("frequency_penalty", 0) * output.count(token) + row.get("presence_penalty", 0)
    return x


def choose(x: np.ndarray, row: dict, position: int) -> int:
    """The next token. Raises ValueError where float32 may take another one."""
    order = np.argsort(-x, kind="stable")
    temperature = row.get("temperature", 0)
    if temperature == 0:
        if x[order[0]] - x[order[1]] < 1e-4:
            raise ValueError("two tokens are equally likely")
        return int(order[0])
    weights = np.exp((x - x[order[0]]) / temperature)
    kept = order[weights[order] > 0]
    cut = row.get("min_p", 0) > 0 or 0 < row.get("top_k", 0) < VOCAB or row.get("top_p", 1) < 1
    if row.get("min_p", 0) > 0:
        kept = kept[weights[kept] >= row["min_p"]]
    if row.get("top_k", 0) > 0:
        kept = kept[:row["top_k"]]
    if row.get("top_p", 1) < 1:
        masses = np.cumsum(weights[kept])
        kept = kept[:1 + np.searchsorted(masses, row["top_p"] * masses[-1])]
    if not cut:
        kept = np.sort(kept)
    masses = np.cumsum(weights[kept]) / weights[kept].sum()
    target = uniform_draw(row["seed"], position)
    if np.min(np.abs(masses - target)) < 1e-6:
        raise ValueError("the draw lies on an edge")
    return int(kept[np.searchsorted(masses, target, side="right")])


class SamplingRules(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=32, heads=2, kv_heads=1, head_dim=8,
                             ffn_size=48, vocab_size=VOCAB, max_context=128, tie_embeddings=False,
                             bos_token_id=256, eos_token_ids=EOS)
        tensors = random_tensors(config, 11)
        tensors["/shared/lm_head"] *= 2.5  # logits that differ more
        cls.model = write_model(cls.dir / "rules.h5", config, tensors, tokenizer="bytes")
        cls.reference = pt_reference.load(cls.model)
        cls.rows = cls.make_rows()

    @staticmethod
    def make_rows() -> list[dict]:
        rng = np.random.default_rng(4)
        prompts = [[int(token) for token in rng.integers(0, 256, size)] for size in (1, 4, 9, 30)]
        biases = {str(token): float(value) for token, value in zip(rng.permutation(VOCAB)[:40], rng.normal(0, 4, 40))}
        allowed = sorted(int(token) for token in rng.permutation(256)[:60])
        fields = [
            {"repetition_penalty": 1.7}, {"repetition_penalty": 0.8}, {"presence_penalty": 1.5},
            {"frequency_penalty": 0.9}, {"frequency_penalty": -0.4, "presence_penalty": 0.3},
            {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": -0.2},
            {"logit_bias": biases}, {"logit_bias": {"65": 100, "66": -100}}, {"allowed_token_ids": allowed},
            {"min_p": 0.05}, {"min_p": 0.3, "top_p": 0.9}, {"min_p": 0.02, "top_k": 7}, {"min_p": 1.0},
            {"min_tokens": 12, "stop_token_ids": allowed[:20]}, {"stop_token_ids": allowed},
            {"ignore_eos": True, "logit_bias": {"40": 3}},
            {"logit_bias": biases, "allowed_token_ids": allowed, "repetition_penalty": 1.4, "min_p": 0.01,
             "frequency_penalty": 0.3, "presence_penalty": 0.2, "min_tokens": 6},
            {"bad_words": ["E", "AA", "ABC"], "logit_bias": {"65": 9, "66": 8, "67": 8}},
        ]
        rows = []
        for number, more in enumerate(fields * 2):
            drawn = number >= len(fields) or "min_p" in more
            rows.append({"id": str(number), "tokens": prompts[number % 4], "max_tokens": 18, "logprobs": 3 + number % 4,
                         "seed": 900 + number, "temperature": [0.8, 1.3, 0.6][number % 3] if drawn else 0, **more})
        return rows

    def generated(self, row: dict) -> tuple[list[int], list[np.ndarray], str]:
        """Tokens, the log-probabilities of all tokens at each of them, and the reason why it ends."""
        output, log_probs = [], []
        while True:
            raw = pt_reference.logits(self.reference, row["tokens"] + output)[-1]
            log_probs.append(pt_reference.log_softmax(raw))
            output.append(choose(edited(raw, row, output), row, len(output)))
            ends = ([] if row.get("ignore_eos") else EOS) + row.get("stop_token_ids", [])
            if output[-1] in ends and len(output) >= row.get("min_tokens", 0):
                return output, log_probs, "stop"
            if len(output) == row["max_tokens"]:
                return output, log_probs, "length"

    def test_every_field_against_numpy(self) -> None:
        for row, line in zip(self.rows, self.lines("generate", self.model, self.rows)):
            with self.subTest(row={name: value for name, value in row.items() if name not in ("tokens", "logit_bias")}):
                self.assertFalse(error_code(line), line)
                tokens, log_probs, reason = self.generated(row)
                self.assertEqual(line["tokens"], tokens)
                self.assertEqual(line["finish_reason"], reason)
                chosen = [of[token] for of, token in zip(log_probs, tokens)]
                np.testing.assert_allclose(line["logprobs"], chosen, atol=1e-4)
                self.assertEqual(len(line["top_logprobs"]), len(tokens))
                for of, alternatives in zip(log_probs, line["top_logprobs"]):
                    best = np.argsort(-of, kind="stable")[:row["logprobs"]]
                    self.assertEqual([token for token, _ in alternatives], [int(token) for token in best])
                    np.testing.assert_allclose([value for _, value in alternatives], of[best], atol=1e-4)

    def test_every_field_matters(self) -> None:
        """Checks the test above: without the field, the numpy computation of some row comes to other tokens."""
        unchanged = {"tokens", "id", "seed", "temperature", "max_tokens", "logprobs", "top_k", "top_p"}
        for field in sorted({field for row in self.rows for field in row} - unchanged):
            with self.subTest(field=field):
                rows = [row for row in self.rows if field in row]
                without = [{name: value for name, value in row.items() if name != field} for row in rows]
                self.assertTrue(any(self.generated(row)[0] != self.generated(other)[0]
                                    for row, other in zip(rows, without)))

    def test_bytes_do_not_depend_on_the_run(self) -> None:
        rows = [{**row, "id": f"{row['id']}-{copy}", "max_tokens": 18 + 40 * copy, "ignore_eos": copy == 1, "seed": row["seed"] + copy}
                for row in self.rows for copy in range(2)]
        requests = write_requests(self.fresh(".jsonl"), rows)
        results = []
        for ranks, options in ((None, []), (None, ["--max-batch", 1]), (2, ["--max-batch", 5]), (4, ["--replicas", 2]),
                               (None, ["--kv-cache-bytes", "36K"])):
            out = self.fresh(".jsonl")
            outcome = ptrt("generate", self.model, requests, "-o", out, *options, ranks=ranks)
            self.assert_done(outcome)
            if "36K" in options:
                self.assertRegex(outcome.output, "preemptions +[1-9]", "the KV cache is too small for all")
            results.append(out.read_bytes())
        for other in results[1:]:
            self.assertEqual(other, results[0])

    def test_ends_of_a_text(self) -> None:
        abc = {"logit_bias": {"97": 80}, "tokens": [5], "max_tokens": 6}  # "aaaaaa"
        rows = [abc, {**abc, "stop_token_ids": [97]}, {**abc, "stop_token_ids": [97], "min_tokens": 2},
                {**abc, "stop": ["aa"]}, {**abc, "stop": ["aa"], "include_stop_str_in_output": True},
                {**abc, "stop": ["aa"], "min_tokens": 3},
                {**abc, "stop_token_ids": [97], "include_stop_str_in_output": True},
                {**abc, "logit_bias": {"40": 80}}, {**abc, "logit_bias": {"40": 80}, "ignore_eos": True}]
        lines = self.lines("generate", self.model, rows)
        self.assertEqual([line["text"] for line in lines[:7]],
                         ["aaaaaa", "", lines[2]["text"], "", "aa", "aa", "a"])
        self.assertEqual([len(line["tokens"]) for line in lines], [6, 1, 3, 2, 2, 4, 1, 1, 6])
        self.assertNotIn(97, lines[2]["tokens"][:2], "a stop token is held back")
        self.assertEqual([line["finish_reason"] for line in lines],
                         ["length", *["stop"] * 7, "length"])

    def test_no_token_is_left(self) -> None:
        rows = [{"tokens": [5], "allowed_token_ids": EOS, "min_tokens": 1}, {"tokens": [5], "max_tokens": 2},
                {"tokens": [5], "allowed_token_ids": [65], "bad_words": ["AAA"], "max_tokens": 5}]
        lines = self.lines("generate", self.model, rows)
        self.assertEqual([error_code(line) for line in lines], ["no_allowed_token", "", "no_allowed_token"])
        self.assertIn("output token 0", lines[0]["error"]["message"])
        self.assertIn("output token 2", lines[2]["error"]["message"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
