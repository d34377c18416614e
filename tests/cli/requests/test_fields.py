#!/usr/bin/python3
"""Fields of request lines as a user meets them: files written for other programs run unchanged or say why not, and
nothing that a line asks for is left out in silence."""

import sys
import unittest

from pathlib import Path
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, error_code, ptrt, write_requests  # noqa: E402
from model_maker import table_config, table_tensors, write_model  # noqa: E402

BOS, EOS, VOCAB = 256, 257, 258


def openai(body: dict, url: str = "/v1/completions", **envelope) -> dict:
    return {"custom_id": "request-1", "method": "POST", "url": url, "body": body, **envelope}


class Fields(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # The next byte is near certain, the one after it comes second.
        table = np.zeros((VOCAB, VOCAB))
        for token in range(VOCAB):
            table[token, ord("a") if token == BOS else (token + 1) % 256] = 20.0
            table[token, (token + 2) % 256] = 10.0
        config = table_config(VOCAB, tracks=2, bos_token_id=BOS, eos_token_ids=[EOS], max_context=128)
        cls.model = write_model(cls.fresh("-chain.h5"), config, table_tensors(config, table), tokenizer="bytes")

    def one(self, row: dict, command: str = "generate", *options) -> dict:
        return self.lines(command, self.model, [row], *options)[0]

    def test_unknown_fields_are_error_lines(self) -> None:
        rows = [{"prompt": "ab", "max_tokens": 2}, {"prompt": "ab", "max_token": 2}, openai({"prompt": "a"}, tag=1),
                openai({"prompt": "a", "min_toks": 3}) | {"custom_id": "request-2"}, {"prompt": "ab", "foo": None},
                {"prompt": "ab", "stream": True}]
        lines = self.lines("generate", self.model, rows)
        self.assertEqual([error_code(line) for line in lines],
                         ["", "unsupported_field", "unsupported_field", "unsupported_field", "", "unsupported"])
        self.assertIn("'max_token'", lines[1]["error"]["message"])
        self.assertIn("'max_tokens'", lines[1]["error"]["message"])
        self.assertIn("'tag'", lines[2]["error"]["message"])
        self.assertEqual(lines[2]["response"]["status_code"], 400)
        self.assertIn("stream", lines[5]["error"]["message"])

    def test_unknown_fields_may_be_ignored(self) -> None:
        rows = [{"prompt": "ab", "foo": 1}, {"prompt": "ab", "foo": 1, "bar": 2}, openai({"prompt": "a"}, tag=1),
                {"prompt": "ab", "stream": True}]
        plain = [{"prompt": "ab"}, {"prompt": "ab"}, openai({"prompt": "a"}), {"prompt": "ab", "stream": True}]
        for command in ("generate", "score"):
            with self.subTest(command):
                ignoring = self.lines(command, self.model, rows, "--ignore-unknown-fields", "--quiet")
                self.assertIn("'bar' (1 line), 'foo' (2 lines), 'tag' (1 line)", self.last_outcome.output)
                self.assertEqual(self.last_outcome.output.count("ignored fields"), 1)
                self.assertEqual(ignoring, self.lines(command, self.model, plain))
                self.assertNotIn("ignored fields", self.last_outcome.output)

    def test_ignoring_is_part_of_the_digest(self) -> None:
        requests = write_requests(self.fresh("-requests.jsonl"), [{"prompt": "ab", "foo": 1}])
        results = self.fresh("-results.jsonl")
        self.assert_done(ptrt("generate", self.model, requests, "-o", results))
        outcome = ptrt("generate", self.model, requests, "-o", results, "--resume", "--ignore-unknown-fields")
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assert_done(ptrt("generate", self.model, requests, "-o", results, "--resume"))

    def test_what_changes_no_result_passes(self) -> None:
        expected = self.one(openai({"prompt": "ab", "max_tokens": 3}))
        extra = {"user": "u", "metadata": {"a": "b"}, "stream": False, "logit_bias": None, "priority": 3,
                 "presence_penalty": 0, "n": 1, "best_of": 1, "suffix": None, "echo": False, "store": True}
        self.assertEqual(self.one(openai({"prompt": "ab", "max_tokens": 3, **extra})), expected)

    # lm_eval/models/openai_completions.py, LocalCompletionsAPI._create_payload
    def test_lm_eval_completions(self) -> None:
        prompt = [BOS, *b"abcz"]
        generate = {"prompt": [prompt], "model": "m", "max_tokens": 8, "temperature": 0, "stop": ["~"], "seed": 1234}
        line = self.one(openai(generate))
        self.assertEqual(error_code(line), "", line)
        self.assertEqual(line["response"]["body"]["choices"][0]["text"], "{|}")
        for max_tokens in (0, 1):
            with self.subTest(max_tokens=max_tokens):
                line = self.one(openai({"model": "m", "prompt": [prompt], "temperature": 0, "max_tokens": max_tokens,
                                        "logprobs": 1, "seed": 1234, "echo": True}))
                self.assertEqual(error_code(line), "", line)
                self.check_loglikelihood(line["response"]["body"]["choices"][0], max_tokens)

    def test_echo_alone(self) -> None:
        for row in ({"tokens": [97, 98], "max_tokens": 0, "echo": True},
                    openai({"model": "m", "prompt": "ab", "max_tokens": 0, "echo": True})):
            line = self.one(row)
            self.assertEqual(error_code(line), "", line)
            answer = line if "tokens" in row else line["response"]["body"]
            self.assertEqual((answer if "tokens" in row else answer["choices"][0])["text"], "ab")
            self.assertEqual(answer["usage"]["completion_tokens"], 0)

    # As LocalCompletionsAPI.parse_logprobs reads it, of the continuation "cz" behind "ab".
    def check_loglikelihood(self, choice: dict, max_tokens: int) -> None:
        logprobs = choice["logprobs"]
        self.assertEqual(choice["text"], "abcz" + "{" * max_tokens)
        self.assertEqual(len(logprobs["token_logprobs"]), 5 + max_tokens)
        end = 5
        total = np.log(np.exp(20) + np.exp(10) + VOCAB - 2)
        np.testing.assert_allclose(logprobs["token_logprobs"][3:end], [20 - total, -total], rtol=1e-4, atol=1e-5)
        self.assertIsNone(logprobs["token_logprobs"][0])
        greedy = [value == max(top.values()) for value, top in
                  zip(logprobs["token_logprobs"][3:end], logprobs["top_logprobs"][3:end])]
        self.assertEqual(greedy, [True, False])
        self.assertEqual(logprobs["text_offset"][:end], [0, 0, 1, 2, 3])

    # vLLM's examples of run_batch: chat, embeddings and scores of one file.
    def test_vllm_run_batch(self) -> None:
        rows = [
            openai({"model": "meta-llama/Meta-Llama-3-8B-Instruct",
                    "messages": [{"role": "system", "content": "You are a helpful assistant."},
                                 {"role": "user", "content": "Hello world!"}],
                    "max_completion_tokens": 1000}, "/v1/chat/completions"),
            openai({"model": "intfloat/e5-mistral-7b-instruct", "input": "You are a helpful assistant."},
                   "/v1/embeddings") | {"custom_id": "request-2"},
            openai({"model": "BAAI/bge-reranker-v2-m3", "queries": "What is the capital of France?",
                    "documents": ["The capital of Brazil is Brasilia."]}, "/v1/score") | {"custom_id": "request-3"}]
        lines = self.lines("generate", self.model, rows)
        self.assertNotEqual(error_code(lines[0]), "", "this model has no template and no room for 1000 tokens")
        for line, url in zip(lines[1:], ("/v1/embeddings", "/v1/score")):
            self.assertEqual(error_code(line), "invalid_url")
            self.assertIn(url, line["error"]["message"])

    def test_alternatives_and_prompt(self) -> None:
        line = self.one({"prompt": "ab", "max_tokens": 2, "logprobs": 2, "prompt_logprobs": 1})
        self.assertEqual(error_code(line), "", line)
        self.assertEqual([[pair[0] for pair in token] for token in line["top_logprobs"]],
                         [[*b"cd"], [*b"de"]])
        self.assertEqual([token[0][1] for token in line["top_logprobs"]], line["logprobs"])
        self.assertEqual([top if top is None else top[0][0] for top in line["prompt_top_logprobs"]],
                         [None, *b"ab"])
        self.assertEqual(line["prompt_logprobs"][1:], [top[0][1] for top in line["prompt_top_logprobs"][1:]])
        only_prompt = self.one({"prompt": "ab", "max_tokens": 0, "prompt_logprobs": 0})
        self.assertEqual(only_prompt["tokens"], [])
        self.assertEqual(only_prompt["prompt_logprobs"], line["prompt_logprobs"])
        self.assertEqual(only_prompt["usage"], {"prompt_tokens": 3, "completion_tokens": 0})

    def test_alternatives_of_scored_text(self) -> None:
        whole = self.one({"prompt": "ab", "logprobs": 2}, "score")
        self.assertEqual([top and [pair[0] for pair in top] for top in whole["top_logprobs"]],
                         [None, [ord("a"), 2], [*b"bc"]])
        part = self.one({"context": "a", "continuation": "c", "logprobs": 1}, "score")
        self.assertEqual([[pair[0] for pair in top] for top in part["top_logprobs"]], [[*b"b"]])
        self.assertEqual(whole["logprobs"], self.one({"prompt": "ab"}, "score")["logprobs"])

    def test_samples(self) -> None:
        row = {"prompt": "ab", "max_tokens": 6, "temperature": 8, "seed": 5}
        line = self.one({**row, "n": 3, "logprobs": True})
        self.assertEqual(error_code(line), "", line)
        self.assertEqual(len(line["choices"]), 3)
        self.assertEqual(line["usage"]["completion_tokens"], sum(len(choice["tokens"]) for choice in line["choices"]))
        self.assertEqual(line["choices"][0]["tokens"], self.one(row)["tokens"], "sample 0 is what n = 1 gives")
        self.assertGreater(len({tuple(choice["tokens"]) for choice in line["choices"]}), 1)
        body = self.one(openai({**row, "n": 3}))["response"]["body"]
        self.assertEqual([choice["text"] for choice in body["choices"]],
                         [choice["text"] for choice in line["choices"]])
        self.assertEqual([choice["index"] for choice in body["choices"]], [0, 1, 2])


if __name__ == "__main__":
    unittest.main()
