#!/usr/bin/env python3
"""Runs bench_step_read for bfloat16 and int8 in turns; writes one JSON with machine, commit and commands.

    perf/step_read.py --bench build/bench_step_read --out perf/results/step_read_cpu.json

bench_step_read alternates between decode steps and reads of as many bytes. Each block it reports (246 steps, about two
seconds) belongs to one state of the machine's memory: fast from --fast GB/s of the reads on, slow below --slow, "between"
if it changed within the block. For each state the file has the median, the quartiles and the ends of the blocks' medians.

With --against another build's bench_step_read, runs of the two builds alternate. Blocks of such a pair of runs are compared
if they have the same state: `step_ratio` is this build's time of a step over the other's.
"""
import argparse
import json
import os
import statistics
import subprocess
from pathlib import Path

from bench_end_to_end import commit, machine

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = {"bfloat16": [], "int8": ["--int8"]}


def spread(values):
    values = sorted(values)
    quartile = [values[round(q * (len(values) - 1) / 4)] for q in (1, 3)]
    return {"median": statistics.median(values), "quartiles": quartile, "ends": [values[0], values[-1]]}


def state_of(block, args):
    if block["read_gb_per_s"] >= args.fast:
        return f"fast, {args.fast:g} GB/s or more"
    return "between" if block["read_gb_per_s"] >= args.slow else f"slow, less than {args.slow:g} GB/s"


def by_state(blocks, args):
    found = {}
    for block in blocks:
        found.setdefault(state_of(block, args), []).append(block)
    return {state: {"blocks": len(mine)} | {key: spread([block[key] for block in mine])
                                            for key in ("read_gb_per_s", "step_ms", "of_read", "of_read_weights")}
            for state, mine in sorted(found.items())}


def compare(mine, other, args):
    found = {}
    for pair in zip(mine, other):
        state = state_of(pair[0], args)
        if state == state_of(pair[1], args):
            found.setdefault(state, []).append(pair)
    return {state: {"pairs": len(pairs), "step_ratio": spread([a["step_ms"] / b["step_ms"] for a, b in pairs]),
                    "of_read": spread([a["of_read"] for a, _ in pairs]),
                    "of_read_other": spread([b["of_read"] for _, b in pairs])}
            for state, pairs in sorted(found.items())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/bench_step_read")
    parser.add_argument("--against", help="bench_step_read of another build")
    parser.add_argument("--against-commit", help="the commit of that build")
    parser.add_argument("--config", default=str(ROOT / "perf/configs/dense_125m.json"))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--fast", type=float, default=60)
    parser.add_argument("--slow", type=float, default=55)
    parser.add_argument("--out")
    args = parser.parse_args()
    builds = {"this": args.bench} | ({"other": args.against} if args.against else {})
    cells = {(weights, build): {"weights": weights, "build": build,
                                "command": [program, args.config, "--threads", args.threads, "--runs", "6", *options],
                                "blocks": []}
             for weights, options in WEIGHTS.items() for build, program in builds.items()}
    for r in range(args.rounds):
        for (weights, build), cell in sorted(cells.items(), key=lambda item: item[0], reverse=r % 2 == 1):
            told = json.loads(subprocess.run(cell["command"], capture_output=True, text=True, check=True).stdout)
            cell |= {key: told[key] for key in ("model", "instruction_set", "weight_bytes", "kv_bytes_per_token")}
            cell["blocks"] += told["blocks"]
            print(weights, build, " ".join(f"{block['read_gb_per_s']:.0f}:{block['of_read']:.3f}"
                                           for block in told["blocks"]), flush=True)
    for cell in cells.values():
        cell["command"] = " ".join(os.path.basename(word) if os.path.isabs(word) else word for word in cell["command"])
        cell["all"] = spread([block["of_read"] for block in cell["blocks"]])
        cell["states"] = by_state(cell["blocks"], args)
        for state, found in cell["states"].items():
            print(f"{cell['weights']}, {cell['build']}, {state}: {found['blocks']} blocks, of_read {found['of_read']}")
        if cell["build"] == "this" and args.against:
            cell["compared"] = compare(cell["blocks"], cells[cell["weights"], "other"]["blocks"], args)
            for state, found in cell["compared"].items():
                print(f"{cell['weights']}, {state}: {found['pairs']} pairs, step_ratio {found['step_ratio']}")
    if args.out:
        result = {"machine": machine(), "commit": commit(), "rounds": args.rounds, "cells": list(cells.values())}
        if args.against:
            result["against_commit"] = args.against_commit
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
