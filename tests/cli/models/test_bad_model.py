#!/usr/bin/python3
"""Model files that are damaged or inconsistent: exit status 2 and a message that names the cause.

Messages are matched by their essential words (regular expressions, any case), not by their wording.
"""

import json
import os
import resource
import shutil
import sys
import unittest
from pathlib import Path
from typing import Callable

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ptrt_cli import ROOT, CliTest, Outcome, ptrt, write_requests  # noqa: E402
from model_maker import make_config, write_random  # noqa: E402

WK = "/tracks/01/layers/001/wk"
UP = "/tracks/00/layers/001/experts/w_up"


def base_config() -> dict:
    return make_config(tracks=2, layers=3, sync_layers=[1, 3], hidden_size=48, vocab_size=259, qk_norm=True,
                       fusion={"op": "mean", "combine_norm": True}, ffn_pattern=["dense", "moe"],
                       moe={"experts": 4, "top_k": 2, "ffn_size": 20, "router_logit_cap": None},
                       attention_pattern=["local_rope", "global_nope"], attention_window=8,
                       bos_token_id=256, eos_token_ids=[257])


def in_file(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    """A damage done through h5py."""
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)
    return damage


def replace(name: str, data, **attributes) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if data is None:
            return
        dataset = file.create_dataset(name, data=data)
        for key, value in attributes.items():
            dataset.attrs[key] = value
    return in_file(change)


def set_attribute(name: str, key: str, value) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        if key in file[name].attrs:
            del file[name].attrs[key]
        if value is not None:
            file[name].attrs[key] = value
    return in_file(change)


def alter_value(name: str) -> Callable[[Path], None]:
    """Changes one number and leaves the checksum."""
    def change(file: h5py.File) -> None:
        values = file[name][()]
        values.flat[-1] += 1
        file[name][...] = values
    return in_file(change)


def cut(keep: Callable[[int], int]) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, keep(path.stat().st_size))


def group_in_place(file: h5py.File) -> None:
    del file[WK]
    file.create_group(WK)


