"""Runs the program under test as a user would, alone or under mpirun, with a time limit.

The program is $PTRT_BIN, or build/ptrt below the root of the repository.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PTRT = Path(os.environ.get("PTRT_BIN", ROOT / "build" / "ptrt"))
# Seconds that a run may take, and that what follows from a fault may take after it. An idle machine needs a few; two
# busy cores, or an mpirun that looks for names no server knows, need many more. Only a hang takes so long.
PATIENCE = 180
# The sanitizers that the program is built with, as CMake names them, and how much longer a run may take with them.
SANITIZERS = os.environ.get("PTRT_SANITIZE", "")
SLOWNESS = 6 if SANITIZERS else 1
sys.path.insert(0, str(ROOT / "tests" / "reference"))

_MPI_ENV = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none", "OMPI_MCA_rmaps_base_oversubscribe": "1",
}

# Open MPI's plugins are unloaded before the check for leaks, so their leaks have no names (see test_host.py).
MPI_LEAKS = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "detect_leaks=0")}

_numbers = itertools.count()


@dataclass
class Outcome:
    """A finished run: exit status, its two streams, seconds (mpirun's start included), and whether it had to be killed."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    @property
    def errors(self) -> list[str]:
        """The program's own messages, without what mpirun adds."""
        return [line for line in self.output.splitlines() if line.startswith("ptrt:") and "error" in line]


def under_mpirun(command: list[str], ranks: int, rank_env: dict[int, dict[str, str]]) -> list[str]:
    launcher = ["mpirun", "--oversubscribe", "--bind-to", "none"]
    if not rank_env:
        return [*launcher, "-n", str(ranks), *command]
    for rank in range(ranks):
        variables = [f"{name}={value}" for name, value in rank_env.get(rank, {}).items()]
        launcher += [":"] * (rank > 0) + ["-n", "1", "env", *variables, *command]
    return launcher


class Running:
    """A run in progress. Output goes to files: a pipe would stay open in any rank that outlives its job."""

    def __init__(self, arguments: list[str], ranks: int | None = None, env: dict[str, str] | None = None,
                 cwd: Path | None = None, rank_env: dict[int, dict[str, str]] | None = None,
                 command: list[str] | None = None):
        """rank_env: variables of single ranks. command: another one than the program with these arguments."""
        command = command or [str(PTRT), *map(str, arguments)]
        if ranks is not None:
            command = under_mpirun(command, ranks, rank_env or {})
        merged = {**os.environ, **_MPI_ENV}
        if "PTRT_FAULT" not in (env or {}):
            merged.pop("PTRT_FAULT", None)
        if ranks is not None:
            merged.update(MPI_LEAKS)
        merged.update(env or {})
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._start = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
                                        env=merged, cwd=cwd, start_new_session=True)

    def stderr_so_far(self) -> str:
        return os.pread(self._err.fileno(), 1 << 20, 0).decode("utf-8", errors="replace")

    def ranks(self) -> list[int]:
        """Process ids of the ranks, in their order: the descendants that run the program."""
        parents, found = {}, []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                name = os.path.basename(os.readlink(entry / "exe"))
            except OSError:
                continue
            if name == PTRT.resolve().name:
                found.append(int(entry.name))

        def descends(process: int) -> bool:
            while process in parents and process != self.process.pid:
                process = parents[process]
            return process == self.process.pid
        return sorted(process for process in found if descends(process))

    def finish(self, timeout: float = PATIENCE) -> Outcome:
        """Waits for the end, from now on, with sanitizers SLOWNESS times as long; ends a run that takes longer."""
        timed_out = False
        try:
            self.process.wait(timeout=timeout * SLOWNESS)
        except subprocess.TimeoutExpired:
            timed_out = True
            self.stop()
        seconds = time.monotonic() - self._start
        texts = []
        for stream in (self._out, self._err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", errors="replace"))
            stream.close()
        return Outcome(self.process.returncode, texts[0], texts[1], seconds, timed_out)

    def stop(self) -> None:
        """Ends the run: mpirun first gets the chance to end its ranks."""
        for how, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, how)
            except ProcessLookupError:
                pass
            try:
                self.process.wait(timeout=patience)
                return
            except subprocess.TimeoutExpired:
                continue


