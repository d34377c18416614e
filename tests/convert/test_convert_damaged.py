#!/usr/bin/python3
"""Headers of checkpoints changed at random: the converters refuse them with a message or convert them; none crashes."""

import contextlib
import io
import json
import random
import shutil
import unittest

from conversions import CHECKPOINTS, HERE, ConvertTest, goldens

from convert import gguf_model, huggingface
from convert.errors import BadInput

ROUNDS = 300


def mutated(data: bytes, rng: random.Random, first: int, last: int) -> bytes:
    """A few bytes of a range overwritten, removed or repeated."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(first, last), rng.randint(1, 9)
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at + length] = rng.randbytes(length)
        elif kind == 2:
            del changed[at:at + length]
        elif kind == 3:
            changed[at:at] = changed[at:at + length]
        else:
            changed[at:at + 8] = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(changed)


def mutated_json(value, rng: random.Random):
    """The value with one part replaced by something of another kind."""
    strange = [None, True, -1, 0, 7, 1e300, 2**70, "", "x", [], [1], ["x"], {}, {"x": 1}]
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = value.copy()
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        copy[key] = mutated_json(copy[key], rng)
        return copy
    return rng.choice(strange)


class Damaged(ConvertTest):
    def read(self, function, *arguments) -> bool:
        """Whether the model was accepted; its tensors are read then. Notes go nowhere."""
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                _, datasets, *_ = function(*arguments)
                for dataset in datasets:
                    for part in dataset.parts:
                        part.read(0, part.rows)
        except BadInput as error:
            self.assertTrue(str(error))
            return False
        return True

    def test_gguf(self):
        rng, path = random.Random(1), self.fresh(".gguf")
        data = (HERE / "gguf_files" / "llama.gguf").read_bytes()
        refused = 0
        for _ in range(ROUNDS):
            path.write_bytes(mutated(data, rng, 4, 1200 if rng.random() < 0.6 else 12_000))
            refused += not self.read(gguf_model.read_model, path, set(), None)
        self.assertGreater(refused, ROUNDS // 3)

    def test_safetensors(self):
        rng, folder = random.Random(2), self.checkpoint("llama2")
        data = (folder / "model.safetensors").read_bytes()
        refused = 0
        for _ in range(ROUNDS):
            (folder / "model.safetensors").write_bytes(mutated(data, rng, 0, 3000))
            refused += not self.read(huggingface.read_model, folder, set())
        self.assertGreater(refused, ROUNDS // 2)

    def test_json(self):
        rng = random.Random(3)
        for name in ("llama_yarn", "llama3", "qwen2", "qwen3_moe", "gemma3", "smollm3"):
            folder = self.checkpoint(name)
            (folder / "generation_config.json").write_text('{"eos_token_id": [1]}')
            files = [path.name for path in folder.glob("*.json") if "goldens" not in path.name]
            for _ in range(ROUNDS // 5):
                file = rng.choice(files)
                source = CHECKPOINTS / name / file
                if not source.exists():
                    source = CHECKPOINTS / "tokenizers" / goldens(name)["tokenizer"] / file
                text = source.read_text() if source.exists() else '{"eos_token_id": [1]}'
                (folder / file).write_text(json.dumps(mutated_json(json.loads(text), rng)))
                self.read(huggingface.read_model, folder, set())
                if source.exists():
                    shutil.copy(source, folder / file)


if __name__ == "__main__":
    unittest.main(verbosity=1)
