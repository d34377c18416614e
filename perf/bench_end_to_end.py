#!/usr/bin/env python3
"""Runs `ptrt bench` over several numbers of ranks, interleaved, and writes one JSON with machine, commit and commands.

    perf/bench_end_to_end.py --model examples/demo/demo.h5 --ranks 1 2 4 8 --out perf/results/demo_cpu.json
    perf/bench_end_to_end.py --config perf/configs/pt8_125m.json --ranks 1 2 --input-len 128 --output-len 64

Rounds are interleaved (every number of ranks once, then again), because machines drift. The table shows medians.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [
    ("TTFT ms", lambda r: r["ttft_ms"]["p50"]),
    ("TPOT ms", lambda r: r["tpot_ms"]["p50"]),
    ("prefill tok/s", lambda r: r["prefill_tokens_per_s"]),
    ("decode tok/s", lambda r: r["decode_tokens_per_s"]),
    ("output tok/s", lambda r: r["output_tokens_per_s"]),
    ("sync/forward", lambda r: r["sync_points_per_forward"]),
    ("sync share", lambda r: r["sync_time_fraction"]),
]


def machine():
    """What the figures depend on, without names of hosts or people."""
    info = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                info["cpu"] = line.split(":", 1)[1].strip()
                break
    return info


def commit():
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout
    return git("rev-parse", "HEAD").strip() + ("-dirty" if git("status", "--porcelain", "-uno").strip() else "")


def record_cells(bench_of, args, with_old=()):
    """Runs the cells of args.only, methods of bench_of(args, FOLDER), into args.out; the other cells of that file stay.
    with_old: the cells that are measured beside args.old, whose commit they record."""
    out = Path(args.out)
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if found.get("machine", machine()) != machine():
        sys.exit(f"{out} has figures of another machine: {found['machine']}; this is {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            bench = bench_of(args, folder)
            cell = getattr(bench, name)()
            cell["commands"] = list(dict.fromkeys(bench.commands))
            old = {"old_commit": args.old_commit} if args.old and name in with_old else {}
            found[name] = {"commit": commit(), **old, **cell}
            print(name, json.dumps({key: value for key, value in cell.items() if key not in ("rounds", "commands")}))
            out.write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n", encoding="utf-8")


def bench_command(args, ranks):
    model = [args.model] if args.model else ["--random-weights", args.config]
    command = [] if ranks == 1 else ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    command += [args.ptrt, "bench", *model, "--quiet"]
    for option in ("input_len", "output_len", "requests", "max_batch", "threads"):
        value = getattr(args, option)
        if value is not None:
            command += ["--" + option.replace("_", "-"), str(value)]
    return command


def run(command):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "bench.json")
        subprocess.run([*command, "--json", path], check=True, env=env)
        with open(path, encoding="utf-8") as file:
            return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default="build/ptrt")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model")
    source.add_argument("--config")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--max-batch", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out")
    args = parser.parse_args()

    results = {ranks: [] for ranks in args.ranks}
    for _ in range(args.rounds):
        for ranks in args.ranks:
            results[ranks].append(run(bench_command(args, ranks)))

    print(f"{'ranks':>5} " + " ".join(f"{name:>13}" for name, _ in COLUMNS))
    cells = []
    for ranks, rounds in results.items():
        medians = {name: statistics.median(column(r) for r in rounds) for name, column in COLUMNS}
        print(f"{ranks:>5} " + " ".join(f"{medians[name]:>13.3f}" for name, _ in COLUMNS))
        cells.append({"ranks": ranks, "command": " ".join(bench_command(args, ranks)), "median": medians, "rounds": rounds})
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(
            json.dumps({"machine": machine(), "commit": commit(), "cells": cells}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
