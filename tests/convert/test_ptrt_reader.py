#!/usr/bin/python3
"""scripts/convert/ptrt_reader.py: every type of element has its values, and what is wrong or unknown is refused by name."""

import json
import os
import shutil
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "cli")]

import h5py  # noqa: E402
import numpy as np  # noqa: E402
from convert.errors import BadInput  # noqa: E402
from convert.pt_state import read_state  # noqa: E402
from convert.ptrt_reader import ModelReader  # noqa: E402
from convert.tensors import to_float32  # noqa: E402
from ptrt_cli import CliTest, ptrt  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

WK = "/tracks/01/layers/001/wk"
SMALL = make_config(tracks=2, layers=2, sync_layers=[1, 2], hidden_size=40, ffn_pattern=["dense", "moe"], tie_embeddings=False,
                    moe={"experts": 2, "top_k": 1, "ffn_size": 33, "router_logit_cap": None})


def read(path) -> dict:
    with ModelReader(path) as reader:
        return {name: to_float32(*reader.tensor(name)) for name in reader.shapes}


class Reading(CliTest):

    def same(self, path) -> None:
        want = ref.load(path).tensors
        got = read(path)
        self.assertEqual(got.keys(), want.keys())
        for name, values in got.items():
            np.testing.assert_array_equal(values, want[name], err_msg=name)

    def test_values_of_every_type(self) -> None:
        for grid in GRID:
            for dtype in (grid.dtype, "int8", "float8"):
                self.same(write_random(self.fresh(".h5"), grid.config, grid.seed, dtype=dtype, **grid.file_options))

    def test_narrow_files_are_not_trained(self) -> None:
        for dtype, stored in (("int8", "int8"), ("float8", "float8_e4m3fn")):
            path = write_random(self.fresh(".h5"), SMALL, seed=2, dtype=dtype)
            with self.assertRaisesRegex(BadInput, f"{stored} files are for running only"):
                list(read_state(path, slice(0, 2)))
        self.assertTrue(list(read_state(write_random(self.fresh(".h5"), SMALL, seed=2), slice(0, 2))))

    def test_files_of_the_program(self) -> None:
        config = self.fresh(".json")
        config.write_text(json.dumps(SMALL))
        for options in ([], ["--split", "--dtype", "bfloat16"]):
            plain, narrow, packed, again = (self.fresh(".h5") for _ in range(4))
            self.assert_done(ptrt("init", config, "-o", plain, *options))
            self.same(plain)
            self.assert_done(ptrt("quantize", plain, "-o", narrow, "--weights", "int8"))
            self.same(narrow)
            self.assert_done(ptrt("pack", narrow, "-o", packed))
            with self.assertRaisesRegex(BadInput, "layout \"panels16.v1\".*--layout rows"):
                read(packed)
            self.assert_done(ptrt("pack", packed, "-o", again, "--layout", "rows"))
            self.same(again)
            self.assert_done(ptrt("quantize", plain, "-o", narrow, "--weights", "fp8_e4m3"))
            self.same(narrow)

    def test_big_endian_and_chunked_datasets(self) -> None:
        path = write_random(self.fresh(".h5"), SMALL, seed=3, crc=False)
        want = read(path)
        with h5py.File(path, "r+") as file:
            for number, name in enumerate(want):
                values = file[name][()]
                del file[name]
                file.create_dataset(name, data=values.astype(">f4"), chunks=True, **[{}, {"compression": "gzip"}][number % 2])
        for name, values in read(path).items():
            np.testing.assert_array_equal(values, want[name], err_msg=name)


