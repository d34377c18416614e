#!/usr/bin/env python3
"""Every header compiles alone, with the build's own options and without precompiled headers.

The build folder is $PTRT_BUILD_DIR. Headers of the CUDA backend are compiled as the emulation does where it is built.
"""

import json
import os
import re
import shlex
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build")).resolve()
# Which source's options a header is compiled with: the first pattern that matches.
LIKE = [
    (r"^kernels/cuda/", r"kernels/cuda/.*\.cu$"),
    (r"^tests/cuda_emulation/", r"tests/cuda_emulation/execution\.cpp$"),
    (r"^kernels/", r"kernels/cpu/cpu_backend\.cpp$"),
    (r"^model_io/", r"model_io/hdf5/h5_file\.cpp$"),
    (r"^runtime/", r"runtime/comm/mpi_comm\.cpp$"),
    (r"^launch/", r"launch/commands/plan\.cpp$"),
    (r"^tests/fuzz/hdf5/", r"tests/fuzz/hdf5/[^/]*\.cpp$"),
    (r"^tests/fuzz/", r"tests/fuzz/hf_tokenizer_fuzz\.cpp$"),
    (r"^tests/[^/]+$", r"tests/model_io/[^/]*_test\.cpp$"),
    (r"^tests/(\w+)/", r"tests/\1/[^/]*_test\.cpp$"),
]


def options_of(commands: list[dict], header: str) -> list[str] | None:
    for pattern, source in LIKE:
        if match := re.match(pattern, header):
            wanted = re.compile(match.expand(source) if match.groups() and r"\1" in source else source)
            for entry in commands:
                if wanted.search(entry["file"]) and "nvcc" not in entry["command"]:
                    return alone(shlex.split(entry["command"]), entry)
            return None
    return None


def alone(command: list[str], entry: dict) -> list[str]:
    """The compiler and its options, less the source, the object, the launcher and precompiled headers."""
    start = next(i for i, word in enumerate(command) if re.search(r"(c\+\+|g\+\+|clang\+\+)(-\d+)?$", word))
    kept, words = [command[start]], iter(command[start + 1:])
    for word in words:
        if word in ("-o", "-c", "-include", "-x", "-MF", "-MT"):
            if word != "-c":
                next(words)
        elif word not in (entry["file"], "-Winvalid-pch", "-MD") and not word.startswith(("-fsanitize", "-O", "-g")):
            kept.append(word)
    return [word for word in kept if word != entry["file"]]


class Headers(unittest.TestCase):
    def test_each_compiles_alone(self) -> None:
        commands = json.loads((BUILD / "compile_commands.json").read_text(encoding="utf-8"))
        headers = [str(path.relative_to(ROOT)) for folder in ("kernels", "model_io", "runtime", "launch", "tests")
                   for path in sorted((ROOT / folder).rglob("*.h*")) + sorted((ROOT / folder).rglob("*.cuh"))
                   if path.suffix in (".h", ".cuh")]
        self.assertGreater(len(headers), 100)

        def compile_alone(header: str) -> str:
            options = options_of(commands, header)
            if options is None:
                return f"{header}: not built here"
            done = subprocess.run([*options, "-fsyntax-only", "-Wno-unused-function", "-x", "c++", "-"], cwd=BUILD, text=True,
                                  input=f'#include "{ROOT / header}"\n', capture_output=True, check=False)
            return "" if done.returncode == 0 else f"{header}:\n{done.stderr}"

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            told = [message for message in pool.map(compile_alone, headers) if message]
        left_out = [message for message in told if message.endswith("not built here")]
        self.assertEqual([message for message in told if message not in left_out], [])
        cuda = all(re.match(r"(kernels/cuda|tests/(cuda|cuda_emulation|ops))/", message) for message in left_out)
        self.assertTrue(cuda or not left_out, left_out)


if __name__ == "__main__":
    unittest.main()
