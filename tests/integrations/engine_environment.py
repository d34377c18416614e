"""For tests that need PyTorch: as with_torch.py, and where PTRT_TORCH_PYTHON names no interpreter, that of `make test-vllm`."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "integrations"), str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "convert")]
import with_torch  # noqa: E402


def pins(lock: Path) -> list[str]:
    """What a lock installs: its lines without comments."""
    return [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]


def is_whole(environment: Path) -> bool:
    """Whether make_environment.sh made all of it, of the lock in this tree: it leaves a copy of the lock last."""
    stamp = environment / ".requirements"
    return stamp.exists() and pins(stamp) == pins(ROOT / "integrations" / "vllm" / "requirements.lock")


def need(*packages: str) -> None:
    """Runs the test where these packages are, or says that it is skipped."""
    environment = Path(os.environ.get("PTRT_VLLM_VENV", Path(os.environ.get("PTRT_BUILD_DIR", ROOT / "build")) / "vllm-venv"))
    if is_whole(environment) and "PTRT_TORCH_PYTHON" not in os.environ and Path(sys.prefix).resolve() != environment.resolve():
        os.environ["PTRT_TORCH_PYTHON"] = str(environment / "bin" / "python")
    with_torch.need(*packages)