def ptrt(*arguments, ranks: int | None = None, env: dict[str, str] | None = None, timeout: float = PATIENCE,
         cwd: Path | None = None, rank_env: dict[int, dict[str, str]] | None = None) -> Outcome:
    """Runs the program to its end; ranks = None starts it without mpirun."""
    return Running(list(arguments), ranks, env, cwd, rank_env).finish(timeout)


def write_requests(path: Path, rows: list) -> Path:
    """One line a row: dicts as JSON, bytes and text as they are."""
    lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
             for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read_results(path: Path) -> list[dict]:
    text = path.read_bytes().decode("utf-8")
    if text and not text.endswith("\n"):
        raise AssertionError(f"{path.name} does not end with a line break")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def attribute(holder, name: str) -> str | None:
    """A string attribute as text: h5py gives those of fixed length as bytes."""
    value = holder.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value


def error_code(line: dict) -> str:
    """The code of an error line of either form, or "" if the line is a result."""
    if line.get("error"):
        return line["error"]["code"]
    response = line.get("response")
    if response and response["status_code"] >= 400:
        return response["body"]["error"]["code"]
    return ""


class CliTest(unittest.TestCase):
    """A test with its own folder and short ways to run the two batch commands."""

    longMessage = True
    dir: Path

    @classmethod
    def setUpClass(cls) -> None:
        if not PTRT.exists():
            raise FileNotFoundError(f"{PTRT}: build the program first, or set PTRT_BIN")
        cls.dir = Path(tempfile.mkdtemp(prefix="ptrt-test-"))
        cls.addClassCleanup(shutil.rmtree, cls.dir, ignore_errors=True)

    @classmethod
    def fresh(cls, suffix: str) -> Path:
        """A path that no run has used yet."""
        return cls.dir / f"{next(_numbers):04d}{suffix}"

    def another_build(self) -> tuple[Path, str]:
        """A copy of the program with another build id, and the begin of the program's own; skips where it has none."""
        notes = subprocess.run(["readelf", "-n", PTRT], capture_output=True, text=True, check=False).stdout
        found = [line.split()[-1] for line in notes.splitlines() if "Build ID" in line]
        if not found:
            self.skipTest("the program has no build id")
        identifier = bytes.fromhex(found[0])
        other = self.fresh("-ptrt")
        other.write_bytes(PTRT.read_bytes().replace(identifier, bytes([identifier[0] ^ 1]) + identifier[1:]))
        other.chmod(0o755)
        return other, found[0][:12]

    def assert_done(self, outcome: Outcome) -> None:
        self.assertFalse(outcome.timed_out, f"no end after {outcome.seconds:.1f} s\n{outcome.output}")
        self.assertEqual(outcome.status, 0, outcome.output)

    def batch(self, command: str, model: Path, rows: list, *options, ranks: int | None = None,
              timeout: float = PATIENCE, **keywords) -> bytes:
        """Runs generate or score over the rows and returns the bytes of the results file."""
        requests = write_requests(self.fresh("-requests.jsonl"), rows)
        results = self.fresh("-results.jsonl")
        outcome = ptrt(command, model, requests, "-o", results, *options, ranks=ranks, timeout=timeout, **keywords)
        self.last_outcome = outcome
        self.assert_done(outcome)
        self.assertTrue(results.exists(), f"{command} wrote no results")
        self.assertFalse(Path(f"{results}.partial").exists(), "the journal was left behind")
        self.last_results = results
        return results.read_bytes()

    def lines(self, command: str, model: Path, rows: list, *options, **keywords) -> list[dict]:
        """As batch, parsed, with one line a row."""
        self.batch(command, model, rows, *options, **keywords)
        lines = read_results(self.last_results)
        self.assertEqual(len(lines), len(rows), "one line a request")
        return lines
