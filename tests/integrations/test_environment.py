#!/usr/bin/env python3
"""integrations/vllm/make_environment.sh with stand-ins for python and uv: what it leaves, and what it takes for whole."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

from engine_environment import ROOT, is_whole

MAKE = ROOT / "integrations" / "vllm" / "make_environment.sh"
LOCK = MAKE.with_name("requirements.lock")
# `python -m venv --clear FOLDER`, and in the folder a python that does nothing and a uv that ends as $UV_STATUS says.
PYTHON = """#!/bin/bash
[ "$1 $2 $3" = "-m venv --clear" ] || exit 9
rm -rf "$4"; mkdir -p "$4/bin"; touch "$4/pyvenv.cfg"
printf '#!/bin/bash\\nexit 0\\n' > "$4/bin/python"
printf '#!/bin/bash\\nexit $UV_STATUS\\n' > "$4/bin/uv"
chmod +x "$4"/bin/*
"""


class MakeEnvironment(unittest.TestCase):

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.python, self.venv = Path(folder.name) / "python", Path(folder.name) / "venv"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.stamp = self.venv / ".requirements"

    def make(self, uv_status: int = 0) -> int:
        environment = {**os.environ, "PYTHON": str(self.python), "UV_STATUS": str(uv_status)}
        return subprocess.run([MAKE, self.venv], env=environment, capture_output=True).returncode

    def test_new(self) -> None:
        self.assertFalse(is_whole(self.venv))
        self.assertEqual(self.make(), 0)
        self.assertTrue(is_whole(self.venv))
        (self.venv / "mark").touch()
        self.assertEqual(self.make(uv_status=1), 0)  # nothing is installed again
        self.assertTrue((self.venv / "mark").exists())

    def test_comments_of_the_lock_make_no_difference(self) -> None:
        self.make()
        self.stamp.write_text("# another head\n" + LOCK.read_text())
        self.assertTrue(is_whole(self.venv))
        self.assertEqual(self.make(uv_status=1), 0)

    def test_another_lock(self) -> None:
        self.make()
        self.stamp.write_text(LOCK.read_text() + "more==1.0\n")
        (self.venv / "old").touch()
        self.assertFalse(is_whole(self.venv))
        self.assertEqual(self.make(), 0)
        self.assertTrue(is_whole(self.venv))
        self.assertFalse((self.venv / "old").exists(), "packages of the other lock may be left")

    def test_failed_install(self) -> None:
        self.make()
        self.stamp.write_text(LOCK.read_text() + "more==1.0\n")
        self.assertNotEqual(self.make(uv_status=1), 0)
        self.assertFalse(self.stamp.exists())
        self.assertEqual(self.make(), 0)

    def test_a_folder_of_something_else(self) -> None:
        self.venv.mkdir()
        (self.venv / "letter").touch()
        self.assertNotEqual(self.make(), 0)
        self.assertTrue((self.venv / "letter").exists())


if __name__ == "__main__":
    unittest.main()
