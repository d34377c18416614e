#!/usr/bin/python3
"""convert_gguf.py against transformers with the same weights, and the tokenizers that it rebuilds."""

import json
import shutil
import unittest
import zipfile

from conversions import CHECKPOINTS, HERE, ConvertTest, attribute, config_of, convert, goldens

import h5py
import numpy as np

from convert.errors import BadInput
from convert.gguf_file import _quantised
from convert.gguf_tokenizer import bos_and_eos, build

try:
    import gguf.quants
except ImportError:
    gguf = None

TOLERANCE = 1e-4
VISIBLE = 0.01
FILES = HERE / "gguf_files"
NEEDED = {"llama": [{"rope_scaling": ...}, {"rope_theta": 5000.0}],
          "qwen2": [{"attention_bias": ...}, {"rope_scaling": ...}],
          "qwen3": [{"qk_norm": False}, {"rope_scaling": ...}, {"rope_scaling.original_max_position": 96}]}


def texts_of(name: str) -> list[dict]:
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))["texts"]


class Models(ConvertTest):
    def run_model(self, name: str) -> None:
        texts = texts_of(name)
        model = self.converted(FILES / f"{name}.gguf", script="convert_gguf.py")
        self.assertLessEqual(self.worst(model, texts, "--compute", "float32"), TOLERANCE)
        self.check_greedy(model, texts)
        worst = self.worst(model, texts, "--compute", "float32", "--tensor-parallel", "2", ranks=2)
        self.assertLessEqual(worst, TOLERANCE)
        for changes in NEEDED[name]:
            with self.subTest(f"a key that it needs: {changes}"):
                edited = self.edited(model, **changes)
                self.assertGreaterEqual(self.worst(edited, texts, "--compute", "float32"), VISIBLE)
        config = config_of(model)
        self.assertEqual(config["name"], f"tiny {name}")
        self.assertEqual((config["bos_token_id"], config["eos_token_ids"]), (0 if name == "llama" else None, [1]))
        with h5py.File(model) as file:
            self.assertEqual(attribute(file["tokenizer"], "chat_template"), f"{{{{ messages[0].content }}}} {name} ü")

    def test_llama_in_float16(self):
        """Rows of q and k are put back; llama3 scaling is found in rope_freqs.weight."""
        self.run_model("llama")
        model = self.converted(FILES / "llama.gguf", script="convert_gguf.py")
        self.assertEqual(config_of(model)["rope_scaling"], {
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position": 8192})

    def test_qwen3_in_bfloat16_and_float16(self):
        self.run_model("qwen3")

    @unittest.skipIf(gguf is None, "the Python package gguf is not installed: no quantised tensors")
    def test_qwen2_quantised(self):
        self.run_model("qwen2")

    @unittest.skipIf(gguf is None, "the Python package gguf is not installed: no quantised tensors")
    def test_every_quantised_type(self):
        """Slices of rows are those of the whole, in every type that the package dequantises."""
        path, known = self.fresh(".bin"), 0
        for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
            rows, row = 5, np.random.default_rng(int(kind)).integers(0, 60, 2 * size * 5, dtype=np.uint8)
            path.write_bytes(bytes(32) + row.tobytes())
            try:
                whole = gguf.quants.dequantize(row.reshape(rows, -1), kind)
                tensor, length = _quantised(path, "t", (rows, 2 * block), int(kind), 32)
            except (NotImplementedError, BadInput):
                continue
            known += 1
            self.assertEqual(length, row.size)
            for first, last in ((0, 5), (0, 1), (2, 4), (4, 5)):
                np.testing.assert_array_equal(tensor.read(first, last), whole[first:last].astype(np.float32), str(kind))
        self.assertGreater(known, 20)

    @unittest.skipIf(gguf is not None, "the Python package gguf is installed")
    def test_quantised_tensors_need_the_package(self):
        target = self.fresh(".h5")
        self.assert_refused(convert("convert_gguf.py", FILES / "qwen2.gguf", "-o", target), target, "pip install gguf")

    def test_archive(self):
        """A .whl or .zip that holds one GGUF file gives the same model."""
        direct = self.converted(FILES / "llama.gguf", script="convert_gguf.py")
        archive = self.fresh("-package.whl")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(FILES / "llama.gguf", "package/llama.gguf")
            file.writestr("package/__init__.py", "")
        self.assertEqual(self.converted(archive, script="convert_gguf.py").read_bytes(), direct.read_bytes())

    def test_a_tokenizer_of_its_own(self):
        path = CHECKPOINTS / "tokenizers" / "qwen" / "tokenizer.json"
        model = self.converted(FILES / "llama.gguf", "--tokenizer", path, script="convert_gguf.py")
        with h5py.File(model) as file:
            self.assertEqual(file["tokenizer/model"][()].tobytes(), path.read_bytes())


class Tokenizers(ConvertTest):
    """tokenizer.json from metadata."""

    def metadata(self, **changes) -> dict:
        made = json.loads((CHECKPOINTS / "tokenizers" / "qwen" / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
        special = {token["content"] for token in made["added_tokens"]}
        found = {"model": "gpt2", "pre": "qwen2", "tokens": tokens,
                 "token_type": [3 if token in special else 1 for token in tokens],
                 "merges": [" ".join(merge) for merge in made["model"]["merges"]]}
        return {f"tokenizer.ggml.{key}": value for key, value in (found | changes).items() if value is not None}

    def ids(self, metadata: dict, texts: list[str]) -> list[list[int]]:
        """Ids that the program gives the texts with the rebuilt tokenizer."""
        folder = self.checkpoint("qwen3")
        (folder / "tokenizer.json").write_text(json.dumps(build(metadata, "x.gguf")), encoding="utf-8")
        model = self.converted(folder)
        return [line["tokens"] for line in self.lines("score", model, [{"prompt": text} for text in texts], "--quiet")]

    def test_qwen2(self):
        texts = goldens("qwen3")["texts"]
        self.assertEqual(self.ids(self.metadata(), [row["text"] for row in texts]), [row["ids"] for row in texts])

    def test_pre_tokenizers(self):
        """Where each one cuts: a token for every cut, so that the ids show them."""
        cuts = {
            "smollm": {"a12b": ["a", "1", "2", "b"], "x  yy": ["x", "Ġ", "Ġyy"], "it's": ["it", "'s"]},
            "gpt-2": {"a12b": ["a", "12", "b"], "x  yy": ["x", "Ġ", "Ġyy"], "it's": ["it", "'s"]},
            "llama-bpe": {"1234": ["123", "4"], "it'S": ["it", "'S"], "a\n\nb": ["a", "ĊĊ", "b"], "(yy": ["(yy"]},
            "qwen2": {"1234": ["1", "2", "3", "4"], "it'S": ["it", "'S"], "(yy": ["(yy"]},
            "default": {"12345": ["123", "4", "5"], "a++b": ["a", "++", "b"], "it's": ["it", "'", "s"],
                        " yy": ["Ġyy"]},
        }
        for pre, texts in cuts.items():
            metadata = self.metadata(pre=pre)
            tokens = metadata["tokenizer.ggml.tokens"][:3 + 256]  # special ones and bytes
            merges = []
            # Merges that make each piece, and what lies across a cut as well: the cuts must keep them apart.
            words = {"".join(pieces) for pieces in texts.values()}
            for word in sorted(words.union(*texts.values())):
                merges += [f"{word[:i]} {word[i]}" for i in range(1, len(word))]
            merges = list(dict.fromkeys(merges))
            tokens += [token for token in dict.fromkeys(m.replace(" ", "") for m in merges) if token not in tokens]
            metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges,
                         "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3)}
            for (text, pieces), ids in zip(texts.items(), self.ids(metadata, list(texts))):
                with self.subTest(f"{pre}: {text!r}"):
                    self.assertEqual([tokens[i] for i in ids if i > 2], pieces)

    def test_kinds_of_tokens(self):
        """Control tokens are special, user-defined ones are not, and unused ones are left out."""
        metadata = self.metadata()
        metadata["tokenizer.ggml.tokens"] += ["<tool>", "[PAD0]"]
        metadata["tokenizer.ggml.token_type"] += [4, 5]
        made = build(metadata, "x.gguf")
        special = {token["content"]: token["special"] for token in made["added_tokens"]}
        self.assertEqual(special, {"<s>": True, "</s>": True, "<unk>": True, "<tool>": False})
        self.assertNotIn("[PAD0]", made["model"]["vocab"])

    def test_bos_and_eos(self):
        metadata = self.metadata(bos_token_id=0, eos_token_id=1, eot_token_id=2, add_bos_token=None)
        self.assertEqual(bos_and_eos(metadata, 320, "x"), (None, [1, 2]))
        for pre, asked, bos in (("llama-bpe", None, 0), ("llama-bpe", False, None), ("qwen2", True, 0)):
            metadata = self.metadata(bos_token_id=0, pre=pre, add_bos_token=asked)
            self.assertEqual(bos_and_eos(metadata, 320, "x")[0], bos)

    def test_refused(self):
        for changes, words in (({"pre": "klingon"}, "--tokenizer"), ({"merges": None}, "merges"),
                               ({"token_type": [1]}, "token_type"), 
                               ({"tokens": ["a", "a"], "token_type": [1, 1]}, "twice")):
            with self.assertRaisesRegex(BadInput, words):
                build(self.metadata(**changes), "x.gguf")


class Refused(ConvertTest):
    def refuse(self, path, *words, options=()) -> None:
        target = self.fresh(".h5")
        self.assert_refused(convert("convert_gguf.py", path, "-o", target, *options), target, *words)

    def changed(self, old: bytes, new: bytes):
        """llama.gguf with other bytes of the same length."""
        data = (FILES / "llama.gguf").read_bytes()
        self.assertIn(old, data)
        self.assertEqual(len(old), len(new))
        path = self.fresh(".gguf")
        path.write_bytes(data.replace(old, new, 1))
        return path

    def test_truncated(self):
        data = (FILES / "llama.gguf").read_bytes()
        for length in (0, 3, 8, 20, 100, 1000, 9000, len(data) // 2, len(data) - 1):
            path = self.fresh(".gguf")
            path.write_bytes(data[:length])
            self.refuse(path, str(path), "no GGUF" if length < 4 else "truncated")

    def test_what_is_not_understood(self):
        self.refuse(self.changed(b"llama.rope.freq_base", b"llama.rope.freq_bass"), "llama.rope.freq_bass",
                    "--ignore-key")
        self.refuse(self.changed(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"), "gemma", "architecture")
        self.refuse(self.changed(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert"), "--tokenizer")
        self.refuse(self.changed(b"llama-bpe", b"llama-xyz"), "llama-xyz", "--tokenizer")
        self.refuse(self.changed(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"), "blk.1.ffn_up.weight", "missing")
        self.refuse(self.changed(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"), "blk.1.ffn_up.weight", "missing")

    def test_archives(self):
        empty, damaged = self.fresh("-empty.zip"), self.fresh("-damaged.zip")
        with zipfile.ZipFile(empty, "w") as file:
            file.writestr("readme", "")
        self.refuse(empty, "expected one GGUF file", "found 0")
        with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(FILES / "llama.gguf", "a.gguf")
        data = bytearray(damaged.read_bytes())
        data[2000:2010] = bytes(10)
        damaged.write_bytes(data)
        self.refuse(damaged, str(damaged), "damaged")

    def test_other_files(self):
        self.refuse(self.dir / "nothing.gguf", "no such file")
        path = self.fresh(".txt")
        path.write_text("some text")
        self.refuse(path, "no GGUF")
        shutil.copy(FILES / "llama.gguf", path)
        done = convert("convert_gguf.py", path, "-o", path)
        self.assertEqual(done.returncode, 2)
        self.assertIn("overwrite", done.stderr)
        self.assertEqual(path.read_bytes(), (FILES / "llama.gguf").read_bytes())


if __name__ == "__main__":
    unittest.main(verbosity=1)