FILES: list[tuple[str, Callable[[Path], None], list[str]]] = [
    ("not an HDF5 file", lambda path: path.write_text("once upon a time\n" * 100), ["{file}"]),
    ("an empty file", lambda path: path.write_bytes(b""), ["{file}"]),
    ("half of a file", cut(lambda size: size // 2), ["{file}"]),
    ("a file without its end", cut(lambda size: size - 10), ["{file}"]),
    ("no format", set_attribute("/", "format", None), ["format"]),
    ("other format", set_attribute("/", "format", "onnx"), ["format", "onnx"]),
    ("no version", set_attribute("/", "format_version", None), ["version"]),
    ("wrong version", set_attribute("/", "format_version", 72), ["version", r"\b72\b", r"\b1\b"]),
    ("version as text", set_attribute("/", "format_version", "1"), ["version"]),
    ("no config", set_attribute("/", "config", None), ["config"]),
    ("config is a number", set_attribute("/", "config", 5), ["config"]),
    ("config is no JSON", set_attribute("/", "config", '{"tracks": '), ["config"]),
    ("config is a list", set_attribute("/", "config", "[1, 2]"), ["config"]),
    ("missing matrix", replace(WK, None), [WK]),
    ("missing norm", replace("/tracks/00/layers/000/attn_norm", None), ["/tracks/00/layers/000/attn_norm"]),
    ("missing head norm", replace("/tracks/00/layers/002/k_norm", None), ["/tracks/00/layers/002/k_norm"]),
    ("missing fusion norm", replace("/tracks/01/blocks/01/combine_norm", None),
     ["/tracks/01/blocks/01/combine_norm"]),
    ("missing router", replace("/tracks/01/layers/001/router", None), ["/tracks/01/layers/001/router"]),
    ("missing shared norm", replace("/shared/final_norm", None), ["/shared/final_norm"]),
    ("missing embedding", replace("/shared/embedding", None), ["/shared/embedding"]),
    ("missing track", replace("/tracks/01", None), ["/tracks/01"]),
    ("misshapen matrix", replace(WK, np.zeros((32, 47), np.float32)), [WK, r"\b48\b", r"\b47\b", r"\b32\b"]),
    ("transposed matrix", replace(WK, np.zeros((48, 32), np.float32)), [WK, r"32\D+48", r"48\D+32"]),
    ("flat embedding", replace("/shared/embedding", np.zeros(259 * 48, np.float32)),
     ["/shared/embedding", "259", r"\b48\b", "12432"]),
    ("experts of other number", replace(UP, np.zeros((3, 20, 48), np.float32)),
     [UP, r"4\D+20\D+48", r"3\D+20\D+48"]),
    ("scalar norm", replace("/shared/final_norm", np.float32(1)), ["/shared/final_norm", r"\b48\b"]),
    ("group for a dataset", in_file(group_in_place), [WK]),
    ("integers", replace(WK, np.zeros((32, 48), np.int32)), [WK]),
    ("float64", replace(WK, np.zeros((32, 48), np.float64)), [WK]),
    ("uint16 of no type", replace(WK, np.zeros((32, 48), np.uint16)), [WK, "dtype|uint16|bfloat16"]),
    ("uint16 of unknown type", replace(WK, np.zeros((32, 48), np.uint16), dtype="posit16"), [WK, "posit16"]),
    ("wrong crc", set_attribute(WK, "crc32c", np.uint32(12345)), [WK, "crc|checksum"]),
    ("flipped value", alter_value(WK), [WK, "crc|checksum"]),
    ("flipped shared value", alter_value("/shared/embedding"), ["/shared/embedding", "crc|checksum"]),
    ("crc as text", set_attribute(WK, "crc32c", "abc"), [WK, "crc"]),
    ("unknown tokenizer", set_attribute("/tokenizer", "kind", "wordpiece"), ["tokenizer", "wordpiece"]),
    ("tokenizer of no kind", set_attribute("/tokenizer", "kind", None), ["tokenizer", "kind"]),
    ("tokenizer without model", set_attribute("/tokenizer", "kind", "sentencepiece"), ["tokenizer"]),
]

# Damages of the same model with int8 matrices.
SCALE, UP_SCALE = f"{WK}.scale", f"{UP}.scale"
INT8_FILES: list[tuple[str, Callable[[Path], None], list[str]]] = [
    ("no scales", replace(SCALE, None), [SCALE, "missing"]),
    ("no scales of experts", replace(UP_SCALE, None), [UP_SCALE, "missing"]),
    ("misshapen scales", replace(SCALE, np.zeros((32, 3), np.float16)), [SCALE, r"32\D+2\b", r"32\D+3\b"]),
    ("transposed scales", replace(SCALE, np.zeros((2, 32), np.float16)), [SCALE, r"32\D+2\b", r"2\D+32"]),
    ("float32 scales", replace(SCALE, np.zeros((32, 2), np.float32)), [SCALE, "float16", "float32"]),
    ("integer scales", replace(SCALE, np.zeros((32, 2), np.int8)), [SCALE, "float16", "int8"]),
    ("misshapen int8", replace(WK, np.zeros((32, 47), np.int8)), [WK, r"\b48\b", r"\b47\b"]),
    ("unsigned bytes", replace(WK, np.zeros((32, 48), np.uint8)), [WK, "int8", "uint8"]),
    ("int8 norm", replace("/shared/final_norm", np.zeros(48, np.int8)), ["/shared/final_norm", "int8", "float32"]),
    ("int8 router", replace("/tracks/01/layers/001/router", np.zeros((4, 48), np.int8)),
     ["/tracks/01/layers/001/router", "int8", "float32"]),
    ("int8 embedding", replace("/shared/embedding", np.zeros((259, 48), np.int8)),
     ["/shared/embedding", "int8", "float32"]),
    ("scale that is no number", replace(SCALE, np.full((32, 2), np.nan, np.float16)), [SCALE, "nan"]),
    ("infinite scale", replace(SCALE, np.full((32, 2), np.inf, np.float16)), [SCALE, "inf"]),
    ("negative scale", replace(SCALE, np.full((32, 2), -0.5, np.float16)), [SCALE, r"-0\.5"]),
    ("flipped value", alter_value(WK), [WK, "crc|checksum"]),
    ("flipped scale", alter_value(UP_SCALE), [UP_SCALE, "crc|checksum"]),
]

HUGE = 1 << 40
CONFIGS: list[tuple[str, dict, list[str]]] = [
    ("unknown key", {"hiden_size": 48}, ["hiden_size"]),
    ("unknown key in fusion", {"fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": True,
                                          "weighting": 1}}, ["weighting"]),
    ("unknown key in moe", {"moe": {"experts": 4, "top_k": 2, "ffn_size": 20, "router_logit_cap": None,
                                    "capacity": 2}}, ["capacity"]),
    ("missing key", {"heads": ...}, [r"\bheads\b"]),
    ("missing fusion op", {"fusion": {"dispatch_norm": False, "combine_norm": True}}, [r"\bop\b"]),
    ("text for a number", {"hidden_size": "48"}, ["hidden_size"]),
    ("fraction for a size", {"ffn_size": 96.5}, ["ffn_size"]),
    ("null for a size", {"head_dim": None}, ["head_dim"]),
    ("truth for a size", {"layers": True}, ["layers"]),
    ("text for a truth", {"qk_norm": "yes"}, ["qk_norm"]),
    ("text for a list", {"norm_placement": "pre"}, ["norm_placement"]),
    ("number for a list", {"sync_layers": 3}, ["sync_layers"]),
    ("text in sync layers", {"sync_layers": ["1", "3"]}, ["sync_layers"]),
    ("list for fusion", {"fusion": ["mean"]}, ["fusion"]),
    ("heads that do not divide", {"kv_heads": 3}, [r"\bheads\b", "kv_heads", r"\b3\b", r"\b4\b"]),
    ("more key heads than heads", {"kv_heads": 8}, ["kv_heads", r"\b8\b"]),
    ("odd head with rotation", {"head_dim": 15}, ["head_dim", r"\b15\b"]),
    *((f"{key} {value}", {key: value}, [rf"\b{key}\b"])
      for key in ("tracks", "layers", "hidden_size", "heads", "kv_heads", "head_dim", "ffn_size",
                  "vocab_size", "max_context") for value in (0, -1)),
    *((f"sync layers {value}", {"sync_layers": value}, ["sync_layers"])
      for value in ([], [1], [3, 1], [1, 1, 3], [0, 3], [1, 4], [-1, 3])),
    ("unknown fusion", {"fusion": {"op": "median", "dispatch_norm": False, "combine_norm": True}},
     ["median"]),
    ("unknown norm place", {"norm_placement": ["before"]}, ["norm_placement", "before"]),
    ("unknown attention", {"attention_pattern": ["global"]}, ["attention_pattern", "global"]),
    ("no attention", {"attention_pattern": []}, ["attention_pattern"]),
    ("no window", {"attention_window": 0}, ["attention_window"]),
    ("negative window", {"attention_window": -4}, ["attention_window"]),
    ("unknown ffn", {"ffn_pattern": ["sparse"]}, ["ffn_pattern", "sparse"]),
    ("no ffn", {"ffn_pattern": []}, ["ffn_pattern"]),
    ("mixture without moe", {"moe": None}, ["moe"]),
    *((f"moe {key} {value}", {"moe": {"experts": 4, "top_k": 2, "ffn_size": 20, "router_logit_cap": None,
                                      key: value}}, [key])
      for key, value in (("experts", 0), ("top_k", 0), ("top_k", 5), ("ffn_size", 0),
                         ("router_logit_cap", -1.0))),
    *((f"{key} {value}", {key: value}, [rf"\b{key}\b"]) for key, value in (
        ("attention_bias", ["q", "q"]), ("attention_bias", ["w"]), ("attention_bias", "q"), ("qk_norm_order", "late"),
        ("pre_scale_norms", ["pre", "pre"]), ("pre_scale_norms", ["final"]), ("rope_scaling", "yarn"),
        ("rope_scaling", {"type": "linear"}), ("rope_scaling", {"type": "linear", "factor": 0}),
        ("rope_theta_local", -1.0), ("attention_scale", 0), ("ffn_activation", "relu"), ("embedding_scale", -1))),
    ("unknown key in rope_scaling", {"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}},
     [r"rope_scaling\.mscale"]),
    ("negative epsilon", {"norm_eps": -1e-5}, ["norm_eps"]),
    ("no theta", {"rope_theta": 0.0}, ["rope_theta"]),
    ("eos out of range", {"eos_token_ids": [259]}, ["eos_token_ids", "259"]),
    ("negative eos", {"eos_token_ids": [-1]}, ["eos_token_ids"]),
    ("bos out of range", {"bos_token_id": 300}, ["bos_token_id", "300"]),
    # Sizes are compared with the file before memory is allocated for them; products must not overflow.
    *((f"absurd {key} {value}", {key: value}, [rf"\b{key}\b|/shared/embedding|/tracks/"])
      for key in ("tracks", "hidden_size", "head_dim", "ffn_size", "vocab_size")
      for value in (HUGE, 1 << 62, 10 ** 30)),
    ("absurd layers", {"layers": HUGE, "sync_layers": [1, HUGE]}, [r"\blayers\b|/tracks/"]),
    ("absurd heads", {"heads": 1 << 62, "kv_heads": 1 << 62}, [r"\bheads\b|/tracks/"]),
    ("absurd experts", {"moe": {"experts": HUGE, "top_k": HUGE, "ffn_size": 20, "router_logit_cap": None}},
     [r"experts|router"]),
]


def changed_config(changes: dict) -> dict:
    """The base config with changes; a key whose new value is ... is left out."""
    return {key: value for key, value in {**base_config(), **changes}.items() if value is not ...}


class BadModel(CliTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.good = write_random(cls.dir / "good.h5", base_config(), 31)
        cls.good_int8 = write_random(cls.dir / "good-int8.h5", base_config(), 31, dtype="int8")
        cls.requests = write_requests(cls.dir / "requests.jsonl", [{"tokens": [1, 2, 3], "max_tokens": 2}])

    def generate(self, model: Path, ranks: int | None = None) -> Outcome:
        self.results = self.fresh("-results.jsonl")
        return ptrt("generate", model, self.requests, "-o", self.results, ranks=ranks)

    def assert_refused(self, outcome: Outcome, words: list[str]) -> None:
        self.assertFalse(outcome.timed_out, outcome.output)
        self.assertEqual(outcome.status, 2, outcome.output)
        self.assertEqual(len(outcome.errors), 1, f"not one message but:\n{outcome.output}")
        for word in words:
            self.assertRegex(outcome.errors[0], f"(?i){word}")
        self.assertFalse(self.results.exists())

    def test_good_model_is_good(self) -> None:
        self.assert_done(self.generate(self.good))
        self.assert_done(self.generate(self.good_int8))

    def test_biases(self) -> None:
        for what, value, words in (("missing", None, ["missing"]), ("misshapen", np.zeros(31, np.float32), [r"\b32\b", r"\b31\b"]),
                                   ("int8", np.zeros(32, np.int8), ["int8"])):
            with self.subTest(what):
                model = write_random(self.fresh("-model.h5"), changed_config({"attention_bias": ["k"]}), 31)
                self.assert_done(self.generate(model))
                bias = "/tracks/01/layers/002/bk"
                replace(bias, value)(model)
                self.assert_refused(self.generate(model), [bias, *words])

    def test_damaged_files(self) -> None:
        cases = [(self.good, *case) for case in FILES] + [(self.good_int8, *case) for case in INT8_FILES]
        for good, what, damage, words in cases:
            with self.subTest(what):
                model = self.fresh("-model.h5")
                shutil.copy(good, model)
                damage(model)
                words = [model.name if word == "{file}" else word for word in words]
                self.assert_refused(self.generate(model), words)

    def test_files_that_crash_the_library(self) -> None:
        corpus = sorted((ROOT / "tests" / "fuzz" / "hdf5" / "corpus").glob("*.h5"))
        self.assertGreaterEqual(len(corpus), 4)
        for model in corpus:
            commands = (["generate", model, self.requests, "-o", self.fresh("-no.jsonl")],
                        ["score", model, self.requests, "-o", self.fresh("-no.jsonl")],
                        ["bench", model], ["inspect", model], ["pack", model, "-o", self.fresh("-no.h5")],
                        ["quantize", model, "-o", self.fresh("-no.h5"), "--weights", "int8"])
            for command in commands[:1] if model.name.startswith("endless") else commands:  # each takes 5 s
                with self.subTest(f"{command[0]} {model.name}"):
                    outcome = ptrt(*command)
                    self.assertEqual(outcome.status, 2, outcome.output)
                    self.assertEqual(len(outcome.errors), 1, outcome.output)
                    self.assertRegex(outcome.errors[0], f"{model.name}: .*(damaged|cannot|truncated)")
            if model.name.startswith("endless"):
                continue
            with self.subTest(f"two ranks: {model.name}"):
                outcome = self.generate(model, ranks=2)
                self.assertEqual(outcome.status, 2, outcome.output)
                self.assertEqual(len(outcome.errors), 1, outcome.output)

    def test_senseless_configs(self) -> None:
        for what, changes, words in CONFIGS:
            with self.subTest(what):
                model = self.fresh("-model.h5")
                shutil.copy(self.good, model)
                config = changed_config(changes)
                set_attribute("/", "config", json.dumps(config))(model)
                self.assert_refused(self.generate(model), words)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self.assertLess(peak, 1 << 20, "a config made the program take more than 1 GiB")

    def test_init_refuses_senseless_configs(self) -> None:
        for what, changes, words in CONFIGS:
            if what.startswith("absurd"):
                continue  # without a file to compare it with, a huge model is valid
            with self.subTest(what):
                config = changed_config(changes)
                self.results = self.fresh("-model.h5")
                path = self.fresh("-config.json")
                path.write_text(json.dumps(config))
                self.assert_refused(ptrt("init", path, "-o", self.results), words)

    def test_no_such_model(self) -> None:
        for name in ("no-such-model.h5", "."):
            self.assert_refused(self.generate(self.dir / name), [(self.dir / name).name])

    def split_model(self) -> Path:
        folder = self.fresh("-split")
        folder.mkdir()
        config = make_config(tracks=8, layers=2, hidden_size=32)
        return write_random(folder / "model.h5", config, 32, split=True)

    def test_shards(self) -> None:
        """Alone, and with a rank a track, where the one rank that sees the damage must end all others."""
        # The dataset by its name in the model, or by file and name in that file.
        wq = "/tracks/05/layers/001/wq|model-05.h5.*/layers/001/wq"
        damages: list[tuple[str, Callable[[Path], None], list[str]]] = [
            ("missing shard", lambda shard: shard.unlink(), ["model-05.h5"]),
            ("truncated shard", cut(lambda size: size // 2), ["model-05.h5|/tracks/05"]),
            ("flipped value", alter_value("/weights/layers/001/wq"), [wq, "crc|checksum"]),
            ("missing dataset", replace("/weights/layers/001/wq", None), [wq]),
        ]
        for what, damage, words in damages:
            model = self.split_model()
            damage(model.parent / "model-05.h5")
            for ranks in (None, 8):
                with self.subTest(what, ranks=ranks):
                    self.assert_refused(self.generate(model, ranks), words)

    def test_numbers_of_ranks(self) -> None:
        model = self.split_model()
        self.assert_refused(self.generate(model, 3), [r"\b3\b", r"\b1\b.*\b2\b.*\b4\b.*\b8\b"])
        self.assert_refused(self.generate(model, 12), [r"\b12\b", r"\b8\b"])


if __name__ == "__main__":
    unittest.main(verbosity=1)
