#!/usr/bin/env python3
"""The start of a job by its number of ranks on one host, beside what mpirun and MPI take for `ptrt --version`.

    perf/start_by_ranks.py --out perf/results/start_by_ranks_cpu.json [--ranks 1 4 16 64] [--against OTHER/build/ptrt]

A small model of 64 tracks generates one token: a run is the start, one step and the end. `--version` and the run take turns;
cells are medians, `own_s` the median of the differences. With --against another build takes its turns too.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bench_end_to_end import ROOT, commit, machine

TRACKS = 64
CONFIG = {"name": "start", "tracks": TRACKS, "layers": 4, "sync_layers": [2, 4],
          "fusion": {"op": "mean", "dispatch_norm": False, "combine_norm": False}, "hidden_size": 64, "heads": 2, "kv_heads": 1,
          "head_dim": 32, "ffn_size": 96, "vocab_size": 259, "max_context": 256, "norm_eps": 1e-5, "norm_placement": ["pre"],
          "qk_norm": False, "attention_pattern": ["global_rope"], "attention_window": 0, "rope_theta": 10000.0,
          "ffn_pattern": ["dense"], "moe": None, "tie_embeddings": False, "bos_token_id": 256, "eos_token_ids": [257]}


def seconds(words, folder):
    env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    if done.returncode != 0:
        raise SystemExit(f"exit status {done.returncode} of {' '.join(words)}:\n{done.stderr}")
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptrt", default=str(ROOT / "build" / "ptrt"))
    parser.add_argument("--against", help="the program of another build")
    parser.add_argument("--against-commit", help="its commit")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    builds = {"this": args.ptrt, **({"other": args.against} if args.against else {})}
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        Path(folder, "requests.jsonl").write_text('{"tokens": [1, 2, 3, 4], "max_tokens": 1}\n', encoding="utf-8")
        seconds([args.ptrt, "init", "config.json", "-o", "model.h5"], folder)
        for ranks in args.ranks:
            launch = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
            seen = {build: [] for build in builds}
            for turn in range(args.rounds):
                for build in list(builds)[::1 if turn % 2 == 0 else -1]:
                    Path(folder, "out.jsonl").unlink(missing_ok=True)
                    version = seconds([*launch, builds[build], "--version"], folder)
                    run = seconds([*launch, builds[build], "generate", "model.h5", "requests.jsonl", "-o", "out.jsonl",
                                   "--threads", "1", "--quiet"], folder)
                    seen[build].append({"version_s": version, "run_s": run, "own_s": run - version})
            cell = {"ranks": ranks, "rounds": seen}
            for build, rounds in seen.items():
                cell[build] = {key: round(statistics.median(r[key] for r in rounds), 3) for key in rounds[0]}
            cells.append(cell)
            print(ranks, *(f"{build}: {cell[build]}" for build in builds), flush=True)
    Path(args.out).write_text(json.dumps({
        "machine": machine(), "commit": commit(), "against_commit": args.against_commit,
        "command": "perf/start_by_ranks.py --out " + args.out, "cells": cells}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
