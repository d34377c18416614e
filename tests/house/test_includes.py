#!/usr/bin/env python3
"""Includes between rooms run one way, along the arrows listed here; docs/ARCHITECTURE.md says what the rooms are for.

A room is a folder of sources. Between the four big folders CMake itself refuses an include against the direction
kernels <- model_io <- runtime <- launch; inside them this test does.
"""

import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "model_io", "runtime", "launch")

# What a room may include besides itself and kernels/base. A new arrow is a decision: it belongs in this list, and must
# not close a circle. `kernels` stands for the headers that lie in it directly.
MAY_INCLUDE = {
    "kernels/base": [],
    "kernels": ["kernels/cpu/simd"],
    "kernels/cpu/simd": [],
    "kernels/cpu/host": ["kernels"],
    "kernels/cpu/weights": ["kernels", "kernels/cpu/host", "kernels/cpu/simd"],
    "kernels/cpu/matmul": ["kernels", "kernels/cpu/host", "kernels/cpu/simd", "kernels/cpu/weights"],
    "kernels/cpu/attention": ["kernels", "kernels/cpu/host", "kernels/cpu/simd"],
    "kernels/cpu/ops": ["kernels", "kernels/cpu/host", "kernels/cpu/matmul", "kernels/cpu/simd", "kernels/cpu/weights"],
    "kernels/cpu": ["kernels", "kernels/cpu/attention", "kernels/cpu/host", "kernels/cpu/matmul", "kernels/cpu/ops",
                    "kernels/cpu/simd", "kernels/cpu/weights"],
    "kernels/cuda/base": ["kernels"],
    "kernels/cuda/ptx": ["kernels/cuda/base"],
    "kernels/cuda/host": ["kernels", "kernels/cuda/base"],
    "kernels/cuda/ops": ["kernels", "kernels/cuda/base", "kernels/cuda/host"],
    "kernels/cuda/matmul": ["kernels", "kernels/cuda/base", "kernels/cuda/host", "kernels/cuda/ops", "kernels/cuda/ptx"],
    "kernels/cuda/attention": ["kernels", "kernels/cuda/base", "kernels/cuda/host", "kernels/cuda/matmul",
                               "kernels/cuda/ops", "kernels/cuda/ptx"],
    "kernels/cuda": ["kernels", "kernels/cuda/attention", "kernels/cuda/base", "kernels/cuda/host", "kernels/cuda/matmul",
                     "kernels/cuda/ops"],
    "model_io/config": ["kernels"],
    "model_io/hdf5": [],
    "model_io/file": ["kernels", "kernels/cpu/weights", "model_io/config", "model_io/hdf5"],
    "model_io/shard": ["kernels", "model_io/config", "model_io/file"],
    "model_io/text": ["model_io/config"],
    "model_io/tokenizer": [],
    "model_io/tokenizer/huggingface": ["model_io/config", "model_io/file", "model_io/text", "model_io/tokenizer"],
    "model_io/tokenizer/kinds": ["model_io/config", "model_io/file", "model_io/tokenizer",
                                 "model_io/tokenizer/huggingface"],
    "runtime/job": [],
    "runtime/comm": ["kernels", "runtime/job"],
    "runtime/trace": ["kernels"],
    "runtime/sync": ["kernels", "model_io/config", "runtime/comm", "runtime/job", "runtime/trace"],
    "runtime/model": ["kernels", "model_io/config", "model_io/shard", "runtime/comm", "runtime/sync"],
    "runtime/requests": ["kernels", "runtime/comm"],
    "runtime/grammar": ["kernels", "model_io/tokenizer", "runtime/requests"],
    "runtime/sampling": ["kernels", "runtime/grammar", "runtime/requests"],
    "runtime/speculate": ["kernels", "runtime/requests"],
    "runtime/schedule": ["kernels", "runtime/model", "runtime/requests", "runtime/speculate"],
    "runtime/serving": ["kernels", "kernels/cuda/host", "model_io/config", "model_io/shard", "model_io/tokenizer",
                        "runtime/comm", "runtime/grammar", "runtime/job", "runtime/model", "runtime/requests", "runtime/sampling",
                        "runtime/schedule", "runtime/speculate", "runtime/sync", "runtime/trace"],
    "runtime/journal": ["model_io/file", "runtime/job"],
    "launch/options": ["kernels", "launch/job", "runtime/job", "runtime/requests", "runtime/serving",
                       "runtime/speculate", "runtime/sync"],
    "launch/job": ["runtime/comm", "runtime/job"],
    "launch/plan": ["model_io/config", "model_io/shard", "runtime/job"],
    "launch/streams": [],
    "launch/python": ["model_io/config", "model_io/tokenizer", "runtime/requests"],
    "launch/requests": ["launch/python", "launch/streams", "model_io/config", "model_io/text", "model_io/tokenizer",
                        "runtime/requests"],
    "launch/jsonl": ["kernels", "launch/job", "launch/requests", "launch/streams", "model_io/config", "model_io/text", "model_io/tokenizer", "runtime/comm",
                     "runtime/job", "runtime/journal", "runtime/requests", "runtime/serving"],
    "launch/observe": ["launch/job", "runtime/comm", "runtime/serving", "runtime/trace"],
    "launch/host": ["kernels", "runtime/comm", "runtime/job"],
    "launch/session": ["kernels", "kernels/cpu/simd", "kernels/cuda", "launch/host", "launch/job", "launch/observe", "launch/options",
                       "model_io/config",
                       "model_io/file", "model_io/shard", "model_io/tokenizer", "model_io/tokenizer/kinds",
                       "runtime/comm", "runtime/job", "runtime/model", "runtime/requests", "runtime/serving",
                       "runtime/speculate", "runtime/sync", "runtime/trace"],
    "launch/doctor": ["kernels", "kernels/cuda", "launch/host", "launch/job", "launch/options", "launch/session", "model_io/hdf5",
                      "runtime/comm", "runtime/job", "runtime/serving", "runtime/sync"],
    "launch/commands/model": ["kernels", "launch/job", "launch/options", "model_io/config", "model_io/file",
                              "model_io/shard", "model_io/tokenizer/kinds", "runtime/job", "runtime/serving"],
    "launch/commands": ["launch/commands/model", "launch/doctor", "launch/job", "launch/jsonl", "launch/options", "launch/plan",
                        "launch/python", "launch/requests", "launch/session", "launch/streams", "model_io/file", "model_io/text", "runtime/job", "runtime/journal",
                        "runtime/requests", "runtime/serving", "runtime/speculate"],
    "launch": ["launch/commands", "launch/commands/model", "launch/job", "launch/observe", "launch/options",
               "launch/session", "runtime/job"],
}


