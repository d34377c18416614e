#!/usr/bin/python3
"""quantize: what it writes, that the program computes with it, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import PTRT, CliTest, Outcome, attribute, ptrt  # noqa: E402
import pt_reference as ref  # noqa: E402
from crc32c import crc32c  # noqa: E402
from model_maker import is_matrix, make_config, quantize, random_tensors, tensor_shapes, write_model, write_random  # noqa: E402

TOLERANCE = 1e-3
INT8 = ("--weights", "int8")


def mixed_config(**changes) -> dict:
    """Rows that do not fill their last group, experts, tracks, biases."""
    return make_config(**{"tracks": 3, "layers": 3, "sync_layers": [1, 3], "hidden_size": 72, "head_dim": 18,
                          "ffn_size": 100, "qk_norm": True, "ffn_pattern": ["dense", "moe"],
                          "moe": {"experts": 3, "top_k": 2, "ffn_size": 50, "router_logit_cap": 4.0},
                          "attention_bias": ["q", "k", "v", "o"], "fusion": {"op": "mean", "combine_norm": True}, "tie_embeddings": False,
                          "bos_token_id": 256, "eos_token_ids": [257], **changes})


def requests(vocab: int) -> list[dict]:
    rng = np.random.default_rng(5)
    rows: list[dict] = [{"tokens": [int(t) for t in rng.integers(0, vocab, size=length)], "max_tokens": 20,
                         "logprobs": True} for length in (1, 17, 40, 90)]
    rows[1] |= {"temperature": 0.9, "seed": 3}
    rows[2] |= {"temperature": 1.1, "top_p": 0.9}
    return rows


# A process starts with the peak of the one that it was forked from, so a small one starts the program.
MEASURED_RUN = ("import os, sys\n"
                "child = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])\n"
                "_, status, usage = os.wait4(child, 0)\n"
                "print(usage.ru_maxrss * 1024)\n"
                "sys.exit(os.waitstatus_to_exitcode(status) != 0)\n")


def peak_bytes(*arguments) -> int:
    """Largest resident set of one run of the program, which must succeed."""
    command = [sys.executable, "-I", "-S", "-c", MEASURED_RUN, str(PTRT), *map(str, arguments)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


class Quantize(CliTest):
    def quantize(self, model: Path, *options) -> Path:
        folder = self.fresh("-quantized")
        folder.mkdir()
        self.assert_done(ptrt("quantize", model, "-o", folder / "small.h5", *INT8, *options))
        return folder / "small.h5"

    def assert_refused(self, outcome: Outcome, *words: str) -> None:
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, outcome.output)
        for word in words:
            self.assertRegex(outcome.errors[0], f"(?i){word}")

    def check_file(self, path: Path, source: Path, config: dict) -> None:
        """Matrices as numpy quantises them, everything else unchanged, each dataset with its checksum."""
        wide = ref.load(source)
        with h5py.File(path) as small, h5py.File(source) as original:
            self.assertEqual(json.loads(small.attrs["config"]), config)
            self.assertEqual(attribute(small, "format"), "ptrt")
            self.assertEqual(int(small.attrs["format_version"]), 1)
            self.assertEqual(attribute(small["tokenizer"], "kind"), attribute(original["tokenizer"], "kind"))
            for name in tensor_shapes(config):
                if is_matrix(name, config):
                    q, scale = quantize(wide.tensors[name])
                    self.assertEqual(small[name].dtype, np.int8, name)
                    self.assertEqual(small[f"{name}.scale"].dtype, np.float16, name)
                    np.testing.assert_array_equal(small[name][()], q, name)
                    np.testing.assert_array_equal(small[f"{name}.scale"][()], scale, name)
                    datasets = [small[name], small[f"{name}.scale"]]
                else:
                    self.assertEqual(small[name].dtype, original[name].dtype, name)
                    self.assertEqual(small[name][()].tobytes(), original[name][()].tobytes(), name)
                    self.assertEqual(attribute(small[name], "dtype"), attribute(original[name], "dtype"), name)
                    self.assertNotIn(f"{name}.scale", small)
                    datasets = [small[name]]
                for dataset in datasets:
                    self.assertEqual(int(dataset.attrs["crc32c"]), crc32c(dataset[()].tobytes()), dataset.name)

    def test_what_is_written(self) -> None:
        for dtype in ("float32", "float16", "bfloat16", "mixed"):
            for tied in (False, True):
                config = mixed_config(tie_embeddings=tied)
                model = write_random(self.fresh(".h5"), config, 41, dtype=dtype, split=tied)
                with self.subTest(dtype=dtype, tied=tied):
                    whole = self.quantize(model)
                    self.check_file(whole, model, config)
                    self.assertEqual([file.name for file in whole.parent.iterdir()], ["small.h5"])
                    split = self.quantize(model, "--split")
                    self.check_file(split, model, config)
                    self.assertEqual({file.name for file in split.parent.iterdir()},
                                     {"small.h5", *(f"small.track{t:02d}.h5" for t in range(3))})

    def test_inspect(self) -> None:
        config = mixed_config()
        small = self.quantize(write_random(self.fresh(".h5"), config, 42, dtype="bfloat16"))
        matrices = sum(is_matrix(name, config) for name in tensor_shapes(config))
        outcome = ptrt("inspect", small, "--json", "--verify")
        self.assert_done(outcome)
        found = json.loads(outcome.stdout)
        self.assertEqual(found["datasets"]["by_type"],
                         {"bfloat16": len(tensor_shapes(config)) - matrices, "int8": matrices,
                          "int8 scales": matrices})
        with h5py.File(small) as file:
            sizes: list[int] = []
            file.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
        self.assertEqual(found["bytes"]["total"], sum(sizes))
        for name in ("/tracks/02/layers/001/experts/w_down", "/tracks/02/layers/001/experts/w_down.scale"):
            damaged = self.fresh(".h5")
            shutil.copy(small, damaged)
            with h5py.File(damaged, "r+") as file:
                file[name][2, 0, 0] += 1
            outcome = ptrt("inspect", damaged, "--verify")
            self.assertEqual(outcome.status, 2, outcome.output)
            self.assertIn(f"{name}: expected crc32c", outcome.output)

    def test_against_the_reference(self) -> None:
        for tied, dtype in ((False, "bfloat16"), (True, "float32")):
            config = mixed_config(tie_embeddings=tied)
            small = self.quantize(write_random(self.fresh(".h5"), config, 43, dtype=dtype), "--split")
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

    def test_the_same_as_on_load(self) -> None:
        for tied, dtype in ((False, "bfloat16"), (True, "bfloat16"), (True, "float16")):
            config = mixed_config(tie_embeddings=tied)
            model = write_random(self.fresh(".h5"), config, 44, dtype=dtype)
            small = self.quantize(model)
            rows = requests(config["vocab_size"])
            for products in ((), ("--compute", "float32"), ("--compute", "int8")):
                for ranks, threads in ((None, "2"), (3, "1")):
                    with self.subTest(tied=tied, dtype=dtype, products=products, ranks=ranks):
                        options = (*products, "--threads", threads)
                        on_load = self.batch("generate", model, rows, *INT8, *options, ranks=ranks)
                        self.assertEqual(self.batch("generate", small, rows, *options, ranks=ranks), on_load)
                        self.assertEqual(self.batch("generate", small, rows, *INT8, *options), on_load)
                        self.assertNotIn(b'"error"', on_load)

    def products(self, model: Path, *options) -> str:
        figures = self.fresh(".json")
        self.assert_done(ptrt("bench", model, *options, "--input-len", "4", "--output-len", "2", "--requests", "1",
                              "--warmup", "0", "--json", figures))
        return json.loads(figures.read_text())["compute"]

    def test_what_auto_computes_in(self) -> None:
        config = mixed_config()
        model = write_random(self.fresh(".h5"), config, 45, dtype="bfloat16")
        small = self.quantize(model)
        chosen = self.products(small)
        self.assertEqual(chosen, self.products(model, *INT8))
        self.assertEqual(chosen, "int8" if re.search(r"avx2|i8mm", Path("/proc/cpuinfo").read_text()) else "float32")
        # Matrices of two types: none is rounded unless requested.
        with h5py.File(small, "r+") as file:
            name = "/shared/lm_head"
            del file[name]
            file[name] = ref.load(model).tensors[name].astype(np.float32)
        self.assertEqual(self.products(small), "float32")

    def test_bfloat16_products_are_refused(self) -> None:
        small = self.quantize(write_random(self.fresh(".h5"), mixed_config(), 46))
        outcome = ptrt("bench", small, "--compute", "bfloat16", "--input-len", "4", "--output-len", "2")
        self.assert_refused(outcome, "bfloat16", "int8")

    def test_a_model_that_is_int8_already(self) -> None:
        small = self.quantize(write_random(self.fresh(".h5"), mixed_config(), 47))
        out = self.fresh(".h5")
        self.assert_refused(ptrt("quantize", small, "-o", out, *INT8), small.name, "int8 already")
        self.assertFalse(out.exists())

    def test_the_model_itself_is_never_overwritten(self) -> None:
        folder = self.fresh("-model")
        folder.mkdir()
        model = folder / "model.h5"
        self.assert_done(ptrt("init", self.config_file(), "-o", model, "--split"))
        (folder / "link.h5").symlink_to(model)
        before = {file: file.read_bytes() for file in folder.iterdir()}
        for source, out, options in ((model, model, ()), (model, folder / "link.h5", ()),
                                     (model, folder / "model.hdf5", ("--split",)),
                                     (model, folder / "model.track01.h5", ())):
            with self.subTest(out=out.name):
                self.assert_refused(ptrt("quantize", source, "-o", out, *INT8, *options), "overwrite", "model")
                self.assertEqual({file: file.read_bytes() for file in folder.iterdir()}, before)

    def config_file(self) -> Path:
        path = self.fresh(".json")
        path.write_text(json.dumps(mixed_config()))
        return path

    def test_weights_that_int8_cannot_hold(self) -> None:
        config = mixed_config()
        for value, word in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e8, "1e\\+08|100000000")):
            tensors = random_tensors(config, 48)
            tensors["/tracks/02/layers/001/experts/w_up"][2, 41, 70] = value
            model = write_model(self.fresh(".h5"), config, tensors)
            folder = self.fresh("-out")
            folder.mkdir()
            with self.subTest(value=value):
                outcome = ptrt("quantize", model, "-o", folder / "small.h5", *INT8)
                self.assert_refused(outcome, model.name, "/tracks/02/layers/001/experts/w_up", r"\[2, 41, 70\]", word)
                self.assertEqual(list(folder.iterdir()), [], "a file remained")
                outcome = ptrt("bench", model, *INT8, "--input-len", "4", "--output-len", "2")
                self.assert_refused(outcome, "/tracks/02/layers/001/experts/w_up", r"\[2, 41, 70\]", word)

    def test_bad_usage(self) -> None:
        model = write_random(self.fresh(".h5"), mixed_config(), 49)
        out = self.fresh(".h5")
        self.assert_refused(ptrt("quantize", model, "-o", out, "--weights", "int4"), "--weights", "int4", "int8")
        self.assert_refused(ptrt("quantize", model, "-o", out), "--weights")
        self.assert_refused(ptrt("quantize", model, *INT8), "--output|-o")
        self.assert_refused(ptrt("quantize", self.dir / "none.h5", "-o", out, *INT8), "none.h5")
        self.assert_refused(ptrt("quantize", model, "-o", self.dir / "no" / "folder.h5", *INT8), "folder.h5")
        damaged = self.fresh(".h5")
        shutil.copy(model, damaged)
        with h5py.File(damaged, "r+") as file:
            file["/tracks/02/layers/002/w_down"][0, 0] += 1
        self.assert_refused(ptrt("quantize", damaged, "-o", out, *INT8), "/tracks/02/layers/002/w_down", "crc32c")
        self.assertFalse(out.exists())

    def test_memory_does_not_grow_with_the_model(self) -> None:
        peaks = []
        for vocab, ffn in ((500, 100), (40000, 20000)):  # under 1 MB, and 90 MB of which one tensor has 23 MB
            text = self.fresh(".json")
            text.write_text(json.dumps(make_config(vocab_size=vocab, hidden_size=288, ffn_size=ffn, head_dim=32)))
            model = self.fresh(".h5")
            self.assert_done(ptrt("init", text, "-o", model))
            peaks.append(peak_bytes("quantize", model, "-o", self.fresh(".h5"), *INT8))
        self.assertLess(peaks[1] - peaks[0], 16 << 20)


if __name__ == "__main__":
    unittest.main(verbosity=1)