class Refusing(CliTest):

    def setUp(self) -> None:
        super().setUp()
        self.folder = self.fresh("-model")
        self.folder.mkdir()
        self.path = write_random(self.folder / "model.h5", SMALL, seed=1)

    def refused(self, *words: str) -> None:
        """The reader's message has these words; the program refuses the file too."""
        with self.assertRaises(BadInput) as caught:
            read(self.path)
        for word in (str(self.folder), *words):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(ptrt("inspect", "--verify", self.path).status, 2, words)

    def change(self, **attributes) -> None:
        with h5py.File(self.path, "r+") as file:
            file.attrs.update(attributes)

    def test_what_is_no_model(self) -> None:
        self.change(format_version=2)
        self.refused("format_version", "expected 1, found 2")
        self.change(format_version=1, format="other")
        self.refused("no model file", "format")
        for content in (b"no HDF5", b""):
            self.path.write_bytes(content)
            self.refused("no model file")
        self.path.unlink()
        self.refused("no model file", "does not exist")
        self.path.mkdir()
        self.refused("no model file", "no regular file")

    def test_configs(self) -> None:
        for config, word in ((json.dumps({**SMALL, "gate": 1}), 'unknown config key "gate"'),
                             (json.dumps({**SMALL, "heads": 3}), "kv_heads"), ("{", "no JSON"),
                             (json.dumps(SMALL)[:-1] + ', "heads": 4}', "twice"), ("[" * 100000, "no JSON")):
            with h5py.File(self.path, "r+") as file:
                file.attrs["config"] = config if len(config) < 60000 else config[:60000]
            self.refused(word)
        with h5py.File(self.path, "r+") as file:
            file.attrs["config"] = 5
        self.refused("no JSON")
        self.change(config="\ufeff" + json.dumps(SMALL))
        self.assertEqual(read(self.path).keys(), ref.load(write_random(self.fresh(".h5"), SMALL)).tensors.keys())
        self.assert_done(ptrt("inspect", self.path))

    def test_bounds_of_configs(self) -> None:
        """Both readers name the same key, and neither reads a dataset."""
        huge, yarn = 10**400, {"type": "yarn", "factor": 4.0, "original_max_position": 64, "beta_fast": 32.0, "beta_slow": 1.0}
        moe = SMALL["moe"]
        for key, value, *others in (
                ("tracks", 0), ("tracks", 101), ("tracks", 20000), ("layers", 1001, {"sync_layers": [1001]}),
                ("sync_layers", list(range(1, 102)), {"layers": 101}), ("max_context", 2**31), ("vocab_size", 2**31),
                ("heads", 2**63), ("max_context", 2**31 - 1, {"kv_heads": 2**20, "heads": 2**20, "head_dim": 2**10}),
                ("rope_theta", 1, {"rope_scaling": yarn}), ("rope_scaling.original_max_position", 2**31, yarn),
                ("rope_scaling.factor", 1e-50, yarn), ("rope_theta", 1e39), ("rope_theta_local", 1e-46), ("embedding_scale", 0),
                ("norm_eps", -1e-5), ("norm_eps", True), ("attention_scale", 2**128), ("moe.experts", 2**31, moe),
                ("moe.top_k", 3, moe), ("moe.router_logit_cap", 1e39, moe), ("name", 5), ("name", ["a"]),
                ("head_dim", 15), ("ffn_size", 0), ("attention_window", 0, {"attention_pattern": ["local_nope"]}),
                ("attention_window", -1), ("attention_window", 2**31), ("bos_token_id", 2**31), ("eos_token_ids", [259]),
                ("norm_eps", huge), ("norm_placement", ["pre", "pre"]), ("moe", None)):
            folder, _, inner = key.partition(".")
            changes = {folder: {**others[0], inner: value}} if inner else {key: value, **(others or [{}])[0]}
            self.change(config=json.dumps({**SMALL, **changes}))
            with self.subTest(key=key, value=value if value != huge else "10**400"):
                if value == huge:  # to the program it is no JSON
                    self.refused(key)
                    continue
                with self.assertRaises(BadInput) as caught:
                    ModelReader(self.path)
                done = ptrt("inspect", self.path)
                self.assertEqual(done.status, 2)
                for message in (str(caught.exception), done.stderr):
                    self.assertIn(key, message)
                    self.assertIn("config", message)

    def test_configs_that_are_as_large_as_they_may_be(self) -> None:
        mixture = {"ffn_pattern": ["moe", "dense"], "ffn_size": 0, "layers": 1, "sync_layers": [1], "moe": SMALL["moe"]}
        for changes in ({"tracks": 100, "layers": 1, "sync_layers": [1]}, {"max_context": 2**31 - 1, "hidden_size": 8},
                        {"layers": 100, "sync_layers": list(range(1, 101))}, {**mixture, "rope_theta": 1, "norm_eps": 1e-45},
                        {"head_dim": 5, "attention_pattern": ["global_nope", "local_nope"], "attention_window": 2**31 - 1},
                        {"layers": 1, "sync_layers": [1], "attention_pattern": ["global_rope", "local_rope"],
                         "ffn_pattern": ["dense", "moe"], "name": ""}):
            config = make_config(**{"hidden_size": 4, "ffn_size": 4, "head_dim": 2, "vocab_size": 8, **changes})
            path = write_random(self.path, config, seed=1, tokenizer=None)
            self.assertEqual(read(path).keys(), ref.load(path).tensors.keys())
            self.assert_done(ptrt("inspect", "--verify", path))

    def test_attributes_that_are_no_strings(self) -> None:
        several = np.array(["ptrt", "ptrt"], h5py.string_dtype())
        for at, name, value, words in (
                ("/", "format", several, ["format", "root attributes"]), ("/", "config", several, ["config"]),
                ("/", "format", np.bytes_(b"\xff"), ["root attributes"]), (WK, "layout", several, [WK, "layout"]),
                ("/shared/embedding", "dtype", several, ["/shared/embedding", "dtype"]),
                ("/shared/embedding", "dtype", 7, ["/shared/embedding", "dtype"]),
                ("/tokenizer", "kind", several, ["/tokenizer", "kind"]),
                ("/tokenizer", "chat_template", 7, ["/tokenizer", "chat_template"])):
            with self.subTest(at=at, name=name, value=value):
                write_random(self.path, SMALL, seed=1, dtype="bfloat16")
                with h5py.File(self.path, "r+") as file:
                    file[at].attrs[name] = value
                with self.assertRaises(BadInput) as caught, ModelReader(self.path) as reader:
                    if at == "/shared/embedding":
                        reader.stored_type(at)
                    elif at == "/tokenizer":
                        reader.tokenizer()
                    reader.tensor(WK)
                for word in (str(self.path), *words):
                    self.assertIn(word, str(caught.exception))

    def test_types_without_reading_data(self) -> None:
        for dtype, matrices in (("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("int8", "int8"),
                                ("float8", "float8_e4m3fn")):
            write_random(self.path, SMALL, seed=1, dtype=dtype)
            with ModelReader(self.path) as reader:
                self.assertEqual(reader.stored_type(WK), matrices)
                self.assertEqual(reader.stored_type("/shared/embedding"), dtype if dtype not in ("int8", "float8") else "float32")
                self.assertEqual(reader.datasets_read, 0)
        for change, word in ((lambda file: file.create_dataset("shared/embedding", (259, 40), "f8"), "float64"),
                             (lambda file: file.create_dataset("shared/embedding", (259, 40), "i1"), "int8"),
                             (lambda file: file.create_dataset("shared/embedding", (259, 40), "u2"), "uint16"),
                             (lambda file: file.create_group("shared/embedding"), "group"), (lambda file: None, "missing")):
            write_random(self.path, SMALL, seed=1)
            with h5py.File(self.path, "r+") as file:
                del file["shared/embedding"]
                change(file)
            with ModelReader(self.path) as reader, self.assertRaisesRegex(BadInput, f"{self.path}: .*embedding.*{word}"):
                reader.stored_type("/shared/embedding")
        write_random(self.path, SMALL, seed=1, dtype="int8")
        self.assert_done(ptrt("pack", self.path, "-o", self.folder / "packed.h5"))
        with ModelReader(self.folder / "packed.h5") as reader, self.assertRaisesRegex(BadInput, "panels16.v1"):
            reader.stored_type(WK)

    def test_datasets(self) -> None:
        def put(name: str, values, **attributes) -> None:
            del file[name]
            file[name] = values
            file[name].attrs.update(attributes)

        shape = (32, 40)
        cases = (
            ("is missing", lambda: file.pop(WK)),
            ("expected shape [32, 40], found [40, 32]", lambda: put(WK, np.zeros(shape[::-1], "f4"))),
            ("float64", lambda: put(WK, np.zeros(shape))), ("uint16", lambda: put(WK, np.zeros(shape, "u2"))),
            ("float8_e5m2", lambda: put(WK, np.zeros(shape, "u1"), dtype="float8_e5m2")),
            ("uint8", lambda: put(WK, np.zeros(shape, "u1"))),
            ("NaN", lambda: put(WK, np.full(shape, 0xFF, "u1"), dtype="float8_e4m3fn")),
            ("scale is missing", lambda: put(WK, np.zeros(shape, "u1"), dtype="float8_e4m3fn")),
            ("crc32c: the data is damaged", lambda: file[WK].write_direct(np.ones(shape, "f4"))),
            ("no numbers", lambda: put(WK, np.full(shape, b"abcd"))),
            ("crc32c", lambda: file[WK].attrs.create("crc32c", "a text")),
            ("layout \"diagonal\"", lambda: put(WK, np.zeros(shape, "u1"), layout="diagonal")),
            ("scale is missing", lambda: put(WK, np.zeros(shape, "i1"))),
        )
        for word, change in cases:
            with self.subTest(word):
                write_random(self.path, SMALL, seed=1)
                with h5py.File(self.path, "r+") as file:
                    change()
                self.refused(word, WK)
        for name in ("/shared/embedding", "/tracks/00/layers/001/router", "/shared/final_norm"):
            write_random(self.path, SMALL, seed=1)
            with h5py.File(self.path, "r+") as file:
                put(name, np.zeros(file[name].shape, "i1"))
            self.refused(name, "int8")
            with h5py.File(self.path, "r+") as file:
                put(name, np.zeros(file[name].shape, "u1"), dtype="float8_e4m3fn")
            self.refused(name, "uint8", "float8")

    def test_scales(self) -> None:
        int8 = (("finite scales", -np.ones((32, 2), "f2")), ("finite scales", np.full((32, 2), np.inf, "f2")),
                ("expected float16", np.ones((32, 2), "f4")), ("expected shape [32, 2]", np.ones((32, 1), "f2")))
        float8 = (("scales from 0 to 2^119", -np.ones(32, "f4")), ("scales from 0 to 2^119", np.full(32, np.nan, "f4")),
                  ("scales from 0 to 2^119", np.full(32, 2.0 ** 120, "f4")),
                  ("scales from 0 to 2^119", np.full(32, -0.0, "f4")), ("expected float32", np.ones(32, "f2")),
                  ("expected shape [32]", np.ones((32, 1), "f4")))
        for dtype, word, scale in [("int8", *case) for case in int8] + [("float8", *case) for case in float8]:
            write_random(self.path, SMALL, seed=1, dtype=dtype)
            with h5py.File(self.path, "r+") as file:
                del file[WK + ".scale"]
                file[WK + ".scale"] = scale
            self.refused(word, WK + ".scale")

    def test_links(self) -> None:
        outside = self.folder / "outside" / "other.h5"
        outside.parent.mkdir()
        write_random(outside, SMALL, seed=1)
        for path in ("/shared", "/tracks", "/tracks/01", WK):
            for name in (str(outside), "../outside/other.h5", "x/../../outside/other.h5"):
                inner = self.folder / "inner"
                shutil.rmtree(inner, ignore_errors=True)
                inner.mkdir()
                self.path = write_random(inner / "model.h5", SMALL, seed=1)
                with h5py.File(self.path, "r+") as file:
                    del file[path]
                    file[path] = h5py.ExternalLink(name, path)
                self.refused(path, name)
                with h5py.File(self.path, "r+") as file:  # through a soft link, and in a file that a good link leads to
                    file.move(path, "/aside")
                    file[path] = h5py.SoftLink("/aside")
                self.refused("/aside", name)
                self.path.rename(inner / "part.h5")
                write_random(self.path, SMALL, seed=1)
                with h5py.File(self.path, "r+") as file:
                    del file[path]
                    file[path] = h5py.ExternalLink("part.h5", path)
                self.refused("part.h5", name)
        self.path = write_random(self.folder / "round.h5", SMALL, seed=1)
        with h5py.File(self.path, "r+") as file:
            del file[WK]
            file[WK] = h5py.SoftLink(WK)
        self.refused(WK)

    def test_data_of_other_files(self) -> None:
        raw = self.folder / "raw.bin"
        np.zeros((32, 40), "f4").tofile(raw)
        layout = h5py.VirtualLayout((32, 40), "f4")
        layout[:] = h5py.VirtualSource("raw.h5", WK, (32, 40))
        for make in (lambda file: file.create_dataset(WK, (32, 40), "f4", external=[(str(raw), 0, 5120)]),
                     lambda file: file.create_virtual_dataset(WK, layout)):
            write_random(self.path, SMALL, seed=1)
            with h5py.File(self.path, "r+") as file:
                del file[WK]
                make(file)
            self.refused(WK, "other files")

    def test_links_that_are_followed(self) -> None:
        want = read(self.path)
        far = self.folder / "far"
        far.mkdir()
        with h5py.File(self.path, "r+") as file, h5py.File(far / "track.h5", "w") as other:
            file.copy("/tracks/01", other, name="/inside/track")
            del file["/tracks/01"]
            file["/tracks/01"] = h5py.ExternalLink("track.h5", "/inside/track")
        self.refused("track.h5", "missing")
        for follow in ("HDF5_EXT_PREFIX", "the working directory", "beside it", "beside what a symbolic link names"):
            with self.subTest(follow):
                before = Path.cwd()
                try:
                    if follow == "HDF5_EXT_PREFIX":
                        os.environ[follow] = f"/nowhere:{far}"
                    elif follow == "the working directory":
                        os.chdir(far)
                    elif follow == "beside it":
                        shutil.copy(far / "track.h5", self.folder / "track.h5")
                    else:
                        self.path = far / "link.h5"
                        (far / "track.h5").unlink()
                        self.path.symlink_to("../model.h5")
                    got = read(self.path)
                    for name, values in want.items():
                        np.testing.assert_array_equal(got[name], values, err_msg=name)
                finally:
                    os.chdir(before)
                    os.environ.pop("HDF5_EXT_PREFIX", None)

    def test_only_what_is_asked_for_is_opened(self) -> None:
        path = write_random(self.folder / "split.h5", SMALL, seed=1, split=True)
        (self.folder / "split-00.h5").unlink()
        with ModelReader(path) as reader:
            self.assertEqual([file.name for file in reader.files_opened], ["split.h5"])
            values = reader.tensor(WK)[0]
            self.assertEqual([file.name for file in reader.files_opened], ["split.h5", "split-01.h5"])
            self.assertEqual((reader.bytes_read, reader.datasets_read), (values.nbytes, 1))

    def test_tokenizers(self) -> None:
        def tokenizer():
            with ModelReader(self.path) as reader:
                return reader.tokenizer()

        self.assertEqual(tokenizer().kind, "bytes")
        with h5py.File(self.path, "r+") as file:
            file["tokenizer"].attrs.update(kind="huggingface", chat_template="{{ messages }}")
            file["tokenizer/model"] = np.frombuffer(b"{}", np.uint8)
        self.assertEqual((tokenizer().model, tokenizer().chat_template), (b"{}", "{{ messages }}"))
        for kind, model, word in (("other", None, "other"), ("huggingface", np.zeros(3), "/tokenizer/model")):
            with h5py.File(self.path, "r+") as file:
                file["tokenizer"].attrs["kind"] = kind
                if model is not None:
                    del file["tokenizer/model"]
                    file["tokenizer/model"] = model
            with self.assertRaisesRegex(BadInput, word):
                tokenizer()
        with h5py.File(self.path, "r+") as file:
            del file["tokenizer"]
        self.assertIsNone(tokenizer())


if __name__ == "__main__":
    unittest.main()