def room_of(path: str) -> str:
    return path.rpartition("/")[0]


def includes() -> list[tuple[str, str]]:
    """Every include of a project header: (including file, included header)."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
                for header in re.findall(r'^\s*#\s*include\s+"((?:kernels|model_io|runtime|launch)/[^"]+)"',
                                         path.read_text(encoding="utf-8"), re.MULTILINE):
                    found.append((str(path.relative_to(ROOT)), header))
    return found


class Includes(unittest.TestCase):
    def test_rooms_are_listed(self) -> None:
        rooms = {room_of(file) for file, _ in includes()}
        self.assertEqual(rooms - MAY_INCLUDE.keys(), set(), "rooms without a line in MAY_INCLUDE")
        gone = {room for room in MAY_INCLUDE if not (ROOT / room).is_dir()}
        self.assertEqual(gone, set(), "no such folder")

    def test_arrows(self) -> None:
        seen = includes()
        self.assertGreater(len(seen), 500)  # the pattern still finds them
        wrong = [f"{file} includes {header}: no arrow from {room_of(file)} to {room_of(header)}" for file, header in seen
                 if room_of(header) not in (room_of(file), "kernels/base", *MAY_INCLUDE[room_of(file)])]
        self.assertEqual(wrong, [])

    def test_no_circle(self) -> None:
        arrows = {room: set(targets) for room, targets in MAY_INCLUDE.items()}
        done: set[str] = set()
        while len(done) < len(arrows):  # a floor at a time: rooms whose arrows all lead to rooms below
            floor = {room for room, targets in arrows.items() if room not in done and targets <= done}
            self.assertTrue(floor, f"a circle among {sorted(arrows.keys() - done)}")
            done |= floor

    def test_headers_are_found(self) -> None:
        missing = [f"{file}: {header}" for file, header in includes() if not (ROOT / header).is_file()]
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
