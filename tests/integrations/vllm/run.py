#!/usr/bin/env python3
"""Runs one test file of this folder in the environment of integrations/vllm/make_environment.sh, with the plug-in installed
as its users install it: from a wheel.

    run.py test_models.py [arguments of unittest]

Exits with 77, and says why, where the environment is not there or is that of another lock. It is $PTRT_VLLM_VENV, else
build/vllm-venv.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))
from engine_environment import is_whole  # noqa: E402

BUILD = Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build"))
VENV = Path(os.environ.get("PTRT_VLLM_VENV", BUILD / "vllm-venv"))
SKIPPED = 77


def install_plugin(folder: Path) -> Path:
    """Builds a wheel of integrations/vllm and unpacks it below the folder; returns where its packages are."""
    source, installed = folder / "source", folder / "installed"
    shutil.copytree(ROOT / "integrations" / "vllm", source,  # follows links, and leaves no build files in the tree
                    ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info", "requirements.lock"))
    done = subprocess.run([VENV / "bin" / "uv", "pip", "install", "--python", VENV / "bin" / "python", "--no-deps", "--offline",
                           "--no-build-isolation", "--target", installed, source], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the plug-in cannot be installed:\n{done.stdout}{done.stderr}")
    return installed


def environment(plugin: Path) -> dict[str, str]:
    """Of a process with vLLM: no network, and ranks that share two cores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return kept | {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(map(str, (plugin, HERE, ROOT / "tests" / "reference"))),
        "PTRT_BIN": os.environ.get("PTRT_BIN", str(BUILD / "ptrt")),
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        # What vLLM keeps about model classes; compiled models are compiled anew.
        "VLLM_CACHE_ROOT": str(BUILD / "vllm-cache"), "VLLM_CONFIG_ROOT": str(BUILD / "vllm-cache"),
        "VLLM_DISABLE_COMPILE_CACHE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        # Threads bound to a core would spin there while another rank or program has it.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }


def main() -> int:
    if not is_whole(VENV):
        print(f"skipped: {VENV} is not the environment of requirements.lock; `make test-vllm` makes it (3 GB of downloads)")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="ptrt-vllm-") as folder:
        plugin = install_plugin(Path(folder))
        command = [VENV / "bin" / "python", HERE / sys.argv[1], *sys.argv[2:]]
        return subprocess.run(command, env=environment(plugin), cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
