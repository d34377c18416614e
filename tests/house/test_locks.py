#!/usr/bin/env python3
"""Lock files name no folder of the machine that they were made on."""

import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = re.compile(r"(?<![\w.:/])/[\w.-]+/")  # an absolute path; not the middle of a relative one or of a URL


class Locks(unittest.TestCase):
    def test_pattern(self) -> None:
        self.assertRegex("uv pip compile --python /home/me/venv/bin/python", PATH)
        for text in ("# via -r integrations/vllm/requirements.in", "https://example.org/simple/", "--hash=sha256:0f/1"):
            self.assertNotRegex(text, PATH)

    def test_no_path_of_a_machine(self) -> None:
        locks = sorted((ROOT / "integrations").rglob("*.lock"))
        self.assertGreater(len(locks), 0)
        for lock in locks:
            for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), 1):
                self.assertNotRegex(line, PATH, f"{lock.relative_to(ROOT)}:{number}")


if __name__ == "__main__":
    unittest.main()
