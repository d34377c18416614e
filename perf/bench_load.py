#!/usr/bin/env python3
"""Times loading a model, plain and packed, against reading its file; writes one JSON with machine, commit and commands.

    perf/bench_load.py MODEL.h5 --out perf/results/load_cpu.json

Cells, each once a round, in rotating order:
    plain                the model as given: matrices are packed while they are read
    packed               the output of `ptrt pack`, its pages in the cache as writing left them
    packed, huge pages   the same, dropped from the cache and read back through a mapping that asks for huge pages
    packed, 4 KiB pages  a copy written in pieces of 4 KiB, so that its pages in the cache have that size

A cell runs three programs, with the files in the page cache:
    dd                   `dd if=FILE of=/dev/null bs=1M` over its files
    ptrt generate        of one token, twice: first_start_s and start_s are the program's whole time. The first may wait
                         until a virtual machine's host provides memory; the second reuses it
    ptrt bench           of a batch of one: load_s (reading the weights and building the engine), decode tokens/s, the
                         largest resident set

`ratio` is dd's time over load_s, so 1 is the speed of reading the file. `huge_bytes` is the part of a mapping of the file
that is in huge pages.
"""
import argparse
import json
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_end_to_end import commit, machine

UNITS = {"peak_bytes": ("peak MiB", 1 / 2**20, 0), "decode_tokens_per_s": ("decode tokens/s", 1, 0)}


def inspect(args, model):
    """The model's files and the bytes of its weights."""
    told = subprocess.run([args.ptrt, "inspect", model, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    return [file["path"] for file in found["files"]], found["bytes"]["total"]


def read_seconds(files):
    """By dd's own clock, without the start of the process."""
    total = 0.0
    for path in files:
        told = subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M"], capture_output=True, text=True, check=True,
                              env=dict(os.environ, LC_ALL="C"))
        total += float(told.stderr.strip().splitlines()[-1].split(",")[-2].split()[0])
    return total


def read_through_mapping(path):
    """Touches every page of a mapping that asks for huge pages; returns the bytes that have them."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, len(mapped), mmap.PAGESIZE):
            mapped[page]  # pylint: disable=pointless-statement
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("FilePmdMapped")) * 1024


def read_back_in_huge_pages(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    read_through_mapping(path)


def copy_in_small_pages(source, copy):
    with open(source, "rb") as whole, open(copy, "wb", buffering=0) as pages:
        while page := whole.read(4096):
            pages.write(page)
        os.fsync(pages.fileno())


class Cell:
    def __init__(self, args, name, model, folder):
        self.name, self.folder, self.rounds = name, folder, []
        self.files, self.weight_bytes = inspect(args, model)
        options = (["--threads", str(args.threads)] if args.threads else []) + args.options.split()
        self.requests, self.results = os.path.join(folder, "one.jsonl"), os.path.join(folder, "results.jsonl")
        Path(self.requests).write_text('{"tokens": [1], "max_tokens": 1}\n', encoding="utf-8")
        self.huge_bytes = sum(read_through_mapping(file) for file in self.files)
        self.start = [args.ptrt, "generate", model, self.requests, "-o", self.results, "--quiet", *options]
        self.bench = [args.ptrt, "bench", model, "--input-len", "1", "--output-len", "257", "--requests", "1",
                      "--warmup", "1", "--max-batch", "1", "--quiet", *options]

    def run(self):
        row = {"dd_s": read_seconds(self.files)}
        for key in ("first_start_s", "start_s"):
            begin = time.perf_counter()
            subprocess.run(self.start, check=True, stdout=subprocess.DEVNULL)
            row[key] = time.perf_counter() - begin
        report = os.path.join(self.folder, "bench.json")
        process = subprocess.Popen([*self.bench, "--json", report])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"exit status {process.returncode} of {' '.join(self.bench)}")
        found = json.loads(Path(report).read_text(encoding="utf-8"))
        row |= {"load_s": found["load_s"], "ratio": row["dd_s"] / found["load_s"],
                "decode_tokens_per_s": found["decode_tokens_per_s"], "peak_bytes": usage.ru_maxrss * 1024}
        self.rounds.append(row)

    def median(self):
        return {key: statistics.median(row[key] for row in self.rounds) for key in self.rounds[0]}

    def to_json(self):
        def told(command):
            return " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in command)
        return {"cell": self.name, "start_command": told(self.start), "load_command": told(self.bench),
                "weight_bytes": self.weight_bytes, "huge_bytes": self.huge_bytes, "median": self.median(),
                "rounds": self.rounds}


def make_cells(args, folder):
    packed, huge, small = (os.path.join(folder, f"{name}.h5") for name in ("packed", "packed_huge", "packed_small"))
    for path in (packed, huge):
        subprocess.run([args.ptrt, "pack", args.model, "-o", path], check=True, stdout=subprocess.DEVNULL)
    read_back_in_huge_pages(huge)
    copy_in_small_pages(packed, small)
    os.sync()  # else the first cells run while the files are still being written out
    named = {"plain": args.model, "packed": packed, "packed, huge pages": huge, "packed, 4 KiB pages": small}
    cells = [Cell(args, name, model, folder) for name, model in named.items()]
    for cell in cells:
        cell.run()
        cell.rounds.clear()
    return cells


def show(name, values):
    texts = []
    for key, value in values.items():
        title, scale, digits = UNITS.get(key, (key, 1, 4 if key.endswith("_s") else 2))
        texts.append(f"{title} {value * scale:.{digits}f}")
    print(f"{name:20}  {'  '.join(texts)}", flush=True)


def compare(cells, key):
    """Ratios of each other cell to the first, round by round, because machines drift."""
    first = cells[0].rounds
    return {cell.name: statistics.median(row[key] / base[key] for row, base in zip(cell.rounds, first))
            for cell in cells[1:]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a plain model file")
    parser.add_argument("--ptrt", default="build/ptrt")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--options", default="", help="more options for ptrt, e.g. '--compute float32'")
    parser.add_argument("--out")
    args = parser.parse_args()

    # Beside the model: another file system may have other pages.
    with tempfile.TemporaryDirectory(dir=Path(args.model).resolve().parent) as folder:
        cells = make_cells(args, folder)
        for number in range(args.rounds):
            first = number % len(cells)  # no cell always follows the same cell
            for cell in cells[first:] + cells[:first]:
                cell.run()
                show(cell.name, cell.rounds[-1])
        ratios = {key: compare(cells, key) for key in ("load_s", "first_start_s", "start_s", "decode_tokens_per_s")}
        print("medians")
        for cell in cells:
            show(cell.name, cell.median())
        for key, found in ratios.items():
            print(f"{key} to plain: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
        result = {"machine": machine(), "commit": commit(), "read_command": "dd if=FILE of=/dev/null bs=1M",
                  "ratios_to_plain": ratios, "cells": [cell.to_json() for cell in cells]}
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
