#!/usr/bin/env python3
"""ptrt_torch.tokenizer: the ids and texts of the program, from every kind of tokenizer. Needs torch and transformers."""

import json
import unittest
from pathlib import Path

import engine_environment

engine_environment.need("torch", "transformers", "h5py")

import h5py  # noqa: E402
import torch  # noqa: E402
from ptrt_cli import CliTest, ptrt, read_results, write_requests  # noqa: E402
from ptrt_torch import BadInput, FoldedModel, ShardReader  # noqa: E402
from ptrt_torch.tokenizer import hf_tokenizer  # noqa: E402
from stand_in_attention import Engine  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

from model_maker import make_config, write_random  # noqa: E402

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
TEXTS = ["Add 36 and 72.\n", "", "a  b\t\n\nc", "naïve — ‘quotes’ , . ! don 't", "日本語 🙂", "<|257|> in a text",
         "x" * 300]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
torch.set_num_threads(1)


def byte_level() -> Tokenizer:
    """A byte-level BPE trained on this file, whose post_processor adds what ptrt does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", "<user>", "<assistant>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(Path(__file__).read_text(encoding="utf-8").splitlines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding()
    return tokenizer


class Tokenizers(CliTest):

    def scored(self, path, texts: list[str]) -> list[list[int]]:
        """The program's ids of texts, bos included."""
        lines, out = [{"prompt": text + "."} for text in texts], self.fresh(".jsonl")
        self.assert_done(ptrt("score", path, write_requests(self.fresh(".jsonl"), lines), "-o", out, "--quiet"))
        return [line["tokens"] for line in read_results(out)]

    def agrees(self, path, texts: list[str], bos: bool) -> None:
        tokenizer = hf_tokenizer(path)
        for text, want in zip(texts, self.scored(path, texts)):
            got = tokenizer.encode(text + ".")
            self.assertEqual(got, want, text)
            self.assertEqual(tokenizer.encode(text + ".", add_special_tokens=False), want[bos:])
            self.assertEqual(tokenizer.decode(got, skip_special_tokens=True), text + ".")

    def test_bytes(self) -> None:
        config = make_config(vocab_size=300, max_context=1024)
        for bos in (None, 256):
            path = write_random(self.fresh(".h5"), {**config, "bos_token_id": bos, "eos_token_ids": [258, 257]})
            # To the program a name of a special token in a prompt is text; here it is that token.
            self.agrees(path, [text for text in TEXTS if "<|257|>" not in text], bos is not None)
            tokenizer = hf_tokenizer(path)
            self.assertEqual((tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)), (bos, 258, 300))
            self.assertEqual(tokenizer.encode("<|257|>", add_special_tokens=False), [257])
            self.assertEqual(tokenizer.model_max_length, 1024)

    def test_huggingface(self) -> None:
        stored = byte_level()
        config = make_config(vocab_size=stored.get_vocab_size() + 3, max_context=1024)
        for bos in (None, 0):
            path = write_random(self.fresh(".h5"), {**config, "bos_token_id": bos, "eos_token_ids": [1]}, tokenizer="huggingface",
                                tokenizer_model=stored.to_str().encode())
            self.agrees(path, TEXTS, bos is not None)
            self.assertEqual(hf_tokenizer(path).encode("a</s>", add_special_tokens=False)[-1], 1)

    def test_chat_templates(self) -> None:
        stored = byte_level()
        path = write_random(self.fresh(".h5"), make_config(vocab_size=400, bos_token_id=0, eos_token_ids=[1]),
                            tokenizer="huggingface", tokenizer_model=stored.to_str().encode())
        self.assertIsNone(hf_tokenizer(path).chat_template)
        with h5py.File(path, "r+") as file:
            file["tokenizer"].attrs["chat_template"] = TEMPLATE
        chat = [{"role": "user", "content": "What is 3 + 4?"}]
        tokens = hf_tokenizer(path).apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        out = self.fresh(".jsonl")
        self.assert_done(ptrt("score", path, write_requests(self.fresh(".jsonl"), [{"messages": chat}]), "-o", out, "--quiet"))
        self.assertEqual(read_results(out)[0]["tokens"], tokens)

    def test_the_demo_answers_as_the_program(self) -> None:
        out = self.fresh(".jsonl")
        self.assert_done(ptrt("generate", DEMO / "demo.h5", DEMO / "prompts.jsonl", "-o", out, "--compute", "float32", "--quiet"))
        with ShardReader(DEMO / "demo.h5", range(8)) as reader:
            made = Engine(lambda attention: FoldedModel(reader.config, reader.tracks, attention=attention))
            made.model.load(reader)
        tokenizer = hf_tokenizer(DEMO / "demo.h5")
        for line, result in zip((DEMO / "prompts.jsonl").read_text().splitlines(), read_results(out), strict=True):
            tokens = made.greedy(tokenizer.encode(json.loads(line)["prompt"]), 16)
            self.assertEqual(tokens, result["tokens"])
            self.assertEqual(tokenizer.decode(tokens, skip_special_tokens=True), result["text"])

    def test_what_is_refused(self) -> None:
        def refused(word: str, **how) -> None:
            config = make_config(**{"bos_token_id": 0, **how.pop("config", {})})
            with self.assertRaisesRegex(BadInput, word):
                hf_tokenizer(write_random(self.fresh(".h5"), config, **how))

        stored = byte_level()
        refused("no tokenizer", tokenizer=None)
        refused("kind \"sentencepiece\"", tokenizer="sentencepiece", tokenizer_model=b"x")
        refused("at least 256", config={"vocab_size": 200})
        refused("no tokenizer.json", tokenizer="huggingface", tokenizer_model=b"{}")
        refused("token 399 is not below vocab_size 259", tokenizer="huggingface", tokenizer_model=stored.to_str().encode())
        refused("no token has the id 401 of the config's eos_token", config={"vocab_size": 402, "eos_token_ids": [401]},
                tokenizer="huggingface", tokenizer_model=stored.to_str().encode())


if __name__ == "__main__":
    unittest.main()
