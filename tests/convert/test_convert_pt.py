#!/usr/bin/python3
"""scripts/convert_pt.py: state dicts of scripts/pt_model.py and of Apple's PT-MoE, against the float64 model and against
log-probabilities of Apple's own class (scripts/goldens/make_tamm_goldens.py)."""

import json
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "convert")]

from ptrt_cli import CliTest, ptrt  # noqa: E402
from state_dicts import stacked, write_safetensors  # noqa: E402

import pt_reference as ref  # noqa: E402
from model_grid import GRID  # noqa: E402
from model_maker import random_tensors, to_bfloat16  # noqa: E402

GOLDENS = ROOT / "tests" / "convert" / "tamm"
CLOSE = 1e-4  # of log-probabilities, with float32
APART = 1e-2  # what a key that is left out changes at least


def convert(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "scripts" / "convert_pt.py", *map(str, arguments)], capture_output=True,
                          text=True, check=False, timeout=120)


class ConvertTest(CliTest):

    def converted(self, checkpoint: Path, config: Path, *options) -> Path:
        model = self.fresh(".h5")
        done = convert(checkpoint, "--config", config, "-o", model, *options)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(list(self.dir.glob(".*.tmp")), [])
        return model

    def scores(self, model: Path, texts: list[list[int]], *options, ranks=None) -> list[np.ndarray]:
        options = options or ("--compute", "float32")
        lines = self.lines("score", model, [{"tokens": text} for text in texts], "--quiet", *options, ranks=ranks)
        return [np.array(line["logprobs"][1:], float) for line in lines]

    def assert_close(self, got: list[np.ndarray], want: list[np.ndarray], limit: float = CLOSE) -> None:
        self.assertLessEqual(max(np.abs(a - b).max() for a, b in zip(got, want)), limit)


