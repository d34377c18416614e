"""What the campaigns share: the models and jobs they repeat, and the report of counts that they write."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "cli"), str(ROOT / "tests" / "reference")]

from ptrt_cli import write_requests  # noqa: E402

from model_maker import make_config, write_random  # noqa: E402


def write_model(folder: Path, **changes) -> Path:
    """A model that loads and answers in milliseconds."""
    config = make_config(hidden_size=32, heads=2, kv_heads=1, head_dim=16, ffn_size=32, layers=2, **changes)
    return write_random(folder / "model.h5", config, 5)


def write_jobs(path: Path, count: int, max_tokens: int) -> Path:
    """Requests of different lengths, one of them bad."""
    rows: list = [{"id": f"r{index}", "tokens": [index % 250, 3, 9], "max_tokens": max_tokens + index % 7,
                   "temperature": index % 3 * 0.5, "logprobs": index % 4 == 0} for index in range(count - 1)]
    rows.insert(3, "no request")
    return write_requests(path, rows)


def commit() -> str:
    made = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          check=False)
    return made.stdout.strip() or "unknown"


COMMIT = commit()  # when the campaign starts


def machine() -> str:
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} processing units, Linux {platform.release()}"


def write_report(path: Path | None, command: str, counts: dict) -> None:
    report = {"command": command, "commit": COMMIT, "machine": machine(), **counts}
    lines = [f" {json.dumps(key)}: " + (json.dumps(value) if key != "kinds" else
             "{\n" + ",\n".join(f"  {json.dumps(kind)}: {json.dumps(found)}" for kind, found in value.items()) + "\n }")
             for key, value in report.items()]
    text = "{\n" + ",\n".join(lines) + "\n}"
    print(text)
    if path:
        path.write_text(text + "\n")
