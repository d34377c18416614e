#!/usr/bin/python3
"""float8 files: what quantize writes, that the CPU computes with what they stand for, and what is refused."""

import json
import re
import shutil
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import CliTest, Outcome, attribute, ptrt  # noqa: E402
import pt_reference as ref  # noqa: E402
from crc32c import crc32c  # noqa: E402
from model_maker import (is_matrix, quantize_float8, random_tensors, tensor_shapes, to_bfloat16,  # noqa: E402
                         write_model, write_random)
from test_quantize import mixed_config, requests  # noqa: E402

TOLERANCE = 1e-3
FP8 = ("--weights", "fp8_e4m3")
NAME = "float8_e4m3fn"
EXPERTS = "/tracks/02/layers/001/experts/w_down"
WQ = "/tracks/01/layers/000/wq"


def float8_datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(f"/{name}") if attribute(item, "dtype") == NAME else None)
    return names


def put(file: h5py.File, name: str, values: np.ndarray, dtype: str | None = None) -> None:
    """Replaces a dataset, or adds it, with its checksum."""
    if name in file:
        del file[name]
    file[name] = values
    file[name].attrs["crc32c"] = np.uint32(crc32c(np.ascontiguousarray(values).tobytes()))
    if dtype:
        file[name].attrs["dtype"] = dtype


def spoil_powers(path: Path) -> None:
    """Scales that are no powers of two."""
    rng = np.random.default_rng(8)
    with h5py.File(path, "r+") as file:
        for name in float8_datasets(file):
            scale = file[f"{name}.scale"][()]
            put(file, f"{name}.scale", (scale * rng.uniform(0.8, 1.25, scale.shape)).astype(np.float32))


def widen(path: Path, out: Path, wide: str) -> Path:
    """The same model with its float8 matrices as bfloat16 (exactly) or float32 (rounded once)."""
    shutil.copy(path, out)
    with h5py.File(out, "r+") as file:
        for name in float8_datasets(file):
            values = ref.widen(file[name])
            del file[f"{name}.scale"]
            single = values.astype(np.float32)
            if wide == "bfloat16":
                bits = to_bfloat16(single)
                assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32), values), name
                put(file, name, bits, "bfloat16")
            else:
                put(file, name, single)
    return out


