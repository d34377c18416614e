#!/usr/bin/python3
"""Kills jobs at random moments, resumes them until they are done, and compares the results.

    tests/campaign/kills.py [--kills 200] [--seed S] [--json FILE] [--bound SECONDS]

A job is generate or score on 1, 2 or 4 ranks, with replicas or without. SIGKILL or SIGTERM goes to the launcher, to rank 0,
to another rank or to all of them, at a moment between the start and a little after the usual end. Then no rank of the job may be
left after the bound, results that are there must be the true ones, and --resume must finish the job. Exit status 1 if
anything else was seen. A launcher that is left alone is counted, and killed. The program is $PTRT_BIN, or build/ptrt.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from campaign import write_jobs, write_model, write_report
from ptrt_cli import Running

REQUESTS = 40
# Rank 0 pauses at every step, so that a job takes a second or two on any machine.
SLOW = {"PTRT_FAULT": "rank=0,at=step,pause_ms=4"}
MOST_KILLS = 4  # of one job, then it is left alone
LAUNCHERS = ("mpirun", "orterun", "prterun", "srun")
TARGETS = ("launcher", "launcher", "rank 0", "another rank", "all")


@dataclass(frozen=True)
class Shape:
    command: str
    ranks: int | None  # None: without a launcher
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.command, f"{self.ranks or 1} ranks", *self.options])


SHAPES = (Shape("generate", None), Shape("generate", 2), Shape("generate", 4), Shape("generate", 4, ("--replicas", "2")),
          Shape("generate", 2, ("--replicas", "2")), Shape("score", None), Shape("score", 2),
          Shape("score", 4, ("--replicas", "2")), Shape("generate", 4, ("--replicas", "4")))


def processes_of(results: Path) -> list[int]:
    """Every process, launchers included, that has this results file on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(results).encode() in words:
                found.append(int(entry.name))
    return found


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def describe(process: int) -> str:
    """Program and threads of a process, with what each waits for in the kernel."""
    threads = Counter()
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            threads[f"{state} {(task / 'wchan').read_text()}"] += 1
    except OSError:
        return "one that has just ended"
    return f"{name_of(process)} ({', '.join(f'{count} x {what}' for what, count in sorted(threads.items()))})"


def send(process: int, how: signal.Signals) -> None:
    try:
        os.kill(process, how)
    except ProcessLookupError:
        pass


class Campaign:
    def __init__(self, folder: Path, seed: int, bound: float):
        self.folder, self.rng, self.bound = folder, random.Random(seed), bound
        self.model = write_model(folder, tracks=4, sync_layers=[1, 2])
        self.requests = write_jobs(folder / "requests.jsonl", REQUESTS, 12)
        self.expected: dict[Shape, tuple[bytes, float]] = {}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest_end = 0.0
        self.jobs = 0

    def start(self, shape: Shape, results: Path, *options: str) -> Running:
        return Running([shape.command, self.model, self.requests, "-o", results, "--threads", "1", "--max-batch", "4",
                        "--step-timeout", "20", *shape.options, *options], shape.ranks, SLOW)

    def truth(self, shape: Shape) -> tuple[bytes, float]:
        """The results of such a job, and how long it takes."""
        if shape not in self.expected:
            results = self.folder / "truth.jsonl"
            outcome = self.start(shape, results).finish(timeout=120)
            if outcome.status != 0:
                raise RuntimeError(f"{shape}: {outcome.output}")
            self.expected[shape] = (results.read_bytes(), outcome.seconds)
            Path(f"{results}.done").unlink()
            results.unlink()
        return self.expected[shape]

    def fail(self, what: str) -> None:
        print(what, file=sys.stderr, flush=True)
        self.wrong.append(what)

    def wait_for_the_end(self, results: Path, name: str) -> None:
        start = time.monotonic()
        while processes_of(results):
            if time.monotonic() - start > self.bound:
                left = processes_of(results)
                if all(name_of(process) in LAUNCHERS for process in left):
                    # All ranks have ended, and the launcher hangs in itself.
                    self.counts["launcher alone left"] += 1
                else:
                    self.fail(f"{name}: left after {self.bound:g} s: {', '.join(map(describe, left))}")
                for process in left:
                    send(process, signal.SIGKILL)
                time.sleep(1)
                return
            time.sleep(0.02)
        self.slowest_end = max(self.slowest_end, time.monotonic() - start)

    def kill(self, running: Running, results: Path) -> str:
        how = self.rng.choice((signal.SIGKILL, signal.SIGTERM))
        target = self.rng.choice(TARGETS)
        ranks = running.ranks()
        if target == "launcher" or not ranks:
            chosen, target = [running.process.pid], "launcher" if ranks else "first process"
        elif target == "all":
            chosen = processes_of(results)
        else:
            chosen = [ranks[0] if target == "rank 0" else self.rng.choice(ranks)]
        for process in chosen:
            send(process, how)
        return f"{how.name} to {target}"

    def run_job(self, number: int, most_kills: int) -> int:
        """Returns the number of kills."""
        shape = SHAPES[number % len(SHAPES)]
        expected, usual = self.truth(shape)
        results = self.folder / f"job-{number}.jsonl"
        kills = 0
        while True:
            running = self.start(shape, results, *(("--resume",) if kills else ()))
            if kills == most_kills:
                outcome = running.finish(timeout=120)
                self.check(outcome.status == 0, f"{shape}, job {number}: the last run: {outcome.status} {outcome.output}")
                break
            # What was resumed is done sooner.
            time.sleep(self.rng.uniform(0, usual * (0.8 if kills else 1.05)))
            if running.process.poll() is not None:
                self.counts["ended before the kill"] += 1
                outcome = running.finish(timeout=5)
                self.check(outcome.status == 0, f"{shape}, job {number}: {outcome.status} {outcome.output}")
                break
            name = f"{shape}, job {number}, kill {kills}: {self.kill(running, results)}"
            self.counts[name.split(": ")[1]] += 1
            kills += 1
            self.wait_for_the_end(results, name)
            outcome = running.finish(timeout=5)
            self.check(outcome.status != 2, f"{name}: {outcome.output}")
            if results.exists():
                self.check(results.read_bytes() == expected, f"{name}: other results")
        self.check(results.exists() and results.read_bytes() == expected, f"{shape}, job {number}: other results")
        self.check(not Path(f"{results}.partial").exists(), f"{shape}, job {number}: a journal is left")
        for path in self.folder.glob(f"job-{number}.jsonl*"):
            path.unlink()
        return kills

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.fail(what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bound", type=float, default=40, help="seconds until no process may be left")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ptrt-kills-"))
    start = time.monotonic()
    kills = 0
    try:
        campaign = Campaign(folder, options.seed, options.bound)
        while kills < options.kills:
            most = min(campaign.rng.randint(1, MOST_KILLS), options.kills - kills)
            kills += campaign.run_job(campaign.jobs, most)
            campaign.jobs += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_report(options.json, f"kills.py --kills {options.kills} --seed {options.seed}",
                 {"kills": kills, "jobs": campaign.jobs, "wrong": len(campaign.wrong),
                  "seconds": round(time.monotonic() - start),
                  "slowest_end_s": round(campaign.slowest_end, 1), "counts": dict(sorted(campaign.counts.items()))})
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
