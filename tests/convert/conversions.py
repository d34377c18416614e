"""Helpers of the converters' tests: checkpoints in a folder of their own, conversions, and goldens."""

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "scripts")]

from ptrt_cli import PATIENCE, CliTest, attribute  # noqa: E402

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE / "checkpoints"
FAMILIES = sorted(path.name for path in CHECKPOINTS.iterdir() if path.name != "tokenizers")


def goldens(name: str) -> dict:
    return json.loads((CHECKPOINTS / name / "goldens.json").read_text(encoding="utf-8"))


def convert(script: str, *arguments, file_limit: int | None = None) -> subprocess.CompletedProcess:
    """Runs a converter. file_limit: most bytes of a file that it may write, as on a full disk."""

    def limit():
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    return subprocess.run([sys.executable, ROOT / "scripts" / script, *map(str, arguments)], capture_output=True,
                          text=True, timeout=PATIENCE, preexec_fn=limit, stdin=subprocess.DEVNULL)


def read_safetensors(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + length]), data[8 + length:]


def write_safetensors(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class ConvertTest(CliTest):
    def checkpoint(self, name: str, **changes) -> Path:
        """A copy of a checkpoint, with its tokenizer. changes: keys of config.json; ... removes one."""
        folder = self.fresh(f"-{name}")
        shutil.copytree(CHECKPOINTS / name, folder)
        shutil.copytree(CHECKPOINTS / "tokenizers" / goldens(name)["tokenizer"], folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def converted(self, source: Path, *options, script: str = "convert_hf.py") -> Path:
        target = self.fresh(".h5")
        done = convert(script, source, "-o", target, *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(target.exists())
        return target

    def worst(self, model: Path, texts: list[dict], *options, ranks: int | None = None) -> float:
        """The largest difference of a log-probability from the goldens; ids of prompts must be theirs."""
        lines = self.lines("score", model, [{"prompt": row["text"]} for row in texts], "--quiet", *options, ranks=ranks)
        worst = 0.0
        for row, line in zip(texts, lines):
            self.assertEqual(line["tokens"], row["ids"])
            worst = max(worst, float(np.abs(np.subtract(line["logprobs"][1:], row["logprobs"])).max()))
        return worst

    def check_greedy(self, model: Path, texts: list[dict]) -> None:
        asked = [row for row in texts if row["greedy"]]
        lines = self.lines("generate", model, [{"prompt": row["text"], "max_tokens": len(row["greedy"])}
                                               for row in asked], "--quiet", "--compute", "float32")
        for row, line in zip(asked, lines):
            self.assertEqual(line["tokens"], row["greedy"])

    def edited(self, model: Path, **changes) -> Path:
        """A copy of the model with other keys of its config; ... removes one. Dotted names are keys of objects."""
        copy = self.fresh(".h5")
        shutil.copy(model, copy)
        with h5py.File(copy, "r+") as file:
            config = json.loads(attribute(file, "config"))
            for name, value in changes.items():
                inside = config
                *outer, last = name.split(".")
                for key in outer:
                    inside = inside[key]
                if value is ...:
                    del inside[last]
                else:
                    inside[last] = value
            file.attrs["config"] = np.bytes_(json.dumps(config))
        return copy

    def assert_refused(self, done: subprocess.CompletedProcess, target: Path, *words: str, status: int = 2) -> None:
        """One message with these words, and no file under the final name or a temporary one."""
        self.assertEqual(done.returncode, status, done.stderr)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])
        left = [name for name in os.listdir(target.parent) if target.stem in name]
        self.assertEqual(left, [])


def config_of(model: Path) -> dict:
    with h5py.File(model) as file:
        return json.loads(attribute(file, "config"))
