#!/usr/bin/env python3
"""No call that throws what a user should not read: std::filesystem functions take an std::error_code."""

import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["kernels", "model_io", "runtime", "launch"]
# Those that ask the system, and throw filesystem_error unless their last argument takes the error.
CALL = re.compile(r"\b(?:fs|filesystem)::(absolute|canonical|copy|copy_file|create_directory|create_directories|"
                  r"create_symlink|current_path|directory_iterator|equivalent|exists|file_size|is_directory|is_empty|"
                  r"is_regular_file|is_symlink|last_write_time|permissions|proximate|read_symlink|"
                  r"recursive_directory_iterator|relative|remove|remove_all|rename|resize_file|space|status|"
                  r"symlink_status|temp_directory_path|weakly_canonical)\s*\(")
ERROR = re.compile(r"\b(?:error|ignored)\s*\)*$")


def arguments_at(text: str, start: int) -> str:
    """What stands between the parenthesis before `start` and the one that closes it."""
    depth, end = 1, start
    while depth > 0:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    return text[start:end - 1]


class Exceptions(unittest.TestCase):
    def test_filesystem_calls_take_an_error(self) -> None:
        found, throwing = 0, []
        for folder in FOLDERS:
            for path in sorted((ROOT / folder).rglob("*")):
                if path.suffix not in (".h", ".cpp", ".cu", ".cuh"):
                    continue
                text = path.read_text(encoding="utf-8")
                for call in CALL.finditer(text):
                    found += 1
                    if not ERROR.search(arguments_at(text, call.end())):
                        line = text.count("\n", 0, call.start()) + 1
                        throwing.append(f"{path.relative_to(ROOT)}:{line}: fs::{call[1]}")
        self.assertGreater(found, 3)  # the pattern still finds them
        self.assertEqual(throwing, [])


if __name__ == "__main__":
    unittest.main()
