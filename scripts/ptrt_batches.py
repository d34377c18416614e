"""Batch files for `ptrt score` and `ptrt generate`: made in a work folder, run, and read back.

A batch is named by a digest of its requests, the model's path and the options. So a rerun finds what is finished,
and `ptrt --resume` continues from the journal of what is not. The model's content is ptrt's to check.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

STOPPED = 75  # ptrt's exit status after a signal, with the journal on disk
BUILT = Path(__file__).resolve().parent.parent / "build" / "ptrt"


class BatchFailed(Exception):
    """A batch that gave no results; `status` is ptrt's exit status, or 1."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def find_program(name: str | None = None) -> str:
    """`name`, else $PTRT_BIN, else the one in build/, else that in PATH."""
    for candidate in (name, os.environ.get("PTRT_BIN"), str(BUILT) if BUILT.exists() else None):
        if candidate:
            return candidate
    found = shutil.which("ptrt")
    if found is None:
        raise BatchFailed("no ptrt in build/ or PATH: give --ptrt", 2)
    return found


class Batches:
    """Runs batches of one model. `launcher`: words before the program, such as "mpirun -n 8"."""

    def __init__(self, model: str, work: str, launcher: str = "", program: str | None = None,
                 options: str = ""):
        self.model, self.work = str(Path(model).resolve()), Path(work)
        self.command = [*shlex.split(launcher), find_program(program)]
        self.options = shlex.split(options)
        self.work.mkdir(parents=True, exist_ok=True)

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context (token ids), and whether it is the greedy one.

        Equal pairs are scored once.
        """
        places: dict[str, int] = {}
        rows, where = [], []
        for context, continuation in pairs:
            row = {"context": list(context), "continuation": list(continuation)}
            key = json.dumps(row)
            if key not in places:
                places[key] = len(rows)
                rows.append(row)
            where.append(places[key])
        lines = self.run("score", rows)
        return [(lines[place]["sum_logprob"], lines[place]["is_greedy"]) for place in where]

    def generate(self, rows: list[dict]) -> list[str]:
        """The text of each request; every row needs its `max_tokens`."""
        return [line["text"] for line in self.run("generate", rows)]

    def run(self, command: str, rows: list[dict]) -> list[dict]:
        """The results of the rows, in their order. A request that ptrt cannot answer fails the batch."""
        if not rows:
            return []
        requests, results = self.make_files(command, rows)
        run = [*self.command, command, self.model, str(requests), "-o", str(results), "--resume", *self.options]
        status = subprocess.run(run, check=False).returncode
        if status == STOPPED:
            raise BatchFailed(f"{results}: stopped by a signal; the same command continues", status)
        if status != 0:
            raise BatchFailed(f"{shlex.join(run)}: exit status {status}", 2 if status == 2 else 1)
        return read_results(results, len(rows))

    def make_files(self, command: str, rows: list[dict]) -> tuple[Path, Path]:
        """The batch's request file, written unless it is there, and the name of its results."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        identity = "\0".join([self.model, *self.options, text])
        name = f"{command}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}"
        requests = self.work / f"{name}.jsonl"
        if not requests.exists():
            unfinished = self.work / f"{name}.{os.getpid()}.tmp"
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(requests)
        return requests, self.work / f"{name}.results.jsonl"


def read_results(path: Path, count: int) -> list[dict]:
    """One line a request, none of them an error."""
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if len(lines) != count:
        raise BatchFailed(f"{path}: {len(lines)} results of {count} requests")
    errors = [line for line in lines if line.get("error")]
    if errors:
        raise BatchFailed(f"{path}: {len(errors)} of {count} requests failed, the first with "
                          f"{errors[0]['error']['code']}: {errors[0]['error']['message']}")
    return lines