class ModuleLayout(ConvertTest):
    """The layout of scripts/pt_model.py."""

    def files_of(self, index: int, bfloat16: bool = False) -> tuple[Path, Path, dict]:
        """A checkpoint, its config, and the tensors in it, of a model of the grid."""
        grid = GRID[index]
        tensors = random_tensors(grid.config, grid.seed)
        if bfloat16:
            tensors = {path: values if values.ndim == 1 else to_bfloat16(values) for path, values in tensors.items()}
        checkpoint, config = self.fresh(".safetensors"), self.fresh(".json")
        write_safetensors(checkpoint, stacked(tensors))
        config.write_text(json.dumps(grid.config))
        return checkpoint, config, tensors

    def test_datasets_are_the_tensors(self) -> None:
        for index, options in enumerate((("--split",), (), ("--dtype", "keep"))):
            checkpoint, config, tensors = self.files_of((1, 4, 13)[index], bfloat16=index == 2)
            model = self.converted(checkpoint, config, *options)
            self.assertEqual(ptrt("inspect", model, "--verify").status, 0)
            with h5py.File(model) as file:
                for path, values in tensors.items():
                    np.testing.assert_array_equal(file[path][()], values, err_msg=path)
                    self.assertEqual(file[path].dtype, values.dtype)

    def test_agrees_with_the_float64_model(self) -> None:
        for index in (1, 4):
            checkpoint, config, _ = self.files_of(index)
            model = self.converted(checkpoint, config, "--tokenizer", "bytes")
            text = [3, 200, 17, 17, 3, 40, 99, 3]
            self.assert_close(self.scores(model, [text]), [ref.score(ref.load(model), text)])

    def test_types(self) -> None:
        checkpoint, config, tensors = self.files_of(4)
        for dtype in ("bfloat16", "float16", "float32"):
            model = self.converted(checkpoint, config, "--dtype", dtype)
            with h5py.File(model) as file:
                for path, values in tensors.items():
                    matrix = values.ndim > 1
                    want = {"bfloat16": to_bfloat16(values), "float16": values.astype(np.float16), "float32": values}[dtype]
                    np.testing.assert_array_equal(file[path][()], want if matrix else values, err_msg=path)

    def refused(self, checkpoint: Path, config: Path, message: str, *options) -> None:
        """Exit status 2, one message, and nothing under the final name."""
        model = self.fresh(".h5")
        done = convert(checkpoint, "--config", config, "-o", model, *options)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(message, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertEqual((model.exists(), list(self.dir.glob(".*.tmp"))), (False, []))

    def changed_config(self, config: Path, change) -> Path:
        values = json.loads(config.read_text())
        change(values)
        path = self.fresh(".json")
        path.write_text(json.dumps(values))
        return path

    def test_bad_configurations(self) -> None:
        checkpoint, config, _ = self.files_of(4)
        for change, message in (
                (lambda c: c.update(rotary=1), 'unknown config key "rotary"'),
                (lambda c: c["fusion"].update(gate=1), 'unknown config key "fusion.gate"'),
                (lambda c: c["moe"].update(shared=1), 'unknown config key "moe.shared"'),
                (lambda c: c.pop("heads"), 'config key "heads" is missing'),
                (lambda c: c.update(heads=0), 'config key "heads": expected an integer'),
                (lambda c: c.update(heads=True), 'config key "heads": expected an integer'),
                (lambda c: c.update(norm_eps=float("nan")), 'config key "norm_eps": expected a positive number'),
                (lambda c: c.update(norm_placement=["pre", "pre"]), 'config key "norm_placement": expected no value twice'),
                (lambda c: c.update(sync_layers=[4, 2]), 'config key "sync_layers"'),
                (lambda c: c.update(kv_heads=3), 'config key "kv_heads"'),
                (lambda c: c.update(rope_scaling={"type": "linear", "factor": 2, "beta": 1}), '"rope_scaling.beta"'),
                (lambda c: c.update(rope_scaling={"type": "linear"}), '"rope_scaling.factor" is missing'),
                (lambda c: c.update(rope_scaling={"type": "ntk"}), '"rope_scaling.type"'),
                (lambda c: c.update(attention_bias=["x"]), '"attention_bias"'),
                (lambda c: c["moe"].update(top_k=9), '"moe.top_k"')):
            with self.subTest(message=message):
                self.refused(checkpoint, self.changed_config(config, change), message)
        text = self.fresh(".json")
        text.write_text("{")
        self.refused(checkpoint, text, "no valid JSON")
        self.refused(checkpoint, self.fresh(".json"), "no such file")

    def test_bad_checkpoints(self) -> None:
        checkpoint, config, tensors = self.files_of(4)
        parameters = stacked(tensors)

        def refused(change: dict, message: str) -> None:
            path = write_safetensors(self.fresh(".safetensors"), {k: v for k, v in (parameters | change).items() if v is not None})
            self.refused(path, config, message)

        refused({"layers.1.router": None}, "tensor layers.1.router is missing")
        refused({"layers.0.wq": parameters["layers.0.wq"][:, 1:]}, "tensor layers.0.wq: expected shape [2, 64, 64]")
        refused({"layers.0.wx": parameters["layers.0.wq"]}, "tensor layers.0.wx has no place")
        cut = self.fresh(".safetensors")
        cut.write_bytes(checkpoint.read_bytes()[:-1])
        self.refused(cut, config, "truncated")
        cut.write_bytes(checkpoint.read_bytes()[:100])
        self.refused(cut, config, "truncated")
        self.refused(self.fresh(".safetensors"), config, "no such file")
        other = self.fresh(".pt")
        other.write_bytes(b"no file of torch")
        self.refused(other, config, str(other))
        self.refused(checkpoint, config, "--layout tamm", "--max-context", "9")

    def test_outputs(self) -> None:
        checkpoint, config, _ = self.files_of(4)
        before = checkpoint.read_bytes()
        done = convert(checkpoint, "--config", config, "-o", checkpoint)
        self.assertEqual((done.returncode, checkpoint.read_bytes() == before), (2, True), done.stderr)
        done = convert(checkpoint, "--config", config, "-o", self.dir / "none" / "model.h5")
        self.assertEqual(done.returncode, 2, done.stderr)
        # What stood there before stays there when a conversion fails.
        model = self.converted(checkpoint, config)
        kept = model.read_bytes()
        broken = write_safetensors(self.fresh(".safetensors"), {})
        self.assertEqual(convert(broken, "--config", config, "-o", model).returncode, 2)
        self.assertEqual(model.read_bytes(), kept)

    def test_full_disk(self) -> None:
        checkpoint, config, _ = self.files_of(4)
        model = self.fresh(".h5")
        for limit in (8, 100, 800):  # KiB that a file may have
            done = subprocess.run(["bash", "-c", f'ulimit -f {limit}; exec "{sys.executable}" "{ROOT}/scripts/convert_pt.py" '
                                   f'"{checkpoint}" --config "{config}" -o "{model}"'], capture_output=True, text=True,
                                  check=False, timeout=120)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("File too large", done.stderr)
            self.assertEqual((len(done.stderr.splitlines()), model.exists(), list(self.dir.glob(".*.tmp"))), (1, False, []))


class Tamm(ConvertTest):
    """Apple's PT-MoE."""

    goldens = json.loads((GOLDENS / "goldens.json").read_text())

    def model(self, name: str, *options) -> Path:
        return self.converted(GOLDENS / f"{name}.safetensors", GOLDENS / f"{name}.json", "--layout", "tamm", *options)

    def expected(self, name: str) -> tuple[list[list[int]], list[np.ndarray]]:
        return [g["tokens"] for g in self.goldens[name]], [np.array(g["logprobs"]) for g in self.goldens[name]]

    def config(self, model: Path) -> dict:
        with h5py.File(model) as file:
            return json.loads(file.attrs["config"])

    def test_log_probabilities(self) -> None:
        self.assertGreaterEqual(len(self.goldens), 4)
        for name in self.goldens:
            texts, want = self.expected(name)
            model = self.model(name, "--dtype", "float32")
            tracks = self.config(model)["tracks"]
            for ranks in sorted({1, 2, tracks}):
                with self.subTest(name=name, ranks=ranks):
                    self.assert_close(self.scores(model, texts, ranks=None if ranks == 1 else ranks), want)
            with self.subTest(name=name, split="two ranks a track"):
                self.assert_close(self.scores(self.model(name, "--split"), texts, "--compute", "float32", "--tensor-parallel", "2",
                                              ranks=2 * tracks), want)

    def test_greedy_tokens_follow(self) -> None:
        """The tokens that generate takes are the likeliest of the float64 model of the same file."""
        for name in self.goldens:
            model, prompt = self.model(name), self.goldens[name][1]["tokens"]
            line, = self.lines("generate", model, [{"tokens": prompt, "max_tokens": 12}], "--quiet", "--compute", "float32")
            self.assertEqual(line["tokens"], ref.greedy(ref.load(model), prompt, 12), name)

    def test_narrow_types(self) -> None:
        """Rounded activations and int8 weights stay near, on average: a token is off where an expert changes."""
        for name in self.goldens:
            texts, want = self.expected(name)
            model = self.model(name)
            for options, limit in ((("--compute", "bfloat16"), 0.1), (("--compute", "int8", "--weights", "int8"), 0.5)):
                got = self.scores(model, texts, *options)
                self.assertLess(np.mean(np.abs(np.concatenate(got) - np.concatenate(want))), limit, (name, options))

    # What a model would be without one of its keys.
    CHANGES = {
        "default": {"qk_norm_order": "before_rope", "attention_window": 7, "rope_theta": 10000.0,
                    "attention_pattern": ["local_rope"], "moe.router_logit_cap": 0.5, "moe.normalize_top_k": False,
                    "fusion.op": "sum"},
        "all_norms": {"qk_norm_order": "before_rope", "pre_scale_norms": [], "pre_scale_norms-pre": None,
                      "pre_scale_norms-output": None, "pre_scale_norms-dispatch": None, "pre_scale_norms-combine": None,
                      "norm_eps": 1e-2},
        "grouped": {"qk_norm_order": "before_rope", "attention_window": 7, "pre_scale_norms": ["post"], "moe.top_k": 2},
        "plain_qk": {"pre_scale_norms": []},
    }

    @staticmethod
    def change(config: dict, key: str, value) -> None:
        """key: of an object within, after a dot; an entry to take out of a list, after a dash."""
        key, _, entry = key.partition("-")
        if entry:
            value = [other for other in config[key] if other != entry]
        outer, _, inner = key.rpartition(".")
        (config[outer] if outer else config)[inner] = value

    def test_every_key_matters(self) -> None:
        for name, changes in self.CHANGES.items():
            texts, want = self.expected(name)
            model = self.model(name)
            for key, value in changes.items():
                config, other = self.config(model), self.fresh(".h5")
                self.change(config, key, value)
                self.assertNotEqual(config, self.config(model), key)
                shutil.copy(model, other)
                with h5py.File(other, "r+") as file:
                    file.attrs["config"] = np.bytes_(json.dumps(config))
                got = self.scores(other, texts)
                apart = max(np.abs(a - b).max() for a, b in zip(got, want))
                self.assertGreaterEqual(apart, APART, (name, key))

    def test_bad_input(self) -> None:
        checkpoint, config = GOLDENS / "default.safetensors", json.loads((GOLDENS / "default.json").read_text())
        for change, message in (({"num_shared_experts": 1}, 'unknown config field "num_shared_experts"'),
                                ({"pre_norm": "layer_norm"}, 'config field "pre_norm"'),
                                ({"tracks_combine_op": "max"}, 'config field "tracks_combine_op"'),
                                ({"attention_layer_pattern": ["global_rope"]}, 'config field "attention_layer_pattern"'),
                                ({"num_layers_per_track": 7}, 'config field "num_layers_per_track"'),
                                ({"__tamm_type__": "module_configs:Other"}, 'config field "__tamm_type__"'),
                                ({"num_experts": 5}, "expected shape [4, 16, 5]"),
                                ({"scale_qk_norm": False}, "has no place"),
                                ({"post_norm": "rms_norm"}, "is missing")):
            path, model = self.fresh(".json"), self.fresh(".h5")
            path.write_text(json.dumps(config | change))
            done = convert(checkpoint, "--config", path, "-o", model, "--layout", "tamm")
            with self.subTest(change=change):
                self.assertEqual((done.returncode, len(done.stderr.splitlines()), model.exists()), (2, 1, False), done.stderr)
                self.assertIn(message, done.stderr)


if __name__ == "__main__":
    unittest.main()
