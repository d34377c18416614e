#!/usr/bin/python3
"""Resumes from mutated journals: each either gives the true results or is refused and left as it was.

    tests/campaign/journal_mutations.py [--mutants 2000] [--seed S] [--jobs N] [--json FILE]

Exit status 1 if a mutant did neither. The program is $PTRT_BIN, or build/ptrt.
"""

import argparse
import concurrent.futures
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from campaign import write_jobs, write_model, write_report
from ptrt_cli import ptrt

REQUESTS = 24
TOKENS = 6


class Setting:
    """A job, its true results, its journal when half of it is done, and journals of other jobs with that model."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = write_model(folder)
        self.requests = write_jobs(folder / "requests.jsonl", REQUESTS, TOKENS)
        whole = folder / "whole.jsonl"
        outcome = self.run(self.requests, whole)
        if outcome.status != 0:
            raise RuntimeError(outcome.output)
        self.results = whole.read_bytes()
        self.journal = self.cut_off(self.requests, "own")
        self.others = [self.cut_off(write_jobs(folder / f"other-{count}-{tokens}.jsonl", count, tokens),
                                    f"other-{count}-{tokens}")
                       for count, tokens in ((REQUESTS, TOKENS + 1), (REQUESTS + 4, TOKENS))]

    def run(self, requests: Path, results: Path, *options: str, env: dict[str, str] | None = None):
        return ptrt("generate", self.model, requests, "-o", results, "--threads", "1", "--max-batch", "4", "--quiet",
                    *options, env=env, timeout=60)

    def cut_off(self, requests: Path, name: str) -> bytes:
        results = self.folder / f"{name}-results.jsonl"
        outcome = self.run(requests, results, env={"PTRT_FAULT": f"rank=0,at=step,after={REQUESTS * TOKENS // 5}"})
        journal = Path(f"{results}.partial").read_bytes()
        lines = journal.count(b"\n")
        if outcome.status != 1 or not 8 < lines < REQUESTS:
            raise RuntimeError(f"no journal to mutate: {lines} lines\n{outcome.output}")
        return journal


def flip_bits(journal: bytes, rng: random.Random, _) -> bytes:
    changed = bytearray(journal)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def insert_bytes(journal: bytes, rng: random.Random, _) -> bytes:
    at = rng.randrange(len(journal) + 1)
    return journal[:at] + rng.choice((b"\n", b" ", b"0", b"\0", b"}", b"\r", rng.randbytes(3))) + journal[at:]


def delete_bytes(journal: bytes, rng: random.Random, _) -> bytes:
    at, count = rng.randrange(len(journal)), rng.choice((1, 1, 2, 17, 150))
    return journal[:at] + journal[at + count:]


def truncate(journal: bytes, rng: random.Random, _) -> bytes:
    return journal[:rng.randrange(len(journal))]


def convert_line_ends(journal: bytes, rng: random.Random, _) -> bytes:
    lines = journal.split(b"\n")
    chosen = range(len(lines)) if rng.random() < 0.3 else [rng.randrange(len(lines) - 1)]
    end = rng.choice((b"\r\n", b"\r", b"\n\n", b" \n"))
    return b"".join(line + (b"" if index == len(lines) - 1 else end if index in chosen else b"\n")
                    for index, line in enumerate(lines))


def swap_lines(journal: bytes, rng: random.Random, _) -> bytes:
    """The order of results is free: a swap of two gives the true results, one with the header is refused."""
    lines = journal.splitlines(keepends=True)
    a, b = rng.sample(range(len(lines)), 2)
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def swap_line_numbers(journal: bytes, rng: random.Random, _) -> bytes:
    lines = journal.splitlines(keepends=True)
    a, b = rng.sample(range(1, len(lines)), 2)
    numbers = {index: lines[index].split(b",", 1)[0] for index in (a, b)}
    lines[a] = numbers[b] + b"," + lines[a].split(b",", 1)[1]
    lines[b] = numbers[a] + b"," + lines[b].split(b",", 1)[1]
    return b"".join(lines)


def double_lines(journal: bytes, rng: random.Random, _) -> bytes:
    lines = journal.splitlines(keepends=True)
    lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def merge_lines(journal: bytes, rng: random.Random, _) -> bytes:
    at = [index for index, byte in enumerate(journal[:-1]) if byte == 0x0A]
    gone = rng.choice(at)
    return journal[:gone] + journal[gone + 1:]


def line_of_another_run(journal: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    lines = journal.splitlines(keepends=True)
    foreign = rng.choice(rng.choice(others).splitlines(keepends=True))
    at = rng.randrange(len(lines))
    if rng.random() < 0.5:
        lines[at] = foreign
    else:
        lines.insert(at, foreign)
    return b"".join(lines)


def splice(journal: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    a, b = rng.randrange(1, len(journal)), rng.randrange(1, len(other))
    return journal[:a] + other[b:] if rng.random() < 0.5 else other[:b] + journal[a:]


def zero_range(journal: bytes, rng: random.Random, _) -> bytes:
    at, count = rng.randrange(len(journal)), rng.choice((1, 16, 200, 4096))
    return journal[:at] + bytes(min(count, len(journal) - at)) + journal[at + count:]


def edit_number(journal: bytes, rng: random.Random, _) -> bytes:
    digits = [index for index, byte in enumerate(journal) if 0x30 <= byte <= 0x39]
    at = rng.choice(digits)
    return journal[:at] + str((journal[at] - 0x30 + rng.randrange(1, 10)) % 10).encode() + journal[at + 1:]


def edit_header(journal: bytes, rng: random.Random, _) -> bytes:
    header, rest = journal.split(b"\n", 1)
    return rng.choice((header.replace(b'"requests":', b'"requests": '), header.replace(b'"ptrt_journal":2', b'"ptrt_journal":1'),
                       header.replace(b":2,", b":3,"), header[:-1] + b',"more":1}', header.upper(), b"{}", b"",
                       header.replace(b"generate", b"score"))) + b"\n" + rest


MUTATIONS = (flip_bits, insert_bytes, delete_bytes, truncate, convert_line_ends, swap_lines, swap_line_numbers,
             double_lines, merge_lines, line_of_another_run, splice, zero_range, edit_number, edit_header)


def try_mutant(setting: Setting, number: int, seed: int) -> tuple[str, str]:
    """The kind of mutation, and "continued", "refused" or what went wrong."""
    mutation = MUTATIONS[number % len(MUTATIONS)]
    rng = random.Random(f"{seed} {number}")
    mutant = mutation(setting.journal, rng, setting.others)
    results = setting.folder / f"mutant-{number}.jsonl"
    partial, done = Path(f"{results}.partial"), Path(f"{results}.done")
    partial.write_bytes(mutant)
    outcome = setting.run(setting.requests, results, "--resume")
    try:
        if outcome.status == 0 and results.read_bytes() == setting.results and not partial.exists():
            return mutation.__name__, "continued"
        if (outcome.status == 2 and partial.read_bytes() == mutant and not results.exists() and not done.exists()
                and len(outcome.errors) == 1 and partial.name in outcome.errors[0]):
            return mutation.__name__, "refused"
        return mutation.__name__, f"WRONG: mutant {number}, status {outcome.status}: {outcome.output.strip()}"
    finally:
        for path in (results, partial, done):
            path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ptrt-mutations-"))
    start = time.monotonic()
    try:
        setting = Setting(folder)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(lambda number: try_mutant(setting, number, options.seed), range(options.mutants)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = [verdict for _, verdict in found if verdict.startswith("WRONG")]
    for verdict in wrong:
        print(verdict, file=sys.stderr)
    kinds = {mutation.__name__: Counter(verdict.split(":")[0] for kind, verdict in found if kind == mutation.__name__)
             for mutation in MUTATIONS}
    write_report(options.json, f"journal_mutations.py --mutants {options.mutants} --seed {options.seed}",
                 {"mutants": len(found), "wrong": len(wrong), "seconds": round(time.monotonic() - start), "kinds": kinds})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
