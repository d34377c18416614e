"""For tests that need PyTorch: as with_torch.py, and where PTRT_TORCH_PYTHON names no interpreter, that of `make test-vllm`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integrations"), str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "convert")]
import with_torch  # noqa: E402


def need(*packages: str) -> None:
    """Runs the test where these packages are, or says that it is skipped."""
    environment = Path(os.environ.get("PTRT_VLLM_VENV", Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build")) / "vllm-venv"))
    whole = (environment / ".requirements").exists()  # what make_environment.sh leaves last
    if whole and "PTRT_TORCH_PYTHON" not in os.environ and Path(sys.prefix).resolve() != environment.resolve():
        os.environ["PTRT_TORCH_PYTHON"] = str(environment / "bin" / "python")
    with_torch.need(*packages)
