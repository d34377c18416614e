#!/usr/bin/python3
"""pack: what it writes, that every command computes the same from it, and that it detects damage."""

import json
import os
import shutil
import sys
import time
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PATIENCE, SANITIZERS, SLOWNESS, CliTest, Outcome, Running, attribute, ptrt, write_requests  # noqa: E402
from test_quantize import mixed_config, peak_bytes, requests  # noqa: E402
from crc32c import crc32c  # noqa: E402
from model_maker import make_config, tensor_shapes, write_random  # noqa: E402

LAYOUT = "panels16.v1"


def is_multiplied(name: str, config: dict) -> bool:
    """Whether the tensor is an operand of products, so that it is stored in panels."""
    embedding = name == "/shared/embedding"
    return len(tensor_shapes(config)[name]) > 1 and (not embedding or config["tie_embeddings"])


def rows_of_panels(stored: np.ndarray, dtype: str, shape: list[int]) -> tuple[bytes, bytes]:
    """The elements [.., out, in] of [.., panels, bytes], and the scales of int8, as docs/MODEL_FILE.md defines them."""
    outs, width = shape[-2:]

    def rows(lanes: np.ndarray, columns: int) -> bytes:  # [.., panels, n, 16] -> [.., out, columns]
        turned = np.moveaxis(lanes, -1, -2)
        return np.ascontiguousarray(turned.reshape(*shape[:-2], -1, turned.shape[-1])[..., :outs, :columns]).tobytes()

    if dtype in ("float32", "float16"):
        words = stored.view({"float32": np.uint32, "float16": np.uint16}[dtype])
        return rows(words.reshape(*words.shape[:-1], -1, 16), width), b""
    if dtype == "bfloat16":
        pairs = stored.view(np.uint16).reshape(*stored.shape[:-1], -1, 16, 2)
        return rows(np.moveaxis(pairs, -1, -2).reshape(*stored.shape[:-1], -1, 16), width), b""
    groups = -(-width // 32)
    padded = np.zeros((*stored.shape[:-1], -(-groups // 2) * 1088), np.uint8)
    padded[..., :stored.shape[-1]] = stored
    pairs = padded.reshape(*stored.shape[:-1], -1, 1088)
    scales = np.ascontiguousarray(pairs[..., :64]).view(np.uint16).reshape(*stored.shape[:-1], -1, 16)
    fours = pairs[..., 64:].reshape(*stored.shape[:-1], -1, 16, 4)
    elements = np.moveaxis(fours, -1, -2).reshape(*stored.shape[:-1], -1, 16) ^ np.uint8(0x80)
    return rows(elements, width), rows(scales, groups)


class Pack(CliTest):
    def pack(self, model: Path, *options) -> Path:
        folder = self.fresh("-packed")
        folder.mkdir()
        self.assert_done(ptrt("pack", model, "-o", folder / "packed.h5", *options))
        return folder / "packed.h5"

    def assert_refused(self, outcome: Outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertIn(word, outcome.errors[0])

    def models(self, *types: str):
        """Models of every type, tied and not."""
        for seed, dtype in enumerate(types or ("float32", "bfloat16", "float16", "mixed", "int8")):
            config = mixed_config(tie_embeddings=seed % 2 == 1)
            with self.subTest(dtype=dtype):
                yield dtype, config, write_random(self.fresh(".h5"), config, 60 + seed, dtype=dtype)

    def check_file(self, path: Path, source: Path, config: dict) -> None:
        with h5py.File(path) as packed, h5py.File(source) as original:
            self.assertEqual(json.loads(packed.attrs["config"]), config)
            for name in tensor_shapes(config):
                found, expected = packed[name], original[name]
                self.assertEqual(int(found.attrs["crc32c"]), crc32c(found[()].tobytes()), name)
                if not is_multiplied(name, config):
                    self.assertEqual(found[()].tobytes(), expected[()].tobytes(), name)
                    self.assertEqual(attribute(found, "layout"), "rows" if name == "/shared/embedding" else None)
                    continue
                dtype = attribute(expected, "dtype") or expected.dtype.name
                self.assertEqual((attribute(found, "layout"), attribute(found, "dtype")), (LAYOUT, dtype), name)
                self.assertEqual(found.dtype, np.uint8)
                if found.nbytes >= 4096:
                    self.assertEqual(found.id.get_offset() % 4096, 0, name)
                elements, scales = rows_of_panels(found[()], dtype, tensor_shapes(config)[name])
                self.assertEqual(elements, expected[()].tobytes(), name)
                if dtype == "int8":
                    self.assertEqual(scales, original[f"{name}.scale"][()].tobytes(), name)

    def test_what_is_written(self) -> None:
        for _, config, model in self.models():
            self.check_file(self.pack(model), model, config)
            split = self.pack(model, "--split")
            self.check_file(split, model, config)
            self.assertEqual(len(list(split.parent.iterdir())), 1 + config["tracks"])

    def test_the_same_results(self) -> None:
        for dtype, config, model in self.models("float32", "bfloat16", "int8"):
            packed, rows = self.pack(model), requests(config["vocab_size"])
            choices = [(), ("--compute", "float32")] + ([("--weights", "int8")] if dtype != "int8" else [])
            for options in choices:
                expected = self.batch("generate", model, rows, *options)
                self.assertNotIn(b'"error"', expected)
                self.assertEqual(self.batch("generate", packed, rows, *options), expected, options)
            self.assertEqual(self.batch("score", packed, rows), self.batch("score", model, rows))
            # Ranks map the same file; with a split head and shared tracks they read their parts of it.
            self.assertEqual(self.batch("generate", packed, rows, "--vocab-head", "split", ranks=3),
                             self.batch("generate", model, rows))

    def test_ranks_that_share_a_track(self) -> None:
        config = make_config(tracks=1, layers=2, sync_layers=[2], hidden_size=96, head_dim=32, heads=4, kv_heads=2,
                             ffn_size=192, attention_bias=["q", "k", "v", "o"])
        for dtype in ("bfloat16", "int8"):
            model = write_random(self.fresh(".h5"), config, 70, dtype=dtype)
            rows = requests(config["vocab_size"])
            options = ("--tensor-parallel", "2", "--threads", "1")
            self.assertEqual(self.batch("generate", self.pack(model), rows, *options, ranks=2),
                             self.batch("generate", model, rows, *options, ranks=2))

    def test_back_to_rows(self) -> None:
        for _, _, model in self.models():
            plain, again = self.pack(model, "--layout", "rows"), self.pack(self.pack(model), "--layout", "rows")
            self.assertEqual(again.read_bytes(), plain.read_bytes())

    def test_quantizing_a_packed_model(self) -> None:
        model = write_random(self.fresh(".h5"), mixed_config(), 71, dtype="bfloat16")
        outputs = [self.fresh(".h5") for _ in range(2)]
        for source, out in zip((model, self.pack(model)), outputs):
            self.assert_done(ptrt("quantize", source, "-o", out, "--weights", "int8"))
        self.assertEqual(outputs[0].read_bytes(), outputs[1].read_bytes())

    def test_what_is_mapped(self) -> None:
        config = make_config(hidden_size=256, head_dim=64, heads=4, ffn_size=512)
        packed = self.pack(write_random(self.fresh(".h5"), config, 72, dtype="bfloat16"))
        found = json.loads(ptrt("inspect", packed, "--json").stdout)["datasets"]
        self.assertEqual(found["in_panels"], sum(is_multiplied(name, config) for name in tensor_shapes(config)))
        report = self.fresh(".json")
        sizes = ("--input-len", "2", "--output-len", "2", "--requests", "1", "--warmup", "0", "--json", report)
        for compute, least in (("auto", 0.95), ("float32", 0.95), ("int8", 0.0)):
            weights = ("--weights", "int8") if compute == "int8" else ()
            self.assert_done(ptrt("bench", packed, "--compute", compute, *weights, *sizes))
            figures = json.loads(report.read_text())
            share = figures["mapped_weight_bytes"] / figures["weight_bytes"]
            self.assertTrue(least <= share <= (1 if least else 0.5), f"{compute}: {share}")

    def test_the_share_that_is_mapped_is_told(self) -> None:
        """Also if the head is stored in rows."""
        config = make_config(hidden_size=256, head_dim=64, heads=4, ffn_size=512, tie_embeddings=False)
        model = write_random(self.fresh(".h5"), config, 77, dtype="bfloat16")
        packed, name = self.pack(model), "/shared/lm_head"
        with h5py.File(packed, "r+") as file, h5py.File(model) as original:
            del file[name]
            original.copy(name, file, name)
        sizes = ("--input-len", "2", "--output-len", "2", "--requests", "1", "--warmup", "0")
        tied = write_random(self.fresh(".h5"), config | {"tie_embeddings": True}, 77, dtype="bfloat16")
        for path, told in ((packed, True), (model, True), (tied, False)):
            outcome = ptrt("bench", path, *sizes)
            self.assert_done(outcome)
            self.assertEqual("% mapped)" in outcome.output, told, outcome.output)

    def test_a_plain_table_is_mapped(self) -> None:
        """It is mapped if its elements are stored as a processor reads them; else it is read, with the same results."""
        config = make_config(hidden_size=256, head_dim=64, heads=4, ffn_size=512, tie_embeddings=False)
        model, odd = write_random(self.fresh(".h5"), config, 78, dtype="bfloat16"), self.fresh(".h5")
        name = "/shared/embedding"
        shutil.copy(model, odd)
        with h5py.File(odd, "r+") as file, h5py.File(model) as original:
            file.move(name, "old")  # deleted, it would make room for the copy
            file.create_dataset("filler", data=np.zeros(1, np.uint8))
            original.copy(name, file, name)
            self.assertEqual(file[name].id.get_offset() % 2, 1)
        sizes = ("--input-len", "2", "--output-len", "2", "--requests", "1", "--warmup", "0", "--json")
        rows, lines = write_requests_of_one(self.fresh(".jsonl")), []
        for path, mapped in ((model, True), (odd, False)):
            report, results = self.fresh(".json"), self.fresh(".jsonl")
            self.assert_done(ptrt("bench", path, *sizes, report))
            table = config["vocab_size"] * config["hidden_size"] * 2
            self.assertEqual(json.loads(report.read_text())["mapped_weight_bytes"], table if mapped else 0)
            self.assert_done(ptrt("generate", path, rows, "-o", results))
            lines.append(results.read_text())
        self.assertEqual(*lines)

    def test_a_dataset_in_another_file(self) -> None:
        """A link to a dataset is followed, and its bytes are those of its own file."""
        config = make_config(hidden_size=64, tie_embeddings=False)
        whole, linked, other = (self.fresh(".h5") for _ in range(3))
        write_random(whole, config, 80)
        shutil.copy(whole, linked)
        names = ("/shared/embedding", "/tracks/00/layers/000/wq")
        with h5py.File(whole) as source, h5py.File(linked, "r+") as file, h5py.File(other, "w") as target:
            for number, name in enumerate(names):
                source.copy(name, target, f"d{number}")
                del file[name]
                file[name] = h5py.ExternalLink(other.name, f"/d{number}")
        rows, lines = write_requests_of_one(self.fresh(".jsonl")), []
        for path in (whole, linked):
            results = self.fresh(".jsonl")
            self.assert_done(ptrt("generate", path, rows, "-o", results))
            lines.append(results.read_text())
        self.assertEqual(*lines)

    def test_damage_in_a_plain_table(self) -> None:
        config = make_config(tie_embeddings=False)
        model = write_random(self.fresh(".h5"), config, 79, dtype="bfloat16")
        with h5py.File(model) as file:
            at = file["/shared/embedding"].id.get_offset() + file["/shared/embedding"].nbytes - 3
        flip_bit(model, at)
        rows = write_requests_of_one(self.fresh(".jsonl"))
        self.assert_refused(ptrt("generate", model, rows, "-o", self.fresh(".jsonl")), "/shared/embedding", "crc32c")

    def test_damage(self) -> None:
        config = mixed_config()
        for dtype in ("bfloat16", "int8"):
            packed = self.pack(write_random(self.fresh(".h5"), config, 73, dtype=dtype))
            for name in ("/tracks/02/layers/001/experts/w_down", "/tracks/00/layers/000/wq", "/shared/lm_head"):
                damaged = self.fresh(".h5")
                shutil.copy(packed, damaged)
                with h5py.File(damaged) as file:
                    at = file[name].id.get_offset() + file[name].nbytes - 70
                flip_bit(damaged, at)
                rows = write_requests_of_one(self.fresh(".jsonl"))
                self.assert_refused(ptrt("generate", damaged, rows, "-o", self.fresh(".jsonl")), name, "crc32c")
                self.assertIn(f"{name}: expected crc32c", ptrt("inspect", damaged, "--verify").output)
            for bytes_left in (packed.stat().st_size - 1000, 3000):
                cut = self.fresh(".h5")
                shutil.copy(packed, cut)
                os.truncate(cut, bytes_left)
                rows = write_requests_of_one(self.fresh(".jsonl"))
                self.assert_refused(ptrt("generate", cut, rows, "-o", self.fresh(".jsonl")), cut.name)

    def test_damage_while_mapped(self) -> None:
        """A file that is truncated during a run ends it with a message."""
        config = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=256, head_dim=64, ffn_size=512)
        model = write_random(self.fresh(".h5"), config, 76, dtype="bfloat16")
        rows = write_requests(self.fresh(".jsonl"), [{"tokens": [index, 3], "max_tokens": 200} for index in range(100)])
        for ranks in (None, 2):
            packed, results = self.pack(model), self.fresh(".jsonl")
            journal = Path(f"{results}.partial")
            running = Running(["generate", packed, rows, "-o", results, "--max-batch", "2"], ranks,
                              {"PTRT_FAULT": "rank=0,at=step,pause_ms=3"})
            deadline = time.monotonic() + PATIENCE * SLOWNESS
            while time.monotonic() < deadline and running.process.poll() is None:
                if journal.exists() and journal.read_bytes().count(b"\n") > 2:
                    break
                time.sleep(0.01)
            os.truncate(packed, 4096)
            outcome = running.finish()
            self.assertFalse(outcome.timed_out, outcome.output)
            self.assertGreater(outcome.status, 0, outcome.output)
            self.assertTrue(outcome.errors, outcome.output)
            expected = "ptrt: error: a mapped" if ranks is None else r"ptrt: rank [01] of 2 \(.*\): error: a mapped"
            for line in outcome.errors:
                self.assertRegex(line, f"^{expected} model file could not be read")
            self.assertFalse(results.exists())

    def test_an_unknown_layout(self) -> None:
        packed = self.pack(write_random(self.fresh(".h5"), mixed_config(), 74))
        with h5py.File(packed, "r+") as file:
            file["/tracks/01/layers/000/wk"].attrs["layout"] = "panels32.v1"
        self.assert_refused(ptrt("inspect", packed), "/tracks/01/layers/000/wk", "panels32.v1", LAYOUT)

    def test_the_model_itself_is_never_overwritten(self) -> None:
        model = write_random(self.fresh(".h5"), mixed_config(), 75)
        before = model.read_bytes()
        self.assert_refused(ptrt("pack", model, "-o", model), "overwrite", model.name)
        self.assertEqual(model.read_bytes(), before)

    @unittest.skipIf(SANITIZERS, "sanitizers keep memory of their own")
    def test_memory(self) -> None:
        """Neither packing nor mapping holds the model in memory twice."""
        def made(**shape) -> tuple[Path, Path]:
            text, model, packed = self.fresh(".json"), self.fresh(".h5"), self.fresh(".h5")
            text.write_text(json.dumps(make_config(hidden_size=288, head_dim=32, **shape)))
            self.assert_done(ptrt("init", text, "-o", model))
            return model, packed

        tiny, tiny_packed = made(vocab_size=300)
        model, packed = made(vocab_size=40000, ffn_size=20000)
        weights = json.loads(ptrt("inspect", model, "--json").stdout)["bytes"]["total"]
        # The model, 90 MB, takes no more than a few buffers beside the program and its libraries.
        packing = [peak_bytes("pack", file, "-o", to) for file, to in ((tiny, tiny_packed), (model, packed))]
        self.assertLess(packing[1] - packing[0], 16 << 20)
        sizes = ("--input-len", "1", "--output-len", "1", "--requests", "1", "--warmup", "0", "--max-batch", "1", "--quiet")
        peaks = [peak_bytes("bench", file, *sizes) for file in (model, packed)]
        self.assertLess(peaks[1], peaks[0] + weights // 10)


def flip_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def write_requests_of_one(path: Path) -> Path:
    path.write_text('{"tokens": [1], "max_tokens": 1}\n')
    return path


if __name__ == "__main__":
    unittest.main(verbosity=1)
