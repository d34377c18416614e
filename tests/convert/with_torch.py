"""For tests that need PyTorch: runs them with an interpreter that has it, $PTRT_TORCH_PYTHON, or says that they are skipped."""

import importlib.util
import os
import sys

SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return
    other = os.environ.pop("PTRT_TORCH_PYTHON", None)
    if other:
        os.execv(other, [other, *sys.argv])
    print(f"skipped: {sys.executable} has no {', '.join(missing)}; PTRT_TORCH_PYTHON may name another python3")
    sys.exit(SKIPPED)
