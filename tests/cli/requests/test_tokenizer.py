#!/usr/bin/python3
"""Text in and out of models that carry a tokenizer.json, of both families."""

import json
import sys
import unittest
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import ROOT, CliTest, error_code, ptrt, write_requests  # noqa: E402
from model_maker import table_config, table_tensors, write_model  # noqa: E402

GOLDEN = ROOT / "tests" / "model_io" / "golden"


class Tokenizer(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.texts = json.loads((GOLDEN / "texts.json").read_text(encoding="utf-8"))

    @classmethod
    def load(cls, name: str) -> tuple[dict, dict[str, list[int]]]:
        """A tokenizer.json, and the ids that the tokenizers library has for each text."""
        golden = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        return golden["tokenizer"], {text: case[0] for text, case in zip(cls.texts, golden["variants"][0]["cases"])}

    @classmethod
    def make(cls, tokenizer: dict | bytes, chain: list[int], vocab: int = 600) -> Path:
        """A model that generates the chain of tokens, each after the one before, and ends with the last."""
        table = np.zeros((vocab, vocab))
        for token, follower in zip(chain, chain[1:]):
            table[token, follower] = 25.0
        config = table_config(vocab, bos_token_id=None, eos_token_ids=[chain[-1]], max_context=512)
        blob = tokenizer if isinstance(tokenizer, bytes) else json.dumps(tokenizer).encode()
        return write_model(cls.fresh(".h5"), config, table_tensors(config, table), tokenizer="huggingface",
                           tokenizer_model=blob)

    def test_ids_of_a_prompt(self) -> None:
        for name in ("qwen", "mistral"):
            tokenizer, ids = self.load(name)
            texts = [text for text in self.texts if len(ids[text]) > 1]
            lines = self.lines("score", self.make(tokenizer, [0, 1]), [{"prompt": text} for text in texts])
            for text, line in zip(texts, lines):
                self.assertEqual(line["tokens"], ids[text], (name, text))

    def test_output_text_and_stop_strings(self) -> None:
        for name, pieces, special in (("gpt2", ["Ġ", "m", "Ã", "©", "Ċ", "n"], "<|endoftext|>"),
                                      ("llama2", ["▁", "m", "<0xC3>", "<0xA9>", "<0x0A>", "n"], "<s>")):
            tokenizer, ids = self.load(name)
            vocabulary = tokenizer["model"]["vocab"]
            prompt, eos = "Hello world", 599
            answer = [vocabulary[piece] for piece in [*pieces[:-1], special, pieces[-1]]] + [eos]
            model = self.make(tokenizer, [ids[prompt][-1], *answer])
            cases = [(None, " mé\nn", 8), (["é"], " m", 4), (["m", "\n"], " ", 2), ([" mé"], "", 4),
                     (["\nn"], " mé", 7), (["x", "Hello"], " mé\nn", 8)]
            rows = [{"prompt": prompt, "max_tokens": 20, **({"stop": stop} if stop else {})} for stop, _, _ in cases]
            for line, (stop, text, tokens) in zip(self.lines("generate", model, rows), cases):
                with self.subTest(name=name, stop=stop):
                    self.assertFalse(error_code(line), line)
                    self.assertEqual((line["text"], line["tokens"], line["finish_reason"]),
                                     (text, answer[:tokens], "stop"))
                    self.assertEqual(line["usage"]["prompt_tokens"], len(ids[prompt]))

    def test_half_a_character(self) -> None:
        tokenizer, ids = self.load("gpt2")
        chain = [ids["a"][-1], tokenizer["model"]["vocab"]["Ã"], 599]
        line = self.lines("generate", self.make(tokenizer, chain), [{"prompt": "a"}])[0]
        self.assertEqual(line["text"], "\ufffd")

    def test_a_component_that_is_not_supported(self) -> None:
        tokenizer, _ = self.load("gpt2")
        tokenizer["normalizer"] = {"type": "Nmt"}
        model = self.make(tokenizer, [5, 6, 7])
        rows = [{"prompt": "a"}, {"tokens": [5], "stop": ["x"]}, {"tokens": [5]}]
        prompt, stop, tokens = self.lines("generate", model, rows)
        for line in (prompt, stop):
            self.assertEqual(error_code(line), "no_tokenizer")
            self.assertIn("Nmt", line["error"]["message"])
        self.assertEqual(tokens["tokens"], [6, 7])
        self.assertNotIn("text", tokens)
        inspected = json.loads(ptrt("inspect", model, "--json").stdout)["tokenizer"]
        self.assertEqual((inspected["kind"], inspected["usable"]), ("huggingface", False))
        self.assertIn("Nmt", inspected["why_not"])

    def test_a_broken_file(self) -> None:
        tokenizer, _ = self.load("gpt2")
        beyond = json.loads(json.dumps(tokenizer))
        beyond["model"]["vocab"]["a"] = 600
        for blob, word in ((b"{", "JSON"), (json.dumps(beyond).encode(), "vocab_size")):
            requests = write_requests(self.fresh(".jsonl"), [{"tokens": [1]}])
            results = self.fresh("-results.jsonl")
            outcome = ptrt("generate", self.make(blob, [0, 1]), requests, "-o", results)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertEqual(len(outcome.errors), 1, outcome.output)
            self.assertIn(word, outcome.errors[0])
            self.assertIn("/tokenizer/model", outcome.errors[0])
            self.assertFalse(results.exists())


if __name__ == "__main__":
    unittest.main()
