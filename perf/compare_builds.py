#!/usr/bin/env python3
"""Compares two builds of ptrt: each cell runs in both, in turns, and the ratio of each turn is kept.

    perf/compare_builds.py --ptrt build/ptrt --against OTHER/build/ptrt --against-commit HASH \\
        --out perf/results/builds_cpu.json

The cells are ptrt's own of compare_cpu.py. `time_ratio` is this build's time over the other's: 1.02 means that this
build is 2 % slower. The order within a turn changes from round to round.
"""
import argparse
import json
import re
import statistics
import tempfile
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine
from compare_cpu import ptrt_cells, start_cells


def cells_of(program, folder):
    """The cells of one build by name. Both builds read the same model files: where these lie in the page cache counts."""
    args = argparse.Namespace(ptrt=program, llama=None, gguf_bf16=None)
    return {name: run for source in (ptrt_cells(args, folder), start_cells(args, folder)) for name, (_, run) in source}


def time_ratio(name, this, other):
    return this / other if name.endswith("[s]") else other / this


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--against", required=True, help="the program of the other build")
    parser.add_argument("--against-commit", required=True, help="the commit of the other build")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cells whose name matches this regular expression")
    parser.add_argument("--out")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        this, other = cells_of(args.ptrt, folder), cells_of(args.against, folder)
        names = [name for name in this if re.search(args.only, name)]
        rounds = {name: [] for name in names}
        for turn in range(args.rounds):
            for name in names:
                builds = ("this", "other") if turn % 2 == 0 else ("other", "this")
                seen = {build: {"this": this, "other": other}[build][name]() for build in builds}
                rounds[name].append(seen | {"time_ratio": time_ratio(name, seen["this"], seen["other"])})
            print(f"round {turn + 1} of {args.rounds}", flush=True)

    cells = [{"cell": name, "rounds": seen}
             | {key: round(statistics.median(turn[key] for turn in seen), 4) for key in ("this", "other", "time_ratio")}
             for name, seen in rounds.items()]
    for cell in cells:
        print(f"{cell['cell']:55} {cell['this']:10.3f} {cell['other']:10.3f} {cell['time_ratio']:7.3f}")
    if args.out:
        result = {"machine": machine(), "commit": commit(), "against_commit": args.against_commit, "cells": cells}
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