class Float8(CliTest):
    def quantize(self, model: Path, *options) -> Path:
        folder = self.fresh("-quantized")
        folder.mkdir()
        self.assert_done(ptrt("quantize", model, "-o", folder / "small.h5", *FP8, *options))
        return folder / "small.h5"

    def assert_refused(self, outcome: Outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertRegex(outcome.errors[0], f"(?i){word}")

    def bench(self, model: Path, *options) -> Outcome:
        return ptrt("bench", model, *options, "--input-len", "4", "--output-len", "2", "--requests", "1", "--warmup", "0")

    def products(self, model: Path) -> str:
        figures = self.fresh(".json")
        self.assert_done(self.bench(model, "--json", figures))
        return json.loads(figures.read_text())["compute"]

    def check_file(self, path: Path, source: Path, config: dict) -> None:
        """Matrices as numpy quantises them, everything else unchanged, each dataset with its checksum."""
        wide = ref.load(source)
        with h5py.File(path) as small, h5py.File(source) as original:
            self.assertEqual(json.loads(small.attrs["config"]), config)
            self.assertEqual(attribute(small["tokenizer"], "kind"), attribute(original["tokenizer"], "kind"))
            for name in tensor_shapes(config):
                datasets = [small[name]]
                if is_matrix(name, config):
                    codes, scale = quantize_float8(wide.tensors[name])
                    self.assertEqual(small[name].dtype, np.uint8, name)
                    self.assertEqual(attribute(small[name], "dtype"), NAME)
                    self.assertEqual(small[f"{name}.scale"].dtype, np.float32, name)
                    np.testing.assert_array_equal(small[name][()], codes, name)
                    np.testing.assert_array_equal(small[f"{name}.scale"][()], scale, name)
                    datasets.append(small[f"{name}.scale"])
                else:
                    self.assertEqual(small[name].dtype, original[name].dtype, name)
                    self.assertEqual(small[name][()].tobytes(), original[name][()].tobytes(), name)
                    self.assertEqual(attribute(small[name], "dtype"), attribute(original[name], "dtype"), name)
                    self.assertNotIn(f"{name}.scale", small)
                for dataset in datasets:
                    self.assertEqual(int(dataset.attrs["crc32c"]), crc32c(dataset[()].tobytes()), dataset.name)

    def test_what_is_written(self) -> None:
        for dtype in ("float32", "float16", "bfloat16", "mixed"):
            for tied in (False, True):
                config = mixed_config(tie_embeddings=tied)
                tensors = random_tensors(config, 41)
                tensors[WQ][3] = 0  # a row of zeros, and rows of very different sizes
                tensors[WQ] *= np.float32(2.0) ** np.linspace(-9, 9, len(tensors[WQ]), dtype=np.float32)[:, None]
                model = write_model(self.fresh(".h5"), config, tensors, dtype=dtype, split=tied)
                with self.subTest(dtype=dtype, tied=tied):
                    self.check_file(self.quantize(model), model, config)
                    split = self.quantize(model, "--split")
                    self.check_file(split, model, config)
                    self.assertEqual({file.name for file in split.parent.iterdir()},
                                     {"small.h5", *(f"small.track{t:02d}.h5" for t in range(3))})

    def test_against_the_reference(self) -> None:
        """With scales that are powers of two and with others, of the weights that the file holds."""
        for tied, dtype, powers in ((False, "bfloat16", True), (True, "float32", False)):
            config = mixed_config(tie_embeddings=tied)
            small = self.quantize(write_random(self.fresh(".h5"), config, 43, dtype=dtype))
            if not powers:
                spoil_powers(small)
            model = ref.load(small)
            rows = requests(config["vocab_size"])
            scored = self.lines("score", small, rows, "--compute", "float32")
            for row, line in zip(rows, scored):
                np.testing.assert_allclose(line["logprobs"][1:], ref.score(model, row["tokens"]), atol=TOLERANCE)
            for row, line in zip(rows, self.lines("generate", small, rows, "--compute", "float32")):
                whole = row["tokens"] + line["tokens"]
                np.testing.assert_allclose(line["logprobs"], ref.score(model, whole)[len(row["tokens"]) - 1:],
                                           atol=TOLERANCE)
            self.assertGreater(model.router_margin, 1e-5, "choose another seed: experts nearly tie")

    def test_the_same_as_the_widened_file(self) -> None:
        """Bit for bit, however it is computed and placed."""
        for tied, wide in ((False, "bfloat16"), (True, "bfloat16"), (False, "float32")):
            config = mixed_config(tie_embeddings=tied)
            small = self.quantize(write_random(self.fresh(".h5"), config, 44, dtype="bfloat16"))
            if wide == "float32":
                spoil_powers(small)
            plain = widen(small, self.fresh(".h5"), wide)
            rows = requests(config["vocab_size"])
            for products in ((), ("--compute", "float32"), ("--compute", "bfloat16"), ("--weights", "int8")):
                for ranks, threads in ((None, "2"), (3, "1")):
                    with self.subTest(tied=tied, wide=wide, products=products, ranks=ranks):
                        options = (*products, "--threads", threads, "--vocab-head", "split")
                        expected = self.batch("generate", plain, rows, *options, ranks=ranks)
                        self.assertEqual(self.batch("generate", small, rows, *options, ranks=ranks), expected)
                        self.assertNotIn(b'"error"', expected)

    def test_the_same_on_ranks_that_share_a_track(self) -> None:
        """Rows and columns are cut; KV heads are on one rank, or on two; whole and chunked datasets."""
        for kv_heads, wide, chunked in ((2, "bfloat16", False), (1, "float32", False), (2, "float32", True)):
            config = mixed_config(tracks=1, fusion={"op": "mean", "combine_norm": False}, kv_heads=kv_heads)
            small = self.quantize(write_random(self.fresh(".h5"), config, 45, dtype="bfloat16"))
            if wide == "float32":
                spoil_powers(small)
            plain = widen(small, self.fresh(".h5"), wide)
            if chunked:
                with h5py.File(small, "r+") as file:
                    for name in float8_datasets(file):
                        for part in (name, f"{name}.scale"):
                            values, attributes = file[part][()], dict(file[part].attrs)
                            del file[part]
                            file.create_dataset(part, data=values, chunks=True, compression="gzip").attrs.update(attributes)
            rows = requests(config["vocab_size"])
            with self.subTest(kv_heads=kv_heads, wide=wide, chunked=chunked):
                options = ("--tensor-parallel", "2", "--threads", "1")
                expected = self.batch("generate", plain, rows, *options, ranks=2)
                self.assertEqual(self.batch("generate", small, rows, *options, ranks=2), expected)
                self.assertNotIn(b'"error"', expected)

    def test_damage_on_ranks_that_share_a_track(self) -> None:
        """Each rank reads a part of the rows or columns; wo's scales are read by both."""
        config = mixed_config(tracks=1, fusion={"op": "mean", "combine_norm": False})
        small = self.quantize(write_random(self.fresh(".h5"), config, 46))
        for name in ("/tracks/00/layers/000/wo", "/tracks/00/layers/000/wo.scale", "/tracks/00/layers/001/experts/w_up.scale"):
            damaged = self.fresh(".h5")
            shutil.copy(small, damaged)
            with h5py.File(damaged, "r+") as file:
                values = file[name][()]
                values.flat[-1] = 8 if values.dtype == np.uint8 else 2 * values.flat[-1]
                file[name].write_direct(values)
            outcome = ptrt("bench", damaged, "--tensor-parallel", "2", "--input-len", "4", "--output-len", "2", ranks=2)
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertRegex(outcome.output, f"{name}: expected crc32c")

    def test_inspect(self) -> None:
        """Its figures for CPUs are those of the widened file, but for the bytes in the file."""
        config = mixed_config()
        small = self.quantize(write_random(self.fresh(".h5"), config, 42, dtype="bfloat16"))
        matrices = sum(is_matrix(name, config) for name in tensor_shapes(config))
        for wide in ("bfloat16", "float32"):
            if wide == "float32":
                spoil_powers(small)
            found, plain = ({}, {})
            for figures, path in ((found, small), (plain, widen(small, self.fresh(".h5"), wide))):
                outcome = ptrt("inspect", path, "--json", "--verify")
                self.assert_done(outcome)
                figures |= json.loads(outcome.stdout)
            self.assertEqual(found["datasets"]["by_type"],
                             {"bfloat16": len(tensor_shapes(config)) - matrices, NAME: matrices, "float8 scales": matrices})
            self.assertEqual(found["placements"], plain["placements"])
            for narrow, wider in zip(found["ranks"], plain["ranks"], strict=True):
                narrow_device, wider_device = narrow.pop("device"), wider.pop("device")
                self.assertEqual(narrow, wider)
                self.assertLess(narrow_device["weight_bytes"], wider_device["weight_bytes"], "GPUs keep the codes")
            with h5py.File(small) as file:
                sizes: list[int] = []
                file.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
            self.assertEqual(found["bytes"]["total"], sum(sizes))
        for name, index, value in ((EXPERTS, (2, 0, 0), 8), (f"{EXPERTS}.scale", (2, 0), 4.0)):
            damaged = self.fresh(".h5")
            shutil.copy(small, damaged)
            with h5py.File(damaged, "r+") as file:
                file[name][index] = value
            outcome = ptrt("inspect", damaged, "--verify")
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(f"{name}: expected crc32c", outcome.output)

    def test_memory_and_the_line_of_a_run(self) -> None:
        small = self.quantize(write_random(self.fresh(".h5"), mixed_config(), 47, dtype="bfloat16"))
        plain = widen(small, self.fresh(".h5"), "bfloat16")
        lines = {}
        for path in (small, plain):
            outcome = self.bench(path)
            self.assert_done(outcome)
            lines[path] = re.search(r"a rank holds ([\d.]+ MiB) weights([^,]*)", outcome.output)
        self.assertEqual(lines[small][1], lines[plain][1])
        self.assertIn(f"stored as {NAME}", lines[small][2])
        self.assertNotIn("stored as", lines[plain][2])

    def test_what_auto_computes_in(self) -> None:
        small = self.quantize(write_random(self.fresh(".h5"), mixed_config(), 48, dtype="bfloat16"))
        self.assertEqual(self.products(small), self.products(widen(small, self.fresh(".h5"), "bfloat16")))
        # One matrix whose scales are no powers of two is float32: none is rounded unless requested.
        with h5py.File(small, "r+") as file:
            put(file, f"{EXPERTS}.scale", file[f"{EXPERTS}.scale"][()] * np.float32(0.9))
        self.assertEqual(self.products(small), "float32")

    def test_other_commands(self) -> None:
        config = mixed_config()
        small = self.quantize(write_random(self.fresh(".h5"), config, 50))
        out = self.fresh(".h5")
        self.assert_refused(ptrt("quantize", small, "-o", out, *FP8), small.name, f"{NAME} already")
        self.assert_refused(ptrt("quantize", small, "-o", out, "--weights", "int8"), small.name, f"{NAME} already")
        self.assert_refused(ptrt("pack", small, "-o", out), small.name, "lm_head", "float8", "panels")
        self.assertFalse(out.exists())
        self.assert_done(ptrt("pack", small, "-o", out, "--layout", "rows", "--split"))
        with h5py.File(out) as copy, h5py.File(small) as original:
            for name in tensor_shapes(config):
                for part in (name, f"{name}.scale") if is_matrix(name, config) else (name,):
                    self.assertEqual(copy[part][()].tobytes(), original[part][()].tobytes(), part)
                    self.assertEqual(attribute(copy[part], "dtype"), attribute(original[part], "dtype"), part)
                    self.assertEqual(copy[part].attrs["crc32c"], original[part].attrs["crc32c"], part)

    def test_weights_that_float8_cannot_hold(self) -> None:
        config = mixed_config()
        for value, word in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (3.2e38, "3.2e\\+38")):
            tensors = random_tensors(config, 51)
            tensors["/tracks/02/layers/001/experts/w_up"][2, 41, 70] = value
            model = write_model(self.fresh(".h5"), config, tensors)
            folder = self.fresh("-out")
            folder.mkdir()
            with self.subTest(value=value):
                outcome = ptrt("quantize", model, "-o", folder / "small.h5", *FP8)
                self.assert_refused(outcome, model.name, "/tracks/02/layers/001/experts/w_up", r"\[2, 41, 70\]", word)
                self.assertEqual(list(folder.iterdir()), [], "a file remained")

    def test_files_that_are_refused(self) -> None:
        config = mixed_config()
        good = self.quantize(write_random(self.fresh(".h5"), config, 52))

        def scale_of(file: h5py.File, value: float) -> None:
            scale = file[f"{EXPERTS}.scale"][()]
            scale[2, 71] = value
            put(file, f"{EXPERTS}.scale", scale)

        def code_of(file: h5py.File, value: int) -> None:
            codes = file[EXPERTS][()]
            codes[2, 71, 49] = value
            put(file, EXPERTS, codes, NAME)

        def panels(file: h5py.File) -> None:
            put(file, WQ, np.zeros((5, 72 * 16), np.uint8), NAME)
            file[WQ].attrs["layout"] = "panels16.v1"

        scale = f"{WQ}.scale"
        at_once = (
            ("embedding", lambda f: put(f, "/shared/embedding", np.zeros((259, 72), np.uint8), NAME),
             ("/shared/embedding", "float8 are for matrices", "uint8")),
            ("router", lambda f: put(f, "/tracks/00/layers/001/router", np.zeros((3, 72), np.uint8), NAME),
             ("layers/001/router", "float8 are for matrices")),
            ("norm", lambda f: put(f, "/shared/final_norm", np.zeros(72, np.uint8), NAME), ("/shared/final_norm", "float8")),
            ("no attribute", lambda f: put(f, WQ, f[WQ][()]), (WQ, "uint8", NAME)),
            ("another float8", lambda f: put(f, WQ, f[WQ][()], "float8_e5m2"), (WQ, "float8_e5m2", NAME)),
            ("another integer", lambda f: put(f, WQ, f[WQ][()].astype(np.int16), NAME), (WQ, "int16")),
            ("no scale", lambda f: f.pop(scale), (f"{scale} is missing", NAME)),
            ("scale of another type", lambda f: put(f, scale, f[scale][()].astype(np.float16)),
             (scale, "expected float32", "float16")),
            ("scale of another shape", lambda f: put(f, scale, f[scale][()][:, None]), (scale, r"shape \[72\]", r"\[72, 1\]")),
            ("scale never written", lambda f: (f.pop(scale), f.create_dataset(scale, (72,), "f4")), (scale, "incomplete")),
            ("panels", panels, (WQ, NAME, "int8")),
        )
        values = ((-1.0, "-1"), (-0.0, "-0"), (np.nan, "nan"), (np.inf, "inf"), (2.0 ** 119 * 1.01, "e\\+35"))
        at_once += tuple((f"scale {value}", lambda f, value=value: scale_of(f, value),
                          (f"{EXPERTS}.scale", "row 215", "0 to 2\\^119", f"found {word}")) for value, word in values[:4])
        at_once += (("too large a scale", lambda f: scale_of(f, values[4][0]), (f"{EXPERTS}.scale", "row 215", values[4][1])),)
        for what, change, words in at_once:
            with self.subTest(what):
                bad = self.fresh(".h5")
                shutil.copy(good, bad)
                with h5py.File(bad, "r+") as file:
                    change(file)
                for outcome in (self.bench(bad), ptrt("inspect", bad)):
                    self.assert_refused(outcome, bad.name, *words)
        # What only those who read the matrix can see.
        for code in (0x7F, 0xFF):
            bad = self.fresh(".h5")
            shutil.copy(good, bad)
            with h5py.File(bad, "r+") as file:
                code_of(file, code)
            self.assert_refused(self.bench(bad), bad.name, EXPERTS, "element 49 of row 215 is NaN")
            outcome = ptrt("inspect", bad, "--verify")
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertRegex(outcome.output, rf"{EXPERTS}: 1 element is not finite; the first is \[2, 71, 49\]: -?nan")
            self.assert_refused(ptrt("pack", bad, "-o", self.fresh(".h5"), "--layout", "rows"), EXPERTS, "NaN")
        # Zero is a scale as any other.
        fine = self.fresh(".h5")
        shutil.copy(good, fine)
        with h5py.File(fine, "r+") as file:
            scale_of(file, 0.0)
        self.assert_done(self.bench(fine))

    def test_usage(self) -> None:
        model = write_random(self.fresh(".h5"), mixed_config(), 53)
        for wrong in ("fp8", "fp8_e5m2", NAME):
            self.assert_refused(ptrt("quantize", model, "-o", self.fresh(".h5"), "--weights", wrong), "--weights", wrong)
        self.assert_refused(self.bench(model, *FP8), "--weights", "fp8_e4m3")
        self.assertIn("fp8_e4m3", ptrt("quantize", "--help").stdout)


if __name__ == "__main__":
    unittest.main(verbosity=1)
